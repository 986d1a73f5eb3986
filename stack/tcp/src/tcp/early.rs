//! Received payload that waits for a hole to be filled. None of it was acknowledged: it may be dropped.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use pmem::{Buffer, Extent, Shelf};

use super::seq::Seq;

/// Payload shorter than this is copied: alone it would hold a buffer of four times its length or more.
pub(crate) const COPIED_BYTES: usize = 512;

/// Pieces that a list takes; one that needs more gets longer memory, as long as there is some.
const SHORT_PIECES: usize = 8;

/// Connections that may have holes at a time, and of them those with more than a few pieces beyond. What finds no
/// memory is dropped, and comes again.
const MAX_LISTS: usize = 8192;
const MAX_LONG_LISTS: usize = 256;

/// Memory for the pieces of all connections that wait for a hole to be filled; a handle.
#[derive(Clone, Debug)]
pub(crate) struct EarlyPool(Rc<RefCell<Lists>>);

// Few connections have holes, so that none has a list of its own; boxes move as one pointer.
#[derive(Debug)]
#[expect(clippy::vec_box, reason = "a connection holds the box")]
struct Lists {
    unused: Vec<Box<List>>,
    long: Vec<VecDeque<Early>>,
    /// Pieces that a list may have at most.
    most: usize,
}

impl EarlyPool {
    /// Lists for so many connections, each of at most `most` pieces. As each list holds a buffer at least, of the half
    /// that all of them may have, no more are of use than half as many as there are buffers.
    pub(crate) fn new(connections: usize, most: usize, buffers: usize) -> Self {
        let lists = connections.min(buffers.div_ceil(2)).min(MAX_LISTS);
        let short = most.min(SHORT_PIECES);
        let list = || List {
            pieces: VecDeque::with_capacity(short),
            room: short,
            short: None,
            shelf: None,
            buffers: 0,
        };
        let long = if most > short { lists.min(MAX_LONG_LISTS) } else { 0 };
        Self(Rc::new(RefCell::new(Lists {
            unused: (0..lists).map(|_| Box::new(list())).collect(),
            long: (0..long).map(|_| VecDeque::with_capacity(most)).collect(),
            most,
        })))
    }
}

/// A connection's pieces ahead of a hole. Long ones stay in the buffers where they arrived; short ones are copied,
/// behind the piece that they follow or together onto a shelf, so that a peer which sends every second byte holds no
/// buffer with each.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct EarlyQueue {
    /// None while there are no pieces.
    list: Option<Box<List>>,
    pool: EarlyPool,
}

#[derive(Debug)]
struct List {
    /// Sorted, not overlapping.
    pieces: VecDeque<Early>,
    /// Pieces that there is memory for.
    room: usize,
    /// The memory that it goes back to, where it has longer one.
    short: Option<VecDeque<Early>>,
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
    pub(crate) fn new(pool: &EarlyPool) -> Self {
        Self { list: None, pool: pool.clone() }
    }

    pub(crate) fn clear(&mut self) {
        let Some(mut list) = self.list.take() else { return };
        list.clear();
        let Lists { unused, long, .. } = &mut *self.pool.0.borrow_mut();
        if let Some(short) = list.short.take() {
            long.push(std::mem::replace(&mut list.pieces, short));
            list.room = SHORT_PIECES;
        }
        unused.push(list);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_none()
    }

    /// Buffers that are held here.
    pub(crate) fn buffers(&self) -> usize {
        self.list.as_ref().map_or(0, |list| list.buffers)
    }

    /// The first piece, if it begins at `next` or before.
    pub(crate) fn pop_at(&mut self, next: Seq) -> Option<Early> {
        let list = self.list.as_mut()?;
        let piece = list.pieces.pop_front_if(|piece| piece.seq.at_or_before(next))?;
        self.count_out(piece.is_last_of_its_buffer());
        Some(piece)
    }

    /// Drops the piece furthest ahead; false if there is none.
    pub(crate) fn drop_last(&mut self) -> bool {
        let Some(piece) = self.list.as_mut().and_then(|list| list.pieces.pop_back()) else { return false };
        self.count_out(piece.is_last_of_its_buffer());
        true
    }

    fn count_out(&mut self, with_buffer: bool) {
        let Some(list) = &mut self.list else { return };
        list.buffers = list.buffers.saturating_sub(with_buffer.into());
        if list.pieces.is_empty() {
            self.clear();
        }
    }

    /// The part of `from..to` that is worth keeping: none if all of it is here, or if there are too many pieces. What
    /// it covers wholly gives way to it once it is kept; what it overlaps stays.
    pub(crate) fn part(&mut self, from: Seq, to: Seq) -> Option<(Seq, Seq)> {
        let Some(list) = &mut self.list else {
            let is_some = !self.pool.0.borrow().unused.is_empty();
            return (is_some && from.before(to)).then_some((from, to));
        };
        let (part, covers) = list.part(from, to)?;
        let has_room = covers || list.has_room(&self.pool);
        has_room.then_some(part)
    }

    /// Keeps the piece at `from` that [`part`](Self::part) found worth it, in a buffer of its own.
    pub(crate) fn insert(&mut self, from: Seq, extent: Extent) {
        if let Some(list) = self.list() {
            list.buffers += 1;
            list.place(Early { seq: from, extent, shelved: false });
        }
    }

    /// As [`insert`](Self::insert), by copying. `take` gives a buffer if there has to be another one; false if it
    /// does not.
    pub(crate) fn copy(&mut self, from: Seq, bytes: &[u8], take: impl FnOnce() -> Option<Buffer>) -> bool {
        let copied = self.list().is_some_and(|list| list.copy(from, bytes, take));
        if self.list.as_ref().is_some_and(|list| list.pieces.is_empty()) {
            self.clear();
        }
        copied
    }

    /// The list, which is had from the pool if need be.
    fn list(&mut self) -> Option<&mut List> {
        if self.list.is_none() {
            self.list = self.pool.0.borrow_mut().unused.pop();
        }
        self.list.as_deref_mut()
    }
}

impl List {
    fn clear(&mut self) {
        self.pieces.clear();
        self.shelf = None;
        self.buffers = 0;
    }

    /// Whether there is memory for one more piece, once it was looked for.
    fn has_room(&mut self, pool: &EarlyPool) -> bool {
        if self.pieces.len() < self.room {
            return true;
        }
        let Lists { long, most, .. } = &mut *pool.0.borrow_mut();
        if self.short.is_some() || self.room >= *most {
            return false;
        }
        let Some(mut long) = long.pop() else { return false };
        long.extend(self.pieces.drain(..));
        self.short = Some(std::mem::replace(&mut self.pieces, long));
        self.room = *most;
        true
    }

    /// As [`EarlyQueue::part`], and whether pieces give way to it.
    fn part(&self, from: Seq, to: Seq) -> Option<((Seq, Seq), bool)> {
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
        (from + known).before(to).then_some(((from, to), !covered.is_empty()))
    }

    fn copy(&mut self, from: Seq, bytes: &[u8], take: impl FnOnce() -> Option<Buffer>) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{arena, extent_of};

    /// Keeps a piece of one byte at `from` if there is memory for it.
    fn keep(queue: &mut EarlyQueue, from: u32, arena: &pmem::Arena) -> bool {
        let is_kept = queue.part(Seq(from), Seq(from + 1)).is_some();
        if is_kept {
            queue.insert(Seq(from), extent_of(arena, &[7]));
        }
        is_kept
    }

    #[test]
    fn connections_with_holes_share_lists_and_longer_memory() {
        const MOST: u32 = 20;
        let arena = arena(64);
        let free = arena.free_buffers();
        // Two lists for three connections, and longer memory for both.
        let pool = EarlyPool::new(3, MOST as usize, 4);
        let mut queues: Vec<_> = (0..3).map(|_| EarlyQueue::new(&pool)).collect();
        for _ in 0..3 {
            for queue in &mut queues[..2] {
                let kept = (0..100).filter(|n| keep(queue, 2 * n, &arena)).count();
                assert_eq!((kept, queue.buffers()), (MOST as usize, MOST as usize));
            }
            assert!(!keep(&mut queues[2], 0, &arena), "there is no third list");
            for _ in 0..MOST {
                assert!(queues[0].drop_last());
            }
            assert!(queues[0].is_empty());
            assert!(keep(&mut queues[2], 0, &arena), "the list of one without a hole is another's");
            queues.iter_mut().for_each(EarlyQueue::clear);
            assert_eq!(arena.free_buffers(), free);
        }
    }

    #[test]
    fn without_longer_memory_a_few_pieces_are_kept() {
        let arena = arena(64);
        let pool = EarlyPool::new(3, 20, 6);
        pool.0.borrow_mut().long.truncate(1);
        let mut queues: Vec<_> = (0..2).map(|_| EarlyQueue::new(&pool)).collect();
        let kept = queues.iter_mut().map(|queue| (0..100).filter(|n| keep(queue, 2 * n, &arena)).count());
        assert_eq!(kept.collect::<Vec<_>>(), [20, SHORT_PIECES]);
        queues[0].clear();
        assert!(keep(&mut queues[1], 500, &arena));
    }
}
