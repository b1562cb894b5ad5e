//! Conversations: the text that a model sees for a list of turns.
//!
//! `v1`, `plain` and `llama_2` are LLaVA's (conversation.py), `v1_sq` is the one of the released
//! SQ-LLaVA, `sq` the paper's with its four tokens: `{system}`, then per turn `[usr]{q}` or
//! `[vusr]{q}` and `[aswr]{a}<o^d>`, with `<image>\n` before the role token.

use crate::text::page::Spelling;
use crate::text::segments::{self, EncodedSegments, Segment, text_of, with_spoken};
use crate::{DataError, Layout, Template, TextTokenizer};

pub use crate::manifest::IMAGE_TOKEN;

/// The id that stands for an image before the model puts its features there.
pub const IMAGE_TOKEN_INDEX: i64 = -200;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// A person's question, given.
    User,
    /// A question that the model asks.
    Asked,
    /// An answer.
    Assistant,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who says it.
    pub speaker: Speaker,
    /// What is said, without image marks.
    pub text: String,
    /// Images shown before the text.
    pub images: usize,
    /// Images shown behind it; our own templates show them before it too.
    pub images_after: usize,
}

impl Turn {
    /// All of its images.
    pub(crate) fn all_images(&self) -> usize {
        self.images + self.images_after
    }
}

/// What comes at the end of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The answering role's name: the model answers.
    Answer,
    /// The asking role's name: the model asks.
    Ask,
    /// Nothing: a whole conversation, as in training.
    Closed,
}

/// A list of turns in a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The layout.
    pub template: Layout,
    /// A system message in place of the template's own.
    pub system: Option<String>,
    /// Questions and answers by turns, a question first.
    pub turns: Vec<Turn>,
    /// Images for the question that comes next.
    pub pending_images: usize,
    /// Whether the end token's name (`</s>`) in what is said is that token, as in LLaVA. It is
    /// plain text by default, as the names of all other special tokens are in any case.
    pub spoken_end_tokens: bool,
}

impl Conversation {
    /// Without turns.
    pub fn new(template: impl Into<Layout>) -> Self {
        Self {
            template: template.into(),
            system: None,
            turns: Vec::new(),
            pending_images: 0,
            spoken_end_tokens: false,
        }
    }

    /// With another system message; empty for none.
    #[must_use]
    pub fn with_system(mut self, system: impl Into<String>) -> Self {
        self.system = Some(system.into());
        self
    }

    /// Shows `count` images with the next question, given or asked.
    pub fn push_images(&mut self, count: usize) -> &mut Self {
        self.pending_images += count;
        self
    }

    /// Shows `count` images behind the text of the question that came last.
    pub fn push_images_after(&mut self, count: usize) -> &mut Self {
        match self.turns.last_mut() {
            Some(turn) if turn.speaker != Speaker::Assistant => turn.images_after += count,
            _ => self.pending_images += count,
        }
        self
    }

    /// A question by the user. `<image>` in it is plain text: see [`Self::push_images`].
    pub fn push_user(&mut self, text: impl Into<String>) -> &mut Self {
        self.push(Speaker::User, text.into())
    }

    /// A question that the model asked.
    pub fn push_asked(&mut self, text: impl Into<String>) -> &mut Self {
        self.push(Speaker::Asked, text.into())
    }

    /// An answer.
    pub fn push_assistant(&mut self, text: impl Into<String>) -> &mut Self {
        self.push(Speaker::Assistant, text.into())
    }

    fn push(&mut self, speaker: Speaker, text: String) -> &mut Self {
        let images = match speaker {
            Speaker::Assistant => 0,
            Speaker::User | Speaker::Asked => std::mem::take(&mut self.pending_images),
        };
        self.turns.push(Turn {
            speaker,
            text,
            images,
            images_after: 0,
        });
        self
    }

    /// Number of images that the prompt marks.
    pub fn images(&self) -> usize {
        self.turns.iter().map(Turn::all_images).sum::<usize>() + self.pending_images
    }

    /// Number of images that a prompt with this `ending` marks.
    pub(crate) fn images_before(&self, ending: Ending) -> usize {
        let pending = match ending {
            Ending::Ask => self.pending_images,
            Ending::Answer | Ending::Closed => 0,
        };
        self.turns.iter().map(Turn::all_images).sum::<usize>() + pending
    }

    /// The prompt as text, with `<image>`, and `<s>` and `</s>` for the begin and end tokens of our
    /// own templates.
    ///
    /// # Errors
    /// If the turns do not alternate, or the template has no role for one of them.
    pub fn prompt(&self, ending: Ending) -> Result<String, DataError> {
        self.check(ending)?;
        let spelling = Spelling {
            bos: "<s>".to_owned(),
            eos: "</s>".to_owned(),
        };
        match &self.template {
            Layout::BuiltIn(template) => Ok(text_of(self.render(*template, &spelling, ending))),
            Layout::Checkpoint(template) => template.text(self, ending),
        }
    }

    /// The prompt as text, with `<image>`, and begin and end tokens as a tokenizer spells them.
    pub(crate) fn written(
        &self,
        tokenizer: &TextTokenizer,
        ending: Ending,
    ) -> Result<String, DataError> {
        self.check(ending)?;
        match &self.template {
            Layout::BuiltIn(template) => self.segments(*template, tokenizer, ending).map(text_of),
            Layout::Checkpoint(template) => template.text(self, ending),
        }
    }

    /// Ids of the prompt, with [`IMAGE_TOKEN_INDEX`] for each image and the tokenizer's own begin
    /// and end tokens.
    ///
    /// # Errors
    /// As [`Self::prompt`], and if the tokenizer lacks a token that the template needs.
    pub fn encode_prompt(
        &self,
        tokenizer: &TextTokenizer,
        ending: Ending,
    ) -> Result<Vec<i64>, DataError> {
        Ok(self.encode(tokenizer, ending)?.ids)
    }

    /// As [`Self::encode_prompt`], with the role of each id and where answers end.
    pub(crate) fn encode(
        &self,
        tokenizer: &TextTokenizer,
        ending: Ending,
    ) -> Result<EncodedSegments, DataError> {
        self.check(ending)?;
        match &self.template {
            Layout::BuiltIn(template) => {
                let segments = self.segments(*template, tokenizer, ending)?;
                segments::encode(tokenizer, &segments)
            }
            Layout::Checkpoint(template) => template.encode(tokenizer, self, ending),
        }
    }

    /// The prompt in segments, spelt for a tokenizer.
    fn segments(
        &self,
        template: Template,
        tokenizer: &TextTokenizer,
        ending: Ending,
    ) -> Result<Vec<Segment>, DataError> {
        template.require_tokens(tokenizer)?;
        let spell = |id: Option<i64>| id.and_then(|id| tokenizer.token(id));
        let eos = match (template, spell(tokenizer.eos_id())) {
            (_, Some(eos)) => eos,
            (Template::Plain | Template::Sq, None) => String::new(),
            (Template::V1 | Template::V1Sq | Template::Llama2, None) => {
                return Err(DataError::MissingToken {
                    template: template.name(),
                    token: "an end token".to_owned(),
                    remedy: "name it as eos_token in tokenizer_config.json \
                             or as eos_token_id in config.json",
                });
            }
        };
        let bos = Some(tokenizer.bos_id()).filter(|_| tokenizer.adds_bos());
        let bos = bos.and_then(spell).unwrap_or_default();
        let spelling = Spelling { bos, eos };
        let segments = self.render(template, &spelling, ending);
        match self.spoken_end_tokens && !spelling.eos.is_empty() {
            true => Ok(with_spoken(segments, &spelling.eos)),
            false => Ok(segments),
        }
    }

    fn check(&self, ending: Ending) -> Result<(), DataError> {
        let wrong = |reason: String| {
            Err(DataError::Conversation {
                sample: None,
                reason,
            })
        };
        let asks = ending == Ending::Ask || self.turns.iter().any(|t| t.speaker == Speaker::Asked);
        if asks && !self.template.asks() {
            return Err(DataError::NoAskingRole(self.template.name()));
        }
        for (i, turn) in self.turns.iter().enumerate() {
            if (turn.speaker == Speaker::Assistant) == (i % 2 == 0) {
                return wrong(format!(
                    "message {} is by {:?}: questions and answers must alternate, a question first",
                    i + 1,
                    turn.speaker
                ));
            }
        }
        let open = self.turns.len() % 2 == 1;
        match ending {
            Ending::Answer if !open => wrong("there is no question to answer".to_owned()),
            Ending::Ask if open => wrong("the last question has no answer yet".to_owned()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_turns(template: Template) -> Conversation {
        let mut conversation = Conversation::new(template).with_system("S");
        conversation
            .push_images(1)
            .push_user("q")
            .push_assistant("a");
        conversation
    }

    fn prompt(conversation: &Conversation, ending: Ending) -> String {
        conversation.prompt(ending).unwrap()
    }

    #[test]
    fn sq_puts_the_image_before_the_first_role() {
        let mut c = two_turns(Template::Sq);
        assert_eq!(
            prompt(&c, Ending::Ask),
            "S<image>\n[usr]q[aswr]a<o^d>[vusr]"
        );
        c.push_asked("why").push_assistant("so").push_user("ok");
        assert_eq!(
            prompt(&c, Ending::Answer),
            "S<image>\n[usr]q[aswr]a<o^d>[vusr]why[aswr]so<o^d>[usr]ok[aswr]"
        );
        let mut first = Conversation::new(Template::Sq).with_system("S");
        first.push_images(2);
        assert_eq!(prompt(&first, Ending::Ask), "S<image>\n<image>\n[vusr]");
    }

    #[test]
    fn llama_2_wraps_the_system_message_once() {
        let mut c = two_turns(Template::Llama2);
        c.push_user("r");
        assert_eq!(
            prompt(&c, Ending::Answer),
            "[INST] <<SYS>>\nS\n<</SYS>>\n\n<image>\nq [/INST] a </s><s>[INST] r [/INST]"
        );
        assert!(Template::Llama2.system().contains("safe.  Your"));
    }

    #[test]
    fn plain_shows_the_image_alone() {
        let c = two_turns(Template::Plain);
        assert_eq!(prompt(&c, Ending::Closed), "<image>a\n");
    }

    #[test]
    fn v1_sq_asks_at_the_first_turn_too() {
        let mut c = Conversation::new(Template::V1Sq).with_system("S");
        c.push_images(1);
        assert_eq!(prompt(&c, Ending::Ask), "S VUSER: <image>\n");
        c.push_asked("q");
        assert_eq!(
            prompt(&c, Ending::Answer),
            "S VUSER: <image>\nq</s> ASSISTANT:"
        );
    }

    #[test]
    fn empty_messages_leave_the_role_name() {
        let mut c = Conversation::new(Template::V1).with_system("");
        c.push_images(1).push_user("").push_assistant("");
        assert_eq!(prompt(&c, Ending::Closed), "USER: <image> ASSISTANT:");
    }

    #[test]
    fn what_a_template_cannot_hold_is_refused() {
        let c = two_turns(Template::V1);
        assert!(matches!(
            c.prompt(Ending::Ask),
            Err(DataError::NoAskingRole("v1"))
        ));
        assert!(matches!(
            c.prompt(Ending::Answer),
            Err(DataError::Conversation { .. })
        ));
        let mut c = Conversation::new(Template::V1);
        c.push_assistant("a");
        let error = c.prompt(Ending::Closed).unwrap_err().to_string();
        assert!(error.contains("alternate"), "{error}");
    }
}
