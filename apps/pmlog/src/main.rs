//! The `pmlog` program.

use std::io::{self, BufWriter};
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use pmlog::cli::{Cli, Command};
use pmlog::{inspect, quarantine, serve};

fn main() -> ExitCode {
    let cli = Cli::parse();
    program::run("pmlog", || run(&cli))
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
        Command::Quarantine(args) => quarantine::quarantine(args, &mut out)?,
    }
    Ok(ExitCode::SUCCESS)
}
