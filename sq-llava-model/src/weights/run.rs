//! Run directories: what training changed, to be put on a base.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sq_llava_data::gguf::is_gguf;

use super::adapter::{base_of, read_adapter};
use super::checkpoint::{is_multimodal, name_projector, read_checkpoint};
use super::checkpoint_dir::{CheckpointDir, NEW_TOKENS};
use super::fill::WeightMap;
use super::layout::Section;
use super::options::LoadOptions;
use super::plan::{CheckpointKind, ModelFiles, Plan, preprocessor_dir, tokenizer_dir};
use super::source::{read_file, safetensors_metadata};
use super::vision::{Described, find_tower, look_up};
use crate::config::{SqLlavaConfig, read_json};
use crate::error::ModelError;

/// Metadata of the file of new tokens: id of the first row.
pub(super) const NEW_TOKENS_START: &str = "start";

/// The plan of a run directory on its base.
///
/// # Errors
/// If the base is unknown or another one, a file is missing or damaged, or the configuration
/// unknown.
pub(super) fn plan_run(dir: &CheckpointDir, options: &LoadOptions) -> Result<Plan, ModelError> {
    let base = base_path(dir, options)?;
    let listed = base_listing(&base)?;
    let checkpoint = read_checkpoint(listed, options.allow_unused)?;
    let (base_config, base_json, mut weights) =
        (checkpoint.config, checkpoint.json, checkpoint.weights);
    let base_dir = checkpoint.dir;

    replace_projector(dir, &mut weights, options)?;
    let (mut config, json) =
        run_config(dir, &base, &base_config, &base_json, options.allow_unused)?;

    let vision = match dir.vision_adapter()? {
        Some(place) => read_adapter(&place, options.allow_unused)?,
        None => None,
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
            true => base_config.vision,
            false => None,
        };
        tower = find_tower(&mut weights, &mut config, known, &places, options, false)?;
        read_connector(dir, &json, &mut config, &mut weights)?;
    }
    let tokenizer = tokenizer_dir([dir])
        .or(checkpoint.tokenizer)
        .or_else(|| tokenizer_dir(&tower));
    let images = std::iter::once(dir).chain(&tower).chain([&base_dir]);
    Ok(Plan {
        files: ModelFiles {
            kind: CheckpointKind::Run,
            tokenizer,
            preprocessor: preprocessor_dir(images, options),
            pictures: None,
            vision: tower.map(|tower| tower.path),
            base: Some(base),
        },
        config,
        weights,
        adapters,
        new_tokens,
    })
}

/// Puts the run's projector in the place of the base's: non_lora_trainables > mm_projector > the
/// base's own.
fn replace_projector(
    dir: &CheckpointDir,
    weights: &mut WeightMap,
    options: &LoadOptions,
) -> Result<(), ModelError> {
    for file in dir.projectors() {
        weights.replace_parts(read_file(&file)?)?;
    }
    match &options.projector {
        Some(path) => Err(ModelError::Argument(format!(
            "{} cannot be used: the run directory brings its own projector",
            path.display()
        ))),
        None => Ok(()),
    }
}

/// Names the projector in the configuration, and says how pictures become tiles.
fn read_connector(
    dir: &CheckpointDir,
    json: &Value,
    config: &mut SqLlavaConfig,
    weights: &mut WeightMap,
) -> Result<(), ModelError> {
    name_projector(config, json, weights);
    config.read_original_tiling(&dir.path.join("config.json"), json)?;
    if !config.has_image_newline() {
        // The base's, where the run sees each picture as one tile.
        weights.drop_section(Section::ImageNewline);
    }
    Ok(())
}

/// The base: the one given, else the one that the adapter names if it is a directory here or can be
/// looked up.
fn base_path(dir: &CheckpointDir, options: &LoadOptions) -> Result<PathBuf, ModelError> {
    if let Some(base) = &options.base {
        return Ok(base.clone());
    }
    let named = base_of(dir)?;
    let found = named
        .iter()
        .flat_map(|name| [PathBuf::from(name), dir.path.join(name)])
        .find(|path| path.join("config.json").is_file() || is_gguf(path));
    if let Some(path) = found {
        return Ok(path);
    }
    look_up(named.as_deref(), options).map_err(|reason| {
        let named = named.as_ref().map_or(String::new(), |name| {
            format!(" (\"base_model_name_or_path\" is \"{name}\", {reason})")
        });
        ModelError::config(
            &dir.path,
            format!(
                "this is a training run, not a whole model{named}; give the LLM that it was trained on with --base"
            ),
        )
    })
}

/// What the base's directory holds.
fn base_listing(base: &Path) -> Result<CheckpointDir, ModelError> {
    let listed = CheckpointDir::open(base, "the base is neither a directory nor a .gguf file")?;
    match listed.is_run()? {
        false => Ok(listed),
        true => Err(ModelError::config(
            base,
            "the base is itself a training run; give the directory of the whole LLM",
        )),
    }
}

/// The run's configuration with the base's language model; the base's where the run has none.
fn run_config(
    dir: &CheckpointDir,
    base: &Path,
    base_config: &SqLlavaConfig,
    base_json: &Value,
    allow_unused: bool,
) -> Result<(SqLlavaConfig, Value), ModelError> {
    let Some(path) = dir.file("config.json") else {
        return Ok((base_config.clone(), base_json.clone()));
    };
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
    config.image_token_index = config.image_token_index.or(base_config.image_token_index);
    config.bos_token_id = config.bos_token_id.or(base_config.bos_token_id);
    config.pad_token_id = config.pad_token_id.or(base_config.pad_token_id);
    if config.eos_token_ids.is_empty() {
        config.eos_token_ids.clone_from(&base_config.eos_token_ids);
    }
    Ok((config, json))
}

/// Puts the rows of `new_tokens.safetensors` into the map; returns their number and first id.
fn read_new_tokens(
    dir: &CheckpointDir,
    config: &mut SqLlavaConfig,
    weights: &mut WeightMap,
) -> Result<Option<(usize, usize)>, ModelError> {
    let Some(path) = dir.file(NEW_TOKENS) else {
        return Ok(None);
    };
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
