//! A file of which parts are read: on a disk, or in an object store.

#[cfg(feature = "object-store")]
mod store;

use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::{DataError, files};

/// A file by its path and length.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    path: PathBuf,
    len: u64,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// Open, so that what is renamed over it is not read.
    Kept(Arc<File>),
    /// Opened anew for every read: there may be more shards than a process can have files open.
    Named,
    #[cfg(feature = "object-store")]
    Remote(Arc<store::RemoteFile>),
}

/// Whether a path is a URL, `s3://…`.
pub(crate) fn is_url(path: &Path) -> bool {
    let scheme = path.to_str().and_then(|text| text.split_once("://"));
    scheme.is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}

impl Blob {
    /// One of many files.
    pub fn open(path: &Path) -> std::result::Result<Self, DataError> {
        if is_url(path) {
            return Self::remote(path);
        }
        Ok(Self {
            place: Place::Named,
            ..Self::keep(path)?
        })
    }

    /// A file that stays open.
    pub fn keep(path: &Path) -> std::result::Result<Self, DataError> {
        if is_url(path) {
            return Self::remote(path);
        }
        let file = files::open(path)?;
        let meta = file.metadata().map_err(|source| io(path, source))?;
        Ok(Self {
            path: path.to_path_buf(),
            len: meta.len(),
            place: Place::Kept(Arc::new(file)),
        })
    }

    #[cfg(feature = "object-store")]
    fn remote(path: &Path) -> std::result::Result<Self, DataError> {
        let file = store::RemoteFile::open(path).map_err(|source| io(path, source))?;
        Ok(Self {
            path: path.to_path_buf(),
            len: file.len(),
            place: Place::Remote(Arc::new(file)),
        })
    }

    #[cfg(not(feature = "object-store"))]
    fn remote(path: &Path) -> std::result::Result<Self, DataError> {
        Err(io(path, without_stores()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that it had when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// What tells versions of it apart, where it is in a store.
    pub fn version(&self) -> Option<&str> {
        match &self.place {
            Place::Kept(_) | Place::Named => None,
            #[cfg(feature = "object-store")]
            Place::Remote(file) => Some(file.version()),
        }
    }

    /// Some of its bytes.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        // A length that a damaged file tells must not be allocated.
        if offset.saturating_add(len as u64) > self.len {
            let end = offset.saturating_add(len as u64);
            let reason = format!("it is cut short: bytes {offset} to {end} of {}", self.len);
            return Err(Error::new(ErrorKind::UnexpectedEof, reason));
        }
        match &self.place {
            #[cfg(feature = "object-store")]
            Place::Remote(file) => file.read_at(offset, len),
            #[cfg(unix)]
            Place::Kept(file) => {
                use std::os::unix::fs::FileExt;
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(bytes.into())
            }
            _ => {
                let mut bytes = vec![0; len];
                let mut file = File::open(&self.path)?;
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(&mut bytes)?;
                Ok(bytes.into())
            }
        }
    }

    /// Reads on from a place.
    pub fn reader(&self, offset: u64) -> Result<BlobReader> {
        match &self.place {
            #[cfg(feature = "object-store")]
            Place::Remote(file) => Ok(BlobReader::Remote(store::RemoteReader::new(file, offset))),
            _ => {
                let mut file = File::open(&self.path)?;
                file.seek(SeekFrom::Start(offset))?;
                Ok(BlobReader::File(BufReader::new(file)))
            }
        }
    }
}

/// Reads a file from a place on.
pub(crate) enum BlobReader {
    File(BufReader<File>),
    #[cfg(feature = "object-store")]
    Remote(store::RemoteReader),
}

impl Read for BlobReader {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        match self {
            Self::File(file) => file.read(bytes),
            #[cfg(feature = "object-store")]
            Self::Remote(file) => file.read(bytes),
        }
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        match self {
            Self::File(file) => file.seek(to),
            #[cfg(feature = "object-store")]
            Self::Remote(file) => file.seek(to),
        }
    }
}

/// The files of a folder with their paths, sorted.
pub(crate) fn entries(folder: &Path) -> std::result::Result<Vec<PathBuf>, DataError> {
    let list = || -> Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = match is_url(folder) {
            #[cfg(feature = "object-store")]
            true => store::list(folder)?,
            #[cfg(not(feature = "object-store"))]
            true => return Err(without_stores()),
            false => std::fs::read_dir(folder)?
                .map(|entry| entry.map(|e| e.path()))
                .collect::<Result<_>>()?,
        };
        paths.sort();
        Ok(paths)
    };
    list().map_err(|source| io(folder, source))
}

fn io(path: &Path, source: Error) -> DataError {
    DataError::Io {
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(not(feature = "object-store"))]
fn without_stores() -> Error {
    let reason = "this program is built without object stores (feature object-store)";
    Error::new(ErrorKind::Unsupported, reason)
}
