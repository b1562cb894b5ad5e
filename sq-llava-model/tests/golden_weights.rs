//! Checkpoints of the reference data load completely, and every weight is the file's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn_flex::Flex;
use golden::Tensors;
use sq_llava_model::SqLlava;
use sq_llava_model::weights::{LoadOptions, Loaded, load_model};

type B = Flex;

fn load(dir: &Path, options: &LoadOptions) -> Loaded<B> {
    load_model::<B>(dir, options, &Default::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// Values of every parameter by module path, without the names of enum variants.
fn parameters(model: &SqLlava<B>) -> BTreeMap<String, Vec<f32>> {
    #[derive(Default)]
    struct Reader {
        path: Vec<String>,
        found: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleVisitor<B> for Reader {
        fn enter_module(&mut self, name: &str, container: &str) {
            if !container.starts_with("Enum:") {
                self.path.push(name.into());
            }
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            if !container.starts_with("Enum:") {
                self.path.pop();
            }
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let values = param.val().into_data().convert::<f32>().to_vec().unwrap();
            assert!(self.found.insert(self.path.join("."), values).is_none());
        }
    }
    let mut reader = Reader::default();
    model.visit(&mut reader);
    reader.found
}

/// The module path of a key as the reference data spells keys; written out here, apart from the
/// loader's own tables.
fn module_path(key: &str) -> String {
    let key = key.strip_prefix("base_model.model.").unwrap_or(key);
    let key = key.replace("multi_modal_projector.linear_1", "mm_projector.0");
    let key = key.replace("multi_modal_projector.linear_2", "mm_projector.2");
    let key = key
        .replace(
            "model.vision_tower.vision_tower.vision_model.",
            "vision_tower.",
        )
        .replace("vision_tower.vision_model.", "vision_tower.")
        .replace("model.mm_projector.", "mm_projector.")
        .replace("mm_projector.mlp.2.", "mm_projector.mlp.1.")
        .replace("mm_projector.0.", "mm_projector.layers.0.")
        .replace("mm_projector.2.", "mm_projector.layers.1.")
        .replace(".lora_A.weight", ".lora.a")
        .replace(".lora_B.weight", ".lora.b");
    if key.starts_with("encoder.") {
        return format!("vision_tower.{key}");
    }
    if key.starts_with("model.layers")
        || key.starts_with("model.embed_tokens")
        || key.starts_with("model.norm")
        || key.starts_with("lm_head")
    {
        return format!("language_model.{key}");
    }
    key
}

/// Compares a model's parameters with the tensors of files; later files override earlier ones.
fn assert_same(what: &str, model: &SqLlava<B>, files: &[Tensors]) {
    let mut expected = BTreeMap::new();
    for file in files {
        for key in file.names() {
            expected.insert(module_path(key), file.f32(key));
        }
    }
    let found = parameters(model);
    let names: Vec<_> = found.keys().collect();
    assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, values) in &found {
        assert!(values == &expected[name], "{what}: {name} differs");
    }
}

fn safetensors_in(dir: &Path) -> Vec<Tensors> {
    let files: Vec<Tensors> = golden::entries(dir)
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .map(|p| Tensors::read(p))
        .collect();
    assert!(!files.is_empty(), "no safetensors in {}", dir.display());
    files
}

fn checkpoints(layout: &str) -> Vec<PathBuf> {
    golden::folders("a_")
        .iter()
        .map(|folder| folder.join(layout))
        .filter(|dir| dir.is_dir())
        .collect()
}

#[test]
fn golden_a_original_layout_loads_every_tensor() {
    let dirs = checkpoints("orig");
    assert!(!dirs.is_empty());
    for dir in dirs {
        let loaded = load(&dir, &LoadOptions::default());
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        assert_same(
            &dir.display().to_string(),
            &loaded.model,
            &safetensors_in(&dir),
        );
    }
}

#[test]
fn golden_a_llava_hf_layout_loads_every_tensor() {
    // The folder hf/ may be absent in another set; the layout is also tested on renamed keys.
    for dir in checkpoints("hf") {
        let loaded = load(&dir, &LoadOptions::default());
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        assert_same(
            &dir.display().to_string(),
            &loaded.model,
            &safetensors_in(&dir),
        );
    }
}

fn base_of(run: &Path) -> PathBuf {
    let config = golden::json(&run.join("config.json"));
    golden::base_folder("", Some(&config)).join("orig")
}

#[test]
fn golden_a2_run_directory_loads_on_its_base() {
    for run in golden::folders("a2_") {
        let base = base_of(&run);
        let options = LoadOptions {
            base: Some(base.clone()),
            ..LoadOptions::default()
        };
        let loaded = load(&run, &options);
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        let mut files = safetensors_in(&base);
        // The base's own projector is of another kind: none of it may stay.
        let base_projector = |name: &str| name.contains("mm_projector");
        assert!(files.iter().any(|f| f.names().any(base_projector)));
        files = safetensors_without(&base, base_projector);
        files.push(Tensors::read(&run.join("non_lora_trainables.safetensors")));
        files.push(Tensors::read(&run.join("adapter_model.safetensors")));
        files.push(Tensors::read(
            &run.join("Vit-lora/adapter_model.safetensors"),
        ));
        assert_same(&run.display().to_string(), &loaded.model, &files);
    }
}

/// The files of a directory rewritten without some tensors.
fn safetensors_without(dir: &Path, drop: impl Fn(&str) -> bool) -> Vec<Tensors> {
    let scratch = tempfile::tempdir().unwrap();
    golden::entries(dir)
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .map(|path| {
            let bytes = std::fs::read(path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let kept = file.tensors().into_iter().filter(|(name, _)| !drop(name));
            let out = scratch.path().join(golden::file_name(path));
            safetensors::serialize_to_file(kept, None, &out).unwrap();
            Tensors::read(&out)
        })
        .collect()
}
