//! Files of an object store by their URLs, read in blocks that are kept for a while.

use std::collections::{HashMap, VecDeque};
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, ObjectStoreScheme, parse_url_opts};
use tokio::runtime::Runtime;
use url::Url;

/// Bytes of a request: what is small is asked for together with what is around it.
const BLOCK: u64 = 4 << 20;

/// Blocks that are kept, of all files together: 256 MiB.
const BLOCKS: usize = 64;

/// A file in a store.
#[derive(Debug)]
pub(super) struct RemoteFile {
    store: Arc<dyn ObjectStore>,
    path: ObjectPath,
    /// Among those of the kept blocks.
    number: u64,
    len: u64,
    version: String,
}

impl RemoteFile {
    pub fn open(url: &Path) -> Result<Self> {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let (store, path) = find(url)?;
        let meta = runtime()?.block_on(store.head(&path)).map_err(io)?;
        Ok(Self {
            number: OPENED.fetch_add(1, Ordering::Relaxed),
            len: meta.size,
            version: meta
                .e_tag
                .unwrap_or_else(|| meta.last_modified.to_rfc3339()),
            store,
            path,
        })
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// Its tag, or when it was written.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Bytes that are there; the caller knows its length.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let end = offset + len as u64;
        let (first, last) = (offset / BLOCK, end.saturating_sub(1) / BLOCK);
        // What is large is not to push everything else out.
        if last > first + 1 {
            return self.request(offset, end);
        }
        let block = self.block(first)?;
        let from = (offset - first * BLOCK) as usize;
        if last <= first {
            return Ok(block.slice(from..from + len));
        }
        let mut bytes = block[from..].to_vec();
        let next = self.block(last)?;
        bytes.extend_from_slice(&next[..len - bytes.len()]);
        Ok(bytes.into())
    }

    fn request(&self, from: u64, to: u64) -> Result<Bytes> {
        let bytes = runtime()?.block_on(self.store.get_range(&self.path, from..to));
        let bytes = bytes.map_err(io)?;
        match bytes.len() as u64 == to - from {
            true => Ok(bytes),
            false => {
                let reason = format!("the store gave {} bytes of {}", bytes.len(), to - from);
                Err(Error::new(ErrorKind::UnexpectedEof, reason))
            }
        }
    }

    fn block(&self, block: u64) -> Result<Bytes> {
        type Kept = VecDeque<((u64, u64), Bytes)>;
        static KEPT: Mutex<Kept> = Mutex::new(VecDeque::new());
        let key = (self.number, block);
        // Another thread's panic leaves at worst a block too few.
        let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let find = |kept: &mut Kept| {
            let at = kept.iter().position(|(known, _)| *known == key)?;
            let found = kept.remove(at)?;
            kept.push_back(found.clone());
            Some(found.1)
        };
        if let Some(found) = find(&mut kept()) {
            return Ok(found);
        }
        let bytes = self.request(block * BLOCK, self.len.min((block + 1) * BLOCK))?;
        let mut kept = kept();
        kept.push_back((key, bytes.clone()));
        if kept.len() > BLOCKS {
            kept.pop_front();
        }
        Ok(bytes)
    }
}

/// Reads a file of a store from a place on.
pub(crate) struct RemoteReader {
    file: Arc<RemoteFile>,
    at: u64,
}

impl RemoteReader {
    pub fn new(file: &Arc<RemoteFile>, at: u64) -> Self {
        Self {
            file: file.clone(),
            at,
        }
    }
}

impl Read for RemoteReader {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let left = self.file.len.saturating_sub(self.at);
        let len = left.min(bytes.len() as u64).min(BLOCK) as usize;
        if len > 0 {
            let found = self.file.read_at(self.at, len)?;
            bytes[..len].copy_from_slice(&found);
            self.at += len as u64;
        }
        Ok(len)
    }
}

impl Seek for RemoteReader {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.file.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// The files of a folder.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let (store, path) = find(folder)?;
    let found = runtime()?.block_on(store.list_with_delimiter(Some(&path)));
    let names = found.map_err(io)?.objects.into_iter().filter_map(|object| {
        let name = object.location.filename()?;
        Some(folder.join(name))
    });
    Ok(names.collect())
}

/// The store of a URL, one for all files of a bucket or host, and the path in it. Keys are those
/// that the variables of the environment give (`AWS_ACCESS_KEY_ID`, `GOOGLE_…`, `AZURE_…`).
fn find(url: &Path) -> Result<(Arc<dyn ObjectStore>, ObjectPath)> {
    type Stores = HashMap<String, Arc<dyn ObjectStore>>;
    static STORES: OnceLock<Mutex<Stores>> = OnceLock::new();
    let wrong = |reason: String| Error::new(ErrorKind::InvalidInput, reason);
    let text = url
        .to_str()
        .ok_or_else(|| wrong("the URL is not UTF-8".into()))?;
    let parsed = Url::parse(text).map_err(|e| wrong(e.to_string()))?;
    let (_, path) = ObjectStoreScheme::parse(&parsed).map_err(|e| wrong(e.to_string()))?;
    let path = ObjectPath::parse(path).map_err(|e| wrong(e.to_string()))?;
    let key = parsed[..url::Position::BeforePath].to_owned();
    // It chooses the cryptography that a client needs as it is made.
    runtime()?;
    let stores = STORES.get_or_init(Mutex::default);
    let mut stores = stores.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(store) = stores.get(&key) {
        return Ok((store.clone(), path));
    }
    // The names of options are those of the variables in small letters; others are passed over.
    let mut options: Vec<(String, String)> = std::env::vars()
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    if parsed.scheme() == "http" {
        options.push(("allow_http".into(), "true".into()));
    }
    let (store, _) = parse_url_opts(&parsed, options).map_err(io)?;
    let store: Arc<dyn ObjectStore> = store.into();
    stores.insert(key, store.clone());
    Ok((store, path))
}

/// What the requests run on.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    // Taken already where another crate has chosen one, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("object store")
        .enable_all()
        .build()?;
    Ok(RUNTIME.get_or_init(|| runtime))
}

fn io(error: object_store::Error) -> Error {
    let kind = match &error {
        object_store::Error::NotFound { .. } => ErrorKind::NotFound,
        _ => ErrorKind::Other,
    };
    Error::new(kind, error)
}
