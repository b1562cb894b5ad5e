//! Visual self-questioning: the model asks about a picture (paper, section 3.1).

use burn::tensor::backend::Backend;
use sq_llava_data::image::PreparedImage;
use sq_llava_data::{Ending, Layout};

use crate::error::ModelError;
use crate::generation::assistant::{AnswerOptions, Assistant, Request};
use crate::generation::sampling::Sampling;

/// Largest number of questions in one call.
const MOST_QUESTIONS: usize = 100_000;

/// More tokens than any template puts around a question.
const TEMPLATE_TOKENS: usize = 256;

/// How to ask.
#[derive(Debug, Clone)]
pub struct QuestionOptions {
    /// Questions to draw.
    pub n: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Largest number of tokens in a question.
    pub max_new_tokens: usize,
    /// The instruction that the model follows before it asks; `None` asks at once.
    pub describe: Option<String>,
    /// Whether each question is answered, greedily.
    pub answer: bool,
    /// Largest number of tokens in the description and in an answer.
    pub max_answer_tokens: usize,
}

impl QuestionOptions {
    /// Instruction for the description that precedes the questions.
    pub const DESCRIBE: &str = "Describe the image.";

    /// The settings of the paper's demonstration: temperature 1.2, top-k 300, top-p 0.95, up to
    /// 300 tokens; after a description where the template never asks the first turn in training.
    pub fn demo(template: &Layout, n: usize, seed: u64) -> Self {
        Self {
            n,
            sampling: Sampling::asking(seed),
            max_new_tokens: 300,
            describe: (!template.asks_first_turn()).then(|| Self::DESCRIBE.into()),
            answer: false,
            max_answer_tokens: 300,
        }
    }
}

/// A question and how often it was drawn.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Question {
    /// The question.
    pub text: String,
    /// How many of the draws gave it.
    pub count: usize,
    /// The model's own answer, if it was wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// What the model asked about a picture.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Questions {
    /// What it said about the picture first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Distinct questions in the order of their first draw.
    pub questions: Vec<Question>,
}

/// Asks about pictures.
#[derive(Debug)]
pub struct SelfQuestioner<'a, B: Backend> {
    assistant: &'a Assistant<B>,
}

impl<'a, B: Backend> SelfQuestioner<'a, B> {
    /// A questioner.
    ///
    /// # Errors
    /// If the model's template has no asking role.
    pub fn new(assistant: &'a Assistant<B>) -> Result<Self, ModelError> {
        if !assistant.template.asks() {
            return Err(ModelError::Argument(format!(
                "template {} has no asking role: this model was not trained to ask; SQ-LLaVA models use sq or v1_sq, or the checkpoint's own template with a role that training gave it",
                assistant.template.name()
            )));
        }
        Ok(Self { assistant })
    }

    /// Describes the picture if that is wanted, then draws questions about it. Questions that
    /// differ only in case or spaces count as one.
    ///
    /// # Errors
    /// As [`Assistant::answer`], or if more than 100,000 questions are wanted.
    pub fn ask(
        &self,
        image: &PreparedImage,
        options: &QuestionOptions,
    ) -> Result<Questions, ModelError> {
        if options.n > MOST_QUESTIONS {
            return Err(ModelError::Argument(format!(
                "{} questions are wanted; at most {MOST_QUESTIONS} are drawn at once",
                options.n
            )));
        }
        let images = std::slice::from_ref(image);
        let mut conversation = self.assistant.conversation();
        conversation.push_images(1);
        let greedy = AnswerOptions {
            max_new_tokens: options.max_answer_tokens,
            ..AnswerOptions::default()
        };
        let mut description = None;
        if let Some(instruction) = &options.describe {
            conversation.push_user(instruction.clone());
            let request = Request {
                conversation: &conversation,
                ending: Ending::Answer,
                images,
            };
            let answer = self.assistant.answer(&request, &greedy, &mut |_| {})?;
            let text = answer.text.trim().to_string();
            conversation.push_assistant(text.clone());
            description = Some(text);
        }
        let drawing = AnswerOptions {
            max_new_tokens: options.max_new_tokens,
            sampling: options.sampling.clone(),
            stop: vec![],
        };
        let request = Request {
            conversation: &conversation,
            ending: Ending::Ask,
            images,
        };
        let drawn = self
            .assistant
            .answer_n(&request, options.n, &drawing, &mut |_, _| {})?;
        let mut questions = distinct(drawn.iter().map(|answer| answer.text.as_str()));
        if options.answer {
            let texts: Vec<&str> = questions.iter().map(|q| q.text.as_str()).collect();
            let answers = self.answers(image, &texts, &greedy)?;
            for (question, answer) in questions.iter_mut().zip(answers) {
                question.answer = Some(answer);
            }
        }
        Ok(Questions {
            description,
            questions,
        })
    }

    /// Answers each question about a picture alone, as many at once as fit into memory.
    ///
    /// # Errors
    /// As [`Assistant::answer`].
    pub fn answers(
        &self,
        image: &PreparedImage,
        questions: &[&str],
        options: &AnswerOptions,
    ) -> Result<Vec<String>, ModelError> {
        // A token has at least one byte.
        let longest = questions.iter().map(|q| q.len()).max().unwrap_or(0);
        let model = &self.assistant.model;
        let shown = image.packing.tokens(model.config.tokens_per_image())?;
        let shown = shown + TEMPLATE_TOKENS;
        let tokens = (shown + longest).saturating_add(options.max_new_tokens);
        let mut all = Vec::with_capacity(questions.len());
        for part in questions.chunks(model.most_at_once(tokens)) {
            all.extend(self.answers_at_once(image, part, options)?);
        }
        Ok(all)
    }

    fn answers_at_once(
        &self,
        image: &PreparedImage,
        questions: &[&str],
        options: &AnswerOptions,
    ) -> Result<Vec<String>, ModelError> {
        let about = |question: &&str| self.assistant.about_a_picture(*question);
        let conversations: Vec<_> = questions.iter().map(about).collect();
        let requests: Vec<_> = conversations
            .iter()
            .map(|conversation| Request {
                conversation,
                ending: Ending::Answer,
                images: std::slice::from_ref(image),
            })
            .collect();
        let answers = self
            .assistant
            .answer_batch(&requests, options, &mut |_, _| {})?;
        let texts = answers.into_iter().map(|answer| answer.text.trim().into());
        Ok(texts.collect())
    }
}

/// Merges equal questions; empty ones are left out.
fn distinct<'t>(texts: impl Iterator<Item = &'t str>) -> Vec<Question> {
    let normal = |text: &str| {
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        words.join(" ")
    };
    let mut found: Vec<(String, Question)> = vec![];
    for text in texts {
        let key = normal(text);
        if key.is_empty() {
            continue;
        }
        match found.iter_mut().find(|(known, _)| *known == key) {
            Some((_, question)) => question.count += 1,
            None => found.push((
                key,
                Question {
                    text: text.trim().to_string(),
                    count: 1,
                    answer: None,
                },
            )),
        }
    }
    found.into_iter().map(|(_, question)| question).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_questions_are_counted_once() {
        let found = distinct(["What  is it? ", "what is it?", "", "Where?"].into_iter());
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].text.as_str(), found[0].count),
            ("What  is it?", 2)
        );
        assert_eq!(found[1].count, 1);
    }
}
