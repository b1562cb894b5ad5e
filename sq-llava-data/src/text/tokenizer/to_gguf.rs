//! A tokenizer as the keys `tokenizer.*` of a GGUF file.
//!
//! llama.cpp splits a text in one of two ways. `llama`: SentencePiece's, by a score of each piece.
//! `gpt2`: byte-level BPE, by a list of merges, with a way of splitting into words that has a name.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::TextTokenizer;
use super::gguf::{BYTE, CONTROL, NORMAL, PRE_TOKENIZERS, UNKNOWN, UNUSED, USER_DEFINED};
use super::gguf::{Words, pre_tokenizer};
use crate::DataError;
use crate::gguf::GgufField;
use crate::text::sentencepiece::SPACE_MARK;

type Fields = Vec<(String, GgufField)>;

impl TextTokenizer {
    /// The keys of a file whose model has `rows` rows in its embedding; those that no token has
    /// are named as llama.cpp's converter names them. With a chat template, if there is one.
    ///
    /// # Errors
    /// If llama.cpp has no such tokenizer, or the vocabulary more ids than rows.
    pub fn to_gguf(&self, rows: usize, chat_template: Option<&str>) -> Result<Fields, DataError> {
        let text = self.inner.to_string(false);
        let text = text.map_err(|e| DataError::Encoding(e.to_string()))?;
        let json: Value =
            serde_json::from_str(&text).map_err(|e| DataError::Encoding(e.to_string()))?;
        let model = &json["model"];
        if model["type"] != "BPE" {
            return Err(refused(&format!(
                "a {} model, and llama.cpp has BPE alone of what is known here",
                model["type"]
            )));
        }
        let spaces = replaces_spaces(&json);
        let tokens = self.tokens(rows, model, spaces)?;
        let (kind, own) = match spaces {
            true => ("llama", pieces(&json, &tokens)),
            false => ("gpt2", byte_level(&json)?),
        };
        let mut fields = vec![("tokenizer.ggml.model".to_owned(), kind.into())];
        fields.extend(own);
        let kinds = tokens.iter().map(|(_, kind)| *kind as i32).collect();
        let texts = tokens.into_iter().map(|(text, _)| text).collect();
        let mut put = |key: &str, field| fields.push((format!("tokenizer.{key}"), field));
        put("ggml.tokens", GgufField::Texts(texts));
        put("ggml.token_type", GgufField::I32s(kinds));
        // A text has one end token there, and two more that end an answer.
        let ends = ["eos", "eot", "eom"].into_iter().zip(self.eos_ids());
        let ends = ends.map(|(key, &id)| (key, Some(id)));
        let others = [
            ("bos", self.bos),
            ("unknown", self.unk),
            ("padding", self.pad),
        ];
        for (key, id) in ends.chain(others) {
            if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
                put(&format!("ggml.{key}_token_id"), GgufField::U32(id));
            }
        }
        put("ggml.add_bos_token", GgufField::Bool(self.adds_bos));
        put("ggml.add_eos_token", GgufField::Bool(false));
        if let Some(template) = chat_template {
            put("chat_template", template.into());
        }
        Ok(fields)
    }

    /// Every row of the embedding by its token and kind.
    fn tokens(
        &self,
        rows: usize,
        model: &Value,
        spaces: bool,
    ) -> Result<Vec<(String, i64)>, DataError> {
        let end = usize::try_from(self.id_end()).unwrap_or(usize::MAX);
        if end > rows {
            return Err(refused(&format!(
                "ids up to {}, but the model has {rows} rows",
                end.saturating_sub(1)
            )));
        }
        let added = self.inner.get_added_tokens_decoder();
        let control = self.sentencepiece.as_ref().map(|model| &model.control);
        let bytes = spaces && model["byte_fallback"] == true;
        let unknown = model["unk_token"].as_str();
        let token = |id: usize| {
            let id = u32::try_from(id).unwrap_or(u32::MAX);
            let Some(text) = self.inner.id_to_token(id) else {
                return (format!("[PAD{id}]"), UNUSED);
            };
            let kind = match added.get(&id) {
                _ if spaces && unknown == Some(&text) => UNKNOWN,
                Some(token) if token.special => CONTROL,
                Some(_) => USER_DEFINED,
                None if control.is_some_and(|ids| ids.contains(&id)) => CONTROL,
                None if bytes && is_byte(&text) => BYTE,
                None => NORMAL,
            };
            (text, kind)
        };
        Ok((0..rows).map(token).collect())
    }
}

fn refused(what: &str) -> DataError {
    DataError::Encoding(format!(
        "this tokenizer cannot be written for llama.cpp: it has {what}"
    ))
}

/// `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && u8::from_str_radix(d, 16).is_ok())
}

/// The steps of a `Sequence`, or the one.
fn steps<'a>(value: &'a Value, list: &str) -> Vec<&'a Value> {
    match value {
        Value::Null => vec![],
        one if one["type"] == "Sequence" => one[list].as_array().into_iter().flatten().collect(),
        one => vec![one],
    }
}

/// Whether spaces become SentencePiece's mark.
fn replaces_spaces(json: &Value) -> bool {
    let mark = SPACE_MARK.to_string();
    let normalizers = steps(&json["normalizer"], "normalizers");
    let pre = steps(&json["pre_tokenizer"], "pretokenizers");
    normalizers
        .iter()
        .any(|step| step["type"] == "Replace" && step["content"] == mark.as_str())
        || pre.iter().any(|step| step["type"] == "Metaspace")
}

/// SentencePiece's scores: the best merge that makes a piece, the first of all being the highest.
fn pieces(json: &Value, tokens: &[(String, i64)]) -> Fields {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, merge) in merges(json).into_iter().enumerate() {
        ranks.entry(merge.concat()).or_insert(rank);
    }
    let score = |(text, kind): &(String, i64)| match ranks.get(text) {
        Some(&rank) => -(rank as f32),
        // Letters are never the better part of two; names of tokens are not put together.
        None if *kind == NORMAL => -(ranks.len() as f32),
        None => 0.0,
    };
    let normalizers = steps(&json["normalizer"], "normalizers");
    let pre = steps(&json["pre_tokenizer"], "pretokenizers");
    let first = normalizers.iter().any(|step| step["type"] == "Prepend")
        || pre.iter().any(|step| {
            step["type"] == "Metaspace"
                && (step["prepend_scheme"] != "never" && step["add_prefix_space"] != false)
        });
    let scores = tokens.iter().map(score).collect();
    vec![
        ("tokenizer.ggml.pre".into(), "default".into()),
        ("tokenizer.ggml.scores".into(), GgufField::F32s(scores)),
        (
            "tokenizer.ggml.add_space_prefix".into(),
            GgufField::Bool(first),
        ),
    ]
}

/// Pairs of a BPE in order.
fn merges(json: &Value) -> Vec<[String; 2]> {
    let pair = |merge: &Value| match merge {
        Value::String(text) => {
            let (left, right) = text.split_once(' ')?;
            Some([left.to_owned(), right.to_owned()])
        }
        Value::Array(pair) => match &pair[..] {
            [left, right] => Some([left.as_str()?.to_owned(), right.as_str()?.to_owned()]),
            _ => None,
        },
        _ => None,
    };
    let list = json["model"]["merges"].as_array();
    list.into_iter().flatten().filter_map(pair).collect()
}

/// The way of splitting into words by its name in llama.cpp, and the merges.
fn byte_level(json: &Value) -> Result<Fields, DataError> {
    let words = Words::of(&json["pre_tokenizer"]);
    let whole = json["model"]["ignore_merges"] == true;
    let name = PRE_TOKENIZERS.into_iter().find(|name| {
        pre_tokenizer(name).is_some_and(|known| {
            Words::of(&known.steps) == words && known.takes_whole_words == whole
        })
    });
    let name = name.ok_or_else(|| {
        let shown: String = json["pre_tokenizer"].to_string().chars().take(300).collect();
        refused(&format!(
            "a way of splitting words that llama.cpp has no name for, or none that is known here: {shown}"
        ))
    })?;
    let merges = merges(json).into_iter().map(|pair| pair.join(" "));
    Ok(vec![
        ("tokenizer.ggml.pre".into(), name.into()),
        (
            "tokenizer.ggml.merges".into(),
            GgufField::Texts(merges.collect()),
        ),
    ])
}

impl Words {
    /// What a `pre_tokenizer` does, however it is spelt.
    fn of(pre_tokenizer: &Value) -> Self {
        let mut found = Vec::new();
        for step in steps(pre_tokenizer, "pretokenizers") {
            match step["type"].as_str() {
                Some("ByteLevel") => {
                    if step["use_regex"] != false {
                        found.push(format!("split {}", super::gguf::GPT2));
                    }
                    if step["add_prefix_space"] == true {
                        found.push("space first".into());
                    }
                    found.push("bytes".into());
                }
                Some("Digits") if step["individual_digits"] == true => found.push("digits".into()),
                Some("Split")
                    if step["behavior"] == "Isolated"
                        && step["invert"] == json!(false)
                        && step["pattern"]["Regex"].is_string() =>
                {
                    let pattern = step["pattern"]["Regex"].as_str().unwrap_or_default();
                    found.push(format!("split {pattern}"));
                }
                _ => found.push(step.to_string()),
            }
        }
        Self(found)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gguf::{GgufHeader, write_gguf};

    fn written(tokenizer: &TextTokenizer, rows: usize, path: &Path) -> TextTokenizer {
        let fields = tokenizer.to_gguf(rows, Some("a template")).unwrap();
        let file = write_gguf::<DataError>(path, &fields, &[], |_| unreachable!());
        file.unwrap().commit().unwrap();
        TextTokenizer::from_gguf(&GgufHeader::open(path).unwrap()).unwrap()
    }

    /// Both kinds, from the folders that hold golden tokenizers of their own.
    #[test]
    fn what_is_written_gives_the_same_ids() {
        let mut kinds = std::collections::BTreeSet::new();
        let templates = golden::families().join("chat_templates");
        for folder in golden::entries(&templates) {
            if !folder.join("tokenizer.json").is_file() {
                continue;
            }
            let source = TextTokenizer::from_dir(&folder).unwrap();
            let rows = source.id_end() as usize + 7;
            let dir = tempfile::tempdir().unwrap();
            let read = written(&source, rows, &dir.path().join("x.gguf"));
            let what = folder.display();
            assert_eq!(read.id_end() as usize, rows, "{what}");
            assert_eq!(read.chat_template(), Some("a template"), "{what}");
            assert_eq!(read.bos_id(), source.bos_id(), "{what}");
            assert_eq!(read.eos_id(), source.eos_id(), "{what}");
            assert_eq!(read.adds_bos(), source.adds_bos(), "{what}");
            for text in [
                "Hello world",
                "  two  spaces\nand lines",
                "It's 2024, they'LL pay $1,234.56!",
                "漢字 and 🦙 llamas, naïve café",
            ] {
                // llama.cpp puts a space first even where there is one.
                let json = source.inner.to_string(false).unwrap();
                if text.starts_with(' ') && json.contains("Metaspace") {
                    continue;
                }
                let expected = source.encode(text, true).unwrap();
                assert_eq!(read.encode(text, true).unwrap(), expected, "{what}: {text}");
            }
            for id in 0..source.id_end() {
                assert_eq!(read.is_special(id), source.is_special(id), "{what}: {id}");
            }
            kinds.insert(matches!(
                read.alphabet(),
                crate::text::pieces::Alphabet::SentencePiece { .. }
            ));
        }
        assert_eq!(kinds.len(), 2, "both kinds of tokenizers are in the set");
    }

    #[test]
    fn a_bare_model_and_rows_without_tokens() {
        let path = golden::llama_tokenizer().join("tokenizer.model");
        let source = TextTokenizer::from_sentencepiece(path, true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let read = written(&source, 32_064, &dir.path().join("x.gguf"));
        for text in ["USER: a  b", "x</s>y", "漢字 🦙\n\n\tends", "don't"] {
            let expected = source.encode(text, true).unwrap();
            assert_eq!(read.encode(text, true).unwrap(), expected, "{text}");
        }
        assert_eq!(read.token(32_063).as_deref(), Some("[PAD32063]"));
        let error = source.to_gguf(31_999, None).unwrap_err().to_string();
        assert!(error.contains("31999 rows"), "{error}");
    }
}
