//! The shortest way to a model: load it, ask it about a picture, let it ask.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use sq_llava_data::Ending;
use sq_llava_model::{
    AnswerOptions, AssistantOptions, ModelError, Question, QuestionOptions, Request, SelfQuestioner,
};

use crate::hub::{Hub, Part};

#[cfg(feature = "cpu")]
type DefaultBackend = burn_flex::Flex;

/// A model with its tokenizer, picture processor and conversation template, which are those of
/// [`sq_llava_model::Assistant`], to which it dereferences.
#[derive(Debug)]
#[cfg(feature = "cpu")]
pub struct Assistant<B: Backend = DefaultBackend>(sq_llava_model::Assistant<B>);

/// A model with its tokenizer, picture processor and conversation template, which are those of
/// [`sq_llava_model::Assistant`], to which it dereferences.
#[derive(Debug)]
#[cfg(not(feature = "cpu"))]
pub struct Assistant<B: Backend>(sq_llava_model::Assistant<B>);

#[cfg(feature = "cpu")]
impl Assistant {
    /// Loads a checkpoint or run directory, or a GGUF file, on the CPU in f32; a path, or a name on
    /// the Hugging Face hub (`org/name`, `org/name@revision`; see [`Hub`]).
    ///
    /// # Errors
    /// If there is no such model, or weights, tokenizer or processor are missing, damaged, or do
    /// not fit together.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        Self::load_on(path, &AssistantOptions::default(), &burn_flex::FlexDevice)
    }
}

impl<B: Backend> Assistant<B> {
    /// Loads a model on any backend, in another dtype, on another base. Base, tower and tokenizer
    /// may be names too.
    ///
    /// # Errors
    /// As [`Assistant::load`].
    pub fn load_on(
        path: impl AsRef<Path>,
        options: &AssistantOptions,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        let hub = Hub::from_env();
        let located = |given: &Path, part: Part| {
            let found = hub.locate(given, part);
            found.map_err(|error| ModelError::Argument(error.to_string()))
        };
        let given = |given: &Option<PathBuf>, part: Part| {
            let found = given.as_deref().map(|path| located(path, part));
            found.transpose()
        };
        let mut options = options.clone();
        options.load.base = given(&options.load.base, Part::Model)?;
        options.load.vision = given(&options.load.vision, Part::Model)?;
        options.tokenizer = given(&options.tokenizer, Part::Tokenizer)?;
        options.load.look_up.get_or_insert_with(|| hub.look_up());
        let path = located(path.as_ref(), Part::Model)?;
        let (assistant, _) = sq_llava_model::Assistant::load(&path, &options, device)?;
        Ok(Self(assistant))
    }

    /// The answer to a question about a picture, greedily chosen.
    ///
    /// # Errors
    /// If the picture cannot be read or the question is too long.
    pub fn ask(&self, picture: impl AsRef<Path>, question: &str) -> Result<String, ModelError> {
        self.ask_streaming(picture, question, |_| {})
    }

    /// As [`Self::ask`]; `on_text` gets the text as it comes, never part of a character.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn ask_streaming(
        &self,
        picture: impl AsRef<Path>,
        question: &str,
        mut on_text: impl FnMut(&str),
    ) -> Result<String, ModelError> {
        let picture = self.open_image(picture.as_ref())?;
        let mut conversation = self.conversation();
        conversation.push_images(1).push_user(question);
        let request = Request {
            conversation: &conversation,
            ending: Ending::Answer,
            images: std::slice::from_ref(&picture),
        };
        let answer = self.answer(&request, &AnswerOptions::default(), &mut on_text)?;
        Ok(answer.text.trim().to_owned())
    }

    /// Answers to several questions, each about a picture of its own, as one batch.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn ask_batch<P: AsRef<Path>>(
        &self,
        questions: &[(P, &str)],
    ) -> Result<Vec<String>, ModelError> {
        let pictures = questions
            .iter()
            .map(|(picture, _)| self.open_image(picture.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let conversations: Vec<_> = questions
            .iter()
            .map(|(_, question)| {
                let mut conversation = self.conversation();
                conversation.push_images(1).push_user(*question);
                conversation
            })
            .collect();
        let requests: Vec<_> = conversations
            .iter()
            .zip(&pictures)
            .map(|(conversation, picture)| Request {
                conversation,
                ending: Ending::Answer,
                images: std::slice::from_ref(picture),
            })
            .collect();
        let answers = self.answer_batch(&requests, &AnswerOptions::default(), &mut |_, _| {})?;
        Ok(answers
            .iter()
            .map(|answer| answer.text.trim().to_owned())
            .collect())
    }

    /// Up to `n` questions that the model asks about a picture, drawn with the paper's settings.
    ///
    /// # Errors
    /// If the picture cannot be read, or the model was not trained to ask.
    pub fn questions(
        &self,
        picture: impl AsRef<Path>,
        n: usize,
    ) -> Result<Vec<Question>, ModelError> {
        let picture = self.open_image(picture.as_ref())?;
        let options = QuestionOptions::demo(self.template, n, 0);
        Ok(SelfQuestioner::new(self)?
            .ask(&picture, &options)?
            .questions)
    }
}

impl<B: Backend> Deref for Assistant<B> {
    type Target = sq_llava_model::Assistant<B>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
