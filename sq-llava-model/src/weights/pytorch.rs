//! PyTorch's `.bin` files as memory-mapped tensors: the zip archives of today and the pickle
//! streams from before 1.6.
//!
//! burn-store has a reader for them, but it fills what it cannot read with zeros and ignores
//! strides; weights that are silently wrong are the worst outcome, so this one refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Pickle, TensorRecord, Value};
use super::tensor::{MappedFile, StoredTensor};
use crate::error::ModelError;

/// The first pickle of a file from before PyTorch 1.6: protocol 2, a long, its magic number.
const LEGACY_MAGIC: [u8; 15] = [
    0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e,
];

/// The tensors of one file; nothing but the pickle is read.
///
/// # Errors
/// If the file is truncated, damaged, or not a dictionary of tensors.
pub(super) fn read_pytorch(path: &Path) -> Result<Vec<StoredTensor>, ModelError> {
    let file = MappedFile::open(path)?;
    let bytes = file.bytes();
    if bytes.starts_with(b"PK") {
        read_zip(&file)
    } else if bytes.starts_with(&LEGACY_MAGIC) {
        read_legacy(&file)
    } else {
        Err(ModelError::weights(
            path,
            "not a PyTorch file of weights; it is damaged or of another kind",
        ))
    }
}

fn read_zip(file: &Arc<MappedFile>) -> Result<Vec<StoredTensor>, ModelError> {
    let fail = |reason: String| ModelError::weights(&file.path, reason);
    let damaged = |e: &dyn std::fmt::Display| {
        fail(format!(
            "not a whole PyTorch archive ({e}); it is truncated or damaged, download it again"
        ))
    };
    let mut archive = ZipArchive::new(Cursor::new(file.bytes())).map_err(|e| damaged(&e))?;
    let mut pickle = None;
    let mut storages = BTreeMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|e| damaged(&e))?;
        let name = entry.name().to_string();
        let start = entry
            .data_start()
            .and_then(|start| usize::try_from(start).ok())
            .ok_or_else(|| damaged(&"an entry has no data"))?;
        let end = usize::try_from(entry.compressed_size())
            .ok()
            .and_then(|size| start.checked_add(size))
            .filter(|&end| end <= file.bytes().len())
            .ok_or_else(|| damaged(&format!("entry {name} reaches beyond the file")))?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(fail(format!(
                "entry {name} is compressed; save the file with torch.save"
            )));
        }
        // Entries are `archive/data.pkl`, `archive/data/0` … or the same without a folder.
        let mut twice = false;
        if name == "data.pkl" || name.ends_with("/data.pkl") {
            twice = pickle.replace(start..end).is_some();
        } else if name == "byteorder" || name.ends_with("/byteorder") {
            if file.bytes()[start..end].starts_with(b"big") {
                return Err(fail("big-endian files are not supported".into()));
            }
        } else if let Some((folder, key)) = name.rsplit_once('/')
            && (folder == "data" || folder.ends_with("/data"))
        {
            twice = storages.insert(key.to_string(), start..end).is_some();
        }
        if twice {
            return Err(damaged(&format!("entry {name} is there twice")));
        }
    }
    let pickle = pickle.ok_or_else(|| damaged(&"no data.pkl inside"))?;
    let mut stream = Pickle::new(&file.bytes()[pickle]);
    let root = stream
        .read()
        .map_err(|e| fail(format!("its pickle cannot be read: {e}")))?;
    collect(file, &root, &storages)
}

fn read_legacy(file: &Arc<MappedFile>) -> Result<Vec<StoredTensor>, ModelError> {
    let fail = |reason: String| ModelError::weights(&file.path, reason);
    let bytes = file.bytes();
    let mut stream = Pickle::new(bytes);
    let mut next = || {
        stream
            .read()
            .map(|value| (value, stream.position(), stream.storage_types().clone()))
            .map_err(|e| fail(format!("its pickle cannot be read: {e}")))
    };
    // Magic number, protocol and machine; the weights; the order of their storages.
    for _ in 0..3 {
        next()?;
    }
    let (root, _, types) = next()?;
    let (keys, mut at, _) = next()?;
    let Value::List(keys) = keys else {
        return Err(fail("no list of storages; the file is damaged".into()));
    };
    let mut storages = BTreeMap::new();
    for key in keys.borrow().iter() {
        let Value::Text(key) = key else {
            return Err(fail("a storage without a name; the file is damaged".into()));
        };
        let size = types.get(&**key).map_or(0, |dtype| dtype.size());
        let end = bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk::<8>())
            .and_then(|n| usize::try_from(u64::from_le_bytes(*n)).ok())
            .and_then(|n| n.checked_mul(size)?.checked_add(at + 8))
            .filter(|&end| end <= bytes.len())
            .ok_or_else(|| fail("the file is truncated; download it again".into()))?;
        storages.insert(key.to_string(), at + 8..end);
        at = end;
    }
    collect(file, &root, &storages)
}

/// The tensors in a dictionary; a dictionary inside (`state_dict`) prefixes nothing of its own.
fn collect(
    file: &Arc<MappedFile>,
    root: &Value,
    storages: &BTreeMap<String, std::ops::Range<usize>>,
) -> Result<Vec<StoredTensor>, ModelError> {
    let fail = |reason: String| ModelError::weights(&file.path, reason);
    let mut tensors = Vec::new();
    let mut open = vec![root.clone()];
    let mut seen = BTreeSet::new();
    // One level of nesting is what training scripts save.
    for depth in 0..2 {
        for value in std::mem::take(&mut open) {
            let Value::Dict(dict) = value else { continue };
            // The same dictionary may be listed many times.
            if !seen.insert(Rc::as_ptr(&dict)) {
                continue;
            }
            // A key that is set again holds the last value, as in Python.
            let dict = dict.borrow();
            let mut records = BTreeMap::new();
            for (key, value) in dict.iter() {
                match (key, value) {
                    (Value::Text(name), Value::Tensor(record)) => {
                        records.insert(&**name, record);
                    }
                    (_, Value::Dict(_)) if depth == 0 => open.push(value.clone()),
                    _ => {}
                }
            }
            for (name, record) in records {
                tensors.push(stored(file, name, record, storages)?);
            }
        }
    }
    if tensors.is_empty() {
        return Err(fail(
            "no tensors inside; a file of weights is a dictionary of tensors".into(),
        ));
    }
    Ok(tensors)
}

fn stored(
    file: &Arc<MappedFile>,
    name: &str,
    record: &TensorRecord,
    storages: &BTreeMap<String, std::ops::Range<usize>>,
) -> Result<StoredTensor, ModelError> {
    let range = storages.get(&*record.storage).ok_or_else(|| {
        ModelError::weights(
            &file.path,
            format!("the data of tensor \"{name}\" is missing; the file is damaged"),
        )
    })?;
    let start = record
        .offset
        .checked_mul(record.dtype.size())
        .and_then(|offset| offset.checked_add(range.start))
        .unwrap_or(usize::MAX);
    StoredTensor::new(
        file,
        name.to_string(),
        record.shape.clone(),
        record.dtype,
        start,
        range.end,
        Some(record.strides.clone()),
    )
}
