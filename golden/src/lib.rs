//! Reference data made with PyTorch, for the workspace's tests.
//!
//! The folder is the one that the environment variable `SQ_LLAVA_GOLDEN` names, by default
//! `golden/data` of this repository. Cases are found by listing folders, never by name, so that
//! another set with the same layout runs unchanged. Everything here panics with a clear message:
//! a golden test that finds no case must fail.

pub mod allocations;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
pub use serde_json::Value;

/// The repository's own copy of the data.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

/// The folder under test: `$SQ_LLAVA_GOLDEN`, or the repository's copy.
pub fn root() -> PathBuf {
    std::env::var_os("SQ_LLAVA_GOLDEN").map_or_else(repository, PathBuf::from)
}

/// Reference data of today's families: the folder that `SQ_LLAVA_GOLDEN_FAMILIES` names, else the
/// copy here.
pub fn families() -> PathBuf {
    std::env::var_os("SQ_LLAVA_GOLDEN_FAMILIES")
        .map_or_else(|| repository().join("families"), PathBuf::from)
}

/// The 32000-token LLaMA vocabulary; always the repository's.
pub fn llama_tokenizer() -> PathBuf {
    repository().join("llama-tokenizer")
}

/// Folders of one part, by the prefix of their name (`"a_"`, `"a2_"`, `"b_"` …), sorted.
///
/// # Panics
/// If there is none.
pub fn folders(prefix: &str) -> Vec<PathBuf> {
    let root = root();
    let found: Vec<PathBuf> = entries(&root)
        .into_iter()
        .filter(|p| p.is_dir() && file_name(p).starts_with(prefix))
        .collect();
    assert!(
        !found.is_empty(),
        "no golden folder {prefix}* in {}",
        root.display()
    );
    found
}

/// Everything in a folder, sorted by name.
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let listing = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("golden folder {}: {e}", folder.display()));
    let mut found: Vec<PathBuf> = listing
        .map(|entry| entry.expect("readable entry").path())
        .collect();
    found.sort();
    found
}

/// Name of a file or folder without its parents.
pub fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// A JSON file.
pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A case: `X.json` with its `X.safetensors`.
pub struct Case {
    /// `folder/X`, for messages.
    pub name: String,
    /// The folder that holds it.
    pub folder: PathBuf,
    /// Shapes and scalars.
    pub json: Value,
    /// The tensors.
    pub tensors: Tensors,
}

/// All cases directly in the folders of a part.
///
/// # Panics
/// If there is none.
pub fn cases(prefix: &str) -> Vec<Case> {
    let found: Vec<Case> = folders(prefix)
        .iter()
        .flat_map(|folder| cases_in(folder))
        .collect();
    assert!(!found.is_empty(), "no golden case in {prefix}*");
    found
}

/// All cases directly in one folder; may be empty.
pub fn cases_in(folder: &Path) -> Vec<Case> {
    entries(folder)
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .filter(|p| p.with_extension("safetensors").is_file())
        .map(|p| Case {
            name: format!("{}/{}", file_name(folder), file_name(&p.with_extension(""))),
            folder: folder.to_path_buf(),
            json: json(&p),
            tensors: Tensors::read(&p.with_extension("safetensors")),
        })
        .collect()
}

/// The `a_*` folder that a case of another part is built on: the one whose name `hint` contains,
/// else the one whose LLaMA configuration equals `config` in every size.
pub fn base_folder(hint: &str, config: Option<&Value>) -> PathBuf {
    let bases = folders("a_");
    if let Some(base) = bases.iter().find(|b| hint.contains(&file_name(b))) {
        return base.clone();
    }
    let sizes = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "rope_theta",
    ];
    if let Some(config) = config {
        for base in &bases {
            let other = json(&base.join("orig/config.json"));
            if sizes.iter().all(|k| other.get(k) == config.get(k)) {
                return base.clone();
            }
        }
    }
    // Adapters were made on the grouped-query model where nothing says otherwise.
    bases
        .iter()
        .find(|b| {
            let config = json(&b.join("orig/config.json"));
            config["num_key_value_heads"] != config["num_attention_heads"]
        })
        .unwrap_or_else(|| panic!("no base checkpoint for {hint:?}"))
        .clone()
}

/// Tensors of one safetensors file, held in memory.
pub struct Tensors {
    path: PathBuf,
    entries: BTreeMap<String, (Vec<usize>, Dtype, Vec<u8>)>,
}

impl Tensors {
    /// Reads a file.
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file =
            SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let entries = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let entry = (view.shape().to_vec(), view.dtype(), view.data().to_vec());
                (name, entry)
            })
            .collect();
        Self {
            path: path.to_path_buf(),
            entries,
        }
    }

    /// Names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether the file holds `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.entry(name).0.clone()
    }

    /// Values of a float tensor (f32 or f64) as f64, row-major.
    pub fn f64(&self, name: &str) -> Vec<f64> {
        let (_, dtype, bytes) = self.entry(name);
        match dtype {
            Dtype::F64 => chunks(bytes).map(f64::from_le_bytes).collect(),
            Dtype::F32 => chunks(bytes)
                .map(|b| f64::from(f32::from_le_bytes(b)))
                .collect(),
            other => panic!("{}: {name} is {other:?}, not a float", self.path.display()),
        }
    }

    /// Values of a float tensor as f32, row-major.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.f64(name).into_iter().map(|v| v as f32).collect()
    }

    /// Values of an integer tensor, row-major.
    pub fn i64(&self, name: &str) -> Vec<i64> {
        let (_, dtype, bytes) = self.entry(name);
        assert_eq!(*dtype, Dtype::I64, "{}: {name}", self.path.display());
        chunks(bytes).map(i64::from_le_bytes).collect()
    }

    /// Values of a tensor of bytes, row-major.
    pub fn u8(&self, name: &str) -> Vec<u8> {
        let (_, dtype, bytes) = self.entry(name);
        assert_eq!(*dtype, Dtype::U8, "{}: {name}", self.path.display());
        bytes.clone()
    }

    fn entry(&self, name: &str) -> &(Vec<usize>, Dtype, Vec<u8>) {
        self.entries
            .get(name)
            .unwrap_or_else(|| panic!("{} has no tensor {name}", self.path.display()))
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    // `chunks_exact` yields slices of exactly N bytes.
    bytes
        .chunks_exact(N)
        .map(|c| c.try_into().expect("N bytes"))
}

/// `‖a − b‖ / ‖b‖`.
///
/// # Panics
/// If the lengths differ, the reference is empty or all zero, or a value is not finite: then
/// nothing would have been compared.
pub fn relative_error(actual: &[f32], reference: &[f64]) -> f64 {
    assert_eq!(actual.len(), reference.len(), "number of values");
    let norm: f64 = reference.iter().map(|v| v * v).sum::<f64>().sqrt();
    assert!(norm > 0.0, "the reference is empty or zero");
    let delta: f64 = actual
        .iter()
        .zip(reference)
        .map(|(a, b)| (f64::from(*a) - b).powi(2))
        .sum::<f64>()
        .sqrt();
    assert!(delta.is_finite(), "a value is not finite");
    delta / norm
}

/// Fails if the relative error is above `tolerance`.
pub fn assert_close(what: &str, actual: &[f32], reference: &[f64], tolerance: f64) {
    let error = relative_error(actual, reference);
    assert!(
        error <= tolerance,
        "{what}: relative error {error:.3e} is above {tolerance:.0e}"
    );
}

/// Runs the tests of the calling program whose names hold `filter` again, in a process with an
/// environment variable set.
///
/// # Panics
/// If one fails or there is none.
pub fn again(variable: &str, value: &str, filter: &str) {
    let program = std::env::current_exe().expect("the running test program");
    let output = std::process::Command::new(program)
        .arg(filter)
        .env(variable, value)
        .output()
        .expect("the same program again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{variable}={value}: {text}");
    assert!(
        !text.contains("running 0 tests"),
        "{variable}={value}: no test is named {filter}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_error_is_a_ratio_of_norms() {
        assert!((relative_error(&[3.0, 5.0], &[3.0, 4.0]) - 0.2).abs() < 1e-12);
    }

    #[test]
    #[should_panic(expected = "not finite")]
    fn nan_never_passes() {
        assert_close("nan", &[f32::NAN], &[1.0], 1e9);
    }

    #[test]
    #[should_panic(expected = "no golden folder")]
    fn a_missing_part_fails() {
        folders("zz_");
    }
}
