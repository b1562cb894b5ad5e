//! Text ↔ ids: `tokenizer.json`, or SentencePiece's `tokenizer.model` alone.
//!
//! A `tokenizer.json` is followed as it is. A bare `tokenizer.model` gives the ids of Python's
//! slow `LlamaTokenizer` (transformers 4.31), for both values of its `legacy` setting: that of
//! every text which follows a special token. With `legacy` a space is put before it (`▁US ER`);
//! without, the space is cut off the finished tokens again (`US ER`).

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, Model, PostProcessorWrapper, Tokenizer};

use crate::pieces::Alphabet;
use crate::sentencepiece::{self, SPACE_MARK};
use crate::tokenizer_files::TokenizerFiles;
use crate::{DataError, StreamDecoder};

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
    /// Taken out of `inner`, which would trim spans with it; put back when saving.
    post_processor: Option<PostProcessorWrapper>,
    alphabet: Alphabet,
    /// A `tokenizer.model`, where ids come from it.
    sentencepiece: Option<SentencePiece>,
    /// The `tokenizer.model` that lay in the folder.
    model_file: Option<Arc<[u8]>>,
    config: Map<String, Value>,
    special: HashSet<i64>,
    added: HashSet<u32>,
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
    /// config.json and generation_config.json where they are.
    ///
    /// # Errors
    /// If neither is there, or a file is damaged or of an unsupported kind.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, DataError> {
        let dir = dir.as_ref();
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

    fn from_json(path: &Path, files: TokenizerFiles) -> Result<Self, DataError> {
        let fail = |reason: String| DataError::Tokenizer {
            path: path.to_path_buf(),
            reason,
        };
        let mut inner =
            Tokenizer::from_bytes(read(path)?).map_err(|e| fail(format!("not readable: {e}")))?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| fail(e.to_string()))?;
        let alphabet = Alphabet::detect(&inner)?;
        // What the post-processor puts before a text is the begin token.
        let empty = inner.encode("", true).map_err(|e| fail(e.to_string()))?;
        let put_first = empty.get_ids().first().map(|&id| i64::from(id));
        let post_processor = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let mut tokenizer = Self::assemble(inner, alphabet, files, path)?;
        tokenizer.post_processor = post_processor;
        if tokenizer.bos.is_none() {
            tokenizer.bos = put_first;
        }
        let says = tokenizer
            .config
            .get("add_bos_token")
            .and_then(Value::as_bool);
        tokenizer.adds_bos = tokenizer.bos.is_some()
            && says.unwrap_or(put_first.is_some() && put_first == tokenizer.bos);
        Ok(tokenizer)
    }

    fn from_model(path: &Path, legacy: bool, mut files: TokenizerFiles) -> Result<Self, DataError> {
        let bytes = read(path)?;
        let converted = sentencepiece::convert(&bytes, path)?;
        files.bos = files.bos.or(converted.bos);
        files.eos = files.eos.or(converted.eos);
        files.unk = files.unk.or(converted.unk);
        files.pad = files.pad.or(converted.pad);
        let add_bos = files.add_bos.unwrap_or(true);
        let mut inner = converted.tokenizer;
        let pieces = u32::try_from(inner.get_vocab_size(false)).unwrap_or(u32::MAX);
        // The slow tokenizer looks for these in a text.
        let named: Vec<AddedToken> = [&files.bos, &files.eos, &files.unk, &files.pad]
            .into_iter()
            .flatten()
            .filter(|token| inner.token_to_id(token).is_some())
            .map(|token| AddedToken::from(token.clone(), true).normalized(false))
            .collect();
        inner.add_special_tokens(&named);
        let alphabet = Alphabet::SentencePiece { strip_first: true };
        let mut tokenizer = Self::assemble(inner, alphabet, files, path)?;
        let control = converted.control_ids.iter().copied();
        tokenizer.special.extend(control.clone().map(i64::from));
        tokenizer.sentencepiece = Some(SentencePiece {
            legacy,
            control: control.collect(),
            pieces,
        });
        tokenizer.model_file = Some(bytes.into());
        tokenizer.adds_bos = add_bos && tokenizer.bos.is_some();
        Ok(tokenizer)
    }

    /// Adds the listed tokens and finds the ids of the named ones.
    fn assemble(
        mut inner: Tokenizer,
        alphabet: Alphabet,
        files: TokenizerFiles,
        path: &Path,
    ) -> Result<Self, DataError> {
        for token in &files.added {
            if inner.token_to_id(&token.content).is_none() {
                let flags = AddedToken::from(token.content.clone(), token.special)
                    .lstrip(token.lstrip)
                    .rstrip(token.rstrip)
                    .single_word(token.single_word)
                    .normalized(token.normalized);
                if token.special {
                    inner.add_special_tokens(&[flags]);
                } else {
                    inner.add_tokens(&[flags]);
                }
            }
            let id = inner.token_to_id(&token.content);
            if id != Some(token.id) {
                return Err(DataError::Tokenizer {
                    path: path.to_path_buf(),
                    reason: format!(
                        "the added token {:?} is listed with id {} but the vocabulary gives it {id:?}; \
                         added_tokens.json does not belong to this tokenizer",
                        token.content, token.id
                    ),
                });
            }
        }
        let id = |token: &Option<String>| inner.token_to_id(token.as_ref()?).map(i64::from);
        let named_eos = id(&files.eos);
        // The template's end token comes first: config.json's, and of several the one that
        // tokenizer_config.json names.
        let mut eos: Vec<i64> = match (&files.config_eos[..], named_eos) {
            ([], Some(named)) => vec![named],
            (several, Some(named)) if several.contains(&named) => vec![named],
            (several, _) => several.first().copied().into_iter().collect(),
        };
        eos.extend(&files.config_eos);
        eos.extend(named_eos);
        eos.extend(&files.generation_eos);
        let bos = id(&files.bos).or(files.config_bos);
        let mut tokenizer = Self {
            bos: None,
            eos: Vec::new(),
            unk: id(&files.unk),
            pad: id(&files.pad),
            adds_bos: false,
            alphabet,
            post_processor: None,
            sentencepiece: None,
            model_file: None,
            config: files.config,
            special: HashSet::new(),
            added: HashSet::new(),
            inner,
        };
        tokenizer.bos = bos.filter(|&id| tokenizer.token(id).is_some());
        tokenizer.set_eos_ids(&eos);
        tokenizer.note_added();
        Ok(tokenizer)
    }

    fn note_added(&mut self) {
        for (id, token) in self.inner.get_added_tokens_decoder() {
            self.added.insert(id);
            if token.special {
                self.special.insert(i64::from(id));
            }
        }
    }

    /// Ids of a text; `add_bos` puts the begin token first, where this tokenizer adds one.
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
        let failed = |e: tokenizers::Error| DataError::Encoding(e.to_string());
        let encoding = self.inner.encode(text, false).map_err(failed)?;
        let mut tokens = Vec::with_capacity(encoding.len() + 1);
        if let (true, true, Some(id)) = (add_bos, self.adds_bos, self.bos) {
            tokens.push(TokenSpan {
                id,
                start: 0,
                end: 0,
            });
        }
        let ids = encoding.get_ids().iter();
        let found = ids
            .zip(encoding.get_offsets())
            .map(|(&id, &(start, end))| TokenSpan {
                id: i64::from(id),
                start,
                end,
            });
        match &self.sentencepiece {
            Some(model) if !model.legacy => {
                let found: Vec<TokenSpan> = found.collect();
                self.without_inner_prefix(model, text, &found, &mut tokens)?;
            }
            _ => tokens.extend(found),
        }
        Ok(tokens)
    }

    /// `legacy = false`: takes the space off again that was put before each stretch of text
    /// after a special token.
    fn without_inner_prefix(
        &self,
        model: &SentencePiece,
        text: &str,
        found: &[TokenSpan],
        out: &mut Vec<TokenSpan>,
    ) -> Result<(), DataError> {
        let is_added =
            |token: &TokenSpan| u32::try_from(token.id).is_ok_and(|id| self.added.contains(&id));
        let mut i = 0;
        while i < found.len() {
            let token = found[i];
            let after = i.checked_sub(1).map(|p| found[p]).filter(is_added);
            let Some(special) = after.filter(|_| !is_added(&token)) else {
                out.push(token);
                i += 1;
                continue;
            };
            let end = found[i..].iter().position(is_added);
            let end = end.map_or(found.len(), |n| i + n);
            let stop = found.get(end).map_or(text.len(), |t| t.start);
            let stretch = &text[special.end..stop];
            let of_model = u32::try_from(special.id).is_ok_and(|id| model.control.contains(&id));
            if !of_model {
                // After [usr] and the like the text is encoded with no space before it at all
                // (transformers from 4.34): cutting could leave a piece that the model lacks.
                self.encode_bare(stretch, special.end, out)?;
            } else if stretch.starts_with([' ', SPACE_MARK]) {
                out.extend(&found[i..end]);
            } else {
                let piece = self.token(token.id).unwrap_or_default();
                match piece.strip_prefix(SPACE_MARK) {
                    Some("") => {}
                    Some(cut) => {
                        // transformers 4.31 gives the unknown token where there is no such piece.
                        let id = self.inner.get_model().token_to_id(cut).map(i64::from);
                        let id = id.or(self.unk).unwrap_or(token.id);
                        out.push(TokenSpan { id, ..token });
                    }
                    None => out.push(token),
                }
                out.extend(&found[i + 1..end]);
            }
            i = end;
        }
        Ok(())
    }

    /// Encodes with no space put first; `base` is where the stretch begins in the text.
    fn encode_bare(
        &self,
        stretch: &str,
        base: usize,
        out: &mut Vec<TokenSpan>,
    ) -> Result<(), DataError> {
        let mark = SPACE_MARK.to_string();
        let marked = stretch.replace(' ', &mark);
        // A space is one byte of the text and `mark.len()` bytes of what is encoded.
        let mut original = Vec::with_capacity(marked.len() + 1);
        for (at, c) in stretch.char_indices() {
            let width = if c == ' ' { mark.len() } else { c.len_utf8() };
            original.extend(std::iter::repeat_n(at, width));
        }
        original.push(stretch.len());
        let tokens = self.inner.get_model().tokenize(&marked);
        let tokens = tokens.map_err(|e| DataError::Encoding(e.to_string()))?;
        out.extend(tokens.into_iter().map(|token| TokenSpan {
            id: i64::from(token.id),
            start: base + original[token.offsets.0.min(marked.len())],
            end: base + original[token.offsets.1.min(marked.len())],
        }));
        Ok(())
    }

    /// Text of ids. Bytes that are no UTF-8 become U+FFFD, as in Python; no spaces are put
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
                "no token has the id {id}: the vocabulary has {}",
                self.len()
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

    /// Number of tokens, added ones included.
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether the vocabulary is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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

    /// Adds tokens that are taken out of a text whole; ids are appended at [`Self::len`]. One
    /// that is there already keeps its id.
    pub fn add_special_tokens(&mut self, tokens: &[&str]) -> Vec<i64> {
        let added: Vec<AddedToken> = tokens
            .iter()
            .map(|&token| AddedToken::from(token, true).normalized(false))
            .collect();
        self.inner.add_special_tokens(&added);
        self.note_added();
        // Each was added just now or was there before.
        tokens.iter().filter_map(|token| self.id(token)).collect()
    }

    /// Writes files from which [`Self::from_dir`] gives equal ids: `tokenizer.json`, or for a
    /// bare SentencePiece model `tokenizer.model` with `added_tokens.json` (no `tokenizer.json`
    /// can say what the slow tokenizer does); and `tokenizer_config.json`.
    ///
    /// # Errors
    /// If a file cannot be written, or `dir` has a `tokenizer.json` that would be read instead.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<(), DataError> {
        let dir = dir.as_ref();
        let json = dir.join("tokenizer.json");
        if self.sentencepiece.is_none() {
            let mut whole = self.inner.clone();
            whole.with_post_processor(self.post_processor.clone());
            let text = whole.to_string(false);
            let text = text.map_err(|e| DataError::Encoding(e.to_string()))?;
            write(&json, text.as_bytes())?;
        } else if json.exists() {
            return Err(DataError::Tokenizer {
                path: json,
                reason: "another tokenizer is in the folder to write to; remove this file".into(),
            });
        }
        if let Some(model) = &self.model_file {
            write(&dir.join("tokenizer.model"), model)?;
        }
        let pretty = |value: &Value| format!("{value:#}\n").into_bytes();
        write(
            &dir.join("tokenizer_config.json"),
            &pretty(&self.config_json()),
        )?;
        if let Some(model) = &self.sentencepiece {
            let added: BTreeMap<u32, Value> = self.added_after(model.pieces);
            if !added.is_empty() {
                let map: Map<String, Value> = added
                    .into_keys()
                    .filter_map(|id| Some((self.inner.id_to_token(id)?, json!(id))))
                    .collect();
                write(&dir.join("added_tokens.json"), &pretty(&Value::Object(map)))?;
            }
        }
        Ok(())
    }

    fn added_after(&self, first: u32) -> BTreeMap<u32, Value> {
        self.inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(id, _)| *id >= first)
            .map(|(id, token)| {
                let entry = json!({
                    "content": token.content, "lstrip": token.lstrip,
                    "normalized": token.normalized, "rstrip": token.rstrip,
                    "single_word": token.single_word, "special": token.special,
                });
                (id, entry)
            })
            .collect()
    }

    fn config_json(&self) -> Value {
        let mut config = self.config.clone();
        let named = |id: Option<i64>| id.and_then(|id| self.token(id));
        config.insert("add_bos_token".into(), json!(self.adds_bos));
        for (key, id) in [
            ("bos_token", self.bos),
            ("eos_token", self.eos_id()),
            ("unk_token", self.unk),
            ("pad_token", self.pad),
        ] {
            config.insert(key.into(), json!(named(id)));
        }
        let (class, first) = match &self.sentencepiece {
            Some(model) => {
                config.insert("legacy".into(), json!(model.legacy));
                ("LlamaTokenizer", 0)
            }
            None => ("PreTrainedTokenizerFast", 0),
        };
        config
            .entry("tokenizer_class")
            .or_insert_with(|| json!(class));
        let added: Map<String, Value> = self
            .added_after(first)
            .into_iter()
            .map(|(id, entry)| (id.to_string(), entry))
            .collect();
        config.insert("added_tokens_decoder".into(), Value::Object(added));
        Value::Object(config)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    fs::read(path).map_err(|source| DataError::Io {
        path: path.to_path_buf(),
        source,
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    fs::write(path, bytes).map_err(|source| DataError::Io {
        path: path.to_path_buf(),
        source,
    })
}
