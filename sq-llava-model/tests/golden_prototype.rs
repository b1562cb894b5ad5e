//! Parts b (released extractor) and c (paper's extractor) of the reference data.

mod support;

use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData, backend::AutodiffBackend, backend::Backend};
use burn_flex::Flex;
use golden::{Case, assert_close};
use sq_llava_model::cluster::ClusterProjector;
use sq_llava_model::config::{AssignmentSoftmax, ClusterConfig, PrototypeConfig};
use sq_llava_model::prototype::PrototypeExtractor;
use support::{Fill, float, int, values};

type Ad = Autodiff<Flex>;

/// Our module paths to the reference's parameter names.
fn key(path: &str) -> String {
    path.replace("mlp.1.", "mlp.2.")
}

/// Gradients of all parameters that have one, by reference name.
struct Gradients<'a, B: AutodiffBackend> {
    path: Vec<String>,
    gradients: &'a B::Gradients,
    found: Vec<(String, Vec<f32>)>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Gradients<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            self.found
                .push((key(&self.path.join(".")), values(gradient)));
        }
    }
}

fn gradients<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    gradients: &B::Gradients,
) -> Vec<(String, Vec<f32>)> {
    let mut visitor = Gradients::<B> {
        path: vec![],
        gradients,
        found: vec![],
    };
    module.visit(&mut visitor);
    visitor.found
}

/// Cases of part b that hold a whole small module.
fn small_clusters() -> Vec<Case> {
    let cases: Vec<Case> = golden::cases("b_")
        .into_iter()
        .filter(|case| case.tensors.contains("x"))
        .collect();
    assert!(!cases.is_empty(), "no small case in part b");
    cases
}

fn cluster<B: Backend>(case: &Case) -> ClusterProjector<B> {
    let size = |name: &str| case.json[name].as_u64().expect(name) as usize;
    ClusterConfig::new()
        .with_num_latents(size("num_centers"))
        .with_num_iterations(size("iters"))
        .init::<B>(size("channels"), size("channels_out"), &Default::default())
        .map(&mut Fill::new(|path| {
            let name = format!("param.{}", key(path));
            TensorData::new(case.tensors.f32(&name), case.tensors.shape(&name))
        }))
}

#[test]
fn golden_b_cluster_output() {
    for case in small_clusters() {
        let x = float::<Flex, 3>(&case.tensors, "x", &Default::default());
        let y = cluster::<Flex>(&case).forward(x);
        assert_close(&case.name, &values(y), &case.tensors.f64("y_f64"), 2e-4);
    }
}

#[test]
fn golden_b_cluster_centers() {
    for case in small_clusters() {
        let x = float::<Flex, 3>(&case.tensors, "x", &Default::default());
        let centers = cluster::<Flex>(&case).centers(x);
        let reference = case.tensors.f64("centers_final");
        assert_close(&case.name, &values(centers), &reference, 2e-4);
    }
}

#[test]
fn golden_b_cluster_gradients() {
    for case in small_clusters() {
        let device = Default::default();
        let projector = cluster::<Ad>(&case);
        let x = float::<Ad, 3>(&case.tensors, "x", &device).require_grad();
        let w = float::<Ad, 3>(&case.tensors, "w", &device);
        let numel = w.shape().num_elements() as f64;
        let loss = (projector.forward(x.clone()) * w).sum().div_scalar(numel);
        let value = f64::from(loss.clone().into_scalar());
        let expected = case.json["loss_value"].as_f64().expect("loss_value");
        assert!((value - expected).abs() < 1e-5, "{}: {value}", case.name);

        let grads = loss.backward();
        let grad_x = x.grad(&grads).expect("gradient of x");
        let reference = case.tensors.f64("grad_x");
        assert_close(&case.name, &values(grad_x), &reference, 1e-3);
        let found = gradients(&projector, &grads);
        let expected: Vec<&str> = case
            .tensors
            .names()
            .filter_map(|name| name.strip_prefix("grad."))
            .collect();
        assert_eq!(found.len(), expected.len(), "ln_1 gets no gradient");
        for (name, gradient) in found {
            let reference = case.tensors.f64(&format!("grad.{name}"));
            assert_close(
                &format!("{} {name}", case.name),
                &gradient,
                &reference,
                1e-3,
            );
        }
    }
}

fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `u(seed, i)` of the reference's formula, in [−1, 1).
fn uniform(seed: u64, index: u64) -> f64 {
    (splitmix64((seed << 32).wrapping_add(index)) >> 40) as f64 / f64::from(1u32 << 23) - 1.0
}

/// At true size the hard assignment is rounding noise (f32 and f64 of the reference itself differ
/// for most tokens), so centres are compared, and rows with the assignment given.
#[test]
fn golden_b_full_size() {
    let device = Default::default();
    let cases: Vec<Case> = golden::cases("b_")
        .into_iter()
        .filter(|case| case.json.get("spec").is_some())
        .collect();
    assert!(!cases.is_empty(), "no case of true size in part b");
    for case in cases {
        let spec = &case.json["spec"];
        let shape_of = |name: &str| -> Vec<usize> {
            let shape = spec[name]["shape"].as_array().expect(name);
            shape
                .iter()
                .map(|n| n.as_u64().expect(name) as usize)
                .collect()
        };
        let mlp = shape_of("mlp.0.weight");
        let (d_out, d_in) = (mlp[0], mlp[1]);
        let length = case.tensors.shape("assign_f64")[0];
        // "1024->4096,K=256,L=576,T=2"
        let size = case.json["size"].as_str().expect("size");
        let number = |key: &str| -> usize {
            let value = size.split(',').find_map(|part| part.strip_prefix(key));
            value.and_then(|v| v.parse().ok()).expect(key)
        };
        let constant = |name: &str| case.json[name].as_f64().expect(name) as f32;
        let projector = ClusterConfig::new()
            .with_num_latents(number("K="))
            .with_num_iterations(number("T="))
            .init::<Flex>(d_in, d_out, &device)
            .map(&mut Fill::new(|path| {
                let name = key(path);
                if name.starts_with("sim_") {
                    return TensorData::new(vec![constant(&name)], [1, 1, 1]);
                }
                if let Some(part) = name.strip_prefix("ln_1.") {
                    let value = if part == "weight" { 1.0f32 } else { 0.0 };
                    return TensorData::new(vec![value; d_in], [d_in]);
                }
                let shape = shape_of(&name);
                let seed = spec[&name]["seed"].as_u64().expect("seed");
                let amp = spec[&name]["amp"].as_f64().expect("amp");
                let numel = shape.iter().product::<usize>() as u64;
                let data: Vec<f32> = (0..numel)
                    .map(|i| (amp * uniform(seed, i)) as f32)
                    .collect();
                TensorData::new(data, shape)
            }));
        let seed = |name: &str| case.json["x"][name].as_u64().expect(name);
        let (s0, s1) = (seed("s0"), seed("s1"));
        let x: Vec<f32> = (0..(length * d_in) as u64)
            .map(|i| (1.5 * uniform(s0, i)) as f32 + uniform(s1, i % d_in as u64) as f32)
            .collect();
        let x = Tensor::<Flex, 3>::from_data(TensorData::new(x, [1, length, d_in]), &device);

        let centers = projector.centers(x.clone());
        let rows: Vec<i64> = case.json["centers_rows_idx"]
            .as_array()
            .expect("centers_rows_idx")
            .iter()
            .map(|row| row.as_i64().expect("row"))
            .collect();
        let rows = Tensor::<Flex, 1, burn::tensor::Int>::from_data(rows.as_slice(), &device);
        let reference = case.tensors.f64("centers_f64_rows");
        assert_close(
            &case.name,
            &values(centers.select(1, rows)),
            &reference,
            2e-4,
        );

        let assignment = int::<Flex, 1>(&case.tensors, "assign_f64", &device).unsqueeze::<2>();
        let y = projector.forward_assigned(x, Some(assignment));
        let rows = int::<Flex, 1>(&case.tensors, "rows", &device);
        let reference = case.tensors.f64("y_rows_f64");
        assert_close(&case.name, &values(y.select(1, rows)), &reference, 2e-4);
    }
}

const VARIANTS: [(&str, AssignmentSoftmax, bool); 4] = [
    ("clusters_unscaled", AssignmentSoftmax::Clusters, false),
    ("clusters_scaled", AssignmentSoftmax::Clusters, true),
    ("tokens_unscaled", AssignmentSoftmax::Tokens, false),
    ("tokens_scaled", AssignmentSoftmax::Tokens, true),
];

fn iterations(case: &Case) -> usize {
    ["T", "iters", "num_iterations"]
        .iter()
        .find_map(|name| case.json[*name].as_u64())
        .unwrap_or_else(|| panic!("{} does not say T", case.name)) as usize
}

fn prototype<B: Backend>(
    case: &Case,
    softmax: AssignmentSoftmax,
    scaled: bool,
) -> PrototypeExtractor<B> {
    let shape = case.tensors.shape("C0");
    PrototypeConfig::new(shape[1])
        .with_num_centers(shape[0])
        .with_num_iterations(iterations(case))
        .with_softmax(softmax)
        .with_scaled(scaled)
        .init::<B>(&Default::default())
        .map(&mut Fill::new(|path| {
            let name = match path {
                "centers" => "C0".to_string(),
                other => format!("param.{other}"),
            };
            TensorData::new(case.tensors.f32(&name), case.tensors.shape(&name))
        }))
}

#[test]
fn golden_c_prototype_output() {
    for case in golden::cases("c_") {
        for (variant, softmax, scaled) in VARIANTS {
            let z = float::<Flex, 3>(&case.tensors, "Z", &Default::default());
            let out = prototype::<Flex>(&case, softmax, scaled).forward(z);
            let reference = case.tensors.f64(&format!("{variant}.out_f64"));
            let what = format!("{} {variant}", case.name);
            assert_close(&what, &values(out), &reference, 2e-4);
        }
    }
}

#[test]
fn golden_c_prototype_intermediates() {
    for case in golden::cases("c_") {
        for (variant, softmax, scaled) in VARIANTS {
            let z = float::<Flex, 3>(&case.tensors, "Z", &Default::default());
            let found = prototype::<Flex>(&case, softmax, scaled).extract(z);
            for (name, tensor) in [
                ("C_final", found.centers),
                ("M_last", found.assignment),
                ("sim", found.similarity),
            ] {
                let reference = case.tensors.f64(&format!("{variant}.{name}"));
                let what = format!("{} {variant} {name}", case.name);
                assert_close(&what, &values(tensor), &reference, 2e-4);
            }
        }
    }
}

#[test]
fn golden_c_prototype_gradients() {
    for case in golden::cases("c_") {
        for (variant, softmax, scaled) in VARIANTS {
            let device = Default::default();
            let mut extractor = prototype::<Ad>(&case, softmax, scaled);
            extractor.centers = extractor.centers.set_require_grad(true);
            let z = float::<Ad, 3>(&case.tensors, "Z", &device).require_grad();
            let w = float::<Ad, 3>(&case.tensors, "w", &device);
            let numel = w.shape().num_elements() as f64;
            let loss = (extractor.forward(z.clone()) * w).sum().div_scalar(numel);
            let grads = loss.backward();
            let mut found = gradients(&extractor, &grads);
            found.push(("Z".into(), values(z.grad(&grads).expect("gradient of Z"))));
            let prefix = format!("{variant}.grad.");
            let expected = case.tensors.names().filter(|n| n.starts_with(&prefix));
            assert_eq!(found.len(), expected.count(), "{}", case.name);
            for (name, gradient) in found {
                let name = name.replace("centers", "C0");
                let reference = case.tensors.f64(&format!("{prefix}{name}"));
                let what = format!("{} {prefix}{name}", case.name);
                // A key's bias moves all scores of a token alike: under the softmax over tokens
                // its gradient is zero but for rounding.
                let size = reference.iter().map(|v| v.abs()).fold(0.0, f64::max);
                if size < 1e-7 {
                    assert!(gradient.iter().all(|v| v.abs() < 1e-6), "{what}");
                } else {
                    assert_close(&what, &gradient, &reference, 1e-3);
                }
            }
        }
    }
}

#[test]
fn zero_tokens_have_finite_outputs_and_gradients() {
    let device = Default::default();
    let extractor = PrototypeConfig::new(8)
        .with_num_centers(4)
        .init::<Ad>(&device);
    let projector = ClusterConfig::new()
        .with_num_latents(4)
        .init::<Ad>(8, 6, &device);
    let z = Tensor::<Ad, 3>::zeros([1, 5, 8], &device).require_grad();
    let out = projector.forward(extractor.forward(z.clone()));
    assert!(values(out.clone()).iter().all(|v| v.is_finite()));
    let grads = out.square().sum().backward();
    let grad = values(z.grad(&grads).expect("gradient of Z"));
    assert!(grad.iter().all(|v| v.is_finite()));
    for (name, gradient) in gradients(&extractor, &grads) {
        assert!(gradient.iter().all(|v| v.is_finite()), "{name}");
    }
}
