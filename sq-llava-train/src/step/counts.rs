//! How many parameters a recipe trains, by arithmetic.

use sq_llava_model::config::{ProjectorConfig, SqLlavaConfig};

use crate::recipe::Recipe;
use crate::step::groups::ParamGroup;

/// Trainable values of each group in a stage, in the order of [`ParamGroup::ALL`], of a model that
/// brings no adapters of its own.
pub(crate) fn trainable_counts(config: &SqLlavaConfig, recipe: &Recipe, stage: u8) -> [usize; 3] {
    let settings = recipe.stage(stage);
    let mut counts = [0; 3];
    let projector = &mut counts[ParamGroup::Projector.index()];
    if settings.lr_projector > 0.0 {
        if !settings.freeze_projector {
            let parts = config.parameters();
            *projector += parts.projector + parts.prototype;
            if let (ProjectorConfig::Cluster(_), Some(width)) =
                (&config.projector, config.feature_width())
            {
                // ln_1 is loaded and kept but unused.
                *projector -= 2 * width;
            }
        }
        // Rows of the embedding, and of the head where it has its own.
        let role = recipe.asking_role(stage);
        let rows = settings.template.special_tokens(role.as_ref()).len();
        let matrices = if config.llama.tie_word_embeddings {
            1
        } else {
            2
        };
        *projector += matrices * rows * config.llama.hidden_size;
    }
    if stage == 2 && settings.lr_llm > 0.0 {
        let lora = recipe.lora.llm.config();
        counts[ParamGroup::Llm.index()] =
            lora.map_or(0, |lora| config.llama.lora_parameters(&lora));
    }
    if let (2, true, Some(vision)) = (stage, settings.lr_vision > 0.0, &config.vision) {
        let lora = recipe.lora.vision.config();
        counts[ParamGroup::Vision.index()] = lora.map_or(0, |lora| vision.lora_parameters(&lora));
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::Flavour;
    use crate::step::groups::Trains;
    use crate::step::memory::StepMemory;

    /// The numbers of the method's sizes at 7B and 13B.
    #[test]
    fn published_recipes_train_the_published_sizes() {
        let mut config = SqLlavaConfig::preset("sq-llava-7b").unwrap();
        let paper = Recipe::published(Flavour::Paper);
        let projector = 4_198_400 + 20_979_712;
        assert_eq!(trainable_counts(&config, &paper, 1), [0, projector, 0]);
        // Four rows of new tokens in the embedding and in the head.
        let rows = 2 * 4 * 4096;
        assert_eq!(
            trainable_counts(&config, &paper, 2),
            [319_815_680, projector + rows, 14_155_776]
        );
        // Of the tower's 24 layers 23 stand before the features.
        assert_eq!(14_155_776 / 24 * 23, 13_565_952);

        let mut frozen = paper.clone();
        frozen.stage2.freeze_projector = true;
        frozen.lora.vision.r = 0;
        assert_eq!(
            trainable_counts(&config, &frozen, 2),
            [319_815_680, rows, 0]
        );

        let larger = SqLlavaConfig::preset("sq-llava-13b").unwrap();
        assert_eq!(trainable_counts(&larger, &paper, 2)[0], 500_695_040);

        let released = Recipe::published(Flavour::Released);
        config.prototype = None;
        config.projector = released.model.projector().unwrap();
        let cluster = 24_130_562 - 2 * 1024;
        assert_eq!(
            trainable_counts(&config, &released, 2),
            [319_815_680, cluster, 0]
        );
    }

    /// Those over the towers of today: they train what their comments say, and a step of them fits
    /// into 80 GB.
    #[test]
    fn recipes_over_siglip_and_qwen3() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/configs");
        let config = SqLlavaConfig::preset("siglip-so400m-qwen3-1.7b").unwrap();
        for (name, stage, global) in [
            ("pretrain-siglip-qwen3-1.7b.toml", 1, 256),
            ("finetune-siglip-qwen3-1.7b.toml", 2, 128),
        ] {
            let recipe = Recipe::read(&folder.join(name), &[]).unwrap();
            assert_eq!(recipe.stages, [stage], "{name}");
            assert_eq!(recipe.stage(stage).samples_per_step(), global, "{name}");
            assert_eq!(recipe.model.select_layer.list(), config.select_layers);
            let [llm, projector, vision] = trainable_counts(&config, &recipe, stage);
            assert!(projector > 0);
            assert_eq!((llm > 0, vision > 0), (stage == 2, stage == 2), "{name}");
            let trains = Trains {
                llm: llm > 0,
                projector: true,
                new_tokens: stage == 2,
                vision: vision > 0,
            };
            let values = llm + projector + vision;
            let memory = StepMemory::of_stage(&config, &recipe, stage, trains, values);
            let bytes = memory.estimate(recipe.gradient_checkpointing).total();
            assert!(bytes < 80_000_000_000, "{name}: {bytes}");
        }
    }
}
