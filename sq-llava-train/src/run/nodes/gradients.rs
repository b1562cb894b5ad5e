//! Gradients in a row: those of what trains, in an order that is the model's own, cut into buckets.
//! Ids are random in each process.

use std::collections::HashMap;
use std::ops::Range;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor, TensorData};

use crate::error::TrainError;
use crate::step::groups::ParamGroups;

/// A model, and which of its parameters train.
pub(crate) struct Trainable<'a, M> {
    pub model: &'a M,
    pub groups: &'a ParamGroups,
}

/// A trainable parameter in the row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    id: ParamId,
    shape: Vec<usize>,
    /// How much of the backward pass is behind it once its gradient is known.
    stage: usize,
}

/// Paths and shapes of all trainable parameters, as a visitor meets them.
pub(super) fn names<B: AutodiffBackend, M: Module<B>>(trainable: &Trainable<'_, M>) -> String {
    let mut found = String::new();
    visit_shapes(trainable, |id, shape| {
        let path = trainable.groups.path(id).unwrap_or_default();
        found += &format!("{path} {shape:?}\n");
    });
    found
}

fn visit_shapes<B: AutodiffBackend, M: Module<B>>(
    trainable: &Trainable<'_, M>,
    each: impl FnMut(ParamId, Vec<usize>),
) {
    struct Shapes<'a, F> {
        groups: &'a ParamGroups,
        each: F,
    }
    impl<B: AutodiffBackend, F: FnMut(ParamId, Vec<usize>)> ModuleVisitor<B> for Shapes<'_, F> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if self.groups.group(param.id).is_some() {
                (self.each)(param.id, param.lazy_shape().to_vec());
            }
        }
    }
    trainable.model.visit(&mut Shapes {
        groups: trainable.groups,
        each,
    });
}

/// All trainable parameters in the order in which a backward pass finishes with them, and the
/// buckets in which they are exchanged. The same on every node.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    entries: Vec<Entry>,
    buckets: Vec<Range<usize>>,
}

impl Order {
    /// `stages` says of parameters whose gradient is known early how early: 1 for those of the
    /// first layers that the backward pass is done with, 2 for the next ones. All others are known
    /// at its end. A bucket has at most `limit` values, or one parameter.
    pub(crate) fn new<B: AutodiffBackend, M: Module<B>>(
        trainable: &Trainable<'_, M>,
        stages: &HashMap<ParamId, usize>,
        limit: usize,
    ) -> Self {
        let mut entries = Vec::new();
        visit_shapes(trainable, |id, shape| {
            let stage = stages.get(&id).copied().unwrap_or(usize::MAX);
            entries.push(Entry { id, shape, stage });
        });
        // Stable: within a stage as the model has them.
        entries.sort_by_key(|entry| entry.stage);
        // What is known early waits for nothing that is known at the end.
        let early = entries.partition_point(|entry| entry.stage < usize::MAX);
        let sizes: Vec<usize> = entries.iter().map(Entry::values).collect();
        let mut all = buckets(&sizes[..early], limit);
        let rest = buckets(&sizes[early..], limit).into_iter();
        all.extend(rest.map(|bucket| bucket.start + early..bucket.end + early));
        Self {
            buckets: all,
            entries,
        }
    }

    /// How many buckets there are.
    pub(super) fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Buckets, from the first on, whose gradients are known after a stage of the backward pass.
    pub(super) fn known_after(&self, stage: usize) -> usize {
        let last = |bucket: &Range<usize>| self.entries[bucket.end - 1].stage;
        self.buckets.partition_point(|bucket| last(bucket) <= stage)
    }

    fn members(&self, bucket: usize) -> &[Entry] {
        &self.entries[self.buckets[bucket].clone()]
    }
}

impl Entry {
    fn values(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Which parameters of these sizes go together: as many as have at most `limit` values, at least
/// one.
fn buckets(sizes: &[usize], limit: usize) -> Vec<Range<usize>> {
    let mut buckets: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (index, values) in sizes.iter().enumerate() {
        match buckets.last_mut() {
            Some(last) if filled + values <= limit => last.end = index + 1,
            _ => {
                buckets.push(index..index + 1);
                filled = 0;
            }
        }
        filled += values;
    }
    buckets
}

/// A bucket's gradients, taken out of `grads`, those of each parameter added up, and put one after
/// the other on the host; zeros stand for one that is missing. Behind them stands for each
/// parameter 1 if it has a gradient, else 0.
pub(super) fn take<B: AutodiffBackend, M: Module<B>>(
    trainable: &Trainable<'_, M>,
    order: &Order,
    bucket: usize,
    grads: [&mut GradientsParams; 2],
) -> Result<Vec<f32>, TrainError> {
    struct Take<'a, B: AutodiffBackend> {
        places: HashMap<ParamId, usize>,
        grads: [&'a mut GradientsParams; 2],
        found: Vec<Option<Tensor<B::InnerBackend, 1>>>,
        has: Vec<f32>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Take<'_, B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let Some(&place) = self.places.get(&param.id) else {
                return;
            };
            let values = param.lazy_shape().num_elements();
            let parts = self.grads.each_mut().map(|grads| {
                let part = grads.remove::<B::InnerBackend, D>(param.id)?;
                Some(part.cast(DType::F32))
            });
            let grad = match parts {
                [Some(a), Some(b)] => Some(a + b),
                [a, b] => a.or(b),
            };
            self.has[place] = if grad.is_some() { 1.0 } else { 0.0 };
            let device = param.lazy_device();
            let zeros = || Tensor::zeros([values], (&device, DType::F32));
            self.found[place] = Some(grad.map_or_else(zeros, |grad| grad.reshape([values])));
        }
    }
    let members = order.members(bucket);
    let mut take = Take::<B> {
        places: places(members),
        grads,
        found: vec![None; members.len()],
        has: vec![0.0; members.len()],
    };
    trainable.model.visit(&mut take);
    let found: Vec<_> = take.found.into_iter().flatten().collect();
    if found.len() < members.len() {
        return Err(TrainError::Internal("a parameter is gone".into()));
    }
    // One transfer from the device for all of them.
    let values = Tensor::cat(found, 0).into_data().into_vec::<f32>();
    let mut values =
        values.map_err(|e| TrainError::Internal(format!("the gradients are no f32: {e:?}")))?;
    values.extend(take.has);
    Ok(values)
}

/// Puts the sum of what [`take`] took on every node into `grads`, for the parameters of which any
/// node has a gradient.
pub(super) fn put<B: AutodiffBackend, M: Module<B>>(
    trainable: &Trainable<'_, M>,
    order: &Order,
    bucket: usize,
    values: &[f32],
    grads: &mut GradientsParams,
) {
    struct Put<'a> {
        values: HashMap<ParamId, &'a [f32]>,
        grads: &'a mut GradientsParams,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Put<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let Some(values) = self.values.get(&param.id) else {
                return;
            };
            let data = TensorData::new(values.to_vec(), param.lazy_shape());
            let options = (&param.lazy_device(), DType::F32);
            let grad = Tensor::<B::InnerBackend, D>::from_data(data, options);
            self.grads.register(param.id, grad);
        }
    }
    let members = order.members(bucket);
    let (mut rest, has) = values.split_at(values.len() - members.len());
    let mut wanted = HashMap::new();
    for (entry, has) in members.iter().zip(has) {
        let (own, behind) = rest.split_at(entry.values());
        rest = behind;
        if *has > 0.0 {
            wanted.insert(entry.id, own);
        }
    }
    trainable.model.visit(&mut Put {
        values: wanted,
        grads,
    });
}

/// The place of each of a bucket's parameters.
fn places(members: &[Entry]) -> HashMap<ParamId, usize> {
    let places = members.iter().enumerate();
    places.map(|(place, entry)| (entry.id, place)).collect()
}

/// CRC-32 of the values of all trainable parameters, in order.
pub(super) fn checksum<B: AutodiffBackend, M: Module<B>>(trainable: &Trainable<'_, M>) -> u32 {
    struct Sum<'a> {
        groups: &'a ParamGroups,
        hasher: crc32fast::Hasher,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Sum<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if self.groups.group(param.id).is_some() {
                let data = param.val().into_data().convert_dtype(DType::F32);
                self.hasher.update(data.as_bytes());
            }
        }
    }
    let mut sum = Sum {
        groups: trainable.groups,
        hasher: crc32fast::Hasher::new(),
    };
    trainable.model.visit(&mut sum);
    sum.hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_keep_the_order_and_their_limit() {
        let sizes = [3, 3, 4, 20, 1, 1];
        assert_eq!(buckets(&sizes, 6), [0..2, 2..3, 3..4, 4..6]);
        // One that is too large for any bucket has its own; a limit of nothing is one each.
        assert_eq!(buckets(&sizes, 0).len(), 6);
        let whole = buckets(&sizes, 1000);
        assert_eq!((whole.len(), whole[0].clone()), (1, 0..6));
        assert!(buckets(&[], 7).is_empty());
    }
}
