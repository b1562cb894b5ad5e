//! Typed access to the keys of a configuration file.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};
use sq_llava_data::files;

use super::known::Described;
use crate::error::ModelError;
use crate::ops::activation::Activation;

/// Reads a JSON file.
///
/// # Errors
/// If it is missing, malformed or no regular file.
pub fn read_json(path: &Path) -> Result<Value, ModelError> {
    let text = files::read_to_string(path)?;
    serde_json::from_str(&text).map_err(|e| ModelError::config(path, format!("not JSON: {e}")))
}

/// One JSON object of a configuration file, with typed access that names file and key. It notes
/// which keys are asked for: see [`Self::unknown`].
pub(crate) struct Reader<'a> {
    pub path: &'a Path,
    object: &'a Map<String, Value>,
    /// `text_config.` for an inner object.
    within: String,
    asked: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Reader<'a> {
    pub fn new(path: &'a Path, value: &'a Value) -> Result<Self, ModelError> {
        Self::within(path, value, String::new())
    }

    fn within(path: &'a Path, value: &'a Value, within: String) -> Result<Self, ModelError> {
        let object = value.as_object().ok_or_else(|| {
            let what = within.strip_suffix('.').map(|key| format!("\"{key}\" is "));
            ModelError::config(
                path,
                format!("{}not a JSON object", what.unwrap_or_default()),
            )
        })?;
        Ok(Self {
            path,
            object,
            within,
            asked: RefCell::default(),
        })
    }

    /// The object under a key.
    pub fn inside(&self, key: &str) -> Result<Option<Self>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        Self::within(self.path, value, format!("{}{key}.", self.within)).map(Some)
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let (key, value) = self.object.get_key_value(key)?;
        self.asked.borrow_mut().insert(key);
        Some(value).filter(|v| !v.is_null())
    }

    /// Whether a key is there, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// Keys that nobody asked for and that may change what is computed, with their values.
    pub fn unknown(&self, described: Described) -> Vec<String> {
        let asked = self.asked.borrow();
        let strange = self.object.iter().filter(|(key, value)| {
            !value.is_null() && !asked.contains(key.as_str()) && !described.is_harmless(key, value)
        });
        strange
            .map(|(key, value)| {
                let mut value = value.to_string();
                if value.chars().count() > 40 {
                    value = value.chars().take(40).chain(['…']).collect();
                }
                format!("\"{}{key}\": {value}", self.within)
            })
            .collect()
    }

    pub fn typed<T>(
        &self,
        key: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        read(value)
            .map(Some)
            .ok_or_else(|| self.error(&format!("\"{}{key}\" is {value}, not {kind}", self.within)))
    }

    pub fn size(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        let read = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        Ok(self.typed(key, "a size", read)?.unwrap_or(default))
    }

    /// A size that must not be zero.
    pub fn positive(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        match self.size(key, default)? {
            0 => Err(self.error(&format!("\"{}{key}\" is 0", self.within))),
            n => Ok(n),
        }
    }

    pub fn float(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        Ok(self
            .typed(key, "a number", Value::as_f64)?
            .unwrap_or(default))
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let read = self.typed(key, "true or false", Value::as_bool)?;
        Ok(read.unwrap_or(default))
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub fn id(&self, key: &str) -> Result<Option<i64>, ModelError> {
        self.typed(key, "a token id", Value::as_i64)
    }

    /// A token id or a list of them.
    pub fn ids(&self, key: &str) -> Result<Vec<i64>, ModelError> {
        let read = |v: &Value| match v {
            Value::Array(list) => list.iter().map(Value::as_i64).collect(),
            other => other.as_i64().map(|id| vec![id]),
        };
        let ids = self.typed(key, "a token id or a list of them", read)?;
        Ok(ids.unwrap_or_default())
    }

    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => serde_json::from_value(value.clone()).map_err(|_| {
                self.error(&format!(
                    "\"{}{key}\" is {value}; known are quick_gelu, gelu, gelu_pytorch_tanh, silu and relu",
                    self.within
                ))
            }),
        }
    }

    pub fn error(&self, reason: &str) -> ModelError {
        ModelError::config(self.path, reason)
    }
}

/// Refuses what [`Reader::unknown`] found, or only names it for a user who knows of it.
pub(crate) fn judge_unknown(
    path: &Path,
    found: &[String],
    allow_unused: bool,
) -> Result<(), ModelError> {
    if found.is_empty() {
        return Ok(());
    }
    let list = found.join(", ");
    if allow_unused {
        tracing::warn!("{}: {list}: ignored", path.display());
        return Ok(());
    }
    let them = match found {
        [_] => "this key is",
        _ => "these keys are",
    };
    Err(ModelError::config(
        path,
        format!(
            "{list}: {them} not known and may change what the model computes (--allow-unused goes on without)"
        ),
    ))
}
