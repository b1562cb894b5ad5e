//! The vision tower in training. Its features may be joined from several layers: each of them ends
//! a stretch of layers, and a gradient that comes back to it goes on through the stretches below.

use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use sq_llava_model::ops::draws::with_keys;
use sq_llava_model::vision::encoder::EncoderLayer;
use sq_llava_model::{ModelError, SqLlava};

use crate::recipe::GradientCheckpointing;
use crate::step::recompute::{Blocks, Pass};

/// The tower's pass over some pictures.
pub(crate) struct TowerPass<B: AutodiffBackend> {
    stretches: Vec<Pass<B>>,
    /// What each stretch ends in, as the graph above sees it. `[pictures, tokens, hidden]`
    ends: Vec<Tensor<B, 3>>,
}

/// The layers that are run, in stretches, and for each feature layer the stretch that it ends.
struct Stretches<'a, B: AutodiffBackend> {
    blocks: Vec<Blocks<'a, EncoderLayer<B>>>,
    features: Vec<usize>,
}

impl<'a, B: AutodiffBackend> Stretches<'a, B> {
    fn of(model: &'a SqLlava<B>, checkpointing: GradientCheckpointing) -> Result<Self, ModelError> {
        let (Some(tower), Some(layers)) = (&model.vision_tower, model.config.feature_layers())
        else {
            return Err(ModelError::NoVisionTower);
        };
        let mut ends = layers.clone();
        ends.sort_unstable();
        ends.dedup();
        let (mut blocks, mut start, mut below) = (Vec::new(), 0, false);
        for &end in &ends {
            let stretch = Blocks::new(&tower.encoder.layers[start..end], below, checkpointing);
            below = stretch.trains();
            start = end;
            blocks.push(stretch);
        }
        let place = |layer| ends.partition_point(|end| end < layer);
        let features = layers.iter().map(place).collect();
        Ok(Self { blocks, features })
    }
}

/// Features of pictures from a tower that trains, and with recompute the pass that a gradient goes
/// back through. `[pictures, 3, side, side]` → `[pictures, tokens, d]`; `keys`: of the pictures'
/// draws.
///
/// # Errors
/// If there is no tower.
pub(crate) fn see<B: AutodiffBackend>(
    model: &SqLlava<B>,
    pixels: Tensor<B, 4>,
    keys: &[u64],
    checkpointing: GradientCheckpointing,
) -> Result<(Tensor<B, 3>, Option<TowerPass<B>>), ModelError> {
    let Some(tower) = &model.vision_tower else {
        return Err(ModelError::NoVisionTower);
    };
    let run = Stretches::of(model, checkpointing)?;
    let mut pass = TowerPass {
        stretches: Vec::new(),
        ends: Vec::new(),
    };
    let mut hidden = tower.embed(pixels);
    for blocks in &run.blocks {
        let stretch = with_keys(keys, || blocks.forward(hidden.clone(), &()));
        hidden = stretch.states();
        pass.ends.push(hidden.clone());
        pass.stretches.push(stretch);
    }
    let states = run.features.iter().map(|&end| pass.ends[end].clone());
    let features = model.config.select_feature.of(states.collect());
    let kept = pass.stretches.iter().any(Pass::is_kept);
    Ok((features, kept.then_some(pass)))
}

/// Carries the gradients of a pass's ends, which `found` holds, back through the tower and collects
/// those of the parameters that it meets.
///
/// # Errors
/// If there is no tower.
pub(crate) fn go_back<B: AutodiffBackend>(
    model: &SqLlava<B>,
    pass: TowerPass<B>,
    mut found: B::Gradients,
    keys: &[u64],
    checkpointing: GradientCheckpointing,
    collected: &mut GradientsParams,
) -> Result<(), ModelError> {
    let run = Stretches::of(model, checkpointing)?;
    let mut carried: Option<Tensor<B::InnerBackend, 3>> = None;
    let stretches = pass.stretches.into_iter().enumerate();
    for (index, stretch) in stretches.collect::<Vec<_>>().into_iter().rev() {
        let own = pass.ends[index].grad_remove(&mut found);
        let gradient = match (own, carried.take()) {
            (Some(own), Some(above)) => own + above,
            (Some(gradient), None) | (None, Some(gradient)) => gradient,
            (None, None) => continue,
        };
        let below = with_keys(keys, || {
            run.blocks[index].backward(stretch, gradient, &(), model, collected, &mut |_, _| ())
        });
        if let (Some(mut below), Some(end)) = (below, index.checked_sub(1)) {
            carried = pass.ends[end].grad_remove(&mut below);
        }
    }
    Ok(())
}

/// Features of pictures from a frozen tower, on the backend without a graph.
/// `[pictures, 3, side, side]` → `[pictures, tokens, d]`
///
/// # Errors
/// If there is no tower.
pub(crate) fn see_frozen<B: AutodiffBackend>(
    model: &SqLlava<B>,
    pixels: Tensor<B::InnerBackend, 4>,
) -> Result<Tensor<B::InnerBackend, 3>, ModelError> {
    let (Some(tower), Some(layers)) = (&model.vision_tower, model.config.feature_layers()) else {
        return Err(ModelError::NoVisionTower);
    };
    let select = model.config.select_feature;
    Ok(tower.valid().features(pixels, &layers, select))
}
