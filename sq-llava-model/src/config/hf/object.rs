//! Typed access to the keys of a configuration file.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::ops::activation::Activation;

/// Reads a JSON file.
///
/// # Errors
/// If it is missing or malformed.
pub fn read_json(path: &Path) -> Result<Value, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|e| ModelError::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| ModelError::config(path, format!("not JSON: {e}")))
}

/// One JSON object of a configuration file, with typed access that names file and key.
pub(crate) struct Reader<'a> {
    pub path: &'a Path,
    object: &'a Map<String, Value>,
}

impl<'a> Reader<'a> {
    pub fn new(path: &'a Path, value: &'a Value) -> Result<Self, ModelError> {
        let object = value
            .as_object()
            .ok_or_else(|| ModelError::config(path, "not a JSON object"))?;
        Ok(Self { path, object })
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
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
            .ok_or_else(|| self.error(&format!("\"{key}\" is {value}, not {kind}")))
    }

    pub fn size(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        let read = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        Ok(self.typed(key, "a size", read)?.unwrap_or(default))
    }

    /// A size that must not be zero.
    pub fn positive(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        match self.size(key, default)? {
            0 => Err(self.error(&format!("\"{key}\" is 0"))),
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
                    "\"{key}\" is {value}; known are quick_gelu, gelu, gelu_pytorch_tanh, silu and relu"
                ))
            }),
        }
    }

    pub fn error(&self, reason: &str) -> ModelError {
        ModelError::config(self.path, reason)
    }
}
