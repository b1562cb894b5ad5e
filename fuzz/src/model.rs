//! Checkpoints: one file is damaged, the others stand whole beside it.

use std::path::{Path, PathBuf};

use burn_flex::{Flex, FlexDevice};
use sq_llava_data::gguf::GgufHeader;
use sq_llava_model::weights::{LoadOptions, load_model};

use crate::Reader;
use crate::data::{entries, file, files, tokenizer, workspace};

const LLAVA: &str = "a_llava_gqa/orig";
const ADAPTERS: &str = "a2_sqllava_e2e";

/// Reads one file of a checkpoint of the reference data, on a base or not.
macro_rules! checkpoint {
    ($name:literal, $folder:expr, $file:literal, $base:expr) => {
        Reader {
            name: $name,
            file: $file,
            beside: |target| copy(&reference($folder), target),
            seeds: || vec![file(reference($folder).join($file))],
            read: |_, folder| load(folder, $base),
        }
    };
}

/// What a LLaVA is made of.
pub static CONFIG: Reader = checkpoint!("config", LLAVA, "config.json", None);
/// The same in transformers' layout.
pub static CONFIG_HF: Reader = checkpoint!("config_hf", "a_llava_gqa/hf", "config.json", None);
/// What a vision tower is made of.
pub static VISION_CONFIG: Reader = checkpoint!("vision_config", LLAVA, "vision_config.json", None);
/// Which tensor stands in which file.
pub static SAFETENSORS_INDEX: Reader = checkpoint!(
    "safetensors_index",
    LLAVA,
    "model.safetensors.index.json",
    None
);
/// Tensors of safetensors.
pub static SAFETENSORS: Reader = checkpoint!(
    "safetensors",
    LLAVA,
    "model-00001-of-00002.safetensors",
    None
);
/// Tensors of PyTorch: a pickle in a zip archive.
pub static PICKLE: Reader = checkpoint!("pickle", LLAVA, "mm_projector.bin", None);
/// Tensors of an adapter.
pub static ADAPTER: Reader = checkpoint!("adapter", ADAPTERS, "adapter_model.bin", Some(LLAVA));
/// PEFT's settings of an adapter.
pub static ADAPTER_CONFIG: Reader = checkpoint!(
    "adapter_config",
    ADAPTERS,
    "adapter_config.json",
    Some(LLAVA)
);
/// The same of the vision tower's.
pub static VISION_ADAPTER_CONFIG: Reader = checkpoint!(
    "vision_adapter_config",
    ADAPTERS,
    "Vit-lora/adapter_config.json",
    Some(LLAVA)
);

/// llama.cpp's files: header, tokenizer and tensors.
pub static GGUF: Reader = Reader {
    name: "gguf",
    file: "model.gguf",
    beside: |_| {},
    seeds: || {
        let mut seeds = files("sq-llava-model/tests/fixtures/gguf", "gguf");
        seeds.extend(files("sq-llava-data/tests/fixtures/gguf", "gguf"));
        seeds
    },
    read: |file, _| {
        let _ = GgufHeader::open(file);
        tokenizer(file);
        load(file, None);
    },
};

/// A tower with its projector beside a language model.
pub static MMPROJ: Reader = Reader {
    name: "mmproj",
    file: "mmproj.gguf",
    beside: |dir| {
        let model = workspace().join("sq-llava-model/tests/fixtures/gguf/tied.gguf");
        std::fs::copy(model, dir.join("llm.gguf")).expect("a copy");
    },
    seeds: || files("sq-llava-model/tests/fixtures/mmproj", "gguf"),
    read: |file, _| {
        let options = LoadOptions {
            mmproj: Some(file.to_path_buf()),
            ..LoadOptions::default()
        };
        let _ = load_model::<Flex>(&file.with_file_name("llm.gguf"), &options, &FlexDevice);
    },
};

fn load(path: &Path, base: Option<&str>) {
    let options = LoadOptions {
        base: base.map(reference),
        ..LoadOptions::default()
    };
    let _ = load_model::<Flex>(path, &options, &FlexDevice);
}

/// A folder of the reference data.
fn reference(folder: &str) -> PathBuf {
    workspace().join("golden/data").join(folder)
}

/// Copies the files of a checkpoint, without the outputs that stand beside it.
fn copy(source: &Path, target: &Path) {
    std::fs::create_dir_all(target).expect("a folder");
    for path in entries(source) {
        let name = path.file_name().expect("an entry has a name");
        let place = target.join(name);
        if path.is_dir() {
            copy(&path, &place);
        } else if !name.to_string_lossy().starts_with("outputs") {
            std::fs::copy(&path, &place).expect("a copy");
        }
    }
}
