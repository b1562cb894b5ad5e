//! Which parameters train, and with which learning rate.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor};
use sq_llava_model::SqLlava;

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
            path: Vec::new(),
            groups: Self::default(),
        };
        let model = model.map(&mut marker);
        (model, marker.groups)
    }
}

struct Marker {
    trains: Trains,
    path: Vec<String>,
    groups: ParamGroups,
}

impl Marker {
    fn group(&self) -> Option<ParamGroup> {
        let has = |name: &str| self.path.iter().any(|part| part == name);
        let Trains {
            llm,
            projector,
            new_tokens,
            vision,
        } = self.trains;
        let (group, trains) = match self.path.first().map(String::as_str) {
            Some("language_model") if has("lora") => (ParamGroup::Llm, llm),
            Some("language_model") if has("new_tokens") => (ParamGroup::Projector, new_tokens),
            Some("vision_tower") if has("lora") => (ParamGroup::Vision, vision),
            // The centres are a buffer; ln_1 of the released extractor is never used.
            Some("prototype") if !has("centers") => (ParamGroup::Projector, projector),
            Some("mm_projector") if !has("ln_1") => (ParamGroup::Projector, projector),
            _ => return None,
        };
        trains.then_some(group)
    }
}

impl<B: AutodiffBackend> ModuleMapper<B> for Marker {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(group) = self.group() else {
            return param.set_require_grad(false);
        };
        let values = param.lazy_shape().num_elements();
        let trained = TrainedParam {
            id: param.id,
            group,
            values,
        };
        self.groups.add(self.path.join("."), trained);
        param.map(|tensor| Tensor::from_inner(tensor.inner().cast(DType::F32)).require_grad())
    }
}
