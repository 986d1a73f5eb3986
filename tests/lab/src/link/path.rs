//! What happens to the frames that go one way, and when: no clock and no device, so that a seed says it all.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// What a link does to the frames of one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// Bandwidth of the bottleneck, for whole Ethernet frames.
    pub bits_per_second: u64,
    /// Time from the end of sending to arrival.
    pub delay: Duration,
    /// Bytes that may wait before the bottleneck; a frame for which there is no room is lost.
    pub queue_bytes: u64,
    /// Share of frames that are lost behind the bottleneck, 0 to 1.
    pub loss: f64,
    /// How many frames are lost at a time. The share of frames lost stays [`loss`](Self::loss).
    pub burst: u32,
    /// Share of frames that come late, and so behind others that were sent after them.
    pub reorder: f64,
    /// By how much these are late.
    pub reorder_delay: Duration,
    /// Share of frames that are marked as a sign of congestion, of those that may be (RFC 3168).
    pub mark: f64,
}

impl Path {
    /// A path without faults, with a queue of one bandwidth-delay product, and of fifty frames at least.
    pub fn clean(bits_per_second: u64, round_trip: Duration) -> Self {
        let product = u128::from(bits_per_second) * round_trip.as_nanos() / 8_000_000_000;
        Self {
            bits_per_second,
            delay: round_trip / 2,
            queue_bytes: u64::try_from(product).unwrap_or(u64::MAX).max(50 * 1514),
            loss: 0.0,
            burst: 1,
            reorder: 0.0,
            reorder_delay: round_trip / 8,
            mark: 0.0,
        }
    }
}

/// What became of the frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathCounters {
    /// Frames that a host sent.
    pub sent: u64,
    /// Of these, lost by chance.
    pub lost: u64,
    /// Lost since the queue was full.
    pub overflowed: u64,
    /// Late.
    pub reordered: u64,
    /// Marked as a sign of congestion.
    pub marked: u64,
}

/// A frame's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It arrives so many nanoseconds after the link's start.
    Arrives(u64),
    /// It does not.
    Lost,
}

/// One direction of a link.
pub(super) struct Direction {
    path: Path,
    rng: ChaCha8Rng,
    /// When the last frame before the bottleneck will have passed it.
    busy_until_ns: u64,
    /// Frames still to be lost of a burst.
    left_to_lose: u32,
    counters: PathCounters,
}

impl Direction {
    pub(super) fn new(path: Path, seed: u64) -> Self {
        Self {
            path,
            rng: ChaCha8Rng::seed_from_u64(seed),
            busy_until_ns: 0,
            left_to_lose: 0,
            counters: PathCounters::default(),
        }
    }

    /// From now on frames go another path. Those on their way stay on theirs.
    pub(super) fn change(&mut self, path: Path, seed: u64) {
        *self = Self { busy_until_ns: self.busy_until_ns, counters: self.counters, ..Self::new(path, seed) };
    }

    pub(super) fn counters(&self) -> PathCounters {
        self.counters
    }

    /// What becomes of a frame of so many bytes that a host sends at `now_ns`.
    pub(super) fn send(&mut self, now_ns: u64, frame_bytes: usize) -> Fate {
        let Self { path, counters, .. } = self;
        counters.sent += 1;
        // Drawn for each frame, whatever becomes of it: which ones are lost is the seed's choice alone.
        let begins = self.rng.random_bool((path.loss / f64::from(path.burst.max(1))).min(1.0));
        let is_late = self.rng.random_bool(path.reorder.min(1.0));
        if begins && self.left_to_lose == 0 {
            self.left_to_lose = path.burst.max(1);
        }
        let is_lost = self.left_to_lose > 0;
        self.left_to_lose = self.left_to_lose.saturating_sub(1);

        let byte_ns = |bytes: u64| {
            u64::try_from(u128::from(bytes) * 8_000_000_000 / u128::from(path.bits_per_second.max(1)))
                .unwrap_or(u64::MAX)
        };
        let waiting_ns = self.busy_until_ns.saturating_sub(now_ns);
        let waiting_bytes = u128::from(waiting_ns) * u128::from(path.bits_per_second) / 8_000_000_000;
        // Counted is what waits, not what is being sent.
        if waiting_bytes > u128::from(path.queue_bytes) {
            counters.overflowed += 1;
            return Fate::Lost;
        }
        self.busy_until_ns = self.busy_until_ns.max(now_ns).saturating_add(byte_ns(frame_bytes as u64));
        if is_lost {
            counters.lost += 1;
            return Fate::Lost;
        }
        let mut arrives_ns = self.busy_until_ns.saturating_add(path.delay.as_nanos() as u64);
        if is_late {
            counters.reordered += 1;
            arrives_ns = arrives_ns.saturating_add(path.reorder_delay.as_nanos() as u64);
        }
        Fate::Arrives(arrives_ns)
    }

    /// Marks a frame, if chance will have it and if it may be.
    pub(super) fn mark(&mut self, frame: &mut [u8]) {
        if self.path.mark > 0.0 && self.rng.random_bool(self.path.mark.min(1.0)) && mark(frame) {
            self.counters.marked += 1;
        }
    }
}

/// Says in an IP packet that there is congestion; false if nobody would heed that (RFC 3168, section 5).
fn mark(frame: &mut [u8]) -> bool {
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, version, class, rest @ ..]
            if rest.len() >= 18 && *class & 3 != 0 =>
        {
            let before = u16::from_be_bytes([*version, *class]);
            *class |= 3;
            let after = u16::from_be_bytes([*version, *class]);
            // RFC 1624, equation 3.
            let sum = u16::from_be_bytes([rest[8], rest[9]]);
            let sum = u32::from(!sum) + u32::from(!before) + u32::from(after);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            rest[8..10].copy_from_slice(&sum.to_be_bytes());
            true
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, _, class, ..] if *class & 0x30 != 0 => {
            *class |= 0x30;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: u64 = 1_000_000;

    fn path() -> Path {
        Path::clean(80 * MBIT, Duration::from_millis(10))
    }

    /// The numbers of the frames that are lost of so many.
    fn lost(path: Path, seed: u64, frames: usize) -> Vec<usize> {
        let mut direction = Direction::new(path, seed);
        // Far enough apart that none waits.
        let fate = |n: usize| direction.send(n as u64 * 1_000_000, 1_000);
        let fates: Vec<Fate> = (0..frames).map(fate).collect();
        (0..frames).filter(|&n| fates[n] == Fate::Lost).collect()
    }

    #[test]
    fn frames_leave_at_the_rate_and_arrive_after_the_delay() {
        let mut direction = Direction::new(path(), 1);
        // 1,000 bytes at 80 Mbit/s take 100 us.
        assert_eq!(direction.send(7, 1_000), Fate::Arrives(7 + 100_000 + 5_000_000));
        assert_eq!(direction.send(7, 1_000), Fate::Arrives(7 + 200_000 + 5_000_000));
        assert_eq!(direction.send(900_000, 500), Fate::Arrives(900_000 + 50_000 + 5_000_000));
    }

    #[test]
    fn a_full_queue_loses_the_frames_at_its_end_and_drains_at_the_rate() {
        let mut direction = Direction::new(Path { queue_bytes: 10_000, ..path() }, 1);
        let arrived = (0..100).filter(|_| direction.send(0, 1_000) != Fate::Lost).count();
        // One is being sent while ten wait.
        assert_eq!(arrived, 11);
        assert_eq!(
            direction.counters(),
            PathCounters { sent: 100, overflowed: 89, ..PathCounters::default() }
        );
        assert_eq!(direction.send(99_000, 1_000), Fate::Lost);
        assert_ne!(direction.send(100_000, 1_000), Fate::Lost);
    }

    #[test]
    fn as_many_are_lost_as_asked_and_the_same_for_the_same_seed() {
        let random = Path { loss: 0.01, ..path() };
        let first = lost(random, 7, 100_000);
        assert!((850..1_150).contains(&first.len()), "{}", first.len());
        assert_eq!(lost(random, 7, 100_000), first);
        assert_ne!(lost(random, 8, 100_000), first);
        assert!(lost(path(), 7, 100_000).is_empty());
    }

    #[test]
    fn bursts_lose_neighbors_and_no_more_in_all() {
        let bursts = lost(Path { loss: 0.01, burst: 4, ..path() }, 7, 100_000);
        assert!((700..1_300).contains(&bursts.len()), "{}", bursts.len());
        for burst in bursts.chunks_exact(4) {
            assert_eq!(burst[3] - burst[0], 3, "{burst:?}");
        }
    }

    #[test]
    fn which_frames_are_lost_does_not_hang_on_the_queue() {
        let random = Path { loss: 0.05, queue_bytes: 3_000, ..path() };
        let mut crowded = Direction::new(random, 7);
        let mut arrived = Vec::new();
        for n in 0..1_000 {
            let before = crowded.counters().lost;
            crowded.send(n as u64 * 70_000, 1_000);
            if crowded.counters().lost > before {
                arrived.push(n);
            }
        }
        assert!(crowded.counters().overflowed > 100);
        let alone = lost(Path { queue_bytes: u64::MAX, ..random }, 7, 1_000);
        assert!(arrived.iter().all(|n| alone.contains(n)), "{arrived:?} of {alone:?}");
    }

    #[test]
    fn late_frames_come_behind_later_ones() {
        let mut direction = Direction::new(Path { reorder: 0.01, ..path() }, 7);
        let mut late = 0;
        for n in 0..10_000_u64 {
            let Fate::Arrives(at) = direction.send(n * 100_000, 1_000) else { panic!("no frame is lost") };
            let on_time = n * 100_000 + 100_000 + 5_000_000;
            if at != on_time {
                assert_eq!(at, on_time + 1_250_000);
                late += 1;
            }
        }
        assert_eq!(direction.counters().reordered, late);
        assert!((60..150).contains(&late), "{late}");
    }
}
