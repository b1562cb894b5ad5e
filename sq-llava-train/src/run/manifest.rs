//! Directories that are whole or refused: each carries a list of its files with sizes and
//! checksums, written last.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sq_llava_data::atomic::{self, write_atomic};
use sq_llava_data::{DataError, files};

use crate::error::TrainError;

/// Name of the list.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// Size and checksum of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileSum {
    /// Size in bytes.
    pub bytes: u64,
    /// CRC-32 (ISO-HDLC), eight hexadecimal digits.
    pub crc32: String,
}

/// The files of a directory by their path in it, with `/` between the parts.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    files: BTreeMap<String, FileSum>,
}

/// Size and checksum of a file's bytes.
pub(crate) fn sum(path: &Path) -> std::io::Result<FileSum> {
    let file = files::open(path).map_err(|error| match error {
        // The caller names the file in its own way.
        DataError::Io { source, .. } => source,
        other => std::io::Error::other(other),
    })?;
    let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
    Ok(FileSum {
        bytes,
        crc32: format!("{:08x}", hasher.finalize()),
    })
}

/// Puts a file on the disk for good. Windows wants the right to write for that.
fn sync(path: &Path) -> std::io::Result<()> {
    File::options().write(true).open(path)?.sync_all()
}

/// Puts a directory's files on the disk for good and lists them.
///
/// # Errors
/// If a file cannot be read or the list not written.
pub(crate) fn seal(directory: &Path) -> Result<(), TrainError> {
    let mut files = BTreeMap::new();
    for path in files_of(directory)? {
        let found = sum(&path).and_then(|found| {
            sync(&path)?;
            Ok(found)
        });
        let found = found.map_err(|e| TrainError::io(&path, e))?;
        files.insert(name_in(directory, &path), found);
    }
    let text = serde_json::to_string_pretty(&Manifest { files })
        .map_err(|e| TrainError::Internal(format!("the manifest is not JSON: {e}")))?;
    let path = directory.join(MANIFEST);
    write_atomic(&path, text + "\n").map_err(|e| TrainError::io(&path, e))?;
    sync_directories(directory)
}

/// Whether every file of the list is there as it was written. `Err` says what is not.
pub(crate) fn verify(directory: &Path) -> Result<(), String> {
    let path = directory.join(MANIFEST);
    let text = files::read_to_string(&path)
        .map_err(|e| format!("{MANIFEST} cannot be read ({e}): it was never finished"))?;
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|e| format!("{MANIFEST} is damaged: {e}"))?;
    for (name, expected) in &manifest.files {
        let found = sum(&directory.join(name)).map_err(|e| format!("{name}: {e}"))?;
        if found.bytes != expected.bytes {
            return Err(format!(
                "{name} has {} bytes, {MANIFEST} says {}",
                found.bytes, expected.bytes
            ));
        }
        if found.crc32 != expected.crc32 {
            return Err(format!(
                "{name} has the checksum {}, {MANIFEST} says {}",
                found.crc32, expected.crc32
            ));
        }
    }
    Ok(())
}

/// Makes renames inside a directory last through a loss of power.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), TrainError> {
    atomic::sync_directory(directory).map_err(|e| TrainError::io(directory, e))
}

fn sync_directories(directory: &Path) -> Result<(), TrainError> {
    for path in entries(directory)? {
        if path.is_dir() {
            sync_directories(&path)?;
        }
    }
    sync_directory(directory)
}

/// Every file below a directory.
fn files_of(directory: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut files = Vec::new();
    for path in entries(directory)? {
        if path.is_dir() {
            files.extend(files_of(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// What a directory holds, by name.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut found: Vec<PathBuf> = std::fs::read_dir(directory)?
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<_, _>>()?;
        found.sort();
        Ok(found)
    };
    list().map_err(|e| TrainError::io(directory, e))
}

/// Bytes of every file below a directory.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn bytes_in(directory: &Path) -> Result<u64, TrainError> {
    let bytes = |path: PathBuf| match path.metadata() {
        Ok(meta) => Ok(meta.len()),
        Err(e) => Err(TrainError::io(path, e)),
    };
    files_of(directory)?.into_iter().map(bytes).sum()
}

fn name_in(directory: &Path, path: &Path) -> String {
    let inner = path.strip_prefix(directory).unwrap_or(path);
    let parts: Vec<String> = inner
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_short_or_changed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("inner")).unwrap();
        std::fs::write(path("a"), b"some bytes").unwrap();
        std::fs::write(path("inner/b"), b"123456789").unwrap();
        assert!(verify(dir.path()).unwrap_err().contains(MANIFEST));
        seal(dir.path()).unwrap();
        verify(dir.path()).unwrap();
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(sum(&path("inner/b")).unwrap().crc32, "cbf43926");

        std::fs::write(path("inner/b"), b"123456780").unwrap();
        assert!(verify(dir.path()).unwrap_err().contains("inner/b"));
        std::fs::write(path("inner/b"), b"123456789").unwrap();
        verify(dir.path()).unwrap();
        std::fs::write(path("a"), b"some").unwrap();
        assert!(verify(dir.path()).unwrap_err().contains("a has 4 bytes"));
        std::fs::remove_file(path("a")).unwrap();
        assert!(verify(dir.path()).unwrap_err().starts_with("a:"));
    }
}
