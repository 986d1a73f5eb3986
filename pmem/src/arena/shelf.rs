//! Short pieces from many places in one buffer.

use super::{Buffer, Extent};

/// A buffer that short pieces are copied into, one behind the other. Each has a reference of its own, and may be
/// dropped when its time comes; the buffer is free when the shelf and all of them are gone.
#[derive(Debug)]
pub struct Shelf {
    buffer: Buffer,
    used: u16,
}

impl Shelf {
    /// An empty shelf; none if there are other references to the buffer.
    pub fn new(buffer: Buffer) -> Option<Self> {
        buffer.is_unique().then_some(Self { buffer, used: 0 })
    }

    /// Whether no piece is left.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_unique()
    }

    /// Copies `bytes` behind the last piece; none if there is no room for them.
    pub fn put(&mut self, bytes: &[u8]) -> Option<Extent> {
        if self.is_empty() {
            self.used = 0;
        }
        let arena = self.buffer.arena();
        let from = self.used;
        if bytes.len() > arena.buffer_bytes() - usize::from(from) {
            return None;
        }
        // SAFETY: extents of this buffer were made here only, and all end at `used` or before.
        unsafe { self.buffer.store_beside(from, bytes) };
        arena.count_copied(bytes.len());
        self.used += bytes.len() as u16;
        self.buffer.extent(from, bytes.len() as u16)
    }

    /// Copies `bytes` behind `piece`, which grows by them. False, and nothing is written, if it is not the last
    /// piece that was put here, or if there is no room.
    pub fn extend(&mut self, piece: &mut Extent, bytes: &[u8]) -> bool {
        let is_last = piece.is_in(self.buffer.arena())
            && piece.buffer_id() == self.buffer.id()
            && piece.offset() + piece.len() == usize::from(self.used);
        is_last && self.put(bytes).is_some_and(|next| piece.merge(next).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Region};

    #[test]
    fn pieces_share_a_buffer_and_free_it_together() {
        let region = Region::open("memory:", &Options { size: Some(1 << 20), ..Options::default() }).unwrap();
        let shard = region.into_shard().unwrap();
        let arena = shard.arena();
        let free = arena.free_buffers();
        let buffer = arena.take().unwrap();
        assert!(Shelf::new(buffer.clone()).is_none());
        let mut shelf = Shelf::new(buffer).unwrap();
        let mut first = shelf.put(b"first").unwrap();
        assert!(shelf.extend(&mut first, b" of all"));
        let second = shelf.put(b"second").unwrap();
        assert!(!shelf.extend(&mut first, b"!"), "another piece follows");
        assert_eq!((first.bytes(), second.bytes()), (&b"first of all"[..], &b"second"[..]));
        assert!(shelf.put(&vec![7; arena.buffer_bytes() - 17]).is_none());
        let rest = shelf.put(&vec![7; arena.buffer_bytes() - 18]).unwrap();
        assert!(shelf.put(b"x").is_none());
        assert_eq!(arena.free_buffers(), free - 1);
        drop((first, second, rest));
        assert!(shelf.is_empty());
        assert_eq!(shelf.put(b"again").unwrap().offset(), 0);
        drop(shelf);
        assert_eq!(arena.free_buffers(), free);
    }
}
