//! Media where a fence is some writes and a sync: memory in front, and a file behind it.
//!
//! A fence takes as long as a device does, a thousand times as long as an instruction. So it can be started, and looked at
//! until it is done; meanwhile what is flushed waits for the next one.

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::OwnedFd,
    ptr::{self, NonNull},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Domain, Medium, Written,
    dirty::Dirty,
    line_range,
    queue::{Ask, Queue},
};

/// Memory that a file is behind.
pub(crate) trait Behind: Send + Sync + 'static {
    /// Where the memory is, and how long: at the same address for as long as this lives.
    fn memory(&self) -> (NonNull<u8>, usize);

    /// The file, opened once more. Linux tells a failed write once to each opening of a file (fsync(2)): threads with one
    /// between them would take each other's errors.
    fn open(&self) -> io::Result<File>;

    /// The unit in which the file is written.
    fn block_bytes(&self) -> usize;

    /// What lies no further apart is written as one.
    fn gap_bytes(&self) -> usize;

    /// Keeps other handles from [`fence`](Medium::fence), if blocks are written from memory at a time of the device's: of
    /// two writes of a block that are under way at once, the one that was read first may come last. Blocks that hold
    /// something of several shards, their headers, are not written by fences that are started.
    fn alone(&self) -> Option<MutexGuard<'_, ()>> {
        None
    }

    /// Has a range brought into memory, as far as it is not there.
    fn will_read(&self, offset: usize, len: usize) {
        let _ = (offset, len);
    }

    /// What has to be asked of the kernel so that these ranges, which are not empty, are durable.
    fn asks(&self, ranges: &[Range<usize>], asks: &mut Vec<Ask>);

    /// Does the same in the calling thread, where the kernel has no io_uring.
    fn block(&self, file: &File, ranges: &[Range<usize>]) -> io::Result<()>;

    /// What flush and fence are.
    fn domain(&self) -> Domain;

    /// What the kernel said when it could not write. It may be told to one handle only, and is then said to all.
    fn failure(&self) -> &OnceLock<String>;
}

/// One thread's handle of such a medium.
pub(crate) struct Handle<B> {
    // The kernel is done with the memory before that goes.
    state: Mutex<State>,
    behind: Arc<B>,
    written_bytes: AtomicU64,
    requests: AtomicU64,
}

struct State {
    dirty: Dirty,
    file: io::Result<Way>,
    /// A fence was started and is not known to be done.
    is_underway: bool,
    /// Where was flushed last: a log goes on at one place, and payload at another.
    windows: [usize; 2],
}

/// What is brought into memory where something in it was flushed: what is stored next lies there too, as a rule, and would
/// wait for its page.
const WINDOW_BYTES: usize = 1 << 20;

/// How the kernel is asked.
enum Way {
    Queue(Box<Queue>),
    Block(File),
}

impl<B: Behind> Handle<B> {
    pub(crate) fn new(behind: Arc<B>) -> Self {
        let file = behind.open().map(|file| match file.try_clone().and_then(Queue::new) {
            Ok(queue) => Way::Queue(Box::new(queue)),
            Err(error) => {
                tracing::info!("io_uring is not to be had ({error}): each commit holds up its core");
                Way::Block(file)
            }
        });
        let dirty = Dirty::new(behind.block_bytes());
        let state = Mutex::new(State { dirty, file, is_underway: false, windows: [usize::MAX; 2] });
        Self { state, behind, written_bytes: AtomicU64::new(0), requests: AtomicU64::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What another handle, or this one, has been told.
    fn check(&self) -> io::Result<()> {
        match self.behind.failure().get() {
            None => Ok(()),
            Some(why) => Err(io::Error::other(format!("an earlier write to the same store failed: {why}"))),
        }
    }

    /// Notes a failure. Trying again would only seem to help: Linux counts the pages as written then, whether they are or
    /// not (fsync(2), "NOTES").
    fn told<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &outcome {
            let _ = self.behind.failure().set(error.to_string());
        }
        outcome
    }

    /// Starts what makes durable what was flushed; true if that is done.
    fn start(&self, state: &mut State) -> io::Result<bool> {
        self.check()?;
        let (ranges, dirty_bytes) = state.dirty.merged(self.behind.gap_bytes());
        if ranges.is_empty() {
            return Ok(true);
        }
        let asks = |asks: &mut Vec<Ask>| {
            self.behind.asks(ranges, asks);
            self.asked(dirty_bytes, asks.len());
        };
        let started = match &mut state.file {
            // SAFETY: the ranges lie in memory that `behind` keeps, and that goes after the queue.
            Ok(Way::Queue(queue)) => unsafe { queue.start(asks) }.map(|()| false),
            Ok(Way::Block(file)) => {
                self.asked(dirty_bytes, ranges.len() + 1);
                self.behind.block(file, ranges).map(|()| true)
            }
            Err(error) => {
                let why = format!("the store cannot be opened once more, for another core: {error}");
                return Err(io::Error::new(error.kind(), why));
            }
        };
        let is_done = self.told(started)?;
        state.dirty.clear();
        state.is_underway = !is_done;
        if is_done {
            // What another handle has been told meanwhile ends this one's work too.
            self.check()?;
        }
        Ok(is_done)
    }

    /// Counts what is asked of the file.
    fn asked(&self, bytes: usize, requests: usize) {
        self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.requests.fetch_add(requests as u64, Ordering::Relaxed);
    }

    /// Looks at what was started, or waits for it; whether it is done.
    fn finish(&self, state: &mut State, waits: bool) -> io::Result<bool> {
        if state.is_underway
            && let Ok(Way::Queue(queue)) = &mut state.file
        {
            let done = if waits { queue.wait().map(|()| true) } else { queue.is_done() };
            if !self.told(done)? {
                return Ok(false);
            }
        }
        state.is_underway = false;
        self.check()?;
        Ok(true)
    }
}

// SAFETY: `behind` keeps the memory at one address, and every method stays within it.
unsafe impl<B: Behind> Medium for Handle<B> {
    fn base(&self) -> NonNull<u8> {
        self.behind.memory().0
    }

    fn len(&self) -> usize {
        self.behind.memory().1
    }

    unsafe fn store(&self, offset: usize, bytes: &[u8]) {
        let (base, len) = self.behind.memory();
        debug_assert!(offset + bytes.len() <= len);
        // SAFETY: the caller promises that the range is inside and that nobody else uses it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), base.as_ptr().add(offset), bytes.len()) }
    }

    unsafe fn dma(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: the same contract.
        unsafe { self.store(offset, bytes) }
    }

    fn flush(&self, offset: usize, len: usize) {
        let lines = line_range(offset, len, self.len());
        let mut state = self.state();
        state.dirty.add(lines.start, lines.end.min(self.len()));
        let window = lines.start / WINDOW_BYTES;
        if !state.windows.contains(&window) {
            state.windows = [window, state.windows[0]];
            self.behind.will_read(window * WINDOW_BYTES, WINDOW_BYTES);
        }
    }

    fn fence(&self) -> io::Result<()> {
        let mut state = self.state();
        self.finish(&mut state, true)?;
        let _alone = self.behind.alone();
        if !self.start(&mut state)? {
            self.finish(&mut state, true)?;
        }
        Ok(())
    }

    fn start_fence(&self) -> io::Result<bool> {
        let mut state = self.state();
        self.finish(&mut state, true)?;
        self.start(&mut state)
    }

    fn is_fenced(&self) -> io::Result<bool> {
        self.finish(&mut self.state(), false)
    }

    fn fences_later(&self) -> bool {
        matches!(self.state().file, Ok(Way::Queue(_)))
    }

    fn ring_bell(&self, bell: Arc<OwnedFd>) {
        if let Ok(Way::Queue(queue)) = &mut self.state().file {
            queue.ring_bell(bell);
        }
    }

    fn will_read(&self, offset: usize, len: usize) {
        self.behind.will_read(offset, len);
    }

    fn domain(&self) -> Domain {
        self.behind.domain()
    }

    fn written(&self) -> Written {
        Written {
            bytes: self.written_bytes.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
        }
    }

    fn fork(self: Arc<Self>) -> Arc<dyn Medium> {
        Arc::new(Self::new(self.behind.clone()))
    }
}
