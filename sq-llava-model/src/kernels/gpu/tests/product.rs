//! Products of a few rows, against sums in f64 of what the weights hold.

use burn::tensor::backend::Backend;
use burn::tensor::quantization::{QuantLevel, QuantScheme, QuantStore, QuantValue};
use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive};
use cubecl::wgpu::WgpuDevice;

use super::{Fused, Plain, close, draw, dtypes};
use crate::kernels::activation::Activation;
use crate::kernels::gpu::{Dense, Normed, RowProduct, float, launch, tensor};
use crate::kernels::primitive::same;

type Primitive<B> = burn::tensor::ops::FloatTensor<B>;

/// A weight on the device and its values.
struct Weight<B: Backend> {
    primitive: Primitive<B>,
    values: Vec<f64>,
}

fn doubles(data: &TensorData) -> Vec<f64> {
    data.iter().collect()
}

fn dense<B: Backend>(
    [rows, width]: [usize; 2],
    seed: u64,
    dtype: DType,
    device: &B::Device,
) -> Weight<B> {
    let values = Tensor::<B, 2>::from_data(draw([rows, width], seed, 0.5), (device, dtype));
    Weight {
        values: doubles(&values.clone().cast(DType::F32).into_data()),
        primitive: float(values),
    }
}

fn packed<B: Backend>(
    shape: [usize; 2],
    seed: u64,
    value: QuantValue,
    device: &B::Device,
) -> Weight<B> {
    let scheme = QuantScheme::default()
        .with_value(value)
        .with_level(QuantLevel::block([32]))
        .with_store(QuantStore::PackedU32(0));
    let values = Tensor::<B, 2>::from_data(draw(shape, seed, 0.5), device);
    let quantised = values.quantize_dynamic(&scheme);
    let values = doubles(&quantised.clone().dequantize().into_data());
    let TensorPrimitive::QFloat(quantised) = quantised.into_primitive() else {
        panic!("a quantised tensor")
    };
    let Ok(primitive) = same(quantised) else {
        panic!("of one type with floats")
    };
    Weight { primitive, values }
}

/// What is expected of rows `x` whose width is that of the weight.
fn times(x: &[f64], weight: &[f64], width: usize) -> Vec<f64> {
    let dot = |row: &[f64], column: &[f64]| row.iter().zip(column).map(|(a, b)| a * b).sum();
    let rows = x.chunks_exact(width);
    rows.flat_map(|row| {
        weight
            .chunks_exact(width)
            .map(move |column| dot(row, column))
    })
    .collect()
}

fn normalised(x: &[f64], weight: &[f64], normed: Normed) -> Vec<f64> {
    let width = weight.len();
    let rows = x.chunks_exact(width).flat_map(|row| {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let factor = 1.0 / (mean + normed.eps).sqrt();
        let one = if normed.offset { 1.0 } else { 0.0 };
        row.iter()
            .zip(weight)
            .map(move |(x, w)| x * factor * (w + one))
    });
    rows.collect()
}

fn check<B: Backend>(
    product: &RowProduct,
    inputs: Vec<Primitive<B>>,
    expected: &[Vec<f64>],
    what: &str,
) {
    let Ok(outputs) = launch::<B, _>(product, inputs) else {
        panic!("{what}: the kernel does not know these")
    };
    assert_eq!(outputs.len(), expected.len(), "{what}");
    for (output, expected) in outputs.into_iter().zip(expected) {
        let found = tensor::<B, 2>(output).cast(DType::F32).into_data();
        let expected = TensorData::new(expected.clone(), found.shape.clone());
        close(&found, &expected, 2e-5, what);
    }
}

/// All forms with weights that `make` makes of a shape and a seed.
fn forms<B: Backend>(
    make: impl Fn([usize; 2], u64) -> Weight<B>,
    (rows, width, columns): (usize, usize, usize),
    device: &B::Device,
    what: &str,
) {
    let what = format!("{what}, {rows} × {width} × {columns}");
    let data = draw([rows, width], 1, 2.0);
    let x = doubles(&data);
    let input = || float(Tensor::<B, 2>::from_data(data.clone(), device));
    let [a, b, c] = [columns, columns + 3, columns].map(|n| make([n, width], n as u64));
    let other = make([columns, width], 7);
    let plain = RowProduct::plain();
    check::<B>(
        &plain,
        vec![input(), a.primitive.clone()],
        &[times(&x, &a.values, width)],
        &what,
    );

    let bias = draw([1, columns], 4, 1.0);
    let residual = draw([rows, columns], 5, 1.0);
    let whole = RowProduct {
        bias: true,
        residual: true,
        ..plain.clone()
    };
    let mut sums = times(&x, &a.values, width);
    let (biases, residuals) = (doubles(&bias), doubles(&residual));
    for (at, sum) in sums.iter_mut().enumerate() {
        *sum += biases[at % columns] + residuals[at];
    }
    let bias = float(Tensor::<B, 2>::from_data(bias, device).squeeze_dim::<1>(0));
    let residual = float(Tensor::<B, 2>::from_data(residual, device));
    check::<B>(
        &whole,
        vec![input(), a.primitive.clone(), bias, residual],
        &[sums],
        &what,
    );

    for offset in [false, true] {
        let normed = Normed { eps: 1e-2, offset };
        let scale = draw([1, width], 6, 1.0);
        let normal = normalised(&x, &doubles(&scale), normed);
        let scale = || float(Tensor::<B, 2>::from_data(scale.clone(), device).squeeze_dim::<1>(0));
        let several = RowProduct {
            weights: 3,
            norm: Some(normed),
            ..plain.clone()
        };
        let weights = [&a, &b, &c];
        let inputs = std::iter::once(input())
            .chain(weights.map(|weight| weight.primitive.clone()))
            .chain([scale()])
            .collect();
        let expected = weights.map(|weight| times(&normal, &weight.values, width));
        check::<B>(&several, inputs, &expected, &what);

        let gated = RowProduct {
            weights: 2,
            norm: Some(normed),
            gate: Some(Activation::Silu),
            ..plain.clone()
        };
        let inputs = vec![
            input(),
            a.primitive.clone(),
            other.primitive.clone(),
            scale(),
        ];
        let gates = times(&normal, &a.values, width).into_iter();
        let ups = times(&normal, &other.values, width);
        let products = gates
            .zip(ups)
            .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up);
        check::<B>(&gated, inputs, &[products.collect()], &what);
    }
}

fn on<B: Backend<Device = WgpuDevice>>(device: &WgpuDevice) {
    for (dtype, _) in dtypes(device) {
        let make = |shape, seed| dense::<B>(shape, seed, dtype, device);
        for shape in [(1, 64, 33), (3, 129, 5), (5, 512, 9), (8, 1024, 40)] {
            forms::<B>(make, shape, device, &format!("{dtype:?}"));
        }
    }
    for value in [QuantValue::Q8S, QuantValue::Q4S] {
        let make = |shape, seed| packed::<B>(shape, seed, value, device);
        for shape in [(1, 64, 33), (2, 1056, 40), (8, 96, 5)] {
            forms::<B>(make, shape, device, &format!("{value:?}"));
        }
    }
}

#[test]
fn products_of_a_few_rows_are_sums() {
    if let Some(device) = super::device() {
        on::<Plain>(&device);
        on::<Fused>(&device);
    }
}

/// As Burn makes floats of the integers in f32, and that rounded once.
fn floats<B: Backend<Device = WgpuDevice>>(device: &WgpuDevice) {
    for (dtype, _) in dtypes(device) {
        for value in [QuantValue::Q8S, QuantValue::Q4S] {
            for shape in [[1, 32], [7, 96], [40, 1056]] {
                let weight = packed::<B>(shape, 3, value, device);
                let made = launch::<B, _>(&Dense { dtype }, vec![weight.primitive]).ok();
                let made = made.expect("the kernel knows these").swap_remove(0);
                let expected: Tensor<B, 2> =
                    Tensor::from_data(TensorData::new(weight.values, shape), (device, dtype));
                let [found, expected] = [tensor(made), expected].map(Tensor::into_data);
                assert_eq!(found, expected, "{value:?}, {shape:?}");
            }
        }
    }
}

#[test]
fn integers_become_floats() {
    if let Some(device) = super::device() {
        floats::<Plain>(&device);
        floats::<Fused>(&device);
    }
}

/// Where planes have no fixed size.
#[test]
fn lines_need_be_no_planes() {
    use crate::kernels::gpu::Launch;
    let Some(device) = super::device() else {
        return;
    };
    for (rows, width, columns) in [(1, 64, 9), (5, 1000, 17)] {
        let x = draw([rows, width], 1, 2.0);
        let weight = dense::<Plain>([columns, width], 2, DType::F32, &device);
        let scale = draw([1, width], 3, 1.0);
        let normed = Normed {
            eps: 1e-5,
            offset: false,
        };
        let product = RowProduct {
            norm: Some(normed),
            ..RowProduct::plain()
        };
        let on = |data: &TensorData| float(Tensor::<Plain, 2>::from_data(data.clone(), &device));
        let inputs = vec![on(&x), weight.primitive, on(&scale)];
        assert!(
            product.accepts(
                &inputs
                    .iter()
                    .map(crate::kernels::gpu::Plain::of)
                    .collect::<Vec<_>>()
            )
        );
        let found = product.launch_with(inputs, 32, false).swap_remove(0);
        let found = tensor::<Plain, 2>(found).into_data();
        let normal = normalised(&doubles(&x), &doubles(&scale), normed);
        let expected = times(&normal, &weight.values, width);
        close(
            &found,
            &TensorData::new(expected, [rows, columns]),
            2e-5,
            "lines",
        );
    }
}
