//! The conversation templates as Jinja, which transformers reads, and whether the one that a
//! checkpoint carries is the same.

use serde_json::{Map, json};

use super::{ChatOptions, ChatTemplate};
use crate::text::conversation::{Conversation, Ending, IMAGE_TOKEN};
use crate::{DataError, Template, TextTokenizer};

/// What llama.cpp puts where a picture is.
pub const MEDIA_MARKER: &str = "<__media__>";

/// What is said and shown in a message whose content is a text or a list of parts; pictures come
/// first, a line break after each. `system` and `turns` are the messages apart.
const MESSAGES: &str = r#"{%- macro shown(message) -%}
{%- if message.content is not string -%}
{%- for part in message.content -%}{%- if part.type == 'image' -%}{{ image }}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro said(message) -%}
{%- if message.content is string -%}{{ message.content }}{%- else -%}
{%- for part in message.content -%}{%- if part.type == 'text' -%}{{ part.text }}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if messages and messages[0].role == 'system' -%}
{%- set system = said(messages[0]) -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = SYSTEM -%}{%- set turns = messages -%}
{%- endif -%}
"#;

/// `v1` and `v1_sq`.
const ROLES: &str = r"{%- if system -%}{{ system + ' ' }}{%- endif -%}
{%- for message in turns -%}
{%- if message.role == 'assistant' -%}{{ 'ASSISTANT: ' + said(message) + EOS }}
{%- else -%}{{ 'USER: ' + shown(message) + said(message) + ' ' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
";

/// `sq`.
const TOKENS: &str = r"{{- system -}}
{%- for message in turns -%}
{%- if message.role == 'assistant' -%}{{ '[aswr]' + said(message) + '<o^d>' }}
{%- else -%}{{ shown(message) + '[usr]' + said(message) }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[aswr]' }}{%- endif -%}
";

/// `llama_2`. The tokenizer puts the first begin token.
const INSTRUCTIONS: &str = r"{%- for message in turns -%}
{%- if message.role == 'assistant' -%}{{ ' ' + said(message) + ' ' + EOS }}
{%- else -%}
{%- if not loop.first -%}{{ BOS }}{%- endif -%}{{ '[INST] ' }}
{%- if loop.first and system -%}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{%- endif -%}
{{- shown(message) + said(message) + ' [/INST]' -}}
{%- endif -%}
{%- endfor -%}
";

/// `plain`: words beside a picture are not shown.
const CAPTIONS: &str = r"{%- for message in turns -%}
{%- if message.role == 'assistant' or not shown(message) -%}{{ said(message) + '\n' }}
{%- else -%}{{ shown(message) }}{%- endif -%}
{%- endfor -%}
";

impl Template {
    /// The template as Jinja, as `chat_template` in transformers' files. `image` stands for each
    /// picture; the tokenizer spells begin and end.
    ///
    /// # Errors
    /// As [`Conversation::encode_prompt`], if the tokenizer lacks a token.
    pub fn to_jinja(self, tokenizer: &TextTokenizer, image: &str) -> Result<String, DataError> {
        self.require_tokens(tokenizer)?;
        let (body, after) = match self {
            Self::V1 | Self::V1Sq => (ROLES, "\n"),
            Self::Sq => (TOKENS, "\n"),
            Self::Llama2 => (INSTRUCTIONS, "\n"),
            Self::Plain => (CAPTIONS, ""),
        };
        let spell = |id: Option<i64>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let bos = spell(tokenizer.bos_id().filter(|_| tokenizer.adds_bos()));
        let mut text = String::new();
        for (name, value) in [
            ("SYSTEM", self.system()),
            ("BOS", &bos),
            ("EOS", &spell(tokenizer.eos_id())),
            ("image", &format!("{image}{after}")),
        ] {
            text += &format!("{{%- set {name} = {} -%}}\n", quoted(value));
        }
        // Macros see the names that stand before them.
        Ok(text + MESSAGES + body)
    }

    /// The template of ours that a checkpoint's `chat_template` is, as an export wrote it.
    pub fn written_as(chat_template: &str, tokenizer: &TextTokenizer) -> Option<Self> {
        let written = |template: &Self| {
            let images = [IMAGE_TOKEN, MEDIA_MARKER];
            let texts = images.map(|image| template.to_jinja(tokenizer, image));
            texts
                .into_iter()
                .flatten()
                .any(|text| text == chat_template)
        };
        Self::ALL.into_iter().find(written)
    }

    /// How a checkpoint's `chat_template` differs from this template: what each makes of a short
    /// conversation, or why it cannot be read. `None` if they are the same.
    pub fn difference(self, chat_template: &str, tokenizer: &TextTokenizer) -> Option<String> {
        let mut conversation = Conversation::new(self);
        conversation
            .push_user("Q")
            .push_assistant("A")
            .push_user("R");
        let prompt = conversation.written(tokenizer, Ending::Answer);
        let ours = match prompt {
            Ok(prompt) => prompt,
            Err(error) => return Some(error.to_string()),
        };
        let spell = |id: Option<i64>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let (bos, eos) = (spell(tokenizer.bos_id()), spell(tokenizer.eos_id()));
        // Some templates take a text, others a list of parts; with the wrong one they leave it out.
        let mut tried = Vec::new();
        for parts in [true, false] {
            let said = |role: &str, text: &str| match parts {
                true => json!({"role": role, "content": [{"type": "text", "text": text}]}),
                false => json!({"role": role, "content": text}),
            };
            let turns = [said("user", "Q"), said("assistant", "A"), said("user", "R")];
            let found = render(chat_template, &turns, &bos, &eos).map_err(|e| e.to_string());
            // The tokenizer puts the begin token where the template does not.
            let found = found.map(|text| text.strip_prefix(&bos).unwrap_or(&text).to_owned());
            if found.as_ref().is_ok_and(|text| *text == ours) {
                return None;
            }
            tried.push(found);
        }
        let told = |found: &Result<String, String>| {
            found
                .as_ref()
                .is_ok_and(|text| text.contains('Q') && !text.contains("{'type"))
        };
        let best = tried.iter().position(told).unwrap_or(1);
        let theirs = tried.swap_remove(best);
        Some(match theirs {
            Ok(theirs) => format!("it writes {theirs:?}, {self} writes {ours:?}"),
            Err(reason) => format!("it cannot be compared: {reason}"),
        })
    }
}

/// A Jinja string.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('\'', "\\'");
    format!("'{}'", text.replace('\n', "\\n"))
}

/// What a chat template makes of messages whose turn it is to be answered.
fn render(
    chat_template: &str,
    messages: &[serde_json::Value],
    bos: &str,
    eos: &str,
) -> Result<String, DataError> {
    let tokens = [("bos_token", bos), ("eos_token", eos)];
    let tokens = tokens.map(|(name, token)| (name.to_owned(), token.into()));
    let options = ChatOptions {
        add_generation_prompt: true,
        ..ChatOptions::default()
    };
    let template = ChatTemplate::new(chat_template, Map::from_iter(tokens))?;
    Ok(template.render(messages, &options)?.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// llava-hf/llava-1.5's, shortened to what it writes.
    const LLAVA_HF: &str = "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";

    fn tokenizer() -> TextTokenizer {
        let path = golden::llama_tokenizer().join("tokenizer.model");
        let mut tokenizer = TextTokenizer::from_sentencepiece(path, false).unwrap();
        tokenizer.add_special_tokens(&crate::SQ_TOKENS).unwrap();
        tokenizer
    }

    #[test]
    fn fault_31_our_own_templates_are_the_same_as_jinja() {
        let tokenizer = tokenizer();
        for template in Template::ALL {
            let jinja = template.to_jinja(&tokenizer, "<image>").unwrap();
            let difference = template.difference(&jinja, &tokenizer);
            assert_eq!(difference, None, "{template}");
            let found = Template::written_as(&jinja, &tokenizer);
            let found = found.and_then(|t| t.to_jinja(&tokenizer, "<image>").ok());
            assert_eq!(found, Some(jinja), "{template}");
        }
    }

    #[test]
    fn fault_07_pictures_come_first_in_the_written_template() {
        let tokenizer = tokenizer();
        let messages = [json!({"role": "user", "content": [
            {"type": "text", "text": "It's what?"}, {"type": "image"}]})];
        for template in Template::ALL {
            let mut conversation = Conversation::new(template);
            conversation.push_images(1).push_user("It's what?");
            let jinja = template.to_jinja(&tokenizer, "<image>").unwrap();
            let found = render(&jinja, &messages, "<s>", "</s>").unwrap();
            let written = conversation.written(&tokenizer, Ending::Answer).unwrap();
            assert_eq!(found, written, "{template}");
        }
    }

    #[test]
    fn fault_31_another_chat_template_is_told_apart() {
        let tokenizer = tokenizer();
        let found = Template::V1.difference(LLAVA_HF, &tokenizer).unwrap();
        assert!(
            found.contains("USER: Q ASSISTANT: A USER: R ASSISTANT:"),
            "{found}"
        );
        assert!(found.contains("A chat between"), "{found}");
        // ChatML, whose content is a text.
        let chatml = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}";
        let found = Template::V1.difference(chatml, &tokenizer).unwrap();
        assert!(found.contains("<|im_start|>user"), "{found}");
        for (broken, word) in [
            ("{% for", "compared"),
            ("{{ raise_exception('no roles') }}", "no roles"),
            (
                "{% for i in range(9000) %}{% for j in range(9000) %}x{% endfor %}{% endfor %}",
                "fuel",
            ),
        ] {
            let found = Template::V1.difference(broken, &tokenizer).unwrap();
            assert!(found.contains(word), "{found}");
        }
    }
}
