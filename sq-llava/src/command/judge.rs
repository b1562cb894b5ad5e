//! `sq-llava judge`: scores of MM-Vet and LLaVA-Bench from a language model behind an
//! OpenAI-compatible endpoint.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use sq_llava_eval::judge::requests::{
    JudgeRequest, JudgeRow, Judged, Verdict, read_requests, sums,
};

use crate::draw::count_bar;
use crate::output::{tell, write, write_json};
use sq_llava_eval::judge::{Client, JudgeConfig, ReplyCache};

/// Let a language model judge answers.
///
/// Replies are kept in OUT/replies.jsonl: a run that was broken off, or is repeated, asks for what
/// is missing only.
#[derive(Debug, Args)]
pub struct JudgeCommand {
    /// Requests of MM-Vet or LLaVA-Bench, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    requests: PathBuf,
    /// The endpoint (examples/configs/judge.toml).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Folder for replies.jsonl, judged.jsonl and judge.json.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How often each answer is judged; the mean counts.
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A reply to get.
struct Job<'a> {
    run: usize,
    request: &'a JudgeRequest,
    body: Value,
}

impl JudgeCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// If a file is wrong, or the judge refuses or is out of reach.
    pub fn run(self) -> Result<()> {
        let config = JudgeConfig::read(&self.config)?;
        let requests = read_requests(&self.requests)?;
        if requests.is_empty() {
            bail!("{}: no request in this file", self.requests.display());
        }
        let kinds = |verdict: Verdict| requests.iter().any(|r| r.verdict == verdict);
        if kinds(Verdict::Grade) && kinds(Verdict::Pair) {
            bail!(
                "{}: requests of two benchmarks; judge each by itself",
                self.requests.display()
            );
        }
        let runs = self.runs.max(1);
        let (parallel, tries) = (config.parallel, config.tries);
        let client = Client::new(config).with_context(|| self.config.display().to_string())?;
        std::fs::create_dir_all(&self.out).with_context(|| self.out.display().to_string())?;
        let mut cache = ReplyCache::open(&self.out.join("replies.jsonl"))?;
        let mut jobs = VecDeque::new();
        for run in 0..runs {
            for request in &requests {
                let body = client.body(&request.content);
                if cache.get(run, &body).is_none() {
                    jobs.push_back(Job { run, request, body });
                }
            }
        }
        let asked = jobs.len();
        ask_all(&client, &mut cache, jobs, parallel, tries)?;

        let judged: Vec<Judged<'_>> = requests
            .iter()
            .map(|request| {
                let body = client.body(&request.content);
                let reply = |run| cache.get(run, &body).and_then(|r| request.verdict.read(r));
                Judged {
                    request,
                    numbers: (0..runs).map(reply).collect(),
                }
            })
            .collect();
        self.report(&client, &cache, &judged, asked)
    }

    fn report(
        &self,
        client: &Client,
        cache: &ReplyCache,
        judged: &[Judged<'_>],
        asked: usize,
    ) -> Result<()> {
        let mut lines = String::new();
        for one in judged {
            let mut fields = one.request.fields.clone();
            let body = client.body(&one.request.content);
            let replies: Vec<_> = (0..one.numbers.len())
                .map(|run| cache.get(run, &body))
                .collect();
            fields.insert("replies".into(), json!(replies));
            fields.insert("scores".into(), json!(one.numbers));
            lines.push_str(&format!("{}\n", Value::Object(fields)));
        }
        write(&self.out.join("judged.jsonl"), lines)?;
        let without: Vec<&str> = judged
            .iter()
            .filter(|one| one.numbers.iter().any(Option::is_none))
            .map(|one| one.request.id.as_str())
            .collect();
        let rows = sums(judged);
        let report = json!({
            "requests": judged.len(),
            "asked": asked,
            "without_verdict": without,
            "rows": rows,
        });
        write_json(&self.out.join("judge.json"), &report)?;
        if rows.is_empty() {
            bail!(
                "no reply gave a verdict, so nothing is scored: see what the judge says in {}",
                self.out.join("judged.jsonl").display()
            );
        }
        if self.json {
            tell(&report);
            return Ok(());
        }
        tell_rows(&rows);
        tell(format_args!("{} requests, {asked} asked now", judged.len()));
        if !without.is_empty() {
            tell(format_args!("without a verdict: {}", without.join(", ")));
        }
        Ok(())
    }
}

fn tell_rows(rows: &[JudgeRow]) {
    for row in rows {
        let pair = match (row.reference, row.ours) {
            (Some(reference), Some(ours)) => format!("   {reference:>6.1} {ours:>6.1}"),
            _ => String::new(),
        };
        tell(format_args!(
            "{:<28}{:>6}{pair}   n {}",
            row.group,
            row.score.map_or("–".into(), |score| format!("{score:.1}")),
            row.questions
        ));
    }
}

/// Asks on several threads; each reply is on disk before the next is asked for. The first failure
/// ends it all.
fn ask_all(
    client: &Client,
    cache: &mut ReplyCache,
    jobs: VecDeque<Job<'_>>,
    parallel: usize,
    tries: u32,
) -> Result<()> {
    let bar = count_bar("judging", jobs.len());
    let threads = parallel.min(jobs.len());
    let (jobs, cache) = (Mutex::new(jobs), Mutex::new(cache));
    let failed: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = jobs
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    let Some(job) = next else { return };
                    let done = verdict(client, &job, tries).and_then(|reply| {
                        let Some(reply) = reply else { return Ok(()) };
                        let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
                        Ok(cache.put(job.run, job.body, reply)?)
                    });
                    if let Err(error) = done {
                        jobs.lock().unwrap_or_else(PoisonError::into_inner).clear();
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.get_or_insert(error);
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The first reply with a verdict; `None` if there is none in `tries` replies, which another run
/// of the command asks for again.
fn verdict(client: &Client, job: &Job<'_>, tries: u32) -> Result<Option<String>> {
    for _ in 0..tries {
        let reply = client.ask(&job.body)?;
        if job.request.verdict.read(&reply).is_some() {
            return Ok(Some(reply));
        }
        tracing::debug!("question {}: no verdict in {reply:?}", job.request.id);
    }
    Ok(None)
}
