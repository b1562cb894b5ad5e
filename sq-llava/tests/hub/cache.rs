//! What stands in the cache: whole models alone, nothing outside it, and as Python's library has
//! it.

use std::fs;
use std::io::Read;
use std::path::Path;

use sq_llava::hub::{Hub, Part, Settings};

use super::server::{Behaviour, COMMIT, etag};
use super::{NAME, World, bytes, files, tree};

#[test]
fn half_a_model_in_the_cache_is_none() {
    let world = World::new(files(10));
    let folder = world.locate(NAME).expect("a model");
    fs::remove_file(folder.join("model.safetensors")).expect("removed");
    let line = world.offline(NAME).expect_err("no weights").to_string();
    assert!(line.contains("has it in part (no weights"), "{line}");
    let index = r#"{"weight_map": {"a": "model-1-of-2.safetensors"}}"#;
    fs::write(folder.join("model.safetensors.index.json"), index).expect("written");
    let line = world.offline(NAME).expect_err("no shard").to_string();
    assert!(
        line.contains("model-1-of-2.safetensors is missing"),
        "{line}"
    );
    // A link whose content is gone is mended.
    fs::remove_file(folder.join("model.safetensors.index.json")).expect("removed");
    let blob = world
        .repository()
        .join("blobs")
        .join(etag(".safetensors", &bytes(7, 10)));
    fs::remove_file(&blob).expect("removed");
    world.locate(NAME).expect("a model");
    fs::remove_file(&blob).expect("removed");
    world.locate(NAME).expect("a model");
    assert!(fs::read(folder.join("model.safetensors")).expect("a file") == bytes(7, 10));
}

#[test]
fn nothing_that_a_server_says_leaves_the_cache() {
    // The cache is a folder within the one that is watched.
    let outside = |change: &dyn Fn(&mut Behaviour)| {
        let mut world = World::new(files(10));
        world.settings.cache = world.cache.path().join("deep/er/hub");
        world.server.set(|hub| change(hub));
        let result = world.locate(NAME);
        let found = tree(world.cache.path());
        for name in found.keys() {
            assert!(name.starts_with("deep/er/hub/"), "{name}");
        }
        result
    };
    let names = [
        "../../x",
        "../../x.safetensors",
        "/x.bin",
        "..",
        "a/../../../config.json",
    ];
    let listed = outside(&|hub| hub.listed = names.map(String::from).to_vec());
    assert!(listed.is_ok());
    let index = |name: &str| {
        let text = serde_json::json!({"weight_map": {"a": name}}).to_string();
        outside(&|hub| {
            hub.files.remove("model.safetensors");
            hub.files
                .insert("model.safetensors.index.json".into(), text.clone().into());
            hub.files.insert(name.into(), b"x".to_vec());
        })
    };
    let error = index("../../x.safetensors")
        .expect_err("refused")
        .to_string();
    assert!(error.contains("not a plain file name"), "{error}");
    let tagged = outside(&|hub| hub.etag = Some("../../../../../x".into()));
    assert!(
        tagged
            .expect_err("refused")
            .to_string()
            .contains("names no file")
    );
    let committed = outside(&|hub| hub.commit = Some("../../../../x".into()));
    assert!(
        committed
            .expect_err("refused")
            .to_string()
            .contains("no list of files")
    );
}

#[test]
fn revisions_have_references_of_their_own() {
    let world = World::new(files(10));
    for (name, reference) in [("org/name@v1", "v1"), ("org/name@refs/pr/2", "refs/pr/2")] {
        world.locate(name).expect("a model");
        let path = world.repository().join("refs").join(reference);
        assert_eq!(fs::read_to_string(path).expect("a reference"), COMMIT);
        let seen = world.server.seen();
        let encoded = reference.replace('/', "%2F");
        assert_eq!(
            seen[0].path,
            format!("/api/models/org/name/revision/{encoded}")
        );
    }
    world
        .locate(&format!("org/name@{COMMIT}"))
        .expect("a model");
    assert!(!world.repository().join("refs").join(COMMIT).exists());
}

/// With `SQ_LLAVA_PYTHON` naming a Python that has `huggingface_hub`.
#[test]
fn the_cache_is_the_one_that_python_keeps() {
    let Some(python) = std::env::var_os("SQ_LLAVA_PYTHON") else {
        eprintln!("skipped: SQ_LLAVA_PYTHON names no Python with huggingface_hub");
        return;
    };
    let mut all = files(300_000);
    all.insert(
        "Vit-lora/adapter_config.json".into(),
        b"{\"r\": 1}".to_vec(),
    );
    all.insert("Vit-lora/adapter_model.safetensors".into(), bytes(5, 50));
    let world = World::new(all);
    world.locate(NAME).expect("a model");
    let ours = tree(world.cache.path());

    let theirs_cache = tempfile::tempdir().expect("a folder");
    let script = "from huggingface_hub import snapshot_download as s; import sys; \
        s('org/name', allow_patterns=sys.argv[1:])";
    let wanted = ours
        .keys()
        .filter_map(|name| name.split_once(&format!("snapshots/{COMMIT}/")));
    let python = |cache: &Path, endpoint: &str, offline: &str| {
        std::process::Command::new(&python)
            .args(["-c", script])
            .args(wanted.clone().map(|(_, file)| file))
            .env("HF_HUB_CACHE", cache)
            .env("HF_ENDPOINT", endpoint)
            .env("HF_HUB_OFFLINE", offline)
            .output()
            .expect("Python starts")
    };
    let output = python(theirs_cache.path(), &world.server.url, "0");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut theirs = tree(theirs_cache.path());
    // A list that Python keeps for itself since 2.0.
    theirs.retain(|name, _| !name.starts_with("models--org--name/trees/"));
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>()
    );
    for (name, content) in &ours {
        assert!(theirs[name] == *content, "{name}");
    }
    // Each takes what the other left.
    let output = python(world.cache.path(), "http://127.0.0.1:9", "1");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let settings = Settings {
        offline: true,
        ..Settings::new(theirs_cache.path())
    };
    let folder = Hub::new(settings)
        .locate(Path::new(NAME), Part::Model)
        .expect("a model");
    let mut first = [0; 4];
    let mut file = fs::File::open(folder.join("model.safetensors")).expect("a file");
    file.read_exact(&mut first).expect("bytes");
    assert_eq!(first.as_slice(), &bytes(7, 4));
}
