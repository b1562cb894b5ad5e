//! CLIP's tokenizer: a lower-casing byte-level BPE whose words end in `</w>`.
//!
//! From `tokenizer.json`, else from `vocab.json` and `merges.txt`, for which the steps are those
//! of transformers' `CLIPTokenizer`: NFC, runs of white space to one space, lower case, CLIP's
//! word pattern, byte-level BPE.

use std::path::Path;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper, Replace, Sequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Splits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PostProcessorWrapper, SplitDelimiterBehavior, Tokenizer};

use sq_llava_data::foreign::guarded;
use sq_llava_data::text::tokenizer::tokenizer_of;
use sq_llava_data::{DataError, files};

const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Contractions, words, single digits, runs of other signs.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A text as CLIP's text tower reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClipTokens {
    /// Begin token, text, end token.
    pub ids: Vec<i64>,
    /// Whether the end of the text did not fit.
    pub cut: bool,
}

/// CLIP's tokenizer.
#[derive(Debug, Clone)]
pub struct ClipTokenizer {
    inner: Tokenizer,
    begin: i64,
    end: i64,
}

impl ClipTokenizer {
    /// Reads the tokenizer of a CLIP folder.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if neither `tokenizer.json` nor `vocab.json` with `merges.txt` is
    /// there, a file is damaged, or the vocabulary lacks CLIP's begin and end tokens.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, DataError> {
        let dir = dir.as_ref();
        guarded(|| Self::read(dir)).unwrap_or_else(|reason| Err(refused(dir, reason)))
    }

    fn read(dir: &Path) -> Result<Self, DataError> {
        let (json, vocab, merges) = (
            dir.join("tokenizer.json"),
            dir.join("vocab.json"),
            dir.join("merges.txt"),
        );
        if json.is_file() {
            let bytes = files::read(&json)?;
            let inner = tokenizer_of(&bytes).map_err(|e| refused(&json, e))?;
            return Self::new(inner, &json);
        }
        if !vocab.is_file() || !merges.is_file() {
            let reason =
                "no tokenizer.json, and not both vocab.json and merges.txt, in this folder";
            return Err(refused(dir, reason));
        }
        let inner = from_vocabulary(&vocab, &merges).map_err(|e| refused(dir, e))?;
        Self::new(inner, &vocab)
    }

    fn new(mut inner: Tokenizer, path: &Path) -> Result<Self, DataError> {
        // The start and end tokens and the truncation are added here, not by the file's settings.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| refused(path, e))?;
        inner.with_post_processor(None::<PostProcessorWrapper>);
        // A caption that spells one of them is not ended by it.
        inner.set_encode_special_tokens(true);
        let id = |token| special_id(&inner, token).map_err(|e| refused(path, e));
        let (begin, end) = (id(BEGIN)?, id(END)?);
        Ok(Self { inner, begin, end })
    }

    /// Ids of a text between begin and end token, at most `context` of them (77 in CLIP): what
    /// does not fit is cut off before the end token.
    ///
    /// # Errors
    /// [`DataError::Encoding`] if the vocabulary cannot write the text, or `context` is below 2.
    pub fn encode(&self, text: &str, context: usize) -> Result<ClipTokens, DataError> {
        let failed = |reason: String| DataError::Encoding(reason);
        let room = context
            .checked_sub(2)
            .ok_or_else(|| failed(format!("a context of {context} tokens holds no text")))?;
        let encoding = guarded(|| self.inner.encode_fast(text, false))
            .map_err(failed)?
            .map_err(|e| failed(e.to_string()))?;
        let found = encoding.get_ids();
        let text_ids = found.iter().take(room).map(|&id| i64::from(id));
        let ids = std::iter::once(self.begin)
            .chain(text_ids)
            .chain(std::iter::once(self.end))
            .collect();
        Ok(ClipTokens {
            ids,
            cut: found.len() > room,
        })
    }

    /// One past the largest id.
    pub fn id_end(&self) -> usize {
        let ids = self.inner.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }
}

fn special_id(inner: &Tokenizer, token: &str) -> Result<i64, tokenizers::Error> {
    let missing = || format!("no token {token}; is this CLIP's tokenizer?").into();
    inner.token_to_id(token).map(i64::from).ok_or_else(missing)
}

fn refused(path: &Path, reason: impl ToString) -> DataError {
    DataError::Tokenizer {
        path: path.to_path_buf(),
        reason: reason.to_string(),
    }
}

fn from_vocabulary(vocab: &Path, merges: &Path) -> Result<Tokenizer, tokenizers::Error> {
    let name = |path: &Path| path.to_string_lossy().into_owned();
    let model = BPE::from_file(&name(vocab), &name(merges))
        .unk_token(END.into())
        .end_of_word_suffix("</w>".into())
        .build()?;
    let mut inner = Tokenizer::new(model);
    inner.with_normalizer(Some(Sequence::new(vec![
        NormalizerWrapper::NFC(NFC),
        Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?.into(),
        NormalizerWrapper::Lowercase(Lowercase),
    ])));
    let words = Split::new(
        SplitPattern::Regex(WORDS.into()),
        SplitDelimiterBehavior::Removed,
        true,
    )?;
    inner.with_pre_tokenizer(Some(Splits::new(vec![
        PreTokenizerWrapper::Split(words),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ])));
    for token in [BEGIN, END] {
        special_id(&inner, token)?; // Adding it would give it another id than the weights know.
    }
    let special = [BEGIN, END].map(|token| AddedToken::from(token, true).normalized(false));
    inner.add_special_tokens(&special);
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte letters, a few merges, and the two special tokens.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut vocab = serde_json::Map::new();
        let mut add = |token: &str| {
            let id = vocab.len();
            vocab.insert(token.to_string(), id.into());
        };
        for c in 'a'..='z' {
            add(&c.to_string());
            add(&format!("{c}</w>"));
        }
        for token in ["?</w>", "at</w>", "cat</w>", BEGIN, END] {
            add(token);
        }
        let text = serde_json::Value::Object(vocab).to_string();
        std::fs::write(dir.path().join("vocab.json"), text).unwrap();
        let merges = "#version: 0.2\na t</w>\nc at</w>\n";
        std::fs::write(dir.path().join("merges.txt"), merges).unwrap();
        dir
    }

    #[test]
    fn words_end_and_the_end_is_cut() {
        let dir = folder();
        let tokenizer = ClipTokenizer::from_dir(dir.path()).unwrap();
        let id = |token: &str| i64::from(tokenizer.inner.token_to_id(token).unwrap());
        let whole = tokenizer.encode(" A\t CAT?\n", 77).unwrap();
        let expected = [BEGIN, "a</w>", "cat</w>", "?</w>", END].map(id);
        assert_eq!((whole.ids.as_slice(), whole.cut), (&expected[..], false));
        let cut = tokenizer.encode("a cat?", 4).unwrap();
        let expected = [BEGIN, "a</w>", "cat</w>", END].map(id);
        assert_eq!((cut.ids.as_slice(), cut.cut), (&expected[..], true));
        assert!(tokenizer.encode("a", 1).is_err());
    }

    #[test]
    fn fault_21_a_caption_that_spells_the_end_token_goes_on() {
        let dir = folder();
        let tokenizer = ClipTokenizer::from_dir(dir.path()).unwrap();
        let found = tokenizer.encode(&format!("a{END}cat"), 77).unwrap();
        let ends = found.ids.iter().filter(|&&id| id == tokenizer.end).count();
        assert_eq!(found.ids.last(), Some(&tokenizer.end));
        // Signs that this vocabulary lacks are the end token too, as in CLIP's own files.
        let letters = "<|endoftext|>".replace(|c: char| c.is_alphabetic(), "");
        let signs = tokenizer.encode(&letters, 77).unwrap();
        let signs = signs.ids.iter().filter(|&&id| id == tokenizer.end).count();
        assert_eq!(ends, signs);
        assert!(found.ids.len() > 5, "{found:?}");
    }

    #[test]
    fn tokenizer_json_gives_the_same_ids() {
        let dir = folder();
        let slow = ClipTokenizer::from_dir(dir.path()).unwrap();
        let mut inner = slow.inner.clone();
        // As files from the hub: they cut and pad, which is done here instead.
        inner
            .with_truncation(Some(tokenizers::TruncationParams {
                max_length: 3,
                ..Default::default()
            }))
            .unwrap();
        inner.with_padding(Some(tokenizers::PaddingParams {
            strategy: tokenizers::PaddingStrategy::Fixed(9),
            ..Default::default()
        }));
        inner
            .save(dir.path().join("tokenizer.json"), false)
            .unwrap();
        let fast = ClipTokenizer::from_dir(dir.path()).unwrap();
        let text = "at a cat at a cat?";
        assert_eq!(
            fast.encode(text, 77).unwrap(),
            slow.encode(text, 77).unwrap()
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = folder();
        std::fs::remove_file(dir.path().join("merges.txt")).unwrap();
        let error = ClipTokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("merges.txt"), "{error}");
        let dir = folder();
        let path = dir.path().join("vocab.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(BEGIN, "<s>")).unwrap();
        let error = ClipTokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(BEGIN), "{error}");
    }
}
