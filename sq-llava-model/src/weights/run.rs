//! Run directories: what training changed, to be put on a base.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sq_llava_data::gguf::is_gguf;

use super::adapter::{base_of, read_adapter};
use super::fill::WeightMap;
use super::layout::Section;
use super::load::{
    CheckpointKind, LoadOptions, ModelFiles, Plan, is_multimodal, name_projector, preprocessor_dir,
    read_checkpoint, tokenizer_dir,
};
use super::source::{either, model_files, read_file, safetensors_metadata};
use super::vision::{Described, find_tower, look_up};
use crate::config::{SqLlavaConfig, read_json};
use crate::error::ModelError;

/// Directory of the vision tower's adapter inside a run.
pub(super) const VISION_ADAPTER: &str = "Vit-lora";
/// Rows of the role tokens.
pub(super) const NEW_TOKENS: &str = "new_tokens.safetensors";
/// Metadata of that file: id of the first row.
pub(super) const NEW_TOKENS_START: &str = "start";

/// Whether a directory holds what training changed instead of a whole model.
///
/// # Errors
/// If it cannot be read.
pub(super) fn is_run(dir: &Path) -> Result<bool, ModelError> {
    if dir.join("adapter_config.json").is_file() || either(dir, "adapter_model").is_some() {
        return Ok(true);
    }
    let part = ["non_lora_trainables", "mm_projector"]
        .iter()
        .any(|stem| either(dir, stem).is_some())
        || dir.join(NEW_TOKENS).is_file()
        || dir.join(VISION_ADAPTER).is_dir();
    Ok(part && model_files(dir)?.is_empty())
}

pub(super) fn plan_run(dir: &Path, options: &LoadOptions) -> Result<Plan, ModelError> {
    let base = base_dir(dir, options)?;
    let checkpoint = read_checkpoint(&base, options.allow_unused)?;
    let (base_config, base_json, mut weights) =
        (checkpoint.config, checkpoint.json, checkpoint.weights);
    let base_dir = checkpoint.dir;

    // non_lora_trainables > mm_projector > the base's own.
    for stem in ["mm_projector", "non_lora_trainables"] {
        if let Some(file) = either(dir, stem) {
            weights.replace_parts(read_file(&file)?)?;
        }
    }
    if let Some(path) = &options.projector {
        return Err(ModelError::Argument(format!(
            "{} cannot be used: the run directory brings its own projector",
            path.display()
        )));
    }
    let (mut config, json) =
        run_config(dir, &base, &base_config, &base_json, options.allow_unused)?;

    let vision = match dir.join(VISION_ADAPTER) {
        place if place.is_dir() => read_adapter(&place, options.allow_unused)?,
        _ => None,
    };
    let mut llm = read_adapter(dir, options.allow_unused)?;
    if let Some(adapter) = &mut llm {
        weights.skip(adapter.settle_vision(vision.is_some()));
    }
    let adapters = llm.into_iter().chain(vision).collect();
    let new_tokens = read_new_tokens(dir, &mut config, &mut weights)?;

    let mut tower = None;
    if is_multimodal(&config, &json, &weights) || options.vision.is_some() {
        let places = [
            Described { dir, json: &json },
            Described {
                dir: &base_dir,
                json: &base_json,
            },
        ];
        // The base's configuration describes the tower inside the base.
        let known = match weights.has(Section::Vision) {
            true => base_config.vision.clone(),
            false => None,
        };
        let (vision, found) = find_tower(&mut weights, known, &places, options, false)?;
        config.vision = Some(vision);
        tower = found;
        name_projector(&mut config, &json, &weights);
    }
    let images = [Some(dir), tower.as_deref(), Some(base_dir.as_path())];
    let tokenizer = tokenizer_dir(&[Some(dir)])
        .or(checkpoint.tokenizer)
        .or_else(|| tokenizer_dir(&[tower.as_deref()]));
    Ok(Plan {
        files: ModelFiles {
            kind: CheckpointKind::Run,
            tokenizer,
            preprocessor: preprocessor_dir(&images),
            vision: tower,
            base: Some(base),
        },
        config,
        weights,
        adapters,
        new_tokens,
    })
}

/// The base: the one given, else the one that the adapter names if it is a directory here or can be
/// looked up.
fn base_dir(dir: &Path, options: &LoadOptions) -> Result<PathBuf, ModelError> {
    let base = match &options.base {
        Some(base) => base.clone(),
        None => {
            let named = base_of(dir)?;
            let found = named
                .iter()
                .flat_map(|name| [PathBuf::from(name), dir.join(name)])
                .find(|path| path.join("config.json").is_file() || is_gguf(path));
            let missing = |reason: &str| {
                let named = named.as_ref().map_or(String::new(), |name| {
                    format!(" (\"base_model_name_or_path\" is \"{name}\", {reason})")
                });
                ModelError::config(
                    dir,
                    format!(
                        "this is a training run, not a whole model{named}; give the LLM that it was trained on with --base"
                    ),
                )
            };
            match found {
                Some(path) => path,
                None => look_up(named.as_deref(), options).map_err(|reason| missing(&reason))?,
            }
        }
    };
    if !base.is_dir() && !is_gguf(&base) {
        return Err(ModelError::config(
            base,
            "the base is neither a directory nor a .gguf file",
        ));
    }
    if is_run(&base)? {
        return Err(ModelError::config(
            base,
            "the base is itself a training run; give the directory of the whole LLM",
        ));
    }
    Ok(base)
}

/// The run's configuration with the base's language model; the base's where the run has none.
fn run_config(
    dir: &Path,
    base: &Path,
    base_config: &SqLlavaConfig,
    base_json: &Value,
    allow_unused: bool,
) -> Result<(SqLlavaConfig, Value), ModelError> {
    let path = dir.join("config.json");
    if !path.is_file() {
        return Ok((base_config.clone(), base_json.clone()));
    }
    let json = read_json(&path)?;
    let mut config = SqLlavaConfig::from_hf(&path, allow_unused)?;
    let (run, llm) = (&config.llama, &base_config.llama);
    for (name, ours, theirs) in [
        ("hidden_size", run.hidden_size, llm.hidden_size),
        (
            "num_hidden_layers",
            run.num_hidden_layers,
            llm.num_hidden_layers,
        ),
        (
            "intermediate_size",
            run.intermediate_size,
            llm.intermediate_size,
        ),
    ] {
        if ours != theirs {
            return Err(ModelError::config(
                path,
                format!(
                    "the run was made on an LLM with {name} {ours}, but {} has {theirs}; give the right --base",
                    base.display()
                ),
            ));
        }
    }
    let window = config.llama.max_position_embeddings;
    config.llama = base_config
        .llama
        .clone()
        .with_max_position_embeddings(window);
    config.bos_token_id = config.bos_token_id.or(base_config.bos_token_id);
    config.pad_token_id = config.pad_token_id.or(base_config.pad_token_id);
    if config.eos_token_ids.is_empty() {
        config.eos_token_ids.clone_from(&base_config.eos_token_ids);
    }
    Ok((config, json))
}

/// Puts the rows of `new_tokens.safetensors` into the map; returns their number and first id.
fn read_new_tokens(
    dir: &Path,
    config: &mut SqLlavaConfig,
    weights: &mut WeightMap,
) -> Result<Option<(usize, usize)>, ModelError> {
    let path = dir.join(NEW_TOKENS);
    if !path.is_file() {
        return Ok(None);
    }
    let fail = |reason: &str| ModelError::weights(&path, reason);
    let start = match safetensors_metadata(&path)?.get(NEW_TOKENS_START) {
        Some(text) => text
            .parse()
            .map_err(|_| fail("its metadata \"start\" is not a token id"))?,
        None => config.new_tokens_start.ok_or_else(|| {
            fail("the id of the first new token is unknown: neither \"start\" in its metadata nor \"sq_new_tokens_start\" in config.json")
        })?,
    };
    if start > config.llama.vocab_size {
        return Err(fail(&format!(
            "new tokens start at id {start}, but the base's vocabulary ends at {}; is this the right --base?",
            config.llama.vocab_size
        )));
    }
    let mut rows = None;
    for tensor in read_file(&path)? {
        let name = match tensor.name.as_str() {
            "embed_tokens.weight" => "embed",
            "lm_head.weight" if !config.llama.tie_word_embeddings => "lm_head",
            other => return Err(fail(&format!("unknown key {other}"))),
        };
        if name == "embed" {
            rows = tensor.shape.first().copied();
        }
        weights.insert(format!("language_model.new_tokens.{name}"), tensor)?;
    }
    let rows = rows.ok_or_else(|| fail("no embed_tokens.weight inside"))?;
    config.new_tokens_start = Some(start);
    Ok(Some((rows, start)))
}
