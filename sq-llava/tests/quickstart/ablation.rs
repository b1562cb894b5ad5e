//! Rows side by side: the method's parts, asking on more and more conversations, weights of masks.

use std::path::Path;

use golden::Value;

use super::{complaint, read, run, said};

#[test]
fn an_ablation_makes_its_table_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("a folder");
    let arguments = [
        "ablate",
        "--out",
        "ablation",
        "--seeds",
        "0,1",
        "--steps",
        "1",
        "--scenes",
        "4",
        "--held-out",
        "1",
        "--device",
        "cpu",
        "--set",
        "stage1.batch_size=2",
        "--set",
        "stage2.batch_size=2",
    ];
    let shown = said(&arguments, dir.path());
    let out = dir.path().join("ablation");
    let table = read(&out.join("ablation.md"));
    for row in [
        "| baseline |",
        "| V-LoRA + Proto |",
        "| V-LoRA + SQ |",
        "| SQ + Proto |",
        "| V-LoRA + SQ + Proto |",
    ] {
        assert!(table.contains(row) && shown.contains(row), "{row}: {table}");
    }
    assert_eq!(table.matches(" ± ").count(), 5 * 7 + 1, "{table}");
    let json: Value = serde_json::from_str(&read(&out.join("ablation.json"))).expect("JSON");
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 5);
    for row in rows {
        assert_eq!(row["runs"].as_array().map(Vec::len), Some(2));
        assert!(row["columns"]["all"]["deviation"].is_number());
    }

    // Whatever is asked, every row learns the same answers, from the stage 1 that it shares.
    let [baseline, full] = ["baseline-0", "v-lora-sq-proto-0"].map(|run| tokens(&out, run));
    assert_eq!((baseline.asked, baseline.answered), (0, full.answered));
    assert!(full.asked > 0 && full.answered > 0);
    assert_eq!(tokens(&out, "v-lora-proto-0").asked, 0);
    for kind in ["plain", "prototypes"] {
        let first = out.join(format!("runs/stage-1-{kind}-1"));
        assert!(first.join("non_lora_trainables.safetensors").is_file());
    }

    // A run that is there is not repeated: its score is believed.
    let kept = out.join("runs/baseline-0/scores.json");
    let changed = read(&kept).replace("\"seconds\": ", "\"seconds\": 99");
    std::fs::write(&kept, &changed).expect("written");
    std::fs::remove_dir_all(out.join("runs/sq-proto-1")).expect("removed");
    said(&arguments, dir.path());
    assert_eq!(read(&kept), changed);
    let json: Value = serde_json::from_str(&read(&out.join("ablation.json"))).expect("JSON");
    let seconds = json["rows"][0]["runs"][0]["seconds"].as_f64();
    assert!(seconds >= Some(990.0), "{seconds:?}");
    assert!(out.join("runs/sq-proto-1/scores.json").is_file());

    let other = [&arguments[..], &["--set", "stage2.lr_llm=1e-3"]].concat();
    let error = complaint(&run(&other, dir.path()));
    assert!(error.contains("another ablation"), "{error}");
}

/// Tokens that a run of an ablation learnt in stage 2.
struct Learnt {
    asked: u64,
    answered: u64,
}

fn tokens(ablation: &Path, run: &str) -> Learnt {
    let log = read(&ablation.join("runs").join(run).join("log.jsonl"));
    let mut learnt = Learnt {
        asked: 0,
        answered: 0,
    };
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["stage"], 2, "stage 1 is another run's");
        let count = |key: &str| line[key].as_u64().expect("a number of tokens");
        learnt.asked += count("question_tokens");
        learnt.answered += count("answer_tokens");
    }
    learnt
}

#[test]
fn asking_is_compared_on_more_and_more_conversations() {
    let dir = tempfile::tempdir().expect("a folder");
    let small = [
        "--device",
        "cpu",
        "--seeds",
        "0,1",
        "--scenes",
        "8",
        "--held-out",
        "2",
        "--sparse",
        "--set",
        "stage1.batch_size=4",
        "--set",
        "stage2.batch_size=2",
        "--set",
        "asking.every=1",
    ];
    let ablate = |more: &[&str]| run(&[&["ablate"], more, &small].concat(), dir.path());
    let sizes = [
        "--out",
        "asking",
        "--sizes",
        "4,8",
        "--deltas",
        "0,0.5,adaptive",
    ];
    let output = ablate(&sizes);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let out = dir.path().join("asking");
    let table = read(&out.join("efficiency.md"));
    let (first, ahead) = table.split_once("Ahead of δ 0 ").expect("both tables");
    assert!(
        first.contains("| | 4 | 8 |") && first.contains("| δ 0 | "),
        "{table}"
    );
    assert!(ahead.contains("| δ adaptive | ") && !ahead.contains("| δ 0 |"));
    assert_eq!(ahead.matches(" … ").count(), 4, "{table}");
    let plot = read(&out.join("efficiency.svg"));
    assert!(plot.contains("δ 0.5") && plot.contains("conversations"));
    for size in [4, 8] {
        let data = read(&out.join(format!("runs/conversations-{size}.json")));
        let data: Value = serde_json::from_str(&data).expect("JSON");
        assert_eq!(data.as_array().map(Vec::len), Some(size));
        let of = |delta: &str| tokens(&out, &format!("{size}-{delta}-1"));
        let [never, half, adaptive] = ["0", "0.5", "adaptive"].map(of);
        assert_eq!(never.asked, 0);
        assert!(half.asked > 0 && adaptive.asked > 0);
        let answered = [half.answered, adaptive.answered];
        assert_eq!(answered, [never.answered; 2]);
    }
    // One stage 1 for each seed.
    let found = std::fs::read_dir(out.join("runs")).expect("a folder");
    let names = found.map(|entry| entry.expect("an entry").file_name());
    let mut first: Vec<_> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with("stage-1"))
        .collect();
    first.sort_unstable();
    assert_eq!(first, ["stage-1-prototypes-0", "stage-1-prototypes-1"]);

    // What is there is not trained again.
    let scores = out.join("runs/8-adaptive-1/scores.json");
    let time = || std::fs::metadata(&scores).and_then(|file| file.modified());
    let before = time().expect("a time");
    assert!(ablate(&sizes).status.success());
    assert_eq!(time().expect("a time"), before);

    // A stage 1 that is given is what all go on from.
    let given = "asking/runs/stage-1-prototypes-0";
    // And a benchmark is asked besides.
    let picture = dir.path().join("asking/world/images/held-out-00000.png");
    let pope = dir.path().join("benchmarks/pope");
    std::fs::create_dir_all(pope.join("coco")).expect("made");
    std::fs::create_dir_all(pope.join("val2014")).expect("made");
    std::fs::copy(picture, pope.join("val2014/p.png")).expect("copied");
    let line = |id: usize| {
        serde_json::json!({"question_id": id, "image": "p.png", "category": "random",
            "text": "Is there a red circle?"})
        .to_string()
    };
    std::fs::write(
        pope.join("llava_pope_test.jsonl"),
        format!("{}\n{}\n", line(1), line(2)),
    )
    .expect("written");
    let label = |id: usize, label: &str| {
        serde_json::json!({"question_id": id, "image": "p.png", "label": label,
            "text": "Is there a red circle?"})
        .to_string()
    };
    std::fs::write(
        pope.join("coco/coco_pope_random.json"),
        format!("{}\n{}\n", label(1, "yes"), label(2, "no")),
    )
    .expect("written");
    let more = [
        "--benchmark",
        "pope",
        "--data",
        "benchmarks",
        "--out",
        "given",
        "--sizes",
        "4",
        "--deltas",
        "0.5",
        "--projector",
        given,
    ];
    let output = ablate(&more);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let scores = read(&dir.path().join("given/runs/4-0.5-0/scores.json"));
    let scores: Value = serde_json::from_str(&scores).expect("JSON");
    let pope = scores["benchmarks"].as_object().expect("benchmarks");
    assert!(
        pope.len() == 1 && pope.values().all(Value::is_number),
        "{scores}"
    );
    let answers = read(
        &dir.path()
            .join("given/runs/4-0.5-1/eval/pope/answers.jsonl"),
    );
    assert_eq!(answers.lines().count(), 2);
    let runs = dir.path().join("given/runs");
    assert!(!runs.join("stage-1-prototypes-0").exists());
    for (more, says) in [
        (
            &["--out", "x", "--sizes", "9"][..],
            "has 8 conversations, not 9",
        ),
        (
            &["--out", "x", "--sizes", "4", "--deltas", "2"],
            "from 0 to 1",
        ),
        (
            &["--out", "y", "--projector", given],
            "model.prototype = false",
        ),
    ] {
        let error = complaint(&ablate(more));
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn weights_of_masks_are_compared() {
    let dir = tempfile::tempdir().expect("a folder");
    let small = [
        "ablate",
        "--device",
        "cpu",
        "--seeds",
        "0,1",
        "--steps",
        "2",
        "--scenes",
        "32",
        "--held-out",
        "12",
        "--out",
        "masks",
    ];
    let ablate = |more: &[&str]| run(&[&small, more].concat(), dir.path());
    let output = ablate(&["--masks", "0,1"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let out = dir.path().join("masks");
    let table = read(&out.join("masks.md"));
    for part in [
        "| inverse purity |",
        "| purity |",
        "\n| masks 0 | ",
        "\n| masks 1 | ",
        "Ahead of \"masks 0\"",
        "| | alike |",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let runs = out.join("runs");
    for (weight, seed) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let stage1 = read(&runs.join(format!(
            "stage-1-prototypes-masks-{weight}-{seed}/recipe.toml"
        )));
        let stage2 = read(&runs.join(format!("masks-{weight}-{seed}/recipe.toml")));
        for recipe in [stage1, stage2] {
            let weight = format!("weight = {weight}.0");
            assert!(recipe.contains(&weight), "{recipe}");
        }
        let tokens = read(&runs.join(format!("masks-{weight}-{seed}/prototypes.json")));
        let tokens: Value = serde_json::from_str(&tokens).expect("JSON");
        let pictures = tokens.as_object().expect("pictures");
        // One token for each of the nine cells.
        assert_eq!(pictures.len(), 12);
        for picture in pictures.values() {
            for part in ["prototypes", "masks"] {
                assert_eq!(picture[part].as_array().map(Vec::len), Some(9), "{picture}");
            }
        }
    }
    // The first weight is what the others are compared with; nothing is trained for that.
    assert!(ablate(&["--masks", "1,0"]).status.success());
    let table = read(&out.join("masks.md"));
    assert!(table.contains("Ahead of \"masks 1\""), "{table}");
    // What had been trained, but not asked yet, is not trained again; half a folder is made anew.
    let run = runs.join("masks-1-1");
    let before = read(&run.join("scores.json"));
    std::fs::remove_file(run.join("scores.json")).expect("removed");
    std::fs::rename(&run, runs.join("masks-1-1.unfinished")).expect("renamed");
    let other = runs.join("masks-1-0");
    std::fs::remove_dir_all(&other).expect("removed");
    std::fs::create_dir(runs.join("masks-1-0.unfinished")).expect("made");
    std::fs::write(runs.join("masks-1-0.unfinished/x"), "").expect("written");
    let log = |run: &Path| std::fs::metadata(run.join("log.jsonl")).and_then(|log| log.modified());
    let trained = log(&runs.join("masks-1-1.unfinished")).expect("a time");
    assert!(ablate(&["--masks", "0,1"]).status.success());
    assert_eq!(log(&run).expect("a time"), trained);
    let scores = |text: &str| {
        let scores: Value = serde_json::from_str(text).expect("JSON");
        (scores["scores"].clone(), scores["prototypes"].clone())
    };
    assert_eq!(scores(&read(&run.join("scores.json"))), scores(&before));
    assert!(other.join("scores.json").is_file() && !other.join("x").exists());
    for (more, says) in [
        ("0,0", "--masks has 0 twice"),
        ("0,-1", "model.masks.weight"),
    ] {
        let error = complaint(&ablate(&["--masks", more]));
        assert!(error.contains(says), "{error}");
    }
}
