//! Improving a model by questions of its own: it asks about pictures that nobody has labelled,
//! answers, and is trained again on its data with what passes the filters, round by round.
//!
//! ```text
//! OUT/
//!   improve.json           what was asked for
//!   pictures.json          about which pictures
//!   round-1/
//!     candidates.jsonl     a line for each picture: what was asked and answered, and how sure
//!     pairs.json           what is kept, as LLaVA JSON; may be looked at and edited
//!     dropped.jsonl        what is not, each with the filter that left it out
//!     report.json          counts by filter
//!     run/                 what was trained on the run's own data and the pairs
//! ```

pub mod candidate;
pub mod filters;
mod training;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::json;
use sq_llava_data::atomic::is_temporary;
use sq_llava_data::image::{PreparedImage, is_picture};
use sq_llava_eval::clip_score::ClipScorer;
use sq_llava_model::{Assistant, SelfQuestioner};
use sq_llava_train::{Resume, RunDirectory, StopSignal, TrainOptions, TrainOutcome, train};

use crate::draw::count_bar;
use crate::output::{claim, write, write_json};
use candidate::{AskingSettings, Interviewer, PictureAsked};
use filters::{Filter, Filters, Verdict};
use training::{Provenance, round, write_pairs};

/// The log of what was asked.
const CANDIDATES: &str = "candidates.jsonl";

/// Pictures that a question may be put to in place of its own.
const OTHERS: usize = 64;

/// What is improved, and how; also `improve.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// The run that is improved.
    pub run: PathBuf,
    /// Folder of pictures.
    pub pictures: PathBuf,
    /// CLIP, for its filter.
    pub clip: Option<PathBuf>,
    /// How much is asked.
    pub asking: AskingSettings,
    /// What is kept. They may change until a round's pairs are written, and stand in its report.
    #[serde(skip)]
    pub filters: Filters,
    /// How often a pair comes in a pass over the data.
    pub repeat: f64,
}

/// Loads models.
pub trait Models<B: Backend> {
    /// A run with its base.
    ///
    /// # Errors
    /// If it does not load.
    fn assistant(&self, run: &Path) -> Result<Assistant<B>>;

    /// A CLIP.
    ///
    /// # Errors
    /// If it does not load.
    fn clip(&self, directory: &Path) -> Result<ClipScorer<B>>;
}

/// What a round asked and kept; also its `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoundReport {
    /// The filters' limits.
    pub filters: Filters,
    /// Pictures that were asked about.
    pub pictures: usize,
    /// Those that could not be read.
    pub unreadable: usize,
    /// Questions with answers.
    pub pairs: usize,
    /// How many each filter left out, in the order in which they look.
    pub dropped: BTreeMap<&'static str, usize>,
    /// How many each filter alone would have left out.
    pub dropped_alone: BTreeMap<&'static str, usize>,
    /// What is kept.
    pub kept: usize,
}

/// How an improvement ended.
#[derive(Debug)]
pub enum Outcome {
    /// All that was asked for is done: the newest run, or the pairs of a round that is not trained.
    Done(PathBuf),
    /// Training was stopped and saved, or asking between two pictures.
    Stopped(Option<TrainOutcome>),
}

/// One improvement, in a folder of its own.
#[derive(Debug)]
pub struct Improvement<'a> {
    /// What is done.
    pub settings: &'a Settings,
    /// Its folder.
    pub out: &'a Path,
    /// Rounds.
    pub rounds: usize,
    /// Whether to end when the next pairs are written, before they are trained on.
    pub look: bool,
}

impl Improvement<'_> {
    /// Does what is not done yet: every picture that was asked about, and every round that was
    /// trained, stays.
    ///
    /// # Errors
    /// If the folder is another improvement's, no picture can be read, nothing passes the filters,
    /// or a run fails.
    pub fn run<B: Backend>(
        &self,
        models: &dyn Models<B>,
        device: &B::Device,
        options: &TrainOptions,
        say: &mut dyn FnMut(String),
    ) -> Result<Outcome> {
        let settings = self.settings;
        settings.filters.validate().map_err(anyhow::Error::msg)?;
        let pictures = pictures(&settings.pictures)?;
        same_settings(settings, &pictures, self.out)?;
        let mut model = settings.run.clone();
        for number in 1..=self.rounds {
            let folder = self.out.join(format!("round-{number}"));
            let pairs = folder.join("pairs.json");
            let trained = folder.join("run");
            let begun = RunDirectory::begun(&trained);
            // What a round trains is checked before hours of asking.
            let (recipe, paths) = round(
                &settings.run,
                &pairs,
                &settings.pictures,
                settings.repeat,
                &trained,
            )?;
            if !pairs.is_file() {
                std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
                let stop = &options.stop;
                let asked = self.ask::<B>(models, &model, number, &pictures, &folder, stop)?;
                let Some(report) = asked else {
                    return Ok(Outcome::Stopped(None));
                };
                for line in report.lines(number) {
                    say(line);
                }
            }
            if self.look && !begun {
                return Ok(Outcome::Done(pairs));
            }
            let mut options = options.clone();
            options.resume = begun.then_some(Resume::Latest);
            let outcome = train::<Autodiff<B>>(&recipe, &paths, device, options)?;
            if outcome.interrupted {
                return Ok(Outcome::Stopped(Some(outcome)));
            }
            say(format!("round {number}: trained, {}", trained.display()));
            model = trained;
        }
        Ok(Outcome::Done(model))
    }

    /// Asks about all pictures and writes what is kept; `None` if it is stopped.
    fn ask<B: Backend>(
        &self,
        models: &dyn Models<B>,
        model: &Path,
        number: usize,
        pictures: &[String],
        folder: &Path,
        stop: &StopSignal,
    ) -> Result<Option<RoundReport>> {
        let settings = self.settings;
        let log = folder.join(CANDIDATES);
        let mut asking = settings.asking.clone();
        asking.seed = asking.seed.wrapping_add((number as u64) << 32);
        let (mut file, mut found) = open_log(&log, pictures)?;
        if found.len() < pictures.len() {
            let assistant = models.assistant(model)?;
            let clip = settings.clip.as_deref().map(|dir| models.clip(dir));
            let clip = clip.transpose()?;
            let interviewer = Interviewer {
                assistant: &assistant,
                questioner: SelfQuestioner::new(&assistant)?,
                clip: clip.as_ref(),
                settings: &asking,
            };
            let others = Others::open(&assistant, settings, pictures)?;
            let bar = count_bar("asking", pictures.len());
            bar.set_position(found.len() as u64);
            for (index, image) in pictures.iter().enumerate().skip(found.len()) {
                if stop.is_set() {
                    return Ok(None);
                }
                let chosen = others.of(index, asking.others);
                let asked = interviewer.ask(&settings.pictures, image, index as u64, &chosen)?;
                if let Some(error) = &asked.error {
                    tracing::warn!("{image}: {error}");
                }
                let line = serde_json::to_string(&asked)? + "\n";
                file.write_all(line.as_bytes())
                    .with_context(|| log.display().to_string())?;
                found.push(asked);
                bar.inc(1);
            }
            bar.finish_and_clear();
        }
        let from = Provenance {
            model,
            round: number,
            seed: asking.seed,
        };
        keep(&settings.filters, &found, folder, from).map(Some)
    }
}

/// Filters, and writes what is kept, what is not, and the counts; the pairs last, for with them the
/// asking is over.
fn keep(
    filters: &Filters,
    found: &[PictureAsked],
    folder: &Path,
    from: Provenance<'_>,
) -> Result<RoundReport> {
    let verdicts = filters.judge(found);
    let report = RoundReport::of(filters, found, &verdicts);
    ensure!(
        report.unreadable < report.pictures,
        "none of {} pictures could be read; the first: {}",
        report.pictures,
        found.first().and_then(|p| p.error.as_deref()).unwrap_or("")
    );
    let mut dropped = String::new();
    for verdict in &verdicts {
        if let Some(filter) = verdict.dropped {
            let asked = &found[verdict.picture];
            let line = json!({
                "image": asked.image,
                "filter": filter,
                "pair": asked.pairs[verdict.pair],
            });
            dropped += &format!("{line}\n");
        }
    }
    write(&folder.join("dropped.jsonl"), dropped)?;
    write_json(&folder.join("report.json"), &report)?;
    if report.kept == 0 {
        bail!(
            "none of {} pairs passed the filters; {} says which left out how many: loosen them and give the same command again, which asks nothing twice, or train the run longer first",
            report.pairs,
            folder.join("report.json").display()
        );
    }
    write_pairs(&folder.join("pairs.json"), found, &verdicts, from)?;
    Ok(report)
}

impl RoundReport {
    fn of(filters: &Filters, found: &[PictureAsked], verdicts: &[Verdict]) -> Self {
        let left_out = |verdicts: &[Verdict], filter| {
            let own = verdicts.iter().filter(|v| v.dropped == Some(filter));
            (filter.name(), own.count())
        };
        let dropped = Filter::ALL.map(|filter| left_out(verdicts, filter));
        let alone = Filter::ALL.map(|filter| left_out(&filters.only(filter).judge(found), filter));
        Self {
            filters: *filters,
            pictures: found.len(),
            unreadable: found.iter().filter(|asked| asked.error.is_some()).count(),
            pairs: found.iter().map(|asked| asked.pairs.len()).sum(),
            dropped: dropped.into(),
            dropped_alone: alone.into(),
            kept: verdicts.iter().filter(|v| v.dropped.is_none()).count(),
        }
    }

    /// The counts for people.
    fn lines(&self, round: usize) -> Vec<String> {
        let mut lines = vec![format!(
            "round {round}: {} pairs about {} pictures ({} unreadable), {} kept",
            self.pairs, self.pictures, self.unreadable, self.kept
        )];
        lines.extend(Filter::ALL.map(|filter| {
            let name = filter.name();
            format!(
                "  {name:<11} left out {:>6}, alone it would {:>6}",
                self.dropped[name], self.dropped_alone[name]
            )
        }));
        lines
    }
}

/// Pictures in whose place a question's own is not shown.
struct Others {
    /// Index among all, and the picture.
    pictures: Vec<(usize, PreparedImage)>,
}

impl Others {
    /// Some of the pictures, drawn by the seed.
    fn open<B: Backend>(
        assistant: &Assistant<B>,
        settings: &Settings,
        names: &[String],
    ) -> Result<Self> {
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(settings.asking.seed));
        let mut pictures = Vec::new();
        for index in order {
            if pictures.len() == OTHERS.max(settings.asking.others + 1) {
                break;
            }
            // One that cannot be read is told when it is asked about.
            if let Ok(picture) = assistant.open_image(&settings.pictures.join(&names[index])) {
                pictures.push((index, picture));
            }
        }
        let enough = pictures.len() > settings.asking.others || pictures.is_empty();
        ensure!(
            enough || settings.filters.elsewhere == 1.0,
            "{}: {} pictures can be read, but questions are put to {} others (--others)",
            settings.pictures.display(),
            pictures.len(),
            settings.asking.others
        );
        Ok(Self { pictures })
    }

    /// So many that are not the picture of this index.
    fn of(&self, index: usize, count: usize) -> Vec<&PreparedImage> {
        let from = index % self.pictures.len().max(1);
        let turned = self.pictures[from..].iter().chain(&self.pictures[..from]);
        let others = turned.filter(|(other, _)| *other != index);
        others.take(count).map(|(_, picture)| picture).collect()
    }
}

/// All pictures in a folder and the folders inside, by their paths.
fn pictures(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let entries = std::fs::read_dir(&next).with_context(|| next.display().to_string())?;
        for entry in entries {
            let path = entry.with_context(|| next.display().to_string())?.path();
            if path.is_dir() {
                folders.push(path);
            } else if is_picture(&path) {
                let inside = path.strip_prefix(folder).unwrap_or(&path);
                let Some(name) = inside.to_str() else {
                    bail!("{}: the name is no UTF-8; rename it", path.display());
                };
                found.push(name.replace('\\', "/"));
            }
        }
    }
    found.sort_unstable();
    ensure!(!found.is_empty(), "{}: no pictures in it", folder.display());
    Ok(found)
}

/// A folder belongs to one improvement of one list of pictures.
fn same_settings(settings: &Settings, pictures: &[String], out: &Path) -> Result<()> {
    let path = out.join("improve.json");
    if !path.is_file() && out.exists() {
        for entry in std::fs::read_dir(out).with_context(|| out.display().to_string())? {
            let found = entry.with_context(|| out.display().to_string())?.path();
            ensure!(
                is_temporary(&found),
                "{}: not an empty folder",
                out.display()
            );
        }
    }
    // As text: read back, some numbers would be others in their last digit.
    let text = |value| format!("{value:#}\n");
    claim(
        &path,
        &text(serde_json::to_value(settings)?),
        "an improvement with other settings is in this folder; give the same, or another --out",
    )?;
    claim(
        &out.join("pictures.json"),
        &text(json!(pictures)),
        "the folder of pictures has changed since; another --out begins anew",
    )
}

/// What was asked in a round's folder.
///
/// # Errors
/// If its log cannot be read.
pub fn asked_in(folder: &Path) -> Result<Vec<PictureAsked>> {
    let path = folder.join(CANDIDATES);
    read_log(&path, &sq_llava_data::files::read(&path)?)
}

/// The whole lines of a log.
fn read_log(path: &Path, text: &[u8]) -> Result<Vec<PictureAsked>> {
    let lines = text.split_inclusive(|&byte| byte == b'\n').enumerate();
    let whole = lines.filter(|(_, line)| line.ends_with(b"\n"));
    whole
        .map(|(number, line)| {
            serde_json::from_slice(line)
                .with_context(|| format!("{}: line {}", path.display(), number + 1))
        })
        .collect()
}

/// Opens the log for what follows its last whole line, and reads what is there. A line that a killed
/// process left unfinished is written anew.
fn open_log(path: &Path, pictures: &[String]) -> Result<(File, Vec<PictureAsked>)> {
    let shown = || path.display().to_string();
    let mut options = File::options();
    let options = options.create(true).read(true).append(true);
    let mut file = options.open(path).with_context(shown)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).with_context(shown)?;
    let found = read_log(path, &text)?;
    for (number, asked) in found.iter().enumerate() {
        ensure!(
            pictures.get(number) == Some(&asked.image),
            "{}: line {} is about {}, which is not the picture of this place",
            shown(),
            number + 1,
            asked.image
        );
    }
    let whole = text.iter().rposition(|&byte| byte == b'\n');
    file.set_len(whole.map_or(0, |at| at as u64 + 1))
        .with_context(shown)?;
    Ok((file, found))
}

#[cfg(test)]
mod tests;
