//! What the nodes compare before they train: they are to do the same, from the same place.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::backend::AutodiffBackend;
use serde::{Deserialize, Serialize};

use super::Nodes;
use super::gradients::{self, Trainable};
use crate::data::dataset::StageData;
use crate::data::loader::Plan;
use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::run::base::TrainPaths;
use crate::run::resume::{Difference, Resume, differing, flat, is_how, whole_checkpoints};
use crate::run::state::Sources;
use crate::step::adaptive::AskingState;

/// When it is compared, for messages.
const AT: &str = "at the start";

/// How a node begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Start {
    /// Of this program.
    version: String,
    /// Values of the recipe by their dotted keys.
    recipe: BTreeMap<String, String>,
    sources: Sources,
    /// `None` for a new run.
    resume: Option<Kept>,
}

/// What a run directory holds to go on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// The checkpoint that was asked for by name.
    named: Option<String>,
    /// Whether the run is over.
    finished: bool,
    /// Whole checkpoints, the newest first.
    whole: Vec<String>,
}

/// What this node is about to do in a stage.
pub(crate) struct StageStart<'a> {
    /// 1 or 2.
    pub stage: u8,
    pub plan: Plan,
    /// Steps that a resumed run has taken already.
    pub steps_done: usize,
    /// What adaptive asking has measured in them.
    pub asking: Option<&'a AskingState>,
    pub data: &'a StageData,
}

/// What each node says of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StageNews {
    stage: u8,
    steps_done: usize,
    steps: usize,
    samples: usize,
    /// CRC-32 of the order of the epoch's samples, of the trainable parameters' paths and shapes,
    /// and of their values.
    order: u32,
    names: u32,
    values: u32,
    /// What adaptive asking has measured.
    asking: Option<AskingState>,
}

/// Compares how the nodes begin. Returns where all of them go on: at the newest checkpoint that
/// all have whole.
///
/// # Errors
/// If they are not to do the same.
pub(crate) fn agree(
    nodes: &Nodes,
    recipe: &Recipe,
    sources: &Sources,
    paths: &TrainPaths,
    resume: Option<&Resume>,
) -> Result<Option<Resume>, TrainError> {
    let kept = |resume: &Resume| {
        let (finished, whole) = whole_checkpoints(&paths.out)?;
        let named = match resume {
            Resume::Latest => None,
            Resume::Checkpoint(name) => Some(name.clone()),
        };
        Ok::<_, TrainError>(Kept {
            named,
            finished,
            whole,
        })
    };
    let values = flat(recipe)?.into_iter();
    let mine = Start {
        version: env!("CARGO_PKG_VERSION").into(),
        recipe: values
            .filter(|(key, _)| key != "devices" && (key == "save_every" || !is_how(key)))
            .map(|(key, value)| (key, value.to_string()))
            .collect(),
        sources: sources.clone(),
        resume: resume.map(kept).transpose()?,
    };
    let all = nodes.gather(AT, &mine)?;
    decide(&all).map_err(TrainError::NodesDiffer)
}

/// Where all go on; `Err` says what differs.
fn decide(all: &[Start]) -> Result<Option<Resume>, String> {
    let mut different = Vec::new();
    for (rank, other) in all.iter().enumerate().skip(1) {
        let (first, version) = (&all[0].version, &other.version);
        if first != version {
            different.push(format!(
                "sq-llava is {first} on rank 0 and {version} on rank {rank}"
            ));
        }
        let recipe = differing(&all[0].recipe, &other.recipe).into_iter();
        different.extend(recipe.map(|Difference { key, first, second }| {
            format!("the recipe's {key} is {first} on rank 0 and {second} on rank {rank}")
        }));
        let ranks = ["on rank 0", &format!("on rank {rank}")];
        different.extend(all[0].sources.differences(&other.sources, ranks));
    }
    if !different.is_empty() {
        return Err(different.join("; "));
    }
    let kept: Vec<&Kept> = all
        .iter()
        .filter_map(|start| start.resume.as_ref())
        .collect();
    if kept.is_empty() {
        return Ok(None);
    }
    let each = |text: &dyn Fn(&Kept) -> String| {
        let of = |(rank, start): (usize, &Start)| {
            let text = start.resume.as_ref().map_or("a new run".into(), text);
            format!("rank {rank}: {text}")
        };
        all.iter()
            .enumerate()
            .map(of)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let named = |kept: &Kept| kept.named.clone().unwrap_or_else(|| "the newest".into());
    if kept.len() < all.len() || kept.iter().any(|other| other.named != kept[0].named) {
        return Err(format!(
            "they do not go on from the same place ({}): give --resume to all or to none",
            each(&named)
        ));
    }
    if let Some(name) = &kept[0].named {
        return Ok(Some(Resume::Checkpoint(name.clone())));
    }
    let all_are = |what: &dyn Fn(&Kept) -> bool| kept.iter().all(|kept| what(kept));
    if all_are(&|kept| kept.finished) || all_are(&|kept| !kept.finished && kept.whole.is_empty()) {
        return Ok(Some(Resume::Latest));
    }
    let mut newest_first = kept[0].whole.iter();
    match newest_first.find(|name| all_are(&|kept| kept.whole.contains(name))) {
        Some(name) => Ok(Some(Resume::Checkpoint(name.clone()))),
        None => {
            let has = |kept: &Kept| match (&kept.whole[..], kept.finished) {
                ([], false) => "none".to_owned(),
                ([], true) => "the end".to_owned(),
                (names, _) => names.join(" "),
            };
            Err(format!(
                "there is no checkpoint that all of them have whole ({}): copy one to the run \
                 directories that lack it, or begin a new run",
                each(&has)
            ))
        }
    }
}

/// Compares what the nodes are about to do in a stage.
///
/// # Errors
/// If it is not the same.
pub(crate) fn agree_on_stage<B: AutodiffBackend, M: Module<B>>(
    nodes: &Nodes,
    start: &StageStart<'_>,
    trainable: &Trainable<'_, M>,
) -> Result<(), TrainError> {
    let epoch = start.plan.epoch(start.steps_done);
    let mut order = crc32fast::Hasher::new();
    for draw in start.data.sampler.order(epoch) {
        order.update(&(draw.index as u64).to_le_bytes());
    }
    let mut names = crc32fast::Hasher::new();
    names.update(gradients::names(trainable).as_bytes());
    let mine = StageNews {
        stage: start.stage,
        steps_done: start.steps_done,
        steps: start.plan.steps(),
        samples: start.data.len(),
        order: order.finalize(),
        names: names.finalize(),
        values: gradients::checksum(trainable),
        asking: start.asking.cloned(),
    };
    let all = nodes.gather(AT, &mine)?;
    let different: Vec<String> = (1..all.len())
        .flat_map(|rank| stage_differences(&all[0], &all[rank], rank))
        .collect();
    match different.is_empty() {
        true => Ok(()),
        false => Err(TrainError::NodesDiffer(different.join("; "))),
    }
}

fn stage_differences(first: &StageNews, other: &StageNews, rank: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, a: String, b: String| {
        if a != b {
            found.push(format!("{what} {a} on rank 0 and {b} on rank {rank}"));
        }
    };
    let number = |number: usize| number.to_string();
    let crc = |sum: u32| format!("crc32 {sum:08x}");
    compare(
        "the stage is",
        first.stage.to_string(),
        other.stage.to_string(),
    );
    compare(
        "steps taken are",
        number(first.steps_done),
        number(other.steps_done),
    );
    compare("steps are", number(first.steps), number(other.steps));
    compare("samples are", number(first.samples), number(other.samples));
    compare(
        "the order of the samples is",
        crc(first.order),
        crc(other.order),
    );
    compare(
        "the trainable parameters are",
        crc(first.names),
        crc(other.names),
    );
    compare(
        "the values that train are",
        crc(first.values),
        crc(other.values),
    );
    if first.asking != other.asking {
        found.push(format!(
            "what adaptive asking has measured differs on rank 0 and on rank {rank}"
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Flavour;
    use crate::step::adaptive::AdaptiveSettings;

    fn start(whole: &[&str]) -> Start {
        let sources = serde_json::json!({
            "llm": {"path": "base", "config": null, "weights": {}}, "vision": null, "data": {}
        });
        Start {
            version: "1".into(),
            recipe: BTreeMap::from([("seed".into(), "1".into())]),
            sources: serde_json::from_value(sources).expect("sources"),
            resume: Some(Kept {
                named: None,
                finished: false,
                whole: whole.iter().map(ToString::to_string).collect(),
            }),
        }
    }

    fn kept(start: &mut Start) -> &mut Kept {
        start.resume.as_mut().expect("it goes on")
    }

    #[test]
    fn all_go_on_from_the_newest_that_all_have() {
        let newest = |name: &str| Ok(Some(Resume::Checkpoint(name.into())));
        let mut all = [start(&["c-6", "c-4", "c-2"]), start(&["c-4", "c-2"])];
        assert_eq!(decide(&all), newest("c-4"));
        all[0] = start(&["c-6", "c-2"]);
        assert_eq!(decide(&all), newest("c-2"));
        // One has finished in the last moment.
        kept(&mut all[0]).finished = true;
        assert_eq!(decide(&all), newest("c-2"));
        kept(&mut all[1]).finished = true;
        assert_eq!(decide(&all), Ok(Some(Resume::Latest)));
        assert_eq!(decide(&[start(&[]), start(&[])]), Ok(Some(Resume::Latest)));
        let error = decide(&[start(&["c-6"]), start(&[])]).expect_err("nothing in common");
        assert!(error.contains("rank 0: c-6, rank 1: none"), "{error}");
    }

    #[test]
    fn what_differs_is_named_with_its_rank() {
        let mut all = [start(&[]), start(&[]), start(&[])];
        all.iter_mut().for_each(|start| start.resume = None);
        assert_eq!(decide(&all), Ok(None));
        all[2].resume = start(&["c-2"]).resume;
        let error = decide(&all).expect_err("one goes on");
        assert!(
            error.contains("rank 1: a new run, rank 2: the newest"),
            "{error}"
        );
        all[2].recipe.insert("seed".into(), "2".into());
        all[1].recipe.insert("dtype".into(), "f16".into());
        let error = decide(&all).expect_err("other recipes");
        assert!(
            error.contains("seed is 1 on rank 0 and 2 on rank 2"),
            "{error}"
        );
        assert!(
            error.contains("dtype is unset on rank 0 and f16 on rank 1"),
            "{error}"
        );

        let mut named = [start(&["c-2"]), start(&["c-2"])];
        named
            .iter_mut()
            .for_each(|start| kept(start).named = Some("c-2".into()));
        assert_eq!(decide(&named), Ok(Some(Resume::Checkpoint("c-2".into()))));
        kept(&mut named[1]).named = None;
        let error = decide(&named).expect_err("other places");
        assert!(error.contains("rank 0: c-2, rank 1: the newest"), "{error}");

        let first = StageNews {
            stage: 2,
            steps_done: 4,
            steps: 10,
            samples: 20,
            order: 1,
            names: 2,
            values: 3,
            asking: None,
        };
        assert!(stage_differences(&first, &first, 1).is_empty());
        let other = StageNews {
            steps_done: 6,
            values: 4,
            ..first.clone()
        };
        let found = stage_differences(&first, &other, 1).join("; ");
        assert_eq!(
            found,
            "steps taken are 4 on rank 0 and 6 on rank 1; the values that train are crc32 00000003 \
             on rank 0 and crc32 00000004 on rank 1"
        );
        let settings = AdaptiveSettings::of(&Recipe::published(Flavour::Paper).asking);
        let measured = StageNews {
            asking: Some(AskingState::new(&["coco".to_owned()], &settings)),
            ..first.clone()
        };
        assert!(stage_differences(&measured, &measured, 1).is_empty());
        let found = stage_differences(&first, &measured, 1).join("; ");
        assert!(
            found.contains("adaptive asking") && found.contains("rank 1"),
            "{found}"
        );
    }
}
