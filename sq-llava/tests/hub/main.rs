//! Models by name, from a hub on this machine into an empty cache.

#![cfg(feature = "hub")]
#![allow(clippy::print_stderr)] // A test that is skipped says so.

mod cache;
mod command;
mod resume;
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::server::{Behaviour, COMMIT, Server};
use sq_llava::hub::{Hub, HubError, Part, Settings, Token};

const NAME: &str = "org/name";

/// Bytes that differ from one file to the next.
fn bytes(seed: u8, count: usize) -> Vec<u8> {
    (0..count).map(|i| (i % 251) as u8 ^ seed).collect()
}

/// A repository with weights of a length, and with what nobody needs.
fn files(weights: usize) -> BTreeMap<String, Vec<u8>> {
    let small = |text: &str| text.as_bytes().to_vec();
    [
        ("README.md", small("read me")),
        ("config.json", small("{\"a\": 1}")),
        ("tokenizer_config.json", small("{}")),
        ("tokenizer.model", bytes(3, 700)),
        ("model.safetensors", bytes(7, weights)),
        ("pytorch_model.bin", bytes(9, weights)),
        ("tf_model.h5", bytes(1, weights)),
        ("onnx/model.onnx", bytes(2, weights)),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

/// A hub, an empty cache, and settings that lead to both.
struct World {
    server: Server,
    cache: tempfile::TempDir,
    settings: Settings,
}

impl World {
    fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        let server = Server::new(Behaviour {
            files,
            ..Behaviour::default()
        });
        let cache = tempfile::tempdir().expect("a folder");
        let settings = Settings {
            endpoint: server.url.clone(),
            pause: Duration::from_millis(1),
            tries: 3,
            ..Settings::new(cache.path())
        };
        Self {
            server,
            cache,
            settings,
        }
    }

    fn locate(&self, name: &str) -> Result<PathBuf, HubError> {
        Hub::new(self.settings.clone()).locate(Path::new(name), Part::Model)
    }

    fn offline(&self, name: &str) -> Result<PathBuf, HubError> {
        let settings = Settings {
            offline: true,
            ..self.settings.clone()
        };
        Hub::new(settings).locate(Path::new(name), Part::Model)
    }

    /// The line of a name that gives nothing.
    fn refusal(&self, name: &str) -> String {
        let line = self.locate(name).expect_err("no model").to_string();
        assert!(!line.contains('\n') && line.starts_with(name), "{line}");
        line
    }

    fn repository(&self) -> PathBuf {
        self.cache.path().join("models--org--name")
    }

    /// Requests for the content of a file: their ranges.
    fn ranges(&self, file: &str) -> Vec<Option<String>> {
        let seen = self.server.seen().into_iter();
        let to = |path: &str| path == format!("/org/name/resolve/{COMMIT}/{file}");
        let gets = seen.filter(|request| request.method == "GET" && to(&request.path));
        gets.map(|request| request.range).collect()
    }
}

/// Every file and link below a folder, with what is in it.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(folder: &Path, before: &str, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            let name = format!("{before}{}", entry.file_name().to_string_lossy());
            match fs::read_link(&path) {
                Ok(target) => {
                    let target = format!("-> {}", target.display());
                    found.insert(name, target.into_bytes());
                }
                Err(_) if path.is_dir() => walk(&path, &format!("{name}/"), found),
                Err(_) => drop(found.insert(name, fs::read(&path).expect("a file"))),
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, "", &mut found);
    found
}

#[test]
fn a_first_load_brings_what_is_needed_and_a_second_nothing() {
    let world = World::new(files(300_000));
    let told: Arc<Mutex<Vec<(u64, u64)>>> = Arc::default();
    let heard = told.clone();
    let hub = Hub::new(world.settings.clone()).with_progress(Arc::new(move |_, done, total| {
        heard.lock().expect("no panic").push((done, total));
    }));
    let folder = hub.locate(Path::new(NAME), Part::Model).expect("a model");
    assert_eq!(folder, world.repository().join("snapshots").join(COMMIT));
    let mut names: Vec<String> = tree(&folder).into_keys().collect();
    names.sort();
    let needed = [
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    ];
    assert_eq!(names, needed);
    for name in needed {
        assert!(
            fs::read(folder.join(name)).expect("a file") == files(300_000)[name],
            "{name}"
        );
    }
    let told = told.lock().expect("no panic").clone();
    assert_eq!(told.last(), Some(&(300_000, 300_000)));
    assert!(
        told.is_sorted() && told.iter().all(|(_, total)| *total == 300_000),
        "{told:?}"
    );

    world.server.seen();
    assert_eq!(world.locate(NAME).expect("a model"), folder);
    let seen = world.server.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].path.starts_with("/api/models/"), "{seen:?}");
}

#[test]
fn a_changed_model_is_brought_anew_but_for_what_is_the_same() {
    let world = World::new(files(1000));
    let first = world.locate(NAME).expect("a model");
    let commit = "f".repeat(40);
    world.server.set(|hub| {
        hub.commit = Some(commit.clone());
        hub.files
            .insert("config.json".into(), b"{\"a\": 2}".to_vec());
    });
    world.server.seen();
    let second = world.locate(NAME).expect("a model");
    assert_eq!(second, first.with_file_name(&commit));
    let seen = world.server.seen();
    let gets = seen
        .iter()
        .filter(|r| r.method == "GET" && !r.path.starts_with("/api/"));
    let gets: Vec<&str> = gets.map(|r| r.path.as_str()).collect();
    assert_eq!(gets, [format!("/org/name/resolve/{commit}/config.json")]);
    assert_eq!(
        fs::read(second.join("config.json")).expect("a file"),
        b"{\"a\": 2}"
    );
    assert_eq!(
        fs::read(first.join("config.json")).expect("a file"),
        b"{\"a\": 1}"
    );
    // A commit that is in the cache needs no reference.
    assert_eq!(
        world.offline(&format!("{NAME}@{COMMIT}")).expect("a model"),
        first
    );
    assert_eq!(world.offline(NAME).expect("a model"), second);
}

#[test]
fn refusals_say_what_to_do() {
    let world = World::new(files(10));
    let cache = world.cache.path().to_str().expect("UTF-8");
    let refused = |name: &str, status: (u16, &'static str), words: &[&str]| {
        world.server.set(|hub| hub.refuse = Some(status));
        let line = world.refusal(name);
        for word in words
            .iter()
            .chain(&["no such file or folder", cache, &world.server.url])
        {
            assert!(line.contains(word), "{word}: {line}");
        }
    };
    refused(NAME, (401, ""), &["answered 401", "set HF_TOKEN"]);
    refused(
        NAME,
        (404, "X-Error-Code: RepoNotFound\r\n"),
        &["404: no such model"],
    );
    let gated = "X-Error-Code: GatedRepo\r\n";
    refused(
        NAME,
        (403, gated),
        &["403, gated", "/org/name and set HF_TOKEN"],
    );
    let revision = "X-Error-Code: RevisionNotFound\r\n";
    refused("org/name@v9", (404, revision), &["no revision v9"]);
    refused(NAME, (503, ""), &["503", "try later"]);
    refused(NAME, (429, ""), &["429", "try later"]);
    // The list is for all, the files are not.
    world.server.set(|hub| {
        hub.refuse = None;
        hub.refuse_files = Some((403, gated));
    });
    assert!(world.refusal(NAME).contains("gated: accept its terms"));
    world.server.set(|hub| {
        hub.refuse_files = None;
        hub.busy = 2;
    });
    world.locate(NAME).expect("the third try");
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let mut world = World::new(files(10));
    world.settings.token = Token::new("hf_secret");
    world.locate(NAME).expect("a model");
    for request in world.server.seen() {
        let expected = (!request.path.starts_with("content")).then_some("Bearer hf_secret");
        assert_eq!(request.token.as_deref(), expected, "{request:?}");
    }
    world.server.set(|hub| hub.refuse = Some((401, "")));
    let line = world.refusal("org/name@other");
    assert!(
        line.contains("does not open it") && !line.contains("hf_secret"),
        "{line}"
    );
}

#[test]
fn without_a_network_the_cache_answers() {
    let world = World::new(files(10));
    let line = world.offline(NAME).expect_err("nothing there").to_string();
    assert!(
        line.contains("does not have it") && line.contains("HF_HUB_OFFLINE"),
        "{line}"
    );
    let folder = world.locate(NAME).expect("a model");
    world.server.seen();
    assert_eq!(world.offline(NAME).expect("a model"), folder);
    assert!(world.server.seen().is_empty());
    let line = world
        .offline("org/other")
        .expect_err("nothing there")
        .to_string();
    assert!(
        line.starts_with("org/other: no such file or folder"),
        "{line}"
    );

    // Nobody listens, and nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("http://{}", silent.local_addr().expect("an address"));
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a port");
    let deaf_url = format!("http://{}", deaf.local_addr().expect("an address"));
    for endpoint in [silent, deaf_url] {
        let settings = Settings {
            endpoint: endpoint.clone(),
            patience: Duration::from_millis(300),
            silence: Duration::from_millis(300),
            ..world.settings.clone()
        };
        let hub = Hub::new(settings);
        let start = Instant::now();
        assert_eq!(
            hub.locate(Path::new(NAME), Part::Model).expect("a model"),
            folder
        );
        let line = hub
            .locate(Path::new("org/other"), Part::Model)
            .expect_err("no model");
        let line = line.to_string();
        assert!(
            line.contains("cannot be reached") && line.contains(&endpoint),
            "{line}"
        );
        assert!(line.contains("give a folder"), "{line}");
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
    }
}

#[test]
fn shards_come_by_their_index() {
    let mut all = files(10);
    all.remove("model.safetensors");
    for number in 1..=3 {
        let name = format!("model-0000{number}-of-00002.safetensors");
        all.insert(name, bytes(number, 20));
    }
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors"}}"#;
    all.insert("model.safetensors.index.json".into(), index.into());
    let world = World::new(all);
    let folder = world.locate(NAME).expect("a model");
    assert!(folder.join("model-00002-of-00002.safetensors").is_file());
    assert!(!folder.join("model-00003-of-00002.safetensors").exists());
    assert!(!folder.join("pytorch_model.bin").exists());
}

#[test]
fn paths_go_before_names_and_old_names_lead_to_new_ones() {
    let world = World::new(files(10));
    // A folder here has the form of a name.
    assert_eq!(
        world.locate("src/command").expect("a folder"),
        Path::new("src/command")
    );
    for path in [
        "llava",
        "./org/name",
        "/no/such",
        "org/name/more",
        "org/llm.gguf",
    ] {
        assert_eq!(world.locate(path).expect("as it is"), Path::new(path));
    }
    assert!(world.server.seen().is_empty());
    let folder = world.locate("old/name").expect("a model");
    assert!(folder.starts_with(world.cache.path().join("models--old--name")));
    assert!(folder.join("model.safetensors").is_file());
}
