//! Visual self-questioning: which human turns become questions that the model asks.
//!
//! Each eligible turn is asked with probability δ. The draw is a pure function of (seed, epoch,
//! sample id, turn) and δ one of the progress of the training, or of what was measured up to an
//! optimizer step, so that a resumed run and any number of workers see the same questions, whatever
//! order they come in.

mod sources;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::sources::FollowedSources;
use crate::manifest::{Author, LlavaSample};
use crate::mix::{fnv1a, splitmix64};
use crate::text::sample::spoken;

/// How δ goes from its first to its last value over the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeltaSchedule {
    /// It stays at the first value (the paper).
    #[default]
    Constant,
    /// In proportion to the steps.
    Linear,
    /// Along half a cosine: slowly at both ends.
    Cosine,
    /// As is measured: each source's follows how far its questions have been learnt against its
    /// answers.
    Adaptive,
}

/// Draws which questions the model asks (the paper's δ).
#[derive(Debug, Clone, PartialEq)]
pub struct AskingPolicy {
    /// Probability that an eligible human turn is asked, at the start of the training.
    pub delta: f64,
    /// How it changes.
    pub schedule: DeltaSchedule,
    /// What a linear schedule or a cosine ends at.
    pub delta_end: f64,
    /// Probabilities of single data sources, constant. A source is called by the first folder of
    /// a sample's first image path (`coco` of `coco/train2017/1.jpg`), or else by the file name of
    /// its manifest; see [`Self::source`].
    pub sources: BTreeMap<String, f64>,
    /// Whether the first human turn is eligible (the released code says no).
    pub first_turn: bool,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for AskingPolicy {
    /// The paper's: δ = 0.5 at every turn.
    fn default() -> Self {
        Self {
            delta: 0.5,
            schedule: DeltaSchedule::Constant,
            delta_end: 0.5,
            sources: BTreeMap::new(),
            first_turn: true,
            seed: 0,
        }
    }
}

/// When and from where a sample is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawContext<'a> {
    /// Pass over the data, from 0; the time in it, too, where a sample comes several times.
    pub epoch: u64,
    /// Part of the training that is done: optimizer step / all steps, from 0 to 1.
    pub progress: f64,
    /// File name of the manifest.
    pub manifest: &'a str,
    /// δ of the sample's source, where that is measured.
    pub measured: Option<f64>,
}

impl AskingPolicy {
    /// δ where the part `progress` of the training is done, for sources without their own; of an
    /// adaptive one the δ that it starts at.
    pub fn delta_at(&self, progress: f64) -> f64 {
        let done = progress.clamp(0.0, 1.0);
        let weight = match self.schedule {
            DeltaSchedule::Constant | DeltaSchedule::Adaptive => return self.delta,
            DeltaSchedule::Linear => done,
            DeltaSchedule::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * done).cos()),
        };
        self.delta + (self.delta_end - self.delta) * weight
    }

    /// The name among [`Self::sources`] that a sample falls under, and its δ: the first folder of
    /// its first image path, or else the file name of its manifest.
    pub fn source(&self, manifest: &str, sample: &LlavaSample) -> Option<(&str, f64)> {
        let folder = sample.images.first().and_then(|path| first_folder(path));
        let find = |name| self.sources.get_key_value(name);
        let (name, &delta) = folder.and_then(find).or_else(|| find(manifest))?;
        Some((name, delta))
    }

    /// A number in `[0, 1)` that depends on its arguments and the seed alone.
    pub fn draw(&self, epoch: u64, sample_id: &str, turn: usize) -> f64 {
        let mixed = [self.seed, epoch, turn as u64]
            .into_iter()
            .fold(splitmix64(fnv1a(sample_id.as_bytes())), |state, value| {
                splitmix64(state ^ splitmix64(value))
            });
        // The upper 53 bits are a double's mantissa.
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }

    /// For each human turn whether it is asked: never in a sample without an image, else where
    /// the draw is below δ.
    pub fn asked(&self, context: DrawContext, sample: &LlavaSample) -> Vec<bool> {
        let own = self.source(context.manifest, sample);
        let own = own.map(|(_, delta)| delta).or(context.measured);
        let delta = own.unwrap_or_else(|| self.delta_at(context.progress));
        let speakers = spoken(sample).iter().filter(|m| m.from != Author::Gpt);
        speakers
            .enumerate()
            .map(|(turn, _)| {
                !sample.images.is_empty()
                    && (turn > 0 || self.first_turn)
                    && self.draw(context.epoch, &sample.id, turn) < delta
            })
            .collect()
    }
}

/// The first folder of a path with at least one, whichever way the slashes lean.
fn first_folder(path: &str) -> Option<&str> {
    let mut parts = path
        .split(['/', '\\'])
        .filter(|part| !part.is_empty() && *part != ".");
    let first = parts.next()?;
    parts.next().map(|_| first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Message;

    const START: DrawContext = DrawContext {
        epoch: 0,
        progress: 0.0,
        manifest: "data.json",
        measured: None,
    };

    fn sample(images: &[&str], turns: usize) -> LlavaSample {
        let message = |i| Message {
            from: if i % 2 == 0 {
                Author::Human
            } else {
                Author::Gpt
            },
            value: "text".into(),
        };
        LlavaSample {
            id: "s".into(),
            images: images.iter().map(ToString::to_string).collect(),
            system: None,
            conversations: (0..2 * turns).map(message).collect(),
        }
    }

    #[test]
    fn draws_depend_on_everything_and_nothing_else() {
        let policy = AskingPolicy {
            seed: 3,
            ..AskingPolicy::default()
        };
        let base = policy.draw(0, "a", 1);
        assert_eq!(base, policy.draw(0, "a", 1));
        let other = AskingPolicy {
            seed: 4,
            ..policy.clone()
        };
        for changed in [
            policy.draw(1, "a", 1),
            policy.draw(0, "b", 1),
            policy.draw(0, "a", 2),
            other.draw(0, "a", 1),
        ] {
            assert_ne!(base, changed);
        }
        let draws = (0..10_000).map(|i| policy.draw(0, &i.to_string(), 0));
        let mean = draws.sum::<f64>() / 10_000.0;
        // Six standard errors of a uniform draw.
        assert!((mean - 0.5).abs() < 0.018, "{mean}");
    }

    #[test]
    fn only_image_samples_ask_and_the_first_turn_by_choice() {
        let policy = AskingPolicy {
            delta: 1.0,
            first_turn: false,
            ..AskingPolicy::default()
        };
        let shown = sample(&["a.png"], 2);
        assert_eq!(policy.asked(START, &shown), [false, true]);
        assert_eq!(policy.asked(START, &sample(&[], 2)), [false, false]);
        let eager = AskingPolicy {
            first_turn: true,
            ..policy
        };
        assert_eq!(eager.asked(START, &shown), [true, true]);
        let never = AskingPolicy {
            delta: 0.0,
            ..eager
        };
        assert_eq!(never.asked(START, &shown), [false, false]);
    }

    #[test]
    fn delta_follows_its_schedule() {
        let of = |schedule| AskingPolicy {
            delta: 0.2,
            delta_end: 1.0,
            schedule,
            ..AskingPolicy::default()
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} and {b}");
        let linear = of(DeltaSchedule::Linear);
        let cosine = of(DeltaSchedule::Cosine);
        for (progress, straight, curved) in [
            (0.0, 0.2, 0.2),
            (0.25, 0.4, 0.2 + 0.8 * 0.5 * (1.0 - 0.5f64.sqrt())),
            (0.5, 0.6, 0.6),
            (1.0, 1.0, 1.0),
            (7.0, 1.0, 1.0),
        ] {
            near(linear.delta_at(progress), straight);
            near(cosine.delta_at(progress), curved);
            near(of(DeltaSchedule::Constant).delta_at(progress), 0.2);
        }
        // A growing δ only adds questions: the draws do not change with it.
        let many = sample(&["a.png"], 200);
        let at = |progress| {
            let context = DrawContext { progress, ..START };
            linear.asked(context, &many)
        };
        let (early, late) = (at(0.1), at(0.9));
        assert!(early.iter().zip(&late).all(|(early, late)| *late || !early));
        let count = |asked: &[bool]| asked.iter().filter(|a| **a).count();
        // δ is 0.28 and 0.92; six standard deviations of 200 draws are 38 and 23.
        assert!((18..=94).contains(&count(&early)), "{}", count(&early));
        assert!((161..=200).contains(&count(&late)), "{}", count(&late));
    }

    #[test]
    fn a_source_has_its_own_delta() {
        let policy = AskingPolicy {
            delta: 0.0,
            sources: [("coco", 1.0), ("text.json", 1.0), ("gqa", 0.0)]
                .map(|(name, delta)| (name.to_owned(), delta))
                .into(),
            ..AskingPolicy::default()
        };
        let asked = |image: &str, manifest: &str| {
            let context = DrawContext { manifest, ..START };
            policy.asked(context, &sample(&[image], 1))[0]
        };
        assert!(asked("coco/train2017/1.jpg", "data.json"));
        assert!(asked("./coco\\1.jpg", "data.json"));
        assert!(!asked("vg/1.jpg", "data.json"));
        // A picture in no folder is called by its manifest, and a folder comes first.
        assert!(!asked("coco", "data.json"));
        assert!(asked("1.jpg", "text.json"));
        assert!(!asked("gqa/1.jpg", "text.json"));
        let found = policy.source("text.json", &sample(&["vg/1.jpg"], 1));
        assert_eq!(found, Some(("text.json", 1.0)));
    }

    #[test]
    fn what_is_measured_stands_in_for_delta_but_not_for_a_sources_own() {
        let policy = AskingPolicy {
            delta: 0.5,
            delta_end: 1.0,
            schedule: DeltaSchedule::Adaptive,
            sources: [("gqa".to_owned(), 0.0)].into(),
            ..AskingPolicy::default()
        };
        let count = |folder: &str, measured| {
            let context = DrawContext {
                progress: 0.9,
                measured,
                ..START
            };
            let shown = sample(&[&format!("{folder}/1.jpg")], 200);
            let asked = policy.asked(context, &shown);
            asked.into_iter().filter(|asked| *asked).count()
        };
        assert_eq!(count("coco", Some(0.0)), 0);
        assert_eq!(count("coco", Some(1.0)), 200);
        assert_eq!(count("gqa", Some(1.0)), 0);
        // Without a measurement it is the first value; six standard deviations of 200 draws are 43.
        assert!((57..=143).contains(&count("coco", None)));
    }
}
