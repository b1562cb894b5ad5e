//! `sq-llava score`: answer files, without a model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use sq_llava_eval::answer::Answers;
use sq_llava_eval::matched::Matched;
use sq_llava_eval::shard::merge;
use sq_llava_eval::task::Task;

use crate::output::write;
use crate::results::{BenchmarkArguments, Results, Scored};

/// Score answer files, whoever wrote them, and write what the benchmarks' servers take.
#[derive(Debug, Args)]
pub struct Score {
    #[command(flatten)]
    which: BenchmarkArguments,
    /// Answer file; or a folder with BENCHMARK/answers.jsonl (or merge.jsonl), as eval makes it.
    #[arg(long, value_name = "PATH")]
    answers: PathBuf,
    /// Folder for results; by default that of the answers.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Merge this many shards (BENCHMARK/N_0.jsonl …) first, complete or not.
    #[arg(long, value_name = "N")]
    num_chunks: Option<usize>,
    /// What the judge is told: LLaVA-Bench's rule.json, or a text for MM-Vet. Writes
    /// judge_requests.jsonl.
    #[arg(long, value_name = "FILE")]
    rubric: Option<PathBuf>,
    /// Name of the answers in tables; by default the one that they carry.
    #[arg(long, value_name = "NAME")]
    model_id: Option<String>,
    /// Print the results as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Score {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        let (mut results, mut name) = (Results::default(), self.model_id.clone());
        let out = self.folder();
        for (task, files) in self.which.files()? {
            let Some(path) = self.answer_file(task)? else {
                continue;
            };
            let questions = task.questions(&files, &self.which.options())?;
            let answers = Answers::read(&path)?;
            if answers.list.is_empty() {
                bail!("{}: holds no answer", path.display());
            }
            name = name.or_else(|| answers.list.first().map(|a| a.model_id.clone()));
            let folder = out.join(task.name());
            let matched = task.matched(&questions, &answers);
            let scored = Scored {
                task,
                matched: &matched,
                files: &files,
                folder: &folder,
                which: &self.which,
            };
            results.add(scored.report());
            if let Some(rubric) = &self.rubric {
                requests(
                    task,
                    &matched,
                    files.annotations.as_deref(),
                    rubric,
                    &folder,
                )?;
            }
        }
        if results.is_empty() {
            bail!(
                "{}: no answers to any benchmark found",
                self.answers.display()
            );
        }
        let name = name.filter(|name| !name.is_empty());
        results.show(name.as_deref().unwrap_or("answers"), &out, self.json)
    }

    fn folder(&self) -> PathBuf {
        let beside = match self.answers.is_dir() {
            true => self.answers.as_path(),
            false => self.answers.parent().unwrap_or(Path::new(".")),
        };
        self.out.clone().unwrap_or_else(|| beside.to_path_buf())
    }

    /// The file with the answers to a benchmark.
    fn answer_file(&self, task: &dyn Task) -> Result<Option<PathBuf>> {
        if !self.answers.is_dir() {
            if self.which.benchmarks.len() != 1 {
                bail!("one answer file belongs to one benchmark: name it with --benchmark");
            }
            return Ok(Some(self.answers.clone()));
        }
        let folder = self.answers.join(task.name());
        if let Some(chunks) = self.num_chunks.filter(|_| folder.is_dir()) {
            return Ok(Some(merge(&folder, chunks)?));
        }
        let names = ["answers.jsonl", "merge.jsonl"];
        let mut found = names.iter().map(|name| folder.join(name));
        Ok(found.find(|path| path.is_file()))
    }
}

/// Writes the requests to a judge, where one scores the benchmark.
fn requests(
    task: &dyn Task,
    matched: &Matched<'_>,
    annotations: Option<&Path>,
    rubric: &Path,
    folder: &Path,
) -> Result<()> {
    let Some(judged) = task.judged() else {
        return Ok(());
    };
    let needed = judged.annotations();
    let annotations =
        annotations.with_context(|| format!("{task} needs {needed}: give --annotations"))?;
    let lines = judged.requests(matched, rubric, annotations)?;
    let path = folder.join("judge_requests.jsonl");
    write(&path, lines.join("\n") + "\n")
}
