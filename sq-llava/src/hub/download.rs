//! One file's content, from the hub into the cache: resumed where it was cut, checked, and under
//! its name only when it is whole.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::{Repository, io};
use super::client::{Client, Coming, Content};
use super::{HubError, ModelName};

/// Bytes read at a time.
const BLOCK: usize = 1 << 18;

/// A file that is wanted.
#[derive(Debug)]
pub(super) struct Wanted {
    pub file: String,
    pub content: Content,
}

/// Part of a content, on the disk.
struct Partial {
    path: PathBuf,
    file: File,
    bytes: u64,
    digest: Sha256,
}

impl Partial {
    /// What an earlier download left, if it did.
    fn open(path: PathBuf, whole: u64) -> Result<Self, HubError> {
        let options = File::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path);
        let mut partial = Self {
            file: options.map_err(io(&path))?,
            path,
            bytes: 0,
            digest: Sha256::new(),
        };
        let mut block = vec![0; BLOCK];
        loop {
            match partial.file.read(&mut block).map_err(io(&partial.path))? {
                0 => break,
                read => partial.took(&block[..read]),
            }
        }
        if partial.bytes > whole {
            partial.clear()?;
        }
        Ok(partial)
    }

    fn took(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn clear(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(io(&self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(io(&self.path))?;
        self.bytes = 0;
        self.digest = Sha256::new();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(io(&self.path))?;
        self.took(bytes);
        Ok(())
    }
}

/// Brings a file's content into the cache and gives it its name; `told` gets the bytes that are
/// here.
///
/// # Errors
/// If it does not come whole, or the cache cannot be written.
pub(super) fn download(
    client: &Client,
    repository: &Repository,
    name: &ModelName,
    commit: &str,
    wanted: &Wanted,
    told: &dyn Fn(u64),
) -> Result<(), HubError> {
    let Wanted { file, content } = wanted;
    let _lock = repository.lock(&content.etag)?;
    let blob = repository.blob(&content.etag);
    if !blob.is_file() {
        let folder = blob.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(io(folder))?;
        let path = folder.join(format!("{}.incomplete", content.etag));
        let mut partial = Partial::open(path, content.bytes)?;
        fill(&mut partial, client, name, commit, wanted, told)?;
        finish(partial, name, wanted, &blob)?;
    }
    told(content.bytes);
    repository.link(commit, file, &content.etag)
}

/// Downloads until all is there; a connection that brings something is worth another.
fn fill(
    partial: &mut Partial,
    client: &Client,
    name: &ModelName,
    commit: &str,
    wanted: &Wanted,
    told: &dyn Fn(u64),
) -> Result<(), HubError> {
    let whole = wanted.content.bytes;
    let mut failures = 0;
    while partial.bytes < whole {
        let before = partial.bytes;
        let reason = match client.fetch(name, commit, &wanted.file, before) {
            Ok(coming) => match receive(partial, coming, whole, told)? {
                None => "the connection ended early".to_owned(),
                Some(reason) => reason,
            },
            Err(refusal) if refusal.passing => refusal.to_string(),
            Err(refusal) => return Err(unusable(name, &wanted.file, &refusal.to_string())),
        };
        if partial.bytes >= whole {
            break;
        }
        failures = if partial.bytes > before {
            1
        } else {
            failures + 1
        };
        if !client.goes_on(failures) {
            let kept = "what came is kept: run again to go on";
            return Err(unusable(name, &wanted.file, &format!("{reason}; {kept}")));
        }
        tracing::debug!("{name}: {}: {reason}; trying again", wanted.file);
        std::thread::sleep(client.pause(failures));
    }
    Ok(())
}

/// Takes what a connection brings, and why it ended if that was before its end.
fn receive(
    partial: &mut Partial,
    coming: Coming,
    whole: u64,
    told: &dyn Fn(u64),
) -> Result<Option<String>, HubError> {
    if coming.from != partial.bytes {
        partial.clear()?; // the server does not go on from there
    }
    let mut body = coming.body;
    let mut block = vec![0; BLOCK];
    // One byte too many shows that it is another file.
    while partial.bytes <= whole {
        match body.read(&mut block) {
            Ok(0) => return Ok(None),
            Ok(read) => partial.write(&block[..read])?,
            Err(error) => return Ok(Some(error.to_string())),
        }
        told(partial.bytes.min(whole));
    }
    Ok(None)
}

/// Puts the content in its place if it is what the hub said.
fn finish(
    partial: Partial,
    name: &ModelName,
    wanted: &Wanted,
    blob: &Path,
) -> Result<(), HubError> {
    let Content { etag, bytes } = &wanted.content;
    let digest: String = partial
        .digest
        .finalize()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    // Large files are named by their SHA-256, small ones by git's hash.
    let named = etag.len() == digest.len() && etag.bytes().all(|b| b.is_ascii_hexdigit());
    if partial.bytes != *bytes || (named && !etag.eq_ignore_ascii_case(&digest)) {
        fs::remove_file(&partial.path).map_err(io(&partial.path))?;
        let reason =
            "what came is not what the hub has (size or SHA-256); it is deleted: run again";
        return Err(unusable(name, &wanted.file, reason));
    }
    partial.file.sync_all().map_err(io(&partial.path))?;
    fs::rename(&partial.path, blob).map_err(io(blob))
}

pub(super) fn unusable(name: &ModelName, file: &str, reason: &str) -> HubError {
    HubError::Unusable {
        name: name.clone(),
        reason: format!("{file}: {reason}"),
    }
}
