//! Part g of the reference data: the scores that pycocoevalcap and the official scripts give.

use std::path::PathBuf;

use golden::Value;
use sq_llava_eval::metric::caption::{CiderForm, Scored, bleu, cider, rouge_l, tokenize};
use sq_llava_eval::metric::{normalise, soft_accuracy};
use sq_llava_eval::task::{gqa, pope, science_qa};

/// Numbers of questions and answers.
const EXACT: f64 = 1e-6;

/// BLEU and CIDEr.
const CAPTIONS: f64 = 1e-4;

/// Every JSON file of part g that has a key, with that key's value.
fn cases(key: &str) -> Vec<(PathBuf, Value)> {
    let found: Vec<(PathBuf, Value)> = golden::folders("g_")
        .iter()
        .flat_map(|folder| golden::entries(folder))
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| (path.clone(), golden::json(&path)))
        .filter(|(_, json)| json.get(key).is_some())
        .collect();
    assert!(!found.is_empty(), "no file of part g has {key:?}");
    found
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

fn list(value: &Value) -> &[Value] {
    let list = value
        .as_array()
        .unwrap_or_else(|| panic!("no list: {value}"));
    assert!(!list.is_empty(), "an empty list");
    list
}

fn close(what: &str, found: f64, expected: &Value, tolerance: f64) {
    let expected = number(expected);
    assert!(
        (found - expected).abs() <= tolerance,
        "{what}: {found} in place of {expected}"
    );
}

#[test]
fn golden_g_normaliser() {
    for (path, file) in cases("normaliser") {
        for case in list(&file["normaliser"]) {
            let found = normalise(text(&case["in"]));
            assert_eq!(found, text(&case["out"]), "{}: {case}", path.display());
        }
    }
}

#[test]
fn golden_g_vqa_soft_accuracy() {
    for (_, file) in cases("vqa") {
        let (items, expected) = (list(&file["vqa"]["items"]), list(&file["vqa"]["per_item"]));
        assert_eq!(items.len(), expected.len());
        let mut sum = 0.0;
        for (item, expected) in items.iter().zip(expected) {
            let people: Vec<&str> = list(&item["gt_answers"]).iter().map(text).collect();
            let found = soft_accuracy(text(&item["pred_answer"]), &people);
            close(&item.to_string(), found, expected, EXACT);
            sum += found;
        }
        let accuracy = sum / items.len() as f64;
        close("accuracy", accuracy, &file["vqa"]["accuracy"], EXACT);
    }
}

#[test]
fn golden_g_pope() {
    for (_, file) in cases("pope") {
        let categories = file["pope"].as_object().expect("categories");
        assert!(!categories.is_empty());
        for (category, case) in categories {
            let mut counts = pope::Counts::default();
            let labels = list(&case["labels"]).iter().map(text);
            let parsed = list(&case["parsed"]).iter().map(text);
            let answers = list(&case["answers"]);
            assert_eq!(answers.len(), labels.len());
            for ((answer, label), parsed) in answers.iter().zip(labels).zip(parsed) {
                let yes = pope::says_yes(text(&answer["text"]));
                assert_eq!(yes, parsed == "yes", "{category}: {answer}");
                counts.add(yes, label == "yes");
            }
            let four = [
                counts.true_positive,
                counts.false_positive,
                counts.true_negative,
                counts.false_negative,
            ];
            assert_eq!(golden::Value::from(four.to_vec()), case["TP_FP_TN_FN"]);
            for (key, found) in [
                ("accuracy", counts.accuracy()),
                ("precision", counts.precision()),
                ("recall", counts.recall()),
                ("f1", counts.f1()),
                ("yes_ratio", counts.yes_ratio()),
            ] {
                let found = found.expect("a share");
                close(&format!("{category} {key}"), found, &case[key], EXACT);
            }
        }
    }
}

#[test]
fn golden_g_science_qa() {
    for (path, file) in cases("scienceqa") {
        let case = &file["scienceqa"];
        let problems = case["problems"].as_object().expect("problems");
        assert!(!problems.is_empty());
        let predictions = list(&case["predictions"]);
        let (mut right, mut with_image, mut right_with_image) = (0, 0, 0);
        for (id, problem) in problems {
            let prediction = predictions
                .iter()
                .find(|prediction| text(&prediction["question_id"]) == id);
            let said = prediction.map_or("FAILED", |prediction| text(&prediction["text"]));
            let found = science_qa::choice(said, list(&problem["choices"]).len());
            let index = found.map_or(-1, |index| index as i64);
            let expected = case["parsed_idx"][id].as_i64();
            assert_eq!(Some(index), expected, "{}: {said:?}", path.display());
            let hit =
                science_qa::is_right(found, problem["answer"].as_u64().expect("answer") as usize);
            right += usize::from(hit);
            if prediction.is_some_and(|p| text(&p["prompt"]).contains("<image>")) {
                with_image += 1;
                right_with_image += usize::from(hit);
            }
        }
        assert_eq!(Some(right as u64), case["correct"].as_u64());
        let accuracy = 100.0 * right as f64 / problems.len() as f64;
        close("accuracy", accuracy, &case["acc"], EXACT);
        let image = 100.0 * right_with_image as f64 / with_image as f64;
        let line = format!(
            "Total: {}, Correct: {right}, Accuracy: {accuracy:.2}%, IMG-Accuracy: {image:.2}%",
            problems.len()
        );
        assert_eq!(line, text(&case["stdout"]));
    }
}

#[test]
fn golden_g_gqa() {
    for (_, file) in cases("gqa") {
        let items = list(&file["gqa"]["items"]);
        let right = items
            .iter()
            .filter(|item| gqa::is_right(text(&item["text"]), text(&item["answer"])))
            .count();
        let accuracy = right as f64 / items.len() as f64;
        close("accuracy", accuracy, &file["gqa"]["accuracy"], EXACT);
    }
}

/// Captions as the reference tokenized them, in the order of its file.
fn captions(file: &Value) -> Vec<Scored> {
    let results = file["res"].as_object().expect("captions");
    assert!(!results.is_empty());
    results
        .iter()
        .map(|(id, candidate)| {
            let references: Vec<&str> = list(&file["gts"][id]).iter().map(text).collect();
            // One text, or a list of one.
            let candidate = candidate.as_str().unwrap_or_else(|| text(&candidate[0]));
            let scored = Scored::tokenized(candidate, &references);
            assert_eq!(
                scored.candidate,
                text(&file["res_tok"][id][0]),
                "{candidate}"
            );
            for (ours, theirs) in scored.references.iter().zip(list(&file["gts_tok"][id])) {
                assert_eq!(ours, text(theirs));
            }
            scored
        })
        .collect()
}

#[test]
fn golden_g_captions() {
    for (path, file) in cases("CIDEr") {
        let scored = captions(&file);
        let each = |name: &str, found: &[f64], expected: &Value| {
            let expected = list(expected);
            assert_eq!(found.len(), expected.len());
            for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                let what = format!("{}: {name} of #{index}", path.display());
                close(&what, *found, expected, CAPTIONS);
            }
        };
        let found = bleu(&scored);
        each("BLEU", &found.scores, &file["Bleu"]);
        for n in 0..4 {
            let one: Vec<f64> = found.each.iter().map(|scores| scores[n]).collect();
            each(&format!("BLEU-{}", n + 1), &one, &file["Bleu_per"][n]);
        }
        let found = cider(&scored, CiderForm::D);
        close("CIDEr", found.score, &file["CIDEr"], CAPTIONS);
        each("CIDEr", &found.each, &file["CIDEr_per"]);
        let found = rouge_l(&scored);
        close("ROUGE-L", found.score, &file["ROUGE_L"], EXACT);
        each("ROUGE-L", &found.each, &file["ROUGE_L_per"]);
    }
}

#[test]
fn golden_g_tokens_of_every_caption() {
    let mut compared = 0;
    for (_, file) in cases("gts_tok") {
        for (id, texts) in file["gts"].as_object().expect("captions") {
            for (raw, tokens) in list(texts).iter().zip(list(&file["gts_tok"][id])) {
                assert_eq!(tokenize(text(raw)), text(tokens));
                compared += 1;
            }
        }
    }
    assert!(compared > 0, "no caption in part g");
}
