//! `sq-llava orchestrator`, and what `train` is told about other machines.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use sq_llava_train::{NodeConfig, Orchestrator};

use super::train::stop_on_signals;
use crate::output::tell;

/// Bring the machines of a training together.
///
/// Start it on one of them, then `train` with --nodes, --node-rank and --coordinator on each. It is
/// needed only while they meet; Ctrl-C ends it. Whoever reaches its port can join: keep it inside
/// your network.
#[derive(Debug, Args)]
pub struct OrchestratorCommand {
    /// Port on all addresses of this machine, or HOST:PORT for one of them; port 0 is any free one.
    #[arg(long, value_name = "PORT")]
    listen: String,
}

impl OrchestratorCommand {
    /// Runs until it is interrupted.
    ///
    /// # Errors
    /// If the port is not to be had.
    pub fn run(self) -> Result<()> {
        let orchestrator = Orchestrator::bind(&self.listen)?;
        let stop = stop_on_signals()?;
        tell(format_args!("listening on {}", orchestrator.address()?));
        Ok(orchestrator.run(&stop)?)
    }
}

/// Training on several machines.
#[derive(Debug, Args)]
#[command(next_help_heading = "Several machines")]
pub struct NodeArguments {
    /// Machines that train together, each with its own `train`.
    #[arg(long, value_name = "N", requires_all = ["node_rank", "coordinator"])]
    nodes: Option<usize>,
    /// Number of this one, from 0.
    #[arg(long, value_name = "R", requires = "nodes")]
    node_rank: Option<usize>,
    /// Where `sq-llava orchestrator` listens.
    #[arg(long, value_name = "HOST:PORT", requires = "nodes")]
    coordinator: Option<String>,
    /// Where the others reach this one, if not at the address that the orchestrator sees and any
    /// free port.
    #[arg(long, value_name = "HOST:PORT", requires = "nodes")]
    node_address: Option<String>,
    /// How long the others are waited for, at the start and at each step (default 600).
    #[arg(long, value_name = "SECONDS", requires = "nodes")]
    node_timeout: Option<u64>,
}

/// Seconds to wait for other machines.
const TIMEOUT: u64 = 600;

impl NodeArguments {
    /// This machine's place; `None` where it trains alone.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn config(&self) -> Result<Option<NodeConfig>> {
        let (Some(nodes), Some(rank), Some(coordinator)) =
            (self.nodes, self.node_rank, &self.coordinator)
        else {
            return Ok(None);
        };
        let config = NodeConfig {
            nodes,
            rank,
            coordinator: coordinator.clone(),
            address: self.node_address.clone(),
            timeout: Duration::from_secs(self.node_timeout.unwrap_or(TIMEOUT)),
        };
        config.validate()?;
        Ok(Some(config))
    }

    /// The run directory of this machine in that of all.
    ///
    /// # Errors
    /// As [`Self::config`].
    pub fn run_directory(&self, out: &std::path::Path) -> Result<PathBuf> {
        let config = self.config()?;
        Ok(config.map_or_else(|| out.to_path_buf(), |config| config.run_directory(out)))
    }
}
