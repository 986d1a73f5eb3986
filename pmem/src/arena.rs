//! Named buffers: the arena of a shard, counted references to its buffers, and pieces of them.

mod device;
mod extent;
mod shelf;

use std::{cell::Cell, fmt, mem::ManuallyDrop, ptr, rc::Rc, slice, sync::Arc};

pub use extent::{Buffer, Extent};
pub use shelf::Shelf;

use crate::{
    format::{
        crc,
        entry::{BufferId, ExtentName},
        geometry::{ALIGN_BYTES, Geometry},
    },
    medium::{LINE_BYTES, Medium, MediumLock, collapse},
};

// A line holds bytes of one buffer only: flushing one touches no other.
const _: () = assert!(ALIGN_BYTES.is_multiple_of(LINE_BYTES));

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
    metas: Box<[Meta]>,
    free: FreeList,
    /// Buffers that the log references, and payload bytes copied by the CPU outside of the log.
    logged_buffers: Cell<u32>,
    copied_bytes: Cell<u64>,
    /// Whether the medium outlives the arena, since a device may write to it.
    stays_mapped: Cell<bool>,
}

/// What DRAM knows of a buffer.
#[derive(Default)]
struct Meta {
    /// References; 0 is free, [`WITH_DEVICE`] is handed out to a device.
    refs: Cell<u32>,
    /// How many of them are the log's.
    logged: Cell<u32>,
    /// The span of bytes that the log has named since the buffer was last free; empty while `from >= to`.
    claimed_from: Cell<u16>,
    claimed_to: Cell<u16>,
}

const WITH_DEVICE: u32 = u32::MAX;

/// The names of free buffers: a stack, so that a small load stays in few lines and pages.
struct FreeList {
    names: Box<[Cell<u32>]>,
    len: Cell<usize>,
}

impl Arena {
    /// A shard's arena, all its buffers free.
    pub(crate) fn new(
        medium: Arc<dyn Medium>,
        lock: Arc<MediumLock>,
        geometry: &Geometry,
        shard: u32,
    ) -> Self {
        let Geometry { buffers, buffer_bytes, .. } = *geometry;
        let (offset, len_bytes) = (geometry.arena_of(shard), geometry.arena_bytes(shard));
        assert!(buffers as usize * buffer_bytes as usize <= len_bytes && offset + len_bytes <= medium.len());
        let metas: Box<[Meta]> = (0..buffers).map(|_| Meta::default()).collect();
        let free = FreeList::all(buffers);
        collapse(&metas);
        collapse(&free.names);
        Self(Rc::new(Inner {
            base: medium.base().as_ptr().wrapping_add(offset),
            medium,
            lock,
            offset,
            len_bytes,
            buffer_bytes,
            reciprocal: reciprocal(buffer_bytes),
            metas,
            free,
            logged_buffers: Cell::new(0),
            copied_bytes: Cell::new(0),
            stays_mapped: Cell::new(false),
        }))
    }

    /// A free buffer, or none while all are in use.
    #[inline]
    pub fn take(&self) -> Option<Buffer> {
        self.0.take_as(1).map(|id| self.whole(id))
    }

    /// How many buffers are free.
    #[inline]
    pub fn free_buffers(&self) -> usize {
        self.0.free.len.get()
    }

    /// How many buffers there are.
    #[inline]
    pub fn buffers(&self) -> usize {
        self.0.metas.len()
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
        let meta = self.0.metas.get(id.0 as usize)?;
        if meta.refs.get() != WITH_DEVICE {
            return None;
        }
        // Nothing in it is claimed: it had no references when it was handed out.
        meta.refs.set(1);
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
        let meta = self.0.metas.get(id.0 as usize)?;
        if !self.holds(id, offset, len) || meta.logged.get() == 0 {
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
        let Some(meta) = self.0.metas.get(id.0 as usize) else { return };
        let Some(logged) = meta.logged.get().checked_sub(1) else { return };
        meta.logged.set(logged);
        if logged == 0 {
            self.0.logged_buffers.set(self.0.logged_buffers.get() - 1);
        }
        self.0.release(id);
    }

    /// Marks a piece as the log's at recovery, while every buffer still counts as free; then
    /// [`rebuild_free_list`](Self::rebuild_free_list).
    pub(crate) fn restore_logged(&self, name: ExtentName) {
        let meta = &self.0.metas[name.buffer.0 as usize];
        // Entries of damaged records may name a buffer as often as there are entries.
        if meta.refs.get() == WITH_DEVICE - 1 {
            return;
        }
        meta.refs.set(meta.refs.get() + 1);
        self.0.add_logged(name.buffer);
        meta.widen_claim(name.offset, name.len);
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

    /// Puts exactly the buffers without references on the free list.
    pub(crate) fn rebuild_free_list(&self) {
        self.0.free.len.set(0);
        let is_free = |id: &u32| self.0.metas[*id as usize].refs.get() == 0;
        (0..self.0.metas.len() as u32).rev().filter(is_free).for_each(|id| self.0.free.push(id));
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

impl FreeList {
    /// All of so many buffers, the lowest name to be given out first.
    fn all(buffers: u32) -> Self {
        Self { names: (0..buffers).rev().map(Cell::new).collect(), len: Cell::new(buffers as usize) }
    }

    /// Adds a buffer, which is not there yet.
    #[inline]
    fn push(&self, id: u32) {
        let len = self.len.get();
        self.names[len].set(id);
        self.len.set(len + 1);
    }

    #[inline]
    fn pop(&self) -> Option<u32> {
        let last = self.len.get().checked_sub(1)?;
        self.len.set(last);
        Some(self.names[last].get())
    }
}

impl Inner {
    #[inline]
    fn offset_of(&self, id: BufferId) -> usize {
        self.offset + id.0 as usize * self.buffer_bytes as usize
    }

    /// Takes a free buffer, with so many references to begin with.
    #[inline]
    fn take_as(&self, refs: u32) -> Option<BufferId> {
        let id = self.free.pop()?;
        let meta = &self.metas[id as usize];
        debug_assert_eq!(meta.refs.get(), 0);
        meta.refs.set(refs);
        meta.claimed_from.set(0);
        meta.claimed_to.set(0);
        Some(BufferId(id))
    }

    #[cold]
    fn leak_medium(&self) {
        std::mem::forget((self.medium.clone(), self.lock.clone()));
    }

    #[inline]
    fn retain(&self, id: BufferId) {
        let refs = &self.metas[id.0 as usize].refs;
        let more = refs.get() + 1;
        assert_ne!(more, WITH_DEVICE, "4 billion references to one buffer");
        refs.set(more);
    }

    #[inline]
    fn release(&self, id: BufferId) {
        let refs = &self.metas[id.0 as usize].refs;
        let left = refs.get() - 1;
        refs.set(left);
        if left == 0 {
            self.free.push(id.0);
        }
    }

    #[inline]
    fn add_logged(&self, id: BufferId) {
        let logged = &self.metas[id.0 as usize].logged;
        if logged.get() == 0 {
            self.logged_buffers.set(self.logged_buffers.get() + 1);
        }
        // No more than references, which are counted alike.
        logged.set(logged.get() + 1);
    }
}

impl Meta {
    #[inline]
    fn widen_claim(&self, offset: u16, len: u16) {
        let (from, to) = (self.claimed_from.get(), self.claimed_to.get());
        let end = offset + len;
        if from >= to {
            self.claimed_from.set(offset);
            self.claimed_to.set(end);
        } else {
            self.claimed_from.set(from.min(offset));
            self.claimed_to.set(to.max(end));
        }
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
