//! What a server is told while it runs: a thread reads standard input, and the loop looks between two bursts.

use std::io::{self, BufRead as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::Result;
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::protocol::{ServerEvent, Wish};

/// The server's side of standard input.
pub(super) struct Control {
    /// There may be a wish; the loop reads nothing else while this is false.
    told: Arc<AtomicBool>,
    /// Becomes readable with each wish, for loops that sleep.
    wake: Arc<OwnedFd>,
    wishes: Receiver<Wish>,
    /// Set by SIGINT and SIGTERM.
    interrupted: Arc<AtomicBool>,
}

impl Control {
    /// Starts to read standard input, on other cores than `core`, to which the calling thread is bound.
    pub(super) fn start(core: Option<usize>) -> Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let told = Arc::new(AtomicBool::new(false));
        let interrupted = program::stop_signal()?;
        let (sender, wishes) = channel();
        let control = Self { told: Arc::clone(&told), wake: Arc::clone(&wake), wishes, interrupted };
        let thread = std::thread::Builder::new().name("control".to_owned());
        let others = core.map(|core| without(core, sched_getaffinity(None))).transpose()?;
        thread.spawn(move || {
            if let Some(others) = others
                && let Err(error) = sched_setaffinity(None, &others)
            {
                tracing::warn!("standard input is read on the server's core: {error}");
            }
            read(&sender, &told, &wake);
        })?;
        if let Some(core) = core {
            program::pin(core)?;
        }
        Ok(control)
    }

    /// The next wish, if there is one.
    pub(super) fn next(&self) -> Option<Wish> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Some(Wish::Stop);
        }
        if !self.told.load(Ordering::Acquire) {
            return None;
        }
        // First this, then the look: a wish that comes in between is seen now or the next time.
        self.told.store(false, Ordering::Relaxed);
        let wish = self.wishes.try_recv().ok()?;
        self.told.store(true, Ordering::Relaxed);
        Some(wish)
    }

    /// Becomes readable when there is a wish; to be read then.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes [`wake`](Self::wake) wait for the next wish.
    pub(super) fn woken(&self) {
        // It holds nothing if two wishes were one event.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }
}

/// Reads wishes until there are no more.
fn read(sender: &Sender<Wish>, told: &AtomicBool, wake: &OwnedFd) {
    let tell = |wish| {
        let _ = sender.send(wish);
        told.store(true, Ordering::Release);
        // A counter at its limit wakes the loop all the same.
        let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
    };
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match line.parse() {
            Ok(Wish::Stop) => break,
            Ok(wish) => tell(wish),
            Err(error) => tracing::warn!("{error}"),
        }
    }
    tell(Wish::Stop);
}

/// The CPUs of `all` but one; all of them, if that is the only one.
fn without(core: usize, all: rustix::io::Result<CpuSet>) -> rustix::io::Result<CpuSet> {
    let mut others = all?;
    others.unset(core);
    if others.count() == 0 {
        others.set(core);
    }
    Ok(others)
}

/// Writes an event as one line on standard output.
pub(super) fn tell(event: &ServerEvent) -> Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()?;
    Ok(())
}
