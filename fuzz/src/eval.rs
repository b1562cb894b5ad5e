//! Questions and answers of benchmarks, captions, requests for judges.

use std::path::Path;

use sq_llava_eval::answer::Answers;
use sq_llava_eval::judge::requests::read_requests;
use sq_llava_eval::layout::Files;
use sq_llava_eval::question::QuestionOptions;
use sq_llava_eval::question_list::QuestionFile;
use sq_llava_eval::registry;

use crate::Reader;
use crate::data::{lines, samples};

/// Reads a benchmark's questions, with the same file as annotations, and their pictures.
fn read(benchmark: &str, path: &Path) {
    let task = registry::named(benchmark).expect("a benchmark");
    let files = Files {
        questions: path.into(),
        images: None,
        annotations: Some(path.into()),
    };
    if let Ok(questions) = task.questions(&files, &QuestionOptions::default()) {
        for question in &questions.list {
            let _ = questions.picture(question);
        }
    }
}

const MMBENCH: &str = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\tl2-category\tsplit\timage\n\
0\tWhat is it?\t\ta cat\tNone\t\t\tA\tobject\tfine\tdev\tiVBORw0KGgo=\n\
1\t\"Which, then?\"\tlook\tred\tblue\tgreen\t\tB\tcolour\tfine\tdev\tiVBORw0KGgo=\n";

/// MMBench's table.
pub static TABLE: Reader = Reader {
    name: "table",
    file: "mmbench.tsv",
    beside: |_| {},
    seeds: || vec![MMBENCH.as_bytes().to_vec()],
    read: |file, _| read("mmbench", file),
};

const LLAVA: &str = r#"[{"question_id":"1","image":"a.png","text":"Is it red?\nAnswer.","category":"adversarial","label":"yes"},
{"question_id":2,"image":"b.png","text":"How many?","category":"random","label":"No"}]"#;

/// Questions as LLaVA's evaluation has them.
pub static QUESTIONS: Reader = Reader {
    name: "questions",
    file: "questions.jsonl",
    beside: |_| {},
    seeds: || vec![lines(LLAVA)],
    read: |file, _| {
        for benchmark in ["pope", "seed", "coco"] {
            read(benchmark, file);
        }
    },
};

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

/// Questions in the benchmarks' own formats, each read as every one of them.
pub static OWN_QUESTIONS: Reader = Reader {
    name: "own_questions",
    file: "questions.json",
    beside: |_| {},
    seeds: || OWN.map(|(_, text)| text.as_bytes().to_vec()).into(),
    read: |file, _| {
        for (benchmark, _) in OWN {
            read(benchmark, file);
        }
    },
};

const ANSWER_LINES: &str = r#"[{"question_id":"1","prompt":"Is it red?","text":"Yes, it is.","answer_id":"x","model_id":"m","metadata":{}},
{"question_id":2,"round_id":1,"prompt":"How many?","text":"3","options":["a","b"],"option_char":["A","B"]}]"#;

/// Answers, whoever wrote them.
pub static ANSWERS: Reader = Reader {
    name: "answers",
    file: "answers.jsonl",
    beside: |_| {},
    seeds: || vec![lines(ANSWER_LINES)],
    read: |file, _| {
        let _ = Answers::read(file);
    },
};

/// Questions that a model asked.
pub static ASKED: Reader = Reader {
    name: "asked",
    file: "asked.json",
    beside: |_| {},
    seeds: samples,
    read: |file, _| {
        if let Ok(questions) = QuestionFile::open(file) {
            for index in 0..questions.len() {
                let _ = questions.questions(index);
            }
        }
    },
};

const COCO: &str =
    r#"{"images":[{"id":1,"file_name":"a.jpg"}],"annotations":[{"image_id":1,"caption":"a cat"}]}"#;

/// Captions of pictures.
pub static CAPTIONS: Reader = Reader {
    name: "captions",
    file: "annotations.json",
    beside: |folder| {
        let questions = folder.join("questions.jsonl");
        std::fs::write(questions, lines(LLAVA)).expect("questions are written");
    },
    seeds: || vec![COCO.as_bytes().to_vec()],
    read: |file, folder| {
        let files = Files {
            questions: folder.join("questions.jsonl"),
            images: None,
            annotations: None,
        };
        let task = registry::named("coco").expect("a benchmark");
        let questions = task.questions(&files, &QuestionOptions::default());
        let questions = questions.expect("good questions");
        let answers = Answers::default();
        let matched = task.matched(&questions, &answers);
        let mut report = task.unscored(&matched);
        let _ = task.score(&matched, file, &mut report);
    },
};

const REQUEST_LINES: &str = r#"[{"question_id":"1","prompt":"Rate 1 to 10.","content":"x"},
{"id":"v1_0","prompt":"Grade.","category":"ocr"}]"#;

/// What a judge is asked.
pub static REQUESTS: Reader = Reader {
    name: "requests",
    file: "requests.jsonl",
    beside: |_| {},
    seeds: || vec![lines(REQUEST_LINES)],
    read: |file, _| {
        let _ = read_requests(file);
    },
};
