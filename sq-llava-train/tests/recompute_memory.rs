//! Recompute holds the activations of one layer, not of all. One test: it counts what the process
//! allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use burn::backend::Autodiff;
use burn::train::TrainStep;
use burn_flex::Flex;
use sq_llava_data::TokenRole;
use sq_llava_model::SqLlavaConfig;
use sq_llava_model::lora::LoraConfig;
use sq_llava_train::GradientCheckpointing;
use sq_llava_train::batch::{MicroBatch, TrainSample};
use sq_llava_train::failure::Failure;
use sq_llava_train::features::FeatureCache;
use sq_llava_train::groups::{ParamGroups, Trains};
use sq_llava_train::loss::LossSettings;
use sq_llava_train::step::{StepContext, TrainModel};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `pointer` came from `alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn memory_is_that_of_one_layer() {
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
    }]);
    let growth = |checkpointing| {
        let failure = Failure::default();
        let model = TrainModel {
            model: model.clone(),
            context: StepContext {
                loss: LossSettings {
                    question_weight: 1.0,
                    answer_weight: 1.0,
                    chunk_tokens: 32,
                },
                trains,
                features: Arc::new(FeatureCache::new(0)),
                checkpointing,
                seed: 0,
                failure: failure.clone(),
            },
        };
        // The first step of all makes lazy weights; a second one would show what a step leaves.
        drop(TrainStep::step(&model, batch.clone()));
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        let output = TrainStep::step(&model, batch.clone());
        assert!(!failure.is_set() && !output.grads.is_empty());
        PEAK.load(Relaxed) - before
    };
    let kept = growth(GradientCheckpointing::None);
    let again = growth(GradientCheckpointing::Blocks);
    // The inputs of all layers and the activations of one, which are about a twelfth.
    let inputs = LAYERS * TOKENS * WIDTH * 4;
    let expected = kept / LAYERS + inputs;
    assert!(
        again < expected * 3 / 2,
        "{again} bytes with recompute, {kept} without; expected about {expected}"
    );
}
