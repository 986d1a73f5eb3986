//! A host of several cores: each has its own connections, and all have the same addresses.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stack::net::{Net as _, Transport as _};
use stack::sim::{Clock, Host, Path};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;
use stack::{Config, CoreShare, DeviceSpread};

use crate::ours::{Ours, config};
use crate::talk::{BOTH_VERSIONS, Talk, Talker, Version, for_each_seed, ip, link};
use crate::theirs::Theirs;
use crate::wire::{
    RST, SYN, Seg, Side, arp, data, echo_reply, echo_request, icmpv4_error, icmpv6_error, neighbor_solicit,
    seg,
};

const CORES: usize = 3;

fn run(clock: &mut Clock, cores: &mut [Ours], theirs: &mut Theirs, limit: Duration) {
    let end = clock.now() + limit;
    while !(cores.iter_mut().all(Ours::done) && theirs.done()) {
        let mut hosts: Vec<&mut dyn Host> = cores.iter_mut().map(|core| core as &mut dyn Host).collect();
        hosts.push(theirs);
        let goes_on = clock.step(&mut hosts, end);
        let reports: Vec<_> = cores.iter_mut().map(Ours::report).collect();
        assert!(goes_on, "not over by {end}\n{}\n{}", reports.join("\n"), theirs.report());
    }
}

fn port_of(remote: SocketAddr) -> u64 {
    remote.port().into()
}

/// A bad link, and a device that gives each frame to any core at all: the bytes are right, and every connection
/// ends in order.
#[test]
fn frames_that_come_to_any_core_find_their_connection() {
    for_each_seed(40, |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let version = BOTH_VERSIONS[rng.random_range(0..2)];
        let path = Path {
            loss: rng.random_range(0.0..0.03),
            reordering: rng.random_range(0.0..0.1),
            duplication: rng.random_range(0.0..0.05),
            ..Path::default()
        };
        let (link, mut clock) = link(seed);
        // SYNs of a device that spreads by a hash come to one core, and so do theirs again.
        let mut spread = ChaCha8Rng::seed_from_u64(seed + 1);
        let core_of = move |frame: &[u8]| match Seg::parse(frame) {
            Some((from, _, segment)) if segment.has(SYN) => usize::from(from.at.port()) % CORES,
            _ => spread.random_range(0..CORES),
        };
        let mut cores = Ours::cores(link.port(path), 300, &config(1), CORES, core_of);
        let at = SocketAddr::new(ip(version, 1), 80);
        for core in &mut cores {
            core.listen(at, 16, |peer| Talk::new(port_of(peer), 3_000, 20_000));
        }
        let mut theirs = Theirs::new(&link, path, 2, 4_000);
        for n in 0..12 {
            theirs.connect(at, 5_000 + n, Talk::new(u64::from(5_000 + n), 3_000, 20_000).other());
        }
        run(&mut clock, &mut cores, &mut theirs, Duration::from_secs(900));
        for core in &cores {
            assert!(core.conns.len() >= 4, "a third of the SYNs came to each core");
            core.assert_nothing_leaked();
        }
    });
}

/// A SYN that comes to one core and again to another is answered by both; the peer goes on with one of them, and the
/// other does not get in its way.
#[test]
fn a_syn_that_comes_to_two_cores_opens_one_connection() {
    for version in BOTH_VERSIONS {
        let (link, mut clock) = link(1);
        let turn = Cell::new(0);
        // The SYN to core 0, its copy to core 1, and all that follows to either in turn.
        let core_of = move |_: &[u8]| turn.replace(turn.get() + 1) % 2;
        let mut cores = Ours::cores(link.port(Path::default()), 300, &config(1), 2, core_of);
        let at = SocketAddr::new(ip(version, 1), 80);
        for core in &mut cores {
            core.listen(at, 16, |_| Talk::new(7, 100_000, 100_000));
        }
        let doubling = Path { duplication: 1.0, ..Path::default() };
        let mut theirs = Theirs::new(&link, doubling, 2, 60_000);
        theirs.connect(at, 5_000, Talk::new(7, 100_000, 100_000).other());
        run(&mut clock, &mut cores, &mut theirs, Duration::from_secs(60));
        let opened: Vec<_> = cores.iter().map(|core| core.conns.len()).collect();
        assert_eq!(opened.iter().sum::<usize>(), 1, "{opened:?}");
    }
}

/// What no core has a connection for is refused, by one of them.
#[test]
fn a_segment_that_belongs_nowhere_is_refused_once() {
    for version in BOTH_VERSIONS {
        for first in 0..CORES {
            let (link, mut clock) = link(1);
            let mut cores = Ours::cores(link.port(Path::default()), 300, &config(1), CORES, move |_| first);
            let peer = link.port(Path::default());
            let local = Side { mac: crate::talk::mac(1), at: SocketAddr::new(ip(version, 1), 80) };
            let remote = Side { mac: crate::talk::mac(2), at: SocketAddr::new(ip(version, 2), 9) };
            peer.send(clock.now(), data(5, 5, b"who is there?").frame(remote, local));
            let mut hosts: Vec<&mut dyn Host> = cores.iter_mut().map(|core| core as &mut dyn Host).collect();
            clock.run_until(&mut hosts, Instant::from_secs(5));
            let answers: Vec<_> = std::iter::from_fn(|| peer.receive(clock.now())).collect();
            let resets =
                answers.iter().filter_map(|frame| Seg::parse(frame)).filter(|(.., seg)| seg.has(RST));
            assert_eq!((answers.len(), resets.count()), (1, 1), "{answers:02x?}");
        }
    }
}

/// Segments that no core has a connection for cost no core anything but the one they come to, however many there are.
#[test]
fn a_flood_of_strays_stays_with_the_core_that_it_comes_to() {
    for version in BOTH_VERSIONS {
        let (link, mut clock) = link(1);
        let mut cores = Ours::cores(link.port(Path::default()), 300, &config(1), CORES, |_| 1);
        let at = SocketAddr::new(ip(version, 1), 80);
        let peer = link.port(Path::default());
        let local = Side { mac: crate::talk::mac(1), at };
        for n in 0..900_u16 {
            let remote = Side {
                mac: crate::talk::mac(2),
                at: SocketAddr::new(ip(version, 3 + (n % 100) as u8), 1_000 + n),
            };
            peer.send(clock.now(), data(5, 5, b"who is there?").frame(remote, local));
        }
        let mut hosts: Vec<&mut dyn Host> = cores.iter_mut().map(|core| core as &mut dyn Host).collect();
        clock.run_until(&mut hosts, Instant::from_secs(5));
        let seen = cores.iter().map(|core| core.net.endpoint().counters().frames_in);
        assert_eq!(seen.collect::<Vec<_>>(), [0, 900, 0]);
    }
}

/// The answer to one core's question for a neighbour comes to another core.
#[test]
fn every_core_learns_where_a_neighbour_is() {
    for version in BOTH_VERSIONS {
        for other_frames_to in 0..CORES {
            let (link, mut clock) = link(1);
            let core_of = move |frame: &[u8]| if Seg::parse(frame).is_some() { 1 } else { other_frames_to };
            let mut cores = Ours::cores(link.port(Path::default()), 300, &config(1), CORES, core_of);
            let mut theirs = Theirs::new(&link, Path::default(), 2, 4_000);
            theirs.listen(80, Talk::new(3, 5_000, 5_000));
            let at = SocketAddr::new(ip(version, 2), 80);
            cores[1]
                .connect(clock.now(), at, Talk::new(3, 5_000, 5_000).other())
                .expect("nothing is in the way");
            run(&mut clock, &mut cores, &mut theirs, Duration::from_secs(60));
        }
    }
}

/// One core answers a ping or a question for the address: not all, and not none.
#[test]
fn what_is_not_tcp_is_answered_once() {
    use smoltcp::wire::{ArpOperation, EthernetAddress};
    let (link, mut clock) = link(1);
    let mut cores = Ours::cores(link.port(Path::default()), 300, &config(1), CORES, |_| 2);
    let peer = link.port(Path::default());
    let remote = Side { mac: crate::talk::mac(2), at: SocketAddr::new(ip(Version::V4, 2), 9) };
    peer.send(
        clock.now(),
        arp(ArpOperation::Request, remote, EthernetAddress::BROADCAST, ip(Version::V4, 1)),
    );
    let mut hosts: Vec<&mut dyn Host> = cores.iter_mut().map(|core| core as &mut dyn Host).collect();
    clock.run_until(&mut hosts, Instant::from_secs(5));
    assert_eq!(std::iter::from_fn(|| peer.receive(clock.now())).count(), 1);
}

/// Another host's claim comes to one core, and all learn of it.
#[test]
fn a_conflict_is_counted_by_the_core_that_it_came_to() {
    use smoltcp::wire::{ArpOperation, EthernetAddress};
    let (link, mut clock) = link(1);
    let mut cores = Ours::cores(link.port(Path::default()), 300, &config(1), CORES, |_| 2);
    let peer = link.port(Path::default());
    let other = Side { mac: crate::talk::mac(9), at: SocketAddr::new(ip(Version::V4, 1), 9) };
    peer.send(clock.now(), arp(ArpOperation::Request, other, EthernetAddress::BROADCAST, ip(Version::V4, 7)));
    let mut hosts: Vec<&mut dyn Host> = cores.iter_mut().map(|core| core as &mut dyn Host).collect();
    clock.run_until(&mut hosts, Instant::from_secs(1));
    let counted = cores.iter().map(|core| core.net.endpoint().counters().address_conflicts);
    assert_eq!(counted.collect::<Vec<_>>(), [0, 0, 1]);
    assert!(cores.iter().all(|core| core.net.endpoint().address_conflict().is_some()));
}

/// A host asks one core for the address, and pings another.
#[test]
fn a_ping_is_answered_by_a_core_that_was_not_asked_for_the_address() {
    use smoltcp::wire::{ArpOperation, EthernetAddress};
    for version in BOTH_VERSIONS {
        let (link, mut clock) = link(1);
        let local = Side { mac: crate::talk::mac(1), at: SocketAddr::new(ip(version, 1), 80) };
        let remote = Side { mac: crate::talk::mac(2), at: SocketAddr::new(ip(version, 2), 9) };
        let turn = Cell::new(0);
        let core_of = move |_: &[u8]| turn.replace(turn.get() + 1) % 2;
        let mut cores = Ours::cores(link.port(Path::default()), 300, &config(1), 2, core_of);
        let peer = link.port(Path::default());
        let question = match version {
            Version::V4 => arp(ArpOperation::Request, remote, EthernetAddress::BROADCAST, local.at.ip()),
            Version::V6 => neighbor_solicit(remote, local.at.ip()),
        };
        let mut replies = Vec::new();
        for frame in [question, echo_request(remote, local, b"there?")] {
            peer.send(clock.now(), frame);
            let mut hosts: Vec<&mut dyn Host> = cores.iter_mut().map(|core| core as &mut dyn Host).collect();
            let until = clock.now() + Duration::from_secs(1);
            clock.run_until(&mut hosts, until);
            replies.extend(std::iter::from_fn(|| peer.receive(clock.now())));
        }
        assert_eq!(replies.len(), 2, "an answer to each: {replies:02x?}");
        assert_eq!(echo_reply(&replies[1]), Some(b"there?".to_vec()));
    }
}

/// A router's complaint about one core's segment comes to another core (RFC 1191, RFC 8201).
#[test]
fn a_path_mtu_reaches_the_core_that_has_the_connection() {
    for (version, mtu, mss) in [(Version::V4, 1_000, 960), (Version::V6, 1_280, 1_220)] {
        let (link, mut clock) = link(1);
        let core_of = |frame: &[u8]| if Seg::parse(frame).is_some() { 0 } else { 1 };
        let mut cores = Ours::cores(link.port(Path::default()), 300, &config(1), 2, core_of);
        let local = Side { mac: crate::talk::mac(1), at: SocketAddr::new(ip(version, 1), 80) };
        let remote = Side { mac: crate::talk::mac(2), at: SocketAddr::new(ip(version, 2), 9) };
        let peer = link.port(Path::default());
        for core in &mut cores {
            core.listen(local.at, 1, |_| Talk::new(1, 1_400, 0));
            core.piece_bytes = 1_400;
        }
        let mut go = |cores: &mut [Ours], frame: Vec<u8>, until_ms| {
            peer.send(clock.now(), frame);
            let mut hosts: Vec<&mut dyn Host> = cores.iter_mut().map(|core| core as &mut dyn Host).collect();
            clock.run_until(&mut hosts, Instant::from_millis(until_ms));
            std::iter::from_fn(|| peer.receive(clock.now())).collect::<Vec<_>>()
        };
        let answer = go(&mut cores, seg(SYN, 0, 0).mss(1_400).frame(remote, local), 10);
        let iss = Seg::parse(&answer[0]).expect("SYN and ACK").2.seq;
        let sent = go(&mut cores, seg(crate::wire::ACK, 1, iss.wrapping_add(1)).frame(remote, local), 20);
        let longest = |frames: &[Vec<u8>]| {
            frames.iter().filter_map(|frame| Seg::parse(frame)).map(|(.., seg)| seg.payload.len()).max()
        };
        assert_eq!(longest(&sent), Some(1_400));
        let whole = sent.iter().find(|frame| frame.len() > 1_400).expect("the segment");
        let quoted = &whole[14..14 + 68];
        let complaint = match version {
            Version::V4 => icmpv4_error(remote, local, 3, 4, mtu, quoted),
            Version::V6 => icmpv6_error(remote, local, 2, 0, mtu, quoted),
        };
        let again = go(&mut cores, complaint, 3_000);
        assert_eq!(longest(&again), Some(mss), "no longer than the path takes");
    }
}

/// Cores that open connections to one peer do not take each other's ports.
#[test]
fn cores_connect_from_ports_of_their_own() {
    let (link, mut clock) = link(1);
    let used = Rc::new(Cell::new(0));
    let mut ports = Vec::new();
    for index in 0..CORES as u16 {
        let config = Config { core: CoreShare { index, count: CORES as u16 }, ..config(1) };
        let mut core = Ours::new(&link, Path::default(), 1, 300, config);
        let at = SocketAddr::new(ip(Version::V4, 2), 80);
        let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut theirs = Theirs::new(&link, Path::default(), 2, 4_000);
        let sink = seen.clone();
        core.net.port().set_filter(move |frame| {
            if let Some((from, _, segment)) = Seg::parse(frame)
                && segment.has(SYN)
            {
                sink.borrow_mut().push(from.at.port());
            }
            true
        });
        let conns: Vec<_> = (0..100)
            .map(|_| core.connect(clock.now(), at, Talk::new(1, 0, 0)).expect("there are ports"))
            .collect();
        let until = clock.now() + Duration::from_millis(500);
        clock.run_until(&mut [&mut core, &mut theirs], until);
        used.set(used.get() + conns.len());
        ports.extend(seen.borrow().iter().copied());
        while core.net.next_event().is_some() {}
        conns.into_iter().for_each(|conn| core.net.abort(conn));
    }
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), used.get());
}

/// Receive side scaling as the specification writes it down: bit by bit.
fn toeplitz(key: &[u8], frame: &[u8]) -> u32 {
    let input = match frame[12..14] {
        [8, 0] => [&frame[26..34], &frame[34..38]].concat(),
        _ => [&frame[22..54], &frame[54..58]].concat(),
    };
    let bit = |bytes: &[u8], n: usize| bytes[n / 8] >> (7 - n % 8) & 1;
    let window = |from: usize| (from..from + 32).fold(0, |window, n| window << 1 | u32::from(bit(key, n)));
    (0..8 * input.len()).filter(|&n| bit(&input, n) == 1).fold(0, |hash, n| hash ^ window(n))
}

/// On a device that spreads frames by a hash of its own, each core's connections are from ports whose segments come back to
/// it: none has to be passed on.
#[test]
fn segments_of_connections_that_a_core_opens_come_to_it_by_the_devices_hash() {
    for version in BOTH_VERSIONS {
        for hashes_ports in [true, false] {
            let mut rng = ChaCha8Rng::seed_from_u64(7);
            let key: [u8; 52] = rng.random();
            let table: Vec<u16> = (0..128).map(|_| rng.random_range(0..CORES as u16)).collect();
            let (received, of_the_device) = (Rc::new(Cell::new(0)), table.clone());
            let count = received.clone();
            let core_of = move |frame: &[u8]| {
                if Seg::parse(frame).is_none() {
                    return 0;
                }
                count.set(count.get() + 1);
                of_the_device[toeplitz(&key, frame) as usize % 128].into()
            };
            let (link, mut clock) = link(1);
            let mut cores = Ours::cores(link.port(Path::default()), 600, &config(1), CORES, core_of);
            let mut theirs = Theirs::new(&link, Path::default(), 2, 4_000);
            let at = SocketAddr::new(ip(version, 2), 80);
            for _ in 0..30 {
                theirs.listen(at.port(), Talk::new(9, 100, 3_000).other());
            }
            for core in &mut cores {
                let spread = DeviceSpread::new(&key, &table, CORES as u16, [hashes_ports; 2]);
                core.net.endpoint_mut().spread_by(spread.expect("each core has a share"));
                for _ in 0..10 {
                    core.connect(clock.now(), at, Talk::new(9, 100, 3_000)).expect("there are ports");
                }
            }
            run(&mut clock, &mut cores, &mut theirs, Duration::from_secs(60));
            let taken_in: u64 = cores.iter().map(|core| core.net.endpoint().counters().segments_in).sum();
            let passed_on = taken_in > received.get();
            assert_eq!(passed_on, !hashes_ports, "{taken_in} of {}", received.get());
        }
    }
}

/// RFC 6056, section 3.3.4: an attempt that fails takes its port along, so that the next one is not taken for the last.
#[test]
fn rfc6056_3_3_4_each_attempt_is_from_another_port() {
    let (link, mut clock) = link(1);
    let mut ours = Ours::new(&link, Path::default(), 1, 300, config(1));
    let mut theirs = Theirs::new(&link, Path::default(), 2, 4_000);
    let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
    let sink = seen.clone();
    ours.net.port().set_filter(move |frame| {
        if let Some((from, _, segment)) = Seg::parse(frame)
            && segment.has(SYN)
        {
            sink.borrow_mut().push(from.at.port());
        }
        true
    });
    const ATTEMPTS: usize = 100;
    for _ in 0..ATTEMPTS {
        // Nobody listens there.
        let nobody = SocketAddr::new(ip(Version::V4, 2), 80);
        ours.connect(clock.now(), nobody, Talk::new(1, 0, 0)).expect("there are ports");
        let until = clock.now() + Duration::from_millis(20);
        clock.run_until(&mut [&mut ours, &mut theirs], until);
        let refused = ours.net.next_event();
        assert!(
            refused.is_none() || matches!(refused, Some(stack::net::Event::Closed { .. })),
            "{refused:?}"
        );
    }
    let mut ports = seen.borrow().clone();
    assert_eq!(ports.len(), ATTEMPTS);
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), ATTEMPTS, "a port was tried twice");
}

/// A segment that is put together by a core which does not have its connection goes on to the one that has.
#[test]
fn a_segment_in_fragments_finds_its_connection() {
    for version in BOTH_VERSIONS {
        let (link, mut clock) = link(1);
        let is_fragment = move |frame: &[u8]| match version {
            Version::V4 => frame[12..14] == [8, 0] && (frame[20] & 0x3f != 0 || frame[21] != 0),
            Version::V6 => frame[20] == 44,
        };
        let core_of = move |frame: &[u8]| if is_fragment(frame) { 1 } else { 0 };
        let mut cores = Ours::cores(link.port(Path::default()), 300, &config(1), CORES, core_of);
        let talk = Talk::new(7, 0, 900);
        let local = Side { mac: crate::talk::mac(1), at: SocketAddr::new(ip(version, 1), 80) };
        let remote = Side { mac: crate::talk::mac(2), at: SocketAddr::new(ip(version, 2), 9) };
        for core in &mut cores {
            core.listen(local.at, 16, move |_| talk);
        }
        let peer = link.port(Path::default());
        let mut exchange = |frames: Vec<Vec<u8>>| -> Vec<Seg> {
            frames.into_iter().for_each(|frame| peer.send(clock.now(), frame));
            let until = clock.now() + Duration::from_millis(100);
            let mut hosts: Vec<&mut dyn Host> = cores.iter_mut().map(|core| core as &mut dyn Host).collect();
            clock.run_until(&mut hosts, until);
            let frames = std::iter::from_fn(|| peer.receive(until));
            frames.filter_map(|frame| Seg::parse(&frame)).map(|(.., seg)| seg).collect()
        };
        let answers = exchange(vec![seg(SYN, 0, 0).mss(1_000).frame(remote, local)]);
        let ack = answers[0].seq.wrapping_add(1);
        let mut payload = vec![0; 900];
        talk.hears.read(0, &mut payload);
        let segment = data(1, ack, &payload).frame(remote, local);
        let mut frames = vec![seg(crate::wire::ACK, 1, ack).frame(remote, local)];
        frames.extend(crate::wire::fragments_of(&segment, 304, 3));
        let answers = exchange(frames);
        assert!(answers.iter().any(|seg| seg.ack == 901 && !seg.has(RST)), "{answers:?}");
        assert!(!answers.iter().any(|seg| seg.has(RST)), "{answers:?}");
    }
}
