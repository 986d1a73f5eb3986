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

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _, pipe},
        os::fd::{AsRawFd as _, OwnedFd},
        sync::{
            Arc,
            mpsc::{Receiver, channel},
        },
        thread,
    };

    use super::*;
    use crate::medium::{Handle, Medium as _};
    use memmap2::{MmapOptions, MmapRaw};

    /// A disk on which each handle's writes go through a pipe of its own: a full one holds a write up, and what has arrived
    /// can be seen.
    struct Piped {
        disk: Disk,
        pipes: Mutex<Vec<File>>,
    }

    impl Behind for Piped {
        fn memory(&self) -> (NonNull<u8>, usize) {
            self.disk.memory()
        }

        fn open(&self) -> io::Result<File> {
            Ok(self.pipes.lock().unwrap().pop().expect("there are as many pipes as handles"))
        }

        fn block_bytes(&self) -> usize {
            self.disk.block_bytes()
        }

        fn gap_bytes(&self) -> usize {
            self.disk.gap_bytes()
        }

        fn alone(&self) -> Option<MutexGuard<'_, ()>> {
            self.disk.alone()
        }

        fn asks(&self, ranges: &[Range<usize>], asks: &mut Vec<Ask>) {
            self.disk.asks(ranges, asks);
        }

        fn block(&self, file: &File, ranges: &[Range<usize>]) -> io::Result<()> {
            self.disk.block(file, ranges)
        }

        fn domain(&self) -> Domain {
            self.disk.domain()
        }

        fn failure(&self) -> &OnceLock<String> {
            self.disk.failure()
        }
    }

    /// Blocks as they come out of a pipe.
    fn blocks_of(mut pipe: File) -> Receiver<Vec<u8>> {
        let (told, blocks) = channel();
        thread::spawn(move || {
            let mut block = vec![0; BLOCK_BYTES];
            while pipe.read_exact(&mut block).is_ok() && told.send(block.clone()).is_ok() {}
        });
        blocks
    }

    /// A disk of one block, and two handles of it with what comes out of their pipes; the first one's pipe is full.
    fn piped() -> (Arc<Piped>, [File; 2]) {
        let map = MmapRaw::from(MmapOptions::new().len(BLOCK_BYTES).map_anon().unwrap());
        let base = NonNull::new(map.as_mut_ptr()).unwrap();
        // SAFETY: the range stays mapped until the map is dropped.
        let mapping = unsafe { Mapping::new(base, BLOCK_BYTES, Box::new(map)) };
        let [(first_out, mut first_in), (second_out, second_in)] = [(); 2].map(|()| {
            let (out, into) = pipe().unwrap();
            (File::from(OwnedFd::from(out)), File::from(OwnedFd::from(into)))
        });
        // SAFETY: it takes numbers only.
        let resized = unsafe { libc::fcntl(first_in.as_raw_fd(), libc::F_SETPIPE_SZ, BLOCK_BYTES) };
        assert_eq!(resized, BLOCK_BYTES as i32);
        first_in.write_all(&[0xff; BLOCK_BYTES]).unwrap();
        let sync = DiskSync { is_by_write: true, by_write_us: Some(1), by_sync_us: 1 };
        let file = first_in.try_clone().unwrap();
        let disk = Disk { mapping, file, sync, shared_blocks: Mutex::new(()), failure: OnceLock::new() };
        // The last is taken first.
        (Arc::new(Piped { disk, pipes: Mutex::new(vec![second_in, first_in]) }), [first_out, second_out])
    }

    #[test]
    fn a_block_that_two_shards_share_is_written_by_one_of_them_at_a_time() {
        let (behind, [first_out, second_out]) = piped();
        let (first, second) = (Handle::new(behind.clone()), Handle::new(behind));
        assert!(first.fences_later() && second.fences_later(), "there is io_uring");
        let second_blocks = blocks_of(second_out);
        thread::scope(|scope| {
            // SAFETY: nobody else touches these bytes meanwhile.
            unsafe { first.store(0, b"one") };
            first.flush(0, 3);
            let fenced = scope.spawn(|| first.fence().unwrap());
            // Its write is with the device, which has read the block or has not.
            while first.written().requests == 0 {
                thread::yield_now();
            }
            // SAFETY: as above.
            unsafe { second.store(256, b"two") };
            second.flush(256, 3);
            let second_fenced = scope.spawn(|| second.fence().unwrap());
            let early = second_blocks.recv_timeout(Duration::from_millis(200));
            assert!(early.is_err(), "two writes of a block are under way: the older may come last");
            assert!(!fenced.is_finished() && !second_fenced.is_finished());
            let first_blocks = blocks_of(first_out);
            assert_eq!(first_blocks.recv().unwrap(), [0xff; BLOCK_BYTES], "what the pipe was full of");
            assert_eq!(first_blocks.recv().unwrap()[..3], *b"one");
            let last = second_blocks.recv().unwrap();
            assert_eq!((&last[..3], &last[256..259]), (&b"one"[..], &b"two"[..]));
        });
    }
}
