//! Named buffers: the arena of a shard, counted references to its buffers, and pieces of them.

mod device;
mod shelf;

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
    slice,
    sync::Arc,
};

pub use shelf::Shelf;

use crate::{
    format::{
        crc,
        entry::{BufferId, ExtentName},
        superblock::{ALIGN_BYTES, Geometry},
    },
    medium::{LINE_BYTES, Medium, MediumLock},
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
    /// Where the first buffer lies in the medium.
    offset: usize,
    len_bytes: usize,
    buffer_bytes: u16,
    metas: Box<[Meta]>,
    free: RefCell<Vec<u32>>,
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

impl Arena {
    /// A shard's arena, all its buffers free.
    pub(crate) fn new(
        medium: Arc<dyn Medium>,
        lock: Arc<MediumLock>,
        geometry: &Geometry,
        shard: u32,
    ) -> Self {
        let Geometry { buffers, buffer_bytes, arena_stride, .. } = *geometry;
        let (offset, len_bytes) = (geometry.arena_of(shard), arena_stride as usize);
        assert!(buffers as usize * buffer_bytes as usize <= len_bytes && offset + len_bytes <= medium.len());
        // Lowest names first: the free list is a stack, so that a small load stays in few lines and pages.
        let free = (0..buffers).rev().collect();
        let metas = (0..buffers).map(|_| Meta::default()).collect();
        Self(Rc::new(Inner {
            medium,
            lock,
            offset,
            len_bytes,
            buffer_bytes,
            metas,
            free: RefCell::new(free),
            logged_buffers: Cell::new(0),
            copied_bytes: Cell::new(0),
            stays_mapped: Cell::new(false),
        }))
    }

    /// A free buffer, or none while all are in use.
    pub fn take(&self) -> Option<Buffer> {
        let id = self.0.free.borrow_mut().pop()?;
        let meta = &self.0.metas[id as usize];
        debug_assert_eq!(meta.refs.get(), 0);
        meta.refs.set(1);
        meta.claimed_from.set(0);
        meta.claimed_to.set(0);
        Some(self.whole(BufferId(id)))
    }

    /// How many buffers are free.
    pub fn free_buffers(&self) -> usize {
        self.0.free.borrow().len()
    }

    /// How many buffers there are.
    pub fn buffers(&self) -> usize {
        self.0.metas.len()
    }

    /// Length of a buffer in bytes, a multiple of 64.
    pub fn buffer_bytes(&self) -> usize {
        self.0.buffer_bytes.into()
    }

    /// Where the arena is mapped; aligned to a page, for DMA registration.
    pub fn base(&self) -> *const u8 {
        self.0.medium.base().as_ptr().wrapping_add(self.0.offset)
    }

    /// Length of the arena in bytes, whole pages.
    pub fn len_bytes(&self) -> usize {
        self.0.len_bytes
    }

    /// Where a buffer is mapped. A name that the arena does not have gives an address outside of it.
    pub fn address(&self, id: BufferId) -> *mut u8 {
        self.0.medium.base().as_ptr().wrapping_add(self.0.offset_of(id))
    }

    /// The buffer that holds the byte at `address`.
    pub fn id_at(&self, address: *const u8) -> Option<BufferId> {
        let offset = (address as usize).checked_sub(self.base() as usize)?;
        let id = offset / self.buffer_bytes();
        (id < self.buffers()).then_some(BufferId(id as u32))
    }

    /// Takes back what [`Buffer::into_device`] handed out; none unless that buffer is with the device.
    pub(crate) fn reclaim(&self, id: BufferId) -> Option<Buffer> {
        let meta = self.0.metas.get(id.0 as usize)?;
        if meta.refs.get() != WITH_DEVICE {
            return None;
        }
        meta.refs.set(1);
        // A buffer that was handed out had no other references: the log names nothing in it.
        meta.claimed_from.set(0);
        meta.claimed_to.set(0);
        Some(self.whole(id))
    }

    /// The medium that the arena lies in, for flushes and fences outside of the log.
    pub fn medium(&self) -> &Arc<dyn Medium> {
        &self.0.medium
    }

    /// Keeps the medium until the process ends.
    pub(crate) fn stay_mapped(&self) {
        if !self.0.stays_mapped.replace(true) {
            std::mem::forget((self.0.medium.clone(), self.0.lock.clone()));
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
    pub(crate) fn log(&self, extent: Extent) {
        let extent = std::mem::ManuallyDrop::new(extent);
        self.0.add_logged(extent.id);
        // The handle goes, the count stays: it now stands for the entry in the log.
        // SAFETY: `extent` is never used or dropped again, so its handle is dropped exactly once.
        drop(unsafe { std::ptr::read(&extent.arena) });
    }

    /// Ends a reference of the log, if it has one to that buffer.
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
        let mut free = self.0.free.borrow_mut();
        free.clear();
        free.extend(
            (0..self.0.metas.len() as u32).rev().filter(|&id| self.0.metas[id as usize].refs.get() == 0),
        );
    }

    fn whole(&self, id: BufferId) -> Buffer {
        Buffer(Extent { arena: self.clone(), id, offset: 0, len: self.0.buffer_bytes })
    }
}

impl Inner {
    fn offset_of(&self, id: BufferId) -> usize {
        self.offset + id.0 as usize * self.buffer_bytes as usize
    }

    fn retain(&self, id: BufferId) {
        let refs = &self.metas[id.0 as usize].refs;
        let more = refs.get() + 1;
        assert_ne!(more, WITH_DEVICE, "4 billion references to one buffer");
        refs.set(more);
    }

    fn release(&self, id: BufferId) {
        let refs = &self.metas[id.0 as usize].refs;
        let left = refs.get() - 1;
        refs.set(left);
        if left == 0 {
            self.free.borrow_mut().push(id.0);
        }
    }

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

/// A counted reference to a whole buffer. Dropping the last reference frees the buffer.
#[derive(Clone)]
pub struct Buffer(Extent);

impl Buffer {
    /// The buffer's name.
    pub fn id(&self) -> BufferId {
        self.0.id
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.0.arena
    }

    /// Whether this is the only reference.
    pub fn is_unique(&self) -> bool {
        self.0.is_unique()
    }

    /// Hands the buffer to a device: until [`Arena::reclaim`] nobody else can have it.
    ///
    /// # Errors
    /// The buffer itself, if there are other references to it.
    pub(crate) fn into_device(self) -> Result<BufferId, Self> {
        if !self.is_unique() {
            return Err(self);
        }
        let extent = std::mem::ManuallyDrop::new(self.0);
        extent.arena.0.metas[extent.id.0 as usize].refs.set(WITH_DEVICE);
        // SAFETY: `extent` is never used or dropped again, so its handle is dropped exactly once.
        drop(unsafe { std::ptr::read(&extent.arena) });
        Ok(extent.id)
    }

    /// A piece of the buffer with a reference of its own; none if it would reach beyond the end.
    pub fn extent(&self, offset: u16, len: u16) -> Option<Extent> {
        self.clone().into_extent(offset, len)
    }

    /// A piece of the buffer that takes over this reference; none if it would reach beyond the end.
    pub fn into_extent(self, offset: u16, len: u16) -> Option<Extent> {
        self.0.slice(offset.into(), len.into())
    }

    /// Puts `bytes` at `offset` as a device's DMA would. False, and nothing is written, if there are other
    /// references to the buffer or the bytes would reach beyond its end.
    pub fn arrive(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let inner = &self.0.arena.0;
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= inner.buffer_bytes.into());
        if !fits || !self.is_unique() {
            return false;
        }
        // SAFETY: the range was checked; the reference is the only one and borrowed mutably, so that no slice
        // of the buffer lives.
        unsafe { inner.medium.dma(inner.offset_of(self.id()) + offset, bytes) };
        true
    }

    /// Stores `bytes` at `offset`, next to pieces that others may hold.
    ///
    /// # Safety
    /// No extent covers a byte of the range.
    pub(crate) unsafe fn store_beside(&self, offset: u16, bytes: &[u8]) {
        let inner = &self.0.arena.0;
        assert!(offset as usize + bytes.len() <= inner.buffer_bytes.into());
        // SAFETY: the range was checked, and the caller promises that nobody can read it.
        unsafe { inner.medium.store(inner.offset_of(self.id()) + offset as usize, bytes) };
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({})", self.id().0)
    }
}

/// A piece of a named buffer, with a counted reference to it: {buffer, offset, length}, 16 bytes in all.
pub struct Extent {
    arena: Arena,
    id: BufferId,
    offset: u16,
    len: u16,
}

impl Extent {
    /// The bytes, where they lie. They do not change while the extent lives.
    pub fn bytes(&self) -> &[u8] {
        let address = self.arena.address(self.id).wrapping_add(self.offset.into());
        // SAFETY: the piece lies inside its buffer (checked where it was made), and the counted reference keeps
        // the buffer from being reused, handed to a device or written: writers need the only reference, or
        // bytes that no extent covers.
        unsafe { slice::from_raw_parts(address, self.len.into()) }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len.into()
    }

    /// Whether the piece has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the piece begins in its buffer.
    pub fn offset(&self) -> usize {
        self.offset.into()
    }

    /// The name of the buffer.
    pub fn buffer_id(&self) -> BufferId {
        self.id
    }

    /// Whether this is the only reference to the buffer.
    pub fn is_unique(&self) -> bool {
        self.meta().refs.get() == 1
    }

    /// The part of `len` bytes that begins `from` bytes into this one; none if it would reach beyond the end.
    pub fn slice(mut self, from: usize, len: usize) -> Option<Self> {
        if from.checked_add(len)? > self.len() {
            return None;
        }
        self.offset += from as u16;
        self.len = len as u16;
        Some(self)
    }

    /// The part before `at` and the part from there on, which is empty if the piece ends before.
    pub fn split_at(mut self, at: usize) -> (Self, Self) {
        let (mut rest, at) = (self.clone(), at.min(self.len()) as u16);
        rest.offset += at;
        rest.len -= at;
        self.len = at;
        (self, rest)
    }

    /// Copies `bytes` behind the end and grows by them. False, and nothing is written, if there are other
    /// references to the buffer or no room in it. Against peers that send a few bytes a segment.
    pub fn extend_by_copy(&mut self, bytes: &[u8]) -> bool {
        let inner = &self.arena.0;
        let end = self.offset() + self.len();
        if bytes.len() > usize::from(inner.buffer_bytes) - end || !self.is_unique() {
            return false;
        }
        // SAFETY: the range was checked; the reference is the only one and borrowed mutably.
        unsafe { inner.medium.store(inner.offset_of(self.id) + end, bytes) };
        self.arena.count_copied(bytes.len());
        self.len += bytes.len() as u16;
        true
    }

    /// Grows over bytes that follow directly, taking over `next`; gives it back if it is from elsewhere.
    pub(crate) fn merge(&mut self, next: Self) -> Result<(), Self> {
        let follows =
            next.id == self.id && next.offset == self.offset + self.len && next.arena.is(&self.arena);
        if !follows {
            return Err(next);
        }
        self.len += next.len;
        Ok(())
    }

    /// Reserves the bytes for the log: false if the log may name some of them already. Every piece in the log
    /// is claimed first, so that no two records ever share bytes.
    pub(crate) fn claim(&self) -> bool {
        let meta = self.meta();
        let (from, to) = (meta.claimed_from.get(), meta.claimed_to.get());
        if from < to && self.offset < to && self.offset + self.len > from {
            return false;
        }
        meta.widen_claim(self.offset, self.len);
        true
    }

    /// Whether the piece belongs to `arena`.
    pub(crate) fn is_in(&self, arena: &Arena) -> bool {
        self.arena.is(arena)
    }

    /// Where the piece lies in the medium.
    pub(crate) fn medium_offset(&self) -> usize {
        self.arena.0.offset_of(self.id) + self.offset()
    }

    fn meta(&self) -> &Meta {
        &self.arena.0.metas[self.id.0 as usize]
    }
}

impl Arena {
    fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl AsRef<[u8]> for Extent {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Clone for Extent {
    fn clone(&self) -> Self {
        self.arena.0.retain(self.id);
        Self { arena: self.arena.clone(), id: self.id, offset: self.offset, len: self.len }
    }
}

impl From<&Self> for Extent {
    fn from(extent: &Self) -> Self {
        extent.clone()
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        self.arena.0.release(self.id);
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extent({}: {}+{})", self.id.0, self.offset, self.len)
    }
}
