//! Named buffers: the arena of a shard, counted references to its buffers, and pieces of them.

mod claims;
mod device;
mod extent;
mod shelf;
mod state;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    mem::ManuallyDrop,
    ptr,
    rc::Rc,
    slice,
    sync::Arc,
};

pub use extent::{Buffer, Extent};
pub use shelf::Shelf;

use self::{
    claims::Claims,
    state::{MANY_LOGGED, MANY_REFS, NOBODY, State},
};

use crate::{
    format::{
        crc,
        entry::{BufferId, ExtentName},
        geometry::{ALIGN_BYTES, Geometry, MAX_BUFFERS},
    },
    medium::{LINE_BYTES, Medium, MediumLock, prefer_huge_pages},
};

// A line holds bytes of one buffer only: flushing one touches no other.
const _: () = assert!(ALIGN_BYTES.is_multiple_of(LINE_BYTES));
const _: () = assert!(MAX_BUFFERS < NOBODY);

/// The buffers of one shard. Cloning copies a handle, not buffers.
#[derive(Clone)]
pub struct Arena(Rc<Inner>);

struct Inner {
    /// Keeps others out of the medium. It ends before the medium does, as the next one may be mapped there.
    lock: Arc<MediumLock>,
    medium: Arc<dyn Medium>,
    /// Where the first buffer lies in the medium, and where that is mapped for as long as the medium lives.
    offset: usize,
    base: *mut u8,
    len_bytes: usize,
    buffer_bytes: u16,
    /// The [`reciprocal`] of that.
    reciprocal: u64,
    states: Box<[Cell<State>]>,
    /// The free buffer that is given out next, and how many are free: a stack, so that a small load stays in few lines and
    /// pages.
    first_free: Cell<u32>,
    free: Cell<usize>,
    claims: Claims,
    /// References beyond those that a buffer's state counts.
    many: RefCell<BTreeMap<u32, u64>>,
    /// Buffers that the log references, and payload bytes copied by the CPU outside of the log.
    logged_buffers: Cell<u32>,
    copied_bytes: Cell<u64>,
    /// Whether the medium outlives the arena, since a device may write to it.
    stays_mapped: Cell<bool>,
}

impl Arena {
    /// A shard's arena. [`rebuild_free_list`](Self::rebuild_free_list) frees its buffers.
    pub(crate) fn new(
        medium: Arc<dyn Medium>,
        lock: Arc<MediumLock>,
        geometry: &Geometry,
        shard: u32,
    ) -> Self {
        let Geometry { buffers, buffer_bytes, .. } = *geometry;
        let (offset, len_bytes) = (geometry.arena_of(shard), geometry.arena_bytes(shard));
        assert!(buffers as usize * buffer_bytes as usize <= len_bytes && offset + len_bytes <= medium.len());
        // SAFETY: zeros are a state: that of a buffer without references, which is not on the free list.
        let states = unsafe { Box::<[Cell<State>]>::new_zeroed_slice(buffers as usize).assume_init() };
        prefer_huge_pages(&states);
        Self(Rc::new(Inner {
            base: medium.base().as_ptr().wrapping_add(offset),
            medium,
            lock,
            offset,
            len_bytes,
            buffer_bytes,
            reciprocal: reciprocal(buffer_bytes),
            states,
            first_free: Cell::new(NOBODY),
            free: Cell::new(0),
            claims: Claims::new(),
            many: RefCell::default(),
            logged_buffers: Cell::new(0),
            copied_bytes: Cell::new(0),
            stays_mapped: Cell::new(false),
        }))
    }

    /// A free buffer, or none while all are in use.
    #[inline]
    pub fn take(&self) -> Option<Buffer> {
        self.0.take_as(State::TAKEN).map(|id| self.whole(id))
    }

    /// How many buffers are free.
    #[inline]
    pub fn free_buffers(&self) -> usize {
        self.0.free.get()
    }

    /// How many buffers there are.
    #[inline]
    pub fn buffers(&self) -> usize {
        self.0.states.len()
    }

    /// Length of a buffer in bytes, a multiple of 64.
    #[inline]
    pub fn buffer_bytes(&self) -> usize {
        self.0.buffer_bytes.into()
    }

    /// Where the arena is mapped; aligned to a page, for DMA registration.
    #[inline]
    pub fn base(&self) -> *const u8 {
        self.0.base
    }

    /// Length of the arena in bytes, whole pages.
    pub fn len_bytes(&self) -> usize {
        self.0.len_bytes
    }

    /// Where a buffer is mapped. A name that the arena does not have gives an address outside of it.
    #[inline]
    pub fn address(&self, id: BufferId) -> *mut u8 {
        self.0.base.wrapping_add(id.0 as usize * self.buffer_bytes())
    }

    /// The buffer that holds the byte at `address`.
    #[inline]
    pub fn id_at(&self, address: *const u8) -> Option<BufferId> {
        let offset = (address as usize).checked_sub(self.base() as usize)?;
        let id = quotient(offset, self.0.reciprocal);
        (offset < self.0.len_bytes && id < self.buffers()).then_some(BufferId(id as u32))
    }

    /// Takes back what [`Buffer::into_device`] handed out; none unless that buffer is with the device.
    #[inline]
    pub(crate) fn reclaim(&self, id: BufferId) -> Option<Buffer> {
        let state = self.0.states.get(id.0 as usize)?;
        if state.get() != State::WITH_DEVICE {
            return None;
        }
        state.set(State::TAKEN);
        Some(self.whole(id))
    }

    /// The medium that the arena lies in, for flushes and fences outside of the log.
    pub fn medium(&self) -> &Arc<dyn Medium> {
        &self.0.medium
    }

    /// Keeps the medium until the process ends.
    #[inline]
    pub(crate) fn stay_mapped(&self) {
        if !self.0.stays_mapped.replace(true) {
            self.0.leak_medium();
        }
    }

    /// Buffers that at least one log entry names.
    pub(crate) fn logged_buffers(&self) -> u32 {
        self.0.logged_buffers.get()
    }

    /// Payload bytes copied by [`Extent::extend_by_copy`] and onto [shelves](crate::Shelf).
    pub(crate) fn copied_bytes(&self) -> u64 {
        self.0.copied_bytes.get()
    }

    pub(crate) fn count_copied(&self, bytes: usize) {
        self.0.copied_bytes.set(self.0.copied_bytes.get() + bytes as u64);
    }

    /// Whether a piece lies inside a buffer of this arena.
    #[inline]
    pub(crate) fn holds(&self, id: BufferId, offset: u16, len: u16) -> bool {
        (id.0 as usize) < self.buffers()
            && u32::from(offset) + u32::from(len) <= u32::from(self.0.buffer_bytes)
    }

    /// Another counted reference to a piece that the log holds; none if the log does not hold that buffer.
    pub(crate) fn logged_extent(&self, id: BufferId, offset: u16, len: u16) -> Option<Extent> {
        let state = self.0.states.get(id.0 as usize)?;
        if !self.holds(id, offset, len) || state.get().logged() == 0 {
            return None;
        }
        self.0.retain(id);
        Some(Extent { arena: self.clone(), id, offset, len })
    }

    /// Turns an extent's reference into one of the log's, which [`release_logged`](Self::release_logged) ends.
    #[inline]
    pub(crate) fn log(&self, extent: Extent) {
        let extent = ManuallyDrop::new(extent);
        self.0.add_logged(extent.id);
        // The handle goes, the count stays: it now stands for the entry in the log.
        // SAFETY: `extent` is never used or dropped again, so its handle is dropped exactly once.
        drop(unsafe { ptr::read(&extent.arena) });
    }

    /// Ends a reference of the log, if it has one to that buffer.
    #[inline]
    pub(crate) fn release_logged(&self, id: BufferId) {
        let Some(state) = self.0.states.get(id.0 as usize) else { return };
        let logged = state.get().logged();
        // Of many nobody knows how many.
        if logged == 0 || logged == MANY_LOGGED {
            return;
        }
        state.set(state.get().without_logged());
        if logged == 1 {
            self.0.logged_buffers.set(self.0.logged_buffers.get() - 1);
        }
        self.0.release(id);
    }

    /// Marks a buffer as named by the log at recovery, before any is on the free list; then
    /// [`rebuild_free_list`](Self::rebuild_free_list).
    #[inline]
    pub(crate) fn restore_logged(&self, buffer: BufferId) {
        let state = &self.0.states[buffer.0 as usize];
        let before = state.get();
        if before.logged() == 0 {
            self.0.logged_buffers.set(self.0.logged_buffers.get() + 1);
        }
        // Entries of damaged records may name a buffer as often as there are entries.
        if let Some(found) = before.found() {
            state.set(found);
        }
    }

    /// Where a piece lies in the medium; the name must have been checked.
    pub(crate) fn medium_offset(&self, name: ExtentName) -> usize {
        self.0.offset_of(name.buffer) + usize::from(name.offset)
    }

    /// `crc` continued over a piece, while no buffer is in use yet; none if it is not in the arena.
    pub(crate) fn checksum(&self, crc: u32, name: ExtentName) -> Option<u32> {
        if !self.holds(name.buffer, name.offset, name.len) {
            return None;
        }
        let address = self.address(name.buffer).wrapping_add(name.offset.into());
        // SAFETY: the piece lies inside the arena, and its bytes are written through `take`n buffers only,
        // none of which lives while a log is being recovered.
        let bytes = unsafe { slice::from_raw_parts(address, name.len.into()) };
        Some(crc::crc32c_append(crc, bytes))
    }

    /// Puts exactly the buffers without references on the free list, while none is there. The lowest name is given out first.
    pub(crate) fn rebuild_free_list(&self) {
        let (mut first, mut free) = (NOBODY, 0);
        for (id, state) in self.0.states.iter().enumerate().rev() {
            if state.get().refs() == 0 {
                state.set(State::free_before(first));
                first = id as u32;
                free += 1;
            }
        }
        self.0.first_free.set(first);
        self.0.free.set(free);
    }

    #[inline]
    fn whole(&self, id: BufferId) -> Buffer {
        Buffer(Extent { arena: self.clone(), id, offset: 0, len: self.0.buffer_bytes })
    }
}

/// What [`quotient`] divides by `divisor` with: 2^64 by it, rounded up.
fn reciprocal(divisor: u16) -> u64 {
    u64::MAX / u64::from(divisor) + 1
}

/// `offset` by the number whose reciprocal is given, without a division, which takes longer than all else here. The
/// reciprocal is too large by less than 1, and so the product by less than `offset / 2^64`; a quotient lacks a `divisor`th
/// to the next whole number at least. It is exact while `offset * divisor < 2^64`: an arena has less than 2^48 bytes.
#[inline]
fn quotient(offset: usize, reciprocal: u64) -> usize {
    ((offset as u128 * u128::from(reciprocal)) >> 64) as usize
}

impl Inner {
    #[inline]
    fn offset_of(&self, id: BufferId) -> usize {
        self.offset + id.0 as usize * self.buffer_bytes as usize
    }

    /// Takes a free buffer, which is in this state from now on.
    #[inline]
    fn take_as(&self, state: State) -> Option<BufferId> {
        let id = self.first_free.get();
        // None if there is none, too: no buffer has that name.
        let taken = self.states.get(id as usize)?;
        self.first_free.set(taken.get().next_free());
        self.free.set(self.free.get() - 1);
        taken.set(state);
        Some(BufferId(id))
    }

    #[cold]
    fn leak_medium(&self) {
        std::mem::forget((self.medium.clone(), self.lock.clone()));
    }

    #[inline]
    fn retain(&self, id: BufferId) {
        let state = &self.states[id.0 as usize];
        let before = state.get();
        if before.refs() == MANY_REFS {
            return self.retain_many(id);
        }
        state.set(before.retained());
    }

    #[inline]
    fn release(&self, id: BufferId) {
        let state = &self.states[id.0 as usize];
        let before = state.get();
        match before.refs() {
            1 => {
                state.set(State::free_before(self.first_free.replace(id.0)));
                self.free.set(self.free.get() + 1);
            }
            MANY_REFS => self.release_many(id),
            _ => state.set(before.released()),
        }
    }

    #[cold]
    fn retain_many(&self, id: BufferId) {
        *self.many.borrow_mut().entry(id.0).or_default() += 1;
    }

    #[cold]
    fn release_many(&self, id: BufferId) {
        let mut many = self.many.borrow_mut();
        match many.get_mut(&id.0) {
            Some(1) => drop(many.remove(&id.0)),
            Some(beyond) => *beyond -= 1,
            None => {
                let state = &self.states[id.0 as usize];
                state.set(state.get().released());
            }
        }
    }

    #[inline]
    fn add_logged(&self, id: BufferId) {
        let state = &self.states[id.0 as usize];
        let before = state.get();
        if before.logged() == 0 {
            self.logged_buffers.set(self.logged_buffers.get() + 1);
        }
        state.set(before.with_logged());
    }

    /// Has the log name bytes of a buffer; false if it may name some of them already.
    #[inline]
    fn claim(&self, id: BufferId, from: u16, to: u16) -> bool {
        let state = &self.states[id.0 as usize];
        let before = state.get();
        if before.is_claimed() {
            return self.claims.widen(id.0, from, to);
        }
        state.set(before.claimed());
        self.claims.begin(id.0, from, to);
        true
    }

    /// Has the log name any bytes of a buffer.
    #[inline]
    fn claim_all(&self, id: BufferId) {
        let state = &self.states[id.0 as usize];
        state.set(state.get().claimed());
        self.claims.forget(id.0);
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("buffers", &self.buffers())
            .field("free", &self.free_buffers())
            .field("buffer_bytes", &self.buffer_bytes())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Region, Shard};

    fn shard() -> Shard {
        let options = Options { size: Some(1 << 20), reserve: Some(0), ..Options::default() };
        Region::open(crate::MEMORY, &options).unwrap().into_shard().unwrap()
    }

    #[test]
    fn a_buffer_is_free_after_the_last_of_more_references_than_its_state_counts() {
        let shard = shard();
        let arena = shard.arena();
        let free = arena.free_buffers();
        let buffer = arena.take().unwrap();
        let many: Vec<_> = (0..2 * MANY_REFS + 3).map(|_| buffer.clone()).collect();
        assert!(!buffer.is_unique());
        drop(many);
        assert!(buffer.is_unique());
        assert_eq!(arena.free_buffers(), free - 1);
        let id = buffer.id();
        drop(buffer);
        assert_eq!(arena.free_buffers(), free);
        assert_eq!(
            arena.take().map(|buffer| buffer.id()),
            Some(id),
            "what was freed last is given out first"
        );
    }

    #[test]
    fn all_buffers_are_given_out_once_and_come_back() {
        let shard = shard();
        let arena = shard.arena();
        for _ in 0..2 {
            let mut taken: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
            assert_eq!((taken.len(), arena.free_buffers()), (arena.buffers(), 0));
            taken.sort_by_key(Buffer::id);
            assert!(taken.iter().enumerate().all(|(id, buffer)| buffer.id().0 as usize == id));
        }
    }

    #[test]
    fn a_buffer_that_the_log_names_more_often_than_is_counted_stays_its() {
        let shard = shard();
        let arena = shard.arena();
        let buffer = arena.take().unwrap();
        let id = buffer.id();
        for _ in 0..MANY_LOGGED + 5 {
            arena.log(buffer.extent(0, 1).unwrap());
        }
        assert_eq!(arena.logged_buffers(), 1);
        drop(buffer);
        (0..MANY_LOGGED + 5).for_each(|_| arena.release_logged(id));
        assert!(arena.logged_extent(id, 0, 1).is_some(), "nobody knows whether the log still names it");
        assert_eq!((arena.logged_buffers(), arena.free_buffers()), (1, arena.buffers() - 1));
    }

    #[test]
    fn what_a_device_or_nobody_has_is_not_the_logs() {
        let shard = shard();
        let arena = shard.arena();
        let (_, lent) = arena.take().unwrap().into_device().unwrap();
        let free = BufferId(lent.0 + 1);
        for id in [lent, free, BufferId(arena.buffers() as u32)] {
            arena.release_logged(id);
            assert!(arena.logged_extent(id, 0, 1).is_none());
        }
        assert!(arena.reclaim(free).is_none() && arena.reclaim(lent).is_some());
        assert_eq!(arena.free_buffers(), arena.buffers());
    }

    #[test]
    fn a_quotient_is_what_a_division_gives_up_to_the_largest_arena() {
        for divisor in (1024..=u16::MAX).step_by(ALIGN_BYTES) {
            let (wide, reciprocal) = (usize::from(divisor), reciprocal(divisor));
            for id in [0, 1, 2, 3, 1000, 1 << 20, 1 << 31, (1 << 32) - 2, (1 << 32) - 1] {
                for offset in [id * wide, id * wide + 1, (id + 1) * wide - 1] {
                    assert_eq!(quotient(offset, reciprocal), offset / wide, "{offset} / {divisor}");
                }
            }
        }
    }
}
