//! Names of a decoder's tensors in GGUF files, and back.

use crate::config::{LlamaConfig, NormPlacement};

/// What the names of a decoder's tensors depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::weights) struct Spelling {
    norms: NormPlacement,
    /// Whether queries, keys and values are one matrix, and gate and up projection too.
    fused: bool,
}

impl Spelling {
    /// Of a decoder.
    pub fn of(config: &LlamaConfig) -> Self {
        Self {
            norms: config.norm_placement,
            fused: config.fused_projections,
        }
    }

    /// The tensors of a layer by their names in files and in ours.
    fn layer(self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        let fused: &[_] = if self.fused { &FUSED } else { &[] };
        fused.iter().chain(&LAYER).chain(norms(self.norms))
    }
}

/// Tensors of a layer that hold several of others; their names go first.
const FUSED: [(&str, &str); 2] = [
    ("attn_qkv.", "self_attn.qkv_proj."),
    ("ffn_up.", "mlp.gate_up_proj."),
];

/// Tensors outside the layers.
const WHOLE: [(&str, &str); 3] = [
    ("token_embd.", "language_model.model.embed_tokens."),
    ("output_norm.", "language_model.model.norm."),
    ("output.", "language_model.lm_head."),
];

/// Tensors of one layer.
const LAYER: [(&str, &str); 9] = [
    ("attn_q.", "self_attn.q_proj."),
    ("attn_k.", "self_attn.k_proj."),
    ("attn_v.", "self_attn.v_proj."),
    ("attn_output.", "self_attn.o_proj."),
    ("attn_q_norm.", "self_attn.q_norm."),
    ("attn_k_norm.", "self_attn.k_norm."),
    ("ffn_gate.", "mlp.gate_proj."),
    ("ffn_up.", "mlp.up_proj."),
    ("ffn_down.", "mlp.down_proj."),
];

const LAYERS: &str = "language_model.model.layers.";

/// The norms of a layer, which transformers names by what they follow.
fn norms(placement: NormPlacement) -> &'static [(&'static str, &'static str)] {
    match placement {
        NormPlacement::Before => &[
            ("attn_norm.", "input_layernorm."),
            ("ffn_norm.", "post_attention_layernorm."),
        ],
        NormPlacement::Behind => &[
            ("post_attention_norm.", "post_attention_layernorm."),
            ("post_ffw_norm.", "post_feedforward_layernorm."),
        ],
        NormPlacement::Around => &[
            ("attn_norm.", "input_layernorm."),
            ("post_attention_norm.", "post_attention_layernorm."),
            ("ffn_norm.", "pre_feedforward_layernorm."),
            ("post_ffw_norm.", "post_feedforward_layernorm."),
        ],
    }
}

/// The canonical name of a tensor; `None` if the decoder has no such.
pub(super) fn canonical(name: &str, spelling: Spelling) -> Option<String> {
    if let Some(rest) = name.strip_prefix("blk.") {
        let (layer, rest) = rest.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let found = spelling
            .layer()
            .find_map(|(from, to)| Some((to, rest.strip_prefix(from)?)));
        let (to, end) = found?;
        return Some(format!("{LAYERS}{layer}.{to}{end}"));
    }
    WHOLE
        .iter()
        .find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}

/// The name in a GGUF file of a canonical name of the language model.
pub(in crate::weights) fn file_name(canonical: &str, spelling: Spelling) -> Option<String> {
    if let Some(rest) = canonical.strip_prefix(LAYERS) {
        let (layer, rest) = rest.split_once('.')?;
        let mut pairs = spelling.layer();
        return pairs.find_map(|(to, from)| {
            let end = rest.strip_prefix(from)?;
            Some(format!("blk.{layer}.{to}{end}"))
        });
    }
    WHOLE
        .iter()
        .find_map(|(to, from)| Some(format!("{to}{}", canonical.strip_prefix(from)?)))
}

/// The layer that a tensor belongs to.
pub(super) fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Tables that the configuration stands for.
pub(super) fn is_computed(name: &str) -> bool {
    ["rope_freqs", "rope_factors_long", "rope_factors_short"]
        .iter()
        .any(|table| name.strip_suffix(".weight") == Some(table))
        || name.ends_with(".attn_rot_embd.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        use NormPlacement::{Around, Before, Behind};
        let spelt = |norms| Spelling {
            norms,
            fused: false,
        };
        for (placement, file, ours) in [
            (Before, "token_embd.weight", "model.embed_tokens.weight"),
            (Before, "output.weight", "lm_head.weight"),
            (Around, "output_norm.weight", "model.norm.weight"),
            (
                Before,
                "blk.12.attn_q.bias",
                "model.layers.12.self_attn.q_proj.bias",
            ),
            (
                Behind,
                "blk.0.attn_q_norm.weight",
                "model.layers.0.self_attn.q_norm.weight",
            ),
            (
                Before,
                "blk.3.ffn_norm.weight",
                "model.layers.3.post_attention_layernorm.weight",
            ),
            (
                Around,
                "blk.3.ffn_norm.weight",
                "model.layers.3.pre_feedforward_layernorm.weight",
            ),
            (
                Behind,
                "blk.3.post_ffw_norm.weight",
                "model.layers.3.post_feedforward_layernorm.weight",
            ),
        ] {
            let ours = format!("language_model.{ours}");
            let placement = spelt(placement);
            assert_eq!(
                canonical(file, placement).as_deref(),
                Some(ours.as_str()),
                "{file}"
            );
            assert_eq!(file_name(&ours, placement).as_deref(), Some(file));
        }
        let fused = Spelling {
            fused: true,
            ..spelt(Before)
        };
        for (file, ours) in [
            ("blk.1.attn_qkv.weight", "self_attn.qkv_proj.weight"),
            ("blk.1.ffn_up.weight", "mlp.gate_up_proj.weight"),
        ] {
            let ours = format!("{LAYERS}1.{ours}");
            assert_eq!(canonical(file, fused).as_deref(), Some(ours.as_str()));
            assert_eq!(file_name(&ours, fused).as_deref(), Some(file));
        }
        let before = spelt(Before);
        assert_eq!(canonical("blk.0.ffn_gate_exps.weight", before), None);
        assert_eq!(canonical("blk.0.post_ffw_norm.weight", before), None);
        assert_eq!(canonical("blk.x.ffn_gate.weight", before), None);
        assert_eq!(layer("blk.7.attn_k.weight"), Some(7));
    }
}
