//! Checks of both prototype extractors against the reference (parts b and c), generic over the
//! backend.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData, backend::Backend};
use golden::{Case, assert_close};
use sq_llava_data::mix::splitmix64;
use sq_llava_model::config::{AssignmentSoftmax, ClusterConfig, PrototypeConfig};
use sq_llava_model::connector::cluster::ClusterProjector;
use sq_llava_model::connector::prototype::PrototypeExtractor;

use super::tensors::{Fill, float, int, values};

/// Our module paths to the reference's parameter names.
pub fn key(path: &str) -> String {
    path.replace("mlp.1.", "mlp.2.")
}

/// Cases of part b that hold a whole small module.
pub fn small_clusters() -> Vec<Case> {
    let cases: Vec<Case> = golden::cases("b_")
        .into_iter()
        .filter(|case| case.tensors.contains("x"))
        .collect();
    assert!(!cases.is_empty(), "no small case in part b");
    cases
}

pub fn cluster<B: Backend>(case: &Case, device: &B::Device) -> ClusterProjector<B> {
    let size = |name: &str| case.json[name].as_u64().expect(name) as usize;
    ClusterConfig::new()
        .with_num_latents(size("num_centers"))
        .with_num_iterations(size("iters"))
        .init::<B>(size("channels"), size("channels_out"), device)
        .map(&mut Fill::new(|path| {
            let name = format!("param.{}", key(path));
            TensorData::new(case.tensors.f32(&name), case.tensors.shape(&name))
        }))
}

pub fn cluster_output<B: Backend>(device: &B::Device) {
    for case in small_clusters() {
        let x = float::<B, 3>(&case.tensors, "x", device);
        let y = cluster::<B>(&case, device).forward(x);
        assert_close(&case.name, &values(y), &case.tensors.f64("y_f64"), 2e-4);
    }
}

pub fn cluster_centers<B: Backend>(device: &B::Device) {
    for case in small_clusters() {
        let x = float::<B, 3>(&case.tensors, "x", device);
        let centers = cluster::<B>(&case, device).centers(x);
        let reference = case.tensors.f64("centers_final");
        assert_close(&case.name, &values(centers), &reference, 2e-4);
    }
}

/// `u(seed, i)` of the reference's formula, in [−1, 1).
fn uniform(seed: u64, index: u64) -> f64 {
    (splitmix64((seed << 32).wrapping_add(index)) >> 40) as f64 / f64::from(1u32 << 23) - 1.0
}

/// At true size the hard assignment is rounding noise (f32 and f64 of the reference itself differ
/// for most tokens), so centres are compared, and rows with the assignment given.
pub fn cluster_full_size<B: Backend>(device: &B::Device) {
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
            .init::<B>(d_in, d_out, device)
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
        let x = Tensor::<B, 3>::from_data(TensorData::new(x, [1, length, d_in]), device);

        let centers = projector.centers(x.clone());
        let rows: Vec<i64> = case.json["centers_rows_idx"]
            .as_array()
            .expect("centers_rows_idx")
            .iter()
            .map(|row| row.as_i64().expect("row"))
            .collect();
        let rows = Tensor::<B, 1, burn::tensor::Int>::from_data(rows.as_slice(), device);
        let reference = case.tensors.f64("centers_f64_rows");
        assert_close(
            &case.name,
            &values(centers.select(1, rows)),
            &reference,
            2e-4,
        );

        let assignment = int::<B, 1>(&case.tensors, "assign_f64", device).unsqueeze::<2>();
        let y = projector.project(x, Some(assignment)).0;
        let rows = int::<B, 1>(&case.tensors, "rows", device);
        let reference = case.tensors.f64("y_rows_f64");
        assert_close(&case.name, &values(y.select(1, rows)), &reference, 2e-4);
    }
}

/// Names of the four variants and what they are.
pub const VARIANTS: [(&str, AssignmentSoftmax, bool); 4] = [
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

pub fn prototype<B: Backend>(
    case: &Case,
    softmax: AssignmentSoftmax,
    scaled: bool,
    device: &B::Device,
) -> PrototypeExtractor<B> {
    let shape = case.tensors.shape("C0");
    PrototypeConfig::new(shape[1])
        .with_num_centers(shape[0])
        .with_num_iterations(iterations(case))
        .with_softmax(softmax)
        .with_scaled(scaled)
        .init::<B>(device)
        .map(&mut Fill::new(|path| {
            let name = match path {
                "centers" => "C0".to_string(),
                other => format!("param.{other}"),
            };
            TensorData::new(case.tensors.f32(&name), case.tensors.shape(&name))
        }))
}

pub fn prototype_output<B: Backend>(device: &B::Device) {
    for case in golden::cases("c_") {
        for (variant, softmax, scaled) in VARIANTS {
            let z = float::<B, 3>(&case.tensors, "Z", device);
            let out = prototype::<B>(&case, softmax, scaled, device).forward(z);
            let reference = case.tensors.f64(&format!("{variant}.out_f64"));
            let what = format!("{} {variant}", case.name);
            assert_close(&what, &values(out), &reference, 2e-4);
        }
    }
}

pub fn prototype_intermediates<B: Backend>(device: &B::Device) {
    for case in golden::cases("c_") {
        for (variant, softmax, scaled) in VARIANTS {
            let z = float::<B, 3>(&case.tensors, "Z", device);
            let found = prototype::<B>(&case, softmax, scaled, device).extract(z);
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
