//! The adapters of stage 2.

use serde::{Deserialize, Serialize};
use sq_llava_model::ops::lora::LoraConfig;

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
}
