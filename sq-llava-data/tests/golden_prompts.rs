//! Prompts of whole models with pictures against transformers' processors.

use golden::{Tensors, Value};
use sq_llava_data::{
    Conversation, Ending, IMAGE_TOKEN_INDEX, Layout, TemplateChoice, TextTokenizer,
};

fn messages(prompt: &Value) -> &[Value] {
    prompt["messages"].as_array().expect("messages")
}

/// A prompt of a whole model of the set as a conversation here.
fn conversation(layout: &Layout, prompt: &Value) -> Conversation {
    let mut conversation = Conversation::new(layout.clone());
    for message in messages(prompt) {
        let parts = message["content"].as_array().expect("parts");
        let is_image = |part: &&Value| part["type"] == "image";
        let before = parts.iter().take_while(is_image).count();
        let images = parts.iter().filter(is_image).count();
        let text = parts.iter().find_map(|part| part["text"].as_str());
        let text = text.unwrap_or_default();
        match message["role"].as_str() {
            Some("assistant") => conversation.push_assistant(text),
            _ => conversation
                .push_images(before)
                .push_user(text)
                .push_images_after(images - before),
        };
    }
    conversation
}

/// Prompts with pictures, before and behind the text, as transformers' processors have them: text,
/// and ids with as many placeholders as there are features.
#[test]
fn golden_prompts_of_whole_models_have_the_ids_of_their_processors() {
    let mut compared = 0;
    for dir in golden::entries(&golden::families()) {
        let outputs = dir.join("outputs.json");
        let Some(json) = outputs.is_file().then(|| golden::json(&outputs)) else {
            continue;
        };
        let prompts = json["prompts"].as_array().map_or(&[][..], Vec::as_slice);
        let tensors = Tensors::read(&dir.join("outputs.safetensors"));
        for twin in ["model", "hub", "v4_52"] {
            let folder = dir.join(twin);
            if prompts.is_empty() || !folder.join("tokenizer.json").is_file() {
                continue;
            }
            let tokenizer = TextTokenizer::from_dir(&folder).expect("a tokenizer");
            let layout = Layout::of(TemplateChoice::Checkpoint, &tokenizer, None);
            let layout = layout.unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            for prompt in prompts {
                let name = prompt["name"].as_str().expect("a name");
                let conversation = conversation(&layout, prompt);
                let written = conversation.prompt(Ending::Answer).expect("a text");
                assert_eq!(written, prompt["rendered"], "{} {name}", folder.display());
                let mut features = prompt["image_tokens"].as_array().into_iter().flatten();
                let mut expanded = Vec::new();
                for id in conversation
                    .encode_prompt(&tokenizer, Ending::Answer)
                    .expect("ids")
                {
                    let count = match id {
                        IMAGE_TOKEN_INDEX => features.next().and_then(Value::as_u64),
                        _ => Some(1),
                    };
                    let id = match id {
                        IMAGE_TOKEN_INDEX => json["image_token_id"].as_i64().expect("an id"),
                        id => id,
                    };
                    expanded.extend(vec![id; count.expect("an image") as usize]);
                }
                let expected = tensors.i64(&format!("{name}.input_ids"));
                assert_eq!(expanded, expected, "{} {name}", folder.display());
                compared += 1;
            }
        }
    }
    assert!(compared > 10, "only {compared} prompts");
}
