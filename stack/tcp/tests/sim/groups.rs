//! Multicast Listener Discovery: in which groups the host says it is, and when.

use std::time::Duration;

use smoltcp::wire::{EthernetAddress, EthernetFrame, IpProtocol, Ipv6Packet};
use stack::transport::OverEndpoint as _;

use crate::script::Script;
use crate::talk::{Version, mac};
use crate::wire::{Side, icmpv6_error, with_extensions};

const ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];

/// The solicited-node group of the host's address, fd00::1.
const GROUP: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1];

/// That of the link-local address beside it, which the host makes itself.
fn beside(s: &mut Script) -> [u8; 16] {
    let mut groups = [[0; 16]; 2];
    s.inject(query([0; 16], 0, true));
    s.advance(Duration::from_millis(10));
    let reports = reports(s);
    let [(143, records)] = &reports[..] else { panic!("{reports:02x?}") };
    groups.iter_mut().zip(records.chunks(20)).for_each(|(group, record)| group.copy_from_slice(&record[4..]));
    assert_eq!((groups[0], &groups[1][..13], records.len()), (GROUP, &GROUP[..13], 40));
    groups[1]
}

fn record(kind: u8, group: [u8; 16]) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], &group].concat()
}

/// A report's type, and the groups in it; checks all that a report must be.
fn report(frame: &[u8]) -> Option<(u8, Vec<u8>)> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
    if ip.next_header() != IpProtocol::HopByHop {
        return None;
    }
    assert_eq!((ip.hop_limit(), &ip.payload()[..8]), (1, &ALERT[..]), "a router sees it, and no further one");
    let message = &ip.payload()[8..];
    let pseudo = smoltcp::wire::checksum::pseudo_header_v6(
        &ip.src_addr(),
        &ip.dst_addr(),
        IpProtocol::Icmpv6,
        message.len() as u32,
    );
    let sum = smoltcp::wire::checksum::combine(&[pseudo, smoltcp::wire::checksum::data(message)]);
    assert_eq!(sum, !0, "the checksum is wrong");
    let [.., w, x, y, z] = ip.dst_addr().octets();
    assert_eq!(ethernet.dst_addr(), EthernetAddress([0x33, 0x33, w, x, y, z]));
    Some((message[0], if message[0] == 143 { message[8..].to_vec() } else { message[8..24].to_vec() }))
}

fn reports(s: &mut Script) -> Vec<(u8, Vec<u8>)> {
    std::iter::from_fn(|| s.next_other()).filter_map(|frame| report(&frame)).collect()
}

/// A query for `group`, all zeros for all of them, answered within `code` ms; of the new kind, or the old.
fn query(group: [u8; 16], code: u16, is_new: bool) -> Vec<u8> {
    let router = Side { mac: mac(9), at: "[fe80::9]:0".parse().expect("an address") };
    let to = Side { mac: EthernetAddress([0x33, 0x33, 0, 0, 0, 1]), at: "[ff02::1]:0".parse().expect("one") };
    let more: &[u8] = if is_new { &[2, 125, 0, 0] } else { &[] };
    let quoted = [&group[..], more].concat();
    let mut frame = icmpv6_error(router, to, 130, 0, u32::from(code) << 16, &quoted);
    frame[14 + 7] = 1;
    with_extensions(&frame, 0, &ALERT)
}

#[test]
fn the_groups_of_the_own_addresses_are_reported_at_the_start() {
    let mut s = Script::new(Version::V6);
    let beside = beside(&mut s);
    let now = s.now();
    s.stack.endpoint_mut().claim_addresses(now);
    s.advance(Duration::from_secs(5));
    let joined = [record(4, GROUP), record(4, beside)].concat();
    let reports = reports(&mut s);
    assert!(reports.iter().all(|report| *report == (143, joined.clone())), "{reports:02x?}");
    // Before it is known whether the host can have its addresses, and twice when it is.
    assert!((3..=4).contains(&reports.len()), "{reports:02x?}");
}

#[test]
fn queries_are_answered_in_time_and_in_the_language_of_the_querier() {
    let beside = beside(&mut Script::new(Version::V6));
    for group in [[0; 16], GROUP] {
        for (is_new, expected) in [
            (true, vec![(143, [record(2, GROUP), record(2, beside)].concat())]),
            (false, vec![(131, GROUP.to_vec()), (131, beside.to_vec())]),
        ] {
            let mut s = Script::new(Version::V6);
            s.inject(query(group, 1_000, is_new));
            s.inject(query(group, 1_000, is_new));
            s.advance(Duration::from_secs(1));
            assert_eq!(reports(&mut s), expected, "one answer to both");
        }
    }
}

/// Routers must not hear all hosts at once.
#[test]
fn answers_come_after_a_time_of_their_own() {
    let delay = |secret: u8| {
        let config = stack::Config { isn_secret: [secret; 16], ..crate::ours::config(1) };
        let mut s = Script::with_config(Version::V6, config);
        s.inject(query([0; 16], 10_000, true));
        let waited = (0..100).find(|_| {
            s.advance(Duration::from_millis(100));
            !reports(&mut s).is_empty()
        });
        waited.expect("an answer came within ten seconds")
    };
    let delays: std::collections::BTreeSet<_> = (0..8).map(delay).collect();
    assert!(delays.len() >= 4, "{delays:?}");
    assert_eq!(delay(3), delay(3), "the seed decides");
}

#[test]
fn queries_that_no_router_sends_are_not_answered() {
    let good = query([0; 16], 100, true);
    let change = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    let mut other_group = GROUP;
    other_group[15] = 7;
    let cases = [
        ("from afar", change(14 + 7, 64)),
        ("without an alert", change(14 + 40 + 2, 0x1e)),
        ("for another group", query(other_group, 100, true)),
        ("with a wrong checksum", change(good.len() - 1, 1)),
        ("cut off", [&change(14 + 5, 28)[..14 + 40 + 28]].concat()),
    ];
    for (what, frame) in cases {
        let mut s = Script::new(Version::V6);
        s.inject(frame);
        s.advance(Duration::from_secs(1));
        assert_eq!(reports(&mut s), [], "{what}");
    }
}
