//! Tokenizers inside GGUF files against the `tokenizers` package and the `tokenizer.model` that
//! they were made from (`scripts/gguf_fixtures.py`).

use std::path::{Path, PathBuf};

use sq_llava_data::TextTokenizer;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf")
}

fn ids(value: &golden::Value) -> Vec<i64> {
    let ids = value.as_array().expect("ids").iter();
    ids.map(|id| id.as_i64().expect("id")).collect()
}

#[test]
fn golden_byte_level_ids_are_those_of_the_reference() {
    let files: Vec<PathBuf> = golden::entries(&fixtures())
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let tokenizer = TextTokenizer::from_dir(&file).unwrap();
        let adds_bos = file.ends_with("bpe-llama-bpe.gguf");
        assert_eq!(tokenizer.adds_bos(), adds_bos, "{}", file.display());
        assert_eq!(
            (tokenizer.bos_id(), tokenizer.eos_ids()),
            (Some(1), &[2][..])
        );
        let cases = golden::json(&file.with_extension("json"));
        let cases = cases.as_array().expect("cases");
        assert!(!cases.is_empty());
        for case in cases {
            let text = case["text"].as_str().expect("text");
            let found = tokenizer.encode(text, false).unwrap();
            assert_eq!(found, ids(&case["ids"]), "{}: {text:?}", file.display());
            assert_eq!(tokenizer.decode(&found, false).unwrap(), text);
        }
        // What is saved is read back alike.
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        let again = TextTokenizer::from_dir(dir.path()).unwrap();
        assert_eq!(again.adds_bos(), adds_bos);
        let text = "It's 2024,\n<|start|> 1234 naïve";
        assert_eq!(
            again.encode(text, true).unwrap(),
            tokenizer.encode(text, true).unwrap()
        );
    }
}

#[test]
fn golden_sentencepiece_ids_are_those_of_its_tokenizer_model() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let model = workspace.join("golden/data/i_end_to_end/tokenizer.model");
    let file = workspace.join("sq-llava-model/tests/fixtures/gguf/tied.gguf");
    let reference = TextTokenizer::from_sentencepiece(model, true).unwrap();
    let tokenizer = TextTokenizer::from_dir(&file).unwrap();
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let again = TextTokenizer::from_dir(dir.path()).unwrap();
    for tokenizer in [&tokenizer, &again] {
        assert_eq!(tokenizer.len(), reference.len());
        assert!(tokenizer.adds_bos());
        assert_eq!(tokenizer.bos_id(), reference.bos_id());
        assert_eq!(tokenizer.eos_id(), reference.eos_id());
        for text in [
            "",
            "What is in the picture?",
            "  two  spaces\n",
            "<s>USER: hi</s>ASSISTANT: ja",
            "漢字 🦙 naïve",
        ] {
            let found = tokenizer.encode(text, true).unwrap();
            assert_eq!(found, reference.encode(text, true).unwrap(), "{text:?}");
            assert_eq!(
                tokenizer.decode(&found, true).unwrap(),
                reference.decode(&found, true).unwrap()
            );
        }
    }
}

#[test]
fn unknown_kinds_and_other_files_are_named() {
    let bytes = std::fs::read(fixtures().join("bpe-smollm.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.gguf");
    let fails = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let message = TextTokenizer::from_dir(&path).unwrap_err().to_string();
        assert!(message.contains("other.gguf"), "{message}");
        message
    };
    let replaced = |from: &str, to: &str| {
        let at = bytes
            .windows(from.len())
            .position(|w| w == from.as_bytes())
            .unwrap();
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    assert!(fails(&replaced("smollm", "qwen42")).contains("qwen42"));
    assert!(fails(&replaced("gpt2", "bert")).contains("bert"));
    assert!(fails(&replaced("GGUF", "GGML")).contains("not a GGUF"));
    assert!(fails(&bytes[..bytes.len() / 2]).contains("truncated"));
    assert!(fails(b"version https://git-lfs.github.com/spec/v1").contains("LFS"));
}
