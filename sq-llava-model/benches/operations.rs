//! Times of the operations that fill a forward and a backward pass, on the CPU backend.

use std::hint::black_box;

use burn::backend::Autodiff;
use burn::module::Param;
use burn::tensor::{DType, Distribution, Tensor};
use burn_flex::Flex;
use criterion::{Criterion, criterion_group, criterion_main};
use sq_llava_model::config::{LlamaConfig, PrototypeConfig};
use sq_llava_model::kernels::blocks::{BlockMatrix, QuantFormat};
use sq_llava_model::language::cache::KvCache;
use sq_llava_model::language::quantize::Quantize;
use sq_llava_model::ops::activation::Activation;
use sq_llava_model::ops::attention::{AttentionMask, attention};
use sq_llava_model::ops::cross_entropy::{joined_token_losses, token_losses};
use sq_llava_model::ops::draws::with_keys;
use sq_llava_model::ops::linear::Linear;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::ops::norm::{LayerNorm, RmsNorm};
use sq_llava_model::ops::residual::{add, add_scaled};
use sq_llava_model::ops::rope::RotaryEmbedding;

type Ad = Autodiff<Flex>;

fn draw<const D: usize>(shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Default::default())
}

fn leaf<const D: usize>(tensor: &Tensor<Flex, D>) -> Tensor<Ad, D> {
    Tensor::from_inner(tensor.clone()).require_grad()
}

/// Forward, and forward with backward, of an operation on one tensor.
fn both<const D: usize, const E: usize>(
    c: &mut Criterion,
    name: &str,
    input: &Tensor<Flex, D>,
    forward: impl Fn(Tensor<Flex, D>) -> Tensor<Flex, E>,
    tracked: impl Fn(Tensor<Ad, D>) -> Tensor<Ad, E>,
) {
    c.bench_function(name, |b| b.iter(|| black_box(forward(input.clone()))));
    c.bench_function(&format!("{name}, both ways"), |b| {
        b.iter(|| black_box(tracked(leaf(input)).sum().backward()));
    });
}

fn element_wise(c: &mut Criterion) {
    let x = draw([1024, 4096]);
    for act in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
        let name = format!("{act:?} 1024×4096");
        both(c, &name, &x, |x| act.forward(x), |x| act.forward(x));
    }
    let up = draw([1024, 4096]);
    let tracked = leaf(&up);
    both(
        c,
        "SwiGLU 1024×4096",
        &x,
        |x| Activation::Silu.gated(x, up.clone()),
        |x| Activation::Silu.gated(x, tracked.clone()),
    );
    let rms = RmsNorm::<Flex>::init(4096, 1e-5, &Default::default());
    let rms_ad = RmsNorm::<Ad>::init(4096, 1e-5, &Default::default());
    both(
        c,
        "RMSNorm 1024×4096",
        &x,
        |x| rms.forward(x),
        |x| rms_ad.forward(x),
    );
    let layer = LayerNorm::<Flex>::init(4096, 1e-5, &Default::default());
    let layer_ad = LayerNorm::<Ad>::init(4096, 1e-5, &Default::default());
    both(
        c,
        "LayerNorm 1024×4096",
        &x,
        |x| layer.forward(x),
        |x| layer_ad.forward(x),
    );
    let heads = draw([1, 640, 16, 64]);
    let rope = RotaryEmbedding::new(64, 1e4, None);
    let positions = [(0..640).collect::<Vec<_>>()];
    let turn = rope.rotation::<Flex>(&positions, &Default::default());
    let turn_ad = rope.rotation::<Ad>(&positions, &Default::default());
    both(
        c,
        "rotary 640×16×64",
        &heads,
        |x| turn.apply(x.swap_dims(1, 2)),
        |x| turn_ad.apply(x.swap_dims(1, 2)),
    );
    let logits = draw([512, 32_000]);
    let ids: Vec<i64> = (0..512).map(|i| i * 61).collect();
    both(
        c,
        "cross-entropy 512×32000",
        &logits,
        |x| token_losses(x, &ids),
        |x| token_losses(x, &ids),
    );
    let rows = draw([512, 4]);
    let rows_ad = leaf(&rows);
    both(
        c,
        "cross-entropy 512×32000 and 4 of their own",
        &logits,
        |x| joined_token_losses(x, rows.clone(), 32_000, &ids),
        |x| joined_token_losses(x, rows_ad.clone(), 32_000, &ids),
    );
}

fn sums(c: &mut Criterion) {
    let x = draw([1360, 576]);
    let update = leaf(&draw([1360, 576]));
    both(
        c,
        "sum 1360×576",
        &x,
        |x| add(x.clone(), x),
        |x| add(x, update.clone()),
    );
    let scale = draw([576]);
    let scale_ad = Tensor::<Ad, 1>::from_inner(scale.clone());
    both(
        c,
        "scaled sum 1360×576",
        &x,
        |x| add_scaled(x.clone(), x, scale.clone()),
        |x| add_scaled(x, update.clone(), scale_ad.clone()),
    );
    // A product of no weight: what is left is the dropout of its input.
    let lora = LoraConfig::llm(1, 2.0, 0.05);
    let linear = Linear::<Flex>::init(576, 1, false, &Default::default());
    let linear_ad = Linear::<Ad>::init(576, 1, false, &Default::default());
    let (linear, linear_ad) = (linear.with_lora(&lora, 0), linear_ad.with_lora(&lora, 0));
    both(
        c,
        "dropout 1360×576 before products of width 1",
        &x,
        |x| with_keys(&[7], || linear.forward(x)),
        |x| with_keys(&[7], || linear_ad.forward(x)),
    );
}

fn attentions(c: &mut Criterion) {
    let cases = [
        ("vision 12×577×64", [12, 12, 577, 577], false),
        ("causal 16×640×64", [16, 16, 640, 640], true),
        ("causal, 9 heads on 3, 640×64", [9, 3, 640, 640], true),
        ("one query on 640 keys, 16×64", [16, 16, 1, 640], false),
        ("one query on 640 keys, 9 on 3, 64", [9, 3, 1, 640], false),
    ];
    for (name, [heads, kv_heads, queries, keys], causal) in cases {
        let q = draw([1, heads, queries, 64]);
        let (k, v) = (draw([1, kv_heads, keys, 64]), draw([1, kv_heads, keys, 64]));
        let (k_ad, v_ad) = (leaf(&k), leaf(&v));
        let (mask, mask_ad) = match causal {
            true => (AttentionMask::Causal, AttentionMask::Causal),
            false => (AttentionMask::Full, AttentionMask::Full),
        };
        both(
            c,
            &format!("attention {name}"),
            &q,
            |q| attention(q, k.clone(), v.clone(), &mask),
            |q| attention(q, k_ad.clone(), v_ad.clone(), &mask_ad),
        );
        if queries == 1 {
            let (k, v) = (k.clone().cast(DType::F16), v.clone().cast(DType::F16));
            c.bench_function(&format!("attention {name}, f16 cache"), |b| {
                b.iter(|| black_box(attention(q.clone(), k.clone(), v.clone(), &mask)));
            });
        }
    }
}

fn linears(c: &mut Criterion) {
    let device = Default::default();
    for rows in [1, 5, 640] {
        let x = draw([rows, 1024]);
        let mut linear = Linear::<Flex>::init(1024, 2816, false, &device);
        let name = |dtype| format!("linear 1024→2816 {dtype}, {rows} rows");
        let dense = linear.weight.val();
        for (stored, dtype) in [
            ("f32", DType::F32),
            ("f16", DType::F16),
            ("bf16", DType::BF16),
        ] {
            linear.weight = Param::from_tensor(dense.clone().cast(dtype)).into();
            c.bench_function(&name(stored), |b| {
                b.iter(|| black_box(linear.forward(x.clone())))
            });
        }
        let values: Vec<f32> = dense.into_data().to_vec().expect("f32");
        for (stored, format) in [("int8", QuantFormat::Q8), ("int4", QuantFormat::Q4)] {
            let blocks = BlockMatrix::quantize("a weight", format, [2816, 1024], |row, out| {
                out.copy_from_slice(&values[row * 1024..(row + 1) * 1024]);
            })
            .expect("finite");
            linear.weight = linear.weight.in_blocks(blocks, DType::F32);
            c.bench_function(&name(stored), |b| {
                b.iter(|| black_box(linear.forward(x.clone())))
            });
        }
    }
    // Of towers, of a prompt and of a training step.
    for (rows, d_in, d_out) in [
        (197, 768, 3072),
        (197, 3072, 768),
        (577, 1024, 1024),
        (577, 4096, 1024),
        (256, 1024, 2816),
        (640, 2816, 1024),
    ] {
        let x = draw([rows, d_in]);
        let linear = Linear::<Flex>::init(d_in, d_out, true, &device);
        c.bench_function(&format!("linear {d_in}→{d_out}, {rows} rows"), |b| {
            b.iter(|| black_box(linear.forward(x.clone())))
        });
    }
    for (rows, rank) in [(512, 16), (256, 128)] {
        let x = draw([rows, 1024]);
        let lora = LoraConfig::llm(rank, 2.0 * rank as f64, 0.0);
        let mut linear = Linear::<Ad>::init(1024, 2816, false, &device).with_lora(&lora, 0);
        linear.weight = linear.weight.set_require_grad(false);
        let name = format!("frozen linear 1024→2816 with rank {rank}, {rows} rows, both ways");
        c.bench_function(&name, |b| {
            b.iter(|| black_box(linear.forward(leaf(&x)).sum().backward()));
        });
    }
}

/// Products of tokens and centres, their softmax and their directions, beside the linear maps.
fn prototypes(c: &mut Criterion) {
    let device = Default::default();
    let tokens = draw([1, 576, 1024]);
    let config = PrototypeConfig::new(1024);
    let (extractor, tracked) = (config.init::<Flex>(&device), config.init::<Ad>(&device));
    both(
        c,
        "prototypes of 576×1024",
        &tokens,
        |tokens| extractor.forward(tokens),
        |tokens| tracked.forward(tokens),
    );
}

/// One token behind 64 and behind 640 through two layers of SmolLM2-135M's sizes.
fn steps(c: &mut Criterion) {
    let device = Default::default();
    let config = LlamaConfig::new()
        .with_hidden_size(576)
        .with_intermediate_size(1536)
        .with_num_hidden_layers(2)
        .with_num_attention_heads(9)
        .with_num_key_value_heads(3)
        .with_vocab_size(16);
    let mut llama = config.init::<Flex>(&device);
    llama.quantize(Quantize::Q8).expect("finite");
    for context in [64, 640] {
        let mut cache = KvCache::new(2, vec![0]);
        llama.forward_layers(draw([1, context, 576]), &[0], Some(&mut cache));
        let token = draw([1, 1, 576]);
        c.bench_function(&format!("token behind {context}, two layers, int8"), |b| {
            b.iter(|| {
                cache.truncate(context);
                black_box(llama.forward_layers(token.clone(), &[0], Some(&mut cache)))
            });
        });
    }
}

criterion_group!(
    benches,
    element_wise,
    sums,
    attentions,
    linears,
    prototypes,
    steps
);
criterion_main!(benches);
