//! Chat templates: the Jinja that a checkpoint carries for its conversations, rendered as
//! transformers does, and our own templates as Jinja.

mod builtin;
mod checkpoint;
mod encode;
mod engine;
mod generation;
mod json;
mod python;
mod repr;
mod roles;
mod source;

use std::ops::Range;

pub use builtin::MEDIA_MARKER;
pub use checkpoint::{AskingRole, CheckpointTemplate};
pub use encode::EncodedChat;
use jiff::Zoned;
use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

use crate::text::sample::strip;
use crate::{DataError, TextTokenizer};

/// What transformers puts behind the message that is to be continued, to find its end.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The names of a message's thoughts, the usual one first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A checkpoint's own `chat_template`.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    /// What stands in the template as text: words that it writes.
    literals: String,
    has_generation: bool,
    /// `bos_token` and the like.
    variables: Map<String, Json>,
}

impl PartialEq for ChatTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.variables == other.variables
    }
}

/// What is asked of a template beside the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatOptions {
    /// Ends with what begins an answer.
    pub add_generation_prompt: bool,
    /// Ends inside the last message, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Further variables of the template, such as `tools` or `enable_thinking`.
    pub variables: Map<String, Json>,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Bytes that the template marks with `{% generation %}` as the assistant's; `None` if it has
    /// no such blocks.
    pub generation: Option<Vec<Range<usize>>>,
}

impl ChatTemplate {
    /// A template; `special_tokens` are the variables that transformers sets for it (`bos_token`,
    /// `eos_token`, …).
    ///
    /// # Errors
    /// If it is no Jinja.
    pub fn new(source: &str, special_tokens: Map<String, Json>) -> Result<Self, DataError> {
        let (rewritten, has_generation) = generation::rewritten(source);
        let environment = engine::environment(rewritten, Zoned::now())
            .map_err(|error| DataError::ChatTemplate(python::error_text(&error)))?;
        Ok(Self {
            source: source.to_owned(),
            environment,
            literals: source::literals(source),
            has_generation,
            variables: special_tokens,
        })
    }

    /// The template that came with a tokenizer (see [`TextTokenizer::chat_template`]), if one did.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(tokenizer: &TextTokenizer) -> Result<Option<Self>, DataError> {
        let source = tokenizer.chat_template();
        source
            .map(|source| Self::new(source, tokenizer.named_tokens()))
            .transpose()
    }

    /// The Jinja as it came.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it marks what the assistant says with `{% generation %}`.
    pub fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// The text of messages, which are objects with `role` and `content` as in transformers.
    ///
    /// # Errors
    /// What the template refuses, and what Python would say.
    pub fn render(&self, messages: &[Json], options: &ChatOptions) -> Result<Rendered, DataError> {
        let mut messages = normalized(messages)?;
        let continued = match options.continue_final_message {
            true => Some(self.tag_final(&mut messages, options)?),
            false => None,
        };
        let (mut text, spans) = self.rendered(&messages, options)?;
        if let Some(said) = continued {
            cut_at_tag(&mut text, &said)?;
        }
        let generation = self.has_generation.then_some(spans);
        Ok(Rendered { text, generation })
    }

    fn rendered(
        &self,
        messages: &[Json],
        options: &ChatOptions,
    ) -> Result<(String, Vec<Range<usize>>), DataError> {
        let mut variables: Vec<(&str, Value)> = Vec::new();
        let marks = generation::Marks::absent_from(messages, &options.variables, &self.literals)?;
        let flag = options.add_generation_prompt;
        variables.push(("messages", repr::value_of(&Json::Array(messages.to_vec()))));
        variables.push(("tools", Value::from(())));
        variables.push(("documents", Value::from(())));
        variables.push(("add_generation_prompt", Value::from(flag)));
        variables.push((generation::FUNCTION, marks.function()));
        for (name, value) in self.variables.iter().chain(&options.variables) {
            variables.push((name, repr::value_of(value)));
        }
        let text = self
            .environment
            .get_template(engine::NAME)
            .and_then(|template| template.render(Value::from_pairs(variables)))
            .map_err(|error| DataError::ChatTemplate(python::error_text(&error)))?;
        match self.has_generation {
            true => marks.taken_out(&text),
            false => Ok((text, Vec::new())),
        }
    }

    /// Puts the tag behind the last message, and tells what it says.
    fn tag_final(&self, messages: &mut [Json], options: &ChatOptions) -> Result<String, DataError> {
        let wrong = |reason: &str| DataError::ChatTemplate(format!("ValueError: {reason}"));
        if options.add_generation_prompt {
            return Err(wrong(
                "continue_final_message and add_generation_prompt are not compatible",
            ));
        }
        let content = messages
            .last_mut()
            .and_then(|message| message.get_mut("content"))
            .ok_or_else(|| {
                wrong("continue_final_message is set but there is nothing to continue")
            })?;
        let text = match content {
            Json::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
            other => Some(other),
        };
        let Some(Json::String(text)) = text else {
            return Err(wrong(
                "continue_final_message is set but we could not find any text to continue in the final message!",
            ));
        };
        let said = text.clone();
        text.push_str(CONTINUE_TAG);
        Ok(said)
    }
}

/// Cuts a text at the tag; `said` is what stands before it.
fn cut_at_tag(text: &mut String, said: &str) -> Result<(), DataError> {
    let at = text.rfind(CONTINUE_TAG.trim_end());
    let Some(at) = at.filter(|_| text.contains(strip(said))) else {
        return Err(DataError::ChatTemplate(
            "ValueError: continue_final_message is set but the final message does not appear in \
             the chat after applying the chat template!"
                .into(),
        ));
    };
    let spaced = text[at..].starts_with(CONTINUE_TAG);
    text.truncate(at);
    if !spaced {
        // The template trims what is said.
        text.truncate(python::rstrip(text).len());
    }
    Ok(())
}

/// As transformers prepares messages: keys whose value is null are left out, and the names of
/// thoughts stand for each other.
fn normalized(messages: &[Json]) -> Result<Vec<Json>, DataError> {
    if messages.is_empty() {
        return Err(DataError::ChatTemplate(
            "ValueError: Cannot apply chat template to an empty conversation. Provide at least one message."
                .into(),
        ));
    }
    let one = |message: &Json| {
        let Json::Object(fields) = message else {
            return Err(DataError::ChatTemplate(format!(
                "TypeError: Chat messages should be dicts, but got {message}."
            )));
        };
        let mut kept = fields.clone();
        kept.retain(|_, value| !value.is_null());
        let thought = REASONING.iter().find_map(|name| kept.get(*name)).cloned();
        if let Some(thought) = thought {
            let thinking = kept.shift_remove("thinking");
            let thinking = thinking.unwrap_or_else(|| thought.clone());
            kept.shift_insert(0, "thinking".into(), thinking);
            kept.insert("reasoning_content".into(), thought);
        }
        Ok(Json::Object(kept))
    };
    messages.iter().map(one).collect()
}
