//! Asks a benchmark's questions in batches, while the next pictures are read.

use std::sync::mpsc::sync_channel;
use std::time::Instant;

use burn::tensor::backend::Backend;
use indicatif::{ProgressBar, ProgressStyle};
use sq_llava_data::image::{ImageAspect, ImageProcessor, PreparedImage};
use sq_llava_data::{Conversation, Ending};

use crate::EvalError;
use crate::answer::{Answer, AnswerFile};
use crate::problem::{ProblemKind, Problems};
use crate::protocol::{AskedWith, Protocol};
use crate::question::{Picture, Question, Questions};
use crate::task::Task;
use sq_llava_model::{AnswerOptions, Assistant, ModelError, Request};

/// How a benchmark's questions are asked.
pub struct Asking<'a, B: Backend> {
    /// Who is asked.
    pub assistant: &'a Assistant<B>,
    /// Prepares the pictures.
    pub processor: Option<ImageProcessor>,
    /// The benchmark.
    pub task: &'static dyn Task,
    /// Its questions.
    pub questions: &'a Questions,
    /// Length of the answers and how tokens are chosen.
    pub options: AnswerOptions,
    /// Questions at a time.
    pub batch: usize,
    /// Recorded with each answer.
    pub model_id: &'a str,
    /// Recorded with each answer.
    pub asked_with: AskedWith,
}

/// The outcome of a run.
#[derive(Debug, Default)]
pub struct Asked {
    /// Answers written.
    pub answered: usize,
    /// Seconds it took.
    pub seconds: f64,
    /// Questions that could not be asked.
    pub problems: Problems,
}

/// A question with its picture.
struct Prepared<'a> {
    question: &'a Question,
    picture: Result<Option<PreparedImage>, EvalError>,
}

impl<B: Backend> Asking<'_, B> {
    /// Asks questions and appends each batch's answers to the file.
    ///
    /// # Errors
    /// If the model fails or the file cannot be written. A question that cannot be asked (a
    /// damaged picture, a text too long for the model) is a problem of its own, not an error.
    pub fn run(&self, questions: &[&Question], file: &mut AnswerFile) -> Result<Asked, EvalError> {
        let bar = bar(self.task, questions.len());
        let start = Instant::now();
        let mut asked = Asked::default();
        std::thread::scope(|scope| {
            // One batch waits while another is answered: memory stays bounded.
            let (send, receive) = sync_channel(1);
            let (all, processor) = (self.questions, self.processor.as_ref());
            let size = self.batch;
            scope.spawn(move || {
                for batch in questions.chunks(size) {
                    let prepared: Vec<Prepared<'_>> = batch
                        .iter()
                        .map(|question| Prepared {
                            question,
                            picture: picture(all, processor, question),
                        })
                        .collect();
                    if send.send(prepared).is_err() {
                        break;
                    }
                }
            });
            for batch in receive {
                let count = batch.len() as u64;
                let answers = self.answer(batch, &mut asked.problems)?;
                file.append(&answers)?;
                asked.answered += answers.len();
                bar.inc(count);
            }
            Ok::<(), EvalError>(())
        })?;
        bar.finish_and_clear();
        asked.seconds = start.elapsed().as_secs_f64();
        Ok(asked)
    }

    /// Answers of one batch; what cannot be asked is left out.
    fn answer(
        &self,
        batch: Vec<Prepared<'_>>,
        problems: &mut Problems,
    ) -> Result<Vec<Answer>, EvalError> {
        let mut ready = Vec::with_capacity(batch.len());
        for prepared in batch {
            match prepared.picture {
                Ok(picture) => ready.push((prepared.question, Vec::from_iter(picture))),
                Err(error) => problems.add(
                    ProblemKind::MissingImage,
                    format!("question {}", prepared.question.id),
                    error.to_string(),
                ),
            }
        }
        match self.generate(&ready) {
            Err(error) if of_one_question(&error) => {
                // Which one it is shows when each is asked alone.
                let mut answers = Vec::new();
                for one in ready.chunks(1) {
                    self.answer_one(one, &mut answers, problems)?;
                }
                Ok(answers)
            }
            other => other.map_err(|error| of_question(error, &ready)),
        }
    }

    fn answer_one(
        &self,
        one: &[(&Question, Vec<PreparedImage>)],
        answers: &mut Vec<Answer>,
        problems: &mut Problems,
    ) -> Result<(), EvalError> {
        match self.generate(one) {
            Ok(given) => answers.extend(given),
            Err(error) if of_one_question(&error) => {
                for (question, _) in one {
                    let place = format!("question {}", question.id);
                    problems.add(ProblemKind::MalformedQuestion, place, error.to_string());
                }
            }
            Err(error) => return Err(of_question(error, one)),
        }
        Ok(())
    }

    fn generate(
        &self,
        ready: &[(&Question, Vec<PreparedImage>)],
    ) -> Result<Vec<Answer>, ModelError> {
        let conversations: Vec<Conversation> = ready
            .iter()
            .map(|(question, images)| {
                let mut conversation = self.assistant.conversation();
                conversation.push_images(images.len());
                conversation.push_user(question.text.clone());
                conversation
            })
            .collect();
        let requests: Vec<Request<'_>> = conversations
            .iter()
            .zip(ready)
            .map(|(conversation, (_, images))| Request {
                conversation,
                ending: Ending::Answer,
                images,
            })
            .collect();
        let given = self
            .assistant
            .answer_batch(&requests, &self.options, &mut |_, _| {})?;
        let benchmark = self.task.name();
        Ok(ready
            .iter()
            .zip(given)
            .map(|((question, _), answer)| Answer {
                metadata: self.asked_with.metadata(),
                ..Answer::new(benchmark, question, answer.text.trim(), self.model_id)
            })
            .collect())
    }
}

/// An error of the model, with the question at which it showed where that is known.
fn of_question(error: ModelError, asked: &[(&Question, Vec<PreparedImage>)]) -> EvalError {
    let place = match &error {
        ModelError::NotFinite { sample, .. } => asked.get(*sample),
        _ => None,
    };
    match place {
        Some((question, _)) => EvalError::Asking {
            what: format!("question {}", question.id),
            source: error,
        },
        None => error.into(),
    }
}

/// Whether an error is about one question and not about the model.
fn of_one_question(error: &ModelError) -> bool {
    matches!(
        error,
        ModelError::ContextOverflow { .. } | ModelError::Data(_) | ModelError::ImageCount { .. }
    )
}

fn picture(
    questions: &Questions,
    processor: Option<&ImageProcessor>,
    question: &Question,
) -> Result<Option<PreparedImage>, EvalError> {
    let (Some(picture), Some(processor)) = (questions.picture(question)?, processor) else {
        return Ok(None);
    };
    let image = match picture {
        Picture::File(path) => processor.open(&path)?,
        Picture::Bytes(bytes, name) => processor.decode(&bytes, &name)?,
    };
    Ok(Some(processor.prepare(&image, 1)))
}

/// The processor with which a benchmark's pictures are prepared.
///
/// # Errors
/// If the configuration cannot be used.
pub fn processor<B: Backend>(
    assistant: &Assistant<B>,
    task: &dyn Task,
    questions: &Questions,
    protocol: Protocol,
) -> Result<Option<ImageProcessor>, EvalError> {
    let Some(own) = &assistant.processor else {
        if questions
            .list
            .iter()
            .any(|question| question.image.is_some())
        {
            return Err(EvalError::Asking {
                what: task.title().into(),
                source: ModelError::NoVisionTower,
            });
        }
        return Ok(None);
    };
    if !task.crops(protocol) {
        return Ok(Some(own.clone()));
    }
    let cropping = own.config().clone().with_aspect(ImageAspect::Crop);
    Ok(Some(ImageProcessor::new(cropping)?))
}

/// A bar on standard error; nothing off a terminal.
fn bar(task: &dyn Task, count: usize) -> ProgressBar {
    let style = "{msg} {bar:30} {pos}/{len} {per_sec}, {eta} left";
    let bar = ProgressBar::new(count as u64);
    let bar = match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    };
    bar.with_message(task.title())
}
