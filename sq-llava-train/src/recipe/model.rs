//! What stands between the vision tower and the LLM.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sq_llava_data::image::AnyResolution;
use sq_llava_model::SqLlavaConfig;
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
    /// Hidden layer of the vision tower whose tokens are used, −2 is the last but one, or a list of
    /// layers, which are joined along the channels. A projector that is loaded must have learnt on
    /// the same.
    pub select_layer: FeatureLayers,
    /// `pad`, `crop` or `resize`: how a picture becomes square; or `anyres` (LLaVA-NeXT) or
    /// `anyres_max_N` (OneVision): it is laid over tiles. It counts for a checkpoint that is loaded
    /// too, whatever its own says; a stage may name another. Without it pictures are seen as the run
    /// or LLaVA that training starts from saw them, and by a new projector as published, by `pad`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_aspect_ratio: Option<String>,
    /// The resolutions that pictures of any shape are brought to, `[height, width]` in pixels,
    /// multiples of the vision tower's input. Without them those of the checkpoint, else the
    /// published ones in tiles of that size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_grid_pinpoints: Option<Vec<(u32, u32)>>,
    /// Masks that guide the prototypes; none by default. Last, as TOML has tables behind values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masks: Option<MaskRecipe>,
}

/// Masks of the pictures, by any segmenter: tokens of one mask learn to share prototypes, tokens of
/// different masks to have different ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskRecipe {
    /// Folder of the masks: of the picture `a/b.jpg` those in `a/b.png`, a label map, or in
    /// `a/b.json`, COCO's annotations.
    pub folder: PathBuf,
    /// Weight of their loss beside that of the text. 0 measures it, and learns nothing from it.
    #[serde(default = "MaskRecipe::usual_weight")]
    pub weight: f64,
}

impl MaskRecipe {
    fn usual_weight() -> f64 {
        0.1
    }
}

/// One layer of the vision tower, or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FeatureLayers {
    /// One.
    One(i64),
    /// Several, in the order in which they are joined.
    Several(Vec<i64>),
}

impl FeatureLayers {
    /// All of them.
    pub fn list(&self) -> Vec<i64> {
        match self {
            Self::One(layer) => vec![*layer],
            Self::Several(layers) => layers.clone(),
        }
    }
}

impl From<&[i64]> for FeatureLayers {
    fn from(layers: &[i64]) -> Self {
        match layers {
            [layer] => Self::One(*layer),
            layers => Self::Several(layers.to_vec()),
        }
    }
}

impl std::fmt::Display for FeatureLayers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(layer) => write!(f, "{layer}"),
            Self::Several(layers) => write!(f, "{layers:?}"),
        }
    }
}

impl ModelRecipe {
    /// How pictures are laid over tiles under an `image_aspect_ratio`, by a model of this
    /// configuration; `None` where each becomes one square.
    pub fn tiling(&self, aspect: &str, config: &SqLlavaConfig) -> Option<AnyResolution> {
        let max_tiles = AnyResolution::max_tiles_of(aspect)?;
        let tile = config.vision.as_ref().map_or(0, |vision| vision.image_size);
        let tile = u32::try_from(tile).unwrap_or(u32::MAX);
        let mut tiling = match &config.anyres {
            Some(own) => own.clone(),
            None => AnyResolution::published(tile, max_tiles),
        };
        tiling.max_tiles = max_tiles;
        if let Some(pinpoints) = &self.image_grid_pinpoints {
            tiling.pinpoints.clone_from(pinpoints);
        }
        Some(tiling)
    }

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
