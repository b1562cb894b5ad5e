use sq_llava_data::image::AnyResolution;

use super::*;
use crate::recipe::Flavour;
use GradientCheckpointing::{Blocks, None as Keep};

const ALL: Trains = Trains {
    llm: true,
    projector: true,
    new_tokens: true,
    vision: true,
};

/// Stage 2 of SQ-LLaVA-7B as published: bf16, 8 samples of 2048 tokens at once.
#[test]
fn seven_billion_by_hand() {
    let config = SqLlavaConfig::preset("sq-llava-7b").expect("a preset");
    let mut recipe = Recipe::published(Flavour::Paper);
    recipe.dtype = BaseDtype::Bf16;
    // Adapters of the LLM, projector, prototypes, adapters of the tower, two rows of 4 tokens.
    let trainable = 319_815_680 + 20_979_712 + 4_198_400 + 14_155_776 + 2 * 4 * 4096;
    let memory = StepMemory::of_stage(&config, &recipe, 2, ALL, trainable);
    let keep = memory.estimate(Keep);
    // 32 layers of 4·4096² + 3·4096·11008 + 2·4096, two tables of 32000·4096, a norm.
    let llm = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096) + 2 * 32000 * 4096 + 4096;
    assert_eq!(llm, 6_738_415_616);
    assert_eq!(
        keep.frozen,
        2 * (llm + config.parameters().vision_tower),
        "projector and prototypes train"
    );
    assert_eq!(keep.trainable, 1_436_729_344);
    assert_eq!(keep.gradients, 2 * 1_436_729_344);
    assert_eq!(keep.moments, 2 * 1_436_729_344);
    assert_eq!(keep.logits, 4 * 128 * 32000 * 4);
    // A token in a layer of the LLM: 2·4096 of the norms; 3·4096 and 2·32·2048 of attention;
    // 4·11008 of the gate; masks and inputs of seven adapters, 2·(6·4096 + 11008), with 7·128.
    let token = 8_192 + 12_288 + 131_072 + 44_032 + 71_168 + 896;
    assert_eq!(token, 267_648);
    // In a layer of the tower: 2·1024; 3·1024 and 2·16·577; 2·4096; 2·(5·1024 + 4096) with
    // 6·32.
    let patch = 2_048 + 3_072 + 18_464 + 8_192 + 18_432 + 192;
    assert_eq!(patch, 50_400);
    let (llm_layer, vit_layer) = (8 * 2048 * token, 8 * 577 * patch);
    assert_eq!(keep.activations, 4 * (32 * llm_layer + 23 * vit_layer));
    let inputs = 32 * 8 * 2048 * 4096 + 23 * 8 * 577 * 1024;
    let blocks = memory.estimate(Blocks);
    assert_eq!(blocks.activations, 4 * (inputs + llm_layer));
    // The CPU's kernels: 4·4096 and 32 of attention, 2·11008 of the gate; in the tower 4·1024
    // and 16, and 4096; no masks.
    let kernels = StepMemory {
        kernels: Kernels::Cpu,
        ..memory.clone()
    };
    let token = 8_192 + 16_416 + 22_016 + 35_584 + 896;
    let patch = 2_048 + 4_112 + 4_096 + 9_216 + 192;
    let layers = 32 * 8 * 2048 * token + 23 * 8 * 577 * patch;
    assert_eq!(kernels.activations(Keep), 4 * layers);
    // A GPU's: 3·4096 of attention, and masks; all in bf16 but for the tower's norms, and the adapters
    // once more in bf16.
    let gpu = StepMemory {
        kernels: Kernels::Gpu,
        ..memory.clone()
    };
    let token = 8_192 + 12_288 + 22_016 + 71_168 + 896;
    let patch = 2 * 2_048 + 3_072 + 4_096 + 18_432 + 192;
    let layers = 32 * 8 * 2048 * token + 23 * 8 * 577 * patch;
    let adapters = 319_815_680 + 14_155_776;
    assert_eq!(gpu.activations(Keep), 2 * (layers + adapters));
    assert_eq!(gpu.estimate(Keep).logits, 128 * 32000 * 2);
    // QLoRA: of 32 weights of a linear 16 bytes and a scale in f32; embedding and head as they are.
    let (linears, tables) = (32 * (4 * 4096 * 4096 + 3 * 4096 * 11008), 2 * 32000 * 4096);
    let rest = 2 * (llm - linears + config.parameters().vision_tower);
    let quantized = |kernels| StepMemory {
        quantize: Some(Quantize::Q4),
        kernels,
        ..memory.clone()
    };
    let found = quantized(Kernels::Gpu).estimate(Keep).frozen;
    assert_eq!(found, linears / 32 * 20 + rest);
    // On the CPU scale and minimum in f16; the tables in 8 bits.
    let found = quantized(Kernels::Cpu).estimate(Keep).frozen;
    assert_eq!(
        found,
        linears / 32 * 20 + tables / 32 * 34 + rest - 2 * tables
    );
    // Two groups of threads have the same rows between them, and logits and gradients of their own,
    // which are added up; elsewhere one half follows the other.
    let groups = StepMemory {
        thread_groups: 2,
        accumulates: true,
        ..kernels.clone()
    };
    let (one, both) = (kernels.estimate(Keep), groups.estimate(Keep));
    assert_eq!(both.activations, one.activations);
    assert_eq!(
        (both.logits, both.trainable),
        (2 * one.logits, one.trainable)
    );
    assert_eq!(both.gradients, 3 * one.trainable);
    let halves = StepMemory {
        kernels: Kernels::None,
        ..groups
    };
    let halves = halves.estimate(Keep);
    assert_eq!(2 * halves.activations, keep.activations);
    assert_eq!(
        (halves.logits, halves.gradients),
        (keep.logits, 2 * keep.trainable)
    );
    // 543 GiB against 25 GiB of activations.
    assert_eq!(gib(keep.activations).round(), 543.0);
    assert_eq!(gib(blocks.activations).round(), 25.0);
}

#[test]
fn stage_1_keeps_no_adapters_and_no_tower() {
    let config = SqLlavaConfig::preset("sq-llava-7b").expect("a preset");
    let recipe = Recipe::published(Flavour::Paper);
    let trains = Trains {
        projector: true,
        ..Trains::default()
    };
    let memory = StepMemory::of_stage(&config, &recipe, 1, trains, 25_178_112);
    let token = 8_192 + 12_288 + 131_072 + 44_032;
    assert_eq!(memory.activations(Keep), 4 * 32 * 16 * 2048 * token);
    let nothing = StepMemory {
        trains: Trains::default(),
        ..memory
    };
    assert_eq!(nothing.activations(Keep), 0);
    // A projector that does not train is still there, in f32.
    let estimate = nothing.estimate(Keep);
    let towers = config.parameters().language_model + config.parameters().vision_tower;
    assert_eq!(estimate.frozen, 4 * (towers + 20_979_712 + 4_198_400));
}

#[test]
fn fault_29_a_rank_that_no_machine_holds_is_named() {
    let config = SqLlavaConfig::preset("sq-llava-7b").expect("a preset");
    let mut recipe = Recipe::published(Flavour::Paper);
    let machine = Some(64 << 30);
    check_trainable(&config, &recipe, 2, machine).expect("it fits");
    recipe.lora.llm.r = 8192;
    let error = check_trainable(&config, &recipe, 2, machine).expect_err("300 GiB");
    assert!(error.to_string().contains("lora.llm.r"), "{error}");
    check_trainable(&config, &recipe, 2, None).expect("nobody knows");
    recipe.lora.llm.r = 8;
    recipe.lora.vision.r = 16_384;
    let error = check_trainable(&config, &recipe, 2, Some(8 << 30)).expect_err("100 GiB");
    assert!(error.to_string().contains("lora.vision.r"), "{error}");
}

#[test]
fn a_picture_of_any_shape_may_have_the_most_tiles() {
    let mut config = SqLlavaConfig::preset("sq-llava-7b").expect("a preset");
    let recipe = Recipe::published(Flavour::Paper);
    let vision = |config: &SqLlavaConfig| {
        StepMemory::of_stage(config, &recipe, 2, ALL, 1)
            .vision()
            .values(Keep)
    };
    let one = vision(&config);
    // The whole picture and a grid of two by two.
    config.anyres = Some(AnyResolution::published(336, None));
    assert_eq!(vision(&config), 5 * one);
}

#[test]
fn without_dropout_inputs_are_shared() {
    let config = SqLlavaConfig::preset("sq-llava-7b").expect("a preset");
    let lora = |dropout| LoraConfig::llm(128, 256.0, dropout);
    let of = |dropout| llama_token(&config.llama, Some(&lora(dropout)), 1, Kernels::None);
    // 3·4096 + 11008 in place of 2·(6·4096 + 11008).
    assert_eq!(of(0.05) - of(0.0), 71_168 - 23_296);
}
