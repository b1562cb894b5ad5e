use super::*;
use crate::image::{ImageProcessor, ImageProcessorConfig};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/sources")
        .join(name)
}

fn open(name: &str, columns: Columns) -> DataSet {
    let source = Source {
        columns,
        ..Source::new(fixture(name), fixture("pictures"))
    };
    DataSet::open(vec![source]).unwrap()
}

fn bytes(data: &DataSet, index: usize, place: usize) -> Vec<u8> {
    let sample = data.get(index).unwrap();
    match data.picture(index, place, &sample.images[place]).unwrap() {
        Picture::File(path) => std::fs::read(path).unwrap(),
        Picture::Inside { bytes, .. } => bytes.to_vec(),
    }
}

/// A copy of a fixture, with other bytes.
fn changed(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let mut bytes = std::fs::read(fixture(name)).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// The last place of some bytes; in `datasets.parquet`, whose footer has parts of pictures too, before
/// the footer.
fn last(bytes: &[u8], wanted: &[u8]) -> usize {
    const COLUMNS: usize = 12_000;
    let end = match bytes.starts_with(b"PAR1") {
        true => bytes.len().min(COLUMNS),
        false => bytes.len(),
    };
    let found = bytes[..end]
        .windows(wanted.len())
        .rposition(|w| w == wanted);
    found.expect("the bytes")
}

#[test]
fn a_picture_without_a_path_is_called_by_its_place() {
    let mut names = ["(embedded)".to_owned(), "a.png".into(), "(embedded)".into()];
    ParquetShard::name_pictures("train.parquet", 12, &mut names);
    assert_eq!(names, ["train.parquet#12.0", "a.png", "train.parquet#12.2"]);
}

#[test]
fn every_form_holds_the_samples_of_the_json() {
    let json = open("data.json", Columns::default());
    assert_eq!(json.len(), 6);
    for name in [
        "datasets.parquet",
        "messages.parquet",
        "parts.parquet",
        "lists.parquet",
        "paths.parquet",
        "data.tar",
    ] {
        let data = open(name, Columns::default());
        assert_eq!(data.len(), 6, "{name}");
        // There and back: cursors do not go backwards.
        for index in (0..6).chain((0..6).rev()).chain([3, 3, 0, 5]) {
            let (sample, expected) = (data.get(index).unwrap(), json.get(index).unwrap());
            assert_eq!(sample, expected, "{name} {index}");
            if !sample.images.is_empty() {
                assert_eq!(
                    bytes(&data, index, 0),
                    bytes(&json, index, 0),
                    "{name} {index}"
                );
            }
        }
        assert!(data.get(6).is_err() && data.damage().is_empty(), "{name}");
    }
}

#[test]
fn columns_are_mapped() {
    let columns = Columns {
        id: Some("key".into()),
        image: Some("photo".into()),
        question: Some("q".into()),
        answer: Some("a".into()),
        ..Columns::default()
    };
    let data = open("columns.parquet", columns.clone());
    let json = open("data.json", Columns::default());
    for (index, of) in [0, 1, 3, 4, 5].into_iter().enumerate() {
        let (sample, expected) = (data.get(index).unwrap(), json.get(of).unwrap());
        assert_eq!(sample.id, expected.id);
        assert!(
            expected.conversations[0]
                .value
                .ends_with(&sample.conversations[0].value)
        );
        assert_eq!(sample.conversations[1], expected.conversations[1]);
        assert_eq!(bytes(&data, index, 0), bytes(&json, of, 0));
    }
    let mut wrong = Source::new(fixture("columns.parquet"), "");
    let error = DataSet::open(vec![wrong.clone()]).unwrap_err().to_string();
    assert!(
        error.contains("key, photo, q, a, score") && error.contains("columns"),
        "{error}"
    );
    wrong.columns = Columns {
        answer: Some("answer".into()),
        ..columns
    };
    let error = DataSet::open(vec![wrong]).unwrap_err().to_string();
    assert!(error.contains("no column `answer`"), "{error}");
}

#[test]
fn a_picture_that_is_missing_between_others_is_none() {
    let data = open("two.parquet", Columns::default());
    for index in [2, 0, 1] {
        let sample = data.get(index).unwrap();
        assert_eq!(sample.images, ["coco/cup.png", "vg/sky.png"]);
        assert_eq!(sample.id, index.to_string());
        for (place, name) in ["coco/cup.png", "vg/sky.png"].into_iter().enumerate() {
            let file = std::fs::read(fixture("pictures").join(name)).unwrap();
            assert_eq!(bytes(&data, index, place), file);
        }
        assert!(data.picture(index, 2, "x").is_err());
    }
}

#[test]
fn captions_stand_beside_pictures() {
    let data = open("captions.tar", Columns::default());
    let answers = [
        "A cup.",
        "A tall tree.",
        "Blue and green.",
        "To the town.",
        "It is night.",
    ];
    for (index, answer) in answers.into_iter().enumerate() {
        let sample = data.get(index).unwrap();
        assert_eq!(sample.id, format!("a/{index:04}"));
        let said: Vec<&str> = sample
            .conversations
            .iter()
            .map(|m| m.value.as_str())
            .collect();
        assert_eq!(said, ["<image>", answer]);
        let ending = if index == 2 { "jpg" } else { "png" };
        assert_eq!(sample.images, [format!("a/{index:04}.{ending}")]);
    }
    let columns = Columns {
        answer: Some("txt".into()),
        ..Columns::default()
    };
    let named = open("captions.tar", columns);
    assert_eq!(named.get(1).unwrap(), data.get(1).unwrap());
}

#[test]
fn sources_are_numbered_through_and_chosen_from() {
    let source = |name: &str, repeat| Source {
        repeat,
        ..Source::new(fixture(name), fixture("pictures"))
    };
    let data = DataSet::open(vec![
        source("two.parquet", 2.0),
        source("data.tar", 1.0),
        source("data.json", 0.5),
    ])
    .unwrap();
    assert_eq!(data.len(), 15);
    let shares = |data: &DataSet| -> Vec<(usize, f64)> {
        data.shares()
            .iter()
            .map(|share| (share.samples, share.repeat))
            .collect()
    };
    assert_eq!(shares(&data), [(3, 2.0), (6, 1.0), (6, 0.5)]);
    assert_eq!(data.get(2).unwrap().id, "2");
    assert_eq!(data.get(9).unwrap(), data.get(3).unwrap());
    assert_eq!(data.file_name(9), "data.json");
    assert_eq!((data.offset(2), data.offset(15)), (Some(2), None));

    let part = data.select(&[1, 2, 8, 14]).unwrap();
    assert_eq!(shares(&part), [(2, 2.0), (1, 1.0), (1, 0.5)]);
    // Its number in all files, because it has no id.
    assert_eq!(part.get(1).unwrap().id, "2");
    assert_eq!(part.select(&[1, 3]).unwrap().get(0).unwrap().id, "2");
    assert_eq!(part.get(3).unwrap(), data.get(14).unwrap());
    assert!(part.select(&[4]).is_err() && part.get(4).is_err());
    // No two pictures have one key, but the same files.
    let key = |index| data.picture_key(index, 0, &data.get(index).unwrap().images[0]);
    assert_eq!(
        key(9),
        fixture("pictures")
            .join("coco/cup.png")
            .display()
            .to_string()
    );
    assert_ne!(key(3), key(9));
    assert_ne!(key(0), key(1));
}

#[test]
fn a_changed_file_has_another_sum_unless_it_is_a_picture_that_changed() {
    let sum = |path: &Path| {
        let data = DataSet::open(vec![Source::new(path, "")]).unwrap();
        let found = data.sums().unwrap().remove(0);
        (found.bytes, found.crc32)
    };
    for (name, text, picture) in [
        ("datasets.parquet", &b"A tall tree."[..], &b"IDAT"[..]),
        ("paths.parquet", b"A tall tree.", b""),
        ("data.tar", b"A tall tree.", b"IDAT"),
        ("data.json", b"A tall tree.", b""),
    ] {
        let first = sum(&fixture(name));
        let swap = |from: &'static [u8]| {
            move |bytes: &mut Vec<u8>| {
                let at = last(bytes, from);
                bytes[at + 2] ^= 2;
            }
        };
        let (_dir, path) = changed(name, swap(text));
        assert_ne!(sum(&path), first, "{name}");
        if !picture.is_empty() {
            let (_dir, path) = changed(name, swap(picture));
            assert_eq!(sum(&path), first, "{name}");
        }
    }
}

#[test]
fn a_file_cut_short_is_named() {
    for name in ["datasets.parquet", "messages.parquet"] {
        let (_dir, path) = changed(name, |bytes| bytes.truncate(bytes.len() / 2));
        let error = DataSet::open(vec![Source::new(&path, "")]).unwrap_err();
        let text = error.to_string();
        assert!(
            error.is_damage() && text.contains(name) && text.contains("copy it again"),
            "{text}"
        );
    }
    let (_dir, path) = changed("data.tar", |bytes| bytes.truncate(bytes.len() / 2));
    let data = DataSet::open(vec![Source::new(&path, "")]).unwrap();
    let json = open("data.json", Columns::default());
    assert!((1..6).contains(&data.len()), "{}", data.len());
    for index in 0..data.len() {
        assert_eq!(data.get(index).unwrap(), json.get(index).unwrap());
    }
    let [torn] = data.damage() else {
        panic!("one file is torn: {:?}", data.damage());
    };
    let torn = torn.to_string();
    assert!(
        torn.contains("data.tar: sample") && torn.contains("cut short"),
        "{torn}"
    );
    let (_dir, path) = changed("data.tar", |bytes| bytes.truncate(100));
    assert!(DataSet::open(vec![Source::new(&path, "")]).is_err());
}

#[test]
fn damage_inside_a_file_is_that_of_rows() {
    // The compressed text of the last row group, not a picture.
    let (_dir, path) = changed("messages.parquet", |bytes| {
        let at = bytes
            .windows(4)
            .rposition(|w| w == [0x28, 0xb5, 0x2f, 0xfd]);
        let at = at.expect("a frame of zstd");
        bytes[at..at + 12].fill(0xff);
    });
    let data = DataSet::open(vec![Source::new(&path, "")]).unwrap();
    assert!((0..4).all(|row| data.get(row).is_ok()));
    let error = data.get(4).unwrap_err();
    let text = error.to_string();
    assert!(
        error.is_damage() && text.contains("messages.parquet: row 4: row group 1"),
        "{text}"
    );

    let processor = ImageProcessor::new(ImageProcessorConfig::default()).unwrap();
    for (name, place) in [
        ("datasets.parquet", "row 5"),
        ("data.tar", "sample \"sky\""),
    ] {
        let (_dir, path) = changed(name, |bytes| {
            let at = last(bytes, b"IDAT");
            bytes[at + 4..at + 60].fill(0);
        });
        let data = DataSet::open(vec![Source::new(&path, "")]).unwrap();
        let picture = data.picture(5, 0, "vg/sky.png").unwrap();
        let error = picture.open(&processor).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains(place) && error.contains("sky.png"),
            "{error}"
        );
        let picture = data.picture(4, 0, "vg/road.png").unwrap();
        assert!(picture.open(&processor).is_ok(), "{name}");
    }
}

#[test]
fn several_threads_read_at_once() {
    let json = open("data.json", Columns::default());
    let data = DataSet::open(vec![
        Source::new(fixture("datasets.parquet"), ""),
        Source::new(fixture("messages.parquet"), ""),
    ])
    .unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (json, data) = (&json, &data);
            scope.spawn(move || {
                for round in 0..60 {
                    let index = (thread * 5 + round * 7) % 12;
                    assert_eq!(data.get(index).unwrap(), json.get(index % 6).unwrap());
                    if index % 6 != 2 {
                        assert_eq!(bytes(data, index, 0), bytes(json, index % 6, 0));
                    }
                }
            });
        }
    });
}

#[test]
fn a_picture_without_a_text_is_no_damage() {
    // The ending of the third caption.
    let (_dir, path) = changed("captions.tar", |bytes| {
        let name = b"a/0002.txt";
        let at = bytes.windows(name.len()).position(|w| w == name);
        let header = at.expect("the member");
        bytes[header..header + name.len()].copy_from_slice(b"a/0002.dat");
        let sum: u32 = (0..512)
            .map(|at| match at {
                148..156 => 32,
                at => u32::from(bytes[header + at]),
            })
            .sum();
        bytes[header + 148..header + 154].copy_from_slice(format!("{sum:06o}").as_bytes());
    });
    let error = DataSet::open(vec![Source::new(&path, "")]).unwrap_err();
    let text = error.to_string();
    assert!(
        !error.is_damage() && text.contains("sample \"a/0002\": it has neither"),
        "{text}"
    );
}
