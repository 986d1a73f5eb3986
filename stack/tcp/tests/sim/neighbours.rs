//! Finding neighbours, being found by them, and what is not TCP.

use std::net::{IpAddr, SocketAddr};

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{ArpOperation, EthernetAddress, EthernetFrame, Ipv4Packet, Ipv6Packet};
use stack::net::{CloseReason, Event};
use stack::sim::Path;
use stack::transport::OverEndpoint as _;
use stack::{Config, ConnectError, ListenError};

use crate::ours::{Ours, config};
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version, addresses, ip, link, mac};
use crate::wire::{ACK, SYN, Side, arp, echo_reply, echo_request, is_question_for, neighbor_solicit, seg};

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

#[test]
fn pings_are_answered() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        // As in life the host that asks has found this one before.
        s.inject(match version {
            Version::V4 => arp(ArpOperation::Request, s.remote, EthernetAddress::BROADCAST, s.local.at.ip()),
            Version::V6 => neighbor_solicit(s.remote, s.local.at.ip()),
        });
        while s.next_other().is_some() {}
        for len in [0, 1, 56, 1_400] {
            let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
            s.inject(echo_request(s.remote, s.local, &data));
            let replies: Vec<_> = std::iter::from_fn(|| s.next_other()).collect();
            let answered: Vec<_> = replies.iter().filter_map(|frame| echo_reply(frame)).collect();
            assert_eq!(answered, [data], "{replies:02x?}");
        }
        s.assert_nothing_leaked();
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
        own.net.endpoint_mut().probe_addresses(clock.now());
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

/// RFC 9293 carries no fragments of its own, and none are put together: they are counted and dropped.
#[test]
fn fragments_are_dropped() {
    let mut s = Script::listening(Version::V4);
    let whole = seg(SYN, 0, 0).frame(s.remote, s.local);
    for (more, offset) in [(true, 0), (false, 8), (true, 8)] {
        let mut frame = whole.clone();
        let mut ip4 = Ipv4Packet::new_unchecked(&mut frame[14..]);
        ip4.set_dont_frag(false);
        ip4.set_more_frags(more);
        ip4.set_frag_offset(offset);
        ip4.fill_checksum();
        s.inject(frame);
        s.expect_nothing();
    }
    assert_eq!(s.stack.endpoint().counters().drops.fragment, 3);
    s.assert_nothing_leaked();
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
