//! Every relative link of the repository's Markdown leads to a file or folder.

use std::path::{Path, PathBuf};

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
