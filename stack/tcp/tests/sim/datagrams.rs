//! UDP: datagrams as slots where they arrived, and answers to them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use smoltcp::wire::{ArpOperation, EthernetAddress};
use stack::net::{DatagramError, Event, Net as _, Remote, Transport as _, UdpPort};
use stack::sim::{Clock, Host, Path, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;
use stack::{BindError, Config};

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version, addresses, arena, ip, link, mac};
use crate::wire::{ACK, SYN, Side, arp, datagram, datagram_in, fragments_of, icmp, is_question_for, seg};

/// A script whose local side has bound its port.
fn bound(version: Version) -> (Script, UdpPort) {
    bound_with(version, config(1))
}

fn bound_with(version: Version, config: Config) -> (Script, UdpPort) {
    let mut s = Script::with_config(version, config);
    let port = s.stack.endpoint_mut().bind_udp(s.local.at).expect("the address is ours and free");
    (s, port)
}

/// What waits at a port, and who it is from.
fn take(s: &mut Script, port: UdpPort) -> Vec<(Remote, Vec<u8>)> {
    let datagrams = std::iter::from_fn(|| s.stack.recv_datagram(port));
    datagrams.map(|datagram| (datagram.from(), datagram.bytes().to_vec())).collect()
}

fn sent(s: &mut Script) -> Vec<(Side, Side, Vec<u8>)> {
    std::iter::from_fn(|| s.next_other()).filter_map(|frame| datagram_in(&frame)).collect()
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

#[test]
fn a_datagram_is_a_slot_in_the_buffer_where_it_arrived() {
    for version in BOTH_VERSIONS {
        for len in [0, 1, 7, 500, 1_452] {
            let (mut s, port) = bound(version);
            s.inject(datagram(s.remote, s.local, &text(len)));
            s.expect_event(Event::Datagrams { port });
            let got = s.stack.recv_datagram(port).expect("it waits");
            assert_eq!((got.from().address, got.bytes()), (s.remote.at, &text(len)[..]));
            assert!(s.stack.recv_datagram(port).is_none());
            // Behind the headroom and the headers, as the device has put it.
            let headers = if version == Version::V4 { 42 } else { 62 };
            let extent = got.keep();
            assert_eq!((extent.offset(), extent.len()), (128 + headers, len));
            let counters = s.stack.endpoint().counters();
            assert_eq!((counters.datagrams_in, counters.copied_bytes), (1, 0));
            assert_eq!(s.event(), None);
            drop(extent);
            s.assert_nothing_leaked();
        }
    }
}

#[test]
fn what_waits_is_told_once_and_again_after_it_was_told() {
    let (mut s, port) = bound(Version::V4);
    let bytes = |n| datagram(s.remote, s.local, &[n]);
    let frames: Vec<_> = (0..5).map(bytes).collect();
    s.inject_all(frames[..3].to_vec());
    s.expect_event(Event::Datagrams { port });
    assert_eq!(s.event(), None);
    s.inject_all(frames[3..].to_vec());
    s.expect_event(Event::Datagrams { port });
    let got: Vec<_> = take(&mut s, port).into_iter().map(|(_, bytes)| bytes[0]).collect();
    assert_eq!(got, [0, 1, 2, 3, 4]);
    assert_eq!(s.event(), None);
}

/// By the way that it came, though nothing was asked; from where it was sent to (RFC 1122, section 4.1.3.5).
#[test]
fn rfc1122_4_1_3_5_an_answer_goes_back_as_the_question_came() {
    for version in BOTH_VERSIONS {
        let mut config = config(1);
        config.addresses.extend(addresses(11));
        let mut s = Script::with_config(version, config);
        let any: IpAddr = if version == Version::V4 { [0; 4].into() } else { [0; 16].into() };
        let port = s.stack.endpoint_mut().bind_udp((any, 514).into()).expect("it is free");
        s.answers_for_itself = false;
        // From far away, by a router.
        let far: IpAddr = if version == Version::V4 {
            [192, 0, 2, 7].into()
        } else {
            "2001:db8::7".parse().expect("an address")
        };
        let from = Side { mac: mac(2), at: (far, 5_000).into() };
        for own in [1, 11] {
            let to = Side { at: (ip(version, own), 514).into(), ..s.local };
            s.inject(datagram(from, to, b"who are you?"));
            let got = take(&mut s, port);
            let named = s.named(b" of named bytes");
            s.stack.send_datagram(port, got[0].0, b"a host", &[named]).expect("there is room");
            s.settle();
            assert_eq!(sent(&mut s), [(to, from, b"a host of named bytes".to_vec())]);
        }
        s.assert_nothing_leaked();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Checksums over text and pieces of any length are right, and what is sent is what came.
    #[test]
    fn rfc768_what_is_sent_has_the_right_checksum(
        is_v6: bool,
        text in prop::collection::vec(any::<u8>(), 0..300),
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..=8),
    ) {
        let (mut s, port) = bound(if is_v6 { Version::V6 } else { Version::V4 });
        let named: Vec<_> = pieces.iter().map(|piece| s.named(piece)).collect();
        let to = Remote::from(s.remote.at);
        prop_assert_eq!(s.stack.send_datagram(port, to, &text, &named), Ok(()));
        drop(named);
        s.settle();
        let whole = [text, pieces.concat()].concat();
        prop_assert_eq!(sent(&mut s), [(s.local, s.remote, whole)]);
        s.assert_nothing_leaked();
    }
}

/// The sum over this datagram is 0xffff, and its complement would stand for no checksum.
#[test]
fn rfc768_a_checksum_of_zero_is_sent_as_ones() {
    let (mut s, port) = bound(Version::V4);
    let to = Remote::from(s.remote.at);
    s.stack.send_datagram(port, to, &[0, 0], &[]).expect("there is room");
    s.settle();
    let frame = s.next_other().expect("it was sent");
    let checksum = u16::from_be_bytes([frame[40], frame[41]]);
    // Those two bytes are made what was missing.
    s.stack.send_datagram(port, to, &checksum.to_be_bytes(), &[]).expect("there is room");
    s.settle();
    let frame = s.next_other().expect("it was sent");
    assert_eq!(frame[40..42], [0xff, 0xff]);
    assert!(datagram_in(&frame).is_some());
}

#[test]
fn rfc768_no_checksum_is_taken_over_ipv4() {
    let (mut s, port) = bound(Version::V4);
    let mut frame = datagram(s.remote, s.local, b"no checksum");
    frame[40..42].fill(0);
    s.inject(frame);
    assert_eq!(take(&mut s, port).len(), 1);
}

#[test]
fn rfc8200_8_1_no_checksum_is_refused_over_ipv6() {
    let (mut s, port) = bound(Version::V6);
    let mut frame = datagram(s.remote, s.local, b"no checksum");
    frame[60..62].fill(0);
    s.inject(frame);
    assert_eq!(take(&mut s, port), []);
    assert_eq!(s.stack.endpoint().counters().drops.checksum, 1);
}

/// RFC 1122, section 4.1.3.4; nor is a wrong one answered by an error, which nobody may have asked for.
#[test]
fn rfc1122_4_1_3_4_a_wrong_checksum_is_dropped_silently() {
    for version in BOTH_VERSIONS {
        let (mut s, port) = bound(version);
        let unbound = Side { at: (s.local.at.ip(), 9).into(), ..s.local };
        for to in [s.local, unbound] {
            let mut frame = datagram(s.remote, to, b"changed");
            *frame.last_mut().expect("it has bytes") ^= 1;
            s.inject(frame);
        }
        assert_eq!(take(&mut s, port), []);
        assert_eq!(s.next_other(), None);
        assert_eq!(s.stack.endpoint().counters().drops.checksum, 2);
    }
}

#[test]
fn rfc1122_4_1_3_1_a_port_that_nobody_has_bound_is_unreachable() {
    for version in BOTH_VERSIONS {
        let (mut s, port) = bound(version);
        let unbound = Side { at: (s.local.at.ip(), 9).into(), ..s.local };
        let frame = datagram(s.remote, unbound, b"anyone?");
        s.inject(frame.clone());
        let (kind, code, _, quoted) = s.next_other().and_then(|frame| icmp(&frame)).expect("it is said");
        assert_eq!((kind, code), if version == Version::V4 { (3, 3) } else { (1, 4) });
        assert_eq!(quoted, frame[14..]);
        assert_eq!(take(&mut s, port), []);
        assert_eq!(s.stack.endpoint().counters().drops.protocol, 1);
    }
}

/// Lengths that do not fit the packet, and what is behind the datagram in it.
#[test]
fn a_length_is_not_believed() {
    for version in BOTH_VERSIONS {
        let (mut s, port) = bound(version);
        let len_at = if version == Version::V4 { 38 } else { 58 };
        for len in [0_u16, 7, 8 + 11, u16::MAX] {
            let mut frame = datagram(s.remote, s.local, b"ten bytes.");
            frame[len_at..len_at + 2].copy_from_slice(&len.to_be_bytes());
            s.inject(frame);
        }
        assert_eq!(take(&mut s, port), []);
        assert_eq!(s.stack.endpoint().counters().drops.malformed, 4);
        // What stands behind a whole datagram is none of it.
        let whole = datagram(s.remote, s.local, b"ten bytes.");
        let frame =
            crate::wire::ip_frame(s.remote, s.local, smoltcp::wire::IpProtocol::Udp, 18 + 4, |bytes| {
                bytes[..18].copy_from_slice(&whole[whole.len() - 18..]);
            });
        s.inject(frame);
        assert_eq!(take(&mut s, port)[0].1, b"ten bytes.");
        s.assert_nothing_leaked();
    }
}

#[test]
fn a_datagram_in_fragments_is_put_together_as_long_as_a_buffer_is() {
    for version in BOTH_VERSIONS {
        let (mut s, port) = bound(version);
        let buffer_bytes = s.stack.arena().buffer_bytes();
        for (len, is_taken) in
            [(1_600, true), (buffer_bytes, true), (buffer_bytes + 1, false), (9_000, false)]
        {
            let mut frames = fragments_of(&datagram(s.remote, s.local, &text(len)), 1_400, len as u16);
            frames.reverse();
            s.inject_all(frames);
            let got = take(&mut s, port);
            assert_eq!(got.iter().map(|(_, bytes)| bytes.clone()).next(), is_taken.then(|| text(len)));
        }
        assert_eq!(s.stack.endpoint().counters().drops.fragment, 2);
        s.assert_nothing_leaked();
    }
}

/// The application takes nothing: its port fills up, and everybody else goes on.
#[test]
fn a_port_that_nobody_reads_holds_so_many_datagrams_and_no_more() {
    for version in BOTH_VERSIONS {
        let mut config = config(1);
        config.udp_rx_datagrams = 100;
        let (mut s, port) = bound_with(version, config);
        s.listen();
        let free = s.stack.arena().free_buffers();
        let frame = datagram(s.remote, s.local, b"flood");
        s.inject_all((0..1_000).map(|_| frame.clone()));
        assert_eq!(free - s.stack.arena().free_buffers(), 100);
        assert_eq!(s.stack.endpoint().counters().drops.datagram, 900);
        s.expect_event(Event::Datagrams { port });
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
        s.assert_alive(conn, 1, 1);
        assert_eq!(take(&mut s, port).len(), 100);
        s.inject(frame);
        assert_eq!(take(&mut s, port).len(), 1);
    }
}

/// However many ports there are, half of the buffers are left to others.
#[test]
fn all_ports_together_leave_half_of_the_buffers() {
    let (mut s, _) = bound(Version::V4);
    let free = s.stack.arena().free_buffers();
    let sides = (1_000..1_010).map(|port| Side { at: (s.local.at.ip(), port).into(), ..s.local });
    for to in sides.collect::<Vec<_>>() {
        s.stack.endpoint_mut().bind_udp(to.at).expect("it is free");
        let frame = datagram(s.remote, to, b"flood");
        s.inject_all((0..200).map(|_| frame.clone()));
    }
    let held = free - s.stack.arena().free_buffers();
    assert!((free / 2 - 1..=free / 2).contains(&held), "{held} of {free}");
}

/// Nothing is remembered of a peer: any number of them is served with the same memory.
#[test]
fn each_of_many_peers_is_answered() {
    let (mut s, port) = bound(Version::V4);
    for n in 0..2_000_u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let from = Side { at: ([172, 16, high, low], 1_024 + n as u16).into(), ..s.remote };
        s.inject(datagram(from, s.local, &n.to_be_bytes()));
        let (peer, bytes) = take(&mut s, port).swap_remove(0);
        s.stack.send_datagram(port, peer, &bytes, &[]).expect("there is room");
        s.settle();
        assert_eq!(sent(&mut s), [(s.local, from, n.to_be_bytes().to_vec())]);
    }
    s.assert_nothing_leaked();
}

#[test]
fn a_neighbor_is_asked_for_and_gets_what_waited_for_it() {
    for version in BOTH_VERSIONS {
        let (mut s, port) = bound(version);
        s.answers_for_itself = false;
        let to = Remote::from(s.remote.at);
        for n in 0..5 {
            s.stack.send_datagram(port, to, &[n], &[]).expect("there is room");
        }
        s.settle();
        let question = s.next_other().expect("a question");
        assert!(is_question_for(&question, s.remote.at.ip()));
        assert_eq!(s.next_other(), None, "one question for all");
        let answer = crate::wire::neighbor_answer(s.remote, &question).expect("it is asked for");
        s.inject(answer);
        let texts: Vec<_> = sent(&mut s).into_iter().map(|(.., bytes)| bytes[0]).collect();
        assert_eq!(texts, [0, 1, 2, 3, 4]);
        // What is known is not asked for again.
        s.stack.send_datagram(port, to, b"again", &[]).expect("there is room");
        s.settle();
        assert_eq!(sent(&mut s).len(), 1);
    }
}

/// RFC 1122, section 2.3.2.2; RFC 4861, section 7.2.2: the latest are kept, and all are given up in the end.
#[test]
fn what_waits_for_a_silent_neighbor_takes_a_bounded_place() {
    let (mut s, port) = bound(Version::V4);
    s.answers_for_itself = false;
    let named = s.named(b"a buffer of its own");
    let to = Remote::from(s.remote.at);
    for n in 0..20 {
        s.stack.send_datagram(port, to, &[n], std::slice::from_ref(&named)).expect("there is room");
    }
    assert_eq!(s.stack.endpoint().counters().drops.unresolved, 12);
    s.inject(arp(ArpOperation::Reply, s.remote, s.local.mac, s.local.at.ip()));
    let texts: Vec<_> = sent(&mut s).into_iter().map(|(.., bytes)| bytes[0]).collect();
    assert_eq!(texts, [12, 13, 14, 15, 16, 17, 18, 19]);
    // Hosts that are not there: no other waits for them.
    for last in 50..70 {
        for _ in 0..3 {
            let to = Remote::from(SocketAddr::new(ip(Version::V4, last), 9));
            s.stack.send_datagram(port, to, b"", std::slice::from_ref(&named)).expect("there is room");
        }
    }
    s.stack.send_datagram(port, to, b"known", &[]).expect("there is room");
    s.settle();
    assert_eq!(sent(&mut s).len(), 1);
    s.advance(Duration::from_secs(4));
    assert_eq!(s.stack.endpoint().counters().drops.unresolved, 12 + 60);
    drop(named);
    s.assert_nothing_leaked();
}

#[test]
fn what_cannot_be_sent_is_refused_with_the_reason() {
    let mut config = config(1);
    config.udp_tx_datagrams = 3;
    let (mut s, port) = bound_with(Version::V4, config);
    let mut send = |to: &str, text: &[u8], pieces: usize| {
        let named = s.named(b"x");
        let to = Remote::from(to.parse::<SocketAddr>().expect("an address"));
        s.stack.send_datagram(port, to, text, &vec![named; pieces])
    };
    assert_eq!(send("10.0.0.2:9", &[0; 1_473], 0), Err(DatagramError::TooLong { bytes: 1_473, most: 1_472 }));
    assert_eq!(send("10.0.0.2:9", &[0; 1_472], 1), Err(DatagramError::TooLong { bytes: 1_473, most: 1_472 }));
    assert_eq!(send("10.0.0.2:9", b"", 9), Err(DatagramError::TooManyPieces(9)));
    for bad in ["10.0.0.2:0", "10.0.0.1:9", "10.0.0.255:9", "224.0.0.1:9", "[fd00::2]:9"] {
        let refused = DatagramError::BadRemote(bad.parse().expect("an address"));
        assert_eq!(send(bad, b"", 0), Err(refused));
    }
    assert_eq!(send("192.0.2.1:9", b"", 0), Err(DatagramError::NoRoute([192, 0, 2, 1].into())));
    for _ in 0..3 {
        assert_eq!(send("10.0.0.2:9", b"", 8), Ok(()));
    }
    assert_eq!(send("10.0.0.2:9", b"", 0), Err(DatagramError::Full));
    let other = UdpPort { index: 1 };
    let to = Remote::from(s.remote.at);
    assert_eq!(s.stack.send_datagram(other, to, b"", &[]), Err(DatagramError::NotBound(other)));
    assert!(s.stack.recv_datagram(other).is_none());
    s.settle();
    assert_eq!(sent(&mut s).len(), 3);
    s.assert_nothing_leaked();
}

/// Who is behind a router gets no longer IPv6 packets than any link takes (RFC 8200, section 5).
#[test]
fn rfc8200_5_what_goes_through_routers_fits_any_link() {
    let mut config = config(1);
    config.gateway_v6 = Some("fd00::2".parse().expect("an address"));
    let (mut s, port) = bound_with(Version::V6, config);
    let far = Remote::from("[2001:db8::1]:9".parse::<SocketAddr>().expect("an address"));
    let refused = DatagramError::TooLong { bytes: 1_233, most: 1_232 };
    assert_eq!(s.stack.send_datagram(port, far, &[0; 1_233], &[]), Err(refused));
    assert_eq!(s.stack.send_datagram(port, far, &[0; 1_232], &[]), Ok(()));
    s.settle();
    assert_eq!(sent(&mut s).len(), 1);
}

#[test]
fn ports_are_bound_once_and_at_own_addresses() {
    let (mut s, _) = bound(Version::V4);
    let mut bind = |text: &str| s.stack.endpoint_mut().bind_udp(text.parse().expect("an address"));
    assert_eq!(bind("10.0.0.1:80"), Err(BindError::InUse("10.0.0.1:80".parse().expect("an address"))));
    assert_eq!(bind("0.0.0.0:80"), Err(BindError::InUse("0.0.0.0:80".parse().expect("an address"))));
    assert_eq!(bind("10.0.0.9:81"), Err(BindError::NotLocal([10, 0, 0, 9].into())));
    assert_eq!(bind("10.0.0.1:0"), Err(BindError::ZeroPort));
    assert!(bind("[fd00::1]:80").is_ok());
    for port in 1_000..1_062 {
        assert!(bind(&format!("[::]:{port}")).is_ok());
    }
    assert_eq!(bind("[::]:2000"), Err(BindError::TooMany(64)));
}

/// A UDP port and a listener of the same number are two things, and both have their turns.
#[test]
fn datagrams_and_connections_share_a_port_number_and_the_device() {
    for version in BOTH_VERSIONS {
        let (mut s, port) = bound(version);
        s.listen();
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
        let frame = datagram(s.remote, s.local, b"datagram");
        let segment = s.frame_from(s.remote, crate::wire::data(1, 1, b"segment"));
        s.exchange([frame, segment], |stack| {
            assert_eq!(stack.next_event(), Some(Event::Datagrams { port }));
            assert_eq!(stack.next_event(), Some(Event::Readable { conn }));
            let got = stack.recv_datagram(port).expect("it waits");
            // More than one turn, and more than the device takes at once.
            for _ in 0..100 {
                let named = got.extent().clone();
                stack.send_datagram(port, got.from(), b"", &[named]).expect("there is room");
            }
            assert_eq!(stack.recv(conn).expect("it waits").bytes(), b"segment");
            stack.send(conn, b"answer").expect("there is room");
        });
        s.advance(Duration::from_millis(100));
        s.expect(seg(ACK, 1, 8).payload(b"answer"));
        assert_eq!(sent(&mut s).len(), 100);
    }
}

/// Of several cores each has the port, and gets what the device or the hash gives it.
#[test]
fn each_core_takes_the_datagrams_that_come_to_it() {
    for version in BOTH_VERSIONS {
        let (link, mut clock) = link(1);
        let (arenas, _withheld): (Vec<_>, Vec<_>) = (0..3).map(|_| arena(300)).unzip();
        let core_of = |frame: &[u8]| usize::from(frame[frame.len() - 1]) % 3;
        let mut cores = SimTransport::cores(
            link.port(Path::default()),
            &config(1),
            SimConfig::default(),
            arenas,
            core_of,
            Instant::ZERO,
        )
        .expect("the configuration is right");
        let local = Side { mac: mac(1), at: (ip(version, 1), 514).into() };
        let remote = Side { mac: mac(2), at: (ip(version, 2), 9).into() };
        let ports: Vec<_> = cores
            .iter_mut()
            .map(|core| core.endpoint_mut().bind_udp(local.at).expect("it is free"))
            .collect();
        let peer = link.port(Path::default());
        run(&mut clock, &mut cores, 1);
        (0..30).for_each(|n| peer.send(clock.now(), datagram(remote, local, &[n])));
        run(&mut clock, &mut cores, 2);
        for (core, port) in cores.iter_mut().zip(ports) {
            while let Some(got) = core.recv_datagram(port) {
                core.send_datagram(port, got.from(), got.bytes(), &[]).expect("there is room");
            }
            assert_eq!(core.endpoint().counters().datagrams_in, 10);
        }
        run(&mut clock, &mut cores, 3);
        let answers = std::iter::from_fn(|| peer.receive(clock.now()));
        let mut answers: Vec<_> = answers.filter_map(|frame| Some(datagram_in(&frame)?.2[0])).collect();
        answers.sort_unstable();
        assert_eq!(answers, (0..30).collect::<Vec<_>>());
    }
}

fn run(clock: &mut Clock, cores: &mut [SimTransport], until_s: i64) {
    let mut hosts: Vec<&mut dyn Host> = cores.iter_mut().map(|core| core as &mut dyn Host).collect();
    clock.run_until(&mut hosts, Instant::from_secs(until_s));
}

/// Broadcasts and groups' datagrams are everyday traffic, and not for ports here.
#[test]
fn what_is_sent_to_groups_is_dropped_and_counted() {
    let (mut s, port) = bound(Version::V4);
    for (mac, to) in [([0xff; 6], [10, 0, 0, 255]), ([1, 0, 0x5e, 0, 0, 251], [224, 0, 0, 251])] {
        let to = Side { mac: EthernetAddress(mac), at: (to, s.local.at.port()).into() };
        s.inject(datagram(s.remote, to, b"to all"));
    }
    assert_eq!(take(&mut s, port), []);
    assert_eq!(s.next_other(), None);
    assert_eq!(s.stack.endpoint().counters().drops.group, 2);
}
