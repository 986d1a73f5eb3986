//! Writes and syncs of a file that are given to the kernel and looked at until they are done, through io_uring.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use io_uring::{
    IoUring,
    opcode::{Fsync, SyncFileRange, Write},
    squeue::{self, Flags},
    types::{Fd, FsyncFlags},
};

/// What the kernel is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// To write bytes that lie at `from` to `at`; durable with that if `is_synced`.
    Write { from: *const u8, len: u32, at: u64, is_synced: bool },
    /// To write dirty pages back, which makes them no more durable than the device's cache is.
    WriteBack { at: u64, len: u32 },
    /// To make durable what was asked for before, and dirty pages of a range.
    Sync { at: u64, len: u32 },
}

// SAFETY: the address is only given to the kernel, by whoever has promised that it is good for that.
unsafe impl Send for Ask {}

/// Asks with the kernel at a time.
const DEPTH: u32 = 64;
const RING_ENTRIES: u32 = 2 * DEPTH;
/// What completes when the bell has been rung.
const BELL: u64 = u64::MAX;

/// A file, and what the kernel has been asked to do with it.
pub(super) struct Queue {
    // The ring goes before what the kernel reads.
    ring: IoUring,
    file: File,
    asked: Vec<Ask>,
    /// The first that the kernel does not have yet.
    next: usize,
    underway: u32,
    failure: Option<io::Error>,
    /// Written to when all is done.
    bell: Option<Arc<OwnedFd>>,
    ringing: u32,
}

/// What is written to the bell, which is a counter.
static ONE: [u8; 8] = 1_u64.to_ne_bytes();

impl Queue {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let ring = IoUring::builder().setup_clamp().build(RING_ENTRIES)?;
        let asked = Vec::with_capacity(RING_ENTRIES as usize);
        Ok(Self { ring, file, asked, next: 0, underway: 0, failure: None, bell: None, ringing: 0 })
    }

    /// Has `bell`, an eventfd, written to whenever all that was asked for is done.
    pub(super) fn ring_bell(&mut self, bell: Arc<OwnedFd>) {
        self.bell = Some(bell);
    }

    /// Starts what `fill` asks for, in its order: a [`Sync`](Ask::Sync) waits for all before it. Nothing else may be under
    /// way.
    ///
    /// # Safety
    /// What is to be written stays readable until [`is_done`](Self::is_done) says so, or this is dropped.
    pub(super) unsafe fn start(&mut self, fill: impl FnOnce(&mut Vec<Ask>)) -> io::Result<()> {
        assert!(self.next == self.asked.len() && self.underway == 0, "one after the other");
        self.asked.clear();
        fill(&mut self.asked);
        self.next = 0;
        self.go_on()
    }

    /// Whether all is done that was asked for.
    ///
    /// # Errors
    /// Some of it failed, and all of it has come back.
    pub(super) fn is_done(&mut self) -> io::Result<bool> {
        self.take_completions();
        if self.failure.is_none() {
            self.go_on()?;
        }
        if self.underway > 0 {
            return Ok(false);
        }
        match self.failure.take() {
            None => Ok(self.next == self.asked.len()),
            Some(failure) => {
                self.next = self.asked.len();
                Err(failure)
            }
        }
    }

    /// Waits until all is done.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        while !self.is_done()? {
            retried(self.ring.submit_and_wait(1))?;
        }
        Ok(())
    }

    /// Gives the kernel as much of what is asked for as it takes.
    fn go_on(&mut self) -> io::Result<()> {
        let begin = self.next;
        while self.next < self.asked.len() && self.underway < DEPTH {
            let entry = self.entry(self.asked[self.next]).user_data(self.next as u64);
            // SAFETY: what the entry names stays until its completion, as `start`'s caller has promised.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                break;
            }
            self.next += 1;
            self.underway += 1;
        }
        // At the end of a part, too: there is more to be given.
        if begin < self.next
            && let Some(bell) = &self.bell
        {
            let ring = Write::new(Fd(bell.as_raw_fd()), ONE.as_ptr(), ONE.len() as u32).build();
            let ring = ring.flags(Flags::IO_DRAIN).user_data(BELL);
            // SAFETY: the counter is static, and the bell is open for as long as the ring is.
            let pushed = unsafe { self.ring.submission().push(&ring) };
            self.ringing += u32::from(pushed.is_ok());
        }
        if self.ring.submission().is_empty() { Ok(()) } else { retried(self.ring.submit()) }
    }

    fn entry(&self, ask: Ask) -> squeue::Entry {
        let file = Fd(self.file.as_raw_fd());
        match ask {
            Ask::Write { from, len, at, is_synced } => {
                let flags = if is_synced { libc::RWF_DSYNC } else { 0 };
                Write::new(file, from, len).offset(at).rw_flags(flags).build()
            }
            Ask::WriteBack { at, len } => {
                const WHOLE: u32 = libc::SYNC_FILE_RANGE_WAIT_BEFORE
                    | libc::SYNC_FILE_RANGE_WRITE
                    | libc::SYNC_FILE_RANGE_WAIT_AFTER;
                SyncFileRange::new(file, len).offset(at).flags(WHOLE).build()
            }
            Ask::Sync { at, len } => {
                let sync = Fsync::new(file).offset(at).len(len).flags(FsyncFlags::DATASYNC);
                sync.build().flags(Flags::IO_DRAIN)
            }
        }
    }

    fn take_completions(&mut self) {
        for entry in self.ring.completion() {
            if entry.user_data() == BELL {
                self.ringing -= 1;
                continue;
            }
            self.underway -= 1;
            let wanted = match self.asked[entry.user_data() as usize] {
                Ask::Write { len, .. } => len as i32,
                Ask::WriteBack { .. } | Ask::Sync { .. } => 0,
            };
            let failure = match entry.result() {
                result if result == wanted => continue,
                result if result < 0 => io::Error::from_raw_os_error(-result),
                result => io::Error::other(format!("the device took {result} of {wanted} bytes")),
            };
            self.failure.get_or_insert(failure);
        }
    }
}

/// A call that a signal, or want of memory for the moment, ends has to be made again; what was to be given is still there.
fn retried(called: io::Result<usize>) -> io::Result<()> {
    match called {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
            _ => Err(error),
        },
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.failure.get_or_insert(io::ErrorKind::Interrupted.into());
        // What is being written is about to be unmapped, and something else may come to lie there.
        while self.underway > 0 || self.ringing > 0 {
            if let Err(error) = retried(self.ring.submit_and_wait(1)) {
                tracing::error!(%error, "waiting for writes to end failed");
                return;
            }
            self.take_completions();
        }
    }
}
