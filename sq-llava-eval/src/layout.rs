//! Where a benchmark's files are under a folder, as in LLaVA's evaluation.

use std::path::{Path, PathBuf};

use crate::EvalError;

/// The files of a benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Questions.
    pub questions: PathBuf,
    /// Folder of the pictures; `None` where the questions hold them.
    pub images: Option<PathBuf>,
    /// References: a file or a folder, by benchmark; `None` if there is none.
    pub annotations: Option<PathBuf>,
}

/// Where a benchmark's files are looked for. A `*` matches anything, an empty
/// name the folder itself; the first name that exists is taken.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Names of its folder.
    pub folders: &'static [&'static str],
    /// Question files in it.
    pub questions: &'static [&'static str],
    /// Folders of the pictures; none where the questions hold them.
    pub images: &'static [&'static str],
    /// References.
    pub annotations: &'static [&'static str],
}

impl Layout {
    /// Looks for a benchmark in `root` or its usual folder under it; `None` if its questions are
    /// not there.
    ///
    /// # Errors
    /// If a folder cannot be listed.
    pub fn find(&self, root: &Path) -> Result<Option<Files>, EvalError> {
        let under = self.folders.iter().map(|name| root.join(name));
        // The folder itself, but only if it carries the benchmark's name: many have question.jsonl.
        let named = root
            .file_name()
            .is_some_and(|name| self.folders.iter().any(|folder| name == *folder));
        let itself = named.then(|| root.to_path_buf());
        for folder in itself.into_iter().chain(under) {
            if let Some(questions) = first(&folder, self.questions)? {
                return Ok(Some(Files {
                    questions,
                    images: first(&folder, self.images)?,
                    annotations: first(&folder, self.annotations)?,
                }));
            }
        }
        Ok(None)
    }
}

/// The first name that is in the folder.
pub(crate) fn first(folder: &Path, names: &[&str]) -> Result<Option<PathBuf>, EvalError> {
    if !folder.is_dir() {
        return Ok(None);
    }
    for name in names {
        let found = match name.split_once('*') {
            None => Some(folder.join(name)).filter(|path| path.exists()),
            Some(_) => matching(folder, name)?,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The first file, by name, that a pattern with stars fits.
fn matching(folder: &Path, pattern: &str) -> Result<Option<PathBuf>, EvalError> {
    let io = |source| EvalError::Io {
        path: folder.to_path_buf(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if let Some(name) = name.to_str()
            && fits(name, pattern)
        {
            found.push(folder.join(name));
        }
    }
    found.sort();
    Ok(found.into_iter().next())
}

fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((prefix, rest)) => name.strip_prefix(prefix).is_some_and(|tail| {
            (0..=tail.len())
                .filter(|at| tail.is_char_boundary(*at))
                .any(|at| fits(&tail[at..], rest))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        assert!(fits("coco_karpathy_test.json", "*karpathy*.json"));
        assert!(fits("mmbench_dev_cn_20231003.tsv", "mmbench_dev_cn*.tsv"));
        assert!(!fits("mmbench_dev_en_20231003.tsv", "mmbench_dev_cn*.tsv"));
        assert!(!fits("a.json.bak", "*.json"));
    }
}
