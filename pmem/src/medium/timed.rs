//! What persisting costs, measured.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use quanta::Clock;

use super::{Medium, Spent, layer::Layer};

/// A clock around flushes and fences.
pub(crate) struct Timed {
    clock: Clock,
    /// One thread writes these: no order is needed.
    flush_ticks: AtomicU64,
    fence_ticks: AtomicU64,
    readings: AtomicU64,
}

impl Timed {
    pub(crate) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self { clock: Clock::new(), flush_ticks: zero(), fence_ticks: zero(), readings: zero() }
    }

    /// Adds the time since `begin` to `ticks`.
    fn note(&self, ticks: &AtomicU64, begin: u64) {
        let add = |to: &AtomicU64, what| to.store(to.load(Ordering::Relaxed) + what, Ordering::Relaxed);
        add(ticks, self.clock.raw().saturating_sub(begin));
        add(&self.readings, 2);
    }
}

impl Layer for Timed {
    fn flush(&self, medium: &dyn Medium, offset: usize, len: usize) {
        let begin = self.clock.raw();
        medium.flush(offset, len);
        self.note(&self.flush_ticks, begin);
    }

    fn fence(&self, medium: &dyn Medium) -> io::Result<()> {
        let begin = self.clock.raw();
        let fenced = medium.fence();
        // Behind SFENCE the CPU runs on while lines are on their way, and what comes next would be charged for them:
        // MFENCE waits for them, and LFENCE keeps the counter from being read before that.
        // SAFETY: every x86_64 CPU has SSE2, which is all that the instructions need.
        unsafe {
            std::arch::x86_64::_mm_mfence();
            std::arch::x86_64::_mm_lfence();
        }
        self.note(&self.fence_ticks, begin);
        fenced
    }

    /// Of a fence that goes on, what the core spends at its beginning and at looks.
    fn start_fence(&self, medium: &dyn Medium) -> io::Result<bool> {
        if !medium.fences_later() {
            return self.fence(medium).map(|()| true);
        }
        let begin = self.clock.raw();
        let started = medium.start_fence();
        self.note(&self.fence_ticks, begin);
        started
    }

    fn is_fenced(&self, medium: &dyn Medium) -> io::Result<bool> {
        let begin = self.clock.raw();
        let fenced = medium.is_fenced();
        self.note(&self.fence_ticks, begin);
        fenced
    }

    fn fences_later(&self, medium: &dyn Medium) -> bool {
        medium.fences_later()
    }

    fn fork(&self) -> Self {
        Self::new()
    }

    fn spent(&self, _: &dyn Medium) -> Spent {
        let ns = |ticks: &AtomicU64| self.clock.delta_as_nanos(0, ticks.load(Ordering::Relaxed));
        Spent {
            flush_ns: ns(&self.flush_ticks),
            fence_ns: ns(&self.fence_ticks),
            readings: self.readings.load(Ordering::Relaxed),
        }
    }
}
