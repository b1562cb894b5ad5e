//! The order of crates and folders: what may import what. Reads `use` lines and paths; fails on an
//! arrow that runs up, and on a ring between folders. docs/architecture.md draws the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Crates from the bottom up; one may use those before `<`.
const CRATES: &str = "sq-llava-data < sq-llava-model < sq-llava-train sq-llava-eval < sq-llava";

/// Folders and files of each crate from the bottom up: one may use those before `<`, and itself.
const FLOORS: [(&str, &str); 4] = [
    (
        "sq-llava-data",
        "error atomic foreign mix < files parallel < blob < gguf < image manifest < source masks < text shuffle \
         < asking lengths < sampler < check",
    ),
    (
        "sq-llava-model",
        "origin < error < kernels < ops < config < vision language < connector < part \
         < sq_llava          < weights < generation",
    ),
    (
        "sq-llava-train",
        "error < failure < recipe < data < step < report < run",
    ),
    (
        "sq-llava-eval",
        "error problem published summary diversity prototypes \
         < jsonl layout table submission metric clip_score judge question_list < question < answer \
         < matched protocol shard < report < task < registry < run",
    ),
];

/// Number of the floor that a name stands on.
fn floor(floors: &str, name: &str) -> Option<usize> {
    let mut floors = floors.split('<');
    floors.position(|floor| floor.split_whitespace().any(|other| other == name))
}

/// Rust files of a crate, without those of tests alone.
fn files(package: &str) -> (PathBuf, Vec<PathBuf>) {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for path in golden::entries(folder) {
            let name = golden::file_name(&path);
            if path.is_dir() && name != "tests" {
                walk(&path, found);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
                found.push(path);
            }
        }
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let source = workspace.join(package).join("src");
    let mut found = Vec::new();
    walk(&source, &mut found);
    (source, found)
}

/// First names behind `prefix` in the code of a file, without its tests and comments; all of them
/// where a group in braces follows.
fn names(path: &Path, prefix: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).expect("source");
    let tests = ["#[cfg(test)]\nmod ", "#[cfg(all(test, "];
    let end = tests.iter().filter_map(|start| text.find(start)).min();
    let code = &text[..end.unwrap_or(text.len())];
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.flat_map(|line| [line, "\n"]).collect();
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let starts = code
        .match_indices(prefix)
        .filter(|(at, _)| !code[..*at].ends_with(part_of_name));
    let used = starts.flat_map(|(at, _)| {
        let rest = &code[at + prefix.len()..];
        let group = rest
            .strip_prefix('{')
            .and_then(|rest| rest.split('}').next());
        let parts: Vec<&str> = group.map_or(vec![rest], |group| group.split(',').collect());
        parts.into_iter().map(|part| {
            part.trim()
                .chars()
                .take_while(|c| part_of_name(*c))
                .collect()
        })
    });
    used.filter(|name: &String| !name.is_empty()).collect()
}

#[test]
fn arrows_between_folders_run_down() {
    let mut wrong = Vec::new();
    for (package, floors) in FLOORS {
        let (source, paths) = files(package);
        for path in paths {
            let inside = path.strip_prefix(&source).expect("a file of the crate");
            let first = inside.iter().next().expect("a name").to_string_lossy();
            let folder = first.trim_end_matches(".rs");
            if folder == "lib" {
                continue;
            }
            let Some(own) = floor(floors, folder) else {
                wrong.push(format!("{package}/src/{folder} has no floor"));
                continue;
            };
            for used in names(&path, "crate::")
                .iter()
                .filter(|used| *used != folder)
            {
                if floor(floors, used).is_some_and(|other| other >= own) {
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

#[test]
fn crates_use_those_below() {
    for package in CRATES.split(['<', ' ']).filter(|name| !name.is_empty()) {
        for path in files(package).1 {
            for used in names(&path, "sq_llava_") {
                let used = format!("sq-llava-{used}");
                let below = floor(CRATES, &used) < floor(CRATES, package) || used == package;
                assert!(below, "{} uses {used}", path.display());
            }
        }
    }
}
