//! Language models, vision towers and whole models of today's families against transformers and
//! peft.

#![allow(clippy::print_stderr)] // A case that is not built is named.

#[path = "golden_families/adapters.rs"]
mod adapters;
#[path = "golden_families/vision.rs"]
mod vision;
#[path = "golden_families/whole.rs"]
mod whole;

use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use golden::{Tensors, Value, assert_close};
use sq_llava_model::config::Family;
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::ops::cross_entropy::token_losses;
use sq_llava_model::weights::{LoadOptions, load_model};
use sq_llava_model::{Sample, SqLlava};

/// A case and its reference.
struct Case {
    dir: PathBuf,
    json: Value,
    tensors: Tensors,
}

impl Case {
    fn name(&self) -> String {
        golden::file_name(&self.dir)
    }

    fn ids(&self, name: &str) -> Vec<i64> {
        self.tensors.i64(name)
    }
}

/// All cases of a kind.
fn all(kind: &str) -> Vec<Case> {
    all_in(&golden::families(), kind)
}

/// Those of a folder.
fn all_in(folder: &Path, kind: &str) -> Vec<Case> {
    let mut found = Vec::new();
    for dir in golden::entries(folder) {
        let outputs = dir.join("outputs.json");
        if !outputs.is_file() {
            continue;
        }
        let json = golden::json(&outputs);
        // Models that lay pictures over tiles have tests of their own.
        let tiles = ["llava_next", "llava_onevision"].map(Value::from);
        if json["kind"] == kind && !tiles.contains(&json["family"]) {
            let tensors = Tensors::read(&dir.join("outputs.safetensors"));
            found.push(Case { dir, json, tensors });
        }
    }
    found
}

/// Cases of a kind, with those left out that are not built: their model must be refused, and the
/// message holds what `named` gives of them.
fn built(
    kind: &str,
    is_built: impl Fn(&Path, &Value) -> bool,
    named: impl Fn(&Value) -> String,
) -> Vec<Case> {
    let mut found = Vec::new();
    for case in all(kind) {
        if is_built(&case.dir, &case.json) {
            found.push(case);
            continue;
        }
        eprintln!("{}: not built", case.dir.display());
        let (model, options) = (case.dir.join("model"), LoadOptions::default());
        let loaded = load_model::<Flex>(&model, &options, &Default::default());
        let message = loaded.map(|_| ()).expect_err("not built").to_string();
        assert!(message.contains(&named(&case.json)), "{message}");
    }
    found
}

fn text<'a>(json: &'a Value, key: &str) -> &'a str {
    json[key].as_str().expect("a name")
}

/// Cases of language models; a family that is not built must be refused by name.
fn cases() -> Vec<Case> {
    let family = |json: &Value| text(json, "family").to_owned();
    let is_built = |_: &Path, json: &Value| Family::of(&family(json)).is_some();
    let found = built("llm", is_built, family);
    assert!(!found.is_empty(), "no language model among the families");
    found
}

fn load<B: Backend>(dir: &Path, base: Option<PathBuf>) -> SqLlava<B> {
    let options = LoadOptions {
        freeze_base: base.is_some(),
        base,
        ..LoadOptions::default()
    };
    match load_model::<B>(dir, &options, &Default::default()) {
        Ok(loaded) => {
            assert!(
                loaded.report.is_clean(),
                "{}: {}",
                dir.display(),
                loaded.report
            );
            loaded.model
        }
        Err(error) => panic!("{}: {error}", dir.display()),
    }
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().to_vec().expect("f32 values")
}

/// Embeddings of a row of ids. `[tokens, hidden]`
fn embeddings<B: Backend>(model: &SqLlava<B>, ids: &[i64]) -> Tensor<B, 2> {
    let sample = Sample {
        ids,
        images: vec![],
    };
    model.embed(&[sample]).expect("embeds").remove(0)
}

fn logits<B: Backend>(model: &SqLlava<B>, ids: &[i64]) -> Tensor<B, 2> {
    model.logits(embeddings(model, ids))
}

#[test]
fn golden_hidden_states_and_logits() {
    for case in cases() {
        let model = load::<Flex>(&case.dir.join("model"), None);
        let llama = &model.language_model;
        let ids = case.ids("input_ids");
        let mut hidden = embeddings(&model, &ids).unsqueeze::<3>();
        let context = llama.context(&[0], 0, ids.len(), &Default::default());
        let layers = &llama.model.layers;
        for (index, layer) in layers.iter().enumerate() {
            let what = format!("{} hidden_{index}", case.name());
            let reference = case.tensors.f64(&format!("hidden_{index}"));
            assert_close(&what, &values(hidden.clone()), &reference, 5e-5);
            hidden = layer.forward(hidden, &context, None);
        }
        let last = case.tensors.f64(&format!("hidden_{}", layers.len()));
        assert_close(&case.name(), &values(hidden.clone()), &last, 5e-5);
        let found = llama.model.norm.forward(hidden);
        let reference = case.tensors.f64("hidden_final");
        assert_close(&case.name(), &values(found), &reference, 5e-5);
        let reference = case.tensors.f64("logits");
        assert_close(
            &case.name(),
            &values(logits(&model, &ids)),
            &reference,
            2e-4,
        );
    }
}

/// Gemma 3's layers with a window rotate by a base of their own, also in a context that no window
/// leaves.
#[test]
fn golden_gemma_3_keeps_its_local_base_in_a_short_context() {
    let mut compared = 0;
    for case in cases() {
        let source = case.dir.join("model");
        let mut config = golden::json(&source.join("config.json"));
        let window = config["sliding_window"].as_u64();
        let (Some(window), "gemma3_text") = (window, text(&config, "model_type")) else {
            continue;
        };
        config["max_position_embeddings"] = window.into();
        let dir = tempfile::tempdir().expect("a folder");
        for path in golden::entries(&source) {
            let copy = dir.path().join(golden::file_name(&path));
            std::fs::copy(&path, copy).expect("copied");
        }
        std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
        let model = load::<Flex>(dir.path(), None);
        // Tokens see those before them, so the first of a longer text have the same logits.
        let ids = case.ids("input_ids");
        let mut reference = case.tensors.f64("logits");
        let short = (window as usize).min(ids.len());
        reference.truncate(reference.len() / ids.len() * short);
        let found = values(logits(&model, &ids[..short]));
        assert_close(&case.name(), &found, &reference, 2e-4);
        compared += 1;
    }
    assert!(compared > 0 || std::env::var_os("SQ_LLAVA_GOLDEN_FAMILIES").is_some());
}

/// The keys of the hub's files, and those that we write, describe the same model.
#[test]
fn golden_configurations_of_the_hub_and_of_our_own() {
    for case in cases() {
        let source = case.dir.join("model");
        let model = load::<Flex>(&source, None);
        let ids = case.ids("input_ids");
        let reference = case.tensors.f64("logits");
        let hub = golden::json(&case.dir.join("config.hub.json"));
        for (kind, config) in [("hub", hub), ("written", model.config.to_hf())] {
            let dir = tempfile::tempdir().expect("a folder");
            for path in golden::entries(&source) {
                std::fs::copy(&path, dir.path().join(golden::file_name(&path))).expect("copied");
            }
            std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
            let twin = load::<Flex>(dir.path(), None);
            assert_eq!(
                twin.config.llama,
                model.config.llama,
                "{} {kind}",
                case.name()
            );
            let what = format!("{} {kind}", case.name());
            assert_close(&what, &values(logits(&twin, &ids)), &reference, 2e-4);
        }
    }
}

#[test]
fn golden_greedy_ids() {
    for case in cases() {
        let model = load::<Flex>(&case.dir.join("model"), None);
        let ids = case.ids("input_ids");
        let list = |key: &str| -> Vec<i64> {
            let list = case.json["greedy"][key].as_array().expect("a list");
            list.iter().map(|id| id.as_i64().expect("an id")).collect()
        };
        let expected = list("ids_without_stopping");
        let mut config = GenerateConfig::greedy(expected.len());
        let prompt = || Sample::<Flex> {
            ids: &ids,
            images: vec![],
        };
        let mut go_on = |_, _| std::ops::ControlFlow::Continue(());
        let found = model
            .generate(&[prompt()], &config, &mut go_on)
            .expect("answers");
        assert_eq!(found[0].ids, expected, "{}", case.name());
        // Padding at the left changes nothing, nor does a batch.
        let short = Sample {
            ids: &ids[..5],
            images: vec![],
        };
        let found = model
            .generate(&[short, prompt()], &config, &mut go_on)
            .expect("answers");
        assert_eq!(found[1].ids, expected, "{} in a batch", case.name());
        config.stop_ids = model.config.eos_token_ids.clone();
        config.stop_ids.extend(list("end_ids_in_generation_config"));
        let found = model
            .generate(&[prompt()], &config, &mut go_on)
            .expect("answers");
        let mut until = list("ids_until_end");
        until.pop_if(|last| config.stop_ids.contains(last));
        assert_eq!(found[0].ids, until, "{} until its end", case.name());
    }
}

/// The model with peft's adapter beside it.
fn adapted<B: Backend>(case: &Case) -> SqLlava<B> {
    load(&case.dir.join("lora_adapter"), Some(case.dir.join("model")))
}

/// Logits of the adapter's batch, padded at the right as peft saw it: the padded length may choose
/// rotary frequencies. `[rows · width, vocabulary]`
fn batch_logits<B: Backend>(case: &Case, model: &SqLlava<B>) -> Tensor<B, 2> {
    let shape = case.tensors.shape("lora_input_ids");
    let (rows, width) = (shape[0], shape[1]);
    let embedded = embeddings(model, &case.ids("lora_input_ids"));
    let [_, hidden] = embedded.dims();
    let embedded = embedded.reshape([rows, width, hidden]);
    let llama = &model.language_model;
    let states = llama.forward_layers(embedded, &vec![0; rows], None);
    llama.logits(states.reshape([rows * width, hidden]))
}

/// Places of a batch that are not padding, or those of them whose next token is learnt, with that
/// token.
fn places(case: &Case) -> (Vec<usize>, Vec<(usize, i64)>) {
    let width = case.tensors.shape("lora_input_ids")[1];
    let (labels, mask) = (case.ids("lora_labels"), case.ids("lora_attention_mask"));
    let real: Vec<usize> = (0..mask.len()).filter(|&place| mask[place] == 1).collect();
    let followed = |place: &usize| !(place + 1).is_multiple_of(width);
    let learnt = (0..labels.len()).filter(followed);
    let learnt = learnt.map(|place| (place, labels[place + 1]));
    let learnt = learnt.filter(|&(_, label)| label != -100);
    (real.clone(), learnt.collect())
}

fn at<B: Backend>(logits: Tensor<B, 2>, places: &[usize]) -> Tensor<B, 2> {
    let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
    let data = TensorData::new(places.clone(), [places.len()]);
    logits.select(0, Tensor::<B, 1, Int>::from_data(data, &Default::default()))
}

#[test]
fn golden_adapters_beside_and_merged() {
    for case in cases() {
        let model = adapted::<Flex>(&case);
        let merged = model.clone().merge_lora();
        let reference = case.tensors.f64("lora_logits");
        let vocabulary = case.tensors.shape("lora_logits")[2];
        let (real, _) = places(&case);
        let row = |&place: &usize| &reference[place * vocabulary..(place + 1) * vocabulary];
        let expected: Vec<f64> = real.iter().flat_map(row).copied().collect();
        for (kind, model) in [("beside", &model), ("merged", &merged)] {
            let what = format!("{} {kind}", case.name());
            let found = at(batch_logits(&case, model), &real);
            assert_close(&what, &values(found), &expected, 2e-4);
        }
    }
}

#[test]
fn golden_gradients_of_adapters() {
    type Ad = Autodiff<Flex>;
    for case in cases() {
        let model = adapted::<Ad>(&case);
        let (_, learnt) = places(&case);
        let (at_places, targets): (Vec<usize>, Vec<i64>) = learnt.into_iter().unzip();
        let logits = at(batch_logits(&case, &model), &at_places);
        let loss = token_losses(logits, &targets).mean();
        let expected = case.json["lora"]["loss_f64"].as_f64().expect("a loss");
        let found = f64::from(loss.clone().into_scalar());
        assert!(
            (found - expected).abs() < 1e-5 * expected,
            "{}: {found}",
            case.name()
        );
        let grads = loss.backward();
        let mut compared = 0;
        for (path, linear) in model.language_model.linears() {
            let Some(lora) = &linear.lora else { continue };
            for (part, param) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
                let key = format!("lora_grad.base_model.model.{path}.{part}.weight");
                if !case.tensors.contains(&key) {
                    continue;
                }
                let grad = param.val().grad(&grads).expect("a gradient");
                let reference = case.tensors.f64(&key);
                let what = format!("{} {key}", case.name());
                assert_close(&what, &values(grad), &reference, 1e-4);
                compared += 1;
            }
        }
        let all = case.tensors.names();
        let all = all.filter(|name| name.starts_with("lora_grad.")).count();
        assert_eq!(compared, all, "{}", case.name());
        assert!(all > 0, "{}", case.name());
    }
}
