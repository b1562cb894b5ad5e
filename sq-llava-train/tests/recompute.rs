//! Recompute changes memory, not gradients; dropout drops the same however a step is divided.

mod gradients;

use burn::module::Module;
use gradients::{ALL, batch, difference, model, over, sample, samples, step, sum_of};
use sq_llava_data::TokenRole::Ignore;
use sq_llava_train::GradientCheckpointing::{Blocks, None as Keep};
use sq_llava_train::data::batch::TrainSample;
use sq_llava_train::step::groups::Trains;
use sq_llava_train::step::loss::LossSums;

#[test]
fn recompute_gives_the_same_gradients() {
    let parts: [(&str, Trains); 5] = [
        ("all", ALL),
        (
            "stage 1",
            Trains {
                projector: true,
                ..Trains::default()
            },
        ),
        (
            "the LLM alone",
            Trains {
                llm: true,
                ..Trains::default()
            },
        ),
        (
            "the tower alone",
            Trains {
                vision: true,
                ..Trains::default()
            },
        ),
        (
            "new tokens alone",
            Trains {
                new_tokens: true,
                ..Trains::default()
            },
        ),
    ];
    for (what, trains) in parts {
        let model = model(trains);
        let samples = samples(&model);
        let tokens = samples.iter().map(TrainSample::learnable).sum();
        let run = |way, at| step(&model, trains, way, batch(samples.clone(), at, tokens));
        let (kept, kept_sums) = run(Keep, 0);
        let (again, again_sums) = run(Blocks, 0);
        let towers = [
            "language_model.model",
            "vision_tower",
            "mm_projector",
            "new_tokens",
        ];
        let wanted = [
            trains.llm,
            trains.vision,
            trains.projector,
            trains.new_tokens,
        ];
        for (part, wanted) in towers.iter().zip(wanted) {
            let has = kept.keys().any(|path| path.contains(part));
            assert_eq!(has, wanted, "{what}: gradients of {part}");
        }
        let error = difference(&again, &kept);
        // Not a bit less: attention without a graph adds up in another order.
        assert!(error < 1e-5, "{what}: {error:e}");
        assert!((kept_sums.answer - again_sums.answer).abs() < 1e-4);
        // Dropout is on: another step drops other elements.
        let (other, _) = run(Blocks, 1);
        let moved = difference(&other, &kept);
        assert_eq!(moved > 1e-3, trains.llm || trains.vision, "{what}: {moved}");
        assert_eq!(run(Blocks, 0).0, again, "{what}: not repeatable");
    }
}

/// Towers of other families, and features joined from several layers, each of which sends a
/// gradient back into the tower.
#[test]
fn recompute_gives_the_same_gradients_for_every_tower() {
    let mut several = 0;
    for dir in golden::entries(&golden::repository().join("families")) {
        if !dir.join("lora_adapter").is_dir() || !golden::file_name(&dir).contains("llava") {
            continue;
        }
        for layers in [vec![-1], vec![-1, 2], vec![2, 2], vec![0, -1]] {
            let mut model = over(&dir.join("model"), ALL);
            if model.config.select_layers.len() != layers.len() {
                continue;
            }
            several += usize::from(layers.len() > 1);
            model.config.select_layers = layers.clone();
            let samples = samples(&model);
            let tokens = samples.iter().map(TrainSample::learnable).sum();
            let run = |way| step(&model, ALL, way, batch(samples.clone(), 0, tokens)).0;
            let (kept, again) = (run(Keep), run(Blocks));
            let towers = kept.keys().filter(|path| path.contains("vision_tower"));
            assert!(towers.count() > 0, "{}", dir.display());
            let error = difference(&again, &kept);
            assert!(error < 1e-5, "{} {layers:?}: {error:e}", dir.display());
        }
    }
    assert!(several > 1, "no model with features of several layers");
}

#[test]
fn a_step_drops_the_same_however_it_is_divided() {
    let model = model(ALL);
    let samples = samples(&model);
    let tokens = samples.iter().map(TrainSample::learnable).sum();
    let (whole, _) = step(&model, ALL, Keep, batch(samples.clone(), 4, tokens));
    // On a thread for each, as devices are.
    let parts: Vec<_> = std::thread::scope(|scope| {
        let run = |sample: TrainSample| {
            let model = model.clone().fork(&Default::default());
            scope.spawn(move || step(&model, ALL, Blocks, batch(vec![sample], 4, tokens)))
        };
        let threads: Vec<_> = samples.into_iter().map(run).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let (sum, _) = sum_of(parts.into_iter());
    let error = difference(&sum, &whole);
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn a_batch_with_nothing_to_learn_contributes_nothing() {
    let model = model(ALL);
    let mut silent = sample("silent", &model, 5, &[0]);
    silent.roles.fill(Ignore);
    for way in [Keep, Blocks] {
        let (grads, sums) = step(&model, ALL, way, batch(vec![silent.clone()], 0, 0));
        assert!(grads.is_empty());
        assert_eq!(sums, LossSums::default());
    }
    // Beside another sample it changes nothing either.
    let speaks = sample("a", &model, 9, &[1]);
    let tokens = speaks.learnable();
    let both = vec![speaks.clone(), silent];
    let (alone, _) = step(&model, ALL, Blocks, batch(vec![speaks], 0, tokens));
    let (beside, _) = step(&model, ALL, Blocks, batch(both, 0, tokens));
    let error = difference(&beside, &alone);
    assert!(error < 1e-5, "{error:e}");
}
