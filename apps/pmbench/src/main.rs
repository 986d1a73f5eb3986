//! The `pmbench` program.

use std::io;
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use pmbench::cli::{Cli, Command};
use pmbench::{connections, cores, fwd, instructions, load, report, ring, run, serve};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Serve(args) = &cli.command
        && let Some(why) = args.contradiction()
    {
        Cli::command().error(ErrorKind::ArgumentConflict, why).exit();
    }
    program::run("pmbench", || work(&cli).map(|()| ExitCode::SUCCESS))
}

fn work(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Run(args) => run::run(args, &mut io::stdout().lock()),
        Command::Report(args) => report::report(args, &mut io::stdout().lock()),
        Command::Cores(args) => cores::run(args, &mut io::stdout().lock()),
        Command::Fwd(args) => fwd::run(args, &mut io::stdout().lock()),
        Command::Instructions(args) => instructions::run(args, &mut io::stdout().lock()),
        Command::Connections(args) => connections::run(args, &mut io::stdout().lock()),
        Command::Serve(args) => serve::serve(args),
        Command::Ring(args) => ring::run(args),
        Command::Load(args) => load::load(args, &mut io::stdout().lock()),
    }
}
