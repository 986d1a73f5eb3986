//! A server whose places are all taken: it still says how it is, and says no to everything else.

mod common;

use std::time::Duration;

use common::{Lab, body, post, request};
use pmlog::service::ServiceConfig;
use stack::net::{CloseReason, ConnId};

/// A service with four places, all taken by idle clients, and some spare ones.
fn full_lab() -> (Lab, Vec<ConnId>) {
    let config = ServiceConfig { max_connections: 4, spare_places: 20, ..ServiceConfig::default() };
    let mut lab = Lab::new(8 << 20, config);
    let idle = (0..4).map(|_| lab.connect()).collect();
    (lab, idle)
}

#[test]
fn a_spare_place_answers_health_and_refuses_everything_else() {
    let (mut lab, idle) = full_lab();
    for method in ["GET", "HEAD"] {
        let probe = lab.connect();
        lab.send(probe, &request(method, "/health"));
        let reply = lab.replies_to(probe, method);
        assert_eq!((reply.status, reply.field("connection")), (200, Some("close")));
        if method == "GET" {
            let health = reply.json();
            assert_eq!((&health["connections"], &health["max_connections"]), (&5.into(), &4.into()));
        }
        assert!(lab.client(probe).finished);
        lab.close(probe, CloseReason::Finished);
    }
    for asked in [
        post(b"one more"),
        post(&body(1, 300_000)),
        request("GET", "/records"),
        request("GET", "/records/1"),
        request("DELETE", "/records?before=9"),
        request("GET", "/nothing"),
        request("PUT", "/health"),
    ] {
        let conn = lab.connect();
        // Nothing behind it is served either.
        let all = [asked.clone(), request("GET", "/health")].concat();
        let reply = lab.ask(conn, &all);
        let shown = String::from_utf8_lossy(&asked[..asked.len().min(40)]).into_owned();
        assert_eq!((reply.status, reply.field("connection")), (503, Some("close")), "{shown}");
        assert_eq!(reply.field("retry-after"), Some("1"), "{shown}");
        assert!(reply.reason().contains("all 4 connections"), "{}", reply.reason());
        assert!(lab.client(conn).finished, "{shown}");
        lab.close(conn, CloseReason::Finished);
    }
    assert_eq!(lab.shard.next_seq(), 1, "nothing was stored");
    // The clients that had a place keep it.
    for conn in idle {
        lab.append(conn, b"served");
        assert!(!lab.client(conn).finished);
    }
}

#[test]
fn nobody_sits_on_a_spare_place() {
    let (mut lab, idle) = full_lab();
    let (silent, dripping, lingering) = (lab.connect(), lab.connect(), lab.connect());
    assert_eq!(lab.ask(lingering, &request("GET", "/health")).status, 200);
    for byte in "GET /hea".bytes() {
        lab.send(dripping, &[byte]);
        lab.advance(Duration::from_millis(1100));
    }
    assert!(lab.client(silent).finished, "FIN, since there is nothing that it might be told");
    assert!(lab.client(dripping).aborted && lab.client(lingering).aborted && lab.client(silent).aborted);
    for conn in idle {
        assert!(!lab.client(conn).finished && !lab.client(conn).aborted, "others have their time");
    }
}

#[test]
fn who_waits_in_a_spare_place_gets_one_that_becomes_free() {
    let (mut lab, idle) = full_lab();
    let (first, second, third) = (lab.connect(), lab.connect(), lab.connect());
    lab.close(idle[0], CloseReason::Finished);
    // Whoever asks first.
    lab.append(second, b"in time");
    assert!(!lab.client(second).finished);
    assert_eq!(lab.ask(first, &post(b"too late")).status, 503);
    lab.close(first, CloseReason::Finished);
    lab.close(idle[1], CloseReason::Finished);
    for _ in 0..10 {
        lab.advance(Duration::from_secs(1));
    }
    assert!(!lab.client(third).finished && !lab.client(third).aborted, "it has a place like any other");
    lab.append(third, b"at leisure");
    // All four are taken again.
    let probe = lab.connect();
    let health = lab.ask(probe, &request("GET", "/health"));
    assert_eq!((health.field("connection"), &health.json()["connections"]), (Some("close"), &5.into()));
}
