//! The conversation templates: names, system messages, special tokens and what ends a reply.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::conversation::Ending;
use crate::{DataError, TextTokenizer};

/// The tokens of the template `sq`: answering role, asking role, answer, end.
pub const SQ_TOKENS: [&str; 4] = ["[usr]", "[vusr]", "[aswr]", "<o^d>"];

pub(crate) const USR: &str = SQ_TOKENS[0];
pub(crate) const VUSR: &str = SQ_TOKENS[1];
pub(crate) const ASWR: &str = SQ_TOKENS[2];
pub(crate) const END: &str = SQ_TOKENS[3];

/// System message of LLaVA-1.5.
const V1_SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. \
    The assistant gives helpful, detailed, and polite answers to the user's questions.";

/// The missing space after "questions." is the released code's.
const V1_SQ_SYSTEM: &str = "A chat between a curious user and an artificial intelligence \
    assistant. The assistant gives helpful, detailed, and polite answers to the user's \
    questions.Also, the artificial intelligence assistant is a curious virtual user. The virtual \
    user asks complex questions that are relevant to the content in the image, for example, asking \
    about background knowledge of the objects in the image, asking to discuss about events \
    happening in the image, etc. Again, do not ask about uncertain details.";

/// The two spaces after "safe." are the original's.
const LLAMA_2_SYSTEM: &str = "You are a helpful, respectful and honest assistant. Always answer \
    as helpfully as possible, while being safe.  Your answers should not include any harmful, \
    unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your \
    responses are socially unbiased and positive in nature.\n\nIf a question does not make any \
    sense, or is not factually coherent, explain why instead of answering something not correct. \
    If you don't know the answer to a question, please don't share false information.";

/// The layout of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Template {
    /// `<image>{caption}\n`: stage 1. The words of a question with an image are not shown.
    #[serde(rename = "plain")]
    Plain,
    /// `{system} USER: {q} ASSISTANT: {a}</s>`: LLaVA-1.5.
    #[serde(rename = "v1")]
    V1,
    /// `v1` with `VUSER: {q}</s> ASSISTANT: {a}</s>`: the released SQ-LLaVA.
    #[serde(rename = "v1_sq")]
    V1Sq,
    /// `{system}[usr]{q}[aswr]{a}<o^d>`: the paper.
    #[serde(rename = "sq")]
    Sq,
    /// `[INST] <<SYS>>…<</SYS>> {q} [/INST] {a} </s>`: LLaMA-2 chat.
    #[serde(rename = "llama_2")]
    Llama2,
}

impl Template {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Plain, Self::V1, Self::V1Sq, Self::Sq, Self::Llama2];

    /// The name by which it is chosen.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::V1 => "v1",
            Self::V1Sq => "v1_sq",
            Self::Sq => "sq",
            Self::Llama2 => "llama_2",
        }
    }

    /// Its own system message.
    pub fn system(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::V1 | Self::Sq => V1_SYSTEM,
            Self::V1Sq => V1_SQ_SYSTEM,
            Self::Llama2 => LLAMA_2_SYSTEM,
        }
    }

    /// Whether it has a role that asks.
    pub fn asks(self) -> bool {
        matches!(self, Self::V1Sq | Self::Sq)
    }

    /// Whether training also asks the first turn of a conversation: the paper's layout does, the
    /// released code only asks after a turn that was answered.
    pub fn asks_first_turn(self) -> bool {
        self == Self::Sq
    }

    /// Tokens that it needs beside those of the base model.
    pub fn special_tokens(self) -> &'static [&'static str] {
        match self {
            Self::Sq => &SQ_TOKENS,
            _ => &[],
        }
    }

    /// Ids that end what is generated after a prompt with this `ending`: the tokenizer's end
    /// tokens, in `sq` `<o^d>`, and for a question there also `[aswr]`.
    ///
    /// # Errors
    /// If the tokenizer lacks a token of the template.
    pub fn stop_ids(
        self,
        tokenizer: &TextTokenizer,
        ending: Ending,
    ) -> Result<Vec<i64>, DataError> {
        let mut ids = tokenizer.eos_ids().to_vec();
        if self == Self::Sq {
            self.require_tokens(tokenizer)?;
            ids.extend(tokenizer.id(END));
            if ending == Ending::Ask {
                ids.extend(tokenizer.id(ASWR));
            }
        }
        Ok(ids)
    }

    /// Strings that end what is generated (LLaVA's `stop_str`): the end token spelt out, and a
    /// line break in `plain`.
    pub fn stop_strings(self, tokenizer: &TextTokenizer) -> Vec<String> {
        match self {
            Self::Plain => vec!["\n".to_owned()],
            Self::Sq => vec![END.to_owned()],
            Self::V1 | Self::V1Sq | Self::Llama2 => tokenizer
                .eos_id()
                .and_then(|id| tokenizer.token(id))
                .into_iter()
                .collect(),
        }
    }

    pub(crate) fn require_tokens(self, tokenizer: &TextTokenizer) -> Result<(), DataError> {
        let lacks = |token: &&&str| tokenizer.id(token).is_none();
        match self.special_tokens().iter().find(lacks) {
            None => Ok(()),
            Some(token) => Err(DataError::MissingToken {
                template: self.name(),
                token: (*token).to_owned(),
                remedy: "add SQ_TOKENS to it, or choose another template for this checkpoint",
            }),
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Template {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        // LLaVA lists v1 under both names.
        let own = if name == "vicuna_v1" { "v1" } else { name };
        Self::ALL
            .into_iter()
            .find(|template| template.name() == own)
            .ok_or_else(|| DataError::UnknownTemplate(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for template in Template::ALL {
            assert_eq!(template.to_string().parse::<Template>().unwrap(), template);
            let json = serde_json::to_string(&template).unwrap();
            assert_eq!(json, format!("\"{template}\""));
        }
        assert_eq!("vicuna_v1".parse::<Template>().unwrap(), Template::V1);
        let error = "v2".parse::<Template>().unwrap_err().to_string();
        assert!(error.contains("v2") && error.contains("llama_2"), "{error}");
    }
}
