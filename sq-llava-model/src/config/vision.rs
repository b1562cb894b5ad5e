//! Vision towers: CLIP's sizes, and what other families have instead.

use burn::config::Config;
use serde::{Deserialize, Serialize};

use crate::ops::activation::Activation;

/// Families of vision towers, by the names of transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VisionFamily {
    /// CLIP's.
    Clip,
    /// SigLIP's, and those of SigLIP 2 that take pictures of one size.
    Siglip,
    /// DINOv2 without registers.
    Dinov2,
}

impl VisionFamily {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Clip, Self::Siglip, Self::Dinov2];

    /// Its `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Clip => "clip_vision_model",
            Self::Siglip => "siglip_vision_model",
            Self::Dinov2 => "dinov2",
        }
    }

    /// Its class in transformers.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Clip => "CLIPVisionModel",
            Self::Siglip => "SiglipVisionModel",
            Self::Dinov2 => "Dinov2Model",
        }
    }

    /// `model_type` of the model of pictures and texts that such a tower may be half of.
    pub fn whole(self) -> Option<&'static str> {
        match self {
            Self::Clip => Some("clip"),
            Self::Siglip => Some("siglip"),
            Self::Dinov2 => None,
        }
    }

    /// By `model_type`.
    pub fn of(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.model_type() == model_type)
    }

    /// Names of all, for messages.
    pub(crate) fn known() -> String {
        Self::ALL.map(Self::model_type).join(", ")
    }

    /// What distinguishes the family, with the sizes that transformers' class has where a file is
    /// silent.
    pub fn preset(self) -> VisionConfig {
        let clip = VisionConfig::new().with_family(self);
        match self {
            Self::Clip => clip,
            Self::Siglip => clip
                .with_patch_size(16)
                .with_hidden_act(Activation::GeluPytorchTanh)
                .with_layer_norm_eps(1e-6)
                .with_class_token(false)
                .with_patch_bias(true)
                .with_pre_layernorm(false)
                .with_pooling_head(true),
            Self::Dinov2 => clip
                .with_patch_size(14)
                .with_hidden_act(Activation::Gelu)
                .with_layer_norm_eps(1e-6)
                .with_patch_bias(true)
                .with_pre_layernorm(false)
                .with_layer_scale(true),
        }
    }
}

/// A vision tower: CLIP's sizes, and what other families have instead ([`VisionFamily::preset`]);
/// field names as in Hugging Face's configurations.
#[derive(Config, Debug, PartialEq)]
pub struct VisionConfig {
    /// The family; it names the tower, and its weights, in what is written.
    #[config(default = "VisionFamily::Clip")]
    pub family: VisionFamily,
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
    /// Whether a class token stands before the patches.
    #[config(default = true)]
    pub class_token: bool,
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
    /// Whether queries, keys and values have biases.
    #[config(default = true)]
    pub qkv_bias: bool,
    /// Whether the outputs of attention and MLP are scaled channel by channel before the sum.
    #[config(default = false)]
    pub layer_scale: bool,
    /// Whether the MLP is gated by SiLU: `fc1` makes gate and value at once.
    #[config(default = false)]
    pub gated_mlp: bool,
    /// Whether a head pools the patches by attention; no image feature passes through it. Told by
    /// the keys of a checkpoint.
    #[config(default = false)]
    pub pooling_head: bool,
}

impl VisionConfig {
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

    /// Google's SigLIP So400m/14 at `side` pixels (224 or 384), without its pooling head.
    pub fn so400m(side: usize) -> Self {
        VisionFamily::Siglip
            .preset()
            .with_hidden_size(1152)
            .with_intermediate_size(4304)
            .with_num_hidden_layers(27)
            .with_num_attention_heads(16)
            .with_image_size(side)
            .with_patch_size(14)
            .with_pooling_head(false)
    }

    /// Patches of one image along each of its sides.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of one image.
    pub fn num_patches(&self) -> usize {
        // A file's numbers may be of any size; its tensors say whether they are true.
        self.patches_per_side().saturating_pow(2)
    }

    /// Tokens of one image in the tower: its patches, and the class token if there is one.
    pub fn tokens(&self) -> usize {
        let class = usize::from(self.class_token);
        self.num_patches().saturating_add(class)
    }

    /// Width of DINOv2's MLP by its `mlp_ratio`; `None` if there is no such number.
    pub(crate) fn mlp_width(hidden: usize, ratio: usize, gated: bool) -> Option<usize> {
        let width = hidden.checked_mul(ratio)?;
        match gated {
            // Two thirds, up to a multiple of eight.
            true => Some((width.checked_mul(2)? / 3).next_multiple_of(8)),
            false => Some(width),
        }
    }

    /// The `mlp_ratio` that makes this width.
    pub(crate) fn mlp_ratio(&self) -> usize {
        let width = |ratio| Self::mlp_width(self.hidden_size, ratio, self.gated_mlp);
        let fits = |&ratio: &usize| width(ratio).is_none_or(|w| w >= self.intermediate_size);
        (1..).find(fits).unwrap_or(1)
    }
}

/// Which tokens of the chosen layers become image features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectFeature {
    /// All but the first: the class token, or the first patch of a tower without one.
    Patch,
    /// All of them.
    ClsPatch,
}

impl SelectFeature {
    /// Its name as llava-hf's `vision_feature_select_strategy`.
    pub(crate) fn strategy(self) -> &'static str {
        match self {
            Self::Patch => "default",
            Self::ClsPatch => "full",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_of_dinov2_come_from_a_ratio_and_go_back_to_it() {
        // DINOv2 base and giant.
        assert_eq!(VisionConfig::mlp_width(768, 4, false), Some(3072));
        assert_eq!(VisionConfig::mlp_width(1536, 4, true), Some(4096));
        for (hidden, ratio, gated) in [
            (768, 4, false),
            (1536, 4, true),
            (24, 2, true),
            (24, 3, false),
        ] {
            let width = VisionConfig::mlp_width(hidden, ratio, gated).unwrap();
            let config = VisionFamily::Dinov2
                .preset()
                .with_hidden_size(hidden)
                .with_gated_mlp(gated)
                .with_intermediate_size(width);
            assert_eq!(config.mlp_ratio(), ratio, "{hidden} {ratio} {gated}");
        }
        assert_eq!(VisionConfig::mlp_width(usize::MAX, 4, false), None);
    }

    #[test]
    fn patches_and_class_token() {
        // 384 / 14: the last pixels are not seen.
        let siglip = VisionConfig::so400m(384);
        assert_eq!((siglip.num_patches(), siglip.tokens()), (729, 729));
        assert_eq!(VisionConfig::large(336).tokens(), 577);
    }
}
