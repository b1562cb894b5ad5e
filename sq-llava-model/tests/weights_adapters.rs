//! Adapters that PEFT made (`scripts/peft_fixtures.py`) compute what PEFT computes.

mod weights;

use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor, TensorData};
use golden::{Tensors, assert_close};
use sq_llava_model::SqLlava;
use weights::*;

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft");
    fixtures.join(name)
}

fn base() -> PathBuf {
    golden::base_folder("", None).join("orig")
}

/// Logits of the fixture's token ids.
fn logits(model: &SqLlava<B>, reference: &Tensors) -> Vec<f32> {
    let ids = reference.i64("input_ids");
    let ids = Tensor::<B, 1, Int>::from_data(ids.as_slice(), &Default::default());
    let hidden = model.language_model.embed(ids).unsqueeze();
    let hidden = model.language_model.forward_layers(hidden, &[0], None);
    let logits = model.language_model.logits(hidden.squeeze_dim(0));
    logits.into_data().to_vec::<f32>().unwrap()
}

/// The tower's last hidden layer but one, of the fixture's picture.
fn features(model: &SqLlava<B>) -> Vec<f32> {
    let pixels: Vec<f32> = (0..3 * 56 * 56)
        .map(|i| (i % 97) as f32 / 97.0 - 0.5)
        .collect();
    let pixels = TensorData::new(pixels, [1, 3, 56, 56]);
    let tower = model.vision_tower.as_ref().expect("a tower");
    let layer = tower.encoder.layers.len() - 1;
    let hidden = tower.hidden_state(Tensor::from_data(pixels, &Default::default()), layer);
    hidden.into_data().to_vec::<f32>().unwrap()
}

#[test]
fn fault_04_options_are_computed_as_peft_computes_them() {
    let run = fixture("options");
    let reference = Tensors::read(&run.join("outputs.safetensors"));
    let dir = tempfile::tempdir().unwrap();
    copy(&run, dir.path(), &|name| name.starts_with("adapter_"));
    let loaded = load(dir.path(), &on_base(&base()));
    assert!(loaded.report.is_clean(), "{}", loaded.report);
    let found = logits(&loaded.model, &reference);
    assert_close("options", &found, &reference.f64("logits"), 1e-5);
}

#[test]
fn fault_01_the_published_layout_computes_what_the_released_code_computes() {
    let run = fixture("published");
    let reference = Tensors::read(&run.join("outputs.safetensors"));
    for with_vision in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        copy(&run, dir.path(), &|name| name.starts_with("adapter_"));
        if !with_vision {
            std::fs::remove_dir_all(dir.path().join("Vit-lora")).unwrap();
        }
        let loaded = load(dir.path(), &on_base(&base()));
        assert!(loaded.report.is_clean(), "{}", loaded.report);
        // Four layers with two adapted linears, of two factors each.
        let copies = loaded.report.ignored.len();
        assert_eq!(copies, if with_vision { 16 } else { 0 });
        assert_eq!(loaded.report.notes.len(), usize::from(!with_vision));
        let found = logits(&loaded.model, &reference);
        assert_close("logits", &found, &reference.f64("logits"), 1e-5);
        let found = features(&loaded.model);
        assert_close("features", &found, &reference.f64("features"), 1e-5);
    }
}
