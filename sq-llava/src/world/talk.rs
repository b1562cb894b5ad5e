//! What is said about a scene: captions, questions of five kinds and their answers.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::scene::{MOST_THINGS, one_of};
use super::{Color, Place, Scene, Shape, Size, Thing};

/// The instruction that a caption answers.
pub const DESCRIBE: &str = "Describe the image.";

/// Words for numbers.
pub(super) const NUMBERS: [&str; MOST_THINGS + 1] = ["zero", "one", "two", "three"];

/// Kinds of questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Answered by yes or no.
    YesNo,
    /// What colour?
    Color,
    /// How many?
    Count,
    /// Where?
    Where,
    /// One of three options, by its letter.
    Choice,
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Its kind.
    pub kind: Kind,
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: String,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::YesNo,
        Self::Color,
        Self::Count,
        Self::Where,
        Self::Choice,
    ];

    /// Its name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::YesNo => "yes/no",
            Self::Color => "color",
            Self::Count => "count",
            Self::Where => "where",
            Self::Choice => "choice",
        }
    }
}

impl Thing {
    /// "the red circle".
    fn name(&self) -> String {
        format!("{} {}", self.color.word(), self.shape.word())
    }

    /// "at the top-left".
    fn at(&self) -> String {
        format!("at the {}", self.place.word())
    }

    fn is_where(&self) -> Exchange {
        let question = format!("Where is the {}?", self.name());
        exchange(Kind::Where, question, self.at())
    }

    /// Whether it is big or small, answered by yes or no.
    fn is_of_size(&self, yes: bool) -> Exchange {
        let size = match (self.size, yes) {
            (size, true) => size,
            (Size::Big, false) => Size::Small,
            (Size::Small, false) => Size::Big,
        };
        let question = format!("Is the {} {}?", self.name(), size.word());
        exchange(Kind::YesNo, question, if yes { "yes" } else { "no" })
    }
}

impl Scene {
    /// A sentence that names everything, in reading order.
    pub fn caption(&self) -> String {
        let part =
            |thing: &Thing| format!("a {} {} {}", thing.size.word(), thing.name(), thing.at());
        let parts: Vec<String> = self.things.iter().map(part).collect();
        parts.join(", ")
    }

    /// A caption of one of its things, every second time without its colour, and of four times one
    /// with its place.
    pub fn mention(&self, rng: &mut ChaCha8Rng) -> String {
        let thing = self.any(rng);
        let color = match rng.random() {
            true => a(thing.color),
            false => "a".into(),
        };
        let named = format!("{color} {}", thing.shape.word());
        match rng.random_range(0..4) {
            0 => format!("{named} {}", thing.at()),
            _ => named,
        }
    }

    /// The caption as a table in keywords: a phrase for each cell of the grid, "nothing" where
    /// nothing stands, in reading order. It is what the language model learns to read before it
    /// sees a picture.
    pub fn table(&self) -> Vec<String> {
        let phrase = |place: &Place| match self.find(None, None, Some(*place)).first() {
            Some(thing) => format!("{} {} {}", thing.name(), thing.size.word(), place.word()),
            None => format!("nothing {}", place.word()),
        };
        Place::ALL.iter().map(phrase).collect()
    }

    /// What stands where, the place before the thing and in any order: exercise in finding a phrase
    /// of the table by its place.
    pub fn recital(&self, rng: &mut ChaCha8Rng) -> String {
        let mut things: Vec<&Thing> = self.things.iter().collect();
        things.shuffle(rng);
        let part =
            |thing: &&Thing| format!("{} a {} {}", thing.at(), thing.size.word(), thing.name());
        let parts: Vec<String> = things.iter().map(part).collect();
        parts.join(", ")
    }

    /// A question of a kind about this scene. Of yes/no questions half are answered by yes.
    pub fn ask(&self, kind: Kind, rng: &mut ChaCha8Rng) -> Exchange {
        match kind {
            Kind::YesNo => {
                let yes = rng.random();
                self.yes_or_no(yes, rng)
            }
            Kind::Color => {
                let thing = self.any(rng);
                let question = format!("What color is the {}?", self.referred(thing, rng));
                exchange(kind, question, thing.color.word())
            }
            Kind::Count => self.count(rng),
            Kind::Where => self.any(rng).is_where(),
            Kind::Choice => self.choice(rng),
        }
    }

    /// A yes/no question whose answer is known beforehand.
    pub fn yes_or_no(&self, yes: bool, rng: &mut ChaCha8Rng) -> Exchange {
        let thing = self.any(rng);
        if rng.random_range(0..3) == 0 {
            return thing.is_of_size(yes);
        }
        let (mut shape, mut color) = (thing.shape, thing.color);
        while !yes && !self.find(Some(shape), Some(color), None).is_empty() {
            shape = one_of(Shape::ALL, rng);
            color = one_of(Color::ALL, rng);
        }
        let question = format!("Is there {} {}?", a(color), shape.word());
        exchange(Kind::YesNo, question, if yes { "yes" } else { "no" })
    }

    /// A question about a thing that is found by the words for it, not by its place.
    pub fn look_up(&self, rng: &mut ChaCha8Rng) -> Exchange {
        let thing = self.any(rng);
        let alone = self.find(Some(thing.shape), None, None).len() == 1;
        match rng.random_range(0..4) {
            0 | 1 if alone => {
                let question = format!("What color is the {}?", thing.shape.word());
                exchange(Kind::Color, question, thing.color.word())
            }
            0 => thing.is_of_size(rng.random()),
            _ => thing.is_where(),
        }
    }

    fn any(&self, rng: &mut ChaCha8Rng) -> &Thing {
        // A scene has at least one thing.
        &self.things[rng.random_range(0..self.things.len())]
    }

    /// Words that mean this thing and no other, without its colour.
    fn referred(&self, thing: &Thing, rng: &mut ChaCha8Rng) -> String {
        let alone = self.find(Some(thing.shape), None, None).len() == 1;
        if alone && rng.random_range(0..4) == 0 {
            thing.shape.word().into()
        } else {
            format!("shape {}", thing.at())
        }
    }

    fn count(&self, rng: &mut ChaCha8Rng) -> Exchange {
        let (what, number) = match rng.random_range(0..4) {
            0 | 1 => ("shapes".to_owned(), self.things.len()),
            2 => {
                let color = if rng.random_range(0..4) == 0 {
                    one_of(Color::ALL, rng)
                } else {
                    self.any(rng).color
                };
                let number = self.find(None, Some(color), None).len();
                (format!("{} shapes", color.word()), number)
            }
            _ => {
                let shape = one_of(Shape::ALL, rng);
                (shape.plural(), self.find(Some(shape), None, None).len())
            }
        };
        let question = format!("How many {what} are there?");
        exchange(Kind::Count, question, NUMBERS[number])
    }

    fn choice(&self, rng: &mut ChaCha8Rng) -> Exchange {
        let thing = self.any(rng);
        let (question, right, words) = if rng.random() {
            let question = format!("What color is the {}?", self.referred(thing, rng));
            (
                question,
                thing.color.word(),
                words(Color::ALL, |c| c.word()),
            )
        } else {
            let question = format!("Which shape is {}?", thing.at());
            (
                question,
                thing.shape.word(),
                words(Shape::ALL, |s| s.word()),
            )
        };
        let mut options: Vec<&str> = words.into_iter().filter(|w| *w != right).collect();
        options.shuffle(rng);
        options.truncate(2);
        let place = rng.random_range(0..=2);
        options.insert(place, right);
        let letters = ["A", "B", "C"];
        let lines: Vec<String> = letters
            .iter()
            .zip(options)
            .map(|(letter, option)| format!("\n{letter}. {option}"))
            .collect();
        let question = format!("{question}{}", lines.concat());
        exchange(Kind::Choice, question, letters[place])
    }

    /// Every caption, instruction and a good many questions: the language of the world.
    pub fn everything(&self, rng: &mut ChaCha8Rng) -> Vec<String> {
        let mut texts = vec![DESCRIBE.to_owned(), self.caption(), self.recital(rng)];
        texts.extend(self.table());
        for kind in Kind::ALL {
            let one = self.ask(kind, rng);
            texts.extend([one.question, one.answer]);
        }
        texts
    }
}

/// "a red", "an orange".
fn a(color: Color) -> String {
    let article = if color == Color::Orange { "an" } else { "a" };
    format!("{article} {}", color.word())
}

fn words<T: Copy>(list: &[T], word: impl Fn(T) -> &'static str) -> Vec<&'static str> {
    list.iter().map(|&item| word(item)).collect()
}

fn exchange(kind: Kind, question: String, answer: impl Into<String>) -> Exchange {
    Exchange {
        kind,
        question,
        answer: answer.into(),
    }
}

impl Place {
    /// The place whose words these are.
    pub fn from_words(words: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|p| p.word() == words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::rng;

    #[test]
    fn things_that_a_word_tells_apart_are_looked_up_by_words() {
        let mut rng = rng(6, 1, 0);
        let (mut of_one_color, mut by_shape) = (0, 0);
        for _ in 0..400 {
            let scene = Scene::told_by_a_word(&mut rng);
            let count = scene.things.len();
            let different = |word: fn(&Thing) -> &'static str| {
                let words: std::collections::BTreeSet<_> = scene.things.iter().map(word).collect();
                words.len()
            };
            let (shapes, colors) = (
                different(|thing| thing.shape.word()),
                different(|thing| thing.color.word()),
            );
            assert!(count > 1 && (shapes == count || (shapes == 1 && colors == count)));
            of_one_color += usize::from(colors == 1);
            let one = scene.look_up(&mut rng);
            let read = scene.answer(&one.question);
            assert_eq!(Some(&one.answer), read.as_ref(), "{}", one.question);
            assert!(!one.question.contains(" at the "), "{}", one.question);
            by_shape += usize::from(one.kind == Kind::Color);
        }
        // Where all are of one colour, the shape alone tells which is meant.
        assert!(
            of_one_color > 80 && by_shape > 80,
            "{of_one_color} {by_shape}"
        );
    }

    #[test]
    fn answers_follow_from_the_scene() {
        let mut rng = rng(5, 1, 0);
        let mut answers: std::collections::BTreeMap<Kind, Vec<String>> = Default::default();
        for number in 0..400 {
            let scene = Scene::draw(5, number);
            for kind in Kind::ALL {
                let one = scene.ask(kind, &mut rng);
                assert_eq!(one.kind, kind);
                let read = scene.answer(&one.question);
                assert_eq!(Some(&one.answer), read.as_ref(), "{}", one.question);
                answers.entry(kind).or_default().push(one.answer);
            }
        }
        // No answer can be guessed.
        for (kind, all) in answers {
            let share = |answer: &String| all.iter().filter(|a| *a == answer).count();
            let most = all.iter().map(share).max().unwrap_or(0);
            assert!(
                most * 100 <= all.len() * 56,
                "{kind:?}: {most} of {}",
                all.len()
            );
        }
    }

    #[test]
    fn a_caption_names_everything_in_order() {
        let scene = Scene::draw(5, 7);
        let parts: Vec<String> = scene.caption().split(", ").map(Into::into).collect();
        assert_eq!(parts.len(), scene.things.len());
        for (part, thing) in parts.iter().zip(&scene.things) {
            for word in [
                thing.size.word(),
                thing.color.word(),
                thing.shape.word(),
                thing.place.word(),
            ] {
                assert!(part.contains(word), "{part}");
            }
        }
    }
}
