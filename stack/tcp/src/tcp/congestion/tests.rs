use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MSS: u32 = 1000;
const RTT_US: u32 = 50_000;

/// A connection, and what its endpoint remembers of it. Every window is full, and is acknowledged in one round trip.
struct Rig {
    congestion: Congestion,
    controls: Controls,
    now: Instant,
    ack: Seq,
}

impl Rig {
    fn new(control: CongestionControl) -> Self {
        let mut congestion = Congestion::new();
        congestion.begin(MSS, Seq(0));
        Self { congestion, controls: Controls::new(control, false, 2), now: Instant::ZERO, ack: Seq(0) }
    }

    /// One whose window is `cwnd` segments, all that there is a threshold for.
    fn avoiding(control: CongestionControl, cwnd: u32) -> Self {
        let mut rig = Self::new(control);
        rig.congestion.window = Window { cwnd: cwnd * MSS, ssthresh: cwnd * MSS };
        rig
    }

    /// An acknowledgement of so much more; as much as the window takes was sent before.
    fn acknowledgement(&mut self, bytes: u32, rtt_us: u32) -> Acked {
        let sent_to = self.ack + self.congestion.window();
        self.ack += bytes;
        Acked {
            now: self.now,
            mss: MSS,
            bytes,
            ack: self.ack,
            sent_to: sent_to.max(self.ack),
            rtt_us: Some(rtt_us),
            srtt_us: rtt_us,
            flight: 0,
            rate: None,
            loses: false,
        }
    }

    fn acked_in(&mut self, bytes: u32, rtt_us: u32) {
        let acked = self.acknowledgement(bytes, rtt_us);
        self.congestion.on_ack(&acked, &mut self.controls);
    }

    fn acked(&mut self, bytes: u32) {
        self.acked_in(bytes, RTT_US);
    }

    /// All of a window is acknowledged, by a round trip's end, each segment by itself.
    fn round(&mut self, rtt_us: u32) {
        let segments = self.window();
        for _ in 0..segments {
            self.now += Duration::from_micros((rtt_us / segments).into());
            self.acked_in(MSS, rtt_us);
        }
    }

    fn loss(&self, flight: u32) -> Loss {
        Loss { mss: MSS, flight, sent_to: self.ack + flight, was_full: true, is_mark: false }
    }

    fn lost(&mut self, flight: u32) {
        self.congestion.on_recovery(&self.loss(flight), &mut self.controls);
    }

    fn timed_out(&mut self, flight: u32, first: bool) {
        self.congestion.on_timeout(&self.loss(flight), first, &mut self.controls);
    }

    fn undo(&mut self) {
        self.congestion.on_undo(&mut self.controls);
    }

    /// The window in segments.
    fn window(&self) -> u32 {
        self.congestion.window() / MSS
    }
}

#[test]
fn each_control_is_known_by_its_name() {
    for control in CongestionControl::ALL {
        assert_eq!(control.name().parse(), Ok(control));
        assert_eq!(control.to_string(), control.name());
    }
    let unknown = "vegas".parse::<CongestionControl>().unwrap_err();
    for control in CongestionControl::ALL {
        assert!(unknown.to_string().contains(control.name()), "{unknown}");
    }
    assert_eq!(CongestionControl::default(), CongestionControl::Cubic);
}

#[test]
fn rfc5681_3_1_avoidance_adds_one_segment_a_round() {
    let mut rig = Rig::avoiding(CongestionControl::NewReno, 10);
    for segments in 10..40 {
        assert_eq!(rig.window(), segments);
        rig.round(RTT_US);
    }
}

#[test]
fn slow_start_doubles_whatever_an_acknowledgement_covers() {
    for control in [CongestionControl::NewReno, CongestionControl::Cubic] {
        for covers in [1, 2, 10] {
            let mut rig = Rig::new(control);
            assert_eq!(rig.window(), 10);
            for _ in 0..10 / covers {
                rig.acked(covers * MSS);
            }
            assert_eq!(rig.window(), 20, "{control}, {covers} segments an acknowledgement");
        }
    }
}

/// RFC 3465, section 2.3: it may be of what had arrived before.
#[test]
fn an_acknowledgement_after_a_timeout_counts_for_two_segments() {
    for control in [CongestionControl::NewReno, CongestionControl::Cubic] {
        let mut rig = Rig::new(control);
        rig.timed_out(10 * MSS, true);
        assert_eq!(rig.window(), 1);
        rig.acked(9 * MSS);
        assert_eq!(rig.window(), 3, "{control}");
        rig.acked(MSS);
        rig.congestion.window = Window { cwnd: MSS, ssthresh: 20 * MSS };
        rig.acked(9 * MSS);
        assert_eq!(rig.window(), 10, "{control}: all that was sent before the timeout is acknowledged");
    }
}

#[test]
fn only_what_was_sent_into_a_full_window_lets_it_grow() {
    let mut congestion = Congestion::new();
    congestion.begin(MSS, Seq(1000));
    assert!(!congestion.was_full(Seq(1000), Seq(5000)), "the window was never full");
    congestion.filled(Seq(9000));
    assert!(congestion.was_full(Seq(5000), Seq(8000)));
    assert!(congestion.was_full(Seq(8000), Seq(9000)));
    assert!(!congestion.was_full(Seq(9000), Seq(9500)), "all of that is acknowledged");
    let far = Seq(9500) + (1 << 31);
    congestion.was_full(far.back(1000), far);
    assert!(!congestion.was_full(far, far + 1), "a window of long ago does not count again");
}

#[test]
fn rfc5681_3_2_recovery_halves_the_flight() {
    let mut rig = Rig::new(CongestionControl::NewReno);
    rig.lost(10 * MSS);
    assert_eq!(rig.window(), 5);
    rig.congestion.on_recovered(6 * MSS, MSS, &mut rig.controls);
    assert_eq!(rig.window(), 5);
}

#[test]
fn repeated_timeouts_keep_the_threshold() {
    for control in [CongestionControl::NewReno, CongestionControl::Cubic] {
        let mut rig = Rig::new(control);
        rig.timed_out(10 * MSS, true);
        let threshold = rig.congestion.window.ssthresh;
        rig.timed_out(MSS, false);
        assert_eq!(rig.congestion.window, Window { cwnd: MSS, ssthresh: threshold }, "{control}");
    }
}

#[test]
fn what_was_no_loss_is_undone() {
    for control in [CongestionControl::NewReno, CongestionControl::Cubic] {
        let mut rig = Rig::avoiding(control, 40);
        let before = rig.congestion.window;
        rig.lost(40 * MSS);
        assert_ne!(rig.congestion.window, before);
        rig.undo();
        assert_eq!(rig.congestion.window, before, "{control}");
        rig.timed_out(40 * MSS, true);
        rig.timed_out(MSS, false);
        rig.undo();
        assert_eq!(rig.congestion.window, before, "{control}");
        rig.lost(40 * MSS);
        let reduced = rig.congestion.window;
        rig.undo();
        rig.undo();
        assert_eq!(rig.congestion.window, before, "{control}: once");
        rig.lost(40 * MSS);
        assert_eq!(rig.congestion.window, reduced, "{control}: what was undone has left no trace");
    }
}

/// RFC 2861, section 3.
#[test]
fn a_window_that_is_not_used_halves_with_each_timeout_down_to_the_initial_one() {
    let mut rig = Rig::avoiding(CongestionControl::Cubic, 100);
    rig.congestion.restarted_after_idle(500_000, 200_000, MSS, &rig.controls);
    assert_eq!(rig.window(), 25);
    assert_eq!(rig.congestion.window.ssthresh, 100 * MSS);
    rig.congestion.restarted_after_idle(60_000_000, 200_000, MSS, &rig.controls);
    assert_eq!(rig.window(), 10);
    let mut small = Rig::avoiding(CongestionControl::Cubic, 4);
    small.congestion.restarted_after_idle(60_000_000, 200_000, MSS, &small.controls);
    assert_eq!(small.window(), 4, "it does not grow");
}

#[test]
fn what_a_connection_leaves_the_next_one_does_not_inherit() {
    let mut rig = Rig::new(CongestionControl::NewReno);
    rig.lost(20 * MSS);
    for _ in 0..9 {
        rig.acked(MSS);
    }
    let place = rig.congestion.place;
    rig.controls.forget(&mut rig.congestion);
    rig.congestion.begin(MSS, Seq(0));
    rig.congestion.window.ssthresh = rig.congestion.window.cwnd;
    for _ in 0..9 {
        rig.acked(MSS);
    }
    assert_eq!((rig.congestion.place, rig.window()), (place, 10), "a whole round is counted");
    rig.acked(MSS);
    assert_eq!(rig.window(), 11);
}

/// RFC 9406, section 4.2: a round trip that grows ends slow start before there is a loss.
#[test]
fn rfc9406_a_growing_round_trip_ends_slow_start() {
    for control in [CongestionControl::NewReno, CongestionControl::Cubic] {
        let mut rig = Rig::new(control);
        rig.round(RTT_US);
        rig.round(RTT_US);
        assert_eq!(rig.window(), 40);
        // The last segments of the round before were faster.
        rig.round(RTT_US + RTT_US / 8);
        assert_eq!(rig.window(), 80);
        // An eighth more is a sign of a queue: the window grows by a quarter of what it did.
        rig.round(RTT_US + RTT_US / 8);
        assert!((100..=120).contains(&rig.window()), "{control}: {}", rig.window());
        assert_eq!(rig.congestion.window.ssthresh, u32::MAX, "{control}: that may yet pass");
        for _ in 0..5 {
            rig.round(RTT_US + RTT_US / 4);
        }
        assert_ne!(rig.congestion.window.ssthresh, u32::MAX, "{control}: it did not");
    }
}

#[test]
fn rfc9406_a_round_trip_that_shrinks_again_resumes_slow_start() {
    let mut rig = Rig::new(CongestionControl::Cubic);
    rig.round(RTT_US);
    rig.round(RTT_US);
    rig.round(RTT_US + RTT_US / 8);
    rig.round(RTT_US + RTT_US / 8);
    assert!(rig.window() < 120);
    rig.round(RTT_US);
    rig.round(RTT_US);
    let window = rig.window();
    rig.round(RTT_US);
    assert_eq!(rig.window(), 2 * window);
    assert_eq!(rig.congestion.window.ssthresh, u32::MAX);
}

#[test]
fn rfc9406_few_milliseconds_on_a_short_path_are_no_sign_of_a_queue() {
    let mut rig = Rig::new(CongestionControl::Cubic);
    for (round, rtt_us) in [500, 1500, 2500, 3500, 4400].into_iter().enumerate() {
        assert_eq!(rig.window(), 10 << round);
        rig.round(rtt_us);
    }
    assert_eq!(rig.window(), 320);
}

/// RFC 9438, figure 1 with its constants: `W_cubic(t) = 0.4 (t - K)^3 + W_max`.
#[test]
fn rfc9438_4_2_the_window_follows_the_cubic_function() {
    // Where the round trip is long Reno's window does not matter.
    const LONG_US: u32 = 100_000;
    let mut rig = Rig::avoiding(CongestionControl::Cubic, 1000);
    rig.lost(1000 * MSS);
    assert_eq!(rig.window(), 700, "section 4.6");
    let k_s = (300.0_f64 / 0.4).cbrt();
    for round in 0..150 {
        let t_s = f64::from(round) * 0.1;
        let expected = 0.4 * (t_s - k_s).powi(3) + 1000.0;
        let window = f64::from(rig.congestion.window()) / f64::from(MSS);
        // It is a round trip late.
        let step = 0.4 * ((t_s + 0.1 - k_s).powi(3) - (t_s - k_s).powi(3));
        assert!((window - expected).abs() < 2.0 + step, "at {t_s} s: {window}, not {expected}");
        rig.round(LONG_US);
    }
    assert!(rig.window() > 1000);
}

/// RFC 9438, section 4.3: on a short path the window grows as Reno's with the same throughput would, by 0.53 segments a
/// round, and by one once it is back at what it was.
#[test]
fn rfc9438_4_3_the_window_is_never_below_renos() {
    const SHORT_US: u32 = 1_000;
    let mut rig = Rig::avoiding(CongestionControl::Cubic, 20);
    rig.lost(20 * MSS);
    assert_eq!(rig.window(), 14);
    let mut window = f64::from(rig.congestion.window()) / f64::from(MSS);
    for round in 0..40 {
        rig.round(SHORT_US);
        window += if window < 20.0 { 0.529 } else { 1.0 };
        let got = f64::from(rig.congestion.window()) / f64::from(MSS);
        assert!((got - window).abs() < 1.0, "round {round}: {got}, not {window}");
    }
}

/// RFC 9438, section 4.7.
#[test]
fn rfc9438_4_7_a_flow_that_loses_again_below_its_window_leaves_room() {
    let mut rig = Rig::avoiding(CongestionControl::Cubic, 1000);
    rig.lost(1000 * MSS);
    rig.lost(700 * MSS);
    assert_eq!(rig.window(), 490);
    // The plateau is at 0.85 of 700, not at 700: where the window is when it is flat.
    let k_s = ((595.0 - 490.0_f64) / 0.4).cbrt();
    while rig.now.as_micros() < (k_s * 1e6) as i64 {
        rig.round(100_000);
    }
    assert!((590..=600).contains(&rig.window()), "{}", rig.window());
}

/// RFC 9438, section 4.2 and 5.8: time in which the application did not fill the window is no time of growth.
#[test]
fn rfc9438_time_without_a_full_window_does_not_count() {
    let run = |pause: Duration| {
        let mut rig = Rig::avoiding(CongestionControl::Cubic, 1000);
        rig.lost(1000 * MSS);
        rig.round(100_000);
        rig.now += pause;
        rig.round(100_000);
        rig.round(100_000);
        rig.window()
    };
    assert!(run(Duration::from_secs(60)).abs_diff(run(Duration::ZERO)) <= 2);
}

/// Fewer segments in flight than the window takes are what a loss is reckoned by (RFC 9438, section 4.6).
#[test]
fn a_loss_in_a_window_that_was_not_used_leaves_a_part_of_what_was() {
    let mut rig = Rig::avoiding(CongestionControl::Cubic, 100);
    let loss = Loss { was_full: false, ..rig.loss(10 * MSS) };
    rig.congestion.on_recovery(&loss, &mut rig.controls);
    assert_eq!(rig.window(), 7);
}

#[derive(Clone, Debug)]
enum Step {
    Acked { bytes: u32, rtt_us: u32, wait_us: u64, flight: u32, rate: Option<RateSample>, loses: bool },
    Lost { flight: u32, was_full: bool },
    TimedOut { flight: u32, first: bool },
    Undone,
    Recovered { flight: u32 },
    Idle { idle_us: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![0..3000_u32, 0..1_u32 << 20, Just(u32::MAX >> 2)];
    let rtt_us = prop_oneof![0..100_u32, 0..1_000_000_u32, Just(u32::MAX)];
    let wait_us = prop_oneof![0..1000_u64, 0..10_000_000_u64];
    let rate = (bytes.clone(), rtt_us.clone(), any::<u32>(), any::<bool>()).prop_map(
        |(bytes, interval_us, delivered_before, is_limited)| RateSample {
            bytes,
            interval_us,
            delivered_before,
            is_limited,
        },
    );
    prop_oneof![
        8 => (bytes.clone(), rtt_us, wait_us.clone(), bytes.clone(), prop::option::of(rate), any::<bool>())
            .prop_map(|(bytes, rtt_us, wait_us, flight, rate, loses)| Step::Acked {
                bytes, rtt_us, wait_us, flight, rate, loses,
            }),
        1 => (bytes.clone(), any::<bool>()).prop_map(|(flight, was_full)| Step::Lost { flight, was_full }),
        1 => (bytes.clone(), any::<bool>()).prop_map(|(flight, first)| Step::TimedOut { flight, first }),
        1 => Just(Step::Undone),
        1 => bytes.prop_map(|flight| Step::Recovered { flight }),
        1 => wait_us.prop_map(|idle_us| Step::Idle { idle_us }),
    ]
}

proptest! {
    /// Whatever happens in whichever order, one segment may always be sent, and never more than a window can be.
    #[test]
    fn a_window_stays_within_its_bounds(
        control in prop::sample::select(CongestionControl::ALL.to_vec()),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut rig = Rig::new(control);
        for step in steps {
            match step {
                Step::Acked { bytes, rtt_us, wait_us, flight, rate, loses } => {
                    rig.now += Duration::from_micros(wait_us);
                    let acked = Acked { flight, rate, loses, ..rig.acknowledgement(bytes, rtt_us) };
                    rig.congestion.on_ack(&acked, &mut rig.controls);
                    rig.congestion.on_sent(rig.now, bytes, flight, rtt_us, &mut rig.controls);
                }
                Step::Lost { flight, was_full } => {
                    let loss = Loss { was_full, ..rig.loss(flight) };
                    rig.congestion.on_recovery(&loss, &mut rig.controls);
                }
                Step::TimedOut { flight, first } => rig.timed_out(flight, first),
                Step::Undone => rig.undo(),
                Step::Recovered { flight } => rig.congestion.on_recovered(flight, MSS, &mut rig.controls),
                Step::Idle { idle_us } => rig.congestion.restarted_after_idle(idle_us, 200_000, MSS, &rig.controls),
            }
            let Window { cwnd, ssthresh } = rig.congestion.window;
            prop_assert!((MSS..=MAX_WINDOW_BYTES).contains(&cwnd), "{cwnd}");
            prop_assert!(ssthresh >= 2 * MSS, "{ssthresh}");
        }
    }
}
