//! IPv6 extension headers before TCP, and what is answered where they cannot be served.

use stack::transport::OverEndpoint as _;

use crate::script::Script;
use crate::talk::{Version, ip, mac};
use crate::wire::{ACK, SYN, Side, data, echo_reply, echo_request, icmp, seg, with_extensions};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;

#[test]
fn segments_behind_extension_headers_are_served() {
    let chains: [(u8, Vec<u8>); 6] = [
        (HOP_BY_HOP, vec![TCP, 0, 1, 4, 0, 0, 0, 0]),
        (DESTINATION, vec![TCP, 0, 0x1e, 2, 0, 0, 1, 0]),
        (ROUTING, vec![TCP, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (FRAGMENT, vec![TCP, 0, 0, 0, 1, 2, 3, 4]),
        (
            HOP_BY_HOP,
            vec![FRAGMENT, 0, 1, 4, 0, 0, 0, 0, DESTINATION, 0, 0, 0, 1, 2, 3, 4, TCP, 0, 1, 4, 0, 0, 0, 0],
        ),
        // As many as are read.
        (
            DESTINATION,
            [[DESTINATION, 0, 1, 4, 0, 0, 0, 0].repeat(7), vec![TCP, 0, 1, 4, 0, 0, 0, 0]].concat(),
        ),
    ];
    for (first, chain) in chains {
        let mut s = Script::listening(Version::V6);
        let extended = |s: &Script, segment| with_extensions(&s.frame_from(s.remote, segment), first, &chain);
        s.inject(extended(&s, seg(SYN, 0, 0).mss(1_000)));
        s.expect(seg(SYN | ACK, 0, 1));
        s.inject(extended(&s, seg(ACK, 1, 1)));
        let conn = match s.event() {
            Some(stack::net::Event::Opened { conn, .. }) => conn,
            other => panic!("the connection did not open behind {first}: {other:?}"),
        };
        s.inject(extended(&s, data(1, 1, b"behind headers")));
        s.expect(seg(ACK, 1, 15));
        s.inject(extended(&s, data(15, 1, b"and again")));
        s.advance(std::time::Duration::from_millis(100));
        s.expect(seg(ACK, 1, 24));
        assert_eq!(s.read(conn), b"behind headersand again");
    }
}

#[test]
fn pings_behind_extension_headers_are_answered() {
    let mut s = Script::new(Version::V6);
    let ping = echo_request(s.remote, s.local, b"ping");
    s.inject(with_extensions(&ping, DESTINATION, &[ICMPV6, 0, 1, 4, 0, 0, 0, 0]));
    assert_eq!(s.next_other().and_then(|frame| echo_reply(&frame)), Some(b"ping".to_vec()));
}

/// RFC 8200, section 4.2: the two highest bits of an option's type say what is to be done.
#[test]
fn unknown_options_are_treated_as_they_ask() {
    for (option, answered) in [(0x1e, true), (0x5e, false), (0x9e, false), (0xde, false)] {
        for first in [HOP_BY_HOP, DESTINATION] {
            let mut s = Script::listening(Version::V6);
            let syn = s.frame_from(s.remote, seg(SYN, 0, 0).mss(1_000));
            let frame = with_extensions(&syn, first, &[TCP, 0, 1, 0, option, 2, 0, 0]);
            s.inject(frame.clone());
            if answered {
                s.expect(seg(SYN | ACK, 0, 1));
                continue;
            }
            s.expect_nothing();
            assert_eq!(s.stack.endpoint().counters().drops.extension, 1);
            let problem = s.next_other().and_then(|frame| icmp(&frame));
            if option == 0x5e {
                assert_eq!(problem, None);
            } else {
                assert_eq!(problem, Some((4, 2, 44, frame[14..].to_vec())), "option {option:#x}");
            }
        }
    }
}

/// To a group, only where the option wants it, and never with the group as the sender.
#[test]
fn options_in_packets_to_a_group_are_complained_of_only_if_they_ask_for_it() {
    for (option, answered) in [(0x9e, true), (0xde, false)] {
        let mut s = Script::listening(Version::V6);
        let everyone = "[ff02::1]:80".parse().expect("an address");
        let group = Side { mac: smoltcp::wire::EthernetAddress([0x33, 0x33, 0, 0, 0, 1]), at: everyone };
        let syn = seg(SYN, 0, 0).frame(s.remote, group);
        s.inject(with_extensions(&syn, DESTINATION, &[TCP, 0, 1, 0, option, 2, 0, 0]));
        s.expect_nothing();
        let problem = s.next_other();
        assert_eq!(problem.is_some(), answered);
        if let Some(frame) = problem {
            assert_eq!(frame[22..38], ip_bytes(ip(Version::V6, 1)));
        }
    }
}

fn ip_bytes(ip: std::net::IpAddr) -> [u8; 16] {
    match ip {
        std::net::IpAddr::V6(ip) => ip.octets(),
        std::net::IpAddr::V4(_) => unreachable!("it is IPv6"),
    }
}

#[test]
fn headers_that_cannot_be_served_are_complained_of() {
    type Case = (u8, &'static [u8], (u8, u8, u32));
    let cases: [Case; 3] = [
        // There is a segment left to route.
        (ROUTING, &[TCP, 0, 0, 1, 0, 0, 0, 0], (4, 0, 42)),
        // Hop-by-hop options stand first, or not at all.
        (DESTINATION, &[HOP_BY_HOP, 0, 1, 4, 0, 0, 0, 0, TCP, 0, 1, 4, 0, 0, 0, 0], (4, 1, 40)),
        // Nobody speaks that protocol.
        (DESTINATION, &[253, 0, 1, 4, 0, 0, 0, 0], (4, 1, 40)),
    ];
    for (first, chain, expected) in cases {
        let mut s = Script::listening(Version::V6);
        let syn = s.frame_from(s.remote, seg(SYN, 0, 0).mss(1_000));
        s.inject(with_extensions(&syn, first, chain));
        s.expect_nothing();
        let (kind, code, pointer, _) = s.next_other().and_then(|frame| icmp(&frame)).expect("it is said");
        assert_eq!((kind, code, pointer), expected);
    }
}

#[test]
fn too_many_headers_and_too_long_ones_are_dropped_without_a_word() {
    let many = [[DESTINATION, 0, 1, 4, 0, 0, 0, 0].repeat(8), vec![TCP, 0, 1, 4, 0, 0, 0, 0]].concat();
    let mut long = vec![0; 600];
    (long[0], long[1]) = (TCP, 74);
    for chain in [many, long] {
        let mut s = Script::listening(Version::V6);
        let syn = s.frame_from(s.remote, seg(SYN, 0, 0).mss(1_000));
        s.inject(with_extensions(&syn, DESTINATION, &chain));
        s.expect_nothing();
        assert_eq!(s.next_other(), None);
        assert_eq!(s.stack.endpoint().counters().drops.extension, 1);
    }
}

/// An error is answered by none, nor is what comes from where no host is.
#[test]
fn errors_beget_no_errors() {
    let mut s = Script::new(Version::V6);
    let quoted = [0; 48];
    let error = crate::wire::icmpv6_error(s.remote, s.local, 1, 4, 0, &quoted);
    s.inject(with_extensions(&error, ROUTING, &[ICMPV6, 0, 0, 1, 0, 0, 0, 0]));
    let from_group = Side { at: "[ff02::1]:9".parse().expect("an address"), mac: mac(2) };
    s.inject(crate::wire::udp(from_group, s.local));
    // Of the first only the routing header was read: it may have carried anything.
    let said = std::iter::from_fn(|| s.next_other()).count();
    assert!(said <= 1, "{said} answers");
}
