//! Parameter counts by arithmetic, without building a model.

use super::{
    LlamaConfig, NormPlacement, ProjectorConfig, PrototypeConfig, QkNorm, SqLlavaConfig,
    VisionConfig,
};
use crate::ops::lora::LoraConfig;

/// Parameters of each part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct ParameterCount {
    /// Vision tower.
    pub vision_tower: usize,
    /// The paper's prototype extractor, without its buffer of centres.
    pub prototype: usize,
    /// Projector, with the `image_newline` of images of any shape; with the released extractor, all
    /// of it.
    pub projector: usize,
    /// Language model.
    pub language_model: usize,
}

impl ParameterCount {
    /// Sum of all parts.
    pub fn total(&self) -> usize {
        self.vision_tower + self.prototype + self.projector + self.language_model
    }
}

impl SqLlavaConfig {
    /// Parameters of each part.
    pub fn parameters(&self) -> ParameterCount {
        let width = self.llama.hidden_size;
        let vision = self.vision.as_ref();
        ParameterCount {
            vision_tower: vision.map_or(0, VisionConfig::parameters),
            prototype: self
                .prototype
                .as_ref()
                .map_or(0, PrototypeConfig::parameters),
            projector: self.feature_width().map_or(0, |d| {
                let newline = usize::from(self.has_image_newline()) * width;
                self.projector.parameters(d, width) + newline
            }),
            language_model: self.llama.parameters(),
        }
    }
}

impl LlamaConfig {
    /// `(name, in, out)` of the linears of one layer.
    pub fn linears(&self) -> Vec<(&'static str, usize, usize)> {
        let (h, i, d) = (self.hidden_size, self.intermediate_size, self.head_dim());
        let (q, kv) = (self.num_attention_heads * d, self.num_key_value_heads * d);
        if self.fused_projections {
            return vec![
                ("qkv_proj", h, q + 2 * kv),
                ("o_proj", q, h),
                ("gate_up_proj", h, 2 * i),
                ("down_proj", i, h),
            ];
        }
        vec![
            ("q_proj", h, q),
            ("k_proj", h, kv),
            ("v_proj", h, kv),
            ("o_proj", q, h),
            ("gate_proj", h, i),
            ("up_proj", h, i),
            ("down_proj", i, h),
        ]
    }

    /// Parameters of the decoder.
    pub fn parameters(&self) -> usize {
        let h = self.hidden_size;
        let layer: usize = self
            .linears()
            .iter()
            .map(|&(name, i, o)| i * o + usize::from(self.has_bias(name)) * o)
            .sum();
        let norms = match self.norm_placement {
            NormPlacement::Before | NormPlacement::Behind => 2 * h,
            NormPlacement::Around => 4 * h,
        };
        let (queries, keys) = (self.num_attention_heads, self.num_key_value_heads);
        let qk_norms = match self.qk_norm {
            QkNorm::None => 0,
            QkNorm::Head => 2 * self.head_dim(),
            QkNorm::All => (queries + keys) * self.head_dim(),
        };
        let head = if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers * (layer + norms + qk_norms) + head * self.vocab_size * h + h
    }

    /// Parameters of the adapters on the decoder.
    pub fn lora_parameters(&self, lora: &LoraConfig) -> usize {
        self.num_hidden_layers * adapters(&self.linears(), lora)
    }
}

impl VisionConfig {
    /// `(name, in, out)` of the linears of one layer.
    pub fn linears(&self) -> [(&'static str, usize, usize); 6] {
        let (h, i) = (self.hidden_size, self.intermediate_size);
        let up = if self.gated_mlp { 2 * i } else { i };
        [
            ("q_proj", h, h),
            ("k_proj", h, h),
            ("v_proj", h, h),
            ("out_proj", h, h),
            ("fc1", h, up),
            ("fc2", i, h),
        ]
    }

    /// Parameters of the tower.
    pub fn parameters(&self) -> usize {
        let (h, i) = (self.hidden_size, self.intermediate_size);
        let has = |part: bool, parameters: usize| if part { parameters } else { 0 };
        let linears: usize = self.linears().iter().map(|(_, i, o)| i * o + o).sum();
        let layer = linears - has(!self.qkv_bias, 3 * h) + 4 * h + has(self.layer_scale, 2 * h);
        // The probe, its attention, a norm and an MLP.
        let head = h + (4 * h * h + 4 * h) + 2 * h + (2 * h * i + i + h);
        3 * self.patch_size * self.patch_size * h
            + has(self.patch_bias, h)
            + has(self.class_token, h)
            + self.tokens() * h
            + self.num_hidden_layers * layer
            + has(self.pre_layernorm, 2 * h)
            + has(self.post_layernorm, 2 * h)
            + has(self.pooling_head, head)
    }

    /// Parameters of the adapters on the tower.
    pub fn lora_parameters(&self, lora: &LoraConfig) -> usize {
        self.num_hidden_layers * adapters(&self.linears(), &self.own_targets(lora))
    }
}

fn adapters(linears: &[(&str, usize, usize)], lora: &LoraConfig) -> usize {
    linears
        .iter()
        .filter(|(name, ..)| lora.targets(name))
        .map(|(_, i, o)| lora.r * (i + o))
        .sum()
}

impl PrototypeConfig {
    /// Parameters of q, k, v and z.
    pub fn parameters(&self) -> usize {
        4 * (self.hidden_size * self.hidden_size + self.hidden_size)
    }
}

impl ProjectorConfig {
    /// Parameters of the projector between two widths.
    pub fn parameters(&self, d_in: usize, d_out: usize) -> usize {
        let linear = |i: usize, o: usize, bias: bool| i * o + usize::from(bias) * o;
        match self {
            Self::Identity => 0,
            Self::Linear { bias } => linear(d_in, d_out, *bias),
            Self::Mlp { depth, bias, .. } => {
                linear(d_in, d_out, *bias) + (depth - 1) * linear(d_out, d_out, *bias)
            }
            Self::Cluster(_) => {
                // sim_alpha, sim_beta; c, v, f; ln_1; the MLP.
                2 + 3 * linear(d_in, d_in, true)
                    + 2 * d_in
                    + linear(d_in, d_out, true)
                    + linear(d_out, d_out, true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes by arithmetic, 7B and 13B.
    #[test]
    fn published_sizes() {
        let config = SqLlavaConfig::preset("sq-llava-7b").unwrap();
        let vision = config.vision.clone().unwrap();
        let llm = LoraConfig::llm(128, 256.0, 0.05);
        assert_eq!(config.llama.lora_parameters(&llm), 319_815_680);
        let vit = LoraConfig::vision(32, 64.0, 0.2);
        assert_eq!(vision.lora_parameters(&vit), 14_155_776);
        assert_eq!(vision.lora_parameters(&vit) / 24 * 23, 13_565_952);
        let released = LoraConfig::vision(64, 128.0, 0.2);
        assert_eq!(vision.lora_parameters(&released), 28_311_552);
        let count = config.parameters();
        assert_eq!(count.prototype, 4_198_400);
        assert_eq!(count.projector, 20_979_712);
        let cluster = ProjectorConfig::from_name("cluster", None).unwrap();
        assert_eq!(cluster.parameters(1024, 4096), 24_130_562);
        assert_eq!(count.language_model, 6_738_415_616);

        let config = SqLlavaConfig::preset("sq-llava-13b").unwrap();
        assert_eq!(config.llama.lora_parameters(&llm), 500_695_040);
    }

    /// SigLIP So400m has 428 million parameters with its head, Qwen3 1.7B 1.7 billion.
    #[test]
    fn sizes_of_the_towers_of_today() {
        let config = SqLlavaConfig::preset("siglip-so400m-qwen3-1.7b").unwrap();
        let vision = config.vision.clone().unwrap();
        // A layer: 4 linears of 1152², 2 of 1152 × 4304, their biases, two norms.
        let layer = 4 * 1152 * 1152 + 2 * 1152 * 4304 + 4 * 1152 + 4304 + 1152 + 4 * 1152;
        let embeddings = (3 * 14 * 14 + 1) * 1152 + 729 * 1152;
        assert_eq!(vision.parameters(), 27 * layer + embeddings + 2 * 1152);
        let head = 1152 + 4 * 1152 * 1152 + 4 * 1152 + 2 * 1152 + 2 * 1152 * 4304 + 4304 + 1152;
        let whole = vision.with_pooling_head(true).parameters();
        assert_eq!(whole, 27 * layer + embeddings + 2 * 1152 + head);
        assert_eq!(whole / 1_000_000, 428);
        assert_eq!(config.tokens_per_image(), 729);
        assert_eq!(config.llama.parameters() / 1_000_000, 1720);
    }

    /// Those that lay pictures over tiles. LLaVA 1.6 is LLaVA 1.5 and one row; Qwen2 0.5B has 494
    /// million parameters.
    #[test]
    fn sizes_of_models_with_tiles() {
        let next = SqLlavaConfig::preset("llava-v1.6-7b").unwrap();
        let count = next.parameters();
        let square = SqLlavaConfig::preset("sq-llava-7b").unwrap().parameters();
        assert_eq!(count.prototype, 0);
        assert_eq!(count.projector, square.projector + 4096);
        assert_eq!(count.language_model, square.language_model);
        assert_eq!((next.most_tiles(), next.tokens_per_image()), (5, 576));
        let vision = SqLlavaConfig::preset("onevision-qwen2-0.5b").unwrap();
        assert_eq!(vision.llama.parameters() / 1_000_000, 494);
        assert_eq!(vision.most_tiles(), 37);
        // All 26 layers of the saved tower stand before the features.
        assert_eq!(vision.feature_layer(), Some(26));
        let projector = 1152 * 896 + 896 * 896 + 2 * 896;
        assert_eq!(vision.parameters().projector, projector + 896);
    }
}
