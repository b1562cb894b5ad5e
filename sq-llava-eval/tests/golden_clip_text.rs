//! CLIP's two towers against transformers (part h).

use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use golden::{Case, assert_close};
use sq_llava_eval::clip_score::clip_score;
use sq_llava_eval::clip_score::model::ClipModel;

type Device = FlexDevice;

fn load(case: &Case) -> ClipModel<Flex> {
    let (model, report) = ClipModel::<Flex>::load(
        &case.folder,
        FloatDType::F32,
        false,
        None,
        &Device::default(),
    )
    .unwrap_or_else(|e| panic!("{}: {e}", case.name));
    assert!(report.is_clean(), "{}: {report}", case.name);
    model
}

/// Texts of a case, each up to its end token.
fn texts(case: &Case) -> Vec<Vec<i64>> {
    let rows = case.json["ids_unpadded"].as_array().expect("ids");
    let ids = |row: &golden::Value| -> Option<Vec<i64>> {
        row.as_array()?.iter().map(golden::Value::as_i64).collect()
    };
    rows.iter().map(|row| ids(row).expect("ids")).collect()
}

fn values<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().to_vec().expect("f32 values")
}

fn pixels(case: &Case) -> Tensor<Flex, 4> {
    let shape = case.tensors.shape("pixel_values");
    let data = TensorData::new(case.tensors.f32("pixel_values"), shape);
    Tensor::from_data(data, &Device::default())
}

#[test]
fn golden_h_hidden_states_of_texts() {
    for case in golden::cases("h_") {
        let model = load(&case);
        let shape = case.tensors.shape("input_ids");
        let ids = TensorData::new(case.tensors.i64("input_ids"), shape.clone());
        let ids: Tensor<Flex, 2, Int> = Tensor::from_data(ids, &Device::default());
        let hidden = values(model.text_model.forward(ids));
        let expected = case.tensors.f64("text_last_hidden");
        let width = expected.len() / (shape[0] * shape[1]);
        // The reference hides padding from padding; no text depends on it.
        for (row, text) in texts(&case).iter().enumerate() {
            let start = row * shape[1] * width;
            let part = start..start + text.len() * width;
            let what = format!("{}: text {row}", case.name);
            assert_close(&what, &hidden[part.clone()], &expected[part], 2e-4);
        }
    }
}

#[test]
fn golden_h_embeddings_and_scores() {
    for case in golden::cases("h_") {
        let model = load(&case);
        let name = &case.name;
        let reference = |key: &str| case.tensors.f64(key);
        let texts = texts(&case);
        let together = model.text_embeds(&texts).expect("embeddings");
        let images = model.image_embeds(pixels(&case)).expect("a class token");
        assert_close(
            name,
            &values(together.clone()),
            &reference("text_embeds"),
            2e-4,
        );
        assert_close(
            name,
            &values(images.clone()),
            &reference("image_embeds"),
            2e-4,
        );
        // Alone, without padding, a text has the same embedding.
        let width = together.dims()[1];
        for (row, text) in texts.iter().enumerate() {
            let alone = model.text_embeds(std::slice::from_ref(text)).expect("one");
            let expected = &reference("text_embeds")[row * width..(row + 1) * width];
            assert_close(
                &format!("{name}: text {row}"),
                &values(alone),
                expected,
                2e-4,
            );
        }

        let cosines = values((images.clone() * together.clone()).sum_dim(1));
        assert_close(name, &cosines, &reference("cosine"), 2e-4);
        let logits = model.logits_per_image(images, together);
        assert_close(name, &values(logits), &reference("logits_per_image"), 2e-4);
        let scores = case.json["clipscore_2.5"].as_array().expect("scores");
        assert_eq!(scores.len(), cosines.len());
        for (cosine, score) in cosines.iter().zip(scores) {
            let difference = clip_score(f64::from(*cosine)) - score.as_f64().expect("a score");
            assert!(difference.abs() < 2e-4, "{name}: {difference}");
        }
    }
}

#[test]
fn golden_h_a_missing_weight_is_an_error() {
    for case in golden::cases("h_") {
        let dir = tempfile::tempdir().expect("a folder");
        let config = golden::json(&case.folder.join("config.json"));
        let write = |config: &golden::Value| {
            std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
        };
        let load = || {
            ClipModel::<Flex>::load(dir.path(), FloatDType::F32, false, None, &Device::default())
                .map(|_| ())
                .expect_err("it must fail")
                .to_string()
        };
        write(&config);
        assert!(load().contains("no weights"), "{}", load());
        for path in golden::entries(&case.folder) {
            if golden::file_name(&path).starts_with("model.") {
                std::fs::copy(&path, dir.path().join(golden::file_name(&path))).expect("copied");
            }
        }
        let mut deeper = config.clone();
        let layers = config["text_config"]["num_hidden_layers"]
            .as_u64()
            .expect("layers");
        deeper["text_config"]["num_hidden_layers"] = (layers + 1).into();
        write(&deeper);
        let key = format!("text_model.encoder.layers.{layers}.");
        assert!(load().contains(&key), "{}", load());
        let mut wider = config.clone();
        let width = config["projection_dim"].as_u64().expect("width");
        wider["projection_dim"] = (width + 1).into();
        write(&wider);
        assert!(load().contains("text_projection.weight"), "{}", load());
    }
}
