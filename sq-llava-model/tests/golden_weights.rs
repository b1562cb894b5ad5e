//! Checkpoints of the reference data load completely, and every weight is the file's.

mod weights;

use std::path::{Path, PathBuf};

use golden::Tensors;
use sq_llava_model::weights::{LoadOptions, RunOrigin, save_adapters};
use weights::*;

fn checkpoints(layout: &str) -> Vec<PathBuf> {
    golden::folders("a_")
        .iter()
        .map(|folder| folder.join(layout))
        .filter(|dir| dir.is_dir())
        .collect()
}

fn originals() -> Vec<PathBuf> {
    let dirs = checkpoints("orig");
    assert!(!dirs.is_empty(), "no checkpoint in the original layout");
    dirs
}

#[test]
fn golden_a_original_layout_loads_every_tensor() {
    for dir in originals() {
        let loaded = load(&dir, &LoadOptions::default());
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        assert_same("orig", &loaded.model, &read_all(&dir));
    }
}

#[test]
fn golden_a_llava_hf_layout_loads_every_tensor() {
    // The folder hf/ may be absent; then the same keys are made from orig/.
    for dir in checkpoints("hf") {
        let loaded = load(&dir, &LoadOptions::default());
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        assert_same("hf", &loaded.model, &read_all(&dir));
    }
    for dir in originals() {
        assert_renamed(&dir, hf_config, |key| Some(old_prefixes(key)));
    }
}

#[test]
fn golden_a_llava_hf_layout_of_newer_transformers_loads() {
    for dir in originals() {
        assert_renamed(&dir, hf_config, |key| Some(new_prefixes(key)));
        // transformers 5 leaves the inner name of the vision model out.
        assert_renamed(&dir, hf_config, |key| {
            Some(new_prefixes(key).replace("vision_model.", ""))
        });
    }
}

fn old_prefixes(key: &str) -> String {
    let key = key
        .replace("model.vision_tower.vision_tower.", "vision_tower.")
        .replace("model.mm_projector.0.", "multi_modal_projector.linear_1.")
        .replace("model.mm_projector.2.", "multi_modal_projector.linear_2.");
    if key.starts_with("model.") || key.starts_with("lm_head.") {
        return format!("language_model.{key}");
    }
    key
}

fn new_prefixes(key: &str) -> String {
    let key = old_prefixes(key);
    if let Some(rest) = key.strip_prefix("language_model.model.") {
        return format!("model.language_model.{rest}");
    }
    if let Some(rest) = key.strip_prefix("language_model.lm_head.") {
        return format!("lm_head.{rest}");
    }
    format!("model.{key}")
}

/// The config.json of llava-hf for an original one.
fn hf_config(dir: &Path) -> golden::Value {
    let mut text = golden::json(&dir.join("config.json"));
    text["model_type"] = "llama".into();
    let vision = golden::json(&dir.join("vision_config.json"));
    let mut config = golden::Value::Object(Default::default());
    config["model_type"] = "llava".into();
    config["text_config"] = text;
    config["vision_config"] = vision;
    config
}

/// Loads a copy with other keys, and compares it with the original.
fn assert_renamed(
    dir: &Path,
    config: impl Fn(&Path) -> golden::Value,
    rename: impl Fn(&str) -> Option<String>,
) {
    let copy = tempfile::tempdir().unwrap();
    rewrite(dir, &copy.path().join("model.safetensors"), &rename);
    std::fs::write(copy.path().join("config.json"), config(dir).to_string()).unwrap();
    let loaded = load(copy.path(), &LoadOptions::default());
    assert!(loaded.report.is_clean(), "{}", loaded.report);
    assert_equal(
        "renamed",
        &loaded.model,
        &load(dir, &LoadOptions::default()).model,
    );
}

#[test]
fn golden_a_llm_and_clip_in_directories_of_their_own_load() {
    for dir in originals() {
        let scratch = tempfile::tempdir().unwrap();
        let (llm, clip) = (scratch.path().join("llm"), scratch.path().join("clip"));
        for folder in [&llm, &clip] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let is_llm = |key: &str| !key.contains("vision_tower") && !key.contains("mm_projector");
        rewrite(&dir, &llm.join("model.safetensors"), |key| {
            is_llm(key).then(|| key.to_string())
        });
        // A whole CLIP: its text half is not needed.
        rewrite(&dir, &clip.join("model.safetensors"), |key| match key {
            "model.norm.weight" => Some("text_model.final_layer_norm.weight".into()),
            "lm_head.weight" => Some("visual_projection.weight".into()),
            _ => key
                .strip_prefix("model.vision_tower.vision_tower.")
                .map(Into::into),
        });
        let mut config = golden::json(&dir.join("config.json"));
        config["model_type"] = "llama".into();
        config
            .as_object_mut()
            .unwrap()
            .retain(|key, _| !key.starts_with("mm_"));
        std::fs::write(llm.join("config.json"), config.to_string()).unwrap();
        let mut clip_config = golden::Value::Object(Default::default());
        clip_config["model_type"] = "clip".into();
        clip_config["text_config"] = golden::Value::Object(Default::default());
        clip_config["vision_config"] = golden::json(&dir.join("vision_config.json"));
        std::fs::write(clip.join("config.json"), clip_config.to_string()).unwrap();

        // The language model alone is a text model.
        let text = load(&llm, &LoadOptions::default());
        assert!(text.report.is_clean(), "{}", text.report);
        assert!(text.model.vision_tower.is_none());

        // With the tower, and the projector from its file.
        let options = LoadOptions {
            vision: Some(clip.clone()),
            projector: Some(dir.join("mm_projector.bin")),
            ..LoadOptions::default()
        };
        let loaded = load(&llm, &options);
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        assert_eq!(loaded.report.ignored.len(), 2);
        let whole = load(&dir, &LoadOptions::default());
        assert_equal("three places", &loaded.model, &whole.model);

        // Without a projector the error names its keys.
        let options = LoadOptions {
            projector: None,
            ..options
        };
        let message = load_error(&llm, &options);
        assert!(message.contains("mm_projector.0.weight"), "{message}");
    }
}

#[test]
fn golden_a_projector_file_of_pytorch_equals_the_checkpoint() {
    for dir in originals() {
        let copy = tempfile::tempdir().unwrap();
        rewrite(&dir, &copy.path().join("model.safetensors"), |key| {
            (!key.contains("mm_projector")).then(|| key.to_string())
        });
        for name in ["config.json", "vision_config.json", "mm_projector.bin"] {
            std::fs::copy(dir.join(name), copy.path().join(name)).unwrap();
        }
        let loaded = load(copy.path(), &LoadOptions::default());
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        let whole = load(&dir, &LoadOptions::default());
        assert_equal("mm_projector.bin", &loaded.model, &whole.model);
    }
}

/// Copies of a run: as it is, without its PyTorch files, without its safetensors files.
fn variants(run: &Path) -> Vec<(tempfile::TempDir, &'static str)> {
    ["", ".bin", ".safetensors"]
        .into_iter()
        .map(|without| {
            let dir = tempfile::tempdir().unwrap();
            copy(run, dir.path(), &|name| {
                without.is_empty() || !name.ends_with(without)
            });
            (dir, without)
        })
        .collect()
}

/// The base's tensors without its projector, which is of another kind.
fn base_without_projector(base: &Path) -> Tensors {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("model.safetensors");
    rewrite(base, &file, |key| {
        (!key.contains("mm_projector")).then(|| key.to_string())
    });
    Tensors::read(&file)
}

#[test]
fn golden_a2_run_directory_loads_from_either_kind_of_file() {
    for run in golden::folders("a2_") {
        let base = base_of(&run);
        let files = [
            base_without_projector(&base),
            Tensors::read(&run.join("non_lora_trainables.safetensors")),
            Tensors::read(&run.join("adapter_model.safetensors")),
            Tensors::read(&run.join("Vit-lora/adapter_model.safetensors")),
        ];
        for (dir, without) in variants(&run) {
            let loaded = load(dir.path(), &on_base(&base));
            assert!(loaded.report.is_clean(), "{}", loaded.report);
            assert_same(&format!("without {without:?}"), &loaded.model, &files);
        }
    }
}

#[test]
fn golden_a2_projectors_have_their_precedence() {
    for run in golden::folders("a2_") {
        let base = base_of(&run);
        for (dir, without) in variants(&run) {
            // Without non_lora_trainables the stage-1 projector counts …
            for end in ["safetensors", "bin"] {
                let file = dir.path().join(format!("non_lora_trainables.{end}"));
                if file.exists() {
                    std::fs::remove_file(file).unwrap();
                }
            }
            let files = [
                base_without_projector(&base),
                Tensors::read(&run.join("mm_projector.safetensors")),
                Tensors::read(&run.join("adapter_model.safetensors")),
                Tensors::read(&run.join("Vit-lora/adapter_model.safetensors")),
            ];
            let loaded = load(dir.path(), &on_base(&base));
            assert!(loaded.report.is_clean(), "{}", loaded.report);
            assert_same(&format!("without {without:?}"), &loaded.model, &files);
            // … and without both the base's own, which is not what config.json asks for.
            for end in ["safetensors", "bin"] {
                let file = dir.path().join(format!("mm_projector.{end}"));
                if file.exists() {
                    std::fs::remove_file(file).unwrap();
                }
            }
            let message = load_error(dir.path(), &on_base(&base));
            assert!(message.contains("mm_projector.c.weight"), "{message}");
        }
        // The two files do differ, else nothing was shown.
        let [first, second] = ["non_lora_trainables", "mm_projector"]
            .map(|stem| Tensors::read(&run.join(format!("{stem}.safetensors"))));
        let key = "model.mm_projector.c.weight";
        assert_ne!(
            first.f32(&format!("base_model.model.{key}")),
            second.f32(key)
        );
    }
}

/// A run directory made of one of part d's adapters.
fn adapter_run(adapter: &Path, place: &Path) {
    copy(adapter, place, &|name| name.starts_with("adapter_"));
}

#[test]
fn golden_d_adapters_of_every_prefix_load() {
    for folder in golden::folders("d_") {
        let base = golden::base_folder("", None).join("orig");
        let whole = read_all(&base);
        let (llm, vision) = (folder.join("llm_adapter"), folder.join("vit_adapter"));

        let run = tempfile::tempdir().unwrap();
        adapter_run(&llm, run.path());
        let loaded = load(run.path(), &on_base(&base));
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        let mut files = read_all(&base);
        files.push(Tensors::read(&llm.join("adapter_model.safetensors")));
        assert_same("llm adapter", &loaded.model, &files);

        for prefix in ["", "vision_model.", "vision_tower.vision_model."] {
            let run = tempfile::tempdir().unwrap();
            adapter_run(&llm, run.path());
            let place = run.path().join("Vit-lora");
            adapter_run(&vision, &place);
            rewrite(&vision, &place.join("adapter_model.safetensors"), |key| {
                let rest = key
                    .strip_prefix("base_model.model.encoder.")
                    .unwrap_or_else(|| {
                        panic!("{key} has not the prefix that this folder is said to have")
                    });
                Some(format!("base_model.model.{prefix}encoder.{rest}"))
            });
            let loaded = load(run.path(), &on_base(&base));
            assert!(loaded.report.is_clean(), "{}", loaded.report);
            let mut all = read_all(&base);
            all.push(Tensors::read(&llm.join("adapter_model.safetensors")));
            all.push(Tensors::read(&vision.join("adapter_model.safetensors")));
            assert_same(prefix, &loaded.model, &all);
            assert!(all.len() > whole.len());
        }
    }
}

#[test]
fn golden_d_adapters_have_their_scaling() {
    for folder in golden::folders("d_") {
        let base = golden::base_folder("", None).join("orig");
        let run = tempfile::tempdir().unwrap();
        adapter_run(&folder.join("llm_adapter"), run.path());
        let path = run.path().join("adapter_config.json");
        let mut config = golden::json(&path);
        let (r, alpha) = (
            config["r"].as_f64().unwrap(),
            config["lora_alpha"].as_f64().unwrap(),
        );
        let scaling = |loaded: &sq_llava_model::weights::Loaded<B>, name: &str| {
            let layer = &loaded.model.language_model.model.layers[1];
            let linear = match name {
                "q_proj" => &layer.self_attn.q_proj,
                _ => &layer.mlp.up_proj,
            };
            let linear = linear.as_ref().expect("a linear of its own");
            linear.lora.as_ref().expect("an adapter").scaling
        };
        let loaded = load(run.path(), &on_base(&base));
        assert_eq!(scaling(&loaded, "q_proj"), alpha / r);

        config["alpha_pattern"] = golden::Value::Object(Default::default());
        config["alpha_pattern"]["layers.1.self_attn.q_proj"] = (3.0 * alpha).into();
        config["use_rslora"] = true.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let loaded = load(run.path(), &on_base(&base));
        assert_eq!(scaling(&loaded, "q_proj"), 3.0 * alpha / r.sqrt());
        assert_eq!(scaling(&loaded, "up_proj"), alpha / r.sqrt());

        // For linears PEFT turns it off.
        let mut other = config.clone();
        other["fan_in_fan_out"] = true.into();
        std::fs::write(&path, other.to_string()).unwrap();
        let loaded = load(run.path(), &on_base(&base));
        assert_eq!(scaling(&loaded, "up_proj"), alpha / r.sqrt());

        for (key, value) in [
            ("use_dora", true.into()),
            ("modules_to_save", vec!["lm_head"].into()),
            ("bias", "all".into()),
            ("peft_type", "IA3".into()),
        ] {
            let mut other = config.clone();
            other[key] = value;
            std::fs::write(&path, other.to_string()).unwrap();
            let message = load_error(run.path(), &on_base(&base));
            assert!(message.contains(key), "{message}");
            assert!(message.contains("adapter_config.json"), "{message}");
        }
    }
}

#[test]
fn golden_d_an_adapter_that_finds_no_linear_is_an_error() {
    for folder in golden::folders("d_") {
        let base = golden::base_folder("", None).join("orig");
        let adapter = folder.join("llm_adapter");
        for (from, to) in [
            ("layers.1.", "layers.99."),
            (".q_proj.lora_A", ".x_proj.lora_A"),
            (".lora_A.", ".lora_magnitude_vector."),
        ] {
            let run = tempfile::tempdir().unwrap();
            adapter_run(&adapter, run.path());
            rewrite(
                &adapter,
                &run.path().join("adapter_model.safetensors"),
                |key| Some(key.replace(from, to)),
            );
            let message = load_error(run.path(), &on_base(&base));
            assert!(message.contains("adapter_model.safetensors"), "{message}");
        }
        let run = tempfile::tempdir().unwrap();
        adapter_run(&adapter, run.path());
        // Nothing says where the base is but a name that is no directory.
        let message = load_error(run.path(), &LoadOptions::default());
        assert!(message.contains("--base"), "{message}");
    }
}

#[test]
fn golden_a2_run_saved_by_us_loads_to_the_same_model() {
    for run in golden::folders("a2_") {
        let options = on_base(&base_of(&run));
        let first = load(&run, &options);
        let dir = tempfile::tempdir().unwrap();
        let origin = RunOrigin {
            base: options.base.as_ref().map(|p| p.display().to_string()),
            vision: None,
        };
        save_adapters(&first.model, dir.path(), &origin).unwrap();
        for name in [
            "adapter_model.safetensors",
            "Vit-lora/adapter_model.safetensors",
            "non_lora_trainables.safetensors",
        ] {
            let (ours, theirs) = (dir.path().join(name), run.join(name));
            let (ours, theirs) = (Tensors::read(&ours), Tensors::read(&theirs));
            let keys = |t: &Tensors| t.names().map(String::from).collect::<Vec<_>>();
            assert_eq!(keys(&ours), keys(&theirs), "{name}");
            for key in theirs.names() {
                assert_eq!(ours.f32(key), theirs.f32(key), "{name}: {key}");
                assert_eq!(ours.shape(key), theirs.shape(key), "{name}: {key}");
            }
        }
        for name in ["adapter_config.json", "Vit-lora/adapter_config.json"] {
            let (ours, theirs) = (
                golden::json(&dir.path().join(name)),
                golden::json(&run.join(name)),
            );
            for key in [
                "r",
                "lora_alpha",
                "lora_dropout",
                "peft_type",
                "task_type",
                "bias",
            ] {
                assert_eq!(ours[key], theirs[key], "{name}: {key}");
            }
        }
        // The base is found by the name that the adapter gives.
        let second = load(dir.path(), &LoadOptions::default());
        assert!(second.report.is_clean(), "{}", second.report);
        assert_equal("saved run", &first.model, &second.model);
        let scaling = |model: &sq_llava_model::SqLlava<B>| {
            let layer = &model.language_model.model.layers[0];
            layer.self_attn.o_proj.lora.as_ref().unwrap().scaling
        };
        assert_eq!(scaling(&first.model), scaling(&second.model));
    }
}
