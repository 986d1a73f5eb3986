//! The loop of one core: receive a burst, let the application work, make it durable, answer.
//!
//! Everything that a burst appended is made durable by one fence, whatever the number of requests in it;
//! the replies leave after that fence and in the same step.

use pmem::Shard;
use smoltcp::time::Instant;

use crate::net::{Service, Transport};

/// One transport, one application and one shard of the store, run by one core.
#[derive(Debug)]
pub struct Server<T, S> {
    transport: T,
    service: S,
    shard: Shard,
}

/// What one step did; all zero when there was nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Frames or completions taken in.
    pub received: usize,
    /// Events given to the application.
    pub events: usize,
    /// Whether appends were made durable.
    pub committed: bool,
    /// Frames or submissions sent.
    pub sent: usize,
}

impl Step {
    /// Whether the step found nothing to do.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

impl<T: Transport, S: Service> Server<T, S> {
    /// Puts the three together.
    pub fn new(transport: T, service: S, shard: Shard) -> Self {
        Self { transport, service, shard }
    }

    /// Runs one burst at time `now`.
    ///
    /// # Errors
    /// The transport failed for good. A failed commit is the application's to report
    /// ([`Service::commit_failed`]); the step itself goes on.
    pub fn step(&mut self, now: Instant) -> Result<Step, T::Error> {
        let mut step = Step { received: self.transport.receive(now)?, ..Step::default() };
        while let Some(event) = self.transport.next_event() {
            self.service.event(event, &mut self.transport, &mut self.shard);
            step.events += 1;
        }
        if self.shard.uncommitted() {
            match self.shard.commit() {
                Ok(durable) => {
                    step.committed = true;
                    self.service.committed(&durable, &mut self.transport, &mut self.shard);
                }
                Err(error) => {
                    self.service.commit_failed(&error.to_string(), &mut self.transport, &mut self.shard);
                }
            }
        }
        step.sent = self.transport.transmit(now)?;
        Ok(step)
    }

    /// The application.
    pub fn service(&self) -> &S {
        &self.service
    }

    /// The transport.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The shard.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The three parts, for work between bursts: ticks, checkpoints, statistics.
    pub fn parts(&mut self) -> (&mut T, &mut S, &mut Shard) {
        (&mut self.transport, &mut self.service, &mut self.shard)
    }

    /// Takes the three apart, to end the application in order.
    pub fn into_parts(self) -> (T, S, Shard) {
        (self.transport, self.service, self.shard)
    }
}
