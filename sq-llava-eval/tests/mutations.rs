//! Readers of benchmarks, answers and questions over damaged copies of good files: a value or an
//! error, no panic, and memory of the file's size.

use std::path::Path;

use golden::allocations::Counting;
use golden::mutation::{Budget, survives};
use sq_llava_eval::answer::Answers;
use sq_llava_eval::judge::requests::read_requests;
use sq_llava_eval::layout::Files;
use sq_llava_eval::question::QuestionOptions;
use sq_llava_eval::question_list::QuestionFile;
use sq_llava_eval::registry;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn lines(array: &str) -> Vec<u8> {
    let array: Vec<golden::Value> = serde_json::from_str(array).expect("JSON");
    array
        .iter()
        .map(|item| format!("{item}\n"))
        .collect::<String>()
        .into_bytes()
}

const TABLE: &str = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\tl2-category\tsplit\timage\n\
0\tWhat is it?\t\ta cat\tNone\t\t\tA\tobject\tfine\tdev\tiVBORw0KGgo=\n\
1\t\"Which, then?\"\tlook\tred\tblue\tgreen\t\tB\tcolour\tfine\tdev\tiVBORw0KGgo=\n";

const QUESTIONS: &str = r#"[{"question_id":"1","image":"a.png","text":"Is it red?\nAnswer.","category":"adversarial","label":"yes"},
{"question_id":2,"image":"b.png","text":"How many?","category":"random","label":"No"}]"#;

const ANSWERS: &str = r#"[{"question_id":"1","prompt":"Is it red?","text":"Yes, it is.","answer_id":"x","model_id":"m","metadata":{}},
{"question_id":2,"round_id":1,"prompt":"How many?","text":"3","options":["a","b"],"option_char":["A","B"]}]"#;

const OWN: [(&str, &str); 4] = [
    (
        "vqav2",
        r#"{"questions":[{"image_id":1,"question":"What?","question_id":10}]}"#,
    ),
    (
        "gqa",
        r#"{"1":{"question":"What?","imageId":"n1","answer":"cat","isBalanced":true}}"#,
    ),
    (
        "vizwiz",
        r#"[{"image":"v.jpg","question":"What?","answers":[{"answer":"cat"}]}]"#,
    ),
    (
        "mm-vet",
        r#"{"v1_0":{"imagename":"v.jpg","question":"What?","answer":"x<AND>y","capability":["ocr"]}}"#,
    ),
];

#[test]
fn benchmark_files_survive_damage() {
    let read = |name, path: &Path| {
        let files = Files {
            questions: path.into(),
            images: None,
            annotations: Some(path.into()),
        };
        let task = registry::named(name).expect("a benchmark");
        if let Ok(questions) = task.questions(&files, &QuestionOptions::default()) {
            for question in &questions.list {
                let _ = questions.picture(question);
            }
        }
    };
    let table = [("mmbench.tsv".into(), TABLE.as_bytes().to_vec())];
    survives("table", &table, 2000, Budget::default(), |path| {
        read("mmbench", path)
    });
    let questions = [("questions.jsonl".into(), lines(QUESTIONS))];
    survives("questions", &questions, 2000, Budget::default(), |path| {
        for name in ["pope", "seed", "coco"] {
            read(name, path);
        }
    });
    let answers = [("answers.jsonl".into(), lines(ANSWERS))];
    survives("answers", &answers, 2000, Budget::default(), |path| {
        let _ = Answers::read(path);
    });
    for (name, text) in OWN {
        let seed = [("questions.json".into(), text.as_bytes().to_vec())];
        survives(name, &seed, 1000, Budget::default(), |path| {
            read(name, path)
        });
    }
}

const SAMPLES: &str = r#"[{"id":"a","image":"a.png","conversations":[
{"from":"human","value":"<image>\nWhat is 1 + 1?"},{"from":"gpt","value":"Two \u00fc \ud83d\ude00."},
{"from":"vuser","value":"Why?"},{"from":"gpt","value":"Because."}],"width":12},
{"id":7,"image":["b.png","c.png"],"conversations":[{"from":"human","value":"<image><image> Hi"},{"from":"gpt","value":"Hi"}]},
{"id":"t","conversations":[{"from":"human","value":"Hello"},{"from":"gpt","value":"there"}]}]"#;

#[test]
fn asked_questions_survive_damage() {
    let seeds = [
        ("asked.json".into(), SAMPLES.as_bytes().to_vec()),
        ("asked.jsonl".into(), lines(SAMPLES)),
    ];
    survives("asked", &seeds, 2000, Budget::default(), |path| {
        if let Ok(questions) = QuestionFile::open(path) {
            for index in 0..questions.len() {
                let _ = questions.questions(index);
            }
        }
    });
}

const CAPTIONS: &str =
    r#"{"images":[{"id":1,"file_name":"a.jpg"}],"annotations":[{"image_id":1,"caption":"a cat"}]}"#;

const REQUESTS: &str = r#"[{"question_id":"1","prompt":"Rate 1 to 10.","content":"x"},
{"id":"v1_0","prompt":"Grade.","category":"ocr"}]"#;

#[test]
fn references_and_requests_survive_damage() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = Files {
        questions: folder.path().join("questions.jsonl"),
        images: None,
        annotations: None,
    };
    std::fs::write(&files.questions, lines(QUESTIONS)).expect("written");
    let task = registry::named("coco").expect("a benchmark");
    let questions = task.questions(&files, &QuestionOptions::default());
    let questions = questions.expect("questions");
    let answers = Answers::default();
    let captions = [("annotations.json".into(), CAPTIONS.as_bytes().to_vec())];
    survives("captions", &captions, 2000, Budget::default(), |path| {
        let matched = task.matched(&questions, &answers);
        let mut report = task.unscored(&matched);
        let _ = task.score(&matched, path, &mut report);
    });
    let requests = [("requests.jsonl".into(), lines(REQUESTS))];
    survives("requests", &requests, 2000, Budget::default(), |path| {
        let _ = read_requests(path);
    });
}
