//! A vision tower alone, from a directory of its own.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{FloatDType, backend::Backend};

use super::checkpoint_dir::CheckpointDir;
use super::fill::{FillOptions, WeightMap, fill};
use super::narrow::Narrowed;
use super::report::LoadReport;
use super::shapes::{VISION_LAYERS, check_module};
use super::vision::{read_tower, tell_by_keys};
use super::write::file_dtype;
use crate::config::VisionConfig;
use crate::error::ModelError;
use crate::vision::tower::VisionTower;

/// A vision tower with its configuration.
#[derive(Debug)]
pub struct LoadedTower<B: Backend> {
    /// The tower, with SigLIP's pooling head where the files have it.
    pub tower: VisionTower<B>,
    /// Its sizes.
    pub config: VisionConfig,
    /// What happened to each key.
    pub report: LoadReport,
}

/// Gives the tower's parameters the names that they have in a whole model.
#[derive(Module, Debug)]
struct Alone<B: Backend> {
    vision_tower: VisionTower<B>,
}

impl<B: Backend> Alone<B> {
    fn init(config: &VisionConfig, device: &B::Device) -> Self {
        Self {
            vision_tower: config.init(device),
        }
    }
}

/// Loads a vision tower: a directory of its own, a whole CLIP or SigLIP, or a LLaVA that describes
/// its tower.
///
/// # Errors
/// If a file is missing or damaged, the tower is of a kind that is not supported, or weights are
/// missing, have another shape, or (unless `allow_unused`) no place; the message names the keys.
pub fn load_vision_tower<B: Backend>(
    dir: &Path,
    dtype: FloatDType,
    allow_unused: bool,
    device: &B::Device,
) -> Result<LoadedTower<B>, ModelError> {
    let dtype = file_dtype(dtype)?;
    let mut weights = WeightMap::default();
    let listed = CheckpointDir::list(dir.to_path_buf())?;
    let mut config = read_tower(&mut weights, &listed, allow_unused)?;
    tell_by_keys(&mut config, &weights);
    weights.describe_vision(&config);
    let layers = config.num_hidden_layers;
    let one = config.clone().with_num_hidden_layers(layers.min(1));
    let one = Alone::<B>::init(&one, device);
    let stacks = [(VISION_LAYERS, layers)];
    check_module(dir, &one, &stacks, &weights, allow_unused)?;
    let options = FillOptions {
        dtype,
        narrowed: Narrowed::default(),
        trainable_dtype: dtype,
        freeze_base: true,
        fresh: false,
        progress: None,
    };
    let (alone, report) = fill(Alone::init(&config, device), weights, &options)?;
    report.check(dir, allow_unused)?;
    Ok(LoadedTower {
        tower: alone.vision_tower,
        config,
        report,
    })
}
