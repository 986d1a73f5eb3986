//! The command line of pmtool.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pmtool::bind::{self, Force};
use pmtool::doctor;
use pmtool::store::{self, StoreTask};
use pmtool::system::{Kernel, LiveKernel, System};

/// Looks at this machine's NICs and persistent memory, hands a NIC to DPDK and back, and makes, checks, mends and copies stores.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done or nothing wrong, 1 failed, or something is missing or damaged, 2 usage."
)]
struct Cli {
    /// Look below this folder instead of /, at a copy of another machine's sys, proc and dev.
    #[arg(long, global = true, value_name = "FOLDER", default_value = "/", hide = true)]
    root: PathBuf,
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Says what this machine has and lacks for packets by DMA into persistent memory, and what to do about it.
    Doctor {
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Takes a NIC from the kernel's network stack and gives it to a driver that DPDK can use.
    #[command(after_help = "Example: pmtool bind 0000:02:00.0")]
    Bind {
        /// PCI address, as in 0000:02:00.0 (the domain may be left out).
        address: String,
        /// The driver: vfio-pci, or uio_pci_generic where there is no IOMMU.
        #[arg(long, default_value = "vfio-pci")]
        driver: String,
        /// Even if this machine's default route or an ssh connection goes through the NIC, or it is not a NIC.
        #[arg(long)]
        force: bool,
    },
    /// Gives a NIC back to the kernel's own driver.
    Unbind {
        /// PCI address, as in 0000:02:00.0 (the domain may be left out).
        address: String,
    },
    #[command(flatten)]
    Store(StoreTask),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let system = System::new(cli.root);
    let kernel = LiveKernel;
    match cli.command {
        Task::Doctor { json } => {
            let report = doctor::examine(&system);
            let text = if json { report.to_json() } else { report.to_string() };
            // A reader who has seen enough, such as head, is no failure.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Task::Bind { address, driver, force } => {
            let force = if force { Force::Yes } else { Force::No };
            finish(bind::bind(&system, &kernel as &dyn Kernel, &address, &driver, force))
        }
        Task::Unbind { address } => finish(bind::unbind(&system, &kernel, &address)),
        Task::Store(task) => program::run("pmtool", || store::run(&task)),
    }
}

fn finish(result: Result<String, bind::BindError>) -> ExitCode {
    match result {
        Ok(done) => {
            let _ = writeln!(std::io::stdout(), "{done}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pmtool: {error}");
            match error {
                bind::BindError::Address(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
