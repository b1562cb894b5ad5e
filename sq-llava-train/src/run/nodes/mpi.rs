//! The world of MPI.
//!
//! One thread initialises MPI, makes every call of it and finalises it (level
//! `MPI_THREAD_FUNNELED`). An exchange goes on in that thread while the rank computes: Open MPI's
//! collectives advance only inside calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::request::{Request, Scope, scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use mpi::{Count, Threading};

use super::world::World;
use crate::error::TrainError;

/// How long a call is tried again and again before the thread sleeps between tries: the other
/// ranks may still compute, with every core.
const EAGER: Duration = Duration::from_millis(10);

/// How long it sleeps.
const PAUSE: Duration = Duration::from_micros(50);

enum Job {
    Sum(Vec<f32>, Sender<Vec<f32>>),
    Gather(Vec<u8>, Sender<Vec<Vec<u8>>>),
    Leave(Sender<()>),
    /// Only to look at the flag.
    Abort,
}

/// The ranks that `mpirun` or `srun` has started.
pub(super) struct MpiWorld {
    rank: usize,
    count: usize,
    jobs: Sender<Job>,
    abort: Arc<AtomicBool>,
}

impl MpiWorld {
    /// Initialises MPI.
    ///
    /// # Errors
    /// If it cannot be used from one thread among others.
    pub fn start() -> Result<Self, TrainError> {
        let fail = |reason: &str| TrainError::Ranks(reason.to_owned());
        let (jobs, inbox) = channel();
        let (outbox, started) = channel();
        let abort = Arc::new(AtomicBool::new(false));
        let flag = abort.clone();
        std::thread::Builder::new()
            .name("MPI".into())
            .spawn(move || {
                let Some((universe, level)) = mpi::initialize_with_threading(Threading::Funneled)
                else {
                    return;
                };
                let world = universe.world();
                let place = (world.rank(), world.size(), level);
                let calls = Calls { world, abort: flag };
                match outbox.send(place).ok().and_then(|()| calls.work(&inbox)) {
                    Some(left) => {
                        // Finalises.
                        drop(universe);
                        let _ = left.send(());
                    }
                    // Where this rank alone ends, a finalisation would wait for the others.
                    None => std::mem::forget(universe),
                }
            })
            .map_err(|e| TrainError::Internal(format!("no thread for MPI: {e}")))?;
        let (rank, count, level) = started
            .recv()
            .map_err(|_| fail("MPI could not be initialised"))?;
        if level < Threading::Funneled {
            return Err(fail("this MPI cannot be used from a program with threads"));
        }
        let number = |number: i32| usize::try_from(number).unwrap_or(0);
        Ok(Self {
            rank: number(rank),
            count: number(count),
            jobs,
            abort,
        })
    }

    /// A closed channel stands for a thread that has ended.
    fn ask<T>(&self, job: impl FnOnce(Sender<T>) -> Job) -> Receiver<T> {
        let (outbox, result) = channel();
        let _ = self.jobs.send(job(outbox));
        result
    }
}

impl World for MpiWorld {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn sum(&self, values: Vec<f32>) -> Receiver<Vec<f32>> {
        self.ask(|outbox| Job::Sum(values, outbox))
    }

    fn gather(&self, text: Vec<u8>) -> Receiver<Vec<Vec<u8>>> {
        self.ask(|outbox| Job::Gather(text, outbox))
    }

    fn leave(&self) {
        // The other side closes at once where there is nothing left to leave.
        let _ = self.ask(Job::Leave).recv();
    }

    fn abort(&self) {
        self.abort.store(true, Ordering::Relaxed);
        let _ = self.jobs.send(Job::Abort);
    }
}

/// What the thread calls.
struct Calls {
    world: SimpleCommunicator,
    abort: Arc<AtomicBool>,
}

impl Calls {
    /// Does one job after the other, until the world is to be left. Where a result is no longer
    /// wanted, the others still wait for this rank's part.
    fn work(&self, jobs: &Receiver<Job>) -> Option<Sender<()>> {
        for job in jobs {
            match job {
                Job::Sum(values, outbox) => drop(outbox.send(self.sum(&values))),
                Job::Gather(text, outbox) => drop(outbox.send(self.gather(&text))),
                Job::Leave(outbox) => {
                    self.finish(self.world.immediate_barrier());
                    return Some(outbox);
                }
                Job::Abort => self.look(),
            }
        }
        None
    }

    fn sum(&self, values: &[f32]) -> Vec<f32> {
        let mut sum = vec![0.0; values.len()];
        let all = SystemOperation::sum();
        scope(|scope| {
            let world = &self.world;
            self.finish(world.immediate_all_reduce_into(scope, values, &mut sum[..], all));
        });
        sum
    }

    fn gather(&self, text: &[u8]) -> Vec<Vec<u8>> {
        let mut lengths = vec![0; self.world.size().unsigned_abs() as usize];
        // Messages are short.
        let own = Count::try_from(text.len()).unwrap_or(Count::MAX);
        scope(|scope| {
            let world = &self.world;
            self.finish(world.immediate_all_gather_into(scope, &own, &mut lengths[..]));
        });
        let mut end = 0;
        let place = |length: &Count| {
            end += length;
            end - length
        };
        let places: Vec<Count> = lengths.iter().map(place).collect();
        let mut all = vec![0u8; end.unsigned_abs() as usize];
        {
            let mut parts = PartitionMut::new(&mut all[..], &lengths[..], &places[..]);
            scope(|scope| {
                let world = &self.world;
                self.finish(world.immediate_all_gather_varcount_into(scope, text, &mut parts));
            });
        }
        let mut rest = &all[..];
        let part = |length: &Count| {
            let (own, behind) = rest.split_at(length.unsigned_abs() as usize);
            rest = behind;
            own.to_vec()
        };
        lengths.iter().map(part).collect()
    }

    /// Waits for a call's end.
    fn finish<'a, D: ?Sized, S: Scope<'a>>(&self, mut request: Request<'a, D, S>) {
        let start = Instant::now();
        while let Err(again) = request.test() {
            request = again;
            self.look();
            match start.elapsed() < EAGER {
                true => std::thread::yield_now(),
                false => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Ends all ranks where that is wished.
    fn look(&self) {
        if self.abort.load(Ordering::Relaxed) {
            self.world.abort(1);
        }
    }
}
