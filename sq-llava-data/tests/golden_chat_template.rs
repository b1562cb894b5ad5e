//! Chat templates of checkpoints against transformers' `apply_chat_template`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sq_llava_data::{
    AskingRole, Author, ChatOptions, ChatTemplate, CheckpointTemplate, Conversation, DataError,
    EncodedSample, Ending, IMAGE_TOKEN_INDEX, LabelOptions, Layout, LlavaSample, Message,
    TemplateChoice, TextTokenizer, TokenRole, conversation_of, encode_sample,
};

/// A folder with a tokenizer, a template and its cases.
struct Set {
    name: String,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    json: Value,
}

fn sets() -> Vec<Set> {
    let root = golden::families().join("chat_templates");
    let folders: Vec<PathBuf> = golden::entries(&root)
        .into_iter()
        .filter(|folder| folder.join("cases.json").is_file())
        .collect();
    assert!(!folders.is_empty(), "no chat templates in {root:?}");
    let set = |folder: PathBuf| {
        let tokenizer = TextTokenizer::from_dir(&folder).expect("a tokenizer");
        Set {
            name: golden::file_name(&folder),
            template: ChatTemplate::of(&tokenizer)
                .expect("a readable template")
                .expect("a template"),
            json: golden::json(&folder.join("cases.json")),
            tokenizer,
        }
    };
    folders.into_iter().map(set).collect()
}

impl Set {
    fn cases(&self) -> &[Value] {
        self.json["cases"].as_array().expect("cases")
    }
}

fn messages(case: &Value) -> &[Value] {
    case["messages"].as_array().expect("messages")
}

fn options(case: &Value) -> ChatOptions {
    ChatOptions {
        add_generation_prompt: case["add_generation_prompt"] == true,
        continue_final_message: case["continue_final_message"] == true,
        variables: case["variables"]
            .as_object()
            .cloned()
            .unwrap_or_else(Map::new),
    }
}

/// Whether an error is Python's. What is undefined is told in other words, and not which kind of
/// number was meant.
fn says(found: &DataError, expected: &str) -> bool {
    let plain = |text: &str| {
        text.replace("'float'", "'int'")
            .replace("\"float\"", "\"int\"")
    };
    match expected.split_once(':') {
        Some(("UndefinedError", _)) => found.to_string().contains("UndefinedError: "),
        _ => plain(&found.to_string()).ends_with(&plain(expected)),
    }
}

#[test]
fn golden_special_tokens_are_the_variables_of_transformers() {
    for set in sets() {
        let found = Value::Object(set.tokenizer.named_tokens());
        assert_eq!(found, set.json["special_tokens"], "{}", set.name);
    }
}

#[test]
fn golden_rendered_strings_and_errors_are_transformers() {
    let mut wrong = Vec::new();
    for set in sets() {
        for case in set.cases() {
            let name = format!("{}/{}", set.name, case["name"]);
            let found = set.template.render(messages(case), &options(case));
            let same = match (&found, case["error"].as_str(), case["rendered"].as_str()) {
                (Ok(found), None, Some(expected)) => found.text == expected,
                (Err(found), Some(expected), None) => says(found, expected),
                _ => false,
            };
            if !same {
                wrong.push(format!("{name}: {found:?}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn ids(value: &Value) -> Vec<i64> {
    let list = value.as_array().expect("ids");
    list.iter().map(|id| id.as_i64().expect("an id")).collect()
}

#[test]
fn golden_ids_are_transformers() {
    let mut wrong = Vec::new();
    let (mut counted, mut sanitized) = (0, 0);
    for set in sets() {
        for case in set.cases().iter().filter(|case| case["error"].is_null()) {
            let name = format!("{}/{}", set.name, case["name"]);
            let (messages, options) = (messages(case), options(case));
            let found = set.template.encode(&set.tokenizer, messages, &options);
            let found = found.expect("ids");
            let plain = ids(&case["input_ids"]);
            counted += 1;
            if found.ids() != plain {
                wrong.push(format!("{name}: {:?}, not {plain:?}", found.ids()));
            }
            // Where the file does not say, control tokens make no difference.
            let expected = match &case["input_ids_sanitized"] {
                Value::Null => plain,
                given => {
                    sanitized += 1;
                    ids(given)
                }
            };
            let found = set
                .template
                .encode_sanitized(&set.tokenizer, messages, &options)
                .expect("ids");
            if found.ids() != expected {
                wrong.push(format!(
                    "{name}, sanitized: {:?}, not {expected:?}",
                    found.ids()
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(counted > 0 && sanitized > 0, "{counted}, {sanitized}");
}

#[test]
fn golden_assistant_masks_are_transformers() {
    let mut counted = 0;
    for set in sets() {
        for case in set.cases() {
            let Some(mask) = case["assistant_mask"].as_array() else {
                continue;
            };
            counted += 1;
            let expected: Vec<bool> = mask.iter().map(|bit| *bit == 1).collect();
            let encoded = set
                .template
                .encode(&set.tokenizer, messages(case), &options(case))
                .expect("ids");
            let name = format!("{}/{}", set.name, case["name"]);
            assert_eq!(encoded.assistant_mask(), Some(expected), "{name}");
        }
    }
    assert!(counted > 0, "no case has a mask");
}

/// What transformers' Jinja makes of templates that touch one thing each, recorded by
/// `scripts/chat_template_fixtures.py`.
#[test]
fn golden_jinja_is_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat_template");
    let file = golden::json(&folder.join("jinja.json"));
    let messages = file["messages"].as_array().expect("messages");
    let mut wrong = Vec::new();
    for case in file["cases"].as_array().expect("cases") {
        let source = case[0].as_str().expect("a template");
        let tokens = Map::from_iter([("eos_token".to_owned(), "</s>".into())]);
        let found = ChatTemplate::new(source, tokens)
            .and_then(|template| template.render(messages, &ChatOptions::default()));
        let same = match (&found, case[1]["ok"].as_str(), case[1]["err"].as_str()) {
            (Ok(found), Some(expected), None) => found.text == expected,
            (Err(found), None, Some(expected)) => says(found, expected),
            _ => false,
        };
        if !same {
            let found = found.map(|found| found.text).map_err(|e| e.to_string());
            wrong.push(format!("{source}\n  {found:?}\n  {}", case[1]));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

const ANSWERS: [&str; 2] = ["A cup of coffee and a spoon.", "It is red."];
const QUESTIONS: [&str; 2] = ["What is on the table?", "Which colour is the cup?"];

fn sample(images: usize) -> LlavaSample {
    let message = |from, value: &str| Message {
        from,
        value: value.into(),
    };
    LlavaSample {
        id: "s".into(),
        images: vec!["x.png".into(); images],
        system: None,
        conversations: vec![
            message(Author::Human, QUESTIONS[0]),
            message(Author::Gpt, ANSWERS[0]),
            message(Author::Human, QUESTIONS[1]),
            message(Author::Gpt, ANSWERS[1]),
        ],
    }
}

impl Set {
    fn layout(&self, asking: Option<AskingRole>) -> Layout {
        let chat = ChatTemplate::of(&self.tokenizer)
            .expect("readable")
            .expect("a template");
        let template = CheckpointTemplate::new(chat, &self.tokenizer, asking);
        template
            .unwrap_or_else(|e| panic!("{}: {e}", self.name))
            .into()
    }

    /// Whether what is learnt begins with what is said; a template with {% generation %} may have
    /// more before it.
    fn begins(&self, learnt: &str, said: &str) -> bool {
        learnt.trim_start().starts_with(said) || self.template.has_generation()
    }

    /// Text of the tokens of a role, runs of them apart.
    fn learnt(&self, encoded: &EncodedSample, role: TokenRole) -> Vec<String> {
        let mut runs: Vec<Vec<i64>> = Vec::new();
        let mut before = TokenRole::Ignore;
        for (&id, &found) in encoded.labels.iter().zip(&encoded.roles) {
            if found == role && before != role {
                runs.push(Vec::new());
            }
            if found == role {
                runs.last_mut().expect("a run").push(id);
            }
            before = found;
        }
        let text = |ids: Vec<i64>| self.tokenizer.decode(&ids, false).expect("text");
        runs.into_iter().map(text).collect()
    }
}

#[test]
fn golden_conversations_have_the_ids_of_transformers() {
    for set in sets() {
        let layout = set.layout(None);
        let labels = LabelOptions::new(layout.clone());
        let case = set
            .cases()
            .iter()
            .find(|case| case["name"] == "ends_with_the_answer");
        if let Some(case) = case.filter(|case| {
            messages(case)[0]["content"]
                .to_string()
                .contains(QUESTIONS[0])
        }) {
            let encoded = encode_sample(&set.tokenizer, &sample(0), &[], &labels).expect("ids");
            let expected = ids(&case["input_ids"]);
            // A begin token that the template does not write.
            let added = encoded.input_ids.len() - expected.len();
            assert!(
                added <= usize::from(set.tokenizer.adds_bos()),
                "{}",
                set.name
            );
            assert_eq!(encoded.input_ids[added..], expected, "{}", set.name);
        }
        let encoded = encode_sample(&set.tokenizer, &sample(1), &[], &labels).expect("ids");
        assert_eq!(encoded.images, 1, "{}", set.name);
        let answers = set.learnt(&encoded, TokenRole::Answer);
        assert_eq!(answers.len(), 2, "{}: {answers:?}", set.name);
        let end = layout
            .stop_ids(&set.tokenizer, Ending::Answer)
            .expect("ids");
        let ends: Vec<String> = end
            .iter()
            .filter_map(|&id| set.tokenizer.token(id))
            .collect();
        for (found, said) in answers.iter().zip(ANSWERS) {
            let (_, end) = found
                .split_once(said)
                .unwrap_or_else(|| panic!("{}: {found}", set.name));
            assert!(
                ends.iter().any(|token| token == end.trim()),
                "{}: {found}",
                set.name
            );
            assert!(set.begins(found, said), "{}: {found}", set.name);
        }
        assert!(set.learnt(&encoded, TokenRole::Question).is_empty());
    }
}

#[test]
fn golden_asked_questions_follow_their_prompt_in_any_template() {
    let mut answered = 0;
    for mut set in sets() {
        set.tokenizer
            .add_special_tokens(&["[vusr]"])
            .expect("an id");
        for role in [
            AskingRole::Token("[vusr]".into()),
            AskingRole::Text("VUSER:".into()),
        ] {
            let name = format!("{} {role:?}", set.name);
            let layout = set.layout(Some(role));
            assert!(layout.asks());
            let labels = LabelOptions::new(layout.clone());
            for images in [0, 1] {
                let sample = sample(images);
                let asked = [true, true];
                let encoded = encode_sample(&set.tokenizer, &sample, &asked, &labels).expect("ids");
                let questions = set.learnt(&encoded, TokenRole::Question);
                assert_eq!(questions.len(), 2, "{name}: {questions:?}");
                for (found, said) in questions.iter().zip(QUESTIONS) {
                    assert!(found.trim_start().starts_with(said), "{name}: {found}");
                    assert_ne!(found.trim_end(), said, "{name}: no end");
                }
                let whole = conversation_of(&sample, layout.clone(), None, &asked);
                let whole = whole.and_then(|whole| whole.prompt(Ending::Closed));
                let whole = whole.expect("a text");
                let mut conversation = Conversation::new(layout.clone());
                conversation.push_images(images);
                for turn in 0..2 {
                    let prompt = conversation
                        .encode_prompt(&set.tokenizer, Ending::Ask)
                        .expect("ids");
                    assert!(
                        encoded.input_ids.starts_with(&prompt),
                        "{name}, question {turn}"
                    );
                    assert_eq!(encoded.roles[prompt.len()], TokenRole::Question, "{name}");
                    assert_ne!(
                        encoded.roles[prompt.len() - 1],
                        TokenRole::Question,
                        "{name}"
                    );
                    let stops = layout.stop_ids(&set.tokenizer, Ending::Ask).expect("ids");
                    let learnt = encoded.roles[prompt.len()..].iter();
                    let length = learnt
                        .take_while(|role| **role == TokenRole::Question)
                        .count();
                    let last = encoded.input_ids[prompt.len() + length - 1];
                    assert!(stops.contains(&last), "{name}: {last}");

                    conversation.push_asked(QUESTIONS[turn]);
                    let prompt = conversation
                        .encode_prompt(&set.tokenizer, Ending::Answer)
                        .expect("ids");
                    // Some templates begin an answer otherwise than they ask for it.
                    let written = conversation.prompt(Ending::Answer).expect("a text");
                    assert!(
                        !whole.starts_with(&written) || encoded.input_ids.starts_with(&prompt),
                        "{name}, answer {turn}"
                    );
                    // The last one is asked for as it is learnt.
                    assert!(turn == 0 || whole.starts_with(&written), "{name}");
                    answered += usize::from(whole.starts_with(&written));
                    conversation.push_assistant(ANSWERS[turn]);
                }
            }
        }
    }
    assert!(answered > 0, "no template answers as it trains");
}

#[test]
fn golden_special_tokens_that_people_type_are_plain_text_in_any_template() {
    for set in sets() {
        let special = |ids: &[i64]| -> Vec<i64> {
            let found = ids
                .iter()
                .filter(|&&id| id < 0 || set.tokenizer.is_special(id));
            found.copied().collect()
        };
        let prompt = |said: &str| {
            let mut conversation = Conversation::new(set.layout(None));
            conversation.push_images(1).push_user(said);
            conversation.push_assistant(said).push_user(said);
            let ids = conversation.encode_prompt(&set.tokenizer, Ending::Answer);
            special(&ids.unwrap_or_else(|e| panic!("{}: {e}", set.name)))
        };
        let names = set
            .tokenizer
            .ids()
            .filter(|&id| set.tokenizer.is_special(id));
        let names = names.filter_map(|id| set.tokenizer.token(id));
        // This one is what a vocabulary writes for what it lacks.
        let names: Vec<String> = names.filter(|name| name != "<unk>").collect();
        assert!(names.len() >= 3, "{}: {names:?}", set.name);
        let typed = format!("a {} b <image>", names.join("x"));
        assert_eq!(prompt(&typed), prompt("a b"), "{}", set.name);
    }
}

/// A vocabulary of text alone, as language models have that are to see pictures first here.
#[test]
fn golden_pictures_need_no_token_of_their_own() {
    let root = golden::families().join("chat_templates");
    for set in sets() {
        let folder = tempfile::tempdir().expect("a folder");
        for file in golden::entries(&root.join(&set.name)) {
            std::fs::copy(&file, folder.path().join(golden::file_name(&file))).expect("a copy");
        }
        let path = folder.path().join("tokenizer.json");
        let mut json = golden::json(&path);
        let added = json["added_tokens"].as_array_mut().expect("added tokens");
        added.retain(|token| token["content"] != "<image>");
        std::fs::write(&path, json.to_string()).expect("a file");
        let tokenizer = TextTokenizer::from_dir(folder.path()).expect("a tokenizer");
        assert_eq!(tokenizer.id("<image>"), None);
        let set = Set { tokenizer, ..set };
        let labels = LabelOptions::new(set.layout(None));
        let mut sample = sample(2);
        sample.conversations[0].value = "a <image> b<image>".into();
        let encoded = encode_sample(&set.tokenizer, &sample, &[], &labels).expect("ids");
        let images = encoded
            .input_ids
            .iter()
            .filter(|&&id| id == IMAGE_TOKEN_INDEX);
        assert_eq!((images.count(), encoded.images), (2, 2), "{}", set.name);
        assert!(!encoded.labels.contains(&IMAGE_TOKEN_INDEX));
        let answers = set.learnt(&encoded, TokenRole::Answer);
        for (found, said) in answers.iter().zip(ANSWERS) {
            assert!(set.begins(found, said), "{}: {found}", set.name);
        }
        assert_eq!(answers.len(), 2, "{}", set.name);
    }
}

#[test]
fn golden_answers_end_where_the_template_writes_no_end() {
    let bare =
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
    for set in sets() {
        let chat = ChatTemplate::new(bare, set.tokenizer.named_tokens()).expect("a template");
        let template = CheckpointTemplate::new(chat, &set.tokenizer, None).expect("a template");
        let labels = LabelOptions::new(template);
        let encoded = encode_sample(&set.tokenizer, &sample(0), &[], &labels).expect("ids");
        let eos = set
            .tokenizer
            .eos_id()
            .and_then(|id| set.tokenizer.token(id));
        let eos = eos.expect("an end token");
        let found = set.learnt(&encoded, TokenRole::Answer);
        let ended = ANSWERS.map(|said| format!("{said}{eos}"));
        let found: Vec<&str> = found.iter().map(|text| text.trim()).collect();
        assert_eq!(found, ended, "{}", set.name);
    }
}

/// What a run directory keeps of a tokenizer says the same as the checkpoint's files.
#[test]
fn golden_a_saved_tokenizer_keeps_the_template() {
    for mut set in sets() {
        let role = AskingRole::token();
        let tokens = TemplateChoice::Checkpoint.special_tokens(Some(&role));
        set.tokenizer.add_special_tokens(&tokens).expect("an id");
        let layout = set.layout(Some(role.clone()));
        let folder = tempfile::tempdir().expect("a folder");
        set.tokenizer.save(folder.path()).expect("saved");
        let again = TextTokenizer::from_dir(folder.path()).expect("read");
        let read = Layout::of(TemplateChoice::Checkpoint, &again, Some(role)).expect("a layout");
        assert_eq!(read, layout, "{}", set.name);
        for images in [0, 1] {
            let encoded = |tokenizer, layout: &Layout| {
                let labels = LabelOptions::new(layout.clone());
                encode_sample(tokenizer, &sample(images), &[true], &labels).expect("ids")
            };
            let (before, after) = (encoded(&set.tokenizer, &layout), encoded(&again, &read));
            assert_eq!(before, after, "{}", set.name);
        }
    }
}
