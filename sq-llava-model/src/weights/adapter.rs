//! LoRA adapters in PEFT's format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use serde_json::Value;

use super::fill::WeightMap;
use super::layout::{Key, read_key};
use super::report::list;
use super::source::{either, read_file};
use super::tensor::StoredTensor;
use crate::config::read_json;
use crate::error::ModelError;
use crate::ops::linear::Linear;
use crate::ops::lora::{Lora, LoraConfig};
use crate::sq_llava::SqLlava;

/// Options of PEFT that change what an adapter computes and are not supported.
const UNSUPPORTED: [&str; 11] = [
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "alora_invocation_tokens",
];

/// `adapter_config.json`.
#[derive(Debug)]
struct PeftConfig {
    lora: LoraConfig,
    /// Ranks of linears that differ, by the end of their path.
    ranks: BTreeMap<String, f64>,
    /// Alphas likewise.
    alphas: BTreeMap<String, f64>,
}

/// One adapter directory.
#[derive(Debug)]
pub(super) struct Adapter {
    config: PeftConfig,
    file: PathBuf,
    tensors: Vec<StoredTensor>,
}

/// The directory that `adapter_config.json` says the adapter was made on, if it says so.
///
/// # Errors
/// If the file is malformed.
pub(super) fn base_of(dir: &Path) -> Result<Option<String>, ModelError> {
    let path = dir.join("adapter_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let value = read_json(&path)?;
    let name = value.get("base_model_name_or_path").and_then(Value::as_str);
    Ok(name.filter(|name| !name.is_empty()).map(Into::into))
}

/// Reads the adapter of a directory, if there is one.
///
/// # Errors
/// If it is incomplete, damaged, or of a kind that is not supported.
pub(super) fn read_adapter(dir: &Path) -> Result<Option<Adapter>, ModelError> {
    let config = dir.join("adapter_config.json");
    match (config.is_file(), either(dir, "adapter_model")) {
        (false, None) => Ok(None),
        (true, None) => Err(ModelError::weights(
            dir,
            "adapter_config.json stands here without adapter_model.safetensors or adapter_model.bin",
        )),
        (false, Some(file)) => Err(ModelError::weights(
            file,
            "this adapter lacks the adapter_config.json beside it",
        )),
        (true, Some(file)) => Ok(Some(Adapter {
            config: read_config(&config)?,
            tensors: read_file(&file)?,
            file,
        })),
    }
}

fn read_config(path: &Path) -> Result<PeftConfig, ModelError> {
    let value = read_json(path)?;
    let fail = |reason: String| ModelError::config(path, reason);
    match value.get("peft_type").and_then(Value::as_str) {
        None | Some("LORA") => {}
        Some(other) => {
            return Err(fail(format!(
                "\"peft_type\" {other} is not supported; LORA is"
            )));
        }
    }
    for key in UNSUPPORTED {
        let set = match value.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        };
        if set {
            return Err(fail(format!(
                "\"{key}\" is set, which is not supported; merge the adapter in Python and load the merged model"
            )));
        }
    }
    match value.get("bias").and_then(Value::as_str) {
        None | Some("none") => {}
        Some(other) => {
            return Err(fail(format!(
                "\"bias\": \"{other}\" is not supported; none is"
            )));
        }
    }
    let r = value
        .get("r")
        .and_then(Value::as_u64)
        .and_then(|r| usize::try_from(r).ok())
        .filter(|&r| r > 0)
        .ok_or_else(|| fail("\"r\" is not a rank".into()))?;
    let number = |key: &str, default: f64| match value.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(v) => v
            .as_f64()
            .ok_or_else(|| fail(format!("\"{key}\" is {v}, not a number"))),
    };
    let pattern = |key: &str| -> Result<BTreeMap<String, f64>, ModelError> {
        let Some(map) = value.get(key).and_then(Value::as_object) else {
            return Ok(BTreeMap::new());
        };
        map.iter()
            .map(|(name, v)| {
                // Regular expressions could mean anything; a plain path ends in one place.
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
                match v.as_f64().filter(|v| *v > 0.0) {
                    Some(v) if name.chars().all(plain) => Ok((name.clone(), v)),
                    _ => Err(fail(format!(
                        "\"{key}\" has \"{name}\": {v}; plain module paths with positive numbers are supported"
                    ))),
                }
            })
            .collect()
    };
    let use_rslora = value.get("use_rslora").and_then(Value::as_bool);
    Ok(PeftConfig {
        lora: LoraConfig {
            r,
            // PEFT's own default.
            lora_alpha: number("lora_alpha", 8.0)?,
            lora_dropout: number("lora_dropout", 0.0)?,
            target_modules: Vec::new(),
            use_rslora: use_rslora.unwrap_or(false),
        },
        ranks: pattern("rank_pattern")?,
        alphas: pattern("alpha_pattern")?,
    })
}

impl PeftConfig {
    /// The configuration of the linear at `path`, as PEFT picks it.
    fn of(&self, path: &str) -> LoraConfig {
        let find = |map: &BTreeMap<String, f64>| {
            map.iter()
                .find(|(end, _)| path == *end || path.ends_with(&format!(".{end}")))
                .map(|(_, v)| *v)
        };
        let mut lora = self.lora.clone();
        if let Some(r) = find(&self.ranks) {
            lora.r = r as usize;
        }
        if let Some(alpha) = find(&self.alphas) {
            lora.lora_alpha = alpha;
        }
        lora
    }
}

/// A, B and the configuration of one linear.
#[derive(Default)]
struct Pair {
    a: Option<StoredTensor>,
    b: Option<StoredTensor>,
    config: Option<LoraConfig>,
}

/// Gives the linears that an adapter names their factors and puts the factors' tensors into the
/// map. Linears are found by their full path; a tensor that finds none is an error.
///
/// # Errors
/// If a tensor has no linear, or only one factor of two, or another rank than the configuration.
pub(super) fn attach<B: Backend>(
    model: &mut SqLlava<B>,
    adapters: Vec<Adapter>,
    weights: &mut WeightMap,
) -> Result<(), ModelError> {
    for adapter in adapters {
        let fail = |reason: String| ModelError::weights(&adapter.file, reason);
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        let mut strangers = Vec::new();
        for tensor in adapter.tensors {
            let name = match read_key(&tensor.name) {
                Key::Weight { name, .. } => name,
                _ => {
                    strangers.push(tensor.name);
                    continue;
                }
            };
            if let Some(path) = name.strip_suffix(".lora_A.weight") {
                pairs.entry(path.to_string()).or_default().a = Some(tensor);
            } else if let Some(path) = name.strip_suffix(".lora_B.weight") {
                pairs.entry(path.to_string()).or_default().b = Some(tensor);
            } else {
                strangers.push(tensor.name);
            }
        }
        for (path, pair) in &mut pairs {
            let config = adapter.config.of(path);
            let (Some(a), Some(b)) = (&pair.a, &pair.b) else {
                return Err(fail(format!(
                    "the adapter of {path} has only one of its two factors"
                )));
            };
            let ranks = (a.shape.first().copied(), b.shape.get(1).copied());
            if ranks != (Some(config.r), Some(config.r)) {
                return Err(fail(format!(
                    "the adapter of {path} has shapes {:?} and {:?}; adapter_config.json says rank {}",
                    a.shape, b.shape, config.r
                )));
            }
            pair.config = Some(config);
        }
        for_each_linear(model, |path, linear, index| {
            if let Some(pair) = pairs.remove(path)
                && let (Some(a), Some(b), Some(config)) = (pair.a, pair.b, pair.config)
            {
                *linear = linear.clone().with_lora(&config, index);
                weights.insert(format!("{path}.lora_A.weight"), a);
                weights.insert(format!("{path}.lora_B.weight"), b);
            }
        });
        strangers.extend(
            pairs
                .into_values()
                .flat_map(|pair| [pair.a, pair.b])
                .flatten()
                .map(|tensor| tensor.name),
        );
        if !strangers.is_empty() {
            return Err(fail(format!(
                "{} tensors of the adapter find no linear in this model: {}",
                strangers.len(),
                list(&strangers)
            )));
        }
    }
    Ok(())
}

/// Every linear of both towers that can be adapted, with its canonical path and the number that
/// its adapter has. Numbers are those of fresh adapters.
pub(super) fn for_each_linear<B: Backend>(
    model: &mut SqLlava<B>,
    mut f: impl FnMut(&str, &mut Linear<B>, u64),
) {
    let group = |name: &str| match name {
        "gate_proj" | "up_proj" | "down_proj" | "fc1" | "fc2" => "mlp",
        _ => "self_attn",
    };
    let mut number = 0;
    for (index, layer) in model.language_model.model.layers.iter_mut().enumerate() {
        layer.for_each_linear(|name, linear| {
            number += 1;
            let path = format!("language_model.model.layers.{index}.{}.{name}", group(name));
            f(&path, linear, number);
        });
    }
    let Some(tower) = &mut model.vision_tower else {
        return;
    };
    number = 1 << 32;
    for (index, layer) in tower.encoder.layers.iter_mut().enumerate() {
        layer.for_each_linear(|name, linear| {
            number += 1;
            let path = format!("vision_tower.encoder.layers.{index}.{}.{name}", group(name));
            f(&path, linear, number);
        });
    }
}

/// The adapters of a model with their linears' canonical paths.
pub(super) fn adapters<B: Backend>(model: &SqLlava<B>) -> Vec<(String, Lora<B>)> {
    let mut found = Vec::new();
    // A clone shares its tensors.
    for_each_linear(&mut model.clone(), |path, linear, _| {
        if let Some(lora) = linear.lora.take() {
            found.push((path.to_string(), lora));
        }
    });
    found
}
