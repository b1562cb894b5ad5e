//! Opening the files that people name.

use std::fs::{File, FileType};
use std::io::{Error, ErrorKind, Read};
use std::path::Path;

use crate::DataError;

/// Opens a regular file. A pipe or a device is refused: reading it could wait without end.
///
/// # Errors
/// [`DataError::Io`], which names the path, if it is not a regular file or cannot be opened.
pub fn open(path: &Path) -> Result<File, DataError> {
    let fault = |source| DataError::Io {
        path: path.to_path_buf(),
        source,
    };
    // Before it is opened: opening a pipe waits for its writer.
    let kind = std::fs::metadata(path).map_err(fault)?.file_type();
    if !kind.is_file() {
        let reason = format!("{}, not a regular file", name_of(kind));
        return Err(fault(Error::new(ErrorKind::InvalidInput, reason)));
    }
    File::open(path).map_err(fault)
}

/// The bytes of a regular file.
///
/// # Errors
/// As [`open`], or if it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let read = open(path)?.read_to_end(&mut bytes);
    read.map_err(|source| DataError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    Ok(bytes)
}

/// The text of a regular file.
///
/// # Errors
/// As [`read`], or if it is not UTF-8.
pub fn read_to_string(path: &Path) -> Result<String, DataError> {
    String::from_utf8(read(path)?).map_err(|error| DataError::Io {
        path: path.to_path_buf(),
        source: Error::new(ErrorKind::InvalidData, format!("not UTF-8: {error}")),
    })
}

#[cfg(unix)]
fn name_of(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match kind {
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(not(unix))]
fn name_of(kind: FileType) -> &'static str {
    match kind.is_dir() {
        true => "a folder",
        false => "a device",
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn fault_29_only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        // Its writer stays, so that reading it would wait without end.
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = format!("/proc/self/fd/{}", reader.as_raw_fd());
        for (path, word) in [
            (Path::new(&pipe), "a pipe"),
            (folder.path(), "a folder"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            let error = open(path).unwrap_err().to_string();
            let shown = path.display().to_string();
            assert!(error.contains(word) && error.contains(&shown), "{error}");
        }
        // Without a writer reading it ends: whoever opens it fails otherwise than by this.
        let (reader, _) = std::io::pipe().unwrap();
        let pipe = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let tokenizer = golden::llama_tokenizer().join("tokenizer.model");
        std::fs::copy(tokenizer, folder.path().join("tokenizer.model")).unwrap();
        for name in ["tokenizer_config.json", "chat_template.jinja"] {
            let path = folder.path().join(name);
            std::os::unix::fs::symlink(&pipe, &path).unwrap();
            let error = crate::TextTokenizer::from_dir(folder.path()).err().unwrap();
            let error = error.to_string();
            assert!(error.contains("a pipe") && error.contains(name), "{error}");
            std::fs::remove_file(path).unwrap();
        }
        let error = crate::gguf::GgufHeader::open(Path::new(&pipe)).unwrap_err();
        assert!(error.to_string().contains("a pipe"), "{error}");
        let file = folder.path().join("a.txt");
        std::fs::write(&file, "text").unwrap();
        assert_eq!(read_to_string(&file).unwrap(), "text");
    }
}
