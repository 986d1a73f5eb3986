//! When a commit is started that takes long: what comes while it is under way waits for the next one.
//!
//! Clients that are answered by a commit send their next requests right behind it. A commit that was started with the first
//! of these would leave out all others, and half of all commits would carry nearly nothing.

use std::time::Duration;

use crate::time::Instant;

/// The part of a commit's time that the next one may be held back: what it costs those who wait for nobody.
const HELD_PART: u32 = 8;
/// It is not held back for longer.
const HELD_MAX: Duration = Duration::from_millis(1);

/// What decides when the next commit is started.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Log entries in the last two commits.
    sizes: [u64; 2],
    /// How long the last one took.
    took: Duration,
    /// The first entry that is in no commit that was started.
    next: u64,
    /// Since when there is something for the next one.
    since: Option<Instant>,
}

impl Group {
    /// Before any commit, in a log whose next entry is `next`.
    pub(crate) fn new(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    /// How long the entries up to `next` are still held back; zero when as many have come as the last commits had, or after
    /// a small part of the time that a commit takes.
    pub(crate) fn holds(&mut self, now: Instant, next: u64) -> Duration {
        let usual = self.sizes[0].max(self.sizes[1]);
        if next - self.next >= usual {
            return Duration::ZERO;
        }
        let since = *self.since.get_or_insert(now);
        (self.took / HELD_PART).min(HELD_MAX).saturating_sub(now - since)
    }

    /// A commit was started with all entries before `next`.
    pub(crate) fn started(&mut self, next: u64) {
        self.sizes = [self.sizes[1], next - self.next];
        (self.next, self.since) = (next, None);
    }

    /// A commit is done.
    pub(crate) fn done(&mut self, took: Duration) {
        self.took = took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: Duration = Duration::from_micros(400);

    fn at(us: i64) -> Instant {
        Instant::from_micros(us)
    }

    #[test]
    fn a_lone_client_is_never_held_back() {
        let mut group = Group::new(1);
        for seq in 2..20 {
            assert_eq!(group.holds(at(seq as i64), seq), Duration::ZERO);
            group.started(seq);
            group.done(COMMIT);
        }
    }

    #[test]
    fn a_commit_waits_for_those_whom_the_last_one_answered_and_not_for_long() {
        let mut group = Group::new(1);
        assert_eq!(group.holds(at(0), 51), Duration::ZERO);
        group.started(51);
        group.done(COMMIT);
        assert_eq!(group.holds(at(1000), 52), COMMIT / 8);
        assert_eq!(group.holds(at(1020), 80), Duration::from_micros(30));
        assert_eq!(group.holds(at(1030), 101), Duration::ZERO, "all are there");
        assert_eq!(group.holds(at(1050), 99), Duration::ZERO, "time is up");
        group.started(99);
        group.done(Duration::from_secs(1));
        assert_eq!(group.holds(at(2000), 100), HELD_MAX);
    }
}
