//! A medium that takes longer to persist than it does.

use std::{
    io,
    ptr::NonNull,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Domain, Medium};

/// Another medium, each of whose fences is followed by a busy wait.
pub(crate) struct Slowed {
    medium: Arc<dyn Medium>,
    delay: Duration,
}

impl Slowed {
    /// `medium`, with a wait of `delay` behind each fence; without one, the medium itself.
    pub(crate) fn over(medium: Arc<dyn Medium>, delay: Duration) -> Arc<dyn Medium> {
        if delay.is_zero() { medium } else { Arc::new(Self { medium, delay }) }
    }
}

// SAFETY: all memory is the other medium's, which lives as long as this one, and whose contract is the same.
unsafe impl Medium for Slowed {
    fn base(&self) -> NonNull<u8> {
        self.medium.base()
    }

    fn len(&self) -> usize {
        self.medium.len()
    }

    unsafe fn store(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe { self.medium.store(offset, bytes) }
    }

    unsafe fn dma(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe { self.medium.dma(offset, bytes) }
    }

    fn flush(&self, offset: usize, len: usize) {
        self.medium.flush(offset, len);
    }

    fn fence(&self) -> io::Result<()> {
        self.medium.fence()?;
        let fenced = Instant::now();
        while fenced.elapsed() < self.delay {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn domain(&self) -> Domain {
        self.medium.domain()
    }

    fn fork(self: Arc<Self>) -> Arc<dyn Medium> {
        Self::over(self.medium.clone().fork(), self.delay)
    }
}
