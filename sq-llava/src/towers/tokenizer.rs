//! The words of the world as a `tokenizer.json` of LLaMA's kind: `▁` for a space, bytes for what
//! is no word.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};
use sq_llava_data::Template;

use crate::output::write_json;
use crate::world::{Scene, rng};

/// Ids 0 to 2.
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// Scenes whose texts are read for words; far more than it takes to meet each of them.
const SCENES: u64 = 2000;

/// Writes `tokenizer.json` and `tokenizer_config.json`.
///
/// # Errors
/// If a file cannot be written.
pub fn write(dir: &Path) -> Result<()> {
    let put = |name: &str, value: &Value| write_json(&dir.join(name), value);
    put("tokenizer.json", &tokenizer())?;
    put(
        "tokenizer_config.json",
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": true,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }),
    )
}

fn tokenizer() -> Value {
    let mut vocabulary = Map::new();
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let all = SPECIAL
        .iter()
        .map(ToString::to_string)
        .chain(bytes)
        .chain(words());
    for (id, token) in all.enumerate() {
        vocabulary.insert(token, json!(id));
    }
    let special = |(id, token): (usize, &&str)| added(id, token, true);
    let mut tokens: Vec<Value> = SPECIAL.iter().enumerate().map(special).collect();
    // The system message of the templates says nothing here: one token is enough for it.
    tokens.push(added(vocabulary.len(), Template::Sq.system(), false));
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": tokens,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
            {"type": "Split", "pattern": {"Regex": "[\n,.?]"}, "behavior": "Isolated", "invert": false},
        ]},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": "<unk>",
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            // A word of the vocabulary is one token; nothing is ever put together from parts.
            "ignore_merges": true,
            "vocab": vocabulary,
            "merges": [],
        },
    })
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special})
}

/// Every word of the world, with and without a space before it where both occur.
fn words() -> BTreeSet<String> {
    let mut found: BTreeSet<String> = ["▁", "▁USER:", "▁ASSISTANT:"].map(Into::into).into();
    for number in 0..SCENES {
        let mut rng = rng(0, 3, number);
        for text in Scene::draw(0, number).everything(&mut rng) {
            pieces(&text, &mut found);
            // Behind a line break a text has no space before it.
            pieces(&format!("\n{text}"), &mut found);
        }
    }
    found.remove("\n");
    found
}

/// The pieces that the pre-tokenizer makes of a text.
fn pieces(text: &str, found: &mut BTreeSet<String>) {
    let spaced = format!("▁{}", text.replace(' ', "▁"));
    let mut piece = String::new();
    let mut close = |piece: &mut String| {
        if !piece.is_empty() {
            found.insert(std::mem::take(piece));
        }
    };
    for c in spaced.chars() {
        if c == '▁' {
            close(&mut piece);
        }
        if matches!(c, '\n' | ',' | '.' | '?') {
            close(&mut piece);
            piece.push(c);
            close(&mut piece);
        } else {
            piece.push(c);
        }
    }
    close(&mut piece);
}

#[cfg(test)]
mod tests {
    use super::*;
    use sq_llava_data::TextTokenizer;

    #[test]
    fn the_world_is_written_in_whole_words() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let tokenizer = TextTokenizer::from_dir(dir.path()).unwrap();
        let mut rng = rng(9, 3, 0);
        for number in 0..200 {
            for text in Scene::draw(9, number).everything(&mut rng) {
                let ids = tokenizer.encode(&text, true).unwrap();
                assert_eq!(ids[0], 1);
                let bytes: Vec<String> = ids
                    .iter()
                    .filter_map(|&id| tokenizer.token(id))
                    .filter(|token| token.starts_with("<0x") && token != "<0x0A>")
                    .collect();
                assert!(bytes.is_empty(), "{text}: {bytes:?}");
                assert!(ids.len() <= text.split_whitespace().count() * 2 + 2);
                let back = tokenizer.decode(&ids, true).unwrap();
                assert_eq!(back.trim_start(), text);
            }
        }
        let system = tokenizer.encode(Template::Sq.system(), true).unwrap();
        assert_eq!(system.len(), 2);
        // Other words are still text.
        let ids = tokenizer.encode("zebra ü", false).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap().trim(), "zebra ü");
    }
}
