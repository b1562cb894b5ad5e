//! A step's last batch: with other nodes its gradients are sent while its backward pass goes on.

use std::sync::Arc;

use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;

use super::{Loop, StepStrategy};
use crate::data::batch::MicroBatch;
use crate::error::TrainError;
use crate::run::nodes::{NodeStep, Order, StepId, Trainable};
use crate::step::whole::TrainModel;

impl<B: AutodiffBackend> StepStrategy<B> {
    /// How gradients are exchanged; `None` without other nodes.
    pub(super) fn order(&self, model: &TrainModel<B>) -> Option<Arc<Order>> {
        let nodes = self.nodes.as_ref()?;
        let order = nodes.order::<B, _>(&self.trainable(model), &model.known_after());
        Some(Arc::new(order))
    }

    /// The step's last batch. Returns the step's gradients; with other nodes also whether any of
    /// them was asked to stop.
    pub(super) fn learn_last(
        &self,
        state: &mut Loop<'_, B>,
        batch: MicroBatch,
        id: StepId,
    ) -> Result<(GradientsParams, Option<bool>), TrainError> {
        let (Some(nodes), Some(order)) = (&self.nodes, state.order.clone()) else {
            self.learn(state, batch)?;
            return Ok((state.grads.grads(), None));
        };
        // Other threads train, or there is nothing to train on: no way back to send from.
        let batch = match state.pool.is_none() && !batch.is_idle() {
            true => Some(batch),
            false => {
                self.learn(state, batch)?;
                None
            }
        };
        let model = state.learner.model();
        let mut exchange = nodes.exchange(self.trainable(&model), &order, state.grads.grads());
        let mut grads = GradientsParams::new();
        if let Some(batch) = batch {
            let mut done = |layers: usize, grads: &mut GradientsParams| {
                exchange.known_after::<B>(layers, grads);
            };
            let output = model.learn(&batch, &mut || (), &mut done);
            self.check()?;
            state.report.merge(&output.item);
            grads = output.grads;
        }
        let mine = NodeStep {
            grads,
            report: std::mem::take(&mut state.report),
            stop: self.wishes_to_stop(state),
        };
        let all = exchange.finish::<B>(id, mine)?;
        state.report = all.report;
        Ok((all.grads, Some(all.stop)))
    }

    fn trainable<'a>(&'a self, model: &'a TrainModel<B>) -> Trainable<'a, TrainModel<B>> {
        Trainable {
            model,
            groups: &self.groups,
        }
    }
}
