//! The loss over the reference's own logits is PyTorch's cross-entropy, however it is divided.

use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use golden::Case;
use sq_llava_model::ops::cross_entropy::token_losses;

/// Mean cross-entropy of `[rows, tokens, vocabulary]` logits that predict the next label, in chunks
/// of so many tokens.
fn mean_loss(case: &Case, logits: &str, labels: &str, chunk: usize) -> f64 {
    let shape = case.tensors.shape(logits);
    let (tokens, vocabulary) = (shape[1], shape[2]);
    let (logits, labels) = (case.tensors.f32(logits), case.tensors.i64(labels));
    let mut rows = Vec::new();
    let mut ids = Vec::new();
    for (place, &label) in labels.iter().enumerate() {
        // The first token of a row has nothing before it.
        if label != -100 && place % tokens > 0 {
            let start = (place - 1) * vocabulary;
            rows.extend_from_slice(&logits[start..start + vocabulary]);
            ids.push(label);
        }
    }
    assert!(!ids.is_empty());
    let losses = ids
        .chunks(chunk)
        .zip(rows.chunks(chunk * vocabulary))
        .flat_map(|(ids, rows)| {
            let data = TensorData::new(rows.to_vec(), [ids.len(), vocabulary]);
            let rows = Tensor::<Flex, 2>::from_data(data, &Default::default());
            let losses: Vec<f32> = token_losses(rows, ids).into_data().to_vec().expect("f32");
            losses
        });
    losses.map(f64::from).sum::<f64>() / ids.len() as f64
}

#[test]
fn golden_losses_of_the_references_logits() {
    let mut compared = 0;
    let parts = [
        ("a_", "text_logits", "text_labels", "/text_loss"),
        (
            "d_",
            "logits_lora_unmerged",
            "labels",
            "/losses_step0_1_2_3/0",
        ),
    ];
    for (part, logits, labels, loss) in parts {
        for case in golden::cases(part) {
            let has = case.tensors.contains(logits) && case.tensors.contains(labels);
            let Some(expected) = case.json.pointer(loss).and_then(|v| v.as_f64()) else {
                continue;
            };
            if !has {
                continue;
            }
            for chunk in [1, 3, 7, 1 << 20] {
                let found = mean_loss(&case, logits, labels, chunk);
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{} in chunks of {chunk}: {found} for {expected}",
                    case.name
                );
            }
            compared += 1;
        }
    }
    assert!(compared > 0, "no case has logits, labels and a loss");
}
