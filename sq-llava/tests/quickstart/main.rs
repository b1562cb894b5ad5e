//! The quick start and the ablation through the real command, cut short.

mod ablation;

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
