//! About how long every sample of a data set is, for batches of samples of similar length.
//!
//! Tokenising a whole data set to sort it would take minutes. What sorting needs is known from the
//! bytes of the messages: one pass over the samples on all threads, no tokenizer and no image, and
//! four bytes a sample (LLaVA counts words for the same purpose).

use rayon::prelude::*;

use crate::DataError;
use crate::manifest::LlavaSample;
use crate::parallel::on_threads;
use crate::source::DataSet;
use crate::text::conversation::IMAGE_TOKEN;

/// Bytes of text that make a token, about, in the vocabularies of LLaMA.
const BYTES_PER_TOKEN: usize = 4;

/// Marks samples with an image in the packed numbers.
const IMAGE: u32 = 1 << 31;

/// Estimated lengths of all samples of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LengthIndex(Vec<u32>);

impl LengthIndex {
    /// Estimates every length on `threads` threads; `image_tokens` tells how many tokens the images
    /// of the sample of an index have together.
    ///
    /// # Errors
    /// For a sample that is not LLaVA's, or if the threads cannot be started.
    pub fn estimate(
        data: &DataSet,
        image_tokens: impl Fn(usize, &LlavaSample) -> usize + Sync,
        max_length: Option<usize>,
        threads: usize,
    ) -> Result<Self, DataError> {
        let cap = max_length.unwrap_or(usize::MAX);
        let length = |index| {
            let sample = match data.get(index) {
                // The loader says what becomes of it.
                Err(error) if error.is_damage() => return Ok(0),
                sample => sample?,
            };
            let tokens = estimate(&sample, image_tokens(index, &sample)).min(cap);
            Ok(pack(tokens, !sample.images.is_empty()))
        };
        let samples = (0..data.len()).into_par_iter();
        on_threads(threads, || samples.map(length).collect()).map(Self)
    }

    /// Lengths that are known: tokens, and whether there is an image.
    pub fn known(samples: impl IntoIterator<Item = (usize, bool)>) -> Self {
        let packed = samples.into_iter();
        Self(packed.map(|(tokens, image)| pack(tokens, image)).collect())
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// About how many tokens a sample has, its images included; 0 for an index without a sample.
    pub fn tokens(&self, index: usize) -> usize {
        self.0
            .get(index)
            .map_or(0, |&packed| (packed & !IMAGE) as usize)
    }

    /// Whether a sample has an image.
    pub fn has_image(&self, index: usize) -> bool {
        self.0.get(index).is_some_and(|&packed| packed & IMAGE != 0)
    }
}

fn pack(tokens: usize, image: bool) -> u32 {
    let tokens = u32::try_from(tokens).unwrap_or(u32::MAX).min(IMAGE - 1);
    tokens | if image { IMAGE } else { 0 }
}

/// About how many tokens a sample has, with those of its images.
pub(crate) fn estimate(sample: &LlavaSample, image_tokens: usize) -> usize {
    let texts = sample.conversations.iter().map(|message| &message.value);
    let marks = match sample.images.is_empty() {
        true => 0,
        false => texts.clone().map(|t| t.matches(IMAGE_TOKEN).count()).sum(),
    };
    let bytes: usize = texts.map(String::len).sum();
    let text = bytes.saturating_sub(marks * IMAGE_TOKEN.len());
    image_tokens.saturating_add(text.div_ceil(BYTES_PER_TOKEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> (tempfile::TempDir, DataSet) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        std::fs::write(&path, text).unwrap();
        let manifest = DataSet::open_one(path, "").unwrap();
        (dir, manifest)
    }

    #[test]
    fn images_and_bytes_count() {
        let sample = |image: &str, text: &str| {
            format!(
                r#"{{"image": {image}, "conversations": [{{"from": "human", "value": "{text}"}}]}}"#
            )
        };
        let many: Vec<String> = (0..500).map(|i| sample("null", &"x".repeat(i))).collect();
        let text = format!(
            "[{}, {}, {}, {}]",
            sample(r#""a.png""#, "<image>12345678"),
            sample(r#"["a.png", "b.png"]"#, ""),
            sample("null", "<image>123"),
            many.join(",")
        );
        let (_dir, manifest) = manifest(&text);
        for threads in [1, 3] {
            let images = |_, sample: &LlavaSample| 16 * sample.images.len();
            let index = LengthIndex::estimate(&manifest, images, Some(100), threads).unwrap();
            let of = |i| (index.tokens(i), index.has_image(i));
            assert_eq!([of(0), of(1), of(2)], [(18, true), (32, true), (3, false)]);
            assert!((0..500).all(|i| of(3 + i) == (i.div_ceil(4).min(100), false)));
            assert_eq!((index.len(), index.tokens(503)), (503, 0));
        }
    }

    #[test]
    fn a_sample_that_cannot_be_read_is_named() {
        let (_dir, manifest) = manifest(r#"[{"conversations": []}, {"id": "x7"}]"#);
        let error = LengthIndex::estimate(&manifest, |_, _| 1, None, 2).unwrap_err();
        assert!(error.to_string().contains("x7"), "{error}");
    }
}
