//! Questions and answers of benchmarks, captions, requests for judges.

use std::path::Path;

use sq_llava_eval::benchmark::caption::References;
use sq_llava_eval::benchmark::{Answers, Benchmark, Files, Problems, QuestionOptions, Questions};
use sq_llava_eval::judge::requests::read_requests;
use sq_llava_eval::questions::QuestionFile;

use crate::Reader;
use crate::data::{lines, samples};

/// Reads questions, with the same file as annotations, and their pictures.
fn read(benchmark: Benchmark, path: &Path) {
    let files = Files {
        questions: path.into(),
        images: None,
        annotations: Some(path.into()),
    };
    if let Ok(questions) = Questions::read(benchmark, &files, &QuestionOptions::default()) {
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
    read: |file, _| read(Benchmark::MmBench, file),
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
        for benchmark in [Benchmark::Pope, Benchmark::Seed, Benchmark::CocoCaptions] {
            read(benchmark, file);
        }
    },
};

const OWN: [(Benchmark, &str); 4] = [
    (
        Benchmark::VqaV2,
        r#"{"questions":[{"image_id":1,"question":"What?","question_id":10}]}"#,
    ),
    (
        Benchmark::Gqa,
        r#"{"1":{"question":"What?","imageId":"n1","answer":"cat","isBalanced":true}}"#,
    ),
    (
        Benchmark::VizWiz,
        r#"[{"image":"v.jpg","question":"What?","answers":[{"answer":"cat"}]}]"#,
    ),
    (
        Benchmark::MmVet,
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
    beside: |_| {},
    seeds: || vec![COCO.as_bytes().to_vec()],
    read: |file, _| {
        let _ = References::read(Benchmark::CocoCaptions, file, &mut Problems::default());
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
