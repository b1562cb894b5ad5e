//! A file of which parts are read.

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
    /// Open, so that what is renamed over it is not read; without it the file is opened anew for
    /// every read.
    file: Option<Arc<File>>,
}

impl Blob {
    /// One of many files: there may be more shards than a process can have files open.
    pub fn open(path: &Path) -> std::result::Result<Self, DataError> {
        Ok(Self {
            file: None,
            ..Self::keep(path)?
        })
    }

    /// A file that stays open.
    pub fn keep(path: &Path) -> std::result::Result<Self, DataError> {
        let file = files::open(path)?;
        let meta = file.metadata().map_err(|source| DataError::Io {
            path: path.to_path_buf(),
            source,
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            len: meta.len(),
            file: Some(Arc::new(file)),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that it had when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Some of its bytes.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        // A length that a damaged file tells must not be allocated.
        let end = offset.saturating_add(len as u64);
        if end > self.len {
            let reason = format!("it is cut short: bytes {offset} to {end} of {}", self.len);
            return Err(Error::new(ErrorKind::UnexpectedEof, reason));
        }
        let mut bytes = vec![0; len];
        match &self.file {
            #[cfg(unix)]
            Some(file) => {
                use std::os::unix::fs::FileExt;
                file.read_exact_at(&mut bytes, offset)?;
            }
            _ => {
                let mut file = File::open(&self.path)?;
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(&mut bytes)?;
            }
        }
        Ok(bytes.into())
    }

    /// Reads on from a place.
    pub fn reader(&self, offset: u64) -> Result<BufReader<File>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(BufReader::new(file))
    }
}
