//! What the language model reads: texts about scenes, simple ones first.

use anyhow::Result;
use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use sq_llava_data::{
    Author, IMAGE_TOKEN_INDEX, LabelOptions, LlavaSample, Message, Template, TextTokenizer,
    TokenRole, encode_sample,
};

use crate::world::{DESCRIBE, Exchange, Kind, MOST_THINGS, Place, Scene};

/// A text to read.
pub struct Lesson {
    /// Ids of the words in each place: one, or all of a phrase's.
    pub places: Vec<Vec<i64>>,
    /// Weight of each place in the loss.
    pub weights: Vec<f32>,
    /// What is answered, and where its answer begins and ends.
    pub answers: Vec<(&'static str, usize, usize)>,
}

/// What a step's texts are like.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    /// How many.
    texts: usize,
    /// Questions about one scene.
    questions: usize,
    /// Part of the texts that is about things that a single word tells apart. Elsewhere a colour
    /// mostly tells which thing is meant, and the word for the shape is passed over.
    alike: f64,
    /// Part of the others that is about a crowd, more things than the world's scenes have. Among
    /// three things a guess is often right, and looking up is worth little.
    crowds: f64,
    /// Part of the other texts that tells the whole scene.
    told: f64,
    /// Weight in the loss of questions, which only partly follow from what stands before them.
    given: f32,
}

/// Kinds of questions about a crowd. Counting is none of them: the world's numbers end before.
const OF_CROWDS: [Kind; 4] = [Kind::Color, Kind::Where, Kind::Choice, Kind::YesNo];

/// Single questions of many scenes come first: that a word of a question finds its phrase in the
/// table is learnt from them alone, and from conversations it is not found in thousands of steps.
const COURSES: [Course; 2] = [
    Course {
        texts: 64,
        questions: 1,
        crowds: 0.2,
        alike: 0.35,
        told: 0.0,
        given: 0.0,
    },
    Course {
        texts: 16,
        questions: 8,
        crowds: 0.25,
        alike: 0.15,
        told: 0.4,
        given: 0.1,
    },
];

/// Part of the steps that the first course has.
const FIRST: f64 = 0.4;

/// Like the last course, of scenes as the world's.
pub const EXAM: Course = Course {
    texts: 128,
    crowds: 0.0,
    alike: 0.0,
    ..COURSES[1]
};

/// Kind of a text that says what stands where. Any order of the things will do, so it is not
/// examined.
pub const RECITAL: &str = "recital";

/// The course of a step.
pub fn course(step: usize, steps: usize) -> Course {
    COURSES[usize::from(step as f64 >= FIRST * steps as f64)]
}

impl Course {
    /// All texts of a step.
    pub fn read(&self, tokenizer: &TextTokenizer, rng: &mut ChaCha8Rng) -> Result<Vec<Lesson>> {
        let texts = 0..self.texts;
        texts.map(|_| self.lesson(tokenizer, rng)).collect()
    }

    fn lesson(&self, tokenizer: &TextTokenizer, rng: &mut ChaCha8Rng) -> Result<Lesson> {
        if rng.random_bool(self.alike) {
            let scene = Scene::told_by_a_word(rng);
            let turns = (0..self.questions).map(|_| turn(scene.look_up(rng)));
            let turns = turns.collect();
            return lay_out(tokenizer, Template::V1, &scene.table(), turns, self.given);
        }
        if rng.random_bool(self.crowds) {
            let things = rng.random_range(MOST_THINGS + 1..=Place::ALL.len());
            let scene = Scene::with_things(things, rng);
            return self.chat(tokenizer, &scene, &OF_CROWDS, rng);
        }
        let things = rng.random_range(1..=MOST_THINGS);
        let scene = Scene::with_things(things, rng);
        if !rng.random_bool(self.told) {
            return self.chat(tokenizer, &scene, &Kind::ALL, rng);
        }
        // A sentence as in stage 1, or what stands where.
        let turn = if rng.random() {
            ("caption", DESCRIBE.to_owned(), scene.caption())
        } else {
            // The line break tells it from a caption.
            let recital = format!("\n{}", scene.recital(rng));
            (RECITAL, DESCRIBE.to_owned(), recital)
        };
        let table = scene.table();
        lay_out(tokenizer, Template::Plain, &table, vec![turn], self.given)
    }

    /// Questions of some kinds and their answers; a scene of the world is first described in every
    /// sixth.
    fn chat(
        &self,
        tokenizer: &TextTokenizer,
        scene: &Scene,
        kinds: &[Kind],
        rng: &mut ChaCha8Rng,
    ) -> Result<Lesson> {
        let few = self.questions > 1 && scene.things.len() <= MOST_THINGS;
        let described = few && rng.random_range(0..6) == 0;
        let turns = (0..self.questions).map(|number| {
            if described && number == 0 {
                return ("caption", DESCRIBE.to_owned(), scene.caption());
            }
            // There are always kinds.
            let kind = kinds.choose(rng).copied().unwrap_or(Kind::Color);
            turn(scene.ask(kind, rng))
        });
        let turns = turns.collect();
        let table = scene.table();
        lay_out(tokenizer, Template::V1, &table, turns, self.given)
    }
}

fn turn(one: Exchange) -> (&'static str, String, String) {
    (one.kind.name(), one.question, one.answer)
}

/// A conversation of kinds, questions and answers, with the table in the place of a picture.
fn lay_out(
    tokenizer: &TextTokenizer,
    template: Template,
    table: &[String],
    turns: Vec<(&'static str, String, String)>,
    given: f32,
) -> Result<Lesson> {
    let (mut kinds, mut conversations) = (Vec::new(), Vec::new());
    for (kind, question, answer) in turns {
        kinds.push(kind);
        for (from, value) in [(Author::Human, question), (Author::Gpt, answer)] {
            conversations.push(Message { from, value });
        }
    }
    let sample = LlavaSample {
        id: "lesson".into(),
        images: vec!["table".into()],
        system: None,
        conversations,
    };
    let encoded = encode_sample(tokenizer, &sample, &[], &LabelOptions::new(template))?;
    let mut lesson = Lesson {
        places: Vec::new(),
        weights: Vec::new(),
        answers: Vec::new(),
    };
    let mut answering = false;
    for (&id, role) in encoded.input_ids.iter().zip(&encoded.roles) {
        let at = lesson.places.len();
        if id == IMAGE_TOKEN_INDEX {
            for phrase in table {
                lesson.places.push(tokenizer.encode(phrase, false)?);
                lesson.weights.push(0.0);
            }
            answering = false;
            continue;
        }
        let answer = *role == TokenRole::Answer;
        if answer && !answering {
            let kind = kinds[lesson.answers.len()];
            lesson.answers.push((kind, at, at));
        }
        if let Some((_, _, end)) = lesson.answers.last_mut().filter(|_| answer) {
            *end = at + 1;
        }
        answering = answer;
        lesson.places.push(vec![id]);
        lesson.weights.push(if answer { 1.0 } else { given });
    }
    Ok(lesson)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lesson_is_a_table_and_answers_to_it() {
        let dir = tempfile::tempdir().unwrap();
        super::super::tokenizer::write(dir.path()).unwrap();
        let tokenizer = TextTokenizer::from_dir(dir.path()).unwrap();
        let turns = |pairs: &[(&'static str, &str, &str)]| {
            let own = pairs.iter().map(|&(kind, q, a)| (kind, q.into(), a.into()));
            own.collect::<Vec<_>>()
        };
        let table = ["red circle small top-left".to_owned(), "nothing top".into()];
        let pairs = [
            ("where", "Where is the red circle?", "at the top-left"),
            ("yes/no", "Is there a blue cross?", "no"),
        ];
        let lesson = lay_out(&tokenizer, Template::V1, &table, turns(&pairs), 0.1).unwrap();
        let said = |start: usize, end: usize| {
            let ids: Vec<i64> = lesson.places[start..end].iter().map(|p| p[0]).collect();
            tokenizer.decode(&ids, true).unwrap().trim().to_owned()
        };
        let answers: Vec<_> = lesson
            .answers
            .iter()
            .map(|&(k, s, e)| (k, said(s, e)))
            .collect();
        let due = pairs.map(|(kind, _, answer)| (kind, answer.to_owned()));
        assert_eq!(answers, due);
        let phrases: Vec<_> = lesson.places.iter().filter(|p| p.len() > 1).collect();
        assert_eq!(phrases.len(), 2);
        for (words, phrase) in phrases.into_iter().zip(&table) {
            assert_eq!(tokenizer.decode(words, true).unwrap().trim(), phrase);
        }
        // The end of an answer is learnt with it.
        for &(_, start, end) in &lesson.answers {
            assert!(
                lesson.weights[start..end]
                    .iter()
                    .all(|&weight| weight == 1.0)
            );
            assert_eq!(lesson.places[end - 1], [2]);
        }
        let learnt = lesson
            .weights
            .iter()
            .filter(|&&weight| weight == 1.0)
            .count();
        assert_eq!(learnt, 4 + 2);
    }
}
