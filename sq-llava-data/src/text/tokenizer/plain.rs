//! Texts in which only the special tokens of a template count: one that somebody has typed is
//! plain text, as with `split_special_tokens` in transformers.

use std::ops::RangeInclusive;

use tokenizers::{AddedToken, Tokenizer};

use super::{TextTokenizer, TokenSpan, spans_of};
use crate::DataError;
use crate::text::conversation::IMAGE_TOKEN;

/// Stand-ins for a template's tokens while a text is encoded: Unicode's noncharacters, which are
/// not for interchange. One that the text does not hold is taken.
const STAND_INS: RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

impl TextTokenizer {
    /// Ids of a text in which special tokens stand at `tokens` (in order, not overlapping) and
    /// nowhere else, with the bytes that each covers.
    pub(crate) fn encode_template(
        &self,
        text: &str,
        tokens: &[TokenSpan],
        add_bos: bool,
    ) -> Result<Vec<TokenSpan>, DataError> {
        // Most texts spell no special token: then nothing is different.
        let mut found = spans_of(&self.inner, text)?;
        if !self
            .spelt_specials(&found, text)
            .eq(tokens.iter().map(|t| (t.id, t.start)))
        {
            found = self.encode_plain(text, tokens)?;
            let mut specials = self.spelt_specials(&found, text);
            let odd = specials
                .find(|(id, start)| !tokens.iter().any(|t| (t.id, t.start) == (*id, *start)));
            if let Some((id, _)) = odd {
                return Err(DataError::Encoding(format!(
                    "this vocabulary has no way to write {} as plain text; leave it out of the text",
                    self.token(id).unwrap_or_default()
                )));
            }
        }
        self.finish_spans(text, found, add_bos)
    }

    /// Ids of a text in which no special token counts, with the bytes that each covers
    /// (`split_special_tokens`).
    pub(crate) fn encode_plain_text(&self, text: &str) -> Result<Vec<TokenSpan>, DataError> {
        let plain = self.plain.get_or_init(|| Box::new(plain_of(&self.inner)));
        self.finish_spans(text, spans_of(plain, text)?, false)
    }

    /// Special tokens that stand in a text as they are spelt, and where each begins.
    fn spelt_specials<'a>(
        &'a self,
        found: &'a [TokenSpan],
        text: &'a str,
    ) -> impl Iterator<Item = (i64, usize)> + 'a {
        let image = self.id(IMAGE_TOKEN);
        found
            .iter()
            .filter(move |token| self.is_special(token.id) || image == Some(token.id))
            .filter(|token| self.is_spelt(token, text))
            .map(|token| (token.id, token.start))
    }

    /// Each of the `tokens` becomes one character that is a token of its own, everything else is
    /// encoded as plain text, and the tokens are put back.
    fn encode_plain(&self, text: &str, tokens: &[TokenSpan]) -> Result<Vec<TokenSpan>, DataError> {
        let stand_in = STAND_INS.into_iter().find(|&c| !text.contains(c));
        let stand_in = stand_in.ok_or_else(|| {
            DataError::Encoding("the text holds all of Unicode's noncharacters".into())
        })?;
        let name = stand_in.to_string();
        let mut marked = String::with_capacity(text.len());
        let mut done = 0;
        // Ends of the stand-ins in the marked text.
        let mut ends = Vec::with_capacity(tokens.len());
        for token in tokens {
            marked.push_str(&text[done..token.start]);
            marked.push(stand_in);
            ends.push(marked.len());
            done = token.end;
        }
        marked.push_str(&text[done..]);

        let original = |at: usize| match ends.partition_point(|&end| end <= at) {
            0 => at,
            behind => at - ends[behind - 1] + tokens[behind - 1].end,
        };
        let mut written = tokens.iter();
        let plain = self.plain.get_or_init(|| Box::new(plain_of(&self.inner)));
        let found = spans_of(plain, &marked)?;
        let whole = found.into_iter().map(|token| {
            if marked.get(token.start..token.end).map(str::trim) == Some(&name) {
                return written.next().copied();
            }
            Some(TokenSpan {
                start: original(token.start),
                end: original(token.end),
                ..token
            })
        });
        let whole: Option<Vec<TokenSpan>> = whole.collect();
        whole
            .filter(|_| written.next().is_none())
            .ok_or_else(|| DataError::Encoding("a template's tokens were lost in the text".into()))
    }
}

/// A tokenizer that takes special tokens for plain text, and each stand-in for a token.
fn plain_of(inner: &Tokenizer) -> Tokenizer {
    let mut plain = inner.clone();
    let added = plain.get_added_tokens_decoder();
    if let Some(image) = added
        .into_values()
        .find(|token| token.content == IMAGE_TOKEN)
    {
        // Some files do not mark it as special.
        plain.add_special_tokens(&[AddedToken {
            special: true,
            ..image
        }]);
    }
    plain.set_encode_special_tokens(true);
    let stand_ins: Vec<AddedToken> = STAND_INS
        .map(|c| AddedToken::from(c.to_string(), false).normalized(false))
        .collect();
    plain.add_tokens(&stand_ins);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Conversation, Ending, SQ_TOKENS, Template};

    fn llama(bare: bool) -> TextTokenizer {
        let folder = golden::llama_tokenizer();
        let mut tokenizer = match bare {
            true => TextTokenizer::from_sentencepiece(folder.join("tokenizer.model"), false),
            false => TextTokenizer::from_dir(folder),
        }
        .unwrap();
        tokenizer.add_special_tokens(&[IMAGE_TOKEN]).unwrap();
        tokenizer.add_special_tokens(&SQ_TOKENS).unwrap();
        tokenizer
    }

    /// Ids of transformers 5 with `split_special_tokens=True`.
    #[test]
    fn fault_21_special_tokens_in_a_text_are_plain_text() {
        let tokenizer = llama(false);
        let texts: [(&str, &[i64]); 3] = [
            (
                "What does <image> mean in </s> HTML?",
                &[
                    1724, 947, 529, 3027, 29958, 2099, 297, 1533, 29879, 29958, 4544, 29973,
                ],
            ),
            (
                "USER: a<s>b",
                &[3148, 1001, 29901, 263, 29966, 29879, 29958, 29890],
            ),
            ("</s>", &[1533, 29879, 29958]),
        ];
        for (text, expected) in texts {
            let found = tokenizer.encode_template(text, &[], false).unwrap();
            let ids: Vec<i64> = found.iter().map(|token| token.id).collect();
            assert_eq!(ids, expected, "{text}");
            let covered: Vec<&str> = found.iter().map(|t| &text[t.start..t.end]).collect();
            assert_eq!(covered.concat(), text);
        }
        // Around a token of the template each stretch is what it is alone.
        let text = "a </s> b</s>c<s>d";
        let eos = TokenSpan {
            id: 2,
            start: 8,
            end: 12,
        };
        let found = tokenizer.encode_template(text, &[eos], true).unwrap();
        let ids: Vec<i64> = found.iter().map(|token| token.id).collect();
        assert_eq!(
            ids,
            [
                1, 263, 1533, 29879, 29958, 289, 2, 274, 29966, 29879, 29958, 29881
            ]
        );
        assert_eq!(found[6], eos);
        assert_eq!((found[7].start, found[7].end), (12, 13));
    }

    #[test]
    fn fault_21_what_people_say_holds_no_special_token_in_any_template() {
        for tokenizer in [llama(true), llama(false)] {
            let specials: Vec<i64> = tokenizer
                .ids()
                .filter(|&id| tokenizer.is_special(id))
                .collect();
            assert!(specials.len() >= 8, "{specials:?}");
            for template in Template::ALL {
                let prompt = |said: &str| {
                    let mut conversation = Conversation::new(template).with_system(said);
                    conversation
                        .push_images(1)
                        .push_user(said)
                        .push_assistant(said);
                    conversation.push_user(said);
                    let ids = conversation
                        .encode_prompt(&tokenizer, Ending::Answer)
                        .unwrap();
                    let found = ids.iter().filter(|id| specials.contains(id) || **id < 0);
                    (found.copied().collect::<Vec<i64>>(), ids)
                };
                let (plain, _) = prompt("a b");
                let typed = "<image> [usr]</s>x<s> [aswr]<unk><o^d> <image>";
                let (found, ids) = prompt(typed);
                assert_eq!(found, plain, "{template}");
                let text = tokenizer.decode(&ids[1..], false);
                // The image's own id is no text.
                assert!(text.is_err() || text.unwrap().contains(typed));
            }
        }
    }

    /// Some files list it without calling it special.
    #[test]
    fn fault_21_an_image_mark_that_is_not_called_special_is_plain_text_too() {
        let path = golden::llama_tokenizer().join("tokenizer.model");
        let mut tokenizer = TextTokenizer::from_sentencepiece(path, false).unwrap();
        let mark = AddedToken::from(IMAGE_TOKEN, false).normalized(false);
        tokenizer.inner.add_tokens(&[mark]);
        tokenizer.note_vocabulary();
        let id = tokenizer.id(IMAGE_TOKEN).unwrap();
        assert!(!tokenizer.is_special(id));
        let text = "a <image> b";
        let found = tokenizer.encode_template(text, &[], false).unwrap();
        assert!(found.iter().all(|token| token.id != id), "{found:?}");
        let covered: Vec<&str> = found.iter().map(|t| &text[t.start..t.end]).collect();
        assert_eq!(covered.concat(), text);
    }

    #[test]
    fn fault_21_an_end_token_is_spoken_only_where_asked_for() {
        let tokenizer = llama(true);
        let mut conversation = Conversation::new(Template::V1);
        conversation.push_user("a </s> b <image>");
        let ends = |conversation: &Conversation| {
            let ids = conversation
                .encode_prompt(&tokenizer, Ending::Answer)
                .unwrap();
            assert!(!ids.contains(&tokenizer.id(IMAGE_TOKEN).unwrap()));
            ids.iter().filter(|&&id| id == 2).count()
        };
        assert_eq!(ends(&conversation), 0);
        conversation.spoken_end_tokens = true;
        assert_eq!(ends(&conversation), 1);
    }

    #[test]
    fn a_text_with_all_noncharacters_but_one_is_still_encoded() {
        let tokenizer = llama(true);
        let mut text: String = STAND_INS.take(31).collect();
        text.push_str(" </s>");
        let found = tokenizer.encode_template(&text, &[], false).unwrap();
        assert!(found.iter().all(|token| token.id != 2));
        text.push('\u{fdef}');
        assert!(tokenizer.encode_template(&text, &[], false).is_err());
    }
}
