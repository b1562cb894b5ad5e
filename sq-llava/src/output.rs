//! Progress and results of long work. Streams' readers may go away (`2>&1 | head`): that ends neither
//! the work nor its exit status, so what cannot be written to them is dropped. Files are whole or not
//! there.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sq_llava_data::atomic::write_atomic;

/// A stream that takes everything, and passes on what it can.
#[derive(Debug)]
pub struct Lenient<W>(pub W);

impl<W: Write> Write for Lenient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// Writes a line to standard output. `println!` panics where nobody reads.
pub fn tell(line: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Writes a line to standard error.
pub fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Writes a file of results, in a folder that is made where it is missing.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    write_atomic(path, contents).with_context(|| path.display().to_string())
}

/// Writes a file of results as JSON for people to read.
///
/// # Errors
/// If it cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write(path, format!("{:#}\n", serde_json::to_value(value)?))
}

/// Reads what [`write_json`] wrote.
///
/// # Errors
/// If the file cannot be read, or is something else.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// A folder belongs to one piece of work, which may go on in it: writes `text`, which says what that
/// is, or compares it with what stands there. `taken` is what is said where they differ.
///
/// # Errors
/// If they differ, or the file can be neither read nor written.
pub fn claim(path: &Path, text: &str, taken: &str) -> Result<()> {
    match std::fs::read(path) {
        Ok(before) => {
            ensure!(before == text.as_bytes(), "{}: {taken}", path.display());
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => write(path, text),
        Err(error) => bail!("{}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_kept_and_another_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("work/claim.txt");
        claim(&path, "one", "taken").unwrap();
        claim(&path, "one", "taken").unwrap();
        let error = claim(&path, "two", "taken").unwrap_err().to_string();
        assert!(error.ends_with("claim.txt: taken"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
    }

    /// A pipe that nobody reads.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn fault_29_a_closed_stream_takes_everything() {
        let mut stream = Lenient(Closed);
        writeln!(stream, "a line").unwrap();
        stream.flush().unwrap();
    }
}
