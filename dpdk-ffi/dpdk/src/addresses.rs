//! How devices address memory: as this process does, by the IOMMU's favour, or by what lies where physically.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use dpdk_sys as sys;

/// The page size given to DPDK, and that of the kernel's page tables.
pub(crate) const PAGE_BYTES: usize = 4096;

/// A piece of memory whose I/O addresses follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: usize,
    pub(crate) len_bytes: usize,
    pub(crate) iova: u64,
}

/// The I/O addresses of a range of this process's memory, for good.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// In order, without gaps, at least one.
    runs: &'static [Run],
}

/// Why memory has no lasting physical addresses.
#[derive(Debug, thiserror::Error)]
pub enum PhysicalError {
    /// The pages cannot be had all at once.
    #[error(
        "its pages cannot be brought in: {0}; is the file as long as its mapping, and not full of holes?"
    )]
    Populate(io::Error),
    /// The kernel does not say what is where.
    #[error("the kernel's page map cannot be read: {0}")]
    PageMap(io::Error),
    /// It says so to privileged processes only.
    #[error("the kernel hides physical addresses from this process; it needs CAP_SYS_ADMIN (run it as root)")]
    Hidden,
    /// A page that is not in memory.
    #[error(
        "the page at {0:#x} is not in memory; physical addresses are for device-DAX, files on fsdax and hugepages"
    )]
    Absent(usize),
}

/// Whether EAL runs with physical addresses, and devices therefore with no protection.
pub(crate) fn are_physical() -> bool {
    // SAFETY: reads EAL's configuration.
    unsafe { sys::rte_eal_iova_mode() == sys::rte_iova_mode_RTE_IOVA_PA }
}

impl Addresses {
    /// Devices use the same addresses as this process.
    pub(crate) fn virtual_ones(base: usize, len_bytes: usize) -> Self {
        Self::leak(vec![Run { start: base, len_bytes, iova: base as u64 }])
    }

    /// Looks up every page, after having brought it in for writing: a page of a file that was never written
    /// would otherwise be the kernel's page of zeros.
    pub(crate) fn physical_ones(base: usize, len_bytes: usize) -> Result<Self, PhysicalError> {
        // SAFETY: populating changes nothing that the process can see.
        let result = unsafe { libc::madvise(base as *mut _, len_bytes, libc::MADV_POPULATE_WRITE) };
        if result != 0 {
            return Err(PhysicalError::Populate(io::Error::last_os_error()));
        }
        let map = File::open("/proc/self/pagemap").map_err(PhysicalError::PageMap)?;
        let mut entries = vec![0; len_bytes / PAGE_BYTES * size_of::<u64>()];
        let offset = (base / PAGE_BYTES * size_of::<u64>()) as u64;
        map.read_exact_at(&mut entries, offset).map_err(PhysicalError::PageMap)?;
        let entries = entries.as_chunks().0.iter().map(|entry| u64::from_ne_bytes(*entry));
        Ok(Self::leak(join(base, entries)?))
    }

    /// The I/O address of `len` bytes at `address`; none if they do not follow one another, or lie elsewhere.
    #[inline]
    pub(crate) fn of(&self, address: usize, len: usize) -> Option<u64> {
        let run = match self.runs {
            // With virtual addresses, whatever the length.
            [run] => run,
            runs => &runs[runs.partition_point(|run| run.start <= address).checked_sub(1)?],
        };
        let offset = address.checked_sub(run.start)?;
        let is_inside = offset.checked_add(len).is_some_and(|end| end <= run.len_bytes);
        is_inside.then(|| run.iova + offset as u64)
    }

    pub(crate) fn runs(&self) -> &'static [Run] {
        self.runs
    }

    /// The I/O address of each page, as DPDK wants to be told.
    pub(crate) fn pages(&self) -> Vec<u64> {
        let pages = |run: &Run| {
            let iova = run.iova;
            (0..run.len_bytes / PAGE_BYTES).map(move |page| iova + (page * PAGE_BYTES) as u64)
        };
        self.runs.iter().flat_map(pages).collect()
    }

    fn leak(runs: Vec<Run>) -> Self {
        Self { runs: runs.leak() }
    }
}

/// Makes runs of the kernel's entries for the pages from `base` on.
fn join(base: usize, entries: impl Iterator<Item = u64>) -> Result<Vec<Run>, PhysicalError> {
    // Documentation/admin-guide/mm/pagemap.rst: bit 63 is set for a page in memory, bits 0 to 54 are its number.
    const PRESENT: u64 = 1 << 63;
    const NUMBER: u64 = (1 << 55) - 1;
    let mut runs: Vec<Run> = Vec::new();
    for (index, entry) in entries.enumerate() {
        let start = base + index * PAGE_BYTES;
        if entry & PRESENT == 0 {
            return Err(PhysicalError::Absent(start));
        }
        let iova = match entry & NUMBER {
            0 => return Err(PhysicalError::Hidden),
            number => number * PAGE_BYTES as u64,
        };
        match runs.last_mut() {
            Some(run) if run.iova + run.len_bytes as u64 == iova => run.len_bytes += PAGE_BYTES,
            _ => runs.push(Run { start, len_bytes: PAGE_BYTES, iova }),
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: usize = 0x7000_0000;
    const PRESENT: u64 = 1 << 63;

    fn physical(pages: &[u64]) -> Addresses {
        Addresses::leak(join(BASE, pages.iter().map(|page| page | PRESENT)).unwrap())
    }

    #[test]
    fn pages_that_follow_one_another_are_one_run() {
        let addresses = physical(&[100, 101, 102, 50, 51, 52, 200]);
        let lengths: Vec<_> = addresses.runs().iter().map(|run| run.len_bytes / PAGE_BYTES).collect();
        assert_eq!(lengths, [3, 3, 1]);
        assert_eq!(addresses.pages(), [100, 101, 102, 50, 51, 52, 200].map(|page| page * PAGE_BYTES as u64));
    }

    #[test]
    fn each_byte_has_the_address_of_its_page() {
        let pages = [100, 101, 50, 49, 200];
        let addresses = physical(&pages);
        for (index, page) in pages.iter().enumerate() {
            for offset in [0, 1, 4095] {
                let address = BASE + index * PAGE_BYTES + offset;
                assert_eq!(addresses.of(address, 1), Some(page * PAGE_BYTES as u64 + offset as u64));
            }
        }
    }

    #[test]
    fn what_straddles_two_runs_has_no_address() {
        let addresses = physical(&[100, 101, 50]);
        let seam = BASE + 2 * PAGE_BYTES;
        assert!(addresses.of(seam - 10, 10).is_some());
        assert_eq!(addresses.of(seam - 10, 11), None);
        assert!(addresses.of(BASE + PAGE_BYTES - 10, 20).is_some(), "two pages of one run");
    }

    #[test]
    fn what_lies_elsewhere_has_no_address() {
        let addresses = Addresses::virtual_ones(BASE, 3 * PAGE_BYTES);
        assert_eq!(addresses.of(BASE, 3 * PAGE_BYTES), Some(BASE as u64));
        for (address, len) in [
            (BASE - 1, 1),
            (BASE, 3 * PAGE_BYTES + 1),
            (BASE + 3 * PAGE_BYTES, 1),
            (BASE + 1, usize::MAX),
            (0, 1),
        ] {
            assert_eq!(addresses.of(address, len), None, "{address:#x}+{len:#x}");
        }
    }

    #[test]
    fn hidden_and_absent_pages_are_told_apart() {
        assert!(matches!(join(BASE, [PRESENT].into_iter()), Err(PhysicalError::Hidden)));
        let error = join(BASE, [PRESENT | 7, 0].into_iter()).unwrap_err();
        assert!(matches!(error, PhysicalError::Absent(page) if page == BASE + PAGE_BYTES));
    }

    #[test]
    fn memory_that_is_there_is_found_or_hidden() {
        let memory = memmap2::MmapMut::map_anon(4 * PAGE_BYTES).unwrap();
        match Addresses::physical_ones(memory.as_ptr() as usize, memory.len()) {
            Ok(addresses) => assert_eq!(addresses.pages().len(), 4),
            Err(error) => assert!(matches!(error, PhysicalError::Hidden), "{error}"),
        }
    }
}
