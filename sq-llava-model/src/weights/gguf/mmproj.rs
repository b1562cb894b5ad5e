//! Vision tower and projector from llama.cpp's `mmproj` files (`tools/mtmd/clip.cpp`).

use std::path::Path;

use sq_llava_data::gguf::GgufHeader;
use sq_llava_data::image::{AnyResolution, ImageAspect, ImageProcessorConfig, PatchMerge};

use super::mmproj_keys::{ASPECT, MERGE, PINPOINTS};
use super::mmproj_names::{canonical, layer};
use super::stored;
use crate::config::{SelectFeature, VisionConfig, VisionFamily, judge_unknown};
use crate::error::ModelError;
use crate::ops::activation::Activation;
use crate::weights::source::check_sharing;
use crate::weights::tensor::{MappedFile, StoredTensor};

/// What an `mmproj` file holds of a model.
pub(in crate::weights) struct Mmproj {
    pub vision: VisionConfig,
    /// Indices of the hidden states that become image features, joined in this order.
    pub feature_layers: Vec<i64>,
    pub select_feature: SelectFeature,
    /// How pictures are prepared.
    pub pictures: ImageProcessorConfig,
    /// Tensors by canonical name.
    pub tensors: Vec<(String, StoredTensor)>,
    /// Names of tensors that a tower of ours has no place for.
    pub unknown: Vec<String>,
    /// Whether the linears of the MLPs go by each other's names.
    pub swapped: bool,
}

/// Keys that are read, or say nothing about what is computed.
const KNOWN: [&str; 23] = [
    "clip.has_text_encoder",
    "clip.has_vision_encoder",
    "clip.has_llava_projector",
    "clip.has_audio_encoder",
    "clip.projector_type",
    "clip.use_gelu",
    "clip.use_silu",
    "clip.vision.attention.head_count",
    "clip.vision.attention.layer_norm_epsilon",
    "clip.vision.block_count",
    "clip.vision.embedding_length",
    "clip.vision.feature_layer",
    "clip.vision.feed_forward_length",
    ASPECT,
    PINPOINTS,
    "clip.vision.image_mean",
    "clip.vision.image_size",
    "clip.vision.image_std",
    MERGE,
    "clip.vision.mm_projector_type",
    "clip.vision.patch_size",
    "clip.vision.projection_dim",
    "clip.vision.projector_type",
];

/// Reads an `mmproj` file; nothing but its header is read.
///
/// # Errors
/// If the file is damaged, of another kind, or (unless `allow_unused`) has keys that may change
/// what is computed.
pub(in crate::weights) fn read_mmproj(
    path: &Path,
    allow_unused: bool,
) -> Result<Mmproj, ModelError> {
    let header = GgufHeader::open(path)?;
    let keys = Keys { header: &header };
    keys.check_kind()?;
    judge_unknown(path, &keys.unknown(), allow_unused)?;
    let vision = keys.tower()?;
    let swapped = keys.swapped(&vision);
    let file = MappedFile::open(path)?;
    let listed = header.tensors.iter().map(|listed| stored(&file, listed));
    let listed = listed.collect::<Result<Vec<_>, _>>()?;
    check_sharing(path, &listed)?;
    let (mut tensors, mut unknown) = (Vec::new(), Vec::new());
    for tensor in listed {
        match canonical(&tensor.name, swapped) {
            Some(name) => tensors.push((name, tensor)),
            None => unknown.push(tensor.name),
        }
    }
    let layers = tensors.iter().filter_map(|(name, _)| layer(name)).max();
    if layers.map(|last| last.saturating_add(1)) != Some(vision.num_hidden_layers) {
        return Err(keys.fail(format!(
            "\"clip.vision.block_count\" is {}, but the tensors are those of {} layers",
            vision.num_hidden_layers,
            layers.map_or(0, |last| last.saturating_add(1))
        )));
    }
    Ok(Mmproj {
        feature_layers: keys.feature_layers(vision.num_hidden_layers)?,
        select_feature: match vision.class_token {
            true => SelectFeature::Patch,
            false => SelectFeature::ClsPatch,
        },
        pictures: keys.pictures(&vision)?,
        vision,
        tensors,
        unknown,
        swapped,
    })
}

struct Keys<'a> {
    header: &'a GgufHeader,
}

impl Keys<'_> {
    fn fail(&self, reason: String) -> ModelError {
        self.header.error(reason).into()
    }

    fn has(&self, tensor: &str) -> bool {
        self.header.tensors.iter().any(|t| t.name == tensor)
    }

    /// Whether it is a tower of images with LLaVA's projector.
    fn check_kind(&self) -> Result<(), ModelError> {
        let name = self.header.text("general.architecture")?;
        if name != Some("clip") {
            return Err(self.fail(format!(
                "the architecture is {}; the file of a vision tower and projector (mmproj) says \"clip\"",
                name.map_or("not named".into(), |name| format!("\"{name}\""))
            )));
        }
        if self.header.flag("clip.has_audio_encoder")? == Some(true) {
            return Err(self.fail("it holds an audio encoder, which is not supported".into()));
        }
        let mut kind = self.header.text("clip.projector_type")?;
        if kind.is_none() {
            kind = self.header.text("clip.vision.projector_type")?;
        }
        let named = kind.unwrap_or("mlp");
        if named != "mlp" {
            return Err(self.fail(format!(
                "the projector \"{named}\" is not supported, only LLaVA's \"mlp\""
            )));
        }
        for (tensor, what) in [
            ("mm.3.weight", "a projector with norms (\"mlp_norm\")"),
            (
                "v.post_ln.weight",
                "a norm behind the features of the tower",
            ),
            (
                "v.blk.0.attn_qkv.weight",
                "queries, keys and values in one matrix",
            ),
            ("v.blk.0.ffn_gate.weight", "gated MLPs in the tower"),
        ] {
            if self.has(tensor) {
                return Err(self.fail(format!("tensor \"{tensor}\": {what} is not supported")));
            }
        }
        Ok(())
    }

    /// Keys that are neither known nor at a value that changes nothing.
    fn unknown(&self) -> Vec<String> {
        let own = self.header.metadata.iter();
        let own = own.filter(|(key, _)| key.starts_with("clip."));
        let strange = own.filter(|(key, _)| match key.as_str() {
            key if KNOWN.contains(&key) => false,
            // How pictures of other shapes were cut by programs that nobody has.
            "clip.vision.image_crop_resolution" | "clip.vision.image_split_resolution" => false,
            _ => true,
        });
        strange.map(|(key, _)| format!("\"{key}\"")).collect()
    }

    fn size(&self, name: &str) -> Result<usize, ModelError> {
        let key = format!("clip.vision.{name}");
        match self.header.size(&key)? {
            None => Err(self.fail(format!("no \"{key}\" in the metadata"))),
            Some(0) => Err(self.fail(format!("\"{key}\" is 0"))),
            Some(n) => Ok(n),
        }
    }

    fn tower(&self) -> Result<VisionConfig, ModelError> {
        let (gelu, silu) = (
            self.header.flag("clip.use_gelu")?.unwrap_or(false),
            self.header.flag("clip.use_silu")?.unwrap_or(false),
        );
        if silu {
            return Err(self.fail("\"clip.use_silu\" is true; this is not supported".into()));
        }
        let eps = self
            .header
            .number("clip.vision.attention.layer_norm_epsilon")?;
        let eps = eps.ok_or_else(|| {
            self.fail("no \"clip.vision.attention.layer_norm_epsilon\" in the metadata".into())
        })?;
        // A tower without a class token is SigLIP's.
        let (family, gelu_of_family) = match self.has("v.class_embd") {
            true => (VisionFamily::Clip, Activation::Gelu),
            false => (VisionFamily::Siglip, Activation::GeluPytorchTanh),
        };
        let config = family
            .preset()
            .with_pooling_head(false)
            .with_hidden_size(self.size("embedding_length")?)
            .with_intermediate_size(self.mlp_width()?)
            .with_num_hidden_layers(self.size("block_count")?)
            .with_num_attention_heads(self.size("attention.head_count")?)
            .with_image_size(self.size("image_size")?)
            .with_patch_size(self.size("patch_size")?)
            .with_layer_norm_eps(eps)
            .with_hidden_act(match gelu {
                true => gelu_of_family,
                false => Activation::QuickGelu,
            });
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        if width % heads != 0 || config.patch_size > config.image_size {
            return Err(self.fail(format!(
                "a tower of width {width} with {heads} heads, images of {} and patches of {} pixels does not exist",
                config.image_size, config.patch_size
            )));
        }
        Ok(config)
    }

    /// The width of the MLPs, which some files leave at 0.
    fn mlp_width(&self) -> Result<usize, ModelError> {
        match self.header.size("clip.vision.feed_forward_length")? {
            Some(n) if n > 0 => Ok(n),
            _ => {
                let bias = self.header.tensors.iter();
                let sizes = bias
                    .filter(|t| t.name.starts_with("v.blk.0.ffn_") && t.shape.len() == 2)
                    .flat_map(|t| t.shape.iter().copied());
                sizes.max().ok_or_else(|| {
                    self.fail("no \"clip.vision.feed_forward_length\" in the metadata".into())
                })
            }
        }
    }

    /// Old converters gave the two linears of an MLP each other's names; llama.cpp tells them by
    /// the input width of what is called the second.
    fn swapped(&self, vision: &VisionConfig) -> bool {
        let down = self.header.tensors.iter();
        let mut down = down.filter(|t| t.name == "v.blk.0.ffn_down.weight");
        down.next()
            .is_some_and(|t| t.shape.last() == Some(&vision.hidden_size))
    }

    /// The hidden states that become image features, 0 being the embeddings, in the order in which
    /// llama.cpp joins them. It stops before the last of the layers that a file holds, unless the
    /// file names the states.
    fn feature_layers(&self, layers: usize) -> Result<Vec<i64>, ModelError> {
        let key = "clip.vision.feature_layer";
        let listed = match self.header.integers(key)? {
            None | Some([]) => return Ok(vec![layers as i64 - 1]),
            Some(listed) => listed,
        };
        if let Some(layer) = listed
            .iter()
            .find(|&&layer| layer < 0 || layer > layers as i64)
        {
            return Err(self.fail(format!(
                "\"{key}\" is {layer}, but there are {layers} layers"
            )));
        }
        let mut found = listed.to_vec();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn pictures(&self, vision: &VisionConfig) -> Result<ImageProcessorConfig, ModelError> {
        let side = u32::try_from(vision.image_size).unwrap_or(u32::MAX);
        let mut config = ImageProcessorConfig::clip(side).with_aspect(ImageAspect::Pad);
        let aspect = self.header.text(ASPECT)?;
        if let Some(tiling) = self.tiling(aspect)? {
            let tiled = config.with_tiling(tiling);
            config = tiled.map_err(|error| self.fail(error.to_string()))?;
        } else if let Some(name) = aspect {
            config = config.with_aspect(name.parse()?);
        }
        let three = |key: &str| -> Result<[f64; 3], ModelError> {
            let list = self.header.floats(key)?.unwrap_or_default();
            match list {
                // The shortest decimals that these floats stand for.
                &[r, g, b] => Ok([r, g, b].map(|x| x.to_string().parse().unwrap_or(f64::from(x)))),
                _ => Err(self.fail(format!("\"{key}\" is not a list of three numbers"))),
            }
        };
        config.image_mean = three("clip.vision.image_mean")?;
        config.image_std = three("clip.vision.image_std")?;
        Ok(config)
    }

    /// How LLaVA 1.6's pictures are laid over tiles, `None` where they are not.
    fn tiling(&self, aspect: Option<&str>) -> Result<Option<AnyResolution>, ModelError> {
        let listed = self.header.integers(PINPOINTS)?.unwrap_or_default();
        let tiled = aspect.is_none_or(|name| name == "anyres");
        if listed.is_empty() || !tiled {
            return match (aspect, listed) {
                (Some("anyres"), _) => Err(self.fail(format!(
                    "\"{ASPECT}\" is \"anyres\", but there is no \"{PINPOINTS}\""
                ))),
                (Some(name), [_, ..]) => Err(self.fail(format!(
                    "\"{ASPECT}\" is \"{name}\" beside \"{PINPOINTS}\"; only \"anyres\" goes with it"
                ))),
                _ => Ok(None),
            };
        }
        let side = |&n: &i64| u32::try_from(n).ok();
        let pairs = listed.chunks(2).map(|pair| match pair {
            // The width stands first.
            [width, height] => Some((side(height)?, side(width)?)),
            _ => None,
        });
        let Some(pinpoints) = pairs.collect::<Option<Vec<_>>>() else {
            return Err(self.fail(format!("\"{PINPOINTS}\" is no list of pairs of pixels")));
        };
        let merge = match self.header.text(MERGE)? {
            Some(name) => name.parse()?,
            None => PatchMerge::Flat,
        };
        Ok(Some(AnyResolution {
            pinpoints,
            max_tiles: None,
            merge,
        }))
    }
}
