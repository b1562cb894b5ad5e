//! Part f (tokenizer, prompts, labels) and the text side of part i of the reference data.

use std::path::PathBuf;

use golden::Value;
use sq_llava_data::{
    Author, Conversation, EncodedSample, Ending, IGNORE_INDEX, LabelOptions, LlavaSample, Message,
    StreamDecoder, Template, TextTokenizer, TokenRole, conversation_of, encode_sample,
    encode_with_images,
};

/// Every JSON file of the folders of a part that has the key `needs`.
fn files(prefix: &str, needs: &str) -> Vec<(PathBuf, Value)> {
    let found: Vec<(PathBuf, Value)> = golden::folders(prefix)
        .iter()
        .flat_map(|folder| golden::entries(folder))
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| (path.clone(), golden::json(&path)))
        .filter(|(_, json)| json.get(needs).is_some())
        .collect();
    assert!(!found.is_empty(), "no file of {prefix}* has {needs:?}");
    found
}

fn llama(legacy: bool) -> TextTokenizer {
    let path = golden::llama_tokenizer().join("tokenizer.model");
    TextTokenizer::from_sentencepiece(path, legacy).unwrap()
}

fn ids(value: &Value) -> Vec<i64> {
    let list = value
        .as_array()
        .unwrap_or_else(|| panic!("no ids: {value}"));
    list.iter().map(|id| id.as_i64().unwrap()).collect()
}

fn str_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key:?} in {value}"))
}

/// `legacy` of a key like `v1/legacy_true`.
fn legacy_of(key: &str) -> Option<bool> {
    match key.rsplit('/').next()? {
        "legacy_true" => Some(true),
        "legacy_false" => Some(false),
        _ => None,
    }
}

/// A conversation of part f in one template with one tokenizer.
struct Case {
    name: String,
    template: Template,
    legacy: bool,
    sample: LlavaSample,
    asked: Vec<bool>,
    expected: Value,
}

fn cases(template: Template) -> Vec<Case> {
    let mut found = Vec::new();
    for (_, file) in files("f_", "cases") {
        let rate = file["sq_r"].as_f64().unwrap();
        for (name, case) in file["cases"].as_object().unwrap() {
            let sample = sample_of(name, case);
            let asked = asked_of(case, rate, template);
            for (key, expected) in case.as_object().unwrap() {
                let Some(legacy) = legacy_of(key) else {
                    continue;
                };
                if key.split('/').next().unwrap().parse::<Template>().unwrap() == template {
                    found.push(Case {
                        name: format!("{name}/{key}"),
                        template,
                        legacy,
                        sample: sample.clone(),
                        asked: asked.clone(),
                        expected: expected.clone(),
                    });
                }
            }
        }
    }
    assert!(!found.is_empty(), "no case of template {template}");
    found
}

fn sample_of(name: &str, case: &Value) -> LlavaSample {
    let conversations: Vec<Message> = case["conversations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| serde_json::from_value(message.clone()).unwrap())
        .collect();
    let marked = conversations
        .iter()
        .filter(|m| m.value.contains("<image>"))
        .count();
    let images = match case["has_image"].as_bool().unwrap() {
        true => marked.max(1),
        false => 0,
    };
    LlavaSample {
        id: name.to_owned(),
        images: vec!["image".to_owned(); images],
        system: None,
        conversations,
    }
}

/// One draw per human turn after the first of a sample with an image; asked below `rate`.
fn asked_of(case: &Value, rate: f64, template: Template) -> Vec<bool> {
    let mut asked = vec![false];
    if template.asks() && case["has_image"].as_bool().unwrap() {
        let draws = case["draws"].as_array().unwrap();
        asked.extend(draws.iter().map(|draw| draw.as_f64().unwrap() < rate));
    }
    asked
}

fn check_prompts(template: Template) {
    for case in cases(template) {
        let conversation = conversation_of(&case.sample, case.template, None, &case.asked).unwrap();
        let prompt = conversation.prompt(Ending::Closed).unwrap();
        assert_eq!(prompt, str_of(&case.expected, "prompt"), "{}", case.name);
    }
}

fn check_ids(legacy: bool) {
    let tokenizer = llama(legacy);
    for template in [Template::V1, Template::V1Sq] {
        for case in cases(template).iter().filter(|case| case.legacy == legacy) {
            let encoded = encode(&tokenizer, case);
            let expected = ids(&case.expected["input_ids"]);
            assert_eq!(encoded.input_ids, expected, "{}", case.name);
        }
    }
}

fn encode(tokenizer: &TextTokenizer, case: &Case) -> EncodedSample {
    let options = LabelOptions::new(case.template);
    encode_sample(tokenizer, &case.sample, &case.asked, &options).unwrap()
}

/// Labels and roles say the same.
fn check_roles(encoded: &EncodedSample, name: &str) {
    for ((&id, &label), &role) in encoded
        .input_ids
        .iter()
        .zip(&encoded.labels)
        .zip(&encoded.roles)
    {
        let expected = if role == TokenRole::Ignore {
            IGNORE_INDEX
        } else {
            id
        };
        assert_eq!(label, expected, "{name}");
    }
}

/// The learnt tokens are the answers, each with its end token.
fn check_answers(tokenizer: &TextTokenizer, encoded: &EncodedSample, case: &Case) {
    let learnt: Vec<i64> = encoded
        .labels
        .iter()
        .copied()
        .filter(|&l| l != IGNORE_INDEX)
        .collect();
    let text = tokenizer.decode(&learnt, false).unwrap();
    let answers = case
        .sample
        .conversations
        .iter()
        .filter(|m| m.from == Author::Gpt);
    let spelt: Vec<String> = answers.map(|m| format!(" {}</s>", m.value)).collect();
    // Decoding takes the very first space off.
    assert_eq!(text, spelt.concat()[1..], "{}", case.name);
}

#[test]
fn golden_f_prompts_v1() {
    check_prompts(Template::V1);
}

#[test]
fn golden_f_prompts_v1_sq() {
    check_prompts(Template::V1Sq);
}

#[test]
fn golden_f_ids_legacy_false() {
    check_ids(false);
}

#[test]
fn golden_f_ids_legacy_true() {
    check_ids(true);
}

#[test]
fn golden_f_labels_v1() {
    let tokenizers = [llama(false), llama(true)];
    let mut equal = 0;
    for case in cases(Template::V1) {
        let tokenizer = &tokenizers[usize::from(case.legacy)];
        let encoded = encode(tokenizer, &case);
        check_roles(&encoded, &case.name);
        if case.expected["n_supervised"] == 0 {
            // The official mask gave up on this sample: the message list counts.
            check_answers(tokenizer, &encoded, &case);
        } else {
            assert_eq!(
                encoded.labels,
                ids(&case.expected["labels"]),
                "{}",
                case.name
            );
            equal += 1;
        }
    }
    assert!(equal > 0, "no case with official labels");
}

#[test]
fn golden_f_labels_v1_sq() {
    let tokenizers = [llama(false), llama(true)];
    let mut questions = 0;
    for case in cases(Template::V1Sq) {
        let encoded = encode(&tokenizers[usize::from(case.legacy)], &case);
        check_roles(&encoded, &case.name);
        let expected = ids(&case.expected["labels_proposed"]);
        assert_eq!(encoded.labels, expected, "{}", case.name);
        questions += encoded.count(TokenRole::Question);
        let asked = case.asked.iter().any(|&asked| asked);
        assert_eq!(
            asked,
            encoded.count(TokenRole::Question) > 0,
            "{}",
            case.name
        );
    }
    assert!(questions > 0, "no case asks a question");
}

#[test]
fn golden_f_plain() {
    let tokenizers = [llama(false), llama(true)];
    for (_, file) in files("f_", "plain") {
        let cases = file["plain"].as_object().unwrap();
        assert!(!cases.is_empty());
        for (key, case) in cases {
            let legacy = legacy_of(key).unwrap_or_else(|| panic!("no legacy in {key:?}"));
            let message = |from, text: &str| Message {
                from,
                value: text.to_owned(),
            };
            let sample = LlavaSample {
                id: key.clone(),
                images: vec!["image".to_owned()],
                system: None,
                conversations: vec![
                    message(Author::Human, str_of(case, "human")),
                    message(Author::Gpt, str_of(case, "gpt")),
                ],
            };
            let options = LabelOptions::new(Template::Plain);
            let tokenizer = &tokenizers[usize::from(legacy)];
            let encoded = encode_sample(tokenizer, &sample, &[], &options).unwrap();
            assert_eq!(encoded.input_ids, ids(&case["input_ids"]), "{key}");
            assert_eq!(encoded.labels, ids(&case["labels"]), "{key}");
            check_roles(&encoded, key);
        }
    }
}

/// Takes a prompt of `v1` or `v1_sq` apart at its role names.
fn parse_prompt(template: Template, prompt: &str) -> (Conversation, Ending) {
    let mut rest = prompt
        .strip_prefix(template.system())
        .expect("the system message")
        .trim_start();
    let mut conversation = Conversation::new(template);
    loop {
        match rest {
            "ASSISTANT:" => return (conversation, Ending::Answer),
            "VUSER:" => return (conversation, Ending::Ask),
            _ => {}
        }
        let (name, said) = rest.split_once(": ").expect("a role name");
        let end = if name == "USER" {
            " ASSISTANT:"
        } else {
            "</s>"
        };
        let (said, after) = said.split_once(end).expect("the end of a message");
        let keep = if name == "USER" {
            "ASSISTANT:".len() + after.len()
        } else {
            after.len()
        };
        rest = rest[rest.len() - keep..].trim_start();
        let text = said.strip_prefix("<image>\n");
        conversation.push_images(usize::from(text.is_some()));
        let text = text.unwrap_or(said);
        match name {
            "USER" => conversation.push_user(text),
            "VUSER" => conversation.push_asked(text),
            "ASSISTANT" => conversation.push_assistant(text),
            _ => panic!("role {name:?} in {prompt:?}"),
        };
    }
}

#[test]
fn golden_f_inference_prompts() {
    let tokenizers = [llama(false), llama(true)];
    for (_, file) in files("f_", "inference_prompts") {
        let prompts = file["inference_prompts"].as_array().unwrap();
        assert!(!prompts.is_empty());
        for case in prompts {
            let template: Template = str_of(case, "template").parse().unwrap();
            let prompt = str_of(case, "prompt");
            let (conversation, ending) = parse_prompt(template, prompt);
            assert_eq!(
                str_of(case, "kind").starts_with("ask"),
                ending == Ending::Ask
            );
            assert_eq!(conversation.prompt(ending).unwrap(), prompt);
            for tokenizer in [
                ("legacy_false", &tokenizers[0]),
                ("legacy_true", &tokenizers[1]),
            ] {
                let expected = ids(&case[tokenizer.0]);
                let found = conversation.encode_prompt(tokenizer.1, ending).unwrap();
                assert_eq!(found, expected, "{prompt}");
                let found = encode_with_images(tokenizer.1, prompt).unwrap();
                assert_eq!(found, expected, "{prompt}");
            }
        }
    }
}

#[test]
fn golden_f_raw_strings() {
    for (_, file) in files("f_", "raw") {
        let strings = file["raw"].as_array().unwrap();
        assert!(!strings.is_empty());
        for (key, legacy) in [("legacy_false", false), ("legacy_true", true)] {
            let tokenizer = llama(legacy);
            for case in strings {
                let text = str_of(case, "text");
                let found = tokenizer.encode(text, true).unwrap();
                assert_eq!(found, ids(&case[key]), "{text:?} {key}");
            }
        }
    }
}

/// Each file of part i with the tokenizer beside it.
fn end_to_end() -> Vec<(TextTokenizer, Value)> {
    files("i_", "cases")
        .into_iter()
        .map(|(path, json)| {
            let tokenizer = TextTokenizer::from_dir(path.parent().unwrap()).unwrap();
            (tokenizer, json)
        })
        .collect()
}

fn each_end_to_end(check: impl Fn(&TextTokenizer, Template, &Value)) {
    for (tokenizer, file) in end_to_end() {
        let template: Template = str_of(&file, "conv").parse().unwrap();
        let cases = file["cases"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            check(&tokenizer, template, case);
        }
    }
}

fn question(template: Template, case: &Value) -> Conversation {
    let mut conversation = Conversation::new(template);
    conversation
        .push_images(1)
        .push_user(str_of(case, "question"));
    conversation
}

#[test]
fn golden_i_prompts() {
    each_end_to_end(|_, template, case| {
        let prompt = question(template, case).prompt(Ending::Answer).unwrap();
        assert_eq!(prompt, str_of(case, "prompt"));
    });
}

#[test]
fn golden_i_input_ids() {
    each_end_to_end(|tokenizer, template, case| {
        let conversation = question(template, case);
        let found = conversation
            .encode_prompt(tokenizer, Ending::Answer)
            .unwrap();
        assert_eq!(found, ids(&case["input_ids"]));
    });
}

#[test]
fn golden_i_text() {
    each_end_to_end(|tokenizer, _, case| {
        let output = ids(&case["output_ids"]);
        assert_eq!(
            tokenizer.decode(&output, true).unwrap(),
            str_of(case, "text")
        );
    });
}

#[test]
fn golden_i_streamed_text() {
    each_end_to_end(|tokenizer, _, case| {
        let mut stream = StreamDecoder::new(tokenizer, true);
        let mut text = String::new();
        for id in ids(&case["output_ids"]) {
            text.push_str(&stream.push(id).unwrap());
        }
        text.push_str(&stream.finish());
        assert_eq!(text, str_of(case, "text"));
    });
}
