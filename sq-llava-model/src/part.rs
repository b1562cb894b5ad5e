//! Which part of the model a parameter belongs to: what training changes, and the rest.

use crate::ops::params::ParamPath;

/// A part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The weights of both towers.
    Base,
    /// Adapters of the language model.
    LlmAdapters,
    /// Adapters of the vision tower.
    VisionAdapters,
    /// The projector W, the released extractor included.
    Projector,
    /// Norm of the released extractor, which no forward pass reads.
    UnusedNorm,
    /// The row behind each row of features of an image of any shape.
    ImageNewline,
    /// Weights of the paper's φ.
    Prototype,
    /// Initial centres of φ, a buffer.
    Centers,
    /// Rows of the role tokens.
    NewTokens,
}

impl Part {
    /// The part of a parameter of [`SqLlava`](crate::SqLlava).
    pub fn of(path: &ParamPath) -> Self {
        match path.fields()[..] {
            ["language_model", "new_tokens", ..] => Self::NewTokens,
            ["language_model", .., "lora", _] => Self::LlmAdapters,
            ["vision_tower", .., "lora", _] => Self::VisionAdapters,
            ["mm_projector", "ln_1", ..] => Self::UnusedNorm,
            ["mm_projector", ..] => Self::Projector,
            ["image_newline"] => Self::ImageNewline,
            ["prototype", "centers"] => Self::Centers,
            ["prototype", ..] => Self::Prototype,
            _ => Self::Base,
        }
    }

    /// Whether it stands between vision tower and language model.
    pub(crate) fn is_connector(self) -> bool {
        match self {
            Self::Projector
            | Self::ImageNewline
            | Self::UnusedNorm
            | Self::Prototype
            | Self::Centers => true,
            Self::Base | Self::LlmAdapters | Self::VisionAdapters | Self::NewTokens => false,
        }
    }

    /// Whether it is one of the towers' adapters.
    pub(crate) fn is_adapter(self) -> bool {
        matches!(self, Self::LlmAdapters | Self::VisionAdapters)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::module::Param;
    use burn::tensor::{Tensor, backend::Backend};
    use burn_flex::Flex;

    use sq_llava_data::image::AnyResolution;

    use super::*;
    use crate::config::{ProjectorConfig, SqLlavaConfig};
    use crate::language::llama::NewTokens;
    use crate::ops::lora::LoraConfig;
    use crate::ops::params::{ParamVisitor, visit_params};

    #[derive(Default)]
    struct Parts(BTreeMap<Part, Vec<String>>);

    impl<B: Backend> ParamVisitor<B> for Parts {
        fn visit<const D: usize>(&mut self, path: &ParamPath, _: &Param<Tensor<B, D>>) {
            let found = self.0.entry(Part::of(path)).or_default();
            found.push(path.dotted());
        }
    }

    #[test]
    fn every_parameter_belongs_to_a_part() {
        let device = Default::default();
        let mut config = SqLlavaConfig::preset("tiny").unwrap();
        config.anyres = Some(AnyResolution::published(56, None));
        let mut model = config.init::<Flex>(&device).unwrap();
        model.language_model.new_tokens = Some(NewTokens::zeros(4, 64, false, 320, &device));
        let model = model
            .with_llm_lora(&LoraConfig::llm(2, 4.0, 0.0))
            .with_vision_lora(&LoraConfig::vision(2, 4.0, 0.0));
        let mut found = Parts::default();
        visit_params(&model, &mut found);
        let counts = |parts: &Parts, part| parts.0.get(&part).map_or(0, Vec::len);
        for (part, expected) in [
            (Part::LlmAdapters, 3 * 7 * 2),
            (Part::VisionAdapters, 4 * 6 * 2),
            (Part::NewTokens, 2),
            (Part::Projector, 4),
            (Part::ImageNewline, 1),
            (Part::Prototype, 8),
            (Part::Centers, 1),
            (Part::UnusedNorm, 0),
        ] {
            assert_eq!(counts(&found, part), expected, "{part:?}");
        }
        // States of trainings name parameters by these paths.
        let projector = &found.0[&Part::Projector];
        assert_eq!(projector[0], "mm_projector.Mlp.layers.0.weight");

        config.projector = ProjectorConfig::from_name("cluster", Some(4)).unwrap();
        (config.prototype, config.anyres) = (None, None);
        let mut found = Parts::default();
        visit_params(&config.init::<Flex>(&device).unwrap(), &mut found);
        assert_eq!(counts(&found, Part::UnusedNorm), 2);
        assert_eq!(counts(&found, Part::Projector), 2 + 2 * 3 + 2 * 2);
        assert_eq!(counts(&found, Part::Prototype), 0);
        assert_eq!(counts(&found, Part::ImageNewline), 0);
    }
}
