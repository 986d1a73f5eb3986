//! A hierarchical timer wheel: setting, moving and cancelling a deadline take constant time.

use stack_net::time::Instant;

/// Slots of a level; a level's occupancy fits one word.
const SLOTS: usize = 64;
/// Levels: 3.2 ms, 0.2 s, 13 s, 14 min; what is further away is looked at again on the way.
const LEVELS: usize = 4;
/// What a timer may be late: little beside the round trip of a local network.
pub(crate) const TICK_US: u32 = 50;
/// The longest distance in ticks that the wheel can express.
const HORIZON: u64 = 1 << (6 * LEVELS);
/// Beyond every deadline.
pub(crate) const NEVER: Instant = Instant::from_micros(i64::MAX);
/// A link that leads nowhere.
const NONE: u32 = u32::MAX;

/// Deadlines of up to a fixed number of timers, each known by its index, in [ticks](TICK_US).
#[derive(Debug)]
pub(crate) struct TimerWheel {
    /// Before this moment nothing is due, whatever the slots say: a look at the clock is all that most calls take.
    quiet_until: Instant,
    /// Everything before this tick has fired.
    now: u64,
    /// Where each timer is linked in.
    entries: Box<[Entry]>,
    /// The first timer of each slot, level by level.
    heads: [u32; SLOTS * LEVELS],
    /// A bit for each slot that is not empty.
    occupied: [u64; LEVELS],
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    deadline: u64,
    next: u32,
    /// The timer before this one; for the first one of a slot `NONE`.
    previous: u32,
    /// The slot, or `NONE` when the timer is not set.
    slot: u32,
}

impl TimerWheel {
    pub(crate) fn new(timers: usize, now: Instant) -> Self {
        let unset = Entry { deadline: 0, next: NONE, previous: NONE, slot: NONE };
        Self {
            quiet_until: NEVER,
            now: tick_before(now),
            entries: vec![unset; timers].into_boxed_slice(),
            heads: [NONE; SLOTS * LEVELS],
            occupied: [0; LEVELS],
        }
    }

    /// Sets a timer that is unset or set for later; leaves one alone that is set for earlier.
    pub(crate) fn bring_forward(&mut self, timer: u32, at: Instant) {
        let entry = &self.entries[timer as usize];
        let deadline = tick_after(at);
        if entry.slot == NONE || deadline < entry.deadline {
            self.set(timer, at);
        }
    }

    /// Sets or moves a timer.
    pub(crate) fn set(&mut self, timer: u32, at: Instant) {
        self.cancel(timer);
        self.entries[timer as usize].deadline = tick_after(at);
        self.link(timer);
    }

    pub(crate) fn cancel(&mut self, timer: u32) {
        let Entry { next, previous, slot, .. } = self.entries[timer as usize];
        if slot == NONE {
            return;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            self.heads[slot as usize] = next;
            if next == NONE {
                self.occupied[slot as usize / SLOTS] &= !(1 << (slot as usize % SLOTS));
            }
        }
        self.entries[timer as usize].slot = NONE;
    }

    /// Whether [`expire`](Self::expire) may have something to do.
    #[inline]
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.quiet_until
    }

    /// Takes out one timer that is due; called until there is none.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<u32> {
        if !self.is_due(now) {
            return None;
        }
        let target = tick_before(now);
        loop {
            let Some((level, slot, start)) = self.next_slot() else {
                self.quiet_until = NEVER;
                return None;
            };
            if start > target {
                self.quiet_until = start_of(start);
                return None;
            }
            self.now = self.now.max(start);
            let timer = self.heads[level * SLOTS + slot];
            self.cancel(timer);
            if self.entries[timer as usize].deadline <= target {
                return Some(timer);
            }
            // A slot of a higher level was reached: its timers move down to where they belong.
            self.link(timer);
        }
    }

    /// When [`expire`](Self::expire) has something to do next; never later than the first deadline.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.next_slot().map(|(_, _, start)| start_of(start))
    }

    /// The slot that comes up first, and the tick at which it does.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let mut first: Option<(usize, usize, u64)> = None;
        for level in 0..LEVELS {
            if self.occupied[level] == 0 {
                continue;
            }
            let shift = 6 * level as u32;
            let here = self.now >> shift;
            let ahead = self.occupied[level].rotate_right((here % SLOTS as u64) as u32).trailing_zeros();
            let place = here + u64::from(ahead);
            let start = (place << shift).max(self.now);
            if first.is_none_or(|(_, _, best)| start < best) {
                first = Some((level, (place % SLOTS as u64) as usize, start));
            }
        }
        first
    }

    fn link(&mut self, timer: u32) {
        // What is due is put on the present tick, and what is too far away as far as the wheel goes.
        let deadline =
            self.entries[timer as usize].deadline.clamp(self.now, self.now + HORIZON - HORIZON / 64);
        let mut level = 0;
        while level + 1 < LEVELS && (deadline >> (6 * level)) - (self.now >> (6 * level)) >= SLOTS as u64 {
            level += 1;
        }
        let place = deadline >> (6 * level);
        self.quiet_until = self.quiet_until.min(start_of(place << (6 * level)));
        let slot = level * SLOTS + (place % SLOTS as u64) as usize;
        let head = self.heads[slot];
        if head != NONE {
            self.entries[head as usize].previous = timer;
        }
        let entry = &mut self.entries[timer as usize];
        (entry.next, entry.previous, entry.slot) = (head, NONE, slot as u32);
        self.heads[slot] = timer;
        self.occupied[level] |= 1 << (slot % SLOTS);
    }
}

/// The last tick that has begun: a timer never fires early.
fn tick_before(at: Instant) -> u64 {
    u64::try_from(at.as_micros()).unwrap_or(0) / u64::from(TICK_US)
}

/// When a tick begins.
fn start_of(tick: u64) -> Instant {
    Instant::from_micros(tick.saturating_mul(TICK_US.into()).min(i64::MAX as u64) as i64)
}

/// The first tick that is not before `at`.
fn tick_after(at: Instant) -> u64 {
    u64::try_from(at.as_micros()).unwrap_or(0).div_ceil(TICK_US.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fires_at_the_deadline_and_not_before() {
        let mut wheel = TimerWheel::new(2, Instant::from_micros(1_005));
        wheel.set(0, Instant::from_micros(2_025));
        wheel.set(1, Instant::from_secs(100));
        assert_eq!(wheel.next_deadline(), Some(Instant::from_micros(2_050)));
        assert_eq!(wheel.expire(Instant::from_micros(2_049)), None);
        assert_eq!(wheel.expire(Instant::from_micros(2_050)), Some(0));
        assert_eq!(wheel.expire(Instant::from_micros(2_050)), None);
        wheel.cancel(1);
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn a_deadline_only_moves_forward() {
        let mut wheel = TimerWheel::new(1, Instant::ZERO);
        wheel.bring_forward(0, Instant::from_millis(50));
        wheel.bring_forward(0, Instant::from_millis(70));
        assert_eq!(wheel.expire(Instant::from_millis(50)), Some(0));
        wheel.bring_forward(0, Instant::from_millis(70));
        wheel.bring_forward(0, Instant::from_millis(60));
        assert_eq!(wheel.expire(Instant::from_millis(60)), Some(0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Cancel(u32),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let distance = prop_oneof![0..200u64, 0..10_000u64, 0..2_000_000u64, 0..40_000_000u64];
        prop_oneof![
            (0..16u32, distance.clone()).prop_map(|(timer, ticks)| Step::Set(timer, ticks)),
            (0..16u32).prop_map(Step::Cancel),
            distance.prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Against a plain list of deadlines: the same timers fire at each step, and `next_deadline`
        /// never lies beyond the first of them.
        #[test]
        fn agrees_with_a_list(start in 0..100_000_000u64, steps in prop::collection::vec(step(), 1..80)) {
            let mut now = start;
            let at = |tick: u64| Instant::from_micros(tick as i64 * i64::from(TICK_US));
            let mut wheel = TimerWheel::new(16, at(now));
            let mut list = [None; 16];
            for step in steps {
                match step {
                    Step::Set(timer, ticks) => {
                        wheel.set(timer, at(now + ticks));
                        list[timer as usize] = Some(now + ticks);
                    }
                    Step::Cancel(timer) => {
                        wheel.cancel(timer);
                        list[timer as usize] = None;
                    }
                    Step::Wait(ticks) => {
                        now += ticks;
                        let mut fired = Vec::new();
                        while let Some(timer) = wheel.expire(at(now)) {
                            fired.push(timer);
                        }
                        fired.sort_unstable();
                        let mut due = Vec::new();
                        for (timer, deadline) in list.iter_mut().enumerate() {
                            if deadline.is_some_and(|deadline| deadline <= now) {
                                due.push(timer as u32);
                                *deadline = None;
                            }
                        }
                        prop_assert_eq!(fired, due);
                    }
                }
                match (wheel.next_deadline(), list.iter().flatten().min()) {
                    (None, None) => {}
                    (Some(next), Some(&first)) => prop_assert!(next <= at(first.max(now))),
                    (next, first) => prop_assert!(false, "next {next:?}, first {first:?}"),
                }
            }
        }
    }
}
