//! How much a stage computes against another, by arithmetic. Only quotients of it mean anything.

use sq_llava_model::SqLlavaConfig;

use crate::recipe::{GradientCheckpointing, Objective, Recipe};
use crate::step::counts::trainable_counts;

/// What a stage's samples hold on average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SampleSize {
    /// Tokens, images in place.
    pub tokens: f64,
    /// Pictures.
    pub pictures: f64,
}

/// Operations of the forward and backward pass of one sample: two for each weight and token that
/// meet forward, two for the gradient of the input, two for that of a weight that trains, and the
/// forward pass once more with recompute.
pub(crate) fn sample_work(
    config: &SqLlavaConfig,
    recipe: &Recipe,
    stage: u8,
    size: SampleSize,
) -> f64 {
    let again = match recipe.gradient_checkpointing {
        GradientCheckpointing::None => 0.0,
        GradientCheckpointing::Blocks => 2.0,
    };
    let parts = config.parameters();
    let [llm_adapters, connector, vision_adapters] =
        trainable_counts(config, recipe, stage).map(|count| count as f64);
    let through = |weights: usize, adapters: f64| {
        let weights = weights as f64;
        (4.0 + again) * weights + (6.0 + again) * adapters
    };
    let llm = match recipe.stage(stage).objective {
        Objective::Text => through(parts.language_model, llm_adapters) * size.tokens,
        Objective::Words => 0.0,
    };
    let patches = size.pictures * config.tokens_per_image() as f64;
    let tower = match vision_adapters > 0.0 {
        true => through(parts.vision_tower, vision_adapters),
        // Forward alone.
        false => 2.0 * parts.vision_tower as f64,
    };
    llm + (tower + 6.0 * connector) * patches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Flavour;

    /// The 7B: 6.74·10⁹ weights of the LLM and 0.30·10⁹ of the tower, adapters of 0.32·10⁹ and
    /// 0.014·10⁹.
    #[test]
    fn the_published_stages_by_hand() {
        let config = SqLlavaConfig::preset("sq-llava-7b").unwrap();
        let recipe = Recipe::published(Flavour::Paper);
        let size = SampleSize {
            tokens: 1000.0,
            pictures: 1.0,
        };
        let work = |stage| sample_work(&config, &recipe, stage, size);
        // 4 · 6.74e9 · 1000 and 2 · 0.3e9 · 576.
        assert!((work(1) / 27.4e12 - 1.0).abs() < 0.02, "{:e}", work(1));
        // And 6 · 0.32e9 · 1000, 2 · 0.3e9 · 576, 6 · 0.014e9 · 576.
        assert!((work(2) / 29.7e12 - 1.0).abs() < 0.02, "{:e}", work(2));
        let mut again = recipe.clone();
        again.gradient_checkpointing = GradientCheckpointing::Blocks;
        let ratio = sample_work(&config, &again, 1, size) / work(1);
        assert!((ratio - 1.5).abs() < 0.02, "{ratio}");
    }
}
