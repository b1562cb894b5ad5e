//! A model with its tokenizer, image processor and conversation template: text and pictures in,
//! text out.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, backend::Backend};
use sq_llava_data::image::{ImageProcessor, ImageProcessorConfig, PreparedImage};
use sq_llava_data::{
    Conversation, Ending, IMAGE_TOKEN, Layout, StopMatcher, StreamDecoder, TemplateChoice,
    TextTokenizer,
};

use crate::error::ModelError;
use crate::generation::generate::{FinishReason, GenerateConfig, Generation};
use crate::generation::sampling::Sampling;
use crate::language::vocabulary::check_vocabulary;
use crate::origin::Origin;
use crate::sq_llava::{Sample, SqLlava};
use crate::weights::{LoadOptions, LoadReport, load_model};

/// A model with all that it takes to talk about pictures.
#[derive(Debug)]
pub struct Assistant<B: Backend> {
    /// The model.
    pub model: SqLlava<B>,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// Prepares pictures; `None` for a text-only model.
    pub processor: Option<ImageProcessor>,
    /// Layout of its conversations.
    pub template: Layout,
}

/// What to load beside the weights.
#[derive(Debug, Clone, Default)]
pub struct AssistantOptions {
    /// How the weights are loaded.
    pub load: LoadOptions,
    /// A template in place of the checkpoint's own.
    pub template: Option<TemplateChoice>,
    /// Folder of the tokenizer (and of the image processor, if it holds one), for weights that come
    /// without them.
    pub tokenizer: Option<PathBuf>,
}

/// How long and how freely to answer.
#[derive(Debug, Clone)]
pub struct AnswerOptions {
    /// Largest number of tokens.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Strings that end the answer, beside the template's own.
    pub stop: Vec<String>,
}

impl Default for AnswerOptions {
    /// Greedy, 1024 tokens, as LLaVA's evaluation scripts.
    fn default() -> Self {
        Self {
            max_new_tokens: 1024,
            sampling: Sampling::greedy(),
            stop: vec![],
        }
    }
}

/// A conversation to be continued, with its images.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The turns so far.
    pub conversation: &'a Conversation,
    /// Whether the model answers or asks.
    pub ending: Ending,
    /// One for each image of the conversation, in order, prepared for as many.
    pub images: &'a [PreparedImage],
}

/// What the model said.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Answer {
    /// Ids of the prompt; −200 for an image.
    pub input_ids: Vec<i64>,
    /// Ids of the answer, without the end token.
    pub output_ids: Vec<i64>,
    /// Text of the answer; bytes that make no character are replaced.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
}

impl<B: Backend> Assistant<B> {
    /// Loads a checkpoint directory with its tokenizer, image processor and template
    /// ([`SqLlavaConfig::layout`](crate::SqLlavaConfig::layout)).
    ///
    /// # Errors
    /// If weights, tokenizer or processor are missing, damaged, or do not fit together.
    pub fn load(
        dir: &Path,
        options: &AssistantOptions,
        device: &B::Device,
    ) -> Result<(Self, LoadReport), ModelError> {
        let mut loaded = load_model::<B>(dir, &options.load, device)?;
        let given = options.tokenizer.as_deref();
        let folder = given.or(loaded.files.tokenizer.as_deref()).unwrap_or(dir);
        let mut tokenizer = TextTokenizer::from_dir(folder)?;
        let config = &loaded.model.config;
        if tokenizer.eos_ids().is_empty() {
            tokenizer.set_eos_ids(&config.eos_token_ids);
        }
        let beside = given.filter(|folder| ImageProcessorConfig::is_in(folder));
        let processor = match (
            &config.vision,
            beside.or(loaded.files.preprocessor.as_deref()),
        ) {
            (None, _) => None,
            (Some(_), Some(folder)) => Some(ImageProcessor::new(config.image_processor(folder)?)?),
            (Some(_), None) if loaded.files.pictures.is_some() => {
                let pictures = loaded.files.pictures.take();
                pictures.map(ImageProcessor::new).transpose()?
            }
            (Some(_), None) => {
                return Err(ModelError::config(
                    dir.join("preprocessor_config.json"),
                    "not found, and the vision tower needs it; copy the one of the CLIP tower here",
                ));
            }
        };
        let template = config.layout(&tokenizer, folder, options.template)?;
        if let Some(processor) = &processor {
            // What is saved of this model says it too.
            loaded.model.config.image_aspect_ratio = Some(processor.config().aspect_name());
        }
        let assistant = Self::new(loaded.model, tokenizer, processor, template)?;
        Ok((assistant, loaded.report))
    }

    /// Puts the parts together and checks that they fit.
    ///
    /// # Errors
    /// If the tokenizer has more tokens than the model, lacks those of the template, or the
    /// processor makes pictures of another size, or over other tiles, than the model takes.
    pub fn new(
        model: SqLlava<B>,
        tokenizer: TextTokenizer,
        processor: Option<ImageProcessor>,
        template: impl Into<Layout>,
    ) -> Result<Self, ModelError> {
        let (mut model, template) = (model, template.into());
        if let Some(processor) = &processor {
            model.take_images_of(processor.input_size());
        }
        check_vocabulary(&tokenizer, model.language_model.vocabulary())?;
        if let Some(missing) = template
            .special_tokens()
            .iter()
            .find(|token| tokenizer.id(token).is_none())
        {
            return Err(ModelError::Argument(format!(
                "template {} needs the token {missing}, which this tokenizer lacks; choose another template",
                template.name()
            )));
        }
        if let (Some(processor), Some(vision)) = (&processor, &model.config.vision) {
            let side = vision.image_size as u32;
            if processor.input_size() != (side, side) {
                return Err(ModelError::Argument(format!(
                    "the image processor makes images of {:?}, the vision tower takes {side}×{side}",
                    processor.input_size()
                )));
            }
            if processor.config().tiling != model.config.anyres {
                return Err(ModelError::Argument(
                    "the image processor lays images over other tiles than the model does".into(),
                ));
            }
        }
        Ok(Self {
            model,
            tokenizer,
            processor,
            template,
        })
    }

    /// Reads and prepares the only picture of a conversation.
    ///
    /// # Errors
    /// If it cannot be read, or the model takes none.
    pub fn open_image(&self, path: &Path) -> Result<PreparedImage, ModelError> {
        self.open_one(path, 1)
    }

    /// Reads and prepares the pictures of one conversation: a model that takes pictures of any
    /// shape may prepare one of several differently from a single one.
    ///
    /// # Errors
    /// As [`Self::open_image`].
    pub fn open_images<P: AsRef<Path>>(
        &self,
        paths: &[P],
    ) -> Result<Vec<PreparedImage>, ModelError> {
        let pictures = paths.iter();
        pictures
            .map(|path| self.open_one(path.as_ref(), paths.len()))
            .collect()
    }

    /// One of `pictures` pictures of a conversation.
    fn open_one(&self, path: &Path, pictures: usize) -> Result<PreparedImage, ModelError> {
        let processor = self.processor.as_ref().ok_or(ModelError::NoVisionTower)?;
        Ok(processor.prepare(&processor.open(path)?, pictures))
    }

    /// A conversation in the model's template.
    pub fn conversation(&self) -> Conversation {
        Conversation::new(self.template.clone())
    }

    /// A conversation that asks this about one picture.
    pub fn about_a_picture(&self, question: impl Into<String>) -> Conversation {
        let mut conversation = self.conversation();
        conversation.push_images(1).push_user(question);
        conversation
    }

    /// Continues one conversation; `on_text` gets the text as it comes, never part of a character.
    ///
    /// # Errors
    /// If the conversation is malformed or too long, or its images do not match.
    pub fn answer(
        &self,
        request: &Request<'_>,
        options: &AnswerOptions,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Answer, ModelError> {
        let answers =
            self.answer_batch(std::slice::from_ref(request), options, &mut |_, text| {
                on_text(text);
            })?;
        answers
            .into_iter()
            .next()
            .ok_or_else(|| ModelError::Argument("nothing was generated".into()))
    }

    /// Continues several conversations as one batch; each answer is what it would be alone.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn answer_batch(
        &self,
        requests: &[Request<'_>],
        options: &AnswerOptions,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<Answer>, ModelError> {
        let Some(first) = requests.first() else {
            return Ok(vec![]);
        };
        if requests.iter().any(|r| r.ending != first.ending) {
            return Err(ModelError::Argument(
                "a batch either asks or answers".into(),
            ));
        }
        let inputs = requests
            .iter()
            .map(|r| Ok(r.conversation.encode_prompt(&self.tokenizer, r.ending)?))
            .collect::<Result<Vec<_>, ModelError>>()?;
        let features = self.image_features(requests)?;
        let samples: Vec<Sample<'_, B>> = inputs
            .iter()
            .zip(features)
            .map(|(ids, images)| Sample { ids, images })
            .collect();
        let config = self.generate_config(options, first.ending)?;
        let mut texts = self.texts(requests.len(), options);
        let mut failed = None;
        let generations = self.model.generate(&samples, &config, &mut |row, id| {
            texts[row].push(id, row, on_text, &mut failed)
        });
        let generations = generations.map_err(|error| self.found_in(error, requests))?;
        finish(texts, generations, inputs, failed, on_text)
    }

    /// Draws `n` continuations of one conversation; the prompt runs once.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn answer_n(
        &self,
        request: &Request<'_>,
        n: usize,
        options: &AnswerOptions,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<Answer>, ModelError> {
        let ids = request
            .conversation
            .encode_prompt(&self.tokenizer, request.ending)?;
        let images = self
            .image_features(std::slice::from_ref(request))?
            .remove(0);
        let prefix = self.model.prefix(&Sample { ids: &ids, images });
        let prefix = prefix.map_err(|e| self.found_in(e, std::slice::from_ref(request)))?;
        let config = self.generate_config(options, request.ending)?;
        let mut texts = self.texts(n, options);
        let mut failed = None;
        let generations = self
            .model
            .continue_prefix(&prefix, n, &config, &mut |row, id| {
                texts[row].push(id, row, on_text, &mut failed)
            })?;
        finish(texts, generations, vec![ids; n], failed, on_text)
    }

    /// What generation needs to know of tokenizer and template.
    ///
    /// # Errors
    /// If the tokenizer lacks a token of the template.
    pub(crate) fn generate_config(
        &self,
        options: &AnswerOptions,
        ending: Ending,
    ) -> Result<GenerateConfig, ModelError> {
        let mut stop_ids = self.template.stop_ids(&self.tokenizer, ending)?;
        stop_ids.extend(&self.model.config.eos_token_ids);
        let placeholders = [
            self.tokenizer.id(IMAGE_TOKEN),
            self.model.config.image_token_index,
        ];
        let placeholders = placeholders.into_iter().flatten();
        let rows = self.model.language_model.vocabulary() as i64;
        let holes = self.tokenizer.holes().take_while(|&id| id < rows);
        Ok(GenerateConfig {
            max_new_tokens: options.max_new_tokens,
            sampling: options.sampling.clone(),
            stop_ids,
            suppressed: placeholders.chain(holes).collect(),
            vocabulary: usize::try_from(self.tokenizer.id_end()).ok(),
        })
    }

    /// Image features of each request; images of all requests run through the tower together, one
    /// that several requests share once.
    fn image_features(
        &self,
        requests: &[Request<'_>],
    ) -> Result<Vec<Vec<Tensor<B, 2>>>, ModelError> {
        let mut images: Vec<&PreparedImage> = Vec::new();
        let mut places = Vec::with_capacity(requests.len());
        for request in requests {
            let mut own = Vec::with_capacity(request.images.len());
            for image in request.images {
                let known = images.iter().position(|&known| std::ptr::eq(known, image));
                own.push(known.unwrap_or(images.len()));
                if known.is_none() {
                    images.push(image);
                }
            }
            places.push(own);
        }
        let encoded = self.model.encode_prepared(&images)?;
        let features = |places: &Vec<usize>| places.iter().map(|&p| encoded[p].clone()).collect();
        Ok(places.iter().map(features).collect())
    }

    /// Names the part of the model that made image tokens which are not finite.
    fn found_in(&self, error: ModelError, requests: &[Request<'_>]) -> ModelError {
        let ModelError::NotFinite {
            sample,
            origin: Origin::ImageTokens,
            ..
        } = error
        else {
            return error;
        };
        let images = requests.get(sample).map_or(&[][..], |r| r.images);
        let images: Vec<&PreparedImage> = images.iter().collect();
        let pixels = self.model.prepared_pixels(&images);
        match pixels.and_then(|pixels| self.model.image_origin(pixels)) {
            Ok(Some(origin)) => self.model.not_finite(sample, origin),
            _ => error,
        }
    }

    fn texts(&self, n: usize, options: &AnswerOptions) -> Vec<TextStream<'_>> {
        let mut stops = self.template.stop_strings(&self.tokenizer);
        stops.extend(options.stop.iter().cloned());
        (0..n)
            .map(|_| TextStream {
                decoder: StreamDecoder::new(&self.tokenizer, true),
                matcher: StopMatcher::new(stops.clone()),
                text: String::new(),
            })
            .collect()
    }
}

/// The text of one answer as it grows.
struct TextStream<'a> {
    decoder: StreamDecoder<'a>,
    matcher: StopMatcher,
    text: String,
}

impl TextStream<'_> {
    fn push(
        &mut self,
        id: i64,
        row: usize,
        on_text: &mut dyn FnMut(usize, &str),
        failed: &mut Option<ModelError>,
    ) -> ControlFlow<()> {
        match self.decoder.push(id) {
            Ok(delta) => {
                let shown = self.matcher.push(&delta);
                self.show(&shown, row, on_text);
            }
            Err(error) => {
                *failed = Some(error.into());
                return ControlFlow::Break(());
            }
        }
        if self.matcher.stopped() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn show(&mut self, text: &str, row: usize, on_text: &mut dyn FnMut(usize, &str)) {
        if !text.is_empty() {
            self.text.push_str(text);
            on_text(row, text);
        }
    }
}

fn finish(
    texts: Vec<TextStream<'_>>,
    generations: Vec<Generation>,
    inputs: Vec<Vec<i64>>,
    failed: Option<ModelError>,
    on_text: &mut dyn FnMut(usize, &str),
) -> Result<Vec<Answer>, ModelError> {
    if let Some(error) = failed {
        return Err(error);
    }
    let rows = texts.into_iter().zip(generations).zip(inputs).enumerate();
    Ok(rows
        .map(|(row, ((mut stream, generation), input_ids))| {
            let rest = stream.decoder.finish();
            let mut shown = stream.matcher.push(&rest);
            shown.push_str(&stream.matcher.finish());
            stream.show(&shown, row, on_text);
            Answer {
                input_ids,
                output_ids: generation.ids,
                text: stream.text,
                finish: generation.finish,
            }
        })
        .collect())
}
