//! The bytes that a token of the vocabulary stands for.

use tokenizers::Tokenizer;

use crate::DataError;
use crate::text::sentencepiece::SPACE_MARK;

/// How a vocabulary writes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// `▁` is a space and `<0xE2>` a byte (LLaMA, Vicuna).
    SentencePiece {
        /// The space put before a text by the encoder is taken off again.
        strip_first: bool,
    },
    /// Every byte has a printable character (GPT-2, SmolLM2).
    ByteLevel,
}

impl Alphabet {
    /// Reads it off the decoder of a `tokenizer.json`.
    pub(crate) fn detect(tokenizer: &Tokenizer) -> Result<Self, DataError> {
        let decoder = serde_json::to_string(&tokenizer.get_decoder())
            .map_err(|e| DataError::Encoding(e.to_string()))?;
        if decoder.contains("\"ByteLevel\"") {
            Ok(Self::ByteLevel)
        } else if decoder.contains("\"Metaspace\"") {
            let strip_first = !decoder.contains("\"never\"");
            Ok(Self::SentencePiece { strip_first })
        } else if decoder.contains("\"ByteFallback\"") {
            let strip_first = decoder.contains("\"Strip\"");
            Ok(Self::SentencePiece { strip_first })
        } else {
            Err(DataError::Encoding(format!(
                "the decoder {decoder} of tokenizer.json is not supported: \
                 only ByteLevel, Metaspace and ByteFallback are"
            )))
        }
    }

    /// Appends the bytes of a model piece (not of an added token: that is written as it is).
    pub(crate) fn append(self, piece: &str, out: &mut Vec<u8>) {
        match self {
            Self::SentencePiece { .. } => match fallback_byte(piece) {
                Some(byte) => out.push(byte),
                None => {
                    let mut buffer = [0; 4];
                    for c in piece.chars() {
                        let c = if c == SPACE_MARK { ' ' } else { c };
                        out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
                    }
                }
            },
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = piece.chars().map(byte_of_char).collect();
                out.extend(bytes.unwrap_or_else(|| piece.as_bytes().to_vec()));
            }
        }
    }

    /// Moves the finished text from the front of `pending` to `text`. A character that may still
    /// become whole stays, unless this is the `last` call. Bytes that are not UTF-8 become U+FFFD:
    /// one for each in SentencePiece, one for each broken character in a byte-level vocabulary.
    pub(crate) fn drain(self, pending: &mut Vec<u8>, last: bool, text: &mut String) {
        let mut done = 0;
        for chunk in pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            // Only a sequence at the very end can still grow into a character.
            let at_end = done + invalid.len() == pending.len();
            if at_end && !last && may_grow(invalid) {
                break;
            }
            let marks = match self {
                Self::SentencePiece { .. } => invalid.len(),
                Self::ByteLevel => 1,
            };
            text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, marks));
            done += invalid.len();
        }
        pending.drain(..done);
    }
}

/// Whether the bytes begin a character that is not whole yet.
fn may_grow(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(e) if e.error_len().is_none())
}

/// The byte of a piece like `<0x0A>`.
fn fallback_byte(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// The byte that GPT-2's alphabet writes as `c`: printable Latin-1 stands for itself, the other
/// 68 bytes follow, in order, from U+0100.
fn byte_of_char(c: char) -> Option<u8> {
    let code = u32::from(c);
    let itself = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if itself(code) {
        return u8::try_from(code).ok();
    }
    let nth = usize::try_from(code.checked_sub(0x100)?).ok()?;
    (0..=255u8).filter(|&b| !itself(u32::from(b))).nth(nth)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENTENCEPIECE: Alphabet = Alphabet::SentencePiece { strip_first: true };

    #[test]
    fn the_byte_alphabet_is_gpt2s() {
        let found: Vec<Option<u8>> = "Ġ!ÿĊ¡Ń".chars().map(byte_of_char).collect();
        let expected = [0x20, 0x21, 0xff, 0x0a, 0xa1, 0xad].map(Some);
        assert_eq!(found, expected);
        assert_eq!(byte_of_char(' '), None);
        assert_eq!(byte_of_char('漢'), None);
    }

    #[test]
    fn pieces_become_bytes() {
        let mut out = Vec::new();
        for piece in ["▁a", "<0x0A>", "<0x0G>", "é"] {
            SENTENCEPIECE.append(piece, &mut out);
        }
        assert_eq!(out, " a\n<0x0G>é".as_bytes());
    }

    #[test]
    fn broken_bytes_are_marked_as_each_reference_does() {
        // Euro sign cut after two bytes, then a letter.
        for (alphabet, expected) in [
            (SENTENCEPIECE, "\u{fffd}\u{fffd}x"),
            (Alphabet::ByteLevel, "\u{fffd}x"),
        ] {
            let mut pending = vec![0xe2, 0x82];
            let mut text = String::new();
            alphabet.drain(&mut pending, false, &mut text);
            assert_eq!((text.as_str(), pending.len()), ("", 2));
            pending.push(b'x');
            alphabet.drain(&mut pending, false, &mut text);
            assert_eq!((text.as_str(), pending.len()), (expected, 0));
            pending.extend([0xe2, 0x82]);
            alphabet.drain(&mut pending, true, &mut text);
            assert_eq!(
                text,
                format!("{expected}{}", expected.trim_end_matches('x'))
            );
        }
    }
}
