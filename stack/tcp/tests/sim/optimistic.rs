//! Peers that acknowledge what they do not have, so that more is sent to them: RFC 5681, section 5, and beyond.

use std::time::Duration;

use stack::net::{ConnId, Net as _};
use stack::transport::OverEndpoint as _;
use stack::{Config, CongestionControl};

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version};
use crate::wire::{ACK, SYN, Seg, seg};

/// A listener whose connections may have much to send.
fn listening(version: Version, congestion: CongestionControl) -> Script {
    let config = Config { congestion, tx_bytes: 1 << 20, ..config(1) };
    let mut s = Script::with_config(version, config);
    s.listen();
    s
}

fn open(s: &mut Script, port: u16) -> ConnId {
    s.remote.at.set_port(port);
    s.open_with(seg(SYN, 0, 0).mss(1_000))
}

/// The segments with payload that the stack has sent since it was last asked, and sends now.
fn sent(s: &mut Script) -> Vec<Seg> {
    s.advance(Duration::from_millis(1));
    std::iter::from_fn(|| s.next()).filter(|segment| !segment.payload.is_empty()).collect()
}

/// What was not sent yet cannot have come: such an acknowledgement lets nothing out, nor is anything forgotten for it. A
/// block of what was not sent is none.
#[test]
fn acknowledgements_of_what_was_not_sent_let_nothing_out() {
    for version in BOTH_VERSIONS {
        for congestion in CongestionControl::ALL {
            let mut s = listening(version, congestion);
            let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).sack_permitted(true));
            assert_eq!(s.write(conn, &[7; 60_000]), Ok(()));
            // The initial window, and a probe for losses at its end.
            let next = 1 + 1_000 * sent(&mut s).len() as u32;
            assert!(next <= 11_001, "{congestion}: {next}");
            for ack in [next + 1, next + 1_000, 30_001, 60_001, 60_002, 1_000_000] {
                s.send(seg(ACK, 1, ack));
                s.expect(seg(ACK, next, 1));
                s.expect_nothing();
            }
            for block in
                [(next, next + 1_000), (10_001, 11_001), (9_001, 10_002), (5_001, 60_001), (50_001, 60_001)]
            {
                s.send(seg(ACK, 1, 1).sack(&[block]));
                // As a duplicate each may let one out (RFC 3042), but not more than two do.
                sent(&mut s);
            }
            assert!(s.stack.endpoint().counters().segments_out < 30, "{congestion}");
            // All of it comes to an honest peer in the end.
            let (mut has, mut rest) = (1, 200);
            while has <= 60_000 && rest > 0 {
                s.send(seg(ACK, 1, has));
                s.advance(Duration::from_millis(300));
                for segment in sent(&mut s) {
                    assert_eq!(segment.payload, vec![7; segment.payload.len()]);
                    if segment.seq <= has {
                        has = has.max(segment.seq + segment.payload.len() as u32);
                    }
                }
                rest -= 1;
            }
            assert_eq!(has, 60_001, "{congestion}");
        }
    }
}

/// Whoever acknowledges each segment before it can have come gets his stream as fast as the link takes it; but it grows no
/// faster than for one who is near, and others have their turn after sixteen segments of it.
#[test]
fn whoever_acknowledges_what_has_not_come_leaves_others_their_turn() {
    for congestion in CongestionControl::ALL {
        let mut s = listening(Version::V4, congestion);
        let honest = open(&mut s, 50_000);
        let greedy = open(&mut s, 40_000);
        assert_eq!(s.write(greedy, &[7; 400_000]), Ok(()));
        // BBR's rate grows by 2 / ln 2 in a round trip.
        let most = if congestion == CongestionControl::Bbr { 3 } else { 2 };
        let (mut acked, mut before) = (1, 5);
        while acked <= 400_000 {
            let flight = sent(&mut s).len();
            assert!(flight <= most * before, "{congestion}: {flight} segments after {before}");
            before = before.max(flight);
            acked += 1_000 * flight as u32;
            s.send(seg(ACK, 1, acked));
        }
        assert!(before >= 60, "{congestion}: {before} segments at most");
        // Both have something to say at the same time, the greedy one first.
        assert_eq!(s.stack.send(greedy, &[7; 60_000]), Ok(()));
        assert_eq!(s.stack.send(honest, b"reply"), Ok(()));
        let order = sent(&mut s);
        let turn = order.iter().position(|segment| segment.payload == b"reply").expect("it is sent");
        assert!(turn <= 16, "{congestion}: after {turn} segments");
    }
}

/// Many acknowledgements of a byte each open the window by as many bytes, and not by as many segments.
#[test]
fn acknowledgements_of_a_byte_each_open_the_window_no_faster() {
    for congestion in CongestionControl::ALL {
        let flights = [1, 1_000].map(|step| {
            let mut s = listening(Version::V4, congestion);
            let conn = open(&mut s, 40_000);
            assert_eq!(s.write(conn, &[7; 60_000]), Ok(()));
            assert_eq!(sent(&mut s).len(), 10);
            s.advance(Duration::from_millis(10));
            let mut more = 0;
            for ack in (1..=10_000).step_by(step).skip(1).chain([10_001]) {
                s.send(seg(ACK, 1, ack));
                more += sent(&mut s).len();
            }
            more
        });
        assert!(flights.iter().all(|flight| (8..=20).contains(flight)), "{congestion}: {flights:?}");
        assert!(flights[0] <= flights[1] + 1, "{congestion}: {flights:?}");
    }
}
