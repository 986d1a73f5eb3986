//! The `pmkv` program.

use std::io::{self, BufWriter};
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use pmkv::cli::{Cli, Command};
use pmkv::serve;

fn main() -> ExitCode {
    let cli = Cli::parse();
    program::run("pmkv", || run(&cli))
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
    }
    Ok(ExitCode::SUCCESS)
}
