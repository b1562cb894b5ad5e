//! LoRA adapters in PEFT's format.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::backend::Backend;
use serde_json::Value;

use super::adapter_config::PeftConfig;
use super::checkpoint_dir::CheckpointDir;
use super::fill::WeightMap;
use super::layout::{Key, PEFT_WRAP, Section, read_key};
use super::report::list;
use super::source::read_file;
use super::tensor::StoredTensor;
use crate::config::{SqLlavaConfig, read_json};
use crate::error::ModelError;
use crate::ops::lora::{Lora, LoraConfig};
use crate::sq_llava::{Adaptable, SqLlava};

/// One adapter directory.
#[derive(Debug)]
pub(super) struct Adapter {
    config: PeftConfig,
    file: PathBuf,
    tensors: Vec<StoredTensor>,
    /// Whether the adapters of the vision tower in this file have a rank of their own, which
    /// `adapter_config.json` does not say.
    vision_apart: bool,
}

/// The directory that `adapter_config.json` says the adapter was made on, if it says so.
///
/// # Errors
/// If the file is malformed.
pub(super) fn base_of(dir: &CheckpointDir) -> Result<Option<String>, ModelError> {
    let Some(path) = dir.adapter_config() else {
        return Ok(None);
    };
    let value = read_json(&path)?;
    let name = value.get("base_model_name_or_path").and_then(Value::as_str);
    Ok(name.filter(|name| !name.is_empty()).map(Into::into))
}

/// Reads the adapter of a directory, if there is one. With `allow_unused`, options of PEFT that
/// are not known here are accepted.
///
/// # Errors
/// If it is incomplete, damaged, or of a kind that is not supported.
pub(super) fn read_adapter(
    dir: &CheckpointDir,
    allow_unused: bool,
) -> Result<Option<Adapter>, ModelError> {
    match (dir.adapter_config(), dir.adapter()) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(ModelError::weights(
            &dir.path,
            "adapter_config.json stands here without adapter_model.safetensors or adapter_model.bin",
        )),
        (None, Some(file)) => Err(ModelError::weights(
            file,
            "this adapter lacks the adapter_config.json beside it",
        )),
        (Some(config), Some(file)) => {
            let config = PeftConfig::read(&config, allow_unused)?;
            let tensors = read_file(&file)?;
            if tensors.is_empty() {
                let reason = "this adapter holds no tensors; download it again";
                return Err(ModelError::weights(file, reason));
            }
            Ok(Some(Adapter {
                config,
                file,
                tensors,
                vision_apart: false,
            }))
        }
    }
}

impl Adapter {
    /// The released training saves the adapters of the vision tower twice: by themselves, in
    /// `Vit-lora/`, and again among those of the LLM. Those by themselves count, as in the released
    /// code; where they are missing, the copies do. Gives back the keys that are left out.
    pub fn settle_vision(&mut self, beside: bool) -> Vec<String> {
        let is_vision = |tensor: &StoredTensor| {
            matches!(
                read_key(&tensor.name),
                Key::Weight {
                    section: Section::Vision,
                    ..
                }
            )
        };
        let tensors = std::mem::take(&mut self.tensors);
        let (vision, other): (Vec<_>, Vec<_>) = tensors.into_iter().partition(is_vision);
        if beside {
            self.tensors = other;
            return vision.into_iter().map(|tensor| tensor.name).collect();
        }
        // A file of vision adapters alone is described by its own configuration.
        self.vision_apart = !other.is_empty();
        self.tensors = other.into_iter().chain(vision).collect();
        Vec::new()
    }
}

/// A, B and the configuration of one linear.
#[derive(Default)]
struct Pair {
    a: Option<StoredTensor>,
    b: Option<StoredTensor>,
    config: Option<LoraConfig>,
    /// The linear's path as PEFT names it.
    module: String,
}

impl Adapter {
    fn fail(&self, reason: impl Into<String>) -> ModelError {
        ModelError::weights(&self.file, reason)
    }

    /// The factors by the canonical paths of their linears, and the keys of everything else.
    ///
    /// # Errors
    /// If a factor stands there twice with different values.
    fn pairs(&mut self) -> Result<(BTreeMap<String, Pair>, Vec<String>), ModelError> {
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        let mut strangers = Vec::new();
        for tensor in std::mem::take(&mut self.tensors) {
            let path = match read_key(&tensor.name) {
                Key::Weight { name, .. } => ["A", "B"].iter().find_map(|&factor| {
                    let path = name.strip_suffix(&format!(".lora_{factor}.weight"))?;
                    Some((path.to_string(), factor))
                }),
                _ => None,
            };
            let Some((path, factor)) = path else {
                strangers.push(tensor.name);
                continue;
            };
            let pair = pairs.entry(path).or_default();
            let place = if factor == "A" {
                &mut pair.a
            } else {
                &mut pair.b
            };
            match place {
                Some(first) => tensor.must_equal(first)?,
                None => {
                    let (module, _) = tensor.name.rsplit_once(".lora_").unwrap_or_default();
                    pair.module = module.strip_prefix(PEFT_WRAP).unwrap_or(module).into();
                    *place = Some(tensor);
                }
            }
        }
        Ok((pairs, strangers))
    }

    /// Rank and strength of one linear's adapter; a note if its strength is a guess.
    ///
    /// # Errors
    /// If it is incomplete, has another rank than the configuration, or is none of its targets.
    fn configure(&self, path: &str, pair: &Pair) -> Result<(LoraConfig, bool), ModelError> {
        let (Some(a), Some(b)) = (&pair.a, &pair.b) else {
            return Err(self.fail(format!(
                "the adapter of {path} has only one of its two factors"
            )));
        };
        let ranks = (a.shape.first().copied(), b.shape.get(1).copied());
        if self.vision_apart
            && Section::of(path) == Some(Section::Vision)
            && let (Some(r @ 1..), true) = (ranks.0, ranks.0 == ranks.1)
        {
            return Ok(self.config.of_rank(&pair.module, r));
        }
        if !self.config.targets(&pair.module) {
            return Err(self.fail(format!(
                "the adapter of {path} is there, but adapter_config.json does not target {} (target_modules, exclude_modules, layers_to_transform); PEFT would leave it out: correct adapter_config.json",
                pair.module
            )));
        }
        let config = self.config.of(&pair.module);
        if ranks != (Some(config.r), Some(config.r)) {
            return Err(self.fail(format!(
                "the adapter of {path} has shapes {:?} and {:?}; adapter_config.json says rank {}",
                a.shape, b.shape, config.r
            )));
        }
        Ok((config, false))
    }

    /// Holds the linears `without` factors against the configuration. A tower of which the file
    /// has no factor at all is none that the adapter was made for, and so are the layers of the
    /// vision tower behind the highest feature layer, which nothing reads.
    ///
    /// # Errors
    /// If the configuration lists some of them.
    fn check_complete(
        &self,
        prefixes: &BTreeMap<Section, (String, Names)>,
        without: &[String],
        config: &SqLlavaConfig,
    ) -> Result<(), ModelError> {
        let feature_layer = config.feature_layer();
        let missing = without.iter().filter_map(|path| {
            let section = Section::of(path)?;
            let (prefix, names) = prefixes.get(&section)?;
            let module = format!("{prefix}{}", names.inner(path, section, config));
            let apart = self.vision_apart && section == Section::Vision;
            let unread = vision_layer(path).is_some_and(|l| feature_layer.is_some_and(|f| l >= f));
            (!apart && !unread && self.config.lists(&module)).then_some(module)
        });
        let keys: Vec<String> = missing
            .flat_map(|module| ["A", "B"].map(|f| format!("{PEFT_WRAP}{module}.lora_{f}.weight")))
            .collect();
        if keys.is_empty() {
            return Ok(());
        }
        Err(self.fail(format!(
            "{} tensors of the adapter are missing, which adapter_config.json asks for: {}; PEFT would leave these linears without an adapter: download the file again, or correct adapter_config.json (target_modules, exclude_modules, layers_to_transform)",
            keys.len(),
            list(&keys)
        )))
    }
}

/// What a file calls the linears of a tower.
#[derive(Clone, Copy)]
enum Names {
    /// As the family's checkpoints do.
    Files,
    /// As PEFT does on transformers 5, where that differs.
    Peft,
}

impl Names {
    /// The name, without what PEFT puts before it, of the linear at a canonical path.
    fn inner(self, path: &str, section: Section, config: &SqLlavaConfig) -> String {
        let inner = &path[section.canonical().len()..];
        let vision = config
            .vision
            .as_ref()
            .filter(|_| section == Section::Vision);
        let Some(vision) = vision else {
            return inner.to_owned();
        };
        match self {
            Self::Files => vision.file_name(inner),
            Self::Peft => vision.peft_name(inner),
        }
    }
}

/// What PEFT puts before the names of each tower's linears, and which names these are.
fn prefixes(
    pairs: &BTreeMap<String, Pair>,
    config: &SqLlavaConfig,
) -> BTreeMap<Section, (String, Names)> {
    let known = pairs.iter().filter_map(|(path, pair)| {
        let section = Section::of(path)?;
        let found = [Names::Files, Names::Peft].into_iter().find_map(|names| {
            let inner = names.inner(path, section, config);
            Some((pair.module.strip_suffix(&inner)?.to_owned(), names))
        })?;
        Some((section, found))
    });
    known.collect()
}

/// The layer of a linear of the vision tower.
fn vision_layer(path: &str) -> Option<usize> {
    let rest = path.strip_prefix("vision_tower.encoder.layers.")?;
    rest.split('.').next()?.parse().ok()
}

/// Gives the linears that an adapter names their factors and puts the factors' tensors into the
/// map. Linears are found by their full path; a tensor that finds none is an error unless
/// `allow_unused`. Returns what the load report should say.
///
/// # Errors
/// If a tensor has no linear, or only one factor of two, or another rank than the configuration, or
/// a linear that the configuration lists has none.
pub(super) fn attach<B: Backend>(
    model: &mut SqLlava<B>,
    adapters: Vec<Adapter>,
    weights: &mut WeightMap,
    allow_unused: bool,
) -> Result<Vec<String>, ModelError> {
    let mut notes = Vec::new();
    for mut adapter in adapters {
        let (mut pairs, mut strangers) = adapter.pairs()?;
        notes.extend(configure(&mut adapter, &mut pairs)?);
        let prefixes = prefixes(&pairs, &model.config);
        let (mut placed, mut without) = (Vec::new(), Vec::new());
        for Adaptable {
            path,
            number,
            linear,
        } in model.linears_mut()
        {
            let Some(pair) = pairs.remove(&path) else {
                without.push(path);
                continue;
            };
            if let Some(config) = &pair.config {
                *linear = linear.clone().with_lora(config, number);
            }
            placed.push((path, pair));
        }
        adapter.check_complete(&prefixes, &without, &model.config)?;
        for (path, pair) in placed {
            for (factor, tensor) in [("A", pair.a), ("B", pair.b)] {
                if let Some(tensor) = tensor {
                    weights.insert(format!("{path}.lora_{factor}.weight"), tensor)?;
                }
            }
        }
        strangers.extend(
            pairs
                .into_values()
                .flat_map(|pair| [pair.a, pair.b])
                .flatten()
                .map(|tensor| tensor.name),
        );
        if !strangers.is_empty() && !allow_unused {
            return Err(adapter.fail(format!(
                "{} tensors of the adapter find no linear in this model: {} (--allow-unused goes on without them)",
                strangers.len(),
                list(&strangers)
            )));
        }
        weights.strange(strangers);
    }
    Ok(notes)
}

/// Gives each pair of factors its rank and strength. Returns what the load report should say of
/// those that no file tells.
fn configure(
    adapter: &mut Adapter,
    pairs: &mut BTreeMap<String, Pair>,
) -> Result<Option<String>, ModelError> {
    let mut guessed = None;
    for (path, pair) in pairs {
        let (config, guess) = adapter.configure(path, pair)?;
        if guess {
            guessed = Some((config.r, config.lora_alpha));
        }
        pair.config = Some(config);
    }
    Ok(guessed.map(|(r, alpha)| {
        format!(
            "{}: the adapters of the vision tower have rank {r}; no file says their alpha, {alpha} is taken",
            adapter.file.display()
        )
    }))
}

/// The canonical paths of all linears that can be adapted, with the adapters of those that are.
pub(super) fn adapters<B: Backend>(model: &SqLlava<B>) -> Vec<(String, Option<&Lora<B>>)> {
    let linears = model.linears();
    linears
        .map(|(path, linear)| (path, linear.lora.as_ref()))
        .collect()
}
