//! Conversations: the text that a model sees for a list of turns.
//!
//! `v1`, `plain` and `llama_2` are LLaVA's (conversation.py), `v1_sq` is the one of the released
//! SQ-LLaVA, `sq` the paper's with its four tokens: `{system}`, then per turn `[usr]{q}` or
//! `[vusr]{q}` and `[aswr]{a}<o^d>`, with `<image>\n` before the role token.

use crate::text::segments::{self, EncodedSegments, Segment, TokenRole, text_of, with_spoken};
use crate::text::template::{ASWR, END, USR, VUSR};
use crate::{DataError, Layout, Template, TextTokenizer};

/// How a prompt's text writes an image.
pub const IMAGE_TOKEN: &str = "<image>";

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

/// How the begin and end tokens are spelt.
struct Spelling {
    bos: String,
    eos: String,
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
        });
        self
    }

    /// Number of images that the prompt marks.
    pub fn images(&self) -> usize {
        self.turns.iter().map(|turn| turn.images).sum::<usize>() + self.pending_images
    }

    /// Number of images that a prompt with this `ending` marks.
    pub(crate) fn images_before(&self, ending: Ending) -> usize {
        let pending = match ending {
            Ending::Ask => self.pending_images,
            Ending::Answer | Ending::Closed => 0,
        };
        self.turns.iter().map(|turn| turn.images).sum::<usize>() + pending
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

    fn render(&self, template: Template, spelling: &Spelling, ending: Ending) -> Vec<Segment> {
        let mut page = Page::default();
        match template {
            Template::Plain => self.render_plain(&mut page),
            Template::V1 | Template::V1Sq => self.render_roles(&mut page, spelling, ending),
            Template::Sq => self.render_tokens(&mut page, ending),
            Template::Llama2 => self.render_llama_2(&mut page, spelling),
        }
        page.segments
    }

    fn system(&self) -> &str {
        let own = match &self.template {
            Layout::BuiltIn(template) => template.system(),
            Layout::Checkpoint(_) => "",
        };
        self.system.as_deref().unwrap_or(own)
    }

    fn render_plain(&self, page: &mut Page) {
        for turn in &self.turns {
            if turn.speaker == Speaker::Assistant {
                page.learn(&turn.text, TokenRole::Answer);
                page.learn("\n", TokenRole::Answer);
                page.end_turn();
            } else if turn.images > 0 {
                page.images(turn.images, "");
            } else {
                page.given(&turn.text);
                page.given("\n");
            }
        }
        page.images(self.pending_images, "");
    }

    /// `{system} USER: {q} ASSISTANT: {a}</s>`, asked `VUSER: {q}</s> ASSISTANT: {a}</s>`. As in
    /// LLaVA, an empty message leaves the bare role name.
    fn render_roles(&self, page: &mut Page, spelling: &Spelling, ending: Ending) {
        if !self.system().is_empty() {
            page.given(self.system());
            page.given(" ");
        }
        for turn in &self.turns {
            let (name, role) = match turn.speaker {
                Speaker::User => ("USER:", TokenRole::Ignore),
                Speaker::Asked => ("VUSER:", TokenRole::Question),
                Speaker::Assistant => ("ASSISTANT:", TokenRole::Answer),
            };
            page.given(name);
            if turn.images > 0 {
                page.given(" ");
                page.shown(turn);
                page.learn(&turn.text, role);
            } else if !turn.text.is_empty() {
                page.learn(&format!(" {}", turn.text), role);
            }
            if turn.images > 0 || !turn.text.is_empty() {
                if turn.speaker != Speaker::User {
                    page.token(&spelling.eos, role);
                }
                if turn.speaker != Speaker::Assistant {
                    page.given(" ");
                }
            }
            if turn.speaker == Speaker::Assistant {
                page.end_turn();
            }
        }
        match ending {
            Ending::Answer => page.given("ASSISTANT:"),
            Ending::Ask => {
                page.given("VUSER:");
                if self.pending_images > 0 {
                    page.given(" ");
                    page.images(self.pending_images, "\n");
                }
            }
            Ending::Closed => {}
        }
    }

    /// `{system}[usr]{q}[aswr]{a}<o^d>`; in an asked turn q and the `[aswr]` after it are learnt.
    fn render_tokens(&self, page: &mut Page, ending: Ending) {
        page.given(self.system());
        let mut asked = TokenRole::Ignore;
        for turn in &self.turns {
            page.images(turn.images, "\n");
            match turn.speaker {
                Speaker::User | Speaker::Asked => {
                    let (token, role) = match turn.speaker {
                        Speaker::Asked => (VUSR, TokenRole::Question),
                        _ => (USR, TokenRole::Ignore),
                    };
                    asked = role;
                    page.token(token, TokenRole::Ignore);
                    page.learn(&turn.text, role);
                }
                Speaker::Assistant => {
                    page.token(ASWR, asked);
                    page.learn(&turn.text, TokenRole::Answer);
                    page.token(END, TokenRole::Answer);
                    page.end_turn();
                }
            }
        }
        match ending {
            Ending::Answer => page.token(ASWR, TokenRole::Ignore),
            Ending::Ask => {
                page.images(self.pending_images, "\n");
                page.token(VUSR, TokenRole::Ignore);
            }
            Ending::Closed => {}
        }
    }

    /// `[INST] {q} [/INST] {a} </s>`, with the system message inside the first instruction and a
    /// begin token before the others.
    fn render_llama_2(&self, page: &mut Page, spelling: &Spelling) {
        for (i, turn) in self.turns.iter().enumerate() {
            if turn.speaker == Speaker::Assistant {
                page.learn(&format!(" {} ", turn.text), TokenRole::Answer);
                page.token(&spelling.eos, TokenRole::Answer);
                page.end_turn();
                continue;
            }
            if i > 0 {
                page.token(&spelling.bos, TokenRole::Ignore);
            }
            page.given("[INST] ");
            if i == 0 && !self.system().is_empty() {
                page.given(&format!("<<SYS>>\n{}\n<</SYS>>\n\n", self.system()));
            }
            page.shown(turn);
            page.given(&turn.text);
            page.given(" [/INST]");
        }
    }
}

/// Segments as they are written.
#[derive(Default)]
struct Page {
    segments: Vec<Segment>,
}

impl Page {
    fn given(&mut self, text: &str) {
        self.learn(text, TokenRole::Ignore);
    }

    fn learn(&mut self, text: &str, role: TokenRole) {
        if !text.is_empty() {
            self.segments.push(Segment::Text(text.to_owned(), role));
        }
    }

    /// A special token, if it has a name.
    fn token(&mut self, name: &str, role: TokenRole) {
        if !name.is_empty() {
            self.segments.push(Segment::Token(name.to_owned(), role));
        }
    }

    fn images(&mut self, count: usize, after: &str) {
        for _ in 0..count {
            self.segments.push(Segment::Image);
            self.given(after);
        }
    }

    /// The images of a turn, a line break after each, but none at the end of the turn (LLaVA
    /// strips a question that is nothing but an image).
    fn shown(&mut self, turn: &Turn) {
        self.images(turn.images, "\n");
        if turn.images > 0 && turn.text.is_empty() {
            self.segments.pop();
        }
    }

    fn end_turn(&mut self) {
        self.segments.push(Segment::TurnEnd);
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
