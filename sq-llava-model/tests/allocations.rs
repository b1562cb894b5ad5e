//! A decoded token allocates little, whatever stands in the cache and whatever the weights are
//! stored in: a guard for speed without a clock. One test: it counts what the process allocates.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Int, Tensor};
use burn_flex::Flex;
use golden::allocations::{Counting, Used, measure};
use sq_llava_model::SqLlavaConfig;
use sq_llava_model::config::LlamaConfig;
use sq_llava_model::language::cache::KvCache;
use sq_llava_model::language::llama::Llama;
use sq_llava_model::language::quantize::Quantize;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls of the allocator for a token: 553 when this was written, and a third more.
const COUNT: usize = 740;

/// Bytes that they ask for: 44172, and a third more.
const BYTES: usize = 59_000;

/// What one decoded token behind `context` tokens allocates.
fn token(llama: &Llama<Flex>, width: usize, context: usize) -> Used {
    let device = Default::default();
    let prompt = Tensor::random([1, context, width], Distribution::Default, &device);
    let mut cache = KvCache::new(llama.model.layers.len(), vec![0]);
    llama.forward_layers(prompt, &[0], Some(&mut cache));
    let mut step = || {
        let id = Tensor::<Flex, 1, Int>::from_data([5], &device);
        let embedded = llama.embed(id).unsqueeze_dim::<3>(1);
        let hidden = llama.forward_layers(embedded, &[0], Some(&mut cache));
        llama.logits(hidden.reshape([1, width])).into_data()
    };
    // What stays from call to call is there after the first.
    step();
    measure(step).1
}

#[test]
fn a_token_copies_neither_cache_nor_weights() {
    let config: LlamaConfig = SqLlavaConfig::preset("tiny").expect("a preset").llama;
    let width = config.hidden_size;
    let llama = config.init::<Flex>(&Default::default());
    let short = token(&llama, width, 10);
    let long = token(&llama, width, 450);
    assert!(short.count < COUNT && short.bytes < BYTES, "{short:?}");

    // Far less than keys and values of one layer behind 450 tokens.
    let layer = 2 * config.num_key_value_heads * 450 * config.head_dim() * 4;
    assert!(
        long.bytes < short.bytes + layer / 2,
        "{short:?} behind 10 tokens, {long:?} behind 450"
    );

    // Weights in f16 and in blocks are read where they lie.
    let half = llama.clone().map(&mut Half);
    let mut blocks = llama.clone();
    blocks.quantize(Quantize::Q4).expect("dense weights");
    for (name, llama) in [("f16", half), ("q4", blocks)] {
        let used = token(&llama, width, 10);
        assert!(
            used.bytes < short.bytes * 3 / 2 && used.count < short.count * 3 / 2,
            "{name}: {used:?}, f32: {short:?}"
        );
    }
}

struct Half;

impl<B: Backend> ModuleMapper<B> for Half {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.map(|tensor| tensor.cast(DType::F16))
    }
}
