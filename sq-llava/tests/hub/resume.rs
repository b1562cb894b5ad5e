//! Downloads that are cut, and what is left of them.

use std::fs;
use std::path::{Path, PathBuf};

use sq_llava::hub::{Hub, Part, Settings};

use super::server::{COMMIT, etag};
use super::{NAME, World, bytes, files, tree};

#[test]
fn a_cut_connection_goes_on_where_it_ended() {
    let world = World::new(files(900_000));
    world.server.set(|hub| hub.cut = Some((400_000, 2)));
    let folder = world.locate(NAME).expect("a model");
    let ranges = world.ranges("model.safetensors");
    let expected = [
        None,
        Some("bytes=400000-".to_owned()),
        Some("bytes=800000-".to_owned()),
    ];
    assert_eq!(ranges, expected);
    assert!(fs::read(folder.join("model.safetensors")).expect("a file") == bytes(7, 900_000));
}

#[test]
fn a_download_that_was_stopped_is_no_model_and_goes_on_later() {
    let world = World::new(files(900_000));
    world
        .server
        .set(|hub| hub.cut = Some((100_000, usize::MAX)));
    let once = Settings {
        tries: 1,
        ..world.settings.clone()
    };
    let error = Hub::new(once)
        .locate(Path::new(NAME), Part::Model)
        .expect_err("cut")
        .to_string();
    assert!(
        error.contains("run again to go on") && error.contains("model.safetensors"),
        "{error}"
    );
    let snapshot = world.repository().join("snapshots").join(COMMIT);
    assert!(!snapshot.join("model.safetensors").exists());
    let blob = world
        .repository()
        .join("blobs")
        .join(etag(".safetensors", &bytes(7, 900_000)));
    assert!(!blob.exists());
    assert!(world.offline(NAME).is_err());

    world.server.set(|hub| hub.cut = None);
    world.server.seen();
    let folder = world.locate(NAME).expect("a model");
    assert_eq!(
        world.ranges("model.safetensors"),
        [Some("bytes=100000-".to_owned())]
    );
    assert!(fs::read(folder.join("model.safetensors")).expect("a file") == bytes(7, 900_000));
    assert_eq!(world.offline(NAME).expect("a model"), folder);
    let left = tree(&world.repository())
        .into_keys()
        .filter(|name| name.contains("incomplete"));
    assert_eq!(left.count(), 0);
}

/// Leaves part of the weights, as a process that was killed does.
fn leave(world: &World, part: &[u8]) -> PathBuf {
    let blobs = world.repository().join("blobs");
    let weights = &files(500_000)["model.safetensors"];
    let path = blobs.join(format!("{}.incomplete", etag(".safetensors", weights)));
    fs::create_dir_all(&blobs).expect("a folder");
    fs::write(&path, part).expect("written");
    path
}

#[test]
fn a_server_that_knows_no_ranges_starts_anew() {
    let world = World::new(files(500_000));
    leave(&world, &bytes(7, 123_456));
    world.server.set(|hub| hub.whole_only = true);
    let folder = world.locate(NAME).expect("a model");
    assert!(fs::read(folder.join("model.safetensors")).expect("a file") == bytes(7, 500_000));
}

#[test]
fn what_is_not_the_hubs_content_is_never_taken() {
    for part in [bytes(8, 123_456), bytes(8, 500_000)] {
        let world = World::new(files(500_000));
        let path = leave(&world, &part);
        let error = world.refusal(NAME);
        assert!(
            error.contains("SHA-256") && error.contains("run again"),
            "{error}"
        );
        assert!(!path.exists());
        let folder = world.locate(NAME).expect("a model");
        assert!(fs::read(folder.join("model.safetensors")).expect("a file") == bytes(7, 500_000));
    }
    // Too long for what it is to become.
    let world = World::new(files(500_000));
    leave(&world, &bytes(7, 500_001));
    let folder = world.locate(NAME).expect("a model");
    assert!(fs::read(folder.join("model.safetensors")).expect("a file") == bytes(7, 500_000));
}

#[test]
fn a_file_that_became_shorter_starts_anew() {
    let world = World::new(files(500_000));
    // The list of contents is older than the contents.
    world
        .server
        .set(|hub| hub.cut = Some((300_000, usize::MAX)));
    let once = Settings {
        tries: 1,
        ..world.settings.clone()
    };
    let cut = Hub::new(once).locate(Path::new(NAME), Part::Model);
    assert!(cut.is_err());
    world.server.set(|hub| {
        hub.cut = None;
        hub.unsatisfiable = 1;
    });
    let folder = world.locate(NAME).expect("a model");
    let expected = [Some("bytes=300000-".to_owned()), None];
    let ranges = world.ranges("model.safetensors");
    assert_eq!(ranges[ranges.len() - 2..], expected);
    assert!(fs::read(folder.join("model.safetensors")).expect("a file") == bytes(7, 500_000));
}
