//! The shortest way to a model: load it, ask it about a picture, let it ask.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use sq_llava_data::Ending;
use sq_llava_model::weights::{LoadOptions, Narrow};
use sq_llava_model::{
    AnswerOptions, AssistantOptions, ModelError, Question, QuestionOptions, Request, SelfQuestioner,
};

use crate::hub::{Hub, Part};

/// A model with its tokenizer, picture processor and conversation template. It dereferences to
/// [`sq_llava_model::Assistant`], which has several turns, options for the answer and token ids:
///
/// ```
/// use sq_llava::{AnswerOptions, Assistant, Ending, Request};
///
/// # std::env::set_current_dir("..")?;
/// let assistant = Assistant::load("examples/assets/tiny-llava")?;
/// let photo = assistant.open_image("golden/data/e_image/tiny_13x9.png".as_ref())?;
/// let mut conversation = assistant.conversation();
/// conversation.push_images(1).push_user("What is this?");
/// let options = AnswerOptions {
///     max_new_tokens: 8,
///     ..AnswerOptions::default()
/// };
/// for next in ["Why?", "Where?"] {
///     let request = Request {
///         conversation: &conversation,
///         ending: Ending::Answer,
///         images: std::slice::from_ref(&photo),
///     };
///     let answer = assistant.answer(&request, &options, &mut |text| print!("{text}"))?;
///     assert!(answer.output_ids.len() <= 8);
///     conversation.push_assistant(answer.text).push_user(next);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Assistant<
    #[cfg(feature = "cpu")] B: Backend = burn_flex::Flex,
    #[cfg(not(feature = "cpu"))] B: Backend,
>(sq_llava_model::Assistant<B>);

#[cfg(feature = "cpu")]
impl Assistant {
    /// Loads a checkpoint or run directory, or a GGUF file, on the CPU; a path, or a name on the
    /// Hugging Face hub (`org/name`, `org/name@revision`; see [`Hub`]). Weights of towers
    /// and language model that are stored in 16 bits stay so ([`Narrow::Fastest`]), others are in
    /// f32.
    ///
    /// # Errors
    /// If there is no such model, or weights, tokenizer or processor are missing, damaged, or do
    /// not fit together.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let options = AssistantOptions {
            load: LoadOptions {
                narrow: Narrow::Fastest,
                ..LoadOptions::default()
            },
            ..AssistantOptions::default()
        };
        Self::load_on(path, &options, &burn_flex::FlexDevice)
    }
}

impl<B: Backend> Assistant<B> {
    /// Loads a model on any backend, in another dtype, on another base. Base, tower and tokenizer
    /// may be names too.
    ///
    /// ```
    /// use burn_flex::{Flex, FlexDevice};
    /// use sq_llava::{Assistant, AssistantOptions, LoadOptions};
    ///
    /// # std::env::set_current_dir("..")?;
    /// let options = AssistantOptions {
    ///     load: LoadOptions {
    ///         dtype: burn::tensor::FloatDType::F16,
    ///         ..LoadOptions::default()
    ///     },
    ///     ..AssistantOptions::default()
    /// };
    /// let model = "examples/assets/tiny-llava";
    /// let assistant = Assistant::<Flex>::load_on(model, &options, &FlexDevice)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    /// ```no_run
    /// let assistant = sq_llava::Assistant::load("llava-v1.5-7b")?;
    /// println!("{}", assistant.ask("photo.jpg", "What is this?")?);
    /// # Ok::<(), sq_llava::ModelError>(())
    /// ```
    ///
    /// # Errors
    /// If the picture cannot be read or the question is too long.
    pub fn ask(&self, picture: impl AsRef<Path>, question: &str) -> Result<String, ModelError> {
        self.ask_streaming(picture, question, |_| {})
    }

    /// As [`Self::ask`]; `on_text` gets the text as it comes, never part of a character.
    ///
    /// ```no_run
    /// let assistant = sq_llava::Assistant::load("llava-v1.5-7b")?;
    /// assistant.ask_streaming("photo.jpg", "What is this?", |text| print!("{text}"))?;
    /// # Ok::<(), sq_llava::ModelError>(())
    /// ```
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
        let conversation = self.about_a_picture(question);
        let request = Request {
            conversation: &conversation,
            ending: Ending::Answer,
            images: std::slice::from_ref(&picture),
        };
        let answer = self.answer(&request, &AnswerOptions::default(), &mut on_text)?;
        Ok(answer.text.trim().to_owned())
    }

    /// Answers to several questions, each about a picture of its own, as one batch; each is what it
    /// would be alone.
    ///
    /// ```no_run
    /// let assistant = sq_llava::Assistant::load("llava-v1.5-7b")?;
    /// let questions = [("cat.jpg", "What is this?"), ("street.jpg", "How many cars are there?")];
    /// for answer in assistant.ask_batch(&questions)? {
    ///     println!("{answer}");
    /// }
    /// # Ok::<(), sq_llava::ModelError>(())
    /// ```
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
            .map(|(_, question)| self.about_a_picture(*question))
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
    /// [`SelfQuestioner`] takes others, and answers them too.
    ///
    /// ```no_run
    /// let assistant = sq_llava::Assistant::load("sqllava-run")?;
    /// for question in assistant.questions("photo.jpg", 5)? {
    ///     println!("{} (drawn {} times)", question.text, question.count);
    /// }
    /// # Ok::<(), sq_llava::ModelError>(())
    /// ```
    ///
    /// # Errors
    /// If the picture cannot be read, or the model was not trained to ask.
    pub fn questions(
        &self,
        picture: impl AsRef<Path>,
        n: usize,
    ) -> Result<Vec<Question>, ModelError> {
        let picture = self.open_image(picture.as_ref())?;
        let options = QuestionOptions::demo(&self.template, n, 0);
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
