//! Validation: what it measures, and when it ends a stage.

use std::process::Command;

use golden::Value;

use crate::world::{World, said};

/// Accuracy under teacher forcing against what the model says by itself.
#[test]
fn exact_answers_are_those_that_it_gives() {
    let world = World::new();
    let questions = [
        ("china_rgb_640x427.png", "What is it?", "A pagoda."),
        ("camera_gray_512.png", "Who is it?", "A man."),
        ("chelsea_rgba_tall.png", "Which animal?", "A cat."),
        (
            "wide_600x37.png",
            "What now?",
            "Nothing that has a name here.",
        ),
    ];
    let samples: Vec<Value> = questions
        .iter()
        .map(|(image, question, answer)| {
            serde_json::json!({"id": image, "image": image, "conversations": [
                {"from": "human", "value": format!("<image>\n{question}")},
                {"from": "gpt", "value": answer},
            ]})
        })
        .collect();
    let data = world.path("data.json");
    std::fs::write(&data, Value::Array(samples).to_string()).expect("written");
    let file = format!("stage2.validation='{}'", data.display());
    let sets = [
        "stages=[2]",
        "model.prototype=false",
        "asking.delta=0",
        "stage2.epochs=24",
        "stage2.lr_llm=1e-2",
        "validation.fraction=0",
        &file,
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    world.train("run", &sets);
    let log = world.log("run", "validation.jsonl");
    let last = log.last().expect("a validation");
    assert_eq!(
        (last["step"].as_u64(), last["samples"].as_u64()),
        (Some(48), Some(4))
    );
    let number = |line: &Value, key: &str| line[key].as_f64().expect("a number");
    assert!(
        number(last, "loss") < 0.7 * number(&log[0], "loss"),
        "{log:?}"
    );
    assert_eq!(number(last, "loss"), number(last, "loss_answer"));

    let mut exact = 0;
    for (image, question, answer) in questions {
        let output = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
            .args([
                "ask",
                "--device",
                "cpu",
                "--json",
                "--max-new-tokens",
                "48",
                "--model",
            ])
            .arg(world.path("run"))
            .arg("--base")
            .arg(world.path("base"))
            .arg(golden::repository().join("e_image").join(image))
            .arg(question)
            .output()
            .expect("starts");
        assert!(output.status.success(), "{}", said(&output));
        let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        exact += usize::from(reply["text"] == answer);
    }
    assert!(exact > 0, "it learnt nothing");
    assert_eq!(number(last, "exact_answers"), exact as f64 / 4.0);
    let accuracy = number(last, "answer_accuracy");
    assert!(accuracy >= number(last, "exact_answers") && accuracy <= 1.0);
    // The best model is kept and loads.
    assert!(world.path("run/best-2/config.json").is_file());
    assert!(world.path("run/loss.svg").is_file());
}

#[test]
fn a_stage_that_gets_worse_ends_early() {
    let world = World::new();
    // The first step has rate 0; then the model is blown up.
    let sets = [
        "stages=[2]",
        "model.prototype=false",
        "validation.every=1",
        "validation.patience=3",
        "stage2.lr_llm=1",
        "stage2.lr_projector=1",
        "stage2.clip_norm=0",
        "stage2.epochs=20",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    world.train("run", &sets);
    let steps = world.lines("run");
    let state = std::fs::read_to_string(world.path("run/trainer_state.json")).expect("a state");
    let state: Value = serde_json::from_str(&state).expect("JSON");
    let best = &state["progress"]["best"];
    assert_eq!(best["since"].as_u64(), Some(3), "{state}");
    assert_eq!(best["step"].as_u64().map(|s| s as usize + 3), Some(steps));
    assert!(steps < 40, "of 40 steps {steps} were taken");
    assert!(
        world.path("run/config.json").is_file(),
        "the run is finished"
    );
    assert!(world.path("run/best-2/adapter_model.safetensors").is_file());
    world.resumed("run", &["--resume"]);
    assert_eq!(world.lines("run"), steps);
}

/// LLaVA's data repeat pictures: one stands in both splits, and the frozen tower saw it already.
#[test]
fn fault_11_a_picture_of_both_splits_is_validated_with_a_frozen_tower() {
    let world = World::new();
    let sample = |id: &str, question: &str| {
        serde_json::json!({"id": id, "image": "china_rgb_640x427.png", "conversations": [
            {"from": "human", "value": format!("<image>\n{question}")},
            {"from": "gpt", "value": "A pagoda."},
        ]})
    };
    let write = |name: &str, samples: &[Value]| {
        let text = Value::Array(samples.to_vec()).to_string();
        std::fs::write(world.path(name), text).expect("written");
    };
    write(
        "data.json",
        &[sample("a", "What is it?"), sample("b", "And what now?")],
    );
    write("valid.json", &[sample("v", "What is it?")]);
    let file = |stage| {
        format!(
            "stage{stage}.validation='{}'",
            world.path("valid.json").display()
        )
    };
    let (first, second) = (file(1), file(2));
    let sets = [
        "validation.fraction=0",
        "validation.every=1",
        &first,
        &second,
    ];
    let frozen = [&sets[..], &["lora.vision.r=0", "stage2.lr_vision=0"]].concat();
    let set = |sets: &[&str]| -> Vec<String> {
        let each = sets.iter().flat_map(|set| ["--set", set]);
        each.map(str::to_owned).collect()
    };
    let run = |name: &str, more: &str| {
        let sets = set(&[&frozen[..], &[more]].concat());
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        world.train(name, &sets);
        world.losses(name)
    };
    // Known features change no number.
    let kept = run("kept", "feature_cache_mib=64");
    assert_eq!(kept.len(), 24);
    assert_eq!(kept, run("unkept", "feature_cache_mib=0"));
}
