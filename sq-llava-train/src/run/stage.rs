//! What each stage trains: stage 1 the prototypes and the projector with its `image_newline`, stage
//! 2 also adapters on both towers and the rows of new tokens. Everything else is frozen.

use std::sync::Arc;

use burn::tensor::backend::{AutodiffBackend, Backend};
use sq_llava_data::{Layout, Template, TextTokenizer};
use sq_llava_model::SqLlava;
use sq_llava_model::kernels::blocks::is_native;
use sq_llava_model::language::llama::NewTokens;
use sq_llava_model::ops::linear::Linear;

use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::report::resident::machine_bytes;
use crate::step::groups::{ParamGroup, ParamGroups, Trains};
use crate::step::memory;

/// A model ready for a stage.
#[derive(Debug)]
pub struct StageModel<B: AutodiffBackend> {
    /// The model, its trainable parameters f32 leaves, all others frozen.
    pub model: SqLlava<B>,
    /// The trainable parameters.
    pub groups: Arc<ParamGroups>,
    /// The parts that train.
    pub trains: Trains,
    /// How its conversations are written.
    pub layout: Layout,
}

impl<B: AutodiffBackend> StageModel<B> {
    /// Adds what the stage needs (adapters, rows of new tokens) and freezes the rest. The
    /// template's tokens are added to the tokenizer.
    ///
    /// # Errors
    /// If the template's tokens do not get ids in a row, the checkpoint has no template where its own
    /// is wanted, or what would train is more than the machine's memory.
    pub fn prepare(
        mut model: SqLlava<B>,
        tokenizer: &mut TextTokenizer,
        recipe: &Recipe,
        stage: u8,
    ) -> Result<Self, TrainError> {
        let settings = recipe.stage(stage);
        let device = model.device();
        let aspect = recipe.image_aspect_ratio(stage);
        let tiling = recipe.model.tiling(aspect, &model.config);
        model.set_tiling(tiling, recipe.seed ^ 2);
        if is_native::<B>() {
            memory::check_trainable(&model.config, recipe, stage, machine_bytes())?;
        }
        B::seed(&device, recipe.seed ^ 0x5EED);
        let layout = lay_out(&mut model, tokenizer, recipe, stage)?;
        if stage == 2 {
            model = add_adapters(model, recipe);
        }
        let before = model.config.image_aspect_ratio.replace(aspect.to_owned());
        if let Some(before) = before.filter(|before| before != aspect) {
            tracing::warn!(
                "stage {stage}: pictures are prepared by \"{aspect}\", as the recipe says; the model \
                 that it starts from saw them by \"{before}\""
            );
        }
        let trains = Trains {
            llm: stage == 2 && settings.lr_llm > 0.0 && adapted(model.language_model.linears()),
            vision: stage == 2
                && settings.lr_vision > 0.0
                && model
                    .vision_tower
                    .as_ref()
                    .is_some_and(|tower| adapted(tower.linears())),
            projector: settings.lr_projector > 0.0 && !settings.freeze_projector,
            new_tokens: settings.lr_projector > 0.0 && model.language_model.new_tokens.is_some(),
        };
        let (model, groups) = ParamGroups::mark(model, trains);
        if groups.iter().next().is_none() {
            return Err(TrainError::Recipe(format!(
                "stage{stage}: the learning rates and adapters leave nothing to train"
            )));
        }
        Ok(Self {
            model,
            groups: Arc::new(groups),
            trains,
            layout,
        })
    }

    /// Trainable values of each group.
    pub fn counts(&self) -> [usize; 3] {
        ParamGroup::ALL.map(|group| self.groups.count(group))
    }
}

/// The stage's layout of conversations, its tokens in tokenizer and model. The configuration says
/// what it is.
fn lay_out<B: AutodiffBackend>(
    model: &mut SqLlava<B>,
    tokenizer: &mut TextTokenizer,
    recipe: &Recipe,
    stage: u8,
) -> Result<Layout, TrainError> {
    let choice = recipe.stage(stage).template;
    let role = recipe.asking_role(stage);
    let tokens = choice.special_tokens(role.as_ref());
    let failed = |error| TrainError::Recipe(format!("stage{stage}.template: {error}"));
    if !tokens.is_empty() {
        add_tokens(model, tokenizer, &tokens, recipe.seed).map_err(|error| match role {
            None => error,
            Some(_) => TrainError::Recipe(format!("{error}; asking.role=\"text\" needs no token")),
        })?;
    }
    let layout = Layout::of(choice, tokenizer, role).map_err(failed)?;
    tracing::info!("stage {stage}: conversation template {choice}");
    if let Layout::BuiltIn(template) = &layout
        // Captions of stage 1 are no conversations.
        && *template != Template::Plain
        && let Some(own) = tokenizer.chat_template()
        && template.difference(own, tokenizer).is_some()
    {
        tracing::info!(
            "stage {stage}: the LLM brings a chat_template of its own, which is not used: \
             stage{stage}.template=\"checkpoint\" trains in it"
        );
    }
    model.config.conversation = Some(layout.name().to_owned());
    model.config.asking_role = layout.asking().cloned();
    Ok(layout)
}

fn add_tokens<B: AutodiffBackend>(
    model: &mut SqLlava<B>,
    tokenizer: &mut TextTokenizer,
    tokens: &[&str],
    seed: u64,
) -> Result<(), TrainError> {
    let known = tokens.iter().all(|token| tokenizer.id(token).is_some());
    let ids = tokenizer.add_special_tokens(tokens)?;
    let start = usize::try_from(ids[0]).unwrap_or_default();
    if ids
        .iter()
        .enumerate()
        .any(|(i, &id)| id != (start + i) as i64)
    {
        return Err(TrainError::Recipe(format!(
            "the tokenizer has some of the tokens {} already, with the ids {ids:?}, which are not in a row",
            tokens.join(" ")
        )));
    }
    let llama = &model.language_model;
    if start > llama.vocabulary() {
        // Their rows follow the model's: an id between would have none.
        return Err(TrainError::Recipe(format!(
            "the tokens {} get ids from {start}, but the model has only {} rows: the tokenizer's `<image>` has none; take it out of the tokenizer, or give the model its row",
            tokens.join(" "),
            llama.vocabulary()
        )));
    }
    match &llama.new_tokens {
        // A run's, which may have more of them.
        Some(new) if new.start <= start && start + tokens.len() <= new.start + new.rows() => {
            return Ok(());
        }
        Some(new) => {
            return Err(TrainError::Recipe(format!(
                "the run's role tokens start at id {}, the tokenizer's at {start}",
                new.start
            )));
        }
        None => {
            // A model that was trained with them and merged goes on with their rows.
            let learnt = known.then(|| NewTokens::learnt(llama, start, tokens.len()));
            let new = learnt
                .flatten()
                .unwrap_or_else(|| NewTokens::init(llama, start, tokens.len(), seed));
            model.language_model.new_tokens = Some(new);
        }
    }
    model.config.new_tokens_start = Some(start);
    Ok(())
}

/// Fresh adapters where there are none yet.
fn add_adapters<B: AutodiffBackend>(mut model: SqLlava<B>, recipe: &Recipe) -> SqLlava<B> {
    if let Some(lora) = recipe.lora.llm.config() {
        match adapted(model.language_model.linears()) {
            true => tracing::info!("the LLM's adapters go on from those that were loaded"),
            false => model = model.with_llm_lora(&lora),
        }
    }
    if let Some(lora) = recipe.lora.vision.config() {
        match model
            .vision_tower
            .as_ref()
            .is_some_and(|tower| adapted(tower.linears()))
        {
            true => tracing::info!("the vision adapters go on from those that were loaded"),
            false => model = model.with_vision_lora(&lora),
        }
    }
    model
}

/// Whether any of a tower's linears has an adapter.
fn adapted<'a, B: Backend>(mut linears: impl Iterator<Item = (String, &'a Linear<B>)>) -> bool {
    linears.any(|(_, linear)| linear.lora.is_some())
}
