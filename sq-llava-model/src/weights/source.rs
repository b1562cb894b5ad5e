//! Finding the weight files of a checkpoint directory and listing the tensors in them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::pytorch::read_pytorch;
use super::tensor::{MappedFile, StoredTensor, StoredType};
use crate::config::read_json;
use crate::error::ModelError;

/// Files that stand beside a model's own weights and are not part of them.
const BESIDE: [&str; 5] = [
    "adapter_model",
    "non_lora_trainables",
    "mm_projector",
    "new_tokens",
    "optimizer",
];

/// How many times the tensors of a file may use its bytes.
const MOST_SHARING: u64 = 4;

/// The files of the model's own weights in a directory, in the order in which Hugging Face looks
/// for them; empty if there are none.
///
/// # Errors
/// If the directory cannot be read, an index names a shard that is missing, shards are
/// incomplete, or several files could be meant.
pub(super) fn model_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    // `_get_resolved_checkpoint_files` of transformers' modeling_utils.py: one file before shards.
    for (single, index) in [
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ] {
        let (single, index) = (dir.join(single), dir.join(index));
        // What is no regular file is refused by who opens it.
        if single.exists() {
            return Ok(vec![single]);
        }
        if index.exists() {
            return indexed_files(dir, &index);
        }
    }
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map_err(|e| ModelError::io(dir, e))?
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_file()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !BESIDE.iter().any(|stem| name.starts_with(stem)))
        .collect();
    names.sort();
    for extension in [".safetensors", ".bin"] {
        let found: Vec<&String> = names
            .iter()
            .filter(|name| name.ends_with(extension))
            // Python's Trainer leaves it beside a model.
            .filter(|name| *name != "training_args.bin")
            .collect();
        let shards: Vec<(usize, usize)> = found.iter().filter_map(|n| shard_number(n)).collect();
        if let Some(&(_, of)) = shards.first() {
            let numbers: BTreeSet<usize> = shards.iter().map(|&(n, _)| n).collect();
            if let Some(missing) = (1..=of).find(|n| !numbers.contains(n)) {
                return Err(ModelError::weights(
                    dir,
                    format!(
                        "shard {missing} of {of} (*-{missing:05}-of-{of:05}{extension}) is missing"
                    ),
                ));
            }
            let files = found.iter().filter(|n| shard_number(n).is_some());
            return Ok(files.map(|n| dir.join(n)).collect());
        }
        match found.as_slice() {
            [] => {}
            [one] => return Ok(vec![dir.join(one)]),
            [one, two, ..] => {
                return Err(ModelError::weights(
                    dir,
                    format!(
                        "several weight files without an index ({one}, {two} …); name the model's model{extension}"
                    ),
                ));
            }
        }
    }
    Ok(Vec::new())
}

/// Says when an index stands beside the one file that is read instead.
pub(super) fn mention_index(files: &[PathBuf]) {
    if let [single] = files {
        let mut index = single.as_os_str().to_owned();
        index.push(".index.json");
        let index = PathBuf::from(index);
        if index.is_file() {
            tracing::warn!(
                "{} is read, as in transformers; {} beside it is not",
                single.display(),
                index.display()
            );
        }
    }
}

/// `file.safetensors`, else `file.bin`, if there is one.
pub(super) fn either(dir: &Path, stem: &str) -> Option<PathBuf> {
    [".safetensors", ".bin"]
        .iter()
        .map(|extension| dir.join(format!("{stem}{extension}")))
        .find(|path| path.is_file())
}

/// `(2, 5)` for `model-00002-of-00005.safetensors`.
fn shard_number(name: &str) -> Option<(usize, usize)> {
    let stem = name.rsplit_once('.')?.0;
    let (rest, of) = stem.rsplit_once("-of-")?;
    let (_, number) = rest.rsplit_once('-')?;
    Some((number.parse().ok()?, of.parse().ok()?))
}

fn indexed_files(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let value = read_json(index)?;
    let map = value
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| ModelError::config(index, "no \"weight_map\" object"))?;
    let mut names = BTreeSet::new();
    for (key, name) in map {
        let name = name.as_str().ok_or_else(|| {
            ModelError::config(index, format!("\"weight_map\" gives no file for {key}"))
        })?;
        // A shard lies beside its index; anything else is not a file name.
        if name.contains(['/', '\\']) {
            return Err(ModelError::config(
                index,
                format!("shard \"{name}\" is not a plain file name"),
            ));
        }
        names.insert(name);
    }
    if names.is_empty() {
        return Err(ModelError::config(index, "\"weight_map\" is empty"));
    }
    let files: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    match files.iter().find(|file| !file.is_file()) {
        Some(missing) => Err(ModelError::weights(
            missing,
            format!("this shard is named in {} but missing", index.display()),
        )),
        None => Ok(files),
    }
}

/// The tensors of weight files. What stands twice must be the same.
///
/// # Errors
/// If a file is damaged, or a key stands twice with different values.
pub(super) fn read_files(files: &[PathBuf]) -> Result<Vec<StoredTensor>, ModelError> {
    let mut tensors: BTreeMap<String, StoredTensor> = BTreeMap::new();
    for path in files {
        for tensor in read_file(path)? {
            match tensors.get(&tensor.name) {
                Some(first) => tensor.must_equal(first)?,
                None => drop(tensors.insert(tensor.name.clone(), tensor)),
            }
        }
    }
    Ok(tensors.into_values().collect())
}

/// The tensors of one file, by its kind. Nothing but headers is read.
///
/// # Errors
/// If the file is damaged or of another kind.
pub(super) fn read_file(path: &Path) -> Result<Vec<StoredTensor>, ModelError> {
    let tensors = match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => read_safetensors(path)?,
        Some("bin" | "pt" | "pth") => read_pytorch(path)?,
        _ => {
            return Err(ModelError::weights(
                path,
                "unknown kind of weight file; known are .safetensors and PyTorch's .bin, .pt, .pth",
            ));
        }
    };
    check_sharing(path, &tensors)?;
    Ok(tensors)
}

/// Tied weights share their numbers in a file; a file that says more than that asks for memory
/// that it does not fill.
///
/// # Errors
/// If its tensors hold many times the numbers that are stored.
pub(super) fn check_sharing(path: &Path, tensors: &[StoredTensor]) -> Result<(), ModelError> {
    let Some(file) = tensors.first().map(|tensor| &tensor.file) else {
        return Ok(());
    };
    let stored = file.bytes().len() as u64;
    let listed = tensors.iter().fold(0u64, |sum, tensor| {
        sum.saturating_add(tensor.stored_bytes())
    });
    if listed > stored.saturating_mul(MOST_SHARING) {
        return Err(ModelError::weights(
            path,
            format!(
                "its tensors take {listed} bytes, but the file has {stored}: they share what is stored; it is damaged, or made to exhaust the memory"
            ),
        ));
    }
    Ok(())
}

/// The `__metadata__` strings of a safetensors file.
///
/// # Errors
/// If the file is damaged.
pub(super) fn safetensors_metadata(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let file = MappedFile::open(path)?;
    let (_, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(|e| damaged(path, &e))?;
    let strings = metadata.metadata().clone().unwrap_or_default();
    Ok(strings.into_iter().collect())
}

fn read_safetensors(path: &Path) -> Result<Vec<StoredTensor>, ModelError> {
    let file = MappedFile::open(path)?;
    let parsed = SafeTensors::deserialize(file.bytes()).map_err(|e| damaged(path, &e))?;
    let base = file.bytes().as_ptr() as usize;
    parsed
        .iter()
        .map(|(name, view)| {
            let dtype = match view.dtype() {
                Dtype::F64 => StoredType::F64,
                Dtype::F32 => StoredType::F32,
                Dtype::F16 => StoredType::F16,
                Dtype::BF16 => StoredType::BF16,
                other => StoredType::Other(other.bitsize().div_ceil(8)),
            };
            // The view borrows from the mapping: its distance from the start is its offset.
            let start = view.data().as_ptr() as usize - base;
            let end = start + view.data().len();
            let shape = view.shape().to_vec();
            StoredTensor::new(&file, name.to_string(), shape, dtype, start, end, None)
        })
        .collect()
}

fn damaged(path: &Path, error: &safetensors::SafeTensorError) -> ModelError {
    ModelError::weights(
        path,
        format!(
            "not a whole safetensors file ({error}); it is truncated or damaged, download it again"
        ),
    )
}
