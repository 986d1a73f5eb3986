//! What waits to be sent or acknowledged: copied bytes and extents, in the order they were queued.

use arrayvec::ArrayVec;
use pmem::Extent;

use super::send_pool::{BLOCK_BYTES, BYTES_OF_EXTENT, Chunk, NONE, SendPool};

/// Most extents of one segment; devices gather a bounded number of pieces.
pub(crate) const MAX_SEGMENT_EXTENTS: usize = 8;

/// Most extents of a frame that the device cuts into segments.
pub(crate) const MAX_FRAME_EXTENTS: usize = 16;

/// The extents of one frame.
pub(crate) type Pieces = ArrayVec<Extent, MAX_FRAME_EXTENTS>;

/// A connection's send queue, in a [`SendPool`]. Its front is the first byte not acknowledged; a cursor stands at the
/// first byte not sent, or to be sent again. It is cleared before it is dropped.
#[derive(Debug)]
pub(crate) struct SendQueue {
    first: u32,
    last: u32,
    /// Bytes from the front to the end.
    len: u32,
    /// Bytes that were ever dropped from the front, modulo 2^32.
    passed: u32,
    cursor: Cursor,
    copied_bytes: u32,
    blocks: u32,
    extents: u32,
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    node: u32,
    /// Bytes of that node that lie before the place.
    within: u32,
    /// Bytes of the queue that lie before the place.
    offset: u32,
}

impl SendQueue {
    pub(crate) fn new() -> Self {
        let cursor = Cursor { node: NONE, within: 0, offset: 0 };
        Self { first: NONE, last: NONE, len: 0, passed: 0, cursor, copied_bytes: 0, blocks: 0, extents: 0 }
    }

    pub(crate) fn clear(&mut self, pool: &mut SendPool) {
        while self.drop_first(pool) {}
        *self = Self::new();
    }

    /// Bytes from the front to the end.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Bytes from the cursor to the end.
    #[inline]
    pub(crate) fn unsent(&self) -> u32 {
        self.len - self.cursor.offset
    }

    /// Bytes that [`push_bytes`](Self::push_bytes) would copy.
    pub(crate) fn free_bytes(&self, flight: u32, pool: &SendPool) -> usize {
        let own = self.own_bytes(pool);
        let left = pool.window(flight).saturating_sub(self.len) as usize;
        if left <= own {
            return own;
        }
        let blocks = pool.block_shares.spare(self.blocks) as usize;
        own.max(left.min(self.room_in_last(pool) + blocks * BLOCK_BYTES))
    }

    /// Those that it would copy whatever may be in flight.
    #[inline]
    fn own_bytes(&self, pool: &SendPool) -> usize {
        let own = pool.queue_bytes.saturating_sub(self.copied_bytes) as usize;
        if pool.block_shares.is_plenty() {
            return own;
        }
        let blocks = pool.block_shares.grant(self.blocks) as usize;
        own.min(self.room_in_last(pool) + blocks * BLOCK_BYTES)
    }

    /// Extents that [`push_extent`](Self::push_extent) would queue.
    pub(crate) fn free_extents(&self, flight: u32, pool: &SendPool) -> usize {
        let own = self.own_extents(pool);
        let window = pool.window(flight);
        let left_bytes = window.saturating_sub(self.len);
        if left_bytes <= own.saturating_mul(pool.extent_bytes) {
            return own as usize;
        }
        let left = left_bytes / pool.extent_bytes;
        let left = left.min((window / BYTES_OF_EXTENT).saturating_sub(self.extents));
        own.max(left.min(pool.extent_shares.spare(self.extents))) as usize
    }

    /// Those that it would queue whatever may be in flight.
    #[inline]
    fn own_extents(&self, pool: &SendPool) -> u32 {
        let own = pool.queue_extents.saturating_sub(self.extents);
        own.min(pool.extent_shares.grant(self.extents))
    }

    /// Whether so much of what the queue may hold is free that it is worth while to go on: half of its own limits, or a
    /// quarter of what its path takes.
    pub(crate) fn is_roomy(&self, flight: u32, pool: &SendPool) -> bool {
        let is_own = 2 * self.copied_bytes <= pool.queue_bytes && 2 * self.extents <= pool.queue_extents;
        is_own || self.is_path_roomy(flight, pool)
    }

    fn is_path_roomy(&self, flight: u32, pool: &SendPool) -> bool {
        let window = pool.window(flight);
        let most = window - window / 4;
        let takes_bytes = self.len <= most && pool.block_shares.spare(self.blocks) > 0;
        takes_bytes && self.extents <= most / BYTES_OF_EXTENT && pool.extent_shares.spare(self.extents) > 0
    }

    /// Whether nothing takes up room.
    #[inline]
    pub(crate) fn is_unused(&self) -> bool {
        self.first == NONE
    }

    /// Copies `bytes` in, all or (false) nothing. So many bytes may be in flight.
    #[inline(always)]
    pub(crate) fn push_bytes(&mut self, bytes: &[u8], flight: u32, pool: &mut SendPool) -> bool {
        if bytes.len() > self.own_bytes(pool) && bytes.len() > self.free_bytes(flight, pool) {
            return false;
        }
        // Nearly every reply: short, and behind no other.
        if self.first == NONE && bytes.len() <= BLOCK_BYTES && !bytes.is_empty() {
            return self.push_block(bytes, pool);
        }
        self.push_blocks(bytes, pool)
    }

    fn push_blocks(&mut self, bytes: &[u8], pool: &mut SendPool) -> bool {
        let (here, mut rest) = bytes.split_at(bytes.len().min(self.room_in_last(pool)));
        self.extend_last(here, pool);
        while !rest.is_empty() {
            let (bytes, behind) = rest.split_at(rest.len().min(BLOCK_BYTES));
            if !self.push_block(bytes, pool) {
                return false;
            }
            rest = behind;
        }
        true
    }

    /// Copies as many bytes as a block takes into one of their own.
    #[inline(always)]
    fn push_block(&mut self, bytes: &[u8], pool: &mut SendPool) -> bool {
        let Some(block) = pool.take_block() else { return false };
        pool.bytes_mut(block, 0, bytes.len()).copy_from_slice(bytes);
        if !self.append(Chunk::Copied { block, start: 0, len: bytes.len() as u16 }, pool) {
            return false;
        }
        pool.block_shares.take(self.blocks);
        self.blocks += 1;
        self.copied_bytes += bytes.len() as u32;
        true
    }

    /// Queues an extent, or says (false) that there is no room. So many bytes may be in flight.
    pub(crate) fn push_extent(&mut self, extent: Extent, flight: u32, pool: &mut SendPool) -> bool {
        if self.own_extents(pool) == 0 && self.free_extents(flight, pool) == 0 {
            return false;
        }
        if !extent.is_empty() {
            if !self.append(Chunk::Extent(extent), pool) {
                return false;
            }
            pool.extent_shares.take(self.extents);
            self.extents += 1;
        }
        true
    }

    /// Bytes that the last block takes, if copied bytes come last.
    fn room_in_last(&self, pool: &SendPool) -> usize {
        match pool.node(self.last).map(|node| &node.chunk) {
            Some(Chunk::Copied { start, len, .. }) => BLOCK_BYTES - usize::from(*start) - usize::from(*len),
            _ => 0,
        }
    }

    fn extend_last(&mut self, bytes: &[u8], pool: &mut SendPool) {
        if bytes.is_empty() {
            return;
        }
        let Some(node) = pool.node_mut(self.last) else { return };
        let Chunk::Copied { block, start, len } = &mut node.chunk else { return };
        let (block, at) = (*block, usize::from(*start) + usize::from(*len));
        *len += bytes.len() as u16;
        pool.bytes_mut(block, at, at + bytes.len()).copy_from_slice(bytes);
        self.len += bytes.len() as u32;
        self.copied_bytes += bytes.len() as u32;
    }

    #[inline(always)]
    fn append(&mut self, chunk: Chunk, pool: &mut SendPool) -> bool {
        let len = chunk.len();
        let begin = self.passed.wrapping_add(self.len);
        let Some(node) = pool.take_node(chunk, begin) else { return false };
        match pool.node_mut(self.last) {
            Some(last) => last.next = node,
            None => (self.first, self.cursor.node) = (node, node),
        }
        self.last = node;
        self.len += len;
        true
    }

    /// Drops `bytes` from the front: they are acknowledged. A cursor that stood among them moves to the front.
    #[inline(always)]
    pub(crate) fn acknowledge(&mut self, bytes: u32, pool: &mut SendPool) {
        let bytes = bytes.min(self.len);
        let mut left = bytes;
        while left > 0 {
            let Some(first) = pool.node_mut(self.first) else { break };
            let len = first.chunk.len();
            if left < len {
                self.shorten_first(left, pool);
                break;
            }
            left -= len;
            self.drop_first(pool);
        }
        self.len -= bytes;
        self.passed = self.passed.wrapping_add(bytes);
        self.cursor.offset = self.cursor.offset.saturating_sub(bytes);
    }

    /// Drops so many bytes of the first node, which has more.
    fn shorten_first(&mut self, bytes: u32, pool: &mut SendPool) {
        let Some(first) = pool.node_mut(self.first) else { return };
        match &mut first.chunk {
            Chunk::Copied { start, len, .. } => {
                (*start, *len) = (*start + bytes as u16, *len - bytes as u16);
                self.copied_bytes -= bytes;
            }
            Chunk::Extent(extent) => {
                let rest = extent.len() - bytes as usize;
                if let Some(rest) = extent.clone().slice(bytes as usize, rest) {
                    *extent = rest;
                }
            }
        }
        first.begin = first.begin.wrapping_add(bytes);
        if self.cursor.node == self.first {
            self.cursor.within = self.cursor.within.saturating_sub(bytes);
        }
    }

    /// Drops what is in the first node; false if there is none.
    #[inline(always)]
    fn drop_first(&mut self, pool: &mut SendPool) -> bool {
        let node = self.first;
        let Some((copied_bytes, next)) = pool.give_back(node) else { return false };
        match copied_bytes {
            Some(bytes) => {
                pool.block_shares.give_back(self.blocks);
                self.blocks -= 1;
                self.copied_bytes -= u32::from(bytes);
            }
            None => {
                pool.extent_shares.give_back(self.extents);
                self.extents -= 1;
            }
        }
        self.first = next;
        if next == NONE {
            self.last = NONE;
        }
        if self.cursor.node == node {
            (self.cursor.node, self.cursor.within) = (next, 0);
        }
        true
    }

    /// The first byte not acknowledged.
    pub(crate) fn front(&self) -> Cursor {
        Cursor { node: self.first, within: 0, offset: 0 }
    }

    /// The first byte not sent.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Whether all that follows a cursor lies in one node.
    #[inline]
    pub(crate) fn ends_in(&self, at: Cursor) -> bool {
        at.node == self.last
    }

    /// The node that the byte at a cursor lies in. It stays where it is until that byte is acknowledged.
    #[inline]
    pub(crate) fn node_at(&self, at: Cursor, pool: &SendPool) -> u32 {
        match pool.node(at.node) {
            Some(node) if node.next != NONE && at.within >= node.chunk.len() => node.next,
            _ => at.node,
        }
    }

    /// The place `offset` bytes behind the front, looked for from the front on, or from a node that begins at or before it.
    pub(crate) fn seek(&self, offset: u32, from: Option<u32>, pool: &SendPool) -> Cursor {
        let mut place = from.unwrap_or(self.first);
        let at = self.passed.wrapping_add(offset);
        while let Some(node) = pool.node(place) {
            let within = at.wrapping_sub(node.begin);
            if within < node.chunk.len() || node.next == NONE {
                return Cursor { node: place, within: within.min(node.chunk.len()), offset };
            }
            place = node.next;
        }
        Cursor { node: NONE, within: 0, offset }
    }

    /// Moves the cursor over `bytes` that were sent from it.
    #[inline(always)]
    pub(crate) fn advance(&mut self, bytes: u32, pool: &SendPool) {
        if bytes == self.unsent()
            && let Some(last) = pool.node(self.last)
        {
            self.cursor = Cursor { node: self.last, within: last.chunk.len(), offset: self.len };
            return;
        }
        self.advance_by(bytes, pool);
    }

    fn advance_by(&mut self, bytes: u32, pool: &SendPool) {
        let mut left = bytes.min(self.unsent());
        self.cursor.offset += left;
        while left > 0 {
            let Some(node) = pool.node(self.cursor.node) else { break };
            let len = node.chunk.len();
            let step = left.min(len - self.cursor.within);
            left -= step;
            self.cursor.within += step;
            // Not beyond the last node, which may still grow, or get another behind it.
            if self.cursor.within == len && node.next != NONE {
                (self.cursor.node, self.cursor.within) = (node.next, 0);
            }
        }
    }

    /// Bytes of the segment that begins at `at` and has at most `max`: copied bytes, then extents. It ends
    /// where copied bytes would follow an extent, and before an extent that fills a segment by itself: what came in full
    /// segments leaves in such, instead of each in two.
    #[inline]
    pub(crate) fn measure(&self, at: Cursor, max: u32, pool: &SendPool) -> u32 {
        self.measure_frame(at, max, max, pool)
    }

    /// Bytes of the frame that begins at `at`, has at most `max`, and is cut into segments of `segment` bytes: they are
    /// those that would be measured one by one, all copied bytes in the first. Behind the last whole one are some of the
    /// next, which is not complete unless nothing follows.
    pub(crate) fn measure_frame(&self, at: Cursor, segment: u32, max: u32, pool: &SendPool) -> u32 {
        let (mut len, mut within, mut place) = (0, at.within, at.node);
        let (mut extents, mut of_segment, mut boundary) = (0, 0, segment);
        while len < max
            && let Some(node) = pool.node(place)
        {
            let left = node.chunk.len() - within;
            match &node.chunk {
                _ if left == 0 => {}
                Chunk::Copied { .. } if extents > 0 => break,
                Chunk::Copied { .. } if left > segment - len => return segment,
                Chunk::Copied { .. } => {}
                Chunk::Extent(_) if left == segment && len % segment > 0 => break,
                Chunk::Extent(_) if extents == MAX_FRAME_EXTENTS || of_segment == MAX_SEGMENT_EXTENTS => {
                    break;
                }
                Chunk::Extent(_) => (extents, of_segment) = (extents + 1, of_segment + 1),
            }
            len += left.min(max - len);
            if len >= boundary && len < max {
                of_segment = usize::from(len % segment > 0);
                boundary = len - len % segment + segment;
            }
            (within, place) = (0, node.next);
        }
        len
    }

    /// The `len` bytes at `at`, behind which there are none, if they were copied and lie in one piece.
    #[inline(always)]
    pub(crate) fn last_text<'a>(&self, at: Cursor, len: u32, pool: &'a SendPool) -> Option<&'a [u8]> {
        if len == 0 {
            return Some(&[]);
        }
        match &pool.node(at.node).filter(|_| self.ends_in(at))?.chunk {
            Chunk::Copied { block, start, .. } => {
                let from = usize::from(*start) + at.within as usize;
                Some(pool.bytes(*block, from, from + len as usize))
            }
            Chunk::Extent(_) => None,
        }
    }

    /// Copies the `len` bytes at `at`, as measured, into `head`, and puts extents behind them into `pieces`.
    #[inline(always)]
    pub(crate) fn gather(
        &self,
        at: Cursor,
        len: u32,
        head: &mut Vec<u8>,
        pieces: &mut Pieces,
        pool: &SendPool,
    ) {
        // Nearly every reply.
        if self.ends_in(at)
            && let Some(Chunk::Copied { block, start, .. }) = pool.node(at.node).map(|node| &node.chunk)
        {
            let from = usize::from(*start) + at.within as usize;
            head.extend_from_slice(pool.bytes(*block, from, from + len as usize));
            return;
        }
        self.gather_any(at, len, head, pieces, pool);
    }

    fn gather_any(&self, at: Cursor, len: u32, head: &mut Vec<u8>, pieces: &mut Pieces, pool: &SendPool) {
        let (mut left, mut within, mut place) = (len as usize, at.within as usize, at.node);
        while left > 0
            && let Some(node) = pool.node(place)
        {
            let take = left.min(node.chunk.len() as usize - within);
            match &node.chunk {
                _ if take == 0 => {}
                Chunk::Copied { block, start, .. } => {
                    let from = usize::from(*start) + within;
                    head.extend_from_slice(pool.bytes(*block, from, from + take));
                }
                Chunk::Extent(extent) => pieces.extend(extent.clone().slice(within, take)),
            }
            left -= take;
            (within, place) = (0, node.next);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::send_pool::SendLimits;
    use super::*;
    use crate::testing::{arena, extent_of};

    fn pool(queue_bytes: usize, queue_extents: usize, window_bytes: usize) -> SendPool {
        SendPool::new(&SendLimits {
            queues: 1,
            queue_bytes,
            queue_extents,
            window_bytes,
            extent_bytes: 2048,
            shared_bytes: 1 << 20,
            shared_extents: 1 << 10,
        })
    }

    fn segment(queue: &SendQueue, at: Cursor, max: u32, pool: &SendPool) -> (Vec<u8>, usize) {
        let (mut head, mut pieces) = (Vec::new(), Pieces::new());
        let len = queue.measure(at, max, pool);
        queue.gather(at, len, &mut head, &mut pieces, pool);
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
        let (mut queue, mut pool) = (SendQueue::new(), pool(16, 4, 0));
        assert!(queue.push_bytes(b"head", 0, &mut pool));
        assert!(queue.push_extent(extent_of(&arena, b"body"), 0, &mut pool));
        assert!(queue.push_bytes(b"next", 0, &mut pool));
        assert_eq!(segment(&queue, queue.cursor(), 100, &pool), (b"headbody".to_vec(), 1));
        queue.advance(8, &pool);
        assert_eq!(segment(&queue, queue.cursor(), 100, &pool), (b"next".to_vec(), 0));
        assert_eq!(segment(&queue, queue.front(), 6, &pool), (b"headbo".to_vec(), 1));
        queue.acknowledge(6, &mut pool);
        assert_eq!(segment(&queue, queue.front(), 100, &pool), (b"dy".to_vec(), 1));
        assert_eq!(segment(&queue, queue.cursor(), 100, &pool), (b"next".to_vec(), 0));
        queue.acknowledge(2, &mut pool);
        assert_eq!(arena.free_buffers(), free);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let arena = arena(4);
        let (mut queue, mut pool) = (SendQueue::new(), pool(4, 1, 0));
        assert!(!queue.push_bytes(b"12345", 0, &mut pool));
        assert!(queue.push_bytes(b"1234", 0, &mut pool));
        assert!(!queue.push_bytes(b"5", 0, &mut pool));
        assert!(queue.push_extent(extent_of(&arena, b"x"), 0, &mut pool));
        assert!(!queue.push_extent(extent_of(&arena, b"y"), 0, &mut pool));
        assert_eq!(queue.len(), 5);
    }

    /// Where more may be in flight, more is taken: twice as much, and of one queue half of what is shared by all, whatever
    /// the kind. Once less may be, nothing more is taken before enough has gone.
    #[test]
    fn a_path_that_takes_more_is_given_more() {
        let arena = arena(4);
        let limits = SendLimits {
            queues: 100,
            queue_bytes: 1000,
            queue_extents: 4,
            window_bytes: 1 << 20,
            extent_bytes: 100,
            shared_bytes: 256 << 10,
            shared_extents: 400,
        };
        let mut pool = SendPool::new(&limits);
        let fill = |queue: &mut SendQueue, flight, pool: &mut SendPool| {
            let before = queue.len();
            while queue.push_bytes(&[7; 100], flight, pool) {}
            queue.len() - before
        };
        let (mut first, mut second) = (SendQueue::new(), SendQueue::new());
        assert_eq!(fill(&mut first, 0, &mut pool), 1000);
        assert_eq!(fill(&mut first, 10_000, &mut pool), 19_000);
        assert_eq!(first.free_bytes(10_000, &pool), 0);
        first.acknowledge(1_000, &mut pool);
        assert_eq!(first.free_bytes(9_000, &pool), 0);
        assert_eq!(first.free_bytes(10_000, &pool), 1_000);
        // Half of the blocks are for what exceeds the limits: a quarter of all for one, and a third of them for each of two.
        let block = BLOCK_BYTES as u32;
        fill(&mut first, u32::MAX, &mut pool);
        assert!(first.len().abs_diff((256 << 10) / 4) < 2 * block, "{}", first.len());
        fill(&mut second, u32::MAX, &mut pool);
        for _ in 0..20 {
            for queue in [&mut first, &mut second] {
                queue.acknowledge(20_000, &mut pool);
                fill(queue, u32::MAX, &mut pool);
            }
        }
        for queue in [&first, &second] {
            assert!(
                queue.len().abs_diff((256 << 10) / 6) < 8 * block,
                "{} and {}",
                first.len(),
                second.len()
            );
        }
        // Others get what is their own all the same.
        assert_eq!(fill(&mut SendQueue::new(), 0, &mut pool), 1000);

        let extent = extent_of(&arena, &[7; 100]);
        let mut queue = SendQueue::new();
        let taken = (0..).take_while(|_| queue.push_extent(extent.clone(), 10_000, &mut pool)).count();
        assert_eq!(taken, 19, "one for each 1,024 bytes that may wait");
        let taken = (0..).take_while(|_| queue.push_extent(extent.clone(), u32::MAX, &mut pool)).count();
        assert!((19 + taken).abs_diff(100) < 3, "{taken}");
        assert!(!queue.is_roomy(u32::MAX, &pool));
        queue.acknowledge(9_500, &mut pool);
        assert!(queue.is_roomy(u32::MAX, &pool));
        for queue in [&mut queue, &mut first, &mut second] {
            queue.clear(&mut pool);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Bytes(Vec<u8>),
        Extent(Vec<u8>),
        Flight(u32),
        Send(u32),
        Acknowledge(u32),
        /// To a place, from one before it, and so many bytes there.
        Seek(u32, u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Step::Bytes),
            prop::collection::vec(any::<u8>(), 200..600).prop_map(Step::Bytes),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Step::Extent),
            prop_oneof![1..30u32, 200..700u32].prop_map(Step::Send),
            prop_oneof![0..40u32, 200..700u32].prop_map(Step::Acknowledge),
            (0..5000u32).prop_map(Step::Flight),
            (any::<u32>(), any::<u32>(), 1..40u32).prop_map(|(at, before, max)| Step::Seek(at, before, max)),
        ]
    }

    proptest! {
        /// Against a plain vector of bytes, and no buffer is left behind.
        #[test]
        fn agrees_with_a_vector(steps in prop::collection::vec(step(), 1..200)) {
            let arena = arena(32);
            let free = arena.free_buffers();
            let (mut queue, mut pool) = (SendQueue::new(), pool(1000, 6, 8000));
            let (mut bytes, mut sent, mut flight) = (Vec::<u8>::new(), 0usize, 0);
            for step in steps {
                match step {
                    Step::Bytes(new) => if queue.push_bytes(&new, flight, &mut pool) { bytes.extend(new) },
                    Step::Extent(new) => {
                        if queue.push_extent(extent_of(&arena, &new), flight, &mut pool) { bytes.extend(new) }
                    }
                    Step::Send(max) => {
                        let (got, _) = segment(&queue, queue.cursor(), max, &pool);
                        prop_assert_eq!(&got[..], &bytes[sent..sent + got.len()]);
                        prop_assert!(!got.is_empty() || sent == bytes.len());
                        queue.advance(got.len() as u32, &pool);
                        sent += got.len();
                        let (front, _) = segment(&queue, queue.front(), max, &pool);
                        prop_assert_eq!(&front[..], &bytes[..front.len()]);
                    }
                    Step::Acknowledge(count) => {
                        let count = (count as usize).min(bytes.len());
                        queue.acknowledge(count as u32, &mut pool);
                        bytes.drain(..count);
                        sent = sent.saturating_sub(count);
                    }
                    Step::Flight(bytes) => flight = bytes,
                    Step::Seek(at, before, max) => {
                        let at = at as usize % (bytes.len() + 1);
                        let before = queue.seek((before as usize % (at + 1)) as u32, None, &pool);
                        let from = (before.offset > 0).then(|| queue.node_at(before, &pool));
                        let place = queue.seek(at as u32, from, &pool);
                        let (got, _) = segment(&queue, place, max, &pool);
                        prop_assert_eq!(&got[..], &bytes[at..at + got.len()]);
                        prop_assert!(!got.is_empty() || at == bytes.len());
                    }
                }
                prop_assert_eq!(queue.len() as usize, bytes.len());
                prop_assert_eq!(queue.unsent() as usize, bytes.len() - sent);
            }
            queue.acknowledge(queue.len(), &mut pool);
            prop_assert!(queue.is_unused());
            prop_assert_eq!(arena.free_buffers(), free);
        }
    }
}
