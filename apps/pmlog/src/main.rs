//! The `pmlog` program.

use std::io::{self, BufWriter, IsTerminal as _};
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use pmlog::cli::{Cli, Command};
use pmlog::{inspect, serve};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("PMLOG_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    match run(&cli) {
        Ok(code) => code,
        // A reader who has seen enough, such as head, is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pmlog: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    match &cli.command {
        Command::Serve(args) => {
            if let Some(why) = args.contradiction() {
                Cli::command().error(ErrorKind::ArgumentConflict, why).exit();
            }
            serve::serve(args, &mut out)?;
        }
        Command::Dump(args) => inspect::dump(args, &mut out, &mut io::stderr())?,
        Command::Verify(args) => {
            if !inspect::verify(args, &mut out)? {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
