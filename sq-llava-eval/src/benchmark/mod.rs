//! Public benchmarks: their own question, answer and submission files.
//!
//! One file for each benchmark or family. Questions come out of [`Questions::read`], answers go
//! into an [`AnswerFile`], [`submission`] makes of them what the benchmark's server or script
//! takes, and [`crate::score`] gives the numbers that need no server.
//!
//! Formats are those of LLaVA's evaluation scripts, so that theirs and ours read each other's
//! files. Everything written here is a function of its input alone: the same bytes every time.

mod answer;
mod asked_with;
pub mod caption;
pub mod gqa;
mod layout;
mod lines;
pub mod llava_bench;
mod matched;
pub mod mm_vet;
pub mod mmbench;
pub mod mme;
mod nocaps;
pub mod pope;
mod problem;
mod question;
pub mod science_qa;
pub mod seed;
mod shard;
pub mod text_vqa;
pub mod vizwiz;
pub mod vqav2;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

pub use answer::{Answer, AnswerFile, Answers};
pub use asked_with::{AskedWith, Protocol};
pub use layout::Files;
pub use matched::{Matched, matched};
pub use problem::{Problem, ProblemKind, Problems};
pub use question::{
    ImageRef, LETTER_ANSWER, Picture, Question, QuestionId, QuestionOptions, Questions, Round,
    SHORT_ANSWER,
};
pub use shard::{merge, shard, shard_name};

use crate::EvalError;
use sq_llava_data::atomic::write_atomic;

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Benchmark {
    /// VQAv2 test-dev.
    VqaV2,
    /// GQA test-dev balanced.
    Gqa,
    /// VizWiz.
    VizWiz,
    /// ScienceQA.
    ScienceQa,
    /// TextVQA validation.
    TextVqa,
    /// POPE on COCO.
    Pope,
    /// MM-Vet, judged.
    MmVet,
    /// LLaVA-Bench in-the-Wild, judged.
    LlavaBench,
    /// MMBench.
    MmBench,
    /// MMBench in Chinese.
    MmBenchCn,
    /// MME.
    Mme,
    /// SEED-Bench.
    Seed,
    /// Captions of COCO, Karpathy's split.
    CocoCaptions,
    /// Captions of Flickr30k.
    Flickr30k,
    /// Captions of NoCaps.
    NoCaps,
    /// Conceptual Captions.
    Conceptual,
    /// Any other questions in the generic JSONL; answered, not scored.
    Generic,
}

impl Benchmark {
    /// All of them, in the order of the paper's table.
    pub const ALL: [Self; 17] = [
        Self::VqaV2,
        Self::Gqa,
        Self::VizWiz,
        Self::ScienceQa,
        Self::TextVqa,
        Self::Pope,
        Self::MmVet,
        Self::LlavaBench,
        Self::MmBench,
        Self::MmBenchCn,
        Self::Mme,
        Self::Seed,
        Self::CocoCaptions,
        Self::Flickr30k,
        Self::NoCaps,
        Self::Conceptual,
        Self::Generic,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::VqaV2 => "vqav2",
            Self::Gqa => "gqa",
            Self::VizWiz => "vizwiz",
            Self::ScienceQa => "scienceqa",
            Self::TextVqa => "textvqa",
            Self::Pope => "pope",
            Self::MmVet => "mm-vet",
            Self::LlavaBench => "llava-bench",
            Self::MmBench => "mmbench",
            Self::MmBenchCn => "mmbench-cn",
            Self::Mme => "mme",
            Self::Seed => "seed",
            Self::CocoCaptions => "coco",
            Self::Flickr30k => "flickr30k",
            Self::NoCaps => "nocaps",
            Self::Conceptual => "conceptual",
            Self::Generic => "generic",
        }
    }

    /// Its name in tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::VqaV2 => "VQAv2",
            Self::Gqa => "GQA",
            Self::VizWiz => "VizWiz",
            Self::ScienceQa => "ScienceQA",
            Self::TextVqa => "TextVQA",
            Self::Pope => "POPE",
            Self::MmVet => "MM-Vet",
            Self::LlavaBench => "LLaVA-Bench (Wild)",
            Self::MmBench => "MMBench",
            Self::MmBenchCn => "MMBench-CN",
            Self::Mme => "MME",
            Self::Seed => "SEED-Bench",
            Self::CocoCaptions => "COCO captions",
            Self::Flickr30k => "Flickr30k",
            Self::NoCaps => "NoCaps",
            Self::Conceptual => "Conceptual Captions",
            Self::Generic => "questions",
        }
    }

    /// Whether its answers are captions.
    pub fn is_caption(self) -> bool {
        matches!(
            self,
            Self::CocoCaptions | Self::Flickr30k | Self::NoCaps | Self::Conceptual
        )
    }

    /// Most tokens of an answer in the published evaluation: 128 where LLaVA's batch loader asks,
    /// 1024 elsewhere.
    pub fn max_new_tokens(self) -> usize {
        match self {
            Self::VqaV2
            | Self::Gqa
            | Self::VizWiz
            | Self::TextVqa
            | Self::Pope
            | Self::Mme
            | Self::Seed => 128,
            _ => 1024,
        }
    }
}

impl fmt::Display for Benchmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Benchmark {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|b| b.name() == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|b| b.name()).collect();
            format!("no benchmark \"{name}\"; known are {}", names.join(", "))
        })
    }
}

/// A file that a benchmark's server or script takes: its name and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmissionFile {
    /// Name, where several belong together with a folder.
    pub name: String,
    /// Contents.
    pub bytes: Vec<u8>,
}

impl SubmissionFile {
    fn json(name: &str, value: &impl serde::Serialize) -> Result<Self, EvalError> {
        let bytes = serde_json::to_vec(value).map_err(|source| EvalError::Json {
            path: name.into(),
            source,
        })?;
        Ok(Self {
            name: name.to_owned(),
            bytes,
        })
    }

    /// Writes it into a folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), EvalError> {
        write(&folder.join(&self.name), &self.bytes)
    }
}

/// What the benchmark's server or script takes; empty where that is the answer file itself.
/// `annotations` is the benchmark's reference file or folder, where one is needed.
///
/// # Errors
/// If a benchmark demands an answer for every question and one is missing, or references cannot
/// be read.
pub fn submission(
    questions: &Questions,
    answers: &Answers,
    annotations: Option<&Path>,
) -> Result<Vec<SubmissionFile>, EvalError> {
    let matched = matched(questions, answers);
    let one = |file: SubmissionFile| vec![file];
    match (questions.benchmark, annotations) {
        (Benchmark::VqaV2, _) => vqav2::submission(&matched).map(one),
        (Benchmark::Gqa, _) => gqa::submission(&matched).map(one),
        (Benchmark::VizWiz, _) => vizwiz::submission(questions, &matched).map(one),
        (Benchmark::ScienceQa, Some(folder)) => {
            science_qa::submission(&science_qa::References::read(folder)?, &matched).map(one)
        }
        (Benchmark::MmBench | Benchmark::MmBenchCn, _) => {
            mmbench::submission(questions, &matched).map(one)
        }
        (Benchmark::Mme, Some(folder)) => {
            mme::submission(&mme::References::read(folder)?, &matched)
        }
        (Benchmark::Seed, _) => seed::submission(&matched).map(one),
        (Benchmark::MmVet, _) => mm_vet::submission(&matched).map(one),
        (benchmark, _) if benchmark.is_caption() => caption::submission(&matched).map(one),
        _ => Ok(vec![]),
    }
}

/// Writes a file and its folders; a reader never sees half of it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), EvalError> {
    let io = |source| EvalError::Io {
        path: path.to_path_buf(),
        source,
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    write_atomic(path, bytes).map_err(io)
}

#[cfg(test)]
mod tests;
