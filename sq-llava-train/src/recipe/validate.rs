//! Which values a recipe can have.

use sq_llava_data::Template;
use sq_llava_model::config::ProjectorConfig;
use sq_llava_model::ops::lora::LoraConfig;

use super::{AdapterRecipe, Recipe, StageRecipe};
use crate::error::TrainError;

impl Recipe {
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
        for (place, device) in self.devices.iter().enumerate() {
            if *device > usize::from(u16::MAX) || self.devices[..place].contains(device) {
                return fail(format!(
                    "devices has {device}, which is too large or there already"
                ));
            }
        }
        within("asking.delta", self.asking.delta, 0.0, 1.0)?;
        within("asking.delta_end", self.asking.delta_end, 0.0, 1.0)?;
        for (source, delta) in &self.asking.sources {
            within(&format!("asking.sources.{source}"), *delta, 0.0, 1.0)?;
        }
        within(
            "loss.question_weight",
            self.loss.question_weight,
            0.0,
            f64::MAX,
        )?;
        within("loss.answer_weight", self.loss.answer_weight, 0.0, f64::MAX)?;
        within("validation.fraction", self.validation.fraction, 0.0, 0.99)?;
        let held = self.validation.fraction > 0.0
            || self
                .stages
                .iter()
                .any(|&s| self.stage(s).validation.is_some());
        if held != (self.validation.every > 0) {
            return fail(
                "validation.every goes with samples to validate on: set validation.fraction or stage1.validation, stage2.validation, or neither"
                    .into(),
            );
        }
        for (name, adapter) in [("llm", &self.lora.llm), ("vision", &self.lora.vision)] {
            adapter.validate(name)?;
        }
        for &stage in &self.stages {
            self.stage(stage).validate(stage)?;
        }
        Ok(())
    }
}

impl StageRecipe {
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
        if stage == 1 && self.freeze_projector {
            return Err(TrainError::Recipe(
                "stage1.freeze_projector is true, but the projector is what stage 1 trains".into(),
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
