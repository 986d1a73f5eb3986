//! How far opening a store has come, for whoever waits for it; its end by a signal, and what helps where it fails.

use std::cell::Cell;
use std::fmt;
use std::io::IsTerminal as _;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use pmem::{OpenError, Watch};

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
            progress
                .tell(&step.work, step.done_bytes, step.total_bytes, |bytes| BinaryBytes(bytes).to_string());
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
pub(crate) struct Progress {
    name: &'static str,
    begun: Instant,
    said: Mutex<Said>,
    line: Option<ProgressBar>,
}

/// What was said, and of what.
#[derive(Default)]
struct Said {
    /// When the last line was written.
    line_at: Option<Instant>,
    /// What is being done, since when, and how far that had come by then.
    what: String,
    since: Option<(Instant, u64)>,
}

impl Progress {
    pub(crate) fn new(name: &'static str) -> Self {
        let line = std::io::stderr().is_terminal().then(|| {
            let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            line.set_style(
                ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            line
        });
        Self { name, begun: Instant::now(), said: Mutex::default(), line }
    }

    /// Says how far something has come, such as "recovering shard 0"; `show` puts an amount in words. Cheap, and never waits
    /// for another thread that says so, too.
    pub(crate) fn tell(
        &self,
        what: &dyn fmt::Display,
        done: u64,
        total: Option<u64>,
        show: impl Fn(u64) -> String,
    ) {
        let Ok(mut said) = self.said.try_lock() else { return };
        let now = Instant::now();
        let what = what.to_string();
        if said.what != what {
            *said = Said { line_at: said.line_at, what, since: Some((now, done)) };
        }
        let is_due = self.line.is_some() || said.line_at.is_none_or(|at| now - at >= LINE_EVERY);
        if now - self.begun < PATIENCE || !is_due {
            return;
        }
        let of = total.map_or_else(String::new, |total| format!(" of {}", show(total)));
        let left = said.since.and_then(|(since, from)| {
            time_left(now - since, done - from.min(done), total? - done.min(total?))
        });
        let left = left.map_or_else(String::new, |left| format!(", {} left", HumanDuration(left)));
        let text = format!("{}: {}{of}{left}", said.what, show(done));
        match &self.line {
            Some(line) => line.set_message(text),
            None => {
                eprintln!("{}: {text}", self.name);
                said.line_at = Some(now);
            }
        }
    }
}

/// How long what is left will take, if it takes as long as what was done.
fn time_left(took: Duration, done: u64, left: u64) -> Option<Duration> {
    let seconds = took.as_secs_f64() * left as f64 / done as f64;
    Duration::try_from_secs_f64(seconds).ok()
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}

/// How many records of a store a tool is through with.
pub(crate) struct Records {
    progress: Option<Progress>,
    what: &'static str,
    done: Cell<u64>,
    total: u64,
}

/// Records between two looks at the clock.
const LOOK_RECORDS: u64 = 256;

impl Records {
    pub(crate) fn new(name: &'static str, is_quiet: bool, what: &'static str, total: u64) -> Self {
        let progress = (!is_quiet).then(|| Progress::new(name));
        Self { progress, what, done: Cell::new(0), total }
    }

    pub(crate) fn one_more(&self) {
        self.done.set(self.done.get() + 1);
        if let Some(progress) =
            self.progress.as_ref().filter(|_| self.done.get().is_multiple_of(LOOK_RECORDS))
        {
            let show = |records| format!("{records} records");
            let total = self.total.max(self.done.get());
            progress.tell(&self.what, self.done.get(), Some(total), show);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_takes_as_long_as_what_was_done() {
        let second = Duration::from_secs(1);
        assert_eq!(time_left(second, 10, 30), Some(3 * second));
        assert_eq!(time_left(second, 10, 0), Some(Duration::ZERO));
        assert_eq!(time_left(second, 0, 30), None, "nobody knows");
        assert_eq!(time_left(Duration::ZERO, 0, 0), None);
    }
}
