//! The order of crates and folders: what may import what. Reads `use` lines and paths; fails on an
//! arrow that runs up, and on a ring between folders. docs/architecture.md draws the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Crates from the bottom up; one may use those before it.
const CRATES: [&[&str]; 4] = [
    &["sq-llava-data"],
    &["sq-llava-model"],
    &["sq-llava-train", "sq-llava-eval"],
    &["sq-llava"],
];

/// Floors of each crate from the bottom up: a file may use floors below its own, and its own folder.
/// Folders of one floor do not use each other.
const FLOORS: [(&str, &[&[&str]]); 5] = [
    (
        "sq-llava-data",
        &[
            &["error", "mix"],
            &["gguf", "parallel"],
            &["image", "manifest"],
            &["text", "shuffle"],
            &["asking", "lengths"],
            &["sampler"],
            &["check"],
        ],
    ),
    (
        "sq-llava-model",
        &[
            &["error", "origin"],
            &["kernels"],
            &["ops"],
            &["config"],
            &["vision", "language"],
            &["connector"],
            &["sq_llava"],
            &["weights"],
            &["generation"],
        ],
    ),
    (
        "sq-llava-train",
        &[
            &["error"],
            &["failure"],
            &["recipe"],
            &["data"],
            &["step"],
            &["report"],
            &["run"],
        ],
    ),
    (
        "sq-llava-eval",
        &[
            &["error", "summary"],
            &["questions", "diversity", "clip_score", "judge"],
            &["benchmark"],
            &["score"],
            &["run"],
        ],
    ),
    ("sq-llava", &[&["assistant"]]),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Rust files under a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in golden::entries(folder) {
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// First names behind `prefix` in the code of a file, without its tests and comments.
fn names(text: &str, prefix: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.flat_map(|line| [line, "\n"]).collect();
    let name = |rest: &str| -> String {
        rest.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    code.match_indices(prefix)
        .filter(|(at, _)| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        .map(|(at, _)| name(&code[at + prefix.len()..]))
        .filter(|name| !name.is_empty())
        .collect()
}

/// Number of the floor that a name stands on.
fn floor(floors: &[&[&str]], name: &str) -> Option<usize> {
    floors.iter().position(|floor| floor.contains(&name))
}

#[test]
fn arrows_between_folders_run_down() {
    let mut wrong = Vec::new();
    for (package, floors) in FLOORS {
        let source = workspace().join(package).join("src");
        let mut paths = Vec::new();
        files(&source, &mut paths);
        for path in paths {
            let inside = path.strip_prefix(&source).expect("a file of the crate");
            let first = inside.iter().next().expect("a name").to_string_lossy();
            let folder = first.trim_end_matches(".rs");
            if ["lib", "main"].contains(&folder) || is_test(inside) {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("source");
            let own = floor(floors, folder);
            if own.is_none() && package != "sq-llava" {
                wrong.push(format!("{package}: {folder} has no floor"));
            }
            for used in names(&text, "crate::") {
                let (Some(own), Some(other)) = (own, floor(floors, &used)) else {
                    continue;
                };
                if used != folder && other >= own {
                    wrong.push(format!(
                        "{package}/src/{}: uses crate::{used}",
                        inside.display()
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that run up:\n{}",
        wrong.join("\n")
    );
}

/// Files of tests alone.
fn is_test(path: &Path) -> bool {
    path.iter().any(|part| {
        let part = part.to_string_lossy();
        part == "tests.rs" || part.ends_with("_tests.rs") || part == "tests"
    })
}

#[test]
fn crates_use_those_below() {
    let order: BTreeMap<&str, usize> = CRATES
        .iter()
        .enumerate()
        .flat_map(|(floor, crates)| crates.iter().map(move |name| (*name, floor)))
        .collect();
    for (package, own) in &order {
        let mut paths = Vec::new();
        files(&workspace().join(package).join("src"), &mut paths);
        for path in paths {
            let text = std::fs::read_to_string(&path).expect("source");
            for used in names(&text, "sq_llava_") {
                let used = format!("sq-llava-{used}");
                let below = order
                    .get(used.as_str())
                    .is_none_or(|other| other < own || used == *package);
                assert!(below, "{} uses {used}", path.display());
            }
        }
    }
}
