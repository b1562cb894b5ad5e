//! Parts b and c on the CPU: outputs, and gradients of every parameter.

use burn::backend::Autodiff;
use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::AutodiffBackend};
use burn_flex::Flex;
use golden::assert_close;
use sq_llava_model::config::{ClusterConfig, PrototypeConfig};
use sq_llava_model::ops::params::{ParamPath, ParamVisitor, visit_params};

use crate::extractors::{self, VARIANTS, cluster, key, prototype, small_clusters};
use crate::tensors::{float, values};

type Ad = Autodiff<Flex>;

/// Gradients of all parameters that have one, by reference name.
struct Gradients<'a, B: AutodiffBackend> {
    gradients: &'a B::Gradients,
    found: Vec<(String, Vec<f32>)>,
}

impl<B: AutodiffBackend> ParamVisitor<B> for Gradients<'_, B> {
    fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            self.found.push((key(&path.dotted()), values(gradient)));
        }
    }
}

fn gradients<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    gradients: &B::Gradients,
) -> Vec<(String, Vec<f32>)> {
    let mut visitor = Gradients::<B> {
        gradients,
        found: vec![],
    };
    visit_params(module, &mut visitor);
    visitor.found
}

#[test]
fn golden_b_cluster_output() {
    extractors::cluster_output::<Flex>(&Default::default());
}

#[test]
fn golden_b_cluster_centers() {
    extractors::cluster_centers::<Flex>(&Default::default());
}

#[test]
fn golden_b_full_size() {
    extractors::cluster_full_size::<Flex>(&Default::default());
}

#[test]
fn golden_c_prototype_output() {
    extractors::prototype_output::<Flex>(&Default::default());
}

#[test]
fn golden_c_prototype_intermediates() {
    extractors::prototype_intermediates::<Flex>(&Default::default());
}

#[test]
fn golden_b_cluster_gradients() {
    for case in small_clusters() {
        let device = Default::default();
        let projector = cluster::<Ad>(&case, &device);
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

#[test]
fn golden_c_prototype_gradients() {
    for case in golden::cases("c_") {
        for (variant, softmax, scaled) in VARIANTS {
            let device = Default::default();
            let mut extractor = prototype::<Ad>(&case, softmax, scaled, &device);
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
