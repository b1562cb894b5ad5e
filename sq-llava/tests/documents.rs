//! Every relative link of the repository's Markdown leads to a file or folder, and every path that
//! the documents for contributors name is that of one.

use std::path::{Path, PathBuf};

/// Files that the how-tos have their reader make: `NAME` stands for any.
const MADE: [&str; 4] = ["NAME.rs", "signs.rs", "norm_linear.rs", "fuzz/corpus"];

/// Markdown files of a folder, without what is built and what Git keeps.
fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in golden::entries(folder) {
        let name = golden::file_name(&path);
        if path.is_dir() && !path.is_symlink() && name != "target" && !name.starts_with('.') {
            documents(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// Targets of links and pictures, `[…](target)`, without their anchors.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    targets
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .map(|target| target.split('#').next().unwrap_or(target))
}

#[test]
fn links_lead_somewhere() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut paths = Vec::new();
    documents(&workspace, &mut paths);
    let mut seen = 0;
    let mut dead = Vec::new();
    for path in &paths {
        let text = std::fs::read_to_string(path).expect("a document");
        let folder = path.parent().expect("a file in a folder");
        for link in links(&text) {
            seen += 1;
            if !folder.join(link).exists() {
                dead.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(seen > 50, "{seen} links in {} documents", paths.len());
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

/// All files and folders of the workspace, relative to it, but for what is built and what Git
/// keeps.
fn tree(folder: &Path, before: &str, found: &mut Vec<String>) {
    for path in golden::entries(folder) {
        let name = golden::file_name(&path);
        if name == "target" || name.starts_with('.') {
            continue;
        }
        let relative = format!("{before}{name}");
        if path.is_dir() && !path.is_symlink() {
            tree(&path, &format!("{relative}/"), found);
        }
        found.push(relative);
    }
}

/// Paths in backticks outside blocks of code: of a Rust or Python file, or with a folder.
fn named_paths(text: &str) -> impl Iterator<Item = &str> {
    let outside = text.split("```").step_by(2);
    let spans = outside.flat_map(|text| text.split('`').skip(1).step_by(2));
    let plain = |name: &&str| {
        let chars = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
        name.chars().all(chars)
            && (name.contains('/') || name.ends_with(".rs") || name.ends_with(".py"))
    };
    spans
        .map(|name| name.trim_start_matches("…/").trim_end_matches('/'))
        .filter(plain)
}

/// A document may leave out the first folders of a path, as they stand in its text.
#[test]
fn named_paths_are_there() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut paths = Vec::new();
    tree(&workspace, "", &mut paths);
    let mut texts = vec![workspace.join("CONTRIBUTING.md")];
    texts.push(workspace.join("docs/architecture.md"));
    documents(&workspace.join("docs/howto"), &mut texts);
    let mut seen = 0;
    let mut missing = Vec::new();
    for path in &texts {
        let text = std::fs::read_to_string(path).expect("a document");
        for name in named_paths(&text) {
            seen += 1;
            let is_made = MADE.iter().any(|made| name.ends_with(made));
            let behind = format!("/{name}");
            let there = |path: &String| *path == name || path.ends_with(&behind);
            if !is_made && !paths.iter().any(there) {
                missing.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(seen > 100, "{seen} paths in {} documents", texts.len());
    assert!(missing.is_empty(), "no such files:\n{}", missing.join("\n"));
}
