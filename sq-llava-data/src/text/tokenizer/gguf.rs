//! The tokenizer inside a GGUF file (keys `tokenizer.ggml.*`).
//!
//! A SentencePiece vocabulary (`llama`) becomes the `tokenizer.model` that it was made from, a
//! byte-level BPE (`gpt2`) the `tokenizer.json`; both are then read as those files are.

use serde_json::{Map, Value, json};

use super::TextTokenizer;
use super::files::TokenizerFiles;
use crate::DataError;
use crate::gguf::GgufHeader;
use crate::text::sentencepiece::Listed;

/// Kinds of tokens (`llama_token_type`).
pub(super) const NORMAL: i64 = 1;
pub(super) const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
pub(super) const UNUSED: i64 = 5;
pub(super) const BYTE: i64 = 6;

/// GPT-2's split of a text into words.
pub(super) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// LLaMA 3's.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's, which takes digits one by one.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's where a file names none: punctuation, then words, then groups of digits.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// The vocabulary as the file lists it.
struct Vocabulary<'a> {
    header: &'a GgufHeader,
    tokens: &'a [String],
    kinds: &'a [i64],
}

impl TextTokenizer {
    /// The tokenizer of a GGUF file.
    ///
    /// # Errors
    /// If the file holds none, or one of an unsupported kind.
    pub fn from_gguf(header: &GgufHeader) -> Result<Self, DataError> {
        let vocabulary = Vocabulary::read(header)?;
        match header.text("tokenizer.ggml.model")? {
            Some("llama") => vocabulary.sentencepiece(),
            Some("gpt2") => vocabulary.byte_level(),
            other => Err(header.error(format!(
                "the tokenizer model {} is not supported, only llama and gpt2; put the model's tokenizer.json beside the file",
                other.map_or("(none named)".into(), |name| format!("\"{name}\""))
            ))),
        }
    }
}

impl<'a> Vocabulary<'a> {
    fn read(header: &'a GgufHeader) -> Result<Self, DataError> {
        let tokens = header.texts("tokenizer.ggml.tokens")?.ok_or_else(|| {
            header.error(
                "no tokenizer inside (\"tokenizer.ggml.tokens\"); put the model's tokenizer.json beside the file",
            )
        })?;
        let kinds = header
            .integers("tokenizer.ggml.token_type")?
            .unwrap_or_default();
        if !kinds.is_empty() && kinds.len() != tokens.len() {
            return Err(header.error(format!(
                "{} tokens have {} types; the file is damaged",
                tokens.len(),
                kinds.len()
            )));
        }
        Ok(Self {
            header,
            tokens,
            kinds,
        })
    }

    /// The tokens of a kind.
    fn of_kind(&self, wanted: i64) -> impl Iterator<Item = (usize, &'a String)> {
        let kinds = self.kinds;
        self.tokens
            .iter()
            .enumerate()
            .filter(move |(i, _)| kinds.get(*i) == Some(&wanted))
    }

    /// The id under a key, if the vocabulary has it.
    fn id(&self, key: &str) -> Result<Option<usize>, DataError> {
        let key = format!("tokenizer.ggml.{key}_token_id");
        match self.header.size(&key)? {
            Some(id) if id >= self.tokens.len() => Err(self.header.error(format!(
                "\"{key}\" is {id}, but there are {} tokens",
                self.tokens.len()
            ))),
            id => Ok(id),
        }
    }

    /// Named tokens, and whether a begin token is put first (`by_default` where the file does
    /// not say).
    fn files(&self, by_default: bool) -> Result<TokenizerFiles, DataError> {
        let token = |id: Option<usize>| id.map(|id| self.tokens[id].clone());
        let (bos, eos) = (self.id("bos")?, self.id("eos")?);
        let ends = [eos, self.id("eot")?, self.id("eom")?];
        let add_bos = self
            .header
            .flag("tokenizer.ggml.add_bos_token")?
            .unwrap_or(by_default);
        let mut config = Map::new();
        config.insert("add_bos_token".into(), json!(add_bos));
        if let Some(template) = self.header.text("tokenizer.chat_template")? {
            config.insert("chat_template".into(), json!(template));
        }
        Ok(TokenizerFiles {
            config,
            add_bos: Some(add_bos),
            bos: token(bos),
            eos: token(eos),
            unk: token(self.id("unknown")?),
            pad: token(self.id("padding")?),
            config_eos: ends.into_iter().flatten().map(|id| id as i64).collect(),
            config_bos: bos.map(|id| id as i64),
            ..TokenizerFiles::default()
        })
    }

    fn sentencepiece(&self) -> Result<TextTokenizer, DataError> {
        let scores = self.header.floats("tokenizer.ggml.scores")?;
        let scores = scores.filter(|s| s.len() == self.tokens.len());
        let scores = scores.ok_or_else(|| {
            self.header
                .error("no score for every token (\"tokenizer.ggml.scores\")")
        })?;
        let mut files = self.files(true)?;
        files.spoken = self.of_kind(CONTROL).map(|(_, t)| t.clone()).collect();
        let id = |id: Option<usize>| id.and_then(|id| i32::try_from(id).ok());
        let unknown = match self.id("unknown")? {
            None => self.of_kind(UNKNOWN).next().map(|(id, _)| id),
            id => id,
        };
        let listed = Listed {
            pieces: self.tokens,
            scores,
            kinds: self.kinds,
            unk: id(unknown),
            bos: id(self.id("bos")?),
            eos: id(self.id("eos")?),
            pad: id(self.id("padding")?),
            space_first: self
                .header
                .flag("tokenizer.ggml.add_space_prefix")?
                .unwrap_or(true),
        };
        // A space goes before the text after every special token, as in llama.cpp.
        let legacy = true;
        TextTokenizer::from_model_bytes(listed.to_model(), &self.header.path, legacy, files)
    }

    fn byte_level(&self) -> Result<TextTokenizer, DataError> {
        let kind = self.header.text("tokenizer.ggml.pre")?;
        let Some(words) = pre_tokenizer(kind.unwrap_or("default")) else {
            return Err(self.header.error(format!(
                "the pre-tokenizer \"{}\" is not supported; known are {}; put the model's tokenizer.json beside the file",
                kind.unwrap_or_default(),
                PRE_TOKENIZERS.join(", ")
            )));
        };
        let mut vocab = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if vocab.insert(token.clone(), json!(id)).is_some() {
                return Err(self
                    .header
                    .error(format!("the token {token:?} is there twice")));
            }
        }
        let merges = self
            .header
            .texts("tokenizer.ggml.merges")?
            .ok_or_else(|| self.header.error("no \"tokenizer.ggml.merges\" inside"))?;
        let special = self.of_kind(CONTROL).map(|(id, t)| (id, t, true));
        let plain = self.of_kind(USER_DEFINED).map(|(id, t)| (id, t, false));
        let mut added: Vec<_> = special.chain(plain).collect();
        added.sort_unstable_by_key(|&(id, ..)| id);
        let added: Vec<Value> = added
            .into_iter()
            .map(|(id, content, special)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": special})
            })
            .collect();
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": words.steps,
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": words.takes_whole_words,
                "vocab": vocab, "merges": merges},
        });
        let files = self.files(words.takes_whole_words)?;
        TextTokenizer::from_json_bytes(json.to_string().as_bytes(), &self.header.path, files)
    }
}

/// The ways to split a text into words that are known, by their first names.
pub(super) const PRE_TOKENIZERS: [&str; 6] =
    ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "default"];

/// A way to split a text into words before merging.
pub(super) struct PreTokenizer {
    /// As `tokenizer.json` writes it.
    pub(super) steps: Value,
    /// LLaMA 3's way, which takes a whole word of the vocabulary without merging, and begins with
    /// a token.
    pub(super) takes_whole_words: bool,
}

/// What the steps of a pre-tokenizer do, to be compared.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words(pub(super) Vec<String>);

/// How a text is split, by its name in llama.cpp.
pub(super) fn pre_tokenizer(kind: &str) -> Option<PreTokenizer> {
    let split = |pattern: &str| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": false})
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": false});
    let steps = match kind {
        "gpt-2" | "gpt2" | "phi-2" | "olmo" | "mpt" => vec![split(GPT2)],
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
            vec![
                json!({"type": "Digits", "individual_digits": true}),
                split(GPT2),
            ]
        }
        "llama-bpe" | "llama3" | "llama-v3" | "dbrx" | "smaug-bpe" => vec![split(LLAMA3)],
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" => vec![split(QWEN2)],
        "default" => DEFAULT.into_iter().map(split).collect(),
        _ => return None,
    };
    let steps: Vec<Value> = steps.into_iter().chain([bytes]).collect();
    Some(PreTokenizer {
        steps: json!({"type": "Sequence", "pretokenizers": steps}),
        takes_whole_words: matches!(kind, "llama-bpe" | "llama3" | "llama-v3"),
    })
}
