//! Results of benchmarks: a table in the terminal, JSON and Markdown.

#![allow(clippy::print_stdout)] // What a command says is its output.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;
use sq_llava_eval::benchmark::{Answers, Benchmark, Files, QuestionOptions, Questions, submission};
use sq_llava_eval::score::caption::{Jars, score_by_jars};
use sq_llava_eval::score::{PUBLISHED, Report, score};

/// Which questions, and how they are put.
#[derive(Debug, Clone, Args)]
pub struct BenchmarkArguments {
    /// Benchmark; may be repeated. All that are found under --data if none is named.
    #[arg(long = "benchmark", short = 'b', value_name = "NAME")]
    pub benchmarks: Vec<Benchmark>,
    /// Folder with benchmarks as LLaVA's evaluation has them (pope/llava_pope_test.jsonl …).
    #[arg(long, value_name = "DIR", required_unless_present = "questions")]
    pub data: Option<PathBuf>,
    /// Question file of the one benchmark named.
    #[arg(
        long,
        value_name = "FILE",
        requires = "benchmarks",
        conflicts_with = "data"
    )]
    pub questions: Option<PathBuf>,
    /// Folder of its pictures.
    #[arg(long, value_name = "DIR", requires = "questions")]
    pub images: Option<PathBuf>,
    /// Its references: a file or a folder.
    #[arg(long, value_name = "PATH", requires = "questions")]
    pub annotations: Option<PathBuf>,
    /// TextVQA: leave the OCR tokens out of the questions.
    #[arg(long)]
    pub no_ocr: bool,
    /// ScienceQA: only questions with a picture.
    #[arg(long)]
    pub images_only: bool,
    /// ScienceQA and MMBench: do not ask for the option's letter alone.
    #[arg(long)]
    pub free_answer: bool,
    /// MMBench: ask every question once for each option, options moved (circular evaluation).
    #[arg(long)]
    pub all_rounds: bool,
    /// Captions: meteor-1.5.jar of the COCO toolkit, for METEOR.
    #[arg(long, value_name = "FILE")]
    pub meteor_jar: Option<PathBuf>,
    /// Captions: spice-1.0.jar of the COCO toolkit, with its lib folder beside it, for SPICE.
    #[arg(long, value_name = "FILE")]
    pub spice_jar: Option<PathBuf>,
    /// The Java runtime for them.
    #[arg(long, value_name = "PROGRAM", default_value = "java")]
    pub java: PathBuf,
}

impl BenchmarkArguments {
    /// The benchmarks with their files.
    ///
    /// # Errors
    /// If one is not there.
    pub fn files(&self) -> Result<Vec<(Benchmark, Files)>> {
        if let Some(questions) = &self.questions {
            let [benchmark] = self.benchmarks.as_slice() else {
                anyhow::bail!("--questions belongs to one benchmark: name it with --benchmark");
            };
            let files = Files {
                questions: questions.clone(),
                images: self.images.clone(),
                annotations: self.annotations.clone(),
            };
            return Ok(vec![(*benchmark, files)]);
        }
        let data = self.data.as_deref().unwrap_or(Path::new("."));
        if self.benchmarks.is_empty() {
            return Ok(Files::find_all(data)?);
        }
        self.benchmarks
            .iter()
            .map(|benchmark| {
                let files = Files::find(*benchmark, data)?.with_context(|| {
                    format!(
                        "{}: no questions of {benchmark} in LLaVA's layout; give --questions",
                        data.display()
                    )
                })?;
                Ok((*benchmark, files))
            })
            .collect()
    }

    /// The COCO toolkit's Java programs.
    pub fn jars(&self) -> Jars {
        Jars {
            java: self.java.clone(),
            meteor: self.meteor_jar.clone(),
            spice: self.spice_jar.clone(),
        }
    }

    /// How questions are put.
    pub fn options(&self) -> QuestionOptions {
        QuestionOptions {
            letter: !self.free_answer,
            images_only: self.images_only,
            ocr: !self.no_ocr,
            all_rounds: self.all_rounds,
        }
    }
}

/// Scores the answers of one benchmark and writes what its server takes into `folder/upload`.
/// Where there are no references, the report says so.
///
/// # Errors
/// If files cannot be read or written.
pub fn scored(
    questions: &Questions,
    answers: &Answers,
    files: &Files,
    folder: &Path,
    jars: &Jars,
) -> Result<Report> {
    let annotations = files.annotations.as_deref();
    let mut report = if annotations.is_some() || needs_no_references(questions.benchmark) {
        score(questions, answers, annotations)?
    } else {
        let matched = sq_llava_eval::benchmark::matched(questions, answers);
        let mut report = Report::new(questions.benchmark, &matched);
        report.note("no references here: not scored; upload/ has what the server takes");
        report
    };
    if let (Some(annotations), true) = (annotations, questions.benchmark.is_caption()) {
        let matched = sq_llava_eval::benchmark::matched(questions, answers);
        score_by_jars(
            questions.benchmark,
            &matched,
            annotations,
            jars,
            folder,
            &mut report,
        )?;
    }
    match submission(questions, answers, annotations) {
        Ok(made) => {
            for file in made {
                file.write(&folder.join("upload"))?;
            }
        }
        Err(error) => report.note(format!("no upload: {error}")),
    }
    Ok(report)
}

fn needs_no_references(benchmark: Benchmark) -> bool {
    matches!(
        benchmark,
        Benchmark::MmBench
            | Benchmark::MmBenchCn
            | Benchmark::Generic
            | Benchmark::MmVet
            | Benchmark::LlavaBench
    )
}

/// Prints problems, then the table; writes `results.json` and `results.md` into a folder.
///
/// # Errors
/// If nothing can be written.
pub fn show(reports: &[Report], model: &str, folder: &Path, json: bool) -> Result<()> {
    let results = json!({
        "model": model,
        "benchmarks": reports,
        "published": PUBLISHED
            .iter()
            .map(|row| json!({
                "model": row.model,
                "values": row.values.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
            }))
            .collect::<Vec<_>>(),
    });
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let text = serde_json::to_string_pretty(&results)?;
    for (name, text) in [
        ("results.json", format!("{text}\n")),
        ("results.md", Report::markdown(reports, model)),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    if json {
        println!("{results}");
        return Ok(());
    }
    for report in reports {
        for problem in report.problems.lines() {
            println!("{}: {problem}", report.title);
        }
        let hidden = report.problems.total() - report.problems.lines().len();
        if hidden > 0 {
            println!("{}: and {hidden} more problems", report.title);
        }
    }
    println!("{}", table(reports, model));
    println!("written: {}", folder.join("results.md").display());
    Ok(())
}

/// One row for each number of ours, and the published ones beside the first of each benchmark.
fn table(reports: &[Report], model: &str) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec!["benchmark".to_owned(), "metric".into(), "questions".into()];
    header.push(model.to_owned());
    header.extend(PUBLISHED.iter().map(|row| row.model.to_owned()));
    let columns = header.len();
    table.set_header(header);
    for report in reports {
        if report.metrics.is_empty() {
            let note = report.notes.first().cloned().unwrap_or_default();
            table.add_row([report.title.to_owned(), note, report.answered.to_string()]);
        }
        for (index, metric) in report.metrics.iter().enumerate() {
            let mut row = vec![
                if index == 0 { report.title } else { "" }.to_owned(),
                metric.name.clone(),
                metric.count.to_string(),
                format!("{:.2}", metric.value),
            ];
            if index == 0 {
                row.extend(PUBLISHED.iter().map(|published| {
                    let value = published.value(report.benchmark);
                    value.map_or("–".to_owned(), |value| format!("{value:.1}"))
                }));
            }
            table.add_row(row);
        }
        for (kind, count) in report.problems.counts() {
            table.add_row([String::new(), kind.name().to_owned(), count.to_string()]);
        }
    }
    for index in 2..columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
