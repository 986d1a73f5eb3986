//! Ending a wait from another thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use super::ring::Ring;

/// Ends a [`wait`](super::KernelTransport::wait), or keeps the next one from beginning, from any thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(super) fn new(ring: &mut Ring) -> io::Result<Self> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        ring.wake_by(event.clone())?;
        Ok(Self(event))
    }

    /// Wakes the thread that waits.
    pub fn wake(&self) {
        // The count is never read: it is the writing that counts. A count at its end has been written to before.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}
