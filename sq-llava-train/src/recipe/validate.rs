//! Which values a recipe can have.

use sq_llava_data::image::AnyResolution;
use sq_llava_data::{Template, TemplateChoice};
use sq_llava_model::config::{ProjectorConfig, VisionFamily};
use sq_llava_model::ops::lora::LoraConfig;

use super::{AdapterRecipe, Objective, Recipe, StageRecipe};
use crate::error::TrainError;

/// What a count may be at most. A larger one is a slip, and would end in an overflow or in an
/// allocation that ends the process, far from the field that asked for it.
mod most {
    /// Threads.
    pub const WORKERS: usize = 1024;
    /// Devices.
    pub const DEVICES: usize = 64;
    /// MiB: 16 TiB.
    pub const CACHE_MIB: usize = 1 << 24;
    /// Centres of the prototypes.
    pub const CENTERS: usize = 1 << 16;
    /// EM steps.
    pub const ITERATIONS: usize = 1000;
    /// Rank of an adapter: above the width of any LLM it adds nothing.
    pub const RANK: usize = 1 << 14;
    /// Samples that go through the model at once.
    pub const BATCH: usize = 4096;
    /// Samples of an optimizer step, all of which are encoded before its first batch.
    pub const STEP: usize = 1 << 20;
    /// Tokens of a sample.
    pub const LENGTH: usize = 1 << 17;
    /// Tokens whose logits are in memory at once.
    pub const CHUNK: usize = 1 << 20;
    /// Passes over the data.
    pub const EPOCHS: f64 = 1e6;
    /// Factors of the loss and of adapters.
    pub const FACTOR: f64 = 1e6;
    /// Optimizer steps that δ is measured over.
    pub const EVERY: usize = 1 << 30;
    /// Power of a ratio of losses; with a larger one δ jumps between its bounds.
    pub const STRENGTH: f64 = 100.0;
    /// TOML's largest integer: the recipe is saved with the run.
    pub const SEED: u64 = i64::MAX as u64;
}

impl Recipe {
    /// Checks every field.
    ///
    /// # Errors
    /// If a value cannot be used; the message names the key.
    pub fn validate(&self) -> Result<(), TrainError> {
        if !matches!(self.stages[..], [1] | [2] | [1, 2]) {
            return refuse(format!(
                "stages is {:?}; it can be [1], [2] or [1, 2]",
                self.stages
            ));
        }
        self.validate_model()?;
        self.validate_counts()?;
        within("max_bad_images", self.max_bad_images, 0.0, 1.0)?;
        self.validate_devices()?;
        self.validate_thread_groups()?;
        self.validate_asking()?;
        self.validate_loss()?;
        self.validate_validation()?;
        self.report.validate()?;
        for (name, adapter) in [("llm", &self.lora.llm), ("vision", &self.lora.vision)] {
            adapter.validate(name)?;
        }
        for &stage in &self.stages {
            self.stage(stage).validate(stage)?;
        }
        Ok(())
    }

    fn validate_model(&self) -> Result<(), TrainError> {
        if ProjectorConfig::from_name(&self.model.mm_projector_type, None).is_none() {
            return refuse(format!(
                "model.mm_projector_type is \"{}\"; known are linear, mlp2x_gelu (any mlpNx_gelu), cluster and identity",
                self.model.mm_projector_type
            ));
        }
        if self.model.mm_projector_type == "cluster" && self.model.prototype {
            return refuse(
                "model.prototype must be false with the projector \"cluster\", which has prototypes of its own",
            );
        }
        if self.model.select_layer.list().is_empty() {
            return refuse("model.select_layer names no layer of the vision tower");
        }
        if let Some(name) = &self.model.image_aspect_ratio {
            aspect("model.image_aspect_ratio", name)?;
        }
        self.validate_masks()
    }

    fn validate_masks(&self) -> Result<(), TrainError> {
        let Some(masks) = &self.model.masks else {
            return Ok(());
        };
        within("model.masks.weight", masks.weight, 0.0, most::FACTOR)?;
        if !self.model.prototype && self.model.mm_projector_type != "cluster" {
            return refuse(
                "model.masks guides prototypes, and there are none: set model.prototype, or model.mm_projector_type to \"cluster\"",
            );
        }
        if self.model.num_iterations == 0 {
            return refuse(
                "model.masks guides the assignment of tokens to prototypes, which model.num_iterations = 0 leaves out: set it to 1 or more",
            );
        }
        Ok(())
    }

    fn validate_counts(&self) -> Result<(), TrainError> {
        if self.seed > most::SEED {
            return refuse(format!(
                "seed is {}; it must be at most {}",
                self.seed,
                most::SEED
            ));
        }
        let (model, loss) = (&self.model, &self.loss);
        for (key, value, least, most) in [
            ("model.num_centers", model.num_centers, 1, most::CENTERS),
            (
                "model.num_iterations",
                model.num_iterations,
                0,
                most::ITERATIONS,
            ),
            ("log_every", self.log_every, 1, usize::MAX),
            ("keep_checkpoints", self.keep_checkpoints, 1, usize::MAX),
            ("workers", self.workers, 1, most::WORKERS),
            (
                "feature_cache_mib",
                self.feature_cache_mib,
                0,
                most::CACHE_MIB,
            ),
            ("loss.chunk_tokens", loss.chunk_tokens, 1, most::CHUNK),
        ] {
            count(key, value, least, most)?;
        }
        Ok(())
    }

    fn validate_devices(&self) -> Result<(), TrainError> {
        if self.devices.len() > most::DEVICES {
            return refuse(format!(
                "devices has {} numbers; at most {} devices share a step",
                self.devices.len(),
                most::DEVICES
            ));
        }
        for (place, device) in self.devices.iter().enumerate() {
            if *device > usize::from(u16::MAX) || self.devices[..place].contains(device) {
                return refuse(format!(
                    "devices has {device}, which is too large or there already"
                ));
            }
        }
        Ok(())
    }

    fn validate_thread_groups(&self) -> Result<(), TrainError> {
        let groups = self.groups();
        count("thread_groups", groups, 1, most::DEVICES)?;
        if groups > 1 && !self.devices.is_empty() {
            return refuse("thread_groups share a CPU, and devices names others: leave one out");
        }
        for &stage in &self.stages {
            let batch = self.stage(stage).batch_size;
            if self.stage(stage).objective == Objective::Words && batch < 2 * groups {
                return refuse(format!(
                    "stage{stage}.batch_size is {batch}, of which thread_groups = {groups} leaves no group two samples, and words are learnt by telling samples apart"
                ));
            }
            if !batch.is_multiple_of(groups) {
                return refuse(format!(
                    "stage{stage}.batch_size is {batch}, which thread_groups = {groups} cannot share evenly; 1 leaves it whole"
                ));
            }
        }
        Ok(())
    }

    fn validate_asking(&self) -> Result<(), TrainError> {
        within("asking.delta", self.asking.delta, 0.0, 1.0)?;
        within("asking.delta_end", self.asking.delta_end, 0.0, 1.0)?;
        self.validate_adaptive()?;
        for (source, delta) in &self.asking.sources {
            within(&format!("asking.sources.{source}"), *delta, 0.0, 1.0)?;
        }
        Ok(())
    }

    fn validate_adaptive(&self) -> Result<(), TrainError> {
        let (asking, loss) = (&self.asking, &self.loss);
        for (key, value, low, high) in [
            ("delta_min", asking.delta_min, 1e-6, 1.0),
            ("delta_max", asking.delta_max, 1e-6, 1.0),
            ("smoothing", asking.smoothing, 0.0, 0.999_999),
            ("strength", asking.strength, 0.0, most::STRENGTH),
        ] {
            within(&format!("asking.{key}"), value, low, high)?;
        }
        count("asking.every", asking.every, 1, most::EVERY)?;
        if !asking.is_adaptive() {
            return Ok(());
        }
        if !(asking.delta_min..=asking.delta_max).contains(&asking.delta) {
            return refuse(format!(
                "asking.delta is {}, where an adaptive one starts; it must be from asking.delta_min, {}, to \
                 asking.delta_max, {}",
                asking.delta, asking.delta_min, asking.delta_max
            ));
        }
        for (key, weight) in [
            ("loss.question_weight", loss.question_weight),
            ("loss.answer_weight", loss.answer_weight),
        ] {
            if weight == 0.0 {
                return refuse(format!(
                    "{key} is 0, and asking.schedule = \"adaptive\" compares how far questions and answers \
                     are learnt: give it a weight, or take another schedule"
                ));
            }
        }
        Ok(())
    }

    fn validate_loss(&self) -> Result<(), TrainError> {
        for (key, weight) in [
            ("loss.question_weight", self.loss.question_weight),
            ("loss.answer_weight", self.loss.answer_weight),
        ] {
            within(key, weight, 0.0, most::FACTOR)?;
        }
        Ok(())
    }

    fn validate_validation(&self) -> Result<(), TrainError> {
        within("validation.fraction", self.validation.fraction, 0.0, 0.99)?;
        let held = self.validation.fraction > 0.0
            || self
                .stages
                .iter()
                .any(|&s| self.stage(s).validation.is_some());
        if held != (self.validation.every > 0) {
            return refuse(
                "validation.every goes with samples to validate on: set validation.fraction or stage1.validation, stage2.validation, or neither",
            );
        }
        Ok(())
    }
}

impl StageRecipe {
    fn validate(&self, stage: u8) -> Result<(), TrainError> {
        let key = |name: &str| format!("stage{stage}.{name}");
        if self.data.is_some() && !self.sources.is_empty() {
            return Err(TrainError::Recipe(format!(
                "{} and {} are both given: put the first (it may be --data) among the sources",
                key("data"),
                key("sources")
            )));
        }
        for (number, source) in self.sources.iter().enumerate() {
            source.validate(&key(&format!("sources[{number}]")))?;
        }
        if self.epochs <= 0.0 {
            return refuse(format!(
                "{} is {}; it must be more than 0",
                key("epochs"),
                self.epochs
            ));
        }
        within(&key("epochs"), self.epochs, 0.0, most::EPOCHS)?;
        count(&key("batch_size"), self.batch_size, 1, most::BATCH)?;
        count(&key("accumulation"), self.accumulation, 1, most::STEP)?;
        if self.batch_size * self.accumulation > most::STEP {
            return refuse(format!(
                "{} is {} and {} is {}; an optimizer step has at most {} samples",
                key("batch_size"),
                self.batch_size,
                key("accumulation"),
                self.accumulation,
                most::STEP
            ));
        }
        count(&key("max_length"), self.max_length, 1, most::LENGTH)?;
        if let Some(own) = &self.image_aspect_ratio {
            aspect(&key("image_aspect_ratio"), own)?;
        }
        for (name, value, low, high) in [
            ("lr_llm", self.lr_llm, 0.0, 1.0),
            ("lr_projector", self.lr_projector, 0.0, 1.0),
            ("lr_vision", self.lr_vision, 0.0, 1.0),
            ("warmup_ratio", self.warmup_ratio, 0.0, 1.0),
            ("weight_decay", self.weight_decay, 0.0, 1.0),
            ("betas", self.betas[0], 0.0, 0.999_999),
            ("betas", self.betas[1], 0.0, 0.999_999),
            ("eps", self.eps, f64::MIN_POSITIVE, 1.0),
            ("clip_norm", self.clip_norm, 0.0, f64::MAX),
        ] {
            within(&key(name), value, low, high)?;
        }
        if self.template == TemplateChoice::BuiltIn(Template::Llama2) {
            return refuse(format!(
                "{} is llama_2; training knows plain, v1, v1_sq, sq and checkpoint",
                key("template")
            ));
        }
        self.validate_objective(stage)?;
        self.validate_what_trains(stage)
    }

    fn validate_objective(&self, stage: u8) -> Result<(), TrainError> {
        if self.objective == Objective::Text {
            return Ok(());
        }
        if stage == 2 {
            return refuse(
                "stage2.objective is \"words\", which only the projector can learn: stage 2 learns \"text\"",
            );
        }
        if self.packing {
            return refuse(
                "stage1.packing is true, but with stage1.objective = \"words\" nothing goes through the LLM that could be packed",
            );
        }
        if self.batch_size < Self::LEAST_WORDS_BATCH {
            return refuse(format!(
                "stage1.batch_size is {}, but with stage1.objective = \"words\" a batch's samples are told apart: it must be at least {}, better 64",
                self.batch_size,
                Self::LEAST_WORDS_BATCH
            ));
        }
        Ok(())
    }

    fn validate_what_trains(&self, stage: u8) -> Result<(), TrainError> {
        if stage == 1 && (self.lr_llm > 0.0 || self.lr_vision > 0.0) {
            return refuse(
                "stage 1 trains projector and prototypes only: stage1.lr_llm and stage1.lr_vision must be 0",
            );
        }
        if stage == 1 && self.freeze_projector {
            return refuse(
                "stage1.freeze_projector is true, but the projector is what stage 1 trains",
            );
        }
        if self.lr_llm + self.lr_projector + self.lr_vision <= 0.0 {
            return refuse(format!(
                "stage{stage}: every learning rate is 0, nothing would train"
            ));
        }
        Ok(())
    }
}

impl AdapterRecipe {
    fn validate(&self, tower: &str) -> Result<(), TrainError> {
        let key = |name: &str| format!("lora.{tower}.{name}");
        within(&key("dropout"), self.dropout, 0.0, 0.99)?;
        within(&key("alpha"), self.alpha, 0.0, most::FACTOR)?;
        count(&key("r"), self.r, 0, most::RANK)?;
        let known = match tower {
            "llm" => LoraConfig::llm(1, 1.0, 0.0),
            _ => LoraConfig::vision(1, 1.0, 0.0),
        };
        // Those of DINOv2's files are known by both names.
        let own = match tower {
            "llm" => self.targets.clone(),
            _ => VisionFamily::Dinov2.preset().own_names(&self.targets),
        };
        let wrong = self
            .targets
            .iter()
            .zip(&own)
            .find(|(_, own)| !known.targets(own));
        if let Some((wrong, _)) = wrong {
            return refuse(format!(
                "{} has \"{wrong}\"; known are {}",
                key("targets"),
                known.target_modules.join(", ")
            ));
        }
        if self.r > 0 && self.targets.is_empty() {
            return refuse(format!(
                "{} is empty; set {} to 0 for no adapters",
                key("targets"),
                key("r")
            ));
        }
        Ok(())
    }
}

fn refuse(reason: impl Into<String>) -> Result<(), TrainError> {
    Err(TrainError::Recipe(reason.into()))
}

pub(super) fn count(key: &str, value: usize, least: usize, most: usize) -> Result<(), TrainError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let bounds = match most {
        usize::MAX => format!("at least {least}"),
        _ => format!("from {least} to {most}"),
    };
    refuse(format!("{key} is {value}; it must be {bounds}"))
}

fn aspect(key: &str, value: &str) -> Result<(), TrainError> {
    match value {
        "pad" | "crop" | "resize" => Ok(()),
        tiled if AnyResolution::max_tiles_of(tiled).is_some() => Ok(()),
        _ => refuse(format!(
            "{key} is \"{value}\"; known are pad, crop, resize, anyres and anyres_max_N"
        )),
    }
}

pub(super) fn within(key: &str, value: f64, low: f64, high: f64) -> Result<(), TrainError> {
    if value.is_finite() && (low..=high).contains(&value) {
        return Ok(());
    }
    let bounds = match high {
        f64::MAX => format!("at least {low}"),
        _ => format!("from {low} to {high}"),
    };
    refuse(format!("{key} is {value}; it must be {bounds}"))
}
