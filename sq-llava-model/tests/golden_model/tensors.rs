//! Golden tensors as Burn tensors, and modules filled from them.

use burn::module::{ModuleMapper, Param};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use golden::Tensors;

/// A float tensor of a golden file.
pub fn float<B: Backend, const D: usize>(
    tensors: &Tensors,
    name: &str,
    device: &B::Device,
) -> Tensor<B, D> {
    let data = TensorData::new(tensors.f32(name), tensors.shape(name));
    Tensor::from_data(data, device)
}

/// An integer tensor of a golden file.
pub fn int<B: Backend, const D: usize>(
    tensors: &Tensors,
    name: &str,
    device: &B::Device,
) -> Tensor<B, D, Int> {
    let data = TensorData::new(tensors.i64(name), tensors.shape(name));
    Tensor::from_data(data, device)
}

/// Values of a tensor.
pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor
        .into_data()
        .convert::<f32>()
        .to_vec()
        .expect("f32 values")
}

/// Fills a module's parameters by name from a closure and fails if one is not there.
pub struct Fill<F> {
    path: Vec<String>,
    source: F,
}

impl<F: FnMut(&str) -> TensorData> Fill<F> {
    pub fn new(source: F) -> Self {
        Self {
            path: vec![],
            source,
        }
    }
}

impl<B: Backend, F: FnMut(&str) -> TensorData> ModuleMapper<B> for Fill<F> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let data = (self.source)(&self.path.join("."));
        assert_eq!(data.shape, param.lazy_shape(), "{}", self.path.join("."));
        let id = param.id;
        let tensor = Tensor::from_data(data, &param.lazy_device());
        param.transform_for_load(tensor, id)
    }
}
