//! When the next request is due, and the first reply.

use std::time::Duration;

/// How much longer than the time of a measurement a server may take for the first reply of it.
pub const FIRST_REPLY: Duration = Duration::from_secs(5);

/// How requests follow each other.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Closed loop: a reply makes the next request due.
    Closed,
    /// Open loop: requests are due at even intervals, whatever the server does.
    Open {
        /// Requests a second.
        per_second: u64,
        /// Requests that were started so far.
        started: u64,
    },
}

impl Pace {
    /// Requests at even intervals.
    pub fn open(per_second: u64) -> Self {
        Self::Open { per_second, started: 0 }
    }

    /// The time of the oldest request that is due at `now_ns` and not started; it counts as started then. Times are
    /// in nanoseconds since the run began.
    ///
    /// A request that found no free connection keeps the time at which it was due, so that a server that stands
    /// still has its delay counted for each request that it held up, not for one.
    pub fn take_due(&mut self, now_ns: u64) -> Option<u64> {
        match self {
            Self::Closed => Some(now_ns),
            Self::Open { per_second, started } => {
                let due = (u128::from(*started) * 1_000_000_000 / u128::from(*per_second)) as u64;
                (due <= now_ns).then(|| {
                    *started += 1;
                    due
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_does_not_wait_for_the_server() {
        let mut pace = Pace::open(1000);
        assert_eq!(pace.take_due(0), Some(0));
        assert_eq!(pace.take_due(999_999), None);
        // Nobody asked for 3 ms: what was due meanwhile is still due, at its own time.
        let late: Vec<_> = std::iter::from_fn(|| pace.take_due(3_500_000)).collect();
        assert_eq!(late, [1_000_000, 2_000_000, 3_000_000]);
    }

    #[test]
    fn an_open_loop_keeps_its_rate_for_long() {
        let mut pace = Pace::Open { per_second: 3, started: 3 * 86_400 };
        assert_eq!(pace.take_due(86_400 * 1_000_000_000), Some(86_400 * 1_000_000_000));
    }

    #[test]
    fn in_a_closed_loop_a_request_is_due_when_it_can_be_sent() {
        assert_eq!(Pace::Closed.take_due(17), Some(17));
    }
}
