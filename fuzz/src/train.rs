//! Recipes and states of runs.

use std::path::Path;

use sq_llava_data::DataSet;
use sq_llava_train::run::state::{RunState, Sources, StageProgress};
use sq_llava_train::{Recipe, RunDirectory, TrainPaths};

use crate::Reader;
use crate::data::{files, workspace};

fn plain() -> Recipe {
    Recipe::parse("stages = [2]", &[]).expect("a recipe")
}

fn paths() -> TrainPaths {
    TrainPaths {
        llm: workspace().join("examples/assets/tiny-llava"),
        ..TrainPaths::default()
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).expect("written");
}

/// Recipes that people write, and the one in a run's directory.
pub static RECIPE: Reader = Reader {
    name: "recipe",
    file: "recipe.toml",
    beside: |folder| write(folder, "paths.json", &paths_json()),
    seeds: || {
        let mut seeds = files("examples/configs", "toml");
        seeds.push(recipe_toml());
        seeds
    },
    read: |file, folder| {
        let _ = Recipe::read(file, &[]);
        let _ = Recipe::read(file, &["stage2.lr_llm=1e-4".into()]);
        let _ = RunDirectory::asked(folder);
    },
};

/// Which files a run was made of.
pub static PATHS: Reader = Reader {
    name: "paths",
    file: "paths.json",
    beside: |folder| write(folder, "recipe.toml", &recipe_toml()),
    seeds: || vec![paths_json()],
    read: |_, folder| {
        let _ = RunDirectory::asked(folder);
    },
};

fn recipe_toml() -> Vec<u8> {
    plain().to_toml().expect("TOML").into_bytes()
}

fn paths_json() -> Vec<u8> {
    serde_json::to_vec(&paths()).expect("JSON")
}

/// Where a run stands.
pub static STATE: Reader = Reader {
    name: "state",
    file: "trainer_state.json",
    beside: |_| {},
    seeds: || {
        let data = workspace().join("examples/assets/photos.json");
        let data = DataSet::open_one(data, "").expect("the samples");
        let sources =
            Sources::of(&paths()).and_then(|sources| sources.with_data("stage2.data", &data));
        let sources = sources.expect("sources");
        let folder = tempfile::tempdir().expect("a folder");
        RunState::new(2, StageProgress::default(), &[], &sources)
            .write(folder.path())
            .expect("written");
        vec![std::fs::read(folder.path().join("trainer_state.json")).expect("a state")]
    },
    read: |_, folder| {
        let _ = RunState::read(folder);
    },
};
