//! A model of persistent memory that loses what a power cut may lose.

use std::{
    collections::BTreeMap,
    io,
    ptr::{self, NonNull},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Domain, LINE_BYTES, Medium, line_range};

/// Bytes that reach the medium together or not at all.
const ATOM_BYTES: usize = 8;

/// Persistent memory for crash tests: a store or a DMA arrival dirties a 64-byte line, a flush makes the line's
/// content of that moment pending, a fence makes what is pending durable.
///
/// [`crash`](Self::crash) gives what a power cut could leave behind: what was fenced for sure, and any subset of
/// the rest in pieces of 8 bytes. The memory itself is what the CPU sees: opening a region over the same model
/// again is a process that was killed while the machine ran on.
pub struct LineModel {
    base: NonNull<u8>,
    len: usize,
    state: Mutex<State>,
}

// SAFETY: the memory is plain and owned by the model; access is governed by `Medium`'s contracts.
unsafe impl Send for LineModel {}
// SAFETY: as above; the bookkeeping is behind a mutex.
unsafe impl Sync for LineModel {}

struct State {
    durable: Vec<u8>,
    /// Lines, by number, whose memory differs from what is durable or may do so.
    lines: BTreeMap<usize, Line>,
    operations: u64,
    fuse: Option<Fuse>,
    image: Option<Vec<u8>>,
    killed: Option<Arc<LineModel>>,
    failure: Option<Failure>,
}

/// What fences do instead of making anything durable.
enum Failure {
    /// They all say this.
    Each(String),
    /// The one after so many says this, and what waits for it is lost to all that come after.
    Once(u32, String),
}

#[derive(Clone, Copy)]
struct Line {
    dirty: bool,
    pending: Option<[u8; LINE_BYTES]>,
    /// Whether it counts as durable and is not: no flush does anything for it, until it is stored to again.
    is_lost: bool,
}

impl Line {
    const CLEAN: Self = Self { dirty: false, pending: None, is_lost: false };
}

struct Fuse {
    at_operation: u64,
    end: End,
}

enum End {
    PowerCut(Box<dyn FnMut() -> u64 + Send>),
    Kill,
}

/// The page size that [`Medium::base`] promises.
const PAGE_BYTES: usize = 4096;

impl LineModel {
    /// Zeroed, durable memory of `len` bytes, rounded up to whole pages.
    pub fn new(len: usize) -> Arc<Self> {
        Self::from_image(vec![0; len.max(1)])
    }

    /// Memory that holds `image`, all of it durable: what a machine finds when it boots after
    /// [`crash`](Self::crash). Rounded up to whole pages.
    pub fn from_image(mut image: Vec<u8>) -> Arc<Self> {
        image.resize(image.len().max(1).next_multiple_of(PAGE_BYTES), 0);
        Self::with_state(&image.clone(), image, BTreeMap::new())
    }

    fn with_state(memory: &[u8], durable: Vec<u8>, lines: BTreeMap<usize, Line>) -> Arc<Self> {
        let layout = Self::layout(memory.len());
        // SAFETY: the layout has a size, since there is a page at least.
        let base = unsafe { std::alloc::alloc(layout) };
        let base = NonNull::new(base).unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
        // SAFETY: `base` was just allocated with this length.
        unsafe { ptr::copy_nonoverlapping(memory.as_ptr(), base.as_ptr(), memory.len()) };
        let state =
            State { durable, lines, operations: 0, fuse: None, image: None, killed: None, failure: None };
        Arc::new(Self { base, len: memory.len(), state: Mutex::new(state) })
    }

    /// What a power cut at this moment could leave behind. `random` gives uniform bits, and with them one of the
    /// possible images.
    pub fn crash(&self, mut random: impl FnMut() -> u64) -> Vec<u8> {
        let state = self.state();
        self.image(&state, &mut random)
    }

    /// Takes a crash image just before operation number `at_operation` (counted from the model's making, as
    /// [`operations`](Self::operations) does), in the midst of whatever goes on then.
    pub fn crash_at(&self, at_operation: u64, random: impl FnMut() -> u64 + Send + 'static) {
        self.state().fuse = Some(Fuse { at_operation, end: End::PowerCut(Box::new(random)) });
    }

    /// Keeps the memory as it is just before operation number `at_operation`, caches and all: what a process that
    /// is killed then leaves to the next one.
    pub fn kill_at(&self, at_operation: u64) {
        self.state().fuse = Some(Fuse { at_operation, end: End::Kill });
    }

    /// The image that [`crash_at`](Self::crash_at) asked for, once its moment has passed.
    pub fn crashed(&self) -> Option<Vec<u8>> {
        self.state().image.take()
    }

    /// The memory that [`kill_at`](Self::kill_at) asked for, once its moment has passed.
    pub fn killed(&self) -> Option<Arc<Self>> {
        self.state().killed.take()
    }

    /// Whether the moment of [`crash_at`](Self::crash_at) or [`kill_at`](Self::kill_at) has passed and its
    /// outcome was not fetched yet.
    pub fn has_crashed(&self) -> bool {
        let state = self.state();
        state.image.is_some() || state.killed.is_some()
    }

    /// Forgets a moment that was asked for and has not come.
    pub fn disarm(&self) {
        self.state().fuse = None;
    }

    /// Makes all fences from now on fail with this message, or work again.
    pub fn fail_fences(&self, message: Option<&str>) {
        self.state().failure = message.map(|message| Failure::Each(message.to_owned()));
    }

    /// Makes the fence after `others` more fail as `msync` does where the disk refuses a write: Linux keeps the pages in its
    /// cache, counts them as written though they are not, and tells the error once (fsync(2), "NOTES"). Later fences work,
    /// but for what is not stored anew.
    pub fn fail_fence_once(&self, others: u32, message: &str) {
        self.state().failure = Some(Failure::Once(others, message.to_owned()));
    }

    /// Whether [`fail_fence_once`](Self::fail_fence_once) still waits for its fence.
    pub fn will_fail_once(&self) -> bool {
        matches!(self.state().failure, Some(Failure::Once(..)))
    }

    /// Stores, DMA arrivals, flushes and fences so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    fn image(&self, state: &State, random: &mut dyn FnMut() -> u64) -> Vec<u8> {
        let mut image = state.durable.clone();
        for (&number, line) in &state.lines {
            let at = number * LINE_BYTES;
            let seen = self.line(number);
            // Often a line is lost or saved as a whole; that finds what needs several lines of the same age.
            let whole = random();
            let whole = whole.is_multiple_of(2).then(|| random() % 3);
            for atom in (0..LINE_BYTES).step_by(ATOM_BYTES) {
                // A line leaves the cache whenever it likes: what is durable, what was flushed and what is
                // there now may each be what the medium holds.
                let bytes = match (whole.unwrap_or_else(|| random() % 3), line.pending) {
                    (0, _) => continue,
                    (1, Some(pending)) => pending,
                    _ if line.is_lost => continue,
                    _ => seen,
                };
                image[at + atom..at + atom + ATOM_BYTES].copy_from_slice(&bytes[atom..atom + ATOM_BYTES]);
            }
        }
        image
    }

    /// Counts an operation, and keeps what a crash before it would leave if its time has come.
    fn operate(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        let operations = state.operations;
        let due = state.fuse.take_if(|fuse| fuse.at_operation <= operations);
        match due.map(|fuse| fuse.end) {
            Some(End::PowerCut(mut random)) => state.image = Some(self.image(&state, &mut random)),
            Some(End::Kill) => {
                // SAFETY: as for `line`: the allocation has this length.
                let memory = unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) };
                let twin = Self::with_state(memory, state.durable.clone(), state.lines.clone());
                state.killed = Some(twin);
            }
            None => {}
        }
        state.operations += 1;
        state
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        let mut state = self.operate();
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len),
            "a store beyond the medium"
        );
        // SAFETY: the range was checked; `Medium::store` has the caller promise that nobody else uses it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(offset), bytes.len()) };
        for number in lines(offset, bytes.len(), self.len) {
            let line = state.lines.entry(number).or_insert(Line::CLEAN);
            (line.dirty, line.is_lost) = (true, false);
        }
    }

    /// What the CPU sees of a line.
    fn line(&self, number: usize) -> [u8; LINE_BYTES] {
        let mut line = [0; LINE_BYTES];
        // SAFETY: the length is a multiple of the line, and `number` comes from a range inside of it.
        unsafe {
            ptr::copy_nonoverlapping(
                self.base.as_ptr().add(number * LINE_BYTES),
                line.as_mut_ptr(),
                LINE_BYTES,
            )
        };
        line
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layout(len: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(len, PAGE_BYTES)
            .expect("an image that fits into memory has a layout")
    }
}

impl Drop for LineModel {
    fn drop(&mut self) {
        // SAFETY: allocated in `from_image` with the same layout.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), Self::layout(self.len)) }
    }
}

fn lines(offset: usize, len: usize, end: usize) -> std::ops::Range<usize> {
    let range = line_range(offset, len, end);
    range.start / LINE_BYTES..range.end / LINE_BYTES
}

// SAFETY: the allocation lives as long as the model, at one address; every method checks its range.
unsafe impl Medium for LineModel {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }

    unsafe fn store(&self, offset: usize, bytes: &[u8]) {
        self.write(offset, bytes);
    }

    unsafe fn dma(&self, offset: usize, bytes: &[u8]) {
        self.write(offset, bytes);
    }

    fn flush(&self, offset: usize, len: usize) {
        let mut state = self.operate();
        for number in lines(offset, len, self.len) {
            if let Some(line) = state.lines.get_mut(&number).filter(|line| line.dirty) {
                *line = Line { pending: Some(self.line(number)), ..Line::CLEAN };
            }
        }
    }

    fn fence(&self) -> io::Result<()> {
        let mut state = self.operate();
        match &mut state.failure {
            None => {}
            Some(Failure::Each(message)) => return Err(io::Error::other(message.clone())),
            Some(Failure::Once(others, _)) if *others > 0 => *others -= 1,
            Some(Failure::Once(_, message)) => {
                let error = io::Error::other(message.clone());
                state.failure = None;
                for line in state.lines.values_mut().filter(|line| line.pending.is_some()) {
                    (line.pending, line.is_lost) = (None, !line.dirty);
                }
                return Err(error);
            }
        }
        let State { durable, lines, .. } = &mut *state;
        lines.retain(|number, line| {
            if let Some(pending) = line.pending.take() {
                durable[number * LINE_BYTES..][..LINE_BYTES].copy_from_slice(&pending);
            }
            line.dirty || line.is_lost
        });
        Ok(())
    }

    fn domain(&self) -> Domain {
        Domain::Model
    }

    fn fork(self: Arc<Self>) -> Arc<dyn Medium> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash(model: &LineModel, choice: u64) -> Vec<u8> {
        model.crash(|| choice)
    }

    fn store(model: &LineModel, offset: usize, bytes: &[u8]) {
        // SAFETY: single-threaded, and no references are made.
        unsafe { model.store(offset, bytes) }
    }

    #[test]
    fn only_what_was_flushed_and_then_fenced_is_sure() {
        let model = LineModel::new(4096);
        store(&model, 0, b"fenced");
        model.flush(0, 6);
        model.fence().unwrap();
        store(&model, 64, b"flushed");
        model.flush(64, 7);
        store(&model, 128, b"dirty");
        let image = crash(&model, 0);
        assert_eq!(
            (&image[..6], &image[64..71], &image[128..133]),
            (&b"fenced"[..], &[0; 7][..], &[0; 5][..])
        );
        let image = crash(&model, 1);
        assert_eq!(
            (&image[..6], &image[64..71], &image[128..133]),
            (&b"fenced"[..], &b"flushed"[..], &b"dirty"[..])
        );
    }

    #[test]
    fn a_fence_makes_durable_what_was_there_at_the_flush() {
        let model = LineModel::new(4096);
        store(&model, 0, b"first");
        model.flush(0, 5);
        store(&model, 0, b"later");
        model.fence().unwrap();
        assert_eq!(&crash(&model, 0)[..5], b"first");
        assert_eq!(&crash(&model, 2)[..5], b"later");
    }

    #[test]
    fn what_a_failed_fence_has_lost_is_saved_by_nothing_but_a_new_store() {
        let model = LineModel::new(4096);
        store(&model, 0, b"refused");
        model.flush(0, 7);
        model.fail_fence_once(0, "no space");
        assert_eq!(model.fence().unwrap_err().to_string(), "no space");
        model.flush(0, 7);
        model.fence().unwrap();
        for choice in 0..3 {
            assert_eq!(&crash(&model, choice)[..7], &[0; 7]);
        }
        store(&model, 0, b"refused");
        model.flush(0, 7);
        model.fence().unwrap();
        assert_eq!(&crash(&model, 0)[..7], b"refused");
    }

    #[test]
    fn a_line_is_lost_in_pieces_of_eight_bytes() {
        let model = LineModel::new(4096);
        store(&model, 0, &[7; 24]);
        let mut choices = [1, 0, 2].into_iter().chain(std::iter::repeat(0));
        let image = model.crash(|| choices.next().unwrap());
        assert_eq!(image[..24], [[0; 8], [7; 8], [0; 8]].concat());
    }

    #[test]
    fn a_crash_is_taken_in_the_midst_of_the_operations() {
        let model = LineModel::new(4096);
        model.crash_at(2, || 2);
        store(&model, 0, b"a");
        store(&model, 1, b"b");
        assert!(!model.has_crashed());
        store(&model, 2, b"c");
        assert_eq!(&model.crashed().unwrap()[..3], b"ab\0");
        assert_eq!(model.operations(), 3);
    }
}
