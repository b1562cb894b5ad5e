//! Decoding one token at a time, and stopping at given strings.

use crate::{DataError, TextTokenizer};

/// Turns ids into text as they come. What it yields, put together, is
/// [`TextTokenizer::decode`] of all the ids; no piece ever ends inside a character.
#[derive(Debug, Clone)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a TextTokenizer,
    skip_special: bool,
    /// Bytes that do not make a whole character yet.
    pending: Vec<u8>,
    started: bool,
}

impl<'a> StreamDecoder<'a> {
    /// With `skip_special`, begin, end, unknown and other special tokens give no text.
    pub fn new(tokenizer: &'a TextTokenizer, skip_special: bool) -> Self {
        Self {
            tokenizer,
            skip_special,
            pending: Vec::new(),
            started: false,
        }
    }

    /// The text that `id` completes; empty while a character is not whole.
    ///
    /// # Errors
    /// If the vocabulary has no such id.
    pub fn push(&mut self, id: i64) -> Result<String, DataError> {
        let special = self.tokenizer.is_special(id);
        if special && self.skip_special {
            // An id outside of the vocabulary is never special, so it is refused below.
            return Ok(String::new());
        }
        let before = self.pending.len();
        self.tokenizer.append_bytes(id, &mut self.pending)?;
        if !self.started
            && self.tokenizer.strips_first_space()
            && !special
            && self.pending.get(before) == Some(&b' ')
        {
            self.pending.remove(before);
        }
        self.started = true;
        let mut text = String::new();
        let alphabet = self.tokenizer.alphabet();
        alphabet.drain(&mut self.pending, false, &mut text);
        Ok(text)
    }

    /// The rest, where the ids ended inside a character: U+FFFD in its place.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        let alphabet = self.tokenizer.alphabet();
        alphabet.drain(&mut self.pending, true, &mut text);
        self.started = false;
        text
    }
}

/// Ends a text at the first of some strings, and holds back what may be the beginning of one.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// Strings to stop at; empty ones are ignored.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Self {
        Self {
            stops: stops
                .into_iter()
                .map(Into::into)
                .filter(|s| !s.is_empty())
                .collect(),
            ..Self::default()
        }
    }

    /// Takes a piece of text and returns what may be shown. Once [`Self::stopped`] is true,
    /// everything from the stop string on is dropped.
    pub fn push(&mut self, delta: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(delta);
        let first = self.stops.iter().filter_map(|s| self.held.find(s)).min();
        if let Some(at) = first {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string has come.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// What was held back and turned out to be no stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that `stop` begins with (less than all of it).
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .rev()
        .find(|&at| text.ends_with(&stop[..at]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], deltas: &[&str]) -> (Vec<String>, bool, String) {
        let mut matcher = StopMatcher::new(stops.iter().copied());
        let shown = deltas.iter().map(|d| matcher.push(d)).collect();
        (shown, matcher.stopped(), matcher.finish())
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_shown() {
        let (shown, stopped, rest) = run(&["</s>"], &["Red<", "/", "s", "> more", "x"]);
        assert_eq!(shown, ["Red", "", "", "", ""]);
        assert!(stopped);
        assert_eq!(rest, "");
    }

    #[test]
    fn what_only_looked_like_a_stop_is_shown_later() {
        let (shown, stopped, rest) = run(&["###", "é!"], &["a#", "#b", "é", "?", "é"]);
        assert_eq!(shown, ["a", "##b", "", "é?", ""]);
        assert!(!stopped);
        assert_eq!(rest, "é");
    }

    #[test]
    fn the_earliest_stop_wins() {
        let (shown, stopped, _) = run(&["USER:", "\n"], &["ok\nUSER: x"]);
        assert_eq!(shown, ["ok"]);
        assert!(stopped);
    }
}
