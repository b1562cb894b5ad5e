//! Which part of a rendered conversation each message became.
//!
//! What is said is put between marks, a character of its own for each text, and rendered again.
//! Without its marks the result must be the text of the unmarked messages, byte for byte, and every
//! mark must be there twice or not at all: else the template looks at what is said in a way that
//! marks disturb, and they are put elsewhere. Templates that trim what is said get the marks inside
//! its spaces; those that take a text apart (at `</think>`) get them around its lines and tags.
//! Where none of these holds, it is an error: nothing is guessed.

use std::iter::once;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value as Json;

use super::generation::absent;
use super::{ChatOptions, ChatTemplate, Rendered};
use crate::DataError;
use crate::text::sample::is_space;

/// Texts of one conversation that can be told apart.
const MOST: usize = 4096;

/// Tags, which templates look for.
static TAGS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"<[^<>\s]+>").expect("a valid pattern"));

/// Where marks are put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Around the whole of what is said; inside its spaces at the left and at the right.
    Whole {
        user: [bool; 2],
        assistant: [bool; 2],
    },
    /// Around each line and between tags.
    Lines,
}

/// A rendered conversation with the places of its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) rendered: Rendered,
    /// For each message the bytes that say what it says, in order; empty if the template leaves
    /// it out.
    pub(super) spans: Vec<Vec<Range<usize>>>,
}

impl ChatTemplate {
    /// Renders messages and finds where each went.
    ///
    /// # Errors
    /// As [`Self::render`], and if the template changes what is said.
    pub(super) fn place(
        &self,
        messages: &[Json],
        options: &ChatOptions,
    ) -> Result<Placed, DataError> {
        let rendered = self.render(messages, options)?;
        let marks: [char; MOST] = absent(messages, &options.variables, &self.literals)?;
        let mut tried: Vec<Vec<Json>> = Vec::new();
        for style in styles() {
            let mut used = Used::new(&marks);
            let marked: Vec<Json> = messages
                .iter()
                .enumerate()
                .map(|(i, message)| used.marked(i, message, style))
                .collect();
            if used.out {
                return Err(DataError::ChatTemplate(format!(
                    "a conversation of more than {MOST} texts"
                )));
            }
            if tried.contains(&marked) {
                continue;
            }
            // A template may refuse what is marked.
            let found = self.render(&marked, options).ok();
            let spans = found.and_then(|found| used.spans(&found.text, &rendered.text));
            if let Some(spans) = spans {
                let mut by_message = vec![Vec::new(); messages.len()];
                for (message, span) in spans {
                    by_message[message].push(span);
                }
                let spans = by_message;
                return Ok(Placed { rendered, spans });
            }
            tried.push(marked);
        }
        Err(DataError::ChatTemplate(
            "it changes what is said (beyond trimming it or leaving out tagged parts), so that \
             questions and answers cannot be told from the text around them"
                .into(),
        ))
    }
}

fn styles() -> impl Iterator<Item = Style> {
    let sides = [[false, false], [true, false], [false, true], [true, true]];
    let whole = sides.into_iter().flat_map(move |assistant| {
        sides
            .into_iter()
            .map(move |user| Style::Whole { user, assistant })
    });
    whole.chain([Style::Lines])
}

/// Marks as they are put.
struct Used<'a> {
    free: &'a [char],
    /// The message of each mark, in order.
    messages: Vec<usize>,
    out: bool,
}

impl<'a> Used<'a> {
    fn new(marks: &'a [char]) -> Self {
        Self {
            free: marks,
            messages: Vec::new(),
            out: false,
        }
    }

    fn marked(&mut self, message: usize, json: &Json, style: Style) -> Json {
        let mut json = json.clone();
        let answers = json["role"] == "assistant";
        match json.get_mut("content") {
            Some(Json::String(text)) => *text = self.marked_text(message, text, answers, style),
            Some(Json::Array(parts)) => {
                for part in parts {
                    if let Some(Json::String(text)) = part.get_mut("text") {
                        *text = self.marked_text(message, text, answers, style);
                    }
                }
            }
            _ => {}
        }
        json
    }

    fn marked_text(&mut self, message: usize, text: &str, answers: bool, style: Style) -> String {
        let Style::Whole { user, assistant } = style else {
            return self.marked_lines(message, text);
        };
        let [left, right] = if answers { assistant } else { user };
        // All spaces: they go to the left.
        let start = match left {
            true => text.len() - text.trim_start_matches(is_space).len(),
            false => 0,
        };
        let end = match right {
            true => text.trim_end_matches(is_space).len().max(start),
            false => text.len(),
        };
        let said = self.around(message, &text[start..end]);
        format!("{}{said}{}", &text[..start], &text[end..])
    }

    fn marked_lines(&mut self, message: usize, text: &str) -> String {
        let mut out = String::new();
        let mut done = 0;
        let tags: Vec<Range<usize>> = TAGS.find_iter(text).map(|tag| tag.range()).collect();
        for tag in tags.into_iter().chain(once(text.len()..text.len())) {
            for line in text[done..tag.start].split_inclusive('\n') {
                let core = line.trim_matches(is_space);
                let start = line.len() - line.trim_start_matches(is_space).len();
                match core.is_empty() {
                    true => out.push_str(line),
                    false => {
                        out.push_str(&line[..start]);
                        out.push_str(&self.around(message, core));
                        out.push_str(&line[start + core.len()..]);
                    }
                }
            }
            out.push_str(&text[tag.clone()]);
            done = tag.end;
        }
        out
    }

    fn around(&mut self, message: usize, said: &str) -> String {
        let Some(mark) = self.free.get(self.messages.len()) else {
            self.out = true;
            return said.to_owned();
        };
        self.messages.push(message);
        format!("{mark}{said}{mark}")
    }

    /// Message and bytes of each text that is in `expected`, if `marked` is that without marks.
    fn spans(&self, marked: &str, expected: &str) -> Option<Vec<(usize, Range<usize>)>> {
        let marks = &self.free[..self.messages.len()];
        let mut ends: Vec<Vec<usize>> = vec![Vec::new(); marks.len()];
        let mut text = String::with_capacity(expected.len());
        for c in marked.chars() {
            // Marks are taken in order, with gaps where a character was in use.
            match marks.binary_search(&c) {
                Ok(mark) => ends[mark].push(text.len()),
                Err(_) => text.push(c),
            }
        }
        if text != expected {
            return None;
        }
        let mut spans = Vec::new();
        for (ends, &message) in ends.iter().zip(&self.messages) {
            match ends[..] {
                [] => {}
                [start, end] => spans.push((message, start..end)),
                _ => return None,
            }
        }
        // No text inside another.
        spans.sort_by_key(|(_, span)| span.start);
        let apart = spans
            .windows(2)
            .all(|pair| pair[0].1.end <= pair[1].1.start);
        apart.then_some(spans)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    /// What of a rendered conversation each message says.
    fn placed(source: &str, said: &[&str]) -> Result<Vec<Vec<String>>, String> {
        let template = ChatTemplate::new(source, Map::new()).unwrap();
        let role = |i| if i % 2 == 0 { "user" } else { "assistant" };
        let messages: Vec<Json> = said
            .iter()
            .enumerate()
            .map(|(i, text)| json!({"role": role(i), "content": text}))
            .collect();
        let placed = template.place(&messages, &ChatOptions::default());
        let placed = placed.map_err(|error| error.to_string())?;
        let text = &placed.rendered.text;
        let spans = placed.spans.iter();
        let words = |spans: &Vec<Range<usize>>| {
            spans
                .iter()
                .map(|span| text[span.clone()].to_owned())
                .collect()
        };
        Ok(spans.map(words).collect())
    }

    fn template(said: &str) -> String {
        format!(
            "{{% for message in messages %}}[{{{{ message.role }}}}\n{{{{ {said} }}}}\n]{{% endfor %}}"
        )
    }

    #[test]
    fn spaces_belong_to_what_is_said_where_the_template_keeps_them() {
        let said = [" q \n", "\n a"];
        let kept = placed(&template("message.content"), &said).unwrap();
        assert_eq!(kept, [[" q \n"], ["\n a"]]);
        let trimmed = placed(&template("message.content | trim"), &said).unwrap();
        assert_eq!(trimmed, [["q"], ["a"]]);
        let left = placed(&template("message.content.lstrip()"), &said).unwrap();
        assert_eq!(left, [["q \n"], ["a"]]);
        // Only answers are trimmed.
        let one = "(message.content | trim) if message.role == 'assistant' else message.content";
        assert_eq!(placed(&template(one), &said).unwrap(), [[" q \n"], ["a"]]);
    }

    #[test]
    fn the_same_words_around_and_inside_do_not_confuse() {
        let said = ["[user\nx\n]", "user", "user", "[assistant\nuser\n]"];
        let found = placed(&template("message.content"), &said).unwrap();
        assert_eq!(found.concat(), said);
        assert_eq!(
            placed(&template("message.content"), &["", "a"]).unwrap(),
            [[""], ["a"]]
        );
    }

    #[test]
    fn parts_that_are_left_out_are_known() {
        let answer = r"message.content.split('</think>')[-1].lstrip('\n')";
        let found = placed(&template(answer), &["q", "<think>no</think>\n\nyes\nand"]).unwrap();
        assert_eq!(found, [vec!["q"], vec!["yes", "and"]]);
        let found = placed(&template("''"), &["q", "a"]).unwrap();
        assert_eq!(found, [Vec::<String>::new(), Vec::new()]);
        let moved = "{% for message in messages[::-1] %}({{ message.content }}){% endfor %}";
        assert_eq!(placed(moved, &["q", "a"]).unwrap(), [["q"], ["a"]]);
    }

    #[test]
    fn what_a_template_changes_is_refused() {
        for said in [
            "message.content | replace('q', 'xy') | length",
            "message.content + message.content",
            "message.content[:1]",
            "message.content[1:]",
        ] {
            let error = placed(&template(said), &["question", "answer"]).unwrap_err();
            assert!(error.contains("changes what is said"), "{said}: {error}");
        }
    }
}
