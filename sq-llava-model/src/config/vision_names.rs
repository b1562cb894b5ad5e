//! What a family's checkpoints call the parts of a tower. Ours are CLIP's names, which SigLIP has
//! too.

use super::{VisionConfig, VisionFamily};
use crate::ops::lora::LoraConfig;

/// DINOv2's names: ours, and those of its files.
const DINOV2: [(&str, &str); 5] = [
    ("embeddings.class_embedding", "embeddings.cls_token"),
    (
        "embeddings.patch_embedding",
        "embeddings.patch_embeddings.projection",
    ),
    (
        "embeddings.position_embedding.weight",
        "embeddings.position_embeddings",
    ),
    ("encoder.layers", "encoder.layer"),
    ("post_layernorm", "layernorm"),
];

/// The same inside a layer.
const DINOV2_LAYER: [(&str, &str); 6] = [
    ("layer_norm1", "norm1"),
    ("layer_norm2", "norm2"),
    ("self_attn.q_proj", "attention.attention.query"),
    ("self_attn.k_proj", "attention.attention.key"),
    ("self_attn.v_proj", "attention.attention.value"),
    ("self_attn.out_proj", "attention.output.dense"),
];

/// The same for its gated MLP.
const DINOV2_GATED: [(&str, &str); 2] = [
    ("mlp.fc1", "mlp.weights_in"),
    ("mlp.fc2", "mlp.weights_out"),
];

/// What transformers 5 calls the linears in memory, and PEFT therefore their adapters.
const DINOV2_IN_MEMORY: [(&str, &str); 5] = [
    ("self_attn.q_proj", "attention.q_proj"),
    ("self_attn.k_proj", "attention.k_proj"),
    ("self_attn.v_proj", "attention.v_proj"),
    ("self_attn.out_proj", "attention.o_proj"),
    // Of the gated MLP.
    ("mlp.fc2", "mlp.down_proj"),
];

/// The first name of a table that a path is, or begins with, in the table's other language.
fn translated<'a>(
    path: &str,
    mut table: impl Iterator<Item = (&'a str, &'a str)>,
) -> Option<String> {
    table.find_map(|(from, to)| match path.strip_prefix(from)? {
        "" => Some(to.to_owned()),
        rest if rest.starts_with('.') => Some(format!("{to}{rest}")),
        _ => None,
    })
}

/// `("encoder.layers.3", "mlp.fc1.weight")` of a path in a layer.
fn in_layer(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("encoder.layers.")?;
    let (number, _) = rest.split_once('.')?;
    let head = "encoder.layers.".len() + number.len();
    Some((&path[..head], &path[head + 1..]))
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Our name of a path in a tower, as any family's files have it.
pub(crate) fn vision_name(path: &str) -> String {
    let ours = translated(
        path,
        DINOV2.into_iter().map(|(ours, theirs)| (theirs, ours)),
    );
    let path = ours.unwrap_or_else(|| path.to_owned());
    let Some((layer, rest)) = in_layer(&path) else {
        return path;
    };
    let table = DINOV2_LAYER
        .into_iter()
        .chain(DINOV2_GATED)
        .chain(DINOV2_IN_MEMORY);
    match translated(rest, table.map(|(ours, theirs)| (theirs, ours))) {
        Some(rest) => format!("{layer}.{rest}"),
        None => path,
    }
}

impl VisionConfig {
    /// A path in the tower as the family's files have it.
    pub fn file_name(&self, path: &str) -> String {
        if self.family != VisionFamily::Dinov2 {
            return path.to_owned();
        }
        let (layer, rest) = match in_layer(path) {
            Some((layer, rest)) => (Some(layer), rest),
            None => (None, path),
        };
        let whole =
            |path: &str| translated(path, DINOV2.into_iter()).unwrap_or_else(|| path.to_owned());
        let Some(layer) = layer else {
            return whole(path);
        };
        let gated = DINOV2_GATED.into_iter().filter(|_| self.gated_mlp);
        let rest = translated(rest, DINOV2_LAYER.into_iter().chain(gated))
            .unwrap_or_else(|| rest.to_owned());
        format!("{}.{rest}", whole(layer))
    }

    /// A path of a linear as PEFT has it on transformers 5, which differs from the files' of
    /// DINOv2.
    pub(crate) fn peft_name(&self, path: &str) -> String {
        let dinov2 = in_layer(path).filter(|_| self.family == VisionFamily::Dinov2);
        let memory = dinov2.and_then(|(layer, rest)| {
            let table = DINOV2_IN_MEMORY.into_iter();
            let table = table.filter(|(ours, _)| self.gated_mlp || !ours.starts_with("mlp."));
            Some(format!(
                "{}.{}",
                self.file_name(layer),
                translated(rest, table)?
            ))
        });
        memory.unwrap_or_else(|| self.file_name(path))
    }

    /// Last names of linears, which may be those of the family's files, as ours.
    pub fn own_names(&self, names: &[String]) -> Vec<String> {
        let own = |name: &String| {
            let mut table = DINOV2_LAYER
                .iter()
                .chain(&DINOV2_GATED)
                .chain(&DINOV2_IN_MEMORY)
                .filter(|_| self.family == VisionFamily::Dinov2);
            let found = table.find(|(_, theirs)| last(theirs) == name);
            found.map_or_else(|| name.clone(), |(ours, _)| last(ours).to_owned())
        };
        names.iter().map(own).collect()
    }

    /// Adapters with [`Self::own_names`] of their targets. The matrix of a gated MLP that makes
    /// gate and value takes none: PEFT has two linears there, each with factors of its own.
    pub fn own_targets(&self, lora: &LoraConfig) -> LoraConfig {
        let mut target_modules = self.own_names(&lora.target_modules);
        target_modules.retain(|name| !(self.gated_mlp && name == "fc1"));
        LoraConfig {
            target_modules,
            ..lora.clone()
        }
    }

    /// The shape of a parameter in the family's files: DINOv2's class token and positions have
    /// dimensions of one before ours.
    pub(crate) fn file_shape(&self, path: &str, shape: &[usize]) -> Vec<usize> {
        let ones = match (self.family, path) {
            (VisionFamily::Dinov2, "embeddings.class_embedding") => 2,
            (VisionFamily::Dinov2, "embeddings.position_embedding.weight") => 1,
            _ => 0,
        };
        std::iter::repeat_n(1, ones)
            .chain(shape.iter().copied())
            .collect()
    }
}

/// Dimensions of a parameter without those of one that some families' files have before them.
pub(crate) fn own_shape(path: &str, shape: &[usize]) -> Vec<usize> {
    let own = match path {
        "embeddings.class_embedding" => 1,
        "embeddings.position_embedding.weight" => 2,
        _ => return shape.to_vec(),
    };
    let extra = shape.len().saturating_sub(own);
    match shape[..extra].iter().all(|&size| size == 1) {
        true => shape[extra..].to_vec(),
        false => shape.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_dinov2_go_both_ways() {
        let plain = VisionFamily::Dinov2.preset();
        let gated = plain.clone().with_gated_mlp(true);
        for (config, ours, theirs) in [
            (&plain, "embeddings.class_embedding", "embeddings.cls_token"),
            (
                &plain,
                "embeddings.position_embedding.weight",
                "embeddings.position_embeddings",
            ),
            (
                &plain,
                "embeddings.patch_embedding.bias",
                "embeddings.patch_embeddings.projection.bias",
            ),
            (&plain, "post_layernorm.weight", "layernorm.weight"),
            (
                &plain,
                "encoder.layers.10.layer_norm1.bias",
                "encoder.layer.10.norm1.bias",
            ),
            (
                &plain,
                "encoder.layers.0.self_attn.q_proj",
                "encoder.layer.0.attention.attention.query",
            ),
            (
                &plain,
                "encoder.layers.0.self_attn.out_proj.lora_A.weight",
                "encoder.layer.0.attention.output.dense.lora_A.weight",
            ),
            (
                &plain,
                "encoder.layers.0.layer_scale1.lambda1",
                "encoder.layer.0.layer_scale1.lambda1",
            ),
            (
                &plain,
                "encoder.layers.0.mlp.fc1.weight",
                "encoder.layer.0.mlp.fc1.weight",
            ),
            (
                &gated,
                "encoder.layers.0.mlp.fc1.weight",
                "encoder.layer.0.mlp.weights_in.weight",
            ),
        ] {
            assert_eq!(config.file_name(ours), theirs);
            assert_eq!(vision_name(theirs), ours);
            assert_eq!(vision_name(ours), ours);
            assert_eq!(VisionConfig::new().file_name(ours), ours);
        }
        let memory = "encoder.layer.0.attention.o_proj";
        assert_eq!(vision_name(memory), "encoder.layers.0.self_attn.out_proj");
        let ours = "encoder.layers.0.self_attn.out_proj";
        assert_eq!(plain.peft_name(ours), memory);
        let down = "encoder.layers.0.mlp.fc2.lora_A.weight";
        let (of_plain, of_gated) = (plain.peft_name(down), gated.peft_name(down));
        assert_eq!(of_plain, "encoder.layer.0.mlp.fc2.lora_A.weight");
        assert_eq!(of_gated, "encoder.layer.0.mlp.down_proj.lora_A.weight");
        assert_eq!(vision_name(&of_gated), down);
        // SigLIP's head keeps its own.
        assert_eq!(vision_name("head.layernorm.bias"), "head.layernorm.bias");
    }

    #[test]
    fn targets_have_either_name() {
        let mut lora = LoraConfig::vision(2, 4.0, 0.0);
        let plain = VisionFamily::Dinov2.preset();
        assert_eq!(plain.own_targets(&lora), lora);
        lora.target_modules = ["query", "dense", "fc2"].map(Into::into).to_vec();
        let own = plain.own_targets(&lora).target_modules;
        assert_eq!(own, ["q_proj", "out_proj", "fc2"]);
        assert_eq!(VisionConfig::new().own_targets(&lora), lora);
        let gated = plain.clone().with_gated_mlp(true);
        let all = LoraConfig::vision(2, 4.0, 0.0);
        let of_gated = gated.own_targets(&all).target_modules;
        assert_eq!(of_gated, ["q_proj", "k_proj", "v_proj", "out_proj", "fc2"]);
        assert_eq!(
            plain.lora_parameters(&lora),
            12 * 2 * (2 * 768 + 2 * 768 + 768 + 3072)
        );
    }

    #[test]
    fn dimensions_of_one_go_both_ways() {
        let dino = VisionFamily::Dinov2.preset();
        for (path, ours, theirs) in [
            ("embeddings.class_embedding", &[24][..], &[1, 1, 24][..]),
            (
                "embeddings.position_embedding.weight",
                &[10, 24],
                &[1, 10, 24],
            ),
            ("post_layernorm.weight", &[24], &[24]),
        ] {
            assert_eq!(dino.file_shape(path, ours), theirs);
            assert_eq!(own_shape(path, theirs), ours);
            assert_eq!(VisionConfig::new().file_shape(path, ours), ours);
        }
        // Not an embedding of one picture.
        let path = "embeddings.position_embedding.weight";
        assert_eq!(own_shape(path, &[2, 10, 24]), [2, 10, 24]);
    }
}
