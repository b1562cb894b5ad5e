//! A judge behind an OpenAI-compatible endpoint: its configuration, asking it, and remembering
//! what it said.

mod cache;
mod client;
pub mod requests;

pub use cache::ReplyCache;
pub use client::Client;

use std::path::Path;

use serde::Deserialize;

use crate::EvalError;

/// `judge.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeConfig {
    /// Where `/chat/completions` is put behind, as `https://api.openai.com/v1`.
    pub endpoint: String,
    /// Name of the model.
    pub model: String,
    /// Environment variable that holds the key; one that is not set sends none.
    #[serde(default = "key_variable")]
    pub api_key_env: String,
    /// Message from the system before each request.
    #[serde(default)]
    pub system: Option<String>,
    /// 0 is greedy.
    #[serde(default)]
    pub temperature: f64,
    /// Most tokens of a reply.
    #[serde(default = "tokens")]
    pub max_tokens: u32,
    /// Seconds until a request counts as lost.
    #[serde(default = "seconds")]
    pub timeout_s: u64,
    /// How often a request is repeated when the endpoint is busy or out of reach.
    #[serde(default = "retries")]
    pub retries: u32,
    /// Seconds before the first repetition; twice as many before each further one.
    #[serde(default = "backoff")]
    pub backoff_s: f64,
    /// Requests under way at a time.
    #[serde(default = "parallel")]
    pub parallel: usize,
    /// How often a request is sent while the reply gives no verdict.
    #[serde(default = "tries")]
    pub tries: u32,
    /// Whether the key may go unencrypted over http:// to another machine.
    #[serde(default)]
    pub send_key_unencrypted: bool,
}

fn key_variable() -> String {
    "OPENAI_API_KEY".into()
}

fn tokens() -> u32 {
    1024
}

fn seconds() -> u64 {
    60
}

fn retries() -> u32 {
    6
}

fn backoff() -> f64 {
    1.0
}

fn parallel() -> usize {
    4
}

fn tries() -> u32 {
    3
}

impl JudgeConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read, has an unknown key or an impossible value.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let text = sq_llava_data::files::read_to_string(path)?;
        let refused = |reason| EvalError::JudgeSettings {
            path: path.to_path_buf(),
            reason,
        };
        let config: Self = toml::from_str(&text).map_err(|e| refused(e.to_string()))?;
        config.check().map_err(refused)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let http = self.endpoint.starts_with("http://");
        if !http && !self.endpoint.starts_with("https://") {
            return Err(format!(
                "endpoint {:?} begins with neither http:// nor https://",
                self.endpoint
            ));
        }
        if !http && !cfg!(feature = "https") {
            return Err(format!(
                "endpoint {:?} needs a build with --features https",
                self.endpoint
            ));
        }
        if self.parallel == 0 || self.tries == 0 || self.timeout_s == 0 {
            return Err("parallel, tries and timeout_s must be above 0".into());
        }
        if !(0.0..=3600.0).contains(&self.backoff_s) {
            return Err("backoff_s must be between 0 and 3600".into());
        }
        Ok(())
    }
}

/// Whether an http:// endpoint is on this machine, by its name alone.
pub fn is_loopback(endpoint: &str) -> bool {
    let rest = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or(rest);
    // A name before an @ is a user's, whatever it looks like.
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.split(']').next().unwrap_or(inner),
        None => host.split(':').next().unwrap_or(host),
    };
    let address = host.parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<JudgeConfig, EvalError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("judge.toml");
        std::fs::write(&path, text).unwrap();
        JudgeConfig::read(&path)
    }

    #[test]
    fn two_keys_are_enough() {
        let found = config("endpoint = \"http://127.0.0.1:1/v1\"\nmodel = \"m\"").unwrap();
        assert_eq!(
            (found.api_key_env.as_str(), found.retries),
            ("OPENAI_API_KEY", 6)
        );
    }

    #[test]
    fn fault_28_only_this_machine_is_loopback() {
        for (endpoint, expected) in [
            ("http://127.0.0.1:8000/v1", true),
            ("http://127.8.0.1", true),
            ("http://localhost:1/v1", true),
            ("http://LOCALHOST", true),
            ("http://[::1]:8000/v1", true),
            ("http://user:word@localhost/v1", true),
            ("http://example.com/v1", false),
            ("http://192.168.0.2:8000/v1", false),
            ("http://localhost.example.com", false),
            ("http://localhost@example.com/v1", false),
            ("http://127.0.0.1:80@example.com", false),
            ("http://example.com/@localhost", false),
            ("http://example.com\\@localhost", false),
            ("http://[::2]/v1", false),
            ("http://0.0.0.0/v1", false),
        ] {
            assert_eq!(is_loopback(endpoint), expected, "{endpoint}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("model = \"m\"", "endpoint"),
            ("endpoint = \"ftp://x\"\nmodel = \"m\"", "ftp://x"),
            ("endpoint = \"http://x\"\nmodel = \"m\"\nkey = \"k\"", "key"),
            (
                "endpoint = \"http://x\"\nmodel = \"m\"\nparallel = 0",
                "parallel",
            ),
        ] {
            let error = format!("{:#}", config(text).unwrap_err());
            assert!(
                error.contains(word) && error.contains("judge.toml"),
                "{error}"
            );
        }
    }
}
