//! What goes through the model at once, still on the host: ids, roles and pictures.

use std::ops::Range;
use std::sync::Arc;

use sq_llava_data::image::ImagePacking;
use sq_llava_data::{IMAGE_TOKEN_INDEX, TokenRole};

use crate::data::bad_images::BadImage;

/// A picture of a sample.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Path of the file, for messages.
    pub name: Arc<str>,
    /// What the tower sees: the same for all samples that show this picture with the same tiles.
    pub key: Arc<str>,
    /// How its tiles' features become tokens.
    pub packing: ImagePacking,
    /// How many tokens.
    pub tokens: usize,
    /// Normalised pixels of its tiles, channels first, `tiles · 3 · side · side`; `None` where the
    /// features of a frozen tower are already known.
    pub pixels: Option<Arc<[f32]>>,
    /// Which mask each feature of its tiles belongs to, 0 for none, `tiles · features`; `None` where
    /// it has no masks.
    pub labels: Option<Arc<[u16]>>,
}

impl Picture {
    /// A picture of one tile, which has `tokens` features.
    pub fn of_one_tile(name: &str, tokens: usize, pixels: Option<Arc<[f32]>>) -> Self {
        Self {
            name: name.into(),
            key: name.into(),
            packing: ImagePacking::One { newline: false },
            tokens,
            pixels,
            labels: None,
        }
    }
}

/// One encoded sample.
#[derive(Debug, Clone)]
pub struct TrainSample {
    /// Id, for messages.
    pub id: Arc<str>,
    /// Token ids, −200 for an image.
    pub ids: Vec<i64>,
    /// What each token is to the loss; as many as ids.
    pub roles: Vec<TokenRole>,
    /// One picture for each −200, in order.
    pub pictures: Vec<Picture>,
    /// Place of its source among those whose δ is measured.
    pub source: Option<usize>,
}

/// Samples that go through the model together, a part of one optimizer step.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    /// The samples.
    pub samples: Vec<TrainSample>,
    /// How many of them stand one behind the other in each row; `None` where they are not packed and
    /// each has a row of its own.
    pub rows: Option<Vec<usize>>,
    /// Optimizer step, from 0.
    pub step: usize,
    /// Epoch, from 0.
    pub epoch: usize,
    /// Place in the optimizer step, from 0, of all devices.
    pub micro: usize,
    /// Batches of the optimizer step, of all devices.
    pub micros: usize,
    /// Learnable tokens of the whole optimizer step: the loss's denominator.
    pub step_tokens: usize,
    /// Pictures with masks of the whole optimizer step, as often as its samples show them: the
    /// denominator of their loss.
    pub step_masked: usize,
    /// Samples of the whole optimizer step, those left out included.
    pub step_samples: usize,
    /// Those of them that were left out because of a picture.
    pub step_skipped: usize,
    /// Batches from this one to the next of the same device: 1 where there is one device.
    pub stride: usize,
    /// Samples that were cut to the longest length allowed.
    pub truncated: usize,
    /// Tokens that were cut off them.
    pub cut_tokens: usize,
    /// Samples that were left out because of a picture.
    pub skipped: usize,
    /// Pictures that could not be used.
    pub bad_images: Vec<BadImage>,
}

/// Tokens to be predicted, with the places that predict them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    /// Row of the predicting position in `[batch · tokens, hidden]`.
    pub rows: Vec<i64>,
    /// The token id that follows it.
    pub ids: Vec<i64>,
    /// Whether it belongs to an asked question (else to an answer).
    pub asked: Vec<bool>,
    /// As [`TrainSample::source`] of its sample.
    pub sources: Vec<Option<usize>>,
}

impl Targets {
    /// The tokens of each answer. Those of one answer stand side by side in one sample; between two
    /// there is always a role's marker, a question, or the first token of another sample.
    pub fn answers(&self) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        for (index, _) in self.asked.iter().enumerate().filter(|(_, asked)| !**asked) {
            match found.last_mut() {
                Some(last) if last.end == index && self.rows[index] == self.rows[index - 1] + 1 => {
                    last.end += 1;
                }
                _ => found.push(index..index + 1),
            }
        }
        found
    }
}

impl TrainSample {
    /// Tokens that are learnt: those with a role that something stands before.
    pub fn learnable(&self) -> usize {
        self.roles
            .iter()
            .skip(1)
            .filter(|&&role| role != TokenRole::Ignore)
            .count()
    }

    /// How many of its pictures have masks.
    fn masked(&self) -> usize {
        let labels = self
            .pictures
            .iter()
            .filter_map(|picture| picture.labels.as_ref());
        labels.count()
    }

    /// Length once each image takes as many places as it has tokens.
    pub fn len(&self) -> usize {
        let images: usize = self.pictures.iter().map(|picture| picture.tokens).sum();
        self.ids.len() - self.pictures.len() + images
    }

    /// Whether it has no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A token of it from which nothing is learnt: stands in where a batch has no sample left.
    pub(crate) fn placeholder(&self) -> Self {
        let token = self.ids.iter().find(|&&id| id != IMAGE_TOKEN_INDEX);
        Self::only(self.id.clone(), token.copied().unwrap_or(0))
    }

    /// Stands in where no sample of a step could be read: any token will do.
    pub(crate) fn none() -> Self {
        Self::only("(none)".into(), 0)
    }

    fn only(id: Arc<str>, token: i64) -> Self {
        Self {
            id,
            ids: vec![token],
            roles: vec![TokenRole::Ignore],
            pictures: Vec::new(),
            source: None,
        }
    }

    /// Adds what is to be predicted in this sample, whose sequence starts at row `start`.
    fn targets(&self, start: usize, out: &mut Targets) {
        let mut pictures = self.pictures.iter();
        // Place of each id in the sequence with its images spread out.
        let mut place = start;
        for (&id, &role) in self.ids.iter().zip(&self.roles) {
            if id == IMAGE_TOKEN_INDEX {
                place += pictures.next().map_or(0, |picture| picture.tokens);
                continue;
            }
            if role != TokenRole::Ignore && place > start {
                out.rows.push(place as i64 - 1);
                out.ids.push(id);
                out.asked.push(role == TokenRole::Question);
                out.sources.push(self.source);
            }
            place += 1;
        }
    }
}

impl MicroBatch {
    /// Samples that are an optimizer step of their own, the first of an epoch.
    pub fn whole_step(samples: Vec<TrainSample>) -> Self {
        Self {
            step_tokens: samples.iter().map(TrainSample::learnable).sum(),
            step_masked: samples.iter().map(TrainSample::masked).sum(),
            step_samples: samples.len(),
            step_skipped: 0,
            rows: None,
            samples,
            step: 0,
            epoch: 0,
            micro: 0,
            micros: 1,
            stride: 1,
            truncated: 0,
            cut_tokens: 0,
            skipped: 0,
            bad_images: Vec::new(),
        }
    }

    /// Cuts a [whole step](Self::whole_step) into `parts` of as many samples each, as far as there are.
    pub fn cut(self, parts: usize) -> Vec<Self> {
        let each = self.samples.len().div_ceil(parts.max(1)).max(1);
        let samples: Vec<_> = self.samples.chunks(each).map(<[_]>::to_vec).collect();
        let micros = samples.len();
        let part = |(micro, samples)| Self {
            samples,
            micro,
            micros,
            ..self.clone()
        };
        samples.into_iter().enumerate().map(part).collect()
    }

    /// Whether the optimizer step is complete, on its device, with this batch.
    pub(crate) fn is_last(&self) -> bool {
        self.micro + self.stride >= self.micros
    }

    /// Whether the step has no batch for this device, which still takes part.
    pub(crate) fn is_idle(&self) -> bool {
        self.micro > 0 && self.micro >= self.micros
    }

    /// Lengths of the samples in each row, images in place.
    pub(crate) fn lengths(&self) -> Vec<Vec<usize>> {
        let mut lengths = self.samples.iter().map(TrainSample::len);
        match &self.rows {
            None => lengths.map(|length| vec![length]).collect(),
            Some(rows) => {
                let row = |&samples: &usize| lengths.by_ref().take(samples).collect();
                rows.iter().map(row).collect()
            }
        }
    }

    /// What is to be predicted, in rows padded at the right to the longest.
    pub(crate) fn targets(&self) -> Targets {
        let lengths = self.lengths();
        let tokens = row_tokens(&lengths);
        let mut targets = Targets::default();
        let mut samples = self.samples.iter();
        for (row, lengths) in lengths.iter().enumerate() {
            let mut start = row * tokens;
            for (length, sample) in lengths.iter().zip(samples.by_ref()) {
                sample.targets(start, &mut targets);
                start += length;
            }
        }
        targets
    }
}

/// Length of the longest row, of which each has samples of these lengths.
pub(crate) fn row_tokens(lengths: &[Vec<usize>]) -> usize {
    let rows = lengths.iter().map(|row| row.iter().sum());
    rows.max().unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use TokenRole::{Answer, Ignore, Question};

    /// Images of four tokens.
    pub(crate) fn sample(ids: &[i64], roles: &[TokenRole]) -> TrainSample {
        let images = ids.iter().filter(|&&id| id == IMAGE_TOKEN_INDEX).count();
        TrainSample {
            id: "s".into(),
            ids: ids.to_vec(),
            roles: roles.to_vec(),
            pictures: (0..images)
                .map(|i| Picture::of_one_tile(&format!("p{i}"), 4, None))
                .collect(),
            source: None,
        }
    }

    pub(crate) fn batch(samples: Vec<TrainSample>) -> MicroBatch {
        MicroBatch::whole_step(samples)
    }

    #[test]
    fn images_shift_the_places_that_predict() {
        let batch = batch(vec![
            sample(&[1, -200, 7, 8], &[Ignore, Ignore, Question, Answer]),
            sample(&[5, 6], &[Answer, Answer]),
        ]);
        assert_eq!(row_tokens(&batch.lengths()), 7);
        let targets = batch.targets();
        // 1 at 0, the image at 1..5, 7 at 5, 8 at 6; the second sample starts at row 7. Its first
        // token has nothing before it that could predict it.
        assert_eq!(targets.rows, [4, 5, 7]);
        assert_eq!(targets.ids, [7, 8, 6]);
        assert_eq!(targets.asked, [true, false, false]);
        assert_eq!(batch.step_tokens, targets.ids.len());
    }

    #[test]
    fn each_image_has_its_own_length() {
        let mut shown = sample(
            &[1, -200, 7, -200, 8],
            &[Ignore, Ignore, Answer, Ignore, Answer],
        );
        shown.pictures[1].tokens = 9;
        assert_eq!(shown.len(), 3 + 4 + 9);
        let targets = batch(vec![shown.clone(), shown]).targets();
        assert_eq!(targets.rows, [4, 14, 16 + 4, 16 + 14]);
    }

    #[test]
    fn samples_of_a_row_are_predicted_from_their_own_places() {
        let short = || sample(&[5, 6], &[Answer, Answer]);
        let shown = TrainSample {
            source: Some(3),
            ..sample(&[1, -200, 7], &[Ignore, Ignore, Answer])
        };
        let packed = MicroBatch {
            rows: Some(vec![2, 1]),
            ..batch(vec![short(), shown.clone(), short()])
        };
        assert_eq!(packed.lengths(), [vec![2, 6], vec![2]]);
        assert_eq!(row_tokens(&packed.lengths()), 8);
        let targets = packed.targets();
        // 5 starts a sample, wherever it stands: nothing predicts it.
        assert_eq!(targets.rows, [0, 2 + 4, 8]);
        assert_eq!(targets.ids, [6, 7, 6]);
        assert_eq!(targets.sources, [None, Some(3), None]);
        assert_eq!(targets.answers(), [0..1, 1..2, 2..3]);
        let alone = batch(vec![short(), shown, short()]).targets();
        assert_eq!((alone.ids, alone.asked), (targets.ids, targets.asked));
        assert_eq!(alone.sources, targets.sources);
    }

    #[test]
    fn answers_are_told_apart() {
        let roles = [
            Ignore, Question, Answer, Answer, Ignore, Answer, Question, Answer,
        ];
        let one = sample(&[1, 2, 3, 4, 5, 6, 7, 8], &roles);
        let targets = batch(vec![one.clone(), one]).targets();
        let found: Vec<Vec<i64>> = targets
            .answers()
            .into_iter()
            .map(|answer| targets.ids[answer].to_vec())
            .collect();
        let each = [vec![3, 4], vec![6], vec![8]];
        assert_eq!(found, [each.clone(), each].concat());
    }
}
