//! Whole runs on a tiny LLaVA with real photographs.

#[path = "training/masks.rs"]
mod masks;
#[path = "training/words.rs"]
mod words;
#[path = "training/world.rs"]
mod world;

use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::{Distribution, Tensor, TensorData};
use burn_flex::Flex;
use serde_json::{Value, json};
use sq_llava_data::TextTokenizer;
use sq_llava_model::weights::{LoadOptions, RunOrigin, load_model};
use sq_llava_model::{Sample, SqLlava};
use sq_llava_train::run::stage::StageModel;
use sq_llava_train::step::groups::ParamGroup;
use sq_llava_train::step::optimizer::GroupedAdamW;
use sq_llava_train::{Base, Recipe, RunDirectory, RunFiles, Ui, train};

use self::world::{Ad, World};

fn assert_near(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (step, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance, "step {step}: {a} and {b}");
    }
}

#[test]
fn both_stages_learn_and_leave_a_run_that_loads() {
    let world = World::new();
    let outcome = world.train("run", &[]).expect("trains");
    assert_eq!(outcome.stages.len(), 2);
    // Seven samples, four a step.
    assert_eq!((outcome.stages[0].steps, outcome.stages[1].steps), (8, 12));
    for stage in [1, 2] {
        let losses = world.losses("run", stage);
        let half = losses.len() / 2;
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (early, late) = (mean(&losses[..half]), mean(&losses[half..]));
        assert!(late < 0.98 * early, "stage {stage}: {early} then {late}");
    }
    let asked = |line: &Value| line["question_tokens"].as_u64() > Some(0);
    let log = world.log("run");
    assert!(log.iter().any(asked), "no question was ever asked");
    assert!(
        log.iter()
            .filter(|line| line["stage"] == 1)
            .all(|line| !asked(line))
    );

    // Stage 1: projector and prototypes only; stage 2: everything.
    let [llm, projector, vision] = outcome.stages[0].trainable;
    assert!((llm, vision) == (0, 0) && projector > 0);
    assert!(outcome.stages[1].trainable.iter().all(|&count| count > 0));

    let options = LoadOptions {
        base: Some(world.path("base")),
        ..LoadOptions::default()
    };
    for (run, adapters, template) in [("run", true, "sq"), ("run/stage1", false, "plain")] {
        let run = world.path(run);
        let loaded = load_model::<Flex>(&run, &options, &Default::default());
        let model = loaded
            .unwrap_or_else(|e| panic!("{}: {e}", run.display()))
            .model;
        let llm = &model.language_model.model.layers[0].self_attn.o_proj;
        assert_eq!(llm.lora.is_some(), adapters);
        assert_eq!(model.config.conversation.as_deref(), Some(template));
        assert_eq!(model.language_model.new_tokens.is_some(), adapters);
        assert_eq!(
            model.prototype.as_ref().map(|p| p.centers.dims()[0]),
            Some(8)
        );
        let tokenizer = TextTokenizer::from_dir(&run).expect("the run's tokenizer");
        assert_eq!(tokenizer.id("[vusr]").is_some(), adapters);
        let recipe = Recipe::read(&run.join("recipe.toml"), &[]).expect("the run's recipe");
        assert_eq!(recipe.stage2.lr_llm, 1e-2);
    }
    assert!(!world.path("run/.unfinished").exists());
    // The directory is taken now.
    let error = world.train("run", &[]).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
}

#[test]
fn stage_2_alone_starts_from_a_stage_1_run() {
    let world = World::new();
    world.train("one", &["stages=[1]"]).expect("stage 1");
    let mut paths = world.paths("two");
    paths.projector = Some(world.path("one"));
    let recipe = world.recipe(&["stages=[2]"]);
    train::<Ad>(&recipe, &paths, &Default::default(), Ui::Quiet).expect("stage 2");
    world.train("both", &[]).expect("both stages");
    // The same numbers whether the stages run in one process or in two.
    assert_near(&world.losses("two", 2), &world.losses("both", 2), 1e-6);
    let other = world.recipe(&["stages=[2]", "model.prototype=false"]);
    paths.out = world.path("three");
    let error = train::<Ad>(&other, &paths, &Default::default(), Ui::Quiet).unwrap_err();
    assert!(error.to_string().contains("model.prototype"), "{error}");
}

#[test]
fn numbers_depend_on_the_seed_alone() {
    let world = World::new();
    // Dropout is on; workers and chunks are how, not what. Other chunks round otherwise, which a
    // large ε keeps small: else Adam makes whole steps out of it.
    let steady = ["stage1.eps=1e-3", "stage2.eps=1e-3"];
    let with = |more: &[&'static str]| [&steady[..], more].concat();
    world.train("a", &with(&["workers=1"])).expect("trains");
    world
        .train("b", &with(&["workers=3", "loss.chunk_tokens=3"]))
        .expect("trains");
    for stage in [1, 2] {
        assert_near(&world.losses("a", stage), &world.losses("b", stage), 1e-4);
    }
    world.train("c", &with(&["workers=3"])).expect("trains");
    assert_eq!(world.losses("a", 2), world.losses("c", 2));
    world.train("d", &with(&["seed=1"])).expect("trains");
    assert_ne!(world.losses("a", 2), world.losses("d", 2));
}

#[test]
fn accumulation_is_a_larger_batch() {
    let world = World::new();
    let off = [
        "stages=[2]",
        "model.prototype=false",
        "lora.llm.dropout=0",
        "lora.vision.dropout=0",
        "stage2.epochs=2",
        // Groups would have a part each.
        "thread_groups=1",
    ];
    let with = |more: [&'static str; 2]| [&off[..], &more[..]].concat();
    let whole = with(["stage2.batch_size=4", "stage2.accumulation=1"]);
    let parts = with(["stage2.batch_size=1", "stage2.accumulation=4"]);
    world.train("whole", &whole).expect("trains");
    world.train("parts", &parts).expect("trains");
    assert_near(&world.losses("whole", 2), &world.losses("parts", 2), 1e-3);
    let norms = |run: &str| -> Vec<f64> {
        world
            .log(run)
            .iter()
            .map(|l| l["grad_norm"].as_f64().expect("a norm"))
            .collect()
    };
    let (whole, parts) = (norms("whole"), norms("parts"));
    // The last step of an epoch has three samples: its sums must not be taken for means.
    for (whole, parts) in whole.iter().zip(&parts) {
        assert!((whole - parts).abs() < 0.02 * whole, "{whole} and {parts}");
    }
}

#[test]
fn released_flavour_and_asking_off() {
    let world = World::new();
    let changes = [
        "flavour=released",
        "stage1.epochs=1",
        "stage2.epochs=2",
        "asking.delta=0",
        "save_every=1",
        "keep_checkpoints=1",
    ];
    let outcome = world.train("run", &changes);
    // The quick recipe sets a rate for the vision adapters, so they train here too.
    let outcome = outcome.expect("trains");
    assert!(outcome.stages[1].trainable[ParamGroup::Vision.index()] > 0);
    assert!(
        world
            .log("run")
            .iter()
            .all(|line| line["loss_question"].is_null())
    );
    assert!(world.path("run/checkpoint-2-3/config.json").is_file());
    assert!(
        !world.path("run/checkpoint-2-2").exists(),
        "an old checkpoint is left"
    );
}

#[test]
fn bad_samples_and_settings_are_named() {
    let world = World::new();
    let mut samples = world.samples();
    samples[2]["image"] = json!("nowhere.png");
    world.write("data.json", &samples);
    let error = world.train("a", &[]).unwrap_err().to_string();
    assert!(
        error.contains("s2") && error.contains("nowhere.png"),
        "{error}"
    );

    samples = world.samples();
    samples[1]["conversations"][0]["value"] = json!("<image><image><image>?");
    samples[1]["image"] = json!(["a.png", "b.png"]);
    world.write("data.json", &samples);
    let error = world.train("b", &[]).unwrap_err().to_string();
    assert!(error.contains("s1"), "{error}");

    world.write("data.json", &json!([]));
    let error = world.train("c", &[]).unwrap_err().to_string();
    assert!(error.contains("no samples"), "{error}");

    let mut paths = world.paths("d");
    paths.data = Some(world.path("data.json"));
    let recipe = world.recipe(&[]);
    let error = train::<Ad>(&recipe, &paths, &Default::default(), Ui::Quiet).unwrap_err();
    assert!(error.to_string().contains("stage1.data"), "{error}");
}

/// Adds noise to everything that trains.
struct Noise(f64);

impl ModuleMapper<Ad> for Noise {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Ad, D>>) -> Param<Tensor<Ad, D>> {
        if !param.is_require_grad() {
            return param;
        }
        param.map(|tensor| {
            let noise = Distribution::Normal(0.0, self.0);
            let noise = Tensor::random(tensor.dims(), noise, &tensor.device());
            Tensor::from_inner((tensor + noise).inner()).require_grad()
        })
    }
}

fn logits<B: burn::tensor::backend::Backend>(model: &SqLlava<B>, pixels: &[f32]) -> Vec<f32> {
    let pixels = model.pixels(&[pixels]).expect("pixels");
    let images = model.encode_images(pixels).expect("an image");
    let new = model
        .language_model
        .new_tokens
        .as_ref()
        .expect("new tokens")
        .start as i64;
    let ids = [1, -200, new, 50, 60, new + 1, 70, new + 3];
    let sample = Sample { ids: &ids, images };
    let mut embedded = model.embed(&[sample]).expect("embedded");
    model
        .logits(embedded.remove(0))
        .into_data()
        .to_vec()
        .expect("f32 values")
}

#[test]
fn a_saved_run_gives_the_same_logits() {
    let world = World::new();
    let device = Default::default();
    let (recipe, paths) = (world.recipe(&[]), world.paths("run"));
    let base = Base::<Ad>::load(&recipe, &paths, &device).expect("a base");
    let mut tokenizer = base.tokenizer;
    let prepared = StageModel::prepare(base.model, &mut tokenizer, &recipe, 2).expect("a stage");
    let model = prepared.model.map(&mut Noise(0.05));
    let pixels: Vec<f32> = (0..3 * 56 * 56).map(|i| (i as f32 * 0.37).sin()).collect();
    let expected = logits(&model, &pixels);

    let run = RunDirectory::create(&paths.out, &recipe, &paths).expect("a run directory");
    let files = RunFiles {
        tokenizer,
        processor: base.processor.config().clone(),
        origin: RunOrigin::default(),
    };
    run.finish(&model, &files, |_| Ok(())).expect("saved");
    let options = LoadOptions {
        base: Some(world.path("base")),
        ..LoadOptions::default()
    };
    let loaded = load_model::<Flex>(&paths.out, &options, &device).expect("loaded");
    let actual = logits(&loaded.model, &pixels);
    let reference: Vec<f64> = expected.iter().map(|&v| f64::from(v)).collect();
    golden::assert_close("logits", &actual, &reference, 1e-5);
}

#[test]
fn a_gradient_that_is_not_a_number_changes_nothing() {
    let world = World::new();
    let device = Default::default();
    let recipe = world.recipe(&[]);
    let base = Base::<Ad>::load(&recipe, &world.paths("run"), &device).expect("a base");
    let mut tokenizer = base.tokenizer;
    let prepared = StageModel::prepare(base.model, &mut tokenizer, &recipe, 2).expect("a stage");
    let new = |model: &SqLlava<Ad>| {
        let rows = &model
            .language_model
            .new_tokens
            .as_ref()
            .expect("new tokens")
            .embed;
        (rows.id, rows.val().into_data())
    };
    let (id, before) = new(&prepared.model);
    let mut optimizer = GroupedAdamW::<Ad>::new(&recipe.stage2, prepared.groups.clone());
    let mut model = prepared.model;
    for (value, moves) in [(f32::NAN, false), (f32::INFINITY, false), (0.5, true)] {
        let mut grads = GradientsParams::new();
        let [rows, width] = [before.shape[0], before.shape[1]];
        let data = TensorData::new(vec![value; rows * width], [rows, width]);
        grads.register(id, Tensor::<Flex, 2>::from_data(data, &device));
        model = optimizer.step(1.0, model, grads);
        assert_eq!(optimizer.norms().is_finite(), moves);
        assert_eq!(new(&model).1 != before, moves, "gradient {value}");
    }
}

#[test]
fn bad_pictures_are_left_out_and_listed() {
    let world = World::new();
    let mut samples = world.samples();
    samples[0]["image"] = json!("gone.png");
    samples[3]["image"] = json!("gone.png");
    world.write("data.json", &samples);
    let quick = ["stages=[2]", "model.prototype=false", "stage2.epochs=2"];
    let error = world.train("stops", &quick).unwrap_err();
    assert!(error.to_string().contains("gone.png"), "{error}");
    let skip = [&quick[..], &["bad_images=skip"]].concat();
    world.train("skips", &skip).expect("trains");
    let list = std::fs::read_to_string(world.path("skips/skipped.jsonl")).expect("a list");
    assert_eq!(list.lines().count(), 4);
    let samples: u64 = world
        .log("skips")
        .iter()
        .map(|line| line["samples"].as_u64().expect("samples"))
        .sum();
    assert_eq!(samples, 10);
    // The same as if they had never been there, but for the order of the others.
    let blank = [&quick[..], &["bad_images=blank"]].concat();
    world.train("blank", &blank).expect("trains");
    assert!(world.path("blank/skipped.jsonl").is_file());

    // A step of which nothing is left changes nothing, and the run goes on.
    let alone = ["stage2.batch_size=1", "stage2.accumulation=1"];
    let alone = [&skip[..], &alone].concat();
    world.train("alone", &alone).expect("trains");
    let log = world.log("alone");
    assert_eq!(log.len(), 14);
    let empty = log.iter().filter(|line| line["answer_tokens"] == 0);
    assert_eq!(empty.count(), 4);
    assert!(log.iter().all(|line| line["loss"].is_number()));
}

/// Weights, moments and descriptions below a run directory; what was measured and where it lies
/// (logs, events, the page, states, paths and sums of these) is each run's own.
fn saved(directory: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    const OWN: [&str; 6] = [
        "manifest.json",
        "paths.json",
        "trainer_state.json",
        ".lock",
        "report.html",
        "tensorboard",
    ];
    for path in golden::entries(directory) {
        let name = golden::file_name(&path);
        if OWN.contains(&name.as_str()) || name.starts_with("log.") {
            continue;
        }
        if path.is_dir() {
            saved(&path, found);
        } else {
            found.push((name, std::fs::read(&path).expect("a file")));
        }
    }
}

#[test]
fn fault_29_equal_runs_save_equal_bytes() {
    let world = World::new();
    let [first, second] = ["first", "second"].map(|out| {
        world.train(out, &["save_every=1"]).expect("a run");
        let mut files = Vec::new();
        saved(&world.path(out), &mut files);
        files
    });
    let has = |name: &str| first.iter().any(|(found, _)| found == name);
    assert!(has("optimizer.safetensors") && has("new_tokens.safetensors"));
    assert_eq!(first.len(), second.len());
    for ((name, bytes), (other, others)) in first.iter().zip(&second) {
        assert!(
            name == other && bytes == others,
            "{name} and {other} differ"
        );
        assert!(!name.ends_with(".tmp"), "{name} is left");
    }
}
