//! Where the numbers of a model stop being finite, by name.

use std::fmt;

use burn::tensor::DType;

/// The first part of a model whose output holds NaN or infinity. Layers count from 0, as in the
/// names of their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Pictures as the image processor makes them.
    Pixels,
    /// Patches and positions before the first layer of the vision tower.
    VisionEmbedding,
    /// A layer of the vision tower.
    VisionLayer(usize),
    /// The paper's prototype extractor.
    Prototype,
    /// The projector.
    Projector,
    /// Image tokens that were given to the language model.
    ImageTokens,
    /// The embedding of tokens.
    Embedding,
    /// A layer of the language model.
    Layer(usize),
    /// The last norm and the output head.
    Head,
    /// CLIP's embedding of a picture.
    ClipImage,
    /// CLIP's embedding of a text.
    ClipText,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pixels => f.write_str(
                "the prepared pictures (image_std or rescale_factor of preprocessor_config.json)",
            ),
            Self::VisionEmbedding => f.write_str("the vision tower's patch embedding"),
            Self::VisionLayer(layer) => write!(f, "layer {layer} of the vision tower"),
            Self::Prototype => f.write_str("the prototype extractor"),
            Self::Projector => f.write_str("the projector"),
            Self::ImageTokens => f.write_str("the image tokens"),
            Self::Embedding => f.write_str("the token embedding"),
            Self::Layer(layer) => write!(f, "layer {layer} of the language model"),
            Self::Head => f.write_str("the output head"),
            Self::ClipImage => f.write_str("CLIP's embedding of a picture"),
            Self::ClipText => f.write_str("CLIP's embedding of a text"),
        }
    }
}

/// What to do about numbers that are not finite in a model of this dtype.
pub(crate) fn advice(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => {
            "f16 may be too narrow for this model: choose the dtype bf16 or f32; if that does not \
             help, a weight is damaged"
        }
        _ => {
            "the dtype is wide enough, so a weight is damaged: compare the weight files with their \
             source, or fetch them again"
        }
    }
}
