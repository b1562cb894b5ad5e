//! One request to the endpoint, repeated while it is busy.

use std::time::Duration;

use serde_json::{Value, json};
use ureq::{Agent, Proxy};

use crate::EvalError;

use super::{JudgeConfig, is_loopback};

/// Longest pause before a repetition.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Characters of a refusal that a message quotes.
const QUOTED: usize = 300;

/// Asks the judge.
#[derive(Debug)]
pub struct Client {
    config: JudgeConfig,
    agent: Agent,
    url: String,
    key: Option<String>,
}

/// The outcome of an attempt.
enum Attempt {
    Reply(String),
    /// Worth another try, after the pause that the endpoint asks for.
    Busy(String, Option<Duration>),
    Refused(String),
}

impl Client {
    /// A client; the key comes from the environment.
    ///
    /// # Errors
    /// If there is a key and the endpoint is another machine without encryption, unless the
    /// configuration allows that.
    pub fn new(config: JudgeConfig) -> Result<Self, EvalError> {
        let url = format!("{}/chat/completions", config.endpoint.trim_end_matches('/'));
        let key = std::env::var(&config.api_key_env)
            .ok()
            .map(|key| key.trim().to_string())
            .filter(|key| !key.is_empty());
        let open = config.endpoint.starts_with("http://") && !is_loopback(&config.endpoint);
        if key.is_some() && open && !config.send_key_unencrypted {
            let reason = format!(
                "it is another machine, and http:// would send the key of the environment variable \
                 {} unencrypted: use https://, unset the variable, or set send_key_unencrypted = true \
                 if the network is to be trusted",
                config.api_key_env
            );
            return Err(EvalError::Endpoint {
                url: format!("endpoint {:?}", config.endpoint),
                reason,
            });
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // The key would go along, to wherever they lead.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(Proxy::try_from_env().filter(|_| !is_loopback(&config.endpoint)))
            .timeout_global(Some(Duration::from_secs(config.timeout_s)))
            .build();
        Ok(Self {
            agent: agent.into(),
            config,
            url,
            key,
        })
    }

    /// What is sent for a message.
    pub fn body(&self, content: &str) -> Value {
        let user = json!({"role": "user", "content": content});
        let messages = match &self.config.system {
            Some(system) => json!([{"role": "system", "content": system}, user]),
            None => json!([user]),
        };
        json!({
            "model": self.config.model,
            "messages": messages,
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
        })
    }

    /// Sends a message and waits for the reply. Time-outs, lost connections and the statuses 408,
    /// 409, 425, 429 and 5xx are tried again, after a pause that doubles, or the one that
    /// `Retry-After` asks for.
    ///
    /// # Errors
    /// If the endpoint refuses, or fails more often than `retries`.
    pub fn ask(&self, body: &Value) -> Result<String, EvalError> {
        let refused = |reason| EvalError::Endpoint {
            url: self.url.clone(),
            reason,
        };
        let mut pause = Duration::from_secs_f64(self.config.backoff_s);
        for attempt in 0..=self.config.retries {
            let (reason, wanted) = match self.attempt(body) {
                Attempt::Reply(text) => return Ok(text),
                Attempt::Refused(reason) => return Err(refused(reason)),
                Attempt::Busy(reason, wanted) => (reason, wanted),
            };
            if attempt == self.config.retries {
                return Err(refused(format!(
                    "{reason}, {} times; what was judged is kept, run again to go on",
                    attempt + 1
                )));
            }
            tracing::debug!("{}: {reason}; trying again", self.url);
            std::thread::sleep(wanted.unwrap_or(pause).min(LONGEST_PAUSE));
            pause = pause.saturating_mul(2);
        }
        Err(refused("not asked".into()))
    }

    fn attempt(&self, body: &Value) -> Attempt {
        let mut request = self.agent.post(&self.url);
        request = request.header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let received = request.send(body.to_string()).and_then(|response| {
            let (parts, mut body) = response.into_parts();
            Ok((parts, body.read_to_vec()?))
        });
        let (parts, bytes) = match received {
            Ok(received) => received,
            Err(error) if passes(&error) => return Attempt::Busy(error.to_string(), None),
            Err(error) => return Attempt::Refused(error.to_string()),
        };
        let header = |name: &str| parts.headers.get(name)?.to_str().ok();
        let status = parts.status.as_u16();
        let text = String::from_utf8_lossy(&bytes);
        let quoted: String = text.chars().take(QUOTED).collect();
        match status {
            200..300 => match reply(&text) {
                Some(text) => Attempt::Reply(text),
                None => Attempt::Refused(format!("no choices[0].message.content in {quoted:?}")),
            },
            408 | 409 | 425 | 429 | 500.. => {
                let wanted = header("retry-after").and_then(|s| s.trim().parse().ok());
                let wanted = wanted.filter(|s: &f64| *s >= 0.0 && s.is_finite());
                let longest = LONGEST_PAUSE.as_secs_f64();
                let wanted = wanted.map(|s| Duration::from_secs_f64(s.min(longest)));
                Attempt::Busy(format!("status {status}"), wanted)
            }
            300..=399 => Attempt::Refused(format!(
                "status {status}: it refers to {}; name the endpoint that answers itself",
                header("location").unwrap_or("another address")
            )),
            401 | 403 => Attempt::Refused(format!(
                "status {status}: {quoted}; is the key in the environment variable {} right?",
                self.config.api_key_env
            )),
            _ => Attempt::Refused(format!("status {status}: {quoted}")),
        }
    }
}

/// Whether a failure may go away by itself: the network, not the request.
fn passes(error: &ureq::Error) -> bool {
    use ureq::Error::{BodyStalled, ConnectionFailed, HostNotFound, Io, Timeout};
    matches!(
        error,
        Io(_) | Timeout(_) | HostNotFound | ConnectionFailed | BodyStalled
    )
}

/// `choices[0].message.content`.
fn reply(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    let content = value.pointer("/choices/0/message/content")?;
    Some(content.as_str()?.to_string())
}
