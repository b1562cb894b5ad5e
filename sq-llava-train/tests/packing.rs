//! Samples packed into rows learn what they learn in rows of their own: loss and gradients of whole
//! models, dropout included.

mod gradients;

use std::path::PathBuf;

use gradients::{ALL, Ad, Gradients, batch, difference, model, over, sample, samples, step};
use gradients::{sum_of, with_dropout};
use sq_llava_model::SqLlava;
use sq_llava_train::GradientCheckpointing::{self, Blocks, None as Keep};
use sq_llava_train::data::batch::{MicroBatch, TrainSample};
use sq_llava_train::step::groups::Trains;
use sq_llava_train::step::loss::LossSums;

/// Samples in another order, so many in each row.
struct Packing<'a> {
    order: &'a [usize],
    rows: &'a [usize],
}

impl Packing<'_> {
    fn of(&self, samples: &[TrainSample], tokens: usize) -> MicroBatch {
        let packed = self.order.iter().map(|&i| samples[i].clone());
        MicroBatch {
            rows: Some(self.rows.to_vec()),
            ..batch(packed.collect(), 0, tokens)
        }
    }
}

/// Compares loss per token and gradients.
fn assert_equal(what: &str, found: &(Gradients, LossSums), expected: &(Gradients, LossSums)) {
    let tokens = expected.1.tokens() as f64;
    assert_eq!(found.1.tokens(), expected.1.tokens(), "{what}");
    let loss = |sums: &LossSums| (sums.question + sums.answer) / tokens;
    let error = (loss(&found.1) / loss(&expected.1) - 1.0).abs();
    assert!(
        error <= 1e-6,
        "{what}: the losses differ by {error:e} of them"
    );
    let error = difference(&found.0, &expected.0);
    assert!(error <= 1e-5, "{what}: the gradients differ by {error:e}");
}

/// A step of the samples in a row each, and packed in several ways.
fn compare(what: &str, model: &SqLlava<Ad>, trains: Trains, samples: &[TrainSample]) {
    let tokens = samples.iter().map(TrainSample::learnable).sum();
    let run = |way, batch| step(model, trains, way, batch);
    let last = samples.len() - 1;
    let reversed: Vec<usize> = (0..samples.len()).rev().collect();
    let packings = [
        Packing {
            order: &reversed,
            rows: &[samples.len()],
        },
        Packing {
            order: &reversed,
            rows: &[1, last],
        },
        Packing {
            order: &reversed,
            rows: &[last, 1],
        },
    ];
    // What a step learns from each sample alone, for frequencies that depend on a text's length:
    // in a batch, as in transformers, it is that of the longest.
    let alone = |way: GradientCheckpointing| {
        let each = samples.iter();
        sum_of(each.map(|sample| run(way, batch(vec![sample.clone()], 0, tokens))))
    };
    for way in [Keep, Blocks] {
        let expected = match ["longrope", "dynamic"]
            .iter()
            .any(|kind| what.contains(kind))
        {
            true => alone(way),
            false => run(way, batch(samples.to_vec(), 0, tokens)),
        };
        for packing in &packings {
            let found = run(way, packing.of(samples, tokens));
            let what = format!("{what}, {way:?}, rows of {:?}", packing.rows);
            assert_equal(&what, &found, &expected);
        }
    }
}

/// The whole of the paper's model, with dropout and without.
#[test]
fn packed_samples_learn_the_same() {
    for [llm, vision] in [[0.1, 0.2], [0.0, 0.0]] {
        let base = golden::base_folder("", None).join("orig");
        let model = with_dropout(&base, ALL, llm, vision);
        compare(&format!("dropout {llm}"), &model, ALL, &samples(&model));
    }
    // Stage 1: no adapters train.
    let projector = Trains {
        projector: true,
        ..Trains::default()
    };
    let model = model(projector);
    compare("stage 1", &model, projector, &samples(&model));
}

/// Families with windows, soft limits, norms and frequencies of their own; towers of every kind;
/// pictures of any shape.
#[test]
fn packed_samples_learn_the_same_in_every_family() {
    let mut seen = Vec::new();
    for dir in golden::entries(&golden::repository().join("families")) {
        let (name, base) = (golden::file_name(&dir), dir.join("model"));
        if !base.join("config.json").is_file() || name.starts_with("vision") {
            continue;
        }
        let model = over(&base, ALL);
        let samples = match model.config.vision {
            Some(_) => vec![
                sample("a", &model, 9, &[0]),
                sample("b", &model, 4, &[1, 2]),
                sample("c", &model, 14, &[]),
                sample("d", &model, 2, &[3]),
            ],
            None => [9, 30, 14, 1].map(text(&model)).into(),
        };
        compare(&name, &model, ALL, &samples);
        seen.push(name);
    }
    for family in [
        "llama3",
        "gemma2",
        "gemma3",
        "phi3_longrope",
        "vlm_next_clip_llama",
    ] {
        let found = seen.iter().any(|name| name.contains(family));
        assert!(found, "{family} is not in {seen:?}");
    }
}

/// A text of so many words.
fn text(model: &SqLlava<Ad>) -> impl Fn(usize) -> TrainSample {
    |words| sample(&format!("{words} words"), model, words, &[])
}

/// Dynamic frequencies grow with each sample's own length.
#[test]
fn dynamic_frequencies_are_those_of_each_sample() {
    let scaling = r#"{"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}"#;
    let folder = tempfile::tempdir().expect("a folder");
    let base = golden::repository().join("families/llm_mistral/model");
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    for file in golden::entries(&base) {
        std::fs::copy(&file, path(&golden::file_name(&file))).expect("copied");
    }
    let mut config = golden::json(&base.join("config.json"));
    config["max_position_embeddings"] = 16.into();
    config["rope_parameters"] = scaling.parse().expect("JSON");
    let config = config.to_string();
    std::fs::write(path("config.json"), config).expect("written");
    let model = over(folder.path(), ALL);
    let samples = [9, 30, 14, 60].map(text(&model));
    compare("dynamic", &model, ALL, &samples);
}
