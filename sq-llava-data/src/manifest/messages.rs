//! A sample as chat programs write it: `messages` with roles, and contents in parts.

use serde::Deserialize;

use super::IMAGE_TOKEN;
use super::{Author, Message};

/// One of `messages`.
#[derive(Deserialize)]
pub(super) struct ChatMessage {
    role: String,
    content: Content,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "the content of a message is neither a string nor a list of parts like \
                 {\"type\": \"text\", \"text\": …} and {\"type\": \"image\"}"
)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// What a part may hold; its type says what it does.
#[derive(Deserialize)]
struct Part {
    r#type: String,
    #[serde(default)]
    text: Option<String>,
    /// Path of a picture.
    #[serde(default, alias = "path")]
    image: Option<String>,
    #[serde(default)]
    image_url: Option<Link>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "image_url is neither a string nor {\"url\": …}")]
enum Link {
    Bare(String),
    Inside { url: String },
}

/// What a sample's `messages` say.
#[derive(Default)]
pub(super) struct Said {
    pub(super) system: Option<String>,
    /// With `<image>` where a picture stands.
    pub(super) messages: Vec<Message>,
    /// Paths that stand in the parts, in order.
    pub(super) images: Vec<String>,
}

impl Said {
    /// Reads messages: roles `system` (first), `user`, `assistant`, and `vuser` for a question that
    /// the model is to ask.
    ///
    /// # Errors
    /// What is not understood.
    pub(super) fn of(messages: Vec<ChatMessage>) -> Result<Self, String> {
        let mut said = Self::default();
        for (place, ChatMessage { role, content }) in messages.into_iter().enumerate() {
            let value = match content {
                Content::Text(text) => text,
                Content::Parts(parts) => said.joined(parts, place + 1)?,
            };
            let from = match role.as_str() {
                "user" => Author::Human,
                "assistant" => Author::Gpt,
                "vuser" => Author::Vuser,
                "system" if place == 0 => {
                    said.system = Some(value);
                    continue;
                }
                "system" => {
                    return Err(format!(
                        "message {} is by the system, which speaks first or not at all",
                        place + 1
                    ));
                }
                other => {
                    return Err(format!(
                        "message {} has the role \"{other}\"; known are system, user, assistant and vuser",
                        place + 1
                    ));
                }
            };
            said.messages.push(Message { from, value });
        }
        Ok(said)
    }

    /// The parts of a message as one text.
    fn joined(&mut self, parts: Vec<Part>, number: usize) -> Result<String, String> {
        let mut value = String::new();
        for part in parts {
            match (part.r#type.as_str(), part.text) {
                ("text", Some(text)) => value.push_str(&text),
                ("image" | "image_url", _) => {
                    value.push_str(IMAGE_TOKEN);
                    let link = part.image_url.map(|link| match link {
                        Link::Bare(url) | Link::Inside { url } => url,
                    });
                    if let Some(path) = part.image.or(link) {
                        if path.starts_with("data:") || path.contains("://") {
                            return Err(format!(
                                "message {number} has a picture that is no file ({}…): save it, and name its path",
                                path.chars().take(24).collect::<String>()
                            ));
                        }
                        self.images.push(path);
                    }
                }
                ("text", None) => {
                    return Err(format!("message {number} has a text part without text"));
                }
                (other, _) => {
                    return Err(format!(
                        "message {number} has a part of type \"{other}\"; known are text, image and image_url"
                    ));
                }
            }
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use crate::manifest::{Author, LlavaSample, Manifest};

    fn read(sample: &str) -> Result<LlavaSample, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        std::fs::write(&path, format!("[{sample}]")).unwrap();
        let sample = Manifest::open(path).unwrap().get(0);
        sample.map_err(|error| error.to_string())
    }

    #[test]
    fn messages_are_conversations_in_other_words() {
        let sample = r#"{"id": 4, "images": ["a.png"], "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "A cup.", "name": "x"},
            {"role": "vuser", "content": [{"type": "text", "text": "Why?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "So."}]}]}"#;
        let llava = r#"{"id": 4, "image": "a.png", "conversations": [
            {"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cup."},
            {"from": "vuser", "value": "Why?"}, {"from": "gpt", "value": "So."}]}"#;
        let mut expected = read(llava).unwrap();
        expected.system = Some("Be brief.".into());
        assert_eq!(read(sample).unwrap(), expected);
        assert_eq!(expected.conversations[2].from, Author::Vuser);
    }

    #[test]
    fn pictures_may_be_named_in_the_parts() {
        let parts = r#"{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "and"},
            {"type": "image", "image": "b.png"}, {"type": "image", "path": "c.png"}"#;
        let sample = |more: &str| {
            format!(r#"{{{more} "messages": [{{"role": "user", "content": [{parts}]}}]}}"#)
        };
        let found = read(&sample("")).unwrap();
        assert_eq!(found.images, ["a.png", "b.png", "c.png"]);
        assert_eq!(found.conversations[0].value, "<image>and<image><image>");
        let error = read(&sample(r#""image": "d.png","#)).unwrap_err();
        assert!(error.contains("both in its messages and beside"), "{error}");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (messages, part) in [
            (r#"{"role": "tool", "content": "4"}"#, "role \"tool\""),
            (
                r#"{"role": "user", "content": 4}"#,
                "neither a string nor a list",
            ),
            (
                r#"{"role": "user", "content": [{"type": "audio"}]}"#,
                "type \"audio\"",
            ),
            (
                r#"{"role": "user", "content": [{"type": "text"}]}"#,
                "without text",
            ),
            (
                r#"{"role": "user", "content": [{"type": "image_url", "image_url": "https://a.b/c.png"}]}"#,
                "no file",
            ),
            (
                r#"{"role": "user", "content": "a"}, {"role": "system", "content": "b"}"#,
                "message 2 is by the system",
            ),
        ] {
            let sample = format!(r#"{{"id": "x9", "messages": [{messages}]}}"#);
            let error = read(&sample).unwrap_err();
            assert!(error.contains(part) && error.contains("x9"), "{error}");
        }
        for (sample, part) in [
            (r#"{"messages": [], "conversations": []}"#, "both"),
            (r#"{"id": "x9"}"#, "`conversations` (or `messages`"),
        ] {
            let error = read(sample).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
