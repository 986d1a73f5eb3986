//! The CPU that a thread runs on.

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Ties the calling thread, and those that it starts, to one CPU.
///
/// # Errors
/// There is no such CPU, or this process may not use it.
pub fn pin(core: usize) -> Result<()> {
    anyhow::ensure!(core < CpuSet::MAX_CPU, "there is no CPU {core}");
    let mut cpus = CpuSet::new();
    cpus.set(core);
    sched_setaffinity(None, &cpus).with_context(|| format!("CPU {core} cannot be used"))
}

/// Whether this process may use a CPU.
///
/// # Errors
/// There is no such CPU, or this process may not use it.
pub fn check(core: usize) -> Result<()> {
    let cpus = rustix::thread::sched_getaffinity(None)?;
    anyhow::ensure!(
        core < CpuSet::MAX_CPU && cpus.is_set(core),
        "CPU {core} cannot be used; a comparison needs two CPUs: choose them by --server-core and --client-core"
    );
    Ok(())
}
