//! What the hub is asked, and what it answers.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use sq_llava_eval::judge::is_loopback;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body, Proxy};

use super::ModelName;
use super::name::is_component;
use super::settings::Settings;

/// Longest list of a repository's files, in bytes.
const LONGEST_LISTING: u64 = 64 << 20;

/// Redirects that are followed: repositories get new names, and contents lie elsewhere.
const MOST_MOVES: usize = 6;

/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why the hub did not answer, or what it answered instead.
#[derive(Debug)]
pub(super) struct Refusal {
    text: String,
    /// Another try may go better.
    pub passing: bool,
}

impl Refusal {
    fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            passing: false,
        }
    }

    fn passing(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            passing: true,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A revision's commit and its files.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub files: BTreeSet<String>,
}

/// What content a file has.
#[derive(Debug)]
pub(super) struct Content {
    /// Names it: the SHA-256 of large files.
    pub etag: String,
    pub bytes: u64,
}

/// Content that comes, from its beginning or from where it was asked for.
pub(super) struct Coming {
    pub from: u64,
    pub body: Box<dyn Read>,
}

/// What is asked for.
struct Request<'a> {
    url: &'a str,
    /// The headers alone.
    head: bool,
    /// First byte.
    from: u64,
    /// Also on other machines, if the hub says so.
    beyond: bool,
}

impl<'a> Request<'a> {
    fn get(url: &'a str, from: u64) -> Self {
        Self {
            url,
            head: false,
            from,
            beyond: true,
        }
    }
}

/// Asks the hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    bearer: Option<String>,
    tries: u32,
    pause: Duration,
}

impl Client {
    /// A client; nothing is sent yet.
    pub fn new(settings: &Settings) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects_will_error(false)
            .user_agent(concat!("sq-llava/", env!("CARGO_PKG_VERSION")))
            // Sizes are those of the files.
            .accept_encoding("identity")
            .proxy(Proxy::try_from_env().filter(|_| !is_loopback(&settings.endpoint)))
            .timeout_resolve(Some(settings.patience))
            .timeout_connect(Some(settings.patience))
            .timeout_recv_response(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .build();
        let endpoint = settings.endpoint.clone();
        let safe = endpoint.starts_with("https://") || is_loopback(&endpoint);
        let mut token = settings.token.as_ref();
        if token.is_some() && !safe {
            tracing::warn!("the token is not sent to {endpoint}, since http:// is not encrypted");
            token = None;
        }
        Self {
            agent: agent.into(),
            endpoint,
            bearer: token.map(|token| format!("Bearer {}", token.reveal())),
            tries: settings.tries,
            pause: settings.pause,
        }
    }

    /// The pause after so many failures.
    pub fn pause(&self, failures: u32) -> Duration {
        let longer = 1u32
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(u32::MAX);
        self.pause.saturating_mul(longer).min(LONGEST_PAUSE)
    }

    /// Whether there is another try after so many failures.
    pub fn goes_on(&self, failures: u32) -> bool {
        failures < self.tries
    }

    fn url(&self, name: &ModelName, commit: &str, file: &str) -> String {
        let file: Vec<String> = file.split('/').map(encoded).collect();
        let commit = encoded(commit);
        format!(
            "{}/{}/resolve/{commit}/{}",
            self.endpoint,
            name.repository,
            file.join("/")
        )
    }

    /// Sends a request and follows redirects, those to other machines only if `beyond`. The token
    /// goes to the hub alone.
    fn send(&self, request: &Request<'_>) -> Result<Response<Body>, Refusal> {
        let mut url = request.url.to_owned();
        for _ in 0..MOST_MOVES {
            let call = match request.head {
                true => self.agent.head(&url),
                false => self.agent.get(&url),
            };
            let mut call = call.config().max_redirects(0).build();
            if let Some(bearer) = &self.bearer
                && is_same_origin(&url, &self.endpoint)
            {
                call = call.header("Authorization", bearer);
            }
            if request.from > 0 {
                call = call.header("Range", format!("bytes={}-", request.from));
            }
            let response = call.call().map_err(|error| self.unreachable(&error))?;
            match text(response.headers(), "location") {
                Some(place) if response.status().is_redirection() => {
                    if is_relative(place) {
                        url = format!("{}{place}", origin(&url));
                    } else if request.beyond {
                        url = place.to_owned();
                    } else {
                        return Ok(response);
                    }
                }
                _ => return Ok(response),
            }
        }
        Err(Refusal::new(format!("{} leads in a circle", request.url)))
    }

    /// Sends a request, again while the hub is busy.
    fn ask(&self, name: &ModelName, request: &Request<'_>) -> Result<Response<Body>, Refusal> {
        let mut failures = 0;
        loop {
            // Without a network, waiting helps nobody.
            let response = self.send(request)?;
            let status = response.status();
            if !status.is_client_error() && !status.is_server_error() {
                return Ok(response);
            }
            let refusal = self.refused(name, status, response.headers());
            failures += 1;
            if !refusal.passing || !self.goes_on(failures) {
                return Err(refusal);
            }
            tracing::debug!("{name}: {refusal}; trying again");
            std::thread::sleep(self.pause(failures));
        }
    }

    /// The commit and the files of a revision.
    ///
    /// # Errors
    /// If the hub cannot be reached, or does not give them.
    pub fn listing(&self, name: &ModelName) -> Result<Listing, Refusal> {
        let (endpoint, repository) = (&self.endpoint, &name.repository);
        let url = format!(
            "{endpoint}/api/models/{repository}/revision/{}",
            encoded(&name.revision)
        );
        let mut response = self.ask(name, &Request::get(&url, 0))?;
        let body = response.body_mut().with_config().limit(LONGEST_LISTING);
        let json = body.read_to_string().map_err(|e| self.unreachable(&e))?;
        let odd = || Refusal::new(format!("{endpoint} gave no list of files"));
        let value: Value = serde_json::from_str(&json).map_err(|_| odd())?;
        let commit = value.get("sha").and_then(Value::as_str);
        let files = value.get("siblings").and_then(Value::as_array);
        let (Some(commit), Some(files)) = (commit.filter(|c| is_component(c)), files) else {
            return Err(odd());
        };
        let files = files
            .iter()
            .filter_map(|file| file.get("rfilename")?.as_str());
        Ok(Listing {
            commit: commit.to_owned(),
            files: files.map(str::to_owned).collect(),
        })
    }

    /// Which content a file has at a commit.
    ///
    /// # Errors
    /// If the hub cannot be reached, or does not say.
    pub fn content(&self, name: &ModelName, commit: &str, file: &str) -> Result<Content, Refusal> {
        let url = self.url(name, commit, file);
        let request = Request {
            url: &url,
            head: true,
            from: 0,
            beyond: false,
        };
        let response = self.ask(name, &request)?;
        let headers = response.headers();
        // Behind a redirect the length is not that of the content.
        let length = || text(headers, "content-length").filter(|_| response.status().is_success());
        let bytes = text(headers, "x-linked-size").or_else(length);
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let bytes = bytes.and_then(|bytes| bytes.trim().parse().ok());
        let (Some(etag), Some(bytes)) = (etag.map(plain_etag), bytes) else {
            return Err(Refusal::new(format!(
                "{url} does not say what it holds (ETag, size)"
            )));
        };
        if !is_component(etag) {
            return Err(Refusal::new(format!(
                "{url} has the ETag {etag:?}, which names no file"
            )));
        }
        Ok(Content {
            etag: etag.to_owned(),
            bytes,
        })
    }

    /// The content of a file, from a byte on if the server can do that, else from its beginning.
    ///
    /// # Errors
    /// If it does not come.
    pub fn fetch(
        &self,
        name: &ModelName,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<Coming, Refusal> {
        let url = self.url(name, commit, file);
        let response = self.send(&Request::get(&url, from))?;
        let (status, headers) = (response.status(), response.headers());
        let range = text(headers, "content-range");
        let start = range.and_then(|range| range.trim().strip_prefix("bytes ")?.split('-').next());
        let from = match status {
            StatusCode::OK => 0,
            // What is here is longer than what is there.
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                return self.fetch(name, commit, file, 0);
            }
            StatusCode::PARTIAL_CONTENT if start == Some(&*from.to_string()) => from,
            _ => return Err(self.refused(name, status, headers)),
        };
        let body = Box::new(response.into_body().into_reader());
        Ok(Coming { from, body })
    }

    /// What a status means, and what to do.
    fn refused(&self, name: &ModelName, status: StatusCode, headers: &HeaderMap) -> Refusal {
        let endpoint = &self.endpoint;
        let code = text(headers, "x-error-code");
        let answered = format!("{endpoint} answered {}", status.as_u16());
        let gated = format!("gated: accept its terms at {endpoint}/{}", name.repository);
        let known = self.bearer.is_some();
        Refusal::new(match (status.as_u16(), code) {
            (401 | 403, Some("GatedRepo")) if known => {
                format!("{answered}, {gated}, as the user whose token HF_TOKEN is")
            }
            (401 | 403, Some("GatedRepo")) => format!("{answered}, {gated} and set HF_TOKEN"),
            (_, Some("RevisionNotFound")) => {
                format!("{answered}: there is no revision {}", name.revision)
            }
            (401 | 403, _) if known => format!(
                "{answered}: no such model, or the token (HF_TOKEN, or that of a login) does not \
                 open it"
            ),
            (401 | 403, _) => format!(
                "{answered}: no public model of this name; for a private or gated one set HF_TOKEN"
            ),
            (404, _) => format!("{answered}: no such model"),
            (408 | 429 | 500.., _) => {
                return Refusal::passing(format!("{answered}: busy or down, try later"));
            }
            _ => answered,
        })
    }

    fn unreachable(&self, error: &ureq::Error) -> Refusal {
        Refusal::passing(format!("{} cannot be reached ({error})", self.endpoint))
    }
}

/// A header that is text.
fn text<'a>(headers: &'a HeaderMap, key: &str) -> Option<&'a str> {
    headers.get(key)?.to_str().ok()
}

/// Without the mark of weak ones and quotes.
fn plain_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// Whether a redirect stays on the machine that was asked.
fn is_relative(location: &str) -> bool {
    location.starts_with('/') && !location.starts_with("//")
}

/// Scheme and host of an address.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    &url[..end]
}

fn is_same_origin(one: &str, other: &str) -> bool {
    origin(one).eq_ignore_ascii_case(origin(other))
}

/// One segment of an address.
fn encoded(text: &str) -> String {
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                url.push(byte as char);
            }
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(origin("https://h:1/a/b"), "https://h:1");
        assert_eq!(origin("https://h"), "https://h");
        assert!(is_same_origin("https://H/x", "https://h/y"));
        assert!(!is_same_origin("https://h.evil/x", "https://h"));
        assert!(!is_same_origin("http://h/x", "https://h"));
        assert!(is_relative("/a") && !is_relative("//h/a") && !is_relative("https://h/a"));
        assert_eq!(encoded("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(encoded("a b#é?.bin"), "a%20b%23%C3%A9%3F.bin");
        assert_eq!(plain_etag("W/\"abc\""), "abc");
    }
}
