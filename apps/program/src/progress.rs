//! How far opening a store has come, for whoever waits for it; its end by a signal, and what helps where it fails.

use std::io::IsTerminal as _;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use pmem::{OpenError, Step, Watch};

/// What takes no longer is not shown at all.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// A watch over the opening of a store: shows how far it has come, unless it is to be quiet, and ends it once `stop` is
/// set. `name` is the program's.
pub fn watch_opening(name: &'static str, is_quiet: bool, stop: &Arc<AtomicBool>) -> Watch {
    let progress = (!is_quiet).then(|| Progress::new(name));
    let stop = stop.clone();
    Watch::new(move |step| {
        if let Some(progress) = &progress {
            progress.show(step);
        }
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

/// Whether a store was not opened because its watch ended that.
pub fn is_interrupted(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(OpenError::Interrupted { .. }))
}

/// The option that grants what a store's error asks for; `shape` are those that say how the store is made.
pub fn option_for(error: &OpenError, shape: &'static str) -> Option<&'static str> {
    match error {
        OpenError::NoSize { .. } => Some("--pm-size 1GiB"),
        OpenError::PackBelow { .. } => Some("--pack-below"),
        OpenError::Volatile { .. } => Some("--volatile"),
        OpenError::NotAStore { .. }
        | OpenError::Version { .. }
        | OpenError::Damaged { .. }
        | OpenError::Contents { .. } => Some("--force"),
        OpenError::Mismatch { .. } => Some(shape),
        _ => None,
    }
}

/// Shows on the standard error how far something has come: on a terminal a line that changes until this is dropped,
/// else a line now and then.
struct Progress {
    name: &'static str,
    begun: Instant,
    /// When the last line was written.
    said: Mutex<Option<Instant>>,
    line: Option<ProgressBar>,
}

impl Progress {
    fn new(name: &'static str) -> Self {
        let line = std::io::stderr().is_terminal().then(|| {
            let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            line.set_style(
                ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            line
        });
        Self { name, begun: Instant::now(), said: Mutex::new(None), line }
    }

    /// Says how far it has come. Cheap, and never waits for another thread that says so, too.
    fn show(&self, step: Step) {
        let Ok(mut said) = self.said.try_lock() else { return };
        let now = Instant::now();
        if now - self.begun < PATIENCE {
            return;
        }
        let of = step.total_bytes.map_or_else(String::new, |total| format!(" of {}", BinaryBytes(total)));
        let text = format!("{}: {}{of}", step.work, BinaryBytes(step.done_bytes));
        match &self.line {
            Some(line) => line.set_message(text),
            None if said.is_none_or(|said| now - said >= LINE_EVERY) => {
                eprintln!("{}: {text}", self.name);
                *said = Some(now);
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}
