//! Places in the connection table: who completes a handshake has one.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stack::net::{CloseReason, ConnId, Event};
use stack::transport::OverEndpoint as _;
use stack::{Config, ConnectError};

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version, for_each_seed};
use crate::wire::{ACK, FIN, RST, SYN, Seg, seg};

fn with_places(version: Version, places: usize, syn_queue: usize) -> Script {
    let config = Config { max_connections: places, syn_queue, ..config(1) };
    let mut s = Script::with_config(version, config);
    s.listen();
    s
}

/// A SYN from a port of its own, and whether it was answered.
fn knock(s: &mut Script, port: u16) -> bool {
    s.remote.at.set_port(port);
    while s.next().is_some() {}
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.next().is_some_and(|answer| answer.has(SYN | ACK))
}

/// The acknowledgement that follows, and the connection it has opened.
fn enter(s: &mut Script, port: u16, iss: u32) -> Option<ConnId> {
    s.remote.at.set_port(port);
    s.stack_iss = iss;
    s.send(seg(ACK, 1, 1));
    match s.event() {
        Some(Event::Opened { conn, .. }) => Some(conn),
        _ => None,
    }
}

fn open(s: &mut Script, port: u16) -> ConnId {
    assert!(knock(s, port), "the SYN from {port} is not answered");
    let iss = s.stack_iss;
    enter(s, port, iss).expect("who is answered has a place")
}

/// When all places are taken no SYN is answered, whether the queue of half-open connections has room or not, and
/// nobody is harmed. A place that becomes free is given to the next.
#[test]
fn a_full_table_answers_no_syn_and_harms_nobody() {
    for version in BOTH_VERSIONS {
        for syn_queue in [1, 1_024] {
            let mut s = with_places(version, 3, syn_queue);
            let conns: Vec<_> = (1_000..1_003).map(|port| (port, open(&mut s, port), s.stack_iss)).collect();
            for timestamps in [None, Some((1, 0))] {
                for _ in 0..3 {
                    s.remote.at.set_port(2_000);
                    s.send(Seg { timestamps, ..seg(SYN, 0, 0).mss(1_000) });
                    s.expect_nothing();
                    s.advance(Duration::from_secs(1));
                }
            }
            assert_eq!(s.stack.endpoint().counters().drops.backlog, 6);
            assert_eq!(s.event(), None);
            for &(port, conn, iss) in &conns {
                s.remote.at.set_port(port);
                s.stack_iss = iss;
                s.assert_alive(conn, 1, 1);
                s.expect_event(Event::Readable { conn });
            }
            let (port, conn, iss) = conns[1];
            s.remote.at.set_port(port);
            s.stack_iss = iss;
            s.abort(conn);
            s.expect_event(Event::Closed { conn, reason: CloseReason::Aborted });
            // The client's next attempt.
            let late = open(&mut s, 2_000);
            s.assert_alive(late, 1, 1);
        }
    }
}

/// As many handshakes as there are free places are begun, and each of them ends in one.
#[test]
fn no_more_handshakes_are_begun_than_there_are_places() {
    let mut s = with_places(Version::V4, 4, 1_024);
    open(&mut s, 1_000);
    let begun: Vec<_> = (2_000..2_006).filter(|&port| knock(&mut s, port)).map(|port| (port, 0)).collect();
    assert_eq!(begun, [(2_000, 0), (2_001, 0), (2_002, 0)]);
    assert_eq!(s.stack.endpoint().counters().syn_cookies_sent, 0);
    // A SYN that comes again is answered again: its place is promised.
    for (port, _) in begun {
        assert!(knock(&mut s, port));
        let iss = s.stack_iss;
        assert!(enter(&mut s, port, iss).is_some(), "{port} completes its handshake, and has no place");
    }
    assert!(!knock(&mut s, 2_003));
}

/// A connection that this side opens takes no place that was promised.
#[test]
fn an_active_open_takes_no_promised_place() {
    let mut s = with_places(Version::V4, 2, 1_024);
    open(&mut s, 1_000);
    assert!(knock(&mut s, 1_001));
    let iss = s.stack_iss;
    let (now, remote) = (s.now(), "10.0.0.2:9".parse().expect("an address"));
    let refused = s.stack.endpoint_mut().connect(now, remote, None);
    assert_eq!(refused, Err(ConnectError::TableFull(2)));
    assert!(enter(&mut s, 1_001, iss).is_some());
}

/// Half-open connections whose peers do not answer in time keep nobody out: a cookie is sent, and if it comes back
/// one of them has to leave. Of two cookies for one place the second is refused at once.
#[test]
fn overdue_handshakes_give_way_to_those_that_are_completed() {
    let mut s = with_places(Version::V4, 2, 1_024);
    open(&mut s, 1_000);
    assert!(knock(&mut s, 1_001));
    let silent = s.stack_iss;
    assert!(!knock(&mut s, 2_000));
    s.advance(Duration::from_millis(1_100));
    assert!(knock(&mut s, 2_000));
    let first = s.stack_iss;
    assert!(knock(&mut s, 2_001));
    let second = s.stack_iss;
    assert_eq!(s.stack.endpoint().counters().syn_cookies_sent, 2);
    while s.next().is_some() {}
    let conn = enter(&mut s, 2_000, first).expect("the cookie came back while there was a place");
    s.expect_nothing();
    assert_eq!(enter(&mut s, 2_001, second), None);
    s.expect(seg(RST, 1, 0));
    assert_eq!(enter(&mut s, 1_001, silent), None);
    s.expect(seg(RST, 1, 0));
    s.remote.at.set_port(2_000);
    s.stack_iss = first;
    s.assert_alive(conn, 1, 1);
}

/// Where the table is full a connection in TIME-WAIT waits for its successor.
#[test]
fn time_wait_stays_until_there_is_a_place() {
    let mut s = with_places(Version::V4, 1, 1_024);
    let conn = open(&mut s, 1_000);
    s.finish(conn);
    s.expect(seg(FIN | ACK, 1, 1));
    s.send(seg(FIN | ACK, 1, 2));
    s.expect(seg(ACK, 2, 2));
    while s.event().is_some() {}
    let other = open(&mut s, 2_000);
    s.remote.at.set_port(1_000);
    s.send(seg(SYN, 100_000, 0).mss(1_000));
    s.expect_nothing();
    s.abort(other);
    while s.event().is_some() {}
    while s.next().is_some() {}
    s.remote.at.set_port(1_000);
    s.send(seg(SYN, 100_000, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 100_001));
}

/// Clients come, answer or do not, and go, in any order: who was answered by more than a cookie and acknowledges it
/// within a second has a place, always.
#[test]
fn who_is_answered_has_a_place_whatever_the_others_do() {
    for_each_seed(40, |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut s = with_places(Version::V4, 5, [2, 5, 64][seed as usize % 3]);
        let mut open = vec![];
        let mut answered = vec![];
        let mut port = 1_000;
        for _ in 0..400 {
            match rng.random_range(0..10) {
                0..5 => {
                    port += 1;
                    let cookies = s.stack.endpoint().counters().syn_cookies_sent;
                    let is_answered = knock(&mut s, port);
                    assert!(!is_answered || open.len() < 5, "a full table has answered");
                    if is_answered && s.stack.endpoint().counters().syn_cookies_sent == cookies {
                        answered.push((port, s.stack_iss, s.now()));
                    }
                }
                5..8 if !answered.is_empty() => {
                    let (port, iss, at) = answered.swap_remove(rng.random_range(0..answered.len()));
                    let in_time = s.now() - at < Duration::from_millis(990);
                    match enter(&mut s, port, iss) {
                        Some(conn) => open.push((port, iss, conn)),
                        None => assert!(!in_time, "{port} was answered and has no place"),
                    }
                }
                8 if !open.is_empty() => {
                    let (port, iss, conn) = open.swap_remove(rng.random_range(0..open.len()));
                    s.remote.at.set_port(port);
                    s.stack_iss = iss;
                    s.abort(conn);
                    assert!(matches!(s.event(), Some(Event::Closed { .. })));
                }
                _ => s.advance(Duration::from_millis(rng.random_range(0..400))),
            }
            assert!(open.len() <= 5);
        }
        assert!(port > 1_100);
    });
}
