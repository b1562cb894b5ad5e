//! What becomes of one new token's queries, keys and values on a GPU, in a launch or two each.

use burn::tensor::{Tensor, backend::Backend};

use crate::kernels::gpu;
use crate::ops::attention::ScoreOptions;
use crate::ops::rope::Rotation;

/// Keys and values of a layer. `[batch, kv_heads, capacity, dim]` each
type Buffers<B> = [Tensor<B, 4>; 2];

/// Rotates queries `[batch, heads · dim]` and keys `[batch, kv_heads · dim]`, and puts keys and
/// values at token `past` of buffers `[batch, kv_heads, capacity, dim]`, which are not copied where
/// nothing else holds them. → queries `[batch, heads, 1, dim]` and the buffers; `Err` gives the
/// buffers back.
pub(crate) fn append<B: Backend>(
    [queries, keys, values]: [Tensor<B, 2>; 3],
    rotation: Option<&Rotation<B>>,
    buffers: Buffers<B>,
    past: usize,
) -> Result<(Tensor<B, 4>, Buffers<B>), Buffers<B>> {
    let append = gpu::Append {
        past,
        rotates: rotation.is_some(),
    };
    let mut inputs: Vec<_> = [queries, keys, values].map(gpu::float).into();
    inputs.extend(buffers.map(gpu::float));
    let angles = rotation.map(|rotation| rotation.angles().map(gpu::float));
    inputs.extend(angles.into_iter().flatten());
    match gpu::launch::<B, _>(&append, inputs).map(<[_; 3]>::try_from) {
        Ok(Ok([queries, keys, values])) => {
            Ok((gpu::tensor(queries), [keys, values].map(gpu::tensor)))
        }
        Ok(Err(_)) => unreachable!("the launch has three outputs"),
        Err(mut inputs) => {
            let (values, keys) = (inputs.swap_remove(4), inputs.swap_remove(3));
            Err([keys, values].map(gpu::tensor))
        }
    }
}

/// Attention of one query of each head `[batch, heads, 1, dim]` on the first `held` keys and values
/// of the buffers, all of which it sees. → `[batch, heads · dim]`
pub(crate) fn attend<B: Backend>(
    query: &Tensor<B, 4>,
    buffers: &[Tensor<B, 4>; 2],
    held: usize,
    options: ScoreOptions,
) -> Option<Tensor<B, 2>> {
    let root = (query.dims()[3] as f64).sqrt();
    let attend = gpu::Attend {
        keys: held,
        scale: options.scale.unwrap_or(1.0 / root) as f32,
        softcap: options.softcap.map(|cap| cap as f32),
    };
    let [keys, values] = buffers.clone();
    let inputs = [query.clone(), keys, values].map(gpu::float);
    let mut outputs = gpu::launch::<B, _>(&attend, inputs.into()).ok()?;
    Some(gpu::tensor(outputs.swap_remove(0)))
}
