//! PyTorch files of every kind, stored dtypes, and damaged files.

mod weights;

use std::path::{Path, PathBuf};

use burn::tensor::{DType, FloatDType};
use golden::Tensors;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use sq_llava_model::SqLlavaConfig;
use sq_llava_model::language::quantize::Quantize;
use sq_llava_model::processor::KernelPath;
use sq_llava_model::weights::{LoadOptions, Narrow, SaveOptions, init_random, save_pretrained};
use weights::*;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/weights_data")
        .join(name)
}

#[test]
fn shards_of_pytorch_load_with_views_and_mixed_dtypes() {
    let loaded = load(&data("shards"), &LoadOptions::default());
    assert!(loaded.report.is_clean(), "{}", loaded.report);
    assert_eq!(
        loaded.report.ignored,
        ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    );
    assert_same(
        "shards",
        &loaded.model,
        &[Tensors::read(&data("expected.safetensors"))],
    );
}

#[test]
fn files_from_before_pytorch_1_6_load() {
    let loaded = load(&data("legacy"), &LoadOptions::default());
    assert!(loaded.report.is_clean(), "{}", loaded.report);
    assert_same(
        "legacy",
        &loaded.model,
        &[Tensors::read(&data("expected.safetensors"))],
    );
}

#[test]
fn a_pytorch_file_that_is_cut_anywhere_is_an_error() {
    for (folder, name) in [
        ("shards", "pytorch_model-00001-of-00002.bin"),
        ("legacy", "pytorch_model.bin"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        copy(&data(folder), dir.path(), &|_| true);
        let whole = std::fs::read(data(folder).join(name)).unwrap();
        for step in 0..200 {
            let length = whole.len() * step / 200;
            std::fs::write(dir.path().join(name), &whole[..length]).unwrap();
            let message = load_error(dir.path(), &LoadOptions::default());
            assert!(message.contains(name), "cut at {length}: {message}");
        }
    }
}

#[test]
fn a_pytorch_file_with_flipped_bytes_never_panics() {
    for (folder, name) in [
        ("shards", "pytorch_model-00001-of-00002.bin"),
        ("legacy", "pytorch_model.bin"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        copy(&data(folder), dir.path(), &|_| true);
        let whole = std::fs::read(data(folder).join(name)).unwrap();
        for position in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x55;
            std::fs::write(dir.path().join(name), &damaged).unwrap();
            // A flipped weight is a weight; anything else must be an error, not a panic.
            let _ = try_load(dir.path(), &LoadOptions::default());
        }
    }
}

/// A tiny text model saved in f32.
fn tiny(dir: &Path, shard: u64) {
    let config = SqLlavaConfig::preset("tiny").unwrap();
    let config = SqLlavaConfig::new(config.llama);
    let model = config.init::<B>(&Default::default()).unwrap();
    let model = init_random(model, FloatDType::F32, 7).unwrap();
    let options = SaveOptions {
        dtype: FloatDType::F32,
        max_shard_bytes: shard,
        ..SaveOptions::default()
    };
    save_pretrained(&model, dir, &options).unwrap();
}

#[test]
fn a_safetensors_file_that_is_cut_anywhere_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    tiny(dir.path(), u64::MAX);
    let file = dir.path().join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    for length in [0, 4, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let message = load_error(dir.path(), &LoadOptions::default());
        assert!(message.contains("model.safetensors"), "{message}");
        assert!(message.contains("download it again"), "{message}");
    }
    std::fs::write(&file, b"version https://git-lfs.github.com/spec/v1\n").unwrap();
    let message = load_error(dir.path(), &LoadOptions::default());
    assert!(message.contains("git lfs pull"), "{message}");
}

#[test]
fn a_missing_shard_is_named() {
    let dir = tempfile::tempdir().unwrap();
    tiny(dir.path(), 60_000);
    let files = safetensors_in(dir.path());
    assert!(files.len() > 3, "{files:?}");
    let name = golden::file_name(&files[1]);
    std::fs::remove_file(&files[1]).unwrap();
    let message = load_error(dir.path(), &LoadOptions::default());
    assert!(message.contains(&name), "{message}");
    // Without the index the gap in the numbers shows it.
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    let message = load_error(dir.path(), &LoadOptions::default());
    assert!(message.contains("shard 2 of"), "{message}");
}

#[test]
fn fault_03_missing_unexpected_and_mismatched_keys_are_errors() {
    let (source, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tiny(source.path(), u64::MAX);
    std::fs::copy(
        source.path().join("config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let file = dir.path().join("model.safetensors");

    let gone = "model.layers.2.mlp.up_proj.weight";
    rewrite(source.path(), &file, |key| {
        (key != gone).then(|| key.to_string())
    });
    let message = load_error(dir.path(), &LoadOptions::default());
    assert!(
        message.contains(gone) && message.contains("missing weights (1)"),
        "{message}"
    );

    // An exchanged pair: shapes [172, 64] and [64, 172].
    rewrite(source.path(), &file, |key| {
        Some(match key {
            "model.layers.0.mlp.up_proj.weight" => "model.layers.0.mlp.down_proj.weight".into(),
            "model.layers.0.mlp.down_proj.weight" => "model.layers.0.mlp.up_proj.weight".into(),
            other => other.to_string(),
        })
    });
    let message = load_error(dir.path(), &LoadOptions::default());
    assert!(
        message.contains("[172, 64]") && message.contains("up_proj"),
        "{message}"
    );

    // A weight without a place: an error that names it, or let pass by who knows of it.
    std::fs::copy(source.path().join("model.safetensors"), &file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = parsed.tensors();
    let (_, view) = parsed.iter().next().unwrap();
    tensors.push(("model.image_newline".into(), view.clone()));
    tensors.push(("model.layers.9.mlp.up_proj.weight".into(), view.clone()));
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), view));
    safetensors::serialize_to_file(tensors, None, &file).unwrap();
    let message = load_error(dir.path(), &LoadOptions::default());
    assert!(
        message.contains("model.image_newline") && message.contains("--allow-unused"),
        "{message}"
    );
    let options = LoadOptions {
        allow_unused: true,
        ..LoadOptions::default()
    };
    let report = load(dir.path(), &options).report;
    assert_eq!(
        report.unexpected,
        ["model.image_newline", "model.layers.9.mlp.up_proj.weight"]
    );
    assert_eq!(report.ignored.len(), 1);
    assert!(report.to_string().contains("model.image_newline"));
    assert!(!report.is_clean());
}

/// What `narrow` makes of a model that is stored in a dtype.
fn assert_narrow(dir: &Path, stored: Dtype) {
    let fast = KernelPath::chosen().unwrap().multiplies_bf16();
    let kept = match stored {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        _ => DType::F32,
    };
    let fastest = match kept {
        DType::F16 if fast => DType::BF16,
        kept => kept,
    };
    for (narrow, expected) in [
        (Narrow::Never, DType::F32),
        (Narrow::Stored, kept),
        (Narrow::Fastest, fastest),
    ] {
        let options = LoadOptions {
            narrow,
            ..LoadOptions::default()
        };
        let llm = load(dir, &options).model.language_model;
        let found = llm.model.embed_tokens.weight.dtype();
        assert_eq!(found, expected, "{narrow:?} of {stored:?}");
    }
}

#[test]
fn what_is_stored_in_f32_stays_so_beside_16_bits() {
    let dir = tempfile::tempdir().unwrap();
    tiny(dir.path(), u64::MAX);
    let path = dir.path().join("model.safetensors");
    let whole = Tensors::read(&path);
    let bytes = |name: &str| -> (Dtype, Vec<u8>) {
        let values = whole.f32(name).into_iter();
        match name {
            "model.norm.weight" => (Dtype::F32, values.flat_map(f32::to_le_bytes).collect()),
            _ => {
                let halves = values.flat_map(|v| bf16::from_f32(v).to_le_bytes());
                (Dtype::BF16, halves.collect())
            }
        }
    };
    let encoded: Vec<_> = whole.names().map(|name| (name, bytes(name))).collect();
    let views = encoded.iter().map(|(name, (dtype, bytes))| {
        let view = TensorView::new(*dtype, whole.shape(name), bytes).unwrap();
        (*name, view)
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let options = LoadOptions {
        narrow: Narrow::Fastest,
        ..LoadOptions::default()
    };
    let model = load(dir.path(), &options).model.language_model.model;
    assert_eq!(model.embed_tokens.weight.dtype(), DType::BF16);
    assert_eq!(model.norm.weight.val().dtype(), DType::F32);
    assert_eq!(
        model.norm.weight.val().into_data().to_vec::<f32>().unwrap(),
        whole.f32("model.norm.weight")
    );
}

#[test]
fn stored_and_wanted_dtypes_convert() {
    let (source, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tiny(source.path(), u64::MAX);
    std::fs::copy(
        source.path().join("config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let reference = Tensors::read(&source.path().join("model.safetensors"));
    let round = |stored: Dtype, v: f32| match stored {
        Dtype::F16 => f16::from_f32(v).to_f32(),
        Dtype::BF16 => bf16::from_f32(v).to_f32(),
        _ => v,
    };
    for stored in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
        let encoded: Vec<(String, Vec<u8>)> = reference
            .names()
            .map(|name| {
                let values = reference.f32(name).into_iter();
                let bytes = match stored {
                    Dtype::F64 => values.flat_map(|v| f64::from(v).to_le_bytes()).collect(),
                    Dtype::F16 => values
                        .flat_map(|v| f16::from_f32(v).to_le_bytes())
                        .collect(),
                    Dtype::BF16 => values
                        .flat_map(|v| bf16::from_f32(v).to_le_bytes())
                        .collect(),
                    _ => values.flat_map(f32::to_le_bytes).collect(),
                };
                (name.to_string(), bytes)
            })
            .collect();
        let views = encoded.iter().map(|(name, bytes)| {
            let view = TensorView::new(stored, reference.shape(name), bytes).unwrap();
            (name.as_str(), view)
        });
        safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
        for (wanted, kept) in [
            (FloatDType::F32, Dtype::F32),
            (FloatDType::F16, Dtype::F16),
            (FloatDType::BF16, Dtype::BF16),
        ] {
            let options = LoadOptions {
                dtype: wanted,
                ..LoadOptions::default()
            };
            let model = load(dir.path(), &options).model;
            let weight = model.language_model.model.norm.weight.val();
            assert_eq!(weight.dtype(), wanted.into());
            let found = parameters(&model);
            for name in reference.names() {
                let values = &found[&module_path(name)];
                let expected: Vec<f32> = reference
                    .f32(name)
                    .into_iter()
                    .map(|v| round(kept, round(stored, v)))
                    .collect();
                assert!(values == &expected, "{name}: {stored:?} as {wanted:?}");
            }
        }
        assert_narrow(dir.path(), stored);
    }
    let options = LoadOptions {
        dtype: FloatDType::F64,
        ..LoadOptions::default()
    };
    assert!(load_error(dir.path(), &options).contains("f32, f16 or bf16, not F64"));
}

#[test]
fn a_tied_head_may_be_stored_if_it_is_the_embedding() {
    let (source, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tiny(source.path(), u64::MAX);
    let mut config = golden::json(&source.path().join("config.json"));
    let file = dir.path().join("model.safetensors");
    let embedding = "model.embed_tokens.weight";

    // Untied, but no head: an error that names it.
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    rewrite(source.path(), &file, |key| {
        (key != "lm_head.weight").then(|| key.to_string())
    });
    assert!(load_error(dir.path(), &LoadOptions::default()).contains("lm_head.weight"));

    // Tied: the same file is whole.
    config["tie_word_embeddings"] = true.into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let loaded = load(dir.path(), &LoadOptions::default());
    assert!(loaded.report.is_clean() && loaded.model.language_model.lm_head.is_none());

    // Tied, with another head: no guess.
    rewrite(source.path(), &file, |key| Some(key.to_string()));
    let message = load_error(dir.path(), &LoadOptions::default());
    assert!(message.contains("tie_word_embeddings"), "{message}");

    // Tied, with the embedding's copy: ignored.
    let bytes = std::fs::read(&file).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = parsed.tensors();
    tensors.retain(|(name, _)| name != "lm_head.weight");
    tensors.push(("lm_head.weight".into(), parsed.tensor(embedding).unwrap()));
    safetensors::serialize_to_file(tensors, None, &file).unwrap();
    let report = load(dir.path(), &LoadOptions::default()).report;
    assert!(report.is_clean());
    assert_eq!(report.ignored, ["lm_head.weight"]);
}

#[test]
fn directories_without_a_model_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let message = load_error(&dir.path().join("nowhere"), &LoadOptions::default());
    assert!(message.contains("not a model directory"), "{message}");
    assert!(load_error(dir.path(), &LoadOptions::default()).contains("config.json"));
    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    assert!(load_error(dir.path(), &LoadOptions::default()).contains("no weights here"));
    for name in ["one.safetensors", "two.safetensors"] {
        std::fs::write(dir.path().join(name), b"x").unwrap();
    }
    let message = load_error(dir.path(), &LoadOptions::default());
    assert!(message.contains("one.safetensors"), "{message}");
}

/// Numbers that blocks would hide: NaN is a 0 there.
#[test]
fn fault_17_a_weight_that_is_not_finite_is_not_quantised() {
    let dir = tempfile::tempdir().unwrap();
    tiny(dir.path(), u64::MAX);
    let file = dir.path().join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let with = |quantize| LoadOptions {
        quantize: Some(quantize),
        ..LoadOptions::default()
    };
    for key in [
        "model.layers.1.mlp.down_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ] {
        let place = parsed.tensor(key).unwrap().data().as_ptr() as usize;
        let place = place - whole.as_ptr() as usize + 40 * 4;
        let mut bytes = whole.clone();
        bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&file, bytes).unwrap();
        for quantize in [Quantize::Q8, Quantize::Q4] {
            let message = load_error(dir.path(), &with(quantize));
            assert!(
                message.contains(key) && message.contains("model.safetensors"),
                "{message}"
            );
            // A model that is in memory already.
            let mut model = load(dir.path(), &LoadOptions::default()).model;
            let error = model.language_model.quantize(quantize).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
    std::fs::write(&file, &whole).unwrap();
    load(dir.path(), &with(Quantize::Q4));
}

/// Reading a pipe may wait without end.
#[cfg(target_os = "linux")]
#[test]
fn fault_29_a_pipe_in_place_of_a_file_is_refused() {
    use std::os::fd::AsRawFd;

    // Without a writer reading it ends: whoever reads it fails otherwise than by this.
    let (reader, _) = std::io::pipe().unwrap();
    let pipe = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let source = tempfile::tempdir().unwrap();
    tiny(source.path(), u64::MAX);
    for name in [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let index = name.ends_with("index.json");
        copy(source.path(), dir.path(), &|other| {
            other != name && !(index && other == "model.safetensors")
        });
        std::os::unix::fs::symlink(&pipe, dir.path().join(name)).unwrap();
        let message = load_error(dir.path(), &LoadOptions::default());
        assert!(
            message.contains("a pipe") && message.contains(name),
            "{message}"
        );
    }
    let projector = source.path().join("projector.safetensors");
    std::os::unix::fs::symlink(&pipe, &projector).unwrap();
    let options = LoadOptions {
        projector: Some(projector),
        ..LoadOptions::default()
    };
    let message = load_error(source.path(), &options);
    assert!(
        message.contains("a pipe") && message.contains("projector.safetensors"),
        "{message}"
    );
}
