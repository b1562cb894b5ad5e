//! Which files of a repository are needed.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Part;
use super::name::is_component;

/// Descriptions of a model.
const CONFIGURATION: [&str; 7] = [
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "vision_config.json",
    "Vit-lora/adapter_config.json",
];

/// A tokenizer's files.
const TOKENIZER: [&str; 9] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// Parts of a run, each `.safetensors` or else `.bin`.
const PARTS: [&str; 5] = [
    "adapter_model",
    "mm_projector",
    "new_tokens",
    "non_lora_trainables",
    "Vit-lora/adapter_model",
];

/// What Python's Trainer leaves beside a model.
const BESIDE: [&str; 4] = ["optimizer", "scheduler", "training_args", "rng_state"];

/// Files of a repository.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needed {
    /// Small files.
    pub settings: Vec<String>,
    /// Weight files that are known by name.
    pub weights: Vec<String>,
    /// The index that names the others.
    pub index: Option<String>,
}

impl Needed {
    /// Chooses among the files of a repository, in the order in which a load looks for them.
    ///
    /// # Errors
    /// If no weights are there, or several files could be meant.
    pub fn of(names: &BTreeSet<String>, part: Part) -> Result<Self, String> {
        let listed = |known: &[&str]| -> Vec<String> {
            let known = known.iter().map(ToString::to_string);
            known.filter(|name| names.contains(name)).collect()
        };
        let mut settings = listed(&TOKENIZER);
        if part == Part::Tokenizer {
            return match settings.is_empty() {
                false => Ok(Self {
                    settings,
                    ..Self::default()
                }),
                true => Err("no tokenizer is in it".into()),
            };
        }
        settings.extend(listed(&CONFIGURATION));
        let mut needed = Self {
            settings,
            weights: PARTS
                .iter()
                .filter_map(|stem| either(names, stem))
                .collect(),
            index: None,
        };
        // What training changed stands on a base with weights of its own.
        if names.contains("adapter_config.json") {
            return Ok(needed);
        }
        for (single, index) in [
            ("model.safetensors", "model.safetensors.index.json"),
            ("pytorch_model.bin", "pytorch_model.bin.index.json"),
        ] {
            if names.contains(single) {
                needed.weights.push(single.into());
                return Ok(needed);
            }
            if names.contains(index) {
                needed.index = Some(index.into());
                return Ok(needed);
            }
        }
        for end in [".safetensors", ".bin", ".gguf"] {
            let found = others(names, end)?;
            if !found.is_empty() {
                needed.weights.extend(found);
                return Ok(needed);
            }
        }
        match needed.weights.is_empty() {
            false => Ok(needed),
            true => Err("no weights in safetensors, PyTorch's .bin or GGUF are in it".into()),
        }
    }

    /// All files, once the index is read.
    ///
    /// # Errors
    /// If the index is damaged or names what is no file beside it.
    pub fn shards(index: &str) -> Result<BTreeSet<String>, String> {
        let value: Value = serde_json::from_str(index).map_err(|e| format!("not JSON ({e})"))?;
        let map = value.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or("no \"weight_map\" object")?;
        map.values()
            .map(|name| match name.as_str() {
                Some(name) if is_component(name) => Ok(name.to_owned()),
                _ => Err(format!("shard {name} is not a plain file name")),
            })
            .collect()
    }
}

/// `stem.safetensors`, else `stem.bin`.
fn either(names: &BTreeSet<String>, stem: &str) -> Option<String> {
    let files = [".safetensors", ".bin"].map(|end| format!("{stem}{end}"));
    files.into_iter().find(|name| names.contains(name))
}

/// Weight files under other names: all shards of one model, or the only file.
fn others(names: &BTreeSet<String>, end: &str) -> Result<Vec<String>, String> {
    let beside = |name: &str| {
        let stems = PARTS.iter().chain(&BESIDE).chain(&["mmproj"]);
        stems.into_iter().any(|stem| name.starts_with(stem))
    };
    let found: Vec<&String> = names
        .iter()
        .filter(|name| name.ends_with(end) && is_component(name) && !beside(name))
        .collect();
    let shards: Vec<&&String> = found.iter().filter(|name| name.contains("-of-")).collect();
    if !shards.is_empty() && end != ".gguf" {
        return Ok(shards.into_iter().map(|name| (*name).clone()).collect());
    }
    match found.as_slice() {
        [first, second, ..] => Err(format!(
            "{} {end} files could be meant ({first}, {second} …): download the one you want and \
             give its path",
            found.len()
        )),
        files => Ok(files.iter().map(|name| (*name).clone()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Result<Needed, String> {
        Needed::of(
            &names.iter().map(ToString::to_string).collect(),
            Part::Model,
        )
    }

    fn weights(names: &[&str]) -> Vec<String> {
        of(names).unwrap().weights
    }

    #[test]
    fn safetensors_go_before_pickles_and_other_frameworks_are_left() {
        let names = [
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "model.safetensors",
            "onnx/model.onnx",
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "tf_model.h5",
            "tokenizer.json",
            "vocab.json",
        ];
        let needed = of(&names).unwrap();
        assert_eq!(needed.weights, ["model.safetensors"]);
        assert_eq!(
            needed.settings,
            ["tokenizer.json", "vocab.json", "config.json"]
        );
        assert_eq!(
            weights(&["config.json", "pytorch_model.bin", "tf_model.h5"]),
            ["pytorch_model.bin"]
        );
    }

    #[test]
    fn an_index_goes_before_copies_in_one_file() {
        let names = [
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ];
        let needed = of(&names).unwrap();
        assert_eq!(
            needed.index.as_deref(),
            Some("model.safetensors.index.json")
        );
        assert!(needed.weights.is_empty());
        let text = r#"{"weight_map": {"a": "x-1.bin", "b": "x-2.bin", "c": "x-1.bin"}}"#;
        let shards = Needed::shards(text).unwrap();
        assert_eq!(
            shards.into_iter().collect::<Vec<_>>(),
            ["x-1.bin", "x-2.bin"]
        );
    }

    #[test]
    fn shards_outside_the_folder_are_refused() {
        for name in ["../../x", "/etc/passwd", "a/b", "..", "", "a\\b", ".x"] {
            let text = serde_json::json!({"weight_map": {"a": name}}).to_string();
            let error = Needed::shards(&text).unwrap_err();
            assert!(error.contains("not a plain file name"), "{name}: {error}");
        }
    }

    #[test]
    fn a_run_needs_what_training_changed() {
        let names = [
            "adapter_config.json",
            "adapter_model.bin",
            "adapter_model.safetensors",
            "config.json",
            "non_lora_trainables.bin",
            "Vit-lora/adapter_config.json",
            "Vit-lora/adapter_model.bin",
            "Vit-lora/README.md",
            "trainer_state.json",
            "checkpoint-100/adapter_model.bin",
        ];
        let needed = of(&names).unwrap();
        assert_eq!(
            needed.weights,
            [
                "adapter_model.safetensors",
                "non_lora_trainables.bin",
                "Vit-lora/adapter_model.bin"
            ]
        );
        assert!(
            needed
                .settings
                .contains(&"Vit-lora/adapter_config.json".to_string())
        );
        assert_eq!(
            weights(&["config.json", "mm_projector.bin"]),
            ["mm_projector.bin"]
        );
    }

    #[test]
    fn other_names_are_taken_where_one_can_be_meant() {
        assert_eq!(
            weights(&["llm.safetensors", "optimizer.bin"]),
            ["llm.safetensors"]
        );
        assert_eq!(weights(&["w-1-of-2.bin", "w-2-of-2.bin", "x.bin"]).len(), 2);
        assert_eq!(weights(&["llm.gguf", "mmproj-f16.gguf"]), ["llm.gguf"]);
        assert!(
            of(&["a.Q4_0.gguf", "a.Q8_0.gguf"])
                .unwrap_err()
                .contains("give its path")
        );
        assert!(
            of(&["config.json", "../evil.bin", "tf_model.h5"])
                .unwrap_err()
                .contains("no weights")
        );
    }

    #[test]
    fn a_tokenizer_needs_no_weights() {
        let names = ["model.safetensors", "tokenizer.json"].map(String::from);
        let needed = Needed::of(&names.into(), Part::Tokenizer).unwrap();
        assert_eq!(needed.settings, ["tokenizer.json"]);
        assert!(needed.weights.is_empty());
    }
}
