//! What is sent again, when, and what is not: losses of every pattern, and what only looks like one.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stack::net::{ConnId, Net};
use stack::transport::OverEndpoint as _;

use crate::script::Script;
use crate::talk::{Version, for_each_seed};
use crate::wire::{ACK, PSH, SYN, Seg, seg};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// The round trip of all scripts here.
const RTT: Duration = Duration::from_millis(40);

/// A script after a passive open over a path of 40 ms, with segments of 1,000 bytes.
struct Sender {
    s: Script,
    conn: ConnId,
    /// What the next timestamp of the remote is; none without timestamps.
    clock: Option<u32>,
    said: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Options {
    Sack,
    SackAndTimestamps,
    None,
}

impl Sender {
    fn new(options: Options) -> Self {
        Self::over(options, RTT)
    }

    /// Over a path with another round trip.
    fn over(options: Options, round_trip: Duration) -> Self {
        let mut s = Script::listening(Version::V4);
        let has_clock = options == Options::SackAndTimestamps;
        // Timestamps come off each segment.
        let mss = if has_clock { 1_012 } else { 1_000 };
        let mut syn = seg(SYN, 0, 0).mss(mss).sack_permitted(options != Options::None);
        syn.timestamps = has_clock.then_some((1_000, 0));
        s.send(syn);
        let answer = s.expect(seg(SYN | ACK, 0, 1).sack_permitted(options != Options::None));
        // The shortest of all. To take a segment in takes 50 us.
        s.advance(round_trip - (round_trip / 40).max(Duration::from_micros(50)));
        let mut ack = seg(ACK, 1, 1);
        ack.timestamps = answer.timestamps.map(|(value, _)| (1_040, value));
        s.send(ack);
        let Some(stack::net::Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
        Self { s, conn, clock: has_clock.then_some(1_040), said: 0 }
    }

    /// The application sends so many segments, each of which is a byte of its own number over and over.
    fn write(&mut self, segments: u32) {
        // So long a gigabit takes.
        self.write_for(segments, Duration::from_micros(500));
    }

    /// The same, and so much time passes.
    fn write_for(&mut self, segments: u32, time: Duration) {
        for _ in 0..segments {
            let piece = self.s.named(&[self.said as u8; 1_000]);
            self.s.stack.send_extent(self.conn, piece).expect("there is room");
            self.said += 1;
        }
        self.s.advance(time);
    }

    /// The numbers of the segments that were sent since it was last asked, each whole.
    #[track_caller]
    fn sent(&mut self) -> Vec<u32> {
        let mut numbers = vec![];
        while let Some(segment) = self.s.next() {
            if segment.payload.is_empty() {
                continue;
            }
            let number = (segment.seq - 1) / 1_000;
            assert_eq!(segment.seq, 1 + 1_000 * number, "{segment:?}");
            assert_eq!(segment.payload, [number as u8; 1_000]);
            numbers.push(number);
        }
        numbers
    }

    /// The remote acknowledges all segments before `next`, and has those of the ranges.
    fn ack(&mut self, next: u32, blocks: &[(u32, u32)]) {
        self.ack_for(next, blocks, Duration::from_micros(100));
    }

    /// The same, and so much time passes.
    fn ack_for(&mut self, next: u32, blocks: &[(u32, u32)], time: Duration) {
        let echo = self.clock.map(|_| self.s.stack_timestamp());
        self.ack_echoing_for(next, blocks, echo, time);
    }

    fn ack_echoing(&mut self, next: u32, blocks: &[(u32, u32)], echo: Option<u32>) {
        self.ack_echoing_for(next, blocks, echo, Duration::from_micros(100));
    }

    fn ack_echoing_for(&mut self, next: u32, blocks: &[(u32, u32)], echo: Option<u32>, time: Duration) {
        let blocks: Vec<_> = blocks.iter().map(|&(from, to)| (1 + 1_000 * from, 1 + 1_000 * to)).collect();
        let mut ack = seg(ACK, 1, 1 + 1_000 * next).sack(&blocks);
        if let (Some(clock), Some(echo)) = (&mut self.clock, echo) {
            *clock += 1;
            ack.timestamps = Some((*clock, echo));
        }
        self.s.send(ack);
        self.s.advance(time);
    }

    /// How long it takes until something is sent.
    #[track_caller]
    fn waits(&mut self) -> Duration {
        self.s.wait_for_segment(Duration::from_secs(5))
    }

    /// Timeouts, recoveries, probes, and losses that were none.
    fn counts(&self) -> (u64, u64, u64, u64) {
        let counters = self.s.stack.endpoint().counters();
        (counters.timeouts, counters.recoveries, counters.tail_probes, counters.undone)
    }
}

/// RFC 8985, section 6.2: when three segments have arrived that were sent after it, a segment is lost.
#[test]
fn rfc8985_6_2_a_hole_below_three_segments_is_filled_at_once() {
    for options in [Options::Sack, Options::SackAndTimestamps] {
        let mut p = Sender::new(options);
        p.write(6);
        assert_eq!(p.sent(), [0, 1, 2, 3, 4, 5]);
        p.s.advance(RTT);
        p.ack(0, &[(1, 2)]);
        p.ack(0, &[(1, 3)]);
        assert_eq!(p.sent(), []);
        p.ack(0, &[(1, 4)]);
        assert_eq!(p.sent(), [0]);
        p.ack(0, &[(1, 6)]);
        assert_eq!(p.sent(), [], "once");
        p.s.advance(RTT);
        p.ack(6, &[]);
        p.s.advance(Duration::from_secs(3));
        assert_eq!(p.sent(), []);
        assert_eq!(p.counts(), (0, 1, 0, 0));
        p.s.assert_nothing_leaked();
    }
}

/// RFC 8985, section 6.2, step 5: fewer are enough once a quarter of the round trip has passed.
#[test]
fn rfc8985_6_2_a_hole_below_one_segment_is_filled_after_the_time_that_reordering_takes() {
    let mut p = Sender::new(Options::Sack);
    p.write(2);
    assert_eq!(p.sent(), [0, 1]);
    p.s.advance(RTT);
    p.ack(0, &[(1, 2)]);
    assert_eq!(p.sent(), []);
    let waited = p.waits();
    assert!((RTT / 4 - MS(1)..RTT / 4 + MS(3)).contains(&waited), "{waited:?}");
    assert_eq!(p.sent(), [0]);
    assert_eq!(p.counts(), (0, 1, 0, 0));
}

/// RFC 8985, section 3.3.2: what comes late within that time is not sent again, and nor is it when it has been seen to.
#[test]
fn rfc8985_3_3_2_reordering_is_no_loss() {
    let mut p = Sender::new(Options::Sack);
    for round in 0..20 {
        let first = 6 * round;
        p.write(6);
        p.s.advance(RTT);
        p.ack(first, &[(first + 1, first + 2)]);
        // Once that was seen, not even three are a reason.
        p.ack(first, &[(first + 1, if round == 0 { first + 2 } else { first + 5 })]);
        p.s.advance(RTT / 8);
        p.ack(first + 6, &[]);
        assert_eq!(p.sent(), (first..first + 6).collect::<Vec<_>>());
    }
    assert_eq!(p.counts(), (0, 0, 0, 0));
}

/// RFC 6675, section 5: each hole is filled once, in their order, and nothing else is sent again.
#[test]
fn rfc6675_5_each_of_many_holes_is_filled_once() {
    for_each_seed(60, |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut p = Sender::new(if rng.random() { Options::Sack } else { Options::SackAndTimestamps });
        // The window opens.
        let mut first = 0;
        for _ in 0..2 {
            p.write(10);
            p.sent();
            p.s.advance(RTT);
            p.ack(first + 10, &[]);
            first += 10;
        }
        p.write(10);
        assert_eq!(p.sent().len(), 10);
        p.s.advance(RTT);
        let mut has: Vec<bool> = (0..10).map(|_| rng.random()).collect();
        // Enough behind the last hole.
        has[7..].fill(true);
        has[0] = false;
        let holes: Vec<u32> = (0..10).filter(|&at| !has[at as usize]).map(|at| first + at).collect();
        let mut told = vec![];
        for at in (0..10u32).filter(|&at| has[at as usize]) {
            told.insert(0, (first + at, first + at + 1));
            told.truncate(3);
            p.ack(first, &told);
        }
        let mut again = p.sent();
        // What was sent again arrives, one by one; each acknowledgement lets more out.
        let mut filled = 0;
        while filled < again.len() {
            p.s.advance(RTT / 4);
            has[(again[filled] - first) as usize] = true;
            filled += 1;
            let next = has.iter().position(|&has| !has).unwrap_or(10) as u32;
            let blocks: Vec<_> =
                (next..10).filter(|&at| has[at as usize]).map(|at| (first + at, first + at + 1)).collect();
            p.ack(first + next, &blocks[blocks.len().saturating_sub(3)..]);
            again.extend(p.sent());
        }
        assert_eq!(again, holes);
        assert_eq!(p.counts(), (0, 1, 0, 0));
        p.s.advance(Duration::from_secs(3));
        assert_eq!(p.sent(), []);
        p.s.assert_nothing_leaked();
    });
}

/// RFC 8985, section 6.2: what was sent again and is lost again is found by what was sent after it.
#[test]
fn rfc8985_6_2_what_is_lost_twice_is_sent_a_third_time_without_a_timeout() {
    let mut p = Sender::new(Options::Sack);
    p.write(10);
    p.sent();
    p.s.advance(RTT);
    p.ack(0, &[(1, 4)]);
    assert_eq!(p.sent(), [0]);
    // The window is that of half; new segments go out behind.
    p.write(20);
    p.ack(0, &[(1, 10)]);
    let new = p.sent();
    assert!(!new.is_empty() && new.iter().all(|&at| at >= 10), "{new:?}");
    p.s.advance(RTT);
    let mut at = 10;
    while !p.sent().contains(&0) {
        at += 1;
        p.ack(0, &[(1, at)]);
        p.s.advance(MS(12));
        assert!(at < 16, "it is not sent again");
    }
    assert_eq!(p.counts().0, 0);
}

/// RFC 8985, section 7: the tail of what was sent has nothing behind it that could tell of its loss. A probe makes up for
/// that.
#[test]
fn rfc8985_7_a_lost_tail_is_found_by_a_probe() {
    let mut p = Sender::new(Options::Sack);
    p.write(4);
    assert_eq!(p.sent(), [0, 1, 2, 3]);
    p.s.advance(RTT);
    p.ack(2, &[]);
    assert_eq!(p.sent(), []);
    let waited = p.waits();
    assert!((2 * RTT..2 * RTT + MS(10)).contains(&waited), "{waited:?}");
    assert_eq!(p.sent(), [3], "the last one, again");
    p.s.advance(RTT);
    p.ack(2, &[(3, 4)]);
    let waited = p.waits();
    assert!(waited <= RTT / 4 + MS(3), "{waited:?}");
    assert_eq!(p.sent(), [2]);
    p.s.advance(RTT);
    p.ack(4, &[]);
    assert_eq!(p.counts(), (0, 1, 1, 0));
    p.s.advance(Duration::from_secs(3));
    assert_eq!(p.sent(), []);
    p.s.assert_nothing_leaked();
}

/// RFC 8985, section 7.3: new data is the better probe, even beyond the congestion window.
#[test]
fn rfc8985_7_3_a_probe_is_new_data_where_there_is_some() {
    let mut p = Sender::new(Options::Sack);
    p.write(14);
    assert_eq!(p.sent(), (0..10).collect::<Vec<_>>(), "the initial window");
    let waited = p.waits();
    // All that is known is the handshake, which took a little less.
    assert!((2 * (RTT - MS(1))..2 * RTT + MS(10)).contains(&waited), "{waited:?}");
    assert_eq!(p.sent(), [10]);
    // No second one: the timeout is next.
    let waited = p.waits();
    assert!(waited >= MS(200), "{waited:?}");
    assert_eq!(p.sent(), [0]);
    assert_eq!(p.counts(), (1, 0, 1, 0));
}

/// RFC 8985, section 7.4.2: a probe that repairs a loss nobody else would have noticed lowers the window; one whose segment
/// came twice does not.
#[test]
fn rfc8985_7_4_2_a_probe_that_was_needless_costs_nothing() {
    let mut windows = vec![];
    for came_twice in [true, false] {
        let mut p = Sender::new(Options::Sack);
        p.write(10);
        p.sent();
        p.s.advance(RTT);
        p.ack(8, &[]);
        p.waits();
        assert_eq!(p.sent(), [9]);
        p.s.advance(RTT);
        p.ack(10, if came_twice { &[(9, 10)] } else { &[] });
        p.write(1);
        p.sent();
        p.s.advance(RTT);
        p.ack(11, &[]);
        p.write(40);
        windows.push(p.sent().len());
    }
    assert!(windows[0] >= 10 && windows[1] < windows[0], "{windows:?}");
}

/// RFC 2883 and RFC 3708: what was sent again and came twice was not lost, and the window is what it was.
#[test]
fn rfc3708_a_loss_that_was_none_is_undone() {
    let mut p = Sender::new(Options::Sack);
    p.write(10);
    p.sent();
    p.s.advance(RTT);
    p.ack(0, &[(1, 4)]);
    assert_eq!(p.sent(), [0]);
    p.ack(10, &[]);
    p.ack(10, &[(0, 1)]);
    assert_eq!(p.counts(), (0, 1, 0, 1));
    p.write(30);
    assert!(p.sent().len() >= 10, "the window is what it was");
}

/// RFC 3522, section 3.2: the answer to what an earlier recovery has sent again says nothing of the next one.
#[test]
fn rfc3522_3_2_the_answer_to_an_earlier_retransmission_undoes_nothing() {
    let mut p = Sender::new(Options::SackAndTimestamps);
    p.write(30);
    p.sent();
    p.s.advance(RTT);
    p.ack(10, &[]);
    p.s.advance(RTT);
    assert_eq!(p.sent().len(), 20);
    p.ack(10, &[(11, 14)]);
    assert_eq!(p.sent(), [10]);
    // More is sent than before that loss was found, and the first of it is lost, too.
    p.write(20);
    p.ack(10, &[(11, 24)]);
    assert_eq!(p.sent(), [30, 31, 32, 33, 34, 35, 36]);
    p.ack(10, &[(25, 30), (11, 24)]);
    assert_eq!(p.sent()[0], 24);
    p.s.advance(MS(5));
    p.ack(24, &[(31, 33), (25, 30)]);
    assert_eq!(p.sent()[0], 30, "in the same recovery");
    let again = p.s.stack_timestamp();
    p.s.advance(MS(5));
    // That recovery is over when another loss is found.
    p.ack(30, &[(31, 33)]);
    p.sent();
    p.ack(30, &[(34, 37), (31, 33)]);
    assert_eq!((p.sent()[0], p.counts()), (33, (0, 2, 0, 0)));
    p.s.advance(MS(5));
    p.ack_echoing(33, &[(34, 37)], Some(again));
    assert_eq!(p.counts(), (0, 2, 0, 0));
}

/// RFC 3522: the timestamp tells that the answer is to what was sent first.
#[test]
fn rfc3522_a_late_answer_undoes_a_timeout() {
    let mut p = Sender::new(Options::SackAndTimestamps);
    p.write(10);
    p.sent();
    let first = p.s.stack_timestamp();
    // The probe, and then the timeout.
    p.waits();
    assert_eq!(p.sent(), [9]);
    p.waits();
    assert_eq!(p.sent(), [0]);
    assert_eq!(p.counts(), (1, 0, 1, 0));
    p.s.advance(MS(5));
    p.ack_echoing(1, &[], Some(first));
    assert_eq!(p.counts(), (1, 0, 1, 1));
    p.write(2);
    let sent = p.sent();
    assert!(sent.iter().all(|&at| at >= 10), "nothing else is sent again: {sent:?}");
    p.s.advance(MS(1));
    p.ack_echoing(10, &[], Some(first));
    p.write(30);
    assert!(p.sent().len() >= 10, "the window is what it was");
}

/// RFC 5682, section 3: without timestamps it is the arrival of what was not sent again.
#[test]
fn rfc5682_3_a_late_answer_undoes_a_timeout_without_timestamps() {
    let mut p = Sender::new(Options::Sack);
    p.write(10);
    p.sent();
    p.waits();
    assert_eq!(p.sent(), [9]);
    p.waits();
    assert_eq!(p.sent(), [0]);
    p.s.advance(MS(5));
    p.ack(3, &[]);
    assert_eq!(p.counts(), (1, 0, 1, 1));
    assert_eq!(p.sent(), []);
}

/// RFC 6298, section 5, and RFC 6675, section 5.1: after a timeout all is sent again but what has arrived, first one segment
/// and then with each acknowledgement more.
#[test]
fn rfc6675_5_1_after_a_timeout_only_what_is_missing_is_sent_again() {
    let mut p = Sender::new(Options::SackAndTimestamps);
    p.write(10);
    p.sent();
    p.waits();
    assert_eq!(p.sent(), [9]);
    // The answer is lost; then two of them have arrived.
    p.waits();
    assert_eq!(p.sent(), [0]);
    p.s.advance(RTT);
    p.ack(1, &[(4, 6)]);
    assert_eq!(p.sent(), [1, 2, 3]);
    p.s.advance(RTT);
    p.ack(6, &[]);
    assert_eq!(p.sent(), [6, 7, 8, 9]);
    p.s.advance(RTT);
    p.ack(9, &[]);
    p.s.advance(MS(1));
    p.ack(10, &[]);
    p.s.advance(Duration::from_secs(3));
    assert_eq!(p.sent(), []);
    p.s.assert_nothing_leaked();
}

/// RFC 2018, section 8: a peer may throw away what it said that it has. The timeout finds out.
#[test]
fn rfc2018_8_what_was_thrown_away_is_sent_again() {
    let mut p = Sender::new(Options::Sack);
    p.write(6);
    p.sent();
    p.s.advance(RTT);
    p.ack(0, &[(1, 6)]);
    assert_eq!(p.sent(), [0]);
    p.s.advance(RTT);
    // All but the first are gone.
    let mut next = 1;
    p.ack(1, &[]);
    for _ in 0..200 {
        p.s.advance(MS(100));
        for at in p.sent() {
            next += u32::from(at == next);
            p.ack(next, &[]);
        }
    }
    assert_eq!(next, 6, "all arrives");
    p.s.assert_nothing_leaked();
}

/// RFC 3042: each of the first two duplicates lets one new segment out, which does not count for the threshold.
#[test]
fn rfc3042_limited_transmit_sends_new_data_for_the_first_duplicates() {
    for options in [Options::None, Options::Sack] {
        let mut p = Sender::new(options);
        p.write(20);
        assert_eq!(p.sent(), (0..10).collect::<Vec<_>>());
        p.s.advance(RTT);
        let blocks = |to: u32| if options == Options::None { vec![] } else { vec![(1, to)] };
        p.ack(0, &blocks(2));
        assert_eq!(p.sent(), [10]);
        p.ack(0, &blocks(3));
        assert_eq!(p.sent(), [11]);
        p.ack(0, &blocks(4));
        assert_eq!(p.sent(), [0]);
    }
}

/// RFC 6937: in recovery about as much goes out for what arrives as the window comes down by.
#[test]
fn rfc6937_recovery_sends_less_than_arrives_and_never_a_burst() {
    for options in [Options::None, Options::Sack] {
        let mut p = Sender::new(options);
        p.write(40);
        let mut sent = p.sent();
        assert_eq!(sent.len(), 10);
        p.s.advance(RTT);
        let mut out = vec![];
        for at in 2..=10 {
            let blocks = if options == Options::None { vec![] } else { vec![(1, at)] };
            p.ack(0, &blocks);
            let now = p.sent();
            out.push(now.len());
            sent.extend(now);
        }
        // Two of limited transmit, the one that was lost, and then fewer than arrive.
        assert_eq!(out[..3], [1, 1, 1], "{out:?}");
        assert!(out[3..].iter().all(|&out| out <= 1), "{out:?}");
        let rest: usize = out[3..].iter().sum();
        assert!((2..=5).contains(&rest), "{out:?}");
        assert_eq!(sent.iter().filter(|&&at| at == 0).count(), 2);
    }
}

/// RFC 6937, section 3: a recovery ends with the threshold as the window, also where an application has just come to its
/// end and nothing is in flight: what it says next does not start over.
#[test]
fn rfc6937_3_the_end_of_what_is_said_does_not_lower_the_window_after_recovery() {
    let mut p = Sender::new(Options::Sack);
    p.write(30);
    assert_eq!(p.sent().len(), 10);
    p.s.advance(RTT);
    (1..=5).for_each(|pairs| p.ack(2 * pairs, &[]));
    assert_eq!(p.sent().len(), 20);
    p.s.advance(RTT);
    p.ack(10, &[(11, 30)]);
    assert_eq!(p.sent(), [10]);
    p.s.advance(RTT);
    p.ack(30, &[]);
    p.write(40);
    // CUBIC's share of the twenty that were in flight: RFC 9438, section 4.6.
    assert_eq!(p.sent().len(), 14);
}

/// RFC 5681, section 3.2: there are no more duplicates than segments are under way, however many come.
#[test]
fn rfc5681_3_2_made_up_duplicates_let_nothing_out() {
    let mut p = Sender::new(Options::None);
    p.write(100);
    let before = p.sent().len();
    p.s.advance(RTT);
    for _ in 0..1_000 {
        p.ack(0, &[]);
    }
    let sent = p.sent();
    assert!(sent.len() <= before / 2 + 3, "{} segments for {before} under way", sent.len());
}

/// A peer without selective acknowledgements: RFC 6582, section 3.2. Each partial acknowledgement fills the next hole.
#[test]
fn rfc6582_3_2_without_blocks_each_partial_acknowledgement_fills_the_next_hole() {
    let mut p = Sender::new(Options::None);
    p.write(10);
    p.sent();
    p.s.advance(RTT);
    // The first, the fourth and the eighth are lost.
    for _ in 0..7 {
        p.ack(0, &[]);
    }
    assert_eq!(p.sent(), [0]);
    p.s.advance(RTT);
    p.ack(3, &[]);
    assert_eq!(p.sent(), [3]);
    p.s.advance(RTT);
    p.ack(7, &[]);
    assert_eq!(p.sent(), [7]);
    p.s.advance(RTT);
    p.ack(10, &[]);
    assert_eq!(p.counts(), (0, 1, 0, 0));
    // RFC 6582, section 3.2, step 1: duplicates of what was sent before mean nothing.
    p.write(6);
    p.sent();
    p.s.advance(RTT);
    p.ack(16, &[]);
    assert_eq!(p.sent(), []);
}

/// Whatever blocks a peer makes up, nothing is sent that it could not have lost, and an honest one is served after all.
#[test]
fn made_up_blocks_do_no_harm() {
    for_each_seed(40, |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut p = Sender::new(if rng.random() { Options::Sack } else { Options::SackAndTimestamps });
        let (mut acked, mut sent_to) = (0, 0);
        for _ in 0..300 {
            if p.said < acked + 40 {
                let more = rng.random_range(0..4);
                p.write(more);
            }
            let edge = |rng: &mut ChaCha8Rng| match rng.random_range(0..6) {
                0 => rng.random(),
                1 => (1 + 1_000 * acked).wrapping_add(rng.random_range(0..1_000)),
                _ => 1 + rng.random_range(1_000 * acked..=1_000 * sent_to.max(acked + 1)),
            };
            let count = rng.random_range(0..=3);
            let blocks: Vec<(u32, u32)> = (0..count).map(|_| (edge(&mut rng), edge(&mut rng))).collect();
            let mut ack = seg(ACK, 1, 1 + 1_000 * acked).sack(&blocks);
            if let Some(clock) = &mut p.clock {
                *clock += 1;
                ack.timestamps = Some((*clock, p.s.stack_timestamp()));
            }
            p.s.send(ack);
            p.s.advance(Duration::from_micros(rng.random_range(0..60_000)));
            // Whatever is sent is of the stream, and was not acknowledged.
            while let Some(Seg { seq, payload, .. }) = p.s.next() {
                for (at, &byte) in payload.iter().enumerate() {
                    let place = seq - 1 + at as u32;
                    assert_eq!(byte, (place / 1_000) as u8, "seed {seed}");
                    assert!(place < 1_000 * p.said);
                }
                sent_to = sent_to.max((seq - 1 + payload.len() as u32) / 1_000);
            }
            if rng.random_bool(0.05) && sent_to > acked {
                acked = rng.random_range(acked..=sent_to.min(acked + 3));
            }
        }
        // From now on the peer is honest, and has nothing that it has not acknowledged.
        let mut has = 1 + 1_000 * acked;
        for _ in 0..200 {
            if has == 1 + 1_000 * p.said {
                break;
            }
            p.s.advance(MS(1_000));
            let mut segments = vec![];
            while let Some(segment) = p.s.next() {
                segments.push(segment);
            }
            for Seg { seq, payload, .. } in segments {
                if seq <= has && has < seq + payload.len() as u32 {
                    has = seq + payload.len() as u32;
                }
                let mut ack = seg(ACK, 1, has);
                if let Some(clock) = &mut p.clock {
                    *clock += 1;
                    ack.timestamps = Some((*clock, p.s.stack_timestamp()));
                }
                p.s.send(ack);
            }
        }
        assert_eq!(has, 1 + 1_000 * p.said, "seed {seed}: all arrives at last");
        p.s.assert_nothing_leaked();
    });
}

/// RFC 8985, section 7.1: what is not told of what has arrived makes no use of a probe.
#[test]
fn rfc8985_7_1_without_blocks_nothing_is_probed_for() {
    let mut p = Sender::new(Options::None);
    p.write(14);
    assert_eq!(p.sent(), (0..10).collect::<Vec<_>>());
    let waited = p.waits();
    assert!(waited >= MS(200), "{waited:?}");
    assert_eq!(p.sent(), [0]);
    assert_eq!(p.counts(), (1, 0, 0, 0));
}

/// RFC 8985, section 7.2, on a path of 100 us: a lost tail is probed for after two round trips and little more.
#[test]
fn rfc8985_7_2_a_tail_that_is_lost_in_a_local_network_is_probed_for_within_microseconds() {
    const US: fn(u64) -> Duration = Duration::from_micros;
    for options in [Options::Sack, Options::SackAndTimestamps] {
        let mut p = Sender::over(options, US(100));
        let began = p.s.now();
        p.write_for(4, US(60));
        assert_eq!(p.sent(), [0, 1, 2, 3]);
        p.waits();
        let waited = p.s.now() - began;
        assert!((US(200)..US(400)).contains(&waited), "{waited:?}");
        assert_eq!(p.sent(), [3], "the last one, again");
        p.s.advance(US(100));
        // What is missing below a single segment is sent again after a fraction of the round trip.
        let began = p.s.now();
        p.ack_for(0, &[(3, 4)], US(1));
        p.waits();
        let waited = p.s.now() - began;
        assert!(waited < US(150), "{waited:?}");
        p.s.advance(US(60));
        assert_eq!(p.sent()[0], 0);
        assert_eq!(p.counts(), (0, 1, 1, 0));
    }
}

/// RFC 9293, section 3.9.1.2: PSH stands at the end of what is queued, also where that is sent again.
#[test]
fn rfc9293_3_9_1_2_what_is_sent_again_pushes_at_its_end() {
    for (first, pushes) in [(0, false), (3, true)] {
        let mut p = Sender::new(Options::Sack);
        p.write(4);
        p.sent();
        p.s.advance(RTT);
        p.ack(first, &[]);
        p.waits();
        while p.counts().0 == 0 {
            p.s.next();
            p.waits();
        }
        let again = p.s.next().expect("it was waited for");
        assert_eq!((again.seq, again.has(PSH)), (1 + 1_000 * first, pushes));
    }
}

/// RFC 6298, section 3: what was sent once and came in time, but lay behind a hole until that was filled, says nothing of
/// the round trip either.
#[test]
fn rfc6298_3_what_waited_behind_a_hole_measures_nothing() {
    let mut p = Sender::new(Options::None);
    p.write(4);
    p.sent();
    p.waits();
    assert_eq!(p.sent(), [0]);
    p.waits();
    assert_eq!(p.sent(), [0]);
    p.s.advance(RTT);
    p.ack(4, &[]);
    for round in 4..7 {
        p.write(1);
        assert_eq!(p.sent(), [round]);
        p.s.advance(RTT);
        p.ack(round + 1, &[]);
    }
    p.write(1);
    assert_eq!(p.sent(), [7]);
    let waited = p.waits();
    assert!(waited < MS(400), "{waited:?}");
    assert_eq!(p.sent(), [7]);
}

/// RFC 6298, section 3, in microseconds: on a path of 300 us a lost tail is probed for after a few milliseconds.
#[test]
fn a_short_path_is_measured_in_microseconds() {
    let mut s = Script::listening(Version::V4);
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).sack_permitted(true).ts(1_000, 0));
    s.stack.send(conn, &[7; 2_964]).expect("there is room");
    s.settle();
    assert_eq!(s.next().expect("it is sent").payload.len(), 988);
    while s.next().is_some() {}
    let waited = s.wait_for_segment(MS(100));
    assert!(waited <= MS(5), "{waited:?}");
    let probe = s.next().expect("it was waited for");
    assert_eq!((probe.seq, probe.payload.len()), (1_977, 988));
}
