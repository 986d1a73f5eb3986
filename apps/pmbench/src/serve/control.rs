//! What a server is told while it runs: a thread reads standard input, and the loop looks between two bursts.

use std::io::{self, BufRead as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::Result;
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::cli::ServeArgs;
use crate::protocol::{Ready, ServerCommand, ServerEvent};

/// The server's side of standard input.
pub(crate) struct Control {
    /// There may be a command; the loop reads nothing else while this is false.
    told: Arc<AtomicBool>,
    /// Becomes readable with each command, for loops that sleep.
    wake: Arc<OwnedFd>,
    commands: Receiver<ServerCommand>,
    /// Set by SIGINT and SIGTERM.
    interrupted: Arc<AtomicBool>,
}

impl Control {
    /// Starts to read standard input, on other cores than `core`, to which the calling thread is bound.
    pub(crate) fn start(core: Option<usize>) -> Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let told = Arc::new(AtomicBool::new(false));
        let interrupted = program::stop_signal()?;
        let (sender, commands) = channel();
        let control = Self { told: Arc::clone(&told), wake: Arc::clone(&wake), commands, interrupted };
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

    /// What ends the server when it is set, and is set by SIGINT and SIGTERM.
    pub(crate) fn interruption(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupted)
    }

    /// The next command, if there is one.
    pub(super) fn next(&self) -> Option<ServerCommand> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Some(ServerCommand::Stop);
        }
        if !self.told.load(Ordering::Acquire) {
            return None;
        }
        // First this, then the look: a command that comes in between is seen now or the next time.
        self.told.store(false, Ordering::Relaxed);
        let command = self.commands.try_recv().ok()?;
        self.told.store(true, Ordering::Relaxed);
        Some(command)
    }

    /// Becomes readable when there is a command; to be read then.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes [`wake`](Self::wake) wait for the next command.
    pub(super) fn woken(&self) {
        // It holds nothing if two commands were one event.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }
}

/// Reads commands until there are no more.
fn read(sender: &Sender<ServerCommand>, told: &AtomicBool, wake: &OwnedFd) {
    let tell = |command| {
        let _ = sender.send(command);
        told.store(true, Ordering::Release);
        // A counter at its limit wakes the loop all the same.
        let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
    };
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match line.parse() {
            Ok(ServerCommand::Stop) => break,
            Ok(command) => tell(command),
            Err(error) => tracing::warn!("{error}"),
        }
    }
    tell(ServerCommand::Stop);
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

/// This machine cannot run the mode, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Skipped(pub(super) String);

/// Says that the server serves.
pub(super) fn tell_ready(args: &ServeArgs, domain: Option<String>, notes: &[&str]) -> Result<()> {
    let notes = notes.iter().map(|&note| note.to_owned()).collect();
    tell(&ServerEvent::Ready(Ready { mode: args.mode, pid: std::process::id(), domain, notes }))
}
