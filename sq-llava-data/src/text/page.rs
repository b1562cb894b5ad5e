//! A conversation in one of our own templates: the segments of its text.

use super::conversation::{Conversation, Ending, Speaker, Turn};
use super::segments::{Segment, TokenRole};
use super::template::{ASWR, END, USR, VUSR};
use crate::{Layout, Template};

/// How the begin and end tokens are spelt.
pub(super) struct Spelling {
    pub(super) bos: String,
    pub(super) eos: String,
}

impl Conversation {
    /// The segments of the text.
    pub(super) fn render(
        &self,
        template: Template,
        spelling: &Spelling,
        ending: Ending,
    ) -> Vec<Segment> {
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
            } else if turn.all_images() > 0 {
                page.images(turn.all_images(), "");
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
            if turn.all_images() > 0 {
                page.given(" ");
                page.shown(turn);
                page.learn(&turn.text, role);
            } else if !turn.text.is_empty() {
                page.learn(&format!(" {}", turn.text), role);
            }
            if turn.all_images() > 0 || !turn.text.is_empty() {
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
            page.images(turn.all_images(), "\n");
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
        self.images(turn.all_images(), "\n");
        if turn.all_images() > 0 && turn.text.is_empty() {
            self.segments.pop();
        }
    }

    fn end_turn(&mut self) {
        self.segments.push(Segment::TurnEnd);
    }
}
