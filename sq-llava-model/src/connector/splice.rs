//! Joining text embeddings and image features into one sequence.

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::error::ModelError;
use crate::language::llama::Llama;
use crate::ops::cat::cat;

pub use sq_llava_data::IMAGE_TOKEN_INDEX;

/// A piece of a sequence: a run of text tokens or an image.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    /// Ids `start..end`.
    Text(usize, usize),
    /// The n-th image of the sample.
    Image(usize),
}

/// Embeds the ids of one sample and puts the features of its images at their places.
///
/// Ids hold either one [`IMAGE_TOKEN_INDEX`] for each image, or, as llava-hf's processor makes
/// them, `image_token_index` once for each feature. `features[i]` is `[tokens, hidden]`.
/// Returns `[sequence, hidden]`, in [`Llama::hidden_dtype`].
///
/// # Errors
/// If the number of images differs from the number of places, or an id is outside the vocabulary.
pub fn splice<B: Backend>(
    llama: &Llama<B>,
    sample: usize,
    ids: &[i64],
    image_token_index: Option<i64>,
    features: &[Tensor<B, 2>],
    device: &B::Device,
) -> Result<Tensor<B, 2>, ModelError> {
    let lengths: Vec<usize> = features.iter().map(|f| f.dims()[0]).collect();
    let pieces = pieces(sample, ids, image_token_index, &lengths)?;
    let vocabulary = llama.vocabulary();
    let text: Vec<i64> = pieces
        .iter()
        .flat_map(|piece| match *piece {
            Piece::Text(start, end) => &ids[start..end],
            Piece::Image(_) => &[],
        })
        .copied()
        .collect();
    if let Some(&id) = text.iter().find(|&&id| id < 0 || id as usize >= vocabulary) {
        return Err(ModelError::Vocabulary { id, vocabulary });
    }
    if pieces.is_empty() {
        return Err(ModelError::Argument(format!(
            "sample {sample} is empty: there is nothing to run the model on"
        )));
    }
    // One lookup for all runs of text, then slices of it.
    let embedded = (!text.is_empty()).then(|| {
        let index = Tensor::<B, 1, Int>::from_data(text.as_slice(), device);
        llama.embed(index)
    });
    let (mut taken, dtype) = (0, llama.hidden_dtype());
    let parts = pieces.iter().filter_map(|piece| match *piece {
        Piece::Image(i) => Some(features[i].clone().cast(dtype)),
        Piece::Text(start, end) => {
            let from = taken;
            taken += end - start;
            let embedded = embedded.as_ref()?;
            let width = embedded.dims()[1];
            Some(embedded.clone().slice([from..taken, 0..width]))
        }
    });
    Ok(cat(parts.collect(), 0))
}

fn pieces(
    sample: usize,
    ids: &[i64],
    image_token_index: Option<i64>,
    lengths: &[usize],
) -> Result<Vec<Piece>, ModelError> {
    let expanded = image_token_index.filter(|token| {
        // Once per feature: only where no compact mark stands and the counts agree.
        !ids.contains(&IMAGE_TOKEN_INDEX) && ids.contains(token) && !lengths.is_empty()
    });
    let (mark, marks) = match expanded {
        Some(token) => (token, lengths.to_vec()),
        None => (IMAGE_TOKEN_INDEX, vec![1; lengths.len()]),
    };
    let found = ids.iter().filter(|&&id| id == mark).count();
    if found != marks.iter().sum::<usize>() {
        return Err(ModelError::ImageCount {
            sample,
            images: lengths.len(),
            tokens: match expanded {
                Some(_) => found / lengths[0].max(1),
                None => found,
            },
        });
    }
    let mut pieces = Vec::new();
    let (mut position, mut image) = (0, 0);
    while position < ids.len() {
        if ids[position] == mark {
            let run = marks[image];
            let whole = position + run <= ids.len()
                && ids[position..position + run].iter().all(|&id| id == mark);
            if !whole {
                return Err(ModelError::Argument(format!(
                    "sample {sample}: the {run} tokens of image {image} do not stand together"
                )));
            }
            pieces.push(Piece::Image(image));
            image += 1;
            position += run;
        } else {
            let start = position;
            while position < ids.len() && ids[position] != mark {
                position += 1;
            }
            pieces.push(Piece::Text(start, position));
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_and_expanded_ids_give_the_same_pieces() {
        let compact = pieces(0, &[1, -200, 5, -200], Some(9), &[2, 2]).unwrap();
        let expanded = pieces(0, &[1, 9, 9, 5, 9, 9], Some(9), &[2, 2]).unwrap();
        assert_eq!(compact.len(), 4);
        assert_eq!(compact[1], Piece::Image(0));
        assert_eq!(expanded[3], Piece::Image(1));
    }

    #[test]
    fn counts_that_differ_are_named() {
        for (ids, images) in [
            (&[1, -200][..], 2),
            (&[1, -200, -200][..], 1),
            (&[1][..], 1),
        ] {
            let error = pieces(3, ids, None, &vec![4; images]).unwrap_err();
            let found = ids.iter().filter(|&&id| id == -200).count();
            assert!(
                matches!(error, ModelError::ImageCount { sample: 3, images: i, tokens } if i == images && tokens == found),
                "{error}"
            );
        }
        assert!(pieces(0, &[1, 9, 5, 9], Some(9), &[2]).is_err());
    }
}
