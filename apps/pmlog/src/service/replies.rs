//! The replies that connections owe, in memory that they share: what was used last is used next, and a connection that
//! owes nothing costs nothing.
//!
//! A client decides how long its replies wait, since it reads when it likes. So there is room for what one request may
//! bring about on every connection, whatever the others owe; what a client asks for ahead of that comes from what all
//! share, and waits while that is used up. A connection is never woken for it: its own replies, as they go out, have it
//! look again.

use super::reply::Reply;

/// A link that leads nowhere.
const NONE: u32 = u32::MAX;

/// Replies of one connection that may be owed at a time; a client that sends more requests waits.
const MAX_PIPELINE: u32 = 32;
/// Replies that one request may bring about: `100 Continue`, its own, and one that ends the connection.
const OF_A_REQUEST: u32 = 3;
/// Replies that all connections share, beyond those of a request each.
const SHARED: u32 = 16 * 1024;

/// The memory. All of it is taken at the start, and not touched before it is used.
#[derive(Debug)]
pub(super) struct ReplyPool {
    nodes: Vec<Node>,
    /// The first node that is free again.
    free: u32,
    most: usize,
    shared: u32,
    /// Of those, how many are in use.
    taken: u32,
}

#[derive(Debug)]
struct Node {
    reply: Option<Reply>,
    next: u32,
}

/// A connection's replies, in the order of its requests. They are cleared before they are dropped.
#[derive(Debug)]
pub(super) struct Replies {
    first: u32,
    last: u32,
    len: u32,
}

impl ReplyPool {
    pub(super) fn new(connections: usize) -> Self {
        let ahead = MAX_PIPELINE + OF_A_REQUEST - 1;
        let shared = connections.saturating_mul(ahead as usize).min(SHARED as usize);
        let most = connections * OF_A_REQUEST as usize + shared;
        Self { nodes: Vec::with_capacity(most), free: NONE, most, shared: shared as u32, taken: 0 }
    }

    #[inline]
    fn take(&mut self, reply: Reply) -> Option<u32> {
        let node = self.free;
        if let Some(entry) = self.nodes.get_mut(node as usize) {
            self.free = entry.next;
            *entry = Node { reply: Some(reply), next: NONE };
            return Some(node);
        }
        self.add(reply)
    }

    #[cold]
    fn add(&mut self, reply: Reply) -> Option<u32> {
        let node = self.nodes.len();
        (node < self.most).then(|| {
            self.nodes.push(Node { reply: Some(reply), next: NONE });
            node as u32
        })
    }
}

impl Replies {
    pub(super) fn new() -> Self {
        Self { first: NONE, last: NONE, len: 0 }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there is room for all that one more request may bring about.
    #[inline]
    pub(super) fn have_room(&self, pool: &ReplyPool) -> bool {
        self.len == 0 || (self.len < MAX_PIPELINE && pool.shared - pool.taken >= OF_A_REQUEST)
    }

    #[inline]
    pub(super) fn front<'a>(&self, pool: &'a ReplyPool) -> Option<&'a Reply> {
        pool.nodes.get(self.first as usize)?.reply.as_ref()
    }

    #[inline]
    pub(super) fn back<'a>(&self, pool: &'a ReplyPool) -> Option<&'a Reply> {
        pool.nodes.get(self.last as usize)?.reply.as_ref()
    }

    /// Takes the first one out to be worked on. Its place stays, for [`put_back`](Self::put_back), and ends with
    /// [`pop`](Self::pop).
    #[inline]
    pub(super) fn lift(&self, pool: &mut ReplyPool) -> Option<Reply> {
        pool.nodes.get_mut(self.first as usize)?.reply.take()
    }

    /// Puts back what was lifted, if its place is still there.
    #[inline]
    pub(super) fn put_back(&self, reply: Reply, pool: &mut ReplyPool) {
        if let Some(node) = pool.nodes.get_mut(self.first as usize) {
            node.reply = Some(reply);
        }
    }

    /// Owes one more.
    #[inline]
    pub(super) fn push(&mut self, reply: Reply, pool: &mut ReplyPool) {
        // There is room: it was asked for before the request was read.
        let Some(node) = pool.take(reply) else { return };
        match pool.nodes.get_mut(self.last as usize) {
            Some(last) => last.next = node,
            None => self.first = node,
        }
        self.last = node;
        pool.taken += u32::from(self.len >= OF_A_REQUEST);
        self.len += 1;
    }

    /// Ends the first one; false if there is none.
    #[inline]
    pub(super) fn pop(&mut self, pool: &mut ReplyPool) -> bool {
        let node = self.first;
        let Some(entry) = pool.nodes.get_mut(node as usize) else { return false };
        entry.reply = None;
        self.first = std::mem::replace(&mut entry.next, pool.free);
        pool.free = node;
        if self.first == NONE {
            self.last = NONE;
        }
        self.len -= 1;
        pool.taken -= u32::from(self.len >= OF_A_REQUEST);
        true
    }

    pub(super) fn clear(&mut self, pool: &mut ReplyPool) {
        while self.pop(pool) {}
    }

    /// Shows each of them to `look`.
    #[inline]
    pub(super) fn for_each(&self, pool: &mut ReplyPool, mut look: impl FnMut(&mut Reply)) {
        let mut place = self.first;
        while let Some(node) = pool.nodes.get_mut(place as usize) {
            if let Some(reply) = &mut node.reply {
                look(reply);
            }
            place = node.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::render::ReplyFormat;
    use super::super::reply::Content;
    use super::*;

    fn reply(number: u64) -> Reply {
        Reply::new(Content::Counted { number, len_bytes: 0 }, ReplyFormat::CLOSING)
    }

    fn number(reply: Option<Reply>) -> Option<u64> {
        match reply?.content {
            Content::Counted { number, .. } => Some(number),
            _ => None,
        }
    }

    /// One client asks ahead for all that is shared; each other may still have a request answered with all that it
    /// brings about, and in order, time after time.
    #[test]
    fn who_asks_ahead_leaves_each_other_connection_a_request() {
        let mut pool = ReplyPool::new(3);
        pool.shared = 10;
        let mut owed: Vec<_> = (0..3).map(|_| Replies::new()).collect();
        let mut asked = 0;
        while owed[0].have_room(&pool) {
            owed[0].push(reply(asked), &mut pool);
            asked += 1;
        }
        assert_eq!(
            asked, 11,
            "three of its own, and eight of ten: then there is no room for a request's three"
        );
        for round in 0..100 {
            for replies in &mut owed[1..] {
                assert!(replies.have_room(&pool), "round {round}");
                for each in 0..u64::from(OF_A_REQUEST) {
                    replies.push(reply(each), &mut pool);
                }
                assert!(!replies.have_room(&pool));
            }
            for replies in &mut owed[1..] {
                for each in 0..u64::from(OF_A_REQUEST) {
                    assert_eq!(number(replies.lift(&mut pool)), Some(each));
                    assert!(replies.pop(&mut pool));
                }
                assert!(!replies.pop(&mut pool));
            }
        }
        assert_eq!(number(owed[0].lift(&mut pool)), Some(0));
        owed[0].put_back(reply(70), &mut pool);
        let mut seen = 0;
        owed[0].for_each(&mut pool, |_| seen += 1);
        assert_eq!(seen, asked);
        owed[0].clear(&mut pool);
        assert_eq!(pool.taken, 0);
    }
}
