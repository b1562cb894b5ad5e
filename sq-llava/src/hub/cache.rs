//! The folder of one repository in the cache, laid out as `huggingface_hub` does:
//!
//! ```text
//! models--org--name/refs/main                     the commit
//! models--org--name/snapshots/COMMIT/config.json  a link to
//! models--org--name/blobs/ETAG                    the content
//! .locks/models--org--name/ETAG.lock              who downloads it holds this
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sq_llava_data::atomic::write_atomic;

use super::name::is_component;
use super::{HubError, ModelName};

/// Tells backup programs that the folder can be made again.
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55
# This file is a cache directory tag created by huggingface_hub.
# For information about cache directory tags, see:
#\thttps://bford.info/cachedir/
";

/// One repository's folder.
#[derive(Debug)]
pub(super) struct Repository {
    cache: PathBuf,
    name: String,
}

pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    let path = path.to_path_buf();
    |source| HubError::Io { path, source }
}

fn make_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(folder) => fs::create_dir_all(folder).map_err(io(folder)),
        None => Ok(()),
    }
}

/// Whether a revision is a commit itself.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

impl Repository {
    /// The folder of a model; nothing is made.
    pub fn new(cache: &Path, name: &ModelName) -> Self {
        Self {
            cache: cache.to_path_buf(),
            name: format!("models--{}", name.repository.replace('/', "--")),
        }
    }

    fn folder(&self) -> PathBuf {
        self.cache.join(&self.name)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.folder().join("refs").join(revision)
    }

    /// The commit that a revision was when it was last looked up.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.reference(revision)).ok()?;
        let commit = commit.trim();
        is_component(commit).then(|| commit.to_owned())
    }

    /// Folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// The files of a commit whose content is here, also those one folder down.
    pub fn files(&self, commit: &str) -> BTreeSet<String> {
        fn list(folder: &Path, before: &str, deeper: bool, found: &mut BTreeSet<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(name) = entry.file_name().into_string() else {
                    continue;
                };
                // A link to a blob that is gone is no file.
                match entry.path() {
                    path if path.is_file() => drop(found.insert(format!("{before}{name}"))),
                    path if deeper && path.is_dir() => {
                        list(&path, &format!("{before}{name}/"), false, found);
                    }
                    _ => {}
                }
            }
        }
        let mut found = BTreeSet::new();
        list(&self.snapshot(commit), "", true, &mut found);
        found
    }

    /// Where the content with an ETag belongs.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// Waits until no other process downloads this content, and keeps others waiting while the
    /// file lives.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn lock(&self, etag: &str) -> Result<File, HubError> {
        let tag = self.cache.join("CACHEDIR.TAG");
        let path = self
            .cache
            .join(".locks")
            .join(&self.name)
            .join(format!("{etag}.lock"));
        make_parent(&path)?;
        if !tag.exists() {
            fs::write(&tag, TAG).map_err(io(&tag))?;
        }
        let file = File::create(&path).map_err(io(&path))?;
        if file.try_lock().is_err() {
            tracing::info!(
                "another process downloads {}; waiting for it",
                path.display()
            );
            file.lock().map_err(io(&path))?;
        }
        Ok(file)
    }

    /// Gives content its name in a commit.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        make_parent(&path)?;
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).map_err(io(&path))?; // its content is gone
        }
        let up = "../".repeat(2 + file.matches('/').count());
        point(
            Path::new(&format!("{up}blobs/{etag}")),
            &self.blob(etag),
            &path,
        )
        .map_err(io(&path))
    }

    /// Notes which commit a revision is.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn note(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference(revision);
        make_parent(&path)?;
        write_atomic(&path, commit).map_err(io(&path))
    }
}

/// A relative link, so that the cache can be moved.
#[cfg(unix)]
fn point(relative: &Path, _blob: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Links need a right that most users lack; Python moves the content too.
#[cfg(not(unix))]
fn point(_relative: &Path, blob: &Path, path: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(drop))
}
