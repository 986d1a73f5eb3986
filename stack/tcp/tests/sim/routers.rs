//! The link-local address of a host, and routers that say of themselves where they are.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use smoltcp::wire::{EthernetAddress, EthernetFrame, Ipv6Packet};
use stack::net::{CloseReason, ConnId, DatagramError, Event, Net as _, Remote};
use stack::sim::{Host, Path};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;
use stack::{Config, ConnectError};

use crate::ours::{Ours, config};
use crate::script::Script;
use crate::talk::{Talk, Version, for_each_seed, ip, link, mac};
use crate::wire::{
    ACK, SYN, Seg, Side, data, echo_reply, echo_request, icmp, icmpv6_error, is_question_for,
    neighbor_answer, neighbor_solicit, readdressed, seg,
};

const SECOND: Duration = Duration::from_secs(1);

fn everyone() -> Side {
    Side { mac: EthernetAddress([0x33, 0x33, 0, 0, 0, 1]), at: "[ff02::1]:0".parse().expect("an address") }
}

/// The router with that number.
fn router(n: u8) -> Side {
    let ip = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n.into());
    Side { mac: mac(n), at: SocketAddr::new(ip.into(), 0) }
}

/// Preferences, as they stand in an advertisement.
const HIGH: u8 = 0b01 << 3;
const MEDIUM: u8 = 0;
const LOW: u8 = 0b11 << 3;

fn advertisement_with(router: Side, preference: u8, lifetime_s: u16, options: &[Vec<u8>]) -> Vec<u8> {
    let word = 64 << 24 | u32::from(preference) << 16 | u32::from(lifetime_s);
    let rest = [vec![0; 8], options.concat()].concat();
    icmpv6_error(router, everyone(), 134, 0, word, &rest)
}

fn advertisement(router: Side, lifetime_s: u16) -> Vec<u8> {
    advertisement_with(router, MEDIUM, lifetime_s, &[lladdr(router)])
}

fn lladdr(router: Side) -> Vec<u8> {
    [&[1, 1], &router.mac.0[..]].concat()
}

fn mtu(mtu: u32) -> Vec<u8> {
    [&[5, 1, 0, 0], &mtu.to_be_bytes()[..]].concat()
}

fn prefix(network: &str, len: u8, flags: u8, valid_s: u32) -> Vec<u8> {
    let network: Ipv6Addr = network.parse().expect("an address");
    [&[3, 4, len, flags], &valid_s.to_be_bytes()[..], &[0; 8], &network.octets()].concat()
}

fn far() -> SocketAddr {
    "[2001:db8::7]:7000".parse().expect("an address")
}

fn connect(s: &mut Script, to: SocketAddr) -> Result<ConnId, ConnectError> {
    let now = s.now();
    let result = s.stack.endpoint_mut().connect(now, to, None);
    s.settle();
    result
}

/// Who gets the SYN of a connection to elsewhere; only `at` answers questions for Ethernet addresses.
fn first_hop(s: &mut Script, at: Side) -> Option<EthernetAddress> {
    s.remote = at;
    let conn = connect(s, far()).ok()?;
    let syn = s.next();
    s.abort(conn);
    assert!(syn?.has(SYN));
    Some(s.last_receiver().mac)
}

fn others(s: &mut Script) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| s.next_other()).collect()
}

fn source(frame: &[u8]) -> Ipv6Addr {
    Ipv6Packet::new_checked(&frame[14..]).expect("it is IPv6").src_addr()
}

fn is_v6(frame: &&Vec<u8>) -> bool {
    frame[12..14] == [0x86, 0xdd]
}

/// The addresses that the host asks for before it has them, and what else it says of IPv6.
fn claimed(s: &mut Script) -> (Vec<Ipv6Addr>, Vec<Vec<u8>>) {
    let now = s.now();
    s.stack.endpoint_mut().claim_addresses(now);
    s.advance(20 * SECOND);
    let said: Vec<_> = others(s).into_iter().filter(|frame| is_v6(&frame)).collect();
    let mut targets: Vec<_> = said
        .iter()
        .filter_map(|frame| match icmp(frame)? {
            (135, 0, 0, rest) => Some(Ipv6Addr::from(<[u8; 16]>::try_from(&rest[..16]).ok()?)),
            _ => None,
        })
        .collect();
    targets.sort();
    targets.dedup();
    (targets, said)
}

#[test]
fn rfc4291_2_8_a_host_has_a_link_local_address_that_it_asks_for_and_answers_to() {
    let mut s = Script::new(Version::V6);
    let (targets, said) = claimed(&mut s);
    let [given, own] = targets[..] else { panic!("{targets:?}") };
    assert_eq!(IpAddr::V6(given), ip(Version::V6, 1));
    assert!(own.is_unicast_link_local());
    let probes: Vec<_> =
        said.iter().filter(|frame| icmp(frame).is_some_and(|(kind, ..)| kind == 135)).collect();
    assert!(probes.iter().all(|frame| source(frame).is_unspecified()), "nobody has it yet");
    let announced = |frame: &&Vec<u8>| {
        icmp(frame).is_some_and(|(kind, _, _, rest)| kind == 136 && rest[..16] == own.octets())
    };
    assert_eq!(said.iter().filter(announced).count(), 2);
    let peer = Side { at: router(2).at, ..s.remote };
    s.inject(neighbor_solicit(peer, own.into()));
    let answer = s.next_other().expect("the address is answered for");
    assert!(announced(&&answer), "{answer:02x?}");
    let local = Side { at: (own, 0).into(), ..s.local };
    s.inject(echo_request(peer, local, b"near"));
    let reply = s.next_other().expect("so are pings");
    assert_eq!((source(&reply), echo_reply(&reply)), (own, Some(b"near".to_vec())));
    // Hosts that differ have addresses that differ; the same one has the same again.
    assert_eq!(claimed(&mut Script::new(Version::V6)).0, targets);
    let other = Config { mac: mac(7).0, ..config(1) };
    assert_ne!(claimed(&mut Script::with_config(Version::V6, other)).0, targets);
}

#[test]
fn a_host_without_ipv6_says_nothing_of_it() {
    let addresses = vec!["10.0.0.1/24".parse().expect("an address")];
    let mut s = Script::with_config(Version::V4, Config { addresses, ..config(1) });
    let (targets, said) = claimed(&mut s);
    assert_eq!((targets.len(), said.len()), (0, 0), "{said:02x?}");
}

#[test]
fn rfc4862_5_4_a_link_local_address_that_another_host_has_is_found_out() {
    let own = claimed(&mut Script::new(Version::V6)).0[1];
    let mut s = Script::new(Version::V6);
    let now = s.now();
    s.stack.endpoint_mut().claim_addresses(now);
    let other = Side { mac: mac(9), at: (own, 0).into() };
    let question = neighbor_solicit(router(7), own.into());
    let answer = neighbor_answer(other, &question).expect("it is asked for");
    s.inject(readdressed(&answer, other, everyone()));
    let conflict = s.stack.endpoint().address_conflict().expect("the other one says so");
    assert_eq!((conflict.ip, conflict.mac), (own.into(), mac(9).0));
}

#[test]
fn rfc3590_reports_of_groups_are_from_the_link_local_address_once_that_is_the_hosts() {
    let mut s = Script::new(Version::V6);
    let (targets, said) = claimed(&mut s);
    let sources: Vec<_> = said.iter().filter(|frame| frame[20] == 0).map(|frame| source(frame)).collect();
    assert!(sources[0].is_unspecified(), "{sources:?}");
    assert_eq!(sources[sources.len() - 2..], [targets[1]; 2], "{sources:?}");
}

fn solicitations(said: &[Vec<u8>]) -> Vec<&Vec<u8>> {
    said.iter().filter(|frame| icmp(frame).is_some_and(|(kind, ..)| kind == 133)).collect()
}

#[test]
fn rfc4861_6_3_7_routers_are_asked_for_three_times_unless_one_answers() {
    let mut s = Script::new(Version::V6);
    let (targets, said) = claimed(&mut s);
    let asked = solicitations(&said);
    assert_eq!(asked.len(), 3);
    for question in asked {
        let ethernet = EthernetFrame::new_checked(&question[..]).expect("it is whole");
        let ip6 = Ipv6Packet::new_checked(ethernet.payload()).expect("it is whole");
        assert_eq!(ethernet.dst_addr(), EthernetAddress([0x33, 0x33, 0, 0, 0, 2]));
        assert_eq!((ip6.hop_limit(), ip6.src_addr()), (255, targets[1]));
        assert_eq!(ip6.dst_addr(), "ff02::2".parse::<Ipv6Addr>().expect("an address"));
        let (.., options) = icmp(question).expect("it is ICMP");
        assert_eq!(options, [&[1, 1], &mac(1).0[..]].concat());
    }
    let mut s = Script::new(Version::V6);
    let now = s.now();
    s.stack.endpoint_mut().claim_addresses(now);
    s.advance(2 * SECOND);
    assert_eq!(solicitations(&others(&mut s)).len(), 1);
    s.inject(advertisement(router(9), 1_800));
    s.advance(60 * SECOND);
    assert_eq!(solicitations(&others(&mut s)).len(), 0);
    // Who was told which router to take asks for none.
    let given = Config { gateway_v6: Some("fd00::2".parse().expect("an address")), ..config(1) };
    let (_, said) = claimed(&mut Script::with_config(Version::V6, given));
    assert_eq!(solicitations(&said).len(), 0);
}

#[test]
fn rfc4861_6_3_6_what_is_elsewhere_goes_through_a_router_that_says_it_is_one() {
    let mut s = Script::new(Version::V6);
    assert_eq!(connect(&mut s, far()), Err(ConnectError::NoRoute(far().ip())));
    s.inject(advertisement(router(9), 1_800));
    assert_eq!(first_hop(&mut s, router(9)), Some(mac(9)));
    // As long as it says, and no longer.
    s.advance(1_799 * SECOND);
    assert_eq!(first_hop(&mut s, router(9)), Some(mac(9)));
    s.advance(2 * SECOND);
    assert_eq!(connect(&mut s, far()), Err(ConnectError::NoRoute(far().ip())));
    s.inject(advertisement(router(9), 1_800));
    s.inject(advertisement(router(9), 0));
    assert_eq!(connect(&mut s, far()), Err(ConnectError::NoRoute(far().ip())), "it is one no longer");
}

#[test]
fn an_advertisement_takes_nothing_over_from_the_gateway_that_was_given() {
    let gateway = ip(Version::V6, 2);
    let IpAddr::V6(gateway_v6) = gateway else { panic!("it is IPv6") };
    let mut s = Script::with_config(Version::V6, Config { gateway_v6: Some(gateway_v6), ..config(1) });
    let options = [lladdr(router(9)), prefix("2001:db8::", 64, 0x80, 1_800)];
    s.inject(advertisement_with(router(9), HIGH, 1_800, &options));
    let gateway = Side { mac: mac(2), at: (gateway, 0).into() };
    assert_eq!(first_hop(&mut s, gateway), Some(mac(2)));
}

#[test]
fn rfc4861_6_3_4_networks_of_which_a_router_says_so_need_none() {
    let mut s = Script::new(Version::V6);
    s.answers_for_itself = false;
    let near = |s: &mut Script| {
        others(s);
        connect(s, far()).expect("there is a way");
        others(s).iter().any(|frame| is_question_for(frame, far().ip()))
    };
    let say = |s: &mut Script, option: Vec<u8>| {
        s.inject(advertisement_with(router(9), MEDIUM, 1_800, &[option]));
    };
    say(&mut s, prefix("2001:db8::", 64, 0, 600));
    assert!(!near(&mut s), "it does not say so");
    say(&mut s, prefix("2001:db8::ffff", 64, 0x80, 600));
    assert!(near(&mut s));
    s.advance(601 * SECOND);
    assert!(!near(&mut s), "it is over");
    say(&mut s, prefix("2001:db8::", 64, 0x80, u32::MAX));
    s.advance(1_000 * SECOND);
    assert!(near(&mut s), "that is for ever");
    say(&mut s, prefix("2001:db8::", 64, 0x80, 0));
    assert!(!near(&mut s), "it is taken back");
    for (network, len) in [("fe80::", 64), ("ff00::", 8), ("::", 0)] {
        say(&mut s, prefix(network, len, 0x80, 600));
        assert!(!near(&mut s), "{network}/{len} is no network of hosts");
    }
}

/// The MSS that the host names, in IPv4 and in IPv6.
fn own_mss(s: &mut Script, version: Version, port: u16) -> u16 {
    s.remote = Side { mac: mac(2), at: (ip(version, 2), port).into() };
    let local = Side { at: (ip(version, 1), 80).into(), ..s.local };
    let frame = seg(SYN, 0, 0).mss(8_000).frame(s.remote, local);
    s.inject(frame);
    s.next().and_then(|answer| answer.mss).expect("SYN and ACK")
}

#[test]
fn rfc4861_6_3_4_ipv6_packets_are_as_long_as_a_router_says_that_the_link_takes() {
    let mut s = Script::new(Version::V6);
    s.stack.endpoint_mut().listen("[::]:80".parse().expect("an address"), 64).expect("it is free");
    assert_eq!(own_mss(&mut s, Version::V6, 40_000), 1_440);
    s.inject(advertisement_with(router(9), MEDIUM, 0, &[mtu(1_400)]));
    assert_eq!(own_mss(&mut s, Version::V6, 40_001), 1_340);
    assert_eq!(own_mss(&mut s, Version::V4, 40_002), 1_460, "it is no word about IPv4");
    let (own, peer) = (SocketAddr::new(ip(Version::V6, 1), 514), SocketAddr::new(ip(Version::V6, 2), 514));
    let port = s.stack.endpoint_mut().bind_udp(own).expect("the address is ours and free");
    let refused = DatagramError::TooLong { bytes: 1_353, most: 1_352 };
    assert_eq!(s.stack.send_datagram(port, Remote::from(peer), &[0; 1_353], &[]), Err(refused));
    for (n, wrong) in [0, 576, 1_279, 1_501, 9_000, u32::MAX].into_iter().enumerate() {
        s.inject(advertisement_with(router(9), MEDIUM, 0, &[mtu(wrong)]));
        assert_eq!(own_mss(&mut s, Version::V6, 41_000 + n as u16), 1_340, "{wrong}");
    }
    s.inject(advertisement_with(router(9), MEDIUM, 0, &[mtu(1_500)]));
    assert_eq!(own_mss(&mut s, Version::V6, 40_003), 1_440);
    // Long pings come back in pieces that are no longer.
    s.inject(advertisement_with(router(9), MEDIUM, 0, &[mtu(1_300)]));
    let peer = Side { at: (ip(Version::V6, 2), 0).into(), ..s.remote };
    s.inject(echo_request(peer, s.local, &[7; 1_400]));
    let pieces = others(&mut s);
    assert!(pieces.len() == 2 && pieces.iter().all(|frame| frame.len() <= 14 + 1_300), "{}", pieces.len());
}

/// Connections that are open, too: what they send from then on, and what they send again.
#[test]
fn open_connections_keep_to_a_link_that_takes_less() {
    for (told, then) in [(1_400, 1_340), (1_280, 1_220)] {
        let mut s = Script::listening(Version::V6);
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_440));
        assert_eq!(s.write(conn, &[7; 1_440]), Ok(()));
        s.expect(data(1, 1, &[7; 1_440]));
        s.inject(advertisement_with(router(9), MEDIUM, 0, &[mtu(told)]));
        s.expect_nothing();
        s.wait_for_segment(5 * SECOND);
        s.expect(data(1, 1, &vec![7; then]));
        s.send(seg(ACK, 1, 1_441));
        s.expect_nothing();
        assert_eq!(s.write(conn, &[7; 1_440]), Ok(()));
        s.expect(data(1_441, 1, &vec![7; then]));
        s.expect(data(1_441 + then as u32, 1, &vec![7; 1_440 - then]));
        s.send(seg(ACK, 1, 2_881));
        // IPv4 has no part in it.
        let mut s = Script::listening(Version::V4);
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_440));
        s.inject(advertisement_with(router(9), MEDIUM, 0, &[mtu(told)]));
        assert_eq!(s.write(conn, &[7; 1_440]), Ok(()));
        s.expect(data(1, 1, &[7; 1_440]));
    }
}

#[test]
fn rfc4191_the_preferred_router_counts_and_the_next_one_where_it_does_not_answer() {
    let mut s = Script::new(Version::V6);
    for (n, preference) in [(7, LOW), (8, HIGH), (9, MEDIUM)] {
        s.inject(advertisement_with(router(n), preference, 1_800, &[lladdr(router(n))]));
    }
    assert_eq!(first_hop(&mut s, router(8)), Some(mac(8)));
    s.advance(120 * SECOND);
    // That one is gone. A connection that waits for it goes on to the next.
    s.remote = router(9);
    connect(&mut s, far()).expect("there is a way");
    s.expect_nothing();
    s.advance(5 * SECOND);
    assert!(s.next().is_some_and(|segment| segment.has(SYN)));
    assert_eq!(s.last_receiver().mac, mac(9));
    assert_eq!(first_hop(&mut s, router(9)), Some(mac(9)), "and so do later ones at once");
    // It is there again.
    s.inject(advertisement_with(router(8), HIGH, 1_800, &[lladdr(router(8))]));
    assert_eq!(first_hop(&mut s, router(8)), Some(mac(8)));
}

#[test]
fn where_no_router_answers_a_connection_ends_and_a_later_one_tries_them_again() {
    let mut s = Script::new(Version::V6);
    for n in [7, 8] {
        s.inject(advertisement(router(n), 1_800));
    }
    for _ in 0..2 {
        s.remote = router(33);
        let now = s.now();
        let conn = s.stack.endpoint_mut().connect(now, far(), None).expect("there is a way");
        s.advance(10 * SECOND);
        s.expect_event(Event::Closed { conn, reason: CloseReason::Unreachable });
    }
    assert!(first_hop(&mut s, router(7)).is_some());
    s.assert_nothing_leaked();
}

/// RFC 4861, section 7.3: a router that no longer answers is left, by connections that are open too.
#[test]
fn rfc4861_7_3_an_open_connection_leaves_a_router_that_is_gone() {
    let mut s = Script::new(Version::V6);
    s.listen();
    for n in [7, 8] {
        s.inject(advertisement(router(n), 1_800));
    }
    s.remote = Side { mac: mac(7), at: far() };
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    s.write(conn, &[7; 2_000]).expect("there is room");
    // Only the other one answers.
    s.remote = router(8);
    s.advance(30 * SECOND);
    while s.next().is_some() {}
    assert_eq!(s.last_receiver(), Side { mac: mac(8), at: far() });
}

#[test]
fn what_no_router_on_the_link_can_have_said_is_not_believed() {
    let good = advertisement(router(9), 1_800);
    let change = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    let global = Side { at: "[2001:db8::9]:0".parse().expect("an address"), ..router(9) };
    let with = |option: &[u8]| advertisement_with(router(9), MEDIUM, 1_800, &[option.to_vec()]);
    let other_code = {
        let message = &good[14 + 40 + 8..];
        icmpv6_error(router(9), everyone(), 134, 1, 64 << 24 | 1_800, message)
    };
    let cases = [
        ("from afar", change(14 + 7, 254)),
        ("from an address that is not the link's", advertisement(global, 1_800)),
        ("with a wrong checksum", change(14 + 40 + 2, good[14 + 40 + 2] ^ 1)),
        ("with another code", other_code),
        ("an option without length", with(&[1, 0, 2, 0, 0, 0, 0, 9])),
        ("an option longer than the packet", with(&[3, 4, 64, 0x80, 0, 0, 0, 9])),
        ("cut off", icmpv6_error(router(9), everyone(), 134, 0, 64 << 24 | 1_800, &[0; 4])),
    ];
    for (what, frame) in cases {
        let mut s = Script::new(Version::V6);
        s.inject(frame);
        assert_eq!(connect(&mut s, far()), Err(ConnectError::NoRoute(far().ip())), "{what}");
    }
    let mut s = Script::new(Version::V6);
    s.inject(good);
    assert!(connect(&mut s, far()).is_ok());
}

#[test]
fn however_many_routers_and_networks_are_told_of_the_first_ones_stay() {
    for_each_seed(8, |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut s = Script::new(Version::V6);
        s.inject(advertisement_with(router(9), MEDIUM, 9_000, &[prefix("2001:db8:9::", 48, 0x80, u32::MAX)]));
        for _ in 0..300 {
            let from = Side { at: SocketAddr::new(router(rng.random()).at.ip(), 0), mac: mac(66) };
            let from = if from.at.ip() == router(9).at.ip() { router(10) } else { from };
            let networks: Vec<_> = (0..rng.random_range(0..40))
                .map(|_| prefix(&format!("2001:{:x}::", rng.random::<u16>()), 48, 0x80, u32::MAX))
                .collect();
            let mut frame = advertisement_with(from, MEDIUM, 9_000, &networks);
            if rng.random_bool(0.2) {
                let at = rng.random_range(54..frame.len());
                frame[at] = rng.random();
            }
            s.inject(frame);
            s.advance(Duration::from_millis(150));
        }
        assert_eq!(first_hop(&mut s, router(9)), Some(mac(9)));
        others(&mut s);
        s.answers_for_itself = false;
        let near: SocketAddr = "[2001:db8:9::7]:7000".parse().expect("an address");
        connect(&mut s, near).expect("there is a way");
        assert!(others(&mut s).iter().any(|frame| is_question_for(frame, near.ip())));
    });
}

#[test]
fn what_a_router_says_to_one_core_all_cores_learn() {
    let (link, mut clock) = link(1);
    let core_of = |frame: &[u8]| if Seg::parse(frame).is_some() { 0 } else { 1 };
    let mut cores = Ours::cores(link.port(Path::default()), 300, &config(1), 2, core_of);
    let local = Side { mac: mac(1), at: SocketAddr::new(ip(Version::V6, 1), 80) };
    let remote = Side { mac: mac(2), at: SocketAddr::new(ip(Version::V6, 2), 9) };
    let peer = link.port(Path::default());
    cores.iter_mut().for_each(|core| core.listen(local.at, 1, |_| Talk::new(1, 1_400, 0)));
    peer.send(clock.now(), advertisement_with(router(9), MEDIUM, 1_800, &[mtu(1_400)]));
    let mut go = |cores: &mut [Ours], until_ms| {
        let mut hosts: Vec<&mut dyn Host> = cores.iter_mut().map(|core| core as &mut dyn Host).collect();
        clock.run_until(&mut hosts, Instant::from_millis(until_ms));
        clock.now()
    };
    let now = go(&mut cores, 10);
    peer.send(now, seg(SYN, 0, 0).mss(1_400).frame(remote, local));
    let now = go(&mut cores, 20);
    let answer = peer.receive(now).and_then(|frame| Seg::parse(&frame)).expect("SYN and ACK").2;
    assert_eq!(answer.mss, Some(1_340));
}
