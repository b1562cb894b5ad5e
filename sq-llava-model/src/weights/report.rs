//! What a load did, key by key.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::error::ModelError;

/// Keys named in an error message; the report has all of them.
const NAMED: usize = 8;

/// What a load did. Keys are named as the checkpoint names them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// Weights of the model that were filled from the files.
    pub loaded: Vec<String>,
    /// Weights of the model that no file holds.
    pub missing: Vec<String>,
    /// Keys of the files that the model has no place for.
    pub unexpected: Vec<String>,
    /// Weights whose shape in the file is not the model's.
    pub mismatched: Vec<Mismatch>,
    /// Keys that are known and not needed: computed buffers, the text half of a CLIP, and weights
    /// that another file overrides or has too.
    pub ignored: Vec<String>,
    /// Weights of new parts that start from a random draw because the caller asked for new parts.
    pub fresh: Vec<String>,
    /// Number of loaded tensors by their type in the files (`F16`, `Q4_K`).
    pub formats: BTreeMap<String, usize>,
    /// What was taken for granted because no file says it.
    pub notes: Vec<String>,
}

/// A weight of another shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// Key as in the checkpoint.
    pub key: String,
    /// Shape in the model.
    pub expected: Vec<usize>,
    /// Shape in the file.
    pub found: Vec<usize>,
}

impl LoadReport {
    /// Whether every weight of the model was filled and every key of the files used.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }

    /// Refuses a load that gives another model than the files describe. Weights without a place
    /// are accepted with `allow_unused`.
    ///
    /// # Errors
    /// If weights are missing, have another shape, or find no place.
    pub(super) fn check(&self, dir: &Path, allow_unused: bool) -> Result<(), ModelError> {
        let fail = |what: String| ModelError::Incomplete(format!("{}: {what}", dir.display()));
        if let Some(failure) = self.failure() {
            return Err(fail(failure));
        }
        if self.unexpected.is_empty() {
            return Ok(());
        }
        let unused = format!(
            "{} keys of the files are not part of the model: {}",
            self.unexpected.len(),
            list(&self.unexpected)
        );
        if !allow_unused {
            return Err(fail(format!(
                "{unused}; without them it would compute something else than it was trained to (--allow-unused goes on anyway)"
            )));
        }
        tracing::warn!("{}: {unused}", dir.display());
        Ok(())
    }

    /// The failure that this report amounts to, if it is one: weights that are missing although
    /// the model needs them, or have another shape.
    pub(super) fn failure(&self) -> Option<String> {
        let needed: Vec<String> = self
            .missing
            .iter()
            .filter(|key| !is_unused(key))
            .cloned()
            .collect();
        let mut parts = Vec::new();
        if !needed.is_empty() {
            parts.push(format!(
                "missing weights ({}): {}",
                needed.len(),
                list(&needed)
            ));
        }
        if !self.mismatched.is_empty() {
            let shapes: Vec<String> = self.mismatched.iter().map(ToString::to_string).collect();
            parts.push(format!(
                "weights of another shape than config.json says ({}): {}",
                shapes.len(),
                list(&shapes)
            ));
        }
        if parts.is_empty() {
            return None;
        }
        if !self.unexpected.is_empty() {
            parts.push(format!(
                "unknown keys ({}): {}",
                self.unexpected.len(),
                list(&self.unexpected)
            ));
        }
        Some(parts.join("; "))
    }
}

/// Weights that no forward pass reads.
fn is_unused(key: &str) -> bool {
    key.contains("mm_projector.ln_1.")
}

/// The first few of a list, by name.
pub(super) fn list(keys: &[String]) -> String {
    let named = keys[..keys.len().min(NAMED)].join(", ");
    match keys.len() - keys.len().min(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is {:?} in the file and {:?} in the model",
            self.key, self.found, self.expected
        )
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} loaded, {} missing, {} unexpected, {} mismatched, {} ignored",
            self.loaded.len(),
            self.missing.len(),
            self.unexpected.len(),
            self.mismatched.len(),
            self.ignored.len()
        )?;
        if !self.fresh.is_empty() {
            write!(f, ", {} new", self.fresh.len())?;
        }
        if !self.formats.is_empty() {
            let formats = self.formats.iter();
            let formats: Vec<String> = formats.map(|(name, n)| format!("{n} × {name}")).collect();
            write!(f, "\nstored as {}", formats.join(", "))?;
        }
        for note in &self.notes {
            write!(f, "\nnote: {note}")?;
        }
        for (what, keys) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if !keys.is_empty() {
                write!(f, "\n{what}: {}", list(keys))?;
            }
        }
        for mismatch in self.mismatched.iter().take(NAMED) {
            write!(f, "\nmismatched: {mismatch}")?;
        }
        Ok(())
    }
}
