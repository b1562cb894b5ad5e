//! The towers that travel inside the command.

use std::path::Path;

use anyhow::Result;

use crate::output::write;

/// A file of `assets/world-towers`.
macro_rules! file {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../../assets/world-towers/", $name)) as &[u8],
        )
    };
}

/// Names and contents.
const FILES: [(&str, &[u8]); 7] = [
    file!("llm/config.json"),
    file!("llm/model.safetensors"),
    file!("llm/tokenizer.json"),
    file!("llm/tokenizer_config.json"),
    file!("vision/config.json"),
    file!("vision/model.safetensors"),
    file!("vision/preprocessor_config.json"),
];

/// Writes the shipped towers to `dir/llm` and `dir/vision`.
///
/// # Errors
/// If a file cannot be written.
pub fn unpack(dir: &Path) -> Result<()> {
    write_all(dir, |_| true)
}

/// Writes the language model alone, to `dir/llm`.
pub(super) fn unpack_llm(dir: &Path) -> Result<()> {
    write_all(dir, |name| name.starts_with("llm/"))
}

fn write_all(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for (name, bytes) in FILES.iter().filter(|(name, _)| wanted(name)) {
        write(&dir.join(name), bytes)?;
    }
    Ok(())
}
