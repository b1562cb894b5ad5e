//! Opening files and nothing else: a named pipe would keep its reader waiting for a writer that
//! never comes.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Opens a file for reading.
///
/// # Errors
/// If there is none, it cannot be opened, or the path names a pipe, a socket or a device.
pub fn open(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    let kind = std::fs::metadata(path)?.file_type();
    if kind.is_file() || kind.is_dir() {
        // What the system says of a folder is clear enough.
        return File::open(path);
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        "a pipe, socket or device, where a file is needed",
    ))
}

/// The whole text of a file.
///
/// # Errors
/// As [`open`], or if the file is not UTF-8.
pub fn read_to_string(path: impl AsRef<Path>) -> Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_folders_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read_to_string(&path).unwrap(), "text");
        assert!(read_to_string(dir.path()).is_err());
        let missing = open(dir.path().join("b")).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn fault_29_a_pipe_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(open(&pipe).map(|_| ())));
        let opened = receiver.recv_timeout(std::time::Duration::from_secs(20));
        let error = opened.expect("it waits for a writer").unwrap_err();
        assert!(error.to_string().contains("a pipe"), "{error}");
    }
}
