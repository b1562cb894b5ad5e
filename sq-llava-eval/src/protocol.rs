//! How a benchmark's questions are put: as LLaVA's evaluation does today, or as the scripts of the
//! released SQ-LLaVA did.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::answer::Answer;
use sq_llava_data::image::ImageAspect;
use sq_llava_data::{Layout, Template, TemplateChoice};

/// Key of [`AskedWith`] in an answer's metadata.
const KEY: &str = "asked_with";

/// Whose evaluation is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// LLaVA's: the checkpoint's own template; pictures as it was trained, but for ScienceQA.
    Llava,
    /// That of the released SQ-LLaVA: template `v1` (`vicuna_v1`) throughout; pictures are cropped
    /// for MM-Vet, LLaVA-Bench and captions, too.
    Released,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Llava, Self::Released];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llava => "llava",
            Self::Released => "released",
        }
    }

    /// The template that it asks with, of a model that has `own`.
    pub fn template(self, own: &Layout) -> Layout {
        match self {
            Self::Llava => own.clone(),
            Self::Released => Template::V1.into(),
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL
            .into_iter()
            .find(|protocol| protocol.name() == name);
        found.ok_or_else(|| format!("no protocol \"{name}\"; known are llava and released"))
    }
}

/// How a question was put, recorded with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedWith {
    /// Whether the released SQ-LLaVA answered, or a checkpoint built like it.
    pub released: bool,
    /// Whose evaluation was followed.
    pub protocol: Protocol,
    /// The conversation template.
    pub template: TemplateChoice,
    /// What was done to pictures that are not square.
    pub pictures: ImageAspect,
}

impl AskedWith {
    /// What is recorded with an answer.
    pub fn of(answer: &Answer) -> Option<Self> {
        Self::deserialize(answer.metadata.get(KEY)?).ok()
    }

    /// What is recorded with all answers, if that is the same.
    pub(crate) fn of_all<'a>(mut answers: impl Iterator<Item = &'a Answer>) -> Option<Self> {
        let first = Self::of(answers.next()?)?;
        answers
            .all(|answer| Self::of(answer).as_ref() == Some(&first))
            .then_some(first)
    }

    /// As it is recorded.
    pub(crate) fn metadata(&self) -> Map<String, Value> {
        let mut asked = Map::new();
        asked.insert("released".into(), self.released.into());
        asked.insert("protocol".into(), self.protocol.name().into());
        asked.insert("template".into(), self.template.name().into());
        asked.insert("pictures".into(), self.pictures.name().into());
        let mut metadata = Map::new();
        metadata.insert(KEY.into(), asked.into());
        metadata
    }
}

impl fmt::Display for AskedWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scripts = match self.protocol {
            Protocol::Llava => "LLaVA's evaluation",
            Protocol::Released => "the released scripts",
        };
        write!(
            f,
            "Asked in the way of {scripts}: template {}, pictures by \"{}\"",
            self.template.name(),
            self.pictures.name()
        )
    }
}
