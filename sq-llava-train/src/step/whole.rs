//! One forward and backward pass: Burn's `TrainStep` for SQ-LLaVA.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{Module, ParamId, list_param_ids};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use sq_llava_model::language::llama::LayerContext;
use sq_llava_model::ops::cat::cat;
use sq_llava_model::ops::draws::{key, with_keys, with_packed_keys};
use sq_llava_model::{ModelError, Sample, SqLlava};

use crate::data::batch::{MicroBatch, Targets, TrainSample, row_tokens};
use crate::data::features::FeatureCache;
use crate::error::TrainError;
use crate::failure::Failure;
use crate::recipe::{GradientCheckpointing, Objective};
use crate::step::groups::Trains;
use crate::step::loss::{LossSettings, host};
use crate::step::masks::{MaskLoss, masked_pictures};
use crate::step::pictures::{Pictures, SeenPicture};
use crate::step::recompute::{Blocks, LayersDone, LlamaContext, collect};
use crate::step::report::StepReport;
use crate::step::tower::{self, TowerPass};
use crate::step::words::{BatchWords, tells_apart};

/// What a step needs beside the weights.
#[derive(Debug, Clone)]
pub struct StepContext {
    /// What is learnt of the text.
    pub objective: Objective,
    /// Weights and chunks of the loss.
    pub loss: LossSettings,
    /// Weight of the loss of masks beside that of the text.
    pub mask_weight: f64,
    /// The parts that train.
    pub trains: Trains,
    /// Features of a frozen tower.
    pub features: Arc<FeatureCache>,
    /// Which activations are computed again on the way back.
    pub checkpointing: GradientCheckpointing,
    /// Seed of the adapters' dropout and of redrawn centres.
    pub seed: u64,
    /// Where an error is left.
    pub failure: Failure,
}

/// The model as the Learner trains it.
#[derive(Module, Debug)]
pub struct TrainModel<B: Backend> {
    /// The weights.
    pub model: SqLlava<B>,
    /// The rest.
    #[module(skip)]
    pub context: StepContext,
}

/// The batch's rows as the first layer sees them.
struct Sequences<B: Backend> {
    /// Padded at the right to the longest. `[rows, tokens, hidden]`
    hidden: Tensor<B, 3>,
    /// Of the samples in each row.
    lengths: Vec<Vec<usize>>,
    context: LayerContext<B>,
    targets: Targets,
}

/// What the LLM sees of the batch's pictures.
struct Projected<B: Backend> {
    /// Its image tokens by picture, each `[tokens, hidden]`.
    images: HashMap<Arc<str>, Tensor<B, 2>>,
    masks: MaskLoss<B>,
}

/// What the vision tower made of the batch's pictures.
struct Seen<B: AutodiffBackend> {
    /// `[tiles, tokens, d]`
    features: Pictures<B, 3>,
    /// With recompute: the tower's pass.
    tower: Option<TowerPass<B>>,
}

impl<B: Backend> TrainModel<B> {
    /// Embeds a batch. `images` are the LLM's image tokens by picture.
    fn sequences(
        &self,
        batch: &MicroBatch,
        images: &HashMap<Arc<str>, Tensor<B, 2>>,
    ) -> Result<Sequences<B>, TrainError> {
        let samples: Vec<Sample<'_, B>> = batch
            .samples
            .iter()
            .map(|sample| Sample {
                ids: &sample.ids,
                images: sample
                    .pictures
                    .iter()
                    .filter_map(|p| images.get(&p.key).cloned())
                    .collect(),
            })
            .collect();
        let embedded = self.model.embed(&samples).map_err(|error| match error {
            // The model counts samples in the batch; the user knows them by id.
            ModelError::ImageCount {
                sample,
                images,
                tokens,
            } => TrainError::Sample {
                sample: batch
                    .samples
                    .get(sample)
                    .map_or_else(String::new, |s| s.id.to_string()),
                reason: format!("{images} image(s) for {tokens} image token(s) in the text"),
            },
            other => other.into(),
        })?;
        let lengths = batch.lengths();
        let hidden = lay_out(embedded, &lengths);
        let (llama, device) = (&self.model.language_model, hidden.device());
        let tokens = hidden.dims()[1];
        let context = match batch.rows {
            Some(_) => llama.packed_context(&lengths, tokens, &device),
            // Padding is at the right: no token that counts sees it.
            None => llama.context(&vec![0; lengths.len()], 0, tokens, &device),
        };
        Ok(Sequences {
            hidden,
            context,
            lengths,
            targets: batch.targets(),
        })
    }

    /// The LLM's image tokens of features, by picture, and the loss of the pictures' masks.
    fn project(
        &self,
        batch: &MicroBatch,
        pictures: Pictures<B, 3>,
    ) -> Result<Projected<B>, TrainError> {
        let Some(features) = pictures.values else {
            return Ok(Projected {
                images: HashMap::new(),
                masks: MaskLoss::default(),
            });
        };
        let (projected, assignment) = self.model.project_assigned(features);
        let packings = pictures.pictures.iter().map(|picture| &picture.packing);
        let packed = self.model.pack_each(projected, packings)?;
        let masked = masked_pictures(batch, &pictures.pictures);
        let keys = pictures.pictures.iter().map(|picture| picture.key.clone());
        let masks = match (masked.is_empty(), assignment) {
            (true, _) => MaskLoss::default(),
            (false, Some(assignment)) => {
                let weight = self.context.mask_weight / batch.step_masked.max(1) as f64;
                MaskLoss::of(assignment, &masked, weight)
            }
            (false, None) => {
                return Err(TrainError::Recipe(
                    "model.masks guides prototypes, and the model has none".into(),
                ));
            }
        };
        Ok(Projected {
            images: keys.zip(packed).collect(),
            masks,
        })
    }

    /// The loss of the batch's words in what its pictures became, if there are samples to tell apart.
    fn words(
        &self,
        batch: &MicroBatch,
        images: &HashMap<Arc<str>, Tensor<B, 2>>,
    ) -> (Option<Tensor<B, 1>>, StepReport) {
        let mut report = self.report(batch);
        let llama = &self.model.language_model;
        let words = BatchWords::of(llama, batch, images, &self.context.loss);
        let total = words.map(|words| {
            (report.sums, report.by_source) = (words.sums, words.by_source);
            words.total
        });
        (total, report)
    }

    fn report(&self, batch: &MicroBatch) -> StepReport {
        StepReport {
            samples: batch.samples.len(),
            tokens: batch.samples.iter().map(TrainSample::len).sum(),
            truncated: batch.truncated,
            skipped: batch.skipped,
            ..StepReport::default()
        }
    }
}

impl<B: AutodiffBackend> TrainModel<B> {
    /// One forward and backward pass. Calls `before_way_back` once between the two, unless there is no
    /// way back. Tells `done` as the way back goes from layer to layer of the
    /// LLM: with recompute alone, since a single graph gives all gradients at its end.
    pub(crate) fn learn(
        &self,
        batch: &MicroBatch,
        before_way_back: &mut dyn FnMut(),
        done: &mut LayersDone<'_>,
    ) -> TrainOutput<StepReport> {
        let (grads, item) = self
            .train_step(batch, before_way_back, done)
            .unwrap_or_else(|error| {
                self.context.failure.set(error);
                (GradientsParams::new(), StepReport::default())
            });
        TrainOutput { grads, item }
    }

    /// After how many layers on the way back the gradient of each of their parameters is known.
    pub(crate) fn known_after(&self) -> HashMap<ParamId, usize> {
        let layers = self.model.language_model.model.layers.iter().rev();
        let known = layers.zip(1..).flat_map(|(layer, done)| {
            let ids = list_param_ids::<_, B>(layer).into_iter();
            ids.map(move |id| (id, done))
        });
        known.collect()
    }

    fn train_step(
        &self,
        batch: &MicroBatch,
        before_way_back: &mut dyn FnMut(),
        done: &mut LayersDone<'_>,
    ) -> Result<(GradientsParams, StepReport), TrainError> {
        let StepContext { loss, trains, .. } = &self.context;
        let words = self.context.objective == Objective::Words;
        if batch.targets().ids.is_empty() || (words && !tells_apart(batch)) {
            // A graph that no backward pass consumes would stay, and cost later steps gradients.
            return Ok((GradientsParams::new(), self.report(batch)));
        }
        let Seen {
            features,
            tower: tower_pass,
        } = self.see(batch)?;
        let tile_keys = self.tile_keys(batch, &features.pictures);
        let Projected { images, masks } = with_keys(&[self.key(batch, "centers")], || {
            self.project(batch, features)
        })?;
        if words {
            let (total, mut report) = self.words(batch, &images);
            report.masks = masks.sums;
            let Some(total) = total else {
                return Ok((GradientsParams::new(), report));
            };
            let total = masks.total.into_iter().fold(total, |sum, more| sum + more);
            before_way_back();
            let (mut found, mut grads) = (total.backward(), GradientsParams::new());
            collect(&self.model, &mut found, &mut grads);
            return Ok((grads, report));
        }
        let image_side = trains.projector || trains.vision;
        let below = trains.new_tokens || (image_side && !images.is_empty());
        let sequences = self.sequences(batch, &images)?;
        drop(images);
        let Sequences {
            hidden,
            lengths,
            context,
            targets,
        } = sequences;
        let mut report = self.report(batch);
        report.masks = masks.sums;

        let llama = &self.model.language_model;
        let blocks = Blocks::new(&llama.model.layers, below, self.context.checkpointing);
        let shape = hidden.dims();
        let context = LlamaContext::new(context);
        let keys: Vec<u64> = batch
            .samples
            .iter()
            .map(|sample| self.key(batch, &sample.id))
            .collect();
        let pass = with_packed_keys(&keys, &lengths, || blocks.forward(hidden, &context));
        let pass = pass.with_loss_below(masks.total);
        let states = at_rows(pass.output.clone(), &targets);
        if !blocks.trains() {
            let states = Tensor::from_inner(states);
            (report.sums, report.by_source, _) = loss.evaluate(llama, states, &targets);
            return Ok((GradientsParams::new(), report));
        }
        let loss = loss.joint_loss(llama, states, &targets, batch.step_tokens);
        (report.sums, report.by_source) = (loss.sums, loss.by_source);
        let mut grads = loss.head;
        let Some(gradient) = loss.gradient else {
            return Ok((grads, report));
        };
        let gradient = spread_rows(gradient, &targets, shape);
        before_way_back();
        let found = with_packed_keys(&keys, &lengths, || {
            blocks.backward(pass, gradient, &context, &self.model, &mut grads, done)
        });
        if let (Some(found), Some(pass)) = (found, tower_pass) {
            let (model, way) = (&self.model, self.context.checkpointing);
            tower::go_back(model, pass, found, &tile_keys, way, &mut grads)?;
        }
        Ok((grads, report))
    }

    /// Key of the draws of something in the batch's step.
    fn key(&self, batch: &MicroBatch, name: &str) -> u64 {
        key(self.context.seed, batch.step, name)
    }

    /// Keys of the draws of each tile of pictures: by their names, so that a picture in a shard draws
    /// what it would as a file.
    fn tile_keys(&self, batch: &MicroBatch, pictures: &[SeenPicture]) -> Vec<u64> {
        let keys = pictures.iter().flat_map(|picture| {
            (0..picture.packing.tiles()).map(|tile| match tile {
                0 => self.key(batch, &picture.name),
                _ => self.key(batch, &format!("{} tile {tile}", picture.name)),
            })
        });
        keys.collect()
    }

    /// Features of the batch's pictures.
    fn see(&self, batch: &MicroBatch) -> Result<Seen<B>, TrainError> {
        if !self.context.trains.vision {
            // The tower runs without a graph, once per picture.
            let features = self.frozen_features(batch, |pixels| {
                let pixels = self.model.pixels(pixels)?.inner();
                tower::see_frozen(&self.model, pixels).map(host)
            })?;
            return Ok(Seen {
                features,
                tower: None,
            });
        }
        let Pictures { pictures, values } = self.pixels(batch)?;
        let mut seen = Seen {
            features: Pictures {
                pictures,
                values: None,
            },
            tower: None,
        };
        if let Some(pixels) = values {
            let keys = self.tile_keys(batch, &seen.features.pictures);
            let way = self.context.checkpointing;
            let (features, pass) = tower::see(&self.model, pixels, &keys, way)?;
            seen.features.values = Some(features);
            seen.tower = pass;
        }
        Ok(seen)
    }
}

impl<B: AutodiffBackend> TrainStep for TrainModel<B> {
    type Input = MicroBatch;
    type Output = StepReport;

    fn step(&self, batch: MicroBatch) -> TrainOutput<StepReport> {
        self.learn(&batch, &mut || (), &mut |_, _| ())
    }
}

impl<B: Backend> InferenceStep for TrainModel<B> {
    type Input = MicroBatch;
    type Output = StepReport;

    fn step(&self, batch: MicroBatch) -> StepReport {
        let run = || -> Result<StepReport, TrainError> {
            let see = |pixels| self.model.vision_features(pixels);
            let features = if self.context.trains.vision {
                let Pictures { pictures, values } = self.pixels(&batch)?;
                let values = values.map(see).transpose()?;
                Pictures { pictures, values }
            } else {
                // The loader leaves out the pixels of pictures whose features are known.
                self.frozen_features(&batch, |pixels| see(self.model.pixels(pixels)?).map(host))?
            };
            let Projected { images, masks } = self.project(&batch, features)?;
            if self.context.objective == Objective::Words {
                let (_, mut report) = self.words(&batch, &images);
                report.masks = masks.sums;
                return Ok(report);
            }
            let sequences = self.sequences(&batch, &images)?;
            let (llama, targets) = (&self.model.language_model, &sequences.targets);
            let hidden = llama.forward_at(sequences.hidden, &sequences.context);
            let mut report = self.report(&batch);
            report.masks = masks.sums;
            let states = at_rows(hidden, targets);
            let loss = &self.context.loss;
            (report.sums, report.by_source, report.answers) = loss.evaluate(llama, states, targets);
            Ok(report)
        };
        run().unwrap_or_else(|error| {
            self.context.failure.set(error);
            StepReport::default()
        })
    }
}

/// Samples one behind the other in rows, each padded at the right with zeros to the longest.
/// `[tokens, hidden]` each → `[rows, tokens, hidden]`
fn lay_out<B: Backend>(samples: Vec<Tensor<B, 2>>, lengths: &[Vec<usize>]) -> Tensor<B, 3> {
    let tokens = row_tokens(lengths);
    let mut samples = samples.into_iter();
    let rows = lengths.iter().map(|lengths| {
        let mut row: Vec<_> = samples.by_ref().take(lengths.len()).collect();
        let missing = tokens - lengths.iter().sum::<usize>();
        if missing > 0 {
            let width = row[0].dims()[1];
            let options = (&row[0].device(), row[0].dtype());
            row.push(Tensor::zeros([missing, width], options));
        }
        cat(row, 0).unsqueeze::<3>()
    });
    let rows = rows.collect();
    cat(rows, 0)
}

/// States at the places that predict something. `[rows, tokens, hidden]` → `[n, hidden]`
fn at_rows<B: Backend>(states: Tensor<B, 3>, targets: &Targets) -> Tensor<B, 2> {
    let [samples, tokens, width] = states.dims();
    let index = rows::<B>(targets, &states.device());
    states.reshape([samples * tokens, width]).select(0, index)
}

/// The reverse: zeros elsewhere. `[n, hidden]` → `[samples, tokens, hidden]`
fn spread_rows<B: Backend>(
    values: Tensor<B, 2>,
    targets: &Targets,
    shape @ [samples, tokens, width]: [usize; 3],
) -> Tensor<B, 3> {
    let index = rows::<B>(targets, &values.device());
    let options = (&values.device(), values.dtype());
    Tensor::<B, 2>::zeros([samples * tokens, width], options)
        .select_assign(0, index, values, IndexingUpdateOp::Add)
        .reshape(shape)
}

fn rows<B: Backend>(targets: &Targets, device: &B::Device) -> Tensor<B, 1, Int> {
    Tensor::from_data(TensorData::from(&targets.rows[..]), device)
}
