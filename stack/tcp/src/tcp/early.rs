//! Received payload that waits for a hole to be filled. None of it was acknowledged: it may be dropped.

use std::collections::VecDeque;
use std::ops::Range;

use pmem::{Buffer, Extent, Shelf};

use super::seq::Seq;

/// Payload shorter than this is copied: alone it would hold a buffer of four times its length or more.
pub(crate) const COPIED_BYTES: usize = 512;

/// Pieces ahead of a hole. Long ones stay in the buffers where they arrived; short ones are copied, behind the piece
/// that they follow or together onto a shelf, so that a peer which sends every second byte holds no buffer with each.
#[derive(Debug)]
pub(crate) struct EarlyQueue {
    /// Sorted, not overlapping; at most as many as there was memory for at the start.
    pieces: VecDeque<Early>,
    most: usize,
    /// Where the next short piece goes.
    shelf: Option<Shelf>,
    /// Buffers that the pieces and the shelf hold.
    buffers: usize,
}

/// One piece.
#[derive(Debug)]
pub(crate) struct Early {
    pub seq: Seq,
    pub extent: Extent,
    /// Whether it was put on a shelf, and shares a buffer.
    shelved: bool,
}

impl Early {
    fn len(&self) -> u32 {
        self.extent.len() as u32
    }

    pub(crate) fn end(&self) -> Seq {
        self.seq + self.len()
    }

    /// Whether its buffer goes with it.
    fn is_last_of_its_buffer(&self) -> bool {
        !self.shelved || self.extent.is_unique()
    }
}

impl EarlyQueue {
    pub(crate) fn new(most: usize) -> Self {
        Self { pieces: VecDeque::with_capacity(most), most, shelf: None, buffers: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.shelf = None;
        self.buffers = 0;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Buffers that are held here.
    pub(crate) fn buffers(&self) -> usize {
        self.buffers
    }

    /// The first piece, if it begins at `next` or before.
    pub(crate) fn pop_at(&mut self, next: Seq) -> Option<Early> {
        let piece = self.pieces.pop_front_if(|piece| piece.seq.at_or_before(next))?;
        self.count_out(piece.is_last_of_its_buffer());
        Some(piece)
    }

    /// Drops the piece furthest ahead; false if there is none.
    pub(crate) fn drop_last(&mut self) -> bool {
        let Some(piece) = self.pieces.pop_back() else { return false };
        self.count_out(piece.is_last_of_its_buffer());
        true
    }

    fn count_out(&mut self, with_buffer: bool) {
        self.buffers = self.buffers.saturating_sub(with_buffer.into());
        if self.pieces.is_empty() {
            self.clear();
        }
    }

    /// The part of `from..to` that is worth keeping: none if all of it is here, or if there are too many pieces. What
    /// it covers wholly gives way to it once it is kept; what it overlaps stays.
    pub(crate) fn part(&self, from: Seq, to: Seq) -> Option<(Seq, Seq)> {
        let at = self.place_of(from);
        let from = match at.checked_sub(1).and_then(|before| self.pieces.get(before)) {
            Some(before) => from.max(before.end()),
            None => from,
        };
        if from.at_or_after(to) {
            return None;
        }
        let covered = self.covered(at, to);
        let known: u32 = self.pieces.range(covered.clone()).map(Early::len).sum();
        let to = match self.pieces.get(covered.end) {
            Some(piece) => to.min(piece.seq),
            None => to,
        };
        let room = self.pieces.len() < self.most || !covered.is_empty();
        (from + known).before(to).then_some((from, to)).filter(|_| room)
    }

    /// Keeps the piece at `from` that [`part`](Self::part) found worth it, in a buffer of its own.
    pub(crate) fn insert(&mut self, from: Seq, extent: Extent) {
        self.buffers += 1;
        self.place(Early { seq: from, extent, shelved: false });
    }

    /// As [`insert`](Self::insert), by copying. `take` gives a buffer if there has to be another one; false if it
    /// does not.
    pub(crate) fn copy(&mut self, from: Seq, bytes: &[u8], take: impl FnOnce() -> Option<Buffer>) -> bool {
        let at = self.place_of(from);
        let before = at.checked_sub(1).and_then(|before| self.pieces.get_mut(before));
        if let Some(before) = before.filter(|before| before.end() == from) {
            let grown = before.extent.extend_by_copy(bytes)
                || self.shelf.as_mut().is_some_and(|shelf| shelf.extend(&mut before.extent, bytes));
            if grown {
                self.drop_covered(at, from + bytes.len() as u32);
                return true;
            }
        }
        let extent = match self.shelf.as_mut().and_then(|shelf| shelf.put(bytes)) {
            Some(extent) => Some(extent),
            None => take()
                .and_then(Shelf::new)
                .and_then(|shelf| self.shelf.insert(shelf).put(bytes))
                .inspect(|_| {
                    // The one before is full of pieces, which hold it now.
                    self.buffers += 1;
                }),
        };
        let Some(extent) = extent else { return false };
        self.place(Early { seq: from, extent, shelved: true });
        true
    }

    fn place(&mut self, piece: Early) {
        let at = self.place_of(piece.seq);
        self.drop_covered(at, piece.end());
        self.pieces.insert(at, piece);
    }

    /// Where a piece at `from` belongs.
    fn place_of(&self, from: Seq) -> usize {
        self.pieces.partition_point(|piece| piece.seq.before(from))
    }

    /// The pieces from `at` on that end at `to` or before.
    fn covered(&self, at: usize, to: Seq) -> Range<usize> {
        let count = self.pieces.range(at..).take_while(|piece| piece.end().at_or_before(to)).count();
        at..at + count
    }

    fn drop_covered(&mut self, at: usize, to: Seq) {
        let covered = self.covered(at, to);
        for piece in self.pieces.drain(covered) {
            self.buffers -= usize::from(piece.is_last_of_its_buffer());
        }
    }
}
