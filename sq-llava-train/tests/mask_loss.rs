//! The loss of masks against PyTorch's autograd (`scripts/mask_fixtures.py`), and its place in a
//! step: with recompute, however the step is divided, and not at all without masks.

mod gradients;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use golden::Tensors;
use gradients::{ALL, Ad, Gradients, MASK_WEIGHT, batch, difference, model, samples, sum_of};
use sq_llava_model::SqLlava;
use sq_llava_model::config::{AssignmentSoftmax, ClusterConfig, ProjectorConfig, PrototypeConfig};
use sq_llava_model::ops::params::{ParamPath, ParamVisitor, visit_params};
use sq_llava_train::GradientCheckpointing::{self, Blocks, None as Keep};
use sq_llava_train::data::batch::{MicroBatch, TrainSample};
use sq_llava_train::step::groups::Trains;
use sq_llava_train::step::masks::{MaskLoss, MaskSums, MaskedPicture};

/// Fills parameters by their paths; those that a reference lacks stay.
struct Fill<'a> {
    path: Vec<String>,
    from: &'a Tensors,
}

impl ModuleMapper<Ad> for Fill<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Ad, D>>) -> Param<Tensor<Ad, D>> {
        let name = format!("param.{}", self.path.join("."));
        if !self.from.contains(&name) {
            return param;
        }
        let data = TensorData::new(self.from.f32(&name), self.from.shape(&name));
        assert_eq!(data.shape, param.lazy_shape(), "{name}");
        param.map(|old| Tensor::from_data(data, &old.device()).require_grad())
    }
}

/// Gradients of parameters by their paths.
struct Read<'a> {
    grads: &'a <Ad as AutodiffBackend>::Gradients,
    found: Gradients,
}

impl ParamVisitor<Ad> for Read<'_> {
    fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<Ad, D>>) {
        if let Some(grad) = param.val().grad(self.grads) {
            let values = grad.into_data().to_vec().expect("f32 values");
            self.found.insert(path.dotted(), values);
        }
    }
}

/// The extractor of a reference on its tokens: the leaf, M, and how to read the gradients.
fn check<M: Module<Ad>>(
    name: &str,
    from: &Tensors,
    extractor: M,
    assign: impl FnOnce(&M, Tensor<Ad, 3>) -> Tensor<Ad, 3>,
) {
    let extractor = extractor.map(&mut Fill {
        path: Vec::new(),
        from,
    });
    let shape: [usize; 3] = from.shape("tokens").try_into().expect("three dimensions");
    let data = TensorData::new(from.f32("tokens"), shape);
    let tokens = Tensor::<Ad, 3>::from_data(data, &Default::default()).require_grad();
    let assignment = assign(&extractor, tokens.clone());
    let labels: Vec<u16> = from.i64("labels").iter().map(|&v| v as u16).collect();
    let tiles: Vec<&[u16]> = labels.chunks_exact(shape[1]).collect();
    // The third is shown with the first: two tiles of one picture where `together`.
    let pictures = |together: bool| -> Vec<MaskedPicture<'_>> {
        if together {
            return vec![MaskedPicture {
                start: 0,
                tiles: tiles.clone(),
                shown: 1,
            }];
        }
        let one = |(start, shown): (usize, usize)| MaskedPicture {
            start,
            tiles: vec![tiles[start]],
            shown,
        };
        [(0, 1), (1, 2), (2, 1)].into_iter().map(one).collect()
    };
    let losses = from.f64("losses");
    let value = |loss: &MaskLoss<Ad>| loss.sums.loss;
    let close = |found: f64, expected: f64| {
        assert!(
            (found - expected).abs() < 1e-4 * expected,
            "{name}: {found} and {expected}"
        );
    };
    // Without a weight it is measured alone.
    let measured = MaskLoss::of(assignment.clone(), &pictures(true), 0.0);
    assert!(measured.total.is_none());
    close(value(&measured), losses.iter().sum::<f64>() / 3.0);
    let loss = MaskLoss::of(assignment, &pictures(false), 0.3 / 4.0);
    close(value(&loss), losses[0] + 2.0 * losses[1] + losses[2]);
    assert_eq!(loss.sums.pictures, 4);

    let grads = loss.total.expect("a loss").backward();
    let mut read = Read {
        grads: &grads,
        found: Gradients::new(),
    };
    visit_params(&extractor, &mut read);
    let mut found = read.found;
    let grad = tokens.grad(&grads).expect("a gradient").into_data();
    found.insert("tokens".into(), grad.to_vec().expect("f32 values"));
    let wanted: Vec<&str> = from
        .names()
        .filter_map(|n| n.strip_prefix("grad."))
        .collect();
    assert!(wanted.len() > 5, "{name}");
    let mut expected: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for path in wanted {
        expected.insert(path.into(), from.f32(&format!("grad.{path}")));
    }
    // Initial centres are a buffer, and here a leaf.
    let error = difference(&found, &expected);
    assert!(error < 2e-4, "{name}: {error:e}");
}

#[test]
fn loss_and_gradients_are_pytorchs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/masks");
    let read = |name: &str| Tensors::read(&folder.join(format!("{name}.safetensors")));
    let device = Default::default();
    for (name, softmax) in [
        ("paper", AssignmentSoftmax::Clusters),
        ("tokens", AssignmentSoftmax::Tokens),
    ] {
        let config = PrototypeConfig::new(6)
            .with_num_centers(4)
            .with_softmax(softmax);
        let assign = |extractor: &_, tokens| {
            let extractor: &sq_llava_model::connector::prototype::PrototypeExtractor<Ad> =
                extractor;
            extractor.extract(tokens).assignment
        };
        check(name, &read(name), config.init::<Ad>(&device), assign);
    }
    let config = ClusterConfig::new().with_num_latents(4);
    let assign = |extractor: &_, tokens| {
        let extractor: &sq_llava_model::connector::cluster::ClusterProjector<Ad> = extractor;
        extractor.project(tokens, None).1.expect("M")
    };
    let released = config.init::<Ad>(6, 5, &device);
    check("released", &read("released"), released, assign);
}

/// Samples whose first picture has masks; the second of the sample that has two has none.
fn labelled(model: &SqLlava<Ad>) -> Vec<TrainSample> {
    let mut samples = samples(model);
    let tokens = model.config.tokens_per_image();
    let labels: Arc<[u16]> = (0..tokens).map(|i| [0, 1, 1, 2, 7][i % 5]).collect();
    for sample in &mut samples {
        if let Some(first) = sample.pictures.first_mut() {
            first.labels = Some(labels.clone());
        }
    }
    samples.push(gradients::sample("d", model, 6, &[2]));
    let other: Arc<[u16]> = (0..tokens).map(|i| 1 + (i > 9) as u16).collect();
    samples[3].pictures[0].labels = Some(other);
    samples
}

fn whole(samples: &[TrainSample]) -> MicroBatch {
    let tokens = samples.iter().map(TrainSample::learnable).sum();
    batch(samples.to_vec(), 0, tokens)
}

fn step(
    model: &SqLlava<Ad>,
    trains: Trains,
    way: GradientCheckpointing,
    batch: MicroBatch,
) -> (Gradients, MaskSums) {
    let (gradients, report) = gradients::report(model, trains, way, batch);
    (gradients, report.masks)
}

/// The same samples without masks.
fn bare(samples: &[TrainSample]) -> Vec<TrainSample> {
    let mut samples = samples.to_vec();
    for picture in samples.iter_mut().flat_map(|sample| &mut sample.pictures) {
        picture.labels = None;
    }
    samples
}

#[test]
fn masks_reach_extractor_and_tower_with_and_without_recompute() {
    let towers = [
        ("all", ALL),
        (
            "prototypes",
            Trains {
                projector: true,
                ..Trains::default()
            },
        ),
        (
            "tower",
            Trains {
                vision: true,
                ..Trains::default()
            },
        ),
    ];
    for (what, trains) in towers {
        let model = model(trains);
        let samples = labelled(&model);
        let (kept, sums) = step(&model, trains, Keep, whole(&samples));
        assert_eq!(sums.pictures, 3, "{what}");
        let (again, again_sums) = step(&model, trains, Blocks, whole(&samples));
        let error = difference(&again, &kept);
        assert!(error < 1e-5, "{what}: {error:e}");
        assert!((sums.loss - again_sums.loss).abs() < 1e-5 * sums.loss);

        // By differences: what masks add is their own gradient.
        let (without, none) = step(&model, trains, Keep, whole(&bare(&samples)));
        assert_eq!(none, MaskSums::default());
        let moved = difference(&kept, &without);
        assert!(moved > 1e-3, "{what}: {moved:e}");
        let below = ["prototype.q", "prototype.k", "prototype.v"];
        for (path, values) in &kept {
            // What assigns, and what stands below it.
            let assigns = below.iter().any(|part| path.contains(part));
            let changes = assigns || path.contains("vision_tower");
            let same = values == &without[path];
            assert!(
                !(same && changes && values.iter().any(|v| *v != 0.0)),
                "{what}: {path}"
            );
        }
    }
}

#[test]
fn a_step_with_masks_is_the_sum_of_its_parts() {
    let model = model(ALL);
    let samples = labelled(&model);
    let all = whole(&samples);
    assert_eq!(all.step_masked, 3);
    let (expected, sums) = step(&model, ALL, Keep, all.clone());
    let parts = [&samples[..1], &samples[1..3], &samples[3..]].map(|part| {
        let part = MicroBatch {
            step_tokens: all.step_tokens,
            step_masked: all.step_masked,
            ..whole(part)
        };
        gradients::report(&model, ALL, Blocks, part)
    });
    let mut added = MaskSums::default();
    parts
        .iter()
        .for_each(|(_, report)| added.merge(&report.masks));
    let parts = parts.map(|(gradients, report)| (gradients, report.sums));
    let (found, _) = sum_of(parts.into_iter());
    let error = difference(&found, &expected);
    assert!(error < 1e-5, "{error:e}");
    assert_eq!(added.pictures, sums.pictures);
    assert!((added.loss - sums.loss).abs() < 1e-5 * sums.loss);
    assert!((sums.mean().unwrap() * 3.0 - sums.loss).abs() < 1e-9);
}

#[test]
fn without_a_weight_masks_are_measured_and_nothing_else() {
    let frozen = Trains {
        llm: true,
        ..Trains::default()
    };
    for trains in [ALL, frozen] {
        let model = model(trains);
        let samples = labelled(&model);
        let (without, _) = step(&model, trains, Keep, whole(&bare(&samples)));
        let run = |weight| gradients::weighted(&model, trains, Keep, whole(&samples), weight);
        let (found, report) = run(0.0);
        assert!(found == without && report.masks.loss > 0.0);
        let (found, report) = run(MASK_WEIGHT);
        // Where nothing of the image side trains, the same.
        assert_eq!(found == without, trains == frozen);
        assert!(report.masks.loss > 0.0);
    }
}

/// The released extractor, whose M is that of its centres.
#[test]
fn the_released_extractor_is_guided_too() {
    let mut model = model(ALL);
    model.prototype = None;
    let (d_in, d_out) = (
        model.config.feature_width().unwrap(),
        model.config.llama.hidden_size,
    );
    let config = ProjectorConfig::Cluster(ClusterConfig::new().with_num_latents(5));
    model.mm_projector = config.init(d_in, d_out, &Default::default());
    let model = gradients::marked(model, ALL);
    let samples = labelled(&model);
    let (kept, sums) = step(&model, ALL, Keep, whole(&samples));
    let (again, _) = step(&model, ALL, Blocks, whole(&samples));
    let error = difference(&again, &kept);
    assert!(error < 1e-5 && sums.pictures == 3, "{error:e}");
    let (without, _) = step(&model, ALL, Keep, whole(&bare(&samples)));
    // What assigns is guided; the MLP behind it is not.
    for (part, guided) in [
        (".c.weight", true),
        (".v.weight", true),
        ("mlp.1.weight", false),
    ] {
        let path = kept
            .keys()
            .find(|path| path.contains("mm_projector") && path.ends_with(part));
        let path = path.expect(part);
        assert_eq!(kept[path] != without[path], guided, "{path}");
    }
}

#[test]
fn masks_without_prototypes_are_refused() {
    let mut model = model(ALL);
    model.prototype = None;
    let samples = labelled(&model);
    let error = gradients::failed(&model, ALL, Keep, whole(&samples));
    assert!(error.to_string().contains("model.masks"), "{error}");
}
