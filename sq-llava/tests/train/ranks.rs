//! A build without MPI does not train many times into one run directory.

use crate::world::{World, complaint};

#[test]
fn ranks_are_refused() {
    let world = World::new();
    let launchers = [
        ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"],
        ["PMI_SIZE", "PMI_RANK"],
        ["SLURM_NTASKS", "SLURM_PROCID"],
    ];
    for [size, rank] in launchers {
        let mut command = world.command("run", &[]);
        let output = command.env(size, "2").env(rank, "1").output();
        let error = complaint(&output.expect("starts"));
        assert!(
            error.contains("built without feature mpi") && error.contains(size),
            "{error}"
        );
        assert!(!world.path("run").exists());
    }
}
