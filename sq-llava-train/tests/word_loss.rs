//! The objective "words" against PyTorch's autograd (`scripts/word_fixtures.py`).

use std::path::Path;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use golden::Tensors;
use sq_llava_train::step::words::{Captioned, WordLoss};

type Ad = Autodiff<Flex>;

/// Places of the words of each sample, and what each counts.
const WORDS: [(&[usize], f64); 3] = [
    (&[0, 2, 2, 5], 0.2),
    (&[1, 2, 5], 0.2),
    (&[3, 4, 5, 0], 0.1),
];

fn tensor(from: &Tensors, name: &str) -> Tensor<Ad, 2> {
    let shape: [usize; 2] = from.shape(name).try_into().expect("two dimensions");
    Tensor::from_data(TensorData::new(from.f32(name), shape), &Default::default())
}

#[test]
fn loss_and_gradients_are_pytorchs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/words.safetensors");
    let from = Tensors::read(&path);
    let samples = WORDS
        .iter()
        .enumerate()
        .map(|(i, (words, weight))| Captioned {
            tokens: tensor(&from, &format!("tokens.{i}")).require_grad(),
            words: words.iter().map(|word| (*word, *weight)).collect(),
        });
    let samples: Vec<Captioned<Ad>> = samples.collect();
    let loss = WordLoss::of(&samples, tensor(&from, "embeddings"), 0.7);
    let expected = from.f32("losses");
    assert_eq!(loss.losses.len(), expected.len());
    for (found, expected) in loss.losses.iter().zip(&expected) {
        let near = (found - expected).abs() <= 1e-4 * expected.abs().max(1.0);
        assert!(near, "{found} and {expected}");
    }
    let grads = loss.total.backward();
    for (i, sample) in samples.iter().enumerate() {
        let found: Vec<f32> = sample
            .tokens
            .grad(&grads)
            .expect("a gradient")
            .into_data()
            .to_vec()
            .expect("f32 values");
        let expected = from.f32(&format!("grad.{i}"));
        let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            let near = (found - expected).abs() <= 2e-4 * largest;
            assert!(near, "sample {i}: {found} and {expected}");
        }
    }
}
