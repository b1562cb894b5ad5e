//! `sq-llava diversity`: how varied the model's questions are, and whether pictures answer them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use sq_llava_data::Ending;
use sq_llava_data::image::PreparedImage;
use sq_llava_eval::diversity::{Diversity, words};
use sq_llava_eval::question_list::{AskedQuestion, QuestionFile};
use sq_llava_model::{
    Answer, AnswerOptions, Assistant, QuestionOptions, Questions, Request, SelfQuestioner,
};

use crate::device::Work;
use crate::draw::{DrawArguments, count_bar};
use crate::model::ModelArguments;
use crate::output::{tell, write, write_json};

/// Failures that the report names; all are counted.
const NAMED: usize = 1000;

/// Measure how varied questions are.
///
/// Questions come from a file, or are asked now by a model about the pictures given. With a model
/// and pictures, the share of questions that a picture answers is probed as well.
#[derive(Debug, Args)]
pub struct DiversityCommand {
    #[command(flatten)]
    model: ModelArguments,
    /// Questions: what `question --json` prints, LLaVA's JSON, JSON or JSONL with `text`, or plain
    /// text with one a line.
    #[arg(long, value_name = "FILE", required_unless_present = "pictures")]
    questions: Option<PathBuf>,
    /// Questions to compare with, in one of the same forms.
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// Folder that image paths of the questions start from.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Do not ask the model whether pictures answer the questions.
    #[arg(long)]
    no_probe: bool,
    /// Questions probed together.
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Questions to draw about each picture.
    #[arg(long, short, default_value_t = 5)]
    n: usize,
    #[command(flatten)]
    draw: DrawArguments,
    /// Write diversity.json (and questions.jsonl, if they were asked now) here.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Pictures to ask about now.
    #[arg(value_name = "IMAGE", conflicts_with = "questions", id = "pictures")]
    pictures: Vec<PathBuf>,
}

/// Whether pictures answer the questions, by the model's own word.
#[derive(Debug, Default, Serialize)]
struct Probe {
    /// Different questions about pictures that were probed.
    asked: usize,
    /// Answers that begin with yes.
    yes: usize,
    /// Answers that begin with no.
    no: usize,
    /// Other answers.
    unclear: usize,
    /// `yes / asked`; `None` if nothing was asked.
    answerable: Option<f64>,
    /// Questions without a picture.
    without_picture: usize,
    /// Questions whose picture could not be read.
    failed: usize,
    failures: Vec<Failure>,
}

#[derive(Debug, Serialize)]
struct Failure {
    picture: String,
    reason: String,
}

impl Probe {
    /// Counts answers by their first word.
    fn count(&mut self, answers: &[Answer]) {
        for answer in answers {
            self.asked += 1;
            match said(&answer.text) {
                Some(true) => self.yes += 1,
                Some(false) => self.no += 1,
                None => self.unclear += 1,
            }
        }
    }

    /// Counts the questions of a picture that cannot be read.
    fn fail(&mut self, picture: &str, reason: &str, questions: usize) {
        self.failed += questions;
        if self.failures.len() < NAMED {
            self.failures.push(Failure {
                picture: picture.to_owned(),
                reason: reason.to_owned(),
            });
        }
    }

    fn tell(&self) {
        let share = self.answerable;
        tell(format_args!(
            "answerable: {} of {} ({} yes, {} no, {} unclear; {} without a picture, {} failed)",
            share.map_or("–".into(), |share| format!("{:.1} %", 100.0 * share)),
            self.asked,
            self.yes,
            self.no,
            self.unclear,
            self.without_picture,
            self.failed
        ));
        for failure in self.failures.iter().take(5) {
            tell(format_args!(
                "failed: {}: {}",
                failure.picture, failure.reason
            ));
        }
    }
}

impl DiversityCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        if self.pictures.is_empty() && self.model.model.is_none() && self.model.preset.is_none() {
            // Nothing but texts.
            let questions = self.read_file()?;
            return self.report(&questions, None);
        }
        self.model.device.run(self)
    }

    fn read_file(&self) -> Result<Vec<AskedQuestion>> {
        let Some(path) = &self.questions else {
            bail!("give --questions FILE, or pictures to ask about");
        };
        self.read(path, self.draw.samples)
    }

    /// Questions of a file; at most so many, from entries drawn at random.
    fn read(&self, path: &Path, most: Option<usize>) -> Result<Vec<AskedQuestion>> {
        let file = QuestionFile::open(path)?;
        let mut found = vec![];
        let order = match most {
            Some(_) => self.draw.shuffled(file.len()),
            None => (0..file.len()).collect(),
        };
        let mut left = most.unwrap_or(usize::MAX);
        for index in order {
            for mut question in file.questions(index)? {
                question.count = question.count.min(left);
                left -= question.count;
                if question.count > 0 {
                    found.push(question);
                }
            }
            if left == 0 {
                break;
            }
        }
        if found.is_empty() {
            bail!("{}: no question in this file", path.display());
        }
        Ok(found)
    }

    /// Asks about the pictures given.
    fn ask<B: Backend>(&self, assistant: &Assistant<B>) -> Result<Vec<AskedQuestion>> {
        let questioner = SelfQuestioner::new(assistant)?;
        let bar = count_bar("asking", self.pictures.len());
        let mut lines = String::new();
        let mut found = vec![];
        for (index, path) in self.pictures.iter().enumerate() {
            // Another seed for each picture, or all would be asked with the same draws.
            let options = QuestionOptions::demo(
                &assistant.template,
                self.n,
                self.draw.seed.wrapping_add(index as u64),
            );
            let asked: Questions = questioner.ask(&assistant.open_image(path)?, &options)?;
            let mut line = json!(asked);
            line["image"] = json!(path);
            lines.push_str(&format!("{line}\n"));
            let image = path.to_string_lossy();
            found.extend(asked.questions.iter().map(|question| AskedQuestion {
                text: question.text.clone(),
                image: Some(image.clone().into_owned()),
                count: question.count,
            }));
            bar.inc(1);
        }
        bar.finish_and_clear();
        if let Some(dir) = &self.out {
            write(&dir.join("questions.jsonl"), &lines)?;
        }
        if found.is_empty() {
            bail!("the model asked nothing");
        }
        Ok(found)
    }

    /// Asks the model of each different question whether its picture answers it.
    fn probe<B: Backend>(
        &self,
        assistant: &Assistant<B>,
        questions: &[AskedQuestion],
    ) -> Result<Probe> {
        let without = questions.iter().filter(|q| q.image.is_none());
        let mut probe = Probe {
            without_picture: without.map(|q| q.count).sum(),
            ..Probe::default()
        };
        let pictures = by_picture(questions);
        let bar = count_bar("probing", pictures.iter().map(|(_, t)| t.len()).sum());
        for (image, texts) in pictures {
            let path = match &self.images {
                Some(folder) => folder.join(image),
                None => PathBuf::from(image),
            };
            match assistant.open_image(&path) {
                Ok(picture) => {
                    for part in texts.chunks(self.batch_size.max(1)) {
                        probe.count(&ask_whether(assistant, &picture, part)?);
                        bar.inc(part.len() as u64);
                    }
                }
                Err(error) => {
                    probe.fail(image, &error.to_string(), texts.len());
                    bar.inc(texts.len() as u64);
                }
            }
        }
        bar.finish_and_clear();
        probe.answerable = (probe.asked > 0).then(|| probe.yes as f64 / probe.asked as f64);
        Ok(probe)
    }

    fn report(&self, questions: &[AskedQuestion], probe: Option<Probe>) -> Result<()> {
        let measured = |questions: &[AskedQuestion]| {
            let texts = questions.iter().map(|q| (q.text.as_str(), q.count));
            Diversity::of(&texts.collect::<Vec<_>>())
        };
        let found = measured(questions);
        // Distinct n-grams fall as a list grows: only lists of one length compare.
        let reference = match &self.reference {
            Some(path) => Some(measured(&self.read(path, Some(found.questions))?)),
            None => None,
        };
        let report = json!({
            "source": self.questions,
            "questions": found,
            "reference_source": self.reference,
            "reference": reference,
            "probe": probe,
        });
        if let Some(dir) = &self.out {
            write_json(&dir.join("diversity.json"), &report)?;
        }
        if self.json {
            tell(&report);
            return Ok(());
        }
        tell_table(&found, reference.as_ref());
        if let Some(probe) = &probe {
            probe.tell();
        }
        Ok(())
    }
}

impl Work for DiversityCommand {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        // A broken file is said before gigabytes are read.
        let mut questions = match self.questions {
            Some(_) => self.read_file()?,
            None => vec![],
        };
        let (assistant, _) = self.model.load::<B>(device)?;
        if !self.pictures.is_empty() {
            questions = self.ask(&assistant)?;
        }
        let probe = match self.no_probe {
            true => None,
            false => Some(self.probe(&assistant, &questions)?),
        };
        let unread = probe
            .as_ref()
            .filter(|probe| probe.asked == 0)
            .and_then(|probe| probe.failures.first())
            .map(|first| format!("{}: {}", first.picture, first.reason));
        self.report(&questions, probe)?;
        match unread {
            Some(first) => bail!(
                "no picture of the questions could be read, so nothing was probed; the first: \
                 {first}"
            ),
            None => Ok(()),
        }
    }
}

/// The different questions of each picture, both in the order of the file.
fn by_picture(questions: &[AskedQuestion]) -> Vec<(&str, Vec<&str>)> {
    let mut pictures: Vec<(&str, Vec<&str>)> = vec![];
    let mut places: HashMap<&str, usize> = HashMap::new();
    for question in questions {
        let Some(image) = question.image.as_deref() else {
            continue;
        };
        let place = *places.entry(image).or_insert_with(|| {
            pictures.push((image, vec![]));
            pictures.len() - 1
        });
        let texts = &mut pictures[place].1;
        if !texts.contains(&question.text.as_str()) {
            texts.push(&question.text);
        }
    }
    pictures
}

/// Whether a picture answers each of the questions, in the model's words.
fn ask_whether<B: Backend>(
    assistant: &Assistant<B>,
    picture: &PreparedImage,
    questions: &[&str],
) -> Result<Vec<Answer>> {
    let conversations = questions.iter().map(|text| {
        let mut conversation = assistant.conversation();
        conversation.push_images(1);
        conversation.push_user(probing(text));
        conversation
    });
    let conversations: Vec<_> = conversations.collect();
    let requests = conversations.iter().map(|conversation| Request {
        conversation,
        ending: Ending::Answer,
        images: std::slice::from_ref(picture),
    });
    let options = AnswerOptions {
        max_new_tokens: 8,
        ..AnswerOptions::default()
    };
    let requests: Vec<_> = requests.collect();
    Ok(assistant.answer_batch(&requests, &options, &mut |_, _| {})?)
}

/// The measures of the questions, beside those of the reference if there is one.
fn tell_table(found: &Diversity, reference: Option<&Diversity>) {
    let columns: Vec<&Diversity> = std::iter::once(found).chain(reference).collect();
    let row = |name: &str, value: &dyn Fn(&Diversity) -> String| {
        let values: String = columns
            .iter()
            .map(|column| format!("{:>12}", value(column)))
            .collect();
        tell(format_args!("{name:<18}{values}"));
    };
    if reference.is_some() {
        tell(format_args!(
            "{:<18}{:>12}{:>12}",
            "", "questions", "reference"
        ));
    }
    row("questions", &|d| d.questions.to_string());
    let shown = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.4}"));
    row("distinct-1", &|d| shown(d.distinct_1));
    row("distinct-2", &|d| shown(d.distinct_2));
    row("self-BLEU", &|d| shown(d.self_bleu));
    for (index, kind) in found.types.iter().enumerate() {
        row(kind.kind.name(), &|d| {
            format!("{:.1} %", 100.0 * d.types[index].share)
        });
    }
}

/// What the model is asked about a question.
fn probing(question: &str) -> String {
    format!(
        "Can this question be answered from the image alone? Question: {question}\nAnswer yes or no."
    )
}

/// Yes or no, by the first word.
fn said(answer: &str) -> Option<bool> {
    match words(answer).first().map(String::as_str) {
        Some("yes") => Some(true),
        Some("no" | "not") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_by_their_first_word() {
        assert_eq!(said(" Yes, it can."), Some(true));
        assert_eq!(said("No"), Some(false));
        assert_eq!(said("The image shows no cat"), None);
        assert_eq!(said(""), None);
    }
}
