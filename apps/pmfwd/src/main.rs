//! The `pmfwd` program.

use std::io::{self, BufWriter, IsTerminal as _};
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use pmfwd::cli::Cli;
use pmfwd::{console, session};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(why) = cli.pool_kind() {
        Cli::command().error(ErrorKind::ArgumentConflict, why).exit();
    }
    let filter = EnvFilter::try_from_env("PMFWD_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader who has seen enough, such as head, is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pmfwd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    if cli.interactive { console::run(cli, &mut out) } else { session::run(cli, &mut out) }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
