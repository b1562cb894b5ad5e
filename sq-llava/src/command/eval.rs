//! `sq-llava eval`: benchmarks, asked and scored.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use sq_llava_eval::answer::{AnswerFile, Answers};
use sq_llava_eval::protocol::{AskedWith, Protocol};
use sq_llava_eval::question::{Question, Questions};
use sq_llava_eval::report::Report;
use sq_llava_eval::run::Asking;
use sq_llava_eval::shard::{merge, shard_name};
use sq_llava_eval::task::Task;
use sq_llava_model::Assistant;

use crate::benchmarks::{AskingOptions, BATCH, Benchmark};
use crate::device::Work;
use crate::model::ModelArguments;
use crate::output::tell;
use crate::results::{BenchmarkArguments, Results};

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
    /// Whose evaluation is followed: `llava`, or `released` for that of the published SQ-LLaVA
    /// (template v1; pictures cropped for MM-Vet, LLaVA-Bench and captions). By default that of
    /// the checkpoint: `released` for one with the released prototype extractor, else `llava`.
    /// --template goes before its template.
    #[arg(long, value_name = "NAME")]
    protocol: Option<Protocol>,
    /// Questions at a time; the answers are the same with any number.
    #[arg(long, default_value_t = BATCH)]
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
    fn shards(&self) -> Result<Vec<Benchmark>> {
        let found = self.which.files()?;
        found
            .into_iter()
            .map(|(task, files)| {
                let mut questions = task.questions(&files, &self.which.options())?;
                questions.keep_shard(self.num_chunks, self.chunk_idx);
                questions.drop_without_image();
                Ok(Benchmark {
                    task,
                    files,
                    questions,
                })
            })
            .collect()
    }

    fn answer_path(&self, task: &dyn Task, index: usize) -> PathBuf {
        let name = match self.num_chunks {
            1 => "answers.jsonl".to_owned(),
            chunks => shard_name(chunks, index),
        };
        self.out.join(task.name()).join(name)
    }

    /// Asks what has no answer yet; adds the report once all shards are complete.
    fn evaluate<B: Backend>(
        &self,
        shard: &Benchmark,
        assistant: &Assistant<B>,
        model_id: &str,
        results: &mut Results,
    ) -> Result<()> {
        let path = self.answer_path(shard.task, self.chunk_idx);
        let (mut file, held) = AnswerFile::open(&path)?;
        let asking = self.options().asking(shard, assistant, model_id)?;
        belong(&held, &path, &asking)?;
        let todo = remaining(&shard.questions, &held);
        let asked = asking.run(&todo, &mut file)?;
        if !self.json {
            tell(format_args!(
                "{}: {} answered before, {} now, {:.2} questions/s",
                shard.task.title(),
                shard.questions.list.len() - todo.len(),
                asked.answered,
                asked.answered as f64 / asked.seconds.max(1e-9)
            ));
        }
        drop(file);
        let report = match self.num_chunks {
            1 => self.report(shard, &shard.questions, &path),
            chunks => {
                let (all, complete) = self.all_shards(shard)?;
                if !complete {
                    if !self.json {
                        tell(format_args!(
                            "{}: shard {} of {chunks} is done; others are not",
                            shard.task.title(),
                            self.chunk_idx
                        ));
                    }
                    return Ok(());
                }
                let merged = merge(&self.out.join(shard.task.name()), chunks)?;
                self.report(shard, &all, &merged)
            }
        };
        results.add(match (report, asked.problems.lines().first()) {
            (Ok(mut report), _) => {
                report.problems.extend(&asked.problems);
                Ok(report)
            }
            (Err(error), Some(first)) => Err(anyhow!("{error:#}; not asked: {first}")),
            (Err(error), None) => Err(error),
        });
        Ok(())
    }

    fn options(&self) -> AskingOptions {
        AskingOptions {
            protocol: self.protocol,
            max_new_tokens: self.max_new_tokens,
            batch: self.batch,
        }
    }

    /// All questions, and whether every shard has answered its own.
    fn all_shards(&self, shard: &Benchmark) -> Result<(Questions, bool)> {
        let mut all = shard.task.questions(&shard.files, &self.which.options())?;
        all.drop_without_image();
        let mut answered = HashSet::new();
        for index in 0..self.num_chunks {
            let path = self.answer_path(shard.task, index);
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

    fn report(&self, shard: &Benchmark, questions: &Questions, answers: &Path) -> Result<Report> {
        let folder = self.out.join(shard.task.name());
        shard.report(questions, answers, &folder, &self.which)
    }
}

fn owned((id, round, prompt): (String, u32, &str)) -> (String, u32, String) {
    (id, round, prompt.to_owned())
}

/// Checks that the answers that are in the file already are of this run.
///
/// # Errors
/// If one is to another question, of another model, or was asked otherwise.
fn belong<B: Backend>(held: &Answers, path: &Path, asking: &Asking<'_, B>) -> Result<()> {
    let (model_id, asked_with) = (asking.model_id, &asking.asked_with);
    let questions = asking.questions.list.iter();
    let known: HashSet<_> = questions.map(Question::key).collect();
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
        // Answers that do not say how they were asked were asked as LLaVA asks.
        let same = match AskedWith::of(answer) {
            Some(recorded) => recorded == *asked_with,
            None => asked_with.protocol == Protocol::Llava,
        };
        if !same {
            bail!(
                "{}: the answer to question {} was asked otherwise than this run asks ({asked_with}); \
                 {advice}",
                path.display(),
                answer.question_id
            );
        }
    }
    Ok(())
}

/// The questions without an answer.
fn remaining<'a>(questions: &'a Questions, held: &Answers) -> Vec<&'a Question> {
    let answered: HashSet<_> = held.list.iter().map(|answer| answer.key()).collect();
    let todo = questions.list.iter();
    todo.filter(|q| !answered.contains(&q.key())).collect()
}

impl Work for Eval {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let shards = self.shards()?;
        let model_id = self.model_id();
        let (mut assistant, _) = self.model.load::<B>(device)?;
        if self.model.template.is_none() {
            let protocol = self.options().protocol_of(&assistant);
            assistant.template = protocol.template(&assistant.template);
        }
        let mut results = Results::default();
        for shard in &shards {
            self.evaluate(shard, &assistant, &model_id, &mut results)?;
        }
        results.show(&model_id, &self.out, self.json)
    }
}
