//! Threads that stand for hardware, or for a machine of their own: nothing else on this one holds them up.

use anyhow::{Context as _, Result};

use crate::run;

/// Has the calling thread, and what it starts, run as soon as it can, whatever else runs here: as a real-time thread, before
/// those of a lower `level`, which is between 1 and 99.
///
/// # Errors
/// The thread may not: that takes a privilege that root of a user namespace has not.
pub fn precede(level: u8) -> Result<()> {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    run("chrt", ["--fifo", "--pid", &level.to_string(), &thread])
        .context("no real-time priority is to be had (CAP_SYS_NICE)")?;
    Ok(())
}
