//! Listing the tensors of weight files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::pytorch::read_pytorch;
use super::tensor::{MappedFile, StoredTensor, StoredType};
use crate::error::ModelError;

/// How many times the tensors of a file may use its bytes.
const MOST_SHARING: u64 = 4;

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
