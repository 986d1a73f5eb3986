//! Waking a core that sleeps when another has left something for it, without a system call while it is awake.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};

/// Whether a core sleeps beside its queues, which other cores fill, and how it is woken.
#[derive(Default)]
pub struct Doze {
    is_asleep: AtomicBool,
    waker: OnceLock<Waker>,
}

/// Wakes a core that sleeps, or keeps it from falling asleep, from any thread.
#[derive(Clone)]
pub struct Waker {
    wake: Arc<dyn Fn() + Send + Sync>,
    event: Option<Arc<OwnedFd>>,
}

impl Waker {
    /// Wakes by calling `wake`, which may happen in any thread and at any time.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { wake: Arc::new(wake), event: None }
    }

    /// The same for an eventfd, to which `wake` writes and the kernel may, too.
    pub fn of_event(event: Arc<OwnedFd>, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { wake: Arc::new(wake), event: Some(event) }
    }

    /// The eventfd that wakes the core when it is written to, if there is one.
    pub fn event(&self) -> Option<Arc<OwnedFd>> {
        self.event.clone()
    }

    /// Wakes the core.
    pub fn wake(&self) {
        (self.wake)();
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

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
                waker.wake();
            }
        }
    }
}

impl fmt::Debug for Doze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doze").field("is_asleep", &self.is_asleep).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    const ROUNDS: u32 = 50_000;

    /// Two cores take turns, and each sleeps until it has been given the turn: one note that is missed, and both sleep.
    #[test]
    fn nobody_sleeps_beside_what_was_left_for_it() {
        let (turns, dozes) = (Arc::new(AtomicU32::new(0)), Arc::new([Doze::default(), Doze::default()]));
        let core = |own: u32| {
            let (turns, dozes) = (turns.clone(), dozes.clone());
            move || {
                let this = thread::current();
                let [doze, other] = [own, 1 - own].map(|core| &dozes[core as usize]);
                doze.wake_by(Waker::new(move || this.unpark()));
                let begun = Instant::now();
                while turns.load(Ordering::Relaxed) < ROUNDS {
                    let is_own = || turns.load(Ordering::Relaxed) % 2 == own;
                    // At its first turn the other may not have said yet how it is woken: then that is looked at again.
                    let is_clear = || {
                        let is_clear = !is_own();
                        // The other's chance to come between the look and whatever follows.
                        thread::yield_now();
                        is_clear
                    };
                    if doze.may_sleep(is_clear) {
                        let limit = if turns.load(Ordering::Relaxed) < 2 { 1 } else { 60_000 };
                        thread::park_timeout(Duration::from_millis(limit));
                        assert!(begun.elapsed() < Duration::from_secs(60), "nobody was woken");
                    }
                    doze.is_awake();
                    if is_own() {
                        turns.fetch_add(1, Ordering::Relaxed);
                        other.wake();
                    }
                }
                other.wake();
            }
        };
        let cores = [core(0), core(1)].map(thread::spawn);
        for core in cores {
            core.join().expect("a core goes on to the end");
        }
        assert!(turns.load(Ordering::Relaxed) >= ROUNDS);
    }

    #[test]
    fn a_core_that_is_awake_is_left_alone() {
        let (doze, calls) = (Doze::default(), Arc::new(AtomicU32::new(0)));
        let counted = calls.clone();
        doze.wake_by(Waker::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        doze.wake();
        assert!(!doze.may_sleep(|| false));
        doze.wake();
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        assert!(doze.may_sleep(|| true));
        doze.wake();
        doze.wake();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert!(doze.may_sleep(|| true));
        doze.is_awake();
        doze.wake();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}
