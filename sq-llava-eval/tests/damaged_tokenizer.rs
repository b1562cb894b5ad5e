//! Tokenizer files that the `tokenizers` library panics at.

use std::path::{Path, PathBuf};

use sq_llava_data::TextTokenizer;
use sq_llava_eval::clip_score::tokenizer::ClipTokenizer;

fn damaged() -> Vec<PathBuf> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../sq-llava-data/tests/fixtures/damaged");
    let files = golden::entries(&folder);
    assert!(files.len() >= 3, "{files:?}");
    files
}

/// Reads a tokenizer.json of these bytes in both ways; nothing but an error may come of it.
fn read(bytes: &[u8], name: &str) -> Option<String> {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("tokenizer.json"), bytes).expect("written");
    let text = TextTokenizer::from_dir(dir.path());
    let clip = ClipTokenizer::from_dir(dir.path());
    assert!(clip.is_err(), "{name}: read as CLIP's");
    let error = text.err()?.to_string();
    assert!(error.contains("tokenizer.json"), "{name}: {error}");
    Some(error)
}

#[test]
fn fault_29_a_panic_of_the_library_is_an_error_that_names_the_file() {
    for file in damaged() {
        let bytes = std::fs::read(&file).expect("readable");
        let name = file.display().to_string();
        assert!(read(&bytes, &name).is_some(), "{name} was accepted");
    }
}

#[test]
fn fault_29_a_file_cut_anywhere_is_an_error() {
    let small = std::fs::read(&damaged()[0]).expect("readable");
    for cut in 0..small.len() {
        assert!(read(&small[..cut], &format!("cut at {cut}")).is_some());
    }
    // A whole one, cut in its parts: at the front, inside the decoder, in the vocabulary.
    let path = golden::llama_tokenizer().join("tokenizer.json");
    let whole = std::fs::read(&path).expect("readable");
    let text = String::from_utf8_lossy(&whole);
    for mark in [
        "\"added_tokens\"",
        "\"normalizer\"",
        "\"decoder\"",
        "\"vocab\"",
    ] {
        let at = text.find(mark).expect(mark);
        for cut in [at, at + mark.len() + 3, at + mark.len() + 20] {
            assert!(read(&whole[..cut], &format!("{mark} at {cut}")).is_some());
        }
    }
}

#[test]
fn fault_29_a_long_added_token_takes_no_memory() {
    let content: String = (0..100_000u32)
        .filter_map(|i| char::from_u32(0x21 + i * 7 % 90))
        .collect();
    let json = serde_json::json!({"version": "1.0", "added_tokens": [
        {"id": 0, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
    let error = read(json.to_string().as_bytes(), "long").expect("refused");
    assert!(error.contains("100000 bytes"), "{error}");
}
