//! The wish to see a profile.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::SIGUSR1;

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
