//! Buffers on loan to a device, as the whole and only reference to their bytes.

use std::slice;

use super::{Arena, Buffer};

impl Buffer {
    /// Lends the whole buffer to a device: nobody else can have it before [`Arena::take_back`]. The medium
    /// stays mapped, and locked, until the process ends, since nobody knows when a device stops writing.
    ///
    /// # Errors
    /// The buffer itself, if there are other references to it.
    pub fn lend(self) -> Result<&'static mut [u8], Self> {
        let arena = self.arena().clone();
        let id = self.into_device()?;
        arena.stay_mapped();
        // SAFETY: the buffer lies inside the medium, which stays mapped for good; its only reference was given up
        // for this one, and `take_back` asks for it before there is another.
        Ok(unsafe { slice::from_raw_parts_mut(arena.address(id), arena.buffer_bytes()) })
    }
}

impl Arena {
    /// Lends a free buffer that `suits` the device; none if there is none. Free buffers that do not are put `aside`,
    /// as they would be the first to turn up again.
    pub fn lend_one(
        &self,
        suits: impl Fn(&[u8]) -> bool,
        aside: &mut Vec<&'static mut [u8]>,
    ) -> Option<&'static mut [u8]> {
        loop {
            let buffer = self.take()?.lend().ok()?;
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
    pub fn take_back(&self, bytes: &'static mut [u8]) -> Result<Buffer, &'static mut [u8]> {
        let whole =
            |id: &_| self.address(*id).cast_const() == bytes.as_ptr() && bytes.len() == self.buffer_bytes();
        let buffer = self.id_at(bytes.as_ptr()).filter(whole).and_then(|id| self.reclaim(id));
        buffer.ok_or(bytes)
    }
}
