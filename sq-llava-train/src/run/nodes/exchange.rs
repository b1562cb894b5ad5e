//! One step's exchange.
//!
//! Gradients are cut into buckets in the order in which a backward pass finishes with them, and
//! every node sends its buckets in that order. A node whose backward pass goes layer by layer
//! (recompute) sends a bucket as soon as its layers are done, while the pass goes on below them; one
//! with a single graph, or with no batch at all, when the pass is over. Which it was makes no
//! difference to the others.

use std::sync::mpsc::Receiver;
use std::time::Instant;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;

use super::gradients::{self, Order, Trainable};
use super::{NodeStep, Nodes, StepId, StepNews, check};
use crate::error::TrainError;
use crate::step::report::StepReport;

/// A node's gradients on their way.
pub(crate) struct Exchange<'a, M> {
    nodes: &'a Nodes,
    trainable: Trainable<'a, M>,
    order: &'a Order,
    /// Gradients of the step's earlier batches.
    before: GradientsParams,
    /// What is to come back, a bucket each; the next one to send is behind them.
    sent: Vec<Receiver<Vec<f32>>>,
    /// The first thing that went wrong.
    failed: Option<TrainError>,
}

impl Nodes {
    /// The order in which a model's gradients are exchanged. `stages` as in [`Order::new`].
    pub(crate) fn order<B: AutodiffBackend, M: Module<B>>(
        &self,
        trainable: &Trainable<'_, M>,
        stages: &std::collections::HashMap<burn::module::ParamId, usize>,
    ) -> Order {
        Order::new(trainable, stages, self.bucket_values)
    }

    /// Begins a step's exchange with the gradients of the batches before the last.
    pub(crate) fn exchange<'a, M>(
        &'a self,
        trainable: Trainable<'a, M>,
        order: &'a Order,
        before: GradientsParams,
    ) -> Exchange<'a, M> {
        Exchange {
            nodes: self,
            trainable,
            order,
            before,
            sent: Vec::with_capacity(order.buckets()),
            failed: None,
        }
    }
}

impl<M> Exchange<'_, M> {
    /// Sends what is known after a stage of the last batch's backward pass; takes it out of
    /// `fresh`.
    pub(crate) fn known_after<B: AutodiffBackend>(
        &mut self,
        stage: usize,
        fresh: &mut GradientsParams,
    ) where
        M: Module<B>,
    {
        self.send_until(self.order.known_after(stage), fresh);
    }

    fn send_until<B: AutodiffBackend>(&mut self, end: usize, fresh: &mut GradientsParams)
    where
        M: Module<B>,
    {
        while self.failed.is_none() && self.sent.len() < end {
            let grads = [&mut self.before, &mut *fresh];
            match gradients::take(&self.trainable, self.order, self.sent.len(), grads) {
                Ok(values) => self.sent.push(self.nodes.world.sum(values)),
                Err(error) => self.failed = Some(error),
            }
        }
    }

    /// Sends the rest, which `mine` has, and waits for all. All nodes get the same, bit for bit.
    ///
    /// # Errors
    /// If a node does another step.
    pub(crate) fn finish<B: AutodiffBackend>(
        mut self,
        id: StepId,
        mine: NodeStep,
    ) -> Result<NodeStep, TrainError>
    where
        M: Module<B>,
    {
        let at = format!("at step {}", id.step + 1);
        let NodeStep {
            mut grads,
            report,
            stop,
        } = mine;
        let (early, start) = (self.sent.len(), Instant::now());
        self.send_until(self.order.buckets(), &mut grads);
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut sum = GradientsParams::new();
        let buckets = self.sent.len();
        for (bucket, result) in self.sent.into_iter().enumerate() {
            let values = self.nodes.wait(&at, &result)?;
            gradients::put(&self.trainable, self.order, bucket, &values, &mut sum);
        }
        let all = self.nodes.gather(&at, &StepNews::new(id, stop, &report))?;
        check(&all)?;
        tracing::debug!(
            "{at}: {early} of {buckets} buckets went during the backward pass; {:.3} s after it",
            start.elapsed().as_secs_f64()
        );
        let mut report = StepReport::default();
        for news in &all {
            report.merge(&news.report());
        }
        Ok(NodeStep {
            grads: sum,
            report,
            stop: all.iter().any(|news| news.stop),
        })
    }
}
