//! Recipes over damaged copies of the shipped ones: a recipe or an error, without a panic.

use std::path::Path;

use golden::mutation::{Budget, survives};
use sq_llava_train::Recipe;

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
