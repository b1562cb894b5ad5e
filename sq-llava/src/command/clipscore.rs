//! `sq-llava clipscore`: the study behind the paper, how close questions and answers are to their
//! pictures.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use sq_llava_data::image::PixelValues;
use sq_llava_data::{Author, IMAGE_TOKEN, LlavaSample, Manifest};
use sq_llava_eval::clip_score::{ClipScorer, clip_score, cosine};
use sq_llava_eval::summary::{ScoreCollector, ScoreSummary};

use crate::device::{DeviceChoice, Work};
use crate::draw::{DrawArguments, count_bar};
use crate::histogram::{Distribution, write_histogram};
use crate::model::{Precision, load_clip};
use crate::names;
use crate::output::{tell, write_json};

/// Failures that the report names; all are counted.
const NAMED: usize = 1000;

/// Mean CLIPScore of the questions and of the answers of an instruction data set.
#[derive(Debug, Args)]
pub struct ClipScoreCommand {
    /// CLIP: config.json, weights, tokenizer, preprocessor_config.json; or a name on the hub
    /// (org/name).
    #[arg(long, value_name = "DIR")]
    clip: PathBuf,
    /// LLaVA's JSON or JSONL.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Folder that image paths start from.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    #[command(flatten)]
    draw: DrawArguments,
    /// Pictures, and texts, that run together.
    #[arg(long, default_value = "32")]
    batch_size: NonZero<usize>,
    /// `auto`, `cpu`, `cuda[:i]`, `vulkan[:i]`, `metal[:i]` or `webgpu[:i]`.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Dtype of the weights in memory.
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    dtype: Precision,
    /// Go on although the checkpoint holds weights or settings that this program has no place for.
    #[arg(long)]
    allow_unused: bool,
    /// Write clipscore.json and clipscore.svg here.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Scores of the questions or of the answers.
#[derive(Debug, Serialize)]
struct Side {
    /// Cosines.
    cosine: ScoreSummary,
    /// Mean of 2.5 · max(cosine, 0).
    clip_score: f64,
}

#[derive(Debug, Serialize)]
struct Failure {
    sample: String,
    reason: String,
}

#[derive(Debug, Default, Serialize)]
struct Counts {
    /// Samples looked at.
    samples: usize,
    /// Samples that gave scores.
    scored: usize,
    /// Samples about no picture.
    without_picture: usize,
    /// Samples that could not be read, or whose picture could not be.
    failed: usize,
    /// Texts longer than CLIP's context, of which the beginning counts.
    cut_texts: usize,
}

impl ClipScoreCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        self.device.run(self)
    }

    /// Reads samples and their pictures on several threads, in order.
    fn read<B: Backend>(
        &self,
        scorer: &ClipScorer<B>,
        manifest: &Manifest,
        indices: &[usize],
    ) -> Vec<Result<(LlavaSample, Vec<PixelValues>), Failure>> {
        let read = |index: usize| {
            let failure = |sample: String, reason: String| Failure { sample, reason };
            let sample = manifest
                .get(index)
                .map_err(|e| failure(format!("#{index}"), e.to_string()))?;
            let pictures = sample
                .images
                .iter()
                .map(|name| scorer.open_image(&self.images.join(name)))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| failure(sample.id.clone(), e.to_string()))?;
            Ok((sample, pictures))
        };
        indices.par_iter().map(|&index| read(index)).collect()
    }
}

impl Work for ClipScoreCommand {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let manifest = Manifest::open(&self.data)?;
        let indices = self.draw.indices(manifest.len());
        let clip = names::model(&self.clip)?;
        let scorer = load_clip::<B>(&clip, self.device, self.dtype, self.allow_unused, device)?;

        let mut questions = Collected::new();
        let mut answers = Collected::new();
        let (mut counts, mut failures) = (Counts::default(), vec![]);
        let bar = count_bar("scoring", indices.len());
        for part in indices.chunks(self.batch_size.get()) {
            let mut samples = vec![];
            for read in self.read(&scorer, &manifest, part) {
                counts.samples += 1;
                match read {
                    Ok((_, pictures)) if pictures.is_empty() => counts.without_picture += 1,
                    Ok(sample) => samples.push(sample),
                    Err(failure) => {
                        counts.failed += 1;
                        tracing::debug!("sample {}: {}", failure.sample, failure.reason);
                        if failures.len() < NAMED {
                            failures.push(failure);
                        }
                    }
                }
            }
            counts.scored += samples.len();
            let scored = score(&scorer, &samples, self.batch_size.get());
            for scored in scored.with_context(|| between(&samples))? {
                questions.add(&scored.questions);
                answers.add(&scored.answers);
                counts.cut_texts += scored.cut;
            }
            bar.inc(part.len() as u64);
        }
        bar.finish_and_clear();
        self.report(&counts, &failures, &questions, &answers)
    }
}

/// Where in the data set an error is, which concerns a batch.
fn between(samples: &[(LlavaSample, Vec<PixelValues>)]) -> String {
    let id = |sample: Option<&(LlavaSample, Vec<PixelValues>)>| {
        sample.map_or_else(String::new, |(sample, _)| sample.id.clone())
    };
    format!("samples {} to {}", id(samples.first()), id(samples.last()))
}

/// Cosines of one sample.
struct Scored {
    questions: Vec<f64>,
    answers: Vec<f64>,
    cut: usize,
}

/// Scores of samples with pictures. A text about several pictures scores their mean.
fn score<B: Backend>(
    scorer: &ClipScorer<B>,
    samples: &[(LlavaSample, Vec<PixelValues>)],
    batch: usize,
) -> Result<Vec<Scored>> {
    let mut images = vec![];
    let pictures: Vec<PixelValues> = samples.iter().flat_map(|(_, p)| p.clone()).collect();
    for part in pictures.chunks(batch) {
        images.extend(scorer.image_embeds(part)?);
    }
    let turns: Vec<Vec<(bool, String)>> = samples.iter().map(|(s, _)| texts(s)).collect();
    let flat: Vec<&str> = turns.iter().flatten().map(|(_, t)| t.as_str()).collect();
    let mut embeds = scorer.text_embeds(&flat, batch)?.into_iter();
    let mut images = images.into_iter();
    let mut found = vec![];
    for ((_, pictures), turns) in samples.iter().zip(&turns) {
        let own: Vec<Vec<f32>> = images.by_ref().take(pictures.len()).collect();
        let mut scored = Scored {
            questions: vec![],
            answers: vec![],
            cut: 0,
        };
        for ((asks, _), text) in turns.iter().zip(embeds.by_ref()) {
            let sum: f64 = own.iter().map(|image| cosine(image, &text.values)).sum();
            let side = match asks {
                true => &mut scored.questions,
                false => &mut scored.answers,
            };
            side.push(sum / own.len() as f64);
            scored.cut += usize::from(text.cut);
        }
        found.push(scored);
    }
    Ok(found)
}

/// The texts of a sample without image marks, each with whether it asks; empty ones are left out.
fn texts(sample: &LlavaSample) -> Vec<(bool, String)> {
    sample
        .conversations
        .iter()
        .map(|turn| {
            let text = turn.value.replace(IMAGE_TOKEN, "");
            (turn.from != Author::Gpt, text.trim().to_string())
        })
        .filter(|(_, text)| !text.is_empty())
        .collect()
}

/// Scores of one side as they come.
struct Collected {
    cosines: ScoreCollector,
    clip_scores: ScoreCollector,
}

impl Collected {
    fn new() -> Self {
        Self {
            cosines: ScoreCollector::new(-1.0, 0.01, 200),
            clip_scores: ScoreCollector::new(0.0, 2.5, 1),
        }
    }

    fn add(&mut self, cosines: &[f64]) {
        self.cosines.add(cosines);
        let scores: Vec<f64> = cosines.iter().map(|&c| clip_score(c)).collect();
        self.clip_scores.add(&scores);
    }

    fn side(&self) -> Option<Side> {
        Some(Side {
            cosine: self.cosines.summary()?,
            clip_score: self.clip_scores.summary()?.mean,
        })
    }
}

impl ClipScoreCommand {
    fn report(
        &self,
        counts: &Counts,
        failures: &[Failure],
        questions: &Collected,
        answers: &Collected,
    ) -> Result<()> {
        let sides = [("questions", questions.side()), ("answers", answers.side())];
        if sides.iter().all(|(_, side)| side.is_none()) {
            let first = failures.first().map_or(String::new(), |f| {
                format!("; the first failure is {}: {}", f.sample, f.reason)
            });
            bail!(
                "{}: no text about a picture was scored ({} samples, {} without a picture, {} failed){first}",
                self.data.display(),
                counts.samples,
                counts.without_picture,
                counts.failed
            );
        }
        let [(_, questions), (_, answers)] = &sides;
        let report = json!({
            "data": self.data,
            "clip": self.clip,
            "questions": questions,
            "answers": answers,
            "counts": counts,
            "failures": failures,
        });
        if let Some(dir) = &self.out {
            write_json(&dir.join("clipscore.json"), &report)?;
            draw(&dir.join("clipscore.svg"), &sides)?;
        }
        if self.json {
            tell(&report);
            return Ok(());
        }
        tell_sides(&sides);
        tell(format_args!(
            "{} samples: {} scored, {} without a picture, {} failed; {} texts longer than CLIP reads",
            counts.samples, counts.scored, counts.without_picture, counts.failed, counts.cut_texts
        ));
        for failure in failures.iter().take(5) {
            tell(format_args!(
                "failed: {}: {}",
                failure.sample, failure.reason
            ));
        }
        Ok(())
    }
}

fn tell_sides(sides: &[(&str, Option<Side>); 2]) {
    tell(format_args!(
        "{:<10}{:>9}{:>22}{:>12}{:>10}",
        "", "cosine", "95 % interval", "2.5 × max", "texts"
    ));
    for (name, side) in sides {
        let Some(side) = side else {
            tell(format_args!("{name:<10}{:>9}", "–"));
            continue;
        };
        let interval = match side.cosine.interval_95 {
            Some([low, high]) => format!("{low:.4} … {high:.4}"),
            None => "–".into(),
        };
        tell(format_args!(
            "{name:<10}{:>9.4}{interval:>22}{:>12.4}{:>10}",
            side.cosine.mean, side.clip_score, side.cosine.scores
        ));
    }
}

fn draw(path: &Path, sides: &[(&str, Option<Side>); 2]) -> Result<()> {
    let distributions: Vec<Distribution<'_>> = sides
        .iter()
        .filter_map(|(name, side)| Some((*name, &side.as_ref()?.cosine)))
        .map(|(name, cosine)| Distribution {
            name,
            scores: cosine,
        })
        .collect();
    write_histogram(
        path,
        "CLIPScore: cosine of text and picture",
        &distributions,
    )
}
