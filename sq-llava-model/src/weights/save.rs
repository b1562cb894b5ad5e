//! Saving whole models as Hugging Face's `save_pretrained` does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{DType, FloatDType, Tensor, TensorData, backend::Backend};
use half::f16;
use serde_json::{Map, Value, json};

use super::layout::{Layout, canonical};
use super::quantized::{MIN, SCALE};
use super::write::{Entry, file_dtype, make_model_dir, write_json, write_safetensors};
use crate::error::ModelError;
use crate::kernels::blocks::{BLOCK, BlockMatrix, QuantFormat};
use crate::language::llama::Llama;
use crate::language::quantize::{any_on_device, in_blocks};
use crate::ops::params::{ParamPath, ParamVisitor, visit_params};
use crate::part::Part;
use crate::sq_llava::SqLlava;

const EMBEDDING: &str = "language_model.model.embed_tokens.weight";
const HEAD: &str = "language_model.lm_head.weight";

/// How a whole model is saved.
#[derive(Debug, Clone, Copy)]
pub struct SaveOptions {
    /// Dtype in the files: f32, f16 or bf16.
    pub dtype: FloatDType,
    /// A shard is closed before it grows over this size; one tensor is never split.
    pub max_shard_bytes: u64,
    /// Names of the keys.
    pub layout: Layout,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            dtype: FloatDType::F16,
            max_shard_bytes: 5_000_000_000,
            layout: Layout::Original,
        }
    }
}

/// Saves a whole model: `config.json` and safetensors, in shards with an index where it is larger
/// than one. Rows of new tokens become rows of the embedding and the head. Returns the weight
/// files. Files get their names when all are written; one tensor at a time is held in memory.
///
/// # Errors
/// If adapters are not merged, the layout cannot hold the model, the directory already holds a
/// model, or a file cannot be written.
pub fn save_pretrained<B: Backend>(
    model: &SqLlava<B>,
    dir: &Path,
    options: &SaveOptions,
) -> Result<Vec<PathBuf>, ModelError> {
    let dtype = file_dtype(options.dtype)?;
    if options.max_shard_bytes == 0 {
        return Err(ModelError::Argument(
            "a shard of 0 bytes holds nothing".into(),
        ));
    }
    let formats = formats(&model.language_model);
    if !formats.is_empty() && options.layout == Layout::LlavaHf {
        return Err(ModelError::Argument(
            "the llava-hf layout holds no quantised weights; choose the original layout".into(),
        ));
    }
    let config = config_json(model, options.layout, dtype, &formats)?;
    let mut entries = whole_entries(model, dtype)?;
    for entry in &mut entries {
        entry.take_key(options.layout, model.config.vision.as_ref());
    }
    make_model_dir(dir)?;
    write_shards(dir, &split(entries, options.max_shard_bytes), &config)
}

fn config_json<B: Backend>(
    model: &SqLlava<B>,
    layout: Layout,
    dtype: DType,
    formats: &BTreeMap<&str, usize>,
) -> Result<Value, ModelError> {
    let mut config = model.config.clone();
    config.llama.vocab_size = model.language_model.vocabulary();
    let mut config = match layout {
        Layout::Original => config.to_hf(),
        Layout::LlavaHf => config.to_llava_hf()?,
    };
    if !formats.is_empty() {
        config["quantization_config"] = json!({
            "quant_method": "sq-llava",
            "block_size": BLOCK,
            "matrices": formats,
        });
    }
    config["torch_dtype"] = json!(match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    });
    Ok(config)
}

/// Writes the weights, their index where there are several files, and `config.json`. Returns the
/// weight files.
fn write_shards(
    dir: &Path,
    shards: &[Vec<Entry>],
    config: &Value,
) -> Result<Vec<PathBuf>, ModelError> {
    let total: u64 = shards.iter().flatten().map(Entry::bytes).sum();
    let names: Vec<String> = match shards.len() {
        1 => vec!["model.safetensors".into()],
        n => (1..=n)
            .map(|i| format!("model-{i:05}-of-{n:05}.safetensors"))
            .collect(),
    };

    let mut weight_map = Map::new();
    let mut pending = Vec::new();
    for (name, shard) in names.iter().zip(shards) {
        pending.push(write_safetensors(dir.join(name), shard, &[])?);
        for entry in shard {
            weight_map.insert(entry.name.clone(), json!(name));
        }
    }
    let mut beside = Vec::new();
    if shards.len() > 1 {
        weight_map.sort_keys();
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let path = dir.join("model.safetensors.index.json");
        beside.push(write_json(path, &index)?);
    }
    // Last: without it the directory does not load.
    beside.push(write_json(dir.join("config.json"), config)?);
    let files = pending
        .into_iter()
        .map(|file| file.commit())
        .collect::<Result<_, _>>()?;
    for file in beside {
        file.commit()?;
    }
    Ok(files)
}

/// The tensors of the whole model by canonical names, new rows in place.
///
/// # Errors
/// If adapters are not merged, or the weights are of one device alone.
pub(super) fn whole_entries<B: Backend>(
    model: &SqLlava<B>,
    dtype: DType,
) -> Result<Vec<Entry>, ModelError> {
    let llama = &model.language_model;
    if any_on_device(llama) {
        return Err(ModelError::Argument(
            "the weights are quantised for this device alone; save a model that was loaded without"
                .into(),
        ));
    }
    let mut whole = Whole {
        llama,
        in_blocks: in_blocks(llama).into_iter().collect(),
        dtype,
        adapted: false,
        failed: None,
        entries: Vec::new(),
    };
    visit_params(model, &mut whole);
    if let Some(error) = whole.failed {
        return Err(error);
    }
    match whole.adapted {
        false => Ok(whole.entries),
        true => Err(ModelError::Argument(
            "the model has adapters beside its weights; merge them before saving it whole".into(),
        )),
    }
}

struct Whole<'a, B: Backend> {
    llama: &'a Llama<B>,
    /// By canonical name.
    in_blocks: BTreeMap<String, &'a BlockMatrix>,
    dtype: DType,
    /// Whether an adapter was met.
    adapted: bool,
    /// The first error of rows that cannot be put into blocks.
    failed: Option<ModelError>,
    entries: Vec<Entry>,
}

impl<B: Backend> Whole<'_, B> {
    /// Rows of new tokens that belong into a matrix, and the number of the first.
    fn new_rows(&self, name: &str) -> Option<(usize, &Param<Tensor<B, 2>>)> {
        let new = self.llama.new_tokens.as_ref()?;
        let rows = match name {
            EMBEDDING => Some(&new.embed),
            HEAD => new.lm_head.as_ref(),
            _ => None,
        };
        Some((new.start, rows?))
    }
}

impl<B: Backend> ParamVisitor<B> for Whole<'_, B> {
    fn enter(&mut self, path: &ParamPath) {
        let name = canonical(&path.fields());
        let Some(&matrix) = self.in_blocks.get(&name) else {
            return;
        };
        let matrix = match self.new_rows(&name) {
            Some((start, rows)) => {
                let rows = floats(rows.val().detach().into_data());
                matrix.with_rows(&name, start, &rows)
            }
            None => Ok(matrix.clone()),
        };
        let matrix = match matrix {
            Ok(matrix) => matrix,
            Err(error) => {
                self.failed.get_or_insert(error);
                return;
            }
        };
        self.entries.extend(block_entries(&name, matrix));
    }

    fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<B, D>>) {
        let part = Part::of(path);
        self.adapted |= part.is_adapter();
        if part == Part::NewTokens {
            return;
        }
        let name = canonical(&path.fields());
        let mut entry = Entry::new(name.clone(), param.val().detach());
        if let Some((start, rows)) = self.new_rows(&name) {
            let rows = Entry::new(String::new(), rows.val().detach());
            entry = with_rows(entry, rows, start, self.llama.vocabulary());
        }
        entry.dtype = self.dtype;
        self.entries.push(entry);
    }
}

/// The tensors of a matrix in blocks.
fn block_entries(name: &str, matrix: BlockMatrix) -> Vec<Entry> {
    let rows = matrix.rows();
    let blocks = matrix.columns().div_ceil(BLOCK);
    let q4 = matrix.format() == QuantFormat::Q4;
    let mut out = vec![];
    let mut push =
        |end: &str, width: usize, dtype: DType, values: fn(&BlockMatrix) -> TensorData| {
            let matrix = matrix.clone();
            out.push(Entry {
                name: format!("{name}{end}"),
                shape: vec![rows, width],
                dtype,
                values: Box::new(move || values(&matrix)),
            });
        };
    if q4 {
        push("", blocks * 16, DType::U8, |m| bytes(m.parts().0.to_vec()));
    } else {
        push("", blocks * 32, DType::I8, |m| {
            let numbers = m.parts().0.iter().map(|&b| b as i8);
            let numbers: Vec<i8> = numbers.collect();
            let count = numbers.len();
            TensorData::new(numbers, [count])
        });
    }
    push(SCALE, blocks, DType::F16, |m| halves(m.parts().1));
    if q4 {
        push(MIN, blocks, DType::F16, |m| halves(m.parts().2));
    }
    out
}

fn bytes(values: Vec<u8>) -> TensorData {
    let count = values.len();
    TensorData::new(values, [count])
}

fn halves(values: &[f16]) -> TensorData {
    TensorData::new(values.to_vec(), [values.len()])
}

/// Number of matrices of each format.
fn formats<B: Backend>(llama: &Llama<B>) -> BTreeMap<&'static str, usize> {
    let mut found = BTreeMap::new();
    for (_, matrix) in in_blocks(llama) {
        *found.entry(matrix.format().name()).or_default() += 1;
    }
    found
}

/// A table with some rows replaced or added. `[rows, h]`, `[new, h]` → `[vocabulary, h]`
fn with_rows(table: Entry, rows: Entry, start: usize, vocabulary: usize) -> Entry {
    let width = table.shape[1];
    Entry {
        name: table.name,
        shape: vec![vocabulary, width],
        dtype: DType::F32,
        values: Box::new(move || {
            let mut values = floats((table.values)());
            let new = floats((rows.values)());
            values.resize(vocabulary * width, 0.0);
            values[start * width..start * width + new.len()].copy_from_slice(&new);
            TensorData::new(values, [vocabulary, width])
        }),
    }
}

pub(super) fn floats(data: TensorData) -> Vec<f32> {
    data.iter::<f32>().collect()
}

/// Entries in shards of at most `limit` bytes; a larger tensor gets a shard of its own.
fn split(entries: Vec<Entry>, limit: u64) -> Vec<Vec<Entry>> {
    let mut shards: Vec<Vec<Entry>> = vec![Vec::new()];
    let mut size = 0;
    for entry in entries {
        if size > 0 && size + entry.bytes() > limit {
            shards.push(Vec::new());
            size = 0;
        }
        size += entry.bytes();
        if let Some(shard) = shards.last_mut() {
            shard.push(entry);
        }
    }
    shards
}
