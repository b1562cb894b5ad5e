//! Shards: contiguous runs of questions, and their answers put together again.

use std::path::{Path, PathBuf};

use crate::EvalError;
use crate::answer::Answers;
use crate::problem::ProblemKind;
use crate::question::Questions;
use sq_llava_data::atomic::write_atomic;
use sq_llava_data::files;

/// Shard `index` of `chunks`, each of ⌈n / chunks⌉ items; the last ones may be empty.
fn shard<T>(items: &[T], chunks: usize, index: usize) -> &[T] {
    let size = items.len().div_ceil(chunks.max(1));
    let start = (index * size).min(items.len());
    let end = (start + size).min(items.len());
    &items[start..end]
}

impl Questions {
    /// Leaves only shard `index` of `chunks`.
    pub fn keep_shard(&mut self, chunks: usize, index: usize) {
        self.list = shard(&self.list, chunks, index).to_vec();
    }
}

/// Name of a shard's answer file: `4_0.jsonl`.
pub fn shard_name(chunks: usize, index: usize) -> String {
    format!("{chunks}_{index}.jsonl")
}

/// Joins all shards of a folder to `merge.jsonl`, in order; gives its path.
///
/// # Errors
/// If a shard is missing or holds a line that is not an answer, or nothing can be written.
pub fn merge(folder: &Path, chunks: usize) -> Result<PathBuf, EvalError> {
    let mut merged = Vec::new();
    for index in 0..chunks {
        let path = folder.join(shard_name(chunks, index));
        let answers = Answers::read(&path)?;
        if let Some(problem) = answers
            .problems
            .lines()
            .iter()
            .find(|p| p.kind == ProblemKind::MalformedAnswer)
        {
            return Err(EvalError::benchmark(
                &path,
                format!("{problem}; run this shard again before merging"),
            ));
        }
        let mut bytes = files::read(&path)?;
        if bytes.last().is_some_and(|last| *last != b'\n') {
            bytes.push(b'\n');
        }
        merged.extend(bytes);
    }
    let path = folder.join("merge.jsonl");
    write_atomic(&path, &merged).map_err(|source| EvalError::io(&path, source))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_contiguous_and_of_ceil_size() {
        let items: Vec<usize> = (0..10).collect();
        assert_eq!(shard(&items, 4, 0), [0, 1, 2]);
        assert_eq!(shard(&items, 4, 3), [9]);
        assert_eq!(shard(&items[..5], 4, 2), [4]);
        assert!(shard(&items[..5], 4, 3).is_empty());
        let joined: Vec<usize> = (0..7).flat_map(|i| shard(&items, 7, i).to_vec()).collect();
        assert_eq!(joined, items);
    }
}
