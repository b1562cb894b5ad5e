//! The files that a path stands for: itself, those of a folder, or those of a pattern.

use std::path::{Path, PathBuf};

use crate::DataError;

/// Most files that a pattern may stand for.
const MOST: usize = 100_000;

/// Whether a path is a shard by its ending.
pub(super) fn is_parquet(path: &Path) -> bool {
    ends_with(path, "parquet")
}

/// Whether a path is a shard by its ending.
pub(super) fn is_tar(path: &Path) -> bool {
    ends_with(path, "tar")
}

fn ends_with(path: &Path, ending: &str) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case(ending))
}

/// The files that paths stand for, in order: `shard-{000..012}.tar` and `{train,more}.parquet` are
/// written out, `train-*.parquet` are the files of that name, and a folder is its Parquet files or
/// its tar files, both by name.
///
/// # Errors
/// If a folder cannot be read, or no file is meant.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    for path in paths {
        let mut named = vec![path.clone()];
        if let Some(text) = path.to_str() {
            named = braces(text).map_err(|reason| meaning_nothing(path, reason))?;
        }
        for path in named {
            if path.is_dir() {
                found.extend(of_folder(&path)?);
            } else if file_name(&path).contains('*') && !path.exists() {
                found.extend(of_star(&path)?);
            } else {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn file_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default()
}

fn meaning_nothing(path: &Path, reason: String) -> DataError {
    DataError::Io {
        path: path.to_path_buf(),
        source: std::io::Error::new(std::io::ErrorKind::NotFound, reason),
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(folder)?;
        let paths = entries.map(|entry| entry.map(|e| e.path()));
        let mut paths: Vec<PathBuf> = paths.collect::<Result<_, _>>()?;
        paths.sort();
        Ok(paths)
    };
    list().map_err(|source| DataError::Io {
        path: folder.to_path_buf(),
        source,
    })
}

fn of_folder(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = entries(folder)?;
    paths.retain(|path| is_parquet(path) || is_tar(path));
    let parquet = paths.iter().filter(|path| is_parquet(path)).count();
    let reason = match (parquet, paths.len()) {
        (_, 0) => "a folder without a .parquet or .tar file",
        (some, all) if some > 0 && some < all => {
            "a folder of .parquet and .tar files: name those that are meant, as folder/*.tar"
        }
        _ => return Ok(paths),
    };
    Err(meaning_nothing(folder, reason.into()))
}

fn of_star(pattern: &Path) -> Result<Vec<PathBuf>, DataError> {
    let folder = match pattern.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut paths = entries(folder)?;
    paths.retain(|path| matches(file_name(pattern), file_name(path)));
    match paths.is_empty() {
        true => Err(meaning_nothing(pattern, "no file has such a name".into())),
        false => Ok(paths),
    }
}

/// Whether a name is of a pattern in which each `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(last)
}

/// Writes braces out: `{a,b}` and `{000..012}`.
fn braces(text: &str) -> Result<Vec<PathBuf>, String> {
    let inner = text.split_once('{').and_then(|(before, rest)| {
        let (inner, after) = rest.split_once('}')?;
        Some((before, inner, after))
    });
    let Some((before, inner, after)) = inner else {
        return Ok(vec![text.into()]);
    };
    let parts: Vec<String> = match range(inner) {
        Some((from, to, _)) if from > to || to - from >= MOST => {
            return Err(format!(
                "{{{inner}}} is not a range of at most {MOST} files"
            ));
        }
        Some((from, to, width)) => (from..=to).map(|n| format!("{n:0width$}")).collect(),
        None if inner.contains(',') => inner.split(',').map(str::to_owned).collect(),
        // As a shell has it, that is a name.
        None => return Ok(vec![text.into()]),
    };
    let mut all = Vec::new();
    for part in parts {
        all.extend(braces(&format!("{before}{part}{after}"))?);
        if all.len() > MOST {
            return Err(format!("it stands for more than {MOST} files"));
        }
    }
    Ok(all)
}

/// `000..012`: both ends and the digits.
fn range(text: &str) -> Option<(usize, usize, usize)> {
    let (from, to) = text.split_once("..")?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(from) && digits(to)).then_some(())?;
    // Without a leading zero numbers are as long as they are.
    let width = if from.len() > 1 && from.starts_with('0') {
        from.len()
    } else {
        0
    };
    Some((from.parse().ok()?, to.parse().ok()?, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Vec<String> {
        let found = expand(&[text.into()]).unwrap();
        found
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn braces_are_written_out() {
        assert_eq!(
            expanded("a/s-{008..011}.tar"),
            ["a/s-008.tar", "a/s-009.tar", "a/s-010.tar", "a/s-011.tar"]
        );
        assert_eq!(
            expanded("{x,y}-{9..10}.tar"),
            ["x-9.tar", "x-10.tar", "y-9.tar", "y-10.tar"]
        );
        assert_eq!(expanded("a{b}.json"), ["a{b}.json"]);
        for wrong in ["{5..4}.tar", "{0..999999999}.tar", "{0..999}{0..999}.tar"] {
            assert!(expand(&[wrong.into()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn folders_and_stars_are_their_files_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b-1.parquet", "a-2.parquet", "note.txt"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let names = |path: PathBuf| -> Vec<String> {
            let found = expand(&[path]).unwrap();
            found.iter().map(|p| file_name(p).to_owned()).collect()
        };
        assert_eq!(names(dir.path().into()), ["a-2.parquet", "b-1.parquet"]);
        assert_eq!(names(dir.path().join("b*quet")), ["b-1.parquet"]);
        assert_eq!(
            names(dir.path().join("*-*.par*")),
            ["a-2.parquet", "b-1.parquet"]
        );
        assert!(expand(&[dir.path().join("*.tar")]).is_err());
        std::fs::write(dir.path().join("c.tar"), "").unwrap();
        let error = expand(&[dir.path().into()]).unwrap_err().to_string();
        assert!(error.contains("*.tar"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        assert!(expand(&[empty.path().into()]).is_err());
    }
}
