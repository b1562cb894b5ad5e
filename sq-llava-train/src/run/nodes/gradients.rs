//! Gradients in a row: those of what trains, in the order in which a visitor meets the parameters.
//! Ids are random in each process; that order is the model's own.

use std::ops::Range;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor, TensorData};

use crate::error::TrainError;
use crate::step::groups::ParamGroups;

/// A trainable parameter in the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Path in the model.
    pub path: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether it has a gradient.
    pub has_gradient: bool,
}

impl Entry {
    fn values(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A model, and which of its parameters train.
pub(crate) struct Trainable<'a, M> {
    pub model: &'a M,
    pub groups: &'a ParamGroups,
}

/// All trainable parameters of a model in order.
pub(super) fn entries<B: AutodiffBackend, M: Module<B>>(
    trainable: &Trainable<'_, M>,
    grads: &GradientsParams,
) -> Vec<Entry> {
    struct List<'a> {
        groups: &'a ParamGroups,
        grads: &'a GradientsParams,
        entries: Vec<Entry>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for List<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let Some(path) = self.groups.path(param.id) else {
                return;
            };
            let grad = self.grads.get::<B::InnerBackend, D>(param.id);
            self.entries.push(Entry {
                path: path.to_owned(),
                shape: param.lazy_shape().to_vec(),
                has_gradient: grad.is_some(),
            });
        }
    }
    let mut list = List {
        groups: trainable.groups,
        grads,
        entries: Vec::new(),
    };
    trainable.model.visit(&mut list);
    list.entries
}

/// Which parameters go together: as many as have at most `limit` values, at least one. Those that
/// are not `wanted` have no gradient on any node and stay out.
pub(super) fn buckets(entries: &[Entry], wanted: &[bool], limit: usize) -> Vec<Range<usize>> {
    let mut buckets: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (index, entry) in entries.iter().enumerate() {
        let values = if wanted[index] { entry.values() } else { 0 };
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

/// A bucket's parameters, as a visitor meets them.
struct Members<'a> {
    groups: &'a ParamGroups,
    range: &'a Range<usize>,
    wanted: &'a [bool],
    index: usize,
}

impl Members<'_> {
    /// Whether the next parameter that is visited is one of them.
    fn has(&mut self, id: ParamId) -> bool {
        if self.groups.group(id).is_none() {
            return false;
        }
        let index = self.index;
        self.index += 1;
        self.range.contains(&index) && self.wanted[index]
    }
}

/// The gradients of the parameters in `range`, taken out of `grads` and put one after the other
/// on the host; zeros stand for one that is wanted and missing.
pub(super) fn take<B: AutodiffBackend, M: Module<B>>(
    trainable: &Trainable<'_, M>,
    grads: &mut GradientsParams,
    range: &Range<usize>,
    wanted: &[bool],
) -> Result<Vec<f32>, TrainError> {
    struct Take<'a, B: AutodiffBackend> {
        members: Members<'a>,
        grads: &'a mut GradientsParams,
        found: Vec<Tensor<B::InnerBackend, 1>>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Take<'_, B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if !self.members.has(param.id) {
                return;
            }
            let values = param.lazy_shape().num_elements();
            let grad = match self.grads.remove::<B::InnerBackend, D>(param.id) {
                Some(grad) => grad.cast(DType::F32).reshape([values]),
                None => Tensor::zeros([values], (&param.val().device(), DType::F32)),
            };
            self.found.push(grad);
        }
    }
    let mut take = Take::<B> {
        members: Members {
            groups: trainable.groups,
            range,
            wanted,
            index: 0,
        },
        grads,
        found: Vec::new(),
    };
    trainable.model.visit(&mut take);
    if take.found.is_empty() {
        return Ok(Vec::new());
    }
    // One transfer from the device for all of them.
    let values = Tensor::cat(take.found, 0).into_data().into_vec::<f32>();
    values.map_err(|e| TrainError::Internal(format!("the gradients are no f32: {e:?}")))
}

/// Puts what [`take`] took back into `grads`.
pub(super) fn put<B: AutodiffBackend, M: Module<B>>(
    trainable: &Trainable<'_, M>,
    grads: &mut GradientsParams,
    range: &Range<usize>,
    wanted: &[bool],
    values: &[f32],
) {
    struct Put<'a> {
        members: Members<'a>,
        grads: &'a mut GradientsParams,
        values: &'a [f32],
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Put<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if !self.members.has(param.id) {
                return;
            }
            let shape = param.lazy_shape();
            let (own, rest) = self.values.split_at(shape.num_elements());
            self.values = rest;
            let data = TensorData::new(own.to_vec(), shape);
            let options = (&param.val().device(), DType::F32);
            let grad = Tensor::<B::InnerBackend, D>::from_data(data, options);
            self.grads.register(param.id, grad);
        }
    }
    let mut put = Put {
        members: Members {
            groups: trainable.groups,
            range,
            wanted,
            index: 0,
        },
        grads,
        values,
    };
    trainable.model.visit(&mut put);
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

    fn entry(values: usize) -> Entry {
        Entry {
            path: "p".into(),
            shape: vec![values],
            has_gradient: true,
        }
    }

    #[test]
    fn buckets_keep_the_order_and_their_limit() {
        let entries: Vec<Entry> = [3, 3, 4, 20, 1, 1].map(entry).to_vec();
        let all = [true; 6];
        assert_eq!(buckets(&entries, &all, 6), [0..2, 2..3, 3..4, 4..6]);
        // One that is too large for any bucket has its own; a limit of nothing is one each.
        assert_eq!(buckets(&entries, &all, 0).len(), 6);
        let whole = buckets(&entries, &all, 1000);
        assert_eq!((whole.len(), whole[0].clone()), (1, 0..6));
        // Parameters without a gradient on any node take no room.
        let wanted = [true, false, true, false, true, true];
        assert_eq!(buckets(&entries, &wanted, 7), [0..4, 4..6]);
        assert!(buckets(&[], &[], 7).is_empty());
    }
}
