//! What the programs have in common: how they log, how they end, what ends them, what they show of a long start, the
//! CPUs that they run on, the memory that they use, and the [`store`]s that nobody serves.

mod descriptors;
mod memory;
mod progress;
pub mod store;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, ensure};
use bytesize::ByteSize;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing_subscriber::EnvFilter;

pub use descriptors::allow_descriptors;
pub use memory::Memory;
pub use progress::{is_interrupted, option_for, watch_opening};

/// Runs a program's work. It logs to standard error, warnings and worse or what the variable `NAME_LOG` says, and an
/// error is written there, too.
pub fn run(name: &str, work: impl FnOnce() -> Result<ExitCode>) -> ExitCode {
    let variable = format!("{}_LOG", name.to_uppercase());
    let filter = EnvFilter::try_from_env(variable).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    match work() {
        Ok(code) => code,
        // A reader who has seen enough, such as head, is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// A size on a command line.
///
/// # Errors
/// It is none: what to write instead.
pub fn parse_size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "write a number of bytes with or without a unit, such as 64MiB".to_owned())
}

/// What time it is, in seconds since 1970: as exact as the kernel's tick, and next to free.
pub fn now_s() -> u32 {
    u32::try_from(clock_gettime(ClockId::RealtimeCoarse).tv_sec.max(0)).unwrap_or(u32::MAX)
}

/// A flag that SIGINT and SIGTERM set; a second signal ends the process at once, with exit code 1.
///
/// # Errors
/// What the kernel says against the handlers.
pub fn stop_signal() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Keeps the calling thread, and those that it starts from now on, on one CPU.
///
/// # Errors
/// There is no such CPU, or this process may not use it.
pub fn pin(cpu: usize) -> Result<()> {
    ensure!(
        cpu < CpuSet::MAX_CPU,
        "CPU {cpu} is beyond the {} that Linux numbers; see lscpu",
        CpuSet::MAX_CPU
    );
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).with_context(|| {
        format!("CPU {cpu} is not one that this process may run on; see lscpu and taskset -p")
    })
}

/// The CPUs that the calling thread may use, in their order.
///
/// # Errors
/// The kernel does not say.
pub fn permitted_cpus() -> Result<Vec<usize>> {
    let permitted = sched_getaffinity(None).context("the permitted CPUs are not known")?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| permitted.is_set(cpu)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_cpu() {
        let all = permitted_cpus().expect("the kernel tells");
        std::thread::spawn(move || {
            let last = *all.last().expect("one at least");
            pin(last).expect("it is permitted");
            assert_eq!(permitted_cpus().expect("the kernel tells"), [last]);
            // A thread cannot ask for CPUs that are not there.
            for cpu in [CpuSet::MAX_CPU - 1, CpuSet::MAX_CPU] {
                let error = pin(cpu).expect_err("no machine has as many");
                assert!(format!("{error:#}").contains("see lscpu"), "{error:#}");
            }
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn a_reader_that_leaves_is_found_below_other_words() {
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&anyhow::Error::new(broken).context("cannot write")));
        assert!(!is_broken_pipe(&anyhow::Error::new(io::Error::from(io::ErrorKind::NotFound))));
    }
}
