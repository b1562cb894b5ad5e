//! Rows of the reference data as samples.

use golden::Tensors;
use sq_llava_data::TokenRole;
use sq_llava_train::data::batch::TrainSample;

/// Rows of ids, without their padding if there is a `mask`, and the learnable ones as answers.
pub fn samples(tensors: &Tensors, ids: &str, labels: &str, mask: Option<&str>) -> Vec<TrainSample> {
    let width = tensors.shape(ids)[1];
    let (all, labels) = (tensors.i64(ids), tensors.i64(labels));
    let mask = mask.map(|name| tensors.i64(name));
    all.chunks_exact(width)
        .enumerate()
        .map(|(row, ids)| {
            let span = row * width..(row + 1) * width;
            let real = mask.as_ref().map_or(width, |mask| {
                mask[span.clone()].iter().filter(|&&m| m == 1).count()
            });
            let role = |&label: &i64| match label {
                -100 => TokenRole::Ignore,
                _ => TokenRole::Answer,
            };
            TrainSample {
                id: format!("row {row}").into(),
                ids: ids[..real].to_vec(),
                roles: labels[span][..real].iter().map(role).collect(),
                pictures: vec![],
                source: None,
            }
        })
        .collect()
}
