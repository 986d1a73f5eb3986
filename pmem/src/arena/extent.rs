//! References to buffers and to pieces of them.

use std::{cell::Cell, fmt, mem::ManuallyDrop, ptr, rc::Rc, slice};

use super::{Arena, state::State};
use crate::{
    format::entry::{BufferId, ExtentName},
    safeguard::{Safeguard, omits},
};

/// A counted reference to a whole buffer. Dropping the last reference frees the buffer.
#[derive(Clone)]
pub struct Buffer(pub(super) Extent);

impl Buffer {
    /// The buffer's name.
    #[inline]
    pub fn id(&self) -> BufferId {
        self.0.id
    }

    #[inline]
    pub(crate) fn arena(&self) -> &Arena {
        &self.0.arena
    }

    /// Whether this is the only reference.
    #[inline]
    pub fn is_unique(&self) -> bool {
        self.0.is_unique()
    }

    /// Hands the buffer to a device: until [`Arena::reclaim`] nobody else can have it.
    ///
    /// # Errors
    /// The buffer itself, if there are other references to it.
    pub(crate) fn into_device(self) -> Result<(Arena, BufferId), Self> {
        if !self.is_unique() {
            return Err(self);
        }
        let extent = ManuallyDrop::new(self.0);
        extent.state().set(State::WITH_DEVICE);
        // SAFETY: `extent` is never used or dropped again, so its handle is dropped exactly once.
        Ok((unsafe { ptr::read(&extent.arena) }, extent.id))
    }

    /// A piece of the buffer with a reference of its own; none if it would reach beyond the end.
    #[inline]
    pub fn extent(&self, offset: u16, len: u16) -> Option<Extent> {
        self.clone().into_extent(offset, len)
    }

    /// A piece of the buffer that takes over this reference; none if it would reach beyond the end.
    #[inline]
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
    pub(super) arena: Arena,
    pub(super) id: BufferId,
    pub(super) offset: u16,
    pub(super) len: u16,
}

impl Extent {
    /// The bytes, where they lie. They do not change while the extent lives.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let address = self.arena.address(self.id).wrapping_add(self.offset.into());
        // SAFETY: the piece lies inside its buffer (checked where it was made), and the counted reference keeps
        // the buffer from being reused, handed to a device or written: writers need the only reference, or
        // bytes that no extent covers.
        unsafe { slice::from_raw_parts(address, self.len.into()) }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len.into()
    }

    /// Whether the piece has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the piece begins in its buffer.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset.into()
    }

    /// The name of the buffer.
    #[inline]
    pub fn buffer_id(&self) -> BufferId {
        self.id
    }

    /// What the log calls it.
    #[inline]
    pub(crate) fn name(&self) -> ExtentName {
        ExtentName { buffer: self.id, offset: self.offset, len: self.len }
    }

    /// Whether this is the only reference to the buffer.
    #[inline]
    pub fn is_unique(&self) -> bool {
        self.state().get().refs() == 1
    }

    /// The part of `len` bytes that begins `from` bytes into this one; none if it would reach beyond the end.
    #[inline]
    pub fn slice(mut self, from: usize, len: usize) -> Option<Self> {
        if from.checked_add(len)? > self.len() {
            return None;
        }
        self.offset += from as u16;
        self.len = len as u16;
        Some(self)
    }

    /// The part before `at` and the part from there on, which is empty if the piece ends before.
    #[inline]
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
    #[inline]
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
    #[inline]
    pub(crate) fn claim(&self) -> bool {
        self.arena.0.claim(self.id, self.offset, self.offset + self.len) || omits(Safeguard::Claim)
    }

    /// Reserves the whole buffer for the log, for who knows better which of its bytes are named.
    #[inline]
    pub(crate) fn claim_buffer(&self) {
        self.arena.0.claim_all(self.id);
    }

    /// Whether the piece belongs to `arena`.
    #[inline]
    pub(crate) fn is_in(&self, arena: &Arena) -> bool {
        self.arena.is(arena)
    }

    /// Where the piece lies in the medium.
    #[inline]
    pub(crate) fn medium_offset(&self) -> usize {
        self.arena.0.offset_of(self.id) + self.offset()
    }

    #[inline]
    fn state(&self) -> &Cell<State> {
        &self.arena.0.states[self.id.0 as usize]
    }
}

impl Arena {
    #[inline]
    fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl AsRef<[u8]> for Extent {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Clone for Extent {
    #[inline]
    fn clone(&self) -> Self {
        self.arena.0.retain(self.id);
        Self { arena: self.arena.clone(), id: self.id, offset: self.offset, len: self.len }
    }
}

impl From<&Self> for Extent {
    #[inline]
    fn from(extent: &Self) -> Self {
        extent.clone()
    }
}

impl Drop for Extent {
    #[inline]
    fn drop(&mut self) {
        self.arena.0.release(self.id);
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extent({}: {}+{})", self.id.0, self.offset, self.len)
    }
}
