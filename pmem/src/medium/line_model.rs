//! A model of a medium that loses what a power cut may lose.

mod state;

use std::{
    io,
    ptr::{self, NonNull},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::state::{Chance, State};
use super::{DiskSync, Domain, FlushInstruction, LINE_BYTES, Medium, line_range};

/// Persistent memory for crash tests: a store or a DMA arrival dirties a 64-byte line, a flush sends the line's content of
/// that moment on its way, a fence makes durable what its own handle has sent.
///
/// [`crash`](Self::crash) gives what a power cut could leave behind: what was fenced for sure, and any subset of
/// the rest in pieces of 8 bytes. The memory itself is what the CPU sees: opening a region over the same model
/// again is a process that was killed while the machine ran on. [`of`](Self::of) makes models of other media.
///
/// [Handles](Medium::fork) share the memory, and nothing else: what one has flushed no other's fence makes durable.
pub struct LineModel {
    shared: Arc<Shared>,
    handle: usize,
}

/// What a [`LineModel`] is a model of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// Lines, of which a fence that fails may lose some for good: more than any medium does.
    Lines,
    /// Persistent memory behind caches that are lost.
    CacheLines,
    /// Persistent memory whose caches survive: what a handle has stored is durable with its next fence, flushed or not.
    FenceOnly,
    /// A file in the page cache. A page that was stored to is written back when it is asked for, and at any other time. Where
    /// that fails, the page stays as it is in memory and counts as written; who asked is told once.
    Pages,
    /// A disk, written from memory in whole blocks, and only in those that were asked for. The device reads a block whenever
    /// it likes before it is done; until then the block holds words of what was and of what comes. A killed process leaves
    /// what the disk has.
    Disk,
}

struct Shared {
    base: NonNull<u8>,
    len: usize,
    kind: ModelKind,
    state: Mutex<State>,
}

// SAFETY: the memory is plain and owned by the model; access is governed by `Medium`'s contracts.
unsafe impl Send for Shared {}
// SAFETY: as above; the bookkeeping is behind a mutex.
unsafe impl Sync for Shared {}

/// The page size that [`Medium::base`] promises.
const PAGE_BYTES: usize = 4096;

impl LineModel {
    /// Zeroed, durable memory of `len` bytes, rounded up to whole pages.
    pub fn new(len: usize) -> Arc<Self> {
        Self::from_image(vec![0; len.max(1)])
    }

    /// Memory that holds `image`, all of it durable: what a machine finds when it boots after
    /// [`crash`](Self::crash). Rounded up to whole pages.
    pub fn from_image(image: Vec<u8>) -> Arc<Self> {
        Self::of(ModelKind::Lines, image, 0)
    }

    /// A medium of some kind that holds `image`, all of it durable. What it does on its own follows from `seed`.
    pub fn of(kind: ModelKind, mut image: Vec<u8>, seed: u64) -> Arc<Self> {
        image.resize(image.len().max(1).next_multiple_of(PAGE_BYTES), 0);
        let memory = image.clone();
        Self::with_state(kind, &memory, State::new(image, Chance::new(seed)))
    }

    fn with_state(kind: ModelKind, memory: &[u8], state: State) -> Arc<Self> {
        let layout = layout(memory.len());
        // SAFETY: the layout has a size, since there is a page at least.
        let base = unsafe { std::alloc::alloc(layout) };
        let base = NonNull::new(base).unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
        // SAFETY: `base` was just allocated with this length.
        unsafe { ptr::copy_nonoverlapping(memory.as_ptr(), base.as_ptr(), memory.len()) };
        let shared = Shared { base, len: memory.len(), kind, state: Mutex::new(state) };
        Arc::new(Self { shared: Arc::new(shared), handle: 0 })
    }

    /// What this is a model of.
    pub fn kind(&self) -> ModelKind {
        self.shared.kind
    }

    /// What a power cut at this moment could leave behind. `random` gives uniform bits, and with them one of the
    /// possible images.
    pub fn crash(&self, mut random: impl FnMut() -> u64) -> Vec<u8> {
        self.shared.state().image(&self.shared, &mut random)
    }

    /// The lines that a power cut at this moment may leave otherwise than they are durable, in the order of their places:
    /// where each lies, and what else it may hold. A line may also hold words of several of these.
    pub fn unsure(&self) -> Vec<(usize, Vec<[u8; LINE_BYTES]>)> {
        self.shared.state().unsure(&self.shared)
    }

    /// Takes a crash image just before operation number `at_operation` (counted from the model's making, as
    /// [`operations`](Self::operations) does), in the midst of whatever goes on then.
    pub fn crash_at(&self, at_operation: u64, random: impl FnMut() -> u64 + Send + 'static) {
        self.shared.state().cut_power_at(at_operation, Box::new(random));
    }

    /// Keeps the memory as it is just before operation number `at_operation`, caches and all: what a process that
    /// is killed then leaves to the next one.
    pub fn kill_at(&self, at_operation: u64) {
        self.shared.state().kill_at(at_operation);
    }

    /// The image that [`crash_at`](Self::crash_at) asked for, once its moment has passed.
    pub fn crashed(&self) -> Option<Vec<u8>> {
        self.shared.state().image.take()
    }

    /// The memory that [`kill_at`](Self::kill_at) asked for, once its moment has passed.
    pub fn killed(&self) -> Option<Arc<Self>> {
        self.shared.state().killed.take()
    }

    /// The memory as it is now, caches and all: what a process that is killed leaves to the next one.
    pub fn kill(&self) -> Arc<Self> {
        self.shared.twin(&mut self.shared.state())
    }

    /// Whether the moment of [`crash_at`](Self::crash_at) or [`kill_at`](Self::kill_at) has passed and its
    /// outcome was not fetched yet.
    pub fn has_crashed(&self) -> bool {
        let state = self.shared.state();
        state.image.is_some() || state.killed.is_some()
    }

    /// Forgets a moment that was asked for and has not come.
    pub fn disarm(&self) {
        self.shared.state().disarm();
    }

    /// Makes all fences from now on fail with this message, or work again.
    pub fn fail_fences(&self, message: Option<&str>) {
        self.shared.state().fail_each(message);
    }

    /// Makes the fence after `others` more fail as `msync` does where the disk refuses a write: Linux keeps the pages in its
    /// cache, counts them as written though they are not, and tells the error once (fsync(2), "NOTES"). Later fences work,
    /// but for what is not stored anew. What the fence would have made durable may be so in part.
    pub fn fail_fence_once(&self, others: u32, message: &str) {
        self.shared.state().fail_once(others, message);
    }

    /// Whether [`fail_fence_once`](Self::fail_fence_once) still waits for its fence.
    pub fn will_fail_once(&self) -> bool {
        self.shared.state().will_fail_once()
    }

    /// Stores, DMA arrivals, flushes and fences so far.
    pub fn operations(&self) -> u64 {
        self.shared.state().operations
    }
}

impl Shared {
    /// Counts an operation, and keeps what a crash before it would leave if its time has come.
    fn operate(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        match state.burn() {
            Some(state::End::PowerCut(mut random)) => state.image = Some(state.image(self, &mut random)),
            Some(state::End::Kill) => state.killed = Some(self.twin(&mut state)),
            None => {}
        }
        state.operations += 1;
        if self.kind == ModelKind::Pages {
            state.write_back(self);
        }
        state
    }

    fn twin(&self, state: &mut State) -> Arc<LineModel> {
        if self.kind == ModelKind::Disk {
            // Memory is the process's, and what is with the device may come to its end or not.
            let image = state.image_by_chance(self);
            return LineModel::with_state(self.kind, &image.clone(), State::new(image, state.fork_chance()));
        }
        // SAFETY: as for `line`: the allocation has this length.
        let memory = unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) };
        LineModel::with_state(self.kind, memory, state.orphaned(self, memory))
    }

    fn write(&self, handle: usize, offset: usize, bytes: &[u8]) {
        let mut state = self.operate();
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len),
            "a store beyond the medium"
        );
        // SAFETY: the range was checked; `Medium::store` has the caller promise that nobody else uses it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(offset), bytes.len()) };
        state.dirtied(handle, lines(offset, bytes.len(), self.len));
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
}

fn layout(len: usize) -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(len, PAGE_BYTES).expect("an image that fits into memory has a layout")
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: allocated in `with_state` with the same layout.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), layout(self.len)) }
    }
}

fn lines(offset: usize, len: usize, end: usize) -> std::ops::Range<usize> {
    let range = line_range(offset, len, end);
    range.start / LINE_BYTES..range.end / LINE_BYTES
}

// SAFETY: the allocation lives as long as a handle does, at one address; every method checks its range.
unsafe impl Medium for LineModel {
    fn base(&self) -> NonNull<u8> {
        self.shared.base
    }

    fn len(&self) -> usize {
        self.shared.len
    }

    unsafe fn store(&self, offset: usize, bytes: &[u8]) {
        self.shared.write(self.handle, offset, bytes);
    }

    unsafe fn dma(&self, offset: usize, bytes: &[u8]) {
        self.shared.write(self.handle, offset, bytes);
    }

    fn flush(&self, offset: usize, len: usize) {
        let mut state = self.shared.operate();
        let lines = lines(offset, len, self.shared.len);
        match self.shared.kind {
            ModelKind::Lines | ModelKind::CacheLines => state.send(&self.shared, self.handle, lines),
            ModelKind::FenceOnly => {}
            ModelKind::Pages | ModelKind::Disk => state.ask_for(self.handle, lines),
        }
    }

    fn fence(&self) -> io::Result<()> {
        let mut state = self.shared.operate();
        state.finish(&self.shared, self.handle)?;
        state.start(&self.shared, self.handle)?;
        state.finish(&self.shared, self.handle)
    }

    fn start_fence(&self) -> io::Result<bool> {
        let mut state = self.shared.operate();
        state.finish(&self.shared, self.handle)?;
        state.start(&self.shared, self.handle)?;
        if self.fences_later() {
            return Ok(false);
        }
        state.finish(&self.shared, self.handle).map(|()| true)
    }

    fn is_fenced(&self) -> io::Result<bool> {
        let mut state = self.shared.operate();
        if self.fences_later() && state.goes_on(self.handle) {
            return Ok(false);
        }
        state.finish(&self.shared, self.handle).map(|()| true)
    }

    fn fences_later(&self) -> bool {
        matches!(self.shared.kind, ModelKind::Pages | ModelKind::Disk)
    }

    fn domain(&self) -> Domain {
        match self.shared.kind {
            ModelKind::Lines => Domain::Model,
            ModelKind::CacheLines => Domain::CacheLines(FlushInstruction::Clwb),
            ModelKind::FenceOnly => Domain::FenceOnly,
            ModelKind::Pages => Domain::Msync,
            ModelKind::Disk => {
                Domain::Disk(DiskSync { is_by_write: false, by_write_us: None, by_sync_us: 0 })
            }
        }
    }

    fn fork(self: Arc<Self>) -> Arc<dyn Medium> {
        let handle = self.shared.state().add_handle();
        Arc::new(Self { shared: self.shared.clone(), handle })
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

    /// What a power cut leaves at a place, in any of many ways.
    fn possible(model: &LineModel, at: usize) -> Vec<u8> {
        let mut chance = Chance::new(7);
        let mut seen: Vec<u8> = (0..200).map(|_| model.crash(|| chance.next())[at]).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn a_fence_makes_durable_what_its_own_handle_has_flushed() {
        for kind in [ModelKind::Lines, ModelKind::CacheLines, ModelKind::Pages, ModelKind::Disk] {
            let model = LineModel::of(kind, vec![0; 8192], 1);
            let other = model.clone().fork();
            store(&model, 0, b"1");
            model.flush(0, 1);
            // SAFETY: single-threaded, and no references are made.
            unsafe { other.store(4096, b"2") };
            other.flush(4096, 1);
            other.fence().unwrap();
            assert_eq!(possible(&model, 4096), b"2", "{kind:?}");
            assert!(possible(&model, 0).contains(&0), "{kind:?}");
            model.fence().unwrap();
            assert_eq!(possible(&model, 0), b"1", "{kind:?}");
        }
    }

    #[test]
    fn where_caches_survive_a_fence_is_enough() {
        let model = LineModel::of(ModelKind::FenceOnly, vec![0; 4096], 1);
        let other = model.clone().fork();
        store(&model, 0, b"1");
        other.fence().unwrap();
        assert_eq!(possible(&model, 0), [0, b'1'], "another handle's is not");
        model.fence().unwrap();
        assert_eq!(possible(&model, 0), b"1");
    }

    #[test]
    fn a_page_is_written_back_at_any_time_and_a_block_of_a_disk_when_it_is_asked_for() {
        for (kind, expected) in [(ModelKind::Pages, &[0, 1][..]), (ModelKind::Disk, &[0])] {
            let model = LineModel::of(kind, vec![0; 8192], 1);
            store(&model, 0, &[1]);
            assert_eq!(possible(&model, 0), expected, "{kind:?}");
            // All of the page or block, and not only what was flushed.
            store(&model, 4000, &[1]);
            model.flush(0, 1);
            assert!(!model.start_fence().unwrap());
            assert_eq!(possible(&model, 4000), [0, 1], "{kind:?}");
            store(&model, 8, &[2]);
            while !model.is_fenced().unwrap() {}
            assert_eq!((possible(&model, 0), possible(&model, 4000)), (vec![1], vec![1]), "{kind:?}");
            assert!(possible(&model, 8).contains(&0) || possible(&model, 8) == [2], "{kind:?}");
        }
    }

    #[test]
    fn pages_that_could_not_be_written_count_as_written_and_one_handle_is_told_once() {
        let model = LineModel::of(ModelKind::Pages, vec![0; 8192], 1);
        let other = model.clone().fork();
        store(&model, 0, &[1; 4096]);
        model.flush(0, 1);
        model.fail_fence_once(0, "no space");
        assert!(model.fence().is_err());
        other.flush(0, 1);
        assert!(other.fence().is_ok() && model.fence().is_ok());
        assert_eq!(crash(&model, 0), crash(&model, 2), "nothing more comes of it");
        assert!(crash(&model, 2)[..4096].contains(&0), "it is in memory, and not all of it elsewhere");
    }

    #[test]
    fn a_killed_process_leaves_its_caches_and_of_a_disk_what_that_has() {
        for (kind, expected) in [(ModelKind::Lines, 1), (ModelKind::Pages, 1), (ModelKind::Disk, 0)] {
            let model = LineModel::of(kind, vec![0; 4096], 1);
            store(&model, 0, &[1]);
            assert_eq!(model.kill().shared.line(0)[0], expected, "{kind:?}");
        }
    }
}
