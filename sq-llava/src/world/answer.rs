//! Answering a question by reading its words, apart from how questions are made.

use super::asked::subject;
use super::talk::NUMBERS;
use super::{DESCRIBE, Scene, Size};

impl Scene {
    /// The right answer; `None` to what is no question of the world, is not about a single thing
    /// where it must be, or offers no right option.
    pub fn answer(&self, question: &str) -> Option<String> {
        if question.trim() == DESCRIBE {
            return Some(self.caption());
        }
        let (asked, options) = question.split_once('?')?;
        let words: Vec<&str> = asked.split_whitespace().collect();
        let asked = words.join(" ");
        let (shape, color, place) = subject(&asked)?;
        let found = self.find(shape, color, place);
        let yes_no = |yes: bool| Some(if yes { "yes" } else { "no" }.to_owned());
        if asked.starts_with("How many") {
            return Some(NUMBERS[found.len()].into());
        }
        if asked.starts_with("Is there") {
            return yes_no(!found.is_empty());
        }
        let [thing] = found[..] else {
            return None;
        };
        if asked.starts_with("Is the ") {
            let size = Size::ALL
                .iter()
                .find(|size| words.ends_with(&[size.word()]))?;
            return yes_no(*size == thing.size);
        }
        if asked.starts_with("Where") {
            return Some(format!("at the {}", thing.place.word()));
        }
        let word = match asked.starts_with("Which shape") {
            true => thing.shape.word(),
            false => thing.color.word(),
        };
        let options = options.trim();
        if options.is_empty() {
            return Some(word.into());
        }
        let mut options = options
            .lines()
            .filter_map(|line| line.trim().split_once(". "));
        let (letter, _) = options.find(|(_, option)| *option == word)?;
        Some(letter.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_answer_gets_none() {
        // A scene of one thing alone.
        let scene = (0..)
            .map(|n| Scene::draw(3, n))
            .find(|s| s.things.len() == 1);
        let scene = scene.unwrap();
        let thing = &scene.things[0];
        let (shape, color) = (thing.shape.word(), thing.color.word());
        let other = ["red", "blue"].into_iter().find(|c| *c != color).unwrap();
        assert_eq!(scene.answer(DESCRIBE), Some(scene.caption()));
        for (question, answer) in [
            (format!("What color is the {shape}?"), Some(color)),
            (format!("What color is  the {shape} ?\n"), Some(color)),
            (
                format!("What color is the {shape}?\nA. {other}\nB. {color}"),
                Some("B"),
            ),
            (
                format!("What color is the {shape}?\nA. {other}\nB. black"),
                None,
            ),
            (format!("Where is the {other} {shape}?"), None),
            (format!("Is the {other} {shape} big?"), None),
            (format!("Is there a {other} {shape}?"), Some("no")),
            ("How many shapes are there?".into(), Some("one")),
            ("How many are there?".into(), None),
            ("red".into(), None),
        ] {
            assert_eq!(scene.answer(&question).as_deref(), answer, "{question}");
        }
    }
}
