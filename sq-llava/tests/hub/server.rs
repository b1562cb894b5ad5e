//! A hub on this machine: lists of files, descriptions, content on another port, cut connections
//! and refusals.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// What `main` is.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that came in.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Path, on the port of the content with `content` before it.
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

/// What the hub has and does.
#[derive(Debug, Default, Clone)]
pub struct Behaviour {
    /// Of `org/name`.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Of `org/base`.
    pub base: BTreeMap<String, Vec<u8>>,
    /// Names that the list has besides.
    pub listed: Vec<String>,
    /// Commit in the list.
    pub commit: Option<String>,
    /// ETag of every file.
    pub etag: Option<String>,
    /// Contents end after so many bytes, so many times.
    pub cut: Option<(usize, usize)>,
    /// Ranges are not known.
    pub whole_only: bool,
    /// Status, headers: of the list.
    pub refuse: Option<(u16, &'static str)>,
    /// Status, headers: of files.
    pub refuse_files: Option<(u16, &'static str)>,
    /// So many ranges are refused.
    pub unsatisfiable: usize,
    /// So many answers are 503.
    pub busy: usize,
}

pub struct Server {
    pub url: String,
    seen: Arc<Mutex<Vec<Request>>>,
    behaviour: Arc<Mutex<Behaviour>>,
}

/// A name by content: SHA-256, or something as long as git's for small files.
pub fn etag(file: &str, bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    match is_large(file) {
        true => hex,
        false => hex[..40].to_owned(),
    }
}

fn is_large(file: &str) -> bool {
    [".safetensors", ".bin", ".model"]
        .iter()
        .any(|end| file.ends_with(end))
}

impl Server {
    pub fn new(behaviour: Behaviour) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let (hub, content) = (listen(), listen());
        let address = |listener: &TcpListener| {
            format!("http://{}", listener.local_addr().expect("an address"))
        };
        let (url, content_url) = (address(&hub), address(&content));
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let behaviour = Arc::new(Mutex::new(behaviour));
        for (listener, is_content) in [(hub, false), (content, true)] {
            let (seen, behaviour) = (seen.clone(), behaviour.clone());
            let content_url = content_url.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let Some(mut request) = receive(&stream) else {
                        continue;
                    };
                    if is_content {
                        request.path.insert_str(0, "content");
                    }
                    seen.lock().expect("no panic").push(request.clone());
                    let mut behaviour = behaviour.lock().expect("no panic");
                    // The other side may have gone away.
                    let _ = answer(&stream, &request, &mut behaviour, &content_url);
                }
            });
        }
        Self {
            url,
            seen,
            behaviour,
        }
    }

    /// Changes what the hub does.
    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().expect("no panic"));
    }

    /// The requests since the last call.
    pub fn seen(&self) -> Vec<Request> {
        std::mem::take(&mut self.seen.lock().expect("no panic"))
    }
}

fn receive(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let mut request = Request {
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        range: None,
        token: None,
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Some(request);
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.token = Some(value.to_owned()),
            _ => {}
        }
    }
}

fn answer(
    mut stream: &TcpStream,
    request: &Request,
    behaviour: &mut Behaviour,
    content_url: &str,
) -> std::io::Result<()> {
    let head = |status: u16, headers: &str, length: usize| {
        format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        )
    };
    let mut reply = |status: u16, headers: &str, body: &[u8]| {
        stream.write_all(head(status, headers, body.len()).as_bytes())?;
        match request.method.as_str() {
            "HEAD" => Ok(()),
            _ => stream.write_all(body),
        }
    };
    if behaviour.busy > 0 {
        behaviour.busy -= 1;
        return reply(503, "", b"");
    }
    let path = request.path.split('?').next().unwrap_or_default();
    // A repository that has a new name.
    if path.contains("/old/name/") {
        let place = path.replace("/old/name/", "/org/name/");
        return reply(307, &format!("Location: {place}\r\n"), b"");
    }
    let none = BTreeMap::new();
    let files = match path {
        path if path.contains("/org/name/") => &behaviour.files,
        path if path.contains("/org/base/") => &behaviour.base,
        _ => &none,
    };
    if path.starts_with("/api/models/") {
        if files.is_empty() {
            return reply(404, "X-Error-Code: RepoNotFound\r\n", b"");
        }
        if let Some((status, headers)) = behaviour.refuse {
            return reply(status, headers, b"");
        }
        if path.contains("/tree/") {
            let files: Vec<_> = files
                .iter()
                .map(|(file, bytes)| {
                    let (size, oid) = (bytes.len(), etag(file, bytes));
                    serde_json::json!({"type": "file", "path": file, "size": size, "oid": oid})
                })
                .collect();
            return reply(200, "", serde_json::to_string(&files)?.as_bytes());
        }
        let names = files.keys().chain(&behaviour.listed);
        let siblings: Vec<_> = names
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let commit = behaviour.commit.as_deref().unwrap_or(COMMIT);
        let list = serde_json::json!({
            "_id": "1", "id": "org/name", "private": false, "tags": [], "downloads": 0, "likes": 0,
            "sha": commit, "siblings": siblings,
        });
        return reply(
            200,
            "Content-Type: application/json\r\n",
            list.to_string().as_bytes(),
        );
    }
    let found = match path.strip_prefix("content/") {
        Some(name) => {
            let mut all = behaviour.files.iter().chain(&behaviour.base);
            all.find(|(file, bytes)| etag(file, bytes) == name)
        }
        None => path
            .split_once("/resolve/")
            .and_then(|(_, rest)| files.get_key_value(rest.split_once('/')?.1)),
    };
    let Some((file, bytes)) = found else {
        return reply(404, "X-Error-Code: RepoNotFound\r\n", b"");
    };
    if let Some((status, headers)) = behaviour.refuse_files {
        return reply(status, headers, b"");
    }
    let tag = behaviour.etag.clone().unwrap_or_else(|| etag(file, bytes));
    let mut headers = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{tag}\"\r\n");
    if is_large(file) && !path.starts_with("content") {
        let place = etag(file, bytes);
        headers += &format!(
            "X-Linked-Etag: \"{tag}\"\r\nX-Linked-Size: {}\r\nLocation: {content_url}/{place}\r\n",
            bytes.len()
        );
        return reply(302, &headers, b"");
    }
    if request.range.is_some() && behaviour.unsatisfiable > 0 {
        behaviour.unsatisfiable -= 1;
        return reply(416, "", b"");
    }
    let start = request.range.as_deref().filter(|_| !behaviour.whole_only);
    let start = start.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let start: usize = start.and_then(|start| start.parse().ok()).unwrap_or(0);
    if start > 0 {
        let (last, size) = (bytes.len() - 1, bytes.len());
        headers += &format!("Content-Range: bytes {start}-{last}/{size}\r\n");
    }
    let status = if start > 0 { 206 } else { 200 };
    let rest = &bytes[start..];
    if let (Some((after, times)), true) = (&mut behaviour.cut, path.starts_with("content"))
        && *times > 0
        && *after < rest.len()
    {
        *times -= 1;
        stream.write_all(head(status, &headers, rest.len()).as_bytes())?;
        return stream.write_all(&rest[..*after]);
    }
    reply(status, &headers, rest)
}
