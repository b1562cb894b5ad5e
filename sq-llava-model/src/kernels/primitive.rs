//! Tensors of an unknown backend as those of a known one.

use std::any::Any;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

/// `value` as a `T` if it is one.
pub(crate) fn same<A: 'static, T: 'static>(value: A) -> Result<T, A> {
    let mut slot = Some(value);
    let found = (&mut slot as &mut dyn Any).downcast_mut::<Option<T>>();
    match (found.and_then(Option::take), slot) {
        (Some(found), _) => Ok(found),
        (None, Some(value)) => Err(value),
        // The slot was full, and only a found value leaves it.
        (None, None) => unreachable!("a value is either taken or still there"),
    }
}

/// The primitive of a float tensor.
pub(crate) fn float<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// A float tensor of its primitive.
pub(crate) fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}
