//! The medium below everything: memory that outlives the process, and the four things done to it.
//!
//! Every store, flush, fence and DMA arrival of this crate goes through [`Medium`], so that
//! [`LineModel`](crate::LineModel) can stand in for real persistent memory in crash tests.

mod ahead;
mod behind;
mod dirty;
mod disk;
mod fault;
mod huge;
mod layer;
mod line_model;
mod lock;
mod mapped;
mod paged;
mod queue;
mod slowed;
mod timed;

use std::{fmt, io, os::fd::OwnedFd, ptr::NonNull, sync::Arc};

pub(crate) use ahead::Ahead;
pub(crate) use behind::Handle;
pub use disk::DiskSync;
pub(crate) use disk::{BLOCK_BYTES, Disk};
pub(crate) use fault::Named;
#[cfg(test)]
pub(crate) use huge::asked_for;
pub(crate) use huge::prefer_huge_pages;
pub(crate) use layer::Layer;
pub use line_model::{LineModel, ModelKind};
pub(crate) use lock::MediumLock;
pub(crate) use mapped::{Mapped, Mapping, best_flush_instruction};
pub(crate) use paged::{Paged, again};
pub(crate) use slowed::Slowed;
pub(crate) use timed::Timed;

use crate::safeguard::{Safeguard, omits};

/// Bytes in a cache line: the unit of a flush.
pub const LINE_BYTES: usize = 64;

/// Memory that outlives the process once it is flushed and fenced.
///
/// # Safety
/// `base()..base() + len()` must stay valid for reads and writes, and at the same address, for as long as
/// the medium lives; the other methods must not touch memory outside of it.
pub unsafe trait Medium: Send + Sync {
    /// Where the medium is mapped; aligned to a page.
    fn base(&self) -> NonNull<u8>;

    /// Length in bytes.
    fn len(&self) -> usize;

    /// Whether there is nothing at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes `bytes` at `offset`. Not durable before [`flush`](Self::flush) and [`fence`](Self::fence).
    ///
    /// # Safety
    /// The range lies inside the medium; nobody else reads or writes it meanwhile, and no reference to it lives.
    unsafe fn store(&self, offset: usize, bytes: &[u8]);

    /// Writes `bytes` at `offset` as a device would: the bytes are visible, but no more durable than a store.
    ///
    /// # Safety
    /// As [`store`](Self::store).
    unsafe fn dma(&self, offset: usize, bytes: &[u8]);

    /// Sends every line that holds a byte of the range on its way to the medium. Ranges beyond the end are cut.
    fn flush(&self, offset: usize, len: usize);

    /// Returns once everything flushed before, through this handle, is durable.
    ///
    /// # Errors
    /// The medium refused the bytes. What was flushed since the last good fence may or may not be there.
    fn fence(&self) -> io::Result<()>;

    /// Starts a [`fence`](Self::fence); true if it is done with that, and else [`is_fenced`](Self::is_fenced) tells when it
    /// is. What is flushed meanwhile is for the next one. One is under way at a time: another is started, and `fence`
    /// returns, after it is done. Where nothing is gained by going on meanwhile, this is a fence.
    ///
    /// # Errors
    /// As [`fence`](Self::fence).
    #[inline]
    fn start_fence(&self) -> io::Result<bool> {
        self.fence().map(|()| true)
    }

    /// Whether the fence that was started is done.
    ///
    /// # Errors
    /// It failed, as [`fence`](Self::fence) does.
    fn is_fenced(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Whether there is something to be gained by [starting](Self::start_fence) fences.
    fn fences_later(&self) -> bool {
        false
    }

    /// Has `bell`, an eventfd, written to whenever a fence that was started may be done.
    fn ring_bell(&self, bell: Arc<OwnedFd>) {
        drop(bell);
    }

    /// Has a range brought into memory, as far as that is not there and there is reason to wait for it soon. Ranges beyond
    /// the end are cut.
    fn will_read(&self, offset: usize, len: usize) {
        let _ = (offset, len);
    }

    /// What flush and fence do here.
    fn domain(&self) -> Domain;

    /// A handle for another thread: same memory, but flushes and fences of its own.
    fn fork(self: Arc<Self>) -> Arc<dyn Medium>;

    /// What persisting through this handle has cost; zeros for a medium that does not measure it.
    fn spent(&self) -> Spent {
        Spent::default()
    }

    /// What a device or a file was asked to write through this handle; zeros where flushes are instructions.
    fn written(&self) -> Written {
        Written::default()
    }
}

/// What was asked of the device or the file behind a medium.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the blocks or pages that were written.
    pub bytes: u64,
    /// Writes, write-backs of a range, and syncs.
    pub requests: u64,
}

/// The time that a medium's handle has spent, and how often it read a clock to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Sending lines on their way.
    pub flush_ns: u64,
    /// Waiting for fences.
    pub fence_ns: u64,
    /// Readings of the clock.
    pub readings: u64,
}

/// How far a store must travel before it is durable, and so what a flush and a fence are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Lines are flushed one by one, then fenced: DAX on a machine that loses its caches.
    CacheLines(FlushInstruction),
    /// A fence is enough: the platform writes its caches out on power loss (`persistence_domain` is `cpu_cache`).
    FenceOnly,
    /// The kernel holds the pages, and a fence has it write those that were flushed.
    Msync,
    /// A disk is written to past the page cache; memory holds all of it.
    Disk(DiskSync),
    /// Nothing survives. Flushes and fences are executed all the same, so that they cost what they cost.
    Volatile(FlushInstruction),
    /// The line model of crash tests.
    Model,
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CacheLines(instruction) => write!(f, "cache lines ({instruction}, sfence)"),
            Self::FenceOnly => f.write_str("fence only (caches are persistent)"),
            Self::Msync => f.write_str("msync"),
            Self::Disk(sync) => write!(f, "disk (O_DIRECT, {sync})"),
            Self::Volatile(instruction) => write!(f, "volatile ({instruction}, sfence)"),
            Self::Model => f.write_str("line model"),
        }
    }
}

/// The instruction that writes a cache line back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushInstruction {
    /// Writes back and may keep the line cached.
    Clwb,
    /// Writes back and evicts, without ordering between lines.
    Clflushopt,
    /// Writes back and evicts, one line after the other.
    Clflush,
}

impl fmt::Display for FlushInstruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clwb => "clwb",
            Self::Clflushopt => "clflushopt",
            Self::Clflush => "clflush",
        })
    }
}

/// Flushes a range that was found in memory and may be on the medium or not.
///
/// Where a write-back has failed, Linux counts the pages as written that are not (fsync(2), "NOTES"), so that no flush
/// writes them: there the range is stored anew, as it is.
///
/// # Safety
/// As [`Medium::store`].
pub(crate) unsafe fn flush_found(medium: &dyn Medium, offset: usize, len: usize) {
    match medium.domain() {
        Domain::Msync | Domain::Model => {
            let end = offset.saturating_add(len).min(medium.len());
            for from in (offset..end).step_by(FOUND_BYTES) {
                let mut bytes = [0; FOUND_BYTES];
                let bytes = &mut bytes[..FOUND_BYTES.min(end - from)];
                // SAFETY: the range lies inside the medium, and the caller has it for itself.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        medium.base().as_ptr().add(from),
                        bytes.as_mut_ptr(),
                        bytes.len(),
                    );
                    if !omits(Safeguard::FoundStore) {
                        medium.store(from, bytes);
                    }
                }
            }
        }
        Domain::CacheLines(_) | Domain::FenceOnly | Domain::Disk(_) | Domain::Volatile(_) => {}
    }
    medium.flush(offset, len);
}

/// Bytes that [`flush_found`] stores at a time.
const FOUND_BYTES: usize = 1024;

/// The range `offset..offset + len`, cut at `end` and widened to whole lines; empty ranges stay empty.
#[inline]
fn line_range(offset: usize, len: usize, end: usize) -> std::ops::Range<usize> {
    let to = offset.saturating_add(len).min(end);
    if offset >= to {
        return 0..0;
    }
    const WITHIN: usize = LINE_BYTES - 1;
    offset & !WITHIN..to.saturating_add(WITHIN) & !WITHIN
}

#[cfg(test)]
mod tests {
    use super::line_range;

    #[test]
    fn a_flush_covers_every_line_it_touches_and_no_other() {
        assert_eq!(line_range(0, 1, 4096), 0..64);
        assert_eq!(line_range(63, 2, 4096), 0..128);
        assert_eq!(line_range(64, 64, 4096), 64..128);
        assert_eq!(line_range(100, 0, 4096), 0..0);
        assert_eq!(line_range(4090, 100, 4096), 4032..4096);
        assert_eq!(line_range(usize::MAX, 2, 4096), 0..0);
    }
}
