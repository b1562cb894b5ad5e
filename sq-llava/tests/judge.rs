//! `judge` against a server on this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use golden::Value;

/// What the server does with a request: a status, headers beside the usual ones, and a body.
type Answer = (u16, &'static str, String);

/// Requests that came in: the authorization header and the body.
type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// A server that answers the n-th request by `answer(n, body)`.
fn serve(answer: impl Fn(usize, &Value) -> Answer + Send + 'static) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1/", listener.local_addr().expect("an address"));
    let seen = Seen::default();
    let record = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let (key, body) = receive(&stream);
            let number = {
                let mut seen = record.lock().expect("no panic");
                seen.push((key, body.clone()));
                seen.len() - 1
            };
            let (status, headers, text) = answer(number, &body);
            if status == 0 {
                // Held open longer than the time-out; the next requests are answered meanwhile.
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_secs(6));
                    drop(stream);
                });
                continue;
            }
            let length = text.len();
            let reply = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{text}"
            );
            // The other side may have gone away.
            let _ = stream.write_all(reply.as_bytes());
        }
    });
    (url, seen)
}

fn receive(stream: &TcpStream) -> (String, Value) {
    let mut reader = BufReader::new(stream);
    let (mut key, mut length, mut first) = (String::new(), 0, true);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        let line = line.trim_end();
        if std::mem::take(&mut first) {
            assert!(line.starts_with("POST /v1/chat/completions "), "{line}");
        }
        if line.is_empty() {
            break;
        }
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().expect("a length");
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                key = value.to_string();
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    (key, serde_json::from_slice(&body).expect("JSON"))
}

fn completion(text: &str) -> String {
    serde_json::json!({"choices": [{"message": {"role": "assistant", "content": text}}]})
        .to_string()
}

/// The message of the user.
fn asked(body: &Value) -> &str {
    let messages = body["messages"].as_array().expect("messages");
    messages[messages.len() - 1]["content"]
        .as_str()
        .expect("a text")
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(url: &str, requests: &[&str]) -> Self {
        let place = Self {
            dir: tempfile::tempdir().expect("a folder"),
        };
        std::fs::write(place.path("requests.jsonl"), requests.join("\n")).expect("written");
        place.point(url);
        place
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn point(&self, url: &str) {
        let config = format!(
            "endpoint = \"{url}\"\nmodel = \"judge-1\"\napi_key_env = \"SQ_LLAVA_TEST_KEY\"\n\
             timeout_s = 3\nretries = 3\nbackoff_s = 0.01\nparallel = 1\ntries = 2\n\
             system = \"Be fair.\"\n"
        );
        std::fs::write(self.path("judge.toml"), config).expect("written");
    }

    fn run(&self, more: &[&str]) -> Output {
        let text = |path: &Path| path.to_str().expect("UTF-8").to_string();
        Command::new(env!("CARGO_BIN_EXE_sq-llava"))
            .env("SQ_LLAVA_TEST_KEY", "secret")
            .args([
                "judge",
                "--json",
                "--requests",
                &text(&self.path("requests.jsonl")),
            ])
            .args(["--config", &text(&self.path("judge.toml"))])
            .args(["--out", &text(&self.path("out"))])
            .args(more)
            .output()
            .expect("the command starts")
    }

    fn report(&self, more: &[&str]) -> Value {
        let output = self.run(more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    }

    fn complaint(&self) -> String {
        let output = self.run(&[]);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

const GRADES: [&str; 3] = [
    r#"{"id": "v1_0", "capability": ["ocr", "math"], "content": "one"}"#,
    r#"{"id": "v1_1", "capability": ["ocr"], "content": "two"}"#,
    r#"{"id": "v1_2", "capability": ["rec"], "content": "three"}"#,
];

#[test]
fn a_busy_endpoint_is_asked_again() {
    let (url, seen) = serve(|number, body| match number {
        0 => (503, "", "later".into()),
        1 => (429, "Retry-After: 0\r\n", "slowly".into()),
        2 => (0, "", String::new()),
        _ => match asked(body) {
            "one" => (200, "", completion("0.5")),
            "two" => (200, "", completion("1.0")),
            _ => (200, "", completion("I cannot say.")),
        },
    });
    let place = Place::new(&url, &GRADES);
    let report = place.report(&[]);
    // Three failures and one, two, and three twice.
    let requests = seen.lock().expect("no panic").clone();
    assert_eq!(requests.len(), 7);
    for (key, body) in &requests {
        assert_eq!(key, "Bearer secret");
        assert_eq!(body["model"], "judge-1");
        assert_eq!(body["messages"][0]["content"], "Be fair.");
    }
    assert_eq!(report["rows"][0]["score"], 75.0);
    assert_eq!(report["rows"][0]["questions"], 2);
    assert_eq!(report["without_verdict"], serde_json::json!(["v1_2"]));
    let judged = std::fs::read_to_string(place.path("out/judged.jsonl")).expect("lines");
    let first: Value = serde_json::from_str(judged.lines().next().expect("a line")).expect("JSON");
    assert_eq!(
        (&first["id"], &first["scores"][0][0]),
        (&"v1_0".into(), &0.5.into())
    );
    // Again: only what has no verdict is asked for.
    let again = place.report(&[]);
    assert_eq!(
        (&again["asked"], &again["rows"]),
        (&1.into(), &report["rows"])
    );
    // Another run of each asks anew.
    assert_eq!(place.report(&["--runs", "2"])["asked"], 4);
}

#[test]
fn what_was_judged_survives_a_failure() {
    let pairs: Vec<String> = (1..=4)
        .map(|i| {
            format!(
                r#"{{"id": {i}, "question_id": {i}, "category": "llava_bench_conv", "content": "q{i}"}}"#
            )
        })
        .collect();
    let lines: Vec<&str> = pairs.iter().map(String::as_str).collect();
    let (url, seen) = serve(|number, _| match number {
        0 | 1 => (200, "", completion("8 6\nThe first is better.")),
        _ => (400, "", "{\"error\": \"no such model\"}".into()),
    });
    let place = Place::new(&url, &lines);
    let error = place.complaint();
    assert!(
        error.contains("status 400") && error.contains("no such model"),
        "{error}"
    );
    assert_eq!(seen.lock().expect("no panic").len(), 3);

    let (url, seen) = serve(|_, _| (200, "", completion("10, 9\n")));
    place.point(&url);
    let report = place.report(&[]);
    assert_eq!(
        (&report["asked"], seen.lock().expect("no panic").len()),
        (&2.into(), 2)
    );
    let row = &report["rows"][0];
    assert_eq!(
        (&row["reference"], &row["ours"]),
        (&90.0.into(), &75.0.into())
    );
    let relative = row["score"].as_f64().expect("a number");
    assert!((relative - 100.0 * 7.5 / 9.0).abs() < 1e-9);
}

#[test]
fn fault_28_the_key_stays_off_unencrypted_networks() {
    // No such host: a request would say so.
    let place = Place::new("http://judge.invalid/v1", &GRADES);
    let error = place.complaint();
    for part in ["judge.toml", "unencrypted", "SQ_LLAVA_TEST_KEY", "https"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!place.path("out/replies.jsonl").exists());
    let config = std::fs::read_to_string(place.path("judge.toml")).expect("read");
    let config = config.replace("retries = 3", "retries = 0");
    let allowed = format!("{config}send_key_unencrypted = true\n");
    std::fs::write(place.path("judge.toml"), allowed).expect("written");
    let error = place.complaint();
    assert!(!error.contains("unencrypted"), "{error}");
    // A reference to another address is not followed: the key would go along.
    let (url, other) = serve(|_, _| (200, "", completion("1.0")));
    let location = format!("Location: {url}chat/completions\r\n");
    let (url, seen) = serve(move |_, _| (307, location.clone().leak(), String::new()));
    place.point(&url);
    let error = place.complaint();
    assert!(error.contains("status 307"), "{error}");
    assert_eq!(seen.lock().expect("no panic").len(), 1);
    assert!(other.lock().expect("no panic").is_empty());
}

#[test]
fn fault_20_a_judge_without_a_verdict_fails() {
    let (url, _) = serve(|_, _| (200, "", completion("I cannot say.")));
    let place = Place::new(&url, &GRADES);
    let error = place.complaint();
    assert!(error.contains("nothing is scored"), "{error}");
    assert!(place.path("out/judged.jsonl").is_file());
}

#[test]
fn mistakes_get_one_line() {
    let (url, _) = serve(|_, _| (401, "", "who?".into()));
    let place = Place::new(&url, &GRADES);
    let error = place.complaint();
    assert!(error.contains("SQ_LLAVA_TEST_KEY"), "{error}");
    // Nobody listens there any more.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    place.point(&format!("http://{address}/v1"));
    let error = place.complaint();
    assert!(
        error.contains("4 times") && error.contains("run again"),
        "{error}"
    );
    place.point("https://example.invalid/v1");
    if !cfg!(feature = "https") {
        assert!(place.complaint().contains("--features https"));
    }
}
