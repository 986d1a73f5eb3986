//! What a loop needs of its surroundings: the time, and the wish to see its profile.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::SIGUSR1;
use stack::time::Instant;

/// A flag for each core, all set by SIGUSR1.
pub(super) fn profile_signals(cores: usize) -> io::Result<Vec<Arc<AtomicBool>>> {
    (0..cores)
        .map(|_| {
            let asked = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(SIGUSR1, Arc::clone(&asked))?;
            Ok(asked)
        })
        .collect()
}

/// The time since the start: never set back, as the wall clock may be.
pub(super) struct Clock(std::time::Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    pub(super) fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.0.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}
