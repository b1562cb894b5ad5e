//! Whole models asked in their checkpoint's own chat template.

use std::path::PathBuf;

use golden::Value;

use super::{run, text};

/// Prompt and greedy answer of whole models with pictures, as transformers' processors and models
/// have them.
#[test]
fn golden_answers_of_whole_models_in_their_own_templates() {
    let mut answered = 0;
    for dir in golden::entries(&golden::families()) {
        let outputs = dir.join("outputs.json");
        let json = match outputs.is_file() {
            true => golden::json(&outputs),
            false => continue,
        };
        let prompts = json["prompts"].as_array().map_or(&[][..], Vec::as_slice);
        let tensors = golden::Tensors::read(&dir.join("outputs.safetensors"));
        for prompt in prompts {
            let (Some((pictures, question)), name) = (one_turn(prompt), &prompt["name"]) else {
                continue;
            };
            let ids = |list: &Value| -> Vec<i64> {
                let list = list.as_array().expect("a list").iter();
                list.map(|id| id.as_i64().expect("an id")).collect()
            };
            let greedy = &prompt["greedy"];
            let mut expected = ids(&greedy["ids_until_end"]);
            let most = expected.len().to_string();
            expected.retain(|&id| Some(id) != greedy["end_id"].as_i64());
            let model = dir.join("model");
            let mut words = vec!["ask", "--device", "cpu", "--json", "--dtype", "f32"];
            words.extend(["--max-new-tokens", &most, "--model", text(&model)]);
            let paths: Vec<PathBuf> = pictures
                .iter()
                .map(|name| golden::families().join(name))
                .collect();
            for path in &paths {
                words.extend(["--image", text(path)]);
            }
            words.push(question);
            let output = run(&words);
            let error = String::from_utf8_lossy(&output.stderr);
            let what = format!("{} {name}", dir.display());
            if !output.status.success() {
                assert!(error.contains("not supported"), "{what}: {error}");
                break;
            }
            assert!(error.contains("own chat_template"), "{what}: {error}");
            let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let key = format!("{}.input_ids", name.as_str().expect("a name"));
            let mut prompt_ids = tensors.i64(&key).into_iter();
            let mut features = prompt["image_tokens"].as_array().into_iter().flatten();
            let mut folded = Vec::new();
            while let Some(id) = prompt_ids.next() {
                let image = Some(id) == json["image_token_id"].as_i64();
                folded.push(if image { -200 } else { id });
                if image {
                    let count = features.next().and_then(Value::as_u64).expect("a count");
                    prompt_ids.by_ref().take(count as usize - 1).for_each(drop);
                }
            }
            assert_eq!(ids(&answer["input_ids"]), folded, "{what}");
            assert_eq!(ids(&answer["output_ids"]), expected, "{what}");
            answered += 1;
        }
    }
    assert!(answered >= 2, "only {answered} prompts");
}

/// Pictures and question of a prompt that the command can ask: one turn, its pictures first.
fn one_turn(prompt: &Value) -> Option<(Vec<&str>, &str)> {
    let [message] = prompt["messages"].as_array()?.as_slice() else {
        return None;
    };
    let (last, images) = message["content"].as_array()?.split_last()?;
    let pictures = prompt["images"].as_array()?.iter();
    let pictures: Vec<&str> = pictures.filter_map(Value::as_str).collect();
    (images.len() == pictures.len()).then_some((pictures, last["text"].as_str()?))
}
