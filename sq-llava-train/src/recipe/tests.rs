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
    // Those of the published 7B's Vit-lora.
    assert_eq!(released.lora.vision.r, 32);
    assert_eq!(released.lora.vision.alpha, 64.0);
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
    assert_eq!(recipe.stage2.epochs, 5.0);
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

#[test]
fn fault_10_each_stage_has_its_own_square() {
    let recipe = parse("", &["stage1.image_aspect_ratio=crop"]).unwrap();
    let of = |recipe: &Recipe| [1, 2].map(|stage| recipe.image_aspect_ratio(stage).to_owned());
    assert_eq!(of(&recipe), ["crop", "pad"]);
    let again = Recipe::parse(&recipe.to_toml().unwrap(), &[]).unwrap();
    assert_eq!(again, recipe);
    // The released script of stage 1 crops.
    let released = Recipe::published(Flavour::Released);
    assert_eq!(of(&released), ["crop", "pad"]);
    assert_eq!(of(&Recipe::published(Flavour::Paper)), ["pad", "pad"]);
    let error = parse("", &["stage2.image_aspect_ratio=round"]).unwrap_err();
    assert!(error.to_string().contains("stage2.image_aspect_ratio"));
}

#[test]
fn fault_16_a_delta_of_nothing_never_asks() {
    for more in [
        "asking.sources={coco=0.5}",
        "asking.delta_end=1",
        "asking.first_turn=true",
        "asking.schedule=adaptive",
    ] {
        let changes = ["asking.delta=0", "asking.schedule=linear", more];
        let recipe = parse("", &changes).unwrap();
        assert_eq!(recipe.asking.policy(0), None, "{more}");
    }
    let rising = ["asking.delta=1e-6", "asking.schedule=linear"];
    let policy = parse("", &rising).unwrap().asking.policy(0).unwrap();
    assert!(policy.delta_at(1.0) > 0.49);
}

#[test]
fn adaptive_asking_has_bounds_around_its_start_and_two_losses_to_compare() {
    let asking = |more: &[&str]| parse("", &[&["asking.schedule=adaptive"], more].concat());
    let recipe = asking(&["asking.every=7"]).unwrap();
    assert!(recipe.asking.is_adaptive());
    let again = Recipe::parse(&recipe.to_toml().unwrap(), &[]).unwrap();
    assert_eq!(again, recipe);
    for (changes, key) in [
        (vec!["asking.delta=0.05"], "asking.delta_min, 0.1"),
        (vec!["asking.delta=0.95"], "asking.delta_max, 0.9"),
        (
            vec!["asking.delta_min=0.6", "asking.delta_max=0.4"],
            "asking.delta ",
        ),
        (vec!["asking.delta_min=0"], "asking.delta_min"),
        (vec!["asking.delta_max=1.5"], "asking.delta_max"),
        (vec!["asking.every=0"], "asking.every"),
        (vec!["asking.smoothing=1"], "asking.smoothing"),
        (vec!["asking.smoothing=-0.1"], "asking.smoothing"),
        (vec!["asking.strength=-1"], "asking.strength"),
        (vec!["asking.strength=nan"], "asking.strength"),
        (vec!["loss.question_weight=0"], "loss.question_weight"),
        (vec!["loss.answer_weight=0"], "loss.answer_weight"),
        (vec!["asking.schedule=adaptative"], "adaptative"),
    ] {
        let error = asking(&changes).unwrap_err().to_string();
        assert!(error.contains(key), "{changes:?}: {error}");
    }
    // Off, or constant, it needs none of that.
    for change in ["asking.delta=0", "asking.schedule=constant"] {
        let off = ["loss.question_weight=0", change];
        assert!(!asking(&off).unwrap().asking.is_adaptive());
    }
}

#[test]
fn fault_16_the_released_recipes_do_what_the_released_scripts_do() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/configs");
    let read = |name: &str| Recipe::read(&folder.join(name), &[]).unwrap();
    for (size, rank) in [("7b", 32), ("13b", 64)] {
        let first = read(&format!("pretrain-{size}-released.toml"));
        assert_eq!(
            (first.flavour, &first.stages[..]),
            (Flavour::Released, &[1][..])
        );
        assert_eq!(first.image_aspect_ratio(1), "crop");
        assert_eq!(first.stage1.epochs, 1.0);
        assert_eq!(first.stage1.samples_per_step(), 256);
        let second = read(&format!("finetune-{size}-released.toml"));
        assert_eq!(second.model.mm_projector_type, "cluster");
        assert_eq!(second.image_aspect_ratio(2), "pad");
        assert_eq!(second.stage2.epochs, 1.2);
        assert_eq!(second.stage2.samples_per_step(), 128);
        assert_eq!(second.lora.vision.r, rank);
        assert_eq!(second.lora.vision.alpha, 2.0 * rank as f64);
        assert!(second.asking.delta == 0.5 && !second.asking.first_turn);
        // The paper's stand beside them.
        let paper = read(&format!("finetune-{size}.toml"));
        assert_eq!((paper.flavour, paper.stage2.epochs), (Flavour::Paper, 1.0));
    }
}

#[test]
fn stages_without_a_square_of_their_own_take_the_models() {
    let own = "model.image_aspect_ratio='anyres'";
    let released = parse("flavour = \"released\"", &[own]).unwrap();
    assert_eq!(released.image_aspect_ratio(1), "crop");
    assert_eq!(released.image_aspect_ratio(2), "anyres");
    let paper = parse("", &[own]).unwrap();
    assert_eq!(paper.image_aspect_ratio(1), "anyres");
    assert_eq!(paper.image_aspect_ratio(2), "anyres");
}

#[test]
fn layers_and_targets_of_the_tower() {
    for (change, layers) in [
        ("model.select_layer=-3", vec![-3]),
        ("model.select_layer=[-2, 1]", vec![-2, 1]),
    ] {
        let recipe = parse("", &[change]).unwrap();
        assert_eq!(recipe.model.select_layer.list(), layers);
    }
    let error = parse("", &["model.select_layer=[]"]).unwrap_err();
    assert!(error.to_string().contains("model.select_layer"), "{error}");
    // DINOv2's linears by its own names, or by ours.
    parse("", &["lora.vision.targets=[\"query\", \"dense\", \"fc1\"]"]).unwrap();
    let error = parse("", &["lora.vision.targets=[\"querry\"]"]).unwrap_err();
    assert!(error.to_string().contains("querry"), "{error}");
    assert!(parse("", &["lora.llm.targets=[\"query\"]"]).is_err());
}

#[test]
fn masks_are_off_until_a_folder_is_named() {
    assert!(parse("", &[]).unwrap().model.masks.is_none());
    let named = parse("[model.masks]\nfolder = 'm'", &[]).unwrap();
    let masks = named.model.masks.clone().unwrap();
    assert_eq!((masks.folder.to_str(), masks.weight), (Some("m"), 0.1));
    let text = named.to_toml().unwrap();
    assert_eq!(parse(&text, &[]).unwrap(), named);
    let folder = "model.masks.folder=m";
    for (more, word) in [
        (&["model.masks.weight=1"][..], "folder"),
        (&[folder, "model.masks.weight=-1"], "model.masks.weight"),
        (&[folder, "model.masks.size=1"], "size"),
        (&[folder, "model.prototype=false"], "model.prototype"),
        (&[folder, "model.num_iterations=0"], "model.num_iterations"),
    ] {
        let error = parse("", more).unwrap_err().to_string();
        assert!(error.contains(word), "{more:?}: {error}");
    }
    parse("", &["flavour=released", folder]).unwrap();
}

/// Numbers that would overflow, or end the process where they are allocated.
#[test]
fn fault_29_numbers_that_no_machine_serves_name_their_key() {
    for change in [
        "workers=1000000000",
        "workers=-1",
        "seed=-5",
        "seed=1.5",
        "feature_cache_mib=9000000000000000000",
        "model.num_centers=1000000000",
        "model.num_iterations=1000000000",
        "lora.llm.r=100000000",
        "lora.vision.r=100000000",
        "lora.llm.r=-8",
        "lora.llm.alpha=1e300",
        "loss.question_weight=1e300",
        "loss.answer_weight=nan",
        "loss.chunk_tokens=9000000000000000000",
        "stage1.batch_size=9000000000000000000",
        "stage2.accumulation=9000000000000000000",
        "stage2.max_length=9000000000000000000",
        "stage2.max_length=0",
        "stage2.epochs=1e18",
        "stage2.epochs=inf",
        "stage2.epochs=nan",
        "stage2.epochs=-1",
        "stage1.epochs=0",
        "stage2.batch_size=99999999999999999999999",
        "max_bad_images=2",
        "max_bad_images=nan",
        "keep_checkpoints=-1",
        "log_every=0",
        "devices=[70000]",
    ] {
        let key = change.split('=').next().unwrap();
        let error = parse("", &[change]).unwrap_err().to_string();
        assert!(error.contains(key), "{change}: {error}");
    }
    // Each alone is fine.
    let step = ["stage2.batch_size=4096", "stage2.accumulation=1000"];
    let error = parse("", &step).unwrap_err().to_string();
    assert!(error.contains("stage2.accumulation"), "{error}");
    let mut recipe = Recipe::published(Flavour::Paper);
    recipe.seed = u64::MAX;
    assert!(recipe.validate().unwrap_err().to_string().contains("seed"));
}

#[test]
fn groups_of_threads_share_batches_evenly() {
    let sizes = |stage1, stage2| {
        [
            "thread_groups=4".to_owned(),
            format!("stage1.batch_size={stage1}"),
            format!("stage2.batch_size={stage2}"),
        ]
    };
    let with = |changes: &[String]| {
        let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
        parse("", &changes)
    };
    assert_eq!(with(&sizes(8, 4)).unwrap().thread_groups, Some(4));
    let only = |stage: u8| [&sizes(6, 4)[..], &[format!("stages=[{stage}]")]].concat();
    assert!(with(&only(2)).is_ok());
    let devices = [&sizes(8, 4)[..], &["devices=[0,1]".to_owned()]].concat();
    for (changes, says) in [
        (&only(1)[..], "stage1.batch_size is 6"),
        (&sizes(8, 1)[..], "stage2.batch_size is 1"),
        (&devices[..], "leave one out"),
        (&["thread_groups=0".to_owned()][..], "thread_groups"),
    ] {
        let error = with(changes).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn words_are_stage_1s_and_need_others_to_be_told_from() {
    let words = "stage1.objective='words'";
    assert_eq!(
        parse("", &[words]).unwrap().stage1.objective,
        Objective::Words
    );
    assert_eq!(parse("", &[]).unwrap().stage1.objective, Objective::Text);
    for (changes, says) in [
        (&["stage2.objective='words'"][..], "stage2.objective"),
        (&[words, "stage1.packing=true"], "stage1.packing"),
        (&[words, "stage1.batch_size=7"], "stage1.batch_size is 7"),
        (&[words, "thread_groups=16"], "leaves no group two samples"),
        (&["stage1.objective='caption'"], "objective"),
    ] {
        let error = parse("", changes).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_row_may_be_full_of_pictures() {
    let mut stage = Recipe::published(Flavour::Paper).stage2;
    stage.packing = true;
    assert_eq!((stage.batch_size, stage.pictures_at_once(576)), (8, 8));
    // 2048 tokens are three pictures of 576.
    stage.batch_size = 1;
    assert_eq!(stage.pictures_at_once(576), 3);
    stage.accumulation = 2;
    assert_eq!(stage.pictures_at_once(576), 2);
    stage.packing = false;
    assert_eq!(stage.pictures_at_once(576), 1);
}
