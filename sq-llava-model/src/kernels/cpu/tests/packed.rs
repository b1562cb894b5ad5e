//! Attention over packed rows: kernel and portable form against torch's block-diagonal mask
//! (`scripts/packing_fixtures.py`).

use std::path::Path;

use burn::tensor::{Bool, Tensor, TensorData};
use burn_flex::Flex;
use golden::{Tensors, Value, assert_close};

use super::attention::attend;
use super::{Ad, close, gradient, values};
use crate::ops::attention::{AttentionMask, ScoreOptions, attention_with, portable};

fn fixtures() -> (Value, Tensors) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/packing");
    let tensors = Tensors::read(&folder.join("attention.safetensors"));
    (golden::json(&folder.join("attention.json")), tensors)
}

fn lengths(told: &Value) -> Vec<Vec<usize>> {
    let numbers = |row: &Value| -> Vec<usize> {
        let numbers = row.as_array().expect("a list").iter();
        numbers
            .map(|n| n.as_u64().expect("a number") as usize)
            .collect()
    };
    let rows = told["lengths"].as_array().expect("rows").iter();
    rows.map(numbers).collect()
}

#[test]
fn golden_packed_rows() {
    let device = Default::default();
    let (told, tensors) = fixtures();
    let lengths = lengths(&told);
    let read = |name: &str| -> Tensor<Ad, 4> {
        let shape = tensors.shape(name);
        Tensor::from_data(TensorData::new(tensors.f32(name), shape), &device)
    };
    let grad = read("grad");
    let [_, _, tokens, dim] = grad.dims();
    let cases = told["cases"].as_object().expect("cases");
    assert_eq!(cases.len(), 4);
    for (name, case) in cases {
        let window = case["window"].as_u64().map_or(usize::MAX, |w| w as usize);
        let options = ScoreOptions {
            scale: case["scale"].as_f64(),
            softcap: case["softcap"].as_f64(),
        };
        let mask = AttentionMask::packed(&lengths, tokens, window, &device);
        assert!(matches!(mask, AttentionMask::Outside(_)));
        for by_kernel in [true, false] {
            let [q, k, v] = ["query", "key", "value"].map(|name| read(name).require_grad());
            let inputs = [q.clone(), k.clone(), v.clone()];
            let [query, key, value] = inputs;
            let out = match by_kernel {
                true => attention_with(query, key, value, &mask, options),
                false => portable(query, key, value, &mask, options),
            };
            let grads = (out.clone() * grad.clone()).sum().backward();
            // Padding is nobody's business.
            let mut found = out.inner();
            for (row, lengths) in lengths.iter().enumerate() {
                let used: usize = lengths.iter().sum();
                let heads = found.dims()[1];
                let place = [row..row + 1, 0..heads, used..tokens, 0..dim];
                if used < tokens {
                    let zeros = Tensor::zeros([1, heads, tokens - used, dim], &device);
                    found = found.slice_assign(place, zeros);
                }
            }
            let parts = [
                ("out", found),
                ("query", gradient(&q, &grads)),
                ("key", gradient(&k, &grads)),
                ("value", gradient(&v, &grads)),
            ];
            for (part, found) in parts {
                let key = format!("{name}.{part}");
                let what = format!("{key}, kernel {by_kernel}");
                assert_close(&what, &values(&found), &tensors.f64(&key), 1e-6);
            }
        }
    }
}

/// What a packed row hides is what an explicit mask of the same rule hides, and each sample's
/// result is the one that it has alone.
#[test]
fn a_packed_row_is_its_samples_side_by_side() {
    let device = Default::default();
    for (lengths, tokens, window) in [
        (vec![vec![3, 4, 2]], 9, usize::MAX),
        (vec![vec![70, 60], vec![100]], 130, usize::MAX),
        (vec![vec![1, 1, 1], vec![2, 9]], 12, 4),
        (vec![vec![64, 64, 64], vec![10, 150]], 200, 33),
    ] {
        let mut marks = Vec::new();
        for row in &lengths {
            let padding = tokens - row.iter().sum::<usize>();
            let all = row.iter().chain([&padding]).enumerate();
            let samples: Vec<usize> = all
                .flat_map(|(sample, &length)| vec![sample; length])
                .collect();
            for query in 0..tokens {
                let hidden = |key: usize| {
                    samples[key] != samples[query] || key > query || query - key >= window
                };
                marks.extend((0..tokens).map(hidden));
            }
        }
        let rows = lengths.len();
        let marks = TensorData::new(marks, [rows, 1, tokens, tokens]);
        let marks = AttentionMask::Hidden(Tensor::<Ad, 4, Bool>::from_data(marks, &device));
        let packed = AttentionMask::packed(&lengths, tokens, window, &device);
        let sizes = [rows, 4, 2, tokens, tokens, 8];
        let found = attend(sizes, &packed, 1.0, true);
        let expected = attend(sizes, &marks, 1.0, false);
        for (part, (found, expected)) in found.iter().zip(&expected).enumerate() {
            close(found, expected, 1e-5, &format!("{lengths:?}, part {part}"));
        }
    }
}

/// A row of one sample needs no spans.
#[test]
fn a_sample_alone_in_its_row_is_causal() {
    let alone = |window| {
        let lengths = [vec![5], vec![9]];
        AttentionMask::<Flex>::packed(&lengths, 9, window, &Default::default())
    };
    assert!(matches!(alone(usize::MAX), AttentionMask::Causal));
    assert!(matches!(alone(4), AttentionMask::Outside(_)));
}
