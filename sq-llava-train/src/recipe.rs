//! What to train and how: a TOML file, every field of it documented here, with the published
//! settings as defaults.
//!
//! A recipe names only what differs from its flavour. `key=value` on the command line changes one
//! field (`stage2.lr_llm=1e-4`); a key that does not exist is an error.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sq_llava_data::Template;
use sq_llava_model::config::{ProjectorConfig, PrototypeConfig};
use sq_llava_model::lora::LoraConfig;

use crate::error::TrainError;

/// Which of the two variants of the method the defaults follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flavour {
    /// arXiv 2403.11299: prototype extractor φ before `mlp2x_gelu`, role tokens of template `sq`,
    /// LoRA on both towers.
    Paper,
    /// The released code: the `cluster` projector, template `v1_sq`, first turn never asked,
    /// vision adapters that do not train.
    Released,
}

/// Number format of the frozen base weights. What trains is always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseDtype {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// 16 bits with the range of f32; slow on CPUs.
    Bf16,
}

/// A whole training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Variant that gives the defaults of all other fields.
    pub flavour: Flavour,
    /// Stages to run, in order: `[1]`, `[2]` or `[1, 2]`.
    pub stages: Vec<u8>,
    /// Seed of everything random: initial weights, order, asking draws, dropout.
    pub seed: u64,
    /// Number format of the frozen base weights.
    pub dtype: BaseDtype,
    /// A run directory whose projector (and prototypes) a run without stage 1 starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// One progress line every so many steps where there is no terminal.
    pub log_every: usize,
    /// A checkpoint every so many steps; 0 for none but the last.
    pub save_every: usize,
    /// How many of those checkpoints are kept.
    pub keep_checkpoints: usize,
    /// Threads that read and decode images.
    pub workers: usize,
    /// Memory for features of images while the vision tower does not train, in MiB.
    pub feature_cache_mib: usize,
    /// What stands between the vision tower and the LLM.
    pub model: ModelRecipe,
    /// Stage 1: the projector and the prototypes learn captions; both towers are frozen.
    pub stage1: StageRecipe,
    /// Stage 2: adapters on both towers; the joint loss of asking and answering.
    pub stage2: StageRecipe,
    /// Adapters of stage 2.
    pub lora: LoraRecipe,
    /// Visual self-questioning.
    pub asking: AskingRecipe,
    /// The loss.
    pub loss: LossRecipe,
}

/// What stands between the vision tower and the LLM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// `mlp2x_gelu` (any `mlpNx_gelu`), `linear`, or `cluster`, the released prototype extractor.
    pub mm_projector_type: String,
    /// The paper's prototype extractor before the projector. Not together with `cluster`.
    pub prototype: bool,
    /// Number of centres K.
    pub num_centers: usize,
    /// EM steps T.
    pub num_iterations: usize,
    /// Draw new initial centres in each training forward instead of keeping one draw.
    pub redraw_centers: bool,
    /// Hidden layer of the vision tower whose tokens are used; −2 is the last but one.
    pub select_layer: i64,
    /// `pad`, `crop` or `resize`: how a picture becomes square.
    pub image_aspect_ratio: String,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecipe {
    /// LLaVA JSON or JSONL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Folder that its image paths start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// Conversation template: `plain`, `v1`, `v1_sq` or `sq`.
    pub template: Template,
    /// Passes over the data.
    pub epochs: usize,
    /// Samples that go through the model at once.
    pub batch_size: usize,
    /// Such batches in one optimizer step.
    pub accumulation: usize,
    /// Peak learning rate of the LLM's adapters; 0 freezes them.
    pub lr_llm: f64,
    /// Peak learning rate of projector, prototypes and the rows of new tokens.
    pub lr_projector: f64,
    /// Peak learning rate of the vision tower's adapters; 0 freezes them, and then the tower runs
    /// without a graph.
    pub lr_vision: f64,
    /// Part of the steps over which the rates rise from 0.
    pub warmup_ratio: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// AdamW's decay rates of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest norm of all gradients together; 0 leaves them as they are.
    pub clip_norm: f64,
    /// Longest sequence in tokens, image tokens included; longer ones are cut at a turn.
    pub max_length: usize,
}

/// Adapters of stage 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraRecipe {
    /// On the LLM.
    pub llm: AdapterRecipe,
    /// On the vision tower.
    pub vision: AdapterRecipe,
}

/// Adapters of one tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecipe {
    /// Rank; 0 for no adapters.
    pub r: usize,
    /// Numerator of the scaling `alpha / r`.
    pub alpha: f64,
    /// Probability that an input element is dropped in training.
    pub dropout: f64,
    /// Names of the linears in each layer that are adapted.
    pub targets: Vec<String>,
}

/// Visual self-questioning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskingRecipe {
    /// Probability δ that an eligible human turn is asked by the model; 0 switches asking off.
    pub delta: f64,
    /// Whether the first turn is eligible (paper) or not (released code).
    pub first_turn: bool,
}

/// The loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossRecipe {
    /// Weight of the tokens of asked questions.
    pub question_weight: f64,
    /// Weight of the tokens of answers.
    pub answer_weight: f64,
    /// Tokens whose logits are in memory at once.
    pub chunk_tokens: usize,
}

impl Recipe {
    /// The published settings.
    pub fn published(flavour: Flavour) -> Self {
        let paper = flavour == Flavour::Paper;
        let stage = |template, batch_size, accumulation| StageRecipe {
            data: None,
            images: None,
            template,
            epochs: 1,
            batch_size,
            accumulation,
            lr_llm: 0.0,
            lr_projector: 1e-3,
            lr_vision: 0.0,
            warmup_ratio: 0.03,
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            eps: 1e-8,
            clip_norm: 1.0,
            max_length: 2048,
        };
        let adapter = |lora: LoraConfig| AdapterRecipe {
            r: lora.r,
            alpha: lora.lora_alpha,
            dropout: lora.lora_dropout,
            targets: lora.target_modules,
        };
        Self {
            flavour,
            stages: vec![1, 2],
            seed: 0,
            dtype: BaseDtype::F32,
            init_from: None,
            log_every: 10,
            save_every: 0,
            keep_checkpoints: 2,
            workers: 2,
            feature_cache_mib: 512,
            model: ModelRecipe {
                mm_projector_type: if paper { "mlp2x_gelu" } else { "cluster" }.into(),
                prototype: paper,
                num_centers: 256,
                num_iterations: 2,
                redraw_centers: false,
                select_layer: -2,
                image_aspect_ratio: "pad".into(),
            },
            stage1: stage(Template::Plain, 16, 16),
            stage2: StageRecipe {
                lr_llm: 2e-4,
                lr_projector: 2e-5,
                lr_vision: if paper { 2e-5 } else { 0.0 },
                ..stage(if paper { Template::Sq } else { Template::V1Sq }, 8, 16)
            },
            lora: LoraRecipe {
                llm: adapter(LoraConfig::llm(128, 256.0, 0.05)),
                vision: adapter(if paper {
                    LoraConfig::vision(32, 64.0, 0.2)
                } else {
                    LoraConfig::vision(64, 128.0, 0.2)
                }),
            },
            asking: AskingRecipe {
                delta: 0.5,
                first_turn: paper,
            },
            loss: LossRecipe {
                question_weight: 1.0,
                answer_weight: 1.0,
                chunk_tokens: 128,
            },
        }
    }

    /// Reads a recipe and applies `key=value` changes.
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, has a key that does not exist or a value that
    /// cannot be used.
    pub fn read(path: &Path, changes: &[String]) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(|e| TrainError::io(path, e))?;
        Self::parse(&text, changes).map_err(|error| match error {
            TrainError::Recipe(reason) => {
                TrainError::Recipe(format!("{}: {reason}", path.display()))
            }
            other => other,
        })
    }

    /// [`Self::read`] from text.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, changes: &[String]) -> Result<Self, TrainError> {
        let mut given: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| TrainError::Recipe(e.to_string().trim_end().into()))?;
        for change in changes {
            apply(&mut given, change)?;
        }
        let flavour = match given.get("flavour") {
            None => Flavour::Paper,
            Some(value) => value.clone().try_into().map_err(|_| {
                TrainError::Recipe(format!(
                    "flavour is {value}; known are \"paper\" and \"released\""
                ))
            })?,
        };
        let defaults = toml::Table::try_from(Self::published(flavour))
            .map_err(|e| TrainError::Internal(format!("the default recipe is not TOML: {e}")))?;
        let mut whole = defaults;
        merge(&mut whole, given);
        let recipe: Self = whole
            .try_into()
            .map_err(|e: toml::de::Error| TrainError::Recipe(e.to_string().trim_end().into()))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// The recipe as TOML, with every field.
    ///
    /// # Errors
    /// If a path in it is not Unicode.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        toml::to_string(self).map_err(|e| TrainError::Recipe(format!("cannot be written: {e}")))
    }

    /// The settings of stage 1 or 2.
    pub fn stage(&self, stage: u8) -> &StageRecipe {
        if stage == 1 {
            &self.stage1
        } else {
            &self.stage2
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// If a value cannot be used; the message names the key.
    pub fn validate(&self) -> Result<(), TrainError> {
        let fail = |reason: String| Err(TrainError::Recipe(reason));
        if !matches!(self.stages[..], [1] | [2] | [1, 2]) {
            return fail(format!(
                "stages is {:?}; it can be [1], [2] or [1, 2]",
                self.stages
            ));
        }
        if ProjectorConfig::from_name(&self.model.mm_projector_type, None).is_none() {
            return fail(format!(
                "model.mm_projector_type is \"{}\"; known are linear, mlp2x_gelu (any mlpNx_gelu), cluster and identity",
                self.model.mm_projector_type
            ));
        }
        if self.model.mm_projector_type == "cluster" && self.model.prototype {
            return fail(
                "model.prototype must be false with the projector \"cluster\", which has prototypes of its own"
                    .into(),
            );
        }
        if !matches!(&*self.model.image_aspect_ratio, "pad" | "crop" | "resize") {
            return fail(format!(
                "model.image_aspect_ratio is \"{}\"; known are pad, crop and resize",
                self.model.image_aspect_ratio
            ));
        }
        positive("model.num_centers", self.model.num_centers)?;
        positive("log_every", self.log_every)?;
        positive("keep_checkpoints", self.keep_checkpoints)?;
        positive("workers", self.workers)?;
        positive("loss.chunk_tokens", self.loss.chunk_tokens)?;
        within("asking.delta", self.asking.delta, 0.0, 1.0)?;
        within(
            "loss.question_weight",
            self.loss.question_weight,
            0.0,
            f64::MAX,
        )?;
        within("loss.answer_weight", self.loss.answer_weight, 0.0, f64::MAX)?;
        for (name, adapter) in [("llm", &self.lora.llm), ("vision", &self.lora.vision)] {
            adapter.validate(name)?;
        }
        for &stage in &self.stages {
            self.stage(stage).validate(stage)?;
        }
        Ok(())
    }
}

impl ModelRecipe {
    /// The projector's configuration.
    pub fn projector(&self) -> Option<ProjectorConfig> {
        let mut projector =
            ProjectorConfig::from_name(&self.mm_projector_type, Some(self.num_centers))?;
        if let ProjectorConfig::Cluster(cluster) = &mut projector {
            cluster.num_iterations = self.num_iterations;
        }
        Some(projector)
    }

    /// The prototype extractor's configuration for image tokens of width `hidden_size`.
    pub fn prototype(&self, hidden_size: usize, seed: u64) -> Option<PrototypeConfig> {
        self.prototype.then(|| {
            PrototypeConfig::new(hidden_size)
                .with_num_centers(self.num_centers)
                .with_num_iterations(self.num_iterations)
                .with_redraw_centers(self.redraw_centers)
                .with_seed(seed)
        })
    }
}

impl StageRecipe {
    /// Samples of one optimizer step.
    pub fn samples_per_step(&self) -> usize {
        self.batch_size * self.accumulation
    }

    fn validate(&self, stage: u8) -> Result<(), TrainError> {
        let key = |name: &str| format!("stage{stage}.{name}");
        positive(&key("epochs"), self.epochs)?;
        positive(&key("batch_size"), self.batch_size)?;
        positive(&key("accumulation"), self.accumulation)?;
        positive(&key("max_length"), self.max_length)?;
        for (name, rate) in [
            ("lr_llm", self.lr_llm),
            ("lr_projector", self.lr_projector),
            ("lr_vision", self.lr_vision),
        ] {
            within(&key(name), rate, 0.0, 1.0)?;
        }
        within(&key("warmup_ratio"), self.warmup_ratio, 0.0, 1.0)?;
        within(&key("weight_decay"), self.weight_decay, 0.0, 1.0)?;
        within(&key("betas"), self.betas[0], 0.0, 0.999_999)?;
        within(&key("betas"), self.betas[1], 0.0, 0.999_999)?;
        within(&key("eps"), self.eps, f64::MIN_POSITIVE, 1.0)?;
        within(&key("clip_norm"), self.clip_norm, 0.0, f64::MAX)?;
        if self.template == Template::Llama2 {
            return Err(TrainError::Recipe(format!(
                "{} is llama_2; training knows plain, v1, v1_sq and sq",
                key("template")
            )));
        }
        if stage == 1 && (self.lr_llm > 0.0 || self.lr_vision > 0.0) {
            return Err(TrainError::Recipe(
                "stage 1 trains projector and prototypes only: stage1.lr_llm and stage1.lr_vision must be 0"
                    .into(),
            ));
        }
        if self.lr_llm + self.lr_projector + self.lr_vision <= 0.0 {
            return Err(TrainError::Recipe(format!(
                "stage{stage}: every learning rate is 0, nothing would train"
            )));
        }
        Ok(())
    }
}

impl AdapterRecipe {
    /// The adapters' configuration; `None` if there are none.
    pub fn config(&self) -> Option<LoraConfig> {
        (self.r > 0).then(|| LoraConfig {
            r: self.r,
            lora_alpha: self.alpha,
            lora_dropout: self.dropout,
            target_modules: self.targets.clone(),
            use_rslora: false,
        })
    }

    fn validate(&self, tower: &str) -> Result<(), TrainError> {
        let key = |name: &str| format!("lora.{tower}.{name}");
        within(&key("dropout"), self.dropout, 0.0, 0.99)?;
        within(&key("alpha"), self.alpha, 0.0, f64::MAX)?;
        let known = match tower {
            "llm" => LoraConfig::llm(1, 1.0, 0.0),
            _ => LoraConfig::vision(1, 1.0, 0.0),
        };
        if let Some(wrong) = self.targets.iter().find(|t| !known.targets(t)) {
            return Err(TrainError::Recipe(format!(
                "{} has \"{wrong}\"; known are {}",
                key("targets"),
                known.target_modules.join(", ")
            )));
        }
        if self.r > 0 && self.targets.is_empty() {
            return Err(TrainError::Recipe(format!(
                "{} is empty; set {} to 0 for no adapters",
                key("targets"),
                key("r")
            )));
        }
        Ok(())
    }
}

fn positive(key: &str, value: usize) -> Result<(), TrainError> {
    match value {
        0 => Err(TrainError::Recipe(format!(
            "{key} is 0; it must be at least 1"
        ))),
        _ => Ok(()),
    }
}

fn within(key: &str, value: f64, low: f64, high: f64) -> Result<(), TrainError> {
    if value.is_finite() && (low..=high).contains(&value) {
        return Ok(());
    }
    let bounds = match high {
        f64::MAX => format!("at least {low}"),
        _ => format!("from {low} to {high}"),
    };
    Err(TrainError::Recipe(format!(
        "{key} is {value}; it must be {bounds}"
    )))
}

/// Puts the values of `given` over those of `whole`, table by table.
fn merge(whole: &mut toml::Table, given: toml::Table) {
    for (key, value) in given {
        match (whole.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) => merge(inner, value),
            // A whole number may stand for a decimal one.
            (Some(slot @ toml::Value::Float(_)), toml::Value::Integer(n)) => {
                *slot = toml::Value::Float(n as f64);
            }
            (_, value) => {
                whole.insert(key, value);
            }
        }
    }
}

/// Applies `a.b=value`; a value that is not TOML is taken as a string.
fn apply(table: &mut toml::Table, change: &str) -> Result<(), TrainError> {
    let Some((key, value)) = change.split_once('=') else {
        return Err(TrainError::Recipe(format!(
            "\"{change}\" is not of the form key=value"
        )));
    };
    let (key, value) = (key.trim(), value.trim());
    let value = match format!("value = {value}").parse::<toml::Table>() {
        Ok(mut parsed) => parsed.remove("value"),
        Err(_) => None,
    }
    .unwrap_or_else(|| toml::Value::String(value.to_owned()));

    let mut names: Vec<&str> = key.split('.').collect();
    // `split` yields at least one part.
    let last = names.pop().unwrap_or_default();
    if last.is_empty() || names.iter().any(|name| name.is_empty()) {
        return Err(TrainError::Recipe(format!("\"{change}\" has an empty key")));
    }
    let mut table = table;
    for name in names {
        let inner = table
            .entry(name)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = match inner {
            toml::Value::Table(inner) => inner,
            _ => {
                return Err(TrainError::Recipe(format!(
                    "\"{key}\": \"{name}\" is not a table"
                )));
            }
        };
    }
    table.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, changes: &[&str]) -> Result<Recipe, TrainError> {
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        Recipe::parse(text, &changes)
    }

    #[test]
    fn an_empty_recipe_is_the_published_one() {
        let recipe = parse("", &[]).unwrap();
        assert_eq!(recipe, Recipe::published(Flavour::Paper));
        assert_eq!(recipe.stage1.samples_per_step(), 256);
        assert_eq!(recipe.stage2.samples_per_step(), 128);
        let released = parse("flavour = \"released\"", &[]).unwrap();
        assert_eq!(released.model.mm_projector_type, "cluster");
        assert_eq!(released.lora.vision.r, 64);
        assert!(!released.asking.first_turn);
    }

    #[test]
    fn files_and_changes_set_single_fields() {
        let text = "[stage2]\nlr_llm = 1e-3\nepochs = 3\n[lora.llm]\nr = 8\n";
        let recipe = parse(
            text,
            &[
                "stage2.epochs=5",
                "lora.llm.alpha=16",
                "stage1.data=a/b.json",
            ],
        );
        let recipe = recipe.unwrap();
        assert_eq!(recipe.stage2.lr_llm, 1e-3);
        assert_eq!(recipe.stage2.epochs, 5);
        assert_eq!((recipe.lora.llm.r, recipe.lora.llm.alpha), (8, 16.0));
        assert_eq!(recipe.stage1.data.as_deref(), Some(Path::new("a/b.json")));
        // What was not named keeps its published value.
        assert_eq!(recipe.stage2.lr_projector, 2e-5);
        let again = Recipe::parse(&recipe.to_toml().unwrap(), &[]).unwrap();
        assert_eq!(again, recipe);
    }

    #[test]
    fn unknown_keys_are_refused_wherever_they_stand() {
        for (text, change) in [
            ("learning_rate = 1.0", None),
            ("[stage1]\nlr = 1e-3", None),
            ("", Some("lora.llm.rank=3")),
            ("", Some("nonsense.deep=3")),
        ] {
            let error = parse(text, change.as_slice()).unwrap_err().to_string();
            assert!(
                error.contains("unknown field"),
                "{text} {change:?}: {error}"
            );
        }
    }

    #[test]
    fn impossible_values_name_their_key() {
        for (change, key) in [
            ("stage1.epochs=0", "stage1.epochs"),
            ("asking.delta=1.5", "asking.delta"),
            ("stages=[2,1]", "stages"),
            ("stage1.lr_llm=1e-4", "stage1.lr_llm"),
            ("model.mm_projector_type=mlp", "mm_projector_type"),
            ("model.mm_projector_type=cluster", "model.prototype"),
            (
                "lora.vision.targets=[\"q_proj\",\"up_proj\"]",
                "lora.vision.targets",
            ),
            ("stage2.betas=[0.9,1.0]", "stage2.betas"),
            ("stage2.template=v3", "v3"),
            ("flavour=mine", "flavour"),
            ("stage1", "key=value"),
            ("seed.x=1", "seed"),
        ] {
            let error = parse("seed = 3", &[change]).unwrap_err().to_string();
            assert!(error.contains(key), "{change}: {error}");
        }
    }
}
