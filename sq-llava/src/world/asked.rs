//! Reading a question that a model asked: what it is about, and whether that is there.

use super::{Color, DESCRIBE, Place, Scene, Shape, Size};

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// Not a question of the world's language.
    Unclear,
    /// The picture as a whole.
    Whole,
    /// Things of a kind or at a place.
    Things {
        /// Whether the scene has such a thing.
        there: bool,
    },
}

/// Reads a question about a scene.
pub fn about(scene: &Scene, question: &str) -> About {
    let words: Vec<&str> = question.split_whitespace().collect();
    let text = words.join(" ");
    if text == DESCRIBE {
        return About::Whole;
    }
    let Some((asked, options)) = text.split_once('?') else {
        return About::Unclear;
    };
    if !(options.is_empty() || are_options(options)) {
        return About::Unclear;
    }
    match subject(asked) {
        None => About::Unclear,
        Some((None, None, None)) => About::Whole,
        Some((shape, color, place)) => About::Things {
            there: !scene.find(shape, color, place).is_empty(),
        },
    }
}

/// Whether a text is three options, each a shape or a colour.
fn are_options(text: &str) -> bool {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [a, first, b, second, c, third] = words[..] else {
        return false;
    };
    let known = |word: &str| {
        Shape::ALL.iter().any(|shape| shape.word() == word)
            || Color::ALL.iter().any(|color| color.word() == word)
    };
    [a, b, c] == ["A.", "B.", "C."] && [first, second, third].into_iter().all(known)
}

/// Shape, colour and place that a question names.
pub(super) type Subject = (Option<Shape>, Option<Color>, Option<Place>);

/// `None` if the words are no question of the world.
pub(super) fn subject(asked: &str) -> Option<Subject> {
    let shape = |word: &str| Shape::ALL.iter().copied().find(|s| s.word() == word);
    let color = |word: &str| Color::ALL.iter().copied().find(|c| c.word() == word);
    let named = |words: &str| {
        let (first, second) = words.split_once(' ')?;
        Some((Some(shape(second)?), Some(color(first)?), None))
    };
    if let Some(rest) = asked.strip_prefix("How many ") {
        let what = rest.strip_suffix(" are there")?;
        if what == "shapes" {
            return Some((None, None, None));
        }
        if let Some(word) = what.strip_suffix(" shapes") {
            return Some((None, Some(color(word)?), None));
        }
        let shape = Shape::ALL.iter().copied().find(|s| s.plural() == what)?;
        return Some((Some(shape), None, None));
    }
    if let Some(rest) = asked.strip_prefix("Is there ") {
        return named(rest.split_once(' ')?.1);
    }
    if let Some(rest) = asked.strip_prefix("Is the ") {
        let (what, size) = rest.rsplit_once(' ')?;
        Size::ALL.iter().find(|s| s.word() == size)?;
        return named(what);
    }
    if let Some(what) = asked.strip_prefix("Where is the ") {
        return named(what);
    }
    let at = |words: &str| Some((None, None, Some(Place::from_words(words)?)));
    if let Some(words) = asked.strip_prefix("Which shape is at the ") {
        return at(words);
    }
    let what = asked.strip_prefix("What color is the ")?;
    match what.strip_prefix("shape at the ") {
        Some(words) => at(words),
        None => Some((Some(shape(what)?), None, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Kind, rng};

    #[test]
    fn every_question_of_the_world_is_understood() {
        let mut rng = rng(1, 1, 0);
        for number in 0..300 {
            let scene = Scene::draw(1, number);
            for kind in Kind::ALL {
                let one = scene.ask(kind, &mut rng);
                let found = about(&scene, &one.question);
                let expected = match kind {
                    // These name a thing that is there, whatever is asked of it.
                    Kind::Color | Kind::Where | Kind::Choice => About::Things { there: true },
                    Kind::YesNo if one.question.starts_with("Is there") => About::Things {
                        there: one.answer == "yes",
                    },
                    Kind::YesNo => About::Things { there: true },
                    Kind::Count if one.question == "How many shapes are there?" => About::Whole,
                    Kind::Count => About::Things {
                        there: one.answer != "zero",
                    },
                };
                assert_eq!(found, expected, "{}", one.question);
            }
        }
    }

    #[test]
    fn nonsense_is_unclear() {
        let scene = Scene::draw(1, 1);
        for text in [
            "",
            "red",
            "What color is the top?",
            "Where is the circle red?",
            "How many are there?",
            "Is the red circle left?",
            "Where is the red circle? red",
            "What color is the circle? A. red B. blue",
            "What color is the circle? A. red B. blue C. green nothing",
            "What color is the circle? A. red B. blue C. top",
        ] {
            assert_eq!(about(&scene, text), About::Unclear, "{text}");
        }
    }
}
