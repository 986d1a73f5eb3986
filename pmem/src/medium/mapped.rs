//! Real memory: a mapping of a device, a file or nothing at all.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("flushing cache lines is written for x86_64 only");

use std::{
    arch::asm,
    io,
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use super::{Domain, FlushInstruction, LINE_BYTES, Medium, line_range};

/// Memory mapped from a file or device, unmapped when the last user is gone. Holds the file, and with it its lock.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// What keeps the range mapped: dropped after the last access.
    _backing: Box<dyn Send + Sync>,
}

// SAFETY: the range is plain memory without thread affinity; access is governed by `Medium`'s contracts.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Wraps a range that `backing` keeps mapped.
    ///
    /// # Safety
    /// `base..base + len` stays mapped for reads and writes until `backing` is dropped.
    pub(crate) unsafe fn new(base: NonNull<u8>, len: usize, backing: Box<dyn Send + Sync>) -> Self {
        Self { base, len, _backing: backing }
    }

    /// Where it is mapped, and how long it is.
    pub(super) fn range(&self) -> (NonNull<u8>, usize) {
        (self.base, self.len)
    }
}

/// A [`Mapping`] that instructions make durable.
pub(crate) struct Mapped {
    mapping: Arc<Mapping>,
    domain: Domain,
}

impl Mapped {
    pub(crate) fn new(mapping: Arc<Mapping>, domain: Domain) -> Self {
        Self { mapping, domain }
    }
}

// SAFETY: `Mapping` keeps the range mapped at one address, and every method stays within it.
unsafe impl Medium for Mapped {
    fn base(&self) -> NonNull<u8> {
        self.mapping.base
    }

    fn len(&self) -> usize {
        self.mapping.len
    }

    unsafe fn store(&self, offset: usize, bytes: &[u8]) {
        debug_assert!(offset + bytes.len() <= self.mapping.len);
        // SAFETY: the caller promises that the range is inside and that nobody else uses it.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.mapping.base.as_ptr().add(offset), bytes.len())
        }
    }

    unsafe fn dma(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: the same contract.
        unsafe { self.store(offset, bytes) }
    }

    fn flush(&self, offset: usize, len: usize) {
        let lines = line_range(offset, len, self.mapping.len);
        if lines.is_empty() {
            return;
        }
        match self.domain {
            Domain::CacheLines(instruction) | Domain::Volatile(instruction) => {
                let first = self.mapping.base.as_ptr().wrapping_add(lines.start);
                flush_lines(instruction, first, lines.len() / LINE_BYTES);
            }
            Domain::FenceOnly | Domain::Msync | Domain::Disk(_) | Domain::Model => {}
        }
    }

    fn fence(&self) -> io::Result<()> {
        store_fence();
        Ok(())
    }

    fn domain(&self) -> Domain {
        self.domain
    }

    fn fork(self: Arc<Self>) -> Arc<dyn Medium> {
        Arc::new(Self::new(self.mapping.clone(), self.domain))
    }
}

/// The best flush instruction of this CPU.
pub(crate) fn best_flush_instruction() -> FlushInstruction {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    // Intel SDM volume 2, CPUID: leaf 7, EBX bit 24 is CLWB, bit 23 is CLFLUSHOPT. CLFLUSH came with SSE2, which
    // every x86_64 CPU has.
    let features = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
    if features & 1 << 24 != 0 {
        FlushInstruction::Clwb
    } else if features & 1 << 23 != 0 {
        FlushInstruction::Clflushopt
    } else {
        FlushInstruction::Clflush
    }
}

/// Writes `lines` lines back, from that at `first` on. All of them are mapped.
#[inline]
fn flush_lines(instruction: FlushInstruction, first: *mut u8, lines: usize) {
    macro_rules! flush_by {
        ($name:literal) => {
            for_lines(
                first,
                lines,
                // SAFETY: the lines are mapped, and writing one back changes no memory; CPUID showed the instruction.
                |address| unsafe {
                    asm!(
                        concat!($name, " [{0}]"),
                        concat!($name, " [{0} + 64]"),
                        concat!($name, " [{0} + 128]"),
                        concat!($name, " [{0} + 192]"),
                        in(reg) address,
                        options(nostack, preserves_flags)
                    );
                },
                // SAFETY: as above.
                |address| unsafe {
                    asm!(concat!($name, " [{0}]"), in(reg) address, options(nostack, preserves_flags));
                },
            )
        };
    }
    match instruction {
        FlushInstruction::Clwb => flush_by!("clwb"),
        FlushInstruction::Clflushopt => flush_by!("clflushopt"),
        FlushInstruction::Clflush => flush_by!("clflush"),
    }
}

const _: () = assert!(LINE_BYTES == 64);

/// Goes through lines, four at a time and then one: else counting them takes more instructions than flushing them.
#[inline]
fn for_lines(first: *mut u8, lines: usize, four: impl Fn(*mut u8), one: impl Fn(*mut u8)) {
    let (mut address, mut left) = (first, lines);
    while left >= 4 {
        four(address);
        address = address.wrapping_add(4 * LINE_BYTES);
        left -= 4;
    }
    while left > 0 {
        one(address);
        address = address.wrapping_add(LINE_BYTES);
        left -= 1;
    }
}

fn store_fence() {
    // A `Release` fence alone orders stores for other CPUs and is no instruction on x86_64: it says nothing
    // about flushes.
    // SAFETY: every x86_64 CPU has SSE, which is all that the instruction needs.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    fence(Ordering::Release);
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn each_line_of_a_range_is_flushed_once() {
        for lines in 0..50 {
            let seen = RefCell::new(Vec::new());
            let first = LINE_BYTES * 7;
            let note = |address: *mut u8, count| {
                (0..count).for_each(|line| seen.borrow_mut().push(address as usize + line * LINE_BYTES));
            };
            for_lines(ptr::without_provenance_mut(first), lines, |at| note(at, 4), |at| note(at, 1));
            let expected: Vec<_> = (0..lines).map(|line| first + line * LINE_BYTES).collect();
            assert_eq!(seen.into_inner(), expected);
        }
    }
}
