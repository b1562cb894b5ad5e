//! The world as a user's own data would be: a folder of pictures and LLaVA JSON.
//!
//! ```text
//! DIR/
//!   images/train-00000.png …, images/held-out-00000.png …
//!   masks/train-00000.png …   where masks are asked for: which thing each pixel is of
//!   captions.json        stage 1: a picture and its caption
//!   conversations.json   stage 2: several turns about a picture
//!   held-out.json        questions about pictures that no training file names
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::Deserialize;
use serde_json::{Value, json};
use sq_llava_data::files;

use super::{DESCRIBE, Exchange, Kind, SIDE, Scene, masks, render, rng};
use crate::output::write_json;

/// How much the training data say of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Telling {
    /// Captions name everything, and all kinds of questions are answered.
    #[default]
    Full,
    /// As data mostly are: a caption names one thing, often without its colour or place, and every
    /// answer is a word or a letter, so that questions hold more of the picture than answers.
    Sparse,
}

/// How much of the world is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorldSize {
    /// Captioned scenes.
    pub captions: usize,
    /// Scenes that are talked about; they are the captioned ones as far as those go.
    pub conversations: usize,
    /// Scenes kept for questions at the end.
    pub held_out: usize,
    /// Whether the masks of the pictures are written too.
    pub masks: bool,
    /// How much is said of each scene that is trained on.
    pub telling: Telling,
}

/// Where the world lies.
#[derive(Debug, Clone)]
pub struct WorldFiles {
    /// Folder of the pictures.
    pub images: PathBuf,
    /// Folder of their masks; it is there if they are asked for.
    pub masks: PathBuf,
    /// Data of stage 1.
    pub captions: PathBuf,
    /// Data of stage 2.
    pub conversations: PathBuf,
    /// Questions for the end.
    pub held_out: PathBuf,
    /// The scenes of the held-out pictures, by their numbers.
    pub held_out_scenes: Vec<Scene>,
}

/// A question about a held-out picture. `question` and `answer` may come from any LLaVA JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldOut {
    /// File of the picture inside the image folder.
    pub image: String,
    /// Its kind; a data set without kinds has one.
    pub kind: String,
    /// The question.
    pub question: String,
    /// The right answer.
    pub answer: String,
}

/// Scenes from here on are held out, so that both parts can grow.
const FIRST_HELD_OUT: u64 = 1 << 32;

/// Writes the world of a seed into a folder.
///
/// # Errors
/// If a file cannot be written.
pub fn write_world(dir: &Path, seed: u64, size: WorldSize) -> Result<WorldFiles> {
    let files = WorldFiles {
        images: dir.join("images"),
        masks: dir.join("masks"),
        captions: dir.join("captions.json"),
        conversations: dir.join("conversations.json"),
        held_out: dir.join("held-out.json"),
        held_out_scenes: held_out_scenes(seed, size),
    };
    for (folder, wanted) in [(&files.images, true), (&files.masks, size.masks)] {
        if wanted {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("{} cannot be made", folder.display()))?;
        }
    }
    let paint = |scene: &Scene, name: &str| -> Result<()> {
        save(&files.images.join(name), |path| {
            render(scene, SIDE).save(path)
        })?;
        match size.masks {
            true => save(&files.masks.join(name), |path| {
                masks(scene, SIDE).save(path)
            }),
            false => Ok(()),
        }
    };

    let (mut captions, mut conversations) = (Vec::new(), Vec::new());
    for number in 0..size.captions.max(size.conversations) {
        let scene = Scene::draw(seed, number as u64);
        let name = train_image(number as u64);
        paint(&scene, &name)?;
        if number < size.captions {
            let caption = match size.telling {
                Telling::Full => scene.caption(),
                Telling::Sparse => scene.mention(&mut rng(seed, 3, number as u64)),
            };
            let turns = [(DESCRIBE.to_owned(), caption)];
            captions.push(sample(&format!("caption-{number:05}"), &name, &turns));
        }
        if number < size.conversations {
            let (described, asked) = conversation(&scene, seed, number as u64, size.telling);
            let mut turns = Vec::new();
            if described {
                turns.push((DESCRIBE.to_owned(), scene.caption()));
            }
            turns.extend(asked.into_iter().map(|one| (one.question, one.answer)));
            conversations.push(sample(&format!("talk-{number:05}"), &name, &turns));
        }
    }
    let mut questions = Vec::new();
    for (number, scene) in files.held_out_scenes.iter().enumerate() {
        let name = format!("held-out-{number:05}.png");
        paint(scene, &name)?;
        for (turn, one) in exam(scene, seed, number as u64).into_iter().enumerate() {
            let id = format!("held-out-{number:05}-{turn}");
            let mut value = sample(&id, &name, &[(one.question, one.answer)]);
            value["kind"] = json!(one.kind.name());
            questions.push(value);
        }
    }
    write_json(&files.captions, &captions)?;
    write_json(&files.conversations, &conversations)?;
    write_json(&files.held_out, &questions)?;
    Ok(files)
}

/// Scenes that equal none of those that are trained on, in what is said of them.
fn held_out_scenes(seed: u64, size: WorldSize) -> Vec<Scene> {
    let said = |scene: &Scene| scene.caption();
    let trained: std::collections::HashSet<String> = (0..size.captions.max(size.conversations))
        .map(|number| said(&Scene::draw(seed, number as u64)))
        .collect();
    (FIRST_HELD_OUT..)
        .map(|number| Scene::draw(seed, number))
        .filter(|scene| !trained.contains(&said(scene)))
        .take(size.held_out)
        .collect()
}

/// A training conversation: whether it begins with a description, then questions in any order. Where
/// much is told, every second one does and there is a question of each kind.
fn conversation(scene: &Scene, seed: u64, number: u64, telling: Telling) -> (bool, Vec<Exchange>) {
    let mut rng = rng(seed, 1, number);
    let mut kinds = match telling {
        Telling::Full => Kind::ALL.to_vec(),
        Telling::Sparse => SHORT_ANSWERS.to_vec(),
    };
    kinds.shuffle(&mut rng);
    let described = telling == Telling::Full && rng.random();
    let asked = kinds.into_iter().map(|kind| scene.ask(kind, &mut rng));
    (described, asked.collect())
}

/// The questions of a conversation that tells little.
const SHORT_ANSWERS: [Kind; 5] = [
    Kind::YesNo,
    Kind::YesNo,
    Kind::Choice,
    Kind::Choice,
    Kind::Color,
];

/// The questions of so many training conversations, with their kinds, which the JSON lacks.
pub fn training_questions(seed: u64, size: WorldSize) -> Vec<HeldOut> {
    let numbers = 0..size.conversations as u64;
    let asked = numbers.flat_map(|number| {
        let (_, asked) = conversation(&Scene::draw(seed, number), seed, number, size.telling);
        asked.into_iter().map(move |one| HeldOut {
            image: train_image(number),
            kind: one.kind.name().into(),
            question: one.question,
            answer: one.answer,
        })
    });
    asked.collect()
}

fn train_image(number: u64) -> String {
    format!("train-{number:05}.png")
}

/// The questions about a held-out scene: two yes/no questions, one for each answer, and one of
/// every other kind.
fn exam(scene: &Scene, seed: u64, number: u64) -> Vec<Exchange> {
    let mut rng = rng(seed, 2, number);
    let mut all = vec![
        scene.yes_or_no(true, &mut rng),
        scene.yes_or_no(false, &mut rng),
    ];
    let rest = Kind::ALL.into_iter().filter(|&kind| kind != Kind::YesNo);
    all.extend(rest.map(|kind| scene.ask(kind, &mut rng)));
    all
}

fn sample(id: &str, image: &str, turns: &[(String, String)]) -> Value {
    let mut messages = Vec::new();
    for (index, (question, answer)) in turns.iter().enumerate() {
        let mark = if index == 0 { "<image>\n" } else { "" };
        messages.push(json!({"from": "human", "value": format!("{mark}{question}")}));
        messages.push(json!({"from": "gpt", "value": answer}));
    }
    json!({"id": id, "image": image, "conversations": messages})
}

/// Writes a picture.
fn save(path: &Path, write: impl FnOnce(&Path) -> image::ImageResult<()>) -> Result<()> {
    write(path).with_context(|| format!("{} cannot be written", path.display()))
}

#[derive(Deserialize)]
struct Record {
    id: Value,
    image: Option<String>,
    kind: Option<String>,
    conversations: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    from: String,
    value: String,
}

/// Reads the questions of a LLaVA JSON file: every human turn with the answer that follows it.
///
/// # Errors
/// If the file cannot be read, or a sample has no picture or no answer.
pub fn read_held_out(path: &Path) -> Result<Vec<HeldOut>> {
    let shown = path.display();
    let text = files::read_to_string(path)?;
    let records: Vec<Record> =
        serde_json::from_str(&text).with_context(|| format!("{shown} is not LLaVA JSON"))?;
    let mut found = Vec::new();
    for record in records {
        let Some(image) = &record.image else {
            bail!("{shown}: sample {} has no picture", record.id);
        };
        for pair in record.conversations.chunks(2) {
            let [question, answer] = pair else {
                bail!(
                    "{shown}: sample {}: the last question has no answer",
                    record.id
                );
            };
            if question.from != "human" || answer.from != "gpt" {
                bail!(
                    "{shown}: sample {}: human and gpt must alternate",
                    record.id
                );
            }
            found.push(HeldOut {
                image: image.clone(),
                kind: record.kind.clone().unwrap_or_else(|| "all".into()),
                question: question.value.replace("<image>", "").trim().to_owned(),
                answer: answer.value.trim().to_owned(),
            });
        }
    }
    if found.is_empty() {
        bail!("{shown} has no questions");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: WorldSize = WorldSize {
        captions: 12,
        conversations: 8,
        held_out: 5,
        masks: false,
        telling: Telling::Full,
    };

    fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        for folder in [dir.to_path_buf(), dir.join("images")] {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let name = path.strip_prefix(dir).unwrap().to_path_buf();
                    found.push((name, std::fs::read(&path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn the_same_seed_writes_the_same_files() {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        for (dir, seed) in dirs.iter().zip([7, 7, 8]) {
            write_world(dir.path(), seed, SIZE).unwrap();
        }
        let all: Vec<_> = dirs.iter().map(|dir| contents(dir.path())).collect();
        assert_eq!(all[0].len(), 12 + 5 + 3);
        assert!(all[0] == all[1]);
        assert!(all[0] != all[2]);
    }

    #[test]
    fn training_data_is_llava_json_and_the_rest_is_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let files = write_world(dir.path(), 0, SIZE).unwrap();
        let open = |path: &Path| sq_llava_data::Manifest::open(path).unwrap();
        let (captions, talks) = (open(&files.captions), open(&files.conversations));
        assert_eq!((captions.len(), talks.len()), (12, 8));
        for index in 0..talks.len() {
            let talk = talks.get(index).unwrap();
            assert!(talk.images[0].starts_with("train-"));
            assert!(files.images.join(&talk.images[0]).is_file());
        }
        let asked = read_held_out(&files.held_out).unwrap();
        assert_eq!(asked.len(), 5 * 6);
        assert!(asked.iter().all(|one| one.image.starts_with("held-out-")));
        let yes = asked.iter().filter(|one| one.answer == "yes").count();
        assert_eq!(yes, 5);
        let trained: Vec<String> = (0..12).map(|n| Scene::draw(0, n).caption()).collect();
        for scene in &files.held_out_scenes {
            assert!(!trained.contains(&scene.caption()));
        }
    }

    #[test]
    fn a_sparse_world_says_little_of_much() {
        let dir = tempfile::tempdir().unwrap();
        let size = WorldSize {
            captions: 200,
            conversations: 200,
            telling: Telling::Sparse,
            ..SIZE
        };
        let files = write_world(dir.path(), 0, size).unwrap();
        let (mut colors, mut places) = (0, 0);
        let captions = read_held_out(&files.captions).unwrap();
        for (number, one) in captions.iter().enumerate() {
            let scene = Scene::draw(0, number as u64);
            let named = |color: bool, place: bool| {
                scene.things.iter().any(|thing| {
                    let says = |word: &str| one.answer.split(' ').any(|said| said == word);
                    says(thing.shape.word())
                        && says(thing.color.word()) == color
                        && one
                            .answer
                            .ends_with(&format!("at the {}", thing.place.word()))
                            == place
                })
            };
            let found = [(false, false), (false, true), (true, false), (true, true)]
                .into_iter()
                .find(|&(color, place)| named(color, place));
            let (color, place) = found.unwrap_or_else(|| panic!("{}: {scene:?}", one.answer));
            colors += usize::from(color);
            places += usize::from(place);
        }
        assert!((70..130).contains(&colors) && (25..75).contains(&places));
        let talks = read_held_out(&files.conversations).unwrap();
        assert_eq!(talks.len(), 200 * 5);
        let (asked, said) = talks.iter().fold((0, 0), |(asked, said), one| {
            assert_eq!(one.answer.split(' ').count(), 1, "{}", one.answer);
            (asked + one.question.len(), said + one.answer.len())
        });
        assert!(asked > 5 * said, "{asked} {said}");
        // The questions at the end are the same.
        let other = tempfile::tempdir().unwrap();
        let full = write_world(
            other.path(),
            0,
            WorldSize {
                telling: Telling::Full,
                ..size
            },
        );
        let [sparse, full] = [files, full.unwrap()].map(|f| std::fs::read(f.held_out).unwrap());
        assert!(sparse == full);
    }

    #[test]
    fn masks_are_written_beside_the_pictures_if_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let files = write_world(dir.path(), 0, SIZE).unwrap();
        assert!(!files.masks.exists());
        let size = WorldSize {
            masks: true,
            ..SIZE
        };
        let files = write_world(dir.path(), 0, size).unwrap();
        let folder = sq_llava_data::masks::MaskFolder::open(&files.masks).unwrap();
        for (number, scene) in files.held_out_scenes.iter().enumerate() {
            let name = format!("held-out-{number:05}.png");
            let path = folder.find(&name).unwrap().unwrap();
            let map = sq_llava_data::masks::MaskFolder::read(&path, (SIDE, SIDE)).unwrap();
            assert_eq!(map.masks(), scene.things.len());
            let at = |v: f32| (v * SIDE as f32) as u32;
            for (label, thing) in (1..).zip(&scene.things) {
                assert_eq!(map.at(at(thing.y), at(thing.x)), label);
            }
        }
        assert_eq!(std::fs::read_dir(&files.masks).unwrap().count(), 12 + 5);
    }

    #[test]
    fn a_bad_question_file_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.json");
        for (text, says) in [
            ("{", "LLaVA JSON"),
            ("[]", "no questions"),
            (r#"[{"id": 4, "conversations": []}]"#, "sample 4"),
            (
                r#"[{"id": "x", "image": "a.png", "conversations": [{"from": "human", "value": "?"}]}]"#,
                "no answer",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", read_held_out(&path).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
