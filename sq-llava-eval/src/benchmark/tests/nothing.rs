//! Where nothing is scored there is no number, but an error that says what did not match.

use super::*;

/// The error of scoring, which must be one.
fn refused(fixture: &Fixture, given: &Answers) -> String {
    let questions = fixture.questions();
    let scored = score(&questions, given, fixture.files.annotations.as_deref());
    scored.unwrap_err().to_string()
}

fn asked(id: impl Into<Value>, text: &str) -> Value {
    let id: Value = id.into();
    json!({"question_id": id, "image": "a.jpg", "text": text, "category": "random"})
}

/// Question 7 of a benchmark, and references to something else.
fn unmatched(benchmark: Benchmark, references: &Value) -> Fixture {
    Fixture::new(benchmark, "q.jsonl")
        .lines("q.jsonl", &[asked(7, "What?\nAnswer.")])
        .json("refs.json", references)
        .annotations("refs.json")
}

#[test]
fn fault_20_references_to_other_questions_are_an_error() {
    let ten = people("x", 10);
    let coco = json!({"images": [{"id": 1, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 1, "caption": "A dog."}]});
    for (benchmark, references) in [
        (
            Benchmark::VqaV2,
            json!({"annotations": [{"question_id": 8, "answers": ten}]}),
        ),
        (
            Benchmark::VizWiz,
            json!([{"image": "b.jpg", "question": "What?", "answers": ten}]),
        ),
        (
            Benchmark::TextVqa,
            json!({"data": [{"image_id": "a", "question": "What?", "answers": vec!["x"; 10]}]}),
        ),
        (
            Benchmark::Gqa,
            json!({"8": {"question": "What?", "imageId": "n", "answer": "x"}}),
        ),
        (
            Benchmark::Seed,
            json!({"question_type": {}, "questions": [{"question_id": "8", "answer": "A",
                "data_type": "image", "question_type_id": 1}]}),
        ),
        (Benchmark::CocoCaptions, coco.clone()),
        (Benchmark::NoCaps, coco),
    ] {
        let fixture = unmatched(benchmark, &references);
        let given = answers(&fixture.questions(), |_| Some("A dog.".into()));
        let error = refused(&fixture, &given);
        for part in ["refs.json", "nothing of", "question 7"] {
            assert!(error.contains(part), "{benchmark}: {error}");
        }
    }
}

#[test]
fn fault_20_scienceqa_of_another_split_is_an_error() {
    let fixture = Fixture::new(Benchmark::ScienceQa, "q.json")
        .json(
            "q.json",
            &json!([{"id": "7", "conversations": [{"from": "human", "value": "Which?"}]}]),
        )
        .json(
            "problems.json",
            &json!({"8": {"choices": ["a", "b"], "answer": 0}}),
        )
        .json("pid_splits.json", &json!({"test": ["8"]}))
        .annotations("problems.json");
    let given = answers(&fixture.questions(), |_| Some("A".into()));
    let error = refused(&fixture, &given);
    assert!(
        error.contains("question 7") && error.contains("test split"),
        "{error}"
    );
}

#[test]
fn fault_20_answers_to_other_questions_are_an_error() {
    let fixture = Fixture::new(Benchmark::Gqa, "q.jsonl")
        .lines("q.jsonl", &[asked("n1", "What?")])
        .json("refs.json", &json!({"n1": {"answer": "x"}}))
        .annotations("refs.json");
    let mut given = answers(&fixture.questions(), |_| Some("x".into()));
    given.list[0].question_id = "n2".into();
    let error = refused(&fixture, &given);
    for part in ["q.jsonl", "n1", "n2", "none of the 1 answers"] {
        assert!(error.contains(part), "{error}");
    }
    let error = refused(&fixture, &Answers::default());
    assert!(error.contains("nothing is scored"), "{error}");
}

fn pope(labels: &[&str]) -> Fixture {
    let lines: Vec<Value> = labels
        .iter()
        .enumerate()
        .map(|(id, label)| json!({"question_id": id, "image": "a.jpg", "label": label}))
        .collect();
    let questions: Vec<Value> = (0..labels.len()).map(|id| asked(id, "Is it?")).collect();
    Fixture::new(Benchmark::Pope, "q.jsonl")
        .lines("q.jsonl", &questions)
        .lines("coco/coco_pope_random.json", &lines)
        .annotations("coco")
}

#[test]
fn fault_20_pope_takes_labels_in_any_case() {
    let fixture = pope(&["Yes", "NO", " yes ", "no"]);
    let questions = fixture.questions();
    let given = answers(&questions, |q| {
        Some(["Yes", "Yes", "Yes", "No"][q.position].into())
    });
    let report = fixture.score(&questions, &given);
    assert_eq!(report.problems.total(), 0);
    assert_eq!(report.value("random accuracy"), Some(75.0));
    assert_eq!(report.metrics[0].count, 4);
}

#[test]
fn fault_20_mmbench_takes_letters_in_any_case() {
    let image = "x".repeat(80);
    let table = format!(
        "index\tquestion\tA\tB\tanswer\timage\n1\tWhich?\tred\tblue\tb\t{image}\n\
         2\tWhich?\tred\tblue\tA \t{image}\n"
    );
    let fixture = Fixture::new(Benchmark::MmBench, "t.tsv").file("t.tsv", &table);
    let questions = fixture.questions();
    let given = answers(&questions, |q| Some(["B", "A"][q.position].into()));
    let report = fixture.score(&questions, &given);
    assert_eq!(report.value("accuracy"), Some(100.0));
}

#[test]
fn fault_20_a_share_of_nothing_is_no_number() {
    // Without an answer yes there is no precision; recall and F1 are 0.
    let fixture = pope(&["yes", "no"]);
    let questions = fixture.questions();
    let given = answers(&questions, |_| Some("No.".into()));
    let report = fixture.score(&questions, &given);
    assert_eq!(report.value("random precision"), None);
    assert_eq!(report.value("random recall"), Some(0.0));
    assert_eq!(report.value("mean F1"), Some(0.0));
    let json = serde_json::to_value(&report).unwrap();
    let metrics = json["metrics"].as_array().unwrap();
    assert!(metrics.iter().all(|m| m["count"] != 0), "{json}");
    let error = refused(&pope(&["maybe", ""]), &given);
    assert!(error.contains("neither yes nor no"), "{error}");
}

#[test]
fn fault_20_a_number_that_is_not_there_stands_beside_no_published_one() {
    // Only a question without a picture: papers print the accuracy of those with one.
    let fixture = Fixture::new(Benchmark::ScienceQa, "q.json")
        .json(
            "q.json",
            &json!([{"id": "8", "conversations": [{"from": "human", "value": "Which?"}]}]),
        )
        .json(
            "problems.json",
            &json!({"8": {"choices": ["a", "b"], "answer": 0, "hint": "Read."}}),
        )
        .json("pid_splits.json", &json!({"test": ["8"]}))
        .annotations("problems.json");
    let questions = fixture.questions();
    let report = fixture.score(&questions, &answers(&questions, |_| Some("A".into())));
    assert_eq!(report.value("image accuracy"), None);
    assert_eq!(report.value("text accuracy"), Some(100.0));
    assert!(
        !report
            .metrics
            .iter()
            .any(|metric| report.is_headline(metric))
    );
    let markdown = Report::markdown(&[report], "tiny");
    assert!(markdown.contains("| tiny | – |"), "{markdown}");
}
