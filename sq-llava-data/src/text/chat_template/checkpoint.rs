//! Conversations in the template that a checkpoint carries: pictures, an asking role, and what of
//! the text is a question or an answer.

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::encode::{ControlTokens, EncodedChat, overlap};
use super::roles::Placed;
use super::{ChatOptions, ChatTemplate, Rendered};
use crate::text::conversation::{
    Conversation, Ending, IMAGE_TOKEN, IMAGE_TOKEN_INDEX, Speaker, Turn,
};
use crate::text::sample::is_space;
use crate::text::segments::{EncodedSegments, TokenRole};
use crate::text::template::VUSR;
use crate::{DataError, TextTokenizer, TokenSpan};

/// A word that stands for what is said while a template is tried out.
const WORD: &str = "Xq7Zc";

/// How a question that the model asks is told from one that it is given: it stands in a user's
/// message, which every template has, behind this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AskingRole {
    /// A special token of the vocabulary, such as `[vusr]`.
    Token(String),
    /// A text, such as `VUSER:`, where the vocabulary cannot grow.
    Text(String),
}

impl AskingRole {
    /// By the paper's token, `[vusr]`.
    pub fn token() -> Self {
        Self::Token(VUSR.to_owned())
    }

    /// By the released code's text, `VUSER:`.
    pub fn text() -> Self {
        Self::Text("VUSER:".to_owned())
    }
}

/// What a message's content must be for a template to write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A string, with `<image>` and a line break for each picture.
    Text,
    /// A list of parts.
    Parts,
}

/// A chat template with what conversations need to know of it.
#[derive(Debug)]
pub struct CheckpointTemplate {
    chat: ChatTemplate,
    control: ControlTokens,
    system: Shape,
    user: Shape,
    assistant: Shape,
    /// The special token that the template writes after an answer.
    answer_end: Option<String>,
    /// The special token that it writes after a question.
    question_end: Option<String>,
    asking: Option<AskingRole>,
    /// The tokenizer's end token: put behind what is learnt where the template writes none.
    eos: Option<String>,
}

impl PartialEq for CheckpointTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.chat == other.chat && self.asking == other.asking
    }
}

impl Eq for CheckpointTemplate {}

impl CheckpointTemplate {
    /// Tries out what a chat template does with the messages of each role. The tokenizer must hold
    /// the asking role's token already.
    ///
    /// # Errors
    /// If the template cannot hold a question and an answer, or the tokenizer lacks the token of
    /// the asking role.
    pub fn new(
        chat: ChatTemplate,
        tokenizer: &TextTokenizer,
        asking: Option<AskingRole>,
    ) -> Result<Self, DataError> {
        if let Some(AskingRole::Token(token)) = &asking
            && tokenizer.id(token).is_none()
        {
            return Err(DataError::MissingToken {
                template: "checkpoint",
                token: token.clone(),
                remedy: "add it to the tokenizer as a special token, or ask by a text",
            });
        }
        let user = shape(&chat, &[Shape::Parts, Shape::Text], |shape| {
            vec![message("user", shape, [1, 0], WORD)]
        })?;
        let asked = message("user", user, [0; 2], "Q");
        let assistant = shape(&chat, &[Shape::Text, Shape::Parts], |shape| {
            vec![asked.clone(), message("assistant", shape, [0; 2], WORD)]
        })?;
        // A template without a system role refuses it when one comes.
        let system = shape(&chat, &[Shape::Text, Shape::Parts], |shape| {
            vec![message("system", shape, [0; 2], WORD), asked.clone()]
        });
        let specials = specials(tokenizer);
        let ends = |messages: [Json; 2]| {
            let rendered = chat.render(&messages, &ChatOptions::default())?;
            Ok::<_, DataError>(token_after(WORD, &rendered.text, &specials))
        };
        let answer_end = ends([asked, message("assistant", assistant, [0; 2], WORD)])?;
        let question = message("user", user, [0; 2], WORD);
        let question_end = ends([question, message("assistant", assistant, [0; 2], "A")])?;
        let eos = tokenizer.eos_id().and_then(|id| tokenizer.token(id));
        Ok(Self {
            control: ControlTokens::new(&chat, tokenizer),
            chat,
            system: system.unwrap_or(Shape::Text),
            user,
            assistant,
            answer_end,
            eos,
            question_end,
            asking,
        })
    }

    /// The template itself.
    pub fn chat(&self) -> &ChatTemplate {
        &self.chat
    }

    /// The role that asks.
    pub fn asking(&self) -> Option<&AskingRole> {
        self.asking.as_ref()
    }

    /// Ids that end what is generated after a prompt with this `ending`: the tokenizer's end
    /// tokens and the token that the template writes there.
    pub fn stop_ids(&self, tokenizer: &TextTokenizer, ending: Ending) -> Vec<i64> {
        let mut ids = tokenizer.eos_ids().to_vec();
        let written = match ending {
            Ending::Ask => &self.question_end,
            Ending::Answer | Ending::Closed => &self.answer_end,
        };
        let written = written.as_ref().and_then(|token| tokenizer.id(token));
        ids.extend(written.filter(|id| !tokenizer.eos_ids().contains(id)));
        ids
    }

    /// The text of a conversation.
    pub(crate) fn text(
        &self,
        conversation: &Conversation,
        ending: Ending,
    ) -> Result<String, DataError> {
        let (placed, _) = self.placed(conversation, ending)?;
        Ok(ControlTokens::unmarked(&placed.rendered.text))
    }

    /// Ids of a conversation with the role of each, [`IMAGE_TOKEN_INDEX`] for a picture.
    pub(crate) fn encode(
        &self,
        tokenizer: &TextTokenizer,
        conversation: &Conversation,
        ending: Ending,
    ) -> Result<EncodedSegments, DataError> {
        let (placed, speakers) = self.placed(conversation, ending)?;
        let spans = self.spans(ending, &placed, &speakers)?;
        let marked = Rendered {
            generation: Some(spans.iter().map(|span| span.bytes.clone()).collect()),
            text: placed.rendered.text,
        };
        let encoded = self.control.encode(tokenizer, &marked)?;
        let mut out = EncodedSegments::default();
        let bytes = encoded.generation.as_deref().unwrap_or_default();
        if let Some(bos) = tokenizer.bos_id().filter(|_| tokenizer.adds_bos())
            && encoded.tokens.first().map(|token| token.id) != Some(bos)
        {
            out.ids.push(bos);
            out.roles.push(TokenRole::Ignore);
        }
        let begin = out.ids.len();
        let images = place_images(tokenizer, &encoded, &mut out.ids);
        for (token, id) in encoded.tokens.iter().zip(&out.ids[begin..]) {
            // The role of its last byte, else of any.
            let last = token.end.saturating_sub(1)..token.end;
            let holds = |range: &std::ops::Range<usize>| {
                bytes
                    .iter()
                    .position(|span| span.start < range.end && range.start < span.end)
            };
            let span = holds(&last).or_else(|| bytes.iter().position(|span| overlap(token, span)));
            out.roles.push(match span {
                Some(span) if *id != IMAGE_TOKEN_INDEX => spans[span].role,
                _ => TokenRole::Ignore,
            });
        }
        for (span, bytes) in spans.iter().zip(bytes) {
            if span.ends_turn {
                let tokens = encoded
                    .tokens
                    .partition_point(|token| token.end <= bytes.end);
                out.turn_ends.push(begin + tokens);
            }
        }
        match conversation.images_before(ending) {
            expected if expected == images => Ok(out),
            expected => Err(DataError::ChatTemplate(format!(
                "it writes {images} times {IMAGE_TOKEN} for {expected} pictures"
            ))),
        }
    }

    fn message_of(&self, turn: &Turn, text: &str, ending: Ending) -> Json {
        let images = [turn.images, turn.images_after];
        match turn.speaker {
            Speaker::Assistant => {
                // Without an end token an answer teaches no end.
                let end = self.end_after(&self.answer_end);
                let end = end.filter(|_| ending == Ending::Closed).unwrap_or_default();
                message("assistant", self.assistant, [0; 2], &format!("{text}{end}"))
            }
            Speaker::User => message("user", self.user, images, text),
            Speaker::Asked => message("user", self.user, images, &self.asked(text)),
        }
    }

    /// The messages of a conversation, rendered, and who speaks in each (`None` for the system).
    fn placed(
        &self,
        conversation: &Conversation,
        ending: Ending,
    ) -> Result<(Placed, Vec<Option<Speaker>>), DataError> {
        let said = |text: &str| {
            let marked = self.control.marked_text(text);
            match (&self.answer_end, conversation.spoken_end_tokens) {
                (Some(end), true) => ControlTokens::spoken(&marked, end),
                _ => marked,
            }
        };
        let mut messages = Vec::new();
        let mut speakers = Vec::new();
        if let Some(system) = conversation
            .system
            .as_deref()
            .filter(|text| !text.is_empty())
        {
            messages.push(message("system", self.system, [0; 2], &said(system)));
            speakers.push(None);
        }
        for turn in &conversation.turns {
            messages.push(self.message_of(turn, &said(&turn.text), ending));
            speakers.push(Some(turn.speaker));
        }
        // Some templates begin an answer otherwise than they ask for it (OneVision's line break,
        // Qwen3's thoughts): who was trained here is asked as it learnt.
        let as_learnt = ending == Ending::Answer && self.asking.is_some();
        if as_learnt {
            messages.push(message("assistant", self.assistant, [0; 2], WORD));
            speakers.push(None);
        }
        if ending == Ending::Ask {
            let text = format!("{}{WORD}", self.head());
            messages.push(message(
                "user",
                self.user,
                [conversation.pending_images, 0],
                &text,
            ));
            speakers.push(None);
        }
        let options = ChatOptions {
            add_generation_prompt: ending == Ending::Answer && !as_learnt,
            ..ChatOptions::default()
        };
        let mut placed = self.chat.place(&messages, &options)?;
        if ending == Ending::Ask || as_learnt {
            end_before_word(&mut placed)?;
        }
        if as_learnt {
            // A space belongs to the first word, as in what templates ask with.
            let kept = placed.rendered.text.trim_end_matches(' ').len();
            placed.rendered.text.truncate(kept);
        }
        Ok((placed, speakers))
    }

    /// What stands before an asked question.
    fn head(&self) -> &str {
        match &self.asking {
            Some(AskingRole::Token(head) | AskingRole::Text(head)) => head,
            None => "",
        }
    }

    fn asked(&self, text: &str) -> String {
        let space = match self.asking {
            Some(AskingRole::Text(_)) => " ",
            _ => "",
        };
        let end = self.end_after(&self.question_end).unwrap_or_default();
        format!("{}{space}{text}{end}", self.head())
    }

    /// The end token where the template writes none.
    fn end_after(&self, written: &Option<String>) -> Option<&str> {
        self.eos.as_deref().filter(|_| written.is_none())
    }

    /// What is learnt of a rendered conversation, in order.
    fn spans(
        &self,
        ending: Ending,
        placed: &Placed,
        speakers: &[Option<Speaker>],
    ) -> Result<Vec<LearntSpan>, DataError> {
        let text = &placed.rendered.text;
        let mut found = Vec::new();
        for (spans, speaker) in placed.spans.iter().zip(speakers) {
            let role = match speaker {
                Some(Speaker::Assistant) => TokenRole::Answer,
                Some(Speaker::Asked) => TokenRole::Question,
                Some(Speaker::User) | None => continue,
            };
            let (Some(first), Some(last)) = (spans.first(), spans.last()) else {
                // An answer before the one that is asked for may be left out.
                if ending != Ending::Closed {
                    continue;
                }
                return Err(DataError::ChatTemplate(
                    "it leaves out an answer or a question that is to be learnt".into(),
                ));
            };
            let mut bytes = first.start..last.end;
            let end = match role {
                TokenRole::Question => {
                    bytes.start += self.head_in(&text[bytes.clone()]);
                    &self.question_end
                }
                _ => &self.answer_end,
            };
            if let Some(end) = end {
                let rest = &text[bytes.end..];
                let spaces = rest.len() - rest.trim_start_matches(is_space).len();
                if rest[spaces..].starts_with(end.as_str()) {
                    bytes.end += spaces + end.len();
                }
            }
            found.push(LearntSpan {
                bytes,
                role,
                ends_turn: role == TokenRole::Answer,
            });
        }
        let marked = placed.rendered.generation.iter().flatten();
        found.extend(
            marked
                .filter(|span| span.end <= text.len())
                .map(|bytes| LearntSpan {
                    bytes: bytes.clone(),
                    role: TokenRole::Answer,
                    ends_turn: false,
                }),
        );
        found.sort_by_key(|span| (span.bytes.start, span.bytes.end));
        Ok(found)
    }

    /// Bytes before the question itself in what an asked message says.
    fn head_in(&self, said: &str) -> usize {
        let mut rest = said;
        if self.user == Shape::Text {
            while let Some(behind) = rest.strip_prefix(IMAGE_TOKEN) {
                rest = behind.strip_prefix('\n').unwrap_or(behind);
            }
        }
        said.len() - rest.strip_prefix(self.head()).unwrap_or(rest).len()
    }
}

/// Bytes that are learnt.
struct LearntSpan {
    bytes: std::ops::Range<usize>,
    role: TokenRole,
    ends_turn: bool,
}

/// Appends the ids with [`IMAGE_TOKEN_INDEX`] for the vocabulary's image token, and counts these.
fn place_images(tokenizer: &TextTokenizer, encoded: &EncodedChat, ids: &mut Vec<i64>) -> usize {
    let image = tokenizer.id(IMAGE_TOKEN);
    let is_image = |token: &&TokenSpan| token.id == IMAGE_TOKEN_INDEX || Some(token.id) == image;
    ids.extend(encoded.tokens.iter().map(|token| match is_image(&token) {
        true => IMAGE_TOKEN_INDEX,
        false => token.id,
    }));
    encoded.tokens.iter().filter(is_image).count()
}

/// The special tokens of a vocabulary but that of an image.
fn specials(tokenizer: &TextTokenizer) -> Vec<String> {
    let added = tokenizer.added_tokens().into_iter();
    added
        .filter_map(|(token, special)| (special && token != IMAGE_TOKEN).then_some(token))
        .collect()
}

/// The token that stands behind a word, but for spaces.
fn token_after(word: &str, text: &str, tokens: &[String]) -> Option<String> {
    let (_, rest) = text.split_once(word)?;
    let rest = rest.trim_start_matches(is_space);
    let written = tokens.iter().filter(|token| rest.starts_with(*token));
    written.max_by_key(|token| token.len()).cloned()
}

/// What is said is the model's: the prompt ends where it would begin.
fn end_before_word(placed: &mut Placed) -> Result<(), DataError> {
    let begins = placed.spans.pop().and_then(|spans| spans.last().cloned());
    let begins = begins.map(|span| span.end - WORD.len());
    let begins = begins.filter(|&at| placed.rendered.text[at..].starts_with(WORD));
    let begins = begins
        .ok_or_else(|| DataError::ChatTemplate("it leaves out what the model is to say".into()))?;
    placed.rendered.text.truncate(begins);
    Ok(())
}

/// A message with images before and behind its text.
fn message(role: &str, shape: Shape, [before, after]: [usize; 2], text: &str) -> Json {
    let content = match shape {
        Shape::Text => {
            let shown = format!("{IMAGE_TOKEN}\n").repeat(before + after);
            let shown = match text.is_empty() {
                true => shown.trim_end_matches('\n'),
                false => &shown,
            };
            json!(format!("{shown}{text}"))
        }
        Shape::Parts => {
            let image = json!({"type": "image"});
            let mut parts = vec![image.clone(); before];
            if before + after == 0 || !text.is_empty() {
                parts.push(json!({"type": "text", "text": text}));
            }
            parts.resize(parts.len() + after, image);
            json!(parts)
        }
    };
    json!({"role": role, "content": content})
}

/// The first shape in which a template writes what is said once, with its picture.
fn shape(
    chat: &ChatTemplate,
    shapes: &[Shape],
    messages: impl Fn(Shape) -> Vec<Json>,
) -> Result<Shape, DataError> {
    let mut refused = None;
    for &shape in shapes {
        let messages = messages(shape);
        let images = messages.iter().map(|message| message.to_string());
        let images = images.filter(|text| text.contains("\"image\"") || text.contains(IMAGE_TOKEN));
        let images = images.count();
        match chat.render(&messages, &ChatOptions::default()) {
            Ok(Rendered { text, .. }) => {
                let printed = text.contains("{'type'");
                let whole = text.matches(WORD).count() == 1;
                if whole && !printed && text.matches(IMAGE_TOKEN).count() == images {
                    return Ok(shape);
                }
            }
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| {
        DataError::ChatTemplate("it does not write what is said in a conversation".into())
    }))
}
