//! Replies on disk, one a line, so that nothing is asked twice.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::EvalError;

/// Replies by run and request; the whole request is the key, so that another rubric, model or
/// temperature is asked again.
#[derive(Debug)]
pub struct ReplyCache {
    path: PathBuf,
    file: File,
    replies: HashMap<(usize, String), String>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    run: usize,
    request: Value,
    reply: String,
}

impl ReplyCache {
    /// Opens the file, or begins it. A last line that was cut off by a crash is dropped.
    ///
    /// # Errors
    /// If it cannot be read or written, or another line is damaged.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        let fault = |source| EvalError::io(path, source);
        let text = match path.exists() {
            true => sq_llava_data::files::read(path)?,
            false => vec![],
        };
        let whole = text
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |at| at + 1);
        let mut replies = HashMap::new();
        for (number, line) in text[..whole].split(|&b| b == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let Ok(line) = serde_json::from_slice::<Line>(line) else {
                return Err(EvalError::Judge {
                    path: path.to_path_buf(),
                    line: number + 1,
                    reason: "damaged; remove it".into(),
                });
            };
            replies.insert((line.run, line.request.to_string()), line.reply);
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(fault)?;
        file.set_len(whole as u64).map_err(fault)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            replies,
        })
    }

    /// The reply to a request in a run.
    pub fn get(&self, run: usize, request: &Value) -> Option<&str> {
        let key = (run, request.to_string());
        self.replies.get(&key).map(String::as_str)
    }

    /// Writes a reply down before it counts.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn put(&mut self, run: usize, request: Value, reply: String) -> Result<(), EvalError> {
        let key = (run, request.to_string());
        let line = serde_json::to_string(&Line {
            run,
            request,
            reply: reply.clone(),
        })
        .map_err(|source| EvalError::Json {
            path: self.path.clone(),
            source,
        })?;
        // One write, so that a crash cuts at most this line.
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.map_err(|e| EvalError::io(&self.path, e))?;
        self.replies.insert(key, reply);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cut_line_is_dropped_and_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replies.jsonl");
        let mut cache = ReplyCache::open(&path).unwrap();
        cache.put(0, json!({"a": 1}), "x".into()).unwrap();
        cache.put(1, json!({"a": 1}), "long reply".into()).unwrap();
        drop(cache);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        let mut cache = ReplyCache::open(&path).unwrap();
        assert_eq!(cache.get(0, &json!({"a": 1})), Some("x"));
        assert_eq!(cache.get(1, &json!({"a": 1})), None);
        cache.put(1, json!({"a": 1}), "again".into()).unwrap();
        drop(cache);
        let cache = ReplyCache::open(&path).unwrap();
        assert_eq!(cache.get(1, &json!({"a": 1})), Some("again"));
        std::fs::write(&path, "nonsense\n").unwrap();
        let error = ReplyCache::open(&path).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}
