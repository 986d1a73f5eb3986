//! What waits to be sent or acknowledged: copied bytes in a ring, and extents, in the order they were queued.

use std::collections::VecDeque;

use arrayvec::ArrayVec;
use pmem::Extent;

/// Most extents of one segment; devices gather a bounded number of pieces.
pub(crate) const MAX_SEGMENT_EXTENTS: usize = 8;

/// The extents of one segment.
pub(crate) type Pieces = ArrayVec<Extent, MAX_SEGMENT_EXTENTS>;

/// A connection's send queue. Its front is the first byte not acknowledged; a cursor stands at the first byte
/// not sent, or to be sent again.
#[derive(Debug)]
pub(crate) struct SendQueue {
    chunks: VecDeque<Chunk>,
    cursor: Cursor,
    /// Bytes from the front to the end.
    len: u32,
    ring: Box<[u8]>,
    /// Where in the ring the next copied byte goes.
    ring_end: usize,
    /// Copied bytes in the ring.
    ring_used: usize,
    extents: usize,
    max_extents: usize,
}

#[derive(Debug)]
enum Chunk {
    Inline { start: usize, len: u32 },
    Extent(Extent),
}

impl Chunk {
    fn len(&self) -> u32 {
        match self {
            Chunk::Inline { len, .. } => *len,
            Chunk::Extent(extent) => extent.len() as u32,
        }
    }
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    chunk: usize,
    /// Bytes of that chunk that lie before the place.
    within: u32,
    /// Bytes of the queue that lie before the place.
    offset: u32,
}

impl SendQueue {
    pub(crate) fn new(bytes: usize, extents: usize) -> Self {
        Self {
            // Copied bytes lie before, between and behind the extents.
            chunks: VecDeque::with_capacity(2 * extents + 1),
            cursor: Cursor::default(),
            len: 0,
            ring: vec![0; bytes].into_boxed_slice(),
            ring_end: 0,
            ring_used: 0,
            extents: 0,
            max_extents: extents,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        (self.cursor, self.len, self.ring_end, self.ring_used, self.extents) =
            (Cursor::default(), 0, 0, 0, 0);
    }

    /// Bytes from the front to the end.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Bytes from the cursor to the end.
    pub(crate) fn unsent(&self) -> u32 {
        self.len - self.cursor.offset
    }

    pub(crate) fn free_bytes(&self) -> usize {
        self.ring.len() - self.ring_used
    }

    pub(crate) fn free_extents(&self) -> usize {
        self.max_extents - self.extents
    }

    /// Whether both kinds of room are at least half free.
    pub(crate) fn is_roomy(&self) -> bool {
        2 * self.free_bytes() >= self.ring.len() && 2 * self.free_extents() >= self.max_extents
    }

    /// Whether nothing takes up room.
    pub(crate) fn is_unused(&self) -> bool {
        self.ring_used == 0 && self.extents == 0
    }

    /// Copies `bytes` in, all or (false) nothing.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.free_bytes() {
            return false;
        }
        if bytes.is_empty() {
            return true;
        }
        let start = self.ring_end;
        let first = bytes.len().min(self.ring.len() - start);
        self.ring[start..start + first].copy_from_slice(&bytes[..first]);
        self.ring[..bytes.len() - first].copy_from_slice(&bytes[first..]);
        self.ring_end = (start + bytes.len()) % self.ring.len();
        self.ring_used += bytes.len();
        self.len += bytes.len() as u32;
        match self.chunks.back_mut() {
            Some(Chunk::Inline { len, .. }) => *len += bytes.len() as u32,
            _ => self.chunks.push_back(Chunk::Inline { start, len: bytes.len() as u32 }),
        }
        true
    }

    /// Queues an extent, or says (false) that there is no room.
    pub(crate) fn push_extent(&mut self, extent: Extent) -> bool {
        if self.extents == self.max_extents {
            return false;
        }
        if !extent.is_empty() {
            self.extents += 1;
            self.len += extent.len() as u32;
            self.chunks.push_back(Chunk::Extent(extent));
        }
        true
    }

    /// Drops `bytes` from the front: they are acknowledged. A cursor that stood among them moves to the front.
    pub(crate) fn acknowledge(&mut self, bytes: u32) {
        let bytes = bytes.min(self.len);
        let mut left = bytes;
        while left > 0 {
            let Some(chunk) = self.chunks.pop_front() else { break };
            let gone = left.min(chunk.len());
            let rest = self.without_front(chunk, gone);
            left -= gone;
            let Some(rest) = rest else {
                if self.cursor.chunk > 0 {
                    self.cursor.chunk -= 1;
                } else {
                    self.cursor.within = 0;
                }
                continue;
            };
            self.chunks.push_front(rest);
            if self.cursor.chunk == 0 {
                self.cursor.within = self.cursor.within.saturating_sub(gone);
            }
        }
        self.len -= bytes;
        self.cursor.offset = self.cursor.offset.saturating_sub(bytes);
        if self.len == 0 {
            // Short replies then always use the same few lines of memory.
            self.clear();
        }
    }

    /// What is left of a chunk whose first `gone` bytes are acknowledged.
    fn without_front(&mut self, chunk: Chunk, gone: u32) -> Option<Chunk> {
        match chunk {
            Chunk::Inline { start, len } => {
                self.ring_used -= gone as usize;
                let start = (start + gone as usize) % self.ring.len();
                (gone < len).then_some(Chunk::Inline { start, len: len - gone })
            }
            Chunk::Extent(extent) => {
                let rest = extent.len() - gone as usize;
                let rest = (rest > 0).then(|| extent.slice(gone as usize, rest)).flatten();
                if rest.is_none() {
                    self.extents -= 1;
                }
                rest.map(Chunk::Extent)
            }
        }
    }

    /// The first byte not acknowledged.
    pub(crate) fn front(&self) -> Cursor {
        Cursor::default()
    }

    /// The first byte not sent.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Puts the cursor back to the front: everything is sent again.
    pub(crate) fn rewind(&mut self) {
        self.cursor = Cursor::default();
    }

    /// Moves the cursor over `bytes` that were sent from it.
    pub(crate) fn advance(&mut self, bytes: u32) {
        let mut left = bytes.min(self.unsent());
        self.cursor.offset += left;
        while left > 0 {
            let Some(chunk) = self.chunks.get(self.cursor.chunk) else { break };
            let step = left.min(chunk.len() - self.cursor.within);
            left -= step;
            self.cursor.within += step;
            // Not beyond the last chunk, which may still grow.
            if self.cursor.within == chunk.len() && self.cursor.chunk + 1 < self.chunks.len() {
                self.cursor = Cursor { chunk: self.cursor.chunk + 1, within: 0, ..self.cursor };
            }
        }
    }

    /// Bytes of the segment that begins at `at` and has at most `max`: copied bytes, then extents. It ends
    /// where copied bytes would follow an extent.
    pub(crate) fn measure(&self, at: Cursor, max: u32) -> u32 {
        let (mut len, mut extents, mut within) = (0, 0, at.within);
        for chunk in self.chunks.range(at.chunk.min(self.chunks.len())..) {
            match chunk {
                _ if chunk.len() == within => {}
                Chunk::Inline { .. } if extents > 0 => break,
                Chunk::Inline { .. } => {}
                Chunk::Extent(_) if extents == MAX_SEGMENT_EXTENTS => break,
                Chunk::Extent(_) => extents += 1,
            }
            len += (chunk.len() - within).min(max - len);
            within = 0;
            if len == max {
                break;
            }
        }
        len
    }

    /// Copies the `len` bytes at `at`, as measured, into `head`, and puts extents behind them into `pieces`.
    pub(crate) fn gather(&self, at: Cursor, len: u32, head: &mut Vec<u8>, pieces: &mut Pieces) {
        let (mut left, mut within) = (len as usize, at.within as usize);
        for chunk in self.chunks.range(at.chunk.min(self.chunks.len())..) {
            if left == 0 {
                break;
            }
            let take = left.min(chunk.len() as usize - within);
            if take == 0 {
                within = 0;
                continue;
            }
            match chunk {
                Chunk::Inline { start, .. } => {
                    let start = (start + within) % self.ring.len();
                    let first = take.min(self.ring.len() - start);
                    head.extend_from_slice(&self.ring[start..start + first]);
                    head.extend_from_slice(&self.ring[..take - first]);
                }
                Chunk::Extent(extent) => pieces.extend(extent.clone().slice(within, take)),
            }
            left -= take;
            within = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{arena, extent_of};

    fn segment(queue: &SendQueue, at: Cursor, max: u32) -> (Vec<u8>, usize) {
        let (mut head, mut pieces) = (Vec::new(), Pieces::new());
        let len = queue.measure(at, max);
        queue.gather(at, len, &mut head, &mut pieces);
        let count = pieces.len();
        for piece in pieces {
            head.extend_from_slice(piece.bytes());
        }
        assert_eq!(head.len(), len as usize);
        (head, count)
    }

    #[test]
    fn a_segment_is_copied_bytes_then_extents() {
        let arena = arena(4);
        let free = arena.free_buffers();
        let mut queue = SendQueue::new(16, 4);
        assert!(queue.push_bytes(b"head"));
        assert!(queue.push_extent(extent_of(&arena, b"body")));
        assert!(queue.push_bytes(b"next"));
        assert_eq!(segment(&queue, queue.cursor(), 100), (b"headbody".to_vec(), 1));
        queue.advance(8);
        assert_eq!(segment(&queue, queue.cursor(), 100), (b"next".to_vec(), 0));
        assert_eq!(segment(&queue, queue.front(), 6), (b"headbo".to_vec(), 1));
        queue.acknowledge(6);
        assert_eq!(segment(&queue, queue.front(), 100), (b"dy".to_vec(), 1));
        assert_eq!(segment(&queue, queue.cursor(), 100), (b"next".to_vec(), 0));
        queue.acknowledge(2);
        assert_eq!(arena.free_buffers(), free);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let arena = arena(4);
        let mut queue = SendQueue::new(4, 1);
        assert!(!queue.push_bytes(b"12345"));
        assert!(queue.push_bytes(b"1234"));
        assert!(!queue.push_bytes(b"5"));
        assert!(queue.push_extent(extent_of(&arena, b"x")));
        assert!(!queue.push_extent(extent_of(&arena, b"y")));
        assert_eq!(queue.len(), 5);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Bytes(Vec<u8>),
        Extent(Vec<u8>),
        Send(u32),
        Acknowledge(u32),
        Rewind,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Step::Bytes),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Step::Extent),
            (1..30u32).prop_map(Step::Send),
            (0..40u32).prop_map(Step::Acknowledge),
            Just(Step::Rewind),
        ]
    }

    proptest! {
        /// Against a plain vector of bytes, and no buffer is left behind.
        #[test]
        fn agrees_with_a_vector(steps in prop::collection::vec(step(), 1..200)) {
            let arena = arena(8);
            let free = arena.free_buffers();
            let mut queue = SendQueue::new(32, 6);
            let (mut bytes, mut sent) = (Vec::<u8>::new(), 0usize);
            for step in steps {
                match step {
                    Step::Bytes(new) => if queue.push_bytes(&new) { bytes.extend(new) },
                    Step::Extent(new) => {
                        if queue.push_extent(extent_of(&arena, &new)) { bytes.extend(new) }
                    }
                    Step::Send(max) => {
                        let (got, _) = segment(&queue, queue.cursor(), max);
                        prop_assert_eq!(&got[..], &bytes[sent..sent + got.len()]);
                        prop_assert!(!got.is_empty() || sent == bytes.len());
                        queue.advance(got.len() as u32);
                        sent += got.len();
                        let (front, _) = segment(&queue, queue.front(), max);
                        prop_assert_eq!(&front[..], &bytes[..front.len()]);
                    }
                    Step::Acknowledge(count) => {
                        let count = (count as usize).min(bytes.len());
                        queue.acknowledge(count as u32);
                        bytes.drain(..count);
                        sent = sent.saturating_sub(count);
                    }
                    Step::Rewind => { queue.rewind(); sent = 0; }
                }
                prop_assert_eq!(queue.len() as usize, bytes.len());
                prop_assert_eq!(queue.unsent() as usize, bytes.len() - sent);
            }
            queue.acknowledge(queue.len());
            prop_assert!(queue.is_unused());
            prop_assert_eq!(arena.free_buffers(), free);
        }
    }
}
