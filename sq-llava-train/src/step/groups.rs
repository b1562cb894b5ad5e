//! Which parameters train, and with which learning rate.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Param, ParamId};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor};
use sq_llava_model::ops::params::{ParamMapper, ParamPath, map_params};
use sq_llava_model::{Part, SqLlava};

/// Parameters that share a learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParamGroup {
    /// Adapters of the LLM.
    Llm,
    /// Projector, prototypes and the rows of new tokens.
    Projector,
    /// Adapters of the vision tower.
    Vision,
}

impl ParamGroup {
    /// All groups.
    pub const ALL: [Self; 3] = [Self::Llm, Self::Projector, Self::Vision];

    /// The group of a part; `None` if it never trains.
    pub fn of(part: Part) -> Option<Self> {
        match part {
            Part::LlmAdapters => Some(Self::Llm),
            Part::VisionAdapters => Some(Self::Vision),
            Part::Projector | Part::ImageNewline | Part::Prototype | Part::NewTokens => {
                Some(Self::Projector)
            }
            Part::Base | Part::Centers | Part::UnusedNorm => None,
        }
    }

    /// Short name for logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llm => "llm",
            Self::Projector => "projector",
            Self::Vision => "vision",
        }
    }

    /// Place in arrays that hold a value for each group.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// The parts that train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trains {
    /// Adapters of the LLM.
    pub llm: bool,
    /// Projector and prototypes.
    pub projector: bool,
    /// Rows of new tokens.
    pub new_tokens: bool,
    /// Adapters of the vision tower.
    pub vision: bool,
}

/// One trainable parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainedParam {
    /// Its id in this process.
    pub id: ParamId,
    /// Its group.
    pub group: ParamGroup,
    /// Number of values.
    pub values: usize,
}

/// The trainable parameters, by their path in the model.
#[derive(Debug, Clone, Default)]
pub struct ParamGroups {
    by_id: HashMap<ParamId, (ParamGroup, String)>,
    by_path: BTreeMap<String, TrainedParam>,
}

impl ParamGroups {
    /// Group of a parameter; `None` if it does not train.
    pub fn group(&self, id: ParamId) -> Option<ParamGroup> {
        self.by_id.get(&id).map(|(group, _)| *group)
    }

    /// Path of a trainable parameter in the model.
    pub fn path(&self, id: ParamId) -> Option<&str> {
        self.by_id.get(&id).map(|(_, path)| &**path)
    }

    /// Trainable parameters by path, in the order of the paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TrainedParam)> {
        self.by_path.iter().map(|(path, param)| (&**path, param))
    }

    /// Number of trainable values in a group.
    pub fn count(&self, group: ParamGroup) -> usize {
        let of = self.by_path.values().filter(|p| p.group == group);
        of.map(|p| p.values).sum()
    }

    /// Adds one.
    pub(crate) fn add(&mut self, path: String, trained: TrainedParam) {
        self.by_id.insert(trained.id, (trained.group, path.clone()));
        self.by_path.insert(path, trained);
    }

    /// Freezes everything but the parts named, which become f32 leaves of the graph.
    pub fn mark<B: AutodiffBackend>(model: SqLlava<B>, trains: Trains) -> (SqLlava<B>, Self) {
        let mut marker = Marker {
            trains,
            groups: Self::default(),
        };
        let model = map_params(model, &mut marker);
        (model, marker.groups)
    }
}

struct Marker {
    trains: Trains,
    groups: ParamGroups,
}

impl Trains {
    /// Whether a part trains.
    fn includes(self, part: Part) -> bool {
        match part {
            Part::LlmAdapters => self.llm,
            Part::VisionAdapters => self.vision,
            Part::Projector | Part::ImageNewline | Part::Prototype => self.projector,
            Part::NewTokens => self.new_tokens,
            Part::Base | Part::Centers | Part::UnusedNorm => false,
        }
    }
}

impl<B: AutodiffBackend> ParamMapper<B> for Marker {
    fn map<const D: usize>(
        &mut self,
        path: &ParamPath,
        param: Param<Tensor<B, D>>,
    ) -> Param<Tensor<B, D>> {
        let part = Part::of(path);
        let group = ParamGroup::of(part).filter(|_| self.trains.includes(part));
        let Some(group) = group else {
            return param.set_require_grad(false);
        };
        let values = param.lazy_shape().num_elements();
        let trained = TrainedParam {
            id: param.id,
            group,
            values,
        };
        self.groups.add(path.dotted(), trained);
        param.map(|tensor| Tensor::from_inner(tensor.inner().cast(DType::F32)).require_grad())
    }
}
