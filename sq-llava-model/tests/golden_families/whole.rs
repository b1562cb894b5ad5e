//! Whole models of today's families against transformers.

use std::path::Path;

use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use burn_flex::Flex;
use golden::{Value, assert_close};
use serde_json::json;
use sq_llava_data::image::ImageProcessor;
use sq_llava_model::config::{Family, ProjectorConfig, PrototypeConfig, VisionFamily};
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::weights::{
    FreshParts, Layout, LoadOptions, SaveOptions, load_model, save_pretrained, save_vision_tower,
};
use sq_llava_model::{IMAGE_TOKEN_INDEX, Sample, SqLlava};

use super::vision::rewrite;
use super::{Case, all, built, load, text, values};

/// Whole models whose parts are built; others must be refused.
fn whole_models() -> Vec<Case> {
    let is_built = |_: &Path, json: &Value| {
        json["family"] == "llava"
            && VisionFamily::of(text(json, "vision")).is_some()
            && Family::of(text(json, "text")).is_some()
    };
    built("vlm", is_built, |_| String::new())
}

#[test]
fn golden_whole_models_see_and_answer() {
    for case in whole_models() {
        for layout in ["model", "hub", "v4_52"] {
            let dir = case.dir.join(layout);
            if dir.is_dir() {
                let model = load::<Flex>(&dir, None);
                answers_as_transformers(&case, &model, layout, Ids::Placeholders);
            }
        }
    }
}

/// How ids say where a picture stands.
#[derive(Clone, Copy, PartialEq)]
enum Ids {
    /// A token of the vocabulary, once for each feature.
    Placeholders,
    /// LLaVA's own: one id outside the vocabulary.
    Original,
}

/// The prompt's ids with one id for each picture.
fn with_original_places(case: &Case, prompt: &Value, ids: &[i64]) -> Vec<i64> {
    let placeholder = case.json["image_token_id"].as_i64().expect("an id");
    let mut counts = prompt["image_tokens"].as_array().into_iter().flatten();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < ids.len() {
        if ids[at] != placeholder {
            found.push(ids[at]);
            at += 1;
            continue;
        }
        found.push(IMAGE_TOKEN_INDEX);
        let count = counts.next().and_then(Value::as_u64).expect("a count");
        at += count as usize;
    }
    found
}

/// Compares a model with a case on all its prompts.
fn answers_as_transformers(case: &Case, model: &SqLlava<Flex>, layout: &str, ids: Ids) {
    for prompt in case.json["prompts"].as_array().expect("prompts") {
        answers_to(case, model, prompt, layout, ids);
    }
}

fn answers_to(case: &Case, model: &SqLlava<Flex>, prompt: &Value, layout: &str, ids: Ids) {
    let name = prompt["name"].as_str().expect("a name");
    let what = format!("{} {layout} {name}", case.name());
    let key = |part: &str| format!("{name}.{part}");
    let mut images = Vec::new();
    if case.tensors.contains(&key("pixel_values")) {
        let shape: [usize; 4] = case
            .tensors
            .shape(&key("pixel_values"))
            .try_into()
            .expect("four");
        let data = TensorData::new(case.tensors.f32(&key("pixel_values")), shape);
        let pixels = Tensor::<Flex, 4>::from_data(data, &Default::default());
        images = model.encode_images(pixels).expect("features");
    }
    for (index, features) in images.iter().enumerate() {
        let reference = case.tensors.f64(&key(&format!("image_features.{index}")));
        assert_close(&what, &values(features.clone()), &reference, 5e-5);
    }
    let mut sequence = case.ids(&key("input_ids"));
    if ids == Ids::Original {
        sequence = with_original_places(case, prompt, &sequence);
    }
    let ids = sequence;
    let sample = Sample { ids: &ids, images };
    let embeddings = model
        .embed(std::slice::from_ref(&sample))
        .expect("embeds")
        .remove(0);
    let rows = case.ids(&key("logits_rows"));
    let rows = Tensor::<Flex, 1, Int>::from_data(
        TensorData::new(rows.clone(), [rows.len()]),
        &Default::default(),
    );
    let found = model.logits(embeddings).select(0, rows);
    assert_close(
        &what,
        &values(found),
        &case.tensors.f64(&key("logits")),
        2e-4,
    );
    let greedy = prompt["greedy"]["ids_without_stopping"]
        .as_array()
        .expect("ids");
    let greedy: Vec<i64> = greedy
        .iter()
        .map(|id| id.as_i64().expect("an id"))
        .collect();
    let config = GenerateConfig::greedy(greedy.len());
    let mut go_on = |_, _| std::ops::ControlFlow::Continue(());
    let found = model
        .generate(&[sample], &config, &mut go_on)
        .expect("answers");
    assert_eq!(found[0].ids, greedy, "{what}");
}

fn save(model: &SqLlava<Flex>, dir: &Path, layout: Layout) {
    let options = SaveOptions {
        dtype: FloatDType::F32,
        layout,
        ..SaveOptions::default()
    };
    save_pretrained(model, dir, &options).expect("saved");
}

#[test]
fn golden_whole_models_answer_the_same_from_both_layouts_that_we_write() {
    for case in whole_models() {
        let model = load::<Flex>(&case.dir.join("model"), None);
        let dir = tempfile::tempdir().expect("a folder");
        for (layout, ids) in [
            (Layout::Original, Ids::Original),
            (Layout::LlavaHf, Ids::Placeholders),
        ] {
            let name = format!("{layout:?}");
            let out = dir.path().join(&name);
            save(&model, &out, layout);
            let again = load::<Flex>(&out, None);
            assert_eq!(again.config.vision, model.config.vision, "{name}");
            assert_eq!(again.config.select_layers, model.config.select_layers);
            answers_as_transformers(&case, &again, &name, ids);
        }
    }
}

/// LLaVA's own code deletes the last layer of a SigLIP tower and takes its last hidden state, all
/// patches of it, whatever the configuration says.
#[test]
fn golden_siglip_as_the_original_code_takes_it() {
    let mut compared = 0;
    for case in whole_models() {
        let mut model = load::<Flex>(&case.dir.join("model"), None);
        let is_last = (
            model.config.select_layers.as_slice(),
            model.config.tokens_per_image(),
        );
        let vision = model.config.vision.clone().expect("a tower");
        if vision.family != VisionFamily::Siglip || is_last != (&[-1], vision.num_patches()) {
            continue;
        }
        compared += 1;
        let dir = tempfile::tempdir().expect("a folder");
        let [inside, apart, tower] = ["inside", "apart", "tower"].map(|name| dir.path().join(name));
        save(&model, &inside, Layout::Original);
        let mut config = golden::json(&inside.join("config.json"));
        let keys = config.as_object_mut().expect("an object");
        keys.remove("vision_config");
        keys.insert("mm_vision_tower".into(), json!("some/siglip"));
        keys.insert("mm_vision_select_layer".into(), json!(-2));
        keys.insert("mm_vision_select_feature".into(), json!("patch"));
        std::fs::create_dir(&apart).expect("a folder");
        for place in [&inside, &apart] {
            std::fs::write(place.join("config.json"), config.to_string()).expect("written");
        }
        let (from, to) = (
            inside.join("model.safetensors"),
            apart.join("model.safetensors"),
        );
        rewrite(&from, &to, |name| {
            (!name.contains("vision_tower")).then(|| name.to_owned())
        });
        // The tower as it is published has the layer that is deleted.
        let mut published = model.vision_tower.take().expect("a tower");
        let layers = &mut published.encoder.layers;
        layers.push(layers[0].clone());
        let layers = layers.len();
        let sizes = vision.with_num_hidden_layers(layers);
        save_vision_tower(&published, &sizes, &tower, FloatDType::F32).expect("saved");
        for (name, place) in [("inside", &inside), ("apart", &apart)] {
            let options = LoadOptions {
                vision: Some(tower.clone()),
                ..LoadOptions::default()
            };
            let loaded = load_model::<Flex>(place, &options, &Default::default());
            let loaded = loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(loaded.report.is_clean(), "{name}: {}", loaded.report);
            answers_as_transformers(&case, &loaded.model, name, Ids::Original);
        }
    }
    assert!(compared > 0, "no SigLIP whose last layer is taken");
}

/// A language model with a tower beside it: SigLIP gives all its patches, and its processor
/// prepares the pictures.
#[test]
fn golden_language_models_with_a_siglip_tower_beside_them() {
    let is_built = |case: &Case| Family::of(text(&case.json, "family")).is_some();
    let llm = all("llm")
        .into_iter()
        .find(is_built)
        .expect("a language model");
    let mut compared = 0;
    for case in all("vision") {
        if text(&case.json, "family") != VisionFamily::Siglip.model_type() {
            continue;
        }
        compared += 1;
        let dir = tempfile::tempdir().expect("a folder");
        for path in golden::entries(&case.dir.join("model")) {
            std::fs::copy(&path, dir.path().join(golden::file_name(&path))).expect("copied");
        }
        let side = case.tensors.shape("pixel_values")[3];
        let processor = json!({"image_processor_type": "SiglipImageProcessor",
            "size": {"height": side, "width": side}});
        let path = dir.path().join("preprocessor_config.json");
        std::fs::write(path, processor.to_string()).expect("written");
        let options = LoadOptions {
            vision: Some(dir.path().to_path_buf()),
            select_layers: Some(vec![-2, -1]),
            fresh: Some(FreshParts {
                projector: ProjectorConfig::from_name("mlp2x_gelu", None).expect("known"),
                prototype: Some(PrototypeConfig::new(1).with_num_centers(3)),
            }),
            ..LoadOptions::default()
        };
        let base = llm.dir.join("model");
        let loaded = load_model::<Flex>(&base, &options, &Default::default()).expect("loads");
        let config = &loaded.model.config;
        let vision = config.vision.as_ref().expect("a tower");
        assert!(!vision.pooling_head, "no feature passes through it");
        assert_eq!(config.tokens_per_image(), vision.num_patches());
        assert_eq!(config.feature_width(), Some(2 * vision.hidden_size));
        let folder = loaded.files.preprocessor.expect("a processor");
        assert_eq!(folder, dir.path());
        let processor = ImageProcessor::from_dir(&folder, Some("pad")).expect("a processor");
        assert_eq!(processor.input_size(), (side as u32, side as u32));
        assert_eq!(processor.config().image_mean, [0.5; 3]);

        let shape: [usize; 4] = case.tensors.shape("pixel_values").try_into().expect("four");
        let data = TensorData::new(case.tensors.f32("pixel_values"), shape);
        let pixels = Tensor::<Flex, 4>::from_data(data, &Default::default());
        let features = loaded
            .model
            .vision_features(pixels.clone())
            .expect("features");
        let [images, tokens, width] = features.dims();
        for (place, layer) in ["llava_patch_features_-2", "llava_patch_features_-1"]
            .into_iter()
            .enumerate()
        {
            let part = features.clone().narrow(2, place * width / 2, width / 2);
            assert_close(layer, &values(part), &case.tensors.f64(layer), 5e-5);
        }
        let seen = loaded.model.encode_images(pixels).expect("image tokens");
        assert_eq!((seen.len(), seen[0].dims()[0]), (images, tokens));
    }
    assert!(compared > 0, "no SigLIP");
}
