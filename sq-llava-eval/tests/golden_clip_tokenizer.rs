//! CLIP's token ids against transformers (part h).

use golden::Value;
use sq_llava_eval::clip_score::tokenizer::ClipTokenizer;

#[test]
fn golden_h_ids_of_odd_texts() {
    let mut compared = 0;
    for case in golden::cases("h_") {
        let tokenizer = ClipTokenizer::from_dir(&case.folder).expect("a tokenizer");
        let shape = case.tensors.shape("input_ids");
        let rows = case.tensors.i64("input_ids");
        let texts = case.json["texts"].as_array().expect("texts");
        let expected = case.json["ids_unpadded"].as_array().expect("ids");
        assert_eq!((texts.len(), texts.len()), (expected.len(), shape[0]));
        for (i, (text, ids)) in texts.iter().zip(expected).enumerate() {
            let text = text.as_str().expect("a text");
            let found = tokenizer.encode(text, shape[1]).expect("ids");
            assert_eq!(
                &Value::from(found.ids.clone()),
                ids,
                "{}: {text}",
                case.name
            );
            // The padded row begins with them.
            let row = &rows[i * shape[1]..(i + 1) * shape[1]];
            assert_eq!(row[..found.ids.len()], found.ids, "{}: {text}", case.name);
            assert!(!found.cut || found.ids.len() == shape[1], "{text}");
            compared += 1;
        }
    }
    assert!(compared > 0, "no text in part h");
}
