//! The command line.

use clap::{Parser, Subcommand};

use crate::connections::ConnectionsArgs;
use crate::cores::CoresArgs;
use crate::fwd::FwdArgs;
use crate::instructions::InstructionsArgs;
use crate::load::cli::LoadArgs;
use crate::report::ReportArgs;
use crate::ring::RingArgs;
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
    /// Compare pmlog with one core and with two: requests by second, and CPU time by request.
    Cores(CoresArgs),
    /// Compare pmfwd with dpdk-testpmd, on the same virtual devices: packets by second of CPU time.
    Fwd(FwdArgs),
    /// Count the instructions of a request, by whose code they are.
    Instructions(InstructionsArgs),
    /// Measure requests over few and many connections, and the memory of idle ones.
    Connections(ConnectionsArgs),
    /// Serve appends in one of the modes that are compared, and count what it costs.
    Serve(ServeArgs),
    /// Load a server with appends over many connections, and measure rate and latency.
    Load(LoadArgs),
    /// Serve and load in one process, over a link that does as a NIC does.
    Ring(RingArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn help_shows_each_option_and_an_example() {
        let mut command = Cli::command().term_width(100);
        command.build();
        for name in ["run", "load", "ring", "report", "cores", "fwd", "instructions", "connections"] {
            let help = command.find_subcommand_mut(name).expect("the subcommand").render_long_help();
            insta::assert_snapshot!(name, help.to_string());
        }
    }

    #[test]
    fn bad_arguments_are_usage_errors() {
        let load =
            ["pmbench", "load", "--dev", "net_null0", "--ip", "10.0.0.2/24", "--target", "10.0.0.1:80"];
        assert!(Cli::try_parse_from(load).is_ok());
        for more in [
            ["--connections", "0"],
            ["--connections", "120001"],
            ["--size", "0"],
            ["--rate", "0"],
            ["--chunk", "0"],
            ["--nap-us", "0"],
            ["--frames", "--nap-us=100"],
            ["--frames", "--rate=100"],
            ["--seconds", "-1"],
            ["--target-mac", "ff:ff:ff:ff:ff:ff"],
        ] {
            let error = Cli::try_parse_from(load.iter().chain(&more)).expect_err("bad arguments");
            assert_eq!(error.exit_code(), 2, "{more:?}");
        }
        let run = ["pmbench", "run", "--out", "o"];
        for more in [["--modes", "fastest"], ["--sizes", "65537"], ["--rounds", "0"], ["--links", "tap"]] {
            let error = Cli::try_parse_from(run.iter().chain(&more)).expect_err("bad arguments");
            assert_eq!(error.exit_code(), 2, "{more:?}");
        }
    }
}
