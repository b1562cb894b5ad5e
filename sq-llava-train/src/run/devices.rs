//! Data-parallel training: the batches of an optimizer step go to several devices in turn.
//!
//! Burn's `MultiDevicesTrainStep` sends the whole model to every device for every batch. Here each
//! device keeps the frozen weights and is sent only what trains, once a step; the gradients come
//! back to the first device, which takes the step. Batches are added up in their own order, so the
//! result does not depend on which device is faster, nor on how many there are.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Device, DeviceId};
use burn::train::{TrainOutput, TrainStep};

use crate::data::batch::MicroBatch;
use crate::error::TrainError;
use crate::step::groups::ParamGroups;
use crate::step::report::StepReport;
use crate::step::whole::TrainModel;

/// The devices of a recipe: numbers of devices of the same kind as `main`; `main` alone if none
/// are given.
pub(crate) fn devices_of<B: AutodiffBackend>(
    main: &B::Device,
    numbers: &[usize],
) -> Vec<B::Device> {
    if numbers.is_empty() {
        return vec![main.clone()];
    }
    let kind = main.to_id().type_id;
    let device = |&number: &usize| {
        // Validated to fit.
        let index = u16::try_from(number).unwrap_or(u16::MAX);
        B::Device::from_id(DeviceId::new(kind, index))
    };
    numbers.iter().map(device).collect()
}

enum Job {
    /// New values of what trains.
    Update(GradientsParams),
    Step(Box<MicroBatch>),
}

struct Worker {
    jobs: Sender<Job>,
    /// A channel for each: if the thread panics, this one closes.
    results: Receiver<TrainOutput<StepReport>>,
}

/// A thread for each device, with a copy of the model that stays there.
pub struct DevicePool<B: AutodiffBackend> {
    workers: Vec<Worker>,
    main: B::Device,
    groups: Arc<ParamGroups>,
    /// Batches under way.
    busy: usize,
}

impl<B: AutodiffBackend> DevicePool<B> {
    /// Copies a model to the devices; the first one is where the optimizer runs.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn new(
        devices: &[B::Device],
        model: &TrainModel<B>,
        groups: &Arc<ParamGroups>,
    ) -> Result<Self, TrainError> {
        let start = |device: &B::Device| {
            let (jobs, inbox) = channel();
            let (outbox, results) = channel();
            let (device, model, groups) = (device.clone(), model.clone(), groups.clone());
            std::thread::Builder::new()
                .name(format!("training on {device:?}"))
                .spawn(move || work::<B>(&device, model, &groups, &inbox, &outbox))
                .map_err(|e| TrainError::Internal(format!("no thread for a device: {e}")))?;
            Ok(Worker { jobs, results })
        };
        Ok(Self {
            workers: devices
                .iter()
                .map(start)
                .collect::<Result<_, TrainError>>()?,
            main: devices[0].clone(),
            groups: groups.clone(),
            busy: 0,
        })
    }

    /// Sends what trains to every device; to be called after each optimizer step.
    ///
    /// # Errors
    /// If the thread of one has ended.
    pub fn update(&self, model: &TrainModel<B>) -> Result<(), TrainError> {
        for worker in &self.workers {
            let mut collect = Collect::<B> {
                groups: &self.groups,
                values: GradientsParams::new(),
                backend: std::marker::PhantomData,
            };
            model.visit(&mut collect);
            worker.send(Job::Update(collect.values))?;
        }
        Ok(())
    }

    /// Gives a batch to the next device. Where all are busy, or the step is complete, waits for
    /// the results of the batches given so far and returns them in their order, gradients on the
    /// first device.
    ///
    /// # Errors
    /// If the thread of a device has ended.
    pub fn step(
        &mut self,
        batch: MicroBatch,
        model: &TrainModel<B>,
    ) -> Result<Vec<TrainOutput<StepReport>>, TrainError> {
        let last = batch.is_last();
        self.workers[self.busy].send(Job::Step(Box::new(batch)))?;
        self.busy += 1;
        if !last && self.busy < self.workers.len() {
            return Ok(Vec::new());
        }
        let mut outputs = Vec::with_capacity(self.busy);
        for worker in &self.workers[..std::mem::take(&mut self.busy)] {
            let mut output = worker.results.recv().map_err(|_| gone())?;
            output.grads = output.grads.to_device::<B, _>(&self.main, model);
            outputs.push(output);
        }
        Ok(outputs)
    }
}

impl Worker {
    fn send(&self, job: Job) -> Result<(), TrainError> {
        self.jobs.send(job).map_err(|_| gone())
    }
}

fn gone() -> TrainError {
    TrainError::Internal("the thread of a device ended".into())
}

fn work<B: AutodiffBackend>(
    device: &B::Device,
    model: TrainModel<B>,
    groups: &ParamGroups,
    inbox: &Receiver<Job>,
    outbox: &Sender<TrainOutput<StepReport>>,
) {
    let mut model = model.fork(device);
    for job in inbox {
        match job {
            Job::Update(values) => {
                model = model.map(&mut Replace {
                    device,
                    groups,
                    values,
                });
            }
            Job::Step(batch) => {
                if outbox.send(TrainStep::step(&model, *batch)).is_err() {
                    return;
                }
            }
        }
    }
}

/// The values of what trains, by parameter.
struct Collect<'a, B: AutodiffBackend> {
    groups: &'a ParamGroups,
    values: GradientsParams,
    backend: std::marker::PhantomData<B>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Collect<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if self.groups.group(param.id).is_some() {
            self.values.register(param.id, param.val().inner());
        }
    }
}

/// Puts them into a model on another device.
struct Replace<'a, B: AutodiffBackend> {
    device: &'a B::Device,
    groups: &'a ParamGroups,
    values: GradientsParams,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Replace<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if self.groups.group(param.id).is_none() {
            return param;
        }
        let Some(value) = self.values.remove::<B::InnerBackend, D>(param.id) else {
            return param;
        };
        let (id, _, mapper) = param.consume();
        let value = Tensor::from_inner(value.to_device(self.device)).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}

impl<B: AutodiffBackend> std::fmt::Debug for DevicePool<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevicePool")
            .field("devices", &self.workers.len())
            .finish_non_exhaustive()
    }
}
