//! A stage 1 that learns words without the LLM.

use sq_llava_train::{Resume, TrainOptions, Ui, train};

use super::saved;
use super::world::{Ad, World};

#[test]
fn words_are_learnt_and_a_run_goes_on_with_them() {
    let world = World::new();
    let validation = format!("stage1.validation='{}'", world.path("data.json").display());
    let changes = [
        &validation,
        "stages=[1]",
        "stage1.objective='words'",
        "stage1.batch_size=8",
        "stage1.accumulation=1",
        "stage1.epochs=20",
        "thread_groups=2",
        "validation.every=10",
        "save_every=1",
        "keep_checkpoints=100",
    ];
    world.train("words", &changes).expect("trains");
    let losses = world.losses("words", 1);
    assert_eq!(losses.len(), 20);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (early, late) = (mean(&losses[..5]), mean(&losses[15..]));
    assert!(early > 0.05 && late < 0.6 * early, "{losses:?}");
    let validation = std::fs::read_to_string(world.path("words/validation.jsonl")).expect("a log");
    assert_eq!(validation.lines().count(), 2, "{validation}");

    // Going on from a checkpoint ends at the same bits.
    let files = || {
        let mut files = Vec::new();
        saved(&world.path("words"), &mut files);
        files.retain(|(name, _)| name.ends_with(".safetensors"));
        files
    };
    let before = files();
    assert!(!before.is_empty());
    let options = TrainOptions {
        resume: Some(Resume::Checkpoint("checkpoint-1-7".into())),
        ..Ui::Quiet.into()
    };
    let (recipe, paths) = (world.recipe(&changes), world.paths("words"));
    train::<Ad>(&recipe, &paths, &Default::default(), options).expect("resumes");
    assert!(files() == before);
    assert_eq!(world.losses("words", 1), losses);
}

#[test]
fn a_stage_that_has_nothing_to_tell_apart_says_so() {
    let world = World::new();
    let mut samples = world.samples();
    // One picture among texts.
    let all = samples.as_array_mut().expect("samples");
    let text = all.pop().expect("the sample without a picture");
    all.truncate(1);
    all.extend(std::iter::repeat_n(text, 9));
    world.write("data.json", &samples);
    let changes = [
        "stages=[1]",
        "stage1.objective='words'",
        "stage1.batch_size=10",
        "stage1.accumulation=1",
        "stage1.epochs=2",
    ];
    let error = world.train("words", &changes).unwrap_err().to_string();
    assert!(error.contains("two samples with pictures"), "{error}");
}
