//! Data-parallel training: the batches of an optimizer step go to several seats in turn, which are
//! devices, or groups of the CPU's threads.
//!
//! Burn's `MultiDevicesTrainStep` sends the whole model to every device for every batch. Here each
//! seat keeps the frozen weights (groups of threads share them) and is sent only what trains, once a
//! step; the gradients come back to the first device, which takes the step. Batches are added up in
//! their own order, so the result does not depend on which seat is faster, nor on how many there are.
//!
//! burn-autodiff looks through all graphs behind each backward pass, and waits there for every other
//! that is under way. The loss has one for each chunk, so whoever was behind with it would wait for the
//! whole way back of the others. Seats therefore meet before it.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Device, DeviceId};
use burn::train::TrainOutput;
use rayon::ThreadPoolBuilder;
use sq_llava_model::kernels::blocks::is_native;

use crate::data::batch::MicroBatch;
use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::run::run_dir::RunDirectory;
use crate::step::groups::ParamGroups;
use crate::step::report::StepReport;
use crate::step::whole::TrainModel;

/// Where batches run.
#[derive(Debug, Clone)]
pub struct Seat<B: AutodiffBackend> {
    /// The device.
    pub(crate) device: B::Device,
    /// The threads that it has to itself, where several share the CPU.
    pub(crate) threads: Option<usize>,
}

impl<B: AutodiffBackend> Seat<B> {
    /// Groups of the CPU's threads.
    pub fn of_threads(device: &B::Device, groups: usize) -> Vec<Self> {
        let threads = rayon::current_num_threads();
        let seat = |group| Self {
            device: device.clone(),
            threads: Some((threads / groups + usize::from(group < threads % groups)).max(1)),
        };
        (0..groups).map(seat).collect()
    }
}

/// How many groups of threads there are by default: as many as there are threads for and batches of
/// these sizes can be cut into, up to [`Recipe::MOST_GROUPS`]; one where `B` is not the CPU.
pub fn groups_for<B: AutodiffBackend>(batch_sizes: &[usize]) -> usize {
    let most = match is_native::<B>() {
        true => rayon::current_num_threads().min(Recipe::MOST_GROUPS),
        false => 1,
    };
    let fits = |groups: &usize| batch_sizes.iter().all(|size| size.is_multiple_of(*groups));
    (1..=most).rev().find(fits).unwrap_or(1)
}

/// The recipe with `thread_groups` said: its own; that of the run `resumed`, where it goes on; else
/// [`groups_for`] its batches.
///
/// # Errors
/// If the run that goes on cannot be read.
pub(crate) fn in_groups<B: AutodiffBackend>(
    mut recipe: Recipe,
    resumed: Option<&Path>,
    has_nodes: bool,
) -> Result<Recipe, TrainError> {
    if recipe.thread_groups.is_some() {
        return Ok(recipe);
    }
    let groups = match resumed {
        // One from before there were groups has none.
        Some(run) => RunDirectory::asked(run)?.0.groups(),
        // Other machines may have other numbers of threads, and all cut batches alike.
        None if has_nodes || !recipe.devices.is_empty() => 1,
        None => {
            let sizes = recipe
                .stages
                .iter()
                .map(|&stage| recipe.stage(stage).batch_size);
            groups_for::<B>(&sizes.collect::<Vec<_>>())
        }
    };
    recipe.thread_groups = Some(groups);
    Ok(recipe)
}

/// The seats of a recipe: its devices, which are numbers of devices of the same kind as `main`; its
/// groups of threads, where `main` is the CPU; or `main` alone.
pub(crate) fn seats<B: AutodiffBackend>(main: &B::Device, recipe: &Recipe) -> Vec<Seat<B>> {
    let groups = recipe.groups();
    if groups > 1 && is_native::<B>() {
        return Seat::of_threads(main, groups);
    }
    let seat = |device| Seat {
        device,
        threads: None,
    };
    if recipe.devices.is_empty() {
        return vec![seat(main.clone())];
    }
    let kind = main.to_id().type_id;
    let device = |&number: &usize| {
        // Validated to fit.
        let index = u16::try_from(number).unwrap_or(u16::MAX);
        seat(B::Device::from_id(DeviceId::new(kind, index)))
    };
    recipe.devices.iter().map(device).collect()
}

enum Job {
    /// New values of what trains.
    Update(GradientsParams),
    /// A batch, and its place where the round meets before the way back.
    Step(Box<MicroBatch>, Place),
}

struct Worker {
    jobs: Sender<Job>,
    /// A channel for each: if the thread panics, this one closes.
    results: Receiver<TrainOutput<StepReport>>,
}

/// A thread for each seat, with a copy of the model that stays there.
pub struct DevicePool<B: AutodiffBackend> {
    workers: Vec<Worker>,
    main: B::Device,
    groups: Arc<ParamGroups>,
    /// The batches of the next round.
    round: Vec<MicroBatch>,
}

impl<B: AutodiffBackend> DevicePool<B> {
    /// Copies a model to the seats; on the first one's device the optimizer runs.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn new(
        seats: &[Seat<B>],
        model: &TrainModel<B>,
        groups: &Arc<ParamGroups>,
    ) -> Result<Self, TrainError> {
        let failed = |what: String| TrainError::Internal(format!("no thread for a device: {what}"));
        let start = |seat: &Seat<B>| {
            let own = |threads: usize| ThreadPoolBuilder::new().num_threads(threads).build();
            let own = seat.threads.map(own).transpose();
            let own = own.map_err(|e| failed(e.to_string()))?;
            let (jobs, inbox) = channel();
            let (outbox, results) = channel();
            let (device, model, groups) = (seat.device.clone(), model.clone(), groups.clone());
            let work = move || work::<B>(&device, model, &groups, &inbox, &outbox);
            std::thread::Builder::new()
                .name(format!("training on {:?}", seat.device))
                .spawn(move || match own {
                    Some(pool) => pool.install(work),
                    None => work(),
                })
                .map_err(|e| failed(e.to_string()))?;
            Ok(Worker { jobs, results })
        };
        Ok(Self {
            workers: seats.iter().map(start).collect::<Result<_, TrainError>>()?,
            main: seats[0].device.clone(),
            groups: groups.clone(),
            round: Vec::new(),
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

    /// Takes a batch. Where there is one for each seat, or the step is complete, all are computed and
    /// their results returned in their order, gradients on the first device.
    ///
    /// # Errors
    /// If the thread of a seat has ended.
    pub fn step(
        &mut self,
        batch: MicroBatch,
        model: &TrainModel<B>,
    ) -> Result<Vec<TrainOutput<StepReport>>, TrainError> {
        let last = batch.is_last();
        self.round.push(batch);
        if !last && self.round.len() < self.workers.len() {
            return Ok(Vec::new());
        }
        let round = std::mem::take(&mut self.round);
        let workers = &self.workers[..round.len()];
        let places = Meeting::places(round.len());
        for ((worker, batch), place) in workers.iter().zip(round).zip(places) {
            worker.send(Job::Step(Box::new(batch), place))?;
        }
        let mut outputs = Vec::with_capacity(workers.len());
        for worker in workers {
            let mut output = worker.results.recv().map_err(|_| gone())?;
            output.grads = output.grads.to_device::<B, _>(&self.main, model);
            outputs.push(output);
        }
        Ok(outputs)
    }
}

/// Where the seats of a round wait for one another.
#[derive(Debug)]
struct Meeting {
    /// Places that are still to come.
    missing: Mutex<usize>,
    all_here: Condvar,
}

/// A seat's place in a meeting. One that is dropped is not waited for.
#[derive(Debug)]
struct Place {
    meeting: Arc<Meeting>,
    here: bool,
}

impl Meeting {
    fn places(count: usize) -> Vec<Place> {
        let meeting = Arc::new(Self {
            missing: Mutex::new(count),
            all_here: Condvar::new(),
        });
        let place = |_| Place {
            meeting: meeting.clone(),
            here: false,
        };
        (0..count).map(place).collect()
    }

    fn count_down(&self) -> usize {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        *missing -= 1;
        self.all_here.notify_all();
        *missing
    }
}

impl Place {
    /// Waits until all others have come or gone.
    fn come(&mut self) {
        if std::mem::replace(&mut self.here, true) || self.meeting.count_down() == 0 {
            return;
        }
        let missing = self.meeting.missing.lock();
        let missing = missing.unwrap_or_else(PoisonError::into_inner);
        drop(
            self.meeting
                .all_here
                .wait_while(missing, |missing| *missing > 0),
        );
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.here {
            self.meeting.count_down();
        }
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
            Job::Step(batch, mut place) => {
                let output = model.learn(&batch, &mut || place.come(), &mut |_, _| ());
                drop(place);
                if outbox.send(output).is_err() {
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
            .field("seats", &self.workers.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn all_are_waited_for_but_who_is_gone() {
        let mut places = Meeting::places(3);
        let last = places.pop().expect("three");
        let (met, has_met) = channel();
        let start = |mut place: Place| {
            let met = met.clone();
            std::thread::spawn(move || {
                place.come();
                met.send(()).expect("the test waits");
            })
        };
        let threads: Vec<_> = places.into_iter().map(start).collect();
        assert!(has_met.recv_timeout(Duration::from_millis(50)).is_err());
        // As that of a job which nobody takes.
        drop(last);
        for _ in 0..2 {
            has_met.recv_timeout(Duration::from_secs(60)).expect("met");
        }
        for thread in threads {
            thread.join().expect("no panic");
        }
    }
}
