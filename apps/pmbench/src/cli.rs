//! The command line.

use clap::{Parser, Subcommand};

use crate::load::cli::LoadArgs;
use crate::report::ReportArgs;
use crate::run::cli::RunArgs;
use crate::serve::ServeArgs;

/// Durable appends over every kind of network stack, measured side by side.
#[derive(Debug, Parser)]
#[command(name = "pmbench", version, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage. PMBENCH_LOG=debug shows more of what happens."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compare the modes: run each on each link under each load, and report.
    Run(RunArgs),
    /// Report once more on what a run found.
    Report(ReportArgs),
    /// Serve appends in one of the modes that are compared, and count what it costs.
    Serve(ServeArgs),
    /// Load a server with appends over many connections, and measure rate and latency.
    Load(LoadArgs),
}
