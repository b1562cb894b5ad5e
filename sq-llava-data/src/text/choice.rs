//! Which layout of conversations is asked for, by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::chat_template::AskingRole;
use crate::{DataError, Template};

/// One of our templates, or the one that a checkpoint carries. Written as its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum TemplateChoice {
    /// One of our templates.
    BuiltIn(Template),
    /// The checkpoint's `chat_template`.
    Checkpoint,
}

impl TemplateChoice {
    /// The name by which it is chosen.
    pub fn name(self) -> &'static str {
        match self {
            Self::BuiltIn(template) => template.name(),
            Self::Checkpoint => "checkpoint",
        }
    }

    /// Tokens that it needs beside those of the base model; `asking` is the role that a
    /// checkpoint's template is to get.
    pub fn special_tokens(self, asking: Option<&AskingRole>) -> Vec<&str> {
        match (self, asking) {
            (Self::BuiltIn(template), _) => template.special_tokens().to_vec(),
            (Self::Checkpoint, Some(AskingRole::Token(token))) => vec![token],
            (Self::Checkpoint, Some(AskingRole::Text(_)) | None) => Vec::new(),
        }
    }
}

impl From<Template> for TemplateChoice {
    fn from(template: Template) -> Self {
        Self::BuiltIn(template)
    }
}

impl From<TemplateChoice> for &'static str {
    fn from(choice: TemplateChoice) -> Self {
        choice.name()
    }
}

impl TryFrom<String> for TemplateChoice {
    type Error = DataError;

    fn try_from(name: String) -> Result<Self, DataError> {
        name.parse()
    }
}

impl FromStr for TemplateChoice {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name == Self::Checkpoint.name() {
            true => Ok(Self::Checkpoint),
            false => name.parse().map(Self::BuiltIn),
        }
    }
}

impl fmt::Display for TemplateChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_refused_with_the_choices() {
        let ours = Template::ALL.map(TemplateChoice::BuiltIn);
        for choice in ours.into_iter().chain([TemplateChoice::Checkpoint]) {
            assert_eq!(choice.name().parse::<TemplateChoice>().unwrap(), choice);
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(json, format!("\"{choice}\""));
            assert_eq!(
                serde_json::from_str::<TemplateChoice>(&json).unwrap(),
                choice
            );
        }
        let error = "chatml".parse::<TemplateChoice>().unwrap_err().to_string();
        for part in ["chatml", "v1_sq", "checkpoint"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
