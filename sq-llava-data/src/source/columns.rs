//! Which columns, or keys of an object, hold what.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::manifest::{IMAGE_TOKEN, LlavaSample, sample_of};

/// Names of columns where they are not those of LLaVA or of chat programs (`id`, `image` or
/// `images`, `conversations` or `messages`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// What a sample is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its picture, or a list of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Messages with `from` and `value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversations: Option<String>,
    /// Messages with `role` and `content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// The question of a sample of one turn; without it the picture alone is the question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// The answer, or a caption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

impl Columns {
    /// Whether all have their usual names.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses names that contradict each other.
    ///
    /// # Errors
    /// What does.
    pub fn validate(&self) -> Result<(), String> {
        let said = [&self.conversations, &self.messages, &self.answer];
        if said.iter().filter(|name| name.is_some()).count() > 1 {
            return Err(
                "of columns.conversations, columns.messages and columns.answer one is enough"
                    .into(),
            );
        }
        match (&self.question, &self.answer) {
            (Some(_), None) => Err("columns.question needs columns.answer beside it".into()),
            _ => Ok(()),
        }
    }

    /// The names of what is read: those that must be there, and those that may.
    pub(super) fn wanted(&self) -> (Vec<&str>, Vec<&str>) {
        let given = [
            &self.id,
            &self.image,
            &self.conversations,
            &self.messages,
            &self.question,
            &self.answer,
        ];
        let must = given.into_iter().flatten().map(String::as_str).collect();
        let mut may = Vec::new();
        if self.id.is_none() {
            may.push("id");
        }
        if self.image.is_none() {
            may.extend(["image", "images"]);
        }
        if self.conversations.is_none() && self.messages.is_none() && self.answer.is_none() {
            may.extend(["conversations", "messages"]);
        }
        (must, may)
    }

    /// A sample from the bytes of an object; `number` is its id where it has none.
    ///
    /// # Errors
    /// What is not understood.
    pub(super) fn sample(&self, text: &[u8], number: &str) -> Result<LlavaSample, String> {
        if self.is_default() {
            return sample_of(text, number);
        }
        let object = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let object = self.renamed(object)?;
        let text = serde_json::to_vec(&object).map_err(|e| e.to_string())?;
        sample_of(&text, number)
    }

    /// The object with the usual names.
    fn renamed(&self, mut object: Map<String, Value>) -> Result<Map<String, Value>, String> {
        let names: Vec<String> = object.keys().cloned().collect();
        let missing = |name: &str| {
            let names = names.join(", ");
            format!("there is no `{name}` (columns names it); there are {names}")
        };
        let mut renamed = Map::new();
        if let Some(answer) = &self.answer {
            let turn = |name: &str| match object.get(name) {
                Some(Value::String(text)) => Ok(text.clone()),
                Some(other) => Err(format!("`{name}` is not a text: {}", shortened(other))),
                None => Err(missing(name)),
            };
            let question = match &self.question {
                Some(question) => turn(question)?,
                None => IMAGE_TOKEN.to_owned(),
            };
            let turns = json!([
                {"from": "human", "value": question},
                {"from": "gpt", "value": turn(answer)?},
            ]);
            renamed.insert("conversations".into(), turns);
        }
        let (_, may) = self.wanted();
        for (usual, own) in [
            ("id", &self.id),
            ("image", &self.image),
            ("conversations", &self.conversations),
            ("messages", &self.messages),
        ] {
            if let Some(own) = own {
                let value = object.remove(own).ok_or_else(|| missing(own))?;
                renamed.insert(usual.into(), value);
            }
        }
        for name in may {
            if let Some(value) = object.remove(name) {
                renamed.insert(name.into(), value);
            }
        }
        Ok(renamed)
    }
}

/// The beginning of a value, for messages.
fn shortened(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Author;

    fn named(pairs: &[(&str, &str)]) -> Columns {
        let object: Map<String, Value> = pairs
            .iter()
            .map(|(k, v)| (k.to_string(), json!(v)))
            .collect();
        serde_json::from_value(Value::Object(object)).unwrap()
    }

    #[test]
    fn columns_become_a_conversation() {
        let columns = named(&[
            ("question", "q"),
            ("answer", "a"),
            ("image", "picture"),
            ("id", "key"),
        ]);
        let text = br#"{"q": "What?", "a": "A cup.", "picture": "x.png", "key": 7, "image": "no.png", "conversations": 3}"#;
        let sample = columns.sample(text, "0").unwrap();
        assert_eq!(
            (sample.id.as_str(), sample.images.as_slice()),
            ("7", &["x.png".to_owned()][..])
        );
        let said: Vec<_> = sample
            .conversations
            .iter()
            .map(|m| (m.from, m.value.as_str()))
            .collect();
        assert_eq!(said, [(Author::Human, "What?"), (Author::Gpt, "A cup.")]);
        // A caption.
        let columns = named(&[("answer", "caption")]);
        let sample = columns
            .sample(br#"{"caption": "A cup.", "image": "x.png"}"#, "4")
            .unwrap();
        assert_eq!(
            (sample.id.as_str(), sample.conversations[0].value.as_str()),
            ("4", "<image>")
        );
    }

    #[test]
    fn what_is_not_there_is_named() {
        let columns = named(&[("question", "q"), ("answer", "a")]);
        let error = columns
            .sample(br#"{"q": "What?", "b": 1}"#, "0")
            .unwrap_err();
        assert!(
            error.contains("no `a`") && error.contains("q, b"),
            "{error}"
        );
        let error = columns
            .sample(br#"{"q": "What?", "a": ["x"]}"#, "0")
            .unwrap_err();
        assert!(error.contains("`a` is not a text"), "{error}");
        for wrong in [
            &[("question", "q")][..],
            &[("answer", "a"), ("messages", "m")],
        ] {
            assert!(named(wrong).validate().is_err());
        }
    }
}
