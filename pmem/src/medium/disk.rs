//! A disk: all of the store in memory, and what is flushed written past the page cache.

use std::{
    cell::RefCell,
    fmt,
    fs::File,
    io,
    ops::Range,
    ptr::NonNull,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Domain, Mapping,
    behind::Behind,
    paged::{again, parts},
    queue::{Ask, Queue},
};

/// The unit of reading and writing: no device of today has larger blocks, and most have these.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Writes that are made durable one by one where the device does that better. Each may have it empty its cache.
const SYNCED_WRITES: usize = 4;
/// How often each way is tried.
const TRIES: usize = 5;

/// How a disk is had to keep what it was given, and what was measured when the store was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskSync {
    /// Whether short commits are made durable write by write (`RWF_DSYNC`), and not by one `fdatasync` behind them.
    pub is_by_write: bool,
    /// What two blocks took that way, in the median; none if the file system does not know it.
    pub by_write_us: Option<u32>,
    /// What two blocks and an `fdatasync` took.
    pub by_sync_us: u32,
}

impl fmt::Display for DiskSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chosen = if self.is_by_write { "RWF_DSYNC" } else { "fdatasync" };
        write!(f, "{chosen}; measured: fdatasync {} us", self.by_sync_us)?;
        match self.by_write_us {
            Some(us) => write!(f, ", RWF_DSYNC {us} us"),
            None => f.write_str(", RWF_DSYNC refused"),
        }
    }
}

/// A store's memory and the file or device that it is loaded from and written to.
pub(crate) struct Disk {
    mapping: Mapping,
    /// Open for direct access.
    file: File,
    sync: DiskSync,
    /// Whoever writes blocks that hold headers of several shards.
    shared_blocks: Mutex<()>,
    failure: OnceLock<String>,
}

impl Disk {
    /// `mapping` holds what `file` does, which is open for direct access. Finds out how the device keeps writes best, for
    /// which its first block and its last are written again, as they are.
    pub(crate) fn new(mapping: Mapping, file: File) -> io::Result<Self> {
        let sync = measure(&mapping, &file)?;
        Ok(Self { mapping, file, sync, shared_blocks: Mutex::new(()), failure: OnceLock::new() })
    }
}

impl Behind for Disk {
    fn memory(&self) -> (NonNull<u8>, usize) {
        self.mapping.range()
    }

    fn open(&self) -> io::Result<File> {
        again(&self.file, libc::O_DIRECT)
    }

    fn block_bytes(&self) -> usize {
        BLOCK_BYTES
    }

    /// What lies between may be another shard's: it would be written as it was a moment ago.
    fn gap_bytes(&self) -> usize {
        0
    }

    fn alone(&self) -> Option<MutexGuard<'_, ()>> {
        Some(self.shared_blocks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn asks(&self, ranges: &[Range<usize>], asks: &mut Vec<Ask>) {
        asks.extend(writes(&self.mapping, ranges, false));
        if self.sync.is_by_write && asks.len() <= SYNCED_WRITES {
            for ask in asks {
                if let Ask::Write { is_synced, .. } = ask {
                    *is_synced = true;
                }
            }
        } else {
            asks.push(WHOLE);
        }
    }

    fn block(&self, _: &File, _: &[Range<usize>]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring is not to be had any more"))
    }

    fn domain(&self) -> Domain {
        Domain::Disk(self.sync)
    }

    fn failure(&self) -> &OnceLock<String> {
        &self.failure
    }
}

/// A sync of all that was written.
const WHOLE: Ask = Ask::Sync { at: 0, len: 0 };

/// The writes of ranges of whole blocks.
fn writes(mapping: &Mapping, ranges: &[Range<usize>], is_synced: bool) -> impl Iterator<Item = Ask> {
    let base = mapping.range().0.as_ptr();
    parts(ranges).map(move |(at, len)| Ask::Write {
        from: base.wrapping_add(at as usize).cast_const(),
        len,
        at,
        is_synced,
    })
}

fn measure(mapping: &Mapping, file: &File) -> io::Result<DiskSync> {
    let queue = Queue::new(again(file, libc::O_DIRECT)?)?;
    let last = mapping.range().1 / BLOCK_BYTES * BLOCK_BYTES;
    let blocks = [0..BLOCK_BYTES, last - BLOCK_BYTES..last];
    let queue = RefCell::new(queue);
    let by_write = || timed(&mut queue.borrow_mut(), |asks| asks.extend(writes(mapping, &blocks, true)));
    let by_sync = || {
        timed(&mut queue.borrow_mut(), |asks| {
            asks.extend(writes(mapping, &blocks, false));
            asks.push(WHOLE);
        })
    };
    // Before anything is timed: the first write may find the device asleep.
    by_sync()?;
    let (mut sync_times, mut write_times) = ([Duration::ZERO; TRIES], [Duration::ZERO; TRIES]);
    let mut is_known = true;
    // In turn, as what else the device has to do comes and goes.
    for (sync_time, write_time) in sync_times.iter_mut().zip(&mut write_times) {
        *sync_time = by_sync()?;
        if is_known {
            match by_write() {
                Ok(took) => *write_time = took,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                    is_known = false;
                }
                Err(error) => return Err(error),
            }
        }
    }
    let by_sync_us = median_us(&mut sync_times);
    let by_write_us = is_known.then(|| median_us(&mut write_times));
    Ok(DiskSync { is_by_write: by_write_us.is_some_and(|us| us < by_sync_us), by_write_us, by_sync_us })
}

fn timed(queue: &mut Queue, fill: impl FnOnce(&mut Vec<Ask>)) -> io::Result<Duration> {
    let begin = Instant::now();
    // SAFETY: the mapping outlives the queue, which is waited for.
    unsafe { queue.start(fill) }?;
    queue.wait()?;
    Ok(begin.elapsed())
}

fn median_us(times: &mut [Duration; TRIES]) -> u32 {
    times.sort_unstable();
    times[TRIES / 2].as_micros().try_into().unwrap_or(u32::MAX)
}
