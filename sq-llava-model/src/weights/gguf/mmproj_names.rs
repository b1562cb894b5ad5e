//! Names of a vision tower's and a projector's tensors in llama.cpp's `mmproj` files, and back.

/// Names that are the whole of a tensor's.
const WHOLE: [(&str, &str); 3] = [
    ("v.class_embd", "vision_tower.embeddings.class_embedding"),
    (
        "v.patch_embd.weight",
        "vision_tower.embeddings.patch_embedding.weight",
    ),
    (
        "v.patch_embd.bias",
        "vision_tower.embeddings.patch_embedding.bias",
    ),
];

/// Beginnings of names, before `weight` and `bias`.
const PARTS: [(&str, &str); 3] = [
    (
        "v.position_embd.",
        "vision_tower.embeddings.position_embedding.",
    ),
    ("v.pre_ln.", "vision_tower.pre_layrnorm."),
    ("mm.", "mm_projector."),
];

/// Parts of a layer.
const LAYER: [(&str, &str); 8] = [
    ("ln1.", "layer_norm1."),
    ("ln2.", "layer_norm2."),
    ("attn_q.", "self_attn.q_proj."),
    ("attn_k.", "self_attn.k_proj."),
    ("attn_v.", "self_attn.v_proj."),
    ("attn_out.", "self_attn.out_proj."),
    ("ffn_up.", "mlp.fc1."),
    ("ffn_down.", "mlp.fc2."),
];

const LAYERS: &str = "vision_tower.encoder.layers.";

/// The canonical name of a tensor; `None` if a tower of ours has no such. In older files the two
/// linears of the MLP are `swapped`.
pub(super) fn canonical(name: &str, swapped: bool) -> Option<String> {
    if let Some((_, ours)) = WHOLE.iter().find(|(file, _)| *file == name) {
        return Some((*ours).to_owned());
    }
    if let Some(rest) = name.strip_prefix("v.blk.") {
        let (layer, rest) = rest.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let (part, end) = LAYER
            .iter()
            .find_map(|(from, to)| Some((*to, rest.strip_prefix(from)?)))?;
        let part = match part {
            "mlp.fc1." if swapped => "mlp.fc2.",
            "mlp.fc2." if swapped => "mlp.fc1.",
            part => part,
        };
        return Some(format!("{LAYERS}{layer}.{part}{end}"));
    }
    PARTS
        .iter()
        .find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}

/// The name in a file of a canonical name.
pub(in crate::weights) fn mmproj_name(canonical: &str, swapped: bool) -> Option<String> {
    if let Some((file, _)) = WHOLE.iter().find(|(_, ours)| *ours == canonical) {
        return Some((*file).to_owned());
    }
    if let Some(rest) = canonical.strip_prefix(LAYERS) {
        let (layer, rest) = rest.split_once('.')?;
        let (part, end) = LAYER
            .iter()
            .find_map(|(to, from)| Some((*to, rest.strip_prefix(from)?)))?;
        let part = match part {
            "ffn_up." if swapped => "ffn_down.",
            "ffn_down." if swapped => "ffn_up.",
            part => part,
        };
        return Some(format!("v.blk.{layer}.{part}{end}"));
    }
    PARTS
        .iter()
        .find_map(|(to, from)| Some(format!("{to}{}", canonical.strip_prefix(from)?)))
}

/// The layer of the tower that a canonical name belongs to.
pub(super) fn layer(canonical: &str) -> Option<usize> {
    let rest = canonical.strip_prefix(LAYERS)?;
    rest.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (file, ours, swapped) in [
            (
                "v.class_embd",
                "vision_tower.embeddings.class_embedding",
                false,
            ),
            (
                "v.patch_embd.weight",
                "vision_tower.embeddings.patch_embedding.weight",
                false,
            ),
            (
                "v.blk.3.attn_out.bias",
                "vision_tower.encoder.layers.3.self_attn.out_proj.bias",
                false,
            ),
            (
                "v.blk.0.ffn_up.weight",
                "vision_tower.encoder.layers.0.mlp.fc1.weight",
                false,
            ),
            (
                "v.blk.0.ffn_up.weight",
                "vision_tower.encoder.layers.0.mlp.fc2.weight",
                true,
            ),
            ("mm.2.bias", "mm_projector.2.bias", false),
        ] {
            assert_eq!(canonical(file, swapped).as_deref(), Some(ours));
            assert_eq!(mmproj_name(ours, swapped).as_deref(), Some(file));
        }
        assert_eq!(canonical("v.post_ln.weight", false), None);
        assert_eq!(canonical("a.blk.0.ln1.weight", false), None);
        assert_eq!(layer("vision_tower.encoder.layers.7.mlp.fc1.bias"), Some(7));
    }
}
