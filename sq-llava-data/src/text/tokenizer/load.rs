//! Putting a tokenizer together from its files.

use std::collections::HashSet;
use std::path::Path;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer};

use super::files::{ListedToken, TokenizerFiles};
use super::{SentencePiece, TextTokenizer, read};
use crate::DataError;
use crate::foreign::guarded;
use crate::text::pieces::Alphabet;
use crate::text::sentencepiece;

/// Bytes of an added token. The library's search for them takes a thousand times their length in
/// memory.
const LONGEST_ADDED: usize = 1024;

/// The part of a tokenizer.json that is looked at before the library reads it.
#[derive(Deserialize)]
struct Added {
    #[serde(default)]
    added_tokens: Vec<Content>,
}

#[derive(Deserialize)]
struct Content {
    id: u32,
    content: String,
}

/// Reads a tokenizer.json with the library.
///
/// # Errors
/// What is wrong with it.
pub fn tokenizer_of(bytes: &[u8]) -> Result<Tokenizer, String> {
    let read = |bytes: &[u8]| {
        Tokenizer::from_bytes(bytes).map_err(|e| format!("not readable: {e}; is the file whole?"))
    };
    // What is not JSON the library says better.
    let Ok(Added { added_tokens }) = serde_json::from_slice(bytes) else {
        return read(bytes);
    };
    check_lengths(added_tokens.iter().map(|token| &token.content))?;
    let tokenizer = read(bytes)?;
    let moved = |tokenizer: &Tokenizer| {
        let id = |token: &Content| tokenizer.token_to_id(&token.content);
        added_tokens
            .iter()
            .position(|token| id(token) != Some(token.id))
    };
    if moved(&tokenizer).is_none() {
        return Ok(tokenizer);
    }
    // The library numbers added tokens on from the number of others, so that they move where that
    // has holes. Those that the vocabulary itself lists stay.
    let mut json: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if let Some(vocabulary) = json["model"]["vocab"].as_object_mut() {
        for token in &added_tokens {
            vocabulary.entry(&token.content).or_insert(token.id.into());
        }
    }
    let tokenizer = read(json.to_string().as_bytes())?;
    match moved(&tokenizer) {
        None => Ok(tokenizer),
        Some(at) => Err(format!(
            "the added token {:?} is listed with the id {}, which the vocabulary does not give it",
            added_tokens[at].content, added_tokens[at].id
        )),
    }
}

fn check_lengths<'a>(added: impl Iterator<Item = &'a String>) -> Result<(), String> {
    match added.map(String::len).find(|&bytes| bytes > LONGEST_ADDED) {
        None => Ok(()),
        Some(bytes) => Err(format!(
            "an added token has {bytes} bytes, above the limit of {LONGEST_ADDED}; is the file damaged?"
        )),
    }
}

impl TextTokenizer {
    pub(super) fn from_json(path: &Path, files: TokenizerFiles) -> Result<Self, DataError> {
        Self::from_json_bytes(&read(path)?, path, files)
    }

    /// A `tokenizer.json` in memory; `path` is for messages.
    pub(super) fn from_json_bytes(
        bytes: &[u8],
        path: &Path,
        files: TokenizerFiles,
    ) -> Result<Self, DataError> {
        behind_the_door(path, || Self::parse_json(bytes, path, files))
    }

    fn parse_json(bytes: &[u8], path: &Path, files: TokenizerFiles) -> Result<Self, DataError> {
        let fail = |reason: String| DataError::Tokenizer {
            path: path.to_path_buf(),
            reason,
        };
        let mut inner = tokenizer_of(bytes).map_err(fail)?;
        inner.with_padding(None);
        let put_first = inner
            .with_truncation(None)
            // What the post-processor puts before a text is the begin token.
            .and_then(|inner| inner.encode("", true))
            .map_err(|e| fail(e.to_string()))?
            .get_ids()
            .first()
            .map(|&id| i64::from(id));
        let alphabet = Alphabet::detect(&inner).map_err(|e| fail(e.to_string()))?;
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

    pub(super) fn from_model(
        path: &Path,
        legacy: bool,
        files: TokenizerFiles,
    ) -> Result<Self, DataError> {
        Self::from_model_bytes(read(path)?, path, legacy, files)
    }

    /// A `tokenizer.model` in memory; `path` is for messages.
    pub(super) fn from_model_bytes(
        bytes: Vec<u8>,
        path: &Path,
        legacy: bool,
        files: TokenizerFiles,
    ) -> Result<Self, DataError> {
        behind_the_door(path, || Self::parse_model(bytes, path, legacy, files))
    }

    fn parse_model(
        bytes: Vec<u8>,
        path: &Path,
        legacy: bool,
        mut files: TokenizerFiles,
    ) -> Result<Self, DataError> {
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
            .chain(&files.spoken)
            .filter(|token| inner.token_to_id(token).is_some())
            .map(|token| AddedToken::from(token.clone(), true).normalized(false))
            .collect();
        inner.add_special_tokens(&named);
        let alphabet = Alphabet::SentencePiece {
            strip_first: converted.space_first,
        };
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
        add_listed(&mut inner, &files.added, path)?;
        let id = |token: &Option<String>| inner.token_to_id(token.as_ref()?).map(i64::from);
        let eos = eos_ids(&files, id(&files.eos));
        let bos = id(&files.bos).or(files.config_bos);
        let named = named_tokens(&files);
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
            named,
            special: HashSet::new(),
            added: HashSet::new(),
            runs: Vec::new(),
            plain: OnceLock::new(),
            inner,
        };
        tokenizer.bos = bos.filter(|&id| tokenizer.token(id).is_some());
        tokenizer.set_eos_ids(&eos);
        tokenizer.note_vocabulary();
        Ok(tokenizer)
    }
}

fn add_listed(inner: &mut Tokenizer, listed: &[ListedToken], path: &Path) -> Result<(), DataError> {
    check_lengths(listed.iter().map(|token| &token.content)).map_err(|reason| {
        DataError::Tokenizer {
            path: path.to_path_buf(),
            reason,
        }
    })?;
    for token in listed {
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
    Ok(())
}

/// The ids that end an answer; `named` is the one that tokenizer_config.json names.
fn eos_ids(files: &TokenizerFiles, named: Option<i64>) -> Vec<i64> {
    // The template's end token comes first: config.json's, and of several the one that
    // tokenizer_config.json names.
    let mut eos: Vec<i64> = match (&files.config_eos[..], named) {
        ([], Some(named)) => vec![named],
        (several, Some(named)) if several.contains(&named) => vec![named],
        (several, _) => several.first().copied().into_iter().collect(),
    };
    eos.extend(&files.config_eos);
    eos.extend(named);
    eos.extend(&files.generation_eos);
    eos
}

/// The special tokens by the keys of tokenizer_config.json.
fn named_tokens(files: &TokenizerFiles) -> Map<String, Value> {
    let usual = [
        ("bos_token", &files.bos),
        ("eos_token", &files.eos),
        ("unk_token", &files.unk),
        ("pad_token", &files.pad),
    ];
    let usual = usual
        .into_iter()
        .filter_map(|(key, text)| Some((key.to_owned(), text.clone()?)));
    let named = usual.chain(files.named.iter().cloned());
    named.map(|(key, text)| (key, text.into())).collect()
}

/// The library panics at some damaged files.
fn behind_the_door<T>(
    path: &Path,
    read: impl FnOnce() -> Result<T, DataError>,
) -> Result<T, DataError> {
    guarded(read).unwrap_or_else(|reason| {
        Err(DataError::Tokenizer {
            path: path.to_path_buf(),
            reason,
        })
    })
}
