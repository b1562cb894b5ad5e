//! What stands between the vision tower and the LLM.

use serde::{Deserialize, Serialize};
use sq_llava_model::config::{ProjectorConfig, PrototypeConfig};

/// What stands between the vision tower and the LLM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// `mlp2x_gelu` (any `mlpNx_gelu`), `linear`, or `cluster`, the released prototype extractor.
    pub mm_projector_type: String,
    /// The paper's prototype extractor before the projector. Not together with `cluster`.
    pub prototype: bool,
    /// Number of centres K.
    pub num_centers: usize,
    /// EM steps T.
    pub num_iterations: usize,
    /// Draw new initial centres in each training forward instead of keeping one draw.
    pub redraw_centers: bool,
    /// Hidden layer of the vision tower whose tokens are used; −2 is the last but one. A projector
    /// that is loaded must have learnt on the same one.
    pub select_layer: i64,
    /// `pad`, `crop` or `resize`: how a picture becomes square. It counts for a checkpoint that is
    /// loaded too, whatever its own says; a stage may name another.
    pub image_aspect_ratio: String,
}

impl ModelRecipe {
    /// The projector's configuration.
    pub fn projector(&self) -> Option<ProjectorConfig> {
        let mut projector =
            ProjectorConfig::from_name(&self.mm_projector_type, Some(self.num_centers))?;
        if let ProjectorConfig::Cluster(cluster) = &mut projector {
            cluster.num_iterations = self.num_iterations;
        }
        Some(projector)
    }

    /// The prototype extractor's configuration for image tokens of width `hidden_size`.
    pub fn prototype(&self, hidden_size: usize, seed: u64) -> Option<PrototypeConfig> {
        self.prototype.then(|| {
            PrototypeConfig::new(hidden_size)
                .with_num_centers(self.num_centers)
                .with_num_iterations(self.num_iterations)
                .with_redraw_centers(self.redraw_centers)
                .with_seed(seed)
        })
    }
}
