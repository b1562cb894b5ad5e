//! Vision towers of today's families against transformers.

use std::path::Path;

use burn::tensor::{FloatDType, Tensor, TensorData};
use burn_flex::Flex;
use golden::{Tensors, Value, assert_close};
use sq_llava_model::config::{SelectFeature, VisionConfig, VisionFamily};
use sq_llava_model::vision::tower::VisionTower;
use sq_llava_model::weights::{LoadedTower, load_vision_tower, save_vision_tower};

use super::{Case, text, values};

/// Cases of towers; a family that is not built must be refused by name.
fn cases() -> Vec<Case> {
    let mut found = Vec::new();
    for case in super::all("vision") {
        let family = text(&case.json, "family").to_owned();
        if VisionFamily::of(&family).is_some() {
            found.push(case);
            continue;
        }
        let message = refused(&case.dir.join("model"));
        assert!(message.contains(&family), "{message}");
    }
    assert!(!found.is_empty(), "no vision tower among the families");
    found
}

fn load(dir: &Path) -> LoadedTower<Flex> {
    match load_vision_tower(dir, FloatDType::F32, false, &Default::default()) {
        Ok(loaded) => {
            let report = &loaded.report;
            assert!(report.is_clean(), "{}: {report}", dir.display());
            loaded
        }
        Err(error) => panic!("{}: {error}", dir.display()),
    }
}

fn refused(dir: &Path) -> String {
    let loaded = load_vision_tower::<Flex>(dir, FloatDType::F32, false, &Default::default());
    loaded.map(|_| ()).expect_err("not built").to_string()
}

fn pixels(case: &Case) -> Tensor<Flex, 4> {
    let shape: [usize; 4] = case.tensors.shape("pixel_values").try_into().expect("four");
    let data = TensorData::new(case.tensors.f32("pixel_values"), shape);
    Tensor::from_data(data, &Default::default())
}

/// Compares everything that the case holds of a tower.
fn compare(what: &str, case: &Case, tower: &VisionTower<Flex>, config: &VisionConfig) {
    let close = |name: &str, found: Vec<f32>| {
        let reference = case.tensors.f64(name);
        assert_close(&format!("{what} {name}"), &found, &reference, 5e-5);
    };
    let states = tower.hidden_states(pixels(case));
    for (index, state) in states.iter().enumerate() {
        close(&format!("hidden_{index}"), values(state.clone()));
    }
    let last = match config.family {
        VisionFamily::Clip => states[states.len() - 1].clone(),
        VisionFamily::Siglip | VisionFamily::Dinov2 => tower.last_normed(pixels(case)),
    };
    close("last_hidden_state", values(last));
    let pooled = tower.pooled(pixels(case)).expect("a pooled output");
    close("pooler_output", values(pooled));
    let select = match config.class_token {
        true => SelectFeature::Patch,
        false => SelectFeature::ClsPatch,
    };
    for back in [1, 2] {
        let layers = [states.len() - back];
        let features = tower.features(pixels(case), &layers, select);
        close(&format!("llava_patch_features_-{back}"), values(features));
    }
}

#[test]
fn golden_towers_hidden_states_and_pooled_outputs() {
    for case in cases() {
        let LoadedTower { tower, config, .. } = load(&case.dir.join("model"));
        assert_eq!(config.family.model_type(), text(&case.json, "family"));
        let tokens = &case.json["tokens"];
        assert_eq!(tokens["class_token"], config.class_token, "{}", case.name());
        compare(&case.name(), &case, &tower, &config);
    }
}

/// The tensors of a file, with their keys by `rename`; `None` leaves one out.
pub fn rewrite(from: &Path, to: &Path, rename: impl Fn(&str) -> Option<String>) {
    let bytes = std::fs::read(from).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensors = file.tensors().into_iter();
    let renamed = tensors.filter_map(|(name, view)| Some((rename(&name)?, view)));
    safetensors::serialize_to_file(renamed, None, to).expect("written");
}

/// A tower has other keys alone, inside a whole CLIP or SigLIP, and inside each LLaVA, and its
/// configuration leaves out what is usual.
#[test]
fn golden_towers_under_every_name_that_they_have() {
    for case in cases() {
        let source = case.dir.join("model");
        let weights = source.join("model.safetensors");
        let family = load(&source).config.family;
        let hub = golden::json(&case.dir.join("config.hub.json"));
        let alone = match hub.get("vision_config") {
            Some(inner) => inner.clone(),
            None => hub.clone(),
        };
        let mut prefixes = vec!["", "vision_tower.", "model.vision_tower.vision_tower."];
        if family.whole().is_some() {
            prefixes.extend([
                "vision_model.",
                "vision_tower.vision_model.",
                "model.vision_tower.vision_model.",
                "model.vision_tower.vision_tower.vision_model.",
            ]);
        }
        let mut twins: Vec<(String, Value, Option<&str>)> = vec![("hub".into(), hub, None)];
        for prefix in prefixes {
            twins.push((prefix.to_owned(), alone.clone(), Some(prefix)));
        }
        for (kind, config, prefix) in twins {
            let dir = tempfile::tempdir().expect("a folder");
            rewrite(&weights, &dir.path().join("model.safetensors"), |name| {
                let Some(prefix) = prefix else {
                    return Some(name.to_owned());
                };
                let whole = [
                    "text_model.",
                    "logit_",
                    "text_projection.",
                    "visual_projection.",
                ];
                let inner = name.strip_prefix("vision_model.").unwrap_or(name);
                let other = whole.iter().any(|part| name.starts_with(part));
                (!other).then(|| format!("{prefix}{inner}"))
            });
            std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
            let twin = load(dir.path());
            let what = format!("{} {kind}", case.name());
            compare(&what, &case, &twin.tower, &twin.config);
        }
    }
}

#[test]
fn golden_towers_that_are_saved_have_the_keys_of_their_family() {
    for case in cases() {
        let source = case.dir.join("model");
        let LoadedTower { tower, config, .. } = load(&source);
        let dir = tempfile::tempdir().expect("a folder");
        save_vision_tower(&tower, &config, dir.path(), FloatDType::F32).expect("saved");
        let again = load(dir.path());
        assert_eq!(again.config, config, "{}", case.name());
        compare(&case.name(), &case, &again.tower, &again.config);

        let original = Tensors::read(&source.join("model.safetensors"));
        let written = Tensors::read(&dir.path().join("model.safetensors"));
        let prefix = config.family.whole().map_or("", |_| "vision_model.");
        let mut compared = 0;
        for name in written.names() {
            let inner = name.strip_prefix(prefix).expect("the prefix");
            let source = match original.contains(inner) {
                true => inner,
                false => name,
            };
            assert_eq!(written.shape(name), original.shape(source), "{name}");
            assert_eq!(written.f32(name), original.f32(source), "{name}");
            compared += 1;
        }
        let tower_keys = original.names().filter(|name| {
            let other = [
                "text_",
                "logit_",
                "visual_projection.",
                "embeddings.mask_token",
            ];
            !other.iter().any(|part| name.starts_with(part))
        });
        assert_eq!(compared, tower_keys.count(), "{}", case.name());
    }
}

#[test]
fn towers_of_other_kinds_are_refused_by_name() {
    let case = cases().remove(0);
    for kind in [
        "siglip2_vision_model",
        "siglip2",
        "dinov2_with_registers",
        "vit",
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let weights = case.dir.join("model/model.safetensors");
        std::fs::copy(weights, dir.path().join("model.safetensors")).expect("copied");
        let config = serde_json::json!({"model_type": kind});
        std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
        let message = refused(dir.path());
        for word in [kind, "siglip_vision_model", "config.json"] {
            assert!(message.contains(word), "{message}");
        }
    }
}

/// DINOv2 on pictures that are larger and smaller than those of its configuration
/// (`scripts/dinov2_positions.py`).
#[test]
fn golden_positions_of_dinov2_for_other_sizes() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let reference = Tensors::read(&here.join("tests/fixtures/dinov2_positions.safetensors"));
    let model = here.join("../golden/data/families/vision_dinov2/model");
    for side in [28, 70] {
        let LoadedTower {
            mut tower,
            mut config,
            ..
        } = load(&model);
        tower.resize_positions(&mut config, side);
        assert_eq!(config.image_size, side);
        assert_eq!(config.tokens(), 1 + (side / 14) * (side / 14));
        let key = |name: &str| format!("{side}.{name}");
        let shape: [usize; 4] = reference.shape(&key("pixels")).try_into().expect("four");
        let data = TensorData::new(reference.f32(&key("pixels")), shape);
        let pixels = || Tensor::<Flex, 4>::from_data(data.clone(), &Default::default());
        let close = |name: &str, found: Vec<f32>| {
            assert_close(&key(name), &found, &reference.f64(&key(name)), 5e-5);
        };
        close("hidden_0", values(tower.hidden_state(pixels(), 0)));
        close("last_hidden_state", values(tower.last_normed(pixels())));
    }
    // Other towers take one size.
    for case in cases() {
        let mut loaded = load(&case.dir.join("model"));
        let before = loaded.config.clone();
        let side = before.image_size + before.patch_size;
        loaded.tower.resize_positions(&mut loaded.config, side);
        let same = before.image_size == loaded.config.image_size;
        assert_eq!(same, before.family != VisionFamily::Dinov2);
    }
}
