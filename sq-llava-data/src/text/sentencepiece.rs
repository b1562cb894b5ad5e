//! SentencePiece `tokenizer.model` files as a BPE of the `tokenizers` library.
//!
//! Merges follow from the scores as in transformers' `SentencePieceExtractor`: every way of
//! splitting a piece into two others is a merge, and a higher score of the whole comes first.

use std::collections::HashMap;
use std::path::Path;

use prost::Message;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::{AddedToken, Tokenizer};

use crate::DataError;

/// The mark that SentencePiece writes for a space.
pub(crate) const SPACE_MARK: char = '▁';

/// Kinds of pieces (`SentencePiece.Type` in sentencepiece_model.proto).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
/// A byte (`<0x0A>`), numbered as lists of kinds hold it.
const BYTE: i64 = 6;

/// `TrainerSpec.ModelType.BPE`.
const MODEL_TYPE_BPE: i32 = 2;

/// The fields of sentencepiece_model.proto that encoding depends on.
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer_spec: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43")]
    pad_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
}

/// A converted `tokenizer.model`.
pub(crate) struct SentencePieceModel {
    /// The BPE with SentencePiece's normalisation: a space mark before every stretch of text.
    pub(crate) tokenizer: Tokenizer,
    /// Whether a space is put before a text.
    pub(crate) space_first: bool,
    /// Pieces that stand for no text: control pieces and the unknown piece.
    pub(crate) control_ids: Vec<u32>,
    /// Unknown, begin, end and padding pieces, where the model has them.
    pub(crate) unk: Option<String>,
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) pad: Option<String>,
}

/// Reads the content of a `tokenizer.model`; `path` is for messages.
///
/// # Errors
/// If the bytes are not a SentencePiece model, or not a BPE with plain normalisation.
pub(crate) fn convert(bytes: &[u8], path: &Path) -> Result<SentencePieceModel, DataError> {
    build(bytes).map_err(|reason| DataError::Tokenizer {
        path: path.to_path_buf(),
        reason,
    })
}

fn build(bytes: &[u8]) -> Result<SentencePieceModel, String> {
    let proto = ModelProto::decode(bytes)
        .map_err(|e| format!("not a SentencePiece model ({e}); is the file whole?"))?;
    if proto.pieces.is_empty() {
        return Err("a SentencePiece model without pieces; is the file whole?".into());
    }
    let trainer = proto.trainer_spec.unwrap_or_default();
    let normalizer = proto.normalizer_spec.unwrap_or_default();
    check_kind(&trainer, &normalizer)?;
    let piece_at = |id: Option<i32>, default: i32| -> Option<String> {
        let index = usize::try_from(id.unwrap_or(default)).ok()?;
        proto.pieces.get(index)?.piece.clone()
    };
    let unk = piece_at(trainer.unk_id, 0);
    let Vocabulary {
        ids,
        control_ids,
        added,
    } = vocabulary(&proto.pieces)?;
    let mut builder = BPE::builder()
        .vocab_and_merges(ids, merges(&proto.pieces, bytes.len())?)
        .fuse_unk(true)
        .byte_fallback(trainer.byte_fallback.unwrap_or(false));
    if let Some(unk) = &unk {
        builder = builder.unk_token(unk.clone());
    }
    let mut tokenizer = Tokenizer::new(builder.build().map_err(|e| e.to_string())?);
    let space_first = normalizer.add_dummy_prefix.unwrap_or(true);
    mark_spaces(&mut tokenizer, space_first).map_err(|e| e.to_string())?;
    tokenizer.add_tokens(&added);
    Ok(SentencePieceModel {
        tokenizer,
        space_first,
        control_ids,
        bos: piece_at(trainer.bos_id, 1),
        eos: piece_at(trainer.eos_id, 2),
        pad: piece_at(trainer.pad_id, -1),
        unk,
    })
}

/// A BPE with plain normalisation is what LLaMA has; others would give other ids.
fn check_kind(trainer: &TrainerSpec, normalizer: &NormalizerSpec) -> Result<(), String> {
    if trainer.model_type != Some(MODEL_TYPE_BPE) {
        return Err(format!(
            "SentencePiece model type {:?} is not supported, only BPE (2); \
             convert the tokenizer to a tokenizer.json",
            trainer.model_type
        ));
    }
    let charsmap = normalizer.precompiled_charsmap.as_ref();
    if charsmap.is_some_and(|m| !m.is_empty())
        || normalizer.remove_extra_whitespaces.unwrap_or(true)
    {
        return Err(
            "only SentencePiece's identity normalisation is supported (as LLaMA has it); \
             convert the tokenizer to a tokenizer.json"
                .into(),
        );
    }
    Ok(())
}

/// Pieces by what they are for.
struct Vocabulary {
    ids: Vocab,
    /// Control pieces and the unknown piece.
    control_ids: Vec<u32>,
    /// Pieces that the user defined: they are cut out of a text before anything else.
    added: Vec<AddedToken>,
}

fn vocabulary(pieces: &[Piece]) -> Result<Vocabulary, String> {
    let mut ids = Vocab::default();
    let mut control_ids = Vec::new();
    let mut added = Vec::new();
    for (id, piece) in (0u32..).zip(pieces) {
        let text = piece.piece.clone().unwrap_or_default();
        match piece.kind.unwrap_or(NORMAL) {
            UNKNOWN | CONTROL => control_ids.push(id),
            USER_DEFINED => added.push(AddedToken::from(text.clone(), false).normalized(false)),
            _ => {}
        }
        if ids.insert(text.clone(), id).is_some() {
            return Err(format!("the piece {text:?} is there twice"));
        }
    }
    Ok(Vocabulary {
        ids,
        control_ids,
        added,
    })
}

/// Spaces become marks on the way in, with one before the text if it is `space_first`, and spaces
/// again on the way out.
fn mark_spaces(tokenizer: &mut Tokenizer, space_first: bool) -> tokenizers::Result<()> {
    let mut steps = vec![NormalizerWrapper::from(Replace::new(
        " ",
        SPACE_MARK.to_string(),
    )?)];
    if space_first {
        let prepend = Prepend::new(SPACE_MARK.to_string());
        steps.insert(0, NormalizerWrapper::from(prepend));
    }
    tokenizer.with_normalizer(Some(Sequence::new(steps)));
    let mut steps = vec![
        DecoderWrapper::Replace(Replace::new(SPACE_MARK.to_string(), " ")?),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ];
    if space_first {
        steps.push(DecoderWrapper::Strip(Strip::new(' ', 1, 0)));
    }
    tokenizer.with_decoder(Some(DecoderSequence::new(steps)));
    Ok(())
}

/// A vocabulary as other files than `tokenizer.model` list it.
pub(crate) struct Listed<'a> {
    pub(crate) pieces: &'a [String],
    pub(crate) scores: &'a [f32],
    /// Kinds of pieces, numbered as in sentencepiece_model.proto.
    pub(crate) kinds: &'a [i64],
    pub(crate) unk: Option<i32>,
    pub(crate) bos: Option<i32>,
    pub(crate) eos: Option<i32>,
    pub(crate) pad: Option<i32>,
    /// Whether a space is put before a text.
    pub(crate) space_first: bool,
}

impl Listed<'_> {
    /// The bytes of the `tokenizer.model` that holds this vocabulary.
    pub(crate) fn to_model(&self) -> Vec<u8> {
        let piece = |(i, text): (usize, &String)| Piece {
            piece: Some(text.clone()),
            score: self.scores.get(i).copied(),
            kind: self.kinds.get(i).and_then(|&kind| i32::try_from(kind).ok()),
        };
        ModelProto {
            pieces: self.pieces.iter().enumerate().map(piece).collect(),
            trainer_spec: Some(TrainerSpec {
                model_type: Some(MODEL_TYPE_BPE),
                byte_fallback: Some(self.kinds.contains(&BYTE)),
                unk_id: self.unk.or(Some(-1)),
                bos_id: self.bos.or(Some(-1)),
                eos_id: self.eos.or(Some(-1)),
                pad_id: self.pad.or(Some(-1)),
            }),
            normalizer_spec: Some(NormalizerSpec {
                precompiled_charsmap: None,
                add_dummy_prefix: Some(self.space_first),
                remove_extra_whitespaces: Some(false),
            }),
        }
        .encode_to_vec()
    }
}

/// Bytes of merges that a byte of the file may make, and that any file may. LLaMA's make fewer
/// than the file has.
const MERGES_PER_BYTE: usize = 16;
const MERGES_OF_ANY: usize = 1 << 20;

/// All splits of every mergeable piece into two others, best score of the whole first;
/// `file` is the file's length in bytes.
///
/// # Errors
/// What is wrong with the pieces.
fn merges(pieces: &[Piece], file: usize) -> Result<Vec<(String, String)>, String> {
    let mergeable: HashMap<&str, u32> = (0u32..)
        .zip(pieces)
        .filter(|(_, p)| matches!(p.kind.unwrap_or(NORMAL), NORMAL | USER_DEFINED | UNUSED))
        .map(|(id, p)| (p.piece(), id))
        .collect();
    // Long pieces that are made of each other would make far more merges than the file is long.
    let mut room = file
        .saturating_mul(MERGES_PER_BYTE)
        .saturating_add(MERGES_OF_ANY);
    let mut found: Vec<(f32, u32, u32, &str, &str)> = Vec::new();
    for piece in pieces {
        let whole = piece.piece();
        if !mergeable.contains_key(whole) {
            continue;
        }
        let score = piece.score.unwrap_or(0.0);
        if score.is_nan() {
            return Err(format!(
                "the score of the piece {whole:?} is not a number; is the file whole?"
            ));
        }
        for (at, _) in whole.char_indices().skip(1) {
            let (left, right) = whole.split_at(at);
            if let (Some(&l), Some(&r)) = (mergeable.get(left), mergeable.get(right)) {
                room = room.checked_sub(whole.len()).ok_or_else(|| {
                    format!(
                        "its pieces make more merges than a file of {file} bytes can mean; is it damaged?"
                    )
                })?;
                found.push((score, l, r, left, right));
            }
        }
    }
    // Stable, and by ids within a score, as the Python conversion does; -0 is 0.
    found.sort_by(|a, b| {
        let by_score = (b.0 + 0.0).total_cmp(&(a.0 + 0.0));
        by_score.then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2))
    });
    let owned = found
        .into_iter()
        .map(|(_, _, _, left, right)| (left.to_owned(), right.to_owned()));
    Ok(owned.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, score: f32, kind: i32) -> Piece {
        Piece {
            piece: Some(text.into()),
            score: Some(score),
            kind: Some(kind),
        }
    }

    fn model(model_type: i32) -> Vec<u8> {
        ModelProto {
            pieces: vec![
                piece("<unk>", 0.0, UNKNOWN),
                piece("<s>", 0.0, CONTROL),
                piece("</s>", 0.0, CONTROL),
                piece("ab", -1.0, NORMAL),
                piece("bc", 0.0, NORMAL),
                piece("▁", -2.0, NORMAL),
                piece("a", -3.0, NORMAL),
                piece("b", -4.0, NORMAL),
                piece("c", -5.0, NORMAL),
            ],
            trainer_spec: Some(TrainerSpec {
                model_type: Some(model_type),
                ..Default::default()
            }),
            normalizer_spec: Some(NormalizerSpec {
                remove_extra_whitespaces: Some(false),
                ..Default::default()
            }),
        }
        .encode_to_vec()
    }

    #[test]
    fn the_higher_score_merges_first() {
        let converted = convert(&model(MODEL_TYPE_BPE), Path::new("t.model")).unwrap();
        let encoding = converted.tokenizer.encode("abc", false).unwrap();
        // "bc" (0.0) before "ab" (-1.0).
        assert_eq!(encoding.get_tokens(), ["▁", "a", "bc"]);
        assert_eq!(converted.control_ids, [0, 1, 2]);
        assert_eq!(converted.eos.as_deref(), Some("</s>"));
        assert_eq!(converted.pad, None);
    }

    fn of(pieces: Vec<Piece>) -> Result<SentencePieceModel, DataError> {
        let bytes = ModelProto {
            pieces,
            trainer_spec: Some(TrainerSpec {
                model_type: Some(MODEL_TYPE_BPE),
                ..Default::default()
            }),
            normalizer_spec: Some(NormalizerSpec {
                remove_extra_whitespaces: Some(false),
                ..Default::default()
            }),
        }
        .encode_to_vec();
        convert(&bytes, Path::new("t.model"))
    }

    #[test]
    fn fault_29_a_score_that_is_not_a_number_is_refused() {
        // Enough of them that a sort notices an inconsistent order.
        let mut pieces = vec![piece("<unk>", 0.0, UNKNOWN), piece("a", 0.0, NORMAL)];
        for i in 2..200usize {
            let score = if i % 3 == 0 { f32::NAN } else { -(i as f32) };
            pieces.push(piece(&"a".repeat(i), score, NORMAL));
        }
        let error = of(pieces).err().expect("refused").to_string();
        assert!(error.contains("not a number"), "{error}");
        assert!(error.contains("t.model"), "{error}");
    }

    #[test]
    fn fault_29_merges_stay_a_small_multiple_of_the_file() {
        // 2 MB of pieces would make 2.7 GB of merges.
        let pieces = (1..2000).map(|i| piece(&"a".repeat(i), -(i as f32), NORMAL));
        let error = of(pieces.collect()).err().expect("refused").to_string();
        assert!(error.contains("merges"), "{error}");
    }

    #[test]
    fn other_files_are_refused_by_name() {
        for bytes in [b"version https://git-lfs".to_vec(), Vec::new(), model(1)] {
            let Err(error) = convert(&bytes, Path::new("t.model")) else {
                panic!("accepted")
            };
            assert!(error.to_string().contains("t.model"), "{error}");
        }
    }
}
