//! Hosts that mean harm, or look as if they did: RFC 5961, floods, and forged messages.

use std::net::SocketAddr;
use std::time::Duration;

use stack::Config;
use stack::net::{CloseReason, Event};
use stack::transport::OverEndpoint as _;

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version, ip, mac};
use crate::wire::{ACK, FIN, RST, SYN, Seg, Side, data, icmpv4_error, icmpv6_error, seg};

/// RFC 5961, section 3.2: a reset within the window, but not at its edge, is answered with a challenge.
#[test]
fn rfc5961_3_2_a_reset_inside_the_window_is_challenged() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = Script::open(version);
        s.send(seg(RST, 2, 0));
        s.expect(seg(ACK, 1, 1));
        s.send(seg(RST, 500_000, 0));
        s.expect_nothing();
        s.assert_alive(conn, 1, 1);
    }
}

/// RFC 5961, section 4.2: a SYN on an open connection is answered with a challenge, whatever its number.
#[test]
fn rfc5961_4_2_a_syn_on_an_open_connection_is_challenged() {
    for seq in [0, 1, 2, 500_000, 0u32.wrapping_sub(50_000)] {
        let (mut s, conn) = Script::open(Version::V4);
        s.send(seg(SYN, seq, 0));
        s.expect(seg(ACK, 1, 1));
        s.assert_alive(conn, 1, 1);
    }
}

/// RFC 5961, section 4.2: in every state, whatever the two have agreed on and whatever the SYN says, so that a peer
/// which has lost its memory finds out, answers with RST, and gets a new connection for its next SYN.
#[test]
fn rfc5961_4_2_a_reborn_peer_is_challenged_whatever_its_options() {
    let with =
        |ts: Option<u32>, scale| Seg { timestamps: ts.map(|value| (value, 0)), scale, ..Seg::default() };
    let agreed = [with(None, None), with(Some(900), None), with(None, Some(7)), with(Some(900), Some(7))];
    let reborn = [
        with(None, None),
        with(Some(1), Some(3)),
        with(Some(900), None),
        with(Some(u32::MAX / 2), Some(7)),
        with(None, Some(14)),
    ];
    for (first, second) in agreed.iter().flat_map(|first| reborn.iter().map(move |second| (first, second))) {
        for state in ["established", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING", "LAST-ACK"] {
            for number in [0, 77, 0u32.wrapping_sub(50_000)] {
                let mut s = Script::listening(Version::V4);
                let conn = s.open_with(Seg { flags: SYN, mss: Some(1_000), ..first.clone() });
                let echo = first.timestamps.map(|(value, _)| (value, s.stack_timestamp()));
                let (mut seq, mut ack) = (1, 1);
                let hears = |s: &mut Script, flags, seq, ack| {
                    s.send(Seg { timestamps: echo, ..seg(flags, seq, ack) });
                };
                if matches!(state, "CLOSE-WAIT" | "LAST-ACK") {
                    hears(&mut s, FIN | ACK, 1, 1);
                    seq = 2;
                }
                if !matches!(state, "established" | "CLOSE-WAIT") {
                    s.finish(conn);
                    ack = 2;
                }
                if state == "FIN-WAIT-2" {
                    hears(&mut s, ACK, 1, 2);
                }
                if state == "CLOSING" {
                    hears(&mut s, FIN | ACK, 1, 1);
                    seq = 2;
                }
                while s.next().is_some() {}
                let syn = Seg { flags: SYN, seq: number, mss: Some(1_000), ..second.clone() };
                s.send(syn.clone());
                s.expect(seg(ACK, ack, seq));
                s.expect_nothing();
                // The reborn peer knows no such connection, and begins again.
                s.send(seg(RST, seq, 0));
                let closed = std::iter::from_fn(|| s.event()).last();
                assert_eq!(closed, Some(Event::Closed { conn, reason: CloseReason::Reset }), "{state}");
                s.send(syn);
                s.expect(seg(SYN | ACK, 0, number.wrapping_add(1)));
            }
        }
    }
}

/// RFC 5961, section 5.2: an acknowledgement of what was never sent, or of ages ago, is not believed.
#[test]
fn rfc5961_5_2_an_impossible_acknowledgement_is_challenged() {
    for ack in [2, 500_000, 0u32.wrapping_sub(500_000)] {
        let (mut s, conn) = Script::open(Version::V4);
        s.send(data(1, ack, b"forged"));
        s.expect(seg(ACK, 1, 1));
        assert_eq!(s.read(conn), b"");
        s.assert_alive(conn, 1, 1);
    }
}

/// RFC 5961, section 7: challenges are limited in rate.
#[test]
fn rfc5961_7_challenges_are_limited() {
    let (mut s, conn) = Script::open(Version::V4);
    for _ in 0..3_000 {
        s.send(seg(RST, 2, 0));
    }
    let challenges = std::iter::from_fn(|| s.next()).count();
    assert!((1..=400).contains(&challenges), "{challenges} challenges in 150 ms");
    s.advance(Duration::from_secs(2));
    s.assert_alive(conn, 1, 1);
}

/// RFC 7323, section 5.3, and RFC 5961, section 7: what comes with an old timestamp is answered, but not as often as
/// anybody likes, who need not even know what the window is.
#[test]
fn rfc5961_7_answers_to_old_timestamps_are_limited() {
    for payload in [&b""[..], b"old"] {
        let mut s = Script::listening(Version::V4);
        let conn = s.open_with(Seg { flags: SYN, timestamps: Some((900_000, 0)), ..Seg::default() });
        let with = |value, s: &Script| Some((value, s.stack_timestamp()));
        let old = Seg { timestamps: with(800_000, &s), ..seg(ACK, 400_000, 1) };
        s.send(old.clone().payload(payload));
        s.expect(Seg { timestamps: None, ..seg(ACK, 1, 1) });
        for _ in 0..3_000 {
            s.send(old.clone().payload(payload));
        }
        let answers = std::iter::from_fn(|| s.next()).count();
        assert!(answers <= 20, "{answers} answers in 150 ms");
        s.send(Seg { timestamps: with(900_001, &s), ..data(1, 1, b"new") });
        s.advance(Duration::from_millis(100));
        assert_eq!(s.read(conn), b"new");
    }
}

/// RFC 9293, section 3.10.7.4, fifth: without ACK a segment is dropped.
#[test]
fn rfc9293_3_10_7_4_without_ack_a_segment_is_dropped() {
    let (mut s, conn) = Script::open(Version::V4);
    s.send(seg(0, 1, 0).payload(b"bare"));
    s.send(seg(FIN, 1, 0));
    assert_eq!(s.read(conn), b"");
    while s.next().is_some() {}
    s.assert_alive(conn, 1, 1);
}

/// Resets for segments that belong to no connection are limited in rate.
#[test]
fn resets_are_limited() {
    let mut s = Script::new(Version::V4);
    for n in 0..5_000 {
        s.send(seg(SYN, n, 0));
    }
    let resets = std::iter::from_fn(|| s.next()).count();
    assert!((1..=2_000).contains(&resets), "{resets} resets in 250 ms");
    s.assert_nothing_leaked();
}

/// Nobody finds out by the resets that he gets whether another host gets some, nor takes them from it.
#[test]
fn resets_of_one_host_are_not_counted_against_another() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        let flooding = Side { mac: mac(2), at: SocketAddr::new(ip(version, 3), 5_000) };
        let prober: SocketAddr = match version {
            Version::V4 => "192.0.2.7:7000".parse().expect("an address"),
            Version::V6 => "[2001:db8::7]:7000".parse().expect("an address"),
        };
        let count = |s: &mut Script, from: Side, segments: u32| {
            for n in 0..segments {
                s.send_from(from, seg(SYN, n, 0));
            }
            std::iter::from_fn(|| s.next()).filter(|answer| answer.has(RST)).count()
        };
        let flood = count(&mut s, flooding, 3_000);
        assert!((50..1_000).contains(&flood), "{flood} resets to a flood");
        assert_eq!(count(&mut s, Side { mac: mac(2), at: prober }, 90), 90);
    }
}

fn stranger(version: Version, n: u32) -> Side {
    Side { mac: mac(2), at: SocketAddr::new(ip(version, 3 + (n % 200) as u8), 1_024 + (n / 200) as u16) }
}

/// A flood of SYNs that are never followed up: open connections live on, and a later SYN still gets through.
#[test]
fn a_syn_flood_starves_nobody() {
    for version in BOTH_VERSIONS {
        let config = Config { syn_queue: 64, max_connections: 16, ..config(1) };
        let mut s = Script::with_config(version, config);
        s.listen();
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
        let iss = s.stack_iss;
        for n in 0..20_000 {
            s.send_from(stranger(version, n), seg(SYN, n, 0).mss(1_000));
            if n % 1_000 == 999 {
                while s.next().is_some() {}
                s.stack_iss = iss;
                s.assert_alive(conn, 1 + 6 * (n / 1_000), 1);
                while s.event().is_some() {}
            }
        }
        while s.next().is_some() {}
        s.remote.at.set_port(50_000);
        let late = s.open_with(seg(SYN, 0, 0).mss(1_000));
        s.assert_alive(late, 1, 1);
        s.abort(late);
        s.stack_iss = iss;
        s.remote.at.set_port(40_000);
        s.abort(conn);
        s.advance(Duration::from_secs(300));
        s.assert_nothing_leaked();
    }
}

/// The part of a sent frame that an ICMP error quotes: the IP header and the first eight bytes of TCP, or more.
pub fn quote(s: &Script, seq: u32, payload: usize) -> Vec<u8> {
    let segment = data(seq.wrapping_add(s.stack_iss), 1u32.wrapping_add(s.remote_iss), &vec![7; payload]);
    let frame = segment.frame(s.local, s.remote);
    frame[14..frame.len().min(14 + 68)].to_vec()
}

pub fn too_big(s: &Script, version: Version, mtu: u32, quoted: &[u8]) -> Vec<u8> {
    match version {
        Version::V4 => icmpv4_error(s.remote, s.local, 3, 4, mtu, quoted),
        Version::V6 => icmpv6_error(s.remote, s.local, 2, 0, mtu, quoted),
    }
}

/// RFC 1191 and RFC 8201: a router that cannot pass on a segment gets smaller ones.
#[test]
fn rfc1191_and_rfc8201_a_smaller_path_mtu_makes_smaller_segments() {
    for (version, mtu, mss) in [(Version::V4, 1_000, 960), (Version::V6, 1_280, 1_220)] {
        let mut s = Script::listening(version);
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_400));
        assert_eq!(s.write(conn, &[7; 1_400]), Ok(()));
        s.expect(data(1, 1, &[7; 1_400]));
        let quoted = quote(&s, 1, 1_400);
        let message = too_big(&s, version, mtu, &quoted);
        s.inject(message);
        s.advance(Duration::from_secs(3));
        let again = s.next().expect("the segment is sent again");
        assert_eq!((again.seq, again.payload.len()), (1, mss), "no longer than the path takes");
    }
}

/// RFC 5927, section 4: a message that quotes what is not under way is forged.
#[test]
fn rfc5927_4_a_message_about_nothing_under_way_is_not_believed() {
    for version in BOTH_VERSIONS {
        let mut s = Script::listening(version);
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_400));
        assert_eq!(s.write(conn, &[7; 1_400]), Ok(()));
        s.expect(data(1, 1, &[7; 1_400]));
        for seq in [0u32.wrapping_sub(100_000), 1_401, 1_000_000] {
            let quoted = quote(&s, seq, 1_400);
            let message = too_big(&s, version, 1_280, &quoted);
            s.inject(message);
        }
        s.advance(Duration::from_secs(3));
        let again = s.next().expect("the segment is sent again");
        assert_eq!(again.payload.len(), 1_400);
    }
}

/// A path MTU of next to nothing is not believed to the letter: each segment still carries something.
#[test]
fn a_tiny_path_mtu_does_not_make_tiny_segments() {
    for (version, least) in [(Version::V4, 500), (Version::V6, 1_000)] {
        let mut s = Script::listening(version);
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_400));
        assert_eq!(s.write(conn, &[7; 1_400]), Ok(()));
        s.expect(data(1, 1, &[7; 1_400]));
        for mtu in [68, 1, 0] {
            let quoted = quote(&s, 1, 1_400);
            let message = too_big(&s, version, mtu, &quoted);
            s.inject(message);
        }
        s.advance(Duration::from_secs(3));
        let again = s.next().expect("the segment is sent again");
        assert!(again.payload.len() >= least, "{}", again.payload.len());
    }
}

/// RFC 9293, section 3.9.2.2: unreachable ends an attempt, but not an open connection.
#[test]
fn rfc9293_3_9_2_2_unreachable_is_hard_only_while_opening() {
    for version in BOTH_VERSIONS {
        let unreachable = |s: &Script, quoted: &[u8]| match version {
            Version::V4 => icmpv4_error(s.remote, s.local, 3, 1, 0, quoted),
            Version::V6 => icmpv6_error(s.remote, s.local, 1, 0, 0, quoted),
        };
        let (mut s, conn) = Script::open(version);
        assert_eq!(s.write(conn, b"hello"), Ok(()));
        s.expect(data(1, 1, b"hello"));
        let quoted = quote(&s, 1, 5);
        let message = unreachable(&s, &quoted);
        s.inject(message);
        assert_eq!(s.event(), None);
        s.send(seg(ACK, 1, 6));
        s.assert_alive(conn, 1, 6);

        let mut s = Script::new(version);
        let conn = s.connect();
        s.expect(seg(SYN, 0, 0));
        let quoted = seg(SYN, s.stack_iss, 0).frame(s.local, s.remote)[14..].to_vec();
        let message = unreachable(&s, &quoted);
        s.inject(message);
        s.expect_event(Event::Closed { conn, reason: CloseReason::Unreachable });
        s.assert_nothing_leaked();
    }
}

/// RFC 6528: first sequence numbers differ between flows without a pattern, and grow in time within a flow.
#[test]
fn rfc6528_first_numbers_cannot_be_guessed_from_others() {
    let first_number = |config: Config, port: u16, after: Duration| {
        let mut s = Script::with_config(Version::V4, config);
        s.listen();
        s.remote.at.set_port(port);
        s.advance(after);
        s.send(seg(SYN, 0, 0).mss(1_000));
        s.expect(seg(SYN | ACK, 0, 1));
        s.stack_iss
    };
    let numbers: Vec<u32> = (0..50).map(|n| first_number(config(1), 1_000 + n, Duration::ZERO)).collect();
    let mut steps: Vec<u32> = numbers.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    steps.sort_unstable();
    steps.dedup();
    assert!(steps.len() > 45, "the numbers follow a pattern: {numbers:?}");
    let early = first_number(config(1), 1_000, Duration::ZERO);
    let late = first_number(config(1), 1_000, Duration::from_secs(1));
    // One step in 4 us.
    assert!((200_000..300_000).contains(&late.wrapping_sub(early)), "{early} and {late}");
    let secret = Config { isn_secret: [99; 16], ..config(1) };
    let apart = first_number(secret, 1_000, Duration::ZERO).wrapping_sub(early);
    assert!(apart.min(apart.wrapping_neg()) > 1_000, "the secret changes nothing");
}

/// Frames of one flow with another's Ethernet address must not take over where the answers go for good, and
/// frames from impossible addresses are dropped.
#[test]
fn impossible_sources_are_dropped() {
    let mut s = Script::listening(Version::V4);
    for source in
        ["0.0.0.0:9", "255.255.255.255:9", "224.0.0.1:9", "127.0.0.1:9", "10.0.0.255:9", "10.0.0.1:9"]
    {
        let from = Side { mac: mac(2), at: source.parse().expect("an address") };
        s.send_from(from, seg(SYN, 0, 0));
        s.expect_nothing();
    }
    let mut s = Script::listening(Version::V6);
    for source in ["[::]:9", "[ff02::1]:9", "[::1]:9", "[fd00::1]:9"] {
        let from = Side { mac: mac(2), at: source.parse().expect("an address") };
        s.send_from(from, seg(SYN, 0, 0));
        s.expect_nothing();
    }
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    s.assert_alive(conn, 1, 1);
}

#[test]
fn a_listener_answers_at_its_own_address_only() {
    let mut s = Script::listening(Version::V4);
    let elsewhere = Side { at: "10.0.0.9:80".parse().expect("an address"), ..s.local };
    let frame = seg(SYN, 0, 0).frame(s.remote, elsewhere);
    s.inject(frame);
    s.expect_nothing();
    assert_eq!(s.next_other(), None);
    assert!(s.stack.endpoint().counters().drops.address > 0);
}
