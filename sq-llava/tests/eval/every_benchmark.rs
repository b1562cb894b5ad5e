//! Every benchmark, made here in its true formats, from the questions to the results.

use base64::Engine;
use golden::Value;
use serde_json::json;

use crate::{Data, picture, question, read, run, run_eval, text};

const SHORT: &str = "Answer the question using a single word or phrase.";

fn ten(answer: &str) -> Vec<Value> {
    (0..10)
        .map(|id| json!({"answer": answer, "answer_id": id}))
        .collect()
}

/// Two or three questions of every benchmark, as people have them.
fn every_benchmark() -> Data {
    let data = Data::new();
    data.picture("vqav2/test2015/a.jpg");
    let asked = |what: &str| format!("{what}\n{SHORT}");
    data.lines(
        "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl",
        &[
            question(262_144_000, "a.jpg", &asked("Is it red?")),
            question(262_144_001, "a.jpg", &asked("What is it?")),
            question(262_144_002, "a.jpg", &asked("How many are in the picture?")),
        ],
    );
    data.json(
        "vqav2/v2_mscoco_val2014_annotations.json",
        &json!({"annotations": (262_144_000..262_144_003)
            .map(|id| json!({"question_id": id, "answers": ten("yes")}))
            .collect::<Vec<_>>()}),
    );
    data.picture("gqa/data/images/n1.jpg");
    data.lines(
        "gqa/llava_gqa_testdev_balanced.jsonl",
        &[
            question("201", "n1.jpg", &asked("Is it on the left?")),
            question("202", "n1.jpg", &asked("Who?")),
        ],
    );
    data.json(
        "gqa/data/testdev_balanced_questions.json",
        &json!({"201": {"answer": "yes", "imageId": "n1", "question": "Is it on the left?"},
            "202": {"answer": "man", "imageId": "n1", "question": "Who?"}}),
    );
    data.picture("vizwiz/test/V_0.jpg");
    data.lines(
        "vizwiz/llava_test.jsonl",
        &[question(
            0,
            "V_0.jpg",
            &asked("What?\nWhen the provided information is insufficient, respond with 'Unanswerable'."),
        )],
    );
    data.json(
        "vizwiz/val.json",
        &json!([{"image": "V_0.jpg", "answers": ten("unanswerable"), "question": "What?"}]),
    );
    data.picture("scienceqa/images/test/4/image.png");
    data.json(
        "scienceqa/llava_test_CQM-A.json",
        &json!([
            {"id": "4", "image": "4/image.png", "conversations":
                [{"from": "human", "value": "<image>\nWhich?\nA. x\nB. y"},
                 {"from": "gpt", "value": "The answer is B."}]},
            {"id": "5", "conversations": [{"from": "human", "value": "Why?\nA. x\nB. y"}]},
        ]),
    );
    data.json("scienceqa/pid_splits.json", &json!({"test": ["4", "5"]}));
    data.json(
        "scienceqa/problems.json",
        &json!({"4": {"choices": ["x", "y"], "answer": 1, "hint": "", "image": "image.png"},
            "5": {"choices": ["x", "y"], "answer": 0, "hint": "text", "image": null}}),
    );
    data.picture("textvqa/train_images/im1.jpg");
    data.lines(
        "textvqa/llava_textvqa_val_v051_ocr.jsonl",
        &[
            question(
                "im1",
                "im1.jpg",
                "what brand?\nReference OCR token: X, Y\nAnswer.",
            ),
            question(
                "im1",
                "im1.jpg",
                "what year?\nReference OCR token: X, Y\nAnswer.",
            ),
        ],
    );
    data.json(
        "textvqa/TextVQA_0.5.1_val.json",
        &json!({"data": [
            {"image_id": "im1", "question": "what brand?", "answers": vec!["x"; 10]},
            {"image_id": "im1", "question": "what year?", "answers": vec!["1999"; 10]}]}),
    );
    data.picture("pope/val2014/p.jpg");
    let mut questions = vec![];
    for (index, category) in ["adversarial", "popular", "random"].iter().enumerate() {
        let mut labels = vec![];
        for (number, label) in ["yes", "no"].iter().enumerate() {
            let asked = format!("Is there a {label} {category} dog?");
            questions.push(json!({"question_id": 2 * index + number, "image": "p.jpg",
                "text": format!("{asked}\n{SHORT}"), "category": category}));
            labels.push(
                json!({"question_id": number, "image": "p.jpg", "text": asked, "label": label}),
            );
        }
        data.lines(&format!("pope/coco/coco_pope_{category}.json"), &labels);
    }
    data.lines("pope/llava_pope_test.jsonl", &questions);
    data.picture("mm-vet/images/v.png");
    data.lines(
        "mm-vet/llava-mm-vet.jsonl",
        &[question(0, "v.png", "What is x in the equation?")],
    );
    data.json(
        "mm-vet/mm-vet.json",
        &json!({"v1_0": {"imagename": "v.png", "question": "What is x in the equation?",
            "answer": "-1", "capability": ["math"]}}),
    );
    data.picture("llava-bench-in-the-wild/images/001.jpg");
    data.lines(
        "llava-bench-in-the-wild/questions.jsonl",
        &[json!({"question_id": 0, "image": "001.jpg", "category": "conv", "text": "Where?"})],
    );
    data.lines(
        "llava-bench-in-the-wild/context.jsonl",
        &[json!({"id": 1, "image": "001.jpg", "caption": "A hill."})],
    );
    data.lines(
        "llava-bench-in-the-wild/answers_gpt4.jsonl",
        &[json!({"question_id": 0, "text": "Hawaii.", "answer_id": "g1"})],
    );
    let image = base64::engine::general_purpose::STANDARD.encode(picture());
    let header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit";
    for name in ["mmbench_dev_20230712.tsv", "mmbench_dev_cn_20231003.tsv"] {
        let rows = format!(
            "{header}\n0\tWhich?\tA hint.\tx\ty\tz\t\tB\tcat\t{image}\tsrc\tl2\t\tdev\n\
             1\tWhere?\t\tleft\tright\t\t\tA\tcat\t{image}\tsrc\tl2\t\tdev\n"
        );
        data.file(&format!("mmbench/{name}"), rows);
    }
    let release = "MME/MME_Benchmark_release_version";
    data.picture(&format!("{release}/color/001.jpg"));
    data.file(
        &format!("{release}/color/001.txt"),
        "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n",
    );
    data.lines(
        "MME/llava_mme.jsonl",
        &["Is it red?", "Is it blue?"].map(|asked| {
            question(
                "color/001.jpg",
                "color/001.jpg",
                &format!("{asked} Please answer yes or no.\n{SHORT}"),
            )
        }),
    );
    data.picture("seed_bench/SEED-Bench-image/s.jpg");
    data.lines(
        "seed_bench/llava-seed-bench.jsonl",
        &[question(11, "SEED-Bench-image/s.jpg", "What?\nA. x\nB. y")],
    );
    data.json(
        "seed_bench/SEED-Bench.json",
        &json!({"question_type": {"Scene Understanding": 1}, "questions": [{"question_id": "11",
            "answer": "A", "data_type": "image", "question_type_id": 1}]}),
    );
    for (folder, key) in [
        ("coco", "caption"),
        ("flickr30k", "caption"),
        ("nocaps", "caption"),
        ("conceptual", "label"),
    ] {
        data.picture(&format!("{folder}/images/c.jpg"));
        data.lines(
            &format!("{folder}/question3.jsonl"),
            &[
                question(0, "c.jpg", "Describe the image."),
                question(1, "c.jpg", "What is shown?"),
            ],
        );
        data.json(
            &format!("{folder}/annotations.json"),
            &json!([{key: "a red dog"}, {key: "a blue bird"}]),
        );
    }
    data
}

/// Names of the benchmarks that are made above.
const NAMES: [&str; 16] = [
    "vqav2",
    "gqa",
    "vizwiz",
    "scienceqa",
    "textvqa",
    "pope",
    "mm-vet",
    "llava-bench",
    "mmbench",
    "mmbench-cn",
    "mme",
    "seed",
    "coco",
    "flickr30k",
    "nocaps",
    "conceptual",
];

#[test]
fn every_benchmark_end_to_end_and_batches_change_nothing() {
    let data = every_benchmark();
    let out = tempfile::tempdir().expect("a folder");
    let folder = |name: &str| out.path().join(name);
    for batch in ["8", "1"] {
        let out = folder(batch);
        let shown = run_eval(&[
            "--data",
            text(data.path()),
            "--out",
            text(&out),
            "--batch",
            batch,
        ]);
        assert!(shown.contains("LLaVA-1.5-7B (published)"), "{shown}");
        assert!(shown.contains("questions/s"), "{shown}");
    }
    for name in NAMES {
        let answers = read(&folder("8").join(name).join("answers.jsonl"));
        assert!(!answers.is_empty(), "{name}");
        let alone = read(&folder("1").join(name).join("answers.jsonl"));
        assert_eq!(answers, alone, "{name}: batches of 8 beside one at a time");
    }
    let results: Value =
        serde_json::from_str(&read(&folder("8").join("results.json"))).expect("JSON");
    let benchmarks = results["benchmarks"].as_array().expect("benchmarks");
    let names: Vec<&str> = benchmarks
        .iter()
        .map(|b| b["benchmark"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, NAMES);
    for benchmark in benchmarks {
        let judged = ["mm-vet", "llava-bench"].contains(&benchmark["benchmark"].as_str().unwrap());
        let metrics = benchmark["metrics"].as_array().expect("metrics");
        assert_eq!(metrics.is_empty(), judged, "{benchmark}");
        assert_eq!(benchmark["questions"], benchmark["answered"], "{benchmark}");
        for kind in [
            "missing answer",
            "bad reference",
            "answer to no question",
            "missing image",
        ] {
            assert!(
                benchmark["problems"]["counts"].get(kind).is_none(),
                "{benchmark}"
            );
        }
    }
    for upload in [
        "vqav2/upload/vqav2_upload.json",
        "gqa/upload/testdev_balanced_predictions.json",
        "vizwiz/upload/vizwiz_upload.json",
        "scienceqa/upload/scienceqa_result.json",
        "mm-vet/upload/mm-vet_predictions.json",
        "mmbench/upload/mmbench_upload.xlsx",
        "mmbench-cn/upload/mmbench_upload.xlsx",
        "mme/upload/mme/color.txt",
        "seed/upload/seed_upload.jsonl",
        "coco/upload/captions_result.json",
    ] {
        let bytes =
            std::fs::read(folder("8").join(upload)).unwrap_or_else(|e| panic!("{upload}: {e}"));
        let again = std::fs::read(folder("1").join(upload)).expect("read");
        assert!(!bytes.is_empty() && bytes == again, "{upload}");
    }
    // The answers alone give the same results, without a model.
    let rule = data.path().join("rule.json");
    data.json(
        "rule.json",
        &json!({"llava_bench_conv": {"role": "Assistant", "prompt": "Judge."}}),
    );
    let scores = folder("scores");
    run(&[
        "score",
        "--data",
        text(data.path()),
        "--answers",
        text(&folder("8")),
        "--out",
        text(&scores),
        "--rubric",
        text(&rule),
    ]);
    for name in ["results.json", "results.md"] {
        assert_eq!(
            read(&scores.join(name)),
            read(&folder("8").join(name)),
            "{name}"
        );
    }
    for name in ["mm-vet", "llava-bench"] {
        let request = read(&scores.join(name).join("judge_requests.jsonl"));
        let request: Value = serde_json::from_str(request.trim()).expect("one request");
        assert!(request["content"].is_string(), "{request}");
    }
}
