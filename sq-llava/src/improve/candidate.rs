//! What a model asks about unlabelled pictures, what it answers, and how far that can be believed.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use sq_llava_data::Ending;
use sq_llava_data::image::PreparedImage;
use sq_llava_eval::clip_score::{ClipScorer, clip_score, cosine};
use sq_llava_model::generation::generate::FinishReason;
use sq_llava_model::generation::sampling::Sampling;
use sq_llava_model::{AnswerOptions, Assistant, QuestionOptions, Request, SelfQuestioner};

/// Texts that CLIP reads at once.
const CLIP_BATCH: usize = 32;

/// A question of the model's own, with its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The question.
    pub question: String,
    /// How many of the draws gave it.
    pub drawn: usize,
    /// The answer that was drawn most often; of equal ones the first.
    pub answer: String,
    /// Part of the drawn answers that are this one.
    pub agreement: f64,
    /// Part of the other pictures with which the likeliest answer is this one; absent where there
    /// was no other picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<f64>,
    /// Whether most draws of this answer ended at their limit.
    pub cut: bool,
    /// CLIPScore of question and answer with the picture, where there is a CLIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_score: Option<f64>,
}

impl Candidate {
    /// Whether there is a question and an answer that came to its end.
    pub fn is_whole(&self) -> bool {
        !self.cut && !plain(&self.question).is_empty() && !plain(&self.answer).is_empty()
    }
}

/// All that was asked about one picture; a line of `candidates.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PictureAsked {
    /// Its path inside the folder.
    pub image: String,
    /// What the model said of it before it asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Questions with answers.
    pub pairs: Vec<Candidate>,
    /// Why there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How much is asked.
#[derive(Debug, Clone, Serialize)]
pub struct AskingSettings {
    /// Questions that are drawn about a picture.
    pub questions: usize,
    /// Answers that are drawn to a question.
    pub answers: usize,
    /// Temperature of those.
    pub answer_temperature: f32,
    /// Other pictures that a question is put to.
    pub others: usize,
    /// Most tokens of a question.
    pub max_question_tokens: usize,
    /// Most tokens of an answer.
    pub max_answer_tokens: usize,
    /// Seed of all draws.
    pub seed: u64,
}

/// A model that asks, with what judges it.
#[derive(Debug)]
pub struct Interviewer<'a, B: Backend> {
    /// The model.
    pub assistant: &'a Assistant<B>,
    /// The model as it asks.
    pub questioner: SelfQuestioner<'a, B>,
    /// CLIP, if there is one.
    pub clip: Option<&'a ClipScorer<B>>,
    /// How much is asked.
    pub settings: &'a AskingSettings,
}

impl<B: Backend> Interviewer<'_, B> {
    /// Asks about one picture. What is drawn depends on the seed and the picture's number alone.
    /// A picture that cannot be read gives no pairs and says why.
    ///
    /// # Errors
    /// If the model cannot ask, or computes no numbers.
    pub fn ask(
        &self,
        folder: &Path,
        image: &str,
        number: u64,
        others: &[&PreparedImage],
    ) -> Result<PictureAsked> {
        let mut asked = PictureAsked {
            image: image.to_owned(),
            description: None,
            pairs: Vec::new(),
            error: None,
        };
        let path = folder.join(image);
        let picture = match self.assistant.open_image(&path) {
            Ok(picture) => picture,
            Err(error) => {
                asked.error = Some(error.to_string());
                return Ok(asked);
            }
        };
        let settings = self.settings;
        let seed = settings.seed.wrapping_add(number);
        let options = QuestionOptions {
            max_new_tokens: settings.max_question_tokens,
            max_answer_tokens: settings.max_answer_tokens,
            ..QuestionOptions::demo(&self.assistant.template, settings.questions, seed)
        };
        let found = self
            .questioner
            .ask(&picture, &options)
            .with_context(|| path.display().to_string())?;
        asked.description = found.description;
        for question in found.questions {
            let drawn = question.count;
            let pair = self
                .answered(&picture, question.text, drawn, seed)
                .with_context(|| path.display().to_string())?;
            asked.pairs.push(pair);
        }
        for other in others {
            self.put_to(other, 1.0 / others.len() as f64, &mut asked.pairs)?;
        }
        self.look_with_clip(&path, &mut asked.pairs)?;
        Ok(asked)
    }

    /// Draws answers to a question and takes the most frequent one.
    fn answered(
        &self,
        picture: &PreparedImage,
        question: String,
        drawn: usize,
        seed: u64,
    ) -> Result<Candidate> {
        let conversation = self.assistant.about_a_picture(&question);
        let request = Request {
            conversation: &conversation,
            ending: Ending::Answer,
            images: std::slice::from_ref(picture),
        };
        let options = AnswerOptions {
            max_new_tokens: self.settings.max_answer_tokens,
            sampling: Sampling {
                temperature: self.settings.answer_temperature,
                seed,
                ..Sampling::greedy()
            },
            stop: vec![],
        };
        let all = self.settings.answers;
        let answers = self
            .assistant
            .answer_n(&request, all, &options, &mut |_, _| {})?;
        let cut: Vec<bool> = answers
            .iter()
            .map(|answer| answer.finish == FinishReason::Length)
            .collect();
        let (first, votes) = majority(answers.iter().map(|answer| answer.text.as_str()));
        let ended = votes.iter().filter(|&&vote| !cut[vote]).count();
        Ok(Candidate {
            question,
            drawn,
            answer: answers[first].text.trim().to_owned(),
            agreement: votes.len() as f64 / all as f64,
            elsewhere: None,
            cut: 2 * ended < votes.len(),
            clip_score: None,
        })
    }

    /// Puts the questions to another picture, and adds its part to those whose answer stays the same.
    fn put_to(&self, other: &PreparedImage, part: f64, pairs: &mut [Candidate]) -> Result<()> {
        let options = AnswerOptions {
            max_new_tokens: self.settings.max_answer_tokens,
            ..AnswerOptions::default()
        };
        let questions: Vec<&str> = pairs.iter().map(|pair| &*pair.question).collect();
        let answers = self.questioner.answers(other, &questions, &options)?;
        for (pair, answer) in pairs.iter_mut().zip(answers) {
            let same = plain(&answer) == plain(&pair.answer);
            *pair.elsewhere.get_or_insert(0.0) += if same { part } else { 0.0 };
        }
        Ok(())
    }

    fn look_with_clip(&self, path: &Path, pairs: &mut [Candidate]) -> Result<()> {
        let Some(clip) = self.clip.filter(|_| !pairs.is_empty()) else {
            return Ok(());
        };
        let image = clip.image_embeds(&[clip.open_image(path)?])?;
        let texts: Vec<String> = pairs
            .iter()
            .map(|pair| format!("{} {}", pair.question, pair.answer))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let texts = clip.text_embeds(&texts, CLIP_BATCH)?;
        for (pair, text) in pairs.iter_mut().zip(texts) {
            let likeness = image.iter().map(|image| cosine(image, &text.values));
            pair.clip_score = Some(likeness.map(clip_score).sum());
        }
        Ok(())
    }
}

/// The answer that stands most often, by its first place, and all its places. There is at least
/// one.
fn majority<'t>(answers: impl Iterator<Item = &'t str>) -> (usize, Vec<usize>) {
    let mut places: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (place, answer) in answers.enumerate() {
        places.entry(plain(answer)).or_default().push(place);
    }
    let best = places
        .into_values()
        .max_by_key(|places| (places.len(), std::cmp::Reverse(places[0])));
    let best = best.unwrap_or_else(|| vec![0]);
    (best[0], best)
}

/// Words alone, in small letters, so that answers and questions that mean the same are equal.
pub fn plain(text: &str) -> String {
    let kept = |c: char| c.is_alphanumeric() || c == '\'' || c == '-';
    let words = text
        .split(|c: char| !kept(c))
        .filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// A pair that every draw agrees on, with no other picture.
#[cfg(test)]
pub fn sure(question: &str, answer: &str) -> Candidate {
    Candidate {
        question: question.into(),
        drawn: 1,
        answer: answer.into(),
        agreement: 1.0,
        elsewhere: Some(0.0),
        cut: false,
        clip_score: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_answer_wins_and_of_equals_the_first() {
        let of = |answers: &[&str]| majority(answers.iter().copied());
        assert_eq!(of(&["red", "Blue.", " blue", "green"]), (1, vec![1, 2]));
        assert_eq!(of(&["red", "blue"]), (0, vec![0]));
        assert_eq!(of(&["b", "a", "a", "b"]), (0, vec![0, 3]));
    }

    #[test]
    fn only_words_count() {
        assert_eq!(plain("  At the top-left. "), "at the top-left");
        assert_eq!(plain("?!"), "");
    }
}
