//! Configuration of the model and its named presets.

mod clip;
mod count;
mod family;
mod hf;
mod preset;
mod processor;
mod vision;
mod vision_names;

pub use clip::{ClipConfig, ClipTextConfig};
pub use count::ParameterCount;
pub use family::{Family, NormPlacement, QkNorm, SlidingWindow};
pub(crate) use hf::{judge_unknown, vision_json};
pub use hf::{read_json, read_vision_config};
pub use vision::{SelectFeature, VisionConfig, VisionFamily};
pub(crate) use vision_names::{own_shape, vision_name};

use burn::config::Config;
use serde::{Deserialize, Serialize};
use sq_llava_data::AskingRole;
use sq_llava_data::image::{AnyResolution, PatchMerge};
use sq_llava_data::masks::PatchGrid;

use crate::ops::activation::Activation;
use crate::ops::rope::RopeScaling;

/// A decoder: LLaMA's sizes, and what other families add to it ([`Family::preset`]); field names as
/// in Hugging Face's configurations.
#[derive(Config, Debug, PartialEq)]
pub struct LlamaConfig {
    /// The family; it names the model in a written configuration.
    #[config(default = "Family::Llama")]
    pub family: Family,
    /// Width of the residual stream.
    #[config(default = 4096)]
    pub hidden_size: usize,
    /// Width of the gated MLP.
    #[config(default = 11008)]
    pub intermediate_size: usize,
    /// Number of layers.
    #[config(default = 32)]
    pub num_hidden_layers: usize,
    /// Query heads.
    #[config(default = 32)]
    pub num_attention_heads: usize,
    /// Key and value heads; fewer than the query heads in grouped-query attention.
    #[config(default = 32)]
    pub num_key_value_heads: usize,
    /// Width of a head; `None` is `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Rows of the embedding.
    #[config(default = 32000)]
    pub vocab_size: usize,
    /// Context window in tokens.
    #[config(default = 2048)]
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[config(default = 10000.0)]
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: Option<RopeScaling>,
    /// Share of a head's entries that rotate, the first ones.
    #[config(default = 1.0)]
    pub partial_rotary_factor: f64,
    /// MLP non-linearity.
    #[config(default = "Activation::Silu")]
    pub hidden_act: Activation,
    /// Whether the output head is the embedding.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
    /// Whether the projections to queries, keys and values have biases.
    #[config(default = false)]
    pub attention_bias: bool,
    /// Whether the attention's output projection has a bias.
    #[config(default = false)]
    pub output_bias: bool,
    /// Whether the MLP projections have biases.
    #[config(default = false)]
    pub mlp_bias: bool,
    /// Whether queries, keys and values are rows of one matrix, and so gate and value of the MLP.
    #[config(default = false)]
    pub fused_projections: bool,
    /// Where the norms of a layer stand.
    #[config(default = "NormPlacement::Before")]
    pub norm_placement: NormPlacement,
    /// Whether norms multiply by one more than their weight.
    #[config(default = false)]
    pub norm_offset: bool,
    /// Norms of queries and keys.
    #[config(default = "QkNorm::None")]
    pub qk_norm: QkNorm,
    /// Whether token embeddings are multiplied by the root of `hidden_size`.
    #[config(default = false)]
    pub embedding_scale: bool,
    /// Scores are divided by the root of this; `None` is the width of a head.
    pub query_pre_attn_scalar: Option<f64>,
    /// Soft limit c of the scores: `c · tanh(score / c)`.
    pub attn_logit_softcapping: Option<f64>,
    /// Soft limit of the logits.
    pub final_logit_softcapping: Option<f64>,
    /// Layers that see the last tokens only.
    pub sliding_window: Option<SlidingWindow>,
    /// Base of the rotary frequencies, unscaled, in the layers with a sliding window.
    pub rope_local_base_freq: Option<f64>,
    /// Layers that do not rotate.
    #[config(default = "vec![]")]
    pub unrotated_layers: Vec<usize>,
}

impl LlamaConfig {
    /// The most layers of a model whose layers differ, and are listed.
    pub(crate) const MOST_LAYERS: usize = 65_536;

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Entries of a head that rotate.
    pub fn rotated_width(&self) -> usize {
        (self.head_dim() as f64 * self.partial_rotary_factor) as usize
    }

    /// Whether a window of `tokens` changes anything in a context of `context`: one as long hides
    /// nothing, but layers with one may rotate by a base of their own.
    pub(crate) fn window_counts(&self, tokens: usize, context: usize) -> bool {
        tokens < context || self.rope_local_base_freq.is_some()
    }

    /// Tokens that a text may have: `max_position_embeddings`, or as many as the scaling of the
    /// rotary frequencies makes of them.
    pub fn context_window(&self) -> usize {
        let positions = self.max_position_embeddings;
        let scaled = match self.rope_scaling {
            Some(
                RopeScaling::Dynamic {
                    factor,
                    original_max_position_embeddings: original,
                }
                | RopeScaling::Yarn {
                    factor,
                    original_max_position_embeddings: original,
                    ..
                },
            ) => (original as f64 * factor) as usize,
            _ => 0,
        };
        positions.max(scaled)
    }

    /// Whether a layer sees the last tokens only.
    pub fn slides(&self, layer: usize) -> bool {
        let window = self.sliding_window.as_ref();
        window.is_some_and(|window| window.layers.get(layer).copied().unwrap_or(false))
    }

    /// Whether a linear of a layer has a bias, by its name.
    pub(crate) fn has_bias(&self, linear: &str) -> bool {
        match linear {
            "q_proj" | "k_proj" | "v_proj" | "qkv_proj" => self.attention_bias,
            "o_proj" => self.output_bias,
            _ => self.mlp_bias,
        }
    }
}

/// Dimension of the softmax in the paper's E step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssignmentSoftmax {
    /// Over the centres: they compete for a token (paper).
    Clusters,
    /// Over the tokens.
    Tokens,
}

/// The paper's prototype extractor φ (section 3.2).
#[derive(Config, Debug, PartialEq)]
pub struct PrototypeConfig {
    /// Width of the image tokens.
    pub hidden_size: usize,
    /// Number of centres K.
    #[config(default = 256)]
    pub num_centers: usize,
    /// EM steps T.
    #[config(default = 2)]
    pub num_iterations: usize,
    /// Where the softmax of the E step runs.
    #[config(default = "AssignmentSoftmax::Clusters")]
    pub softmax: AssignmentSoftmax,
    /// Whether the scores are divided by √d.
    #[config(default = false)]
    pub scaled: bool,
    /// Seed of the normal draw of the initial centres.
    #[config(default = 0)]
    pub seed: u64,
    /// Draw new initial centres in every training forward instead of using the stored ones.
    #[config(default = false)]
    pub redraw_centers: bool,
}

/// The released prototype extractor with its own MLP (`mm_projector_type: cluster`).
#[derive(Config, Debug, PartialEq)]
pub struct ClusterConfig {
    /// Number of centres K; `num_latents` in config.json.
    #[config(default = 256)]
    pub num_latents: usize,
    /// EM steps T.
    #[config(default = 2)]
    pub num_iterations: usize,
}

/// Projector from image tokens to the LLM, by its name in `mm_projector_type`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ProjectorConfig {
    /// `identity`.
    Identity,
    /// `linear`.
    Linear {
        /// Whether it has a bias.
        bias: bool,
    },
    /// `mlpNx_gelu`: N linears with GELU between.
    Mlp {
        /// N.
        depth: usize,
        /// Non-linearity between the linears.
        act: Activation,
        /// Whether the linears have biases.
        bias: bool,
    },
    /// `cluster`: the released prototype extractor and its QuickGELU MLP.
    Cluster(ClusterConfig),
}

impl ProjectorConfig {
    /// Name in `mm_projector_type`.
    pub fn name(&self) -> String {
        match self {
            Self::Identity => "identity".into(),
            Self::Linear { .. } => "linear".into(),
            Self::Mlp { depth, .. } => format!("mlp{depth}x_gelu"),
            Self::Cluster(_) => "cluster".into(),
        }
    }

    /// By its Hugging Face name.
    pub fn from_name(name: &str, num_latents: Option<usize>) -> Option<Self> {
        match name {
            "identity" => Some(Self::Identity),
            "linear" => Some(Self::Linear { bias: true }),
            "cluster" => {
                let config = ClusterConfig::new();
                Some(Self::Cluster(match num_latents {
                    Some(k) => config.with_num_latents(k),
                    None => config,
                }))
            }
            _ => {
                let depth = name.strip_prefix("mlp")?.strip_suffix("x_gelu")?;
                let depth = depth.parse().ok().filter(|d| (1..=64).contains(d))?;
                Some(Self::Mlp {
                    depth,
                    act: Activation::Gelu,
                    bias: true,
                })
            }
        }
    }
}

/// The whole model.
#[derive(Config, Debug, PartialEq)]
pub struct SqLlavaConfig {
    /// The language model.
    pub llama: LlamaConfig,
    /// The vision tower; `None` for a text-only model.
    pub vision: Option<VisionConfig>,
    /// The paper's prototype extractor before the projector (flavour `paper`).
    pub prototype: Option<PrototypeConfig>,
    /// The projector W, or the released extractor (flavour `released`).
    #[config(default = "ProjectorConfig::from_name(\"mlp2x_gelu\", None).expect(\"known name\")")]
    pub projector: ProjectorConfig,
    /// Layers whose outputs, joined along the channels, are the image features: −2 is the last but
    /// one.
    #[config(default = "vec![-2]")]
    pub select_layers: Vec<i64>,
    /// Tokens of those layers that are used.
    #[config(default = "SelectFeature::Patch")]
    pub select_feature: SelectFeature,
    /// `pad`, `crop` or `resize`: how an image becomes square; `anyres` or `anyres_max_N` where it
    /// is laid over tiles. `None` where the image processor's own file says it, as in the llava-hf
    /// layout.
    #[config(default = "Some(String::from(\"pad\"))")]
    pub image_aspect_ratio: Option<String>,
    /// How an image of any shape is laid over tiles of the tower's size, and how their features are
    /// joined; `None` where each image is one tile.
    pub anyres: Option<AnyResolution>,
    /// Id that stands once per image feature in ids made by llava-hf's processor.
    pub image_token_index: Option<i64>,
    /// Begin token.
    pub bos_token_id: Option<i64>,
    /// End tokens.
    #[config(default = "vec![]")]
    pub eos_token_ids: Vec<i64>,
    /// Padding token.
    pub pad_token_id: Option<i64>,
    /// First of the template's role tokens (`sq` has four, a checkpoint's own template one), if the
    /// model has learnt rows for them.
    pub new_tokens_start: Option<usize>,
    /// Conversation template that the model was trained with: the name of one of ours, or
    /// `checkpoint` for the chat template beside its tokenizer.
    pub conversation: Option<String>,
    /// The role that asks in the checkpoint's own template, if it was trained to.
    pub asking_role: Option<AskingRole>,
}

impl SqLlavaConfig {
    /// Features of one image as the LLM sees them; of one tile, where images are laid over tiles.
    pub fn tokens_per_image(&self) -> usize {
        let tokens = self.vision.as_ref().map_or(0, VisionConfig::tokens);
        tokens.saturating_sub(usize::from(self.select_feature == SelectFeature::Patch))
    }

    /// The patches of a tile, and which of them become features; `None` without a tower.
    pub fn patch_grid(&self) -> Option<PatchGrid> {
        let vision = self.vision.as_ref()?;
        Some(PatchGrid {
            patch_size: vision.patch_size,
            patches: vision.patches_per_side(),
            class_token: vision.class_token,
            first_dropped: self.select_feature == SelectFeature::Patch,
        })
    }

    /// Tiles of the image that has most.
    pub fn most_tiles(&self) -> usize {
        match (&self.anyres, &self.vision) {
            (Some(anyres), Some(vision)) => {
                anyres.most_tiles(u32::try_from(vision.image_size).unwrap_or(u32::MAX))
            }
            _ => 1,
        }
    }

    /// Whether the model has an `image_newline`.
    pub fn has_image_newline(&self) -> bool {
        let merge = self.anyres.as_ref().map(|anyres| anyres.merge);
        merge.is_some_and(PatchMerge::has_newlines)
    }

    /// Width of an image feature before the projector: the tower's, once for each layer.
    pub fn feature_width(&self) -> Option<usize> {
        let width = self.vision.as_ref()?.hidden_size;
        Some(width.saturating_mul(self.select_layers.len()))
    }

    /// Indices into the hidden states (0 = after the embeddings) that `select_layers` names, in
    /// their order; `None` if there is no tower, or it has no such layer.
    pub fn feature_layers(&self) -> Option<Vec<usize>> {
        let states = self.vision.as_ref()?.num_hidden_layers as i64 + 1;
        let index = |&layer: &i64| {
            let index = if layer < 0 { states + layer } else { layer };
            (0..states).contains(&index).then_some(index as usize)
        };
        let layers: Option<Vec<usize>> = self.select_layers.iter().map(index).collect();
        layers.filter(|layers| !layers.is_empty())
    }

    /// The highest of [`Self::feature_layers`]: what stands above it is never run.
    pub fn feature_layer(&self) -> Option<usize> {
        self.feature_layers()?.into_iter().max()
    }
}
