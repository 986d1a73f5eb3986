//! Cache lines asked for ahead of time.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};

const LINE_BYTES: usize = 64;

/// Asks for the lines of `bytes` in order to write them. For buffers into which this CPU will copy frames
/// ([`PortInfo::copies_by_cpu`](crate::PortInfo::copies_by_cpu)): the copy then does not wait for each line.
pub fn prefetch_for_writing(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(LINE_BYTES) {
        // SAFETY: a hint, which neither reads nor writes for the program, and faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, LINE_BYTES);
}
