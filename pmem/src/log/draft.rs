//! Records under construction: from pieces of buffers to what an append writes.

use super::error::{AppendError, Full};
use crate::{
    arena::{Arena, Buffer, Extent},
    format::{
        crc,
        entry::{ENTRY_EXTENTS, ExtentName},
        geometry::MIN_BUFFER_BYTES,
    },
    medium::LINE_BYTES,
    safeguard::{Safeguard, omits},
};

/// Records shorter than this are copied together into shared buffers, so that they do not pin one each, unless
/// [`Options::pack_below`](crate::Options::pack_below) says otherwise.
pub const PACK_BYTES: usize = 512;
// A short record fits into a buffer, whatever is packed with it.
const _: () = assert!(2 * PACK_BYTES <= MIN_BUFFER_BYTES as usize);

/// Buffers that a record may pin however few bytes it has in them.
const FREE_PINS: usize = 8;
/// Beyond those, a record may pin this many bytes of buffers per byte of its own.
const MAX_PIN_FACTOR: usize = 4;
/// Pieces that a record may have however short they are; beyond those, one for each so many bytes.
const FREE_PIECES: usize = 32;
const PIECE_BYTES: usize = 128;
/// Pieces whose memory is kept for another record.
const KEPT_EXTENTS: usize = 64;

/// A record under construction: pieces of buffers in their order. Dropping it gives the buffers back.
///
/// A record that is to be packed ([`Options::pack_below`](crate::Options::pack_below)) is only gathered here, and copied when it is appended. From that length
/// on its pieces are flushed and their checksum is taken as they come. A record that would pin many times its
/// length in buffers, because its peer sends a few bytes at a time, has its further short pieces copied together.
#[derive(Debug)]
pub struct Draft(pub(crate) Box<Building>);

/// What a draft holds, in one place whoever has the draft.
#[derive(Debug)]
pub(crate) struct Building {
    pub(crate) shard: u64,
    /// Shorter records are copied.
    pack_below: usize,
    /// The pieces of a record that is still short.
    pub(crate) gathered: Vec<Extent>,
    pub(crate) extents: Vec<Extent>,
    /// Checksums of the record's bytes up to the end of each group of [`ENTRY_EXTENTS`] pieces, but the last.
    pub(crate) crcs: Vec<u32>,
    pub(crate) len: u64,
    /// The checksum of all its bytes, unless it is still short.
    pub(crate) crc: u32,
    /// Pieces that begin in another buffer than the one before.
    pinned: usize,
    /// The line of the medium that was flushed last.
    last_line: usize,
    pack: Option<Pack>,
    pub(crate) cost: Cost,
}

/// What building a record has cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub copied_bytes: u64,
    pub flushed_lines: u64,
}

impl Draft {
    /// An empty record of a shard.
    pub(crate) fn new(shard: u64, pack_below: usize) -> Self {
        Self(Box::new(Building {
            shard,
            pack_below,
            gathered: Vec::new(),
            extents: Vec::new(),
            crcs: Vec::new(),
            len: 0,
            crc: 0,
            pinned: 0,
            last_line: usize::MAX,
            pack: None,
            cost: Cost::default(),
        }))
    }

    /// Length of the record so far.
    #[inline]
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Whether the record has no bytes yet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Empties the draft for another record of its shard; none if its memory is too large to be kept.
    #[inline]
    pub(crate) fn emptied(mut self) -> Option<Self> {
        let building = &mut *self.0;
        if building.extents.capacity() > KEPT_EXTENTS {
            return None;
        }
        building.gathered.clear();
        building.extents.clear();
        building.crcs.clear();
        (building.len, building.crc, building.pinned) = (0, 0, 0);
        building.last_line = usize::MAX;
        building.pack = None;
        building.cost = Cost::default();
        Some(self)
    }
}

/// A buffer that short pieces are copied into, one behind the other.
#[derive(Debug)]
pub(crate) struct Pack {
    buffer: Buffer,
    used: u16,
    /// How much of that is flushed.
    flushed: u16,
}

impl Pack {
    pub(crate) fn new(buffer: Buffer) -> Self {
        Self { buffer, used: 0, flushed: 0 }
    }

    #[inline]
    fn holds(&self, extent: &Extent) -> bool {
        self.buffer.id() == extent.buffer_id()
    }

    #[inline]
    pub(crate) fn room(&self, arena: &Arena) -> usize {
        arena.buffer_bytes() - usize::from(self.used)
    }

    /// Copies all of `pieces` behind one another. The caller has checked that they fit.
    pub(crate) fn fill<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> Extent {
        let from = self.used;
        for bytes in pieces {
            // SAFETY: extents of this buffer were made here only, and all end at `used` or before.
            unsafe { self.buffer.store_beside(self.used, bytes) };
            self.used += bytes.len() as u16;
        }
        let extent = self.buffer.extent(from, self.used - from).expect("what was stored lies in the buffer");
        // A pack's pieces follow one another. Whoever appends one again gets a copy.
        extent.claim_buffer();
        extent
    }

    /// Flushes what was copied since the last time; returns how many lines that took.
    pub(crate) fn flush(&mut self, arena: &Arena) -> u64 {
        self.flush_to(arena, self.used)
    }

    /// As [`flush`](Self::flush), but not the last line, unless it is full: the next copy grows it, and a line costs
    /// as much to flush for a few bytes as for all.
    fn flush_full_lines(&mut self, arena: &Arena) -> u64 {
        // Buffers begin with a line.
        self.flush_to(arena, self.used - self.used % LINE_BYTES as u16)
    }

    fn flush_to(&mut self, arena: &Arena, to: u16) -> u64 {
        if to <= self.flushed {
            return 0;
        }
        let len = to - self.flushed;
        let from = arena.medium_offset(ExtentName { buffer: self.buffer.id(), offset: self.flushed, len });
        self.flushed = to;
        if !omits(Safeguard::CopiesFlush) {
            arena.medium().flush(from, len.into());
        }
        lines(from, from + usize::from(len))
    }
}

impl Building {
    /// Whether the record, as long as it is now, will be copied when it is appended.
    #[inline]
    pub(crate) fn is_short(&self) -> bool {
        self.len < self.pack_below as u64
    }

    /// Adds a piece, which is not empty. `reserve` buffers stay free for the network.
    #[inline]
    pub(crate) fn push(&mut self, arena: &Arena, reserve: usize, extent: Extent) -> Result<(), AppendError> {
        // Nearly all pieces are nearly as long as a segment.
        if extent.len() >= self.pack_below.max(PACK_BYTES) && self.gathered.is_empty() && extent.claim() {
            self.len += extent.len() as u64;
            self.seal(arena, extent);
            return Ok(());
        }
        self.push_short(arena, reserve, extent)
    }

    /// As [`push`](Self::push), for a piece that may have to be gathered with others or copied.
    fn push_short(&mut self, arena: &Arena, reserve: usize, extent: Extent) -> Result<(), AppendError> {
        let was_short = self.is_short();
        self.len += extent.len() as u64;
        if self.is_short() {
            return self.gather(arena, reserve, extent);
        }
        if was_short && !self.gathered.is_empty() {
            // Long enough to stay where it is: what was only gathered now becomes part of the record proper.
            let mut gathered = std::mem::take(&mut self.gathered);
            for extent in gathered.drain(..) {
                self.adopt(arena, reserve, extent)?;
            }
            self.gathered = gathered;
        }
        self.adopt(arena, reserve, extent)
    }

    /// Keeps a piece of a record that is still short, as it is, unless there are many.
    fn gather(&mut self, arena: &Arena, reserve: usize, extent: Extent) -> Result<(), AppendError> {
        if self.gathered.len() < FREE_PINS {
            attach(&mut self.gathered, extent);
            return Ok(());
        }
        self.copy(arena, reserve, extent.bytes(), |draft, copy| {
            attach(&mut draft.gathered, copy);
        })
    }

    /// Makes a piece part of the record: where it is, or copied if it pins too much or is in the log already.
    fn adopt(&mut self, arena: &Arena, reserve: usize, extent: Extent) -> Result<(), AppendError> {
        let is_short = extent.len() < PACK_BYTES;
        if is_short && self.is_scattered(arena) && !self.is_packed(&extent) || !self.claim(&extent) {
            return self.copy(arena, reserve, extent.bytes(), |draft, copy| draft.seal(arena, copy));
        }
        self.seal(arena, extent);
        Ok(())
    }

    /// Whether another short piece would be one too many: the record pins much, or has many pieces, for its length.
    fn is_scattered(&self, arena: &Arena) -> bool {
        let pins_much = (self.pinned + 1) * arena.buffer_bytes()
            > MAX_PIN_FACTOR * self.len as usize + FREE_PINS * arena.buffer_bytes();
        pins_much || self.extents.len() >= FREE_PIECES + self.len as usize / PIECE_BYTES
    }

    /// Whether the piece is a copy of this draft's already.
    #[inline]
    fn is_packed(&self, extent: &Extent) -> bool {
        self.pack.as_ref().is_some_and(|pack| pack.holds(extent))
    }

    #[inline]
    fn claim(&self, extent: &Extent) -> bool {
        // A copy of this draft's own is claimed when it is made.
        self.is_packed(extent) || extent.claim()
    }

    /// Makes the record one of `bytes`, which lie in DRAM: copied into the draft's own buffers. It is not short.
    pub(crate) fn copy_in(&mut self, arena: &Arena, reserve: usize, bytes: &[u8]) -> Result<(), AppendError> {
        self.len = bytes.len() as u64;
        debug_assert!(!self.is_short());
        self.copy(arena, reserve, bytes, |draft, copy| draft.seal(arena, copy))
    }

    /// Copies bytes into the draft's own buffers, and hands each part of the copy to `place`.
    fn copy(
        &mut self,
        arena: &Arena,
        reserve: usize,
        bytes: &[u8],
        place: impl Fn(&mut Self, Extent),
    ) -> Result<(), AppendError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.pack.as_ref().is_none_or(|pack| pack.room(arena) == 0) {
                let buffer = take_beyond(arena, reserve)?;
                // What fills a buffer are whole lines, and each was flushed when it was full.
                debug_assert!(self.pack.as_ref().is_none_or(|pack| pack.flushed == pack.used));
                self.pack = Some(Pack::new(buffer));
            }
            let pack = self.pack.as_mut().expect("it was put there");
            let (part, later) = rest.split_at(rest.len().min(pack.room(arena)));
            rest = later;
            let copy = pack.fill(std::iter::once(part));
            self.cost.copied_bytes += part.len() as u64;
            place(self, copy);
        }
        Ok(())
    }

    /// Adds a piece to checksum and flush.
    #[inline]
    fn seal(&mut self, arena: &Arena, extent: Extent) {
        let before = self.crc;
        self.crc = crc::crc32c_append(before, extent.bytes());
        self.flush(arena, &extent);
        let pieces = self.extents.len();
        self.pinned += usize::from(attach(&mut self.extents, extent));
        if self.extents.len() > pieces && pieces > 0 && pieces.is_multiple_of(ENTRY_EXTENTS) {
            self.crcs.push(before);
        }
    }

    #[inline]
    fn flush(&mut self, arena: &Arena, extent: &Extent) {
        if self.is_packed(extent) {
            self.flush_full_lines(arena);
            return;
        }
        let from = extent.medium_offset();
        let to = from + extent.len();
        // Pieces of one buffer often meet in a line. What others wrote there was complete when its first piece came.
        let seen = from / LINE_BYTES == self.last_line;
        let from = if seen { ((self.last_line + 1) * LINE_BYTES).min(to) } else { from };
        if !omits(Safeguard::PieceFlush) {
            arena.medium().flush(from, to - from);
        }
        self.cost.flushed_lines += lines(from, to);
        self.last_line = (to - 1) / LINE_BYTES;
    }

    /// Flushes what the copies have filled.
    fn flush_full_lines(&mut self, arena: &Arena) {
        if let Some(pack) = &mut self.pack {
            self.cost.flushed_lines += pack.flush_full_lines(arena);
        }
    }

    /// Flushes what is left of the copies.
    pub(crate) fn flush_pack(&mut self, arena: &Arena) {
        if let Some(pack) = &mut self.pack {
            self.cost.flushed_lines += pack.flush(arena);
        }
    }
}

/// Adds a piece, or lets the last one grow over it; true if it begins in another buffer than that one.
#[inline]
fn attach(pieces: &mut Vec<Extent>, extent: Extent) -> bool {
    let Some(last) = pieces.last_mut() else {
        pieces.push(extent);
        return true;
    };
    let Err(extent) = last.merge(extent) else { return false };
    let is_elsewhere = last.buffer_id() != extent.buffer_id();
    pieces.push(extent);
    is_elsewhere
}

/// A free buffer that is not one of the network's `reserve`.
pub(crate) fn take_beyond(arena: &Arena, reserve: usize) -> Result<Buffer, AppendError> {
    let free = arena.free_buffers();
    let buffer = if free > reserve { arena.take() } else { None };
    buffer.ok_or(AppendError::Full(Full::Buffers { free, reserve }))
}

/// How many lines hold the bytes `from..to`.
#[inline]
pub(crate) fn lines(from: usize, to: usize) -> u64 {
    if from >= to { 0 } else { (to.div_ceil(LINE_BYTES) - from / LINE_BYTES) as u64 }
}
