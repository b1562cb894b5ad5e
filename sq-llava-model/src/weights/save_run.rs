//! Saving what training changed, as SQ-LLaVA publishes it and PEFT loads it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::backend::Backend;
use serde_json::{Map, Value, json};

use super::adapter::adapters;
use super::checkpoint_dir::{CheckpointDir, NEW_TOKENS, VISION_ADAPTER};
use super::layout::{Layout, Section, write_key};
use super::run::NEW_TOKENS_START;
use super::write::{Entry, entries, make_dir, write_json, write_safetensors};
use crate::config::{VisionConfig, VisionFamily};
use crate::error::ModelError;
use crate::ops::lora::Lora;
use crate::part::Part;
use crate::sq_llava::SqLlava;

/// What a run directory says about its origin.
#[derive(Debug, Clone, Default)]
pub struct RunOrigin {
    /// The LLM's directory or name; `base_model_name_or_path` of the adapters.
    pub base: Option<String>,
    /// The vision tower's directory or name; `mm_vision_tower` in `config.json`.
    pub vision: Option<String>,
}

/// Saves what training changed: PEFT adapters of the LLM (`adapter_model.safetensors`,
/// `adapter_config.json`) and of the vision tower (`Vit-lora/`), projector and prototype extractor
/// (`non_lora_trainables.safetensors`), rows of new tokens (`new_tokens.safetensors`) and
/// `config.json`. Each file is replaced whole; what the model lacks is not written.
///
/// # Errors
/// If a file cannot be written, or the directory holds an adapter that the model lacks.
pub fn save_adapters<B: Backend>(
    model: &SqLlava<B>,
    dir: &Path,
    origin: &RunOrigin,
) -> Result<(), ModelError> {
    make_dir(dir)?;
    let tower = model.config.vision.as_ref();
    let trained = Trained::of(model);
    let adapters = adapters(model);
    let is_llm = |path: &str| Section::of(path) == Some(Section::Llm);
    let of = |llm: bool| adapters.iter().filter(move |(path, _)| is_llm(path) == llm);
    let vision_dir = dir.join(VISION_ADAPTER);
    write_adapter(
        dir,
        &trained.llm,
        peft_config(of(true), origin.base.as_deref(), None),
    )?;
    if !trained.vision.is_empty() {
        make_dir(&vision_dir)?;
    }
    let config = peft_config(of(false), origin.vision.as_deref(), tower);
    write_adapter(&vision_dir, &trained.vision, config)?;
    if !trained.connector.is_empty() {
        let path = dir.join("non_lora_trainables.safetensors");
        write_safetensors(path, &trained.connector, &[])?.commit()?;
    }
    if let Some(new) = &model.language_model.new_tokens {
        let start = [(NEW_TOKENS_START, new.start.to_string())];
        write_safetensors(dir.join(NEW_TOKENS), &trained.new_tokens, &start)?.commit()?;
    }
    let mut config = model.config.clone();
    if let Some(new) = &model.language_model.new_tokens {
        config.new_tokens_start = Some(new.start);
    }
    let mut config = config.to_hf();
    if let Some(vision) = &origin.vision {
        config["mm_vision_tower"] = json!(vision);
    }
    write_json(dir.join("config.json"), &config)?.commit()?;
    Ok(())
}

/// What training changed, by the file that it goes into, under that file's keys.
#[derive(Default)]
struct Trained {
    llm: Vec<Entry>,
    vision: Vec<Entry>,
    connector: Vec<Entry>,
    new_tokens: Vec<Entry>,
}

impl Trained {
    fn of<B: Backend>(model: &SqLlava<B>) -> Self {
        let tower = model.config.vision.as_ref();
        let mut trained = Self::default();
        for (part, mut entry) in entries(model) {
            let (layout, found) = match part {
                Part::LlmAdapters => (Layout::Original, &mut trained.llm),
                // The release's prefix.
                Part::VisionAdapters => (Layout::LlavaHf, &mut trained.vision),
                part if part.is_connector() => (Layout::Original, &mut trained.connector),
                Part::NewTokens => {
                    entry.name = match entry.name.as_str() {
                        "language_model.new_tokens.lm_head" => "lm_head.weight".into(),
                        _ => "embed_tokens.weight".into(),
                    };
                    trained.new_tokens.push(entry);
                    continue;
                }
                _ => continue,
            };
            entry.name = format!("base_model.model.{}", peft_key(&entry.name, layout, tower));
            found.push(entry);
        }
        trained
    }
}

fn write_adapter(dir: &Path, entries: &[Entry], config: Option<Value>) -> Result<(), ModelError> {
    let Some(config) = config else {
        let stale = match dir.is_dir() {
            true => CheckpointDir::list(dir.to_path_buf())?.adapter(),
            false => None,
        };
        return match stale {
            None => Ok(()),
            Some(stale) => Err(ModelError::weights(
                stale,
                "the directory holds an adapter that this model does not have; choose another directory",
            )),
        };
    };
    let weights = write_safetensors(dir.join("adapter_model.safetensors"), entries, &[])?;
    let config = write_json(dir.join("adapter_config.json"), &config)?;
    weights.commit()?;
    config.commit()?;
    Ok(())
}

/// The key of a canonical name as PEFT has it.
fn peft_key(name: &str, layout: Layout, vision: Option<&VisionConfig>) -> String {
    let inner = name.strip_prefix(Section::Vision.canonical());
    match (vision, inner) {
        (Some(vision), Some(inner)) => {
            let prefix = Section::Vision.prefix(layout, vision.family);
            format!("{prefix}{}", vision.peft_name(inner))
        }
        _ => write_key(name, layout, vision),
    }
}

/// `adapter_config.json` of the adapters of one tower's linears, `vision` or the LLM; `None`
/// without any.
fn peft_config<'a, B: Backend>(
    linears: impl Iterator<Item = &'a (String, Option<&'a Lora<B>>)>,
    base: Option<&str>,
    vision: Option<&VisionConfig>,
) -> Option<Value> {
    let mut settings: Vec<AdapterSettings> = Vec::new();
    let mut without = BTreeSet::new();
    let layout = match vision {
        Some(_) => Layout::LlavaHf,
        None => Layout::Original,
    };
    for (path, lora) in linears {
        let path = peft_key(path, layout, vision);
        let Some(lora) = lora else {
            without.insert(last(&path).to_owned());
            continue;
        };
        let r = lora.a.lazy_shape()[0];
        settings.push(AdapterSettings {
            path,
            r,
            alpha: lora.scaling * r as f64,
            dropout: lora.dropout,
        });
    }
    let (r, alpha) = commonest(&settings)?;
    let dropout = settings.first().map_or(0.0, |adapter| adapter.dropout);
    // A name that others have too would ask for adapters that are not there.
    let target = |path: &str| match without.contains(last(path)) {
        true => path.to_owned(),
        false => last(path).to_owned(),
    };
    let targets: BTreeSet<String> = settings.iter().map(|a| target(&a.path)).collect();
    let ranks = settings.iter().filter(|a| a.r != r);
    let ranks: Map<_, _> = ranks.map(|a| (a.path.clone(), json!(a.r))).collect();
    let alphas = settings
        .iter()
        .filter(|a| a.alpha.to_bits() != alpha.to_bits());
    let alphas: Map<_, _> = alphas.map(|a| (a.path.clone(), number(a.alpha))).collect();
    Some(json!({
        "peft_type": "LORA",
        "task_type": vision.is_none().then_some("CAUSAL_LM"),
        "auto_mapping": vision.map(auto_mapping),
        "base_model_name_or_path": base,
        "revision": null,
        "inference_mode": true,
        "r": r,
        "lora_alpha": number(alpha),
        "lora_dropout": dropout,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": false,
        "use_dora": false,
    }))
}

/// The class of transformers that the adapters of a tower go into.
fn auto_mapping(vision: &VisionConfig) -> Value {
    let module = match vision.family {
        VisionFamily::Clip => "clip",
        VisionFamily::Siglip => "siglip",
        VisionFamily::Dinov2 => "dinov2",
    };
    json!({
        "base_model_class": vision.family.architecture(),
        "parent_library": format!("transformers.models.{module}.modeling_{module}"),
    })
}

/// One linear's adapter, as `adapter_config.json` tells it.
struct AdapterSettings {
    path: String,
    r: usize,
    alpha: f64,
    dropout: f64,
}

/// The commonest rank and strength, which stand for all; the others get a pattern.
fn commonest(settings: &[AdapterSettings]) -> Option<(usize, f64)> {
    let mut counts: BTreeMap<(usize, u64), usize> = BTreeMap::new();
    for adapter in settings {
        *counts
            .entry((adapter.r, adapter.alpha.to_bits()))
            .or_default() += 1;
    }
    let (&(r, alpha), _) = counts.iter().max_by_key(|(_, count)| **count)?;
    Some((r, f64::from_bits(alpha)))
}

/// The last part of a path.
fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// A whole number without a fraction, as PEFT writes it.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}
