//! BBR: a model of the path, of the rate at which it delivers and of its round trip without a queue, says how fast to send
//! and how much may be in flight. Losses that come by chance do not slow it.
//!
//! This is version 1 (draft-cardwell-iccrg-bbr-congestion-control-00), which Linux has, with the aggregation of
//! acknowledgements that Linux added, and with what the IETF's draft (draft-ietf-ccwg-bbr) does better in small: half of
//! the product of rate and round trip, not four segments, stays in flight while the round trip is measured. Of the draft's
//! version 3 the answer to losses is left out: beyond 2 % of loss it gives way, where version 1 keeps the path full.

use std::time::Duration;

use stack_net::time::Instant;

use super::pace::burst_bytes;
use super::{Acked, Control, Loss, MAX_WINDOW_BYTES, Window, initial_window};
use crate::tcp::scoreboard::RateSample;
use crate::tcp::seq::Seq;

/// A gain, in 256ths.
type Gain = u64;
const UNIT: Gain = 256;
/// 2 / ln 2, with which the rate doubles each round trip, and its inverse, which empties the queue that this leaves.
const STARTUP_GAIN: Gain = 739;
const DRAIN_GAIN: Gain = 88;
/// Room for acknowledgements that are late.
const CWND_GAIN: Gain = 2 * UNIT;
/// What is tried in a cycle, each for one round trip: more than the path took, less, and as much.
const CYCLE: [Gain; 8] = [320, 192, UNIT, UNIT, UNIT, UNIT, UNIT, UNIT];

/// Rounds in which the rate does not grow by a quarter: the path is full.
const FULL_ROUNDS: u8 = 3;
/// Rounds that one of the two halves of the rate's filter covers: as many as a cycle has.
const RATE_ROUNDS: u32 = 8;
/// How long a round trip stays the shortest, and how long little is in flight then to measure it anew.
const MIN_RTT_VALID: Duration = Duration::from_secs(10);
const PROBE_RTT: Duration = Duration::from_millis(200);
/// Rounds that one of the two halves of the filter of late acknowledgements covers, and the most that counts of them.
const EXTRA_ROUNDS: u32 = 5;
const EXTRA_MOST: Duration = Duration::from_millis(100);
/// Bursts that are under way beside: one is being sent, one received, one on its way between the two.
const BURSTS: u32 = 3;
/// Fewest segments in flight, with which a receiver that delays acknowledgements still sends one for each second.
const LEAST_SEGMENTS: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Startup,
    Drain,
    /// With the place in the cycle.
    ProbeRate(u8),
    ProbeRtt,
}

#[derive(Clone, Debug)]
pub(crate) struct Bbr {
    mode: Mode,
    /// Whether the path has been full since the start.
    is_full: bool,
    full_rounds: u8,
    /// Whether only as much is sent as has arrived: the first round trip of a recovery.
    conserves: bool,
    is_recovering: bool,
    /// Whether nothing was in flight when the last segment was sent.
    was_idle: bool,
    /// The rate by which `full_rounds` counts, in bytes per second.
    full_rate: u64,
    rounds: u32,
    /// The round ends with an acknowledgement of what was sent after so much had arrived.
    round_end: Seq,
    /// The most bytes per second.
    rate: TwoHalves,
    min_rtt_us: u32,
    min_rtt_at: Instant,
    /// When the present phase of a cycle began, or when the round trip is measured until.
    since: Instant,
    /// The window before a recovery, or before the round trip was measured.
    prior_cwnd: u32,
    /// Bytes that came beyond the rate.
    extra: TwoHalves,
    /// Since when those are counted, and the bytes that have arrived since.
    extra_since: Instant,
    extra_bytes: u64,
    pacing_rate: u64,
}

/// The largest of the values of the last rounds: more than one half's, and no more than two.
#[derive(Clone, Debug)]
struct TwoHalves {
    before: u64,
    now: u64,
    began: u32,
}

impl TwoHalves {
    fn new() -> Self {
        Self { before: 0, now: 0, began: 0 }
    }

    fn take(&mut self, value: u64, round: u32, rounds: u32) {
        if round.wrapping_sub(self.began) >= rounds {
            (self.before, self.now, self.began) = (self.now, 0, round);
        }
        self.now = self.now.max(value);
    }

    fn most(&self) -> u64 {
        self.before.max(self.now)
    }
}

impl Control for Bbr {
    fn new() -> Self {
        Self {
            mode: Mode::Startup,
            is_full: false,
            full_rounds: 0,
            conserves: false,
            is_recovering: false,
            was_idle: false,
            full_rate: 0,
            rounds: 0,
            round_end: Seq(0),
            rate: TwoHalves::new(),
            min_rtt_us: u32::MAX,
            min_rtt_at: Instant::ZERO,
            since: Instant::ZERO,
            prior_cwnd: 0,
            extra: TwoHalves::new(),
            extra_since: Instant::ZERO,
            extra_bytes: 0,
            pacing_rate: 0,
        }
    }

    fn on_ack(&mut self, window: &mut Window, acked: &Acked) {
        if let Some(sample) = &acked.rate {
            let round_begins = self.take_rate(sample);
            self.note_extra(acked, window);
            self.judge_fullness(sample, round_begins);
        }
        self.advance(acked);
        self.take_rtt(window, acked);
        self.set_rate(acked);
        self.set_window(window, acked);
        self.was_idle = false;
    }

    fn on_recovery(&mut self, window: &mut Window, loss: &Loss) {
        if !self.is_recovering && self.mode != Mode::ProbeRtt {
            self.prior_cwnd = window.cwnd;
        }
        (self.is_recovering, self.conserves) = (true, true);
        window.cwnd = loss.flight.max(least_window(loss.mss)).min(window.cwnd);
    }

    fn on_recovered(&mut self, window: &mut Window, _flight: u32, _mss: u32) {
        (self.is_recovering, self.conserves) = (false, false);
        if self.mode != Mode::ProbeRtt {
            window.cwnd = window.cwnd.max(self.prior_cwnd);
        }
    }

    fn on_timeout(&mut self, window: &mut Window, loss: &Loss, first: bool) {
        if first && !self.is_recovering && self.mode != Mode::ProbeRtt {
            self.prior_cwnd = window.cwnd;
        }
        (self.is_recovering, self.conserves) = (false, false);
        self.full_rate = 0;
        window.cwnd = loss.mss;
    }

    fn on_undo(&mut self, window: &mut Window) {
        self.full_rounds = 0;
        (self.is_recovering, self.conserves) = (false, false);
        window.cwnd = window.cwnd.max(self.prior_cwnd);
    }

    fn on_sent(&mut self, flight: u32) {
        // What was not sent for want of data is no sign of a slow path.
        self.was_idle = flight == 0;
        if self.was_idle {
            self.extra_bytes = 0;
        }
    }

    fn pacing_rate(&self, _: &Window, _: u32) -> u64 {
        self.pacing_rate
    }
}

impl Bbr {
    /// Takes a measurement of the rate in; says whether a round begins with it.
    fn take_rate(&mut self, sample: &RateSample) -> bool {
        let begins = Seq(sample.delivered_before).at_or_after(self.round_end);
        if begins {
            self.round_end = Seq(sample.delivered_before) + sample.bytes;
            self.rounds = self.rounds.wrapping_add(1);
            self.conserves = false;
        }
        // Acknowledgements that came faster than any round trip say nothing about the path.
        let is_reliable = self.min_rtt_us == u32::MAX || sample.interval_us >= self.min_rtt_us;
        let rate = u64::from(sample.bytes) * 1_000_000 / u64::from(sample.interval_us.max(1));
        let is_slow_by_choice = sample.is_limited || self.mode == Mode::ProbeRtt;
        if is_reliable && (!is_slow_by_choice || rate >= self.rate.most()) {
            self.rate.take(rate, self.rounds, RATE_ROUNDS);
        }
        begins
    }

    fn judge_fullness(&mut self, sample: &RateSample, round_begins: bool) {
        if self.is_full || !round_begins || sample.is_limited {
            return;
        }
        let most = self.rate.most();
        if most >= self.full_rate + self.full_rate / 4 {
            (self.full_rate, self.full_rounds) = (most, 0);
            return;
        }
        self.full_rounds += 1;
        self.is_full = self.full_rounds >= FULL_ROUNDS;
    }

    /// From one mode to the next.
    fn advance(&mut self, acked: &Acked) {
        if self.mode == Mode::Startup && self.is_full {
            self.mode = Mode::Drain;
        }
        if self.mode == Mode::Drain && acked.flight <= self.bdp(UNIT) {
            // Flows that begin together do not probe together. The second phase is for after the first.
            let place = 2 + (acked.now.as_micros() / 64 % 7) as u8;
            self.mode = Mode::ProbeRate(place % CYCLE.len() as u8);
            self.since = acked.now;
        }
        let Mode::ProbeRate(place) = self.mode else { return };
        let round_is_over = acked.now.micros_since(self.since) > u64::from(self.min_rtt_us);
        let gain = CYCLE[usize::from(place)];
        let is_over = if gain > UNIT {
            // Until the path has been given as much, unless it loses it.
            round_is_over && (acked.loses || acked.flight >= self.bdp(gain))
        } else if gain < UNIT {
            round_is_over || acked.flight <= self.bdp(UNIT)
        } else {
            round_is_over
        };
        if is_over {
            self.mode = Mode::ProbeRate((place + 1) % CYCLE.len() as u8);
            self.since = acked.now;
        }
    }

    fn take_rtt(&mut self, window: &mut Window, acked: &Acked) {
        let now = acked.now;
        let is_stale = now > self.min_rtt_at + MIN_RTT_VALID;
        if let Some(rtt_us) = acked.rtt_us
            && (rtt_us <= self.min_rtt_us || is_stale)
        {
            (self.min_rtt_us, self.min_rtt_at) = (rtt_us.max(1), now);
        }
        let is_known = self.min_rtt_us != u32::MAX && self.min_rtt_at != Instant::ZERO;
        if is_stale && is_known && !self.was_idle && self.mode != Mode::ProbeRtt && self.rounds > 1 {
            self.mode = Mode::ProbeRtt;
            if !self.is_recovering {
                self.prior_cwnd = window.cwnd;
            }
            self.since = Instant::ZERO;
        }
        if self.mode != Mode::ProbeRtt {
            return;
        }
        let little = self.probe_window(acked.mss);
        if self.since == Instant::ZERO {
            if acked.flight <= little {
                self.since = now + PROBE_RTT;
                self.conserves = false;
            }
            return;
        }
        if now >= self.since {
            self.min_rtt_at = now;
            window.cwnd = window.cwnd.max(self.prior_cwnd);
            self.since = now;
            self.mode = if self.is_full { Mode::ProbeRate(2) } else { Mode::Startup };
        }
    }

    /// Bytes that arrived in a burst beyond what the rate explains: as much more may be in flight.
    fn note_extra(&mut self, acked: &Acked, window: &Window) {
        let elapsed_us = acked.now.micros_since(self.extra_since);
        let expected = per_micros(self.rate.most(), elapsed_us);
        if self.extra_bytes <= expected || self.extra_bytes > 1 << 30 {
            (self.extra_since, self.extra_bytes) = (acked.now, 0);
        }
        self.extra_bytes += u64::from(acked.bytes);
        let expected = per_micros(self.rate.most(), acked.now.micros_since(self.extra_since));
        let extra = self.extra_bytes.saturating_sub(expected).min(window.cwnd.into());
        self.extra.take(extra, self.rounds, EXTRA_ROUNDS);
    }

    fn set_rate(&mut self, acked: &Acked) {
        if self.pacing_rate == 0 {
            // What was measured so far is of the first few segments of a window.
            let rtt_us = u64::from(acked.srtt_us.max(1000));
            self.pacing_rate = self.paced(u64::from(initial_window(acked.mss)) * 1_000_000 / rtt_us);
        }
        let paced = self.paced(self.rate.most());
        if self.is_full || paced > self.pacing_rate {
            self.pacing_rate = paced;
        }
    }

    /// One in a hundred less than the mode's gain makes of a rate, so that queues do not grow by what is measured too high.
    fn paced(&self, rate: u64) -> u64 {
        rate * self.pacing_gain() / UNIT * 99 / 100
    }

    fn set_window(&mut self, window: &mut Window, acked: &Acked) {
        let least = least_window(acked.mss);
        if self.conserves {
            let arrives = acked.flight.saturating_add(acked.bytes);
            window.cwnd = window.cwnd.max(arrives).min(MAX_WINDOW_BYTES);
            return;
        }
        let rate = self.rate.most();
        let extra = self.extra.most().min(per_micros(rate, EXTRA_MOST.as_micros() as u64));
        let target = self
            .bdp(self.cwnd_gain())
            .saturating_add(extra as u32)
            .saturating_add(BURSTS * burst_bytes(self.pacing_rate, acked.mss, acked.srtt_us));
        let grown = window.cwnd.saturating_add(acked.bytes);
        if self.is_full {
            window.cwnd = grown.min(target);
        } else if window.cwnd < target || rate == 0 {
            window.cwnd = grown;
        }
        window.cwnd = window.cwnd.clamp(least, MAX_WINDOW_BYTES);
        if self.mode == Mode::ProbeRtt {
            window.cwnd = window.cwnd.min(self.probe_window(acked.mss));
        }
    }

    fn probe_window(&self, mss: u32) -> u32 {
        (self.bdp(UNIT) / 2).max(least_window(mss))
    }

    /// The product of rate and shortest round trip, by `gain`.
    fn bdp(&self, gain: Gain) -> u32 {
        if self.min_rtt_us == u32::MAX {
            return MAX_WINDOW_BYTES;
        }
        let bytes = per_micros(self.rate.most(), self.min_rtt_us.into()).saturating_mul(gain) / UNIT;
        bytes.min(MAX_WINDOW_BYTES.into()) as u32
    }

    fn pacing_gain(&self) -> Gain {
        match self.mode {
            Mode::Startup => STARTUP_GAIN,
            Mode::Drain => DRAIN_GAIN,
            Mode::ProbeRate(place) => CYCLE[usize::from(place)],
            Mode::ProbeRtt => UNIT,
        }
    }

    fn cwnd_gain(&self) -> Gain {
        match self.mode {
            Mode::Startup | Mode::Drain => STARTUP_GAIN,
            Mode::ProbeRate(_) => CWND_GAIN,
            Mode::ProbeRtt => UNIT,
        }
    }
}

fn least_window(mss: u32) -> u32 {
    LEAST_SEGMENTS * mss
}

/// Bytes that come at `rate` in so many microseconds.
fn per_micros(rate: u64, micros: u64) -> u64 {
    (u128::from(rate) * u128::from(micros) / 1_000_000).min(u64::MAX.into()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u32 = 1000;

    /// A path of so many bytes a second and so long a round trip, with a queue without end, and a sender with data
    /// without end that keeps to the rate and the window. Time goes by milliseconds.
    struct Run {
        bbr: Bbr,
        window: Window,
        rate: u64,
        rtt_ms: i64,
        now_ms: i64,
        /// Bytes in the queue, and those that come to be acknowledged in each of the next milliseconds.
        queue: u64,
        coming: std::collections::VecDeque<u64>,
        flight: u64,
        delivered: u32,
        /// Delivered by each millisecond.
        before: Vec<u32>,
        credit: u64,
    }

    impl Run {
        fn new(rate: u64, rtt_ms: i64) -> Self {
            Self {
                bbr: Bbr::new(),
                window: Window::initial(MSS),
                rate,
                rtt_ms,
                now_ms: 1,
                queue: 0,
                coming: vec![0; rtt_ms as usize].into(),
                flight: 0,
                delivered: 0,
                before: vec![0],
                credit: 0,
            }
        }

        fn rtt_of_queue_ms(&self) -> i64 {
            self.rtt_ms + (self.queue * 1000 / self.rate) as i64
        }

        fn step(&mut self) {
            let arrived = self.coming.pop_front().unwrap_or(0);
            if arrived > 0 {
                self.flight -= arrived;
                self.delivered += arrived as u32;
                let rtt_ms = self.rtt_of_queue_ms();
                let sent_ms = (self.now_ms - rtt_ms).max(0) as usize;
                let sample = RateSample {
                    bytes: self.delivered - self.before[sent_ms],
                    interval_us: (rtt_ms * 1000) as u32,
                    delivered_before: self.before[sent_ms],
                    is_limited: false,
                };
                let acked = Acked {
                    now: Instant::from_millis(self.now_ms),
                    mss: MSS,
                    bytes: arrived as u32,
                    ack: Seq(self.delivered),
                    sent_to: Seq(self.delivered) + self.flight as u32,
                    rtt_us: Some((rtt_ms * 1000) as u32),
                    srtt_us: (rtt_ms * 1000) as u32,
                    flight: self.flight as u32,
                    rate: Some(sample),
                    loses: false,
                };
                self.bbr.on_ack(&mut self.window, &acked);
            }
            let room = u64::from(self.window.cwnd).saturating_sub(self.flight);
            self.credit = match self.bbr.pacing_rate {
                0 => room,
                rate => (self.credit + rate / 1000).min(rate / 500),
            };
            let sent = room.min(self.credit);
            self.credit -= sent;
            self.flight += sent;
            self.queue += sent;
            let leaves = self.queue.min(self.rate / 1000);
            self.queue -= leaves;
            self.coming.push_back(leaves);
            self.before.push(self.delivered);
            self.now_ms += 1;
        }

        fn run(&mut self, ms: i64) {
            for _ in 0..ms {
                self.step();
            }
        }
    }

    #[test]
    fn the_path_is_found_and_the_queue_of_the_start_drained() {
        let mut run = Run::new(10_000_000, 20);
        run.run(700);
        assert!(matches!(run.bbr.mode, Mode::ProbeRate(_)), "{:?}", run.bbr);
        let rate = run.bbr.rate.most();
        assert!((9_500_000..=10_500_000).contains(&rate), "{rate}");
        assert_eq!(run.bbr.min_rtt_us, 20_000);
        let mut most = 0;
        for _ in 0..2000 {
            run.step();
            most = most.max(run.queue);
        }
        // A quarter of a round trip's worth, while a cycle tries for more.
        assert!(most <= 200_000 / 4 + 20_000, "{most} bytes in the queue");
        assert!(run.delivered > 9_500 * 2500, "{}", run.delivered);
    }

    #[test]
    fn a_path_that_becomes_slower_or_faster_is_found_anew() {
        let mut run = Run::new(10_000_000, 20);
        run.run(1000);
        run.rate = 5_000_000;
        run.run(2000);
        let rate = run.bbr.rate.most();
        assert!((4_700_000..=5_300_000).contains(&rate), "{rate}");
        run.rate = 20_000_000;
        run.run(4000);
        let rate = run.bbr.rate.most();
        assert!((18_000_000..=21_000_000).contains(&rate), "{rate}");
    }

    /// The shortest round trip is measured anew every 10 s, with half of the product in flight.
    #[test]
    fn the_round_trip_is_measured_anew() {
        let mut run = Run::new(10_000_000, 20);
        run.run(1000);
        // The path becomes longer.
        run.rtt_ms += 4;
        run.coming.extend([0; 4]);
        run.run(9_000);
        assert_eq!(run.bbr.min_rtt_us, 20_000);
        let mut least = u64::MAX;
        for _ in 0..2_000 {
            run.step();
            least = least.min(run.flight);
        }
        assert!((100_000..=130_000).contains(&least), "{least}");
        assert_eq!(run.bbr.min_rtt_us, 24_000);
        assert!(matches!(run.bbr.mode, Mode::ProbeRate(_)), "{:?}", run.bbr);
        let delivered = run.delivered;
        run.run(1000);
        assert!(run.delivered - delivered > 9_500_000);
    }

    #[test]
    fn a_filter_forgets_after_two_halves() {
        let mut most = TwoHalves::new();
        most.take(100, 0, 8);
        for round in 1..8 {
            most.take(50, round, 8);
        }
        assert_eq!(most.most(), 100);
        for round in 8..16 {
            most.take(40, round, 8);
            assert_eq!(most.most(), 100);
        }
        most.take(30, 16, 8);
        assert_eq!(most.most(), 40);
    }

    #[test]
    fn after_a_recovery_the_window_is_what_it_was() {
        let mut run = Run::new(10_000_000, 20);
        run.run(1000);
        let before = run.window;
        let loss = Loss { mss: MSS, flight: 150_000, sent_to: Seq(0), was_full: true, is_mark: false };
        run.bbr.on_recovery(&mut run.window, &loss);
        assert_eq!(run.window.cwnd, 150_000, "as much as is in flight");
        run.bbr.on_recovered(&mut run.window, 100_000, MSS);
        assert_eq!(run.window, before);
        run.bbr.on_timeout(&mut run.window, &loss, true);
        assert_eq!(run.window.cwnd, MSS);
        run.bbr.on_undo(&mut run.window);
        assert_eq!(run.window, before);
    }
}
