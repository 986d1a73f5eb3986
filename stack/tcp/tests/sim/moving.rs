//! Peers and gateways whose Ethernet address changes while a connection lives: what is sent again follows them.

use std::net::SocketAddr;

use smoltcp::wire::{
    ArpOperation, EthernetAddress, EthernetFrame, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr,
};
use stack::Config;
use stack::net::ConnId;
use stack::transport::OverEndpoint as _;
use std::time::Duration;

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version, ip, mac};
use crate::wire::{
    ACK, FIN, SYN, Side, arp, data, icmpv6_frame, is_question_for, neighbor_answer, neighbor_solicit, seg,
};

/// A connection on which the stack has sent two segments that nobody has acknowledged.
fn sending(version: Version) -> (Script, ConnId) {
    let (mut s, conn) = Script::open(version);
    s.write(conn, &[7; 2_000]).expect("there is room");
    while s.next().is_some() {}
    assert_eq!(s.last_receiver().mac, mac(2));
    s.answers_for_itself = false;
    (s, conn)
}

/// What hosts say of themselves unasked, or when they ask others.
fn announcements(version: Version, moved: Side) -> Vec<Vec<u8>> {
    let everyone =
        Side { mac: EthernetAddress([0x33, 0x33, 0, 0, 0, 1]), at: "[ff02::1]:0".parse().expect("one") };
    match version {
        Version::V4 => vec![
            arp(ArpOperation::Request, moved, EthernetAddress::BROADCAST, moved.at.ip()),
            arp(ArpOperation::Reply, moved, EthernetAddress::BROADCAST, moved.at.ip()),
            arp(ArpOperation::Request, moved, EthernetAddress::BROADCAST, ip(version, 1)),
            arp(ArpOperation::Request, moved, EthernetAddress::BROADCAST, ip(version, 9)),
        ],
        Version::V6 => vec![
            icmpv6_frame(moved, everyone, &advertisement(moved, NdiscNeighborFlags::OVERRIDE)),
            neighbor_solicit(moved, ip(version, 1)),
        ],
    }
}

fn advertisement(of: Side, flags: NdiscNeighborFlags) -> Icmpv6Repr<'static> {
    let std::net::IpAddr::V6(target_addr) = of.at.ip() else { panic!("it is for IPv6") };
    Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr: Some(of.mac.into()) })
}

#[test]
fn what_is_sent_again_follows_a_peer_that_has_told_where_it_is() {
    for version in BOTH_VERSIONS {
        let moved = Side { mac: mac(22), ..Script::new(version).remote };
        for announcement in announcements(version, moved) {
            let (mut s, conn) = sending(version);
            s.inject(announcement);
            while s.next_other().is_some() {}
            // At the first timeout; nobody needs to be asked.
            s.wait_for_segment(Duration::from_secs(1));
            while s.next().is_some() {}
            assert_eq!(s.last_receiver().mac, mac(22));
            assert_eq!(s.next_other(), None);
            assert_eq!(s.stack.endpoint().counters().moved, 1);
            s.remote = moved;
            s.send(seg(ACK, 1, 2_001));
            s.assert_alive(conn, 1, 2_001);
        }
    }
}

/// First who had the address is asked, and then all (RFC 4861, section 7.3.3). What waits is sent at once.
#[test]
fn who_has_moved_without_a_word_is_asked_for() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = sending(version);
        s.remote.mac = mac(22);
        let mut questions: Vec<Vec<u8>> = vec![];
        let mut waited = Duration::ZERO;
        while questions.len() < 2 {
            s.advance(Duration::from_millis(10));
            waited += Duration::from_millis(10);
            questions.extend(std::iter::from_fn(|| s.next_other()));
            assert!(waited < Duration::from_secs(3), "all are asked within three seconds: {questions:02x?}");
        }
        while s.next().is_some() {}
        assert_eq!(s.last_receiver().mac, mac(2), "nobody has answered so far");
        let receivers: Vec<_> =
            questions.iter().map(|frame| EthernetFrame::new_unchecked(&frame[..]).dst_addr()).collect();
        assert!(questions.iter().all(|frame| is_question_for(frame, s.remote.at.ip())), "{questions:02x?}");
        assert!(receivers[0] == mac(2) && !receivers[1].is_unicast(), "{receivers:?}");
        let answer = neighbor_answer(s.remote, &questions[1]).expect("it is asked for");
        s.inject(answer);
        let again = s.next().expect("what was lost comes at once");
        assert_eq!((again.seq, s.last_receiver().mac), (1, mac(22)));
        while s.next().is_some() {}
        s.send(seg(ACK, 1, 2_001));
        s.assert_alive(conn, 1, 2_001);
    }
}

/// A router that another one stands in for, which has its address and another Ethernet address.
#[test]
fn a_gateway_that_has_failed_over_is_followed() {
    for version in BOTH_VERSIONS {
        let (far, gateway): (SocketAddr, _) = match version {
            Version::V4 => ("192.0.2.7:7000".parse().expect("an address"), ip(version, 2)),
            Version::V6 => ("[2001:db8::7]:7000".parse().expect("an address"), ip(version, 2)),
        };
        let config = match gateway {
            std::net::IpAddr::V4(gateway) => Config { gateway_v4: Some(gateway), ..config(1) },
            std::net::IpAddr::V6(gateway) => Config { gateway_v6: Some(gateway), ..config(1) },
        };
        let mut s = Script::with_config(version, config);
        s.listen();
        let router = s.remote;
        s.remote.at = far;
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
        s.write(conn, &[7; 2_000]).expect("there is room");
        while s.next().is_some() {}
        // The script's remote answers for the router's address now.
        s.remote = Side { mac: mac(22), ..router };
        s.advance(Duration::from_secs(4));
        while s.next().is_some() {}
        assert_eq!(s.last_receiver(), Side { mac: mac(22), at: far });
        assert_eq!(s.stack.endpoint().counters().moved, 1);
    }
}

/// An announcement takes nothing away from a connection that is answered: on Linux it does.
#[test]
fn a_forged_announcement_does_not_divert_a_connection_that_goes() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = sending(version);
        let forged = Side { mac: mac(66), ..s.remote };
        for announcement in announcements(version, forged) {
            s.inject(announcement);
        }
        s.send(seg(ACK, 1, 2_001));
        s.write(conn, &[8; 1_000]).expect("there is room");
        while s.next().is_some() {}
        // Nor after it: what the peer has sent since counts more.
        s.advance(Duration::from_millis(400));
        while s.next().is_some() {}
        assert_eq!((s.last_receiver().mac, s.stack.endpoint().counters().moved), (mac(2), 0));
    }
}

/// RFC 4861, section 7.2.5.
#[test]
fn an_advertisement_that_does_not_override_diverts_nobody() {
    let (mut s, _) = sending(Version::V6);
    let other = Side { mac: mac(66), ..s.remote };
    s.inject(icmpv6_frame(other, s.local, &advertisement(other, NdiscNeighborFlags::empty())));
    s.advance(Duration::from_millis(400));
    while s.next().is_some() {}
    assert_eq!(s.last_receiver().mac, mac(2));
}

/// A probe of the peer's lies outside of the window, and so does not show by itself that it is the peer's.
#[test]
fn a_peer_that_moves_while_all_are_idle_is_answered_where_it_is() {
    for version in BOTH_VERSIONS {
        let (mut s, _) = Script::open(version);
        s.remote.mac = mac(22);
        s.send(seg(ACK, 0, 1));
        s.expect(seg(ACK, 1, 1));
        s.send(seg(ACK, 0, 1));
        s.expect(seg(ACK, 1, 1));
        assert_eq!(s.last_receiver().mac, mac(22));
    }
}

#[test]
fn a_half_open_connection_and_one_in_time_wait_answer_where_they_are_asked_from() {
    for version in BOTH_VERSIONS {
        let mut s = Script::listening(version);
        s.send(seg(SYN, 0, 0).mss(1_000));
        s.expect(seg(SYN | ACK, 0, 1));
        s.remote.mac = mac(22);
        s.send(seg(SYN, 0, 0).mss(1_000));
        s.expect(seg(SYN | ACK, 0, 1));
        assert_eq!(s.last_receiver().mac, mac(22));
        // And again, unasked.
        s.wait_for_segment(Duration::from_secs(5));
        assert_eq!(s.last_receiver().mac, mac(22));

        let (mut s, conn) = Script::open(version);
        s.finish(conn);
        s.expect(seg(FIN | ACK, 1, 1));
        s.send(seg(FIN | ACK, 1, 2));
        s.expect(seg(ACK, 2, 2));
        s.remote.mac = mac(23);
        s.send(seg(FIN | ACK, 1, 2));
        s.expect(seg(ACK, 2, 2));
        assert_eq!(s.last_receiver().mac, mac(23));
    }
}

/// Questions for one neighbour are a second apart, however many connections wait for it, and end.
#[test]
fn a_peer_that_is_gone_is_not_asked_for_without_end() {
    for version in BOTH_VERSIONS {
        let (mut s, _) = sending(version);
        s.remote.at.set_port(40_001);
        s.answers_for_itself = true;
        let second = s.open_with(seg(SYN, 0, 0).mss(1_000));
        s.answers_for_itself = false;
        s.write(second, &[7; 2_000]).expect("there is room");
        s.advance(Duration::from_secs(10));
        let questions = std::iter::from_fn(|| s.next_other()).count();
        assert!((2..=10).contains(&questions), "{questions} questions in ten seconds");
        s.advance(Duration::from_secs(400));
        while s.next_other().is_some() || s.next().is_some() {}
        s.advance(Duration::from_secs(400));
        assert_eq!(s.next_other(), None);
    }
}

#[test]
fn data_goes_on_to_a_peer_whose_segments_come_from_elsewhere() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = sending(version);
        s.remote.mac = mac(22);
        s.send(data(1, 2_001, b"here I am"));
        s.write(conn, &[8; 1_000]).expect("there is room");
        while s.next().is_some() {}
        assert_eq!((s.last_receiver().mac, s.next_other()), (mac(22), None));
    }
}
