//! A file in the page cache: the kernel holds the pages, and a fence has it write them.

use std::{fs::File, io, ops::Range, os::fd::AsRawFd, ptr::NonNull, sync::OnceLock};

use super::{Domain, Mapping, behind::Behind, queue::Ask};

/// The unit in which pages are written back; larger ones are multiples of it.
const PAGE_BYTES: usize = 4096;
/// Pages in between that are clean are not written: a range more costs more than to pass them.
const GAP_BYTES: usize = 64 << 10;

/// A mapping of a file whose pages are synced.
pub(crate) struct Paged {
    mapping: Mapping,
    file: File,
    failure: OnceLock<String>,
}

impl Paged {
    /// `mapping` is of `file`, from its first byte on.
    pub(crate) fn new(mapping: Mapping, file: File) -> Self {
        Self { mapping, file, failure: OnceLock::new() }
    }
}

impl Behind for Paged {
    fn memory(&self) -> (NonNull<u8>, usize) {
        self.mapping.range()
    }

    fn open(&self) -> io::Result<File> {
        again(&self.file, 0)
    }

    fn block_bytes(&self) -> usize {
        PAGE_BYTES
    }

    fn gap_bytes(&self) -> usize {
        GAP_BYTES
    }

    fn will_read(&self, offset: usize, len: usize) {
        // It is a hint: where it is not taken, pages come when they are read.
        // SAFETY: it takes numbers only.
        unsafe {
            libc::posix_fadvise(self.file.as_raw_fd(), offset as i64, len as i64, libc::POSIX_FADV_WILLNEED)
        };
    }

    fn asks(&self, ranges: &[Range<usize>], asks: &mut Vec<Ask>) {
        // Each sync has the device empty its cache, so there is one, after the others are with the device.
        asks.extend(parts(ranges).map(|(at, len)| Ask::WriteBack { at, len }));
        if let Some(last) = asks.last_mut()
            && let Ask::WriteBack { at, len } = *last
        {
            *last = Ask::Sync { at, len };
        }
    }

    fn block(&self, file: &File, ranges: &[Range<usize>]) -> io::Result<()> {
        const WHOLE: u32 = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        for (at, len) in parts(ranges) {
            // SAFETY: it takes numbers only.
            let outcome =
                unsafe { libc::sync_file_range(file.as_raw_fd(), at as i64, i64::from(len), WHOLE) };
            if outcome != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        file.sync_data()
    }

    fn domain(&self) -> Domain {
        Domain::Msync
    }

    fn failure(&self) -> &OnceLock<String> {
        &self.failure
    }
}

/// Ranges in pieces whose length the kernel takes.
pub(super) fn parts(ranges: &[Range<usize>]) -> impl Iterator<Item = (u64, u32)> {
    const PART_BYTES: usize = 1 << 30;
    ranges.iter().flat_map(|range| {
        let starts = range.clone().step_by(PART_BYTES);
        starts.map(|from| (from as u64, (range.end - from).min(PART_BYTES) as u32))
    })
}

/// Opens a file that is open for reading and writing, for that, with an offset and an error of its own.
pub(crate) fn again(file: &File, flags: i32) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    // Of a file that is open for reading only, nothing would be written back.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(true).custom_flags(flags).open(path)
}
