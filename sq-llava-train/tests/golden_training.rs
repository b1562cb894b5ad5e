//! Part d of the reference data (PEFT's own training step) and the text loss of part a.

#[path = "golden_training/adapter.rs"]
mod adapter;
#[path = "golden_training/half.rs"]
mod half;
#[path = "golden_training/rows.rs"]
mod rows;

use adapter::{
    cases_with, llm_gradients_and_adamw, settings, train_model, values,
    vision_features_loss_and_gradients, with_llm_adapter,
};
use burn::backend::Autodiff;
use burn::train::InferenceStep;
use burn_flex::Flex;
use golden::assert_close;
use rows::samples;
use sq_llava_model::weights::{LoadOptions, load_model};
use sq_llava_model::{Sample, SqLlava};
use sq_llava_train::GradientCheckpointing;
use sq_llava_train::data::batch::MicroBatch;
use sq_llava_train::failure::Failure;
use sq_llava_train::step::groups::Trains;

type Ad = Autodiff<Flex>;

#[test]
fn golden_a_text_loss() {
    let mut compared = 0;
    for case in golden::cases("a_") {
        let Some(expected) = case.json["text_loss"].as_f64() else {
            continue;
        };
        let options = LoadOptions::default();
        let dir = case.folder.join("orig");
        let loaded = load_model::<Flex>(&dir, &options, &Default::default()).expect("loads");
        let failure = Failure::default();
        let mut model = train_model(
            loaded.model,
            Trains::default(),
            GradientCheckpointing::None,
            &failure,
        );
        let samples = samples(&case.tensors, "text_ids", "text_labels", Some("text_mask"));
        for chunk_tokens in [1, 5, 1000] {
            model.context.loss.chunk_tokens = chunk_tokens;
            let report = InferenceStep::step(&model, MicroBatch::whole_step(samples.clone()));
            assert!(failure.take().is_none());
            let loss = report.sums.mean(&settings());
            assert!(
                (loss - expected).abs() < 1e-5,
                "{} in chunks of {chunk_tokens}: {loss} for {expected}",
                case.name
            );
        }
        compared += 1;
    }
    assert!(compared > 0, "no case has a text loss");
}

#[test]
fn golden_d_llm_logits_merged_and_unmerged() {
    for (case, adapter) in cases_with("logits_lora_unmerged") {
        let model = with_llm_adapter::<Flex>(&case, &adapter, &Default::default());
        let width = case.tensors.shape("input_ids")[1];
        let ids = case.tensors.i64("input_ids");
        let logits = |model: &SqLlava<Flex>| -> Vec<f32> {
            ids.chunks_exact(width)
                .flat_map(|ids| {
                    let images = vec![];
                    let row = model
                        .embed(&[Sample { ids, images }])
                        .expect("embeds")
                        .remove(0);
                    values(model.logits(row))
                })
                .collect()
        };
        let unmerged = logits(&model);
        let reference = case.tensors.f64("logits_lora_unmerged");
        assert_close(&case.name, &unmerged, &reference, 2e-4);
        let merged = logits(&model.clone().merge_lora());
        assert_close(
            &case.name,
            &merged,
            &case.tensors.f64("logits_lora_merged"),
            2e-4,
        );
        let same: Vec<f64> = unmerged.iter().map(|v| f64::from(*v)).collect();
        assert_close(&case.name, &merged, &same, 1e-5);
        // … and the adapter does something.
        let base = case.tensors.f64("logits_base");
        assert!(golden::relative_error(&unmerged, &base) > 1e-2);

        // Taking the adapter out again gives the weight back.
        let linear = &model.language_model.model.layers[0].mlp.down_proj;
        let lora = linear.lora.clone().expect("an adapter");
        let back = linear.clone().merge_lora().unmerge_lora(lora);
        let weight = values(linear.weight.val());
        let weight: Vec<f64> = weight.into_iter().map(f64::from).collect();
        assert_close("unmerged weight", &values(back.weight.val()), &weight, 1e-6);
        assert!(back.lora.is_some());
    }
}

#[test]
fn golden_d_llm_gradients_and_adamw() {
    llm_gradients_and_adamw::<Ad>(GradientCheckpointing::None, &Default::default());
}

#[test]
fn golden_d_llm_gradients_and_adamw_with_recompute() {
    llm_gradients_and_adamw::<Ad>(GradientCheckpointing::Blocks, &Default::default());
}

#[test]
fn golden_d_vision_features_loss_and_gradients() {
    vision_features_loss_and_gradients::<Ad>(&Default::default());
}
