//! Writing safetensors files: tensor by tensor, to a temporary name, then renamed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, FloatDType, Tensor, TensorData, backend::Backend};
use safetensors::{Dtype, SafeTensorError, View};
use serde_json::Value;

use super::layout::canonical;
use crate::error::ModelError;

/// A tensor to be written; its values are fetched when its turn comes.
pub(super) struct Entry {
    /// Canonical name when collected, the file's key when written.
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub values: Box<dyn Fn() -> TensorData>,
}

impl Entry {
    /// A tensor in a dtype of its own choice.
    pub fn new<B: Backend, const D: usize>(name: String, tensor: Tensor<B, D>) -> Self {
        Self {
            name,
            shape: tensor.dims().to_vec(),
            dtype: tensor.dtype(),
            values: Box::new(move || tensor.to_data()),
        }
    }

    /// Size in the file.
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.size()) as u64
    }
}

impl View for &Entry {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I8 => Dtype::I8,
            DType::U8 => Dtype::U8,
            // Entries hold no other type; `data` converts.
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let data = (self.values)().convert_dtype(self.dtype);
        Cow::Owned(data.as_bytes().to_vec())
    }

    fn data_len(&self) -> usize {
        self.bytes() as usize
    }
}

/// Every parameter of a model, or of a part of one, under its canonical name.
pub(super) fn entries<B: Backend, M: Module<B>>(model: &M) -> Vec<Entry> {
    struct Collector {
        path: Vec<String>,
        entries: Vec<Entry>,
    }
    impl<B: Backend> ModuleVisitor<B> for Collector {
        fn enter_module(&mut self, name: &str, container: &str) {
            if !container.starts_with("Enum:") {
                self.path.push(name.to_string());
            }
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            if !container.starts_with("Enum:") {
                self.path.pop();
            }
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let entry = Entry::new(canonical(&self.path), param.val().detach());
            self.entries.push(entry);
        }
    }
    let mut collector = Collector {
        path: Vec::new(),
        entries: Vec::new(),
    };
    model.visit(&mut collector);
    collector.entries
}

/// The dtype of files.
///
/// # Errors
/// If it is none that checkpoints have.
pub(super) fn file_dtype(dtype: FloatDType) -> Result<DType, ModelError> {
    match dtype {
        FloatDType::F32 => Ok(DType::F32),
        FloatDType::F16 => Ok(DType::F16),
        FloatDType::BF16 => Ok(DType::BF16),
        other => Err(ModelError::Argument(format!(
            "weights are kept in f32, f16 or bf16, not {other:?}"
        ))),
    }
}

/// A file under a temporary name; [`Pending::commit`] gives it its own.
#[must_use]
pub(super) struct Pending {
    temporary: PathBuf,
    path: PathBuf,
}

impl Pending {
    fn at(path: PathBuf) -> Self {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".tmp");
        Self {
            temporary: path.with_file_name(name),
            path,
        }
    }

    /// Puts the finished file into its place.
    pub fn commit(self) -> Result<PathBuf, ModelError> {
        std::fs::rename(&self.temporary, &self.path).map_err(|e| ModelError::io(&self.path, e))?;
        Ok(self.path)
    }
}

/// Writes a safetensors file under a temporary name.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write_safetensors(
    path: PathBuf,
    entries: &[Entry],
    metadata: &[(&str, String)],
) -> Result<Pending, ModelError> {
    let pending = Pending::at(path);
    let mut strings = HashMap::from([("format".to_string(), "pt".to_string())]);
    strings.extend(metadata.iter().map(|(k, v)| ((*k).to_string(), v.clone())));
    let named = entries.iter().map(|entry| (entry.name.as_str(), entry));
    safetensors::serialize_to_file(named, Some(strings), &pending.temporary).map_err(
        |e| match e {
            SafeTensorError::IoError(e) => ModelError::io(&pending.temporary, e),
            other => ModelError::weights(&pending.temporary, other.to_string()),
        },
    )?;
    File::open(&pending.temporary)
        .and_then(|file| file.sync_all())
        .map_err(|e| ModelError::io(&pending.temporary, e))?;
    Ok(pending)
}

/// Writes a JSON file, indented as Hugging Face does, under a temporary name.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write_json(path: PathBuf, value: &Value) -> Result<Pending, ModelError> {
    let pending = Pending::at(path);
    let text = format!("{value:#}\n");
    std::fs::write(&pending.temporary, text).map_err(|e| ModelError::io(&pending.temporary, e))?;
    Ok(pending)
}

/// A directory that exists afterwards.
///
/// # Errors
/// If it cannot be made.
pub(super) fn make_dir(dir: &Path) -> Result<(), ModelError> {
    std::fs::create_dir_all(dir).map_err(|e| ModelError::io(dir, e))
}
