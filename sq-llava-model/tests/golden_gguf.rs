//! GGUF files against the `gguf` package's values and transformers' logits
//! (`scripts/gguf_fixtures.py`), and files that are damaged.

mod weights;

use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor, TensorData};
use golden::allocations::{Counting, measure};
use golden::{Tensors, assert_close};
use sq_llava_data::TextTokenizer;
use sq_llava_model::config::ProjectorConfig;
use sq_llava_model::weights::{FreshParts, LoadOptions, SaveOptions, save_pretrained};
use weights::*;

// Damaged counts must not ask for memory.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf")
}

fn models() -> Vec<PathBuf> {
    let mut files = golden::entries(&fixtures());
    files.retain(|path| path.extension().is_some_and(|e| e == "gguf"));
    assert!(files.len() >= 3, "{files:?}");
    files
}

#[test]
fn golden_values_are_those_of_the_package() {
    for file in models() {
        let loaded = load(&file, &LoadOptions::default());
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        let reference = Tensors::read(&file.with_extension("safetensors"));
        let found = parameters(&loaded.model);
        let mut compared = 0;
        for (name, values) in &found {
            let key = name.strip_prefix("language_model.").expect("the LLM alone");
            let rows = reference.f32(&format!("rows.{key}"));
            let shape = reference.shape(&format!("rows.{key}"));
            let picked: Vec<f32> = if shape.len() == 1 {
                values.clone()
            } else {
                let (width, all) = (shape[1], values.len() / shape[1]);
                [0, 1, all / 2, all - 1]
                    .iter()
                    .flat_map(|row| &values[row * width..(row + 1) * width])
                    .copied()
                    .collect()
            };
            assert!(picked == rows, "{}: {name} differs", file.display());
            let sums = reference.f64(&format!("sum.{key}"));
            let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
            let size: f64 = values.iter().map(|&v| f64::from(v).abs()).sum();
            assert!((sum - sums[0]).abs() <= 1e-9 * sums[1], "{name}: {sum}");
            assert!((size - sums[1]).abs() <= 1e-9 * sums[1], "{name}: {size}");
            compared += 1;
        }
        let expected = reference.names().filter(|n| n.starts_with("rows.")).count();
        assert_eq!(compared, expected);
    }
}

#[test]
fn golden_logits_are_those_of_transformers() {
    for file in models() {
        let reference = Tensors::read(&file.with_extension("safetensors"));
        let ids = reference.i64("input_ids");
        let logits = |path: &Path| {
            let model = load(path, &LoadOptions::default()).model;
            let ids = Tensor::<B, 1, Int>::from_data(ids.as_slice(), &Default::default());
            let hidden = model.language_model.embed(ids).unsqueeze();
            let hidden = model.language_model.forward_layers(hidden, &[0], None);
            let logits = model.language_model.logits(hidden.squeeze_dim(0));
            logits.into_data().to_vec::<f32>().unwrap()
        };
        let expected = reference.f64("logits");
        assert_close(&file.display().to_string(), &logits(&file), &expected, 2e-4);

        // Saved as a directory, scaling of the rotation included.
        let dir = tempfile::tempdir().unwrap();
        let model = load(&file, &LoadOptions::default()).model;
        let options = SaveOptions {
            dtype: burn::tensor::FloatDType::F32,
            ..SaveOptions::default()
        };
        save_pretrained(&model, dir.path(), &options).unwrap();
        assert_close("saved again", &logits(dir.path()), &expected, 2e-4);
    }
}

#[test]
fn a_directory_may_hold_one_and_a_tower_stand_beside() {
    let source = fixtures().join("tied.gguf");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(&source, dir.path().join("llm.gguf")).unwrap();
    std::fs::copy(&source, dir.path().join("mmproj-llm.gguf")).unwrap();
    let loaded = load(dir.path(), &LoadOptions::default());
    let tokenizer = loaded.files.tokenizer.expect("the tokenizer inside");
    assert_eq!(tokenizer, dir.path().join("llm.gguf"));
    assert_eq!(loaded.report.formats["Q4_1"], 7);
    assert_eq!(loaded.model.config.eos_token_ids, [2]);

    let tower = golden::folders("a_llava_gqa").remove(0).join("orig");
    let options = LoadOptions {
        vision: Some(tower.clone()),
        fresh: Some(FreshParts {
            projector: ProjectorConfig::Linear { bias: true },
            prototype: None,
        }),
        ..LoadOptions::default()
    };
    let loaded = load(dir.path(), &options);
    assert!(loaded.model.vision_tower.is_some());
    assert_eq!(loaded.files.vision, Some(tower));

    // Tokenizer files beside the weights come first.
    let model = golden::llama_tokenizer().join("tokenizer.model");
    std::fs::copy(model, dir.path().join("tokenizer.model")).unwrap();
    let loaded = load(dir.path(), &LoadOptions::default());
    assert_eq!(loaded.files.tokenizer.as_deref(), Some(dir.path()));

    std::fs::copy(&source, dir.path().join("other.gguf")).unwrap();
    let message = load_error(dir.path(), &LoadOptions::default());
    assert!(message.contains("2 GGUF files"), "{message}");
}

fn mmproj() -> PathBuf {
    fixtures().join("../mmproj/mmproj.gguf")
}

fn with_mmproj(file: &Path) -> LoadOptions {
    LoadOptions {
        mmproj: Some(file.to_path_buf()),
        ..LoadOptions::default()
    }
}

/// A file of the old converter, whose features llama.cpp takes before the last layer.
#[test]
fn golden_towers_and_projectors_beside_a_language_model() {
    let loaded = load(&fixtures().join("tied.gguf"), &with_mmproj(&mmproj()));
    assert!(loaded.report.is_clean(), "{}", loaded.report);
    assert_eq!(loaded.model.config.feature_layer(), Some(2));
    let reference = Tensors::read(&mmproj().with_extension("safetensors"));
    let shape: [usize; 4] = reference.shape("pixels").try_into().unwrap();
    let pixels = TensorData::new(reference.f32("pixels"), shape);
    let pixels = Tensor::<B, 4>::from_data(pixels, &Default::default());
    let images = loaded.model.encode_images(pixels).unwrap();
    let features = Tensor::cat(images, 0).into_data().to_vec::<f32>().unwrap();
    assert_close("features", &features, &reference.f64("features"), 5e-5);
    let pictures = loaded.files.pictures.expect("how pictures are prepared");
    let std = pictures.image_std.map(|x| x as f32);
    assert_eq!(std, [0.26862954, 0.2613026, 0.2757771]);
}

/// The bytes of a file, which tests damage.
struct Original(Vec<u8>);

impl Original {
    fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    fn find(&self, what: &[u8]) -> usize {
        let found = self.0.windows(what.len()).position(|w| w == what);
        found.expect("in the file")
    }

    /// Where the value of a metadata key stands: behind the key and its type.
    fn value(&self, key: &str) -> usize {
        self.find(key.as_bytes()) + key.len() + 4
    }

    fn patched(&self, at: usize, to: &[u8]) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    }
}

#[test]
fn towers_that_are_damaged_or_foreign_are_named() {
    let file = Original::read(&mmproj());
    let bytes = &file.0;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mmproj-x.gguf");
    let model = fixtures().join("tied.gguf");
    let fails = |bytes: &[u8], named: &str| {
        std::fs::write(&path, bytes).unwrap();
        let message = load_error(&model, &with_mmproj(&path));
        assert!(message.contains(named), "{message} (expected: {named})");
    };
    let (find, value) = (|what: &[u8]| file.find(what), |key: &str| file.value(key));
    let patched = |at: usize, to: &[u8]| file.patched(at, to);
    fails(
        &patched(value("clip.projector_type") + 8, b"ldp"),
        "\"ldp\"",
    );
    fails(
        &patched(find(b"v.class_embd"), b"v.class_embx"),
        "v.position_embd",
    );
    fails(&patched(find(b"mm.2.weight"), b"mm.3.weight"), "mlp_norm");
    fails(
        &patched(value("clip.vision.block_count"), &9u32.to_le_bytes()),
        "clip.vision.block_count",
    );
    fails(
        &patched(value("clip.vision.embedding_length"), &64u32.to_le_bytes()),
        "v.",
    );
    fails(
        &patched(find(b"clip.use_gelu"), b"clip.use_wave"),
        "clip.use_wave",
    );
    fails(&bytes[..bytes.len() - 4000], "truncated");
    // Each of the two kinds in the other's place.
    let message = load_error(&mmproj(), &LoadOptions::default());
    assert!(message.contains("--mmproj"), "{message}");
    let message = load_error(&model, &with_mmproj(&model));
    assert!(message.contains("\"llama\""), "{message}");
    let whole = golden::folders("a_llava_gqa").remove(0).join("orig");
    let message = load_error(&whole, &with_mmproj(&mmproj()));
    assert!(message.contains("of its own"), "{message}");
}

#[test]
fn damaged_and_foreign_files_are_named() {
    let file = Original::read(&fixtures().join("untied-llama3.gguf"));
    let bytes = &file.0;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("llm.gguf");
    let fails = |bytes: &[u8], named: &str| {
        std::fs::write(&path, bytes).unwrap();
        let message = load_error(&path, &LoadOptions::default());
        assert!(message.contains("llm.gguf"), "{message}");
        assert!(message.contains(named), "{message} (expected: {named})");
    };
    let (find, value) = (|what: &[u8]| file.find(what), |key: &str| file.value(key));
    let patched = |at: usize, to: &[u8]| file.patched(at, to);
    // Type and offset of a tensor stand behind its name, number of dimensions and two sides.
    let kind = |name: &str| find(name.as_bytes()) + name.len() + 4 + 16;

    fails(&patched(0, b"GGML"), "not a GGUF file");
    fails(&patched(4, &1u32.to_le_bytes()), "version 1");
    fails(&patched(4, &3u32.to_be_bytes()), "big-endian");
    fails(
        &patched(value("general.architecture") + 8, b"falco"),
        "falco",
    );
    fails(
        &patched(kind("blk.1.ffn_up.weight"), &16u32.to_le_bytes()),
        "\"blk.1.ffn_up.weight\" is of type IQ2_XXS",
    );
    fails(
        &patched(kind("blk.1.ffn_up.weight"), &77u32.to_le_bytes()),
        "number 77",
    );
    fails(
        &patched(kind("blk.0.attn_output.weight"), &12u32.to_le_bytes()),
        "\"blk.0.attn_output.weight\" has rows of 64",
    );
    fails(
        &patched(kind("blk.0.attn_q.weight") + 4, &(1u64 << 40).to_le_bytes()),
        "blk.0.attn_q.weight",
    );
    fails(&bytes[..bytes.len() - 1000], "truncated");
    fails(&bytes[..2000], "truncated");
    fails(&bytes[..3], "truncated");
    for count in [8, 16] {
        fails(&patched(count, &(1u64 << 60).to_le_bytes()), "truncated");
    }
    fails(
        &patched(value("llama.block_count"), &4_000_000u32.to_le_bytes()),
        "llama.block_count",
    );
    fails(
        &patched(value("llama.embedding_length"), &u32::MAX.to_le_bytes()),
        "token_embd.weight",
    );
    fails(
        &patched(value("llama.attention.head_count"), &u32::MAX.to_le_bytes()),
        "llm.gguf",
    );
    fails(
        &patched(value("llama.attention.head_count"), &0u32.to_le_bytes()),
        "head_count",
    );
    fails(
        &patched(find(b"output_norm.weight"), b"output_morn.weight"),
        "missing weights (1): output_norm.weight",
    );
    let text = dir.path().join("README.txt");
    std::fs::write(&text, "words").unwrap();
    let message = load_error(&text, &LoadOptions::default());
    assert!(message.contains("README.txt"), "{message}");
}

#[test]
fn no_damage_panics_or_takes_memory() {
    let bytes = std::fs::read(fixtures().join("tied.gguf")).unwrap();
    let header = bytes.len() - 300_000; // the tensors' data take the rest
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("llm.gguf");
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let rounds = 400;
    let (refused, used) = measure(|| {
        let mut refused = 0;
        for round in 0..rounds {
            let mut bytes = bytes.clone();
            if round % 4 == 0 {
                bytes.truncate(random(bytes.len()));
            } else {
                for _ in 0..1 + random(3) {
                    let at = random(header);
                    let wild = [0xff, 0x80, 0x7f, 0x00, random(256) as u8];
                    let value = wild[random(wild.len())];
                    let end = (at + [1, 4, 8][random(3)]).min(bytes.len());
                    bytes[at..end].fill(value);
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            let model = try_load(&path, &LoadOptions::default());
            let tokenizer = TextTokenizer::from_dir(&path);
            refused += usize::from(model.is_err() || tokenizer.is_err());
        }
        refused
    });
    assert!(refused > rounds / 4, "{refused}");
    assert!(used.largest < 16 << 20, "{} bytes at once", used.largest);
}
