//! A whole run: load, prepare each stage, train it through Burn's Learner, save.

mod dry_run;
mod stage;

pub use dry_run::{DryStage, dry_run};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::backend::AutodiffBackend;
use sq_llava_data::TextTokenizer;
use sq_llava_data::image::ImageProcessor;
use sq_llava_model::SqLlava;
use sq_llava_model::weights::RunOrigin;

use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::report::loss_log::LossLog;
use crate::report::tensorboard;
use crate::run::base::{Base, TrainPaths};
use crate::run::devices::in_groups;
use crate::run::later::StageSize;
use crate::run::nodes::{self, Nodes};
use crate::run::precision::check_dtype;
use crate::run::reporting::last_page;
use crate::run::resume::{Checkpoint, Resume, find};
use crate::run::run_dir::{RunDirectory, RunFiles};
use crate::run::sampling::check_named;
use crate::run::seen::as_seen;
use crate::run::state::{RunState, Sources, StageOutcome};
use crate::run::stop::StopSignal;
use crate::run::validation::{StageSplit, open_splits};
use crate::step::report::LoggedStep;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ui {
    /// Burn's dashboard on a terminal, lines otherwise.
    #[default]
    Auto,
    /// Lines.
    Lines,
    /// Nothing.
    Quiet,
}

/// How a run is run; what it trains is the recipe's.
#[derive(Debug, Clone, Default)]
pub struct TrainOptions {
    /// How progress is shown.
    pub ui: Ui,
    /// Go on with the run in the directory instead of beginning one.
    pub resume: Option<Resume>,
    /// The wish to stop: the step is finished and a checkpoint saved.
    pub stop: StopSignal,
    /// The other processes that train the same model.
    pub nodes: Option<Arc<Nodes>>,
}

impl From<Ui> for TrainOptions {
    fn from(ui: Ui) -> Self {
        Self {
            ui,
            ..Self::default()
        }
    }
}

/// What a run did.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutcome {
    /// The run directory.
    pub run: PathBuf,
    /// Its stages.
    pub stages: Vec<StageOutcome>,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// The checkpoint that a stopped run resumes from.
    pub checkpoint: Option<PathBuf>,
}

/// Trains as a recipe says and writes a run directory that loads on the same base. With
/// [`TrainOptions::resume`] the run in the directory goes on: on the CPU its parameters become
/// those of a run that was never stopped, bit for bit.
///
/// # Errors
/// If the recipe, a file, the data or the run directory cannot be used, or the loss or a gradient
/// stops being a number; with `resume`, also if the recipe, the data or a model differs from the
/// run's, or its newest checkpoint is torn; with `nodes`, also if they are not to do the same. What
/// was saved before stays. After an error the other nodes wait: call [`Nodes::abort`], which does
/// nothing where all of them have the same error and have parted.
pub fn train<B: AutodiffBackend>(
    recipe: &Recipe,
    paths: &TrainPaths,
    device: &B::Device,
    options: impl Into<TrainOptions>,
) -> Result<TrainOutcome, TrainError> {
    let mut options = options.into();
    if let Some(nodes) = &options.nodes {
        // Their screens are one, and none of them is a terminal's.
        options.ui = match (nodes.rank(), options.ui) {
            (0, Ui::Auto) => Ui::Lines,
            (0, ui) => ui,
            _ => Ui::Quiet,
        };
    }
    let recipe = with_paths(recipe, paths)?;
    recipe.validate()?;
    let recipe = as_seen(recipe, paths)?;
    let resumed = options.resume.as_ref().map(|_| &*paths.out);
    let recipe = in_groups::<B>(recipe, resumed, options.nodes.is_some())?;
    check_dtype::<B>(&recipe, device)?;
    check_named(&recipe)?;
    let splits = open_splits(&recipe)?;
    let mut sources = Sources::of(paths)?;
    for split in &splits {
        sources = split.sums(&recipe, sources)?;
    }
    let request = RunRequest {
        recipe: &recipe,
        paths,
        options: &options,
        sources: &sources,
        nodes: options.nodes.as_ref(),
    };
    let outcome = request.train::<B>(device, splits);
    if let Some(nodes) = &options.nodes
        && matches!(outcome, Ok(_) | Err(TrainError::NodesDiffer(_)))
    {
        nodes.leave();
    }
    outcome
}

/// A run as it was asked for: the recipe has all paths in their places.
#[derive(Clone, Copy)]
struct RunRequest<'a> {
    recipe: &'a Recipe,
    paths: &'a TrainPaths,
    options: &'a TrainOptions,
    sources: &'a Sources,
    /// The other processes that train.
    nodes: Option<&'a Arc<Nodes>>,
}

/// How a run begins.
enum Begin {
    /// Not at all: the run in the directory is over.
    Finished(RunState),
    /// With its first step, or from a checkpoint.
    At {
        run: RunDirectory,
        from: Option<Checkpoint>,
    },
}

impl RunRequest<'_> {
    fn train<B: AutodiffBackend>(
        &self,
        device: &B::Device,
        splits: Vec<StageSplit>,
    ) -> Result<TrainOutcome, TrainError> {
        let Self { recipe, paths, .. } = *self;
        let resume = match self.nodes {
            None => self.options.resume.clone(),
            Some(nodes) => {
                let resume = self.options.resume.as_ref();
                nodes::agree(nodes, recipe, self.sources, paths, resume)?
            }
        };
        let (run, from) = match self.begin(resume.as_ref())? {
            Begin::At { run, from } => (run, from),
            Begin::Finished(state) => {
                tracing::info!("the run in {} is finished", paths.out.display());
                return Ok(TrainOutcome {
                    run: paths.out.clone(),
                    stages: state.done,
                    interrupted: false,
                    checkpoint: None,
                });
            }
        };
        let base = match &from {
            Some(checkpoint) => Base::<B>::resume(recipe, paths, &checkpoint.path, device)?,
            None => Base::<B>::load(recipe, paths, device)?,
        };
        if resume.is_some() {
            rewind_logs(&run, from.as_ref())?;
        }
        let trainer = Trainer {
            request: *self,
            run: &run,
            tokenizer: base.tokenizer,
            processor: Arc::new(base.processor),
            sizes: Vec::new(),
            done: Vec::new(),
        };
        let outcome = trainer.run(base.model, splits, from);
        let (state, stages) = match &outcome {
            Ok(outcome) if outcome.interrupted => ("stopped".into(), &outcome.stages[..]),
            Ok(outcome) => ("finished".into(), &outcome.stages[..]),
            Err(error) => (format!("ended by an error: {error}"), &[][..]),
        };
        let page = last_page(run.path(), state, stages);
        let outcome = outcome?;
        page.map(|()| outcome)
    }

    /// Makes the run directory, or opens it and finds where the run resumes.
    fn begin(&self, resume: Option<&Resume>) -> Result<Begin, TrainError> {
        let Self { recipe, paths, .. } = *self;
        let Some(resume) = resume else {
            return Ok(Begin::At {
                run: RunDirectory::create(&paths.out, recipe, paths)?,
                from: None,
            });
        };
        let point = find(resume, recipe, &paths.out, self.sources)?;
        let from = match (point.finished, point.from) {
            (true, Some(end)) => return Ok(Begin::Finished(end.state)),
            (_, from) => from,
        };
        let run = RunDirectory::open(&paths.out, recipe)?;
        for torn in &point.torn {
            tracing::warn!("{} is torn and goes", torn.display());
            run.remove(torn)?;
        }
        Ok(Begin::At { run, from })
    }
}

/// Takes back what was logged after the checkpoint that a run resumes from.
fn rewind_logs(run: &RunDirectory, from: Option<&Checkpoint>) -> Result<(), TrainError> {
    let last = from.map(|Checkpoint { state, .. }| LoggedStep {
        stage: state.stage,
        step: state.progress.step,
    });
    LossLog::rewind(run.path(), last)?;
    tensorboard::rewind(run.path(), last)?;
    match from {
        Some(from) => tracing::info!("the run goes on from {}", from.path.display()),
        None => tracing::info!("the run left no checkpoint: it begins anew"),
    }
    Ok(())
}

/// The recipe with the paths of the command line in their places.
fn with_paths(recipe: &Recipe, paths: &TrainPaths) -> Result<Recipe, TrainError> {
    let mut recipe = recipe.clone();
    if let Some(data) = &paths.data {
        match recipe.stages[..] {
            [1] => recipe.stage1.data = Some(data.clone()),
            [2] => recipe.stage2.data = Some(data.clone()),
            _ => {
                return Err(TrainError::Recipe(
                    "--data fits one stage, but two run: set stage1.data and stage2.data, or stages=[1] or [2]"
                        .into(),
                ));
            }
        }
    }
    for stage in [&mut recipe.stage1, &mut recipe.stage2] {
        if stage.images.is_none() {
            stage.images.clone_from(&paths.images);
        }
    }
    if paths.projector.is_some() {
        recipe.init_from.clone_from(&paths.projector);
    }
    Ok(recipe)
}

/// A run on its way.
struct Trainer<'a> {
    request: RunRequest<'a>,
    run: &'a RunDirectory,
    tokenizer: TextTokenizer,
    processor: Arc<ImageProcessor>,
    /// The data of the stage at hand and of those behind it.
    sizes: Vec<StageSize>,
    /// Stages that are over.
    done: Vec<StageOutcome>,
}

impl Trainer<'_> {
    fn run<B: AutodiffBackend>(
        mut self,
        mut model: SqLlava<B>,
        splits: Vec<StageSplit>,
        mut from: Option<Checkpoint>,
    ) -> Result<TrainOutcome, TrainError> {
        if let Some(from) = &from {
            self.done.clone_from(&from.state.done);
        }
        let last = splits.len().saturating_sub(1);
        let sizes: Vec<StageSize> = splits.iter().map(StageSize::of).collect();
        let mut checkpoint = None;
        for (index, split) in splits.into_iter().enumerate() {
            let stage = split.stage;
            if self.done.iter().any(|outcome| outcome.stage == stage) {
                continue;
            }
            let start = from.take_if(|from| from.state.stage == stage);
            let stop = self.request.options.stop.is_set();
            let stop = match self.request.nodes {
                None => stop,
                Some(nodes) => nodes.any("between two stages", stop)?,
            };
            if stop {
                return Ok(self.outcome(true, checkpoint));
            }
            self.sizes = sizes[index..].to_vec();
            let finished = self.stage(model, split, start)?;
            model = finished.model.model;
            if finished.stopped.is_some() {
                return Ok(self.outcome(true, finished.stopped));
            }
            let state = RunState::new(stage, finished.progress, &self.done, self.request.sources);
            let more = |directory: &Path| state.write(directory);
            if index == last {
                self.run.finish(&model, &self.files(), more)?;
            } else {
                let name = format!("stage{stage}");
                checkpoint = Some(self.run.save(&name, &model, &self.files(), more)?);
            }
        }
        Ok(self.outcome(false, None))
    }

    fn outcome(self, interrupted: bool, checkpoint: Option<PathBuf>) -> TrainOutcome {
        TrainOutcome {
            run: self.run.path().to_path_buf(),
            stages: self.done,
            interrupted,
            checkpoint,
        }
    }

    fn files(&self) -> RunFiles {
        let TrainPaths { llm, vision, .. } = self.request.paths;
        RunFiles {
            tokenizer: self.tokenizer.clone(),
            processor: self.processor.config().clone(),
            origin: RunOrigin {
                base: Some(llm.display().to_string()),
                vision: vision.as_ref().map(|path| path.display().to_string()),
            },
        }
    }
}
