//! What a developer and CI run: `cargo xtask setup | demo | test | sim | crash | interop | bench | vm | dpdk`.
//!
//! Builds without DPDK or libclang, since it is what installs them.

mod bench;
mod crash;
mod demo;
mod dpdk;
mod fuzz;
mod inside;
mod interop;
mod setup;
mod sim;
mod steps;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Sets paste-dpdk up, demonstrates, tests and measures it")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs the Debian packages that building, testing and the demo need.
    Setup,
    /// Real requests from Linux into named packet buffers in a file, a kill -9, and every record back, or every key.
    #[command(after_help = "Needs no network card, persistent memory or hugepages, and no root once \
                            the packages are there.")]
    Demo(demo::Options),
    /// Formatting, lints, all tests and documentation, as CI runs them.
    Test(test::Options),
    /// Conversations of our TCP with itself and with smoltcp's over simulated links that do their worst.
    #[command(after_help = sim::EXAMPLES)]
    Sim(sim::Options),
    /// A store's lives over models of media that lose what a power cut may lose; and each flush left out once.
    #[command(after_help = crash::EXAMPLES)]
    Crash(crash::Options),
    /// Linux as the other end: the tests of it, or with --loss our TCP beside Linux' own over bad and long paths.
    #[command(after_help = interop::EXAMPLES)]
    Interop(interop::Options),
    /// Measures, and writes the results below target/bench.
    Bench(bench::Options),
    /// Looks for bytes that break what takes them from strangers: frames, options, requests, a store's.
    Fuzz(fuzz::Options),
    /// A virtual machine with real drivers: a NIC behind an IOMMU, device-DAX memory, and power cuts.
    Vm(vm::Options),
    /// A DPDK with few drivers, from the distribution's source, that programs carry in themselves.
    #[command(after_help = "Needs some minutes and 400 MB below target/dpdk. Then `cargo build --release \
                            --features static` links against it.")]
    Dpdk(dpdk::Options),
    /// What `vm` runs inside its namespaces.
    #[command(hide = true)]
    VmInside(vm::Inside),
    /// What `demo` runs inside its namespaces.
    #[command(hide = true)]
    DemoInside(demo::Inside),
    /// What `bench kv` runs inside its namespaces.
    #[command(hide = true)]
    BenchKvInside(bench::kv::Inside),
    /// What `interop --loss` runs inside its namespaces.
    #[command(hide = true)]
    InteropInside(interop::Inside),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Task::Setup => setup::run(setup::Verbosity::Always).map(|()| true),
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Sim(options) => sim::run(&options),
        Task::Crash(options) => crash::run(&options),
        Task::Interop(options) => interop::run(&options),
        Task::Bench(options) => bench::run(&options).map(|()| true),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Dpdk(options) => dpdk::run(&options).map(|()| true),
        Task::Vm(options) => vm::run(&options),
        Task::VmInside(inside) => vm::run_inside(&inside),
        Task::DemoInside(inside) => demo::run_inside(&inside).map(|()| true),
        Task::BenchKvInside(inside) => bench::kv::run_inside(&inside).map(|()| true),
        Task::InteropInside(inside) => interop::run_inside(&inside),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
