//! Names of a vision tower's and a projector's tensors in llama.cpp's `mmproj` files, and back.

use super::names::{in_layer, translated, turned};

/// Names that are the whole of a tensor's.
const WHOLE: [(&str, &str); 4] = [
    ("v.image_newline", "image_newline"),
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

/// What the converter of LLaVA 1.6 calls its newline.
const OLD_NEWLINE: &str = "model.image_newline";

/// Beginnings of names, before `weight` and `bias`.
const PARTS: [(&str, &str); 3] = [
    (
        "v.position_embd.",
        "vision_tower.embeddings.position_embedding.",
    ),
    ("v.pre_ln.", "vision_tower.pre_layrnorm."),
    ("mm.", "mm_projector."),
];

/// Parts of a layer beside its MLP.
const LAYER: [(&str, &str); 6] = [
    ("ln1.", "layer_norm1."),
    ("ln2.", "layer_norm2."),
    ("attn_q.", "self_attn.q_proj."),
    ("attn_k.", "self_attn.k_proj."),
    ("attn_v.", "self_attn.v_proj."),
    ("attn_out.", "self_attn.out_proj."),
];

/// What stands before a layer's number, in files and in ours.
const FILE_LAYERS: &str = "v.blk.";
const LAYERS: &str = "vision_tower.encoder.layers.";

/// The parts of a layer by their names in files and in ours. In older files the two linears of the
/// MLP are `swapped`.
fn parts(swapped: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    let [first, second] = match swapped {
        false => ["ffn_up.", "ffn_down."],
        true => ["ffn_down.", "ffn_up."],
    };
    let mlp = [(first, "mlp.fc1."), (second, "mlp.fc2.")];
    LAYER.into_iter().chain(mlp)
}

/// The canonical name of a tensor; `None` if a tower of ours has no such.
pub(super) fn canonical(name: &str, swapped: bool) -> Option<String> {
    let name = match name {
        OLD_NEWLINE => "v.image_newline",
        name => name,
    };
    if let Some((_, ours)) = WHOLE.iter().find(|(file, _)| *file == name) {
        return Some((*ours).to_owned());
    }
    let layers = [FILE_LAYERS, LAYERS];
    translated(name, layers, parts(swapped), PARTS.into_iter())
}

/// The name in a file of a canonical name.
pub(in crate::weights) fn mmproj_name(canonical: &str, swapped: bool) -> Option<String> {
    if let Some((file, _)) = WHOLE.iter().find(|(_, ours)| *ours == canonical) {
        return Some((*file).to_owned());
    }
    let (parts, outside) = (parts(swapped).map(turned), PARTS.into_iter().map(turned));
    translated(canonical, [LAYERS, FILE_LAYERS], parts, outside)
}

/// The layer of the tower that a canonical name belongs to.
pub(super) fn layer(canonical: &str) -> Option<usize> {
    Some(in_layer(canonical, LAYERS)?.0)
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
            ("v.image_newline", "image_newline", false),
        ] {
            assert_eq!(canonical(file, swapped).as_deref(), Some(ours));
            assert_eq!(mmproj_name(ours, swapped).as_deref(), Some(file));
        }
        let old = canonical("model.image_newline", false);
        assert_eq!(old.as_deref(), Some("image_newline"));
        assert_eq!(canonical("v.post_ln.weight", false), None);
        assert_eq!(canonical("a.blk.0.ln1.weight", false), None);
        assert_eq!(layer("vision_tower.encoder.layers.7.mlp.fc1.bias"), Some(7));
    }
}
