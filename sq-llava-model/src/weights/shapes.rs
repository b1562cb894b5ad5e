//! Comparing a configuration with the stored tensors before a model is laid out, so that a number
//! in a file makes nothing that the file does not fill.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::fill::WeightMap;
use super::layout::canonical;
use super::quantized::{MIN, SCALE};
use super::report::{LoadReport, Mismatch};
use crate::config::SqLlavaConfig;
use crate::error::ModelError;
use crate::ops::params::{ParamPath, ParamVisitor, visit_params};

const LLM_LAYERS: &str = "language_model.model.layers.";
pub(super) const VISION_LAYERS: &str = "vision_tower.encoder.layers.";

/// What a model needs of its files, told from one with a single layer in each stack, whose weights
/// are not drawn.
struct Expected<'a> {
    weights: &'a WeightMap,
    /// Shapes by canonical name.
    shapes: BTreeMap<String, Vec<usize>>,
    /// How names of a stack's layers begin, and the number of its layers.
    stacks: Vec<(&'static str, usize)>,
}

/// Compares the configuration of a model with the tensors of its files; a projector and a prototype
/// extractor that start `fresh` need none. With `allow_unused`, tensors without a place are
/// accepted.
///
/// # Errors
/// If weights are missing, have another shape, or find no place; the message names the keys.
pub(super) fn check_model<B: Backend>(
    dir: &Path,
    config: &SqLlavaConfig,
    weights: &WeightMap,
    fresh: bool,
    allow_unused: bool,
    device: &B::Device,
) -> Result<(), ModelError> {
    let vision_layers = config.vision.as_ref().map(|v| v.num_hidden_layers);
    let mut stacks = vec![(LLM_LAYERS, config.llama.num_hidden_layers)];
    stacks.extend(vision_layers.map(|layers| (VISION_LAYERS, layers)));
    let mut expected = Expected {
        weights,
        shapes: BTreeMap::new(),
        stacks,
    };
    expected.check_counts(dir)?;
    check_made(dir, config, weights, fresh)?;

    let one = |layers: usize| layers.min(1);
    let llama = config.llama.clone();
    let layers = one(llama.num_hidden_layers);
    let llama = llama.with_num_hidden_layers(layers).init::<B>(device);
    expected.add("language_model", &llama);
    if let Some(vision) = &config.vision {
        let (width, layers) = (config.feature_width(), one(vision.num_hidden_layers));
        let tower = vision.clone().with_num_hidden_layers(layers);
        expected.add("vision_tower", &tower.init::<B>(device));
        if let Some(width) = width.filter(|_| !fresh) {
            let projector = config
                .projector
                .init(width, config.llama.hidden_size, device);
            expected.add::<B, _>("mm_projector", &projector);
            if config.has_image_newline() {
                let shape = vec![config.llama.hidden_size];
                expected.shapes.insert("image_newline".into(), shape);
            }
        }
    }
    if let Some(prototype) = config.prototype.as_ref().filter(|_| !fresh) {
        expected.add("prototype", &prototype.init::<B>(device));
    }
    expected.compare(allow_unused).check(dir, allow_unused)
}

/// As [`check_model`], for any module: `one` has at most one layer in each of the `stacks`, which
/// are named by how their layers' keys begin, with the number of layers.
///
/// # Errors
/// As [`check_model`].
pub(super) fn check_module<B: Backend, M: Module<B>>(
    dir: &Path,
    one: &M,
    stacks: &[(&'static str, usize)],
    weights: &WeightMap,
    allow_unused: bool,
) -> Result<(), ModelError> {
    let mut expected = Expected {
        weights,
        shapes: BTreeMap::new(),
        stacks: stacks.to_vec(),
    };
    expected.check_counts(dir)?;
    expected.add("", one);
    expected.compare(allow_unused).check(dir, allow_unused)
}

/// The sizes of what is computed when a model is made: rotary frequencies and initial centres.
fn check_made(
    dir: &Path,
    config: &SqLlavaConfig,
    weights: &WeightMap,
    fresh: bool,
) -> Result<(), ModelError> {
    let llama = &config.llama;
    let (name, heads) = match llama.fused_projections {
        true => ("qkv_proj", llama.num_key_value_heads.checked_mul(2)),
        false => ("q_proj", Some(0)),
    };
    let heads = heads.and_then(|more| llama.num_attention_heads.checked_add(more));
    let queries = heads.and_then(|heads| heads.checked_mul(llama.head_dim()));
    let query = format!("{LLM_LAYERS}0.self_attn.{name}.weight");
    let mut sizes = vec![
        (
            "language_model.model.norm.weight",
            0,
            Some(llama.hidden_size),
        ),
        (&query, 0, queries),
    ];
    if let Some(prototype) = config.prototype.as_ref().filter(|_| !fresh) {
        sizes.push(("prototype.centers", 0, Some(prototype.num_centers)));
        sizes.push(("prototype.centers", 1, Some(prototype.hidden_size)));
    }
    let mut report = LoadReport::default();
    for (name, side, size) in sizes {
        let Some(tensor) = weights.get(name) else {
            report.missing.push(weights.file_key(name));
            continue;
        };
        if size.is_none() || tensor.shape.get(side).copied() != size {
            let mut expected = tensor.shape.clone();
            expected.resize(expected.len().max(side + 1), 1);
            expected[side] = size.unwrap_or(usize::MAX);
            report.mismatched.push(Mismatch {
                key: tensor.name.clone(),
                expected,
                found: tensor.shape.clone(),
            });
        }
    }
    report.check(dir, true)
}

impl Expected<'_> {
    /// Adds the parameters of a part.
    fn add<B: Backend, M: Module<B>>(&mut self, part: &str, module: &M) {
        let found = &mut self.shapes;
        visit_params(module, &mut Shapes { part, found });
    }

    /// Every layer that the configuration names must have weights.
    fn check_counts(&self, dir: &Path) -> Result<(), ModelError> {
        for &(stack, layers) in &self.stacks {
            let found: BTreeSet<usize> = self
                .weights
                .all()
                .filter_map(|name| split_layer(name, stack))
                .map(|(layer, _)| layer)
                .collect();
            if let Some(missing) = (0..layers).find(|layer| !found.contains(layer)) {
                return Err(ModelError::Incomplete(format!(
                    "{}: missing weights: the configuration says {layers} layers, but the files hold those of {}, and none of {}*; correct \"num_hidden_layers\", or download the files again",
                    dir.display(),
                    found.len(),
                    self.weights.file_key(&format!("{stack}{missing}."))
                )));
            }
        }
        Ok(())
    }

    /// Missing weights, those of another shape, and those without a place (if they matter).
    fn compare(&self, allow_unused: bool) -> LoadReport {
        let mut report = LoadReport::default();
        for (name, shape) in &self.shapes {
            let stack = self
                .stacks
                .iter()
                .find_map(|&(stack, layers)| Some((stack, layers, split_layer(name, stack)?.1)));
            match stack {
                None => self.check(name, shape, &mut report),
                Some((stack, layers, rest)) => {
                    for layer in 0..layers {
                        self.check(&format!("{stack}{layer}.{rest}"), shape, &mut report);
                    }
                }
            }
        }
        if !allow_unused {
            report.unexpected.extend(self.weights.unknown().cloned());
            let unplaced = self.weights.all().filter(|name| !self.has_place(name));
            let unplaced = unplaced.filter_map(|name| self.weights.get(name));
            report
                .unexpected
                .extend(unplaced.map(|tensor| tensor.name.clone()));
        }
        report
    }

    fn check(&self, name: &str, shape: &[usize], report: &mut LoadReport) {
        // Blocks have a shape of their own, which is checked when they are read.
        if self.weights.get(&format!("{name}{SCALE}")).is_some() {
            return;
        }
        match self.weights.get(name) {
            None => report.missing.push(self.weights.file_key(name)),
            Some(tensor) if tensor.shape != shape => report.mismatched.push(Mismatch {
                key: tensor.name.clone(),
                expected: shape.to_vec(),
                found: tensor.shape.clone(),
            }),
            Some(_) => {}
        }
    }

    /// Whether the model has a parameter of that name, or it belongs to one.
    fn has_place(&self, name: &str) -> bool {
        let blocks = [SCALE, MIN].iter().find_map(|end| name.strip_suffix(end));
        name.starts_with("language_model.new_tokens.")
            || self.is_parameter(name)
            || blocks.is_some_and(|name| self.is_parameter(name))
    }

    fn is_parameter(&self, name: &str) -> bool {
        for &(stack, layers) in &self.stacks {
            if let Some((layer, rest)) = split_layer(name, stack) {
                return layer < layers && self.shapes.contains_key(&format!("{stack}0.{rest}"));
            }
        }
        self.shapes.contains_key(name)
    }
}

/// `(3, "mlp.up_proj.weight")` of a stack's name.
fn split_layer<'a>(name: &'a str, stack: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(stack)?.split_once('.')?;
    let layer: usize = number.parse().ok()?;
    // "00" is another name than "0".
    (layer.to_string() == number).then_some((layer, rest))
}

/// Collects the shapes of a part's parameters.
struct Shapes<'a> {
    part: &'a str,
    found: &'a mut BTreeMap<String, Vec<usize>>,
}

impl<B: Backend> ParamVisitor<B> for Shapes<'_> {
    fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<B, D>>) {
        let part = std::iter::once(self.part).filter(|part| !part.is_empty());
        let path: Vec<&str> = part.chain(path.fields()).collect();
        let shape = param.lazy_shape().to_vec();
        self.found.insert(canonical(&path), shape);
    }
}
