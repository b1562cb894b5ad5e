//! The ids of a vocabulary: which there are, which are missing, and adding some.

use std::ops::Range;
use std::sync::OnceLock;

use tokenizers::AddedToken;

use super::TextTokenizer;
use crate::DataError;
use crate::foreign::guarded;

impl TextTokenizer {
    /// Takes stock of the vocabulary after it has changed.
    pub(super) fn note_vocabulary(&mut self) {
        for (id, token) in self.inner.get_added_tokens_decoder() {
            self.added.insert(id);
            if token.special {
                self.special.insert(i64::from(id));
            }
        }
        let mut ids: Vec<u32> = self.inner.get_vocab(true).into_values().collect();
        ids.sort_unstable();
        self.runs = runs(&ids);
        self.plain = OnceLock::new();
    }

    /// Added tokens, and whether each is special.
    pub(crate) fn added_tokens(&self) -> Vec<(String, bool)> {
        let added = self.inner.get_added_tokens_decoder().into_values();
        added.map(|token| (token.content, token.special)).collect()
    }

    /// Number of tokens, added ones included. Ids may leave holes: see [`Self::id_end`].
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether the vocabulary is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One past the largest id: the rows that a model needs for this vocabulary.
    pub fn id_end(&self) -> i64 {
        self.runs.last().map_or(0, |run| run.end)
    }

    /// All ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = i64> + '_ {
        self.runs.iter().cloned().flatten()
    }

    /// Ids below [`Self::id_end`] that no token has, in order.
    pub fn holes(&self) -> impl Iterator<Item = i64> + '_ {
        let ends = std::iter::once(0).chain(self.runs.iter().map(|run| run.end));
        ends.zip(self.runs.iter().map(|run| run.start))
            .flat_map(|(end, start)| end..start)
    }

    /// Whether a token has this id.
    pub(crate) fn has_id(&self, id: i64) -> bool {
        let run = self.runs.partition_point(|run| run.end <= id);
        self.runs.get(run).is_some_and(|run| run.contains(&id))
    }

    /// Adds tokens that are taken out of a text whole; ids are appended behind those that are
    /// there. One that is there already keeps its id.
    ///
    /// # Errors
    /// If the vocabulary has holes, so that a new id would be that of another token.
    pub fn add_special_tokens(&mut self, tokens: &[&str]) -> Result<Vec<i64>, DataError> {
        let mut ids = Vec::with_capacity(tokens.len());
        for &token in tokens {
            let known = self.id(token).is_some();
            let added = [AddedToken::from(token, true).normalized(false)];
            // Numbers next to the largest that an id can be overflow there.
            guarded(|| self.inner.add_special_tokens(&added)).map_err(DataError::Encoding)?;
            let id = self.id(token).filter(|&id| known || !self.has_id(id));
            ids.push(id.ok_or_else(|| {
                DataError::Encoding(format!(
                    "{token} cannot be added: the vocabulary has {} tokens but ids up to {}, and the new id is that of another token; number its tokens without holes",
                    self.len(),
                    self.id_end() - 1
                ))
            })?);
            self.note_vocabulary();
        }
        Ok(ids)
    }
}

/// Ids in ascending order as ranges.
fn runs(ids: &[u32]) -> Vec<Range<i64>> {
    let mut found: Vec<Range<i64>> = Vec::new();
    for id in ids.iter().map(|&id| i64::from(id)) {
        match found.last_mut() {
            Some(run) if id <= run.end => run.end = id + 1,
            _ => found.push(id..id + 1),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// A byte-level tokenizer.json of a few letters with given ids.
    fn tokenizer(vocabulary: &serde_json::Value) -> TextTokenizer {
        let dir = tempfile::tempdir().unwrap();
        let json = json!({"version": "1.0", "truncation": null, "padding": null,
            "normalizer": null, "added_tokens": [], "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": true},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []}});
        fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
        TextTokenizer::from_dir(dir.path()).unwrap()
    }

    #[test]
    fn fault_09_the_largest_id_counts_and_holes_are_known() {
        let tokenizer = tokenizer(&json!({"a": 1, "b": 2, "c": 7}));
        assert_eq!((tokenizer.len(), tokenizer.id_end()), (3, 8));
        assert_eq!(tokenizer.ids().collect::<Vec<_>>(), [1, 2, 7]);
        assert_eq!(tokenizer.holes().collect::<Vec<_>>(), [0, 3, 4, 5, 6]);
        assert!(tokenizer.has_id(7) && !tokenizer.has_id(3) && !tokenizer.has_id(8));
    }

    #[test]
    fn fault_09_added_tokens_behind_a_hole_keep_their_ids() {
        let dir = tempfile::tempdir().unwrap();
        let token = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let json = json!({"version": "1.0", "truncation": null, "padding": null,
            "normalizer": null, "added_tokens": [token(9, "<x>"), token(12, "</s>")],
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": true},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 3}, "merges": []}});
        fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
        let tokenizer = TextTokenizer::from_dir(dir.path()).unwrap();
        assert_eq!(tokenizer.encode("a<x>b</s>", true).unwrap(), [0, 9, 3, 12]);
        let said = tokenizer.encode_template("a<x>b", &[], false);
        // No letter but a and b can be written.
        assert!(said.is_err() || said.unwrap().iter().all(|token| token.id != 9));
    }

    #[test]
    fn fault_09_a_new_token_never_takes_the_id_of_another() {
        let mut holes = tokenizer(&json!({"a": 0, "b": 1, "c": 3}));
        let error = holes.add_special_tokens(&["<x>"]).unwrap_err().to_string();
        assert!(error.contains("<x>") && error.contains("holes"), "{error}");
        let mut whole = tokenizer(&json!({"a": 0, "b": 1, "c": 2}));
        assert_eq!(whole.add_special_tokens(&["<x>", "<y>"]).unwrap(), [3, 4]);
        assert_eq!(whole.add_special_tokens(&["<x>"]).unwrap(), [3]);
    }
}
