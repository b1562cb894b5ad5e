//! Text ↔ ids: `tokenizer.json`, or SentencePiece's `tokenizer.model` alone.
//!
//! A `tokenizer.json` is followed as it is. A bare `tokenizer.model` gives the ids of Python's
//! slow `LlamaTokenizer` (transformers 4.31), for both values of its `legacy` setting: that of
//! every text which follows a special token. With `legacy` a space is put before it (`▁US ER`);
//! without, the space is cut off the finished tokens again (`US ER`).

mod after_special;
mod files;
mod gguf;
mod load;
mod plain;
mod save;
mod to_gguf;
mod transformers;
mod vocabulary;

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::files::read;
use crate::foreign::guarded;
use crate::gguf::{GgufHeader, is_gguf};
use crate::text::pieces::Alphabet;
use crate::{DataError, StreamDecoder};
use files::TokenizerFiles;
pub use load::tokenizer_of;

/// A token and the bytes of the text that it covers. The bytes of one character may be shared by
/// several tokens; a begin token covers none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenSpan {
    /// Id in the vocabulary.
    pub id: i64,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// A tokenizer with the tokens that begin, end and pad a text.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    /// `inner` for texts in which special tokens are spelt out; made when one comes.
    plain: OnceLock<Box<Tokenizer>>,
    /// Taken out of `inner`, which would trim spans with it; put back when saving.
    post_processor: Option<PostProcessorWrapper>,
    alphabet: Alphabet,
    /// A `tokenizer.model`, where ids come from it.
    sentencepiece: Option<SentencePiece>,
    /// The `tokenizer.model` that lay in the folder.
    model_file: Option<Arc<[u8]>>,
    config: Map<String, Value>,
    /// `bos_token` and the like, as the files name them.
    named: Map<String, Value>,
    special: HashSet<i64>,
    added: HashSet<u32>,
    /// The ids that there are, in order; none of the ranges touch.
    runs: Vec<Range<i64>>,
    bos: Option<i64>,
    eos: Vec<i64>,
    unk: Option<i64>,
    pad: Option<i64>,
    adds_bos: bool,
}

#[derive(Debug, Clone)]
struct SentencePiece {
    legacy: bool,
    /// Pieces of the model itself that stand for no text (`<s>`, `</s>`, `<unk>`).
    control: HashSet<u32>,
    /// Ids from here on are added tokens.
    pieces: u32,
}

impl TextTokenizer {
    /// Reads the tokenizer of a checkpoint folder: `tokenizer.json` if there, else
    /// `tokenizer.model`; with tokenizer_config.json, special_tokens_map.json, added_tokens.json,
    /// config.json and generation_config.json where they are. A GGUF file in place of a folder
    /// brings its tokenizer inside.
    ///
    /// # Errors
    /// If neither is there, or a file is damaged or of an unsupported kind.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, DataError> {
        let dir = dir.as_ref();
        if is_gguf(dir) {
            return Self::from_gguf(&GgufHeader::open(dir)?);
        }
        let files = TokenizerFiles::read(dir)?;
        let json = dir.join("tokenizer.json");
        let model = dir.join("tokenizer.model");
        if json.is_file() {
            let mut tokenizer = Self::from_json(&json, files)?;
            if model.is_file() {
                tokenizer.model_file = Some(read(&model)?.into());
            }
            Ok(tokenizer)
        } else if model.is_file() {
            // The Python class's own default where the file does not say.
            let legacy = files.legacy.unwrap_or(true);
            Self::from_model(&model, legacy, files)
        } else {
            Err(DataError::Tokenizer {
                path: dir.to_path_buf(),
                reason: "no tokenizer.json and no tokenizer.model in this folder".into(),
            })
        }
    }

    /// Reads a SentencePiece `tokenizer.model` without the files around it: begin, end and
    /// unknown tokens are the model's own, and a begin token is added.
    ///
    /// # Errors
    /// If it is not a SentencePiece BPE.
    pub fn from_sentencepiece(path: impl AsRef<Path>, legacy: bool) -> Result<Self, DataError> {
        Self::from_model(path.as_ref(), legacy, TokenizerFiles::default())
    }

    /// Ids of a text; `add_bos` puts the begin token first, where this tokenizer adds one. A
    /// special token spelt out in the text is that token: conversations
    /// ([`Conversation::encode_prompt`](crate::Conversation::encode_prompt)) take what people
    /// write for plain text instead.
    ///
    /// # Errors
    /// If the vocabulary cannot write the text.
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<i64>, DataError> {
        let spans = self.encode_with_spans(text, add_bos)?;
        Ok(spans.into_iter().map(|token| token.id).collect())
    }

    /// Ids of a text with the bytes that each covers, in order.
    ///
    /// # Errors
    /// If the vocabulary cannot write the text.
    pub fn encode_with_spans(
        &self,
        text: &str,
        add_bos: bool,
    ) -> Result<Vec<TokenSpan>, DataError> {
        let found = spans_of(&self.inner, text)?;
        self.finish_spans(text, found, add_bos)
    }

    /// The begin token before what was found in a text, and the spaces as `legacy` has them.
    fn finish_spans(
        &self,
        text: &str,
        found: Vec<TokenSpan>,
        add_bos: bool,
    ) -> Result<Vec<TokenSpan>, DataError> {
        let mut tokens = Vec::with_capacity(found.len() + 1);
        if let (true, true, Some(id)) = (add_bos, self.adds_bos, self.bos) {
            tokens.push(TokenSpan {
                id,
                start: 0,
                end: 0,
            });
        }
        match &self.sentencepiece {
            Some(model) if !model.legacy => {
                self.without_inner_prefix(model, text, &found, &mut tokens)?;
            }
            _ => tokens.extend(found),
        }
        Ok(tokens)
    }

    /// Whether a span is an added token that stands in the text as it is spelt. (A byte of a
    /// character may be an added token too, without its name being in the text.)
    fn is_spelt(&self, token: &TokenSpan, text: &str) -> bool {
        let spelt = || {
            let covered = text.get(token.start..token.end)?;
            Some(covered.trim() == self.token(token.id)?.trim())
        };
        u32::try_from(token.id).is_ok_and(|id| self.added.contains(&id)) && spelt().unwrap_or(false)
    }

    /// Text of ids. Bytes that are not UTF-8 become U+FFFD, as in Python; no spaces are put
    /// around special tokens.
    ///
    /// # Errors
    /// If the vocabulary lacks an id.
    pub fn decode(&self, ids: &[i64], skip_special: bool) -> Result<String, DataError> {
        let mut stream = StreamDecoder::new(self, skip_special);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(id)?);
        }
        text.push_str(&stream.finish());
        Ok(text)
    }

    pub(crate) fn append_bytes(&self, id: i64, out: &mut Vec<u8>) -> Result<(), DataError> {
        let Some(piece) = self.token(id) else {
            return Err(DataError::Encoding(format!(
                "no token has the id {id}: the vocabulary has {} tokens, the last with the id {}",
                self.len(),
                self.id_end() - 1
            )));
        };
        if u32::try_from(id).is_ok_and(|id| self.added.contains(&id)) {
            out.extend_from_slice(piece.as_bytes());
        } else {
            self.alphabet.append(&piece, out);
        }
        Ok(())
    }

    pub(crate) fn alphabet(&self) -> Alphabet {
        self.alphabet
    }

    pub(crate) fn strips_first_space(&self) -> bool {
        self.alphabet == (Alphabet::SentencePiece { strip_first: true })
    }

    /// Id of a token.
    pub fn id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// The token as the vocabulary writes it.
    pub fn token(&self, id: i64) -> Option<String> {
        self.inner.id_to_token(u32::try_from(id).ok()?)
    }

    /// Whether an id stands for no text: begin, end, unknown, and tokens marked special.
    pub fn is_special(&self, id: i64) -> bool {
        self.special.contains(&id)
    }

    /// The begin token.
    pub fn bos_id(&self) -> Option<i64> {
        self.bos
    }

    /// The end token that stands for `</s>` in a template.
    pub fn eos_id(&self) -> Option<i64> {
        self.eos.first().copied()
    }

    /// All tokens that end a text; the first is [`Self::eos_id`].
    pub fn eos_ids(&self) -> &[i64] {
        &self.eos
    }

    /// The padding token; where none is named, the unknown or else the end token.
    pub fn pad_id(&self) -> Option<i64> {
        self.pad.or(self.unk).or(self.eos_id())
    }

    /// Whether a begin token is put before a text.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Replaces the end tokens, for instance by `eos_token_id` of a model whose folder is not the
    /// tokenizer's. Ids that the vocabulary lacks are left out.
    pub fn set_eos_ids(&mut self, ids: &[i64]) {
        self.eos.clear();
        for &id in ids {
            if self.token(id).is_some() && !self.eos.contains(&id) {
                self.eos.push(id);
            }
        }
    }
}

/// The tokens that the library finds in a text, with the bytes that each covers.
fn spans_of(tokenizer: &Tokenizer, text: &str) -> Result<Vec<TokenSpan>, DataError> {
    let encoding = guarded(|| tokenizer.encode(text, false))
        .map_err(DataError::Encoding)?
        .map_err(|e| DataError::Encoding(e.to_string()))?;
    let ids = encoding.get_ids().iter();
    let spans = ids
        .zip(encoding.get_offsets())
        .map(|(&id, &(start, end))| TokenSpan {
            id: i64::from(id),
            start,
            end,
        });
    Ok(spans.collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A byte-level tokenizer.json without merges, as GPT-2 and SmolLM2 write theirs.
    fn byte_level(dir: &Path, post_processor: &str) {
        let mut vocab = Map::new();
        for token in ["<|end|>", "<|im_start|>", "<|im_end|>"] {
            vocab.insert(token.into(), vocab.len().into());
        }
        for c in (0x21..=0x17fu32).filter_map(char::from_u32) {
            vocab.insert(c.to_string(), vocab.len().into());
        }
        let vocab = Value::Object(vocab);
        let json = format!(
            r#"{{"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
              "added_tokens": [
                {{"id": 1, "content": "<|im_start|>", "single_word": false, "lstrip": false,
                  "rstrip": false, "normalized": false, "special": true}},
                {{"id": 2, "content": "<|im_end|>", "single_word": false, "lstrip": false,
                  "rstrip": false, "normalized": false, "special": true}}],
              "pre_tokenizer": {{"type": "ByteLevel", "add_prefix_space": false,
                "trim_offsets": true, "use_regex": true}},
              "post_processor": {post_processor},
              "decoder": {{"type": "ByteLevel", "add_prefix_space": true,
                "trim_offsets": true, "use_regex": true}},
              "model": {{"type": "BPE", "vocab": {vocab}, "merges": []}}}}"#
        );
        fs::write(dir.join("tokenizer.json"), json).unwrap();
    }

    const TEXT: &str = "Hé 🦙👩‍👩‍👧 漢字!";

    /// Pushes ids one by one: every delta is text, and together they are the whole.
    fn stream(tokenizer: &TextTokenizer, ids: &[i64]) -> Vec<String> {
        let mut stream = StreamDecoder::new(tokenizer, true);
        let mut deltas: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        deltas.push(stream.finish());
        assert_eq!(deltas.concat(), tokenizer.decode(ids, true).unwrap());
        deltas
    }

    #[test]
    fn a_stream_never_breaks_a_character() {
        let dir = tempfile::tempdir().unwrap();
        byte_level(dir.path(), "null");
        let bytes = TextTokenizer::from_dir(dir.path()).unwrap();
        let model = golden::llama_tokenizer().join("tokenizer.model");
        let llama = TextTokenizer::from_sentencepiece(model, false).unwrap();
        for (tokenizer, marks) in [(&bytes, 1), (&llama, 3)] {
            let ids = tokenizer.encode(TEXT, true).unwrap();
            let deltas = stream(tokenizer, &ids);
            assert_eq!(deltas.concat(), TEXT);
            assert!(deltas.iter().all(|d| !d.contains('\u{fffd}')), "{deltas:?}");
            // The llama's four bytes come as four tokens of which the last shows it.
            assert!(deltas.iter().any(|d| d == "🦙"));

            let llama_at = deltas.iter().position(|d| d == "🦙").unwrap();
            let broken = stream(tokenizer, &ids[..llama_at]);
            assert_eq!(broken.last().unwrap(), &"\u{fffd}".repeat(marks));
        }
    }

    #[test]
    fn a_tokenizer_that_adds_no_begin_token_is_left_so() {
        let dir = tempfile::tempdir().unwrap();
        byte_level(dir.path(), "null");
        let config = r#"{"bos_token_id": 1, "eos_token_id": 2}"#;
        fs::write(dir.path().join("config.json"), config).unwrap();
        let tokenizer = TextTokenizer::from_dir(dir.path()).unwrap();
        assert!(!tokenizer.adds_bos());
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
        let ids = tokenizer.encode("<|im_start|>a", true).unwrap();
        assert_eq!(ids[0], 1);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<|im_start|>a");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a");
        assert!(
            tokenizer
                .decode(&[9999], true)
                .unwrap_err()
                .to_string()
                .contains("9999")
        );
        assert!(tokenizer.decode(&[-200], true).is_err());
    }

    #[test]
    fn the_post_processor_tells_the_begin_token_and_trims_no_span() {
        let dir = tempfile::tempdir().unwrap();
        let template = r#"{"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}}}]}"#;
        byte_level(dir.path(), template);
        let tokenizer = TextTokenizer::from_dir(dir.path()).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.adds_bos()), (Some(0), true));
        let spans = tokenizer.encode_with_spans("a b", true).unwrap();
        let places: Vec<_> = spans.iter().map(|t| (t.start, t.end)).collect();
        assert_eq!(places, [(0, 0), (0, 1), (1, 2), (2, 3)]);
        // What is saved still has it.
        let copy = tempfile::tempdir().unwrap();
        tokenizer.save(copy.path()).unwrap();
        fs::remove_file(copy.path().join("tokenizer_config.json")).unwrap();
        assert!(TextTokenizer::from_dir(copy.path()).unwrap().adds_bos());
    }

    #[test]
    fn the_end_token_comes_from_the_model_then_from_the_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        byte_level(dir.path(), "null");
        let eos = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).unwrap();
            TextTokenizer::from_dir(dir.path())
                .unwrap()
                .eos_ids()
                .to_vec()
        };
        assert_eq!(
            eos("tokenizer_config.json", r#"{"eos_token": "<|im_end|>"}"#),
            [2]
        );
        assert_eq!(eos("config.json", r#"{"eos_token_id": [0, 2]}"#), [2, 0]);
        assert_eq!(eos("config.json", r#"{"eos_token_id": 0}"#), [0, 2]);
        assert_eq!(
            eos("generation_config.json", r#"{"eos_token_id": [1, 99999]}"#),
            [0, 2, 1]
        );
    }

    #[test]
    fn a_folder_without_a_tokenizer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = TextTokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        fs::write(dir.path().join("added_tokens.json"), r#"{"<x>": 5}"#).unwrap();
        byte_level(dir.path(), "null");
        let error = TextTokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("<x>") && error.contains('5'), "{error}");
    }
}
