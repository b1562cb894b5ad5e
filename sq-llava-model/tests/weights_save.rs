//! What is saved loads to the same model.

mod weights;

use std::collections::BTreeMap;
use std::path::Path;

use burn::backend::Autodiff;
use burn::tensor::{FloatDType, Tensor, TensorData};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sq_llava_model::config::{ClusterConfig, ProjectorConfig};
use sq_llava_model::language::llama::NewTokens;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::weights::{
    FreshParts, Layout, LoadOptions, RunOrigin, SaveOptions, init_random, load_model,
    save_adapters, save_pretrained, save_tensors, save_vision_tower,
};
use sq_llava_model::{ModelError, SqLlava, SqLlavaConfig};
use weights::*;

fn random(config: &SqLlavaConfig, seed: u64) -> SqLlava<B> {
    let model = config.init::<B>(&Default::default()).unwrap();
    init_random(model, FloatDType::F32, seed).unwrap()
}

fn preset() -> SqLlavaConfig {
    SqLlavaConfig::preset("tiny").unwrap()
}

fn f32_in(layout: Layout, max_shard_bytes: u64) -> SaveOptions {
    SaveOptions {
        dtype: FloatDType::F32,
        max_shard_bytes,
        layout,
    }
}

#[test]
fn whole_models_survive_in_both_layouts_and_any_shards() {
    let plain = SqLlavaConfig {
        prototype: None,
        image_token_index: Some(319),
        ..preset()
    };
    let cluster = SqLlavaConfig {
        projector: ProjectorConfig::Cluster(ClusterConfig::new().with_num_latents(5)),
        ..plain.clone()
    };
    let linear = SqLlavaConfig {
        projector: ProjectorConfig::Linear { bias: true },
        ..plain.clone()
    };
    let mut bare = plain.clone();
    if let Some(vision) = &mut bare.vision {
        (
            vision.pre_layernorm,
            vision.patch_bias,
            vision.post_layernorm,
        ) = (false, true, false);
    }
    let text = SqLlavaConfig::new(plain.llama.clone());
    for (config, layout) in [
        (plain.clone(), Layout::Original),
        (plain, Layout::LlavaHf),
        (bare, Layout::LlavaHf),
        (preset(), Layout::Original),
        (cluster, Layout::Original),
        (linear, Layout::Original),
        (text, Layout::Original),
    ] {
        for limit in [u64::MAX, 100_000, 1] {
            let (model, dir) = (random(&config, 3), tempfile::tempdir().unwrap());
            let files = save_pretrained(&model, dir.path(), &f32_in(layout, limit)).unwrap();
            assert_eq!(files.len() == 1, limit == u64::MAX);
            for file in &files {
                let shard = golden::Tensors::read(file);
                let sizes: Vec<u64> = shard
                    .names()
                    .map(|name| 4 * shard.shape(name).iter().product::<usize>() as u64)
                    .collect();
                // A tensor that is larger than the limit stands alone.
                assert!(
                    sizes.len() == 1 || sizes.iter().sum::<u64>() <= limit,
                    "{sizes:?}"
                );
            }
            let left = |name: &str| name.ends_with(".tmp");
            assert!(
                !golden::entries(dir.path())
                    .iter()
                    .any(|p| left(&golden::file_name(p)))
            );
            let loaded = load(dir.path(), &LoadOptions::default());
            assert!(loaded.report.is_clean(), "{}", loaded.report);
            assert_equal("saved", &model, &loaded.model);
            assert_eq!(loaded.model.config.projector, config.projector);
            assert_eq!(loaded.model.config.vision, config.vision);
        }
    }
}

#[test]
fn llava_hf_cannot_hold_a_prototype_extractor() {
    let dir = tempfile::tempdir().unwrap();
    let options = f32_in(Layout::LlavaHf, u64::MAX);
    let error = save_pretrained(&random(&preset(), 0), dir.path(), &options).unwrap_err();
    assert!(error.to_string().contains("original layout"), "{error}");
}

#[test]
fn nothing_is_overwritten_or_saved_half() {
    let (model, dir) = (random(&preset(), 0), tempfile::tempdir().unwrap());
    let options = f32_in(Layout::Original, u64::MAX);
    save_pretrained(&model, dir.path(), &options).unwrap();
    let error = save_pretrained(&model, dir.path(), &options).unwrap_err();
    assert!(
        error.to_string().contains("already holds a model"),
        "{error}"
    );

    let adapted = model.with_llm_lora(&LoraConfig::llm(2, 4.0, 0.0));
    let other = tempfile::tempdir().unwrap();
    let error = save_pretrained(&adapted, other.path(), &options).unwrap_err();
    assert!(error.to_string().contains("merge"), "{error}");
    assert!(golden::entries(other.path()).is_empty());
}

/// Numbers that are not zero in a tensor's place.
fn numbers<const D: usize>(tensor: Tensor<B, D>, scale: f32) -> Tensor<B, D> {
    let shape = tensor.dims();
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|i| scale * ((i % 17) as f32 - 8.0))
        .collect();
    Tensor::from_data(TensorData::new(values, shape), &tensor.device())
}

/// A base, a tower and a model trained on them, with everything that a run can change.
fn trained(place: &Path, tied: bool) -> (SqLlava<B>, RunOrigin) {
    let mut config = preset();
    config.llama.tie_word_embeddings = tied;
    let whole = random(&config, 5);
    let (llm, clip) = (place.join("llm"), place.join("clip"));
    let all = place.join("all");
    save_pretrained(&whole, &all, &f32_in(Layout::Original, u64::MAX)).unwrap();
    for dir in [&llm, &clip] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let is_llm = |key: &str| {
        !["vision_tower", "mm_projector", "prototype"]
            .iter()
            .any(|part| key.contains(part))
    };
    rewrite(&all, &llm.join("model.safetensors"), |key| {
        is_llm(key).then(|| key.to_string())
    });
    rewrite(&all, &clip.join("model.safetensors"), |key| {
        key.strip_prefix("model.vision_tower.vision_tower.")
            .map(Into::into)
    });
    let written = golden::json(&all.join("config.json"));
    let text = SqLlavaConfig::new(config.llama.clone()).to_hf();
    std::fs::write(llm.join("config.json"), text.to_string()).unwrap();
    std::fs::write(
        clip.join("config.json"),
        written["vision_config"].to_string(),
    )
    .unwrap();

    let mut model = whole
        .with_llm_lora(&LoraConfig::llm(4, 8.0, 0.05))
        .with_vision_lora(&LoraConfig::vision(2, 6.0, 0.2));
    let layer = &mut model.language_model.model.layers[1];
    let lora = layer.self_attn.o_proj.lora.as_mut().unwrap();
    lora.b = lora.b.clone().map(|b| numbers(b, 0.01));
    let tower = model.vision_tower.as_mut().unwrap();
    let lora = tower.encoder.layers[2].mlp.fc2.lora.as_mut().unwrap();
    lora.b = lora.b.clone().map(|b| numbers(b, 0.02));
    let start = config.llama.vocab_size;
    let new = NewTokens::init(&model.language_model, start, 4, 9);
    model.language_model.new_tokens = Some(new);
    model.config.new_tokens_start = Some(start);
    model.config.conversation = Some("sq".into());
    // Draws what is still lazy: clones of a lazy parameter would each draw their own.
    parameters(&model);
    let origin = RunOrigin {
        base: Some(llm.display().to_string()),
        vision: Some(clip.display().to_string()),
    };
    (model, origin)
}

#[test]
fn run_directories_survive() {
    for tied in [false, true] {
        let place = tempfile::tempdir().unwrap();
        let (model, origin) = trained(place.path(), tied);
        let run = place.path().join("run");
        save_adapters(&model, &run, &origin).unwrap();
        // A second time over the first, as checkpoints of a run are.
        save_adapters(&model, &run, &origin).unwrap();
        // Base and tower are found by the paths in the run; the flags say the same.
        for options in [
            LoadOptions::default(),
            LoadOptions {
                base: Some(place.path().join("llm")),
                vision: Some(place.path().join("clip")),
                ..LoadOptions::default()
            },
        ] {
            let loaded = load(&run, &options);
            assert!(loaded.report.is_clean(), "{}", loaded.report);
            assert_equal("run", &model, &loaded.model);
            assert_eq!(loaded.model.config, model.config);
            let new = loaded.model.language_model.new_tokens.as_ref().unwrap();
            assert_eq!(new.start, model.config.llama.vocab_size);
            assert_eq!(new.lm_head.is_none(), tied);
            let (before, after) = (
                &model.language_model.model,
                &loaded.model.language_model.model,
            );
            let lora = |m: &sq_llava_model::language::llama::LlamaModel<B>| {
                let lora = m.layers[2].mlp.down_proj.lora.clone().unwrap();
                (lora.scaling, lora.dropout, lora.index)
            };
            assert_eq!(lora(before), lora(after));
        }
        // A model without adapters does not leave the old ones beside its projector.
        let plain = SqLlava {
            language_model: random(&preset(), 1).language_model,
            ..model
        };
        let error = save_adapters(&plain, &run, &origin).unwrap_err();
        assert!(matches!(error, ModelError::Weights { .. }), "{error}");
    }
}

#[test]
fn a_merged_run_is_a_whole_model_with_longer_tables() {
    for tied in [false, true] {
        let place = tempfile::tempdir().unwrap();
        let (model, _) = trained(place.path(), tied);
        let merged = model.clone().merge_lora();
        let out = place.path().join("merged");
        save_pretrained(&merged, &out, &f32_in(Layout::Original, u64::MAX)).unwrap();
        let loaded = load(&out, &LoadOptions::default());
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        let config = &loaded.model.config;
        assert_eq!(config.llama.vocab_size, model.config.llama.vocab_size + 4);
        assert_eq!(config.new_tokens_start, model.config.new_tokens_start);
        assert!(loaded.model.language_model.new_tokens.is_none());
        // The same logits, role tokens included.
        let logits = |model: &SqLlava<B>| {
            let ids: Vec<i64> = vec![1, 5, 320, 7, 321, 9, 322, 323];
            let sample = sq_llava_model::Sample {
                ids: &ids,
                images: vec![],
            };
            let embedded = model.embed(&[sample]).unwrap().remove(0);
            model.logits(embedded).into_data().to_vec::<f32>().unwrap()
        };
        let (before, after) = (logits(&model), logits(&loaded.model));
        let reference: Vec<f64> = before.iter().map(|&v| f64::from(v)).collect();
        golden::assert_close("logits", &after, &reference, 1e-5);
    }
}

#[test]
fn training_starts_from_new_parts_with_a_frozen_base() {
    let place = tempfile::tempdir().unwrap();
    let (model, _) = trained(place.path(), false);
    let options = LoadOptions {
        dtype: FloatDType::F16,
        vision: Some(place.path().join("clip")),
        trainable_f32: true,
        freeze_base: true,
        fresh: Some(FreshParts {
            projector: model.config.projector.clone(),
            prototype: model.config.prototype.clone(),
        }),
        ..LoadOptions::default()
    };
    let device = Default::default();
    let llm = place.path().join("llm");
    let loaded = load_model::<Autodiff<B>>(&llm, &options, &device).unwrap();
    assert!(loaded.report.is_clean(), "{}", loaded.report);
    // φ's q, k, v, z and centres, and two linears.
    assert_eq!(
        loaded.report.fresh.len(),
        9 + 4,
        "{:?}",
        loaded.report.fresh
    );
    let model = loaded.model;
    let frozen = model.language_model.model.norm.weight.val();
    assert_eq!(frozen.dtype(), FloatDType::F16.into());
    assert!(!frozen.is_require_grad());
    let prototype = model.prototype.as_ref().unwrap();
    let trained = prototype.q.weight.val();
    assert_eq!(trained.dtype(), FloatDType::F32.into());
    assert!(trained.is_require_grad());
    assert!(!prototype.centers.val().is_require_grad());
}

#[test]
fn random_weights_repeat_and_have_their_deviation() {
    let (one, two) = (random(&preset(), 1), random(&preset(), 1));
    assert_equal("same seed", &one, &two);
    let values = parameters(&one);
    assert_ne!(values, parameters(&random(&preset(), 2)));
    let table = &values["language_model.model.embed_tokens.weight"];
    let mean: f32 = table.iter().sum::<f32>() / table.len() as f32;
    let square: f32 = table.iter().map(|v| v * v).sum::<f32>() / table.len() as f32;
    assert!(mean.abs() < 5e-4, "{mean}");
    assert!((square.sqrt() - 0.02).abs() < 5e-4, "{}", square.sqrt());
    assert!(
        values["language_model.model.norm.weight"]
            .iter()
            .all(|v| *v == 1.0)
    );
}

#[test]
fn a_tower_alone_lies_beside_a_language_model() {
    let config = SqLlavaConfig {
        prototype: None,
        ..preset()
    };
    let whole = random(&config, 3);
    let dir = tempfile::tempdir().unwrap();
    let (llm, vision) = (dir.path().join("llm"), dir.path().join("vision"));
    let text = random(&SqLlavaConfig::new(config.llama.clone()), 4);
    save_pretrained(&text, &llm, &f32_in(Layout::Original, u64::MAX)).unwrap();
    let tower = whole.vision_tower.as_ref().unwrap();
    let sizes = config.vision.as_ref().unwrap();
    save_vision_tower(tower, sizes, &vision, FloatDType::F32).unwrap();
    let options = LoadOptions {
        vision: Some(vision.clone()),
        fresh: Some(FreshParts {
            projector: config.projector.clone(),
            prototype: None,
        }),
        ..LoadOptions::default()
    };
    let loaded = load_model::<B>(&llm, &options, &Default::default()).unwrap();
    assert_eq!(loaded.model.config.vision, config.vision);
    let side = sizes.image_size;
    let pixels: Vec<f32> = (0..3 * side * side)
        .map(|i| (i % 17) as f32 / 9.0 - 1.0)
        .collect();
    let features = |model: &SqLlava<B>| {
        let pixels = model.pixels(&[&pixels]).unwrap();
        model.vision_features(pixels).unwrap().into_data()
    };
    assert_eq!(features(&loaded.model), features(&whole));

    let again = save_vision_tower(tower, sizes, &vision, FloatDType::F32).unwrap_err();
    assert!(again.to_string().contains("already holds"), "{again}");
    let adapted = whole.with_vision_lora(&LoraConfig::vision(2, 4.0, 0.0));
    let tower = adapted.vision_tower.as_ref().unwrap();
    let error = save_vision_tower(tower, sizes, &dir.path().join("x"), FloatDType::F32);
    assert!(error.unwrap_err().to_string().contains("adapters"));
}

/// Every file below a directory.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for path in golden::entries(dir) {
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.push((golden::file_name(&path), std::fs::read(&path).unwrap()));
        }
    }
    found
}

#[test]
fn fault_29_equal_models_are_saved_in_equal_bytes() {
    let mut model = random(&preset(), 3)
        .with_llm_lora(&LoraConfig::llm(2, 4.0, 0.0))
        .with_vision_lora(&LoraConfig::vision(2, 4.0, 0.0));
    let new = NewTokens::init(&model.language_model, 320, 4, 1);
    model.language_model.new_tokens = Some(new);
    let runs: Vec<_> = (0..8)
        .map(|_| {
            let dir = tempfile::tempdir().unwrap();
            save_adapters(&model, dir.path(), &RunOrigin::default()).unwrap();
            contents(dir.path())
        })
        .collect();
    assert!(
        runs[0]
            .iter()
            .any(|(name, _)| name == "new_tokens.safetensors")
    );
    assert!(runs.iter().all(|files| *files == runs[0]));
}

#[test]
fn fault_29_metadata_is_written_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let values = [1.0f32, 2.0].map(f32::to_le_bytes).concat();
    let view = TensorView::new(Dtype::F32, vec![2], &values).unwrap();
    let metadata: BTreeMap<String, String> = (0..64)
        .map(|i| (format!("key {i}"), i.to_string()))
        .collect();
    let save = |name: &str| {
        let path = dir.path().join(name);
        save_tensors(&path, [("a", view.clone()), ("b", view.clone())], &metadata).unwrap();
        std::fs::read(path).unwrap()
    };
    let bytes = save("one.safetensors");
    assert_eq!(bytes, save("two.safetensors"));
    // It is a safetensors file.
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(parsed.names().len(), 2);
    assert_eq!(parsed.tensor("b").unwrap().data(), values);
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let read = header.metadata().clone().unwrap();
    assert_eq!(read.into_iter().collect::<BTreeMap<_, _>>(), metadata);
    // That of the crate, byte for byte, where its order is no accident.
    let one = [("format".to_string(), "pt".to_string())];
    let path = dir.path().join("three.safetensors");
    save_tensors(
        &path,
        [("b", view.clone()), ("a", view.clone())],
        &one.clone().into(),
    )
    .unwrap();
    let tensors = [("a", view.clone()), ("b", view.clone())];
    let crates = safetensors::serialize(tensors, Some(one.into())).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), crates);
}

#[test]
fn fault_27_saving_leaves_no_temporary_files() {
    let dir = tempfile::tempdir().unwrap();
    let model = random(&preset(), 3);
    save_pretrained(&model, dir.path(), &f32_in(Layout::Original, 60_000)).unwrap();
    let names = |dir: &Path| {
        let entries = golden::entries(dir).into_iter();
        entries
            .map(|path| golden::file_name(&path))
            .collect::<Vec<_>>()
    };
    assert!(names(dir.path()).iter().all(|name| !name.ends_with(".tmp")));
    // A folder where a file should come to lie: an error, and nothing is left of the others.
    let blocked = tempfile::tempdir().unwrap();
    std::fs::create_dir(blocked.path().join("config.json")).unwrap();
    let failed = save_pretrained(&model, blocked.path(), &f32_in(Layout::Original, 60_000));
    assert!(failed.unwrap_err().to_string().contains("config.json"));
    assert_eq!(names(blocked.path()), ["config.json"]);
}
