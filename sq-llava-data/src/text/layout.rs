//! The layout of a conversation: a template of ours, or the one that a checkpoint carries.

use std::sync::Arc;

use crate::text::chat_template::{AskingRole, CheckpointTemplate};
use crate::text::conversation::Ending;
use crate::{DataError, Template, TextTokenizer};

/// How conversations are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One of our templates.
    BuiltIn(Template),
    /// The chat template of a checkpoint.
    Checkpoint(Arc<CheckpointTemplate>),
}

impl From<Template> for Layout {
    fn from(template: Template) -> Self {
        Self::BuiltIn(template)
    }
}

impl From<CheckpointTemplate> for Layout {
    fn from(template: CheckpointTemplate) -> Self {
        Self::Checkpoint(Arc::new(template))
    }
}

impl Layout {
    /// The name of one of our templates; `chat_template` for a checkpoint's.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BuiltIn(template) => template.name(),
            Self::Checkpoint(_) => "chat_template",
        }
    }

    /// Whether it has a role that asks.
    pub fn asks(&self) -> bool {
        match self {
            Self::BuiltIn(template) => template.asks(),
            Self::Checkpoint(template) => template.asking().is_some(),
        }
    }

    /// Whether training also asks the first turn of a conversation, as in the paper.
    pub fn asks_first_turn(&self) -> bool {
        match self {
            Self::BuiltIn(template) => template.asks_first_turn(),
            Self::Checkpoint(_) => self.asks(),
        }
    }

    /// Tokens that it needs beside those of the base model.
    pub fn special_tokens(&self) -> Vec<&str> {
        match self {
            Self::BuiltIn(template) => template.special_tokens().to_vec(),
            Self::Checkpoint(template) => match template.asking() {
                Some(AskingRole::Token(token)) => vec![token],
                Some(AskingRole::Text(_)) | None => Vec::new(),
            },
        }
    }

    /// As [`Template::stop_ids`] and [`CheckpointTemplate::stop_ids`].
    ///
    /// # Errors
    /// If the tokenizer lacks a token of the template.
    pub fn stop_ids(
        &self,
        tokenizer: &TextTokenizer,
        ending: Ending,
    ) -> Result<Vec<i64>, DataError> {
        match self {
            Self::BuiltIn(template) => template.stop_ids(tokenizer, ending),
            Self::Checkpoint(template) => Ok(template.stop_ids(tokenizer, ending)),
        }
    }
}
