//! The loop of one core: receive a burst, let the application work, make it durable, answer.
//!
//! Everything that a burst appended is made durable by one fence, whatever the number of requests in it;
//! the replies leave after that fence and in the same step. Where a fence takes as long as a disk does, it is only started
//! there: bursts go on, the replies leave with the one that finds it done, and what came meanwhile is in the next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pmem::{CommitError, Durable, Shard};

use crate::group::Group;
use crate::net::{Service, Transport};
use crate::profile::{Laps, NoLaps, Profile, Profiler, Stage};
use crate::time::{Clock, Instant};

pub use crate::step::Step;

/// One transport, one application and one shard of the store, run by one core.
#[derive(Debug)]
pub struct Server<T, S> {
    transport: T,
    service: S,
    shard: Shard,
    /// Where commits are started, and not waited for.
    group: Option<Box<Group>>,
    /// Whether the transport's waits end with a commit.
    is_rung: bool,
    /// Where time is measured.
    profiler: Option<Box<Profiler>>,
}

/// What a core does while there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It polls: fastest, and the CPU is its own.
    Spin,
    /// It [waits](Transport::wait).
    Wait {
        /// After so long without work.
        after: Duration,
        /// For so long at most, and then looks again: short where nothing wakes the transport, and in any case not longer
        /// than a request to stop may go unnoticed.
        limit: Duration,
    },
}

impl Rest {
    /// Waits at once until something happens, for a transport that is woken by it.
    pub const UNTIL_WOKEN: Self = Self::Wait { after: Duration::ZERO, limit: Duration::from_millis(100) };

    /// Whether a core rests that has had nothing to do for `idle`.
    fn is_due(self, idle: Duration) -> bool {
        matches!(self, Self::Wait { after, .. } if idle >= after)
    }
}

/// One turn of [`Server::run_with`].
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// What the burst did.
    pub step: Step,
    /// Whether there was nothing to do, not even [between bursts](Service::between_bursts).
    pub is_idle: bool,
    /// Time since there last was.
    pub idle: Duration,
}

impl<T: Transport, S: Service> Server<T, S> {
    /// Puts the three together.
    pub fn new(transport: T, service: S, shard: Shard) -> Self {
        let starts = S::TAKES_COMMITS_IN_PART && shard.commits_later();
        let group = starts.then(|| Box::new(Group::new(shard.next_seq())));
        Self { transport, service, shard, group, is_rung: false, profiler: None }
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

    /// Runs bursts until `stop` is set, and rests when there is nothing to do. The last burst is whole: what was appended
    /// is committed and answered, as far as the network takes it.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn run(&mut self, clock: &Clock, stop: &AtomicBool, rest: Rest) -> Result<(), T::Error> {
        self.run_with(clock, stop, rest, |_, _, _| Ok(()))
    }

    /// As [`run`](Self::run), and calls `look` after each turn, which began at the time given, and did nothing if it was
    /// idle.
    ///
    /// # Errors
    /// As [`step`](Self::step), and what `look` says.
    pub fn run_with<E: From<T::Error>>(
        &mut self,
        clock: &Clock,
        stop: &AtomicBool,
        rest: Rest,
        mut look: impl FnMut(&mut Self, Instant, Turn) -> Result<(), E>,
    ) -> Result<(), E> {
        self.wake_by_commits()?;
        let mut idle_since = clock.now();
        while !stop.load(Ordering::Relaxed) {
            let now = clock.now();
            let step = self.step(now)?;
            let has_worked = self.service.between_bursts(now, &mut self.transport, &mut self.shard);
            let has_worked = self.shard.tend() || has_worked;
            let is_idle = step.is_idle() && !has_worked;
            if !is_idle {
                idle_since = now;
            }
            let idle = now - idle_since;
            look(self, now, Turn { step, is_idle, idle })?;
            // What was done between bursts may have left something to send.
            if !has_worked && rest.is_due(idle) {
                self.rest(rest, clock.now(), idle)?;
            }
        }
        // A failed commit leaves nothing to be tried again.
        while self.shard.uncommitted() && self.commit() {}
        self.transport.transmit(clock.now())?;
        Ok(())
    }

    /// Has the transport's waits end when a commit is done that was started, where the transport can.
    fn wake_by_commits(&mut self) -> Result<(), T::Error> {
        if self.group.is_some()
            && !self.is_rung
            && let Some(waker) = self.transport.waker()?
            && let Some(bell) = waker.event()
        {
            self.shard.ring_bell(bell);
            self.is_rung = true;
        }
        Ok(())
    }

    /// Rests after having had nothing to do for `idle`, as `rest` says: until something comes, or is due, or a commit is done.
    /// Not at all while something was appended and is in no commit, or [other threads](Service::may_rest) want something.
    ///
    /// # Errors
    /// The transport failed for good.
    #[inline]
    pub fn rest(&mut self, rest: Rest, now: Instant, idle: Duration) -> Result<(), T::Error> {
        let Rest::Wait { after, limit } = rest else { return Ok(()) };
        if idle < after {
            return Ok(());
        }
        let limit = if self.shard.uncommitted() { limit.min(self.held(now)) } else { limit };
        self.wait(limit, now)
    }

    /// How long nothing needs to be done for what is not committed, unless the transport's waits end.
    fn held(&mut self, now: Instant) -> Duration {
        match &mut self.group {
            Some(_) if self.is_rung && self.shard.is_committing() => Duration::MAX,
            Some(group) if !self.shard.is_committing() => group.holds(now, self.shard.next_seq()),
            _ => Duration::ZERO,
        }
    }

    fn wait(&mut self, limit: Duration, now: Instant) -> Result<(), T::Error> {
        let limit = self.transport.next_deadline().map_or(limit, |due| limit.min(due - now));
        if limit.is_zero() || !self.service.may_rest() {
            return Ok(());
        }
        let waited = self.transport.wait(limit);
        self.service.awake();
        waited
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

    #[inline]
    fn burst<L: Laps>(&mut self, now: Instant, laps: &mut L) -> Result<Step, T::Error> {
        let mut step = Step { received: self.transport.receive_in_laps(now, laps)?, ..Step::default() };
        while let Some(event) = self.transport.next_event() {
            self.service.event(event, &mut self.transport, &mut self.shard);
            step.events += 1;
        }
        if self.shard.uncommitted() {
            step.committed = if self.group.is_none() { self.commit() } else { self.advance(now) };
        }
        laps.lap(Stage::App);
        step.sent = self.transport.transmit_in_laps(now, laps)?;
        Ok(step)
    }

    /// Makes durable what was appended; false if that failed.
    fn commit(&mut self) -> bool {
        let committed = self.shard.commit();
        self.tell(committed)
    }

    /// Looks whether the commit is done that is under way, and starts one if none is; true if something is durable by it.
    #[cold]
    fn advance(&mut self, now: Instant) -> bool {
        let mut has_committed = false;
        if self.shard.is_committing() {
            match self.shard.look_at_commit().transpose() {
                None => return false,
                Some(looked) => has_committed = self.tell(looked),
            }
        }
        let next = self.shard.next_seq();
        if let Some(group) = &mut self.group
            && self.shard.uncommitted()
            && group.holds(now, next).is_zero()
        {
            group.started(next);
            if let Some(started) = self.shard.start_commit().transpose() {
                has_committed |= self.tell(started);
            }
        }
        has_committed
    }

    /// Tells the application how a commit ended; true if it was well.
    #[inline]
    fn tell(&mut self, committed: Result<Durable, CommitError>) -> bool {
        match committed {
            Ok(durable) => {
                if let Some(group) = &mut self.group {
                    group.done(durable.took());
                }
                self.service.committed(&durable, &mut self.transport, &mut self.shard);
                true
            }
            Err(error) => {
                self.service.commit_failed(&error, &mut self.transport, &mut self.shard);
                false
            }
        }
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use pmem::{Extent, MEMORY, Options, Pending, Region};

    use super::*;
    use crate::doze::Waker;
    use crate::net::{ConnId, Event, Net, SendError, SendSpace, Slot};

    /// A network without connections that notes its waits.
    #[derive(Default)]
    struct Quiet {
        waits: Vec<Duration>,
        due: Option<Instant>,
    }

    impl Net for Quiet {
        fn recv(&mut self, _: ConnId) -> Option<Slot> {
            None
        }

        fn send_space(&self, _: ConnId) -> SendSpace {
            SendSpace::default()
        }

        fn send(&mut self, _: ConnId, _: &[u8]) -> Result<(), SendError> {
            Err(SendError::Closed)
        }

        fn send_extent(&mut self, _: ConnId, _: Extent) -> Result<(), SendError> {
            Err(SendError::Closed)
        }

        fn finish(&mut self, _: ConnId) {}

        fn abort(&mut self, _: ConnId) {}
    }

    impl Transport for Quiet {
        type Error = Infallible;

        fn receive(&mut self, _: Instant) -> Result<usize, Infallible> {
            Ok(0)
        }

        fn next_event(&mut self) -> Option<Event> {
            None
        }

        fn transmit(&mut self, _: Instant) -> Result<usize, Infallible> {
            Ok(0)
        }

        fn next_deadline(&self) -> Option<Instant> {
            self.due
        }

        fn wait(&mut self, limit: Duration) -> Result<(), Infallible> {
            self.waits.push(limit);
            Ok(())
        }

        fn waker(&mut self) -> Result<Option<Waker>, Infallible> {
            Ok(None)
        }
    }

    /// Appends between bursts, as often as it is told.
    #[derive(Default)]
    struct Late {
        appends: usize,
        pending: Option<Pending>,
        confirmed: usize,
        is_wanted: bool,
    }

    impl Service for Late {
        fn event<N: Net>(&mut self, _: Event, _: &mut N, _: &mut Shard) {}

        fn committed<N: Net>(&mut self, durable: &Durable, _: &mut N, _: &mut Shard) {
            let pending = self.pending.take().expect("it is the append that is committed");
            assert!(durable.confirm(pending).is_ok());
            self.confirmed += 1;
        }

        fn commit_failed<N: Net>(&mut self, error: &CommitError, _: &mut N, _: &mut Shard) {
            panic!("memory does not fail: {error}");
        }

        fn between_bursts<N: Net>(&mut self, _: Instant, _: &mut N, shard: &mut Shard) -> bool {
            if self.pending.is_none() && self.appends > 0 {
                self.appends -= 1;
                self.pending = Some(shard.append_copy(b"late").expect("there is room"));
            }
            // It does not even say so.
            false
        }

        fn may_rest(&self) -> bool {
            !self.is_wanted
        }
    }

    fn server(service: Late) -> Server<Quiet, Late> {
        let options = Options { size: Some(8 << 20), ..Options::default() };
        let shard = Region::open(MEMORY, &options).unwrap().into_shard().unwrap();
        Server::new(Quiet::default(), service, shard)
    }

    /// Turns of a loop that always may wait.
    fn turns(server: &mut Server<Quiet, Late>, count: usize) -> Result<(), Infallible> {
        let (stop, mut left) = (AtomicBool::new(false), count);
        server.run_with(&Clock::start(), &stop, Rest::UNTIL_WOKEN, |server, _, _| {
            assert!(server.transport().waits.len() < count, "it waits at most once a turn");
            left -= 1;
            stop.store(left == 0, Ordering::Relaxed);
            Ok(())
        })
    }

    #[test]
    fn nobody_rests_beside_an_append_that_is_not_committed() {
        let mut server = server(Late { appends: 3, ..Late::default() });
        turns(&mut server, 3).unwrap();
        assert_eq!(server.transport().waits, [], "each turn left an append to the next");
        assert_eq!(server.service().confirmed, 3, "and the last one was committed before the end");
        assert!(!server.shard().uncommitted());
        turns(&mut server, 2).unwrap();
        assert_eq!(server.transport().waits.len(), 2);
    }

    #[test]
    fn a_rest_ends_when_something_is_due_and_does_not_begin_while_others_want_something() {
        let mut server = server(Late::default());
        let now = Instant::from_secs(5);
        let (after, limit) = (Duration::from_millis(1), Duration::from_millis(100));
        let rest = Rest::Wait { after, limit };
        server.rest(rest, now, Duration::ZERO).unwrap();
        server.rest(Rest::Spin, now, limit).unwrap();
        assert_eq!(server.transport().waits, []);
        server.rest(rest, now, after).unwrap();
        server.transport.due = Some(now + Duration::from_millis(7));
        server.rest(rest, now, after).unwrap();
        server.transport.due = Some(now);
        server.rest(rest, now, after).unwrap();
        server.transport.due = None;
        server.service.is_wanted = true;
        server.rest(rest, now, after).unwrap();
        assert_eq!(server.transport().waits, [limit, Duration::from_millis(7)]);
    }
}
