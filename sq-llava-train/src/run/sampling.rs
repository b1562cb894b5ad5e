//! Shows the model pictures while it trains, to see what it asks and answers.
//!
//! It is shown them without a graph and outside any scope of draws, and what it says is drawn by a
//! generator of its own: training goes on as if it had not been asked.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use sq_llava_data::foreign::guarded;
use sq_llava_data::image::{ImageProcessor, PreparedImage, RgbImage};
use sq_llava_data::{
    Conversation, Ending, Layout, LlavaSample, Template, TextTokenizer, conversation_of,
};
use sq_llava_model::{
    AnswerOptions, Assistant, ModelError, QuestionOptions, Request, SelfQuestioner, SqLlava,
};

use crate::data::dataset::StageData;
use crate::error::TrainError;
use crate::recipe::{Recipe, SamplesRecipe};
use crate::report::samples::{SampleLine, ShownPicture};

/// Samples that are looked at for each that is wanted: data may have few pictures.
const TRIES: usize = 200;

/// Pictures with a question each, chosen once for a stage.
#[derive(Debug)]
pub(crate) struct Samples {
    stage: u8,
    /// Show them every this many steps.
    every: usize,
    max_new_tokens: usize,
    seed: u64,
    layout: Layout,
    tokenizer: Arc<TextTokenizer>,
    processor: ImageProcessor,
    shown: Vec<Shown>,
}

/// A picture with its question.
#[derive(Debug)]
struct Shown {
    prepared: PreparedImage,
    picture: ShownPicture,
    /// Up to the question.
    conversation: Conversation,
    reference: Option<String>,
}

impl Samples {
    /// Chooses the pictures of a stage from `data` and prepares them; `None` where none are wanted,
    /// or the data have none.
    ///
    /// # Errors
    /// If the recipe names a picture that cannot be used.
    pub fn choose(
        recipe: &Recipe,
        stage: u8,
        data: &StageData,
        layout: &Layout,
    ) -> Result<Option<Self>, TrainError> {
        let wanted = &recipe.report.samples;
        if wanted.every == 0 {
            return Ok(None);
        }
        let shown = match wanted.images.is_empty() {
            true => drawn(wanted, recipe.seed, stage, data, layout)?,
            false => named(recipe, stage, data, layout)?,
        };
        if shown.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            stage,
            every: wanted.every,
            max_new_tokens: wanted.max_new_tokens,
            seed: recipe.seed,
            layout: layout.clone(),
            tokenizer: data.tokenizer.clone(),
            processor: (*data.processor).clone(),
            shown,
        }))
    }

    /// Whether they are shown after a step.
    pub fn due(&self, step: usize, is_last: bool) -> bool {
        step.is_multiple_of(self.every) || is_last
    }

    /// The pictures.
    pub fn pictures(&self) -> impl Iterator<Item = &ShownPicture> {
        self.shown.iter().map(|shown| &shown.picture)
    }

    /// What a model says about them after a step.
    ///
    /// # Errors
    /// If it computes what is not a number, or a question is too long for it.
    pub fn ask<B: Backend>(
        &self,
        model: SqLlava<B>,
        step: usize,
    ) -> Result<Vec<(SampleLine, &ShownPicture)>, ModelError> {
        let tokenizer = (*self.tokenizer).clone();
        let processor = Some(self.processor.clone());
        let assistant = Assistant::new(model, tokenizer, processor, self.layout.clone())?;
        let requests: Vec<Request<'_>> = self
            .shown
            .iter()
            .map(|shown| Request {
                conversation: &shown.conversation,
                ending: Ending::Answer,
                images: std::slice::from_ref(&shown.prepared),
            })
            .collect();
        let options = AnswerOptions {
            max_new_tokens: self.max_new_tokens,
            ..AnswerOptions::default()
        };
        let answers = assistant.answer_batch(&requests, &options, &mut |_, _| {})?;
        let mut said = Vec::with_capacity(self.shown.len());
        for (shown, answer) in self.shown.iter().zip(answers) {
            // Captions are asked for by the picture alone.
            let plain = matches!(self.layout, Layout::BuiltIn(Template::Plain));
            let question = shown.conversation.turns.first().filter(|_| !plain);
            let question = question.map(|turn| &*turn.text);
            let own = self.own(&assistant, &shown.prepared)?;
            let (asked, own_answer) = own.map_or((None, None), |(q, a)| (Some(q), a));
            let line = SampleLine {
                stage: self.stage,
                step,
                file: shown.picture.file.clone(),
                picture: shown.picture.name.clone(),
                question: question.unwrap_or_default().to_owned(),
                answer: answer.text.trim().to_owned(),
                reference: shown.reference.clone(),
                asked,
                own_answer,
            };
            said.push((line, &shown.picture));
        }
        Ok(said)
    }

    /// The model's own question about a picture, and its answer.
    fn own<B: Backend>(
        &self,
        assistant: &Assistant<B>,
        picture: &PreparedImage,
    ) -> Result<Option<(String, Option<String>)>, ModelError> {
        if !self.layout.asks() {
            return Ok(None);
        }
        let options = QuestionOptions {
            max_new_tokens: self.max_new_tokens,
            max_answer_tokens: self.max_new_tokens,
            answer: true,
            ..QuestionOptions::demo(&self.layout, 1, self.seed)
        };
        let mut asked = SelfQuestioner::new(assistant)?.ask(picture, &options)?;
        // An empty question is none.
        Ok(asked.questions.pop().map(|q| (q.text, q.answer)))
    }
}

/// Looks whether the pictures that a recipe names are there, before anything long begins.
///
/// # Errors
/// If one of them is not.
pub(crate) fn check_named(recipe: &Recipe) -> Result<(), TrainError> {
    let wanted = &recipe.report.samples;
    for &stage in recipe.stages.iter().filter(|_| wanted.every > 0) {
        let folder = recipe.stage(stage).images.clone().unwrap_or_default();
        let paths = wanted.images.iter().map(|name| folder.join(name));
        if let Some(missing) = paths.into_iter().find(|path| !path.is_file()) {
            return Err(TrainError::Recipe(format!(
                "report.samples.images: there is no {} for stage {stage}",
                missing.display()
            )));
        }
    }
    Ok(())
}

/// Samples of the data with one picture.
fn drawn(
    wanted: &SamplesRecipe,
    seed: u64,
    stage: u8,
    data: &StageData,
    layout: &Layout,
) -> Result<Vec<Shown>, TrainError> {
    let mut order: Vec<usize> = (0..data.data.len()).collect();
    // A word of its own keeps this draw apart from the others.
    let mut words = [0u8; 32];
    words[..8].copy_from_slice(&seed.to_le_bytes());
    words[24..].copy_from_slice(b"showcase");
    let mut generator = rand_chacha::ChaCha8Rng::from_seed(words);
    let tries = wanted.count * TRIES;
    let (order, _) = order.partial_shuffle(&mut generator, tries);
    let mut shown = Vec::new();
    for &mut index in order {
        if shown.len() == wanted.count {
            break;
        }
        let sample = match data.data.get(index) {
            Err(error) if error.is_damage() => continue,
            read => read?,
        };
        let [name] = &sample.images[..] else {
            continue;
        };
        let (conversation, reference) = question_of(&sample, layout)?;
        let picture = data.data.picture(index, 0, name);
        let open = || picture.and_then(|picture| picture.open(&data.processor));
        let picture = match guarded(open) {
            Ok(opened) => opened.map_err(TrainError::from),
            Err(panic) => {
                tracing::warn!("a sample to show: {name}: {panic}");
                continue;
            }
        };
        let one = picture.and_then(|picture| {
            show(
                (stage, shown.len()),
                name,
                &picture,
                data,
                conversation,
                reference,
            )
        });
        match one {
            Ok(one) => shown.push(one),
            // The loader deals with it when its turn comes.
            Err(TrainError::Data(error)) => tracing::warn!("a sample to show: {error}"),
            Err(error) => return Err(error),
        }
    }
    if shown.is_empty() {
        tracing::warn!(
            "stage {stage}: no sample with one picture was found to show; report.samples.images names some"
        );
    }
    Ok(shown)
}

/// The pictures that the recipe names, to be described.
fn named(
    recipe: &Recipe,
    stage: u8,
    data: &StageData,
    layout: &Layout,
) -> Result<Vec<Shown>, TrainError> {
    let folder = recipe.stage(stage).images.clone().unwrap_or_default();
    let each = recipe
        .report
        .samples
        .images
        .iter()
        .enumerate()
        .map(|(number, path)| {
            let mut conversation = Conversation::new(layout.clone());
            conversation.push_images(1);
            conversation.push_user(QuestionOptions::DESCRIBE);
            let name = path.display().to_string();
            let picture = data.processor.open(&folder.join(path));
            let shown = picture.map_err(TrainError::from);
            let at = (stage, number);
            let shown =
                shown.and_then(|picture| show(at, &name, &picture, data, conversation, None));
            shown.map_err(|e| TrainError::Recipe(format!("report.samples.images: {e}")))
        });
    each.collect()
}

/// The first question of a sample, and the answer of the data.
fn question_of(
    sample: &LlavaSample,
    layout: &Layout,
) -> Result<(Conversation, Option<String>), TrainError> {
    let mut conversation = conversation_of(sample, layout.clone(), None, &[])?;
    let reference = conversation.turns.get(1).map(|turn| turn.text.clone());
    conversation.turns.truncate(1);
    Ok((conversation, reference))
}

fn show(
    (stage, number): (u8, usize),
    name: &str,
    picture: &RgbImage,
    data: &StageData,
    conversation: Conversation,
    reference: Option<String>,
) -> Result<Shown, TrainError> {
    Ok(Shown {
        prepared: data.processor.prepare(picture, 1),
        picture: ShownPicture::new(stage, number, name, picture)?,
        conversation,
        reference,
    })
}
