//! Lists of questions in their usual file formats, to be measured.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::EvalError;
use sq_llava_data::{Author, DataError, IMAGE_TOKEN, Manifest, files};

/// A list of bare texts is read whole; a larger file is not a list of questions.
const MAX_LIST_BYTES: u64 = 256 << 20;

/// A question is not drawn more often; above it the count is damaged.
const MOST_DRAWS: usize = 100_000;

/// A question and the picture it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedQuestion {
    /// The question, without image marks.
    pub text: String,
    /// Path of its picture as the file writes it.
    pub image: Option<String>,
    /// How often it was drawn.
    pub count: usize,
}

/// A file of questions. Entries are read when they are asked for.
///
/// Read are: LLaVA's instruction JSON or JSONL (human turns); what `sq-llava question --json`
/// prints; JSON or JSONL of objects with `text` or `question` (and `image`); a JSON list of texts;
/// plain text, a question a line.
#[derive(Debug)]
pub struct QuestionFile {
    path: PathBuf,
    entries: Entries,
}

#[derive(Debug)]
enum Entries {
    Texts(Vec<String>),
    Objects(Manifest),
}

#[derive(Deserialize)]
struct Drawn {
    text: String,
    #[serde(default = "once")]
    count: usize,
}

fn once() -> usize {
    1
}

/// An object with questions; the first of its fields that is present decides its form.
#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    conversations: Option<IgnoredAny>,
    #[serde(default)]
    messages: Option<IgnoredAny>,
    #[serde(default)]
    questions: Option<Vec<Drawn>>,
    #[serde(default, alias = "question")]
    text: Option<String>,
    #[serde(default)]
    image: Value,
}

impl QuestionFile {
    /// Opens a file.
    ///
    /// # Errors
    /// If it cannot be read or is cut short.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, EvalError> {
        let path = path.as_ref().to_path_buf();
        let io = |source| EvalError::Io {
            path: path.clone(),
            source,
        };
        let mut start = [0u8; 4096];
        let mut file = files::open(&path)?;
        let read = file.read(&mut start).map_err(io)?;
        let start = String::from_utf8_lossy(&start[..read]);
        let start = start.trim_start_matches('\u{feff}').trim_start();
        let entries = match start.strip_prefix('[').map(str::trim_start) {
            Some(rest) if rest.starts_with('"') => {
                let list = serde_json::from_str(&whole(&path)?);
                Entries::Texts(list.map_err(|source| EvalError::Json {
                    path: path.clone(),
                    source,
                })?)
            }
            Some(_) => Entries::Objects(Manifest::open(&path)?),
            None if start.starts_with('{') => Entries::Objects(Manifest::open(&path)?),
            None => Entries::Texts(whole(&path)?.lines().map(str::to_owned).collect()),
        };
        Ok(Self { path, entries })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of entries; an entry may hold several questions, or none.
    pub fn len(&self) -> usize {
        match &self.entries {
            Entries::Texts(texts) => texts.len(),
            Entries::Objects(manifest) => manifest.len(),
        }
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The questions of an entry, empty ones and those that were never drawn left out.
    ///
    /// # Errors
    /// If there is no such entry or it has none of the known forms; the message names it.
    pub fn questions(&self, index: usize) -> Result<Vec<AskedQuestion>, EvalError> {
        let manifest = match &self.entries {
            Entries::Texts(texts) => {
                let text = texts.get(index).map(String::as_str).unwrap_or_default();
                return Ok(asked([(text, 1)], None));
            }
            Entries::Objects(manifest) => manifest,
        };
        let object: Object = serde_json::from_slice(&manifest.bytes(index)?)
            .map_err(|error| self.fault(manifest, index, error.to_string()))?;
        if object.conversations.is_some() || object.messages.is_some() {
            let sample = manifest.get(index)?;
            let turns = sample.conversations.iter();
            let human = turns.filter(|turn| turn.from != Author::Gpt);
            let image = sample.images.first().map(String::as_str);
            return Ok(asked(human.map(|turn| (turn.value.as_str(), 1)), image));
        }
        let image = object.image.as_str();
        if let Some(drawn) = &object.questions {
            if let Some(d) = drawn.iter().find(|d| d.count > MOST_DRAWS) {
                let reason = format!("a question that was drawn {} times", d.count);
                return Err(self.fault(manifest, index, reason));
            }
            let texts = drawn.iter().map(|d| (d.text.as_str(), d.count));
            return Ok(asked(texts, image));
        }
        match &object.text {
            Some(text) => Ok(asked([(text.as_str(), 1)], image)),
            None => Err(self.fault(
                manifest,
                index,
                "no \"conversations\", \"messages\", \"questions\", \"text\" or \"question\""
                    .into(),
            )),
        }
    }

    fn fault(&self, manifest: &Manifest, index: usize, reason: String) -> EvalError {
        DataError::Manifest {
            path: self.path.clone(),
            sample: format!("entry #{index}"),
            offset: manifest.offset(index).unwrap_or(0),
            reason,
        }
        .into()
    }
}

fn asked<'t>(
    texts: impl IntoIterator<Item = (&'t str, usize)>,
    image: Option<&str>,
) -> Vec<AskedQuestion> {
    texts
        .into_iter()
        .map(|(text, count)| AskedQuestion {
            text: text.replace(IMAGE_TOKEN, "").trim().to_owned(),
            image: image.map(str::to_owned),
            count,
        })
        .filter(|question| !question.text.is_empty() && question.count > 0)
        .collect()
}

fn whole(path: &Path) -> Result<String, EvalError> {
    let io = |source| EvalError::Io {
        path: path.to_path_buf(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > MAX_LIST_BYTES {
        let reason = format!("a list of texts of {bytes} bytes; use JSONL with a \"text\" a line");
        return Err(io(std::io::Error::other(reason)));
    }
    Ok(files::read_to_string(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<AskedQuestion>, EvalError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("questions.json");
        std::fs::write(&path, text).unwrap();
        let file = QuestionFile::open(&path)?;
        let all: Result<Vec<_>, _> = (0..file.len()).map(|i| file.questions(i)).collect();
        Ok(all?.concat())
    }

    #[test]
    fn every_form_gives_its_questions() {
        let with = |image: Option<&str>| -> Vec<AskedQuestion> {
            asked([("What is it?", 1), ("Where?", 1)], image)
        };
        let same = [
            ("What is it?\n\nWhere?\n", None),
            (" [\"What is it?\", \"Where?\"]", None),
            (
                "{\"text\": \"What is it?\"}\n{\"question\": \"Where?\"}\n",
                None,
            ),
            (
                r#"[{"question_id": 1, "image": "a.png", "text": "What is it?"},
                    {"image": "a.png", "text": "Where?"}]"#,
                Some("a.png"),
            ),
            (
                r#"{"description": "A.", "questions": [{"text": "What is it?", "count": 1},{"text": "Where?", "count": 1}], "image": "a.png"}"#,
                Some("a.png"),
            ),
            (
                r#"[{"id": "x", "image": ["a.png", "b.png"], "conversations": [
                    {"from": "human", "value": "<image>\nWhat is it?"},
                    {"from": "gpt", "value": "A cat."}, {"from": "vuser", "value": "Where?"}]}]"#,
                Some("a.png"),
            ),
        ];
        for (text, image) in same {
            assert_eq!(read(text).unwrap(), with(image), "{text}");
        }
        let thrice = r#"{"questions": [{"text": "Why?", "count": 3}]}"#;
        assert_eq!(read(thrice).unwrap(), asked([("Why?", 3)], None));
    }

    #[test]
    fn an_entry_without_a_question_is_named() {
        let error = read(
            r#"{"text": "a"}
            {"caption": "b"}"#,
        );
        let error = error.unwrap_err().to_string();
        for part in ["questions.json", "entry #1", "question"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(read("[\"a\", ").is_err());
    }
}
