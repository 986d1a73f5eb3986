//! The loop of all servers whose bursts are in user space: commands, a burst, what it leaves to do; and the time of it.

use anyhow::Result;
use pmem::{Shard, Spent};
use stack::profile::{Laps, NoLaps, Profile, Profiler};
use stack::server::Step;
use stack::time::Instant;

use super::control::{Control, tell};
use super::ledger::{Ledger, Meter, stages};
use crate::protocol::{Mark, ServerCommand, ServerEvent};

/// A server that works in bursts.
pub(super) trait Bursts {
    /// One burst.
    fn step(&mut self, now: Instant) -> Result<Step>;

    /// What is to be done between bursts.
    fn settle(&mut self, step: &Step) -> Result<()>;

    fn ledger(&self) -> Ledger;

    fn shard(&self) -> Option<&Shard>;

    /// Where the time went, if that is measured.
    fn profile(&self) -> Option<&Profile>;
}

/// Runs bursts until told to stop.
pub(super) fn run(server: &mut impl Bursts, control: &Control, mut meter: Meter) -> Result<()> {
    let mut begun = meter.raw();
    loop {
        match control.next() {
            Some(ServerCommand::Mark(id)) => {
                let mark = server.ledger().mark(id, &meter, server.shard());
                tell(&ServerEvent::Mark(Mark { stages: server.profile().map(stages), ..mark }))?;
                begun = meter.raw();
            }
            Some(ServerCommand::Stop) => break,
            None => {}
        }
        let step = server.step(meter.instant(begun))?;
        server.settle(&step)?;
        begun = if step.is_idle() { meter.idled(begun) } else { meter.worked(begun) };
    }
    if let Some(profile) = server.profile() {
        eprintln!("{}", profile.summary());
    }
    Ok(())
}

/// Bursts that say when a stage is over.
pub(super) trait Staged {
    fn burst<L: Laps>(&mut self, now: Instant, laps: &mut L) -> Result<Step>;

    /// What is to be done between bursts.
    fn settle(&mut self, step: &Step) -> Result<()>;

    fn ledger(&self) -> Ledger;

    fn shard(&self) -> Option<&Shard>;
}

/// Such bursts by the clock that [`stack::server::Server`] is measured with, if they are to be measured.
pub(super) struct Watched<S> {
    pub(super) bursts: S,
    profiler: Option<Box<Profiler>>,
}

impl<S: Staged> Watched<S> {
    pub(super) fn new(bursts: S, is_measured: bool) -> Self {
        Self { bursts, profiler: is_measured.then(|| Box::new(Profiler::start())) }
    }

    fn so_far(&self) -> (Spent, u64) {
        let spent = self.bursts.shard().map(Shard::spent).unwrap_or_default();
        (spent, self.bursts.ledger().requests)
    }
}

impl<S: Staged> Bursts for Watched<S> {
    fn step(&mut self, now: Instant) -> Result<Step> {
        let Some(mut profiler) = self.profiler.take() else {
            return self.bursts.burst(now, &mut NoLaps);
        };
        let (spent, requests) = self.so_far();
        profiler.begin(spent, requests);
        let step = self.bursts.burst(now, profiler.watch())?;
        let (spent, requests) = self.so_far();
        profiler.end(&step, spent, requests);
        self.profiler = Some(profiler);
        Ok(step)
    }

    fn settle(&mut self, step: &Step) -> Result<()> {
        self.bursts.settle(step)
    }

    fn ledger(&self) -> Ledger {
        self.bursts.ledger()
    }

    fn shard(&self) -> Option<&Shard> {
        self.bursts.shard()
    }

    fn profile(&self) -> Option<&Profile> {
        self.profiler.as_deref().map(Profiler::profile)
    }
}
