use std::path::PathBuf;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::*;
use crate::image::ImageProcessorConfig;
use crate::{Template, TextTokenizer};

/// A folder with a data set.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(samples: &Value) -> Self {
        let world = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::write(world.path("data.json"), samples.to_string()).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn picture(&self, name: &str, format: image::ImageFormat) {
        let picture = image::RgbImage::from_pixel(20, 10, image::Rgb([9, 8, 7]));
        picture.save_with_format(self.path(name), format).unwrap();
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new(self.path("data.json"), self.dir.path())]
    }

    fn check(&self, options: &CheckOptions<'_>) -> CheckReport {
        check(self.sources(), options, &|_, _, _| {}).unwrap()
    }
}

const PLAIN: CheckOptions<'_> = CheckOptions {
    images: None,
    files: true,
    masks: None,
    labels: None,
    threads: 2,
    listed: 100,
};

fn sample(id: &str, image: &Value, turns: &[&str]) -> Value {
    let turns: Vec<Value> = turns
        .iter()
        .enumerate()
        .map(|(i, text)| json!({"from": (["human", "gpt"][i % 2]), "value": text}))
        .collect();
    json!({"id": id, "image": image, "conversations": turns})
}

fn found(report: &CheckReport) -> Vec<(&'static str, Vec<&str>)> {
    report
        .findings
        .iter()
        .map(|group| {
            assert_eq!(group.count, group.listed.len());
            let names = group.listed.iter().map(|f| f.sample.as_str());
            (group.kind.name(), names.collect())
        })
        .collect()
}

#[test]
fn whatever_is_wrong_with_a_sample_is_found() {
    let one = json!("a.png");
    let none = Value::Null;
    let world = World::new(&json!([
        sample("good", &one, &["<image>\nq", "a", "r", "b"]),
        sample("text", &none, &["q", "a"]),
        sample("bare", &one, &["<image>", "a"]),
        sample("empty", &one, &["<image>\nq", " ", "\n", "b"]),
        sample("open", &none, &["q"]),
        sample("unmarked", &one, &["q", "a"]),
        sample("inside", &one, &["q\n<image>", "a"]),
        sample("late", &one, &["q", "a", "<image>\nr", "b"]),
        sample("twice", &one, &["<image>\n<image>q", "a"]),
        sample("answer", &one, &["<image>\nq", "a <image>"]),
        sample("no image", &none, &["<image>\nq", "a"]),
        sample("marks", &json!(["a.png", "b.png", "c.png"]), &["<image><image>", "a"]),
        sample("good", &none, &["q", "a"]),
        {"id": "first", "conversations": [
            {"from": "gpt", "value": "hi"}, {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"}]},
        {"id": "order", "conversations": [
            {"from": "human", "value": "q"}, {"from": "human", "value": "r"}]},
        {"id": "robot", "conversations": [{"from": "robot", "value": "q"}]},
        {"id": "keyless"},
        {"id": "asks", "image": "a.png", "conversations": [
            {"from": "vuser", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]},
    ]));
    let report = world.check(&PLAIN);
    let expected = [
        ("malformed", vec!["robot", "keyless"]),
        ("conversation", vec!["marks", "order"]),
        ("duplicate_id", vec!["good"]),
        ("empty_question", vec!["empty"]),
        ("empty_answer", vec!["empty"]),
        ("answer_first", vec!["first"]),
        ("open_end", vec!["open", "order"]),
        ("no_mark", vec!["unmarked"]),
        ("moved_mark", vec!["inside", "late", "twice"]),
        ("mark_in_answer", vec!["answer"]),
        ("mark_without_image", vec!["no image"]),
    ];
    assert_eq!(found(&report), expected);
    assert_eq!((report.errors, report.samples), (4, 18));
    assert_eq!((report.with_image, report.text_only), (10, 6));
    assert_eq!((report.images_named, report.image_files), (12, 3));
    assert_eq!(report.marks[&2], 3);
    assert_eq!(report.lengths.histogram[0].samples, 14);
    let text = report.to_string();
    let file = std::fs::read_to_string(world.path("data.json")).unwrap();
    let robot = report.findings[0].listed[0].offset;
    assert!(file[usize::try_from(robot).unwrap()..].starts_with("{\"id\":\"robot\""));
    for part in ["4 errors", "not looked at", &format!("data.json:{robot} ")] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn each_image_file_is_decoded_once() {
    let world = World::new(&json!([
        sample("1", &json!("a.png"), &["<image>", "a"]),
        sample("2", &json!("./a.png"), &["<image>", "a"]),
        sample("3", &json!("gone.png"), &["<image>", "a"]),
        sample("4", &json!("sub//gif.jpg"), &["<image>", "a"]),
        sample("5", &json!("torn.png"), &["<image>", "a"]),
        sample("6", &json!("gone.png"), &["<image>", "a"]),
        sample("7", &json!("sub/gif.jpg"), &["<image>", "a"]),
        sample("8", &json!("page.png"), &["<image>", "a"]),
    ]));
    std::fs::create_dir(world.path("sub")).unwrap();
    world.picture("a.png", image::ImageFormat::Png);
    world.picture("sub/gif.jpg", image::ImageFormat::Bmp);
    world.picture("torn.png", image::ImageFormat::Png);
    let bytes = std::fs::read(world.path("torn.png")).unwrap();
    std::fs::write(world.path("torn.png"), &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(world.path("page.png"), "<html>").unwrap();
    let processor = ImageProcessor::new(ImageProcessorConfig::default()).unwrap();
    let seen = Mutex::new(Vec::new());
    let options = CheckOptions {
        images: Some(&processor),
        ..PLAIN
    };
    let report = check(world.sources(), &options, &|phase, done, total| {
        seen.lock().unwrap().push((phase, done, total));
    })
    .unwrap();
    let expected = [
        ("missing_image", vec!["3"]),
        ("bad_image", vec!["5", "8"]),
        ("wrong_extension", vec!["4"]),
    ];
    assert_eq!(found(&report), expected);
    let gone = &report.findings[0].listed[0];
    assert_eq!(
        (gone.image.as_deref(), gone.samples),
        (Some("gone.png"), Some(2))
    );
    let images = report.images.as_ref().unwrap();
    assert_eq!(
        (images.decoded, images.pixels, images.samples_without),
        (2, 400, 4)
    );
    assert_eq!(
        images.formats,
        [("bmp".into(), 1), ("png".into(), 1)].into()
    );
    assert_eq!((report.image_files, report.images_named), (5, 8));
    let seen = seen.into_inner().unwrap();
    let of = |phase| seen.iter().filter(|s| s.0 == phase).map(|s| s.1).max();
    assert_eq!(of(CheckPhase::Samples), Some(8));
    assert_eq!(of(CheckPhase::Images), Some(5));
}

#[test]
fn a_tokenizer_gives_true_lengths() {
    let long = "word ".repeat(100);
    let world = World::new(&json!([
        sample("short", &json!("a.png"), &["<image>\nq", "a"]),
        sample("long", &json!("a.png"), &["<image>\nq", "a", "r", &long]),
        {"id": "asks", "conversations": [
            {"from": "vuser", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ]));
    let path = golden::llama_tokenizer().join("tokenizer.model");
    let tokenizer = TextTokenizer::from_sentencepiece(path, false).unwrap();
    let mut labels = LabelOptions::new(Template::V1);
    labels.tokens_per_image = 50;
    labels.max_length = Some(120);
    let report = world.check(&CheckOptions {
        labels: Some((&tokenizer, &labels)),
        ..PLAIN
    });
    let expected = [("conversation", vec!["asks"]), ("truncated", vec!["long"])];
    assert_eq!(found(&report), expected);
    // The system message of v1 is 35 tokens with the begin token.
    assert!(
        (90..120).contains(&report.lengths.shortest),
        "{:?}",
        report.lengths
    );
    assert!(
        (190..220).contains(&report.lengths.longest),
        "{:?}",
        report.lengths
    );
    assert_eq!((report.lengths.exact, report.lengths.truncated), (true, 1));
    assert!(report.findings[0].listed[0].detail.contains("v1"));

    let asking = LabelOptions::new(Template::Sq);
    let options = CheckOptions {
        labels: Some((&tokenizer, &asking)),
        ..PLAIN
    };
    let error = check(world.sources(), &options, &|_, _, _| {}).unwrap_err();
    assert!(error.to_string().contains("[usr]"), "{error}");
}

#[test]
fn the_list_is_bounded_and_does_not_depend_on_threads() {
    let samples: Vec<Value> = (0..500)
        .map(|i| sample(&i.to_string(), &Value::Null, &["", ""]))
        .collect();
    let world = World::new(&Value::Array(samples));
    let of = |threads| {
        world.check(&CheckOptions {
            threads,
            listed: 3,
            ..PLAIN
        })
    };
    let one = of(1);
    assert_eq!(one, of(4));
    let questions = &one.findings[0];
    assert_eq!(questions.kind, FindingKind::EmptyQuestion);
    assert_eq!((questions.count, one.warnings), (500, 1000));
    let names: Vec<&str> = questions.listed.iter().map(|f| f.sample.as_str()).collect();
    assert_eq!(names, ["0", "1", "2"]);
    assert!(one.to_string().contains("and 497 more"));
    assert_eq!(
        one.kinds(Severity::Warning),
        "500 empty_question, 500 empty_answer"
    );
}
