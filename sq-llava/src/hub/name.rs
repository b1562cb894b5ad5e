//! Names of models.

use std::fmt;
use std::path::Path;

/// Longest organisation or model in a name.
const LONGEST: usize = 96;

/// Ends of weight files, which are paths.
const FILES: [&str; 5] = [".gguf", ".safetensors", ".bin", ".pt", ".pth"];

/// `org/name`, at a branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    /// `org/name`.
    pub repository: String,
    /// Branch, tag, `refs/pr/N` or commit.
    pub revision: String,
}

impl ModelName {
    /// The name that a path has the form of: `org/name`, or `org/name@revision`.
    pub fn of(path: &Path) -> Option<Self> {
        let text = path.to_str()?;
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (organisation, model) = repository.split_once('/')?;
        let named = is_part(organisation) && is_part(model) && is_revision(revision);
        let file = FILES.iter().any(|end| model.ends_with(end));
        (named && !file).then(|| Self {
            repository: repository.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        match self.revision.as_str() {
            "main" => Ok(()),
            revision => write!(f, "@{revision}"),
        }
    }
}

/// `validate_repo_id` of huggingface_hub.
fn is_part(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= LONGEST
        && text.starts_with(inner)
        && text.ends_with(inner)
        && text.chars().all(|c| inner(c) || c == '-' || c == '.')
        && !text.contains("--")
        && !text.contains("..")
        && !text.ends_with(".git")
}

fn is_revision(text: &str) -> bool {
    text.split('/').all(is_component)
}

/// Whether a name may become one folder or file of the cache.
pub(super) fn is_component(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && !text.starts_with('.')
        && !text.contains(['/', '\\', ':'])
        && !text.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Option<(String, String)> {
        ModelName::of(Path::new(text)).map(|name| (name.repository, name.revision))
    }

    #[test]
    fn names_have_an_organisation_a_model_and_maybe_a_revision() {
        let is = |text, repository: &str, revision: &str| {
            assert_eq!(name(text), Some((repository.into(), revision.into())));
        };
        is(
            "openai/clip-vit-large-patch14-336",
            "openai/clip-vit-large-patch14-336",
            "main",
        );
        is("Qwen/Qwen2.5_0.5B@v1", "Qwen/Qwen2.5_0.5B", "v1");
        is("a/b@refs/pr/3", "a/b", "refs/pr/3");
    }

    #[test]
    fn paths_are_no_names() {
        for text in [
            "llava",
            "./llava",
            "../a/b",
            "/a/b",
            "a/b/c",
            "a/",
            "a//b",
            "~/b",
            ".a/b",
            "a/b.",
            "a--b/c",
            "a/b..c",
            "a/b.gguf",
            "a/b@",
            "a/b@../c",
            "a/b@/x",
            "a\\b",
            "a/b c",
            "",
            "a/mm_projector.bin",
            "a/é",
            "a/b@c\\d",
        ] {
            assert_eq!(name(text), None, "{text}");
        }
    }
}
