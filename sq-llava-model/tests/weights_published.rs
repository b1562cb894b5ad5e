//! The directories that SQ-LLaVA publishes, and what they stand on.

mod weights;

use std::path::Path;

use safetensors::SafeTensors;
use sq_llava_model::weights::LoadOptions;
use weights::*;

/// How the released training names the copies of the vision adapters among those of the LLM.
const NESTED: [&str; 4] = [
    "base_model.model.model.vision_tower.vision_tower.vision_model.",
    "base_model.model.model.vision_tower.vision_tower.base_model.model.vision_model.",
    "base_model.model.model.vision_tower.base_model.model.vision_tower.vision_model.",
    "base_model.model.model.vision_tower.vision_tower.base_model.model.vision_tower.vision_model.",
];

/// Copies a run, with its vision adapters once more in `adapter_model.safetensors`, every value of
/// them through `change`.
fn published(
    run: &Path,
    to: &Path,
    prefix: &str,
    adapter: &str,
    change: impl Fn(f32) -> f32,
) -> Vec<String> {
    copy(run, to, &|name| !name.ends_with(".bin"));
    let own = std::fs::read(run.join("adapter_model.safetensors")).unwrap();
    let vision = std::fs::read(run.join("Vit-lora/adapter_model.safetensors")).unwrap();
    let own = SafeTensors::deserialize(&own).unwrap();
    let vision = SafeTensors::deserialize(&vision).unwrap();
    let changed: Vec<(String, Vec<usize>, Vec<u8>)> = vision
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let (_, rest) = name.split_once("encoder.").expect("a layer");
            let rest = rest.replace(".weight", &format!("{adapter}.weight"));
            let values = view.data().chunks_exact(4).flat_map(|four| {
                change(f32::from_le_bytes(four.try_into().unwrap())).to_le_bytes()
            });
            let name = format!("{prefix}encoder.{rest}");
            (name, view.shape().to_vec(), values.collect())
        })
        .collect();
    let copies = changed.iter().map(|(name, shape, bytes)| {
        let dtype = safetensors::Dtype::F32;
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap();
        (name.clone(), view)
    });
    let all: Vec<_> = own.tensors().into_iter().chain(copies).collect();
    safetensors::serialize_to_file(all, None, &to.join("adapter_model.safetensors")).unwrap();
    changed.into_iter().map(|(name, ..)| name).collect()
}

#[test]
fn fault_01_vision_adapters_among_those_of_the_llm_are_left_alone() {
    for run in golden::folders("a2_") {
        let base = base_of(&run);
        let expected = load(&run, &on_base(&base));
        for prefix in NESTED {
            for adapter in ["", ".default"] {
                let dir = tempfile::tempdir().unwrap();
                // Other values: those of Vit-lora/ count.
                let copies = published(&run, dir.path(), prefix, adapter, |v| v + 1.0);
                let loaded = load(dir.path(), &on_base(&base));
                assert!(loaded.report.is_clean(), "{}", loaded.report);
                assert_equal(prefix, &loaded.model, &expected.model);
                assert_eq!(strengths(&loaded.model), strengths(&expected.model));
                for key in &copies {
                    assert!(loaded.report.ignored.contains(key), "{key}");
                }
            }
        }
    }
}

#[test]
fn fault_01_vision_adapters_alone_among_those_of_the_llm_have_their_own_rank() {
    for run in golden::folders("a2_") {
        let base = base_of(&run);
        let expected = load(&run, &on_base(&base));
        for prefix in NESTED {
            let dir = tempfile::tempdir().unwrap();
            published(&run, dir.path(), prefix, "", |v| v);
            std::fs::remove_dir_all(dir.path().join("Vit-lora")).unwrap();
            let loaded = load(dir.path(), &on_base(&base));
            assert!(loaded.report.is_clean(), "{}", loaded.report);
            assert_equal(prefix, &loaded.model, &expected.model);
            // Alpha is twice the rank here, as Vit-lora/ says, and the report says so.
            assert_eq!(strengths(&loaded.model), strengths(&expected.model));
            let [note] = loaded.report.notes.as_slice() else {
                panic!("{:?}", loaded.report.notes);
            };
            assert!(note.contains("rank 4") && note.contains('8'), "{note}");
            assert!(loaded.report.to_string().contains(note));
        }
    }
}

#[test]
fn fault_01_an_alpha_that_the_file_says_counts() {
    for run in golden::folders("a2_") {
        let base = base_of(&run);
        let dir = tempfile::tempdir().unwrap();
        published(&run, dir.path(), NESTED[0], "", |v| v);
        std::fs::remove_dir_all(dir.path().join("Vit-lora")).unwrap();
        let path = dir.path().join("adapter_config.json");
        let mut config = golden::json(&path);
        for name in ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"] {
            for layer in 0..4 {
                let group = if name.starts_with("fc") {
                    "mlp"
                } else {
                    "self_attn"
                };
                let module = format!("vision_model.encoder.layers.{layer}.{group}.{name}");
                config["alpha_pattern"][module] = 2.into();
            }
        }
        std::fs::write(&path, config.to_string()).unwrap();
        let loaded = load(dir.path(), &on_base(&base));
        assert!(loaded.report.notes.is_empty(), "{}", loaded.report);
        let tower = loaded.model.vision_tower.as_ref().unwrap();
        let lora = tower.encoder.layers[0].mlp.fc1.lora.as_ref().unwrap();
        assert_eq!(lora.scaling, 0.5);
    }
}

/// `adapter_config.json` describes the LLM's adapters: linears of the same name in the tower may
/// have none.
#[test]
fn fault_01_the_targets_of_the_llm_are_not_those_of_the_tower() {
    for run in golden::folders("a2_") {
        let (dir, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        published(&run, dir.path(), NESTED[0], "", |v| v);
        std::fs::remove_dir_all(dir.path().join("Vit-lora")).unwrap();
        let file = dir.path().join("adapter_model.safetensors");
        std::fs::copy(&file, whole.path().join("adapter_model.safetensors")).unwrap();
        rewrite(whole.path(), &file, |key| {
            let left_out = key.contains("vision_tower") && key.contains("k_proj");
            (!left_out).then(|| key.to_string())
        });
        let loaded = load(dir.path(), &on_base(&base_of(&run)));
        assert!(loaded.report.is_clean(), "{}", loaded.report);
    }
}

#[test]
fn fault_01_another_rank_of_the_llm_stays_an_error() {
    for run in golden::folders("a2_") {
        let base = base_of(&run);
        let dir = tempfile::tempdir().unwrap();
        published(&run, dir.path(), NESTED[0], "", |v| v);
        let path = dir.path().join("adapter_config.json");
        let mut config = golden::json(&path);
        config["r"] = 16.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let message = load_error(dir.path(), &on_base(&base));
        assert!(message.contains("rank 16"), "{message}");
    }
}

/// Scalings of the adapters of one layer of each tower.
fn strengths(model: &sq_llava_model::SqLlava<B>) -> [f64; 2] {
    let llm = &model.language_model.model.layers[0].self_attn.o_proj;
    let tower = model.vision_tower.as_ref().expect("a tower");
    let vision = &tower.encoder.layers[0].self_attn.q_proj;
    [llm, vision].map(|linear| linear.lora.as_ref().expect("an adapter").scaling)
}

#[test]
fn fault_02_share4v_loads_as_llava_with_its_tower_inside_or_beside() {
    let dir = golden::base_folder("", None).join("orig");
    let expected = load(&dir, &LoadOptions::default());
    let mut config = golden::json(&dir.join("config.json"));
    config["model_type"] = "share4v".into();
    config["architectures"] = serde_json::json!(["Share4VLlamaForCausalLM"]);
    config["mm_vision_tower"] = "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12".into();

    // Inside, with its sizes beside.
    let inside = tempfile::tempdir().unwrap();
    copy(&dir, inside.path(), &|name| !name.ends_with(".bin"));
    std::fs::write(inside.path().join("config.json"), config.to_string()).unwrap();
    let loaded = load(inside.path(), &LoadOptions::default());
    assert!(loaded.report.is_clean(), "{}", loaded.report);
    assert_equal("inside", &loaded.model, &expected.model);

    // In a directory of its own, and lent by the whole model.
    let (llm, tower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    rewrite(&dir, &llm.path().join("model.safetensors"), |key| {
        (!key.contains("vision_tower")).then(|| key.to_string())
    });
    std::fs::write(llm.path().join("config.json"), config.to_string()).unwrap();
    rewrite(&dir, &tower.path().join("model.safetensors"), |key| {
        key.strip_prefix("model.vision_tower.vision_tower.")
            .map(Into::into)
    });
    let vision = golden::json(&dir.join("vision_config.json"));
    std::fs::write(tower.path().join("config.json"), vision.to_string()).unwrap();
    for vision in [tower.path(), inside.path()] {
        let options = LoadOptions {
            vision: Some(vision.to_path_buf()),
            ..LoadOptions::default()
        };
        let loaded = load(llm.path(), &options);
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        assert_equal("beside", &loaded.model, &expected.model);
    }
    // Neither: the message names the tower.
    let message = load_error(llm.path(), &LoadOptions::default());
    assert!(message.contains("ShareGPT4V-7B_Pretrained"), "{message}");
}
