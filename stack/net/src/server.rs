//! The loop of one core: receive a burst, let the application work, make it durable, answer.
//!
//! Everything that a burst appended is made durable by one fence, whatever the number of requests in it;
//! the replies leave after that fence and in the same step.

use pmem::Shard;

use crate::net::{Service, Transport};
use crate::profile::{Laps, NoLaps, Profile, Profiler, Stage};
use crate::time::Instant;

/// One transport, one application and one shard of the store, run by one core.
#[derive(Debug)]
pub struct Server<T, S> {
    transport: T,
    service: S,
    shard: Shard,
    /// Where time is measured.
    profiler: Option<Box<Profiler>>,
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
        Self { transport, service, shard, profiler: None }
    }

    /// Runs one burst at time `now`.
    ///
    /// # Errors
    /// The transport failed for good. A failed commit is the application's to report
    /// ([`Service::commit_failed`]); the step itself goes on.
    #[inline]
    pub fn step(&mut self, now: Instant) -> Result<Step, T::Error> {
        match self.profiler.take() {
            None => self.burst(now, &mut NoLaps),
            Some(profiler) => self.profiled_step(now, profiler),
        }
    }

    /// Measures from now on where the time goes. Flushes and fences show apart if the shard's region was opened to be
    /// [`timed`](pmem::Options::timed), and otherwise as the application's time.
    pub fn profile(&mut self) {
        self.profiler = Some(Box::new(Profiler::start()));
    }

    /// Where the time went since [`profile`](Self::profile); none without it.
    pub fn profiled(&self) -> Option<&Profile> {
        self.profiler.as_deref().map(Profiler::profile)
    }

    #[cold]
    fn profiled_step(&mut self, now: Instant, mut profiler: Box<Profiler>) -> Result<Step, T::Error> {
        profiler.begin(self.shard.spent(), self.service.requests());
        let step = self.burst(now, profiler.watch());
        if let Ok(step) = &step {
            profiler.end(step, self.shard.spent(), self.service.requests());
        }
        self.profiler = Some(profiler);
        step
    }

    fn burst<L: Laps>(&mut self, now: Instant, laps: &mut L) -> Result<Step, T::Error> {
        let mut step = Step { received: self.transport.receive_in_laps(now, laps)?, ..Step::default() };
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
                    self.service.commit_failed(&error, &mut self.transport, &mut self.shard);
                }
            }
        }
        laps.lap(Stage::App);
        step.sent = self.transport.transmit_in_laps(now, laps)?;
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
