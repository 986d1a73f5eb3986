//! Cache lines asked for ahead of time.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};

use crate::mbuf::Mbuf;

const LINE_BYTES: usize = 64;

/// Where bytes lie that will be written soon: buffers into which this CPU copies frames
/// ([`PortInfo::copies_by_cpu`](crate::PortInfo::copies_by_cpu)), which it then does without waiting for each line.
#[derive(Clone, Copy, Debug)]
pub struct WrittenSoon {
    address: usize,
    len: usize,
}

impl WrittenSoon {
    /// These bytes. They need not live until they have been asked for.
    #[inline]
    pub fn new(bytes: &[u8]) -> Self {
        Self { address: bytes.as_ptr().addr(), len: bytes.len() }
    }

    /// The first `len` of the free bytes behind a packet's data.
    pub fn behind(packet: &Mbuf, len: usize) -> Self {
        Self { address: packet.bytes().as_ptr_range().end.addr(), len: len.min(packet.tailroom()) }
    }

    /// Asks for the first `lines` lines of those that have not been asked for; returns whether some are left. A core
    /// waits when it asks for more lines than it has fill buffers, of which Intel's have 10 to 16.
    #[inline]
    pub fn prefetch(&mut self, lines: usize) -> bool {
        let len = lines * LINE_BYTES;
        if self.len <= len {
            (0..self.len).step_by(LINE_BYTES).for_each(|at| fetch(self.address + at));
            self.len = 0;
            return false;
        }
        // Without a look at how far it is: callers know `lines` when they are built.
        for line in 0..lines {
            fetch(self.address + line * LINE_BYTES);
        }
        self.address += len;
        self.len -= len;
        true
    }
}

#[inline]
fn fetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which neither reads nor writes for the program, and faults at no address.
    unsafe {
        _mm_prefetch::<_MM_HINT_ET0>(address as *const i8);
    }
}
