//! Pictures of any shape, LLaVA-NeXT's and OneVision's, against transformers.

#![allow(clippy::print_stderr)] // A case that is not built is named.

#[path = "golden_families_anyres/cases.rs"]
mod cases;

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use golden::json;
use sq_llava_data::image::{ImageProcessor, PatchMerge, PreparedImage};
use sq_llava_data::{Ending, Template};
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::weights::{
    Layout, LoadOptions, RunOrigin, SaveOptions, load_model, prepare_llava_hf, save_adapters,
    save_llava_hf_files, save_pretrained,
};
use sq_llava_model::{AnswerOptions, Assistant, AssistantOptions, Request, Sample, SqLlava};

use cases::{Prompt, Seeing, cases};

/// The tolerances of the data, absolute.
const FEATURES: f64 = 5e-5;
const LOGITS: f64 = 2e-4;

fn encoded(model: &SqLlava<Flex>, pictures: &[PreparedImage]) -> Vec<Tensor<Flex, 2>> {
    let pictures: Vec<&PreparedImage> = pictures.iter().collect();
    model.encode_prepared(&pictures).expect("image tokens")
}

fn values(tensor: Tensor<Flex, 2>) -> Vec<f32> {
    tensor.into_data().to_vec().expect("f32 values")
}

fn assert_near(what: &str, found: &[f32], reference: &[f64], tolerance: f64) {
    assert_eq!(found.len(), reference.len(), "{what}");
    assert!(found.iter().all(|value| value.is_finite()), "{what}");
    let far = |(found, wanted): (&f32, &f64)| (f64::from(*found) - wanted).abs();
    let worst = found.iter().zip(reference).map(far).fold(0.0, f64::max);
    assert!(worst <= tolerance, "{what}: {worst:.2e} apart");
}

fn logits(model: &SqLlava<Flex>, ids: &[i64], images: &[Tensor<Flex, 2>]) -> Tensor<Flex, 2> {
    let images = images.to_vec();
    let embedded = model.embed(&[Sample { ids, images }]).expect("embeds");
    model.logits(embedded.into_iter().next().expect("one"))
}

/// All rows against what is stored of them.
fn check_logits(what: &str, prompt: &Prompt<'_>, found: &Tensor<Flex, 2>) {
    let tensors = &prompt.case.tensors;
    let rows = tensors.i64(&prompt.key("logits_rows"));
    let rows = TensorData::from(&rows[..]);
    let rows = Tensor::<Flex, 1, Int>::from_data(rows, &Default::default());
    let picked = values(found.clone().select(0, rows));
    assert_near(what, &picked, &tensors.f64(&prompt.key("logits")), LOGITS);
    let width = found.dims()[1];
    let found = values(found.clone());
    let (mut sums, mut highest) = (Vec::new(), Vec::new());
    for row in found.chunks_exact(width) {
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|v| f64::from(v - most).exp()).sum();
        sums.push((f64::from(most) + sum.ln()) as f32);
        highest.push(row.iter().position(|&v| v == most).expect("one") as i64);
    }
    let reference = tensors.f64(&prompt.key("logsumexp"));
    assert_near(&format!("{what} logsumexp"), &sums, &reference, LOGITS);
    assert_eq!(highest, tensors.i64(&prompt.key("argmax")), "{what}");
}

#[test]
fn golden_tiles_become_transformers_tokens_and_logits() {
    for case in cases() {
        for seeing in case.layouts() {
            let Seeing {
                model, processor, ..
            } = &seeing;
            for prompt in case.prompts() {
                let what = format!("{} {}", seeing.name, prompt.name);
                let images = encoded(model, &prompt.stored(processor));
                for (index, found) in images.iter().enumerate() {
                    let reference = prompt.key(&format!("image_features.{index}"));
                    let reference = case.tensors.f64(&reference);
                    assert_near(&what, &values(found.clone()), &reference, FEATURES);
                }
                let compact = logits(model, &prompt.compact(), &images);
                check_logits(&format!("{what} compact"), &prompt, &compact);
                // Ids of transformers' processor; the original has no such token.
                if model.config.image_token_index.is_some() || images.is_empty() {
                    check_logits(&what, &prompt, &logits(model, &prompt.ids(), &images));
                }
            }
        }
    }
}

#[test]
fn golden_answers_about_picture_files() {
    for case in cases() {
        for seeing in case.layouts() {
            let Seeing {
                model, processor, ..
            } = &seeing;
            let prompts = case.prompts();
            let compact: Vec<Vec<i64>> = prompts.iter().map(Prompt::compact).collect();
            let images: Vec<_> = prompts
                .iter()
                .map(|prompt| encoded(model, &prompt.opened(processor)))
                .collect();
            let samples: Vec<Sample<'_, Flex>> = compact
                .iter()
                .zip(&images)
                .map(|(ids, images)| Sample {
                    ids,
                    images: images.clone(),
                })
                .collect();
            let most = prompts.iter().map(|p| p.greedy().len()).max().expect("one");
            let config = GenerateConfig::greedy(most);
            let mut go_on = |_, _| ControlFlow::Continue(());
            // Pictures of different lengths in one batch, and each prompt as a prefix.
            let together = model
                .generate(&samples, &config, &mut go_on)
                .expect("answers");
            for ((prompt, sample), found) in prompts.iter().zip(&samples).zip(together) {
                let what = format!("{} {}", seeing.name, prompt.name);
                let wanted = prompt.greedy();
                assert_eq!(found.ids[..wanted.len()], wanted, "{what} in a batch");
                let prefix = model.prefix(sample).expect("a prefix");
                let tokens: usize = sample.images.iter().map(|image| image.dims()[0]).sum();
                let text = sample.ids.len() - sample.images.len();
                assert_eq!(prefix.len(), text + tokens, "{what}");
                let again = model.continue_prefix(&prefix, 2, &config, &mut go_on);
                for found in again.expect("answers") {
                    assert_eq!(found.ids[..wanted.len()], wanted, "{what} behind a prefix");
                }
            }
        }
    }
}

/// The merges of the original that transformers does not have.
#[test]
fn golden_tiles_are_joined_flat_and_by_rows() {
    let mut compared = 0;
    for case in cases() {
        let prompts = case.prompts();
        let first = prompts.first().expect("a prompt");
        for merge in [PatchMerge::Flat, PatchMerge::Spatial] {
            let key = first.key(&format!("image_features_{}", merge.name()));
            if !case.tensors.contains(&key) {
                continue;
            }
            // As the original's config.json says it.
            let source = case.dir.join("orig");
            let folder = tempfile::tempdir().expect("a folder");
            for path in golden::entries(&source) {
                let copy = folder.path().join(golden::file_name(&path));
                std::fs::copy(&path, copy).expect("copied");
            }
            let mut config = json(&source.join("config.json"));
            config["mm_patch_merge_type"] = merge.name().into();
            let path = folder.path().join("config.json");
            std::fs::write(path, config.to_string()).expect("written");
            let mut options = case.options();
            let refused = load_model::<Flex>(folder.path(), &options, &Default::default());
            let refused = refused.map(|_| ()).expect_err("a newline without a place");
            assert!(refused.to_string().contains("image_newline"), "{refused}");
            options.allow_unused = true;
            let loaded = load_model::<Flex>(folder.path(), &options, &Default::default());
            let loaded = loaded.expect("a model");
            let beside = loaded.files.preprocessor.expect("a processor");
            let processor = loaded.model.config.image_processor(&beside).expect("it");
            let processor = ImageProcessor::new(processor).expect("a processor");
            let found = encoded(&loaded.model, &first.stored(&processor)).remove(0);
            assert_near(&key, &values(found), &case.tensors.f64(&key), FEATURES);
            compared += 1;
        }
    }
    assert!(compared > 0, "no case with the original's merges");
}

/// Releases mostly say "llava" and let the class tell the language model.
#[test]
fn golden_configurations_of_releases() {
    let mut compared = 0;
    for case in cases() {
        let source = case.dir.join("orig");
        let release = source.join("config.release.json");
        if !release.is_file() {
            continue;
        }
        let folder = tempfile::tempdir().expect("a folder");
        for path in golden::entries(&source) {
            let copy = folder.path().join(golden::file_name(&path));
            std::fs::copy(&path, copy).expect("copied");
        }
        std::fs::copy(&release, folder.path().join("config.json")).expect("copied");
        let seeing = case.load(folder.path()).expect("a model");
        let own = case.load(&source).expect("a model");
        assert_eq!(seeing.model.config, own.model.config);
        compared += 1;
    }
    assert!(compared > 0, "no release");
}

fn saved(seeing: &Seeing, layout: Layout, dir: &Path) {
    let options = SaveOptions {
        dtype: burn::tensor::FloatDType::F32,
        layout,
        ..SaveOptions::default()
    };
    save_pretrained(&seeing.model, dir, &options).expect("saved");
    let processor = seeing.processor.config();
    let path = dir.join("preprocessor_config.json");
    processor.write(&path).expect("written");
}

#[test]
fn golden_both_layouts_survive_a_round_trip() {
    for case in cases() {
        for mut seeing in case.layouts() {
            // The token stands in the embedding, though the original does not name it.
            seeing.model.config.image_token_index = case.json["image_token_id"].as_i64();
            for layout in [Layout::Original, Layout::LlavaHf] {
                let folder = tempfile::tempdir().expect("a folder");
                saved(&seeing, layout, folder.path());
                let again = case.load(folder.path()).expect("loads again");
                let (ours, theirs) = (&again.model.config, &seeing.model.config);
                assert_eq!(ours.anyres, theirs.anyres, "{} {layout:?}", seeing.name);
                assert_eq!(ours.llama, theirs.llama, "{} {layout:?}", seeing.name);
                let prompts = case.prompts();
                for prompt in [&prompts[0], prompts.last().expect("one")] {
                    let what = format!("{} {layout:?} {}", seeing.name, prompt.name);
                    let images = encoded(&again.model, &prompt.stored(&again.processor));
                    let found = logits(&again.model, &prompt.compact(), &images);
                    check_logits(&what, prompt, &found);
                }
            }
        }
    }
}

/// An export for transformers says what theirs says: class, tokens and treatment of pictures.
#[test]
fn golden_exports_have_transformers_processor() {
    for case in cases() {
        let dir = case.dir.join("model");
        let options = AssistantOptions {
            template: Some(Template::V1.into()),
            ..AssistantOptions::default()
        };
        let loaded = Assistant::<Flex>::load(&dir, &options, &Default::default());
        let (mut assistant, _) = loaded.expect("an assistant");
        let (model, tokenizer) = (&mut assistant.model, &mut assistant.tokenizer);
        prepare_llava_hf(model, tokenizer).expect("the token has a row");
        let folder = tempfile::tempdir().expect("a folder");
        let processor = assistant.processor.as_ref().expect("a processor");
        let (config, tokenizer) = (&assistant.model.config, &assistant.tokenizer);
        save_llava_hf_files(
            folder.path(),
            config,
            tokenizer,
            processor,
            &Template::V1.into(),
        )
        .expect("saved");
        let ours = json(&folder.path().join("processor_config.json"));
        let pictures = json(&folder.path().join("preprocessor_config.json"));
        let theirs = json(&dir.join("processor_config.json"));
        for (key, value) in theirs.as_object().expect("an object") {
            let what = format!("{}: {key}", dir.display());
            match key.as_str() {
                "image_processor" => {
                    for (key, value) in value.as_object().expect("an object") {
                        assert_eq!(pictures.get(key), Some(value), "{what}.{key}");
                    }
                }
                // Videos are not taken: what their processor asks for is there.
                "video_processor" => {
                    let class = "video_processor_type";
                    assert_eq!(ours[key][class], value[class], "{what}");
                }
                "video_token" => {}
                _ => assert_eq!(ours.get(key), Some(value), "{what}"),
            }
        }
        let options = SaveOptions {
            layout: Layout::LlavaHf,
            ..SaveOptions::default()
        };
        save_pretrained(&assistant.model, folder.path(), &options).expect("saved");
        let ours = json(&folder.path().join("config.json"));
        let theirs = json(&dir.join("config.json"));
        for key in [
            "architectures",
            "model_type",
            "image_grid_pinpoints",
            "image_token_index",
            "vision_aspect_ratio",
            "vision_feature_layer",
            "vision_feature_select_strategy",
            "tie_word_embeddings",
        ] {
            assert_eq!(ours.get(key), theirs.get(key), "{}: {key}", dir.display());
        }
    }
}

/// What training changed lies in a directory of its own; its newline counts, not the base's.
#[test]
fn golden_runs_bring_their_newline() {
    for case in cases() {
        let Seeing {
            name,
            model,
            processor,
        } = case.model();
        let Some(newline) = model.image_newline.clone() else {
            continue;
        };
        let base = model.clone();
        let mut changed = model.with_llm_lora(&LoraConfig::llm(2, 4.0, 0.0));
        changed.image_newline = Some(newline.map(|newline| newline.mul_scalar(-1.5)));
        let folder = tempfile::tempdir().expect("a folder");
        save_adapters(&changed, folder.path(), &RunOrigin::default()).expect("saved");
        let options = LoadOptions {
            base: Some(case.dir.join("model")),
            ..LoadOptions::default()
        };
        let again = load_model::<Flex>(folder.path(), &options, &Default::default());
        let again = again.expect("a run").model;
        let prompts = case.prompts();
        let pictures = prompts[0].stored(&processor);
        let of = |model: &SqLlava<Flex>| {
            let images = encoded(model, &pictures);
            values(logits(model, &prompts[0].compact(), &images))
        };
        let wanted: Vec<f64> = of(&changed).iter().map(|&v| v.into()).collect();
        assert_near(&name, &of(&again), &wanted, 1e-6);
        let before = of(&base).into_iter().zip(&wanted);
        let moved = before.map(|(a, b)| (f64::from(a) - b).abs());
        assert!(moved.fold(0.0, f64::max) > 1e-2, "{name}");
    }
}

/// From a question and a picture's file to ids, where a template of ours writes the prompt.
#[test]
fn golden_assistant_answers_about_pictures_of_any_shape() {
    let mut compared = 0;
    for case in cases() {
        let options = AssistantOptions {
            template: Some(Template::V1.into()),
            ..AssistantOptions::default()
        };
        let dir = case.dir.join("model");
        let loaded = Assistant::<Flex>::load(&dir, &options, &Default::default());
        let (assistant, _) = loaded.expect("an assistant");
        for prompt in case.prompts() {
            let text = prompt.json["messages"][0]["content"].as_array();
            let mut parts = text.into_iter().flatten();
            let Some(question) = parts.find_map(|part| part["text"].as_str()) else {
                continue;
            };
            let images = assistant.open_images(&prompt.files()).expect("pictures");
            let mut conversation = assistant.conversation();
            conversation.push_images(images.len()).push_user(question);
            let request = Request {
                conversation: &conversation,
                ending: Ending::Answer,
                images: &images,
            };
            let wanted = prompt.greedy();
            let options = AnswerOptions {
                max_new_tokens: wanted.len(),
                ..AnswerOptions::default()
            };
            let answer = assistant.answer(&request, &options, &mut |_| {});
            let answer = answer.expect("an answer");
            if answer.input_ids != prompt.compact() {
                continue;
            }
            let what = format!("{} {}", dir.display(), prompt.name);
            assert_eq!(
                wanted[..answer.output_ids.len()],
                answer.output_ids,
                "{what}"
            );
            compared += 1;
        }
    }
    assert!(
        compared > 0 || std::env::var_os("SQ_LLAVA_GOLDEN_FAMILIES").is_some(),
        "no prompt that a template of ours writes"
    );
}
