//! A flood of one kind of frame takes nothing from the others.

use std::time::Duration;

use smoltcp::wire::{ArpOperation, EthernetAddress, EthernetFrame, EthernetProtocol};

use crate::script::Script;
use crate::talk::{Version, ip, mac};
use crate::wire::{
    SYN, Side, arp, echo_request, ethernet_frame, fragments_of, icmpv4_error, icmpv6_error, neighbor_solicit,
    seg, udp, with_extensions,
};

type Frames = Vec<(&'static str, Vec<u8>)>;

/// What a stranger sends as fast as it can.
fn floods(version: Version, s: &Script) -> Frames {
    let (from, to) = (s.remote, s.local);
    let fragment = fragments_of(&echo_request(from, to, &[1; 3_000]), 1_400, 7).swap_remove(0);
    let quoted = &seg(SYN, 0, 0).frame(to, from)[14..];
    let mut floods = vec![
        ("datagrams", udp(from, to)),
        ("pings", echo_request(from, to, &[1; 56])),
        ("fragments", fragment),
        ("unknown ethertypes", ethernet_frame(from.mac, to.mac, EthernetProtocol::Unknown(0x88cc), 46)),
        ("segments to a closed port", seg(SYN, 0, 0).frame(from, Side { at: (to.at.ip(), 81).into(), ..to })),
    ];
    match version {
        Version::V4 => floods.extend([
            ("ARP for others", arp(ArpOperation::Request, from, EthernetAddress::BROADCAST, ip(version, 9))),
            ("ARP for this host", arp(ArpOperation::Request, from, EthernetAddress::BROADCAST, to.at.ip())),
            ("announcements", arp(ArpOperation::Request, from, EthernetAddress::BROADCAST, from.at.ip())),
            ("errors", icmpv4_error(from, to, 3, 1, 0, quoted)),
        ]),
        Version::V6 => floods.extend([
            ("solicitations for others", neighbor_solicit(from, ip(version, 9))),
            ("solicitations for this host", neighbor_solicit(from, to.at.ip())),
            ("errors", icmpv6_error(from, to, 1, 3, 0, quoted)),
            (
                "unknown options",
                with_extensions(&seg(SYN, 0, 0).frame(from, to), 60, &[6, 0, 0x9e, 0, 1, 2, 0, 0]),
            ),
        ]),
    }
    floods
}

/// What an honest host asks meanwhile.
fn questions(version: Version, honest: Side, local: Side) -> Frames {
    let ping = ("pings", echo_request(honest, local, b"honest"));
    let neighbor = match version {
        Version::V4 => (
            "ARP for this host",
            arp(ArpOperation::Request, honest, EthernetAddress::BROADCAST, local.at.ip()),
        ),
        Version::V6 => ("solicitations for this host", neighbor_solicit(honest, local.at.ip())),
    };
    vec![ping, neighbor]
}

#[test]
fn a_flood_of_one_kind_starves_no_other() {
    for version in [Version::V4, Version::V6] {
        for (kind, flood) in floods(version, &Script::new(version)) {
            let mut s = Script::listening(version);
            let honest = Side { mac: mac(3), at: (ip(version, 3), 0).into() };
            for (asked, question) in questions(version, honest, s.local) {
                if asked == kind {
                    continue;
                }
                const FLOOD: usize = 8_000;
                const EVERY: usize = 400;
                s.inject_all(
                    (0..FLOOD).map(|n| if n % EVERY == EVERY - 1 { &question } else { &flood }.clone()),
                );
                let answers = std::iter::from_fn(|| s.next_other());
                let is_ours =
                    |frame: &Vec<u8>| EthernetFrame::new_unchecked(&frame[..]).dst_addr() == honest.mac;
                let answered = answers.filter(is_ours).count();
                assert_eq!(answered, FLOOD / EVERY, "{asked} answered in a flood of {kind}");
                while s.next().is_some() {}
                s.advance(Duration::from_secs(1));
            }
        }
    }
}

/// Long replies go out in many frames, and leave room for short ones.
#[test]
fn long_pings_do_not_keep_short_ones_from_being_answered() {
    for version in [Version::V4, Version::V6] {
        let mut s = Script::new(version);
        let honest = Side { mac: mac(3), at: (ip(version, 3), 0).into() };
        let long = |ident| fragments_of(&echo_request(s.remote, s.local, &[1; 65_000]), 1_400, ident);
        let short = echo_request(honest, s.local, b"honest");
        let frames: Vec<_> = (0..20).flat_map(|ident| [long(ident), vec![short.clone()]].concat()).collect();
        s.inject_all(frames);
        let is_ours = |frame: &Vec<u8>| EthernetFrame::new_unchecked(&frame[..]).dst_addr() == honest.mac;
        let answered = std::iter::from_fn(|| s.next_other()).filter(is_ours).count();
        assert_eq!(answered, 20);
    }
}

/// Errors of each kind have a limit of their own, and the limit holds.
#[test]
fn errors_are_few() {
    for version in [Version::V4, Version::V6] {
        let mut s = Script::new(version);
        let datagram = udp(s.remote, s.local);
        s.inject_all((0..5_000).map(|_| datagram.clone()));
        let errors = std::iter::from_fn(|| s.next_other()).count();
        assert!((1..=60).contains(&errors), "{errors} errors");
    }
}
