//! Who started this process, as the environment tells it: one of several ranks, or alone.

use crate::error::TrainError;

/// A program that starts the same command many times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launcher {
    /// The variable that says how many.
    variable: &'static str,
    ranks: usize,
    rank: usize,
}

/// Open MPI's `mpirun`, that of MPICH and Intel, and Slurm's `srun`: the variables of how many
/// there are and of which one this is.
const KNOWN: [[&str; 2]; 4] = [
    ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"],
    ["PMI_SIZE", "PMI_RANK"],
    ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID"],
    ["SLURM_NTASKS", "SLURM_PROCID"],
];

impl Launcher {
    /// What started this process among others; `None` if it is the only one.
    pub fn from_env() -> Option<Self> {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(value: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| value(name)?.trim().parse::<usize>().ok();
        let found = KNOWN.iter().find_map(|[ranks, rank]| {
            Some(Self {
                variable: ranks,
                ranks: number(ranks)?,
                rank: number(rank)?,
            })
        })?;
        (found.ranks > 1).then_some(found)
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// A build without MPI cannot join the others, and must not write beside them.
    #[cfg(not(feature = "mpi"))]
    pub(super) fn refuse(&self) -> TrainError {
        TrainError::Ranks(format!(
            "built without feature mpi: {} says that {} processes were started, which would all \
             train alone into one run directory; build with --features mpi, or start one",
            self.variable, self.ranks
        ))
    }

    /// MPI sees others than were started.
    #[cfg(feature = "mpi")]
    pub(super) fn compare(&self, ranks: usize) -> Result<(), TrainError> {
        if ranks == self.ranks {
            return Ok(());
        }
        Err(TrainError::Ranks(format!(
            "{} is {}, but MPI sees {ranks} rank(s): start with the mpirun of the MPI that this \
             was built with, or with srun --mpi=pmix",
            self.variable, self.ranks
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<(usize, usize)> {
        let value = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Launcher::of(value).map(|launcher| (launcher.ranks, launcher.rank))
    }

    #[test]
    fn each_launcher_is_known() {
        assert_eq!(of(&[]), None);
        let open_mpi = [("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", "1")];
        assert_eq!(of(&open_mpi), Some((2, 1)));
        assert_eq!(of(&[("PMI_SIZE", "4"), ("PMI_RANK", "3")]), Some((4, 3)));
        let slurm = [("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")];
        assert_eq!(of(&slurm), Some((8, 0)));
        // A step of fewer tasks than the job has.
        let step = [&slurm[..], &[("SLURM_STEP_NUM_TASKS", "1")]].concat();
        assert_eq!(of(&step), None);
        // One process, or an allocation in which nothing was started yet.
        assert_eq!(of(&[("PMI_SIZE", "1"), ("PMI_RANK", "0")]), None);
        assert_eq!(of(&[("SLURM_NTASKS", "8")]), None);
    }
}
