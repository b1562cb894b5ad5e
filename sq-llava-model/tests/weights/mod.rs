//! Loading models in tests and reading their parameters.
#![allow(dead_code)] // each test binary uses its part

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::Tensor;
use burn_flex::Flex;
use golden::Tensors;
use safetensors::{SafeTensors, tensor::TensorView};
use sq_llava_model::SqLlava;
use sq_llava_model::ops::params::{ParamPath, ParamVisitor, visit_params};
use sq_llava_model::weights::{LoadOptions, Loaded, load_model};

pub type B = Flex;

pub fn try_load(dir: &Path, options: &LoadOptions) -> Result<Loaded<B>, String> {
    load_model::<B>(dir, options, &Default::default()).map_err(|e| e.to_string())
}

pub fn load(dir: &Path, options: &LoadOptions) -> Loaded<B> {
    try_load(dir, options).unwrap_or_else(|e| panic!("{e}"))
}

/// The message of a load that must fail.
pub fn load_error(dir: &Path, options: &LoadOptions) -> String {
    match try_load(dir, options) {
        Ok(loaded) => panic!("{} was loaded: {}", dir.display(), loaded.report),
        Err(message) => message,
    }
}

pub fn on_base(base: &Path) -> LoadOptions {
    LoadOptions {
        base: Some(base.to_path_buf()),
        ..LoadOptions::default()
    }
}

/// Values of every parameter by module path, without the names of enum variants.
pub fn parameters(model: &SqLlava<B>) -> BTreeMap<String, Vec<f32>> {
    #[derive(Default)]
    struct Reader(BTreeMap<String, Vec<f32>>);
    impl ParamVisitor<B> for Reader {
        fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<B, D>>) {
            let values = param.val().into_data().convert::<f32>().to_vec().unwrap();
            assert!(self.0.insert(path.fields().join("."), values).is_none());
        }
    }
    let mut reader = Reader::default();
    visit_params(model, &mut reader);
    reader.0
}

/// Fails unless two models have the same parameters with the same values.
pub fn assert_equal(what: &str, left: &SqLlava<B>, right: &SqLlava<B>) {
    let (left, right) = (parameters(left), parameters(right));
    let names = |p: &BTreeMap<String, Vec<f32>>| p.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right), "{what}");
    for (name, values) in &left {
        assert!(values == &right[name], "{what}: {name} differs");
    }
}

/// Copies the files of a folder that `keep` wants.
pub fn copy(from: &Path, to: &Path, keep: &dyn Fn(&str) -> bool) {
    std::fs::create_dir_all(to).unwrap();
    for path in golden::entries(from) {
        let name = golden::file_name(&path);
        if path.is_dir() {
            copy(&path, &to.join(&name), keep);
        } else if keep(&name) {
            std::fs::copy(&path, to.join(&name)).unwrap();
        }
    }
}

pub fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "safetensors")
}

/// The safetensors files of a folder.
pub fn safetensors_in(dir: &Path) -> Vec<PathBuf> {
    let mut files = golden::entries(dir);
    files.retain(|path| is_safetensors(path));
    assert!(!files.is_empty(), "no safetensors in {}", dir.display());
    files
}

/// Writes the tensors of a folder's safetensors files into one file, `rename` giving each its
/// name; `None` leaves it out.
pub fn rewrite(from: &Path, to: &Path, rename: impl Fn(&str) -> Option<String>) {
    let files: Vec<Vec<u8>> = safetensors_in(from)
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let parsed: Vec<SafeTensors> = files
        .iter()
        .map(|bytes| SafeTensors::deserialize(bytes).unwrap())
        .collect();
    let tensors: Vec<(String, TensorView)> = parsed
        .iter()
        .flat_map(|file| file.tensors())
        .filter_map(|(name, view)| Some((rename(&name)?, view)))
        .collect();
    safetensors::serialize_to_file(tensors, None, to).unwrap();
}

/// The folder of the case's base checkpoint in the original layout.
pub fn base_of(run: &Path) -> PathBuf {
    let config = golden::json(&run.join("config.json"));
    golden::base_folder("", Some(&config)).join("orig")
}

/// The module path of a key as the reference data spells keys; written out here, apart from the
/// loader's own tables.
pub fn module_path(key: &str) -> String {
    let key = key.strip_prefix("base_model.model.").unwrap_or(key);
    let key = key.replace("multi_modal_projector.linear_1", "mm_projector.0");
    let key = key.replace("multi_modal_projector.linear_2", "mm_projector.2");
    let key = key
        .replace("language_model.", "")
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
    if key.starts_with("model.") || key.starts_with("lm_head") {
        return format!("language_model.{key}");
    }
    key
}

/// Fails unless a model's parameters are the tensors of files; later files override earlier ones.
pub fn assert_same(what: &str, model: &SqLlava<B>, files: &[Tensors]) {
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

pub fn read_all(dir: &Path) -> Vec<Tensors> {
    safetensors_in(dir)
        .iter()
        .map(|path| Tensors::read(path))
        .collect()
}
