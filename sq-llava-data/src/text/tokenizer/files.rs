//! The JSON files beside a tokenizer: which tokens begin, end and pad a text.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{DataError, files};

/// A token listed in `added_tokens.json` or under `added_tokens_decoder`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    pub(crate) special: bool,
    pub(crate) lstrip: bool,
    pub(crate) rstrip: bool,
    pub(crate) single_word: bool,
    /// Whether the file says so itself (`added_tokens.json` does not).
    pub(crate) normalized: bool,
}

/// What tokenizer_config.json, special_tokens_map.json, added_tokens.json, config.json,
/// generation_config.json and a chat template of a folder say. Each of them may be absent.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenizerFiles {
    /// tokenizer_config.json as it is, so that saving keeps what is not ours.
    pub(crate) config: Map<String, Value>,
    pub(crate) legacy: Option<bool>,
    pub(crate) add_bos: Option<bool>,
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) unk: Option<String>,
    pub(crate) pad: Option<String>,
    /// Further tokens with a name: `cls_token`, and what `extra_special_tokens` lists.
    pub(crate) named: Vec<(String, String)>,
    /// Sorted by id.
    pub(crate) added: Vec<ListedToken>,
    /// `eos_token_id` of config.json (one or several).
    pub(crate) config_eos: Vec<i64>,
    /// `eos_token_id` of generation_config.json.
    pub(crate) generation_eos: Vec<i64>,
    /// `bos_token_id` of config.json.
    pub(crate) config_bos: Option<i64>,
    /// Further pieces of a SentencePiece vocabulary that are found whole in a text.
    pub(crate) spoken: Vec<String>,
}

impl TokenizerFiles {
    /// Reads whichever of the files are in `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self, DataError> {
        let mut config = object(dir.join("tokenizer_config.json"))?;
        if let Some(template) = chat_template(dir)? {
            config.insert("chat_template".into(), template.into());
        }
        let map = object(dir.join("special_tokens_map.json"))?;
        let token = |key: &str| token_text(config.get(key)).or_else(|| token_text(map.get(key)));
        let further = ["sep_token", "cls_token", "mask_token"];
        let further = further.map(|key| (key.to_owned(), token(key)));
        let extra = config
            .get("extra_special_tokens")
            .and_then(Value::as_object);
        let extra = extra
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), token_text(Some(value))));
        let named = further.into_iter().chain(extra);
        let named = named.filter_map(|(key, text)| Some((key, text?))).collect();
        let model = object(dir.join("config.json"))?;
        // LLaVA in the llava-hf layout keeps the language model's settings one level down.
        let model_key = |key: &str| {
            model
                .get(key)
                .filter(|v| !v.is_null())
                .or_else(|| model.get("text_config")?.get(key))
        };
        let generation = object(dir.join("generation_config.json"))?;
        Ok(Self {
            legacy: config.get("legacy").and_then(Value::as_bool),
            add_bos: config.get("add_bos_token").and_then(Value::as_bool),
            bos: token("bos_token"),
            eos: token("eos_token"),
            unk: token("unk_token"),
            pad: token("pad_token"),
            named,
            added: added_tokens(dir, &config, &map)?,
            config_eos: ids(model_key("eos_token_id")),
            generation_eos: ids(generation.get("eos_token_id")),
            config_bos: model_key("bos_token_id").and_then(Value::as_i64),
            spoken: Vec::new(),
            config,
        })
    }
}

fn object(path: PathBuf) -> Result<Map<String, Value>, DataError> {
    let Some(text) = text_of(&path)? else {
        return Ok(Map::new());
    };
    serde_json::from_str(&text).map_err(|source| DataError::Json { path, source })
}

/// A chat template in a file beside tokenizer_config.json, which goes before the one inside: that
/// of processor_config.json, of chat_template.json, or chat_template.jinja.
fn chat_template(dir: &Path) -> Result<Option<String>, DataError> {
    for name in ["processor_config.json", "chat_template.json"] {
        let found = object(dir.join(name))?;
        if let Some(text) = found.get("chat_template").and_then(Value::as_str) {
            return Ok(Some(text.to_owned()));
        }
    }
    text_of(&dir.join("chat_template.jinja"))
}

/// The text of a file that may be absent.
fn text_of(path: &Path) -> Result<Option<String>, DataError> {
    match files::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(DataError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `"</s>"` or `{"content": "</s>", …}`.
fn token_text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Object(fields) => Some(fields.get("content")?.as_str()?.to_owned()),
        _ => None,
    }
}

/// One id or a list of them.
fn ids(value: Option<&Value>) -> Vec<i64> {
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_i64).collect(),
        Some(one) => one.as_i64().into_iter().collect(),
        None => Vec::new(),
    }
}

fn added_tokens(
    dir: &Path,
    config: &Map<String, Value>,
    map: &Map<String, Value>,
) -> Result<Vec<ListedToken>, DataError> {
    let mut found: Vec<ListedToken> = Vec::new();
    let decoder = config
        .get("added_tokens_decoder")
        .and_then(Value::as_object);
    for (key, entry) in decoder.into_iter().flatten() {
        let (Ok(id), Some(content)) = (key.parse::<u32>(), token_text(Some(entry))) else {
            return Err(DataError::Tokenizer {
                path: dir.join("tokenizer_config.json"),
                reason: format!("added_tokens_decoder[{key:?}] is not an id with its content"),
            });
        };
        let flag = |name: &str| entry.get(name).and_then(Value::as_bool).unwrap_or(false);
        found.push(ListedToken {
            id,
            content,
            special: flag("special"),
            lstrip: flag("lstrip"),
            rstrip: flag("rstrip"),
            single_word: flag("single_word"),
            normalized: flag("normalized"),
        });
    }

    let special: Vec<String> = map
        .values()
        .chain(config.get("additional_special_tokens"))
        .chain(config.get("pad_token"))
        .flat_map(|value| match value {
            Value::Array(list) => list.iter().filter_map(|v| token_text(Some(v))).collect(),
            one => token_text(Some(one)).into_iter().collect::<Vec<_>>(),
        })
        .collect();
    let path = dir.join("added_tokens.json");
    for (content, id) in object(path.clone())? {
        let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            return Err(DataError::Tokenizer {
                path,
                reason: format!("{content:?} has no id"),
            });
        };
        if !found.iter().any(|token| token.content == content) {
            found.push(ListedToken {
                id,
                special: special.contains(&content),
                content,
                lstrip: false,
                rstrip: false,
                single_word: false,
                normalized: false,
            });
        }
    }
    found.sort_by_key(|token| token.id);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn tokens_come_as_strings_and_as_objects() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(
            "tokenizer_config.json",
            r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null,
                "legacy": null, "add_bos_token": false,
                "added_tokens_decoder": {"9": {"content": "<x>", "special": true}}}"#,
        );
        write(
            "special_tokens_map.json",
            r#"{"eos_token": "</s>", "pad_token": "<pad>"}"#,
        );
        write("added_tokens.json", r#"{"<pad>": 8, "word": 10, "<x>": 9}"#);
        write(
            "config.json",
            r#"{"text_config": {"eos_token_id": [2, 7]}}"#,
        );
        let files = TokenizerFiles::read(dir.path()).unwrap();
        assert_eq!(files.bos.as_deref(), Some("<s>"));
        assert_eq!(files.eos.as_deref(), Some("</s>"));
        assert_eq!((files.legacy, files.add_bos), (None, Some(false)));
        assert_eq!(files.config_eos, [2, 7]);
        let added: Vec<_> = files
            .added
            .iter()
            .map(|t| (t.id, t.content.as_str(), t.special))
            .collect();
        assert_eq!(
            added,
            [(8, "<pad>", true), (9, "<x>", true), (10, "word", false)]
        );
    }

    #[test]
    fn a_chat_template_is_found_where_transformers_looks() {
        let dir = tempfile::tempdir().unwrap();
        let found = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).unwrap();
            let files = TokenizerFiles::read(dir.path()).unwrap();
            files.config["chat_template"].as_str().unwrap().to_owned()
        };
        let inside = r#"{"chat_template": "inside"}"#;
        assert_eq!(found("tokenizer_config.json", inside), "inside");
        assert_eq!(found("chat_template.jinja", "apart\n"), "apart\n");
        let old = r#"{"chat_template": "old"}"#;
        assert_eq!(found("chat_template.json", old), "old");
        let none = r#"{"processor_class": "LlavaProcessor"}"#;
        assert_eq!(found("processor_config.json", none), "old");
        let processor = r#"{"chat_template": "processor's"}"#;
        assert_eq!(found("processor_config.json", processor), "processor's");
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
        let error = TokenizerFiles::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json"), "{error}");
    }
}
