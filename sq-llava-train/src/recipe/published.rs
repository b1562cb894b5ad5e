//! The published settings, which every recipe starts from.

use std::collections::BTreeMap;

use sq_llava_data::{DeltaSchedule, Grouping, Template, TemplateChoice};
use sq_llava_model::ops::lora::LoraConfig;

use super::{
    AdapterRecipe, AskingRecipe, AskingRoleKind, BadImagePolicy, BaseDtype, FeatureLayers, Flavour,
    GradientCheckpointing, LoraRecipe, LossRecipe, ModelRecipe, Objective, Recipe, ReportRecipe,
    StageRecipe, ValidationRecipe,
};

impl Recipe {
    /// The published settings.
    pub fn published(flavour: Flavour) -> Self {
        let paper = flavour == Flavour::Paper;
        Self {
            flavour,
            stages: vec![1, 2],
            seed: 0,
            dtype: BaseDtype::F32,
            gradient_checkpointing: GradientCheckpointing::None,
            quantize: None,
            init_from: None,
            log_every: 10,
            save_every: 0,
            keep_checkpoints: 2,
            workers: 2,
            bad_images: BadImagePolicy::Error,
            max_bad_images: 0.1,
            spoken_end_tokens: false,
            devices: Vec::new(),
            thread_groups: None,
            feature_cache_mib: 512,
            model: model(paper),
            stage1: StageRecipe {
                // The released script of stage 1 leaves pictures to CLIP's processor, which crops.
                image_aspect_ratio: (!paper).then(|| "crop".into()),
                ..stage(Template::Plain, 16, 16)
            },
            stage2: StageRecipe {
                grouping: Grouping::ModalityLength,
                lr_llm: 2e-4,
                lr_projector: 2e-5,
                lr_vision: if paper { 2e-5 } else { 0.0 },
                ..stage(if paper { Template::Sq } else { Template::V1Sq }, 8, 16)
            },
            lora: LoraRecipe {
                llm: adapter(LoraConfig::llm(128, 256.0, 0.05)),
                // As in the paper and in the published 7B; the released scripts say 64 and 128.
                // A checkpoint's own adapter_config.json says what it has.
                vision: adapter(LoraConfig::vision(32, 64.0, 0.2)),
            },
            asking: AskingRecipe {
                delta: 0.5,
                schedule: DeltaSchedule::Constant,
                delta_end: 0.5,
                delta_min: 0.1,
                delta_max: 0.9,
                every: 20,
                smoothing: 0.9,
                strength: 1.0,
                first_turn: paper,
                role: AskingRoleKind::Token,
                sources: BTreeMap::new(),
            },
            loss: LossRecipe {
                question_weight: 1.0,
                answer_weight: 1.0,
                chunk_tokens: 128,
            },
            validation: ValidationRecipe {
                every: 0,
                fraction: 0.0,
                patience: 0,
            },
            report: ReportRecipe::standard(),
        }
    }
}

fn model(paper: bool) -> ModelRecipe {
    ModelRecipe {
        mm_projector_type: if paper { "mlp2x_gelu" } else { "cluster" }.into(),
        prototype: paper,
        num_centers: 256,
        num_iterations: 2,
        redraw_centers: false,
        select_layer: FeatureLayers::One(-2),
        // Stage 2 of the released scripts pads what stage 1 cropped.
        image_aspect_ratio: (!paper).then(|| Recipe::IMAGE_ASPECT_RATIO.into()),
        image_grid_pinpoints: None,
        masks: None,
    }
}

fn stage(template: Template, batch_size: usize, accumulation: usize) -> StageRecipe {
    StageRecipe {
        data: None,
        images: None,
        validation: None,
        template: TemplateChoice::BuiltIn(template),
        objective: Objective::Text,
        image_aspect_ratio: None,
        epochs: 1.0,
        batch_size,
        accumulation,
        grouping: Grouping::Random,
        packing: false,
        shuffle_turns: false,
        lr_llm: 0.0,
        lr_projector: 1e-3,
        freeze_projector: false,
        lr_vision: 0.0,
        warmup_ratio: 0.03,
        weight_decay: 0.0,
        betas: [0.9, 0.999],
        eps: 1e-8,
        clip_norm: 1.0,
        max_length: 2048,
        sources: Vec::new(),
    }
}

fn adapter(lora: LoraConfig) -> AdapterRecipe {
    AdapterRecipe {
        r: lora.r,
        alpha: lora.lora_alpha,
        dropout: lora.lora_dropout,
        targets: lora.target_modules,
    }
}
