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
    fn layer(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let fused: &[_] = if self.fused { &FUSED } else { &[] };
        let pairs = fused.iter().chain(&LAYER).chain(norms(self.norms));
        pairs.copied()
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

/// What stands before a layer's number, in files and in ours.
const FILE_LAYERS: &str = "blk.";
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
    let whole = WHOLE.into_iter();
    translated(name, [FILE_LAYERS, LAYERS], spelling.layer(), whole)
}

/// The name in a GGUF file of a canonical name of the language model.
pub(in crate::weights) fn file_name(canonical: &str, spelling: Spelling) -> Option<String> {
    let (layer, whole) = (spelling.layer().map(turned), WHOLE.into_iter().map(turned));
    translated(canonical, [LAYERS, FILE_LAYERS], layer, whole)
}

/// The layer that a tensor belongs to.
pub(super) fn layer(name: &str) -> Option<usize> {
    Some(in_layer(name, FILE_LAYERS)?.0)
}

/// A name in the other language of tables of beginnings: that of a tensor behind its layer's
/// number, which follows one of `layers` in each language, else one of `whole`.
pub(super) fn translated<'a>(
    name: &str,
    layers: [&str; 2],
    mut layer: impl Iterator<Item = (&'a str, &'a str)>,
    mut whole: impl Iterator<Item = (&'a str, &'a str)>,
) -> Option<String> {
    let [from, to] = layers;
    if name.starts_with(from) {
        let (number, rest) = in_layer(name, from)?;
        return layer.find_map(|(from, part)| {
            let end = rest.strip_prefix(from)?;
            Some(format!("{to}{number}.{part}{end}"))
        });
    }
    whole.find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}

/// The number behind `layers`, and the name in that layer.
pub(super) fn in_layer<'a>(name: &'a str, layers: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(layers)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// A pair of a table for the other way.
pub(super) fn turned<'a>((from, to): (&'a str, &'a str)) -> (&'a str, &'a str) {
    (to, from)
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
