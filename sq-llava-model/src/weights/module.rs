//! Any module from a directory of weights whose keys are the paths of its parameters.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{FloatDType, backend::Backend};

use super::checkpoint_dir::CheckpointDir;
use super::fill::{FillOptions, WeightMap, fill};
use super::narrow::Narrowed;
use super::options::Progress;
use super::report::LoadReport;
use super::shapes::check_module;
use super::source::read_files;
use super::write::file_dtype;
use crate::error::ModelError;

/// Fills a module with lazily drawn parameters from safetensors or PyTorch files, tensor by tensor.
/// A scalar of the files is a tensor of one element here; `position_ids`, a buffer that older files
/// hold, is left out.
///
/// `whole` makes the module, and is called only once the files were found to fit it: `one`, the
/// same module with at most one layer in each of its `stacks` (how the keys of their layers begin,
/// and the number of layers), tells the shapes, so that a number in a file makes nothing that it
/// does not fill.
///
/// # Errors
/// If a file is missing or damaged, weights are missing or have another shape, or (unless
/// `allow_unused`) the files hold weights that have no place; the message names the keys.
pub fn load_module<B: Backend, M: Module<B>>(
    one: &M,
    stacks: &[(&'static str, usize)],
    whole: impl FnOnce() -> M,
    dir: &Path,
    dtype: FloatDType,
    allow_unused: bool,
    progress: Option<&Progress>,
) -> Result<(M, LoadReport), ModelError> {
    let dtype = file_dtype(dtype)?;
    let files = CheckpointDir::list(dir.to_path_buf())?.own_weights(
        "no weights here (model.safetensors, pytorch_model.bin, or their shards with an index)",
    )?;
    let mut weights = WeightMap::default();
    for mut tensor in read_files(&files)? {
        if tensor.name.ends_with("embeddings.position_ids") {
            continue;
        }
        if tensor.shape.is_empty() {
            tensor.shape = vec![1];
        }
        weights.insert(tensor.name.clone(), tensor)?;
    }
    check_module::<B, M>(dir, one, stacks, &weights, allow_unused)?;
    let options = FillOptions {
        dtype,
        narrowed: Narrowed::default(),
        trainable_dtype: dtype,
        freeze_base: true,
        fresh: false,
        progress: progress.map(|p| &**p as &dyn Fn(u64, u64)),
    };
    let (module, report) = fill(whole(), weights, &options)?;
    report.check(dir, allow_unused)?;
    Ok((module, report))
}
