//! One sample as it stands in a file.

use serde::Deserialize;

use super::messages::{ChatMessage, Said};
use super::{LlavaSample, Message};

#[derive(Deserialize)]
pub(super) struct RawSample {
    #[serde(default)]
    id: Option<Id>,
    #[serde(default)]
    image: Option<Images>,
    #[serde(default)]
    images: Option<Images>,
    #[serde(default)]
    conversations: Option<Vec<Message>>,
    #[serde(default)]
    messages: Option<Vec<ChatMessage>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "the id is neither a string nor a number")]
pub(super) enum Id {
    Text(String),
    Number(serde_json::Number),
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "the image is neither a string nor a list of strings"
)]
enum Images {
    One(String),
    Many(Vec<Option<String>>),
}

/// Only the id, for the message about a sample that is otherwise wrong.
#[derive(Deserialize)]
pub(super) struct IdOnly {
    #[serde(default)]
    pub(super) id: Option<Id>,
}

impl RawSample {
    /// The sample, which is called by its number where it has no id.
    pub(super) fn sample(self, number: &str) -> Result<LlavaSample, String> {
        let mut images = self
            .image
            .or(self.images)
            .map_or_else(Vec::new, Images::paths);
        let said = match (self.conversations, self.messages) {
            (Some(messages), None) => Said {
                messages,
                ..Said::default()
            },
            (None, Some(messages)) => Said::of(messages)?,
            (Some(_), Some(_)) => return Err("it has both conversations and messages".into()),
            (None, None) => {
                return Err(
                    "missing field `conversations` (or `messages`, as chat programs have them)"
                        .into(),
                );
            }
        };
        match (images.is_empty(), said.images.is_empty()) {
            (true, _) => images = said.images,
            (false, true) => {}
            (false, false) => {
                return Err("its pictures are named both in its messages and beside them".into());
            }
        }
        Ok(LlavaSample {
            id: self.id.map_or_else(|| number.to_owned(), Id::text),
            images,
            system: said.system,
            conversations: said.messages,
        })
    }
}

impl Id {
    pub(super) fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

impl Images {
    fn paths(self) -> Vec<String> {
        let mut paths = match self {
            Self::One(path) => vec![path],
            Self::Many(paths) => paths.into_iter().flatten().collect(),
        };
        paths.retain(|path| !path.is_empty());
        paths
    }
}
