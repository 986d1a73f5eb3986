//! Waking a core that sleeps when another has left something for it, without a system call while it is awake.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Whether a core sleeps beside its queues, which other cores fill, and how it is woken.
#[derive(Default)]
pub struct Doze {
    is_asleep: AtomicBool,
    waker: OnceLock<Waker>,
}

/// Wakes a core that sleeps, or keeps it from falling asleep.
pub type Waker = Box<dyn Fn() + Send + Sync>;

impl Doze {
    /// Says how the core is woken, once and for good. Without that it looks at its queues often enough.
    pub fn wake_by(&self, waker: Waker) {
        // A core has one waker.
        let _ = self.waker.set(waker);
    }

    /// Notes that the core goes to sleep; false if it must not, since its queues are not clear.
    pub fn may_sleep(&self, is_clear: impl FnOnce() -> bool) -> bool {
        self.is_asleep.store(true, Ordering::Relaxed);
        // Whoever adds something looks at the note afterwards: one of the two sees what the other did.
        fence(Ordering::SeqCst);
        let is_clear = is_clear();
        if !is_clear {
            self.is_awake();
        }
        is_clear
    }

    /// Notes that the core is awake.
    pub fn is_awake(&self) {
        self.is_asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the core if it sleeps. For whoever has just added something to its queues.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            fence(Ordering::SeqCst);
            if self.is_asleep.load(Ordering::Relaxed) && self.is_asleep.swap(false, Ordering::Relaxed) {
                waker();
            }
        }
    }
}

impl fmt::Debug for Doze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doze").field("is_asleep", &self.is_asleep).finish_non_exhaustive()
    }
}
