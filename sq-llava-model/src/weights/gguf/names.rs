//! Names of LLaMA's tensors in GGUF files, and back.

/// Tensors outside the layers.
const WHOLE: [(&str, &str); 3] = [
    ("token_embd.", "language_model.model.embed_tokens."),
    ("output_norm.", "language_model.model.norm."),
    ("output.", "language_model.lm_head."),
];

/// Tensors of one layer.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm.", "input_layernorm."),
    ("attn_q.", "self_attn.q_proj."),
    ("attn_k.", "self_attn.k_proj."),
    ("attn_v.", "self_attn.v_proj."),
    ("attn_output.", "self_attn.o_proj."),
    ("ffn_norm.", "post_attention_layernorm."),
    ("ffn_gate.", "mlp.gate_proj."),
    ("ffn_up.", "mlp.up_proj."),
    ("ffn_down.", "mlp.down_proj."),
];

const LAYERS: &str = "language_model.model.layers.";

/// The canonical name of a tensor; `None` if LLaMA has no such.
pub(super) fn canonical(name: &str) -> Option<String> {
    if let Some(rest) = name.strip_prefix("blk.") {
        let (layer, rest) = rest.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let found = LAYER
            .iter()
            .find_map(|(from, to)| Some((to, rest.strip_prefix(from)?)));
        let (to, end) = found?;
        return Some(format!("{LAYERS}{layer}.{to}{end}"));
    }
    WHOLE
        .iter()
        .find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}

/// The name in a GGUF file of a canonical name of the language model.
pub(in crate::weights) fn file_name(canonical: &str) -> Option<String> {
    if let Some(rest) = canonical.strip_prefix(LAYERS) {
        let (layer, rest) = rest.split_once('.')?;
        return LAYER.iter().find_map(|(to, from)| {
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
    name == "rope_freqs.weight" || name.ends_with(".attn_rot_embd.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (file, ours) in [
            (
                "token_embd.weight",
                "language_model.model.embed_tokens.weight",
            ),
            ("output.weight", "language_model.lm_head.weight"),
            ("output_norm.weight", "language_model.model.norm.weight"),
            (
                "blk.12.attn_q.bias",
                "language_model.model.layers.12.self_attn.q_proj.bias",
            ),
            (
                "blk.0.ffn_down.weight",
                "language_model.model.layers.0.mlp.down_proj.weight",
            ),
        ] {
            assert_eq!(canonical(file).as_deref(), Some(ours));
            assert_eq!(file_name(ours).as_deref(), Some(file));
        }
        assert_eq!(canonical("blk.0.ffn_gate_exps.weight"), None);
        assert_eq!(canonical("blk.x.ffn_gate.weight"), None);
        assert_eq!(layer("blk.7.attn_k.weight"), Some(7));
    }
}
