//! `legacy = false`: text after a special token of a bare SentencePiece model.

use tokenizers::Model;

use super::{SentencePiece, TextTokenizer, TokenSpan};
use crate::DataError;
use crate::text::sentencepiece::SPACE_MARK;

impl TextTokenizer {
    /// `legacy = false`: takes the space off again that was put before each stretch of text
    /// after a special token.
    pub(super) fn without_inner_prefix(
        &self,
        model: &SentencePiece,
        text: &str,
        found: &[TokenSpan],
        out: &mut Vec<TokenSpan>,
    ) -> Result<(), DataError> {
        let is_added = |token: &TokenSpan| self.is_spelt(token, text);
        let mut i = 0;
        while i < found.len() {
            let token = found[i];
            let after = i.checked_sub(1).map(|p| found[p]).filter(is_added);
            let Some(special) = after.filter(|_| !is_added(&token)) else {
                out.push(token);
                i += 1;
                continue;
            };
            let end = found[i..].iter().position(is_added);
            let end = end.map_or(found.len(), |n| i + n);
            let stop = found.get(end).map_or(text.len(), |t| t.start);
            let stretch = &text[special.end..stop];
            let of_model = u32::try_from(special.id).is_ok_and(|id| model.control.contains(&id));
            if !of_model {
                // After [usr] and the like the text is encoded with no space before it at all
                // (transformers from 4.34): cutting could leave a piece that the model lacks.
                self.encode_bare(stretch, special.end, out)?;
            } else if stretch.starts_with([' ', SPACE_MARK]) {
                out.extend(&found[i..end]);
            } else {
                let piece = self.token(token.id).unwrap_or_default();
                match piece.strip_prefix(SPACE_MARK) {
                    Some("") => {}
                    Some(cut) => {
                        // transformers 4.31 gives the unknown token where there is no such piece.
                        let id = self.inner.get_model().token_to_id(cut).map(i64::from);
                        let id = id.or(self.unk).unwrap_or(token.id);
                        out.push(TokenSpan { id, ..token });
                    }
                    None => out.push(token),
                }
                out.extend(&found[i + 1..end]);
            }
            i = end;
        }
        Ok(())
    }

    /// Encodes with no space put first; `base` is where the stretch begins in the text.
    fn encode_bare(
        &self,
        stretch: &str,
        base: usize,
        out: &mut Vec<TokenSpan>,
    ) -> Result<(), DataError> {
        let mark = SPACE_MARK.to_string();
        let marked = stretch.replace(' ', &mark);
        // A space is one byte of the text and `mark.len()` bytes of what is encoded.
        let mut original = Vec::with_capacity(marked.len() + 1);
        for (at, c) in stretch.char_indices() {
            let width = if c == ' ' { mark.len() } else { c.len_utf8() };
            original.extend(std::iter::repeat_n(at, width));
        }
        original.push(stretch.len());
        let tokens = self.inner.get_model().tokenize(&marked);
        let tokens = tokens.map_err(|e| DataError::Encoding(e.to_string()))?;
        out.extend(tokens.into_iter().map(|token| TokenSpan {
            id: i64::from(token.id),
            start: base + original[token.offsets.0.min(marked.len())],
            end: base + original[token.offsets.1.min(marked.len())],
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(tokenizer: &TextTokenizer, text: &str) -> Vec<(String, String)> {
        let tokens = tokenizer.encode_with_spans(text, false).unwrap();
        tokens
            .iter()
            .map(|t| {
                (
                    tokenizer.token(t.id).unwrap(),
                    text[t.start..t.end].to_owned(),
                )
            })
            .collect()
    }

    fn names(tokenizer: &TextTokenizer, text: &str) -> Vec<String> {
        pieces(tokenizer, text)
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    }

    fn llama(legacy: bool) -> TextTokenizer {
        let path = golden::llama_tokenizer().join("tokenizer.model");
        let mut tokenizer = TextTokenizer::from_sentencepiece(path, legacy).unwrap();
        tokenizer.add_special_tokens(&["[usr]"]).unwrap();
        tokenizer
    }

    #[test]
    fn the_space_before_a_text_after_an_end_token_depends_on_legacy() {
        // As transformers 4.31 gives them for LLaMA's model.
        assert_eq!(
            names(&llama(true), "a</s>USER"),
            ["▁a", "</s>", "▁US", "ER"]
        );
        assert_eq!(
            names(&llama(false), "a</s>USER"),
            ["▁a", "</s>", "US", "ER"]
        );
        assert_eq!(
            names(&llama(false), "a</s> USER"),
            ["▁a", "</s>", "▁", "▁US", "ER"]
        );
        // LLaMA has no piece "them": 4.31 makes it unknown there.
        assert_eq!(names(&llama(false), "</s>them"), ["</s>", "<unk>"]);
    }

    #[test]
    fn no_text_is_lost_after_an_added_token() {
        let found = pieces(&llama(false), "[usr]them  é!</s>");
        let text: Vec<&str> = found.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(text.concat(), "[usr]them  é!</s>");
        assert_eq!(found[1].0, "th");
        assert!(found.iter().all(|(name, _)| name != "<unk>"));
    }

    /// Bytes of one character that are added tokens too all cover the whole character.
    #[test]
    fn fault_29_bytes_that_are_added_tokens_break_no_text() {
        let dir = tempfile::tempdir().unwrap();
        let model = golden::llama_tokenizer().join("tokenizer.model");
        std::fs::copy(model, dir.path().join("tokenizer.model")).unwrap();
        let plain = llama(false);
        // Every other byte of the llama: one that is none stands between.
        let config = serde_json::json!({"legacy": false, "unk_token": "<0xF0>",
            "pad_token": "<0xA6>"});
        let path = dir.path().join("tokenizer_config.json");
        std::fs::write(path, config.to_string()).unwrap();
        let tokenizer = TextTokenizer::from_dir(dir.path()).unwrap();
        for byte in ["<0xF0>", "<0xA6>"] {
            let id = plain.id(byte).unwrap();
            assert!(tokenizer.added.contains(&(id as u32)), "{byte}");
        }
        for text in ["🦙", "a🦙b", "🦙</s>🦙 x"] {
            assert_eq!(
                tokenizer.encode(text, true).unwrap(),
                plain.encode(text, true).unwrap(),
                "{text}"
            );
        }
    }
}
