//! Nothing that a number in a file asks for is allocated before the file has filled it.

mod weights;

use std::io::Write;
use std::path::Path;

use burn::tensor::FloatDType;
use golden::allocations::{Counting, measure};
use serde_json::{Value, json};
use sq_llava_model::SqLlavaConfig;
use sq_llava_model::weights::{LoadOptions, SaveOptions, init_random, save_pretrained};
use weights::*;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Refuses within a few megabytes; the checkpoints here have less than one.
fn refused(dir: &Path) -> String {
    let (message, used) = measure(|| load_error(dir, &LoadOptions::default()));
    assert!(used.peak < 16 << 20, "{} bytes for: {message}", used.peak);
    message
}

/// One test, since the counters are the process's.
#[test]
fn fault_25_numbers_in_files_allocate_nothing() {
    layers_and_widths_of_a_configuration();
    a_gguf_of_four_billion_layers();
    pickles_that_multiply();
}

fn layers_and_widths_of_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let preset = SqLlavaConfig::preset("tiny").unwrap();
    let model = preset.init::<B>(&Default::default()).unwrap();
    let model = init_random(model, FloatDType::F16, 1).unwrap();
    save_pretrained(&model, dir.path(), &SaveOptions::default()).unwrap();
    let path = dir.path().join("config.json");
    let config = golden::json(&path);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut config = config.clone();
        change(&mut config);
        std::fs::write(&path, config.to_string()).unwrap();
    };
    for layers in [4u64, 100_000, 1_000_000_000] {
        with(&|c| c["num_hidden_layers"] = json!(layers));
        let message = refused(dir.path());
        assert!(message.contains("model.layers.3."), "{message}");
        with(&|c| c["vision_config"]["num_hidden_layers"] = json!(layers + 1));
        let message = refused(dir.path());
        assert!(message.contains("encoder.layers.4."), "{message}");
    }
    for (key, value) in [
        ("hidden_size", json!(20_000_000_000u64)),
        ("head_dim", json!(8_000_000_000u64)),
        ("intermediate_size", json!(1u64 << 40)),
        ("vocab_size", json!(1u64 << 40)),
    ] {
        with(&|c| c[key] = value.clone());
        refused(dir.path());
    }
    with(&|c| c["sq_prototype"]["num_centers"] = json!(1u64 << 40));
    let message = refused(dir.path());
    assert!(message.contains("prototype.centers"), "{message}");
    with(&|c| c["vision_config"]["hidden_size"] = json!(1u64 << 40));
    refused(dir.path());
    with(&|c| {
        c["vision_config"]["image_size"] = json!(1u64 << 40);
        c["vision_config"]["patch_size"] = json!(1);
    });
    refused(dir.path());
    with(&|_| {});
    load(dir.path(), &LoadOptions::default());
}

fn a_gguf_of_four_billion_layers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
    let file = golden::entries(&fixtures)
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "gguf"))
        .expect("a GGUF file");
    let bytes = std::fs::read(file).unwrap();
    let find = |what: &[u8]| {
        let found = bytes.windows(what.len()).position(|window| window == what);
        found.expect("in the header")
    };
    // The count says what one tensor's number says.
    let count = find(b"llama.block_count") + "llama.block_count".len() + 4;
    let old = b"blk.0.ffn_norm.weight";
    let name = find(old);
    let new = b"blk.4294967294.ffn_norm.weight";
    let mut out = bytes[..name - 8].to_vec();
    out[count..count + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    out.extend((new.len() as u64).to_le_bytes());
    out.extend(new);
    out.extend(&bytes[name + old.len()..]);
    // The longer name moves the data to another multiple of the alignment.
    out.extend([0; 64]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, out).unwrap();
    let message = refused(&path);
    assert!(message.contains("layers"), "{message}");
}

/// Numbers of the storage of an archive.
const STORED: u32 = 4096;

/// A PyTorch archive of one pickle and storage "0" of [`STORED`] floats.
fn archive(path: &Path, pickle: &[u8]) {
    let storage = vec![0; STORED as usize * 4];
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("archive/data.pkl", pickle), ("archive/data/0", &storage)] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// Instructions that make tensor `name` over storage "0".
fn tensor(name: &str, shape: &[u32], strides: &[u32]) -> Vec<u8> {
    let mut out = Vec::new();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let sizes = |out: &mut Vec<u8>, sizes: &[u32]| {
        out.push(b'(');
        for size in sizes {
            out.push(b'J');
            out.extend(size.to_le_bytes());
        }
        out.push(b't');
    };
    text(&mut out, name);
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(&mut out, "storage");
    out.extend(b"ctorch\nFloatStorage\n");
    text(&mut out, "0");
    text(&mut out, "cpu");
    out.push(b'J');
    out.extend(STORED.to_le_bytes());
    out.extend(b"tQK\x00");
    sizes(&mut out, shape);
    sizes(&mut out, strides);
    out.extend(b"\x89NtR");
    out
}

fn dictionary(tensors: &[Vec<u8>]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    out.extend(tensors.concat());
    out.extend(b"u.");
    out
}

fn pickles_that_multiply() {
    let dir = tempfile::tempdir().unwrap();
    let config = SqLlavaConfig::preset("tiny").unwrap();
    let config = SqLlavaConfig::new(config.llama).to_hf();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let file = dir.path().join("pytorch_model.bin");
    let embedding = "model.embed_tokens.weight";

    // Steps of nothing, and steps that overlap.
    for strides in [[0, 0], [0, 1], [1, 1]] {
        archive(
            &file,
            &dictionary(&[tensor(embedding, &[1 << 20, 1 << 20], &strides)]),
        );
        refused(dir.path());
    }
    archive(&file, &dictionary(&[tensor(embedding, &[3, 3], &[0, 1])]));
    let message = refused(dir.path());
    assert!(message.contains("many times"), "{message}");

    // Many tensors of the same numbers; a few may be tied.
    let many: Vec<Vec<u8>> = (0..64)
        .map(|i| tensor(&format!("t{i}"), &[STORED], &[1]))
        .collect();
    archive(&file, &dictionary(&many));
    let message = refused(dir.path());
    assert!(message.contains("share"), "{message}");
    archive(&file, &dictionary(&many[..3]));
    assert!(!refused(dir.path()).contains("share"));

    // One list of 60,000 pairs, and 20,000 dictionaries made of it.
    let mut lists = b"\x80\x02]q\x00(".to_vec();
    lists.extend(b"K\x01K\x02\x86".repeat(60_000));
    lists.extend(b"e0(");
    lists.extend(b"ccollections\nOrderedDict\nh\x00\x85R".repeat(20_000));
    lists.extend(b"t.");
    archive(&file, &lists);
    let (message, used) = measure(|| load_error(dir.path(), &LoadOptions::default()));
    assert!(message.contains("too many values"), "{message}");
    assert!(used.peak < 200 << 20, "{} bytes", used.peak);
}
