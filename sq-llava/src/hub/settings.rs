//! Where the cache is and how the hub is asked, as Python's `huggingface_hub` has it.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub.
const ENDPOINT: &str = "https://huggingface.co";

/// Secret that opens private and gated models.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token; nothing if the text is empty.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The secret.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Where the cache is and how the hub is asked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of `models--org--name`.
    pub cache: PathBuf,
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// Sent to the endpoint alone.
    pub token: Option<Token>,
    /// Nothing but the cache.
    pub offline: bool,
    /// Longest wait for a connection.
    pub patience: Duration,
    /// Longest silence before and within an answer.
    pub silence: Duration,
    /// Tries of a request that the hub is too busy for, and of a download that brings nothing.
    pub tries: u32,
    /// Pause before the second try; each further one is twice as long.
    pub pause: Duration,
}

impl Settings {
    /// A cache, and the public hub without a token.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            endpoint: ENDPOINT.into(),
            token: None,
            offline: false,
            patience: Duration::from_secs(5),
            silence: Duration::from_secs(20),
            tries: 5,
            pause: Duration::from_secs(1),
        }
    }

    /// By `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH` and
    /// `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_variables(|name| env::var(name).ok(), env::home_dir().as_deref())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>, user_home: Option<&Path>) -> Self {
        let set = |name: &str| variable(name).filter(|text| !text.trim().is_empty());
        let user_home = user_home.unwrap_or(Path::new("."));
        // Python expands a tilde that a shell left.
        let path = |name: &str| {
            let text = set(name)?;
            Some(match text.strip_prefix("~/") {
                Some(rest) => user_home.join(rest),
                None => PathBuf::from(text),
            })
        };
        let is_on = |name: &str| {
            let on = |text: String| matches!(&*text.to_uppercase(), "1" | "ON" | "YES" | "TRUE");
            set(name).map(on)
        };
        let home = path("HF_HOME").unwrap_or_else(|| {
            let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| user_home.join(".cache"));
            caches.join("huggingface")
        });
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home.join("hub"));
        let from_file = || {
            let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            std::fs::read_to_string(file).ok()
        };
        let token = set("HF_TOKEN")
            .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
            .or_else(from_file);
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let offline = is_on("HF_HUB_OFFLINE").or_else(|| is_on("TRANSFORMERS_OFFLINE"));
        Self {
            endpoint: endpoint.trim().trim_end_matches('/').into(),
            token: token.as_deref().and_then(Token::new),
            offline: offline.unwrap_or(false),
            ..Self::new(cache)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)], home: &Path) -> Settings {
        let find = |name: &str| variables.iter().find(|(other, _)| *other == name);
        Settings::from_variables(|name| find(name).map(|(_, v)| (*v).into()), Some(home))
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        let cache = |variables: &[(&str, &str)]| read(variables, Path::new("/home/u")).cache;
        let is = |variables: &[(&str, &str)], path: &str| {
            assert_eq!(cache(variables), Path::new(path));
        };
        is(&[], "/home/u/.cache/huggingface/hub");
        is(&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub");
        is(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/h/hub");
        is(&[("HF_HOME", "~/h")], "/home/u/h/hub");
        is(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/o")], "/o");
        is(
            &[("HUGGINGFACE_HUB_CACHE", "/o"), ("HF_HUB_CACHE", "/c")],
            "/c",
        );
        is(&[("HF_HOME", "")], "/home/u/.cache/huggingface/hub");
    }

    #[test]
    fn the_token_is_the_variable_else_the_file_of_a_login() {
        let home = tempfile::tempdir().unwrap();
        let home_text = home.path().to_str().unwrap();
        let token = |more: &[(&str, &str)]| {
            let variables = [&[("HF_HOME", home_text)], more].concat();
            let settings = read(&variables, Path::new("/home/u"));
            settings.token.map(|token| token.reveal().to_owned())
        };
        assert_eq!(token(&[]), None);
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(token(&[]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_TOKEN", " hf_x ")]).as_deref(), Some("hf_x"));
        assert_eq!(token(&[("HF_TOKEN_PATH", "/none")]), None);
        assert_eq!(format!("{:?}", Token::new("hf_x")), "Some(Token(..))");
    }

    #[test]
    fn switches_are_read_as_python_reads_them() {
        let offline = |variables: &[(&str, &str)]| read(variables, Path::new("/")).offline;
        assert!(!offline(&[]));
        assert!(offline(&[("HF_HUB_OFFLINE", "1")]));
        assert!(offline(&[("HF_HUB_OFFLINE", "true")]));
        assert!(!offline(&[
            ("HF_HUB_OFFLINE", "0"),
            ("TRANSFORMERS_OFFLINE", "1")
        ]));
        assert!(offline(&[("TRANSFORMERS_OFFLINE", "yes")]));
        let endpoint = read(&[("HF_ENDPOINT", "https://mirror/hf/")], Path::new("/")).endpoint;
        assert_eq!(endpoint, "https://mirror/hf");
    }
}
