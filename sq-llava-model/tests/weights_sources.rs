//! Which files of a directory count, and weights that stand there twice.

mod weights;

use std::path::{Path, PathBuf};

use burn::tensor::FloatDType;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use sq_llava_model::SqLlavaConfig;
use sq_llava_model::weights::{
    LoadOptions, RunOrigin, SaveOptions, init_random, save_adapters, save_pretrained,
};
use weights::*;

/// Saves a text model drawn from `seed`.
fn save(dir: &Path, seed: u64, max_shard_bytes: u64) {
    let config = SqLlavaConfig::preset("tiny").unwrap();
    let model = SqLlavaConfig::new(config.llama).init::<B>(&Default::default());
    let model = init_random(model.unwrap(), FloatDType::F32, seed).unwrap();
    let options = SaveOptions {
        dtype: FloatDType::F32,
        max_shard_bytes,
        ..SaveOptions::default()
    };
    save_pretrained(&model, dir, &options).unwrap();
}

/// Moves the files of one directory into another.
fn add(from: &Path, to: &Path) {
    for path in golden::entries(from) {
        std::fs::copy(&path, to.join(golden::file_name(&path))).unwrap();
    }
}

#[test]
fn fault_05_one_file_counts_before_an_index() {
    let [shards, single, both] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    save(shards.path(), 1, 60_000);
    save(single.path(), 2, u64::MAX);
    add(shards.path(), both.path());
    add(single.path(), both.path());
    let expected = load(single.path(), &LoadOptions::default());
    let loaded = load(both.path(), &LoadOptions::default());
    assert_equal("both", &loaded.model, &expected.model);

    // The index of shards that are gone keeps nobody from the file beside it.
    for path in golden::entries(both.path()) {
        if golden::file_name(&path).contains("-of-") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let loaded = load(both.path(), &LoadOptions::default());
    assert_equal("a stale index", &loaded.model, &expected.model);
}

#[test]
fn fault_05_the_order_is_that_of_transformers() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weights_data");
    let dir = tempfile::tempdir().unwrap();
    // An index of PyTorch's shards, then one file of PyTorch's beside it …
    copy(&data.join("shards"), dir.path(), &|_| true);
    let config = std::fs::read(dir.path().join("config.json")).unwrap();
    let shards = load(dir.path(), &LoadOptions::default());
    let broken = dir.path().join("pytorch_model.bin");
    let reads = |name: &str| {
        let message = load_error(dir.path(), &LoadOptions::default());
        assert!(message.contains(name), "{message}");
    };
    std::fs::write(&broken, "x").unwrap();
    reads("pytorch_model.bin");
    // … then an index of safetensors, then one file of safetensors.
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, "{}").unwrap();
    reads("model.safetensors.index.json");
    std::fs::write(dir.path().join("model.safetensors"), "x").unwrap();
    reads("model.safetensors:");
    for path in [broken, index, dir.path().join("model.safetensors")] {
        std::fs::remove_file(path).unwrap();
    }
    assert_eq!(
        std::fs::read(dir.path().join("config.json")).unwrap(),
        config
    );
    let again = load(dir.path(), &LoadOptions::default());
    assert_equal("shards", &again.model, &shards.model);
}

/// A directory with the tensors of `from` and one more: `key`, the values of `of` times `factor`.
fn with_copy(from: &Path, key: &str, of: &str, factor: f32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "vision_config.json"] {
        if from.join(name).is_file() {
            std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
        }
    }
    let file = dir.path().join("model.safetensors");
    rewrite(from, &file, |key| Some(key.to_string()));
    let bytes = std::fs::read(&file).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = parsed.tensor(of).unwrap();
    let values: Vec<u8> = view
        .data()
        .chunks_exact(4)
        .flat_map(|b| (factor * f32::from_le_bytes(b.try_into().unwrap())).to_le_bytes())
        .collect();
    let mut tensors = parsed.tensors();
    let copy = TensorView::new(Dtype::F32, view.shape().to_vec(), &values).unwrap();
    tensors.push((key.to_string(), copy));
    safetensors::serialize_to_file(tensors, None, &file).unwrap();
    dir
}

#[test]
fn fault_06_a_weight_under_two_keys_must_be_the_same() {
    let orig = golden::base_folder("", None).join("orig");
    let expected = load(&orig, &LoadOptions::default());
    for (key, of) in [
        (
            "language_model.model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_proj.weight",
        ),
        (
            "model.multi_modal_projector.linear_1.weight",
            "model.mm_projector.0.weight",
        ),
        (
            "vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias",
            "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias",
        ),
        ("language_model.lm_head.weight", "lm_head.weight"),
    ] {
        let same = with_copy(&orig, key, of, 1.0);
        let loaded = load(same.path(), &LoadOptions::default());
        assert_equal(key, &loaded.model, &expected.model);
        assert_eq!(loaded.report.ignored.len(), 1, "{}", loaded.report);
        let other = with_copy(&orig, key, of, 1.5);
        let message = load_error(other.path(), &LoadOptions::default());
        assert!(message.contains(key) && message.contains(of), "{message}");
    }
}

#[test]
fn fault_06_a_key_in_two_shards_must_be_the_same() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 3, 60_000);
    let files = safetensors_in(dir.path());
    let append = |factor: f32| {
        let bytes = std::fs::read(&files[0]).unwrap();
        let (name, values) = {
            let first = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let (name, view) = first.iter().next().unwrap();
            let scaled = view
                .data()
                .chunks_exact(4)
                .flat_map(|b| (factor * f32::from_le_bytes(b.try_into().unwrap())).to_le_bytes());
            let tensor = (view.shape().to_vec(), scaled.collect::<Vec<u8>>());
            (name.to_string(), tensor)
        };
        let whole = std::fs::read(&files[1]).unwrap();
        let second = safetensors::SafeTensors::deserialize(&whole).unwrap();
        let mut tensors = second.tensors();
        tensors.retain(|(key, _)| *key != name);
        let view = TensorView::new(Dtype::F32, values.0.clone(), &values.1).unwrap();
        tensors.push((name.clone(), view));
        safetensors::serialize_to_file(tensors, None, &files[1]).unwrap();
        name
    };
    append(1.0);
    load(dir.path(), &LoadOptions::default());
    let name = append(2.0);
    let message = load_error(dir.path(), &LoadOptions::default());
    assert!(message.contains(&name), "{message}");
    assert!(message.contains(&golden::file_name(&files[0])), "{message}");
}

#[test]
fn fault_06_a_factor_of_an_adapter_must_be_the_same() {
    let base = golden::base_folder("", None).join("orig");
    let adapter: PathBuf = golden::folders("d_")[0].join("llm_adapter");
    let of = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight";
    for (factor, fails) in [(1.0, false), (1.5, true)] {
        let made = with_copy(&adapter, key, of, factor);
        let run = tempfile::tempdir().unwrap();
        copy(&adapter, run.path(), &|name| name == "adapter_config.json");
        std::fs::copy(
            made.path().join("model.safetensors"),
            run.path().join("adapter_model.safetensors"),
        )
        .unwrap();
        match fails {
            false => drop(load(run.path(), &on_base(&base))),
            true => {
                let message = load_error(run.path(), &on_base(&base));
                assert!(message.contains(key), "{message}");
            }
        }
    }
}

#[test]
fn fault_03_a_tower_with_weights_that_clip_lacks_is_refused() {
    let orig = golden::base_folder("", None).join("orig");
    let tower = tempfile::tempdir().unwrap();
    let prefix = "model.vision_tower.vision_tower.";
    rewrite(&orig, &tower.path().join("model.safetensors"), |key| {
        key.strip_prefix(prefix).map(|rest| {
            let norm = "vision_model.post_layernorm.";
            rest.replace(norm, "vision_model.head.layernorm.")
        })
    });
    let vision = golden::json(&orig.join("vision_config.json"));
    std::fs::write(tower.path().join("config.json"), vision.to_string()).unwrap();
    let llm = tempfile::tempdir().unwrap();
    rewrite(&orig, &llm.path().join("model.safetensors"), |key| {
        (!key.starts_with(prefix)).then(|| key.to_string())
    });
    std::fs::copy(orig.join("config.json"), llm.path().join("config.json")).unwrap();
    let options = LoadOptions {
        vision: Some(tower.path().to_path_buf()),
        ..LoadOptions::default()
    };
    let message = load_error(llm.path(), &options);
    assert!(message.contains("vision_model.head.layernorm"), "{message}");
    let options = LoadOptions {
        allow_unused: true,
        ..options
    };
    assert_eq!(load(llm.path(), &options).report.unexpected.len(), 2);
}

#[test]
fn fault_04_an_adapter_that_peft_would_leave_out_is_refused() {
    let base = golden::base_folder("", None).join("orig");
    let adapter = golden::folders("d_")[0].join("llm_adapter");
    for (option, value, named) in [
        ("target_modules", json!(["q_proj"]), "target_modules"),
        ("layers_to_transform", json!([0]), "layers.1"),
        ("exclude_modules", json!(["up_proj"]), "up_proj"),
        ("init_lora_weights", json!("pissa"), "init_lora_weights"),
        ("init_lora_weights", json!("olora"), "init_lora_weights"),
        ("made_up", json!(true), "made_up"),
    ] {
        let run = tempfile::tempdir().unwrap();
        copy(&adapter, run.path(), &|name| name.starts_with("adapter_"));
        let path = run.path().join("adapter_config.json");
        let mut config = golden::json(&path);
        config[option] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let message = load_error(run.path(), &on_base(&base));
        assert!(message.contains(named), "{message}");
    }
}

/// A run of the tensors of `adapters` (the directory of each, and where it comes to lie) that
/// `keep` wants.
fn run_of(adapters: &[(&Path, &str)], keep: impl Fn(&str) -> bool) -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    for (adapter, place) in adapters {
        let place = run.path().join(place);
        copy(adapter, &place, &|name| name == "adapter_config.json");
        let file = place.join("adapter_model.safetensors");
        rewrite(adapter, &file, |key| keep(key).then(|| key.to_string()));
    }
    run
}

/// PEFT warns of such an adapter, and leaves the linears as they are.
#[test]
fn fault_04_an_adapter_without_factors_that_it_names_is_refused() {
    let base = golden::base_folder("", None).join("orig");
    let folder = &golden::folders("d_")[0];
    let (llm, vision) = (folder.join("llm_adapter"), folder.join("vit_adapter"));
    let whole = [(llm.as_path(), ""), (vision.as_path(), "Vit-lora")];
    load(run_of(&whole, |_| true).path(), &on_base(&base));

    let message = load_error(run_of(&whole[..1], |_| false).path(), &on_base(&base));
    assert!(message.contains("no tensors"), "{message}");
    let run = run_of(&whole[..1], |key| !key.contains("layers.1.mlp.up_proj"));
    let message = load_error(run.path(), &on_base(&base));
    let first = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight";
    for part in ["2 tensors", first, "target_modules"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let run = run_of(&whole, |key| !key.contains("encoder.layers.0."));
    let message = load_error(run.path(), &on_base(&base));
    for part in [
        "Vit-lora",
        "12 tensors",
        "encoder.layers.0.self_attn.q_proj",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // Nothing reads the layer behind the one whose features are taken.
    let layers = golden::json(&base.join("vision_config.json"));
    let last = format!(
        "encoder.layers.{}.",
        layers["num_hidden_layers"].as_u64().unwrap() - 1
    );
    load(
        run_of(&whole, |key| !key.contains(&last)).path(),
        &on_base(&base),
    );

    // What the file says that is left out may be missing.
    let run = run_of(&whole[..1], |key| !key.contains("layers.1."));
    assert!(load_error(run.path(), &on_base(&base)).contains("14 tensors"));
    let path = run.path().join("adapter_config.json");
    let mut config = golden::json(&path);
    config["layers_to_transform"] = json!([0, 2]);
    std::fs::write(&path, config.to_string()).unwrap();
    let partial = load(run.path(), &on_base(&base));
    // Saved again, it says so itself.
    let again = tempfile::tempdir().unwrap();
    save_adapters(&partial.model, again.path(), &RunOrigin::default()).unwrap();
    let loaded = load(again.path(), &on_base(&base));
    assert_equal("saved again", &partial.model, &loaded.model);
}
