//! Captions: references of COCO Karpathy, Flickr30k, NoCaps and Conceptual Captions, and the
//! result file of the COCO toolkit.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::question::{ImageRef, Question};
use super::{Benchmark, Matched, ProblemKind, Problems, SubmissionFile, lines};
use crate::EvalError;

/// Name of the result file.
pub const RESULT: &str = "captions_result.json";

/// Captions of one picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captions {
    /// What people wrote.
    pub texts: Vec<String>,
    /// NoCaps: `in-domain`, `near-domain` or `out-domain`, where the file says.
    pub domain: Option<String>,
}

/// Where the captions of a question are found.
#[derive(Debug)]
enum Order {
    /// Entry i belongs to the question at position i.
    ByPosition(Vec<Option<Captions>>),
    /// By question id, or by the name of the picture.
    ByName(HashMap<String, Captions>),
}

/// The captions of a benchmark.
#[derive(Debug)]
pub struct References {
    order: Order,
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
    /// an array whose entries have `caption`, in the questions' order; for Conceptual Captions an
    /// array, object or JSONL whose entries have `label`, by question id; or the layouts of COCO
    /// (`images`, `annotations`) and Karpathy (`images` with `sentences`, of which the test split
    /// counts), by question id or name of the picture.
    ///
    /// # Errors
    /// If it cannot be read or has none of these layouts; single bad entries are added to
    /// `problems`.
    pub fn read(
        benchmark: Benchmark,
        path: &Path,
        problems: &mut Problems,
    ) -> Result<Self, EvalError> {
        if path.extension().is_some_and(|e| e == "jsonl") {
            return Self::read_jsonl(path, problems);
        }
        let value: Value = lines::read_json(path)?;
        let order = match value {
            Value::Array(list) => {
                let entries = list.iter().enumerate().map(|(index, entry)| {
                    entry_captions(entry, &format!("annotation #{index}"), problems)
                });
                Order::ByPosition(entries.collect())
            }
            Value::Object(map) if map.contains_key("images") => {
                let file = CocoFile::deserialize(Value::Object(map))
                    .map_err(|error| EvalError::benchmark(path, error.to_string()))?;
                Order::ByName(coco(file, problems))
            }
            Value::Object(map) if benchmark == Benchmark::Conceptual => Order::ByName(
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
        Ok(Self { order })
    }

    fn read_jsonl(path: &Path, problems: &mut Problems) -> Result<Self, EvalError> {
        let mut found = HashMap::new();
        lines::for_each(path, |number, bytes, _| {
            let place = lines::place(path, number);
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
        let order = Order::ByName(found);
        Ok(Self { order })
    }

    /// The captions of a question's picture. Conceptual Captions are found by the question's id
    /// even in an array.
    pub fn of(&self, benchmark: Benchmark, question: &Question) -> Option<&Captions> {
        match &self.order {
            Order::ByPosition(list) => {
                let at = match benchmark {
                    Benchmark::Conceptual => question.id.to_string().parse().ok()?,
                    _ => question.position,
                };
                list.get(at)?.as_ref()
            }
            Order::ByName(map) => map.get(&question.id.to_string()).or_else(|| {
                let Some(ImageRef::File(name)) = &question.image else {
                    return None;
                };
                map.get(name.rsplit('/').next().unwrap_or(name))
            }),
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        match &self.order {
            Order::ByPosition(list) => list.len(),
            Order::ByName(map) => map.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
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

/// `[{image_id, caption}]`, as the COCO toolkit reads results.
pub(super) fn submission(matched: &Matched<'_>) -> Result<SubmissionFile, EvalError> {
    let rows: Vec<Value> = matched
        .answered()
        .map(|(question, answer)| json!({"image_id": question.id, "caption": answer.text}))
        .collect();
    SubmissionFile::json(RESULT, &rows)
}
