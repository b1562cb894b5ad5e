//! `sq-llava check`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use sq_llava_data::atomic::write_atomic;
use sq_llava_data::check::{CheckOptions, CheckPhase, Severity, check};
use sq_llava_data::image::{ImageProcessor, ImageProcessorConfig};
use sq_llava_data::masks::MaskFolder;
use sq_llava_data::source::{Columns, Source};
use sq_llava_data::{
    AskingRole, LabelOptions, Layout, TemplateChoice, TextTokenizer, machine_threads,
};

use crate::names;
use crate::output::tell;

/// Look a data set over before training on it.
#[derive(Debug, Args)]
pub struct Check {
    /// Data (LLaVA JSON or JSONL, Parquet, tar; folders and patterns); several are one data set.
    #[arg(value_name = "DATA", required = true)]
    data: Vec<PathBuf>,
    /// Folder of the pictures; without it only those inside Parquet and tar files are looked at.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Folder of the pictures' masks, as model.masks.folder of a training; those of the pictures
    /// that are looked at are read.
    #[arg(long, value_name = "DIR")]
    masks: Option<PathBuf>,
    /// What a column is called: question=Q, answer=A, image=I, id=K, conversations=C or messages=M;
    /// may be repeated.
    #[arg(long = "column", value_name = "WHAT=NAME", value_parser = column)]
    columns: Vec<(String, String)>,
    /// Folder of the tokenizer, for the true lengths of samples.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// `plain`, `v1`, `v1_sq`, `sq`, `llama_2` or `checkpoint`, as the training will have it; by
    /// default the chat_template beside the tokenizer.
    #[arg(long, value_name = "TEMPLATE", requires = "tokenizer")]
    template: Option<TemplateChoice>,
    /// Longest sample in tokens, images included; longer ones would be cut.
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    max_length: usize,
    /// Tokens that the vision tower makes of a picture.
    #[arg(long, value_name = "TOKENS", default_value_t = 576)]
    tokens_per_image: usize,
    /// Threads; as many as the machine runs at once if not given.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Findings of each kind that the JSON lists; all are counted.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    list: usize,
    /// Writes the report there as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Prints the report as JSON in place of the summary.
    #[arg(long)]
    json: bool,
    /// Succeeds whatever is found.
    #[arg(long)]
    warn_only: bool,
    /// No progress bar.
    #[arg(long)]
    quiet: bool,
}

impl Check {
    /// Runs the command.
    ///
    /// # Errors
    /// If the data cannot be opened or the report not written, or an error is found in the data.
    pub fn run(self) -> Result<()> {
        for (option, value, most) in [
            ("--max-length", self.max_length, 1 << 20),
            ("--tokens-per-image", self.tokens_per_image, 1 << 20),
            ("--threads", self.threads.unwrap_or(1), 1024),
        ] {
            if value > most {
                bail!("{option} is {value}; at most {most} can be used");
            }
        }
        if let Some(folder) = self.images.as_ref().filter(|folder| !folder.is_dir()) {
            bail!("{}: there is no such folder", folder.display());
        }
        let folder = names::given_tokenizer(self.tokenizer.as_deref())?;
        let tokenizer = folder.map(|dir| self.labels(&dir)).transpose()?;
        let processor = ImageProcessor::new(ImageProcessorConfig::default())?;
        let masks = self.masks.clone().map(MaskFolder::open).transpose()?;
        let options = CheckOptions {
            images: Some(&processor),
            files: self.images.is_some(),
            masks: masks.as_ref(),
            labels: tokenizer
                .as_ref()
                .map(|(tokenizer, labels)| (tokenizer, labels)),
            threads: self.threads.unwrap_or_else(machine_threads).max(1),
            listed: self.list,
        };
        let bars = Bars::new(self.quiet)?;
        let sources = vec![self.source()?];
        let report = check(sources, &options, &|phase, done, total| {
            bars.show(phase, done, total);
        })?;
        bars.finish();
        let json = || serde_json::to_string_pretty(&report);
        if let Some(path) = &self.out {
            write_atomic(path, json()? + "\n")
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
        match self.json {
            true => tell(json()?),
            false => tell(report.to_string().trim_end()),
        }
        if report.errors > 0 && !self.warn_only {
            bail!(
                "the data has {} errors: {} (--warn-only lets this pass)",
                report.errors,
                report.kinds(Severity::Error)
            );
        }
        Ok(())
    }

    /// The data as one source.
    fn source(&self) -> Result<Source> {
        let mut columns = Columns::default();
        for (what, name) in &self.columns {
            let slot = match what.as_str() {
                "id" => &mut columns.id,
                "image" => &mut columns.image,
                "conversations" => &mut columns.conversations,
                "messages" => &mut columns.messages,
                "question" => &mut columns.question,
                "answer" => &mut columns.answer,
                other => bail!(
                    "--column {other}: known are id, image, conversations, messages, question, answer"
                ),
            };
            *slot = Some(name.clone());
        }
        columns.validate().map_err(anyhow::Error::msg)?;
        Ok(Source {
            data: self.data.clone(),
            images: self.images.clone().unwrap_or_default(),
            columns,
            repeat: 1.0,
        })
    }

    /// Tokenizer and labels as a training has them.
    fn labels(&self, dir: &Path) -> Result<(TextTokenizer, LabelOptions)> {
        let mut tokenizer = TextTokenizer::from_dir(dir)?;
        let choice = self.template.unwrap_or(TemplateChoice::Checkpoint);
        let role = AskingRole::token();
        tokenizer.add_special_tokens(&choice.special_tokens(Some(&role)))?;
        let layout =
            Layout::of(choice, &tokenizer, Some(role)).with_context(|| match self.template {
                Some(_) => dir.display().to_string(),
                None => format!("{}: no --template is given", dir.display()),
            })?;
        tracing::info!("conversation template {choice}");
        let labels = LabelOptions {
            tokens_per_image: self.tokens_per_image,
            max_length: Some(self.max_length),
            ..LabelOptions::new(layout)
        };
        Ok((tokenizer, labels))
    }
}

fn column(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((what, name)) if !name.is_empty() => Ok((what.into(), name.into())),
        _ => Err("not of the form WHAT=NAME".into()),
    }
}

/// A progress bar for each phase, on a terminal only.
struct Bars {
    samples: ProgressBar,
    images: ProgressBar,
}

impl Bars {
    fn new(quiet: bool) -> Result<Self> {
        let style = "{prefix:>8} {bar:40} {human_pos}/{human_len} {per_sec} {eta}";
        let bar = |name: &'static str| -> Result<ProgressBar> {
            let bar = match quiet {
                true => ProgressBar::hidden(),
                false => ProgressBar::new(0),
            };
            bar.set_style(ProgressStyle::with_template(style)?);
            bar.set_prefix(name);
            Ok(bar)
        };
        Ok(Self {
            samples: bar("samples")?,
            images: bar("images")?,
        })
    }

    fn show(&self, phase: CheckPhase, done: usize, total: usize) {
        let bar = match phase {
            CheckPhase::Samples => &self.samples,
            CheckPhase::Images => &self.images,
        };
        if done == 0 {
            bar.set_length(total as u64);
        }
        bar.inc(u64::from(done > 0));
        if done == total {
            bar.finish();
        }
    }

    fn finish(&self) {
        self.samples.finish_and_clear();
        self.images.finish_and_clear();
    }
}
