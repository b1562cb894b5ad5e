//! Data through an object store: a server on this machine that knows ranges.

#![cfg(feature = "object-store")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sq_llava_data::source::Picture;
use sq_llava_data::{DataSet, Source};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sources")
}

/// Serves the fixtures; counts the bodies that it gives.
struct Server {
    url: String,
    given: Arc<AtomicUsize>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let given = Arc::new(AtomicUsize::new(0));
        let count = given.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = count.clone();
                std::thread::spawn(move || serve(&stream, &count));
            }
        });
        Self { url, given }
    }

    fn source(&self, name: &str, images: &str) -> Source {
        Source::new(
            format!("{}/{name}", self.url),
            format!("{}/{images}", self.url),
        )
    }
}

/// Answers the requests of a connection.
fn serve(mut stream: &TcpStream, given: &AtomicUsize) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut range) = (String::new(), None);
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(ends) = line.strip_prefix("range: bytes=") {
                let (from, to) = ends.split_once('-').expect("a range");
                let number = |text: &str| text.parse::<usize>().expect("a number");
                range = Some((number(from), number(to) + 1));
            }
            if line.is_empty() {
                break;
            }
        }
        let path = first.split(' ').nth(1).expect("a path");
        let Ok(bytes) = std::fs::read(fixtures().join(path.trim_start_matches('/'))) else {
            let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer.as_bytes()).expect("sent");
            continue;
        };
        let (from, to) = range.unwrap_or((0, bytes.len()));
        let body = &bytes[from..to.min(bytes.len())];
        let status = match range {
            Some(_) => format!(
                "206 Partial Content\r\nContent-Range: bytes {from}-{}/{}",
                from + body.len() - 1,
                bytes.len()
            ),
            None => "200 OK".to_owned(),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"{}\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n",
            body.len(),
            bytes.len()
        );
        stream.write_all(head.as_bytes()).expect("sent");
        if !first.starts_with("HEAD") {
            given.fetch_add(1, Ordering::Relaxed);
            stream.write_all(body).expect("sent");
        }
    }
}

#[test]
fn what_lies_in_a_store_is_what_lies_on_the_disk() {
    let server = Server::start();
    let json = DataSet::open_one(fixtures().join("data.json"), fixtures().join("pictures"));
    let json = json.expect("the fixture");
    let file = |picture: Picture| match picture {
        Picture::File(path) => std::fs::read(path).expect("read"),
        Picture::Inside { bytes, .. } => bytes.to_vec(),
    };
    for name in [
        "data.json",
        "datasets.parquet",
        "messages.parquet",
        "paths.parquet",
        "data.tar",
    ] {
        let data = DataSet::open(vec![server.source(name, "pictures")]).expect(name);
        assert_eq!(data.len(), json.len(), "{name}");
        for index in [4, 0, 5, 2, 1, 3] {
            let sample = data.get(index).expect(name);
            assert_eq!(sample, json.get(index).expect("a sample"), "{name}");
            for (place, image) in sample.images.iter().enumerate() {
                let found = file(data.picture(index, place, image).expect(name));
                let expected = file(json.picture(index, place, image).expect("a picture"));
                assert_eq!(found, expected, "{name} {index}");
            }
        }
        let sum = data.sums().expect("sums").remove(0);
        assert_eq!(sum.path, PathBuf::from(format!("{}/{name}", server.url)));
    }
}

#[test]
fn a_small_shard_is_asked_for_once() {
    let server = Server::start();
    let data = DataSet::open(vec![server.source("{datasets,lists}.parquet", "")]);
    let data = data.expect("both");
    assert_eq!(data.len(), 12);
    for index in 0..12 {
        let sample = data.get(index).expect("a sample");
        for (place, image) in sample.images.iter().enumerate() {
            data.picture(index, place, image).expect("a picture");
        }
    }
    assert_eq!(server.given.load(Ordering::Relaxed), 2);
}

#[test]
fn what_is_not_there_is_named() {
    let server = Server::start();
    let error = DataSet::open(vec![server.source("none.tar", "")]).expect_err("gone");
    assert!(error.to_string().contains("/none.tar"), "{error}");
    let data = DataSet::open(vec![server.source("data.json", "nowhere")]).expect("the file");
    let error = data.picture(0, 0, "coco/cup.png").expect_err("gone");
    assert!(
        error.to_string().contains("nowhere/coco/cup.png"),
        "{error}"
    );
}
