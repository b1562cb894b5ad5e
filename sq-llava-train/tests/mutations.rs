//! Recipes and states of runs over damaged copies of good ones: a value or an error, no panic, and
//! memory of the file's size.

use std::path::Path;

use golden::allocations::Counting;
use golden::mutation::{Budget, survives};
use sq_llava_train::run::state::{RunState, Sources, StageProgress};
use sq_llava_train::{Recipe, RunDirectory, TrainPaths};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn recipes_survive_damage() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/configs");
    let seeds: Vec<(String, Vec<u8>)> = golden::entries(&folder)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .map(|path| {
            (
                golden::file_name(&path),
                std::fs::read(path).expect("a recipe"),
            )
        })
        .collect();
    survives("recipe", &seeds, 4000, Budget::default(), |path| {
        let _ = Recipe::read(path, &[]);
        let _ = Recipe::read(path, &["stage2.lr_llm=1e-4".into()]);
    });
}

#[test]
fn states_of_runs_survive_damage() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/assets");
    let recipe = Recipe::parse("stages = [2]", &[]).expect("a recipe");
    let paths = TrainPaths {
        llm: assets.join("tiny-llava"),
        ..TrainPaths::default()
    };
    let sources = Sources::of(&recipe, &paths).expect("sources");
    let folder = tempfile::tempdir().expect("a folder");
    RunState::new(2, StageProgress::default(), &[], &sources)
        .write(folder.path())
        .expect("written");
    let state = std::fs::read(folder.path().join("trainer_state.json")).expect("a state");
    let seeds = [("trainer_state.json".to_owned(), state)];
    survives("state", &seeds, 2000, Budget::default(), |path| {
        let _ = RunState::read(path.parent().expect("its folder"));
    });

    let toml = recipe.to_toml().expect("TOML").into_bytes();
    let json = serde_json::to_vec(&paths).expect("JSON");
    let run = |name: &str, bytes: &[u8]| [(name.to_owned(), bytes.to_vec())];
    for (damaged, whole) in [
        (run("recipe.toml", &toml), ("paths.json", &json)),
        (run("paths.json", &json), ("recipe.toml", &toml)),
    ] {
        survives("run", &damaged, 1000, Budget::default(), |path| {
            let folder = path.parent().expect("its folder");
            std::fs::write(folder.join(whole.0), whole.1).expect("written");
            let _ = RunDirectory::asked(folder);
        });
    }
}
