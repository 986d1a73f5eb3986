//! Where a core's time goes, stage by stage, in time stamp counter ticks turned into nanoseconds.
//!
//! The loop and the transport say at the end of each stage that it is over ([`Laps`]). Without a profile that is
//! [`NoLaps`], which compiles to nothing; with one it is a [`Watch`], which reads the counter.

mod summary;

use hdrhistogram::Histogram;
use pmem::Spent;
use quanta::Clock;
use serde::{Deserialize, Serialize};

use crate::step::Step;

pub use summary::{BurstTimes, StageTimes, Summary};

/// A part of a burst. On a transport that does not know its stages apart, all of receiving is `Rx`, and all of
/// sending `Tx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Taking frames from the device, dealing them out to cores, and giving their mbufs back.
    Rx,
    /// Reading headers and checking checksums.
    Parse,
    /// The connections' part of receiving: the state machine, reassembly, the swap of buffers.
    Tcp,
    /// The application: events, and replies after the commit.
    App,
    /// Flushes of cache lines, or what the medium has instead.
    Flush,
    /// Fences.
    Fence,
    /// Timers that are due, and making frames of what is to be sent.
    Emit,
    /// Giving frames to the device, and taking back what it has sent.
    Tx,
}

impl Stage {
    /// All, in the order in which a burst goes through them.
    pub const ALL: [Self; 8] =
        [Self::Rx, Self::Parse, Self::Tcp, Self::App, Self::Flush, Self::Fence, Self::Emit, Self::Tx];
}

/// One value for each stage.
type PerStage<T> = [T; Stage::ALL.len()];

/// What is told when a stage is over.
pub trait Laps {
    /// All time since the last call was this stage's.
    fn lap(&mut self, stage: Stage);
}

/// Nobody wants to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLaps;

impl Laps for NoLaps {
    #[inline(always)]
    fn lap(&mut self, _: Stage) {}
}

/// Adds up the ticks of one burst.
#[derive(Debug)]
pub struct Watch {
    clock: Clock,
    last: u64,
    ticks: PerStage<u64>,
    readings: u64,
}

impl Laps for Watch {
    #[inline]
    fn lap(&mut self, stage: Stage) {
        let now = self.clock.raw();
        self.ticks[stage as usize] += now.saturating_sub(self.last);
        self.last = now;
        self.readings += 1;
    }
}

impl Watch {
    fn new() -> Self {
        Self { clock: Clock::new(), last: 0, ticks: [0; _], readings: 0 }
    }

    fn begin(&mut self) {
        self.ticks = [0; _];
        self.readings = 1;
        self.last = self.clock.raw();
    }

    fn ns(&self, ticks: u64) -> u64 {
        self.clock.delta_as_nanos(0, ticks)
    }
}

/// Where the time of one core went, or of several.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Of bursts that found something to do.
    stages: PerStage<Times>,
    /// All stages together, by burst, and by request where a burst had any.
    bursts: Times,
    requests: Times,
    /// Turns that found nothing.
    empty_polls: Times,
    frames: u64,
    /// What measuring bursts took: readings of the counter, each of so many picoseconds, and recordings.
    readings: u64,
    reading_ps: u64,
    recording_ns: u64,
}

/// Times of one kind.
#[derive(Clone, Debug)]
struct Times {
    histogram: Histogram<u64>,
    sum_ns: u64,
}

/// Longer times count as this long in histograms.
const LONGEST_NS: u64 = 10_000_000_000;

impl Times {
    fn new() -> Self {
        // Two digits: an error of less than one in a hundred.
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, 2).expect("the bounds are good ones");
        Self { histogram, sum_ns: 0 }
    }

    fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
        self.sum_ns += ns;
    }

    /// Something took so long for `count` together.
    fn share_out(&mut self, ns: u64, count: u64) {
        self.histogram.saturating_record_n(ns / count, count);
        self.sum_ns += ns;
    }

    fn count(&self) -> u64 {
        self.histogram.len()
    }

    fn merge(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("all have the same bounds");
        self.sum_ns += other.sum_ns;
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            stages: std::array::from_fn(|_| Times::new()),
            bursts: Times::new(),
            requests: Times::new(),
            empty_polls: Times::new(),
            frames: 0,
            readings: 0,
            reading_ps: 0,
            recording_ns: 0,
        }
    }
}

impl Profile {
    /// Adds what another core has measured.
    pub fn merge(&mut self, other: &Self) {
        for (stage, of_other) in self.stages.iter_mut().zip(&other.stages) {
            stage.merge(of_other);
        }
        self.bursts.merge(&other.bursts);
        self.requests.merge(&other.requests);
        self.empty_polls.merge(&other.empty_polls);
        self.frames += other.frames;
        let cost_ps = self.readings * self.reading_ps + other.readings * other.reading_ps;
        self.readings += other.readings;
        self.reading_ps = cost_ps.checked_div(self.readings).unwrap_or(0);
        self.recording_ns += other.recording_ns;
    }

    /// A burst that took in `frames` frames and `requests` requests, and so many ns in each stage.
    fn record(&mut self, ns: &PerStage<u64>, frames: u64, requests: u64) {
        let total = ns.iter().sum();
        for (times, &ns) in self.stages.iter_mut().zip(ns).filter(|(_, ns)| **ns > 0) {
            times.record(ns);
        }
        self.bursts.record(total);
        self.frames += frames;
        if requests > 0 {
            self.requests.share_out(total, requests);
        }
    }
}

/// Measures the bursts of one core. [`Server`](crate::server::Server) has one inside; loops of another kind can be
/// measured by the same clock.
#[derive(Debug)]
pub struct Profiler {
    watch: Watch,
    profile: Profile,
    spent: Spent,
    requests: u64,
}

impl Profiler {
    /// Finds out what measuring costs, and begins.
    pub fn start() -> Self {
        let mut watch = Watch::new();
        let profile = Profile { reading_ps: reading_ps(&mut watch), ..Profile::default() };
        Self { watch, profile, spent: Spent::default(), requests: 0 }
    }

    /// A burst begins, when so much had been spent on persisting and so many requests had come.
    pub fn begin(&mut self, spent: Spent, requests: u64) {
        (self.spent, self.requests) = (spent, requests);
        self.watch.begin();
    }

    /// What is to be told when a stage of the burst is over.
    pub fn watch(&mut self) -> &mut Watch {
        &mut self.watch
    }

    /// The burst is over, and so much is spent and has come by now.
    pub fn end(&mut self, step: &Step, spent: Spent, requests: u64) {
        let Self { watch, profile, .. } = self;
        let begun = watch.last;
        let mut ns = watch.ticks.map(|ticks| watch.clock.delta_as_nanos(0, ticks));
        let flush_ns = spent.flush_ns - self.spent.flush_ns;
        let fence_ns = spent.fence_ns - self.spent.fence_ns;
        // The application's calls are what flushes and fences.
        let app = &mut ns[Stage::App as usize];
        *app = app.saturating_sub(flush_ns + fence_ns);
        ns[Stage::Flush as usize] = flush_ns;
        ns[Stage::Fence as usize] = fence_ns;
        if step.is_idle() {
            profile.empty_polls.record(ns.iter().sum());
            return;
        }
        profile.record(&ns, step.received as u64, requests - self.requests);
        profile.readings += watch.readings + spent.readings - self.spent.readings;
        profile.recording_ns += watch.ns(watch.clock.raw().saturating_sub(begun));
    }

    /// Where the time went so far.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }
}

/// What one lap costs, in picoseconds.
fn reading_ps(watch: &mut Watch) -> u64 {
    const LAPS: u64 = 10_000;
    watch.begin();
    let begun = watch.last;
    for _ in 0..LAPS {
        watch.lap(Stage::Rx);
    }
    watch.ns(watch.last.saturating_sub(begun)) * 1000 / LAPS
}

#[cfg(test)]
mod tests;
