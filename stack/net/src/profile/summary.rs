//! A profile in figures, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::{Profile, Stage, Times};

/// A profile in figures. As text it is a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Each stage, in the order in which a burst goes through them.
    pub stages: Vec<StageTimes>,
    /// Bursts that found something to do.
    pub bursts: BurstTimes,
    /// Requests: each has its equal share of its burst's time.
    pub requests: BurstTimes,
    /// Turns that found nothing to do.
    pub empty_polls: BurstTimes,
    /// Frames taken in.
    pub frames: u64,
    /// What measuring took, of the bursts' time.
    pub readings_ns: u64,
    /// What keeping the bursts' results took, beside that.
    pub recording_ns: u64,
}

/// The times of one stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageTimes {
    /// Which.
    pub stage: Stage,
    /// Of all bursts' time, how much was this stage's, from 0 to 1.
    pub share: f64,
    /// The stage's time divided by all requests; none where there were none.
    pub per_request_ns: Option<f64>,
    /// Of bursts that were in this stage at all.
    #[serde(flatten)]
    pub times: BurstTimes,
}

/// Times of one kind, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct BurstTimes {
    /// How many there were.
    pub count: u64,
    /// All together.
    pub total_ns: u64,
    /// On average.
    pub mean_ns: f64,
    /// Half took no longer.
    pub p50_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Profile {
    /// The profile in figures.
    pub fn summary(&self) -> Summary {
        let (bursts, requests) = (BurstTimes::of(&self.bursts), BurstTimes::of(&self.requests));
        let stage = |(&stage, times): (&Stage, &Times)| StageTimes {
            stage,
            share: times.sum_ns as f64 / bursts.total_ns.max(1) as f64,
            per_request_ns: (requests.count > 0).then(|| times.sum_ns as f64 / requests.count as f64),
            times: BurstTimes::of(times),
        };
        Summary {
            stages: Stage::ALL.iter().zip(&self.stages).map(stage).collect(),
            bursts,
            requests,
            empty_polls: BurstTimes::of(&self.empty_polls),
            frames: self.frames,
            readings_ns: self.readings * self.reading_ps / 1000,
            recording_ns: self.recording_ns,
        }
    }
}

impl BurstTimes {
    fn of(times: &Times) -> Self {
        let (count, histogram) = (times.count(), &times.histogram);
        if count == 0 {
            return Self::default();
        }
        Self {
            count,
            total_ns: times.sum_ns,
            mean_ns: times.sum_ns as f64 / count as f64,
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            max_ns: histogram.max(),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{:<12} {:>12} {:>7} {:>12} {:>12} {:>12} {:>12} {:>12}",
            "ns", "bursts", "share", "mean", "p50", "p99", "max", "per request"
        )?;
        let row = |out: &mut fmt::Formatter<'_>, name: &str, share: f64, times: &BurstTimes| {
            let BurstTimes { count, mean_ns, p50_ns, p99_ns, max_ns, .. } = times;
            let percent = 100.0 * share;
            write!(
                out,
                "{name:<12} {count:>12} {percent:>6.1}% {mean_ns:>12.0} {p50_ns:>12} {p99_ns:>12} {max_ns:>12}"
            )
        };
        for stage in &self.stages {
            row(out, &format!("{:?}", stage.stage).to_lowercase(), stage.share, &stage.times)?;
            match stage.per_request_ns {
                Some(ns) => writeln!(out, " {ns:>12.1}")?,
                None => writeln!(out)?,
            }
        }
        row(out, "all", f64::from(u8::from(self.bursts.count > 0)), &self.bursts)?;
        if self.requests.count > 0 {
            write!(out, " {:>12.1}", self.bursts.total_ns as f64 / self.requests.count as f64)?;
        }
        writeln!(out)?;
        let BurstTimes { count, mean_ns, p50_ns, p99_ns, .. } = self.requests;
        let per_burst = |count: u64| count as f64 / self.bursts.count.max(1) as f64;
        writeln!(
            out,
            "{count} requests ({:.1} a burst), in bursts with requests {mean_ns:.0} ns each: half {p50_ns}, 99 % \
             {p99_ns} or less; {} frames ({:.1} a burst)",
            per_burst(count),
            self.frames,
            per_burst(self.frames),
        )?;
        let BurstTimes { count, mean_ns, p50_ns, p99_ns, .. } = self.empty_polls;
        writeln!(out, "{count} empty polls of {mean_ns:.0} ns: half {p50_ns}, 99 % {p99_ns} or less")?;
        let bursts_ns = self.bursts.total_ns.max(1) as f64;
        write!(
            out,
            "measuring took {:.1} % of the bursts' time, and keeping the results {:.1} % beside it",
            100.0 * self.readings_ns as f64 / bursts_ns,
            100.0 * self.recording_ns as f64 / bursts_ns,
        )
    }
}
