//! Key names: from the layouts that checkpoints have to one canonical name, and back.
//!
//! The canonical names are
//! `language_model.model.layers.0.self_attn.q_proj.weight`, `language_model.lm_head.weight`,
//! `vision_tower.encoder.layers.0.…`, `mm_projector.0.weight`, `prototype.q.weight`, and for
//! adapters `….q_proj.lora_A.weight`. Inside a vision tower they are CLIP's, whatever its family.

use serde::{Deserialize, Serialize};

use crate::config::{VisionConfig, VisionFamily, vision_name};

/// Key layout of a saved checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// LLaVA's own: `model.layers.*`, `lm_head.*`, `model.mm_projector.*`,
    /// `model.vision_tower.vision_tower.vision_model.*`.
    Original,
    /// `LlavaForConditionalGeneration`: `language_model.model.*`, `multi_modal_projector.*`,
    /// `vision_tower.vision_model.*`.
    LlavaHf,
}

/// Parts of a model that have their own prefix in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Section {
    Llm,
    LmHead,
    Vision,
    Projector,
    /// `image_newline`, one weight of that whole name.
    ImageNewline,
    Prototype,
}

/// What a key of a file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A weight, by its canonical name, and the prefix that its section has in this file.
    Weight {
        name: String,
        section: Section,
        prefix: String,
    },
    /// Known and not needed.
    Ignored,
    /// Nothing that a model of ours has; the part that its prefix names, if it names one.
    Unknown(Option<Section>),
}

/// Prefixes in files; the first that fits counts, so longer ones stand before those that they
/// begin with.
const PREFIXES: [(&str, Section); 25] = [
    // Inside an original LLaVA; transformers 5 leaves `vision_model.` out.
    (
        "model.vision_tower.vision_tower.vision_model.",
        Section::Vision,
    ),
    ("model.vision_tower.vision_tower.", Section::Vision),
    // llava-hf since transformers 4.52.
    ("model.vision_tower.vision_model.", Section::Vision),
    ("model.vision_tower.", Section::Vision),
    ("vision_tower.vision_tower.vision_model.", Section::Vision),
    ("vision_tower.vision_tower.", Section::Vision),
    // llava-hf before.
    ("vision_tower.vision_model.", Section::Vision),
    ("vision_tower.", Section::Vision),
    // A CLIP or SigLIP directory.
    ("vision_model.", Section::Vision),
    ("model.mm_projector.", Section::Projector),
    ("mm_projector.", Section::Projector),
    ("model.multi_modal_projector.", Section::Projector),
    ("multi_modal_projector.", Section::Projector),
    ("model.image_newline", Section::ImageNewline),
    ("image_newline", Section::ImageNewline),
    ("model.prototype.", Section::Prototype),
    ("prototype.", Section::Prototype),
    ("model.language_model.lm_head.", Section::LmHead),
    ("language_model.lm_head.", Section::LmHead),
    ("lm_head.", Section::LmHead),
    ("model.language_model.model.", Section::Llm),
    ("model.language_model.", Section::Llm),
    ("language_model.model.", Section::Llm),
    ("language_model.", Section::Llm),
    ("model.", Section::Llm),
];

impl Section {
    /// How canonical names of the section begin.
    pub fn canonical(self) -> &'static str {
        match self {
            Self::Llm => "language_model.model.",
            Self::LmHead => "language_model.lm_head.",
            Self::Vision => "vision_tower.",
            Self::Projector => "mm_projector.",
            Self::ImageNewline => "image_newline",
            Self::Prototype => "prototype.",
        }
    }

    /// The section of a canonical name.
    pub fn of(name: &str) -> Option<Self> {
        [
            Self::Llm,
            Self::LmHead,
            Self::Vision,
            Self::Projector,
            Self::ImageNewline,
            Self::Prototype,
        ]
        .into_iter()
        .find(|section| name.starts_with(section.canonical()))
    }

    /// How keys of the section begin in a checkpoint that we save, with a tower of that family.
    pub fn prefix(self, layout: Layout, family: VisionFamily) -> &'static str {
        match (self, layout) {
            (Self::Vision, Layout::Original) if family == VisionFamily::Dinov2 => {
                "model.vision_tower.vision_tower."
            }
            (Self::Vision, Layout::LlavaHf) if family == VisionFamily::Dinov2 => "vision_tower.",
            (Self::Llm, Layout::Original) => "model.",
            (Self::LmHead, Layout::Original) => "lm_head.",
            (Self::Vision, Layout::Original) => "model.vision_tower.vision_tower.vision_model.",
            (Self::Projector, Layout::Original) => "model.mm_projector.",
            (Self::ImageNewline, Layout::Original) => "model.image_newline",
            (Self::ImageNewline, Layout::LlavaHf) => "image_newline",
            (Self::Prototype, _) => "model.prototype.",
            (Self::Llm, Layout::LlavaHf) => "language_model.model.",
            (Self::LmHead, Layout::LlavaHf) => "language_model.lm_head.",
            (Self::Vision, Layout::LlavaHf) => "vision_tower.vision_model.",
            (Self::Projector, Layout::LlavaHf) => "multi_modal_projector.",
        }
    }
}

/// What PEFT puts before the keys of a model that it wraps.
pub(super) const PEFT_WRAP: &str = "base_model.model.";

/// Reads a key of a checkpoint file.
pub(super) fn read_key(raw: &str) -> Key {
    // PEFT wraps the model, and where a tower was wrapped first, also inside.
    let mut key = raw;
    while let Some(rest) = key.strip_prefix(PEFT_WRAP) {
        key = rest;
    }
    let unwrapped = key.replace(&format!(".{PEFT_WRAP}"), ".");
    let key = unwrapped.as_str();
    if is_ignorable(key) {
        return Key::Ignored;
    }
    let found = PREFIXES
        .iter()
        .find_map(|(prefix, section)| Some((*section, key.strip_prefix(prefix)?)));
    let (section, mut rest) = match found {
        Some(found) => found,
        // A vision model without any prefix, as its adapters and transformers 5 name it.
        None if is_vision(key) => (Section::Vision, key),
        None => return Key::Unknown(None),
    };
    if section == Section::Vision {
        // A wrapped tower is the tower of the tower.
        let inner = ["vision_tower.", "vision_model."];
        while let Some(inside) = inner.iter().find_map(|part| rest.strip_prefix(part)) {
            rest = inside;
        }
    }
    let known = match section {
        Section::Llm => ["embed_tokens.", "layers.", "norm."]
            .iter()
            .any(|part| rest.starts_with(part)),
        Section::Vision => is_vision(rest),
        Section::ImageNewline => rest.is_empty(),
        Section::LmHead | Section::Projector | Section::Prototype => true,
    };
    if !known {
        return Key::Unknown(Some(section));
    }
    let prefix = raw.strip_suffix(rest).unwrap_or_default().to_string();
    let rest = match section {
        Section::Projector => rest.replace("linear_1.", "0.").replace("linear_2.", "2."),
        Section::Vision => vision_name(rest),
        _ => rest.to_string(),
    };
    Key::Weight {
        name: format!("{}{rest}", section.canonical()).replace(".default.weight", ".weight"),
        section,
        prefix,
    }
}

/// Whether a path without its prefix is one of a vision tower, of any family.
fn is_vision(rest: &str) -> bool {
    [
        "embeddings.",
        "pre_layrnorm.",
        "encoder.",
        "post_layernorm.",
        // DINOv2's.
        "layernorm.",
        // SigLIP's pooling.
        "head.probe",
        "head.attention.",
        "head.layernorm.",
        "head.mlp.",
    ]
    .iter()
    .any(|part| rest.starts_with(part))
}

/// Buffers that are computed, the text half of a whole CLIP or SigLIP, and what DINOv2's own
/// training puts in place of patches.
fn is_ignorable(key: &str) -> bool {
    ["inv_freq", "cos_cached", "sin_cached"]
        .iter()
        .any(|buffer| key.ends_with(&format!("rotary_emb.{buffer}")))
        || key.ends_with("embeddings.position_ids")
        || key.ends_with("embeddings.mask_token")
        || ["logit_scale", "logit_bias"].contains(&key)
        || ["text_model.", "text_projection.", "visual_projection."]
            .iter()
            .any(|part| key.starts_with(part))
}

/// The canonical name of a module path (`mm_projector.layers.1.weight`, `….q_proj.lora.a`).
pub(super) fn canonical(path: &[&str]) -> String {
    let mut parts: Vec<String> = path.iter().map(ToString::to_string).collect();
    if parts[0] == "mm_projector" {
        // Sequential counts the non-linearities too.
        if let Some(at) = parts.iter().position(|p| p == "layers" || p == "mlp")
            && let Some(index) = parts.get(at + 1).and_then(|i| i.parse::<usize>().ok())
        {
            parts[at + 1] = (2 * index).to_string();
            if parts[at] == "layers" {
                parts.remove(at);
            }
        }
    }
    let name = parts.join(".");
    if let Some(stem) = name.strip_suffix(".lora.a") {
        format!("{stem}.lora_A.weight")
    } else if let Some(stem) = name.strip_suffix(".lora.b") {
        format!("{stem}.lora_B.weight")
    } else {
        name
    }
}

/// The key of a canonical name in a layout; `vision` is the model's tower.
pub(super) fn write_key(name: &str, layout: Layout, vision: Option<&VisionConfig>) -> String {
    let family = vision.map_or(VisionFamily::Clip, |vision| vision.family);
    with_prefix(name, layout, vision, |section| {
        section.prefix(layout, family).to_string()
    })
}

/// The key of a canonical name behind the prefixes that a file was seen to use.
pub(super) fn with_prefix(
    name: &str,
    layout: Layout,
    vision: Option<&VisionConfig>,
    prefix: impl Fn(Section) -> String,
) -> String {
    let Some(section) = Section::of(name) else {
        return name.to_string();
    };
    let mut rest = name[section.canonical().len()..].to_string();
    if section == Section::Projector && layout == Layout::LlavaHf {
        for (index, linear) in [("0.", "linear_1."), ("2.", "linear_2.")] {
            if let Some(end) = rest.strip_prefix(index) {
                rest = format!("{linear}{end}");
                break;
            }
        }
    }
    if let (Section::Vision, Some(vision)) = (section, vision) {
        rest = vision.file_name(&rest);
    }
    format!("{}{rest}", prefix(section))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(raw: &str) -> String {
        match read_key(raw) {
            Key::Weight { name, .. } => name,
            other => panic!("{raw}: {other:?}"),
        }
    }

    #[test]
    fn every_layout_has_one_canonical_name() {
        let q = "language_model.model.layers.3.self_attn.q_proj.weight";
        for prefix in [
            "model.",
            "language_model.model.",
            "model.language_model.",
            "base_model.model.model.",
        ] {
            assert_eq!(
                name(&format!("{prefix}layers.3.self_attn.q_proj.weight")),
                q
            );
        }
        for prefix in [
            "model.vision_tower.vision_tower.vision_model.",
            "model.vision_tower.vision_model.",
            "model.vision_tower.",
            "vision_tower.vision_model.",
            "vision_tower.",
            "vision_model.",
            "",
            "base_model.model.",
            "base_model.model.vision_model.",
            "base_model.model.vision_tower.vision_model.",
            "base_model.model.model.vision_tower.vision_tower.vision_model.",
            "base_model.model.model.vision_tower.vision_tower.base_model.model.vision_model.",
            "base_model.model.model.vision_tower.base_model.model.vision_tower.vision_model.",
            "base_model.model.base_model.model.vision_tower.vision_tower.vision_tower.vision_model.",
        ] {
            let raw = format!("{prefix}encoder.layers.0.mlp.fc1.bias");
            assert_eq!(name(&raw), "vision_tower.encoder.layers.0.mlp.fc1.bias");
        }
        for raw in [
            "model.mm_projector.2.bias",
            "mm_projector.2.bias",
            "multi_modal_projector.linear_2.bias",
            "model.multi_modal_projector.linear_2.bias",
            "base_model.model.model.mm_projector.2.bias",
        ] {
            assert_eq!(name(raw), "mm_projector.2.bias");
        }
        for raw in [
            "image_newline",
            "model.image_newline",
            "base_model.model.model.image_newline",
        ] {
            assert_eq!(name(raw), "image_newline");
        }
        for raw in ["lm_head.weight", "language_model.lm_head.weight"] {
            assert_eq!(name(raw), "language_model.lm_head.weight");
        }
    }

    #[test]
    fn buffers_are_ignored_and_strangers_unknown() {
        for raw in [
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "vision_model.embeddings.position_ids",
            "text_model.encoder.layers.0.mlp.fc1.weight",
            "logit_scale",
            "logit_bias",
            "vision_tower.embeddings.mask_token",
        ] {
            assert_eq!(read_key(raw), Key::Ignored, "{raw}");
        }
        for (raw, part) in [
            ("model.image_newlines", Some(Section::ImageNewline)),
            ("transformer.h.0.weight", None),
            ("vision_model.head.weight", Some(Section::Vision)),
            ("classifier.weight", None),
        ] {
            assert_eq!(read_key(raw), Key::Unknown(part), "{raw}");
        }
    }

    #[test]
    fn towers_of_every_family_have_one_canonical_name() {
        for (raw, canonical) in [
            ("head.probe", "vision_tower.head.probe"),
            (
                "vision_model.head.mlp.fc1.bias",
                "vision_tower.head.mlp.fc1.bias",
            ),
            (
                "embeddings.cls_token",
                "vision_tower.embeddings.class_embedding",
            ),
            (
                "vision_tower.embeddings.position_embeddings",
                "vision_tower.embeddings.position_embedding.weight",
            ),
            ("layernorm.bias", "vision_tower.post_layernorm.bias"),
            (
                "model.vision_tower.encoder.layer.3.attention.attention.key.weight",
                "vision_tower.encoder.layers.3.self_attn.k_proj.weight",
            ),
            (
                "base_model.model.vision_tower.encoder.layer.3.attention.attention.key.lora_B.weight",
                "vision_tower.encoder.layers.3.self_attn.k_proj.lora_B.weight",
            ),
            (
                "base_model.model.encoder.layer.3.attention.k_proj.lora_B.weight",
                "vision_tower.encoder.layers.3.self_attn.k_proj.lora_B.weight",
            ),
        ] {
            assert_eq!(name(raw), canonical);
        }
    }

    #[test]
    fn written_keys_are_read_back() {
        let towers = VisionFamily::ALL.map(VisionFamily::preset);
        for canonical in [
            "language_model.model.norm.weight",
            "language_model.lm_head.weight",
            "vision_tower.pre_layrnorm.weight",
            "vision_tower.encoder.layers.2.self_attn.q_proj.weight",
            "vision_tower.embeddings.class_embedding",
            "mm_projector.0.weight",
            "prototype.centers",
            "image_newline",
        ] {
            for (layout, tower) in [Layout::Original, Layout::LlavaHf]
                .into_iter()
                .flat_map(|layout| towers.iter().map(move |tower| (layout, tower)))
            {
                assert_eq!(name(&write_key(canonical, layout, Some(tower))), canonical);
            }
        }
        let written = |layout| {
            let norm = "vision_tower.post_layernorm.weight";
            write_key(norm, layout, Some(&towers[2]))
        };
        assert_eq!(written(Layout::LlavaHf), "vision_tower.layernorm.weight");
        let original = "model.vision_tower.vision_tower.layernorm.weight";
        assert_eq!(written(Layout::Original), original);
    }
}
