//! JSON that others wrote: JSONL, line by line, with the number of each line, and whole files.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::EvalError;
use sq_llava_data::files;

/// A line is one question or answer; a file with a longer one is not JSONL.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Gives every line that is not blank to `visit`: its number from 1 and its bytes, without its end.
pub(crate) fn for_each(
    path: &Path,
    mut visit: impl FnMut(usize, &[u8]) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    let io = |source| EvalError::Io {
        path: path.to_path_buf(),
        source,
    };
    let mut reader = BufReader::with_capacity(1 << 18, files::open(path)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(io)?;
        if read == 0 {
            break;
        }
        if read as u64 == MAX_LINE_BYTES {
            return Err(EvalError::benchmark(
                path,
                format!("line {number} has 64 MiB or more: this is no JSONL"),
            ));
        }
        let mut text = line.as_slice();
        if number == 1 {
            text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        }
        let text = text.trim_ascii();
        if !text.is_empty() {
            visit(number, text)?;
        }
    }
    Ok(())
}

/// `file.jsonl line 7`.
pub(crate) fn place(path: &Path, number: usize) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    format!("{} line {number}", name.to_string_lossy())
}

/// A whole JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, EvalError> {
    serde_json::from_reader(BufReader::new(files::open(path)?)).map_err(|source| EvalError::Json {
        path: path.to_path_buf(),
        source,
    })
}
