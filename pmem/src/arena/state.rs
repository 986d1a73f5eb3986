//! What DRAM knows of a buffer, in four bytes: a large store has hundreds of millions of them.

/// Of a free buffer: which is the next free one. Of another: how many references it has, how many of these are the
/// log's, and whether the log may name bytes of it.
///
/// Both numbers end somewhere. References beyond [`MANY_REFS`] are counted elsewhere; a buffer that the log names as often
/// as [`MANY_LOGGED`] says, as only a store can ask for that was made to, is not freed before the next opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct State(u32);

const REFS: u32 = 0xffff;
const LOGGED_SHIFT: u32 = 16;
const LOGGED: u32 = 0x3fff << LOGGED_SHIFT;
const CLAIMED: u32 = 1 << 30;
const FREE: u32 = 1 << 31;

/// The most references that are counted here.
pub(super) const MANY_REFS: u32 = REFS;
/// The most references of the log that are counted. Pieces of no record are so short that a buffer would hold as many.
pub(super) const MANY_LOGGED: u32 = LOGGED >> LOGGED_SHIFT;

/// No buffer has this name, nor the next: a shard has no more buffers than [`MAX_BUFFERS`](super::MAX_BUFFERS).
pub(super) const NOBODY: u32 = !FREE;

impl State {
    /// In use, with one reference.
    pub(super) const TAKEN: Self = Self(1);
    /// With a device: without references, and not on the free list either.
    pub(super) const WITH_DEVICE: Self = Self(FREE | (NOBODY - 1));

    /// Free, and before another buffer on the free list, or before [`NOBODY`].
    #[inline]
    pub(super) fn free_before(next: u32) -> Self {
        Self(FREE | next)
    }

    /// The next on the free list, of a buffer that is on it.
    #[inline]
    pub(super) fn next_free(self) -> u32 {
        debug_assert!(self.0 & FREE != 0 && self != Self::WITH_DEVICE);
        self.0 & !FREE
    }

    /// References, of a buffer that is in use: [`MANY_REFS`] may be more.
    #[inline]
    pub(super) fn refs(self) -> u32 {
        self.0 & REFS
    }

    /// With another reference, unless it has many.
    #[inline]
    pub(super) fn retained(self) -> Self {
        Self(self.0 + 1)
    }

    /// With a reference less, if it has any.
    #[inline]
    pub(super) fn released(self) -> Self {
        Self(self.0 - 1)
    }

    /// How often the log names the buffer, whatever state it is in: [`MANY_LOGGED`] may be more.
    #[inline]
    pub(super) fn logged(self) -> u32 {
        if self.0 & FREE == 0 { (self.0 & LOGGED) >> LOGGED_SHIFT } else { 0 }
    }

    /// Named by the log once more, of a buffer that is in use.
    #[inline]
    pub(super) fn with_logged(self) -> Self {
        if self.0 & LOGGED == LOGGED { self } else { Self(self.0 + (1 << LOGGED_SHIFT)) }
    }

    /// Named by the log once less, of a buffer that it names.
    #[inline]
    pub(super) fn without_logged(self) -> Self {
        Self(self.0 - (1 << LOGGED_SHIFT))
    }

    #[inline]
    pub(super) fn is_claimed(self) -> bool {
        self.0 & CLAIMED != 0
    }

    #[inline]
    pub(super) fn claimed(self) -> Self {
        Self(self.0 | CLAIMED)
    }

    /// Found in the log when a store is opened, of a buffer that is not on the free list yet; none if it was found too
    /// often for another reference to be counted.
    #[inline]
    pub(super) fn found(self) -> Option<Self> {
        (self.logged() < MANY_LOGGED).then(|| self.retained().with_logged().claimed())
    }
}

// A buffer has no more references of the log than are counted here when a store is opened.
const _: () = assert!(MANY_LOGGED < MANY_REFS);
