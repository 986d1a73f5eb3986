//! Received payload in the buffers where it arrived: what is in order and waits for the application, and what
//! waits for a hole to be filled.

use std::collections::VecDeque;

use pmem::Extent;

use super::pieces::{PiecePool, PieceQueue};
use super::seq::Seq;

/// Pieces that a connection holds before further small payload is packed together.
const UNPACKED_PIECES: usize = 4;

/// Payload shorter than this is small.
const SMALL_BYTES: usize = 256;

/// Pieces are packed while they are shorter than this on average: the short tail of an upload is not copied.
const THIN_BYTES: usize = 512;

/// A connection's receive queues; together they hold at most `quota` pieces, each in a buffer of its own.
#[derive(Debug)]
pub(crate) struct RecvQueue {
    ready: PieceQueue,
    ready_bytes: u32,
    /// Beyond the hole, sorted, not overlapping.
    early: VecDeque<Early>,
    early_bytes: u32,
    quota: usize,
}

#[derive(Debug)]
struct Early {
    seq: Seq,
    extent: Extent,
}

impl Early {
    fn len(&self) -> u32 {
        self.extent.len() as u32
    }

    fn end(&self) -> Seq {
        self.seq + self.len()
    }
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
    pub(crate) fn new(quota: usize) -> Self {
        Self {
            ready: PieceQueue::new(),
            ready_bytes: 0,
            early: VecDeque::with_capacity(quota),
            early_bytes: 0,
            quota,
        }
    }

    pub(crate) fn clear(&mut self, pool: &mut PiecePool) {
        self.ready.clear(pool);
        self.early.clear();
        (self.ready_bytes, self.early_bytes) = (0, 0);
    }

    /// The next piece for the application.
    pub(crate) fn pop(&mut self, pool: &mut PiecePool) -> Option<Extent> {
        let extent = self.ready.pop(pool)?;
        self.ready_bytes -= extent.len() as u32;
        Some(extent)
    }

    /// Bytes that wait for the application.
    pub(crate) fn ready_bytes(&self) -> u32 {
        self.ready_bytes
    }

    pub(crate) fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    /// Pieces that may still be added.
    pub(crate) fn free_pieces(&self) -> usize {
        self.quota - self.ready.len() - self.early.len()
    }

    /// Makes room for a piece that is in order, at the cost of the one furthest ahead: nothing was promised
    /// about it, and without the former it is useless.
    pub(crate) fn make_room(&mut self) -> bool {
        self.free_pieces() > 0 || self.drop_last_early()
    }

    /// Gives the early piece furthest ahead back to the arena; false if there is none.
    pub(crate) fn drop_last_early(&mut self) -> bool {
        let last = self.early.pop_back();
        self.early_bytes -= last.as_ref().map_or(0, Early::len);
        last.is_some()
    }

    /// Tries to copy small in-order payload behind the last piece, so that a peer which sends a few bytes a
    /// segment cannot hold a buffer with each.
    pub(crate) fn pack(&mut self, bytes: &[u8], pool: &mut PiecePool) -> Packed {
        if bytes.len() >= SMALL_BYTES || !is_thin(self.ready.len(), self.ready_bytes) {
            return Packed::No;
        }
        if !self.ready.last_mut(pool).is_some_and(|last| last.extend_by_copy(bytes)) {
            return Packed::No;
        }
        self.ready_bytes += bytes.len() as u32;
        Packed::Yes
    }

    /// Adds a piece that is in order, for which the caller made room; false if the pool has none.
    pub(crate) fn push(&mut self, extent: Extent, pool: &mut PiecePool) -> bool {
        let len = extent.len() as u32;
        let pushed = self.ready.push(extent, pool);
        self.ready_bytes += if pushed { len } else { 0 };
        pushed
    }

    /// Moves early pieces that are in order by now, and drops those that came twice; returns the next
    /// sequence number expected.
    pub(crate) fn fill_from_early(&mut self, mut next: Seq, pool: &mut PiecePool) -> Seq {
        while pool.has_room()
            && let Some(early) = self.early.pop_front_if(|early| early.seq.at_or_before(next))
        {
            let end = early.end();
            self.early_bytes -= early.len();
            if end.at_or_before(next) {
                continue;
            }
            let known = next.since(early.seq) as usize;
            let rest = early.extent.len() - known;
            if let Some(extent) = early.extent.slice(known, rest) {
                self.push(extent, pool);
            }
            next = end;
        }
        next
    }

    /// The part of `from..to` beyond the hole that is worth keeping: none if all of it is here, or if there is
    /// no room. What it covers wholly is dropped in its favour; what it overlaps stays.
    pub(crate) fn early_part(&mut self, from: Seq, to: Seq) -> Option<(Seq, Seq)> {
        let at = self.early.partition_point(|early| early.seq.before(from));
        let from = match at.checked_sub(1).and_then(|before| self.early.get(before)) {
            Some(before) => from.max(before.end()),
            None => from,
        };
        if from.at_or_after(to) {
            return None;
        }
        let len = to.since(from);
        while self.early.get(at).is_some_and(|early| early.end().at_or_before(to) && early.len() < len) {
            let covered = self.early.remove(at);
            self.early_bytes -= covered.as_ref().map_or(0, Early::len);
        }
        let to = match self.early.get(at) {
            Some(after) => to.min(after.seq),
            None => to,
        };
        (from.before(to) && self.free_pieces() > 0).then_some((from, to))
    }

    /// Tries to copy small early payload behind the early piece that it follows.
    pub(crate) fn pack_early(&mut self, from: Seq, bytes: &[u8]) -> Packed {
        if bytes.len() >= SMALL_BYTES || !is_thin(self.early.len(), self.early_bytes) {
            return Packed::No;
        }
        let at = self.early.partition_point(|early| early.seq.before(from));
        let before = at.checked_sub(1).and_then(|before| self.early.get_mut(before));
        let before = before.filter(|before| before.end() == from);
        if !before.is_some_and(|before| before.extent.extend_by_copy(bytes)) {
            return Packed::No;
        }
        self.early_bytes += bytes.len() as u32;
        Packed::Yes
    }

    /// Adds the piece at `from` that [`early_part`](Self::early_part) found worth keeping.
    pub(crate) fn push_early(&mut self, from: Seq, extent: Extent) {
        let at = self.early.partition_point(|early| early.seq.before(from));
        self.early_bytes += extent.len() as u32;
        self.early.insert(at, Early { seq: from, extent });
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
        Side { queue: RecvQueue::new(quota), pool: PiecePool::new(quota) }
    }

    /// Brings `stream[from..to]` in as a connection does.
    fn arrive(side: &mut Side, arena: &pmem::Arena, next: &mut Seq, stream: &[u8], from: u32, to: u32) {
        let Side { queue, pool } = side;
        let base = Seq(u32::MAX - 20);
        let bytes = |from: Seq, to: Seq| &stream[from.since(base) as usize..to.since(base) as usize];
        let (from, to) = ((base + from).max(*next), base + to);
        if to.at_or_before(*next) {
            return;
        }
        if from == *next {
            assert!(queue.make_room());
            if queue.pack(bytes(from, to), pool) == Packed::No {
                assert!(queue.push(extent_of(arena, bytes(from, to)), pool));
            }
            *next = queue.fill_from_early(to, pool);
        } else if let Some((from, to)) = queue.early_part(from, to)
            && queue.pack_early(from, bytes(from, to)) == Packed::No
        {
            queue.push_early(from, extent_of(arena, bytes(from, to)));
        }
    }

    proptest! {
        /// Pieces in any order, overlapping in any way: the application reads the stream.
        #[test]
        fn reassembles(pieces in prop::collection::vec((0..100u32, 1..40u32), 0..60)) {
            let stream: Vec<u8> = (0..140).collect();
            let arena = arena(32);
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
            prop_assert!(!side.queue.has_early());
            prop_assert_eq!((side.queue.ready_bytes(), side.queue.early_bytes), (0, 0));
            prop_assert_eq!(arena.free_buffers(), free);
        }
    }

    /// The last piece is packed behind one that waits for a hole, and counted.
    #[test]
    fn early_payload_that_is_packed_counts() {
        let arena = arena(16);
        let mut side = side(8);
        let mut next = Seq(u32::MAX - 20);
        let stream = [7; 140];
        for (from, len) in [(1, 1), (15, 26), (62, 17), (90, 2), (79, 11)] {
            arrive(&mut side, &arena, &mut next, &stream, from, from + len);
        }
        assert_eq!((side.queue.early.len(), side.queue.early_bytes), (4, 57));
        arrive(&mut side, &arena, &mut next, &stream, 0, 100);
        assert_eq!((side.queue.ready_bytes(), side.queue.early_bytes), (100, 0));
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
        assert_eq!(side.queue.pack(&[7; 100], &mut side.pool), Packed::No);
    }

    #[test]
    fn early_payload_never_keeps_payload_in_order_out() {
        let arena = arena(16);
        let mut side = side(4);
        let mut next = Seq(u32::MAX - 20);
        let stream = [7; 100];
        for at in [50, 30, 70, 10, 90] {
            arrive(&mut side, &arena, &mut next, &stream, at, at + 5);
        }
        assert_eq!(side.queue.free_pieces(), 0);
        arrive(&mut side, &arena, &mut next, &stream, 0, 10);
        assert_eq!(side.queue.ready_bytes(), 15);
        assert_eq!(side.queue.ready.len() + side.queue.early.len(), 4);
    }
}
