//! Arenas, extents and received frames for unit tests.

use pmem::{Arena, Buffer, Durable, Extent, Options, Region};

use crate::{RxChecksum, RxFrame};

/// An arena with at least `buffers` buffers, all of them free.
pub fn arena(buffers: usize) -> Arena {
    let size = Some((64 * 1024 + buffers as u64 * 4096).max(256 * 1024));
    let region = Region::open("memory:", &Options { size, ..Options::default() }).unwrap();
    let arena = region.into_shard().unwrap().arena().clone();
    assert!(arena.free_buffers() >= buffers);
    arena
}

/// `bytes` in a buffer of their own.
pub fn extent_of(arena: &Arena, bytes: &[u8]) -> Extent {
    let mut buffer = arena.take().unwrap();
    assert!(buffer.arrive(0, bytes));
    buffer.into_extent(0, bytes.len() as u16).unwrap()
}

/// A frame that has arrived, and the arena whose buffers it may claim.
pub struct Arrived<'a>(pub Vec<u8>, pub &'a Arena);

impl RxFrame for Arrived<'_> {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn checksum(&self) -> RxChecksum {
        RxChecksum::Unknown
    }

    fn claim(&mut self, at: usize) -> Option<(Buffer, usize)> {
        let mut buffer = self.1.take()?;
        assert!(buffer.arrive(128, &self.0));
        Some((buffer, 128 + at))
    }
}

/// A proof of durability, of a log that nothing is in.
pub fn proof() -> Durable {
    let options = Options { size: Some(256 * 1024), ..Options::default() };
    Region::open("memory:", &options).unwrap().into_shard().unwrap().commit().unwrap()
}
