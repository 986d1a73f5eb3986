//! A medium around another one, which does more than the other at a flush or a fence.

use std::{io, os::fd::OwnedFd, ptr::NonNull, sync::Arc};

use super::{Domain, Medium, Spent, Written};

/// What is done at a flush and at a fence.
pub(crate) trait Layer: Send + Sync + Sized + 'static {
    /// Flushes a range of `medium`.
    fn flush(&self, medium: &dyn Medium, offset: usize, len: usize) {
        medium.flush(offset, len);
    }

    /// Fences `medium`.
    fn fence(&self, medium: &dyn Medium) -> io::Result<()>;

    /// Starts a fence of `medium`; true if it is done.
    fn start_fence(&self, medium: &dyn Medium) -> io::Result<bool> {
        self.fence(medium).map(|()| true)
    }

    /// Whether the fence that was started is done.
    fn is_fenced(&self, medium: &dyn Medium) -> io::Result<bool> {
        medium.is_fenced()
    }

    /// Whether fences are started, and not waited for.
    fn fences_later(&self, medium: &dyn Medium) -> bool {
        let _ = medium;
        false
    }

    /// The same for another thread's handle.
    fn fork(&self) -> Self;

    /// What persisting has cost.
    fn spent(&self, medium: &dyn Medium) -> Spent {
        medium.spent()
    }

    /// Puts this around a medium.
    fn over(self, medium: Arc<dyn Medium>) -> Arc<dyn Medium> {
        Arc::new(Layered { medium, layer: self })
    }
}

struct Layered<L> {
    medium: Arc<dyn Medium>,
    layer: L,
}

// SAFETY: all memory is the other medium's, which lives as long as this one, and whose contract is the same.
unsafe impl<L: Layer> Medium for Layered<L> {
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
        self.layer.flush(&*self.medium, offset, len);
    }

    fn fence(&self) -> io::Result<()> {
        self.layer.fence(&*self.medium)
    }

    fn start_fence(&self) -> io::Result<bool> {
        self.layer.start_fence(&*self.medium)
    }

    fn is_fenced(&self) -> io::Result<bool> {
        self.layer.is_fenced(&*self.medium)
    }

    fn fences_later(&self) -> bool {
        self.layer.fences_later(&*self.medium)
    }

    fn ring_bell(&self, bell: Arc<OwnedFd>) {
        self.medium.ring_bell(bell);
    }

    fn will_read(&self, offset: usize, len: usize) {
        self.medium.will_read(offset, len);
    }

    fn domain(&self) -> Domain {
        self.medium.domain()
    }

    fn fork(self: Arc<Self>) -> Arc<dyn Medium> {
        self.layer.fork().over(self.medium.clone().fork())
    }

    fn spent(&self) -> Spent {
        self.layer.spent(&*self.medium)
    }

    fn written(&self) -> Written {
        self.medium.written()
    }
}
