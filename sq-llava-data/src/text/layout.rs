//! The layout of a conversation: a template of ours, or the one that a checkpoint carries.

use std::sync::Arc;

use crate::text::chat_template::{AskingRole, ChatTemplate, CheckpointTemplate};
use crate::text::choice::TemplateChoice;
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
    /// The layout that is chosen; `asking` is the role that asks in a checkpoint's template. The
    /// tokenizer must hold the tokens ([`TemplateChoice::special_tokens`]) already.
    ///
    /// # Errors
    /// If the checkpoint's template is chosen and none came with the tokenizer, or as
    /// [`CheckpointTemplate::new`].
    pub fn of(
        choice: TemplateChoice,
        tokenizer: &TextTokenizer,
        asking: Option<AskingRole>,
    ) -> Result<Self, DataError> {
        match choice {
            TemplateChoice::BuiltIn(template) => Ok(template.into()),
            TemplateChoice::Checkpoint => match ChatTemplate::of(tokenizer)? {
                Some(chat) => Ok(CheckpointTemplate::new(chat, tokenizer, asking)?.into()),
                None => Err(DataError::NoChatTemplate),
            },
        }
    }

    /// What would be chosen to have it.
    pub fn choice(&self) -> TemplateChoice {
        match self {
            Self::BuiltIn(template) => TemplateChoice::BuiltIn(*template),
            Self::Checkpoint(_) => TemplateChoice::Checkpoint,
        }
    }

    /// The name by which it is chosen.
    pub fn name(&self) -> &'static str {
        self.choice().name()
    }

    /// The role that asks in a checkpoint's template.
    pub fn asking(&self) -> Option<&AskingRole> {
        match self {
            Self::BuiltIn(_) => None,
            Self::Checkpoint(template) => template.asking(),
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
        self.choice().special_tokens(self.asking())
    }

    /// The template as Jinja, as `chat_template` in transformers' files: a checkpoint's own as it
    /// came, ours with `image` for each picture.
    ///
    /// # Errors
    /// As [`Template::to_jinja`].
    pub fn to_jinja(&self, tokenizer: &TextTokenizer, image: &str) -> Result<String, DataError> {
        match self {
            Self::BuiltIn(template) => template.to_jinja(tokenizer, image),
            Self::Checkpoint(template) => Ok(template.chat().source().to_owned()),
        }
    }

    /// Strings that end what is generated: [`Template::stop_strings`]. A checkpoint's template ends
    /// by ids alone, as in transformers.
    pub fn stop_strings(&self, tokenizer: &TextTokenizer) -> Vec<String> {
        match self {
            Self::BuiltIn(template) => template.stop_strings(tokenizer),
            Self::Checkpoint(_) => Vec::new(),
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
