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

    /// The model that each recipe of the examples is for, and its global batches.
    const SHIPPED: [(&str, &str, [usize; 2]); 15] = [
        ("pretrain-7b.toml", "sq-llava-7b", [256, 0]),
        ("finetune-7b.toml", "sq-llava-7b", [0, 128]),
        ("pretrain-13b.toml", "sq-llava-13b", [256, 0]),
        ("finetune-13b.toml", "sq-llava-13b", [0, 128]),
        ("pretrain-7b-released.toml", "sq-llava-7b", [256, 0]),
        ("finetune-7b-released.toml", "sq-llava-7b", [0, 128]),
        ("pretrain-13b-released.toml", "sq-llava-13b", [256, 0]),
        ("finetune-13b-released.toml", "sq-llava-13b", [0, 128]),
        (
            "pretrain-siglip-qwen3-1.7b.toml",
            "siglip-so400m-qwen3-1.7b",
            [256, 0],
        ),
        (
            "finetune-siglip-qwen3-1.7b.toml",
            "siglip-so400m-qwen3-1.7b",
            [0, 128],
        ),
        ("finetune-llava-v1.6-7b.toml", "llava-v1.6-7b", [0, 128]),
        (
            "finetune-onevision-qwen2-0.5b.toml",
            "onevision-qwen2-0.5b",
            [0, 128],
        ),
        // Of this project's own pictures.
        ("photos.toml", "tiny", [0, 0]),
        ("pictures.toml", "tiny", [0, 0]),
        ("tiny.toml", "tiny", [0, 0]),
    ];

    fn configs() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/configs")
    }

    /// Every recipe that is shipped is read, is for a model that it fits, and trains what its stage is
    /// for; a step over the towers of today fits into one GPU of 80 GB.
    #[test]
    fn every_shipped_recipe_fits_its_model() {
        let mut found: Vec<String> = std::fs::read_dir(configs())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            // Settings of judges.
            .filter(|name| name != "judge.toml")
            .collect();
        found.sort();
        let mut listed = SHIPPED.map(|(name, ..)| name.to_owned()).to_vec();
        listed.push("world.toml".into());
        listed.sort();
        assert_eq!(found, listed);
        Recipe::read(&configs().join("world.toml"), &[]).unwrap();
        for (name, preset, global) in SHIPPED {
            let recipe = Recipe::read(&configs().join(name), &[]).unwrap();
            if preset == "tiny" {
                continue;
            }
            let mut config = SqLlavaConfig::preset(preset).unwrap();
            assert_eq!(
                recipe.model.select_layer.list(),
                config.select_layers,
                "{name}"
            );
            if !recipe.model.prototype {
                config.prototype = None;
            }
            config.projector = recipe.model.projector().unwrap();
            for stage in recipe.stages.iter().copied() {
                let settings = recipe.stage(stage);
                assert_eq!(
                    settings.samples_per_step(),
                    global[usize::from(stage) - 1],
                    "{name}"
                );
                // The model's own pictures, and not longer than it can be.
                let tiling = recipe
                    .model
                    .tiling(recipe.image_aspect_ratio(stage), &config);
                assert_eq!(tiling, config.anyres, "{name}");
                assert!(
                    settings.max_length <= config.llama.context_window(),
                    "{name}"
                );
                let [llm, projector, vision] = trainable_counts(&config, &recipe, stage);
                assert!(projector > 0);
                let towers = (stage == 2, stage == 2 && settings.lr_vision > 0.0);
                assert_eq!((llm > 0, vision > 0), towers, "{name}");
                let trains = Trains {
                    llm: llm > 0,
                    projector: true,
                    new_tokens: stage == 2,
                    vision: vision > 0,
                };
                let values = llm + projector + vision;
                let memory = StepMemory::of_stage(&config, &recipe, stage, trains, values);
                let estimate = memory.estimate(recipe.gradient_checkpointing);
                // The published ones are for several.
                let fits = estimate.total() < 80_000_000_000;
                assert!(fits || preset.starts_with("sq-llava"), "{name}: {estimate}");
            }
        }
    }
}
