//! What every benchmark does alike.

use serde_json::{Value, json};

use super::captions::COCO;
use super::fixture::{Fixture, people};
use super::generic::Generic;
use super::gqa::Gqa;
use super::nocaps::NoCaps;
use super::seed::Seed;
use super::text_vqa::TextVqa;
use super::vizwiz::VizWiz;
use super::vqav2::VqaV2;
use super::*;
use crate::answer::{Answer, AnswerFile};
use crate::shard::{merge, shard_name};

fn asked(id: impl Into<Value>, text: &str) -> Value {
    let id: Value = id.into();
    json!({"question_id": id, "image": "a.jpg", "text": text, "category": "random"})
}

/// Question 7 of a benchmark, and references to something else.
fn unmatched(task: &'static dyn Task, references: &Value) -> Fixture {
    Fixture::new(task, "q.jsonl")
        .lines("q.jsonl", &[asked(7, "What?\nAnswer.")])
        .json("refs.json", references)
        .annotations("refs.json")
}

#[test]
fn fault_20_references_to_other_questions_are_an_error() {
    let ten = people("x", 10);
    let coco = json!({"images": [{"id": 1, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 1, "caption": "A dog."}]});
    for (task, references) in [
        (
            &VqaV2 as &'static dyn Task,
            json!({"annotations": [{"question_id": 8, "answers": ten}]}),
        ),
        (
            &VizWiz,
            json!([{"image": "b.jpg", "question": "What?", "answers": ten}]),
        ),
        (
            &TextVqa,
            json!({"data": [{"image_id": "a", "question": "What?", "answers": vec!["x"; 10]}]}),
        ),
        (
            &Gqa,
            json!({"8": {"question": "What?", "imageId": "n", "answer": "x"}}),
        ),
        (
            &Seed,
            json!({"question_type": {}, "questions": [{"question_id": "8", "answer": "A",
                "data_type": "image", "question_type_id": 1}]}),
        ),
        (&COCO, coco.clone()),
        (&NoCaps, coco),
    ] {
        let fixture = unmatched(task, &references);
        let questions = fixture.questions();
        let given = fixture.answers(&questions, |_| Some("A dog.".into()));
        let error = fixture.refused(&questions, &given);
        for part in ["refs.json", "nothing of", "question 7"] {
            assert!(error.contains(part), "{task}: {error}");
        }
    }
}

#[test]
fn fault_20_answers_to_other_questions_are_an_error() {
    let fixture = Fixture::new(&Gqa, "q.jsonl")
        .lines("q.jsonl", &[asked("n1", "What?")])
        .json("refs.json", &json!({"n1": {"answer": "x"}}))
        .annotations("refs.json");
    let questions = fixture.questions();
    let mut given = fixture.answers(&questions, |_| Some("x".into()));
    given.list[0].question_id = "n2".into();
    let error = fixture.refused(&questions, &given);
    for part in ["q.jsonl", "n1", "n2", "none of the 1 answers"] {
        assert!(error.contains(part), "{error}");
    }
    let error = fixture.refused(&questions, &Answers::default());
    assert!(error.contains("nothing is scored"), "{error}");
}

#[test]
fn a_file_without_a_question_is_an_error() {
    let empty = Fixture::new(&Generic, "q.jsonl").file("q.jsonl", "no json\n");
    let error = empty
        .task
        .questions(&empty.files, &QuestionOptions::default());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("malformed question: q.jsonl line 1"),
        "{error}"
    );
}

#[test]
fn answers_that_fit_no_question_are_counted() {
    let fixture = Fixture::new(&Generic, "q.jsonl")
        .lines("q.jsonl", &[json!({"question_id": 1, "text": "What?"})]);
    let questions = fixture.questions();
    let mut given = fixture.answers(&questions, |_| Some(String::new()));
    let mut strange = given.list[0].clone();
    strange.question_id = 5.into();
    given.list.push(strange);
    let report = fixture.score(&questions, &given);
    for kind in [ProblemKind::EmptyAnswer, ProblemKind::UnknownAnswer] {
        assert_eq!(report.problems.count(kind), 1, "{kind:?}");
    }
    let markdown = Report::markdown(&[report], "tiny");
    assert!(
        markdown.contains("- answer to no question: 1"),
        "{markdown}"
    );
    assert!(
        markdown.contains("| SQ-LLaVA-7B (published) | – |")
            && markdown.contains("| SQ-LLaVA-7B (released) | – |"),
        "{markdown}"
    );
}

#[test]
fn missing_pictures_are_taken_out_with_a_line() {
    let fixture = Fixture::new(&Generic, "q.jsonl")
        .lines(
            "q.jsonl",
            &[
                json!({"question_id": 1, "image": "here.png", "text": "What?"}),
                json!({"question_id": 2, "image": "gone.png", "text": "What?"}),
                json!({"question_id": 3, "text": "No picture?"}),
            ],
        )
        .file("images/here.png", "x");
    let mut questions = fixture.questions();
    questions.drop_without_image();
    let ids: Vec<String> = questions.list.iter().map(|q| q.id.to_string()).collect();
    assert_eq!(ids, ["1", "3"]);
    let line = questions.problems.lines()[0].to_string();
    assert!(
        line.starts_with("missing image: question 2: ") && line.ends_with("gone.png is no file"),
        "{line}"
    );
}

#[test]
fn shards_are_merged_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(&Generic, "q.jsonl").lines(
        "q.jsonl",
        &[1, 2, 3].map(|id| json!({"question_id": id, "text": "What?"})),
    );
    for index in 0..2 {
        let mut questions = fixture.questions();
        questions.keep_shard(2, index);
        let list: Vec<Answer> = questions
            .list
            .iter()
            .map(|q| Answer::new("generic", q, "yes", "tiny"))
            .collect();
        let path = folder.path().join(shard_name(2, index));
        let (mut file, _) = AnswerFile::open(&path).unwrap();
        file.append(&list).unwrap();
    }
    let merged = Answers::read(&merge(folder.path(), 2).unwrap()).unwrap();
    let ids: Vec<String> = merged
        .list
        .iter()
        .map(|a| a.question_id.to_string())
        .collect();
    assert_eq!(ids, ["1", "2", "3"]);
    let error = merge(folder.path(), 3).unwrap_err().to_string();
    assert!(error.contains("3_0.jsonl"), "{error}");
}
