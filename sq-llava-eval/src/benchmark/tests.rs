use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::score::{Report, score};

mod formats;
mod nothing;

/// A benchmark's files in a folder of their own.
struct Fixture {
    folder: tempfile::TempDir,
    files: Files,
    benchmark: Benchmark,
}

impl Fixture {
    fn new(benchmark: Benchmark, questions: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Files {
            questions: folder.path().join(questions),
            images: Some(folder.path().join("images")),
            annotations: None,
        };
        Self {
            folder,
            files,
            benchmark,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(self, name: &str, text: &str) -> Self {
        write(&self.path(name), text.as_bytes()).unwrap();
        self
    }

    fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, &value.to_string())
    }

    fn lines(self, name: &str, values: &[Value]) -> Self {
        let lines: Vec<String> = values.iter().map(Value::to_string).collect();
        self.file(name, &lines.join("\n"))
    }

    fn annotations(mut self, name: &str) -> Self {
        self.files.annotations = Some(self.path(name));
        self
    }

    fn questions_with(&self, options: &QuestionOptions) -> Questions {
        Questions::read(self.benchmark, &self.files, options).unwrap()
    }

    fn questions(&self) -> Questions {
        self.questions_with(&QuestionOptions::default())
    }

    fn score(&self, questions: &Questions, answers: &Answers) -> Report {
        score(questions, answers, self.files.annotations.as_deref()).unwrap()
    }

    fn submission(&self, questions: &Questions, answers: &Answers) -> Vec<SubmissionFile> {
        let made = submission(questions, answers, self.files.annotations.as_deref()).unwrap();
        let again = submission(questions, answers, self.files.annotations.as_deref()).unwrap();
        assert_eq!(made, again, "the same bytes every time");
        made
    }
}

/// The answers that a function gives; `None` leaves a question out.
fn answers(questions: &Questions, text: impl Fn(&Question) -> Option<String>) -> Answers {
    let list = questions.list.iter().filter_map(|question| {
        let text = text(question)?;
        Some(Answer::new(questions.benchmark, question, &text, "tiny"))
    });
    Answers::from_list(list.collect())
}

fn text_of(files: &[SubmissionFile]) -> String {
    String::from_utf8(files[0].bytes.clone()).unwrap()
}

fn people(answer: &str, n: usize) -> Vec<Value> {
    (0..10)
        .map(|i| json!({"answer": if i < n { answer } else { "other" }, "answer_id": i + 1}))
        .collect()
}

#[test]
fn vqav2_uploads_every_question_normalised() {
    let fixture = Fixture::new(Benchmark::VqaV2, "q.jsonl")
        .lines(
            "q.jsonl",
            &[
                json!({"question_id": 7, "image": "a.jpg", "text": "What?\nAnswer.", "category": "default"}),
                json!({"question_id": 8, "image": "a.jpg", "text": "Who?\nAnswer."}),
                json!({"question_id": 7, "image": "b.jpg", "text": "Again?\nAnswer."}),
                json!({"image": "b.jpg", "text": "No id"}),
            ],
        )
        .json(
            "refs.json",
            &json!({"annotations": [
                {"question_id": 7, "answers": people("cat", 3)},
                {"question_id": 8, "answers": people("dog", 10)},
            ]}),
        )
        .annotations("refs.json");
    let questions = fixture.questions();
    assert_eq!(questions.list.len(), 2);
    assert_eq!(questions.problems.count(ProblemKind::DuplicateQuestion), 1);
    let bad = questions.problems.lines()[0].to_string();
    assert!(
        bad.starts_with("malformed question: q.jsonl line 4: missing field"),
        "{bad}"
    );
    let given = answers(&questions, |q| {
        (q.position == 0).then(|| "A Cat.".to_owned())
    });
    assert_eq!(
        text_of(&fixture.submission(&questions, &given)),
        r#"[{"question_id":7,"answer":"cat"},{"question_id":8,"answer":""}]"#
    );
    let report = fixture.score(&questions, &given);
    assert!((report.value("accuracy").unwrap() - 45.0).abs() < 1e-9);
    assert_eq!(report.problems.count(ProblemKind::MissingAnswer), 1);
    assert_eq!((report.questions, report.answered), (2, 1));
}

#[test]
fn benchmarks_own_questions_are_put_as_llava_puts_them() {
    let short = "Answer the question using a single word or phrase.";
    let vqa = Fixture::new(Benchmark::VqaV2, "own.json").json(
        "own.json",
        &json!({"data_subtype": "val2014", "questions":
            [{"question_id": 1, "image_id": 42, "question": "What?"}, {"image_id": 1}]}),
    );
    let questions = vqa.questions();
    assert_eq!(questions.list[0].text, format!("What?\n{short}"));
    assert_eq!(
        questions.list[0].image,
        Some(ImageRef::File("COCO_val2014_000000000042.jpg".into()))
    );
    assert_eq!(questions.problems.count(ProblemKind::MalformedQuestion), 1);
    let vizwiz = Fixture::new(Benchmark::VizWiz, "val.json").json(
        "val.json",
        &json!([{"image": "V_1.jpg", "question": "Can you?"}]),
    );
    assert_eq!(
        vizwiz.questions().list[0].text,
        format!(
            "Can you?\nWhen the provided information is insufficient, respond with \
             'Unanswerable'.\n{short}"
        )
    );
    let vet = Fixture::new(Benchmark::MmVet, "mm-vet.json").json(
        "mm-vet.json",
        &json!({"v1_3": {"imagename": "v.png", "question": "What is x?", "answer": "-1<AND>-5",
            "capability": ["math"]}}),
    );
    let questions = vet.questions();
    assert_eq!(questions.list[0].id, QuestionId::Number(3));
    let given = answers(&questions, |_| Some("x = 3".into()));
    assert_eq!(
        text_of(&vet.submission(&questions, &given)),
        "{\n  \"v1_3\": \"x = 3\"\n}"
    );
    let requests = mm_vet::judge_requests(
        "Rubric",
        &vet.path("mm-vet.json"),
        &matched(&questions, &given),
    )
    .unwrap();
    assert_eq!(
        requests[0].content,
        "Rubric\nWhat is x? | -1 <AND> -5 | x = 3 | "
    );
    let empty = Fixture::new(Benchmark::Generic, "q.jsonl").file("q.jsonl", "no json\n");
    let error = Questions::read(empty.benchmark, &empty.files, &QuestionOptions::default());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("malformed question: q.jsonl line 1"),
        "{error}"
    );
}

#[test]
fn gqa_and_vizwiz() {
    let gqa = Fixture::new(Benchmark::Gqa, "own.json")
        .json(
            "own.json",
            &json!({
                "201": {"question": "Is it?", "imageId": "n1", "answer": "yes"},
                "202": {"question": "Where?", "imageId": "n2", "answer": "left"},
            }),
        )
        .annotations("own.json");
    let questions = gqa.questions();
    let given = answers(&questions, |q| {
        Some(if q.position == 0 { "Yes." } else { "left " }.into())
    });
    assert_eq!(
        text_of(&gqa.submission(&questions, &given)),
        r#"[{"questionId":"201","prediction":"yes"},{"questionId":"202","prediction":"left "}]"#
    );
    assert_eq!(gqa.score(&questions, &given).value("accuracy"), Some(50.0));

    let vizwiz = Fixture::new(Benchmark::VizWiz, "q.jsonl")
        .lines(
            "q.jsonl",
            &[json!({"question_id": 0, "image": "V_0.jpg", "text": "What?\nAnswer."})],
        )
        .json(
            "val.json",
            &json!([{"image": "V_0.jpg", "answers": people("unanswerable", 10)}]),
        )
        .annotations("val.json");
    let questions = vizwiz.questions();
    let given = answers(&questions, |_| Some("Unanswerable".into()));
    assert_eq!(
        text_of(&vizwiz.submission(&questions, &given)),
        r#"[{"image":"V_0.jpg","answer":"unanswerable"}]"#
    );
    assert_eq!(
        vizwiz.score(&questions, &given).value("accuracy"),
        Some(100.0)
    );
    let error = submission(&questions, &Answers::default(), None).unwrap_err();
    assert!(
        error.to_string().contains("question 0 has no answer"),
        "{error}"
    );
}

#[test]
fn science_qa_by_kind_of_context() {
    let fixture = Fixture::new(Benchmark::ScienceQa, "llava_test_CQM-A.json")
        .json(
            "llava_test_CQM-A.json",
            &json!([
                {"id": "4", "image": "4/image.png", "conversations":
                    [{"from": "human", "value": "<image>\nWhich?\nA. x\nB. y"}, {"from": "gpt", "value": "B"}]},
                {"id": "5", "conversations": [{"from": "human", "value": "Why?\nA. x\nB. y"}]},
                {"id": "6", "conversations": [{"from": "human", "value": "How?\nA. x\nB. y"}]},
                {"id": "9", "conversations": []},
            ]),
        )
        .json("pid_splits.json", &json!({"test": ["4", "5", "6"], "train": ["1"]}))
        .json(
            "problems.json",
            &json!({
                "4": {"choices": ["x", "y"], "answer": 1, "hint": "", "image": "image.png"},
                "5": {"choices": ["x", "y"], "answer": 0, "hint": "a text", "image": null},
                "6": {"choices": ["x", "y"], "answer": 0, "hint": "", "image": null},
            }),
        )
        .annotations("problems.json");
    let questions = fixture.questions();
    let letter = "Answer with the option's letter from the given choices directly.";
    assert_eq!(
        questions.list[0].text,
        format!("Which?\nA. x\nB. y\n{letter}")
    );
    assert_eq!(
        questions.list[0].prompt,
        format!("<image>\n{}", questions.list[0].text)
    );
    assert_eq!(questions.problems.count(ProblemKind::MalformedQuestion), 1);
    let plain = QuestionOptions {
        letter: false,
        images_only: true,
        ..QuestionOptions::default()
    };
    let plain = fixture.questions_with(&plain);
    assert_eq!(plain.list.len(), 1);
    assert_eq!(plain.list[0].text, "Which?\nA. x\nB. y");
    let given = answers(&questions, |q| {
        Some(["B", "The answer is A.", "maybe"][q.position].into())
    });
    let report = fixture.score(&questions, &given);
    for (name, value) in [
        ("image accuracy", 100.0),
        ("text accuracy", 100.0),
        ("no-context accuracy", 0.0),
        ("total accuracy", 200.0 / 3.0),
    ] {
        assert!((report.value(name).unwrap() - value).abs() < 1e-9, "{name}");
    }
    assert_eq!(report.problems.count(ProblemKind::UnclearAnswer), 1);
    let result: Value =
        serde_json::from_str(&text_of(&fixture.submission(&questions, &given))).unwrap();
    assert_eq!(result["results"], json!({"4": 1, "5": 0, "6": -1}));
    assert_eq!(result["count"], 3);
}

#[test]
fn text_vqa_is_matched_by_image_and_question() {
    let ten = |answer: &'static str| vec![answer; 10];
    let fixture = Fixture::new(Benchmark::TextVqa, "q.jsonl")
        .lines(
            "q.jsonl",
            &[
                json!({"question_id": "im1", "image": "im1.jpg",
                    "text": "What Brand?\nReference OCR token: Lumix, X\nAnswer."}),
                json!({"question_id": "im1", "image": "im1.jpg",
                    "text": "What year?\nReference OCR token: \nAnswer."}),
            ],
        )
        .json(
            "refs.json",
            &json!({"data": [
                {"image_id": "im1", "question": "What brand?", "answers": ten("lumix")},
                {"image_id": "im1", "question": "what year?", "answers": ten("1999")},
            ]}),
        )
        .annotations("refs.json");
    for ocr in [true, false] {
        let options = QuestionOptions {
            ocr,
            ..QuestionOptions::default()
        };
        let questions = fixture.questions_with(&options);
        assert_eq!(questions.list.len(), 2);
        assert_eq!(questions.list[0].text.contains("Lumix"), ocr);
        let given = answers(&questions, |q| {
            Some(if q.position == 0 { "Lumix" } else { "2000" }.into())
        });
        let report = fixture.score(&questions, &given);
        assert_eq!(report.value("accuracy"), Some(50.0));
        assert_eq!(report.problems.total(), 0);
        // Answers to the other form of the question are found too.
        let other = fixture.questions();
        assert_eq!(fixture.score(&other, &given).value("accuracy"), Some(50.0));
    }
}

#[test]
fn pope_by_category_and_order() {
    let label = |id: i64, image: &str, label: &str| json!({"question_id": id, "image": image, "text": "Is there a dog?", "label": label});
    let fixture = Fixture::new(Benchmark::Pope, "q.jsonl")
        .lines(
            "q.jsonl",
            &[
                json!({"question_id": 1, "image": "a.jpg", "text": "Is there?\nA.", "category": "random"}),
                json!({"question_id": 2, "image": "b.jpg", "text": "Is there?\nA.", "category": "random"}),
                json!({"question_id": 3, "image": "a.jpg", "text": "Is there?\nA.", "category": "popular"}),
            ],
        )
        .lines("coco/coco_pope_random.json", &[label(1, "a.jpg", "yes"), label(2, "b.jpg", "no")])
        .lines("coco/coco_pope_popular.json", &[label(1, "a.jpg", "yes")])
        .annotations("coco");
    let questions = fixture.questions();
    let given = answers(&questions, |q| (q.position < 2).then(|| "Yes".into()));
    let report = fixture.score(&questions, &given);
    assert_eq!(report.value("random accuracy"), Some(50.0));
    assert!((report.value("random F1").unwrap() - 200.0 / 3.0).abs() < 1e-9);
    // The missing answer is wrong, and does not move the others.
    assert_eq!(report.value("popular accuracy"), Some(0.0));
    assert!((report.value("mean F1").unwrap() - 100.0 / 3.0).abs() < 1e-9);
    // A label of another picture belongs to another release.
    let fixture = fixture.lines(
        "coco/coco_pope_random.json",
        &[label(1, "a.jpg", "yes"), label(2, "z.jpg", "no")],
    );
    let report = fixture.score(&questions, &given);
    assert_eq!(report.problems.count(ProblemKind::BadReference), 1);
    let fixture = fixture.lines("coco/coco_pope_random.json", &[label(1, "a.jpg", "yes")]);
    let error = score(&questions, &given, fixture.files.annotations.as_deref()).unwrap_err();
    assert!(
        error.to_string().contains("1 labels for 2 questions"),
        "{error}"
    );
    // The labels are questions themselves.
    let own = Fixture::new(Benchmark::Pope, "coco")
        .lines(
            "coco/coco_pope_random.json",
            &[label(1, "a.jpg", "yes"), json!({"label": "yes"})],
        )
        .annotations("coco");
    let questions = own.questions();
    assert_eq!(questions.list[0].id, "random/1".into());
    assert_eq!(questions.problems.count(ProblemKind::MalformedQuestion), 1);
}

/// Three pixels of a picture, as base64.
fn picture() -> String {
    use base64::Engine;
    let image = image::RgbImage::from_pixel(3, 1, image::Rgb([9, 8, 7]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    base64::engine::general_purpose::STANDARD.encode(bytes.into_inner())
}

/// The cells of a workbook's only sheet, as text.
fn sheet(bytes: &[u8]) -> Vec<Vec<String>> {
    use std::io::Read;
    let mut archive = zip_2::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
    let mut read = |name: &str| {
        let mut text = String::new();
        let mut file = archive.by_name(name).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    let strings = read("xl/sharedStrings.xml");
    let cells = read("xl/worksheets/sheet1.xml");
    let pattern = |text: &str| regex::Regex::new(text).unwrap();
    let strings: Vec<String> = pattern("<t[^>]*>(.*?)</t>")
        .captures_iter(&strings)
        .map(|found| found[1].replace("&quot;", "\""))
        .collect();
    let cell = pattern("<c r=\"([A-Z])[0-9]+\"([^>]*)><v>(.*?)</v>");
    pattern("<row .*?</row>")
        .find_iter(&cells)
        .map(|row| {
            let mut columns = vec![String::new(); 9];
            for found in cell.captures_iter(row.as_str()) {
                let shared = found[2].contains("t=\"s\"");
                let value = found[3].to_owned();
                columns[usize::from(found[1].as_bytes()[0] - b'A')] = match shared {
                    true => strings[value.parse::<usize>().unwrap()].clone(),
                    false => value,
                };
            }
            columns
        })
        .collect()
}

fn mmbench(rows: &[&str]) -> Fixture {
    let header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit";
    let picture = picture();
    let rows: Vec<String> = rows
        .iter()
        .map(|row| row.replace("IMAGE", &picture))
        .collect();
    Fixture::new(Benchmark::MmBench, "mmbench_dev.tsv").file(
        "mmbench_dev.tsv",
        &format!("{header}\n{}\n", rows.join("\n")),
    )
}

#[test]
fn mmbench_asks_shows_and_uploads() {
    let fixture = mmbench(&[
        "7\t\"Which \"\"one\"\"?\"\tA hint.\tx\ty\tz\t\tB\tcat\tIMAGE\tsrc\tl2\tno\tdev",
        "1000007\tWhich \"one\"?\tA hint.\ty\tz\tx\t\tA\tcat\t7\tsrc\tl2\tno\tdev",
        "9\tWhere?\t\tleft\tright\t\t\tA\tcat\tIMAGE\tsrc\tl2\tno\tdev",
        "bad\tWhere?\t\tleft\tright\t\t\tA\tcat\tIMAGE\tsrc\tl2\tno\tdev",
    ]);
    let questions = fixture.questions();
    assert_eq!(questions.list.len(), 3);
    assert_eq!(questions.problems.count(ProblemKind::MalformedQuestion), 1);
    let first = &questions.list[0];
    assert_eq!(first.prompt, "A hint.\nWhich \"one\"?\nA. x\nB. y\nC. z");
    assert_eq!(first.text, format!("{}\n{LETTER_ANSWER}", first.prompt));
    for question in &questions.list {
        let Some(Picture::Bytes(bytes, _)) = questions.picture(question).unwrap() else {
            panic!("no bytes");
        };
        assert_eq!(image::load_from_memory(&bytes).unwrap().width(), 3);
    }
    let said = |q: &Question| Some(["B", "A", "right"][q.position].to_owned());
    let given = answers(&questions, said);
    let line = serde_json::to_string(&given.list[0]).unwrap();
    assert!(
        line.contains(r#""question_id":7,"round_id":0,"prompt":"#)
            && line.contains(r#""options":["x","y","z"],"option_char":["A","B","C"],"answer_id":"#),
        "{line}"
    );
    let report = fixture.score(&questions, &given);
    assert_eq!(report.metrics[0].name, "circular accuracy");
    assert_eq!(report.value("accuracy"), Some(50.0));
    assert_eq!(report.value("circular accuracy"), Some(50.0));
    let wrong_copy = answers(&questions, |q| Some(["B", "B", "A"][q.position].into()));
    let report = fixture.score(&questions, &wrong_copy);
    assert_eq!(report.value("accuracy"), Some(100.0));
    assert_eq!(report.value("circular accuracy"), Some(50.0));

    let files = fixture.submission(&questions, &given);
    let rows = sheet(&files[0].bytes);
    assert_eq!(
        rows,
        [
            [
                "index",
                "question",
                "A",
                "B",
                "C",
                "D",
                "prediction",
                "answer",
                "split"
            ],
            ["7", "Which \"one\"?", "x", "y", "z", "", "B", "B", "dev"],
            [
                "1000007",
                "Which \"one\"?",
                "y",
                "z",
                "x",
                "",
                "A",
                "A",
                "dev"
            ],
            ["9", "Where?", "left", "right", "", "", "right", "A", "dev"],
        ]
    );
}

#[test]
fn mmbench_rounds_move_the_options() {
    let fixture = mmbench(&["7\tWhich?\t\tx\ty\tz\t\tB\tcat\tIMAGE\tsrc\tl2\tno\tdev"]);
    let options = QuestionOptions {
        all_rounds: true,
        ..QuestionOptions::default()
    };
    let questions = fixture.questions_with(&options);
    assert_eq!(questions.list.len(), 3);
    let second = &questions.list[1];
    assert_eq!(second.prompt, "Which?\nA. y\nB. z\nC. x");
    assert_eq!(second.round.as_ref().unwrap().option_char, ["B", "C", "A"]);
    // "y" is right: B, then A, then C.
    let right = |q: &Question| Some(["B", "A", "C"][q.round.as_ref()?.number as usize].to_owned());
    let report = fixture.score(&questions, &answers(&questions, right));
    assert_eq!(report.value("circular accuracy"), Some(100.0));
    let always = answers(&questions, |_| Some("B".into()));
    let report = fixture.score(&questions, &always);
    assert_eq!(report.value("accuracy"), Some(100.0));
    assert_eq!(report.value("circular accuracy"), Some(0.0));
}

#[test]
fn mme_pairs_and_tables() {
    let fixture = Fixture::new(Benchmark::Mme, "llava_mme.jsonl")
        .lines(
            "llava_mme.jsonl",
            &[
                json!({"question_id": "color/001.jpg", "image": "color/001.jpg",
                    "text": "Is it red?\nAnswer the question using a single word or phrase."}),
                json!({"question_id": "color/001.jpg", "image": "color/001.jpg",
                    "text": "Is it blue?\nAnswer the question using a single word or phrase."}),
                json!({"question_id": "OCR/002.jpg", "image": "OCR/images/002.jpg",
                    "text": "Is it \"x\"?\nAnswer the question using a single word or phrase."}),
            ],
        )
        .file(
            "release/color/001.txt",
            "Is it red? Please answer yes or no.\tYes\nIs it blue?  Please answer yes or no.\tNo\n",
        )
        .file(
            "release/OCR/questions_answers_YN/002.txt",
            "Is it \"x\"? Please answer yes or no.\tYes\nbroken line\n",
        )
        .file("release/OCR/images/002.jpg", "")
        .annotations("release");
    let questions = fixture.questions();
    let given = answers(&questions, |q| {
        Some(["Yes", "no, it\nis", "Perhaps"][q.position].into())
    });
    let report = fixture.score(&questions, &given);
    assert_eq!(report.value("color"), Some(200.0));
    assert_eq!(report.value("OCR"), Some(0.0));
    assert_eq!(report.value("perception"), Some(200.0));
    for (kind, count) in [
        (ProblemKind::UnclearAnswer, 1),
        (ProblemKind::BadReference, 1),
        (ProblemKind::MissingAnswer, 1),
    ] {
        assert_eq!(report.problems.count(kind), count, "{kind:?}");
    }
    let files = fixture.submission(&questions, &given);
    assert_eq!(files[0].name, "mme/color.txt");
    assert_eq!(
        text_of(&files),
        "001.txt\tIs it red? Please answer yes or no.\tYes\tYes\n\
         001.txt\tIs it blue?  Please answer yes or no.\tNo\tno, it is\n"
    );
    // The release itself has pictures and questions.
    let own = Fixture::new(Benchmark::Mme, "release")
        .file("release/color/001.txt", "Is it red?\tYes\n")
        .file("release/color/001.jpg", "")
        .file("release/color/003.txt", "Is it?\tNo\n");
    let questions = own.questions();
    assert_eq!(questions.list[0].id, "color/001.jpg".into());
    assert_eq!(questions.problems.count(ProblemKind::MissingImage), 1);
}

#[test]
fn seed_by_type() {
    let fixture = Fixture::new(Benchmark::Seed, "q.jsonl")
        .lines(
            "q.jsonl",
            &[
                json!({"question_id": 11, "image": "a.jpg", "text": "Q?"}),
                json!({"question_id": 12, "image": "a.jpg", "text": "Q?"}),
                json!({"question_id": 99, "image": "a.jpg", "text": "Q?"}),
            ],
        )
        .json(
            "SEED-Bench.json",
            &json!({"question_type": {"Scene Understanding": 1, "Action": 10}, "questions": [
                {"question_id": "11", "answer": "A", "data_type": "image", "question_type_id": 1},
                {"question_id": "12", "answer": "B", "data_type": "video", "question_type_id": 10},
            ]}),
        )
        .annotations("SEED-Bench.json");
    let questions = fixture.questions();
    let given = answers(&questions, |q| (q.position != 2).then(|| "A".into()));
    let report = fixture.score(&questions, &given);
    for (name, value) in [
        ("total accuracy", 50.0),
        ("image accuracy", 100.0),
        ("video accuracy", 0.0),
        ("Scene Understanding", 100.0),
        ("Action", 0.0),
    ] {
        assert_eq!(report.value(name), Some(value), "{name}");
    }
    assert_eq!(report.problems.count(ProblemKind::BadReference), 1);
    assert_eq!(
        text_of(&fixture.submission(&questions, &given)),
        "{\"question_id\":11,\"prediction\":\"A\"}\n{\"question_id\":12,\"prediction\":\"A\"}\n"
    );
}

#[test]
fn captions_in_every_layout() {
    let lines = [
        json!({"question_id": 0, "image": "a.jpg", "text": "Describe the image."}),
        json!({"question_id": 1, "image": "b.jpg", "text": "Describe the image."}),
    ];
    let in_order = json!([
        {"caption": ["A red dog runs.", "Dog."], "domain": "near-domain"},
        {"caption": "A blue bird sits.", "domain": "out-domain"},
    ]);
    let labels = json!([{"label": "a red dog runs"}, {"label": "a blue bird sits"}]);
    let coco = json!({"images": [{"id": 0, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 0, "caption": "A red dog runs."},
            {"image_id": 1, "caption": "A blue bird sits."}]});
    let karpathy = json!({"images": [
        {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "A red dog runs."}]},
        {"filename": "b.jpg", "split": "test", "sentences": [{"raw": "A blue bird sits."}]},
        {"filename": "c.jpg", "split": "train", "sentences": [{"raw": "A cat."}]}]});
    for (benchmark, references) in [
        (Benchmark::NoCaps, in_order),
        (Benchmark::Conceptual, labels),
        (Benchmark::CocoCaptions, coco),
        (Benchmark::Flickr30k, karpathy),
    ] {
        let fixture = Fixture::new(benchmark, "q.jsonl")
            .lines("q.jsonl", &lines)
            .json("refs.json", &references)
            .annotations("refs.json");
        let questions = fixture.questions();
        let given = answers(&questions, |q| {
            Some(["A red dog runs.", "A cat."][q.position].into())
        });
        let report = fixture.score(&questions, &given);
        assert_eq!(report.problems.total(), 0, "{benchmark}");
        let rouge = report.value("ROUGE-L").unwrap();
        assert!(rouge > 50.0 && rouge < 70.0, "{benchmark}: {rouge}");
        assert_eq!(
            report.value("out-domain ROUGE-L").is_some(),
            benchmark == Benchmark::NoCaps
        );
        assert_eq!(
            text_of(&fixture.submission(&questions, &given)),
            r#"[{"image_id":0,"caption":"A red dog runs."},{"image_id":1,"caption":"A cat."}]"#
        );
        let again = fixture.score(&questions, &given);
        assert_eq!(
            serde_json::to_string(&again).unwrap(),
            serde_json::to_string(&report).unwrap()
        );
    }
}

#[test]
fn llava_bench_requests_compare_with_the_reference() {
    let fixture = Fixture::new(Benchmark::LlavaBench, "questions.jsonl")
        .lines(
            "questions.jsonl",
            &[json!({"question_id": 0, "image": "001.jpg", "category": "conv", "text": "Where?"})],
        )
        .lines(
            "context.jsonl",
            &[json!({"id": 1, "image": "001.jpg", "caption": "A hill."})],
        )
        .lines(
            "gpt4.jsonl",
            &[json!({"question_id": 0, "text": "Hawaii.", "answer_id": "g1"})],
        )
        .json(
            "rule.json",
            &json!({"llava_bench_conv": {"role": "Assistant", "prompt": "Judge."}}),
        );
    let questions = fixture.questions();
    let given = answers(&questions, |_| Some("Oahu.".into()));
    let matched = matched(&questions, &given);
    let make = |rules: &str| {
        llava_bench::review_requests(
            &fixture.path("context.jsonl"),
            &fixture.path("gpt4.jsonl"),
            &fixture.path(rules),
            &matched,
        )
    };
    let requests = make("rule.json").unwrap();
    assert_eq!(requests[0].answer1_id, json!("g1"));
    assert_eq!(
        requests[0].content,
        "[Context]\nA hill.\n\n[Question]\nWhere?\n\n[Assistant 1]\nHawaii.\n\n\
         [End of Assistant 1]\n\n[Assistant 2]\nOahu.\n\n[End of Assistant 2]\n\n\
         [System]\nJudge.\n\n"
    );
    let fixture = &fixture;
    write(&fixture.path("none.json"), b"{}").unwrap();
    let error = make("none.json").unwrap_err().to_string();
    assert!(error.contains("a rule llava_bench_conv"), "{error}");
}

#[test]
fn answers_that_fit_no_question_are_counted() {
    let fixture = Fixture::new(Benchmark::Generic, "q.jsonl")
        .lines("q.jsonl", &[json!({"question_id": 1, "text": "What?"})]);
    let questions = fixture.questions();
    let mut given = answers(&questions, |_| Some(String::new()));
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
    let fixture = Fixture::new(Benchmark::Generic, "q.jsonl")
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
    let fixture = Fixture::new(Benchmark::Generic, "q.jsonl").lines(
        "q.jsonl",
        &[1, 2, 3].map(|id| json!({"question_id": id, "text": "What?"})),
    );
    let questions = fixture.questions();
    for index in 0..2 {
        let part = shard(&questions.list, 2, index);
        let list: Vec<Answer> = part
            .iter()
            .map(|q| Answer::new(Benchmark::Generic, q, "yes", "tiny"))
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
