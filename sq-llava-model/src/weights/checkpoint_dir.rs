//! What a checkpoint directory holds, listed once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sq_llava_data::gguf::is_gguf;
use sq_llava_data::image::ImageProcessorConfig;

use crate::config::read_json;
use crate::error::ModelError;

/// Directory of the vision tower's adapter inside a run.
pub(super) const VISION_ADAPTER: &str = "Vit-lora";
/// Rows of the role tokens.
pub(super) const NEW_TOKENS: &str = "new_tokens.safetensors";

/// Stem of an adapter's weights.
const ADAPTER: &str = "adapter_model";
/// Stems of a projector's weights; the first that is there counts.
const PROJECTOR: [&str; 2] = ["non_lora_trainables", "mm_projector"];

/// Files that stand beside a model's own weights and are not part of them.
const BESIDE: [&str; 5] = [
    ADAPTER,
    PROJECTOR[0],
    PROJECTOR[1],
    "new_tokens",
    "optimizer",
];

/// A directory, or the one that a GGUF file lies in.
#[derive(Debug, Clone, Default)]
pub(super) struct CheckpointDir {
    pub path: PathBuf,
    /// The file that was named instead of its directory.
    named: Option<PathBuf>,
    files: BTreeSet<String>,
    folders: BTreeSet<String>,
}

impl CheckpointDir {
    /// Lists a directory, or that of a GGUF file.
    ///
    /// # Errors
    /// With the reason `neither` if a path is neither of the two, or if it cannot be read.
    pub fn open(path: &Path, neither: &str) -> Result<Self, ModelError> {
        if is_gguf(path) {
            let parent = path.parent().map_or(PathBuf::new(), Path::to_path_buf);
            return Ok(Self {
                named: Some(path.to_path_buf()),
                ..Self::list(parent)?
            });
        }
        match path.is_dir() {
            true => Self::list(path.to_path_buf()),
            false => Err(ModelError::config(path, neither)),
        }
    }

    /// Lists a directory.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn list(path: PathBuf) -> Result<Self, ModelError> {
        let here = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => &path,
        };
        let (mut files, mut folders) = (BTreeSet::new(), BTreeSet::new());
        for entry in std::fs::read_dir(here).map_err(|e| ModelError::io(here, e))? {
            let Ok(entry) = entry else { continue };
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            // Links count as what they point to; what is no regular file is refused by who opens
            // it.
            match entry.path().is_dir() {
                true => folders.insert(name),
                false => files.insert(name),
            };
        }
        Ok(Self {
            path,
            named: None,
            files,
            folders,
        })
    }

    /// A file, if it is there.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let found = self.named.is_none() && self.files.contains(name);
        found.then(|| self.path.join(name))
    }

    /// `stem.safetensors`, else `stem.bin`, if there is one.
    fn weights(&self, stem: &str) -> Option<PathBuf> {
        [".safetensors", ".bin"]
            .iter()
            .find_map(|extension| self.file(&format!("{stem}{extension}")))
    }

    /// Weights of an adapter.
    pub fn adapter(&self) -> Option<PathBuf> {
        self.weights(ADAPTER)
    }

    /// `adapter_config.json`.
    pub fn adapter_config(&self) -> Option<PathBuf> {
        self.file("adapter_config.json")
    }

    /// Files with a projector or a prototype extractor, the one that counts most last.
    pub fn projectors(&self) -> Vec<PathBuf> {
        let stems = PROJECTOR.iter().rev();
        stems.filter_map(|stem| self.weights(stem)).collect()
    }

    /// The projector beside a model that has none inside.
    pub fn projector(&self) -> Option<PathBuf> {
        self.weights("mm_projector")
    }

    /// The directory of the vision tower's adapter.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn vision_adapter(&self) -> Result<Option<Self>, ModelError> {
        let found = self.named.is_none() && self.folders.contains(VISION_ADAPTER);
        found
            .then(|| Self::list(self.path.join(VISION_ADAPTER)))
            .transpose()
    }

    /// Whether it holds what training changed instead of a whole model.
    ///
    /// # Errors
    /// As [`Self::model_files`].
    pub fn is_run(&self) -> Result<bool, ModelError> {
        if self.named.is_some() {
            return Ok(false);
        }
        if self.adapter_config().is_some() || self.adapter().is_some() {
            return Ok(true);
        }
        let part = !self.projectors().is_empty()
            || self.files.contains(NEW_TOKENS)
            || self.folders.contains(VISION_ADAPTER);
        Ok(part && self.model_files()?.is_empty())
    }

    /// Whether a tokenizer lies here.
    pub fn has_tokenizer(&self) -> bool {
        ["tokenizer.json", "tokenizer.model"]
            .iter()
            .any(|name| self.files.contains(*name))
    }

    /// Whether an image processor's configuration lies here.
    pub fn has_preprocessor(&self) -> bool {
        ImageProcessorConfig::is_in(&self.path)
    }

    /// The GGUF file: the one that was named, or the only one beside no model of another kind.
    /// Projectors of llama.cpp (`mmproj*`) do not count.
    ///
    /// # Errors
    /// As [`Self::model_files`], or if there are several.
    pub fn gguf(&self) -> Result<Option<PathBuf>, ModelError> {
        if let Some(file) = &self.named {
            return Ok(Some(file.clone()));
        }
        if !self.model_files()?.is_empty() {
            return Ok(None);
        }
        let names = self.files.iter().filter(|name| !name.starts_with("mmproj"));
        let files = names.map(|name| self.path.join(name));
        let mut found: Vec<PathBuf> = files.filter(|file| is_gguf(file)).collect();
        if found.len() > 1 {
            return Err(ModelError::weights(
                &self.path,
                format!(
                    "{} GGUF files are here; name one of them ({})",
                    found.len(),
                    found[0].display()
                ),
            ));
        }
        Ok(found.pop())
    }

    /// [`Self::model_files`], of which there must be some.
    ///
    /// # Errors
    /// As [`Self::model_files`], and with the reason `none` if there are none.
    pub fn own_weights(&self, none: &str) -> Result<Vec<PathBuf>, ModelError> {
        let files = self.model_files()?;
        let [first, ..] = &files[..] else {
            return Err(ModelError::weights(&self.path, none));
        };
        let name = first.file_name().unwrap_or_default().to_string_lossy();
        if let (1, Some(index)) = (files.len(), self.file(&format!("{name}.index.json"))) {
            tracing::warn!(
                "{} is read, as in transformers; {} beside it is not",
                first.display(),
                index.display()
            );
        }
        Ok(files)
    }

    /// The files of the model's own weights, in the order in which Hugging Face looks for them;
    /// empty if there are none.
    ///
    /// # Errors
    /// If an index names a shard that is missing, shards are incomplete, or several files could be
    /// meant.
    pub fn model_files(&self) -> Result<Vec<PathBuf>, ModelError> {
        // `_get_resolved_checkpoint_files` of transformers' modeling_utils.py: one file before
        // shards.
        for (single, index) in [
            ("model.safetensors", "model.safetensors.index.json"),
            ("pytorch_model.bin", "pytorch_model.bin.index.json"),
        ] {
            if let Some(single) = self.file(single) {
                return Ok(vec![single]);
            }
            if let Some(index) = self.file(index) {
                return self.indexed(&index);
            }
        }
        for extension in [".safetensors", ".bin"] {
            let found = self.unnamed(extension)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    /// Weights without an index: shards by their numbers, or the only file.
    fn unnamed(&self, extension: &str) -> Result<Vec<PathBuf>, ModelError> {
        let names = self.files.iter().filter(|name| {
            name.ends_with(extension)
                && !BESIDE.iter().any(|stem| name.starts_with(stem))
                // Python's Trainer leaves it beside a model.
                && *name != "training_args.bin"
        });
        let found: Vec<&String> = names.collect();
        let shards: Vec<(usize, usize)> = found.iter().filter_map(|n| shard_number(n)).collect();
        if let Some(&(_, of)) = shards.first() {
            let numbers: BTreeSet<usize> = shards.iter().map(|&(n, _)| n).collect();
            if let Some(missing) = (1..=of).find(|n| !numbers.contains(n)) {
                return Err(ModelError::weights(
                    &self.path,
                    format!(
                        "shard {missing} of {of} (*-{missing:05}-of-{of:05}{extension}) is missing"
                    ),
                ));
            }
            let files = found.iter().filter(|n| shard_number(n).is_some());
            return Ok(files.map(|n| self.path.join(n)).collect());
        }
        match found.as_slice() {
            [] => Ok(Vec::new()),
            [one] => Ok(vec![self.path.join(one)]),
            [one, two, ..] => Err(ModelError::weights(
                &self.path,
                format!(
                    "several weight files without an index ({one}, {two} …); name the model's model{extension}"
                ),
            )),
        }
    }

    fn indexed(&self, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
        let value = read_json(index)?;
        let map = value
            .get("weight_map")
            .and_then(|map| map.as_object())
            .ok_or_else(|| ModelError::config(index, "no \"weight_map\" object"))?;
        let mut names = BTreeSet::new();
        for (key, name) in map {
            let name = name.as_str().ok_or_else(|| {
                ModelError::config(index, format!("\"weight_map\" gives no file for {key}"))
            })?;
            // A shard lies beside its index; anything else is not a file name.
            if name.contains(['/', '\\']) {
                return Err(ModelError::config(
                    index,
                    format!("shard \"{name}\" is not a plain file name"),
                ));
            }
            names.insert(name);
        }
        if names.is_empty() {
            return Err(ModelError::config(index, "\"weight_map\" is empty"));
        }
        match names.iter().find(|name| !self.files.contains(**name)) {
            Some(missing) => Err(ModelError::weights(
                self.path.join(missing),
                format!("this shard is named in {} but missing", index.display()),
            )),
            None => Ok(names.iter().map(|name| self.path.join(name)).collect()),
        }
    }
}

/// `(2, 5)` for `model-00002-of-00005.safetensors`.
fn shard_number(name: &str) -> Option<(usize, usize)> {
    let stem = name.rsplit_once('.')?.0;
    let (rest, of) = stem.rsplit_once("-of-")?;
    let (_, number) = rest.rsplit_once('-')?;
    Some((number.parse().ok()?, of.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with empty files, and folders where a name ends in a slash.
    fn dir(names: &[&str]) -> (tempfile::TempDir, CheckpointDir) {
        let place = tempfile::tempdir().unwrap();
        for name in names {
            match name.strip_suffix('/') {
                Some(folder) => std::fs::create_dir(place.path().join(folder)).unwrap(),
                None => std::fs::write(place.path().join(name), "").unwrap(),
            }
        }
        let listed = CheckpointDir::list(place.path().to_path_buf()).unwrap();
        (place, listed)
    }

    #[test]
    fn runs_are_told_from_whole_models() {
        for (names, run) in [
            (&["adapter_config.json"][..], true),
            (&["adapter_model.bin", "model.safetensors"], true),
            (&["mm_projector.bin"], true),
            (&["mm_projector.bin", "model.safetensors"], false),
            (
                &["non_lora_trainables.bin", "model-00001-of-00001.bin"],
                false,
            ),
            (&["Vit-lora/"], true),
            (&["Vit-lora"], false),
            (&["new_tokens.safetensors"], true),
            (&["model.safetensors/"], false),
            (&[], false),
        ] {
            assert_eq!(dir(names).1.is_run().unwrap(), run, "{names:?}");
        }
    }

    #[test]
    fn a_gguf_file_stands_alone_among_its_neighbours() {
        let (place, listed) = dir(&["a.gguf", "mmproj-a.gguf", "adapter_config.json"]);
        let named = CheckpointDir::open(&place.path().join("a.gguf"), "").unwrap();
        assert!(!named.is_run().unwrap() && listed.is_run().unwrap());
        assert!(named.adapter_config().is_none());
        for dir in [named, listed] {
            assert_eq!(dir.gguf().unwrap(), Some(place.path().join("a.gguf")));
        }
        let (_place, several) = dir(&["a.gguf", "b.gguf"]);
        assert!(several.gguf().unwrap_err().to_string().contains("2 GGUF"));
        let (_place, other) = dir(&["a.gguf", "model.safetensors"]);
        assert_eq!(other.gguf().unwrap(), None);
    }
}
