//! The loss of masks: tokens of one mask are to share prototypes, tokens of different masks are to
//! have different ones.
//!
//! With `p_i` the assignment of token `i` to the prototypes (what M has of it, so that it adds up to
//! one), `s_ij = p_i · p_j` is the probability that tokens `i` and `j` draw the same prototype. Over
//! the pairs of tokens that belong to masks, a tile's loss is
//!
//! ```text
//! ½ mean over pairs of one mask (−log(s_ij + ε)) + ½ mean over pairs of two (−log(1 − s_ij + ε))
//! ```
//!
//! A mean over no pairs is 0. A picture's loss is the mean over its tiles that have pairs, a step's
//! the mean over its pictures with masks, as often as its samples show them.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use serde::{Deserialize, Serialize};

use crate::data::batch::MicroBatch;
use crate::step::loss::host;
use crate::step::pictures::{SeenPicture, pictures};

/// ε, so that logarithms stay finite.
const EPSILON: f64 = 1e-6;

/// What keeps a token without any share of M from a division by zero: far below a share of any.
const LEAST_SHARE: f64 = 1e-12;

/// The loss of masks, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MaskSums {
    /// Unweighted, over pictures.
    #[serde(with = "crate::step::bits")]
    pub loss: f64,
    /// Pictures with masks, as often as they are shown.
    pub pictures: usize,
}

impl MaskSums {
    /// Adds the sums of another part of the same step.
    pub fn merge(&mut self, other: &Self) {
        self.loss += other.loss;
        self.pictures += other.pictures;
    }

    /// Mean over the pictures; `None` where there is none.
    pub fn mean(&self) -> Option<f64> {
        (self.pictures > 0).then(|| self.loss / self.pictures as f64)
    }
}

/// A picture with masks among the tiles of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskedPicture<'a> {
    /// Its first tile.
    pub start: usize,
    /// The labels of each of its tiles' tokens, 0 for none.
    pub tiles: Vec<&'a [u16]>,
    /// How often it is shown.
    pub shown: usize,
}

/// The pictures of a batch that have masks; `seen` are all of them, in the order of their tiles.
pub(super) fn masked_pictures<'a>(
    batch: &'a MicroBatch,
    seen: &[SeenPicture],
) -> Vec<MaskedPicture<'a>> {
    let mut masked = Vec::new();
    let mut start = 0;
    for one in seen {
        let tiles = one.packing.tiles();
        let same = pictures(batch).filter(|(_, picture)| picture.key == one.key);
        let mut labels = same.filter_map(|(_, picture)| picture.labels.as_deref());
        if let Some(first) = labels.next() {
            let each = first.len() / tiles.max(1);
            masked.push(MaskedPicture {
                start,
                tiles: first.chunks_exact(each.max(1)).collect(),
                shown: 1 + labels.count(),
            });
        }
        start += tiles;
    }
    masked
}

/// The loss of a batch's masks.
#[derive(Debug)]
pub struct MaskLoss<B: Backend> {
    /// What the step learns from, `[1]`; `None` if that is nothing.
    pub total: Option<Tensor<B, 1>>,
    /// For the log.
    pub sums: MaskSums,
}

impl<B: Backend> Default for MaskLoss<B> {
    fn default() -> Self {
        Self {
            total: None,
            sums: MaskSums::default(),
        }
    }
}

impl<B: Backend> MaskLoss<B> {
    /// From M, `[tiles, K, tokens]`. `weight` is that of one picture.
    pub fn of(assignment: Tensor<B, 3>, masked: &[MaskedPicture<'_>], weight: f64) -> Self {
        let mut found = Self::default();
        // A graph that no backward pass consumes would stay.
        let assignment = match weight > 0.0 {
            true => assignment,
            false => assignment.detach(),
        };
        let [_, centers, tokens] = assignment.dims();
        let mut means = Vec::new();
        for picture in masked {
            found.sums.pictures += picture.shown;
            let tiles = picture.tiles.iter().zip(picture.start..);
            let losses: Vec<Tensor<B, 1>> = tiles
                .filter_map(|(labels, tile)| {
                    let pairs = Pairs::of(labels)?;
                    let own = assignment
                        .clone()
                        .slice([tile..tile + 1, 0..centers, 0..tokens]);
                    Some(pairs.loss(own.reshape([centers, tokens])))
                })
                .collect();
            if !losses.is_empty() {
                means.push((picture.shown as f64, Tensor::cat(losses, 0).mean()));
            }
        }
        if means.is_empty() {
            return found;
        }
        // The device is waited for once.
        let values = means.iter().map(|(_, loss)| loss.clone().detach());
        let values = host(Tensor::cat(values.collect(), 0));
        for ((shown, _), value) in means.iter().zip(values) {
            found.sums.loss += shown * f64::from(value);
        }
        if weight > 0.0 {
            let parts = means.into_iter();
            let parts = parts.map(|(shown, loss)| loss.mul_scalar(weight * shown));
            found.total = parts.reduce(|total, part| total + part);
        }
        found
    }
}

/// The pairs of a tile's tokens that belong to masks.
struct Pairs {
    /// The places of these tokens.
    places: Vec<i64>,
    /// 1 for pairs of different masks, else 0, `n · n`.
    differ: Vec<f32>,
    /// The part of each pair in the loss, `n · n`.
    weights: Vec<f32>,
}

impl Pairs {
    /// `None` if there are none.
    fn of(labels: &[u16]) -> Option<Self> {
        let labelled = || labels.iter().enumerate().filter(|(_, label)| **label != 0);
        let n = labelled().count();
        if n < 2 {
            return None;
        }
        let own: Vec<u16> = labelled().map(|(_, label)| *label).collect();
        let same = |label: &u16| own.iter().filter(|other| *other == label).count() - 1;
        let alike: usize = own.iter().map(same).sum();
        let unlike = n * (n - 1) - alike;
        // Each pair stands there twice, which its mean does not change.
        let part = |pairs: usize| (0.5 / pairs.max(1) as f64) as f32;
        let (pull, push) = (part(alike), part(unlike));
        let (mut differ, mut weights) = (vec![0.0; n * n], vec![0.0; n * n]);
        for (i, first) in own.iter().enumerate() {
            for (j, second) in own.iter().enumerate().filter(|(j, _)| *j != i) {
                let apart = first != second;
                differ[i * n + j] = f32::from(u8::from(apart));
                weights[i * n + j] = if apart { push } else { pull };
            }
        }
        Some(Self {
            places: labelled().map(|(place, _)| place as i64).collect(),
            differ,
            weights,
        })
    }

    /// The loss of a tile, `[1]`. `assignment`: `[K, tokens]`
    fn loss<B: Backend>(self, assignment: Tensor<B, 2>) -> Tensor<B, 1> {
        let device = assignment.device();
        let n = self.places.len();
        let places = Tensor::<B, 1, Int>::from_data(TensorData::from(&self.places[..]), &device);
        let matrix = |values| {
            Tensor::<B, 2>::from_data(TensorData::new(values, [n, n]), (&device, DType::F32))
        };
        let p = assignment.select(1, places).cast(DType::F32);
        let p = p.clone() / (p.sum_dim(0) + LEAST_SHARE);
        let s = p.clone().transpose().matmul(p);
        // s, and 1 − s for pairs of different masks.
        let differ = matrix(self.differ);
        let agreed = differ.clone() + s * (differ.mul_scalar(-2.0) + 1.0);
        let losses = (agreed + EPSILON).log().neg();
        (losses * matrix(self.weights)).sum()
    }
}
