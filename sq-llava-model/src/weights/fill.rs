//! Filling a model's lazily drawn parameters from stored tensors, one at a time.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::gguf::{self, GgufModel, Mmproj};
use super::layout::{Key, Layout, Section, canonical, read_key, with_prefix};
use super::narrow::Narrowed;
use super::report::{LoadReport, Mismatch};
use super::tensor::StoredTensor;
use crate::config::{SqLlavaConfig, VisionConfig, VisionFamily, own_shape};
use crate::error::ModelError;
use crate::ops::params::{ParamMapper, ParamPath, map_params};
use crate::ops::settle::settle;
use crate::part::Part;

/// Stored tensors by canonical name, with what else was found beside them.
#[derive(Debug, Default)]
pub(super) struct WeightMap {
    weights: BTreeMap<String, StoredTensor>,
    prefixes: BTreeMap<Section, String>,
    unknown: Vec<String>,
    ignored: Vec<String>,
    /// How a GGUF file spells the keys of the language model, if it came from one.
    gguf: Option<gguf::Spelling>,
    /// Whether tower and projector came from one, and whether the linears of the tower's MLPs go
    /// by each other's names.
    mmproj: Option<bool>,
    /// The vision tower, whose family names its weights.
    vision: Option<VisionConfig>,
    /// Canonical names of matrices that are in the model already, in blocks.
    quantized: BTreeMap<String, Taken>,
}

/// What was taken out of the map for a quantised matrix.
#[derive(Debug, Default)]
struct Taken {
    keys: Vec<String>,
    bytes: u64,
    format: String,
}

impl WeightMap {
    /// The tensors of a GGUF file.
    pub fn from_gguf(model: GgufModel) -> (SqLlavaConfig, Self) {
        let map = Self {
            weights: model.tensors.into_iter().collect(),
            unknown: model.unknown,
            ignored: model.ignored,
            gguf: Some(gguf::Spelling::of(&model.config.llama)),
            ..Self::default()
        };
        (model.config, map)
    }

    /// Adds tower and projector of an `mmproj` file; returns the tower's configuration.
    ///
    /// # Errors
    /// If a tensor stands there twice, with different values.
    pub fn add_mmproj(&mut self, model: Mmproj) -> Result<VisionConfig, ModelError> {
        self.mmproj = Some(model.swapped);
        self.unknown.extend(model.unknown);
        for (name, tensor) in model.tensors {
            self.insert(name, tensor)?;
        }
        Ok(model.vision)
    }

    /// Adds the tensors of files; with sections in `only`, those of them, and the others are
    /// ignored.
    ///
    /// # Errors
    /// If a weight stands there twice, under two keys, with different values.
    pub fn add(&mut self, tensors: Vec<StoredTensor>, only: &[Section]) -> Result<(), ModelError> {
        let left_out = |section: &Section| !only.is_empty() && !only.contains(section);
        for mut tensor in tensors {
            match read_key(&tensor.name) {
                Key::Weight { section, .. } if left_out(&section) => {
                    self.ignored.push(tensor.name);
                }
                Key::Weight {
                    name,
                    section,
                    prefix,
                } => {
                    self.prefixes.insert(section, prefix);
                    if let Some(path) = name.strip_prefix(Section::Vision.canonical()) {
                        tensor.shape = own_shape(path, &tensor.shape);
                    }
                    self.insert(name, tensor)?;
                }
                Key::Ignored => self.ignored.push(tensor.name),
                // A whole model lends a part of itself.
                Key::Unknown(Some(part)) if left_out(&part) => {
                    self.ignored.push(tensor.name);
                }
                Key::Unknown(_) => self.unknown.push(tensor.name),
            }
        }
        Ok(())
    }

    /// Adds tensors that override those that are there. Where they hold a projector or a prototype
    /// extractor, none of the earlier one's weights stay, since it may be of another kind.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn replace_parts(&mut self, tensors: Vec<StoredTensor>) -> Result<(), ModelError> {
        let mut parts = BTreeSet::new();
        for tensor in &tensors {
            if let Key::Weight { section, name, .. } = read_key(&tensor.name) {
                parts.insert(section);
                if let Some(old) = self.weights.remove(&name) {
                    self.ignored.push(overridden(&old));
                }
            }
        }
        for part in [
            Section::Projector,
            Section::ImageNewline,
            Section::Prototype,
        ] {
            if parts.contains(&part) {
                self.drop_section(part);
            }
        }
        self.add(tensors, &[])
    }

    /// One tensor by its canonical name.
    ///
    /// # Errors
    /// If there is one of that name already, with other values.
    pub fn insert(&mut self, name: String, tensor: StoredTensor) -> Result<(), ModelError> {
        match self.weights.get(&name) {
            Some(first) => {
                tensor.must_equal(first)?;
                self.ignored.push(tensor.name);
            }
            None => drop(self.weights.insert(name, tensor)),
        }
        Ok(())
    }

    /// Counts keys as ignored.
    pub fn skip(&mut self, keys: Vec<String>) {
        self.ignored.extend(keys);
    }

    /// Counts keys as those of nothing that a model of ours has.
    pub fn strange(&mut self, keys: Vec<String>) {
        self.unknown.extend(keys);
    }

    /// Forgets the weights of a section.
    pub fn drop_section(&mut self, section: Section) {
        let (dropped, kept) = std::mem::take(&mut self.weights)
            .into_iter()
            .partition(|(name, _)| Section::of(name) == Some(section));
        self.weights = kept;
        let dropped: BTreeMap<String, StoredTensor> = dropped;
        self.ignored.extend(dropped.values().map(overridden));
    }

    /// Says what tower the weights are of.
    pub fn describe_vision(&mut self, vision: &VisionConfig) {
        self.vision = Some(vision.clone());
    }

    /// Counts the pooling head of a SigLIP tower as ignored: no image feature passes through it.
    pub fn drop_pooling_head(&mut self) {
        let head: Vec<String> = self
            .all()
            .filter(|name| name.starts_with("vision_tower.head."))
            .map(str::to_owned)
            .collect();
        for name in head {
            self.ignore(&name);
        }
    }

    /// Takes one weight out and counts it as ignored.
    pub fn ignore(&mut self, name: &str) {
        if let Some(tensor) = self.weights.remove(name) {
            self.ignored.push(tensor.name);
        }
    }

    /// Takes a matrix (with the tensors `beside` it) out that was put into the model in blocks.
    pub fn taken(&mut self, name: &str, beside: &[&str], format: String) {
        let mut taken = Taken {
            format,
            ..Taken::default()
        };
        for name in std::iter::once(&name).chain(beside) {
            if let Some(tensor) = self.weights.remove(*name) {
                taken.bytes += tensor.stored_bytes();
                taken.keys.push(tensor.name);
            }
        }
        self.quantized.insert(name.to_string(), taken);
    }

    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.weights.get(name)
    }

    /// Every canonical name.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// Keys that are nothing a model of ours has.
    pub fn unknown(&self) -> impl Iterator<Item = &String> {
        self.unknown.iter()
    }

    pub fn has(&self, section: Section) -> bool {
        self.weights
            .keys()
            .any(|name| Section::of(name) == Some(section))
    }

    /// Canonical names of a section without the section itself.
    pub fn names(&self, section: Section) -> impl Iterator<Item = &str> {
        self.weights
            .keys()
            .filter(move |name| Section::of(name) == Some(section))
            .map(move |name| &name[section.canonical().len()..])
    }

    /// A canonical name as the files spell it.
    pub fn file_key(&self, name: &str) -> String {
        let spelt = self
            .gguf
            .and_then(|spelling| gguf::file_name(name, spelling));
        let spelt = spelt.or_else(|| gguf::mmproj_name(name, self.mmproj?));
        if let Some(key) = spelt {
            return key;
        }
        let hf = self
            .prefixes
            .get(&Section::Projector)
            .is_some_and(|prefix| prefix.contains("multi_modal_projector"));
        let layout = if hf {
            Layout::LlavaHf
        } else {
            Layout::Original
        };
        let vision = self.vision.as_ref();
        let family = vision.map_or(VisionFamily::Clip, |vision| vision.family);
        with_prefix(name, layout, vision, |section| {
            let seen = self.prefixes.get(&section);
            seen.map_or_else(|| section.prefix(layout, family).into(), Clone::clone)
        })
    }
}

fn overridden(tensor: &StoredTensor) -> String {
    let file = tensor.file.path.file_name().unwrap_or_default();
    format!("{} of {}", tensor.name, file.to_string_lossy())
}

/// How parameters are filled.
pub(super) struct FillOptions<'a> {
    /// Dtype of the frozen weights.
    pub dtype: DType,
    /// Dtypes of those that are stored in 16 bits.
    pub narrowed: Narrowed,
    /// Dtype of adapters, projector, prototype extractor and new tokens.
    pub trainable_dtype: DType,
    /// Whether the frozen weights take no gradient.
    pub freeze_base: bool,
    /// Whether projector and prototype extractor may start from their random draw.
    pub fresh: bool,
    /// Called with bytes read and bytes in all.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
}

/// Fills a model; every weight of the map that it has no place for is reported.
///
/// # Errors
/// If a tensor cannot be read.
pub(super) fn fill<B: Backend, M: Module<B>>(
    model: M,
    mut weights: WeightMap,
    options: &FillOptions<'_>,
) -> Result<(M, LoadReport), ModelError> {
    let mut report = LoadReport::default();
    let mut done = 0;
    for taken in weights.quantized.values_mut() {
        report.loaded.append(&mut taken.keys);
        *report.formats.entry(taken.format.clone()).or_default() += 1;
        done += taken.bytes;
    }
    let left: u64 = weights.weights.values().map(|t| t.stored_bytes()).sum();
    let total = done + left;
    let mut filler = Filler {
        weights,
        options,
        done,
        total,
        report,
        error: None,
    };
    let model = map_params(model, &mut filler);
    if let Some(error) = filler.error {
        return Err(error);
    }
    let Filler {
        weights,
        mut report,
        ..
    } = filler;
    if let Some(progress) = options.progress {
        // Keys without a place were never read.
        progress(total, total);
    }
    report.unexpected = weights.unknown;
    let left = weights.weights.into_values().map(|tensor| tensor.name);
    report.unexpected.extend(left);
    report.ignored = weights.ignored;
    Ok((model, report))
}

struct Filler<'a> {
    weights: WeightMap,
    options: &'a FillOptions<'a>,
    done: u64,
    total: u64,
    report: LoadReport,
    error: Option<ModelError>,
}

impl Filler<'_> {
    /// Reads the tensor of one parameter; `None` leaves the parameter as it is.
    fn read<B: Backend, const D: usize>(
        &mut self,
        name: &str,
        part: Part,
        param: &Param<Tensor<B, D>>,
    ) -> Option<Tensor<B, D>> {
        let Some(stored) = self.weights.weights.remove(name) else {
            if self.options.fresh && part.is_connector() {
                self.report.fresh.push(name.to_string());
            } else {
                self.report.missing.push(self.weights.file_key(name));
            }
            return None;
        };
        let expected: Vec<usize> = param.lazy_shape().to_vec();
        if stored.shape != expected {
            self.report.mismatched.push(Mismatch {
                key: stored.name,
                expected,
                found: stored.shape,
            });
            return None;
        }
        let dtype = match part {
            Part::Base => {
                let options = self.options;
                options.narrowed.dtype(stored.dtype, options.dtype)
            }
            _ => self.options.trainable_dtype,
        };
        let data = match stored.read(dtype) {
            Ok(data) => data,
            Err(error) => {
                self.error = Some(error);
                return None;
            }
        };
        self.done += stored.stored_bytes();
        if let Some(progress) = self.options.progress {
            progress(self.done, self.total);
        }
        let format = stored.dtype.name();
        *self.report.formats.entry(format.into()).or_default() += 1;
        self.report.loaded.push(stored.name);
        let device = param.lazy_device();
        // What training changes lives a step long.
        Some(match part {
            Part::Base => settle(data, &device, dtype),
            _ => Tensor::from_data(data, (&device, dtype)),
        })
    }
}

impl<B: Backend> ParamMapper<B> for Filler<'_> {
    fn map<const D: usize>(
        &mut self,
        path: &ParamPath,
        param: Param<Tensor<B, D>>,
    ) -> Param<Tensor<B, D>> {
        if self.error.is_some() {
            return param;
        }
        let name = canonical(&path.fields());
        if self.weights.quantized.contains_key(&name) {
            return param;
        }
        let part = Part::of(path);
        match self.read(&name, part, &param) {
            None => param,
            Some(tensor) => {
                let frozen = self.options.freeze_base && part == Part::Base;
                let learns = !frozen && part != Part::Centers;
                Param::initialized(param.id, tensor.set_require_grad(learns))
            }
        }
    }
}
