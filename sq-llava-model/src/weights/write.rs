//! Writing safetensors files: tensor by tensor, whole or not at all.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufWriter, IntoInnerError, Write};
use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::{DType, FloatDType, Tensor, TensorData, backend::Backend};
use safetensors::{Dtype, View};
use serde_json::{Map, Value, json};
use sq_llava_data::atomic::AtomicFile;

use super::checkpoint_dir::CheckpointDir;
use super::layout::{Layout, Section, canonical, write_key};
use crate::config::VisionConfig;
use crate::error::ModelError;
use crate::ops::params::{ParamPath, ParamVisitor, visit_params};
use crate::part::Part;

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

    /// Puts the layout's key in place of the canonical name, and the shape that the tower's family
    /// has in its files.
    pub fn take_key(&mut self, layout: Layout, vision: Option<&VisionConfig>) {
        let path = self.name.strip_prefix(Section::Vision.canonical());
        if let (Some(path), Some(vision)) = (path, vision) {
            self.shape = vision.file_shape(path, &self.shape);
        }
        self.name = write_key(&self.name, layout, vision);
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

/// Every parameter of a model, or of a tower, under its canonical name.
pub(super) fn entries<B: Backend, M: Module<B>>(model: &M) -> Vec<(Part, Entry)> {
    struct Collector(Vec<(Part, Entry)>);
    impl<B: Backend> ParamVisitor<B> for Collector {
        fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<B, D>>) {
            let name = canonical(&path.fields());
            let entry = Entry::new(name, param.val().detach());
            self.0.push((Part::of(path), entry));
        }
    }
    let mut collector = Collector(Vec::new());
    visit_params(model, &mut collector);
    collector.0
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

/// A written file that has no name yet; [`Pending::commit`] gives it its own.
#[must_use]
pub(super) struct Pending {
    file: AtomicFile,
    path: PathBuf,
}

impl Pending {
    /// Puts the finished file into its place.
    pub fn commit(self) -> Result<PathBuf, ModelError> {
        match self.file.commit() {
            Ok(()) => Ok(self.path),
            Err(e) => Err(ModelError::io(self.path, e)),
        }
    }
}

/// Writes a safetensors file without its name.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write_safetensors(
    path: PathBuf,
    entries: &[Entry],
    metadata: &[(&str, String)],
) -> Result<Pending, ModelError> {
    let mut strings = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    strings.extend(metadata.iter().map(|(k, v)| ((*k).to_string(), v.clone())));
    let named = entries.iter().map(|entry| (entry.name.as_str(), entry));
    write_tensors(path, named, &strings)
}

/// Saves tensors as a safetensors file, whole or not at all. Equal tensors and metadata give equal
/// bytes; values are fetched one tensor at a time.
///
/// # Errors
/// If the file cannot be written.
pub fn save_tensors<'a, V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, V)>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), ModelError> {
    write_tensors(path.to_path_buf(), tensors, metadata)?.commit()?;
    Ok(())
}

/// The crate's own writer keeps metadata in a hash map, so that its bytes change from run to run.
fn write_tensors<'a, V: View>(
    path: PathBuf,
    tensors: impl IntoIterator<Item = (&'a str, V)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Pending, ModelError> {
    let mut tensors: Vec<(&str, V)> = tensors.into_iter().collect();
    // Its order too: wide types first, so that all are aligned, then by name.
    tensors.sort_by(|(a, x), (b, y)| y.dtype().cmp(&x.dtype()).then(a.cmp(b)));
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut end = 0;
    for (name, tensor) in &tensors {
        let start = end;
        end += tensor.data_len();
        header.insert(
            (*name).to_string(),
            json!({
                "dtype": tensor.dtype(),
                "shape": tensor.shape(),
                "data_offsets": [start, end],
            }),
        );
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let write = || -> std::io::Result<AtomicFile> {
        let mut out = BufWriter::new(AtomicFile::create(&path)?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, tensor) in &tensors {
            out.write_all(&tensor.data())?;
        }
        out.into_inner().map_err(IntoInnerError::into_error)
    };
    match write() {
        Ok(file) => Ok(Pending { file, path }),
        Err(e) => Err(ModelError::io(path, e)),
    }
}

/// Writes a JSON file, indented as Hugging Face does, without its name.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write_json(path: PathBuf, value: &Value) -> Result<Pending, ModelError> {
    let write = || -> std::io::Result<AtomicFile> {
        let mut file = AtomicFile::create(&path)?;
        file.write_all(format!("{value:#}\n").as_bytes())?;
        Ok(file)
    };
    match write() {
        Ok(file) => Ok(Pending { file, path }),
        Err(e) => Err(ModelError::io(path, e)),
    }
}

/// A directory that exists afterwards.
///
/// # Errors
/// If it cannot be made.
pub(super) fn make_dir(dir: &Path) -> Result<(), ModelError> {
    std::fs::create_dir_all(dir).map_err(|e| ModelError::io(dir, e))
}

/// Creates a directory for a whole model.
///
/// # Errors
/// If it already holds one, or cannot be created.
pub(super) fn make_model_dir(dir: &Path) -> Result<(), ModelError> {
    make_dir(dir)?;
    let listed = CheckpointDir::list(dir.to_path_buf())?;
    if listed.model_files()?.is_empty() {
        return Ok(());
    }
    Err(ModelError::weights(
        dir,
        "the directory already holds a model; choose another one",
    ))
}
