//! What a training step allocates, and that recompute holds the activations of one layer, not of
//! all. One test: it counts what the process allocates.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::train::TrainStep;
use burn_flex::Flex;
use golden::allocations::{Counting, Used, measure};
use sq_llava_data::TokenRole;
use sq_llava_model::SqLlavaConfig;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_train::GradientCheckpointing;
use sq_llava_train::data::batch::{MicroBatch, TrainSample};
use sq_llava_train::data::features::FeatureCache;
use sq_llava_train::failure::Failure;
use sq_llava_train::recipe::Objective;
use sq_llava_train::step::groups::{ParamGroups, Trains};
use sq_llava_train::step::loss::LossSettings;
use sq_llava_train::step::whole::{StepContext, TrainModel};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls of the allocator in a step without recompute: 17468 when this was written, and a third
/// more.
const COUNT: usize = 23_300;

/// Bytes that they ask for: 85.8 MB, and a third more.
const BYTES: usize = 115_000_000;

#[test]
fn a_step_allocates_little_and_recompute_holds_one_layer() {
    const LAYERS: usize = 12;
    const TOKENS: usize = 192;
    const WIDTH: usize = 96;
    let mut config = SqLlavaConfig::preset("tiny").expect("a preset");
    config.vision = None;
    config.prototype = None;
    config.llama = config
        .llama
        .with_hidden_size(WIDTH)
        .with_intermediate_size(256)
        .with_num_hidden_layers(LAYERS)
        .with_num_attention_heads(4)
        .with_num_key_value_heads(2)
        .with_vocab_size(300);
    let model = config.init::<Autodiff<Flex>>(&Default::default());
    let model = model.expect("a model");
    let trains = Trains {
        llm: true,
        ..Trains::default()
    };
    let lora = LoraConfig::llm(4, 8.0, 0.05);
    let (model, _) = ParamGroups::mark(model.with_llm_lora(&lora), trains);
    let batch = MicroBatch::whole_step(vec![TrainSample {
        id: "s".into(),
        ids: (0..TOKENS as i64).map(|i| 3 + i % 250).collect(),
        roles: vec![TokenRole::Answer; TOKENS],
        pictures: vec![],
        source: None,
    }]);
    let step = |checkpointing| -> Used {
        let failure = Failure::default();
        let model = TrainModel {
            model: model.clone(),
            context: StepContext {
                objective: Objective::Text,
                loss: LossSettings {
                    question_weight: 1.0,
                    answer_weight: 1.0,
                    chunk_tokens: 32,
                },
                mask_weight: 0.0,
                trains,
                features: Arc::new(FeatureCache::new(0)),
                checkpointing,
                seed: 0,
                failure: failure.clone(),
            },
        };
        // The first step of all makes lazy weights; a second one would show what a step leaves.
        drop(TrainStep::step(&model, batch.clone()));
        let (output, used) = measure(|| TrainStep::step(&model, batch.clone()));
        assert!(!failure.is_set() && !output.grads.is_empty());
        used
    };
    let all = step(GradientCheckpointing::None);
    let blocks = step(GradientCheckpointing::Blocks);
    let (kept, again) = (all.peak, blocks.peak);
    // The inputs of all layers and the activations of one, which are about a twelfth.
    let inputs = LAYERS * TOKENS * WIDTH * 4;
    let expected = kept / LAYERS + inputs;
    assert!(
        again < expected * 3 / 2,
        "{again} bytes with recompute, {kept} without; expected about {expected}"
    );

    // A guard for speed: copies that nobody needs show here.
    assert!(all.count < COUNT && all.bytes < BYTES, "{all:?}");
    assert!(
        blocks.count < 2 * COUNT && blocks.bytes < 2 * BYTES,
        "{blocks:?}"
    );
}
