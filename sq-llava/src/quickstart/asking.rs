//! Letting a model ask about held-out scenes, and checking what its questions are about.

use std::path::Path;

use anyhow::Result;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use sq_llava_model::{Assistant, QuestionOptions, SelfQuestioner};

use crate::world::{About, DESCRIBE, Scene, about};

/// Draws for each scene.
const DRAWS: usize = 4;

/// What was asked about one scene.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What the model said of the picture before it asked.
    pub description: String,
    /// Each question that it drew, with what it is about.
    pub questions: Vec<(String, About)>,
}

/// Counts over all scenes; a question drawn twice counts twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedCounts {
    /// Questions.
    pub all: usize,
    /// Those that are sentences of the world's language.
    pub clear: usize,
    /// Those about a thing, not about the whole picture.
    pub things: usize,
    /// Those about a thing that is there.
    pub there: usize,
    /// Those whose thing would be there if another held-out scene were shown.
    pub there_elsewhere: usize,
    /// Scenes whose description is right in every word.
    pub described: usize,
    /// Scenes.
    pub scenes: usize,
}

/// Lets a model describe each scene and ask about it, with the paper's sampling.
///
/// # Errors
/// If a picture cannot be read or the model cannot ask.
pub fn ask<B: Backend>(
    assistant: &Assistant<B>,
    images: &Path,
    scenes: &[(String, &Scene)],
    seed: u64,
) -> Result<(Vec<Asked>, AskedCounts)> {
    let questioner = SelfQuestioner::new(assistant)?;
    let mut all = Vec::new();
    let mut counts = AskedCounts::default();
    for (index, (image, scene)) in scenes.iter().enumerate() {
        let options = QuestionOptions {
            max_new_tokens: 40,
            max_answer_tokens: 64,
            describe: Some(DESCRIBE.into()),
            ..QuestionOptions::demo(&assistant.template, DRAWS, seed.wrapping_add(index as u64))
        };
        let found = questioner.ask(&assistant.open_image(&images.join(image))?, &options)?;
        let mut asked = Asked {
            description: found.description.unwrap_or_default(),
            questions: Vec::new(),
        };
        counts.scenes += 1;
        counts.described += usize::from(asked.description == scene.caption());
        let (_, other) = &scenes[(index + 1) % scenes.len()];
        for question in found.questions {
            let subject = about(scene, &question.text);
            for _ in 0..question.count {
                counts.all += 1;
                counts.clear += usize::from(subject != About::Unclear);
                counts.things += usize::from(matches!(subject, About::Things { .. }));
                counts.there += usize::from(subject == About::Things { there: true });
                let elsewhere = about(other, &question.text) == About::Things { there: true };
                counts.there_elsewhere += usize::from(elsewhere);
                asked.questions.push((question.text.clone(), subject));
            }
        }
        all.push(asked);
    }
    Ok((all, counts))
}
