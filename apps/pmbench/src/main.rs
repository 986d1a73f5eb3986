//! The `pmbench` program.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use pmbench::cli::{Cli, Command};
use pmbench::{load, report, run, serve};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Serve(args) = &cli.command
        && let Some(why) = args.contradiction()
    {
        Cli::command().error(ErrorKind::ArgumentConflict, why).exit();
    }
    let filter = EnvFilter::try_from_env("PMBENCH_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let result = match &cli.command {
        Command::Run(args) => run::run(args, &mut io::stdout().lock()),
        Command::Report(args) => report::report(args, &mut io::stdout().lock()),
        Command::Serve(args) => serve::serve(args),
        Command::Load(args) => load::load(args, &mut io::stdout().lock()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pmbench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
