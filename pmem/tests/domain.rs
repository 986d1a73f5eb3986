//! What is counted as flushed, by what the medium needs.

#![allow(unsafe_code, reason = "a medium of another domain is a medium")]

mod common;

use std::{io, ptr::NonNull, sync::Arc};

use common::{payload, store, tiny};
use pmem::{Counters, Domain, LineModel, Medium, Region};

/// The line model's memory under another name.
struct Named(Arc<LineModel>, Domain);

// SAFETY: the memory is the line model's, and so is everything that touches it.
unsafe impl Medium for Named {
    fn base(&self) -> NonNull<u8> {
        self.0.base()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    unsafe fn store(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe { self.0.store(offset, bytes) }
    }

    unsafe fn dma(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe { self.0.dma(offset, bytes) }
    }

    fn flush(&self, offset: usize, len: usize) {
        self.0.flush(offset, len);
    }

    fn fence(&self) -> io::Result<()> {
        self.0.fence()
    }

    fn domain(&self) -> Domain {
        self.1
    }

    fn fork(self: Arc<Self>) -> Arc<dyn Medium> {
        self
    }
}

fn counted(domain: Domain) -> Counters {
    let medium = Named(LineModel::new(256 << 10), domain);
    let mut shard = Region::over(Arc::new(medium), &tiny()).unwrap().into_shard().unwrap();
    for number in 0..10 {
        store(&mut shard, &payload(number, 2000), 700);
    }
    shard.counters()
}

#[test]
fn where_caches_survive_no_line_is_flushed_and_each_commit_has_its_fence() {
    let counters = counted(Domain::FenceOnly);
    assert_eq!(counters.flushed_lines, 0);
    assert!(counters.fences >= 10, "{counters:?}");
    let counters = counted(Domain::Model);
    assert!(counters.flushed_lines >= 10 * 2000 / 64, "{counters:?}");
}
