//! The `pmfwd` program.

use std::io::{self, BufWriter};
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use pmfwd::cli::Cli;
use pmfwd::{console, session};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(why) = cli.pool_kind() {
        Cli::command().error(ErrorKind::ArgumentConflict, why).exit();
    }
    program::run("pmfwd", || run(&cli).map(|()| ExitCode::SUCCESS))
}

fn run(cli: &Cli) -> Result<()> {
    // Not locked: the console's line editor writes from a thread of its own.
    let mut out = BufWriter::new(io::stdout());
    if cli.interactive { console::run(cli, &mut out) } else { session::run(cli, &mut out) }
}
