//! Every reader of checkpoints over damaged copies of good ones: a model or an error, no panic, and
//! memory of the files' size.

use std::path::{Path, PathBuf};

use burn_flex::{Flex, FlexDevice};
use golden::allocations::Counting;
use golden::mutation::{Budget, survives};
use sq_llava_model::weights::{LoadOptions, load_model};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn golden_folder(name: &str) -> PathBuf {
    golden::repository().join(name)
}

/// Damages one file of a checkpoint, with the others beside it, and loads the whole.
fn checkpoint(source: &str, file: &str, count: u64, base: Option<&str>) {
    let folder = golden_folder(source);
    let path = folder.join(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let options = LoadOptions {
        base: base.map(golden_folder),
        ..LoadOptions::default()
    };
    let name = format!("{source}-{file}").replace(['/', '.'], "-");
    survives(
        &name,
        &[(file.to_owned(), bytes)],
        count,
        Budget::default(),
        |path| {
            let dir = path
                .ancestors()
                .nth(Path::new(file).iter().count())
                .expect("its folder");
            link(&folder, dir);
            let _ = load_model::<Flex>(dir, &options, &FlexDevice);
        },
    );
}

/// Puts the files of a checkpoint into a folder, but for those that are there.
fn link(source: &Path, target: &Path) {
    for path in golden::entries(source) {
        let place = target.join(golden::file_name(&path));
        if path.is_dir() {
            std::fs::create_dir_all(&place).expect("a folder");
            link(&path, &place);
        } else if !place.exists() && !golden::file_name(&path).starts_with("outputs") {
            std::fs::copy(&path, &place).expect("a copy");
        }
    }
}

#[test]
fn configurations_survive_damage() {
    checkpoint("a_llava_gqa/orig", "config.json", 2000, None);
    checkpoint("a_llava_gqa/orig", "vision_config.json", 2000, None);
    checkpoint("a_llava_gqa/hf", "config.json", 2000, None);
    checkpoint(
        "a_llava_gqa/orig",
        "model.safetensors.index.json",
        2000,
        None,
    );
}

#[test]
fn weights_survive_damage() {
    checkpoint(
        "a_llava_gqa/orig",
        "model-00001-of-00002.safetensors",
        2000,
        None,
    );
    checkpoint("a_llava_gqa/orig", "mm_projector.bin", 2000, None);
}

#[test]
fn adapters_survive_damage() {
    let base = Some("a_llava_gqa/orig");
    for file in [
        "adapter_config.json",
        "adapter_model.bin",
        "Vit-lora/adapter_config.json",
    ] {
        checkpoint("a2_sqllava_e2e", file, 2000, base);
    }
}

#[test]
fn gguf_files_survive_damage() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
    let seeds: Vec<(String, Vec<u8>)> = golden::entries(&folder)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .map(|path| {
            (
                golden::file_name(&path),
                std::fs::read(path).expect("a fixture"),
            )
        })
        .collect();
    survives("model-gguf", &seeds, 2000, Budget::default(), |path| {
        let _ = load_model::<Flex>(path, &LoadOptions::default(), &FlexDevice);
    });
}
