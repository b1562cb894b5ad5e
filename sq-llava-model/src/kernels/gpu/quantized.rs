//! Quantised weights in and outside a graph: Burn's `Autodiff` neither makes them nor multiplies with
//! them (0.21). A weight is made dense for each product, forward and back, and the graph keeps the
//! integers.

use std::any::Any;
use std::cell::RefCell;

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, QuantizedTensor};
use burn::tensor::quantization::QuantScheme;
use burn::tensor::{DType, Tensor};

use super::{
    Dense, Device, Differentiable, Done, Kernel, Launch, Plain, Task, Tracked, Untracked, float,
    matmul, on_gpu, tensor,
};
use crate::kernels::primitive::same;

/// A matrix in integers; `Err` gives the floats back where no GPU's backend has them.
pub(crate) fn quantize<B: Backend>(
    values: FloatTensor<B>,
    scheme: &QuantScheme,
) -> Result<QuantizedTensor<B>, FloatTensor<B>> {
    let task = Quantize {
        scheme,
        made: RefCell::new(None),
    };
    match on_gpu(&task, vec![values]) {
        Ok(_) => Ok(made::<B>(task.made)),
        Err(mut values) => Err(values.swap_remove(0)),
    }
}

/// The matrix on another device, if a GPU's backend has it.
pub(crate) fn moved<B: Backend>(
    weight: QuantizedTensor<B>,
    to: &B::Device,
) -> Option<QuantizedTensor<B>> {
    let task = Move {
        weight,
        to: to.clone(),
        made: RefCell::new(None),
    };
    let done = on_gpu::<FloatTensor<B>, _>(&task, vec![]);
    done.ok().map(|_| made::<B>(task.made))
}

/// A `QuantizedTensor` of some backend.
type Made = RefCell<Option<Box<dyn Any>>>;

fn made<B: Backend>(made: Made) -> QuantizedTensor<B> {
    match made.into_inner().map(<Box<dyn Any>>::downcast) {
        Some(Ok(made)) => *made,
        _ => unreachable!("a graph holds the same integers as the backend below it"),
    }
}

/// The matrix in floats, if a GPU's backend has it. `[out, in]`
pub(crate) fn dense<B: Backend>(
    weight: QuantizedTensor<B>,
    dtype: DType,
) -> Option<FloatTensor<B>> {
    let made = on_gpu::<FloatTensor<B>, _>(&Floats { weight, dtype }, vec![]);
    made.ok().map(|mut made| made.swap_remove(0))
}

/// `x Wᵀ`, computed in a dtype and returned in that of `x`; `Err` gives `x` back where no GPU's
/// backend has them, or it is one row. `[rows, columns]`, `[out, columns or more]` → `[rows, out]`
pub(crate) fn product<B: Backend>(
    x: FloatTensor<B>,
    weight: QuantizedTensor<B>,
    columns: usize,
    dtype: DType,
) -> Result<FloatTensor<B>, FloatTensor<B>> {
    let kernel = QuantizedProduct { columns, dtype };
    let first = |mut found: Vec<_>| found.swap_remove(0);
    on_gpu(&Product { weight, kernel }, vec![x])
        .map(first)
        .map_err(first)
}

struct Quantize<'a> {
    scheme: &'a QuantScheme,
    made: Made,
}

impl Task for Quantize<'_> {
    fn plain<D: Device>(&self, inputs: Vec<FloatTensor<D>>) -> Done<FloatTensor<D>> {
        for values in inputs {
            let made = D::quantize_dynamic(values, self.scheme);
            self.made.replace(Some(Box::new(made)));
        }
        Ok(vec![])
    }

    fn tracked<D: Device>(&self, inputs: Vec<Tracked<D>>) -> Done<Tracked<D>> {
        let inner = inputs.into_iter().map(|values| values.primitive).collect();
        let _ = self.plain::<D>(inner);
        Ok(vec![])
    }
}

/// `W` is a `QuantizedTensor`, the same one in a graph and outside, `C` the backend's device.
struct Move<W, C> {
    weight: W,
    to: C,
    made: Made,
}

impl<W: Clone + 'static, C: Clone + 'static> Task for Move<W, C> {
    fn plain<D: Device>(&self, inputs: Vec<FloatTensor<D>>) -> Done<FloatTensor<D>> {
        let weight = same::<W, QuantizedTensor<D>>(self.weight.clone());
        let (Ok(weight), Ok(to)) = (weight, same::<C, D::Device>(self.to.clone())) else {
            return Err(inputs);
        };
        let made = D::q_to_device(weight, &to);
        self.made.replace(Some(Box::new(made)));
        Ok(vec![])
    }

    fn tracked<D: Device>(&self, inputs: Vec<Tracked<D>>) -> Done<Tracked<D>> {
        match self.plain::<D>(vec![]) {
            Ok(_) => Ok(vec![]),
            Err(_) => Err(inputs),
        }
    }
}

/// `W` as in [`Move`].
struct Floats<W> {
    weight: W,
    dtype: DType,
}

impl<W: Clone + 'static> Task for Floats<W> {
    fn plain<D: Device>(&self, inputs: Vec<FloatTensor<D>>) -> Done<FloatTensor<D>> {
        // GPUs' backends have one type for integers and floats.
        match same::<W, FloatTensor<D>>(self.weight.clone()) {
            Ok(weight) => Untracked(&Dense { dtype: self.dtype }).plain::<D>(vec![weight]),
            Err(_) => Err(inputs),
        }
    }

    fn tracked<D: Device>(&self, _: Vec<Tracked<D>>) -> Done<Tracked<D>> {
        let constant = <Autodiff<D> as AutodiffBackend>::from_inner;
        let made = self.plain::<D>(vec![]).map_err(|_| vec![])?;
        Ok(made.into_iter().map(constant).collect())
    }
}

struct Product<W> {
    weight: W,
    kernel: QuantizedProduct,
}

impl<W: Clone + 'static> Product<W> {
    /// The weight as GPUs' backends know it.
    fn weight<D: Device>(&self) -> Option<FloatTensor<D>> {
        same(self.weight.clone()).ok()
    }
}

impl<W: Clone + 'static> Task for Product<W> {
    fn plain<D: Device>(&self, mut inputs: Vec<FloatTensor<D>>) -> Done<FloatTensor<D>> {
        let Some(weight) = self.weight::<D>() else {
            return Err(inputs);
        };
        inputs.push(weight);
        let done = Differentiable(self.kernel).plain::<D>(inputs);
        done.map_err(without_last)
    }

    fn tracked<D: Device>(&self, mut inputs: Vec<Tracked<D>>) -> Done<Tracked<D>> {
        let Some(weight) = self.weight::<D>() else {
            return Err(inputs);
        };
        inputs.push(<Autodiff<D> as AutodiffBackend>::from_inner(weight));
        let done = Differentiable(self.kernel).tracked::<D>(inputs);
        done.map_err(without_last)
    }
}

/// What came, without the weight behind it.
fn without_last<T>(mut inputs: Vec<T>) -> Vec<T> {
    inputs.pop();
    inputs
}

/// `x Wᵀ` of floats `[rows, columns]` and integers `[out, columns or more]`.
#[derive(Debug, Clone, Copy)]
struct QuantizedProduct {
    /// Width of the input; rows of the weight are filled up to whole blocks.
    columns: usize,
    /// What it is computed in.
    dtype: DType,
}

impl QuantizedProduct {
    /// `[out, columns]`
    fn dense<D: Device>(&self, weight: FloatTensor<D>) -> Tensor<D, 2> {
        let weight = D::launch_one(&Dense { dtype: self.dtype }, vec![weight]);
        let weight = tensor::<D, 2>(weight);
        match weight.dims()[1] == self.columns {
            true => weight,
            false => weight.slice_dim(1, 0..self.columns),
        }
    }
}

impl Kernel<2> for QuantizedProduct {
    fn accepts(&self, [x, weight]: &[Plain; 2]) -> bool {
        let integers = Dense { dtype: self.dtype }.accepts(std::slice::from_ref(weight));
        let matrices = x.shape.num_dims() == 2 && weight.shape.num_dims() == 2;
        let fits = x.width() == self.columns && weight.width() >= self.columns;
        // Behind the product of one row burn-fusion may misread the weight (`ops/product.rs`).
        integers && x.is_float() && matrices && fits && x.rows() > 1
    }

    fn forward<D: Device>(&self, [x, weight]: [FloatTensor<D>; 2]) -> FloatTensor<D> {
        let x = tensor::<D, 2>(x);
        let given = x.dtype();
        let made = matmul::product(x.cast(self.dtype), self.dense::<D>(weight).transpose());
        float(made.cast(given))
    }

    fn forward_saving<D: Device>(
        &self,
        [x, weight]: [FloatTensor<D>; 2],
        _: [bool; 2],
    ) -> (FloatTensor<D>, Vec<FloatTensor<D>>) {
        let saved = vec![weight.clone()];
        (self.forward::<D>([x, weight]), saved)
    }

    fn backward<D: Device>(
        &self,
        saved: Vec<FloatTensor<D>>,
        grad: FloatTensor<D>,
        [wanted, _]: [bool; 2],
    ) -> [Option<FloatTensor<D>>; 2] {
        let input = saved.into_iter().next().filter(|_| wanted).map(|weight| {
            let grad = tensor::<D, 2>(grad);
            let given = grad.dtype();
            let slope = matmul::product(grad.cast(self.dtype), self.dense::<D>(weight));
            float(slope.cast(given))
        });
        // Integers take no gradient.
        [input, None]
    }
}
