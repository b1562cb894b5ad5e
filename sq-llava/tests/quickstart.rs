//! The quick start and the ablation through the real command, cut short.

use std::path::Path;
use std::process::{Command, Output};

use golden::Value;

fn run(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("the command starts")
}

fn said(arguments: &[&str], folder: &Path) -> String {
    let output = run(arguments, folder);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What the command complains about when it fails.
fn complaint(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{error}");
    error
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn a_short_quick_start_ends_in_numbers_and_a_report() {
    let dir = tempfile::tempdir().expect("a folder");
    let arguments = [
        "quickstart",
        "--steps",
        "2",
        "--scenes",
        "32",
        "--held-out",
        "3",
        "--device",
        "cpu",
        "--lines",
    ];
    let shown = said(&arguments, dir.path());
    // The folder that stands in the instructions.
    let out = dir.path().join("quickstart-run");
    for words in [
        "accuracy",
        "chance",
        "stage 1 only",
        "both stages",
        "yes/no F1",
        "stage 1 step 2/2",
        "stage 2 step 2/2",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }

    let results: Value = serde_json::from_str(&read(&out.join("results.json"))).expect("JSON");
    assert_eq!(results["steps"], serde_json::json!([2, 2]));
    for which in ["chance", "stage1", "both"] {
        let scores = &results[which];
        assert_eq!(scores["all"]["all"], 18, "six questions about three scenes");
        let kinds = scores["kinds"].as_object().expect("kinds");
        assert_eq!(kinds.len(), 5);
        let right: u64 = kinds
            .values()
            .filter_map(|kind| kind["right"].as_u64())
            .sum();
        assert_eq!(scores["all"]["right"].as_u64(), Some(right));
        assert!(scores["yes_f1"].is_number());
    }
    // One answer to both yes/no questions of a scene is right once.
    let yes_no = &results["chance"]["kinds"]["yes/no"];
    assert_eq!((&yes_no["right"], &yes_no["all"]), (&3.into(), &6.into()));
    assert_eq!(results["asked"]["scenes"], 3);
    assert!(results["asked"]["all"].as_u64() <= Some(12));

    let page = read(&out.join("report.html"));
    assert_eq!(page.matches("class=\"card\"").count(), 3);
    // Each of the sixteen prototypes has its picture of each scene.
    let looks = page.matches("<use href=\"#scene-").count();
    assert_eq!(looks, 3 * 16);
    let svg = page.split("class=\"curves\"").nth(1).expect("a drawing");
    let svg = svg.split("</svg>").next().expect("a drawing");
    let (first, second) = svg.split_once("stage 2").expect("both stages");
    assert!(first.contains("answering") && !first.contains("asking"));
    assert!(second.contains("answering") && second.contains("asking"));
    let judged = page.matches("<b class=\"right\">").count();
    let all = judged + page.matches("<b class=\"wrong\">").count();
    assert_eq!(all, 18);
    assert_eq!(
        results["both"]["all"]["right"].as_u64(),
        Some(judged as u64)
    );
    let page = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!page.contains("http"), "nothing is loaded from elsewhere");

    // The run answers by itself, and its folder is not written over.
    let picture = "quickstart-run/world/images/held-out-00000.png";
    let answer = [
        "ask",
        "--model",
        "quickstart-run/run",
        "--device",
        "cpu",
        "--max-new-tokens",
        "4",
        picture,
        "How many shapes are there?",
    ];
    said(&answer, dir.path());
    let again = [&arguments[..], &["--out", "quickstart-run"]].concat();
    let error = complaint(&run(&again, dir.path()));
    assert!(
        error.contains("quickstart-run: not an empty folder"),
        "{error}"
    );
}

#[test]
fn several_seeds_end_in_a_table_and_are_not_repeated() {
    let dir = tempfile::tempdir().expect("a folder");
    let start = ["quickstart", "--device", "cpu", "--quiet", "--out", "many"];
    let small = ["--steps", "1", "--scenes", "16", "--held-out", "1"];
    let of = |seeds| [&start[..], &["--seeds", seeds], &small[..]].concat();
    said(&of("0"), dir.path());
    let first = dir.path().join("many/seed-0/results.json");
    let time = || std::fs::metadata(&first).and_then(|file| file.modified());
    let before = time().expect("a time");
    let shown = said(&of("0,1"), dir.path());
    assert_eq!(time().expect("a time"), before);
    let table = read(&dir.path().join("many/seeds.md"));
    assert!(
        shown.contains(&table) && table.contains("over 2 seed(s)"),
        "{shown}"
    );
    assert!(table.contains("| stage 1 only | ") && table.contains("| both stages | "));
    assert!(dir.path().join("many/seed-1/report.html").is_file());
    let error = complaint(&run(&of("1,1"), dir.path()));
    assert!(error.contains("twice"), "{error}");
    // What is somebody's is not taken.
    std::fs::create_dir_all(dir.path().join("mine/seed-0")).expect("made");
    let mine = [&start[..4], &["--out", "mine", "--seeds", "0"], &small[..]].concat();
    let error = complaint(&run(&mine, dir.path()));
    assert!(error.contains("mine: not an empty"), "{error}");
    assert!(dir.path().join("mine/seed-0").is_dir());
    let other = [&of("0,1")[..], &["--set", "stage2.lr_llm=1e-3"]].concat();
    let error = complaint(&run(&other, dir.path()));
    assert!(error.contains("another quick start"), "{error}");
}

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
fn a_quick_start_with_masks_is_guided_by_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let sizes = ["--steps", "2", "--scenes", "32", "--held-out", "12"];
    let start = ["quickstart", "--device", "cpu", "--lines", "--masks", "0.5"];
    let shown = said(&[&start[..], &sizes[..]].concat(), dir.path());
    assert!(shown.contains(", masks "), "{shown}");
    let out = dir.path().join("quickstart-run");
    let log = read(&out.join("run/log.jsonl"));
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert!(line["loss_masks"].as_f64() > Some(0.0), "{line}");
    }
    let recipe = read(&out.join("run/recipe.toml"));
    assert!(recipe.contains("weight = 0.5"), "{recipe}");

    let world = |name: &str| format!("quickstart-run/world/{name}");
    let [data, images, masks] = ["held-out.json", "images", "masks"].map(world);
    let checked = said(
        &["check", &data, "--images", &images, "--masks", &masks],
        dir.path(),
    );
    assert!(checked.contains("masks: of 12 of 12 images"), "{checked}");
    let measure = [
        "prototypes",
        "--model",
        "quickstart-run/run",
        "--device",
        "cpu",
        &data,
        "--images",
        &images,
        "--masks",
    ];
    let found = said(&[&measure[..], &[&masks, "--json"]].concat(), dir.path());
    let found: Value = serde_json::from_str(&found).expect("JSON");
    let pictures = found["pictures"].as_u64();
    assert!(pictures > Some(3) && pictures <= Some(12), "{found}");
    for key in ["purity", "inverse_purity"] {
        let part = found[key].as_f64().expect("a number");
        assert!(part > 0.0 && part <= 1.0, "{found}");
    }
    let error = complaint(&run(&[&measure[..], &["nowhere"]].concat(), dir.path()));
    assert!(error.contains("nowhere"), "{error}");
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
