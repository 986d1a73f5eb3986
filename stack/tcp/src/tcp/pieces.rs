//! The pieces that wait for applications, of all connections in one pool: what was used last is used next, so
//! that a queue costs no cache miss of its own and no memory while it is empty.

use pmem::Extent;

/// A link that leads nowhere.
const NONE: u32 = u32::MAX;

/// Memory for the pieces of all connections.
#[derive(Debug)]
pub(crate) struct PiecePool {
    nodes: Vec<Node>,
    /// The first unused node.
    free: u32,
    /// Nodes that there may be; those that were never used are not there yet, and their memory is not touched.
    most: usize,
}

#[derive(Debug)]
struct Node {
    extent: Option<Extent>,
    next: u32,
}

/// A queue of pieces in a [`PiecePool`]. It is emptied before it is dropped.
#[derive(Debug)]
pub(crate) struct PieceQueue {
    first: u32,
    last: u32,
    len: u32,
}

impl PiecePool {
    /// A pool for as many pieces. As each lies in a buffer of its own, an arena's number of buffers is enough.
    pub(crate) fn new(pieces: usize) -> Self {
        Self { nodes: Vec::with_capacity(pieces), free: NONE, most: pieces }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.free != NONE || self.nodes.len() < self.most
    }

    /// Puts a piece into a node that `next` follows; none, and it is dropped, if there is none.
    #[inline(always)]
    fn take(&mut self, extent: Extent, next: u32) -> Option<u32> {
        let node = self.free;
        let Some(entry) = self.nodes.get_mut(node as usize) else { return self.add(extent, next) };
        self.free = entry.next;
        *entry = Node { extent: Some(extent), next };
        Some(node)
    }

    #[cold]
    fn add(&mut self, extent: Extent, next: u32) -> Option<u32> {
        if self.nodes.len() == self.most {
            return None;
        }
        self.nodes.push(Node { extent: Some(extent), next });
        Some(self.nodes.len() as u32 - 1)
    }
}

impl PieceQueue {
    pub(crate) fn new() -> Self {
        Self { first: NONE, last: NONE, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// Adds a piece; false, and it is dropped, if the pool is used up.
    #[inline(always)]
    pub(crate) fn push(&mut self, extent: Extent, pool: &mut PiecePool) -> bool {
        let Some(node) = pool.take(extent, NONE) else { return false };
        match pool.nodes.get_mut(self.last as usize) {
            Some(last) => last.next = node,
            None => self.first = node,
        }
        self.last = node;
        self.len += 1;
        true
    }

    /// As [`push`](Self::push), before the others.
    pub(crate) fn push_front(&mut self, extent: Extent, pool: &mut PiecePool) -> bool {
        let Some(node) = pool.take(extent, self.first) else { return false };
        self.first = node;
        if self.last == NONE {
            self.last = node;
        }
        self.len += 1;
        true
    }

    /// Adds the pieces of another queue of the same pool.
    pub(crate) fn append(&mut self, other: Self, pool: &mut PiecePool) {
        if other.first == NONE {
            return;
        }
        match pool.nodes.get_mut(self.last as usize) {
            Some(last) => last.next = other.first,
            None => self.first = other.first,
        }
        self.last = other.last;
        self.len += other.len;
    }

    #[inline(always)]
    pub(crate) fn pop(&mut self, pool: &mut PiecePool) -> Option<Extent> {
        let node = self.first;
        let entry = pool.nodes.get_mut(node as usize)?;
        let extent = entry.extent.take();
        self.first = std::mem::replace(&mut entry.next, pool.free);
        pool.free = node;
        if self.first == NONE {
            self.last = NONE;
        }
        self.len -= 1;
        extent
    }

    pub(crate) fn last_mut<'a>(&self, pool: &'a mut PiecePool) -> Option<&'a mut Extent> {
        pool.nodes.get_mut(self.last as usize)?.extent.as_mut()
    }

    pub(crate) fn clear(&mut self, pool: &mut PiecePool) {
        while self.pop(pool).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{arena, extent_of};

    #[test]
    fn queues_share_the_pool_and_keep_their_order() {
        let arena = arena(8);
        let free = arena.free_buffers();
        let mut pool = PiecePool::new(3);
        let (mut a, mut b) = (PieceQueue::new(), PieceQueue::new());
        for round in 0..5u8 {
            assert!(a.push(extent_of(&arena, &[round, 1]), &mut pool));
            assert!(b.push(extent_of(&arena, &[round, 2]), &mut pool));
            assert!(a.push(extent_of(&arena, &[round, 3]), &mut pool));
            assert!(!pool.has_room());
            assert!(!b.push(extent_of(&arena, &[0]), &mut pool));
            assert_eq!(a.last_mut(&mut pool).map(|last| last.bytes().to_vec()), Some(vec![round, 3]));
            assert_eq!(a.pop(&mut pool).map(|first| first.bytes().to_vec()), Some(vec![round, 1]));
            assert_eq!((a.len(), b.len()), (1, 1));
            assert_eq!(b.pop(&mut pool).map(|first| first.bytes().to_vec()), Some(vec![round, 2]));
            assert!(b.pop(&mut pool).is_none());
            a.clear(&mut pool);
            assert_eq!(a.len(), 0);
        }
        // Any of them before the others, and those of one queue behind those of another.
        let numbers = |queue: &mut PieceQueue, pool: &mut PiecePool| {
            std::iter::from_fn(|| queue.pop(pool).map(|piece| piece.bytes()[0])).collect::<Vec<_>>()
        };
        for (first, second) in [(0, 0), (0, 2), (1, 0), (1, 2), (2, 1)] {
            let (mut a, mut b) = (PieceQueue::new(), PieceQueue::new());
            for number in (0..first).rev() {
                assert!(a.push_front(extent_of(&arena, &[number]), &mut pool));
            }
            for number in (first..first + second).rev() {
                assert!(b.push_front(extent_of(&arena, &[number]), &mut pool));
            }
            a.append(b, &mut pool);
            let is_pushed = a.push(extent_of(&arena, &[first + second]), &mut pool);
            assert_eq!((is_pushed, a.len()), (first + second < 3, 3.min(usize::from(first + second) + 1)));
            assert!(!is_pushed || first + second < 2 || !a.push_front(extent_of(&arena, &[0]), &mut pool));
            assert_eq!(numbers(&mut a, &mut pool), (0..3.min(first + second + 1)).collect::<Vec<_>>());
        }
        assert_eq!(arena.free_buffers(), free);
    }
}
