//! Checks of whole checkpoints against the reference, generic over the backend: the CPU's tests
//! and the GPU's call the same ones.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{FloatDType, Tensor, backend::Backend};
use golden::{Tensors, Value, assert_close};
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::weights::{LoadOptions, load_model};
use sq_llava_model::{Sample, SqLlava};

use super::tensors::{float, values};

/// A checkpoint folder with what it must compute.
pub struct Checkpoint {
    /// For messages.
    pub name: String,
    /// What to load.
    pub dir: PathBuf,
    /// Base of an adapter run.
    pub base: Option<PathBuf>,
    /// Reference tensors.
    pub tensors: Tensors,
    /// Reference ids.
    pub json: Value,
}

/// `orig` and, where present, `hf` of every folder of part a.
pub fn part_a() -> Vec<Checkpoint> {
    let mut found = vec![];
    for folder in golden::folders("a_") {
        for layout in ["orig", "hf"] {
            let dir = folder.join(layout);
            if dir.is_dir() {
                found.push(checkpoint(&folder, dir, None));
            }
        }
    }
    assert!(!found.is_empty(), "no checkpoint in part a");
    found
}

/// The release layout, on its base in both layouts.
pub fn part_a2() -> Vec<Checkpoint> {
    let mut found = vec![];
    for folder in golden::folders("a2_") {
        let outputs = outputs(&folder);
        let hint = outputs["base"].as_str().unwrap_or_default();
        let config = golden::json(&folder.join("config.json"));
        let base = golden::base_folder(hint, Some(&config));
        for layout in ["orig", "hf"] {
            let base = base.join(layout);
            if base.is_dir() {
                found.push(checkpoint(&folder, folder.clone(), Some(base)));
            }
        }
    }
    assert!(!found.is_empty(), "no checkpoint in part a2");
    found
}

fn outputs(folder: &Path) -> Value {
    golden::cases_in(folder)
        .into_iter()
        .find(|case| case.tensors.contains("logits"))
        .unwrap_or_else(|| panic!("no outputs in {}", folder.display()))
        .json
}

fn checkpoint(folder: &Path, dir: PathBuf, base: Option<PathBuf>) -> Checkpoint {
    let case = golden::cases_in(folder)
        .into_iter()
        .find(|case| case.tensors.contains("logits"))
        .unwrap_or_else(|| panic!("no outputs in {}", folder.display()));
    let layout = golden::file_name(base.as_deref().unwrap_or(&dir));
    Checkpoint {
        name: format!("{} ({layout})", golden::file_name(folder)),
        dir,
        base,
        tensors: case.tensors,
        json: case.json,
    }
}

impl Checkpoint {
    pub fn load<B: Backend>(&self, device: &B::Device) -> SqLlava<B> {
        self.load_as(FloatDType::F32, device)
    }

    /// The model with its frozen weights in a dtype.
    pub fn load_as<B: Backend>(&self, dtype: FloatDType, device: &B::Device) -> SqLlava<B> {
        let options = LoadOptions {
            dtype,
            base: self.base.clone(),
            ..LoadOptions::default()
        };
        match load_model::<B>(&self.dir, &options, device) {
            Ok(loaded) => loaded.model,
            Err(error) => panic!("{}: {error}", self.name),
        }
    }

    fn close(&self, what: &str, actual: &[f32], reference: &str) {
        let reference = self.tensors.f64(reference);
        assert_close(&format!("{} {what}", self.name), actual, &reference, 2e-4);
    }

    /// Rows of the ids with one −200 for each image.
    pub fn ids(&self, name: &str) -> Vec<Vec<i64>> {
        let width = self.tensors.shape(name)[1];
        let ids = self.tensors.i64(name);
        ids.chunks_exact(width).map(<[i64]>::to_vec).collect()
    }
}

/// Every hidden state of the vision tower, where the reference has them.
pub fn hidden_states<B: Backend>(checkpoint: &Checkpoint, device: &B::Device) -> bool {
    if !checkpoint.tensors.contains("clip_hidden_0") {
        return false;
    }
    let model = checkpoint.load::<B>(device);
    let pixels = float::<B, 4>(&checkpoint.tensors, "pixel_values", device);
    let tower = model.vision_tower.as_ref().expect("a vision tower");
    for (layer, state) in tower.hidden_states(pixels).into_iter().enumerate() {
        let name = format!("clip_hidden_{layer}");
        checkpoint.close(&name, &values(state), &name);
    }
    true
}

/// Image features and projector output.
pub fn image_tokens<B: Backend>(checkpoint: &Checkpoint, device: &B::Device) {
    let model = checkpoint.load::<B>(device);
    let pixels = float::<B, 4>(&checkpoint.tensors, "pixel_values", device);
    let features = model.vision_features(pixels).expect("features");
    checkpoint.close("features", &values(features.clone()), "clip_patch_features");
    let projected = model.project(features);
    checkpoint.close("projector", &values(projected), "projector_out");
}

/// Embeddings of some ids with the images in place.
pub fn embeddings<B: Backend>(
    checkpoint: &Checkpoint,
    model: &SqLlava<B>,
    ids: &[Vec<i64>],
    device: &B::Device,
) -> Vec<Tensor<B, 2>> {
    let pixels = float::<B, 4>(&checkpoint.tensors, "pixel_values", device);
    let images = model.encode_images(pixels).expect("image tokens");
    let samples: Vec<_> = ids
        .iter()
        .zip(images)
        .map(|(ids, image)| Sample {
            ids,
            images: vec![image],
        })
        .collect();
    model.embed(&samples).expect("embeddings")
}

/// Embeddings with the images in place, and the logits of every position.
pub fn logits<B: Backend>(checkpoint: &Checkpoint, ids: &str, device: &B::Device) {
    let model = checkpoint.load::<B>(device);
    let rows = embeddings(checkpoint, &model, &checkpoint.ids(ids), device);
    let joined: Vec<f32> = rows.iter().flat_map(|row| values(row.clone())).collect();
    checkpoint.close("embeddings", &joined, "inputs_embeds");
    let logits: Vec<f32> = rows
        .into_iter()
        .flat_map(|row| values(model.logits(row)))
        .collect();
    checkpoint.close("logits", &logits, "logits_f64");
}

/// How far the logits of a model in bf16 may be from those in f32: as far as PyTorch's own are on
/// the same data (`LlavaForConditionalGeneration` of `a_llava_gqa/hf`, PyTorch 2.15, transformers
/// 5.24; 7.6e-3 with the weights alone in bf16 and all else in f32).
pub const BF16: f64 = 1.36e-2;

/// Logits in bf16 of the checkpoint whose difference was measured in PyTorch.
pub fn bf16_logits<B: Backend>(bound: f64, device: &B::Device) {
    let mut compared = 0;
    for checkpoint in part_a() {
        if golden::file_name(&checkpoint.dir) != "hf" {
            continue;
        }
        let model = checkpoint.load_as::<B>(FloatDType::BF16, device);
        let ids = checkpoint.ids("input_ids_hf");
        let logits: Vec<f32> = embeddings(&checkpoint, &model, &ids, device)
            .into_iter()
            .flat_map(|row| values(model.logits(row)))
            .collect();
        let what = format!("{} logits in bf16", checkpoint.name);
        let reference = checkpoint.tensors.f64("logits_f64");
        golden::assert_close(&what, &logits, &reference, bound);
        compared += 1;
    }
    assert!(compared > 0, "no checkpoint in the transformers layout");
}

/// Greedy ids of the batch, and of each sample alone.
pub fn greedy<B: Backend>(checkpoint: &Checkpoint, device: &B::Device) {
    let model = checkpoint.load::<B>(device);
    let expected: Vec<Vec<i64>> = checkpoint.json["greedy_ids_no_eos"]
        .as_array()
        .expect("greedy ids")
        .iter()
        .map(serde_json_ids)
        .collect();
    let pixels = float::<B, 4>(&checkpoint.tensors, "pixel_values", device);
    let images = model.encode_images(pixels).expect("image tokens");
    let ids = checkpoint.ids("input_ids_orig");
    let samples: Vec<_> = ids
        .iter()
        .zip(images)
        .map(|(ids, image)| Sample {
            ids,
            images: vec![image],
        })
        .collect();
    let config = GenerateConfig::greedy(expected[0].len());
    let mut streamed = vec![vec![]; samples.len()];
    let batch = model
        .generate(&samples, &config, &mut |row, id| {
            streamed[row].push(id);
            ControlFlow::Continue(())
        })
        .expect("batch");
    assert_eq!(streamed, expected, "{}, streamed", checkpoint.name);
    for (row, sample) in samples.iter().enumerate() {
        assert_eq!(batch[row].ids, expected[row], "{}", checkpoint.name);
        let alone = model
            .generate(std::slice::from_ref(sample), &config, &mut |_, _| {
                ControlFlow::Continue(())
            })
            .expect("one sample");
        assert_eq!(alone[0].ids, expected[row], "{}, alone", checkpoint.name);
    }
}

fn serde_json_ids(row: &Value) -> Vec<i64> {
    let ids = row.as_array().expect("ids").iter();
    ids.map(|id| id.as_i64().expect("id")).collect()
}

/// Logits of the text-only batch at every position that is not padding.
pub fn text_logits<B: Backend>(checkpoint: &Checkpoint, device: &B::Device) -> bool {
    let tensors = &checkpoint.tensors;
    if !tensors.contains("text_ids") {
        return false;
    }
    let model = checkpoint.load::<B>(device);
    let shape = tensors.shape("text_logits");
    let (tokens, vocabulary) = (shape[1], shape[2]);
    let mask = tensors.i64("text_mask");
    let all = tensors.f64("text_logits");
    let (mut found, mut reference) = (vec![], vec![]);
    for (row, ids) in checkpoint.ids("text_ids").iter().enumerate() {
        let mask = &mask[row * tokens..(row + 1) * tokens];
        let real = mask.iter().filter(|&&m| m == 1).count();
        let sample = Sample {
            ids: &ids[..real],
            images: vec![],
        };
        let embedding = model.embed(&[sample]).expect("embeddings").remove(0);
        found.extend(values(model.logits(embedding)));
        let start = row * tokens * vocabulary;
        reference.extend_from_slice(&all[start..start + real * vocabulary]);
    }
    let what = format!("{} text logits", checkpoint.name);
    assert_close(&what, &found, &reference, 2e-4);
    true
}
