//! Training on pictures of any shape: a tiny LLaVA-NeXT against transformers, and whole runs of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::Param;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::train::TrainStep;
use burn_flex::Flex;
use golden::{Tensors, Value, assert_close, json};
use sq_llava_data::TokenRole;
use sq_llava_data::image::ImageProcessor;
use sq_llava_model::ops::params::{ParamPath, ParamVisitor, visit_params};
use sq_llava_model::weights::{LoadOptions, Loaded, load_model};
use sq_llava_train::data::batch::{MicroBatch, Picture, TrainSample};
use sq_llava_train::data::features::FeatureCache;
use sq_llava_train::failure::Failure;
use sq_llava_train::recipe::Objective;
use sq_llava_train::step::groups::{ParamGroups, Trains};
use sq_llava_train::step::loss::LossSettings;
use sq_llava_train::step::whole::{StepContext, TrainModel};
use sq_llava_train::{GradientCheckpointing, Recipe, Resume, TrainOptions, TrainPaths, Ui, train};

type Ad = Autodiff<Flex>;

/// The repository's models: the references of this file belong to them.
fn families() -> PathBuf {
    golden::repository().join("families")
}

/// The model that the gradients are of.
fn case() -> (Value, Tensors, PathBuf) {
    let folder = golden::repository().join("l_anyres_gradients");
    let case = golden::cases_in(&folder).remove(0);
    let model = families().join(case.json["case"].as_str().expect("a name"));
    (case.json, case.tensors, model)
}

fn load(dir: &Path, options: &LoadOptions) -> Loaded<Ad> {
    load_model::<Ad>(dir, options, &Default::default()).expect("a model")
}

/// Ids with one mark for each run of the placeholder.
fn compact(ids: &[i64], placeholder: i64) -> Vec<i64> {
    let mut compact = Vec::new();
    for &id in ids {
        let id = if id == placeholder { -200 } else { id };
        if id != -200 || compact.last() != Some(&-200) {
            compact.push(id);
        }
    }
    compact
}

/// Gradients by path.
struct Read<'a> {
    grads: &'a GradientsParams,
    found: BTreeMap<String, Vec<f32>>,
}

impl ParamVisitor<Ad> for Read<'_> {
    fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<Ad, D>>) {
        if let Some(grad) = self.grads.get::<Flex, D>(param.id) {
            let values = grad.into_data().to_vec().expect("f32 values");
            self.found.insert(path.fields().join("."), values);
        }
    }
}

fn context(checkpointing: GradientCheckpointing, trains: Trains) -> StepContext {
    StepContext {
        objective: Objective::Text,
        loss: LossSettings {
            question_weight: 1.0,
            answer_weight: 1.0,
            chunk_tokens: 5,
        },
        mask_weight: 0.0,
        trains,
        features: Arc::new(FeatureCache::new(1 << 20)),
        checkpointing,
        seed: 0,
        failure: Failure::default(),
    }
}

#[test]
fn golden_gradients_of_the_connector() {
    let (facts, tensors, dir) = case();
    let options = LoadOptions {
        freeze_base: true,
        ..LoadOptions::default()
    };
    let loaded = load(&dir.join("model"), &options);
    let config = loaded.model.config.image_processor(&dir.join("model"));
    let processor = ImageProcessor::new(config.expect("its file")).expect("a processor");
    let placeholder = loaded.model.config.image_token_index.expect("an id");
    let samples = facts["samples"].as_array().expect("samples").iter();
    let samples: Vec<TrainSample> = samples
        .map(|sample| {
            let text = |key: &str| sample[key].as_str().expect("a string");
            let ids = tensors.i64(&format!("{}.input_ids", text("name")));
            let expanded = ids.iter().filter(|&&id| id == placeholder).count();
            let ids = compact(&ids, placeholder);
            let image = processor.open(&families().join(text("image")));
            let image = processor.prepare(&image.expect("a picture"), 1);
            let tokens = image.packing.tokens(loaded.model.config.tokens_per_image());
            let tokens = tokens.expect("a square");
            assert_eq!(tokens, expanded);
            let learnt = ids.len() - sample["learnt"].as_u64().expect("a number") as usize;
            let role = |place| match place >= learnt {
                true => TokenRole::Answer,
                false => TokenRole::Ignore,
            };
            TrainSample {
                id: text("name").into(),
                roles: (0..ids.len()).map(role).collect(),
                ids,
                pictures: vec![Picture {
                    name: text("image").into(),
                    key: text("image").into(),
                    packing: image.packing,
                    tokens,
                    pixels: Some(image.data.into()),
                    labels: None,
                }],
                source: None,
            }
        })
        .collect();
    let trains = Trains {
        projector: true,
        ..Trains::default()
    };
    let (model, _) = ParamGroups::mark(loaded.model, trains);
    for way in [GradientCheckpointing::None, GradientCheckpointing::Blocks] {
        let context = context(way, trains);
        let failure = context.failure.clone();
        let model = TrainModel {
            model: model.clone(),
            context,
        };
        // Pictures of different lengths share the batch.
        let batch = MicroBatch::whole_step(samples.clone());
        let tokens = batch.step_tokens as f64;
        let output = TrainStep::step(&model, batch);
        if let Some(error) = failure.take() {
            panic!("{error}");
        }
        let wanted = facts["loss"].as_f64().expect("a loss");
        let loss = output.item.sums.answer / tokens;
        assert!((loss - wanted).abs() < 2e-6 * wanted, "{way:?}: {loss}");
        let mut read = Read {
            grads: &output.grads,
            found: BTreeMap::new(),
        };
        visit_params(&model.model, &mut read);
        for (ours, theirs) in [
            ("image_newline", "image_newline"),
            (
                "mm_projector.layers.0.weight",
                "multi_modal_projector.linear_1.weight",
            ),
            (
                "mm_projector.layers.0.bias",
                "multi_modal_projector.linear_1.bias",
            ),
            (
                "mm_projector.layers.1.weight",
                "multi_modal_projector.linear_2.weight",
            ),
            (
                "mm_projector.layers.1.bias",
                "multi_modal_projector.linear_2.bias",
            ),
        ] {
            let reference = tensors.f64(&format!("grad.{theirs}"));
            let found = &read.found[ours];
            assert_close(&format!("{way:?} {ours}"), found, &reference, 1e-4);
        }
        assert_eq!(read.found.len(), 5);
    }
}

/// A folder with a tiny LLaVA-NeXT, pictures of different shapes and conversations about them.
struct World {
    folder: tempfile::TempDir,
    pictures: Vec<String>,
}

const QUICK: &str = "
    flavour = 'paper'
    workers = 2
    [model]
    prototype = false
    image_aspect_ratio = 'anyres'
    [stage1]
    epochs = 6
    batch_size = 2
    accumulation = 2
    lr_projector = 1e-2
    max_length = 400
    [stage2]
    epochs = 4
    batch_size = 2
    accumulation = 2
    lr_llm = 1e-2
    lr_projector = 5e-3
    lr_vision = 2e-3
    max_length = 400
    [lora.llm]
    r = 4
    alpha = 8
    [lora.vision]
    r = 4
    alpha = 8
";

impl World {
    fn new() -> Self {
        let pictures = golden::entries(&families().join("images"));
        let pictures: Vec<String> = pictures
            .iter()
            .map(|path| golden::file_name(path))
            .collect();
        let world = Self {
            folder: tempfile::tempdir().expect("a folder"),
            pictures,
        };
        world.write(&world.samples());
        world
    }

    /// Each picture alone twice, and one sample with two.
    fn samples(&self) -> Vec<Value> {
        let turns = |marks: &str, n: usize| {
            serde_json::json!([
                {"from": "human", "value": format!("{marks}what is {n}?")},
                {"from": "gpt", "value": "it is a thing"},
            ])
        };
        let alone = self.pictures.iter().cycle().take(2 * self.pictures.len());
        let mut samples: Vec<Value> = alone
            .enumerate()
            .map(|(n, picture)| {
                serde_json::json!({"id": format!("s{n}"), "image": picture,
                    "conversations": turns("<image>\n", n)})
            })
            .collect();
        samples.push(
            serde_json::json!({"id": "two", "image": &self.pictures[..2],
            "conversations": turns("<image>\n<image>\n", 2)}),
        );
        samples
    }

    fn write(&self, samples: &[Value]) {
        let text = Value::from(samples.to_vec()).to_string();
        std::fs::write(self.path("data.json"), text).expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train(&self, out: &str, options: TrainOptions, changes: &[&str]) -> Result<(), String> {
        self.train_as(out, QUICK, options, changes)
    }

    fn train_as(
        &self,
        out: &str,
        recipe: &str,
        options: TrainOptions,
        changes: &[&str],
    ) -> Result<(), String> {
        let data = self.path("data.json");
        let mut all: Vec<String> = ["stage1.data", "stage2.data"]
            .iter()
            .map(|key| format!("{key}='{}'", data.display()))
            .collect();
        all.extend(changes.iter().map(ToString::to_string));
        let recipe = Recipe::parse(recipe, &all).expect("a recipe");
        let paths = TrainPaths {
            llm: case().2.join("model"),
            images: Some(families().join("images")),
            out: self.path(out),
            ..TrainPaths::default()
        };
        let trained = train::<Ad>(&recipe, &paths, &Default::default(), options);
        trained.map(|_| ()).map_err(|error| error.to_string())
    }

    fn losses(&self, out: &str, stage: u64) -> Vec<f64> {
        let text = std::fs::read_to_string(self.path(out).join("log.jsonl")).expect("a log");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let of_stage = lines.filter(|line: &Value| line["stage"] == stage);
        of_stage
            .map(|line| line["loss"].as_f64().expect("a loss"))
            .collect()
    }

    fn newline(&self, out: &str) -> Vec<f32> {
        let options = LoadOptions {
            base: Some(case().2.join("model")),
            ..LoadOptions::default()
        };
        let model = load(&self.path(out), &options).model;
        let newline = model.image_newline.expect("a newline").val();
        newline.into_data().to_vec().expect("f32 values")
    }
}

fn quiet() -> TrainOptions {
    Ui::Quiet.into()
}

/// One test: the CPU backend's random numbers are the process's.
#[test]
fn a_llava_next_learns_from_pictures_of_different_shapes() {
    let world = World::new();
    let saving = ["save_every=1", "keep_checkpoints=100"];
    world.train("whole", quiet(), &saving).expect("trains");
    for stage in [1, 2] {
        let losses = world.losses("whole", stage);
        let half = losses.len() / 2;
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (early, late) = (mean(&losses[..half]), mean(&losses[half..]));
        assert!(late < 0.9 * early, "stage {stage}: {early} then {late}");
    }
    // The newline learns with the projector, and each stage keeps what the one before learnt.
    let base = load(&case().2.join("model"), &LoadOptions::default()).model;
    let base = base.image_newline.expect("a newline").val().into_data();
    let base: Vec<f32> = base.to_vec().expect("f32 values");
    let (first, second) = (world.newline("whole/stage1"), world.newline("whole"));
    assert!(base != first && first != second);
    let config = json(&world.path("whole/config.json"));
    assert_eq!(config["image_aspect_ratio"], "anyres");
    assert_eq!(config["mm_patch_merge_type"], "spatial_unpad");

    // A run that goes on from a checkpoint ends with the same weights.
    let steps = world.losses("whole", 2).len();
    let point = Resume::Checkpoint(format!("checkpoint-2-{}", steps - 2));
    let resumed = TrainOptions {
        resume: Some(point),
        ..quiet()
    };
    world.train("whole", resumed, &saving).expect("resumes");
    assert_eq!(world.newline("whole"), second);
    assert_eq!(world.losses("whole", 2).len(), steps);

    // Lengths by the size of each picture; batches of similar lengths learn the same samples.
    let grouped = ["stages=[1]", "stage1.grouping=length", "stage1.epochs=1"];
    world.train("grouped", quiet(), &grouped).expect("trains");

    // From squares to tiles: the newline starts anew, and the last word is the recipe's.
    let squares = [
        "stage1.image_aspect_ratio=pad",
        "stage1.epochs=1",
        "stage2.epochs=1",
        "stage2.image_aspect_ratio=anyres_max_2",
    ];
    world.train("squares", quiet(), &squares).expect("trains");
    let options = LoadOptions {
        base: Some(case().2.join("model")),
        ..LoadOptions::default()
    };
    let padded = load(&world.path("squares/stage1"), &options).model;
    assert!(padded.image_newline.is_none() && padded.config.anyres.is_none());
    let tiled = load(&world.path("squares"), &options).model;
    assert!(tiled.image_newline.is_some());
    assert_eq!(tiled.config.anyres.expect("tiles").max_tiles, Some(2));

    // A run knows the placeholder of its base's own files.
    let own = load(&case().2.join("model"), &LoadOptions::default());
    let own = own.model.config.image_token_index;
    assert!(own.is_some());
    assert_eq!(tiled.config.image_token_index, own);

    // Stage 2 alone sees pictures as the checkpoint whose projector it goes on from, unless told.
    let layer = json(&case().2.join("model/config.json"))["vision_feature_layer"].clone();
    let layer = format!("model.select_layer={layer}");
    let alone = ["stages=[2]", "stage2.epochs=1", &layer];
    let unsaid = QUICK.replace("image_aspect_ratio = 'anyres'", "");
    assert_ne!(unsaid, QUICK);
    world
        .train_as("follows", &unsaid, quiet(), &alone)
        .expect("trains");
    let config = json(&world.path("follows/config.json"));
    assert_eq!(config["image_aspect_ratio"], "anyres");
    assert_eq!(config["mm_patch_merge_type"], "spatial_unpad");
    // Said in the run's recipe, so that it goes on so.
    let recipe = std::fs::read_to_string(world.path("follows/recipe.toml")).expect("a recipe");
    assert!(
        recipe.contains("image_aspect_ratio = \"anyres\""),
        "{recipe}"
    );
    let told = [&alone[..], &["model.image_aspect_ratio=pad"]].concat();
    world
        .train_as("told", &unsaid, quiet(), &told)
        .expect("trains");
    let config = json(&world.path("told/config.json"));
    assert_eq!(config["image_aspect_ratio"], "pad");

    // Pictures that cannot be used: the sample goes, or shows nothing.
    let mut samples = world.samples();
    samples[0]["image"] = "gone.png".into();
    world.write(&samples);
    let short = ["stages=[1]", "stage1.epochs=1"];
    let error = world.train("stops", quiet(), &short).expect_err("stops");
    assert!(error.contains("gone.png"), "{error}");
    for policy in ["skip", "blank"] {
        let policy = format!("bad_images={policy}");
        let changes = [short[0], short[1], &policy];
        world.train(&policy, quiet(), &changes).expect("trains");
    }
    let resolutions = "model.image_grid_pinpoints=[[30,56]]";
    let error = world
        .train("odd", quiet(), &[resolutions])
        .expect_err("no grid");
    assert!(error.contains("image_grid_pinpoints"), "{error}");
}
