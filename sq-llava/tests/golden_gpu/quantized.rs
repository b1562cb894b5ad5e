//! Linears as Burn's quantised tensors: against the formula of the blocks, and whole models
//! against the dense ones of the same numbers.

use std::ops::ControlFlow;

use burn::module::Param;
use burn::tensor::{Distribution, Tensor, backend::Backend};
use golden::assert_close;
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::language::quantize::Quantize;
use sq_llava_model::ops::linear::Linear;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::ops::weight::Weight;
use sq_llava_model::weights::{LoadOptions, SaveOptions, load_model, save_pretrained};
use sq_llava_model::{Sample, SqLlava};

use super::checkpoints::{Checkpoint, part_a};
use super::tensors::{float, values};
use super::{add, doubles, times};
use crate::{B, Device, device};

const FORMATS: [(Quantize, f64); 2] = [(Quantize::Q8, 127.0), (Quantize::Q4, 7.0)];

fn loaded<B: Backend>(
    checkpoint: &Checkpoint,
    quantize: Option<Quantize>,
    device: &B::Device,
) -> Result<SqLlava<B>, String> {
    let options = LoadOptions {
        quantize,
        ..LoadOptions::default()
    };
    let loaded = load_model::<B>(&checkpoint.dir, &options, device);
    loaded
        .map(|loaded| loaded.model)
        .map_err(|error| error.to_string())
}

/// The linears of the language model.
fn linears(model: &SqLlava<B>) -> Vec<&Linear<B>> {
    let linears = model.language_model.linears();
    linears.map(|(_, linear)| linear).collect()
}

fn dense(mut model: SqLlava<B>) -> SqLlava<B> {
    for (_, linear) in model.language_model.linears_mut() {
        *linear = linear.clone().dequantize();
    }
    model
}

/// Holds a row against the definition of its blocks of 32: the nearest whole number of steps, a
/// step being a share of the block's largest value.
fn check_row(what: &str, found: &[f64], exact: &[f64], levels: f64) {
    for (found, exact) in found.chunks(32).zip(exact.chunks(32)) {
        let most = exact.iter().fold(0.0, |most: f64, w| most.max(w.abs()));
        let step = most / levels;
        for (&found, &exact) in found.iter().zip(exact) {
            let (off, count) = ((found - exact).abs() / step, found / step);
            assert!(off < 0.501, "{what}: {exact} became {found}, step {step}");
            assert!(
                (count - count.round()).abs() < 1e-3,
                "{what}: {found} is {count} steps"
            );
        }
    }
}

/// Weights from the first tiny LLaVA, whose MLP does not fill its last block.
#[test]
fn quantized_linears_are_what_their_blocks_stand_for() {
    let Some(device) = device() else {
        return;
    };
    let checkpoint = part_a().remove(0);
    let exact = loaded::<B>(&checkpoint, None, &device).unwrap();
    for (quantize, levels) in FORMATS {
        let model = loaded::<B>(&checkpoint, Some(quantize), &device).unwrap();
        let pairs = linears(&model).into_iter().zip(linears(&exact));
        for (index, (linear, exact)) in pairs.enumerate() {
            assert_eq!(
                (linear.d_in(), linear.d_out()),
                (exact.d_in(), exact.d_out())
            );
            assert!(matches!(linear.weight, Weight::OnDevice(_)));
            let found = doubles(linear.clone().dequantize().weight.val());
            let expected = doubles(exact.weight.val());
            let rows = found
                .chunks(linear.d_in())
                .zip(expected.chunks(linear.d_in()));
            for (found, expected) in rows {
                check_row(
                    &format!("{quantize:?}, weight {index}"),
                    found,
                    expected,
                    levels,
                );
            }
        }
    }
}

/// One row and several, with and without an adapter and a cast behind the product.
#[test]
fn quantized_products_are_those_of_the_dense_weight() {
    let Some(device) = device() else {
        return;
    };
    let model = loaded::<B>(&part_a()[0], None, &device).unwrap();
    for (quantize, _) in FORMATS {
        let mut blocks = model.language_model.clone();
        blocks.quantize_here(quantize).unwrap();
        let mlp = &blocks.model.layers[0].mlp;
        let gate = mlp.gate_proj.as_ref().expect("a gate");
        for linear in [gate, &mlp.down_proj] {
            for (rows, rank) in [(1, 0), (1, 8), (7, 0), (7, 8)] {
                product(linear.clone(), rows, rank, &device);
            }
        }
    }
    // Nothing of that has touched the dense model.
    assert!(
        linears(&model)
            .iter()
            .all(|linear| linear.weight.is_dense())
    );
}

fn product(mut linear: Linear<B>, rows: usize, rank: usize, device: &Device) {
    let draw = |shape| Tensor::<B, 2>::random(shape, Distribution::Uniform(-0.5, 0.5), device);
    let (d_in, d_out) = (linear.d_in(), linear.d_out());
    let weight = doubles(linear.clone().dequantize().weight.val());
    let input = draw([rows, d_in]);
    let x = doubles(input.clone());
    let mut expected: Vec<f64> = x
        .chunks_exact(d_in)
        .flat_map(|x| times(x, &weight))
        .collect();
    if rank > 0 {
        let config = LoraConfig::llm(rank, 16.0, 0.0);
        linear = linear.with_lora(&config, 0);
        let lora = linear.lora.as_mut().expect("an adapter");
        lora.b = Param::from_tensor(draw([d_out, rank]));
        let (a, b) = (doubles(lora.a.val()), doubles(lora.b.val()));
        let change = x.chunks_exact(d_in).flat_map(|x| times(&times(x, &a), &b));
        add(&mut expected, &change.collect::<Vec<_>>(), config.scaling());
    }
    let format = match &linear.weight {
        Weight::OnDevice(held) => Some(held.format),
        _ => None,
    };
    // What is fused is found out while it runs.
    for round in 0..4 {
        let found = values(linear.forward(input.clone()));
        let what = format!("{format:?}, {rows} rows, rank {rank}, round {round}");
        assert_close(&what, &found, &expected, 2e-4);
    }
}

fn sample<'a>(ids: &'a [i64], image: &Tensor<B, 2>) -> Sample<'a, B> {
    Sample {
        ids,
        images: vec![image.clone()],
    }
}

/// Logits and greedy ids of the whole model: those of the dense weights of the same numbers, and
/// for int8 the reference's ids, up to a near choice.
#[test]
fn golden_quantized_models_are_the_dense_ones_of_their_blocks() {
    let Some(device) = device() else {
        return;
    };
    let checkpoint = part_a().remove(0);
    let exact = loaded::<B>(&checkpoint, None, &device).unwrap();
    let pixels = float::<B, 4>(&checkpoint.tensors, "pixel_values", &device);
    let image = exact.encode_images(pixels).expect("image tokens").remove(0);
    let logits = |model: &SqLlava<B>, ids: &[i64]| {
        let embedding = model.embed(&[sample(ids, &image)]).expect("embeddings");
        values(model.logits(embedding[0].clone()))
    };
    let ids = checkpoint.ids("input_ids_orig").remove(0);
    let reference = &checkpoint.json["greedy_ids_no_eos"][0];
    let reference: Vec<i64> = reference
        .as_array()
        .expect("ids")
        .iter()
        .filter_map(|id| id.as_i64())
        .collect();
    for (quantize, _) in FORMATS {
        let model = loaded::<B>(&checkpoint, Some(quantize), &device).unwrap();
        let dense = dense(model.clone());
        let expected: Vec<f64> = logits(&dense, &ids).into_iter().map(f64::from).collect();
        let what = format!("{quantize:?} logits");
        assert_close(&what, &logits(&model, &ids), &expected, 1e-3);

        let config = GenerateConfig::greedy(reference.len());
        let greedy = |model: &SqLlava<B>| {
            let found = model.generate(&[sample(&ids, &image)], &config, &mut |_, _| {
                ControlFlow::Continue(())
            });
            found.expect("answer").remove(0).ids
        };
        let found = greedy(&model);
        assert_eq!(found, greedy(&dense), "{quantize:?}");
        let differs = found.iter().zip(&reference).position(|(a, b)| a != b);
        if let (Quantize::Q8, Some(at)) = (quantize, differs) {
            // Int8 moves the logits of small random weights by a few per cent: it was a near
            // choice.
            let longer = [&ids[..], &reference[..at]].concat();
            let all = logits(&exact, &longer);
            let row = &all[all.len() - exact.language_model.vocabulary()..];
            let most = row.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
            let margin = row[reference[at] as usize] - row[found[at] as usize];
            assert!(
                margin < 0.12 * most,
                "{found:?}, not {reference:?}, margin {margin} of {most}"
            );
        }
    }
}

#[test]
fn what_quantized_tensors_cannot_do_is_said() {
    let Some(device) = device() else {
        return;
    };
    let checkpoint = part_a().remove(0);
    let stored = loaded::<B>(&checkpoint, Some(Quantize::Stored), &device).unwrap_err();
    assert!(stored.contains("choose device cpu"), "{stored}");
    let model = loaded::<B>(&checkpoint, Some(Quantize::Q4), &device).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let saved = save_pretrained(&model, dir.path(), &SaveOptions::default()).unwrap_err();
    assert!(
        saved.to_string().contains("quantised for this device"),
        "{saved}"
    );
    save_pretrained(&dense(model), dir.path(), &SaveOptions::default()).unwrap();
}
