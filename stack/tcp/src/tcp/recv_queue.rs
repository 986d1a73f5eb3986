//! Received payload in the buffers where it arrived: what is in order and waits for the application, and what
//! waits for a hole to be filled.

use pmem::{Arena, Extent, Shelf};

use super::early::{COPIED_BYTES, EarlyPool, EarlyQueue};
use super::pieces::{PiecePool, PieceQueue};
use super::seq::Seq;

/// What a window offers at first; it grows with what comes.
const FIRST_WINDOW_BYTES: usize = 256 * 1024;

/// Pieces that a connection holds before further small payload is packed together.
const UNPACKED_PIECES: usize = 4;

/// Payload shorter than this is small.
const SMALL_BYTES: usize = 256;

/// Pieces are packed while they are shorter than this on average: the short tail of an upload is not copied.
const THIN_BYTES: usize = 512;

/// A connection's receive queues. Of payload ahead of a hole they take no more than makes `quota` buffers for both; what
/// is in order is bounded by the window, which offers no more than that in whole segments.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct RecvQueue {
    ready: PieceQueue,
    ready_bytes: u32,
    /// Beyond the hole.
    pub(super) early: EarlyQueue,
    quota: u32,
    /// Bytes that the window may offer, less those that wait.
    window: u32,
}

/// What became of a piece of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packed {
    /// Copied behind the last piece.
    Yes,
    /// It needs a buffer of its own.
    No,
}

impl RecvQueue {
    /// Its first bytes: what waits for the application.
    pub(crate) const HOT_BYTES: usize = std::mem::offset_of!(RecvQueue, early);

    pub(crate) fn new(quota: usize, early: &EarlyPool) -> Self {
        Self {
            ready: PieceQueue::new(),
            ready_bytes: 0,
            early: EarlyQueue::new(early),
            quota: quota as u32,
            window: 0,
        }
    }

    /// Begins with a window that may grow to `most` bytes.
    pub(crate) fn open(&mut self, most: usize) {
        self.window = most.min(FIRST_WINDOW_BYTES) as u32;
    }

    /// Bytes that the window may offer, with those that wait.
    #[inline]
    pub(crate) fn window(&self) -> u32 {
        self.window
    }

    /// Lets the window grow to `bytes`, if that is more, but not beyond `most`.
    pub(crate) fn widen(&mut self, bytes: u32, most: usize) {
        self.window = self.window.max(bytes.min(most as u32));
    }

    pub(crate) fn clear(&mut self, pool: &mut PiecePool) {
        self.ready.clear(pool);
        self.early.clear();
        self.ready_bytes = 0;
    }

    /// The next piece for the application.
    #[inline(always)]
    pub(crate) fn pop(&mut self, pool: &mut PiecePool) -> Option<Extent> {
        let extent = self.ready.pop(pool)?;
        self.ready_bytes -= extent.len() as u32;
        Some(extent)
    }

    /// Bytes that wait for the application.
    #[inline]
    pub(crate) fn ready_bytes(&self) -> u32 {
        self.ready_bytes
    }

    /// Buffers that may still be offered, or be taken by what is ahead of a hole.
    #[inline]
    pub(crate) fn free_pieces(&self) -> usize {
        (self.quota as usize).saturating_sub(self.ready.len() + self.early.buffers())
    }

    /// Whether in-order payload of this length is copied behind the last piece if it can be, so that a peer which sends a
    /// few bytes a segment cannot hold a buffer with each.
    #[inline]
    pub(crate) fn packs(&self, bytes: u32) -> bool {
        (bytes as usize) < SMALL_BYTES && is_thin(self.ready.len(), self.ready_bytes)
    }

    /// Tries to copy `bytes` behind the last piece.
    pub(crate) fn grow_last(&mut self, bytes: &[u8], pool: &mut PiecePool) -> Packed {
        if !self.ready.last_mut(pool).is_some_and(|last| last.extend_by_copy(bytes)) {
            return Packed::No;
        }
        self.ready_bytes += bytes.len() as u32;
        Packed::Yes
    }

    /// Adds a piece that is in order; false if the pool has no room for it.
    #[inline]
    pub(crate) fn push(&mut self, extent: Extent, pool: &mut PiecePool) -> bool {
        let len = extent.len() as u32;
        let pushed = self.ready.push(extent, pool);
        self.ready_bytes += if pushed { len } else { 0 };
        pushed
    }

    /// Moves early pieces that are in order by now, and drops those that came twice. Returns the next sequence number
    /// expected, and how many bytes were copied so that short pieces hold no buffer each.
    pub(crate) fn fill_from_early(
        &mut self,
        mut next: Seq,
        pool: &mut PiecePool,
        arena: &Arena,
    ) -> (Seq, u64) {
        let mut copied_bytes = 0;
        while pool.has_room()
            && let Some((from, extent)) = self.early.pop_at(next)
        {
            let end = from + extent.len() as u32;
            if end.at_or_before(next) {
                continue;
            }
            let known = next.since(from) as usize;
            let rest = extent.len() - known;
            if let Some(extent) = extent.slice(known, rest) {
                copied_bytes += self.append(extent, pool, arena);
            }
            next = end;
        }
        (next, copied_bytes)
    }

    /// Adds a piece that was early; returns how much of it was copied.
    fn append(&mut self, extent: Extent, pool: &mut PiecePool, arena: &Arena) -> u64 {
        let bytes = extent.len() as u64;
        if extent.len() < COPIED_BYTES && self.grow_last(extent.bytes(), pool) == Packed::Yes {
            return bytes;
        }
        // A piece that shares its buffer gets one which those behind it can follow into.
        let own = if extent.is_unique() { None } else { arena.take().and_then(Shelf::new) };
        match own.and_then(|mut own| own.put(extent.bytes())) {
            Some(copy) => {
                self.push(copy, pool);
                bytes
            }
            None => {
                self.push(extent, pool);
                0
            }
        }
    }
}

/// Whether a queue has pieces worth packing.
fn is_thin(pieces: usize, bytes: u32) -> bool {
    pieces >= UNPACKED_PIECES && (bytes as usize) < pieces * THIN_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{arena, extent_of};

    struct Side {
        queue: RecvQueue,
        pool: PiecePool,
    }

    fn side(quota: usize) -> Side {
        let early = EarlyPool::new(1, 200);
        Side { queue: RecvQueue::new(quota, &early), pool: PiecePool::new(200) }
    }

    /// Brings `stream[from..to]` in as a connection does.
    fn arrive(side: &mut Side, arena: &Arena, next: &mut Seq, stream: &[u8], from: u32, to: u32) {
        let Side { queue, pool } = side;
        let base = Seq(u32::MAX - 20);
        let bytes = |from: Seq, to: Seq| &stream[from.since(base) as usize..to.since(base) as usize];
        let (from, to) = ((base + from).max(*next), base + to);
        if to.at_or_before(*next) {
            return;
        }
        if from == *next {
            let bytes = bytes(from, to);
            let is_packed = queue.packs(bytes.len() as u32) && queue.grow_last(bytes, pool) == Packed::Yes;
            if !is_packed {
                assert!(queue.push(extent_of(arena, bytes), pool));
            }
            (*next, _) = queue.fill_from_early(to, pool, arena);
        } else {
            let mut rest = from;
            while let Some((from, gap_end)) = queue.early.gap(rest, to) {
                assert!(queue.early.has_room(from, gap_end));
                let bytes = bytes(from, gap_end);
                assert!(if to.since(base).is_multiple_of(7) {
                    queue.early.insert(from, extent_of(arena, bytes), true)
                } else {
                    queue.early.copy(from, bytes, || arena.take())
                });
                rest = gap_end;
            }
        }
    }

    proptest! {
        /// Pieces in any order, overlapping in any way: the application reads the stream.
        #[test]
        fn reassembles(pieces in prop::collection::vec((0..100u32, 1..40u32), 0..60)) {
            let stream: Vec<u8> = (0..140).collect();
            let arena = arena(200);
            let free = arena.free_buffers();
            let mut side = side(16);
            let mut next = Seq(u32::MAX - 20);
            let mut read = Vec::new();
            let in_order = (0..14).map(|i| (i * 10, 10));
            for (from, len) in pieces.into_iter().chain(in_order) {
                arrive(&mut side, &arena, &mut next, &stream, from, from + len);
                if from % 3 == 0 {
                    read.extend(side.queue.pop(&mut side.pool).map(|extent| extent.bytes().to_vec()));
                }
            }
            read.extend(std::iter::from_fn(|| side.queue.pop(&mut side.pool).map(|extent| extent.bytes().to_vec())));
            prop_assert_eq!(read.concat(), stream);
            prop_assert!(side.queue.early.is_empty());
            prop_assert_eq!((side.queue.ready_bytes(), side.queue.early.buffers()), (0, 0));
            prop_assert_eq!(arena.free_buffers(), free);
        }
    }

    /// Every second byte, then the others: two buffers hold them while they wait, and as few afterwards.
    #[test]
    fn every_second_byte_holds_few_buffers() {
        let arena = arena(16);
        let free = arena.free_buffers();
        let mut side = side(100);
        let mut next = Seq(u32::MAX - 20);
        let stream: Vec<u8> = (0..200).collect();
        for at in (1..200).step_by(2) {
            arrive(&mut side, &arena, &mut next, &stream, at, at + 1);
        }
        // One in seven was not copied.
        assert_eq!(side.queue.early.buffers(), 1 + 14);
        assert_eq!(free - arena.free_buffers(), 1 + 14);
        for at in (0..200).step_by(2) {
            arrive(&mut side, &arena, &mut next, &stream, at, at + 1);
        }
        assert_eq!((side.queue.ready_bytes(), side.queue.early.buffers()), (200, 0));
        assert!(side.queue.ready.len() <= UNPACKED_PIECES + 1, "{}", side.queue.ready.len());
        let read =
            std::iter::from_fn(|| side.queue.pop(&mut side.pool).map(|extent| extent.bytes().to_vec()));
        assert_eq!(read.collect::<Vec<_>>().concat(), stream);
        assert_eq!(arena.free_buffers(), free);
    }

    #[test]
    fn one_byte_segments_share_buffers() {
        let arena = arena(16);
        let free = arena.free_buffers();
        let mut side = side(8);
        let mut next = Seq(u32::MAX - 20);
        let stream = [7; 200];
        for at in 0..200 {
            arrive(&mut side, &arena, &mut next, &stream, at, at + 1);
        }
        assert_eq!(arena.free_buffers(), free - UNPACKED_PIECES);
        assert_eq!(side.queue.ready_bytes(), 200);
    }

    #[test]
    fn the_tail_of_an_upload_is_not_copied() {
        let arena = arena(16);
        let mut side = side(8);
        for _ in 0..UNPACKED_PIECES {
            assert!(side.queue.push(extent_of(&arena, &[7; 1448]), &mut side.pool));
        }
        assert!(!side.queue.packs(100));
    }

    #[test]
    fn early_payload_neither_keeps_payload_in_order_out_nor_gives_way_to_it() {
        let arena = arena(16);
        let mut side = side(4);
        let mut next = Seq(u32::MAX - 20);
        let stream = [7; 100];
        for at in [49, 28, 70, 14, 91] {
            arrive(&mut side, &arena, &mut next, &stream, at - 5, at);
        }
        let held = side.queue.early.buffers();
        arrive(&mut side, &arena, &mut next, &stream, 0, 9);
        assert_eq!(side.queue.ready_bytes(), 14);
        assert_eq!(side.queue.early.buffers(), held - 1);
        for from in [14, 28, 49, 70] {
            arrive(&mut side, &arena, &mut next, &stream, from, from + 20);
        }
        assert_eq!((side.queue.ready_bytes(), side.queue.early.is_empty()), (91, true));
    }
}
