//! What a load found.

use std::fmt;
use std::io::Write;

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::reply::BadReply;

/// A line that `pmbench load --json` writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LoadEvent {
    /// The time that is measured begins.
    Measuring,
    /// It is over, and the connections still stand.
    Measured,
    /// What was found.
    Finished(Summary),
}

impl LoadEvent {
    /// Writes the event as a line, all at once: a server's may come between others.
    pub(super) fn write(&self, out: &mut impl Write) -> Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        out.write_all(&line)?;
        Ok(out.flush()?)
    }
}

/// What a load found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Requests that were answered.
    pub requests: u64,
    /// How long was measured.
    pub seconds: f64,
    /// Requests that were answered in a second.
    pub requests_per_s: f64,
    /// Mean latency.
    pub mean_us: f64,
    /// Median latency.
    pub p50_us: f64,
    /// Latency of the 99th percentile.
    pub p99_us: f64,
    /// Latency of the 99.9th percentile.
    pub p999_us: f64,
    /// Longest latency.
    pub max_us: f64,
    /// The part of the time in which the generator had something to do: at 1 it is the limit, not the server.
    pub busy: f64,
    /// Segments sent again; of raw frames, those that did not come back.
    pub retransmits: u64,
    /// What went wrong.
    pub errors: Errors,
}

/// What went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// Replies with another status than 200.
    pub status: u64,
    /// The last of those.
    pub last_status: Option<u16>,
    /// Replies that are none.
    pub malformed: u64,
    /// Connections that the server ended.
    pub closed: u64,
    /// Requests for which the stack had no room.
    pub unsent: u64,
    /// Requests that had no reply long after the time was over.
    pub unanswered: u64,
}

impl Errors {
    /// How many there were.
    pub fn total(&self) -> u64 {
        self.status + self.malformed + self.closed + self.unsent + self.unanswered
    }

    pub(super) fn note(&mut self, error: BadReply) {
        match error {
            BadReply::Status(status) => {
                self.status += 1;
                self.last_status = Some(status);
            }
            BadReply::Malformed | BadReply::Surplus => self.malformed += 1,
        }
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, last_status, malformed, closed, unsent, unanswered } = self;
        let last = last_status.map(|status| format!(" (the last was {status})")).unwrap_or_default();
        write!(
            f,
            "{status} with another status than 200{last}, {malformed} malformed, {closed} connections closed, \
             {unsent} not sent, {unanswered} without a reply"
        )
    }
}

/// A histogram of latencies in nanoseconds, to three digits, up to a minute.
pub(super) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are in order")
}

impl Summary {
    pub(super) fn new(
        latencies_ns: &Histogram<u64>,
        requests: u64,
        ran_ns: u64,
        busy_ns: u64,
        retransmits: u64,
        errors: Errors,
    ) -> Self {
        let seconds = ran_ns as f64 / 1e9;
        let at = |percentile| latencies_ns.value_at_percentile(percentile) as f64 / 1000.0;
        let per_run = |amount: f64| if ran_ns == 0 { 0.0 } else { amount / ran_ns as f64 };
        Self {
            requests,
            seconds,
            requests_per_s: per_run(requests as f64 * 1e9),
            mean_us: latencies_ns.mean() / 1000.0,
            p50_us: at(50.0),
            p99_us: at(99.0),
            p999_us: at(99.9),
            max_us: latencies_ns.max() as f64 / 1000.0,
            busy: per_run(busy_ns as f64),
            retransmits,
            errors,
        }
    }

    /// # Errors
    /// There was an error, or no reply at all.
    pub fn check(&self) -> Result<()> {
        if self.errors.total() > 0 {
            bail!("{} errors beside {} good replies: {}", self.errors.total(), self.requests, self.errors);
        }
        ensure!(
            self.requests > 0,
            "no request was answered; is the server of the right mode, and on this link?"
        );
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "requests      {} in {:.2} s: {:.0} a second",
            self.requests, self.seconds, self.requests_per_s
        )?;
        writeln!(
            f,
            "latency us    mean {:.1}  p50 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
            self.mean_us, self.p50_us, self.p99_us, self.p999_us, self.max_us
        )?;
        writeln!(f, "generator     busy for {:.0} % of the time", self.busy * 100.0)?;
        writeln!(f, "sent again    {}", self.retransmits)?;
        writeln!(f, "errors        {}", self.errors.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_latencies() {
        let mut histogram = latencies();
        for us in 1..=1000 {
            histogram.record(us * 1000).expect("within the bounds");
        }
        let summary = Summary::new(&histogram, 1000, 500_000_000, 250_000_000, 0, Errors::default());
        assert!((summary.requests_per_s - 2000.0).abs() < 1e-6, "{summary:?}");
        assert!((summary.busy - 0.5).abs() < 1e-9);
        for (found, expected) in [
            (summary.p50_us, 500.0),
            (summary.p99_us, 990.0),
            (summary.p999_us, 999.0),
            (summary.max_us, 1000.0),
        ] {
            assert!((found / expected - 1.0).abs() < 0.002, "{found} is not {expected}");
        }
    }

    #[test]
    fn a_load_without_replies_or_with_errors_has_failed() {
        assert!(Summary::default().check().is_err());
        let fine = Summary { requests: 1, ..Summary::default() };
        assert!(fine.check().is_ok());
        let mut errors = Errors::default();
        errors.note(BadReply::Status(507));
        let error = Summary { errors, ..fine }.check().expect_err("a wrong status");
        assert!(error.to_string().contains("507"), "{error}");
    }
}
