//! Quantised weights against the `gguf` package's numbers and against the dense weights that
//! their blocks stand for.

#![allow(clippy::print_stderr)] // A path that is not tested is named.

mod weights;

use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, Param};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{FloatDType, Int, Tensor, TensorData, backend::Backend};
use golden::{Tensors, assert_close, relative_error};
use sq_llava_model::SqLlava;
use sq_llava_model::kernels::blocks::{BlockMatrix, QuantFormat};
use sq_llava_model::language::quantize::Quantize;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::ops::params::{ParamPath, ParamVisitor, visit_params};
use sq_llava_model::processor::{KernelPath, VARIABLE};
use sq_llava_model::weights::{LoadOptions, SaveOptions, load_model, save_pretrained};
use weights::*;

type Ad = Autodiff<B>;

const IDS: [i64; 12] = [1, 17, 60, 4, 251, 9, 33, 128, 77, 5, 200, 42];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf")
}

fn in_blocks(quantize: Quantize) -> LoadOptions {
    LoadOptions {
        quantize: Some(quantize),
        ..LoadOptions::default()
    }
}

fn logits<B: Backend>(model: &SqLlava<B>) -> Tensor<B, 2> {
    let llama = &model.language_model;
    let ids = Tensor::<B, 1, Int>::from_data(IDS, &model.device());
    let hidden = llama.embed(ids).unsqueeze();
    llama.logits(llama.forward_layers(hidden, &[0], None).squeeze_dim(0))
}

fn values<B: Backend>(model: &SqLlava<B>) -> Vec<f32> {
    logits(model).into_data().to_vec().unwrap()
}

/// The same model with every matrix dense again.
fn dense<B: Backend>(mut model: SqLlava<B>) -> SqLlava<B> {
    let llama = &mut model.language_model;
    let embed = &mut llama.model.embed_tokens;
    embed.weight = Param::initialized(embed.weight.id(), embed.table()).into();
    llama.lm_head = llama.lm_head.take().map(|head| head.dequantize());
    for (_, linear) in llama.linears_mut() {
        *linear = linear.clone().dequantize();
    }
    model
}

fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let expected: Vec<f64> = expected.iter().map(|&v| f64::from(v)).collect();
    assert_close(what, found, &expected, tolerance);
}

#[test]
fn golden_blocks_hold_the_package_s_numbers() {
    let golden = Tensors::read(&fixtures().join("quantized.safetensors"));
    let weight = golden.f32("weight");
    let [rows, columns]: [usize; 2] = golden.shape("weight").try_into().unwrap();
    for (format, name) in [(QuantFormat::Q8, "Q8_0"), (QuantFormat::Q4, "Q4_1")] {
        let matrix = BlockMatrix::quantize("a weight", format, [rows, columns], |row, out| {
            out.copy_from_slice(&weight[row * columns..(row + 1) * columns]);
        })
        .unwrap();
        let found: Vec<f32> = matrix.dequantize().to_vec().unwrap();
        assert_eq!(found, golden.f32(&format!("{name}.values")), "{name}");
        let blocks = golden.shape(name);
        assert_eq!(matrix.bytes(), blocks.iter().product::<usize>(), "{name}");
    }
}

#[test]
fn golden_gguf_blocks_are_kept_as_they_are() {
    for name in ["tied", "untied-llama3"] {
        let file = fixtures().join(format!("{name}.gguf"));
        let whole = load(&file, &LoadOptions::default()).model;
        let loaded = load(&file, &in_blocks(Quantize::Stored));
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        assert!(
            loaded.report.formats["Q4_1 as q4"] >= 2,
            "{}",
            loaded.report
        );
        let llama = &loaded.model.language_model;
        let q = llama.model.layers[0]
            .self_attn
            .q_proj
            .as_ref()
            .expect("q_proj");
        let matrix = q.weight.blocks().expect("kept in blocks");
        assert_eq!(matrix.format(), QuantFormat::Q4);
        assert_eq!((q.d_in(), q.d_out()), (256, 64));
        let table = llama.model.embed_tokens.weight.blocks();
        assert_eq!(table.map(BlockMatrix::format), Some(QuantFormat::Q8));

        let found = parameters(&dense(loaded.model.clone()));
        for (path, expected) in parameters(&whole) {
            let same = found[&path].iter().zip(&expected);
            let error = same.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Q4_K's scales are rounded to f16, Q5 and Q6 go to 8 bits; all else is exact.
            let bound = if name == "tied" { 0.0 } else { 6e-3 };
            assert!(error <= bound, "{name}: {path} differs by {error}");
        }
        let tolerance = if name == "tied" { 2e-4 } else { 4e-2 };
        close(name, &values(&loaded.model), &values(&whole), tolerance);
    }
}

#[test]
fn a_quantised_model_is_the_dense_one_of_its_blocks_and_survives_saving() {
    for base in golden::folders("a_llava_") {
        let base = base.join("orig");
        let exact = values(&load(&base, &LoadOptions::default()).model);
        // Logits of small random weights move this far at most; a wrong scale or order gives 1.
        for (quantize, bound, name) in [(Quantize::Q8, 0.06, "q8"), (Quantize::Q4, 0.5, "q4")] {
            let loaded = load(&base, &in_blocks(quantize));
            let found = values(&loaded.model);
            close(name, &found, &values(&dense(loaded.model.clone())), 2e-4);
            let reference: Vec<f64> = exact.iter().map(|&v| f64::from(v)).collect();
            let error = relative_error(&found, &reference);
            assert!(error < bound && error > 1e-5, "{name}: {error}");

            // Quantised after loading, the numbers are the same.
            let mut later = load(&base, &LoadOptions::default()).model;
            later.language_model.quantize(quantize).unwrap();
            assert_eq!(values(&later), found);

            let dir = tempfile::tempdir().unwrap();
            let options = SaveOptions {
                dtype: FloatDType::F32,
                max_shard_bytes: 60_000,
                ..SaveOptions::default()
            };
            save_pretrained(&loaded.model, dir.path(), &options).unwrap();
            let config = golden::json(&dir.path().join("config.json"));
            let matrices = &config["quantization_config"]["matrices"];
            assert!(matrices[name].as_u64().unwrap() >= 21, "{config}");
            let again = load(dir.path(), &LoadOptions::default());
            assert!(again.report.is_clean(), "{}", again.report);
            assert_eq!(values(&again.model), found);
            let failed = save_pretrained(
                &loaded.model,
                &dir.path().join("hf"),
                &SaveOptions {
                    layout: sq_llava_model::weights::Layout::LlavaHf,
                    ..options
                },
            );
            assert!(failed.unwrap_err().to_string().contains("original layout"));
        }
    }
}

#[test]
fn damaged_blocks_are_named() {
    let base = golden::folders("a_llava_gqa").remove(0).join("orig");
    let model = load(&base, &in_blocks(Quantize::Q4)).model;
    let dir = tempfile::tempdir().unwrap();
    save_pretrained(&model, dir.path(), &SaveOptions::default()).unwrap();
    let file = dir.path().join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    let fails = |rename: &dyn Fn(&str) -> Option<String>, named: &str| {
        std::fs::write(&file, &whole).unwrap();
        let other = dir.path().join("new.tmp");
        rewrite(dir.path(), &other, rename);
        std::fs::rename(&other, &file).unwrap();
        let message = load_error(dir.path(), &LoadOptions::default());
        assert!(message.contains(named), "{message} (expected: {named})");
    };
    let key = "model.layers.1.mlp.up_proj.weight";
    let without = |gone: String| move |name: &str| (name != gone).then(|| name.to_string());
    fails(&without(format!("{key}_min")), key);
    fails(&without(format!("{key}_scale")), key);
    fails(&without(key.to_string()), &format!("{key}_scale"));
    let swapped = |name: &str| {
        Some(match name.strip_prefix("model.layers.1.mlp.up_proj") {
            Some(".weight_scale") => "model.layers.1.mlp.down_proj.weight_scale".into(),
            _ => match name.strip_prefix("model.layers.1.mlp.down_proj") {
                Some(".weight_scale") => "model.layers.1.mlp.up_proj.weight_scale".into(),
                _ => name.to_string(),
            },
        })
    };
    fails(&swapped, "weight_scale");
}

/// Gradients of the adapters by path.
fn adapter_gradients(model: &SqLlava<Ad>) -> Vec<(String, Vec<f32>)> {
    let scores = logits(model);
    let weights = Tensor::<Ad, 2>::from_data(
        burn::tensor::TensorData::new(
            (0..scores.dims().iter().product())
                .map(|i: usize| ((i * 7919) % 31) as f32 / 31.0 - 0.5)
                .collect::<Vec<f32>>(),
            scores.dims(),
        ),
        &model.device(),
    );
    let grads = (scores * weights).sum().backward();
    struct Collector<'a> {
        grads: &'a <Ad as AutodiffBackend>::Gradients,
        found: Vec<(String, Vec<f32>)>,
    }
    impl ParamVisitor<Ad> for Collector<'_> {
        fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<Ad, D>>) {
            let Some(grad) = param.val().grad(self.grads) else {
                return;
            };
            let grad = grad.into_data().to_vec().unwrap();
            self.found.push((path.dotted(), grad));
        }
    }
    let mut collector = Collector {
        grads: &grads,
        found: vec![],
    };
    visit_params(model, &mut collector);
    collector.found
}

#[test]
fn adapters_on_blocks_learn_as_on_the_dense_weights() {
    /// Gives B, which starts at zero, values.
    struct Fill;
    impl ModuleMapper<Ad> for Fill {
        fn map_float<const D: usize>(
            &mut self,
            param: Param<Tensor<Ad, D>>,
        ) -> Param<Tensor<Ad, D>> {
            let id = param.id;
            let tensor = param.val();
            if !tensor.is_require_grad() {
                return Param::initialized(id, tensor);
            }
            let count = tensor.dims().iter().product::<usize>();
            let values: Vec<f32> = (0..count)
                .map(|i| ((i * 37) % 101) as f32 / 1000.0 - 0.05)
                .collect();
            let data = burn::tensor::TensorData::new(values, tensor.dims());
            let tensor = Tensor::from_data(data, &tensor.device()).require_grad();
            Param::initialized(id, tensor)
        }
    }
    let base = golden::folders("a_llava_gqa").remove(0).join("orig");
    for quantize in [Quantize::Q8, Quantize::Q4] {
        let options = LoadOptions {
            trainable_f32: true,
            freeze_base: true,
            ..in_blocks(quantize)
        };
        let loaded = load_model::<Ad>(&base, &options, &Default::default()).unwrap();
        let mut model = loaded.model;
        // The projector is not run here.
        model = model.with_llm_lora(&LoraConfig::llm(4, 8.0, 0.0));
        let model = model.map(&mut Fill);
        let found = adapter_gradients(&model);
        let expected = adapter_gradients(&dense(model.clone()));
        assert_eq!(found.len(), 2 * 7 * model.language_model.model.layers.len());
        for ((path, found), (same, expected)) in found.iter().zip(&expected) {
            assert_eq!(path, same);
            assert!(path.contains("lora"), "{path} has a gradient");
            close(path, found, expected, 1e-3);
        }
        // Without autodiff the blocks are the same ones.
        close("valid", &values(&model.valid()), &values(&model), 1e-5);

        // Merging goes through the dense weight.
        let merged = model.valid().merge_lora();
        close("merged", &values(&merged), &values(&model), 2e-4);
    }
}

#[test]
fn a_text_is_continued_alike_from_blocks() {
    use std::ops::ControlFlow;
    let file = fixtures().join("tied.gguf");
    let whole = load(&file, &LoadOptions::default()).model;
    let blocks = load(&file, &in_blocks(Quantize::Stored)).model;
    let config = sq_llava_model::generation::generate::GenerateConfig::greedy(24);
    let continued = |model: &SqLlava<B>| {
        let sample = sq_llava_model::Sample {
            ids: &IDS,
            images: vec![],
        };
        let found = model.generate(&[sample], &config, &mut |_, _| ControlFlow::Continue(()));
        found.unwrap().remove(0).ids
    };
    assert_eq!(continued(&blocks), continued(&whole));
}

/// What the type says of batches.
#[test]
fn fault_24_up_to_eight_rows_a_product_is_what_each_row_gives_alone() {
    let (n, k) = (70, 200);
    let number = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0;
    let weights: Vec<f32> = (0..n * k).map(number).collect();
    let inputs: Vec<f32> = (0..9 * k).map(|i| number(i + 31) * 3.0).collect();
    for format in [QuantFormat::Q8, QuantFormat::Q4] {
        let matrix = BlockMatrix::quantize("a weight", format, [n, k], |row, out| {
            out.copy_from_slice(&weights[row * k..(row + 1) * k]);
        })
        .unwrap();
        let product = |rows: std::ops::Range<usize>| -> Vec<f32> {
            let input = &inputs[rows.start * k..rows.end * k];
            let input = TensorData::new(input.to_vec(), [rows.len(), k]);
            let input = Tensor::<B, 2>::from_data(input, &Default::default());
            matrix.product(input).into_data().to_vec().unwrap()
        };
        let alone: Vec<f32> = (0..9).flat_map(|row| product(row..row + 1)).collect();
        for rows in 2..=8 {
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&product(0..rows)), bits(&alone[..rows * n]), "{rows}");
        }
        let nine = product(0..9);
        assert_ne!(nine, alone, "the type says that they differ");
        let dense: Vec<f32> = matrix.dequantize().to_vec().unwrap();
        for (at, (many, one)) in nine.iter().zip(&alone).enumerate() {
            let (input, row) = (&inputs[at / n * k..][..k], &dense[at % n * k..][..k]);
            let blocks = input.chunks(32).zip(row.chunks(32));
            let bound: f32 = blocks
                .map(|(x, w)| {
                    let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    largest * w.iter().map(|v| v.abs()).sum::<f32>()
                })
                .sum();
            // And the order of 200 sums in f32.
            let far = bound * (2f32.powi(-16) + 16.0 * f32::EPSILON);
            assert!(
                (many - one).abs() <= far,
                "{format:?} {at}: {many} and {one}, {far}"
            );
        }
    }
}

/// Those of blocks on every path of kernels that the machine has.
#[test]
fn every_path_of_kernels() {
    for path in KernelPath::ALL {
        if path.is_available() {
            golden::again(VARIABLE, path.name(), "blocks");
        } else {
            eprintln!("this machine does not run {path}: it is not tested");
        }
    }
}
