//! What improving by questions of its own is worth in the small world, where few scenes are labelled
//! and the truth about the others is known all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use sq_llava_model::Assistant;
use sq_llava_train::{TrainOptions, Ui};

use super::spread::{self, Spread};
use super::{ANSWER_TOKENS, Plan, Prepared, Scores, answers};
use crate::improve::candidate::{AskingSettings, Candidate, PictureAsked, plain};
use crate::improve::filters::{Filter, Filters};
use crate::improve::{Improvement, Models, Outcome, Settings, asked_in};
use crate::output::{claim, read_json, write_json};
use crate::world::{SIDE, Scene, Telling, render};

/// Unlabelled scenes have numbers from here on, between those of training and those held out.
const FIRST_UNLABELLED: u64 = 1 << 24;

/// Row of what was asked before any filter.
const NO_FILTER: &str = "no filter";
/// Row of all filters together.
const ALL_FILTERS: &str = "all filters";

/// What is tried; also `trial.json` beside the seeds.
#[derive(Debug, Serialize)]
pub struct Trial {
    /// Folder for everything.
    #[serde(skip)]
    pub out: PathBuf,
    /// Labelled scenes, with captions and conversations.
    pub labels: usize,
    /// Scenes of which there are only pictures.
    pub unlabelled: usize,
    /// Scenes that are asked about before and after.
    pub held_out: usize,
    /// Rounds.
    pub rounds: usize,
    /// How much is asked.
    pub asking: AskingSettings,
    /// What is kept.
    pub filters: Filters,
    /// How often a pair comes in a pass.
    pub repeat: f64,
    /// Changes to the world's recipe.
    pub changes: Vec<String>,
}

/// How many pairs are right; a question that has no right answer makes none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Precision {
    /// Pairs that pass.
    pub passed: usize,
    /// Right ones among them.
    pub right: usize,
}

/// One seed; also its `result.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeedResult {
    /// The seed of world, training and draws.
    pub seed: u64,
    /// Scores of the run on the labels alone, then after each round.
    pub scores: Vec<Scores>,
    /// For each round what passes without filters, each alone, and all.
    pub precision: Vec<BTreeMap<String, Precision>>,
}

impl Trial {
    /// One seed from the labels to the last round; what is there already is not done again.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn seed<B: Backend>(
        &self,
        seed: u64,
        device: &B::Device,
        options: &TrainOptions,
        say: &mut dyn FnMut(String),
    ) -> Result<SeedResult> {
        claim(
            &self.out.join("trial.json"),
            &format!("{:#}\n", serde_json::to_value(self)?),
            "another trial is in this folder; give the same options, or another --out",
        )?;
        let folder = self.out.join(format!("seed-{seed}"));
        let result = folder.join("result.json");
        if result.is_file() {
            return read_json(&result);
        }
        let (prepared, run) = self.labelled::<B>(seed, &folder, device)?;
        let task = &prepared.task;
        let scenes = self.paint(seed, &folder, &prepared.files.held_out_scenes)?;
        let models = |run: &Path| task.load::<B>(run, None, device);
        let examine = |run: &Path| -> Result<Scores> {
            let said = answers(&models(run)?, &task.images, &task.questions, ANSWER_TOKENS)?;
            Ok(Scores::of(&task.questions, &said))
        };
        let mut found = SeedResult {
            seed,
            scores: vec![examine(&run)?],
            precision: Vec::new(),
        };
        let mut asking = self.asking.clone();
        asking.seed = asking.seed.wrapping_add(seed);
        let settings = Settings {
            run,
            pictures: std::path::absolute(folder.join("unlabelled"))?,
            clip: None,
            asking,
            filters: self.filters,
            repeat: self.repeat,
        };
        let improved = folder.join("improved");
        let improvement = Improvement {
            settings: &settings,
            out: &improved,
            rounds: self.rounds,
            look: false,
        };
        let outcome = improvement.run::<B>(&Plain(&models), device, options, &mut |line| {
            say(format!("seed {seed}: {line}"));
        })?;
        if let Outcome::Stopped(_) = outcome {
            bail!("stopped; the same command goes on");
        }
        for round in 1..=self.rounds {
            let folder = improved.join(format!("round-{round}"));
            let asked = asked_in(&folder)?;
            found.precision.push(self.precision(&asked, &scenes));
            found.scores.push(examine(&folder.join("run"))?);
        }
        write_json(&result, &found)?;
        Ok(found)
    }

    /// The world of a seed, and the run on its labels alone.
    fn labelled<B: Backend>(
        &self,
        seed: u64,
        folder: &Path,
        device: &B::Device,
    ) -> Result<(Prepared, PathBuf)> {
        // Few labels are seen often.
        let often = ["stage1.epochs=5", "stage2.epochs=10"].map(String::from);
        let plan = Plan {
            out: folder.to_path_buf(),
            scenes: self.labels,
            steps: None,
            held_out: self.held_out,
            seed,
            towers: None,
            changes: often.into_iter().chain(self.changes.clone()).collect(),
            masks: None,
            telling: Telling::Full,
            ui: Ui::Quiet,
        };
        let prepared = plan.prepare()?;
        let run = folder.join("run");
        if !run.join("config.json").is_file() {
            if run.exists() {
                std::fs::remove_dir_all(&run).with_context(|| run.display().to_string())?;
            }
            let task = &prepared.task;
            task.train::<B>(&task.recipe, &run, device, Ui::Quiet)?;
        }
        Ok((prepared, run))
    }

    /// Pictures of scenes that are neither labelled nor held out, by their names.
    fn paint(
        &self,
        seed: u64,
        folder: &Path,
        held_out: &[Scene],
    ) -> Result<BTreeMap<String, Scene>> {
        let pictures = folder.join("unlabelled");
        std::fs::create_dir_all(&pictures).with_context(|| pictures.display().to_string())?;
        let held_out: BTreeSet<String> = held_out.iter().map(Scene::caption).collect();
        let drawn = (FIRST_UNLABELLED..).map(|number| Scene::draw(seed, number));
        let others = drawn.filter(|scene| !held_out.contains(&scene.caption()));
        let mut scenes = BTreeMap::new();
        for (number, scene) in others.take(self.unlabelled).enumerate() {
            let name = format!("{number:05}.png");
            let path = pictures.join(&name);
            // Again where it is there: a killed one may have left half of it.
            let picture = render(&scene, SIDE);
            picture
                .save(&path)
                .with_context(|| path.display().to_string())?;
            scenes.insert(name, scene);
        }
        Ok(scenes)
    }

    /// How many of the pairs that pass are right, by filter.
    fn precision(
        &self,
        asked: &[PictureAsked],
        scenes: &BTreeMap<String, Scene>,
    ) -> BTreeMap<String, Precision> {
        let one = |filters: Filters| {
            let mut found = Precision::default();
            for verdict in filters.judge(asked) {
                if verdict.dropped.is_none() {
                    let picture = &asked[verdict.picture];
                    found.passed += 1;
                    let right = is_right(&scenes[&picture.image], &picture.pairs[verdict.pair]);
                    found.right += usize::from(right);
                }
            }
            found
        };
        let mut all = BTreeMap::from([
            (NO_FILTER.to_owned(), one(Filters::OFF)),
            (ALL_FILTERS.to_owned(), one(self.filters)),
        ]);
        all.extend(
            shown().map(|filter| (filter.name().to_owned(), one(self.filters.only(filter)))),
        );
        all
    }
}

/// Filters that can leave something out here: there is no CLIP.
fn shown() -> impl Iterator<Item = Filter> {
    Filter::ALL
        .into_iter()
        .filter(|filter| *filter != Filter::Clip)
}

fn is_right(scene: &Scene, pair: &Candidate) -> bool {
    let truth = scene.answer(&pair.question);
    truth.is_some_and(|truth| plain(&truth) == plain(&pair.answer))
}

/// Models of a task.
struct Plain<'a, B: Backend>(&'a dyn Fn(&Path) -> Result<Assistant<B>>);

impl<B: Backend> Models<B> for Plain<'_, B> {
    fn assistant(&self, run: &Path) -> Result<Assistant<B>> {
        (self.0)(run)
    }

    fn clip(&self, directory: &Path) -> Result<sq_llava_eval::clip_score::ClipScorer<B>> {
        bail!("{}: the small world has no CLIP", directory.display())
    }
}

/// Three tables as Markdown: accuracy before and after each round, how far rounds are ahead of the
/// labels alone, and precision by filter.
pub fn markdown(results: &[SeedResult]) -> String {
    let rounds = results.first().map_or(0, |result| result.precision.len());
    let name = |round: usize| match round {
        0 => "labels alone".to_owned(),
        round => format!("round {round}"),
    };
    let scores = |round: usize| {
        let runs = results.iter().map(|result| result.scores[round].columns());
        runs.collect::<Vec<_>>()
    };
    let rows: Vec<_> = (0..=rounds)
        .map(|round| (name(round), spread::spreads(&scores(round))))
        .collect();
    let mut text = spread::markdown(rows.iter().map(|(name, row)| (&**name, row)));
    let before = scores(0);
    let ahead: Vec<_> = (1..=rounds)
        .map(|round| (name(round), spread::ahead(&scores(round), &before)))
        .collect();
    text += "\nAhead of the labels alone, with the 95 % interval of the mean:\n\n";
    let rows = ahead.iter().map(|(name, row)| (&**name, row));
    text += &spread::markdown_with_intervals(rows);
    text += "\nRight pairs among those that pass, in per cent, and how many pass:\n\n| |";
    for round in 1..=rounds {
        text += &format!(" {} | pairs |", name(round));
    }
    text += &format!("\n|---|{}\n", "---|---|".repeat(rounds));
    let filters = shown().map(Filter::name);
    for filter in [NO_FILTER].into_iter().chain(filters).chain([ALL_FILTERS]) {
        text += &format!("| {filter} |");
        for round in 0..rounds {
            let of = |value: fn(Precision) -> f64| {
                let all = results.iter();
                let values = all.map(|result| value(result.precision[round][filter]));
                Spread::of(&values.collect::<Vec<_>>())
            };
            let right = of(|p| 100.0 * p.right as f64 / p.passed.max(1) as f64);
            text += &format!(" {right} | {:.0} |", of(|p| p.passed as f64).mean);
        }
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::improve::candidate::sure;
    use crate::quickstart::Score;

    #[test]
    fn pairs_are_right_where_the_scene_says_so() {
        let scene = Scene::draw(0, 1);
        let thing = &scene.things[0];
        let named = format!(
            "Where is the {} {}?",
            thing.color.word(),
            thing.shape.word()
        );
        let place = format!("At the {}.", thing.place.word());
        assert!(is_right(&scene, &sure(&named, &place)));
        assert!(!is_right(&scene, &sure(&named, "at the")));
        assert!(!is_right(&scene, &sure("Where is everything?", &place)));
    }

    #[test]
    fn the_tables_have_rounds_and_filters() {
        let scores = |right| {
            let score = Score { right, all: 10 };
            Scores {
                kinds: BTreeMap::from([("color".to_owned(), score)]),
                all: score,
                yes_f1: None,
            }
        };
        let names = shown().map(Filter::name).chain([NO_FILTER, ALL_FILTERS]);
        let precision: BTreeMap<String, Precision> = names
            .map(|name| {
                (
                    name.to_owned(),
                    Precision {
                        passed: 4,
                        right: 3,
                    },
                )
            })
            .collect();
        let result = |seed, before, after| SeedResult {
            seed,
            scores: vec![scores(before), scores(after)],
            precision: vec![precision.clone()],
        };
        let text = markdown(&[result(0, 4, 5), result(1, 5, 6)]);
        for line in [
            "| labels alone | 45.0 ± 7.1 | 45.0 ± 7.1 |",
            "| round 1 | 55.0 ± 7.1 | 55.0 ± 7.1 |",
            "| round 1 | +10.0 (+10.0 … +10.0) | +10.0 (+10.0 … +10.0) |",
            "| agreement | 75.0 ± 0.0 | 4 |",
            "| all filters | 75.0 ± 0.0 | 4 |",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
