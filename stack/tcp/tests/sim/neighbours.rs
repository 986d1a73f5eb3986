//! Finding neighbours, being found by them, and what is not TCP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::wire::{ArpOperation, EthernetAddress, EthernetFrame, Ipv6Packet};
use stack::net::{CloseReason, Event};
use stack::sim::Path;
use stack::time::Instant;
use stack::transport::OverEndpoint as _;
use stack::{Config, ConnectError, ListenError};

use crate::ours::{Ours, config};
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version, addresses, ip, link, mac};
use crate::wire::{
    ACK, SYN, Side, arp, echo_reply, echo_request, icmp, is_question_for, neighbor_solicit, seg, udp,
};

#[test]
fn arp_requests_for_the_own_address_are_answered() {
    let mut s = Script::new(Version::V4);
    let ask = |target| arp(ArpOperation::Request, s.remote, EthernetAddress::BROADCAST, target);
    let (own, other) = (ask(ip(Version::V4, 1)), ask(ip(Version::V4, 9)));
    s.inject(own);
    let answer = s.next_other().expect("the own address is answered for");
    assert_eq!(answer, arp(ArpOperation::Reply, s.local, s.remote.mac, s.remote.at.ip()));
    s.inject(other);
    assert_eq!(s.next_other(), None);
}

#[test]
fn neighbor_solicitations_for_the_own_address_are_answered() {
    let mut s = Script::new(Version::V6);
    s.inject(neighbor_solicit(s.remote, s.local.at.ip()));
    let answer = s.next_other().expect("the own address is answered for");
    let ethernet = EthernetFrame::new_checked(&answer[..]).expect("it is whole");
    assert_eq!((ethernet.src_addr(), ethernet.dst_addr()), (s.local.mac, s.remote.mac));
    let ip6 = Ipv6Packet::new_checked(ethernet.payload()).expect("it is whole");
    // RFC 4861, section 7.1.2: a neighbor advertisement (type 136) comes with a hop limit of 255.
    assert_eq!((ip6.hop_limit(), ip6.payload()[0]), (255, 136));
    s.inject(neighbor_solicit(s.remote, ip(Version::V6, 9)));
    assert_eq!(s.next_other(), None);
}

/// A host that has just started knows no neighbour, but the one that asks may know it from before: nobody is asked.
#[test]
fn pings_are_answered_from_the_first_one_on() {
    for version in BOTH_VERSIONS {
        for len in [0, 1, 56, 1_400] {
            let mut s = Script::new(version);
            s.answers_for_itself = false;
            let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
            s.inject(echo_request(s.remote, s.local, &data));
            let replies: Vec<_> = std::iter::from_fn(|| s.next_other()).collect();
            let answered: Vec<_> = replies.iter().filter_map(|frame| echo_reply(frame)).collect();
            assert_eq!((replies.len(), answered), (1, vec![data]), "{replies:02x?}");
            s.assert_nothing_leaked();
        }
        // From afar, by a router; and errors go the same way.
        let mut s = Script::new(version);
        s.answers_for_itself = false;
        let peer = Side { mac: mac(77), at: far(version) };
        s.inject(echo_request(peer, s.local, b"far"));
        let reply = s.next_other().expect("the ping is answered");
        assert_eq!((&reply[..6], echo_reply(&reply)), (&mac(77).0[..], Some(b"far".to_vec())));
        let datagram = udp(peer, s.local);
        s.inject(datagram.clone());
        let error = s.next_other().expect("the datagram is answered");
        let (kind, code, _, quoted) = icmp(&error).expect("by an error");
        let unreachable = if version == Version::V4 { (3, 3) } else { (1, 4) };
        assert_eq!((&error[..6], (kind, code), &quoted[..]), (&mac(77).0[..], unreachable, &datagram[14..]));
        assert_eq!(s.next_other(), None);
    }
}

/// RFC 1122, sections 3.2.1.3 and 3.2.2: what was sent to many, or is from where no host is, is not answered.
#[test]
fn what_was_sent_to_many_or_is_from_nobody_is_not_answered() {
    let at = |text: &str| SocketAddr::new(text.parse().expect("an address"), 9);
    let group_mac = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);
    let broadcast = EthernetAddress::BROADCAST;
    for (version, destinations, sources) in [
        (
            Version::V4,
            &[("10.0.0.255", broadcast), ("255.255.255.255", broadcast), ("224.0.0.1", group_mac)][..],
            &["10.0.0.255", "255.255.255.255", "224.0.0.1", "10.0.0.1", "127.0.0.1", "0.0.0.0", "240.0.0.1"]
                [..],
        ),
        (
            Version::V6,
            &[("ff02::1", group_mac), ("ff02::1:ff00:1", group_mac), ("ff0e::7", group_mac)],
            &["ff02::1", "fd00::1", "::1", "::", "::ffff:10.0.0.2"],
        ),
    ] {
        let mut s = Script::listening(version);
        for (to, mac) in destinations {
            for mac in [*mac, s.local.mac] {
                let to = Side { mac, at: at(to) };
                s.inject(echo_request(s.remote, to, b"all"));
                s.inject(udp(s.remote, to));
                assert_eq!(s.next_other(), None, "{to:?}");
            }
        }
        for from in sources {
            let from = Side { at: at(from), ..s.remote };
            s.inject(echo_request(from, s.local, b"nobody"));
            s.inject(udp(from, s.local));
            s.inject(seg(SYN, 0, 0).frame(from, Side { at: (s.local.at.ip(), 80).into(), ..s.local }));
            assert_eq!(s.next_other(), None, "{from:?}");
            s.expect_nothing();
        }
        // To this host, but in a frame for all.
        s.inject(echo_request(s.remote, Side { mac: broadcast, ..s.local }, b"all"));
        assert_eq!(s.next_other(), None);
        // Half of those to many came in frames for many.
        let drops = s.stack.endpoint().counters().drops;
        assert_eq!(drops.group, 2 * destinations.len() as u64 + 1);
        assert_eq!(drops.address, (2 * destinations.len() + 3 * sources.len()) as u64);
    }
}

#[test]
fn a_flood_of_pings_does_not_stop_tcp() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = Script::open(version);
        let ping = echo_request(s.remote, s.local, &[1; 1_000]);
        for _ in 0..5_000 {
            s.inject(ping.clone());
        }
        while s.next_other().is_some() {}
        s.assert_alive(conn, 1, 1);
        s.advance(Duration::from_secs(2));
        s.inject(ping);
        assert!(s.next_other().is_some(), "once the flood is over pings are answered again");
    }
}

/// An active open asks for the neighbour first, once even if the answer takes a moment.
#[test]
fn an_active_open_asks_for_the_neighbour() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        s.answers_for_itself = false;
        let conn = s.connect();
        s.expect_nothing();
        let question = s.next_other().expect("the neighbour is asked for");
        assert!(is_question_for(&question, s.remote.at.ip()), "{question:02x?}");
        s.answers_for_itself = true;
        s.inject(crate::wire::neighbor_answer(s.remote, &question).expect("it is the question"));
        s.expect(seg(SYN, 0, 0));
        s.send(seg(SYN | ACK, 0, 1).mss(1_000));
        s.expect(seg(ACK, 1, 1));
        s.expect_event(Event::Opened { conn, peer: s.remote.at });
    }
}

#[test]
fn a_neighbour_that_does_not_answer_is_unreachable() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        s.answers_for_itself = false;
        let conn = s.connect();
        s.advance(Duration::from_secs(30));
        s.expect_event(Event::Closed { conn, reason: CloseReason::Unreachable });
        s.expect_nothing();
        let questions = std::iter::from_fn(|| s.next_other()).count();
        assert!((2..=20).contains(&questions), "{questions} questions");
        s.assert_nothing_leaked();
    }
}

fn far(version: Version) -> SocketAddr {
    match version {
        Version::V4 => "192.0.2.7:7000".parse().expect("an address"),
        Version::V6 => "[2001:db8::7]:7000".parse().expect("an address"),
    }
}

#[test]
fn what_is_far_goes_through_the_gateway() {
    for version in BOTH_VERSIONS {
        let (IpAddr::V4(gateway_v4), IpAddr::V6(gateway_v6)) = (ip(Version::V4, 2), ip(Version::V6, 2))
        else {
            unreachable!("the versions are what they are called")
        };
        let config = Config { gateway_v4: Some(gateway_v4), gateway_v6: Some(gateway_v6), ..config(1) };
        let mut s = Script::with_config(version, config);
        let now = s.now();
        s.stack.endpoint_mut().connect(now, far(version), None).expect("there is a gateway");
        s.settle();
        // The gateway, host 2, answers for its own address, and gets the SYN.
        s.expect(seg(SYN, 0, 0));
        assert_eq!(s.last_receiver(), Side { mac: mac(2), at: far(version) });
    }
}

/// Whom a frame asks the link for, by ARP or neighbor discovery.
fn asked_for(frame: &[u8]) -> Option<IpAddr> {
    let word = |at: usize| frame.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    match word(12)? {
        0x0806 if word(20)? == 1 => Some(<[u8; 4]>::try_from(frame.get(38..42)?).ok()?.into()),
        0x86dd if frame.get(54) == Some(&135) => Some(<[u8; 16]>::try_from(frame.get(62..78)?).ok()?.into()),
        _ => None,
    }
}

/// Of routes, own networks and the gateway the most specific decides.
#[test]
fn the_most_specific_route_decides_where_a_packet_goes_first() {
    let routes = [
        "192.168.0.0/16=10.0.0.11",
        "192.168.7.0/24=10.0.0.12",
        "192.168.7.7/32=10.0.0.13",
        "10.0.0.64/26=10.0.0.14",
        "10.0.0.0/8=10.0.0.15",
        "2001:db8::/32=fd00::11",
        "2001:db8:7::/48=fd00::12",
    ];
    let config = Config {
        routes: routes.map(|route| route.parse().expect("a route")).to_vec(),
        gateway_v4: Some(std::net::Ipv4Addr::new(10, 0, 0, 10)),
        ..config(1)
    };
    for (remote, hop) in [
        ("192.168.1.1", Some("10.0.0.11")),
        ("192.168.7.1", Some("10.0.0.12")),
        ("192.168.7.7", Some("10.0.0.13")),
        ("10.0.0.65", Some("10.0.0.14")),
        ("10.0.0.200", Some("10.0.0.200")),
        ("10.1.0.1", Some("10.0.0.15")),
        ("192.0.2.1", Some("10.0.0.10")),
        ("2001:db8::1", Some("fd00::11")),
        ("2001:db8:7::1", Some("fd00::12")),
        ("fd00::99", Some("fd00::99")),
        ("2001:db9::1", None),
    ] {
        let remote: IpAddr = remote.parse().expect("an address");
        let version = if remote.is_ipv4() { Version::V4 } else { Version::V6 };
        let mut s = Script::with_config(version, config.clone());
        let now = s.now();
        let opened = s.stack.endpoint_mut().connect(now, SocketAddr::new(remote, 80), None);
        assert_eq!(opened.is_ok(), hop.is_some(), "{remote}: {opened:?}");
        s.settle();
        let asked = std::iter::from_fn(|| s.next_other()).find_map(|frame| asked_for(&frame));
        assert_eq!(asked, hop.map(|hop| hop.parse().expect("an address")), "{remote}");
    }
}

#[test]
fn without_a_gateway_there_is_no_way_far() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        let now = s.now();
        let refused = s.stack.endpoint_mut().connect(now, far(version), None);
        assert_eq!(refused, Err(ConnectError::NoRoute(far(version).ip())));
    }
}

/// Who connects from afar is answered through the router its frames come from; nobody needs to be asked.
#[test]
fn an_answer_goes_back_the_way_the_question_came() {
    for version in BOTH_VERSIONS {
        let mut s = Script::listening(version);
        let peer = Side { mac: mac(77), at: far(version) };
        s.send_from(peer, seg(SYN, 0, 0).mss(1_000));
        s.expect(seg(SYN | ACK, 0, 1));
        assert_eq!(s.last_receiver(), peer);
        assert_eq!(s.next_other(), None);
    }
}

#[test]
fn impossible_peers_and_addresses_are_refused() {
    let mut s = Script::new(Version::V4);
    let now = s.now();
    let endpoint = s.stack.endpoint_mut();
    for remote in
        ["0.0.0.0:1", "255.255.255.255:1", "224.0.0.1:1", "10.0.0.2:0", "10.0.0.255:1", "[ff02::1]:1"]
    {
        let remote: SocketAddr = remote.parse().expect("an address");
        assert_eq!(endpoint.connect(now, remote, None), Err(ConnectError::BadRemote(remote)));
    }
    let (near, strange) =
        ("10.0.0.2:1".parse().expect("an address"), "10.0.0.9:1".parse().expect("an address"));
    assert!(matches!(endpoint.connect(now, near, Some(strange)), Err(ConnectError::NotLocal(_))));
    assert!(matches!(endpoint.listen(strange, 1), Err(ListenError::NotLocal(_))));

    let own: SocketAddr = "10.0.0.1:5".parse().expect("an address");
    assert_eq!(endpoint.listen(own, 1), Ok(()));
    assert_eq!(endpoint.listen(own, 1), Err(ListenError::InUse(own)));
    assert!(endpoint.connect(now, near, Some(own)).is_ok());
    assert!(matches!(endpoint.connect(now, near, Some(own)), Err(ConnectError::InUse(_))));
}

/// RFC 5227, section 2.1, and RFC 4862, section 5.4: a host that asks before it uses an address finds out that
/// another has it.
#[test]
fn an_address_that_another_host_has_is_found_out() {
    let conflict_with = |other_addresses| {
        let (link, mut clock) = link(1);
        let mut own = Ours::new(&link, Path::default(), 1, 100, config(1));
        let other = Config { addresses: other_addresses, ..config(2) };
        let mut other = Ours::new(&link, Path::default(), 2, 100, other);
        own.net.endpoint_mut().claim_addresses(clock.now());
        clock.run_until(&mut [&mut own, &mut other], Instant::from_secs(2));
        assert_eq!(other.net.endpoint().address_conflict(), None, "the one that was there first has it");
        own.net.endpoint().address_conflict()
    };
    assert_eq!(conflict_with(addresses(2)), None);
    for cidr in addresses(1) {
        let conflict = conflict_with(vec![cidr]).expect("the other host says so");
        assert_eq!((conflict.ip, conflict.mac), (cidr.address().into(), mac(2).0));
    }
}

/// RFC 5227, section 2.3, and RFC 4861, section 7.2.6: neighbours forget who had the addresses before.
#[test]
fn addresses_are_announced_after_the_probes_and_once_again() {
    let mut s = Script::new(Version::V4);
    let (v4, v6) = (ip(Version::V4, 1), ip(Version::V6, 1));
    let announcement = arp(ArpOperation::Request, s.local, EthernetAddress([0; 6]), v4);
    let announcement = [&[0xff; 6], &announcement[6..]].concat();
    let is_advertisement = |frame: &Vec<u8>| {
        let everyone = "ff02::1".parse::<IpAddr>().expect("an address");
        let Some((kind, 0, flags, rest)) = icmp(frame) else { return false };
        let ip6 = Ipv6Packet::new_unchecked(&frame[14..]);
        let target = [
            &match v6 {
                IpAddr::V6(v6) => v6.octets(),
                IpAddr::V4(_) => unreachable!("it is IPv6"),
            }[..],
            &[2, 1],
            &mac(1).0,
        ]
        .concat();
        kind == 136
            && flags == 0x2000_0000
            && rest == target
            && (IpAddr::from(ip6.src_addr()), IpAddr::from(ip6.dst_addr())) == (v6, everyone)
    };
    let now = s.now();
    s.stack.endpoint_mut().claim_addresses(now);
    s.advance(Duration::from_millis(250));
    let probes: Vec<_> = std::iter::from_fn(|| s.next_other()).collect();
    assert!(!probes.iter().any(|frame| *frame == announcement || is_advertisement(frame)), "{probes:02x?}");
    for (wait_ms, what) in [(100, "the first time"), (2_000, "once again")] {
        s.advance(Duration::from_millis(wait_ms));
        let said: Vec<_> = std::iter::from_fn(|| s.next_other()).collect();
        assert_eq!(said.iter().filter(|frame| **frame == announcement).count(), 1, "{what}: {said:02x?}");
        assert_eq!(said.iter().filter(|frame| is_advertisement(frame)).count(), 1, "{what}: {said:02x?}");
    }
    s.advance(Duration::from_secs(60));
    // But for what asks for routers.
    let said: Vec<_> = std::iter::from_fn(|| s.next_other()).collect();
    assert!(said.iter().all(|frame| icmp(frame).is_some_and(|(kind, ..)| kind == 133)), "{said:02x?}");
}

/// An address that another host has is not announced, while the others are.
#[test]
fn an_address_that_is_taken_is_not_announced() {
    let mut s = Script::new(Version::V4);
    let now = s.now();
    s.stack.endpoint_mut().claim_addresses(now);
    let other = Side { mac: mac(9), ..s.local };
    s.inject(arp(ArpOperation::Reply, other, s.local.mac, ip(Version::V4, 1)));
    s.advance(Duration::from_secs(5));
    let said: Vec<_> = std::iter::from_fn(|| s.next_other()).collect();
    let is_announcement = |frame: &&Vec<u8>| frame[12..14] == [8, 6] && frame[28..32] == frame[38..42];
    assert_eq!(said.iter().filter(is_announcement).count(), 0, "{said:02x?}");
    assert!(said.iter().any(|frame| icmp(frame).is_some_and(|(kind, ..)| kind == 136)), "{said:02x?}");
}

/// RFC 5227, section 2.4: found out at any time, told, and defended once in ten seconds.
#[test]
fn a_conflict_that_comes_later_is_told_and_the_address_defended() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        let other = Side { mac: mac(9), ..s.local };
        let claims: Vec<_> = match version {
            Version::V4 => vec![
                arp(ArpOperation::Request, other, EthernetAddress::BROADCAST, s.local.at.ip()),
                arp(ArpOperation::Request, other, EthernetAddress::BROADCAST, ip(version, 7)),
                arp(ArpOperation::Reply, other, s.local.mac, s.local.at.ip()),
            ],
            Version::V6 => {
                let question =
                    neighbor_solicit(Side { mac: mac(7), at: (ip(version, 7), 0).into() }, s.local.at.ip());
                let answer = crate::wire::neighbor_answer(other, &question).expect("it is asked for");
                // The answer goes to all, as that to a probe does.
                let everyone = Side {
                    mac: EthernetAddress([0x33, 0x33, 0, 0, 0, 1]),
                    at: "[ff02::1]:0".parse().expect("one"),
                };
                vec![crate::wire::readdressed(&answer, other, everyone)]
            }
        };
        let mut expected = 0;
        for round in 0..3 {
            for claim in &claims {
                s.inject(claim.clone());
                expected += 1;
            }
            let defences = std::iter::from_fn(|| s.next_other()).count();
            assert_eq!(defences, 1, "round {round}");
            let told = s.stack.endpoint_mut().take_conflict();
            assert_eq!(told.is_some(), round == 0, "told once a minute");
            assert!(told.is_none_or(|told| (told.ip, told.mac) == (s.local.at.ip(), mac(9).0)));
            assert_eq!(s.stack.endpoint().counters().address_conflicts, expected);
            s.advance(Duration::from_secs(11));
        }
        s.advance(Duration::from_secs(60));
        s.inject(claims[0].clone());
        assert!(s.stack.endpoint_mut().take_conflict().is_some());
    }
}

/// What a switch or a tap gives back to its sender is neither a request nor a conflict.
#[test]
fn frames_from_the_own_ethernet_address_are_dropped_and_counted() {
    for version in BOTH_VERSIONS {
        let mut s = Script::listening(version);
        let looped = Side { mac: s.local.mac, ..s.remote };
        let itself = Side { mac: s.local.mac, ..s.local };
        let mut frames = vec![
            seg(SYN, 0, 0).frame(looped, s.local),
            echo_request(looped, s.local, b"loop"),
            udp(looped, s.local),
        ];
        frames.extend(crate::wire::fragments_of(&echo_request(looped, s.local, &[1; 2_000]), 1_400, 1));
        frames.push(match version {
            Version::V4 => arp(ArpOperation::Request, looped, EthernetAddress::BROADCAST, itself.at.ip()),
            Version::V6 => neighbor_solicit(looped, itself.at.ip()),
        });
        let count = frames.len() as u64;
        frames.into_iter().for_each(|frame| s.force(frame));
        s.expect_nothing();
        assert_eq!(s.next_other(), None);
        let counters = s.stack.endpoint().counters();
        assert_eq!(counters.drops.address + counters.drops.fragment, count);
        assert_eq!((counters.address_conflicts, s.stack.endpoint().address_conflict()), (0, None));
    }
}

/// RFC 1122, section 4.2.3.10: nothing that was sent to many is answered by TCP, nor is what was sent to another.
#[test]
fn frames_for_other_ethernet_addresses_are_not_taken() {
    let mut s = Script::listening(Version::V4);
    let elsewhere = Side { mac: mac(50), ..s.local };
    let frame = seg(SYN, 0, 0).frame(s.remote, elsewhere);
    s.inject(frame);
    s.expect_nothing();
    let broadcast = Side { mac: EthernetAddress::BROADCAST, ..s.local };
    let frame = seg(SYN, 0, 0).frame(s.remote, broadcast);
    s.inject(frame);
    s.expect_nothing();
}
