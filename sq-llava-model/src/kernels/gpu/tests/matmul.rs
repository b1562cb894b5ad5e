//! Products of many rows, forward and backward, in every layout that callers have.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor, TensorData};
use cubecl::wgpu::WgpuDevice;

use super::{Cpu, close, draw, dtypes, leaf, on_both, pass};
use crate::kernels::gpu::matmul;

/// Samples, heads, rows, inner width, columns.
type Sizes = [usize; 5];

const SIZES: [Sizes; 6] = [
    [1, 1, 1, 1, 1],
    [1, 1, 64, 16, 64],
    [1, 1, 65, 17, 3],
    [1, 1, 9, 200, 130],
    [3, 2, 70, 33, 66],
    [2, 3, 5, 64, 129],
];

/// How an operand lies.
#[derive(Debug, Clone, Copy)]
enum Lies {
    /// Rows one behind the other.
    Rows,
    /// Columns one behind the other.
    Columns,
    /// Heads of a row beside each other, as states are before attention.
    Beside,
    /// The first rows of more.
    First,
}

/// Of both operands.
const LAYOUTS: [[Lies; 2]; 5] = [
    [Lies::Rows, Lies::Rows],
    [Lies::Rows, Lies::Columns],
    [Lies::Columns, Lies::Rows],
    [Lies::Beside, Lies::First],
    [Lies::First, Lies::Beside],
];

impl Lies {
    /// Shape of the leaf for a product's operand `[samples, heads, rows, width]`.
    fn leaf(self, [samples, heads, rows, width]: [usize; 4]) -> [usize; 4] {
        match self {
            Self::Rows => [samples, heads, rows, width],
            Self::Columns => [samples, heads, width, rows],
            Self::Beside => [samples, rows, heads, width],
            Self::First => [samples, heads, rows + 5, width],
        }
    }

    /// The operand.
    fn view<B: AutodiffBackend>(self, leaf: Tensor<B, 4>, rows: usize) -> Tensor<B, 4> {
        match self {
            Self::Rows => leaf,
            Self::Columns => leaf.swap_dims(2, 3),
            Self::Beside => leaf.swap_dims(1, 2),
            Self::First => leaf.slice_dim(2, 0..rows),
        }
    }
}

/// Operands as leaves and as they enter the product.
type Operands<B> = ([Tensor<B, 4>; 2], [Tensor<B, 4>; 2]);

fn operands<B: AutodiffBackend>(
    data: &[TensorData; 2],
    lie: [Lies; 2],
    [_, _, rows, inner, _]: Sizes,
    dtype: DType,
    device: &B::Device,
) -> Operands<B> {
    let leaves = data
        .each_ref()
        .map(|data| leaf::<B, 4>(data, dtype, device));
    let [a, b] = leaves.clone();
    (leaves, [lie[0].view(a, rows), lie[1].view(b, inner)])
}

fn check<B: AutodiffBackend<Device = WgpuDevice>>(device: &WgpuDevice) {
    for (dtype, tolerance) in dtypes(device) {
        for sizes in SIZES {
            let [samples, heads, rows, inner, columns] = sizes;
            for [a, b] in LAYOUTS {
                let what = format!("{dtype:?}, {sizes:?}, {a:?}, {b:?}");
                let data = [
                    draw(a.leaf([samples, heads, rows, inner]), 1, 1.0),
                    draw(b.leaf([samples, heads, inner, columns]), 2, 1.0),
                ];
                let (leaves, [x, y]) = operands::<B>(&data, [a, b], sizes, dtype, device);
                let made = matmul(x, y).expect("a GPU's backend");
                let (found, slopes) = pass(made, &leaves);
                let rounded = leaves.map(|leaf| leaf.inner().cast(DType::F32).into_data());
                let cpu = &Default::default();
                let (leaves, [x, y]) = operands::<Cpu>(&rounded, [a, b], sizes, DType::F32, cpu);
                let (expected, expected_slopes) = pass(x.matmul(y), &leaves);
                close(&found, &expected, tolerance, &what);
                for (slope, expected) in slopes.iter().zip(&expected_slopes) {
                    close(slope, expected, tolerance, &format!("{what}, slope"));
                }
            }
        }
    }
}

#[test]
fn products_as_on_the_cpu() {
    on_both!(check);
}

/// Two and three dimensions, and what is no product of ours.
fn shapes<B: AutodiffBackend<Device = WgpuDevice>>(device: &WgpuDevice) {
    let ones = |shape: [usize; 3]| Tensor::<B, 3>::ones(shape, device);
    let made = matmul(ones([2, 9, 7]), ones([2, 7, 10])).expect("three dimensions");
    close(
        &made.into_data(),
        &TensorData::new(vec![7f32; 180], [2, 9, 10]),
        1e-6,
        "three",
    );
    let flat = |rows, columns| Tensor::<B, 2>::ones([rows, columns], device);
    let made = matmul(flat(9, 7), flat(7, 10)).expect("two dimensions");
    close(
        &made.into_data(),
        &TensorData::new(vec![7f32; 90], [9, 10]),
        1e-6,
        "two",
    );
    // A sample for all is the backend's.
    assert!(matmul(ones([2, 9, 7]), ones([1, 7, 10])).is_err());
}

#[test]
fn products_of_matrices_and_of_stacks() {
    on_both!(shapes);
}
