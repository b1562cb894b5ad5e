//! A manifest takes memory for the places of its samples, not for the samples.

#![cfg(target_os = "linux")]

use std::io::Write;

use sq_llava_data::{DataSet, LengthIndex};

/// Most memory that this process has had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel's own file");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes: u64 = kilobytes.and_then(|n| n.parse().ok()).expect("a number");
    kilobytes * 1024
}

/// `SQ_LLAVA_MANIFEST_MB` makes the file as large as one likes.
#[test]
fn a_file_is_never_held_whole() {
    let megabytes = std::env::var("SQ_LLAVA_MANIFEST_MB").map_or(32, |n| n.parse().expect("MB"));
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("data.json");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).expect("made"));
    let text = "What is it? ".repeat(85);
    let (mut bytes, mut samples) = (0, 0);
    while bytes < megabytes * 1_000_000 {
        let begin = if samples == 0 { "[" } else { ",\n" };
        let sample = format!(
            r#"{begin}{{"id": "{samples}", "image": "coco/{samples}.jpg", "conversations": [{{"from": "human", "value": "<image>\n{text}"}}, {{"from": "gpt", "value": "{text}"}}]}}"#
        );
        file.write_all(sample.as_bytes()).expect("written");
        bytes += sample.len();
        samples += 1;
    }
    file.write_all(b"]").expect("written");
    drop(file);

    let before = peak();
    let manifest = DataSet::open_one(&path, "").expect("a manifest");
    assert_eq!(manifest.len(), samples);
    let lengths = LengthIndex::estimate(&manifest, |_, _| 576, None, 2).expect("lengths");
    assert!((0..samples).all(|index| lengths.tokens(index) == 1087));
    assert_eq!(
        manifest.get(samples - 1).expect("the last").id,
        (samples - 1).to_string()
    );
    let grown = peak() - before;
    // A buffer of a megabyte, and some words for each sample (vectors double as they grow).
    let allowed = (4 << 20) + 100 * samples as u64;
    assert!(
        grown < allowed,
        "{grown} bytes for a file of {bytes}, {samples} samples"
    );
    assert!(allowed < bytes as u64 / 4);
}
