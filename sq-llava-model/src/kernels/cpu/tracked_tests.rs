//! A kernel as a node of the graph, while other graphs end.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn_flex::{Flex, FlexTensor};

use super::{Kernel, float, run, tensor};

type Ad = Autodiff<Flex>;

/// Gives its input back. While it computes, the backward pass of another graph ends.
#[derive(Debug)]
struct Slow;

impl Kernel<1> for Slow {
    type Saved = ();

    fn forward(&self, [input]: [FlexTensor; 1]) -> FlexTensor {
        input
    }

    fn forward_saving(&self, inputs: [FlexTensor; 1], _wanted: [bool; 1]) -> (FlexTensor, ()) {
        let other = Tensor::<Ad, 1>::ones([1], &Default::default()).require_grad();
        (other.clone() * other).sum().backward();
        (self.forward(inputs), ())
    }

    fn backward(&self, (): (), grad: FlexTensor, _wanted: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [Some(grad)]
    }
}

#[test]
fn the_end_of_another_graph_takes_no_gradient() {
    let device = Default::default();
    let leaf = Tensor::<Ad, 1>::from_data([3.0, 4.0], &device).require_grad();
    // Twice: after the first backward pass the graph no longer knows the leaf.
    for _ in 0..2 {
        let square = leaf.clone() * leaf.clone();
        let output = run::<Ad, _, 1>(Slow, [float(square)]).expect("flex's tensors");
        let gradients = tensor::<Ad, 1>(output).sum().backward();
        let gradient = leaf.grad(&gradients).expect("a gradient of the leaf");
        gradient.into_data().assert_eq(&[6.0f32, 8.0].into(), true);
    }
}
