//! Configuration of the model and its named presets.

mod clip;
mod count;
mod family;
mod hf;
mod processor;

pub use clip::{ClipConfig, ClipTextConfig};
pub use count::ParameterCount;
pub use family::{Family, NormPlacement, QkNorm, SlidingWindow};
pub(crate) use hf::{judge_unknown, vision_json};
pub use hf::{read_json, read_vision_config};

use burn::config::Config;
use serde::{Deserialize, Serialize};
use sq_llava_data::image::{AnyResolution, PatchMerge};

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
    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Whether a layer sees the last tokens only.
    pub fn slides(&self, layer: usize) -> bool {
        let window = self.sliding_window.as_ref();
        window.is_some_and(|window| window.layers.get(layer).copied().unwrap_or(false))
    }

    /// Whether a linear of a layer has a bias, by its name.
    pub(crate) fn has_bias(&self, linear: &str) -> bool {
        match linear {
            "q_proj" | "k_proj" | "v_proj" => self.attention_bias,
            "o_proj" => self.output_bias,
            _ => self.mlp_bias,
        }
    }
}

/// CLIP vision tower sizes; field names as in Hugging Face's `CLIPVisionConfig`.
#[derive(Config, Debug, PartialEq)]
pub struct ClipVisionConfig {
    /// Width of the residual stream.
    #[config(default = 768)]
    pub hidden_size: usize,
    /// Width of the MLP.
    #[config(default = 3072)]
    pub intermediate_size: usize,
    /// Number of layers.
    #[config(default = 12)]
    pub num_hidden_layers: usize,
    /// Attention heads.
    #[config(default = 12)]
    pub num_attention_heads: usize,
    /// Side of the square input in pixels.
    #[config(default = 224)]
    pub image_size: usize,
    /// Side of a patch in pixels.
    #[config(default = 32)]
    pub patch_size: usize,
    /// MLP non-linearity.
    #[config(default = "Activation::QuickGelu")]
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    #[config(default = 1e-5)]
    pub layer_norm_eps: f64,
    /// Whether a norm stands before the first layer. Told by the keys of a checkpoint.
    #[config(default = true)]
    pub pre_layernorm: bool,
    /// Whether the patch embedding has a bias. Told by the keys of a checkpoint.
    #[config(default = false)]
    pub patch_bias: bool,
    /// Whether a norm stands after the last layer (no image feature passes through it). Told by
    /// the keys of a checkpoint.
    #[config(default = true)]
    pub post_layernorm: bool,
}

impl ClipVisionConfig {
    /// OpenAI's ViT-L/14 at `side` pixels (224 or 336).
    pub fn large(side: usize) -> Self {
        Self::new()
            .with_hidden_size(1024)
            .with_intermediate_size(4096)
            .with_num_hidden_layers(24)
            .with_num_attention_heads(16)
            .with_image_size(side)
            .with_patch_size(14)
    }

    /// Patches of one image.
    pub fn num_patches(&self) -> usize {
        // A file's numbers may be of any size; its tensors say whether they are true.
        (self.image_size / self.patch_size).saturating_pow(2)
    }
}

/// Which tokens of the chosen layer become image features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectFeature {
    /// Patch tokens.
    Patch,
    /// Class token and patch tokens.
    ClsPatch,
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
    pub vision: Option<ClipVisionConfig>,
    /// The paper's prototype extractor before the projector (flavour `paper`).
    pub prototype: Option<PrototypeConfig>,
    /// The projector W, or the released extractor (flavour `released`).
    #[config(default = "ProjectorConfig::from_name(\"mlp2x_gelu\", None).expect(\"known name\")")]
    pub projector: ProjectorConfig,
    /// Layer whose output is the image feature: −2 is the last but one.
    #[config(default = -2)]
    pub select_layer: i64,
    /// Tokens of that layer that are used.
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
    /// First of the four role tokens of template `sq`, if the model has learnt rows for them.
    pub new_tokens_start: Option<usize>,
    /// Conversation template that the model was trained with.
    pub conversation: Option<String>,
}

impl SqLlavaConfig {
    /// `sq-llava-7b`, `sq-llava-13b` or `tiny`; flavour `paper`.
    pub fn preset(name: &str) -> Option<Self> {
        let clip = ClipVisionConfig::large(336);
        let vicuna = LlamaConfig::new()
            .with_max_position_embeddings(4096)
            .with_rms_norm_eps(1e-5);
        let (llama, vision, centers) = match name {
            "sq-llava-7b" => (vicuna, clip, 256),
            "sq-llava-13b" => {
                let llama = vicuna
                    .with_hidden_size(5120)
                    .with_intermediate_size(13824)
                    .with_num_hidden_layers(40)
                    .with_num_attention_heads(40)
                    .with_num_key_value_heads(40);
                (llama, clip, 256)
            }
            "tiny" => {
                let llama = LlamaConfig::new()
                    .with_hidden_size(64)
                    .with_intermediate_size(172)
                    .with_num_hidden_layers(3)
                    .with_num_attention_heads(4)
                    .with_num_key_value_heads(2)
                    .with_vocab_size(320)
                    .with_max_position_embeddings(512)
                    .with_rms_norm_eps(1e-5);
                let vision = ClipVisionConfig::new()
                    .with_hidden_size(64)
                    .with_intermediate_size(256)
                    .with_num_hidden_layers(4)
                    .with_num_attention_heads(4)
                    .with_image_size(56)
                    .with_patch_size(14);
                (llama, vision, 8)
            }
            _ => return None,
        };
        let prototype = PrototypeConfig::new(vision.hidden_size).with_num_centers(centers);
        Some(
            Self::new(llama)
                .with_vision(Some(vision))
                .with_prototype(Some(prototype))
                .with_bos_token_id(Some(1))
                .with_eos_token_ids(vec![2])
                .with_pad_token_id(Some(0)),
        )
    }

    /// Features of one image as the LLM sees them; of one tile, where images are laid over tiles.
    pub fn tokens_per_image(&self) -> usize {
        let patches = self
            .vision
            .as_ref()
            .map_or(0, ClipVisionConfig::num_patches);
        patches + usize::from(self.select_feature == SelectFeature::ClsPatch && patches > 0)
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

    /// Index into the hidden states (0 = after the embeddings) that `select_layer` names.
    pub fn feature_layer(&self) -> Option<usize> {
        let states = self.vision.as_ref()?.num_hidden_layers as i64 + 1;
        let index = if self.select_layer < 0 {
            states + self.select_layer
        } else {
            self.select_layer
        };
        (0..states).contains(&index).then_some(index as usize)
    }
}
