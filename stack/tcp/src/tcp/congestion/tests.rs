use super::*;

const MSS: u32 = 1000;

/// A connection, and what its endpoint remembers.
struct Rig {
    congestion: Congestion,
    controls: Controls,
}

impl Rig {
    fn new() -> Self {
        let mut congestion = Congestion::new();
        congestion.begin(MSS, Seq(0));
        Self { congestion, controls: Controls::new(2) }
    }

    fn acked(&mut self, bytes: u32) {
        self.congestion.on_ack(&Acked { mss: MSS, bytes }, &mut self.controls);
    }

    fn lost(&mut self, flight: u32) {
        self.congestion.on_recovery(&Loss { mss: MSS, flight }, &mut self.controls);
    }

    fn timed_out(&mut self, flight: u32, first: bool) {
        self.congestion.on_timeout(&Loss { mss: MSS, flight }, first, &mut self.controls);
    }

    /// The window in segments.
    fn window(&self) -> u32 {
        self.congestion.window() / MSS
    }
}

#[test]
fn slow_start_doubles_and_avoidance_adds_one_segment_a_round() {
    let mut rig = Rig::new();
    assert_eq!(rig.window(), 10);
    for _ in 0..10 {
        rig.acked(MSS);
    }
    assert_eq!(rig.window(), 20);
    rig.timed_out(20 * MSS, true);
    assert_eq!(rig.window(), 1);
    while rig.window() < 10 {
        rig.acked(MSS);
    }
    for _ in 0..10 {
        rig.acked(MSS);
    }
    assert_eq!(rig.window(), 11);
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
fn recovery_halves_the_flight() {
    let mut rig = Rig::new();
    rig.lost(10 * MSS);
    assert_eq!(rig.window(), 5);
    rig.congestion.inflate(3 * MSS, 10 * MSS);
    rig.congestion.inflate(MSS, 10 * MSS);
    assert_eq!(rig.window(), 9);
    rig.congestion.deflate(2 * MSS, MSS);
    assert_eq!(rig.window(), 8);
    rig.congestion.recovered(6 * MSS, MSS);
    assert_eq!(rig.window(), 5);
}

#[test]
fn duplicates_open_the_window_by_no_more_than_was_outstanding() {
    let mut rig = Rig::new();
    rig.lost(10 * MSS);
    for _ in 0..1000 {
        rig.congestion.inflate(MSS, 10 * MSS);
    }
    assert_eq!(rig.window(), 15);
}

#[test]
fn repeated_timeouts_keep_the_threshold() {
    let mut rig = Rig::new();
    rig.timed_out(10 * MSS, true);
    rig.timed_out(MSS, false);
    while rig.window() < 5 {
        rig.acked(MSS);
    }
    rig.acked(MSS);
    assert_eq!(rig.window(), 5);
}

#[test]
fn idleness_returns_to_the_initial_window() {
    let mut rig = Rig::new();
    for _ in 0..90 {
        rig.acked(MSS);
    }
    assert_eq!(rig.window(), 100);
    rig.congestion.restarted_after_idle(MSS);
    assert_eq!(rig.window(), 10);
}

#[test]
fn what_a_connection_leaves_the_next_one_does_not_inherit() {
    let mut rig = Rig::new();
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
