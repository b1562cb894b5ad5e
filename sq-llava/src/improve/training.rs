//! What a round trains on: the data of the run that is improved, and the pairs that were kept.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::json;
use sq_llava_train::recipe::{Shards, SourceRecipe};
use sq_llava_train::{Recipe, RunDirectory, TrainPaths};

use super::candidate::PictureAsked;
use super::filters::Verdict;
use crate::output::write_json;

/// Folder of stage 1 inside a run.
const STAGE1: &str = "stage1";

/// Where pairs come from; told with each sample.
#[derive(Debug, Clone, Copy)]
pub struct Provenance<'a> {
    /// The run that asked and answered.
    pub model: &'a Path,
    /// Which round.
    pub round: usize,
    /// Seed of its draws.
    pub seed: u64,
}

/// Writes what is kept (verdicts in the order of the pictures) as LLaVA JSON: a sample for each picture, a turn for each pair, and beside
/// them who made it and how sure it was. Readers of LLaVA JSON pass over that.
///
/// # Errors
/// If the file cannot be written.
pub fn write_pairs(
    path: &Path,
    pictures: &[PictureAsked],
    verdicts: &[Verdict],
    from: Provenance<'_>,
) -> Result<()> {
    let mut samples = Vec::new();
    for own in verdicts.chunk_by(|a, b| a.picture == b.picture) {
        let index = own[0].picture;
        let asked = &pictures[index];
        let kept = own.iter().filter(|verdict| verdict.dropped.is_none());
        let pairs: Vec<_> = kept.map(|verdict| &asked.pairs[verdict.pair]).collect();
        if pairs.is_empty() {
            continue;
        }
        let mut turns = Vec::new();
        for (turn, pair) in pairs.iter().enumerate() {
            let mark = if turn == 0 { "<image>\n" } else { "" };
            turns.push(json!({"from": "human", "value": format!("{mark}{}", pair.question)}));
            turns.push(json!({"from": "gpt", "value": pair.answer}));
        }
        samples.push(json!({
            "id": format!("round-{}-{index}", from.round),
            "image": asked.image,
            "conversations": turns,
            "provenance": {
                "model": from.model,
                "round": from.round,
                "seed": from.seed,
                "pairs": pairs,
            },
        }));
    }
    write_json(path, &samples)
}

/// Recipe and paths of a round: stage 2 as the run `run` had it, from where its stage 2 started, on
/// its data and on `pairs`, which come `repeat` times in a pass.
///
/// # Errors
/// If there is no run, or it had no stage 2.
pub fn round(
    run: &Path,
    pairs: &Path,
    pictures: &Path,
    repeat: f64,
    out: &Path,
) -> Result<(Recipe, TrainPaths)> {
    let (mut recipe, mut paths) = RunDirectory::asked(run)?;
    if !recipe.stages.contains(&2) {
        bail!(
            "{}: the run has no stage 2, which is what pairs of questions and answers are for",
            run.display()
        );
    }
    if recipe.model.masks.is_some() {
        bail!(
            "{}: the run trains with model.masks, which are found by the names of pictures; one of the same name in {} would take another's, so it cannot be improved",
            run.display(),
            pictures.display()
        );
    }
    if recipe.stages.contains(&1) {
        let stage1 = run.join(STAGE1);
        if !stage1.join("config.json").is_file() {
            bail!(
                "{}: what stage 1 left is not there, and a round starts from it",
                stage1.display()
            );
        }
        paths.projector = Some(stage1);
    }
    recipe.stages = vec![2];
    let stage = &mut recipe.stage2;
    let source = |data, images, repeat| SourceRecipe {
        data: Shards::One(data),
        images,
        repeat,
        columns: Default::default(),
    };
    if let Some(data) = paths.data.take().or_else(|| stage.data.take()) {
        stage.data = None;
        stage.sources = vec![source(data, None, 1.0)];
    }
    let images = Some(pictures.to_path_buf());
    stage
        .sources
        .push(source(pairs.to_path_buf(), images, repeat));
    paths.out = out.to_path_buf();
    recipe.validate()?;
    Ok((recipe, paths))
}
