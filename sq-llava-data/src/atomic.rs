//! Files that are saved whole or not at all.
//!
//! What is written goes into a temporary file of the same directory, onto the disk, and only then
//! gets its name; a program that is killed, a full disk or a loss of power leaves what was there
//! before. Whoever writes line by line over hours (logs, answers) appends instead.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How names of temporary files end.
const TEMPORARY: &str = ".tmp";

/// A file that gets its name when it is whole; dropped before that, it leaves nothing.
#[derive(Debug)]
#[must_use]
pub struct AtomicFile {
    target: PathBuf,
    /// `None` when committed, and where the target is no regular file (a pipe, a terminal), which
    /// nothing can replace.
    temporary: Option<PathBuf>,
    file: File,
}

impl AtomicFile {
    /// Opens a temporary file beside `path`.
    ///
    /// # Errors
    /// If the directory is missing or cannot be written to, or `path` is a directory.
    pub fn create(path: &Path) -> io::Result<Self> {
        // A link keeps pointing where it does: what it points to is replaced.
        let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if target.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if target.exists() && !target.is_file() {
            let file = File::options().write(true).open(&target)?;
            return Ok(Self {
                target,
                temporary: None,
                file,
            });
        }
        let Some(name) = target.file_name() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        // Two processes that save the same file do not write into each other's.
        hidden.push(format!(".{}{TEMPORARY}", std::process::id()));
        let temporary = target.with_file_name(hidden);
        let file = File::create(&temporary)?;
        Ok(Self {
            target,
            temporary: Some(temporary),
            file,
        })
    }

    /// Puts the contents on the disk for good, and then into the target's place.
    ///
    /// # Errors
    /// If the disk is full or fails; what was there before stays.
    pub fn commit(mut self) -> io::Result<()> {
        let Some(temporary) = &self.temporary else {
            return self.file.flush();
        };
        self.file.sync_all()?;
        std::fs::rename(temporary, &self.target)?;
        self.temporary = None;
        sync_directory(parent(&self.target))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The error that led here is the one to tell.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Saves a file whole or not at all.
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::commit`].
pub fn write_atomic(path: &Path, contents: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(contents.as_ref())?;
    file.commit()
}

/// Makes renames inside a directory last through a loss of power.
///
/// # Errors
/// If the directory cannot be opened or the disk fails.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    // Windows opens no directories; its file systems order renames themselves, as do those that
    // refuse the call.
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(directory)?.sync_all() {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}

/// Whether a path is that of a temporary file, left by a process that was killed.
pub fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') && name.ends_with(TEMPORARY)
}

/// The directory of a file.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn fault_27_a_file_is_whole_or_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        write_atomic(&path, "old").unwrap();
        assert_eq!(names(dir.path()), ["config.json"]);

        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half of the new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let temporary = dir.path().join(
            names(dir.path())
                .into_iter()
                .find(|name| name != "config.json")
                .unwrap(),
        );
        assert!(is_temporary(&temporary));
        // An error, or a panic, drops it.
        drop(file);
        assert_eq!(names(dir.path()), ["config.json"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");

        write_atomic(&path, "new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert!(!is_temporary(&path));
    }

    #[test]
    fn fault_27_a_target_that_cannot_be_replaced_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("report.json");
        std::fs::create_dir(&folder).unwrap();
        assert!(write_atomic(&folder, "x").is_err());
        assert!(write_atomic(&dir.path().join("none/report.json"), "x").is_err());
        assert_eq!(names(dir.path()), ["report.json"]);
    }

    #[cfg(unix)]
    #[test]
    fn fault_27_links_and_devices_stay_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_atomic(&link, "new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        write_atomic(Path::new("/dev/null"), "gone").unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
