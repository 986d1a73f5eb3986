//! How far measuring has come.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal, a line for each measurement elsewhere.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    is_terminal: bool,
}

impl Progress {
    /// Nothing of so many measurements is done.
    pub fn start(measurements: usize) -> Self {
        let style = ProgressStyle::with_template("{pos}/{len} {wide_bar} {eta} left  {msg}")
            .expect("a valid template");
        let bar = ProgressBar::new(measurements as u64).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, started: Instant::now(), is_terminal: std::io::stderr().is_terminal() }
    }

    /// A measurement begins.
    pub fn begin(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// It is over.
    pub fn end(&self, what: &str, result: &str) {
        self.bar.inc(1);
        if !self.is_terminal {
            let seconds = self.started.elapsed().as_secs_f64();
            eprintln!("{seconds:>7.1} s  {what}: {result}");
        }
    }

    /// It failed.
    pub fn complain(&self, what: &str, why: &str) {
        self.bar.inc(1);
        self.bar.suspend(|| eprintln!("FAILED  {what}: {why}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
