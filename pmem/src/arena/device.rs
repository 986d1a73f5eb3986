//! Buffers on loan to a device, as the whole and only reference to their bytes.

use std::slice;

use super::{Arena, Buffer, state::State};
use crate::format::entry::BufferId;

impl Buffer {
    /// Lends the whole buffer to a device: nobody else can have it before [`Arena::take_back`]. The medium
    /// stays mapped, and locked, until the process ends, since nobody knows when a device stops writing.
    ///
    /// # Errors
    /// The buffer itself, if there are other references to it.
    #[inline]
    pub fn lend(self) -> Result<&'static mut [u8], Self> {
        let (arena, id) = self.into_device()?;
        // SAFETY: the buffer was just handed out.
        Ok(unsafe { arena.on_loan(id) })
    }
}

impl Arena {
    /// Lends a free buffer that `suits` the device; none if there is none. Free buffers that do not are put `aside`,
    /// as they would be the first to turn up again.
    #[inline]
    pub fn lend_one(
        &self,
        suits: impl Fn(&[u8]) -> bool,
        aside: &mut Vec<&'static mut [u8]>,
    ) -> Option<&'static mut [u8]> {
        loop {
            let id = self.0.take_as(State::WITH_DEVICE)?;
            // SAFETY: the buffer was free, and was just handed out.
            let buffer = unsafe { self.on_loan(id) };
            if suits(buffer) {
                return Some(buffer);
            }
            aside.push(buffer);
        }
    }

    /// Takes back a whole buffer that [`Buffer::lend`] lent.
    ///
    /// # Errors
    /// The bytes, if they are no whole buffer of this arena.
    #[inline]
    pub fn take_back(&self, bytes: &'static mut [u8]) -> Result<Buffer, &'static mut [u8]> {
        let whole =
            |id: &_| self.address(*id).cast_const() == bytes.as_ptr() && bytes.len() == self.buffer_bytes();
        let buffer = self.id_at(bytes.as_ptr()).filter(whole).and_then(|id| self.reclaim(id));
        buffer.ok_or(bytes)
    }

    /// The bytes of a buffer that is with the device. The medium stays mapped for good.
    ///
    /// # Safety
    /// The buffer was handed out, and its bytes have not been given to anybody since.
    #[inline]
    unsafe fn on_loan(&self, id: BufferId) -> &'static mut [u8] {
        self.stay_mapped();
        // SAFETY: the buffer lies inside the medium, which stays mapped for good. Nobody else has it, as the caller
        // promises, and `take_back` asks for this reference before there is another.
        unsafe { slice::from_raw_parts_mut(self.address(id), self.buffer_bytes()) }
    }
}
