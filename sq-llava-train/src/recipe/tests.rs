use std::path::Path;

use super::*;

fn parse(text: &str, changes: &[&str]) -> Result<Recipe, TrainError> {
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    Recipe::parse(text, &changes)
}

#[test]
fn an_empty_recipe_is_the_published_one() {
    let recipe = parse("", &[]).unwrap();
    assert_eq!(recipe, Recipe::published(Flavour::Paper));
    assert_eq!(recipe.stage1.samples_per_step(), 256);
    assert_eq!(recipe.stage2.samples_per_step(), 128);
    let released = parse("flavour = \"released\"", &[]).unwrap();
    assert_eq!(released.model.mm_projector_type, "cluster");
    assert_eq!(released.lora.vision.r, 64);
    assert!(!released.asking.first_turn);
}

#[test]
fn files_and_changes_set_single_fields() {
    let text = "[stage2]\nlr_llm = 1e-3\nepochs = 3\n[lora.llm]\nr = 8\n";
    let recipe = parse(
        text,
        &[
            "stage2.epochs=5",
            "lora.llm.alpha=16",
            "stage1.data=a/b.json",
        ],
    );
    let recipe = recipe.unwrap();
    assert_eq!(recipe.stage2.lr_llm, 1e-3);
    assert_eq!(recipe.stage2.epochs, 5);
    assert_eq!((recipe.lora.llm.r, recipe.lora.llm.alpha), (8, 16.0));
    assert_eq!(recipe.stage1.data.as_deref(), Some(Path::new("a/b.json")));
    // What was not named keeps its published value.
    assert_eq!(recipe.stage2.lr_projector, 2e-5);
    let again = Recipe::parse(&recipe.to_toml().unwrap(), &[]).unwrap();
    assert_eq!(again, recipe);
}

#[test]
fn unknown_keys_are_refused_wherever_they_stand() {
    for (text, change) in [
        ("learning_rate = 1.0", None),
        ("[stage1]\nlr = 1e-3", None),
        ("", Some("lora.llm.rank=3")),
        ("", Some("nonsense.deep=3")),
    ] {
        let error = parse(text, change.as_slice()).unwrap_err().to_string();
        assert!(
            error.contains("unknown field"),
            "{text} {change:?}: {error}"
        );
    }
}

#[test]
fn impossible_values_name_their_key() {
    for (change, key) in [
        ("stage1.epochs=0", "stage1.epochs"),
        ("asking.delta=1.5", "asking.delta"),
        ("stages=[2,1]", "stages"),
        ("stage1.lr_llm=1e-4", "stage1.lr_llm"),
        ("model.mm_projector_type=mlp", "mm_projector_type"),
        ("model.mm_projector_type=cluster", "model.prototype"),
        (
            "lora.vision.targets=[\"q_proj\",\"up_proj\"]",
            "lora.vision.targets",
        ),
        ("validation.fraction=1", "validation.fraction"),
        ("validation.every=10", "validation.every"),
        ("stage2.betas=[0.9,1.0]", "stage2.betas"),
        ("stage2.template=v3", "v3"),
        ("flavour=mine", "flavour"),
        ("stage1", "key=value"),
        ("seed.x=1", "seed"),
    ] {
        let error = parse("seed = 3", &[change]).unwrap_err().to_string();
        assert!(error.contains(key), "{change}: {error}");
    }
}
