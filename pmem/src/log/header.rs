//! A shard's header where it lies in the medium: read once, then written by its one owner.

use std::{io, ptr, sync::Arc};

use crate::{
    format::header::{Copies, Found, HEADER_BYTES, Header},
    medium::Medium,
    safeguard::{Safeguard, omits},
};

/// Where a shard's header lies, and what it says now.
pub(crate) struct HeaderCell {
    medium: Arc<dyn Medium>,
    places: [usize; 2],
    seed: u32,
    current: Header,
    /// The one copy that has it; none if both have.
    at: Option<usize>,
}

impl HeaderCell {
    pub(crate) fn new(medium: Arc<dyn Medium>, places: [usize; 2], seed: u32, found: &Found) -> Self {
        assert!(places.iter().all(|place| place + HEADER_BYTES <= medium.len()));
        Self { medium, places, seed, current: found.header, at: found.at }
    }

    /// Both copies as they lie in the medium.
    pub(crate) fn read(medium: &dyn Medium, places: [usize; 2]) -> Copies {
        places.map(|place| {
            assert!(place + HEADER_BYTES <= medium.len());
            let mut bytes = [0; HEADER_BYTES];
            // SAFETY: the range was checked; only the shard's one owner writes it, and that is the caller.
            unsafe {
                ptr::copy_nonoverlapping(medium.base().as_ptr().add(place), bytes.as_mut_ptr(), HEADER_BYTES);
            }
            bytes
        })
    }

    #[inline]
    pub(crate) fn current(&self) -> Header {
        self.current
    }

    /// Writes a header over both copies, first that which is older or damaged, each flushed and fenced before the next
    /// step. Its generation is set here. Returns the number of fences.
    pub(crate) fn persist(&mut self, header: Header) -> io::Result<u64> {
        // Copy `generation mod 2` comes first, as with programs that write one copy only.
        let next = self.current.generation + 1;
        let skipped = self.at.is_some_and(|at| next % 2 == at as u64) && !omits(Safeguard::OlderCopyFirst);
        let header = Header { generation: next + u64::from(skipped), is_mirrored: true, ..header };
        let first = (header.generation % 2) as usize;
        self.write(first, &header, [Safeguard::FirstCopyFlush, Safeguard::FirstCopyFence])?;
        (self.current, self.at) = (header, Some(first));
        if !omits(Safeguard::SecondCopy) {
            self.write(1 - first, &header, [Safeguard::SecondCopyFlush, Safeguard::SecondCopyFence])?;
        }
        self.at = None;
        Ok(2)
    }

    fn write(&self, copy: usize, header: &Header, [flush, fence]: [Safeguard; 2]) -> io::Result<()> {
        let offset = self.places[copy];
        // SAFETY: the range was checked in `new`; this is its only owner, and no references to it are ever made.
        unsafe { self.medium.store(offset, &header.encode(self.seed)) };
        if !omits(flush) {
            self.medium.flush(offset, HEADER_BYTES);
        }
        if omits(fence) { Ok(()) } else { self.medium.fence() }
    }
}
