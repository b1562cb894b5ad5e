use super::*;
use candidate::{Candidate, sure};

fn asked(image: &str, pairs: &[(&str, &str, f64)]) -> PictureAsked {
    let pairs = pairs
        .iter()
        .map(|&(question, answer, agreement)| Candidate {
            agreement,
            ..sure(question, answer)
        });
    PictureAsked {
        image: image.into(),
        description: None,
        pairs: pairs.collect(),
        error: None,
    }
}

fn by(model: &str) -> Provenance<'_> {
    Provenance {
        model: std::path::Path::new(model),
        round: 1,
        seed: 7,
    }
}

#[test]
fn what_is_kept_is_llava_json_that_says_who_made_it() {
    let dir = tempfile::tempdir().unwrap();
    let found = [
        asked(
            "a.png",
            &[("Where is it?", "left", 1.0), ("Is it big?", "yes", 0.5)],
        ),
        asked("b/c.png", &[("Is it big?", "no", 0.4)]),
    ];
    let filters = Filters {
        share: 1.0,
        ..Filters::DEFAULT
    };
    let report = keep(&filters, &found, dir.path(), by("run")).unwrap();
    assert_eq!((report.pictures, report.pairs, report.kept), (2, 3, 1));
    assert_eq!(report.dropped["agreement"], 2);
    assert_eq!(report.dropped_alone["share"], 0);
    let path = dir.path().join("pairs.json");
    let manifest = sq_llava_data::Manifest::open(&path).unwrap();
    assert_eq!(manifest.len(), 1);
    let sample = manifest.get(0).unwrap();
    assert_eq!(sample.images, ["a.png"]);
    let said: Vec<&str> = sample.conversations.iter().map(|m| &*m.value).collect();
    assert_eq!(said, ["<image>\nWhere is it?", "left"]);
    let text = std::fs::read_to_string(&path).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let provenance = &value[0]["provenance"];
    assert_eq!(provenance["model"], "run");
    assert_eq!(provenance["pairs"][0]["agreement"], 1.0);
    let dropped = std::fs::read_to_string(dir.path().join("dropped.jsonl")).unwrap();
    assert_eq!(
        dropped.matches("\"agreement\"").count(),
        4,
        "the filter's name and the measure"
    );
}

#[test]
fn nothing_kept_is_an_error_that_leaves_the_counts() {
    let dir = tempfile::tempdir().unwrap();
    let found = [asked("a.png", &[("Where is it?", "left", 0.1)])];
    let error = keep(&Filters::DEFAULT, &found, dir.path(), by("run")).unwrap_err();
    assert!(error.to_string().contains("none of 1 pairs"), "{error}");
    assert!(dir.path().join("report.json").is_file());
    assert!(!dir.path().join("pairs.json").exists());

    let mut unread = asked("a.png", &[]);
    unread.error = Some("it is torn".into());
    let error = keep(&Filters::DEFAULT, &[unread], dir.path(), by("run")).unwrap_err();
    assert!(error.to_string().contains("it is torn"), "{error}");
}

#[test]
fn a_torn_line_is_written_anew_and_a_foreign_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("candidates.jsonl");
    let pictures = ["a.png", "b.png"].map(String::from);
    let line = serde_json::to_string(&asked("a.png", &[("Where?", "left", 1.0)])).unwrap();
    std::fs::write(&path, format!("{line}\n{}", &line[..20])).unwrap();
    let (mut file, found) = open_log(&path, &pictures).unwrap();
    assert_eq!(found.len(), 1);
    file.write_all(b"next\n").unwrap();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        format!("{line}\nnext\n")
    );

    std::fs::write(&path, format!("{line}\n{line}\n")).unwrap();
    let error = open_log(&path, &pictures).unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
    std::fs::write(&path, "{}\n").unwrap();
    let error = format!("{:#}", open_log(&path, &pictures).unwrap_err());
    assert!(error.contains("line 1"), "{error}");
}

#[test]
fn a_folder_belongs_to_one_improvement() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        run: "run".into(),
        pictures: "pictures".into(),
        clip: None,
        asking: AskingSettings {
            questions: 1,
            answers: 1,
            // Read back as JSON it is another number in 64 bits.
            answer_temperature: 0.97,
            others: 1,
            max_question_tokens: 8,
            max_answer_tokens: 8,
            seed: 0,
        },
        filters: Filters::DEFAULT,
        repeat: 1.0,
    };
    let pictures = ["a.png".to_owned()];
    same_settings(&settings, &pictures, dir.path()).unwrap();
    let looser = Settings {
        filters: Filters::OFF,
        ..settings.clone()
    };
    same_settings(&looser, &pictures, dir.path()).unwrap();
    let other = Settings {
        repeat: 2.0,
        ..settings.clone()
    };
    let error = same_settings(&other, &pictures, dir.path()).unwrap_err();
    assert!(error.to_string().contains("other settings"), "{error}");
    let more = ["a.png", "b.png"].map(String::from);
    let error = same_settings(&settings, &more, dir.path()).unwrap_err();
    assert!(error.to_string().contains("has changed"), "{error}");

    let used = tempfile::tempdir().unwrap();
    std::fs::write(used.path().join("thesis.txt"), "").unwrap();
    let error = same_settings(&settings, &pictures, used.path()).unwrap_err();
    assert!(error.to_string().contains("not an empty folder"), "{error}");
}

#[test]
fn a_run_with_masks_or_without_stage_2_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let paths = serde_json::to_string(&sq_llava_train::TrainPaths::default()).unwrap();
    std::fs::write(dir.path().join("paths.json"), paths).unwrap();
    let parts = ["pairs.json", "pictures", "out"].map(|name| dir.path().join(name));
    for (change, says) in [
        ("model.masks.folder='masks'", "model.masks"),
        ("stages=[1]", "no stage 2"),
        ("stages=[1, 2]", "what stage 1 left is not there"),
    ] {
        let changes = [change.to_owned(), "stage2.data='talks.json'".to_owned()];
        let recipe = sq_llava_train::Recipe::parse(crate::quickstart::RECIPE, &changes);
        let toml = recipe.unwrap().to_toml().unwrap();
        std::fs::write(dir.path().join("recipe.toml"), toml).unwrap();
        let [pairs, pictures, out] = &parts;
        let error = round(dir.path(), pairs, pictures, 1.0, out).unwrap_err();
        assert!(error.to_string().contains(says), "{change}: {error}");
    }
}
