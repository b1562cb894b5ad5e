//! Writing a tokenizer's files.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::TextTokenizer;
use crate::DataError;
use crate::atomic::write_atomic;

impl TextTokenizer {
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

    pub(super) fn config_json(&self) -> Value {
        let mut config = self.config.clone();
        let named = |id: Option<i64>| id.and_then(|id| self.token(id));
        // The one that the files name so, which a chat template may write; config.json has others.
        let eos = self.named.get("eos_token").and_then(Value::as_str);
        let eos = eos.and_then(|token| self.id(token)).or(self.eos_id());
        config.insert("add_bos_token".into(), json!(self.adds_bos));
        for (key, id) in [
            ("bos_token", self.bos),
            ("eos_token", eos),
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

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    write_atomic(path, bytes).map_err(|source| DataError::Io {
        path: path.to_path_buf(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::SQ_TOKENS;

    const TEXTS: [&str; 6] = [
        "",
        "  two  spaces\n",
        "<s> hi</s>USER: them",
        "[usr]them[aswr]🦙 é<o^d>",
        "漢字</s> ASSISTANT:",
        "[aswr] x",
    ];

    fn same(tokenizer: &TextTokenizer, again: &TextTokenizer) {
        assert_eq!(tokenizer.len(), again.len());
        for text in TEXTS {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids, again.encode(text, true).unwrap(), "{text:?}");
            let decoded = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(decoded, again.decode(&ids, true).unwrap(), "{text:?}");
        }
        assert_eq!(tokenizer.eos_id(), again.eos_id());
        assert_eq!(tokenizer.bos_id(), again.bos_id());
        assert_eq!(tokenizer.pad_id(), again.pad_id());
        assert_eq!(tokenizer.adds_bos(), again.adds_bos());
    }

    #[test]
    fn a_bare_model_is_read_back_with_equal_ids() {
        for legacy in [false, true] {
            let path = golden::llama_tokenizer().join("tokenizer.model");
            let mut tokenizer = TextTokenizer::from_sentencepiece(path, legacy).unwrap();
            tokenizer.add_special_tokens(&SQ_TOKENS).unwrap();
            let dir = tempfile::tempdir().unwrap();
            tokenizer.save(dir.path()).unwrap();
            same(&tokenizer, &TextTokenizer::from_dir(dir.path()).unwrap());
        }
    }

    #[test]
    fn a_tokenizer_json_is_read_back_with_equal_ids() {
        let source = golden::llama_tokenizer();
        let mut tokenizer = TextTokenizer::from_dir(&source).unwrap();
        assert!(tokenizer.adds_bos());
        assert_eq!(
            tokenizer.add_special_tokens(&SQ_TOKENS).unwrap(),
            [32000, 32001, 32002, 32003]
        );
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        same(&tokenizer, &TextTokenizer::from_dir(dir.path()).unwrap());
        let model = fs::read(dir.path().join("tokenizer.model")).unwrap();
        assert_eq!(model, fs::read(source.join("tokenizer.model")).unwrap());

        // A bare model is not saved where this file would be read in its place.
        let bare = TextTokenizer::from_sentencepiece(source.join("tokenizer.model"), true).unwrap();
        let error = bare.save(dir.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
}
