//! Received payload that waits for a hole to be filled. The peer is told of it and may let go of it (RFC 2018), so that
//! what was taken once stays until it is delivered: where buffers run short, further payload is refused.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use arrayvec::ArrayVec;
use pmem::{Buffer, Extent, Shelf};

use super::options::{Block, SackBlocks};
use super::pieces::{PiecePool, PieceQueue};
use super::seq::Seq;
use super::spares::Spares;

/// Payload shorter than this is copied: alone it would hold a buffer of four times its length or more.
pub(crate) const COPIED_BYTES: usize = 512;

/// Runs that a list takes; one that needs more gets longer memory, as long as there is some.
const SHORT_RUNS: usize = 8;
const LONG_RUNS: usize = 512;

/// Connections that may have holes at a time, and of them those with more than a few runs beyond. What finds no memory
/// is refused, and comes again.
const MAX_LISTS: usize = 8192;
const MAX_LONG_LISTS: usize = 256;

/// Buffers of an arena for each connection with more than a few runs.
const BUFFERS_BY_LONG_LIST: usize = 16;

/// Pieces that a connection may have for each buffer that it holds, and one for each run beside: however it cuts them, it
/// does not take those of others.
const PIECES_BY_BUFFER: usize = 4;

/// Runs whose order of arrival is remembered. A segment tells of no more than four.
const NEWEST: usize = 8;

/// Duplicates that wait to be told of. Those that follow each other are one.
const DUPLICATES: usize = 4;

/// Memory for what all connections have beyond holes; a handle.
#[derive(Clone, Debug)]
pub(crate) struct EarlyPool(Rc<RefCell<Lists>>);

// Few connections have holes, so that none has a list of its own.
#[derive(Debug)]
struct Lists {
    unused: Spares<List>,
    long: Vec<VecDeque<Run>>,
    pieces: PiecePool,
}

impl EarlyPool {
    /// Lists for so many connections. As each holds a buffer at least, of the half that all of them may have, no more are
    /// of use than half as many as there are buffers.
    pub(crate) fn new(connections: usize, buffers: usize) -> Self {
        let lists = connections.min(buffers.div_ceil(2)).min(MAX_LISTS);
        let list = || List {
            runs: VecDeque::with_capacity(SHORT_RUNS),
            room: SHORT_RUNS,
            short: None,
            shelf: None,
            buffers: 0,
            pieces: 0,
            newest: ArrayVec::new(),
            duplicates: ArrayVec::new(),
        };
        let long = lists.min(MAX_LONG_LISTS).min(buffers / BUFFERS_BY_LONG_LIST);
        let held = buffers.div_ceil(2);
        Self(Rc::new(RefCell::new(Lists {
            unused: Spares::new(lists, list),
            long: (0..long).map(|_| VecDeque::with_capacity(LONG_RUNS)).collect(),
            pieces: PiecePool::new(PIECES_BY_BUFFER * held + SHORT_RUNS * lists + LONG_RUNS * long),
        })))
    }
}

/// What a connection has beyond a hole. Long pieces stay in the buffers where they arrived; short ones are copied, behind
/// the piece that they follow or together onto a shelf, so that a peer which sends every second byte holds no buffer with
/// each.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct EarlyQueue {
    /// None while there is nothing to keep, and nothing to tell.
    list: Option<Box<List>>,
    pool: EarlyPool,
}

#[derive(Debug)]
struct List {
    /// In their order, with holes between them.
    runs: VecDeque<Run>,
    /// Runs that there is memory for.
    room: usize,
    /// The memory that it goes back to, where it has longer one.
    short: Option<VecDeque<Run>>,
    /// Where the next short piece goes.
    shelf: Option<Shelf>,
    /// Buffers that the pieces and the shelf hold.
    buffers: usize,
    pieces: usize,
    /// Numbers in the runs that segments last came into, the last of them first.
    newest: ArrayVec<Seq, NEWEST>,
    /// What came again and is yet to be told of (RFC 2883).
    duplicates: ArrayVec<Block, DUPLICATES>,
}

/// Payload without a hole.
#[derive(Debug)]
struct Run {
    from: Seq,
    to: Seq,
    pieces: PieceQueue,
}

impl Run {
    fn block(&self) -> Block {
        Block { from: self.from, to: self.to }
    }

    fn has(&self, seq: Seq) -> bool {
        seq.at_or_after(self.from) && seq.before(self.to)
    }
}

impl EarlyQueue {
    pub(crate) fn new(pool: &EarlyPool) -> Self {
        Self { list: None, pool: pool.clone() }
    }

    pub(crate) fn clear(&mut self) {
        let Some(mut list) = self.list.take() else { return };
        let Lists { unused, long, pieces } = &mut *self.pool.0.borrow_mut();
        list.clear(pieces);
        if let Some(short) = list.short.take() {
            long.push(std::mem::replace(&mut list.runs, short));
            list.room = SHORT_RUNS;
        }
        unused.give_back(list);
    }

    /// Whether nothing is here, and no duplicate is yet to be told of.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_none()
    }

    /// Buffers that are held here.
    #[inline]
    pub(crate) fn buffers(&self) -> usize {
        self.list.as_ref().map_or(0, |list| list.buffers)
    }

    /// The first part of `from..to` that is not here.
    pub(crate) fn gap(&self, from: Seq, to: Seq) -> Option<(Seq, Seq)> {
        match &self.list {
            Some(list) => list.gap(from, to),
            None => from.before(to).then_some((from, to)),
        }
    }

    /// The first part of `from..to` that is here already.
    pub(crate) fn known(&self, from: Seq, to: Seq) -> Option<Block> {
        let list = self.list.as_ref()?;
        let run = list.runs.get(list.first_beyond(from)).filter(|run| run.from.before(to))?;
        Some(Block { from: from.max(run.from), to: to.min(run.to) })
    }

    /// Whether there is memory to note a piece that fills a [gap](Self::gap), or a part of one.
    pub(crate) fn has_room(&mut self, from: Seq, to: Seq) -> bool {
        let Lists { unused, long, pieces } = &mut *self.pool.0.borrow_mut();
        pieces.has_room()
            && match &mut self.list {
                Some(list) => list.has_room(list.meets_a_run(from, to), long),
                None => !unused.is_empty(),
            }
    }

    /// Keeps a piece for which there [is room](Self::has_room). `is_first` unless another one is kept from its buffer.
    pub(crate) fn insert(&mut self, from: Seq, extent: Extent, is_first: bool) -> bool {
        let inserted = self.with(|list, pieces| {
            let inserted = list.join(from, extent, pieces);
            list.buffers += usize::from(inserted && is_first);
            inserted
        });
        self.rest();
        inserted == Some(true)
    }

    /// As [`insert`](Self::insert), by copying. `take` gives a buffer if there has to be another one; false if it
    /// does not.
    pub(crate) fn copy(&mut self, from: Seq, bytes: &[u8], take: impl FnOnce() -> Option<Buffer>) -> bool {
        let copied = self.with(|list, pieces| list.copy(from, bytes, take, pieces));
        self.rest();
        copied == Some(true)
    }

    /// The first piece and its number, if that is `next` or before.
    pub(crate) fn pop_at(&mut self, next: Seq) -> Option<(Seq, Extent)> {
        let list = self.list.as_mut()?;
        let run = list.runs.front_mut().filter(|run| run.from.at_or_before(next))?;
        let from = run.from;
        let extent = run.pieces.pop(&mut self.pool.0.borrow_mut().pieces)?;
        list.pieces -= 1;
        run.from += extent.len() as u32;
        if run.from.at_or_after(run.to) {
            list.runs.pop_front();
        }
        // The last piece of a buffer takes it along.
        list.buffers = list.buffers.saturating_sub(extent.is_unique().into());
        self.rest();
        Some((from, extent))
    }

    /// Notes that a segment with that number has come, and was kept.
    pub(crate) fn came(&mut self, seq: Seq) {
        if let Some(list) = &mut self.list {
            list.came(seq);
        }
    }

    /// Notes that something has come which was here or delivered already.
    pub(crate) fn came_again(&mut self, block: Block) {
        self.with(|list, _| match list.duplicates.last_mut() {
            Some(last) if last.to == block.from => last.to = block.to,
            // What has no room is not told of: it is advice.
            _ => {
                let _ = list.duplicates.try_push(block);
            }
        });
    }

    /// What a segment tells of it, in at most `most` blocks: first what came again (RFC 2883, section 4), then the run
    /// that the newest segment came into, or the one that came so many before it, then the others, those that were last
    /// told of first (RFC 2018, section 4).
    pub(crate) fn blocks(&self, before: usize, most: usize) -> Option<SackBlocks> {
        let list = self.list.as_ref().filter(|_| most > 0)?;
        Some(list.blocks(before, most))
    }

    /// Notes that a segment has gone out, with [blocks](Self::blocks) or without. True if there is more to tell of what
    /// came again.
    pub(crate) fn told(&mut self, with_blocks: bool) -> bool {
        let Some(list) = &mut self.list else { return false };
        if with_blocks && !list.duplicates.is_empty() {
            list.duplicates.remove(0);
        }
        let has_more = !list.duplicates.is_empty();
        self.rest();
        has_more
    }

    /// Does something with the list, which is had from the pool if need be; none if that has none.
    fn with<R>(&mut self, act: impl FnOnce(&mut List, &mut PiecePool) -> R) -> Option<R> {
        let Lists { unused, pieces, .. } = &mut *self.pool.0.borrow_mut();
        if self.list.is_none() {
            self.list = unused.take();
        }
        self.list.as_deref_mut().map(|list| act(list, pieces))
    }

    /// Gives the list back once there is nothing in it.
    fn rest(&mut self) {
        if let Some(list) = &mut self.list
            && list.runs.is_empty()
        {
            (list.shelf, list.buffers) = (None, 0);
            if list.duplicates.is_empty() {
                self.clear();
            }
        }
    }
}

impl List {
    fn clear(&mut self, pieces: &mut PiecePool) {
        for mut run in self.runs.drain(..) {
            run.pieces.clear(pieces);
        }
        (self.shelf, self.buffers, self.pieces) = (None, 0, 0);
        self.newest.clear();
        self.duplicates.clear();
    }

    /// Whether there is memory for one more piece, in a run of its own unless it `joins` one, once it was looked for.
    fn has_room(&mut self, joins: bool, long: &mut Vec<VecDeque<Run>>) -> bool {
        let has_run = joins || self.runs.len() < self.room;
        if has_run && self.pieces < PIECES_BY_BUFFER * self.buffers + self.room {
            return true;
        }
        if self.short.is_some() {
            return false;
        }
        let Some(mut long) = long.pop() else { return false };
        long.extend(self.runs.drain(..));
        self.short = Some(std::mem::replace(&mut self.runs, long));
        self.room = LONG_RUNS;
        true
    }

    /// Where the first run is that ends beyond `seq`.
    fn first_beyond(&self, seq: Seq) -> usize {
        self.runs.partition_point(|run| run.to.at_or_before(seq))
    }

    fn gap(&self, mut from: Seq, to: Seq) -> Option<(Seq, Seq)> {
        let mut at = self.first_beyond(from);
        if let Some(run) = self.runs.get(at).filter(|run| run.has(from)) {
            from = run.to;
            at += 1;
        }
        let to = self.runs.get(at).map_or(to, |run| to.min(run.from));
        from.before(to).then_some((from, to))
    }

    /// Whether what fills a gap so far follows a run, or is followed by one.
    fn meets_a_run(&self, from: Seq, to: Seq) -> bool {
        let at = self.first_beyond(from);
        self.runs.get(at).is_some_and(|run| run.from == to) || self.follows(at, from)
    }

    /// Whether the run before the place `at` ends at `from`.
    fn follows(&self, at: usize, from: Seq) -> bool {
        at.checked_sub(1).and_then(|before| self.runs.get(before)).is_some_and(|run| run.to == from)
    }

    fn copy(
        &mut self,
        from: Seq,
        bytes: &[u8],
        take: impl FnOnce() -> Option<Buffer>,
        pieces: &mut PiecePool,
    ) -> bool {
        let at = self.first_beyond(from);
        if self.follows(at, from)
            && let Some(last) = self.runs[at - 1].pieces.last_mut(pieces)
        {
            let grown = last.extend_by_copy(bytes)
                || self.shelf.as_mut().is_some_and(|shelf| shelf.extend(last, bytes));
            if grown {
                self.runs[at - 1].to += bytes.len() as u32;
                self.close_hole(at, pieces);
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
        extent.is_some_and(|extent| self.join(from, extent, pieces))
    }

    /// Puts a piece that fills a gap, or a part of it, where it belongs.
    fn join(&mut self, from: Seq, extent: Extent, pieces: &mut PiecePool) -> bool {
        if !pieces.has_room() {
            return false;
        }
        let (at, to) = (self.first_beyond(from), from + extent.len() as u32);
        if self.follows(at, from) {
            let run = &mut self.runs[at - 1];
            run.pieces.push(extent, pieces);
            run.to = to;
            self.close_hole(at, pieces);
        } else if let Some(run) = self.runs.get_mut(at).filter(|run| run.from == to) {
            run.pieces.push_front(extent, pieces);
            run.from = from;
        } else if self.runs.len() < self.room {
            let mut run = Run { from, to, pieces: PieceQueue::new() };
            run.pieces.push(extent, pieces);
            self.runs.insert(at, run);
        } else {
            return false;
        }
        self.pieces += 1;
        true
    }

    /// Makes one run of that at the place `at` and the one before it, if nothing is between them.
    fn close_hole(&mut self, at: usize, pieces: &mut PiecePool) {
        let is_closed = self.runs.get(at).is_some_and(|run| self.follows(at, run.from));
        if is_closed && let Some(run) = self.runs.remove(at) {
            let before = &mut self.runs[at - 1];
            before.to = run.to;
            before.pieces.append(run.pieces, pieces);
        }
    }

    fn run_of(&self, seq: Seq) -> Option<&Run> {
        self.runs.get(self.first_beyond(seq)).filter(|run| run.has(seq))
    }

    fn came(&mut self, seq: Seq) {
        let Some(Block { from, to }) = self.run_of(seq).map(Run::block) else { return };
        self.newest.retain(|newest| newest.before(from) || newest.at_or_after(to));
        if self.newest.is_full() {
            self.newest.pop();
        }
        self.newest.insert(0, seq);
    }

    fn blocks(&self, before: usize, most: usize) -> SackBlocks {
        let mut blocks = SackBlocks::default();
        if let Some(duplicate) = self.duplicates.first() {
            blocks.push(*duplicate);
        }
        // A run that holds the duplicate is told of as well.
        let first = blocks.as_slice().len();
        let newest = self.newest.get(before).into_iter().chain(&self.newest);
        let newest = newest.filter_map(|seq| self.run_of(*seq));
        for block in newest.chain(&self.runs).map(Run::block) {
            if blocks.as_slice().len() >= most {
                break;
            }
            if !blocks.as_slice()[first..].contains(&block) {
                blocks.push(block);
            }
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{arena, extent_of};

    /// Keeps a piece of one byte at `from` if there is memory for it.
    fn keep(queue: &mut EarlyQueue, from: u32, arena: &pmem::Arena) -> bool {
        queue.gap(Seq(from), Seq(from + 1)).is_some()
            && queue.has_room(Seq(from), Seq(from + 1))
            && queue.insert(Seq(from), extent_of(arena, &[7]), true)
    }

    #[test]
    fn connections_with_holes_share_lists_and_longer_memory() {
        let arena = arena(2 * LONG_RUNS + 100);
        let free = arena.free_buffers();
        // Two lists for three connections, and longer memory for both.
        let pool = EarlyPool::new(2, arena.buffers());
        let mut queues: Vec<_> = (0..3).map(|_| EarlyQueue::new(&pool)).collect();
        for _ in 0..3 {
            for queue in &mut queues[..2] {
                let kept = (0..LONG_RUNS as u32 + 20).filter(|n| keep(queue, 2 * n, &arena)).count();
                assert_eq!((kept, queue.buffers()), (LONG_RUNS, LONG_RUNS));
            }
            assert!(!keep(&mut queues[2], 0, &arena), "there is no third list");
            while let Some((seq, piece)) = queues[0].pop_at(Seq(LONG_RUNS as u32 * 2)) {
                assert_eq!((seq.0 % 2, piece.len()), (0, 1));
            }
            assert!(queues[0].is_empty());
            assert!(keep(&mut queues[2], 0, &arena), "the list of one without a hole is another's");
            queues.iter_mut().for_each(EarlyQueue::clear);
            assert_eq!(arena.free_buffers(), free);
        }
    }

    #[test]
    fn without_longer_memory_a_few_runs_are_kept_and_may_grow() {
        let arena = arena(700);
        let pool = EarlyPool::new(3, 700);
        pool.0.borrow_mut().long.truncate(1);
        let mut queues: Vec<_> = (0..2).map(|_| EarlyQueue::new(&pool)).collect();
        let kept = queues.iter_mut().map(|queue| (0..600).filter(|n| keep(queue, 2 * n, &arena)).count());
        assert_eq!(kept.collect::<Vec<_>>(), [LONG_RUNS, SHORT_RUNS]);
        // What closes a hole needs no memory for a run.
        assert!(keep(&mut queues[1], 1, &arena));
        assert!(keep(&mut queues[1], 500, &arena));
        assert!(!keep(&mut queues[1], 502, &arena));
        queues[0].clear();
        assert!(keep(&mut queues[1], 502, &arena));
    }

    /// However pieces are cut and whichever runs they follow, a connection takes no more of them than its share.
    #[test]
    fn pieces_that_share_a_buffer_are_bounded() {
        let arena = arena(64);
        let pool = EarlyPool::new(2, 64);
        pool.0.borrow_mut().long.clear();
        let mut queues: Vec<_> = (0..2).map(|_| EarlyQueue::new(&pool)).collect();
        for queue in &mut queues {
            // Two runs that grow in turn, so that no piece is the last on the shelf.
            let mut kept = 0;
            for n in 0..2_000 {
                for from in [Seq(n), Seq(10_000 + n)] {
                    let is_kept = queue.has_room(from, from + 1) && queue.copy(from, b"x", || arena.take());
                    kept += usize::from(is_kept);
                }
            }
            assert!((SHORT_RUNS..=SHORT_RUNS + 2 * PIECES_BY_BUFFER).contains(&kept), "{kept}");
        }
        assert!(pool.0.borrow().pieces.has_room());
    }

    /// However many runs there are, the order of the last is the order in which they came.
    #[test]
    fn blocks_come_newest_first_and_each_once() {
        let arena = arena(64);
        let mut queue = EarlyQueue::new(&EarlyPool::new(1, 64));
        let block = |n: u32| Block { from: Seq(10 * n), to: Seq(10 * n + 1) };
        for n in [3, 1, 9, 5, 7, 2, 8, 4, 6, 0] {
            assert!(keep(&mut queue, 10 * n, &arena));
            queue.came(Seq(10 * n));
        }
        let blocks = |queue: &EarlyQueue, before, most| {
            queue.blocks(before, most).map_or(vec![], |blocks| blocks.as_slice().to_vec())
        };
        assert_eq!(blocks(&queue, 0, 4), [0, 6, 4, 8].map(block));
        assert_eq!(blocks(&queue, 2, 3), [4, 0, 6].map(block));
        assert_eq!(blocks(&queue, 99, 1), [0].map(block));
        assert_eq!(blocks(&queue, 0, 0), vec![]);
        // One that came again is the newest, and told of before all.
        queue.came_again(block(8));
        queue.came(block(8).from);
        assert_eq!(blocks(&queue, 0, 4), [8, 8, 0, 6].map(block));
        assert!(!queue.told(true));
        assert_eq!(blocks(&queue, 0, 4), [8, 0, 6, 4].map(block));
        queue.clear();
        // Of what came again all is told, one at a time; what follows each other is one.
        for n in [1, 3, 5] {
            queue.came_again(block(n));
            queue.came_again(Block { from: block(n).to, to: Seq(10 * n + 5) });
        }
        for n in [1, 3, 5] {
            assert_eq!(blocks(&queue, 0, 4), [Block { from: Seq(10 * n), to: Seq(10 * n + 5) }]);
            assert_eq!(queue.told(true), n < 5);
        }
        assert!(queue.is_empty());
    }
}
