//! Benchmarks as they were published: how a model is asked, and what it scores.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use burn::tensor::backend::Backend;
use sq_llava_eval::answer::{AnswerFile, Answers};
use sq_llava_eval::layout::Files;
use sq_llava_eval::protocol::{AskedWith, Protocol};
use sq_llava_eval::question::{Question, Questions};
use sq_llava_eval::report::Report;
use sq_llava_eval::run::{Asking, processor};
use sq_llava_eval::task::Task;
use sq_llava_model::config::ProjectorConfig;
use sq_llava_model::generation::sampling::Sampling;
use sq_llava_model::{AnswerOptions, Assistant};

use crate::results::{BenchmarkArguments, Scored};

/// Questions that are answered together.
pub const BATCH: usize = 8;

/// A benchmark with its questions.
pub struct Benchmark {
    /// The benchmark.
    pub task: &'static dyn Task,
    /// Where it lies.
    pub files: Files,
    /// What is asked.
    pub questions: Questions,
}

impl Benchmark {
    /// Scores the answers in a file to these questions, which may be more than a shard's; what its
    /// server takes goes into `folder`.
    ///
    /// # Errors
    /// As [`Scored::report`], and if the answers cannot be read.
    pub fn report(
        &self,
        questions: &Questions,
        answers: &Path,
        folder: &Path,
        which: &BenchmarkArguments,
    ) -> Result<Report> {
        let answers = Answers::read(answers)?;
        Scored {
            task: self.task,
            matched: &self.task.matched(questions, &answers),
            files: &self.files,
            folder,
            which,
        }
        .report()
    }
}

/// How benchmarks are asked where it is not as published.
#[derive(Debug, Clone, Copy)]
pub struct AskingOptions {
    /// Whose evaluation is followed; by default the checkpoint's.
    pub protocol: Option<Protocol>,
    /// Most tokens of an answer.
    pub max_new_tokens: Option<usize>,
    /// Questions that are answered together.
    pub batch: usize,
}

impl AskingOptions {
    /// As published.
    pub const PUBLISHED: Self = Self {
        protocol: None,
        max_new_tokens: None,
        batch: BATCH,
    };

    /// Whose evaluation is followed.
    pub fn protocol_of<B: Backend>(&self, assistant: &Assistant<B>) -> Protocol {
        self.protocol.unwrap_or(match is_released(assistant) {
            true => Protocol::Released,
            false => Protocol::Llava,
        })
    }

    /// How a benchmark's questions are asked.
    ///
    /// # Errors
    /// If the model has no processor for its pictures.
    pub fn asking<'a, B: Backend>(
        &self,
        benchmark: &'a Benchmark,
        assistant: &'a Assistant<B>,
        model_id: &'a str,
    ) -> Result<Asking<'a, B>> {
        let protocol = self.protocol_of(assistant);
        let processor = processor(assistant, benchmark.task, &benchmark.questions, protocol)?;
        let aspect = processor.as_ref().map(|p| p.config().aspect);
        let published = benchmark.task.max_new_tokens();
        Ok(Asking {
            assistant,
            processor,
            task: benchmark.task,
            questions: &benchmark.questions,
            options: AnswerOptions {
                max_new_tokens: self.max_new_tokens.unwrap_or(published),
                sampling: Sampling::greedy(),
                stop: vec![],
            },
            batch: self.batch,
            model_id,
            asked_with: AskedWith {
                released: is_released(assistant),
                protocol,
                template: assistant.template.choice(),
                pictures: aspect.unwrap_or_default(),
            },
        })
    }
}

/// Whether a checkpoint is the released SQ-LLaVA, or one built like it.
fn is_released<B: Backend>(assistant: &Assistant<B>) -> bool {
    matches!(
        assistant.model.config.projector,
        ProjectorConfig::Cluster(_)
    )
}

/// Benchmarks that several models are asked.
pub struct Benchmarks {
    all: Vec<Benchmark>,
    which: BenchmarkArguments,
}

impl Benchmarks {
    /// Reads the questions.
    ///
    /// # Errors
    /// If a benchmark is not there, or cannot be read.
    pub fn open(which: BenchmarkArguments) -> Result<Self> {
        let read = |(task, files): (&'static dyn Task, Files)| {
            let mut questions = task.questions(&files, &which.options())?;
            questions.drop_without_image();
            Ok(Benchmark {
                task,
                files,
                questions,
            })
        };
        let all = which.files()?.into_iter().map(read);
        let all = all.collect::<Result<_>>()?;
        Ok(Self { all, which })
    }

    /// The number that papers print of each, by title, with all as published; answers and reports
    /// go to `folder/BENCHMARK`.
    ///
    /// # Errors
    /// If the model fails, or files cannot be read or written.
    pub fn score<B: Backend>(
        &self,
        assistant: &mut Assistant<B>,
        folder: &Path,
    ) -> Result<BTreeMap<String, f64>> {
        let options = AskingOptions::PUBLISHED;
        assistant.template = options.protocol_of(assistant).template(&assistant.template);
        let mut scores = BTreeMap::new();
        for benchmark in &self.all {
            let folder = folder.join(benchmark.task.name());
            let path = folder.join("answers.jsonl");
            let (mut file, _) = AnswerFile::open(&path)?;
            let questions: Vec<&Question> = benchmark.questions.list.iter().collect();
            let asking = options.asking(benchmark, assistant, "run")?;
            let asked = asking.run(&questions, &mut file)?;
            let mut report = benchmark.report(&benchmark.questions, &path, &folder, &self.which)?;
            report.problems.extend(&asked.problems);
            if let [first, ..] = report.problems.lines() {
                let count = report.problems.lines().len();
                tracing::warn!("{}: {count} problem(s), the first: {first}", report.title);
            }
            // A training is not lost for what has no references here.
            match report.metrics.iter().find(|m| report.is_headline(m)) {
                Some(headline) => {
                    scores.insert(report.title.to_owned(), headline.value);
                }
                None => tracing::warn!("{}: {}", report.title, report.notes.join("; ")),
            }
        }
        Ok(scores)
    }

    /// The files with their questions.
    pub fn places(&self) -> impl Iterator<Item = &Path> {
        self.all.iter().map(|one| one.files.questions.as_path())
    }
}
