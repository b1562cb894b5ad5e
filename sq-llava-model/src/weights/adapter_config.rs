//! PEFT's `adapter_config.json`: what it says about an adapter's numbers. An option that changes
//! them and is not computed here is refused, and so is one that nobody here knows.

use std::path::Path;

use serde_json::Value;

use crate::config::read_json;
use crate::error::ModelError;
use crate::ops::lora::LoraConfig;

/// Options that change what an adapter computes and are not supported.
const REFUSED: [&str; 12] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
];

/// Options that are read below, say where the adapter comes from, or matter for its training
/// alone: `velora_config` changes the backward pass; the configurations of initialisations count
/// only with `init_lora_weights`; `fan_in_fan_out` is for layers of another kind, and PEFT turns
/// it off for linears.
const HARMLESS: [&str; 31] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
    "velora_config",
    // Of older releases.
    "merge_weights",
];

/// Values of `init_lora_weights` that leave the base as it is, so that the two factors say all.
const PLAIN_STARTS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// `adapter_config.json`.
#[derive(Debug)]
pub(super) struct PeftConfig {
    lora: LoraConfig,
    /// Ranks of linears that differ, by the end of their path, in the file's order.
    ranks: Vec<(String, f64)>,
    /// Alphas that differ.
    alphas: Vec<(String, f64)>,
    /// Ends of the paths that are adapted; `None` if the file says it otherwise.
    targets: Option<Vec<String>>,
    /// Ends of the paths that are not.
    excluded: Vec<String>,
    /// Layers that are adapted, if not all.
    layers: Option<Vec<u64>>,
}

impl PeftConfig {
    /// Reads the file. With `allow_unused`, options that are not known here are accepted.
    ///
    /// # Errors
    /// If it is malformed, or asks for what is not supported; the message names the option.
    pub fn read(path: &Path, allow_unused: bool) -> Result<Self, ModelError> {
        let value = read_json(path)?;
        let file = File {
            path,
            value: &value,
        };
        file.check_options(allow_unused)?;
        let r = file.get("r").and_then(Value::as_u64);
        let r = r
            .and_then(|r| usize::try_from(r).ok())
            .filter(|&r| r > 0)
            .ok_or_else(|| file.fail("\"r\" is not a rank"))?;
        Ok(Self {
            lora: LoraConfig {
                r,
                // PEFT's own default.
                lora_alpha: file.number("lora_alpha", 8.0)?,
                lora_dropout: file.number("lora_dropout", 0.0)?,
                target_modules: Vec::new(),
                use_rslora: file.flag("use_rslora")?,
            },
            ranks: file.pattern("rank_pattern")?,
            alphas: file.pattern("alpha_pattern")?,
            targets: file.names("target_modules")?,
            excluded: file.names("exclude_modules")?.unwrap_or_default(),
            layers: file.layers()?,
        })
    }

    /// The configuration of the linear at `path`, as PEFT picks it.
    pub fn of(&self, path: &str) -> LoraConfig {
        let mut lora = self.lora.clone();
        if let Some(r) = find(&self.ranks, path) {
            lora.r = r as usize;
        }
        if let Some(alpha) = find(&self.alphas, path) {
            lora.lora_alpha = alpha;
        }
        lora
    }

    /// The configuration of a linear whose factors have another rank than the file says, and
    /// whether its alpha is a guess: twice the rank, as SQ-LLaVA trains.
    pub fn of_rank(&self, path: &str, r: usize) -> (LoraConfig, bool) {
        let said = self.of(path);
        if said.r == r {
            return (said, false);
        }
        let alpha = find(&self.alphas, path);
        let lora = LoraConfig {
            r,
            lora_alpha: alpha.unwrap_or(2.0 * r as f64),
            ..said
        };
        (lora, alpha.is_none())
    }

    /// Whether the file lists the linear at `path` among those that are adapted. A regular
    /// expression lists none.
    pub fn lists(&self, path: &str) -> bool {
        self.targets.is_some() && self.targets(path)
    }

    /// Whether PEFT would adapt the linear at `path` (`check_target_module_exists` in its
    /// tuners_utils.py).
    pub fn targets(&self, path: &str) -> bool {
        let named = |ends: &[String]| ends.iter().any(|end| is_end(path, end));
        if named(&self.excluded) {
            return false;
        }
        let Some(targets) = &self.targets else {
            return true;
        };
        // A whole path is adapted whatever its layer.
        if targets.iter().any(|target| target == path) {
            return true;
        }
        named(targets)
            && self
                .layers
                .as_ref()
                .is_none_or(|layers| layer_of(path).is_some_and(|layer| layers.contains(&layer)))
    }
}

/// The first pattern that fits counts.
fn find(patterns: &[(String, f64)], path: &str) -> Option<f64> {
    let mut fits = patterns.iter().filter(|(end, _)| is_end(path, end));
    fits.next().map(|(_, v)| *v)
}

/// Whether a path is `end`, or ends in it behind a dot.
fn is_end(path: &str, end: &str) -> bool {
    path.strip_suffix(end)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The first number that is a part of a path of its own.
fn layer_of(path: &str) -> Option<u64> {
    path.split('.').find_map(|part| part.parse().ok())
}

/// The file, with access to its keys.
struct File<'a> {
    path: &'a Path,
    value: &'a Value,
}

impl File<'_> {
    fn fail(&self, reason: impl Into<String>) -> ModelError {
        ModelError::config(self.path, reason)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    fn check_options(&self, allow_unused: bool) -> Result<(), ModelError> {
        let options = self
            .value
            .as_object()
            .ok_or_else(|| self.fail("not a JSON object"))?;
        match self.get("peft_type").map(|kind| (kind, kind.as_str())) {
            None | Some((_, Some("LORA"))) => {}
            Some((other, _)) => {
                return Err(self.fail(format!(
                    "\"peft_type\" is {other}, which is not supported; \"LORA\" is"
                )));
            }
        }
        for (key, value) in options.iter().filter(|(_, value)| is_set(value)) {
            if REFUSED.contains(&key.as_str()) {
                return Err(self.fail(format!(
                    "\"{key}\" is set, which is not supported; merge the adapter in Python and load the merged model"
                )));
            }
            if !HARMLESS.contains(&key.as_str()) {
                let unknown = format!(
                    "\"{key}\" is {value}: this option is unknown here and may change the numbers"
                );
                if !allow_unused {
                    return Err(self.fail(format!(
                        "{unknown}; merge the adapter in Python and load the merged model (--allow-unused goes on without the option)"
                    )));
                }
                tracing::warn!("{}: {unknown}", self.path.display());
            }
        }
        match self.get("bias").map(|bias| (bias, bias.as_str())) {
            None | Some((_, Some("none"))) => {}
            Some((other, _)) => {
                return Err(self.fail(format!(
                    "\"bias\" is {other}, which is not supported; \"none\" is"
                )));
            }
        }
        self.check_start()
    }

    /// PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA begin by taking something out of the base.
    fn check_start(&self) -> Result<(), ModelError> {
        let plain = match self.get("init_lora_weights") {
            None | Some(Value::Bool(_)) => true,
            Some(Value::String(start)) => {
                let start = start.to_ascii_lowercase();
                PLAIN_STARTS.contains(&start.as_str())
            }
            Some(_) => false,
        };
        if plain {
            return Ok(());
        }
        Err(self.fail(format!(
            "\"init_lora_weights\" is {}: such an adapter belongs to a base that was changed when its training began, which is not supported; convert it in Python (save_pretrained with path_initial_model_for_weight_conversion) or merge it there and load the merged model",
            self.value["init_lora_weights"]
        )))
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| self.fail(format!("\"{key}\" is {value}, not a number"))),
        }
    }

    fn flag(&self, key: &str) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.fail(format!("\"{key}\" is {value}, not true or false"))),
        }
    }

    /// Numbers of linears by the ends of their paths.
    fn pattern(&self, key: &str) -> Result<Vec<(String, f64)>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let Some(map) = value.as_object() else {
            return Err(self.fail(format!("\"{key}\" is {value}, not an object")));
        };
        map.iter()
            .map(|(name, v)| {
                // Regular expressions could mean anything; a plain path ends in one place.
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
                let whole = key != "rank_pattern" || v.is_u64();
                match v.as_f64().filter(|v| *v > 0.0 && whole) {
                    Some(v) if name.chars().all(plain) => Ok((name.clone(), v)),
                    _ => Err(self.fail(format!(
                        "\"{key}\" has \"{name}\": {v}; plain module paths with positive numbers are supported"
                    ))),
                }
            })
            .collect()
    }

    /// A list of ends of paths; a string (`all-linear`, or a regular expression) gives `None`.
    fn names(&self, key: &str) -> Result<Option<Vec<String>>, ModelError> {
        match self.get(key) {
            None | Some(Value::String(_)) => Ok(None),
            Some(Value::Array(list)) => list
                .iter()
                .map(|name| name.as_str().map(Into::into))
                .collect::<Option<Vec<String>>>()
                .map(Some)
                .ok_or_else(|| self.fail(format!("\"{key}\" is not a list of names"))),
            Some(other) => Err(self.fail(format!("\"{key}\" is {other}, not a list of names"))),
        }
    }

    fn layers(&self) -> Result<Option<Vec<u64>>, ModelError> {
        let fail = |value: &Value| {
            self.fail(format!(
                "\"layers_to_transform\" is {value}, not a list of layers"
            ))
        };
        match self.get("layers_to_transform") {
            None => Ok(None),
            Some(Value::Array(list)) if list.is_empty() => Ok(None),
            Some(value @ Value::Array(list)) => {
                let list: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
                Ok(Some(list.ok_or_else(|| fail(value))?))
            }
            Some(value) => Ok(Some(vec![value.as_u64().ok_or_else(|| fail(value))?])),
        }
    }
}

/// Whether an option asks for something.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(options: Value) -> Result<PeftConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_config.json");
        let mut config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8});
        for (key, value) in options.as_object().unwrap() {
            config[key] = value.clone();
        }
        std::fs::write(&path, config.to_string()).unwrap();
        PeftConfig::read(&path, false).map_err(|e| e.to_string())
    }

    #[test]
    fn fault_04_options_that_change_the_numbers_are_refused_by_name() {
        for start in [
            "pissa",
            "pissa_niter_4",
            "olora",
            "OLoRA",
            "corda",
            "loftq",
            "lora_ga",
            "x",
        ] {
            let message = read(json!({"init_lora_weights": start})).unwrap_err();
            assert!(
                message.contains("init_lora_weights") && message.contains(start),
                "{message}"
            );
        }
        for start in [
            json!(true),
            json!(false),
            json!(null),
            json!("gaussian"),
            json!("eva"),
        ] {
            read(json!({"init_lora_weights": start})).unwrap();
        }
        for (key, value) in [
            ("use_dora", json!(true)),
            ("lora_bias", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("trainable_token_indices", json!([1])),
            ("layer_replication", json!([[0, 2]])),
            ("use_bdlora", json!({"nblocks": 2})),
            ("kasa_config", json!({"beta": 1})),
            ("bias", json!("lora_only")),
            ("bias", json!(7)),
            ("peft_type", json!("LOHA")),
            ("use_rslora", json!("yes")),
            ("some_new_option", json!(0.5)),
        ] {
            let message = read(json!({key: value})).unwrap_err();
            assert!(message.contains(&format!("\"{key}\"")), "{message}");
        }
        // What is not asked for may be called as it likes.
        read(json!({"some_new_option": null, "another": {}, "third": false})).unwrap();
    }

    #[test]
    fn fault_04_an_unknown_option_passes_when_it_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_config.json");
        std::fs::write(&path, r#"{"r": 4, "some_new_option": 1}"#).unwrap();
        assert!(PeftConfig::read(&path, false).is_err());
        assert!(PeftConfig::read(&path, true).is_ok());
        // One that is known to change them does not.
        std::fs::write(&path, r#"{"r": 4, "use_dora": true}"#).unwrap();
        assert!(PeftConfig::read(&path, true).is_err());
    }

    #[test]
    fn fault_04_patterns_count_in_the_order_of_the_file() {
        let config = read(json!({
            "rank_pattern": {"q_proj": 8, "layers.0.self_attn.q_proj": 2},
            "alpha_pattern": {"model.layers.1.mlp.up_proj": 3},
        }))
        .unwrap();
        assert_eq!(config.of("model.layers.0.self_attn.q_proj").r, 8);
        assert_eq!(config.of("model.layers.0.self_attn.k_proj").r, 4);
        assert_eq!(config.of("model.layers.0.self_attn.xq_proj").r, 4);
        assert_eq!(config.of("model.layers.1.mlp.up_proj").lora_alpha, 3.0);
    }

    #[test]
    fn fault_04_what_is_adapted_is_told_as_peft_tells_it() {
        let config = read(json!({
            "target_modules": ["q_proj", "v_proj"],
            "exclude_modules": ["layers.2.self_attn.v_proj"],
            "layers_to_transform": [0, 2],
        }))
        .unwrap();
        for (path, adapted) in [
            ("model.layers.0.self_attn.q_proj", true),
            ("model.layers.1.self_attn.q_proj", false),
            ("model.layers.2.self_attn.q_proj", true),
            ("model.layers.2.self_attn.v_proj", false),
            ("model.layers.0.self_attn.k_proj", false),
        ] {
            assert_eq!(config.targets(path), adapted, "{path}");
        }
        let all = read(json!({"target_modules": "all-linear"})).unwrap();
        assert!(all.targets("model.layers.7.mlp.up_proj"));
    }
}
