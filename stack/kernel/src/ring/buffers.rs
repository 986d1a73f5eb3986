//! What the kernel receives into.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use memmap2::{MmapMut, MmapOptions};

/// The ring of buffers that the kernel receives into.
pub(super) struct ProvidedBuffers {
    memory: MmapMut,
    pub(super) entries: u16,
    tail: u16,
    /// What the kernel holds, by buffer id.
    held: Vec<Option<&'static mut [u8]>>,
    /// Ids without a buffer.
    pub(super) empty: Vec<u16>,
}

impl ProvidedBuffers {
    pub(super) fn new(entries: u16) -> io::Result<Self> {
        let len = usize::from(entries) * size_of::<BufRingEntry>();
        let memory = MmapOptions::new().len(len).map_anon()?;
        let held = (0..entries).map(|_| None).collect();
        Ok(Self { memory, entries, tail: 0, held, empty: (0..entries).rev().collect() })
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.as_ptr().expose_provenance() as u64
    }

    pub(super) fn provide(&mut self, buffer: &'static mut [u8]) -> Result<(), &'static mut [u8]> {
        let Some(id) = self.empty.pop() else { return Err(buffer) };
        let place = usize::from(self.tail % self.entries);
        // SAFETY: the mapping is zeroed memory of `entries` entries, aligned to a page, and `place` is inside. The
        // kernel does not read the entry before `publish`.
        let entry = unsafe { &mut *self.memory.as_mut_ptr().cast::<BufRingEntry>().add(place) };
        entry.set_addr(buffer.as_mut_ptr().expose_provenance() as u64);
        entry.set_len(buffer.len() as u32);
        entry.set_bid(id);
        self.held[usize::from(id)] = Some(buffer);
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    pub(super) fn publish(&mut self) {
        // SAFETY: the first entry lies at the mapping's start; the tail inside it is aligned for 16 bits, and
        // only this thread and the kernel, which reads it atomically, access it.
        let tail = unsafe {
            let tail = BufRingEntry::tail(self.memory.as_mut_ptr().cast());
            AtomicU16::from_ptr(tail.cast_mut())
        };
        tail.store(self.tail, Ordering::Release);
    }

    /// A buffer that the kernel has given back.
    pub(super) fn take(&mut self, id: u16) -> Option<&'static mut [u8]> {
        let buffer = self.held.get_mut(usize::from(id))?.take()?;
        self.empty.push(id);
        Some(buffer)
    }
}
