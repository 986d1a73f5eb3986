//! The `pmlog` program.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use pmlog::cli::{Cli, Command};
use pmlog::{export, import, inspect, serve};
use program::store::{self, Telling};

fn main() -> ExitCode {
    let cli = Cli::parse();
    program::run("pmlog", || run(&cli))
}

fn run(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Export(args) => export::export(args),
        Command::Backup(args) => export::backup(args),
        Command::Import(args) => import::import(args),
        command => run_with_output(command, &mut BufWriter::new(io::stdout().lock())),
    }
}

fn run_with_output(command: &Command, out: &mut impl Write) -> Result<ExitCode> {
    match command {
        Command::Serve(args) => {
            if let Some(why) = args.contradiction() {
                Cli::command().error(ErrorKind::ArgumentConflict, why).exit();
            }
            serve::serve(args, out)?;
        }
        Command::Dump(args) => inspect::dump(args, out, &mut io::stderr())?,
        Command::Verify(args) => {
            if !store::verify(&args.pm, Telling { name: "pmlog", json: args.json }, out)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        // They use the standard output as their arguments say.
        Command::Export(_) | Command::Backup(_) | Command::Import(_) => {}
        Command::Quarantine(args) => store::damaged(&args.pm, args.drop, args.json, out)?,
    }
    Ok(ExitCode::SUCCESS)
}
