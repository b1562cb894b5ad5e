//! `sq-llava eval`: benchmarks, asked and scored.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use sq_llava_eval::benchmark::{
    AnswerFile, Answers, Benchmark, Files, Question, Questions, merge, shard_name,
};
use sq_llava_eval::score::Report;
use sq_llava_model::generation::sampling::Sampling;
use sq_llava_model::{AnswerOptions, Assistant};

use crate::device::Work;
use crate::model::ModelArguments;
use crate::results::{BenchmarkArguments, scored, show};
use sq_llava_eval::run::{Asking, processor};

/// Ask a model the questions of benchmarks and score its answers.
///
/// Answers are appended to OUT/BENCHMARK/answers.jsonl as they come. The same command again asks
/// only what has no answer yet.
#[derive(Debug, Args)]
pub struct Eval {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    which: BenchmarkArguments,
    /// Folder for answers and results.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Questions at a time; the answers are the same with any number.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Most tokens of an answer; by default as published (128 or 1024, by benchmark).
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// Shards that the questions are divided into, each for a run of its own.
    #[arg(long, default_value_t = 1)]
    num_chunks: usize,
    /// Which shard this run answers, from 0. The run that completes the last one merges them.
    #[arg(long, default_value_t = 0)]
    chunk_idx: usize,
    /// Name recorded with the answers; by default that of the model's folder.
    #[arg(long, value_name = "NAME")]
    model_id: Option<String>,
    /// Print the results as one JSON object.
    #[arg(long)]
    json: bool,
}

/// A benchmark with the questions of this run's shard.
struct Task {
    benchmark: Benchmark,
    files: Files,
    questions: Questions,
}

impl Eval {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        if self.batch == 0 || self.num_chunks == 0 || self.max_new_tokens == Some(0) {
            bail!("--batch, --num-chunks and --max-new-tokens must be at least 1");
        }
        if self.chunk_idx >= self.num_chunks {
            bail!(
                "--chunk-idx {} of --num-chunks {}: shards are counted from 0",
                self.chunk_idx,
                self.num_chunks
            );
        }
        self.model.device.run(self)
    }

    fn model_id(&self) -> String {
        let folder = self.model.model.as_deref().and_then(Path::file_name);
        let named = || folder.map(|name| name.to_string_lossy().into_owned());
        self.model_id
            .clone()
            .or_else(named)
            .or_else(|| self.model.preset.clone())
            .unwrap_or_else(|| "model".into())
    }

    /// Reads the questions of every benchmark, before gigabytes of weights are.
    fn tasks(&self) -> Result<Vec<Task>> {
        let found = self.which.files()?;
        found
            .into_iter()
            .map(|(benchmark, files)| {
                let mut questions = Questions::read(benchmark, &files, &self.which.options())?;
                questions.keep_shard(self.num_chunks, self.chunk_idx);
                questions.drop_without_image();
                Ok(Task {
                    benchmark,
                    files,
                    questions,
                })
            })
            .collect()
    }

    fn answer_path(&self, benchmark: Benchmark, index: usize) -> PathBuf {
        let name = match self.num_chunks {
            1 => "answers.jsonl".to_owned(),
            chunks => shard_name(chunks, index),
        };
        self.out.join(benchmark.name()).join(name)
    }

    /// Asks what has no answer yet; gives the report once all shards are complete.
    fn evaluate<B: Backend>(
        &self,
        task: &Task,
        assistant: &Assistant<B>,
        model_id: &str,
    ) -> Result<Option<Report>> {
        let path = self.answer_path(task.benchmark, self.chunk_idx);
        let (mut file, held) = AnswerFile::open(&path)?;
        let todo = remaining(&task.questions, &held, &path, model_id)?;
        let asking = Asking {
            assistant,
            processor: processor(assistant, &task.questions)?,
            questions: &task.questions,
            options: AnswerOptions {
                max_new_tokens: self
                    .max_new_tokens
                    .unwrap_or(task.benchmark.max_new_tokens()),
                sampling: Sampling::greedy(),
                stop: vec![],
            },
            batch: self.batch,
            model_id,
        };
        let asked = asking.run(&todo, &mut file)?;
        if !self.json {
            println!(
                "{}: {} answered before, {} now, {:.2} questions/s",
                task.benchmark.title(),
                task.questions.list.len() - todo.len(),
                asked.answered,
                asked.answered as f64 / asked.seconds.max(1e-9)
            );
        }
        drop(file);
        let mut report = match self.num_chunks {
            1 => self.report(&task.questions, &task.files, &path)?,
            chunks => {
                let (all, complete) = self.all_shards(task)?;
                if !complete {
                    if !self.json {
                        println!(
                            "{}: shard {} of {chunks} is done; others are not",
                            task.benchmark.title(),
                            self.chunk_idx
                        );
                    }
                    return Ok(None);
                }
                let merged = merge(&self.out.join(task.benchmark.name()), chunks)?;
                self.report(&all, &task.files, &merged)?
            }
        };
        report.problems.extend(&asked.problems);
        Ok(Some(report))
    }

    /// All questions, and whether every shard has answered its own.
    fn all_shards(&self, task: &Task) -> Result<(Questions, bool)> {
        let mut all = Questions::read(task.benchmark, &task.files, &self.which.options())?;
        all.drop_without_image();
        let mut answered = HashSet::new();
        for index in 0..self.num_chunks {
            let path = self.answer_path(task.benchmark, index);
            if !path.is_file() {
                return Ok((all, false));
            }
            let answers = Answers::read(&path)?;
            answered.extend(answers.list.iter().map(|answer| owned(answer.key())));
        }
        let complete = all
            .list
            .iter()
            .all(|question| answered.contains(&owned(question.key())));
        Ok((all, complete))
    }

    fn report(&self, questions: &Questions, files: &Files, answers: &Path) -> Result<Report> {
        let folder = self.out.join(questions.benchmark.name());
        scored(
            questions,
            &Answers::read(answers)?,
            files,
            &folder,
            &self.which.jars(),
        )
    }
}

fn owned((id, round, prompt): (String, u32, &str)) -> (String, u32, String) {
    (id, round, prompt.to_owned())
}

/// The questions without an answer.
fn remaining<'a>(
    questions: &'a Questions,
    held: &Answers,
    path: &Path,
    model_id: &str,
) -> Result<Vec<&'a Question>> {
    let known: HashSet<_> = questions.list.iter().map(Question::key).collect();
    for answer in &held.list {
        let advice = "choose another --out, or remove the file";
        if answer.model_id != model_id {
            bail!(
                "{}: holds answers of \"{}\", not of \"{model_id}\"; {advice}",
                path.display(),
                answer.model_id
            );
        }
        if !known.contains(&answer.key()) {
            bail!(
                "{}: the answer to question {} belongs to no question of this run; {advice}",
                path.display(),
                answer.question_id
            );
        }
    }
    let answered: HashSet<_> = held.list.iter().map(|answer| answer.key()).collect();
    let todo = questions.list.iter();
    Ok(todo.filter(|q| !answered.contains(&q.key())).collect())
}

impl Work for Eval {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let tasks = self.tasks()?;
        let model_id = self.model_id();
        let (assistant, _) = self.model.load::<B>(device)?;
        let mut reports = Vec::new();
        for task in &tasks {
            reports.extend(self.evaluate(task, &assistant, &model_id)?);
        }
        if reports.is_empty() {
            return Ok(());
        }
        show(&reports, &model_id, &self.out, self.json)
    }
}
