//! Memory for what all connections of an endpoint have to send: blocks of copied bytes, and nodes that make queues of
//! blocks and extents. What was used last is used next, so that short replies of whatever connections lie in the same
//! few lines of cache, and an empty queue costs nothing.
//!
//! Peers decide how long a queue holds what it holds, since they acknowledge when they like. So each queue may always
//! have one block and one extent, whatever the others hold: there is one of each for every connection. Further ones
//! are shared. While more than half of them are free, a queue takes what its own limits allow; from there on none that
//! has some takes more than its even share of the half. All that peers which never acknowledge can do is to leave the
//! others with one block and one extent at a time.
//!
//! A long or fast path takes more than those limits to be filled: twice what may be in flight, so that the next is there
//! when an acknowledgement comes. That much a queue gets beyond them as long as more than half of the units are free, and
//! while it holds fewer than are left of that half: one queue gets half of the half, two a third each, and so on (the
//! dynamic thresholds of A. Choudhury and E. Hahne, "Dynamic queue length thresholds for shared-memory packet switches",
//! 1998). How much may be in flight is what the peer has shown to take, so that one which does not read holds little.

use pmem::Extent;

use super::scoreboard::RunPool;
use crate::net::LEAST_SEND_BYTES;

/// A link that leads nowhere.
pub(super) const NONE: u32 = u32::MAX;

/// Length of a block: a short reply.
pub(super) const BLOCK_BYTES: usize = 256;

const _: () = assert!(BLOCK_BYTES >= LEAST_SEND_BYTES);

/// What a pool has to hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendLimits {
    /// Connections, each with one queue.
    pub queues: usize,
    /// Copied bytes and extents that one queue may have whatever its path takes.
    pub queue_bytes: usize,
    pub queue_extents: usize,
    /// Most bytes of one queue whose path takes more.
    pub window_bytes: usize,
    /// Most bytes of an extent.
    pub extent_bytes: usize,
    /// What all queues share, beyond the first block and the first extent of each.
    pub shared_bytes: usize,
    pub shared_extents: usize,
}

/// The memory. All of it is taken at the start, and not touched before it is used.
#[derive(Debug)]
pub(crate) struct SendPool {
    nodes: Vec<Node>,
    /// The first node that is free again, and how many nodes there may be.
    free_node: u32,
    most_nodes: usize,
    blocks: Vec<[u8; BLOCK_BYTES]>,
    free_blocks: Vec<u32>,
    most_blocks: usize,
    pub(super) block_shares: Shares,
    pub(super) extent_shares: Shares,
    pub(super) queue_bytes: u32,
    pub(super) queue_extents: u32,
    window_bytes: u32,
    pub(super) extent_bytes: u32,
    /// Memory for what is known of segments under way.
    pub(crate) under_way: RunPool,
}

/// Bytes for each of which a queue may have another extent where its path takes more than its limits: many short ones are
/// no reason to hold all the nodes.
pub(super) const BYTES_OF_EXTENT: u32 = 1024;

/// A part of a queue.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) chunk: Chunk,
    pub(super) next: u32,
    /// Bytes that the queue was ever given before these, modulo 2^32.
    pub(super) begin: u32,
}

#[derive(Debug)]
pub(super) enum Chunk {
    /// Bytes of a block.
    Copied {
        block: u32,
        start: u16,
        len: u16,
    },
    Extent(Extent),
}

impl Chunk {
    pub(super) fn len(&self) -> u32 {
        match self {
            Chunk::Copied { len, .. } => (*len).into(),
            Chunk::Extent(extent) => extent.len() as u32,
        }
    }
}

impl SendPool {
    pub(crate) fn new(limits: &SendLimits) -> Self {
        let SendLimits { queues, queue_bytes, queue_extents, window_bytes, .. } = *limits;
        // Each run of copied bytes between two extents begins with a block of its own.
        let blocks_of = |bytes: usize, extents: usize| bytes.div_ceil(BLOCK_BYTES) + extents + 1;
        let most_extents = queue_extents.max(window_bytes / BYTES_OF_EXTENT as usize);
        let blocks = [(queue_bytes, queue_extents), (queue_bytes.max(window_bytes), most_extents)];
        let block_shares =
            Shares::new(limits.shared_bytes / BLOCK_BYTES, blocks.map(|(b, e)| blocks_of(b, e)), queues);
        let extent_shares = Shares::new(limits.shared_extents, [queue_extents, most_extents], queues);
        let most_blocks = queues + block_shares.most as usize;
        let most_nodes = most_blocks + queues + extent_shares.most as usize;
        Self {
            nodes: Vec::with_capacity(most_nodes),
            free_node: NONE,
            most_nodes,
            blocks: Vec::with_capacity(most_blocks),
            free_blocks: Vec::with_capacity(most_blocks),
            most_blocks,
            block_shares,
            extent_shares,
            queue_bytes: queue_bytes as u32,
            queue_extents: queue_extents as u32,
            window_bytes: window_bytes as u32,
            extent_bytes: limits.extent_bytes.max(1) as u32,
            under_way: RunPool::new(queues),
        }
    }

    /// Bytes that a queue may have beside its limits where so many may be in flight.
    #[inline]
    pub(super) fn window(&self, flight: u32) -> u32 {
        flight.saturating_mul(2).min(self.window_bytes)
    }

    /// Whether an empty queue may take as much as its own limits allow, so that whoever was refused may try again.
    pub(crate) fn has_room(&self) -> bool {
        self.block_shares.grant(0) as usize * BLOCK_BYTES >= self.queue_bytes as usize
    }

    /// Puts `chunk`, which begins there, into a node; none, and it is dropped, if there is none.
    #[inline(always)]
    pub(super) fn take_node(&mut self, chunk: Chunk, begin: u32) -> Option<u32> {
        let node = self.free_node;
        if let Some(entry) = self.nodes.get_mut(node as usize) {
            self.free_node = entry.next;
            *entry = Node { chunk, next: NONE, begin };
            return Some(node);
        }
        self.add_node(chunk, begin)
    }

    #[cold]
    fn add_node(&mut self, chunk: Chunk, begin: u32) -> Option<u32> {
        let node = self.nodes.len();
        (node < self.most_nodes).then(|| {
            self.nodes.push(Node { chunk, next: NONE, begin });
            node as u32
        })
    }

    /// Takes a node back, and its block or extent; tells how many bytes of a block that was, and the node behind it.
    #[inline(always)]
    pub(super) fn give_back(&mut self, node: u32) -> Option<(Option<u16>, u32)> {
        let entry = self.nodes.get_mut(node as usize)?;
        let next = std::mem::replace(&mut entry.next, self.free_node);
        self.free_node = node;
        let copied_bytes = match entry.chunk {
            Chunk::Copied { block, len, .. } => {
                self.free_blocks.push(block);
                Some(len)
            }
            Chunk::Extent(_) => {
                entry.chunk = Chunk::Copied { block: NONE, start: 0, len: 0 };
                None
            }
        };
        Some((copied_bytes, next))
    }

    #[inline]
    pub(super) fn take_block(&mut self) -> Option<u32> {
        self.free_blocks.pop().or_else(|| self.add_block())
    }

    #[cold]
    fn add_block(&mut self) -> Option<u32> {
        let block = self.blocks.len();
        (block < self.most_blocks).then(|| {
            self.blocks.push([0; BLOCK_BYTES]);
            block as u32
        })
    }

    #[inline]
    pub(super) fn node(&self, node: u32) -> Option<&Node> {
        self.nodes.get(node as usize)
    }

    #[inline]
    pub(super) fn node_mut(&mut self, node: u32) -> Option<&mut Node> {
        self.nodes.get_mut(node as usize)
    }

    /// The bytes of a block from `from` to `to`.
    #[inline]
    pub(super) fn bytes(&self, block: u32, from: usize, to: usize) -> &[u8] {
        self.blocks.get(block as usize).and_then(|block| block.get(from..to)).unwrap_or_default()
    }

    #[inline]
    pub(super) fn bytes_mut(&mut self, block: u32, from: usize, to: usize) -> &mut [u8] {
        self.blocks.get_mut(block as usize).and_then(|block| block.get_mut(from..to)).unwrap_or_default()
    }
}

/// Who may have how many units of one kind, beyond the first of each queue.
#[derive(Debug)]
pub(super) struct Shares {
    most: u32,
    taken: u32,
    /// While no more are taken than this, nobody is refused any.
    plenty: u32,
    /// Queues that hold some.
    holders: u32,
}

impl Shares {
    /// `shared` units for so many queues, each of which holds so many of its own right, and at most so many: fewer if that
    /// is all they can hold, more if one queue could hold half of them of its own right.
    fn new(shared: usize, [own, most_of_one]: [usize; 2], queues: usize) -> Self {
        let all = most_of_one.saturating_mul(queues);
        let (most, plenty) = match all <= shared {
            true => (all, all),
            false => {
                let most = shared.max(2 * own);
                (most, most / 2)
            }
        };
        Self { most: most as u32, taken: 0, plenty: plenty as u32, holders: 0 }
    }

    /// Whether a queue may take what its own limits allow.
    #[inline]
    pub(super) fn is_plenty(&self) -> bool {
        self.taken <= self.plenty
    }

    /// Units that a queue may take which holds `held`, apart from its own limits.
    #[inline]
    pub(super) fn grant(&self, held: u32) -> u32 {
        let left = self.most - self.taken;
        if held == 0 {
            // It may want to send what does not fit one; it would wait for ever.
            return 1 + left;
        }
        if self.is_plenty() {
            return left;
        }
        left.min((self.most / 2 / self.holders.max(1)).saturating_sub(held - 1))
    }

    /// Units that a queue may take which holds `held`, beyond its own limits.
    #[inline]
    pub(super) fn spare(&self, held: u32) -> u32 {
        self.plenty.saturating_sub(self.taken).saturating_sub(held)
    }

    /// A queue that holds `held` units takes one more.
    #[inline]
    pub(super) fn take(&mut self, held: u32) {
        self.taken += u32::from(held > 0);
        self.holders += u32::from(held == 1);
    }

    /// A queue that holds `held` units gives one back.
    #[inline(always)]
    pub(super) fn give_back(&mut self, held: u32) {
        self.taken -= u32::from(held > 1);
        self.holders -= u32::from(held == 2);
    }
}
