//! Results of benchmarks: a table in the terminal, JSON and Markdown.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;
use sq_llava_eval::EvalError;
use sq_llava_eval::layout::Files;
use sq_llava_eval::matched::Matched;
#[cfg(feature = "jars")]
use sq_llava_eval::metric::caption::Jars;
use sq_llava_eval::published::PublishedRow;
use sq_llava_eval::question::QuestionOptions;
use sq_llava_eval::registry;
use sq_llava_eval::report::{Report, published};
use sq_llava_eval::task::Task;
#[cfg(feature = "jars")]
use sq_llava_eval::task::captions::score_by_jars;

use crate::output::{tell, write, write_json};

/// Which questions, and how they are put.
#[derive(Debug, Clone, Args)]
pub struct BenchmarkArguments {
    /// Benchmark; may be repeated. All that are found under --data if none is named.
    #[arg(long = "benchmark", short = 'b', value_name = "NAME", value_parser = registry::named)]
    pub benchmarks: Vec<&'static dyn Task>,
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
    #[cfg(feature = "jars")]
    #[command(flatten)]
    jars: JarArguments,
}

/// The COCO toolkit's programs in Java.
#[cfg(feature = "jars")]
#[derive(Debug, Clone, Default, Args)]
struct JarArguments {
    /// Captions: meteor-1.5.jar of the COCO toolkit, for METEOR.
    #[arg(long, value_name = "FILE")]
    meteor_jar: Option<PathBuf>,
    /// Captions: spice-1.0.jar of the COCO toolkit, with its lib folder beside it, for SPICE.
    #[arg(long, value_name = "FILE")]
    spice_jar: Option<PathBuf>,
    /// The Java runtime for them.
    #[arg(long, value_name = "PROGRAM", default_value = "java")]
    java: PathBuf,
}

#[cfg(feature = "jars")]
impl JarArguments {
    fn programs(&self) -> Jars {
        Jars {
            java: self.java.clone(),
            meteor: self.meteor_jar.clone(),
            spice: self.spice_jar.clone(),
        }
    }
}

impl BenchmarkArguments {
    /// Benchmarks in a folder, asked as published.
    pub fn named(benchmarks: Vec<&'static dyn Task>, data: PathBuf) -> Self {
        Self {
            benchmarks,
            data: Some(data),
            questions: None,
            images: None,
            annotations: None,
            no_ocr: false,
            images_only: false,
            free_answer: false,
            all_rounds: false,
            #[cfg(feature = "jars")]
            jars: JarArguments::default(),
        }
    }

    /// The benchmarks with their files.
    ///
    /// # Errors
    /// If one is not there.
    pub fn files(&self) -> Result<Vec<(&'static dyn Task, Files)>> {
        if let Some(questions) = &self.questions {
            let [task] = self.benchmarks.as_slice() else {
                anyhow::bail!("--questions belongs to one benchmark: name it with --benchmark");
            };
            let files = Files {
                questions: questions.clone(),
                images: self.images.clone(),
                annotations: self.annotations.clone(),
            };
            return Ok(vec![(*task, files)]);
        }
        let data = self.data.as_deref().unwrap_or(Path::new("."));
        if self.benchmarks.is_empty() {
            return Ok(registry::find_all(data)?);
        }
        self.benchmarks
            .iter()
            .map(|task| {
                let files = task.find(data)?.with_context(|| {
                    format!(
                        "{}: no questions of {task} in LLaVA's layout; give --questions",
                        data.display()
                    )
                })?;
                Ok((*task, files))
            })
            .collect()
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

/// The answers to one benchmark, to be scored.
pub struct Scored<'a> {
    /// The benchmark.
    pub task: &'static dyn Task,
    /// What was asked and answered.
    pub matched: &'a Matched<'a>,
    /// Where its references are.
    pub files: &'a Files,
    /// Where its results go.
    pub folder: &'a Path,
    /// What the command was told.
    #[cfg_attr(not(feature = "jars"), expect(dead_code))]
    pub which: &'a BenchmarkArguments,
}

impl Scored<'_> {
    /// Scores the answers and writes what the benchmark's server takes into `folder/upload`. Where
    /// there are no references, the report says so.
    ///
    /// # Errors
    /// If files cannot be read or written, or nothing could be scored.
    pub fn report(&self) -> Result<Report> {
        let upload = self.upload()?;
        let references = self.files.annotations.as_deref();
        let mut report = if references.is_some() || !self.task.has_references() {
            self.task.report(self.matched, references)?
        } else {
            self.matched.some_answered()?;
            let mut report = self.task.unscored(self.matched);
            report.note("no references here: not scored; upload/ has what the server takes");
            report
        };
        #[cfg(feature = "jars")]
        if let Some(references) = references {
            let jars = self.which.jars.programs();
            let folder = self.folder;
            score_by_jars(
                self.task,
                self.matched,
                references,
                &jars,
                folder,
                &mut report,
            )?;
        }
        if let Some(reason) = upload {
            report.note(format!("no upload: {reason}"));
        }
        Ok(report)
    }

    /// Writes what the server takes; gives the reason if it cannot be made.
    fn upload(&self) -> Result<Option<EvalError>> {
        let references = self.files.annotations.as_deref();
        match self.task.submit(self.matched, references) {
            Ok(made) => {
                for file in made {
                    file.write(&self.folder.join("upload"))?;
                }
                Ok(None)
            }
            Err(error) => Ok(Some(error)),
        }
    }
}

/// What came of the benchmarks of a run.
#[derive(Default)]
pub struct Results {
    reports: Vec<Report>,
    /// Why others could not be scored.
    unscored: Vec<anyhow::Error>,
}

impl Results {
    /// Adds a benchmark.
    pub fn add(&mut self, report: Result<Report>) {
        match report {
            Ok(report) => self.reports.push(report),
            Err(error) => self.unscored.push(error),
        }
    }

    /// Whether no benchmark was added.
    pub fn is_empty(&self) -> bool {
        self.reports.is_empty() && self.unscored.is_empty()
    }

    /// Prints problems, then the table; writes `results.json` and `results.md` into a folder.
    ///
    /// # Errors
    /// If nothing can be written, or a benchmark could not be scored: then the others are shown
    /// before.
    pub fn show(self, model: &str, folder: &Path, json: bool) -> Result<()> {
        if !self.reports.is_empty() {
            show(&self.reports, model, folder, json)?;
        }
        let more = self.unscored.len().saturating_sub(1);
        match self.unscored.into_iter().next() {
            None => Ok(()),
            Some(first) if more == 0 => Err(first),
            Some(first) => Err(first.context(format!("{} benchmarks", more + 1))),
        }
    }
}

fn show(reports: &[Report], model: &str, folder: &Path, json: bool) -> Result<()> {
    let results = json!({
        "model": model,
        "benchmarks": reports,
        "published": published(reports)
            .map(|row| json!({
                "model": row.model,
                "source": row.source,
                "values": row.values.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
            }))
            .collect::<Vec<_>>(),
    });
    write_json(&folder.join("results.json"), &results)?;
    write(&folder.join("results.md"), Report::markdown(reports, model))?;
    if json {
        tell(&results);
        return Ok(());
    }
    for report in reports {
        for problem in report.problems.lines() {
            tell(format_args!("{}: {problem}", report.title));
        }
        if let Some(asked) = &report.asked_with {
            tell(format_args!("{}: {asked}", report.title));
        }
        let hidden = report.problems.total() - report.problems.lines().len();
        if hidden > 0 {
            tell(format_args!("{}: and {hidden} more problems", report.title));
        }
    }
    tell(table(reports, model));
    tell(format_args!(
        "written: {}",
        folder.join("results.md").display()
    ));
    Ok(())
}

/// One row for each number of ours, and the published ones beside the first of each benchmark.
fn table(reports: &[Report], model: &str) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec!["benchmark".to_owned(), "metric".into(), "questions".into()];
    header.push(model.to_owned());
    let published: Vec<&PublishedRow> = published(reports).collect();
    header.extend(published.iter().map(|row| row.model.to_owned()));
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
            if report.is_headline(metric) {
                row.extend(published.iter().map(|published| {
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
