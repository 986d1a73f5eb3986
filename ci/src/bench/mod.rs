//! `cargo xtask bench`: measurements, as a table and as JSON.

mod compare;
mod cores;
mod fwd;
mod micro;
mod rounds;

use std::process::Command;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::Packages;
use crate::steps::workspace;

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    packages: Packages,
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// The core by criterion: per segment, per append, per persist.
    Micro {
        /// Only benchmarks whose name contains this.
        filter: Option<String>,
    },
    /// Every way of serving durable appends, side by side: a table, and a report in target/bench/compare.
    Compare(compare::Options),
    /// pmlog with one core and with two: requests by second, and CPU time by request.
    Cores(cores::Options),
    /// pmfwd beside dpdk-testpmd, on the same virtual devices: packets by second of CPU time.
    Fwd(fwd::Options),
}

pub fn run(options: &Options) -> Result<()> {
    options.packages.provide()?;
    match &options.suite {
        Suite::Micro { filter } => micro::run(filter.as_deref()),
        Suite::Compare(options) => compare::run(options),
        Suite::Cores(options) => cores::run(options),
        Suite::Fwd(options) => fwd::run(options),
    }
}

/// A fact for the record; empty where nobody knows it.
fn said_by(command: &mut Command) -> String {
    let output = command.current_dir(workspace()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
