//! The process in namespaces of its own that does the work of a task, and the one outside that waits for it.

use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Between two looks at whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Runs it to its end; none if that was a Ctrl-C. That reaches the process inside, too, which ends on it with all that runs
/// there; this one stays to remove what it has made.
pub fn run(inside: &mut Command) -> Result<Option<ExitStatus>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut child = inside.spawn().context("cannot start setpriv and unshare")?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((!interrupted.load(Ordering::Relaxed)).then_some(status));
        }
        if interrupted.load(Ordering::Relaxed) {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// Has this process, which is inside, end on signals: the first of a namespace ignores those that it does not ask for.
pub fn end_on_signals() -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::new(AtomicBool::new(true)))?;
    }
    Ok(())
}
