//! References of captions, in the layouts of COCO, Karpathy, NoCaps and Conceptual Captions.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::EvalError;
use crate::jsonl;
use crate::problem::{ProblemKind, Problems};
use crate::question::Question;

/// Which entry of an array belongs to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryOrder {
    /// Entry i is of the question at position i of its file.
    Position,
    /// Entry i is of the question with the id i; an object has ids as its keys.
    QuestionId,
}

/// Captions of one picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Captions {
    /// What people wrote.
    pub(crate) texts: Vec<String>,
    /// NoCaps: `in-domain`, `near-domain` or `out-domain`, where the file says.
    pub(crate) domain: Option<String>,
}

/// The entries of a file.
#[derive(Debug)]
enum Entries {
    /// An array, and which of its entries belongs to a question.
    InOrder(Vec<Option<Captions>>, EntryOrder),
    /// By question id, or by the name of the picture.
    ByName(HashMap<String, Captions>),
}

/// The captions of one file.
#[derive(Debug)]
struct Part {
    /// Whose questions they are, where the benchmark has a file for each domain.
    domain: Option<&'static str>,
    entries: Entries,
    /// By name of the picture, where the entries of an array have it.
    by_picture: HashMap<String, Captions>,
}

/// The captions of a benchmark.
#[derive(Debug)]
pub struct References {
    parts: Vec<Part>,
}

/// COCO's layout, which NoCaps has too.
#[derive(Deserialize)]
struct CocoFile {
    #[serde(default)]
    images: Vec<Value>,
    #[serde(default)]
    annotations: Vec<CocoAnnotation>,
}

#[derive(Deserialize)]
struct CocoAnnotation {
    image_id: Value,
    caption: String,
}

/// A picture of COCO's or Karpathy's layout.
#[derive(Deserialize)]
struct Picture {
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    file_name: Option<String>,
    #[serde(default)]
    filename: Option<String>,
    #[serde(default)]
    split: Option<String>,
    #[serde(default)]
    domain: Option<String>,
    #[serde(default)]
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

impl References {
    /// Reads a reference file:
    /// an array whose entries have `caption` or `label`; JSONL of such entries, or for
    /// [`EntryOrder::QuestionId`] an object of them, by question id; or the layouts of COCO
    /// (`images`, `annotations`) and Karpathy (`images` with `sentences`, of which the test split
    /// counts), by question id or name of the picture. Entries of an array that name their `image`
    /// are found by it.
    ///
    /// # Errors
    /// If it cannot be read or has none of these layouts; single bad entries are added to
    /// `problems`.
    pub(crate) fn read(
        path: &Path,
        order: EntryOrder,
        problems: &mut Problems,
    ) -> Result<Self, EvalError> {
        let part = Part::read(path, order, problems)?;
        Ok(Self { parts: vec![part] })
    }

    /// Reads a file for each domain, in the order of its questions.
    pub(crate) fn read_domains(
        files: Vec<(&'static str, PathBuf)>,
        problems: &mut Problems,
    ) -> Result<Self, EvalError> {
        let parts = files.into_iter().map(|(domain, path)| {
            let part = Part::read(&path, EntryOrder::Position, problems)?;
            Ok(part.of_domain(domain))
        });
        Ok(Self {
            parts: parts.collect::<Result<_, EvalError>>()?,
        })
    }

    /// The captions of a question's picture.
    pub(crate) fn of(&self, question: &Question) -> Option<&Captions> {
        let parts = self.parts.iter();
        let mut own = parts.filter(|part| {
            let domain = question.category.as_deref();
            part.domain.is_none() || domain.is_none() || part.domain == domain
        });
        own.find_map(|part| part.of(question))
    }
}

impl Part {
    fn new(entries: Entries) -> Self {
        Self {
            domain: None,
            entries,
            by_picture: HashMap::new(),
        }
    }

    fn read(path: &Path, order: EntryOrder, problems: &mut Problems) -> Result<Self, EvalError> {
        if path.extension().is_some_and(|e| e == "jsonl") {
            return Self::read_jsonl(path, problems);
        }
        let value: Value = jsonl::read_json(path)?;
        let entries = match value {
            Value::Array(list) => {
                let entries = list.iter().enumerate().map(|(index, entry)| {
                    entry_captions(entry, &format!("annotation #{index}"), problems)
                });
                let entries: Vec<_> = entries.collect();
                let pictures = list.iter().zip(&entries).filter_map(|(entry, captions)| {
                    let name = entry.get("image")?.as_str()?;
                    Some((file_name(name).to_owned(), captions.clone()?))
                });
                return Ok(Self {
                    by_picture: pictures.collect(),
                    ..Self::new(Entries::InOrder(entries, order))
                });
            }
            Value::Object(map) if map.contains_key("images") => {
                let file = CocoFile::deserialize(Value::Object(map))
                    .map_err(|error| EvalError::benchmark(path, error.to_string()))?;
                Entries::ByName(coco(file, problems))
            }
            Value::Object(map) if order == EntryOrder::QuestionId => Entries::ByName(
                map.iter()
                    .filter_map(|(id, entry)| {
                        Some((id.clone(), entry_captions(entry, id, problems)?))
                    })
                    .collect(),
            ),
            _ => {
                let reason = "holds no captions: an array with \"caption\" in each entry, or \
                              COCO's \"images\" and \"annotations\"";
                return Err(EvalError::benchmark(path, reason));
            }
        };
        Ok(Self::new(entries))
    }

    fn read_jsonl(path: &Path, problems: &mut Problems) -> Result<Self, EvalError> {
        let mut found = HashMap::new();
        jsonl::for_each(path, |number, bytes| {
            let place = jsonl::place(path, number);
            match serde_json::from_slice::<Value>(bytes) {
                Ok(entry) => {
                    let captions = entry_captions(&entry, &place, problems);
                    if let (Some(id), Some(captions)) = (entry.get("question_id"), captions) {
                        found.insert(text_of(id), captions);
                    }
                }
                Err(error) => problems.add(ProblemKind::BadReference, place, error.to_string()),
            }
            Ok(())
        })?;
        Ok(Self::new(Entries::ByName(found)))
    }

    /// The same as the captions of a domain.
    fn of_domain(mut self, domain: &'static str) -> Self {
        self.domain = Some(domain);
        let all: Vec<&mut Captions> = match &mut self.entries {
            Entries::InOrder(list, _) => list.iter_mut().flatten().collect(),
            Entries::ByName(map) => map.values_mut().collect(),
        };
        for captions in all.into_iter().chain(self.by_picture.values_mut()) {
            captions.domain.get_or_insert_with(|| domain.to_owned());
        }
        self
    }

    fn of(&self, question: &Question) -> Option<&Captions> {
        let picture = question.image_file().map(file_name);
        match &self.entries {
            // A picture's name is surer than a place.
            Entries::InOrder(..) if !self.by_picture.is_empty() && picture.is_some() => {
                self.by_picture.get(picture?)
            }
            Entries::InOrder(list, order) => {
                let at = match order {
                    EntryOrder::Position => question.position,
                    EntryOrder::QuestionId => question.id.to_string().parse().ok()?,
                };
                list.get(at)?.as_ref()
            }
            Entries::ByName(map) => {
                let id = question.id.to_string();
                map.get(&id).or_else(|| map.get(picture?))
            }
        }
    }
}

/// A path without its folders.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn text_of(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// `caption` or `label` of an entry, one text or several.
fn entry_captions(entry: &Value, place: &str, problems: &mut Problems) -> Option<Captions> {
    let value = entry.get("caption").or_else(|| entry.get("label"));
    let texts: Option<Vec<String>> = match value {
        Some(Value::String(text)) => Some(vec![text.clone()]),
        Some(Value::Array(list)) => list
            .iter()
            .map(|text| text.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    };
    let Some(texts) = texts.filter(|texts| !texts.is_empty()) else {
        problems.add(
            ProblemKind::BadReference,
            place,
            "it has no \"caption\" or \"label\" with text",
        );
        return None;
    };
    let domain = entry.get("domain").and_then(Value::as_str);
    Some(Captions {
        texts,
        domain: domain.map(str::to_owned),
    })
}

fn coco(file: CocoFile, problems: &mut Problems) -> HashMap<String, Captions> {
    let mut by_id: HashMap<String, Vec<String>> = HashMap::new();
    for annotation in file.annotations {
        let id = text_of(&annotation.image_id);
        by_id.entry(id).or_default().push(annotation.caption);
    }
    let mut found = HashMap::new();
    for (index, value) in file.images.into_iter().enumerate() {
        let picture: Picture = match serde_json::from_value(value) {
            Ok(picture) => picture,
            Err(error) => {
                let place = format!("image #{index}");
                problems.add(ProblemKind::BadReference, place, error.to_string());
                continue;
            }
        };
        // Karpathy's file holds all splits.
        if picture
            .split
            .as_deref()
            .is_some_and(|split| split != "test")
        {
            continue;
        }
        let id = picture.id.as_ref().map(text_of);
        let mut texts: Vec<String> = picture.sentences.into_iter().map(|s| s.raw).collect();
        if let Some(id) = &id {
            texts.extend(by_id.get(id).cloned().unwrap_or_default());
        }
        if texts.is_empty() {
            let place = format!("image #{index}");
            problems.add(ProblemKind::BadReference, place, "it has no captions");
            continue;
        }
        let captions = Captions {
            texts,
            domain: picture.domain,
        };
        for name in [id, picture.file_name, picture.filename]
            .into_iter()
            .flatten()
        {
            found.insert(name, captions.clone());
        }
    }
    found
}
