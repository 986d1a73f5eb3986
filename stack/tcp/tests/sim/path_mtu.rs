//! What paths take: remembered for each destination, tried again, and found out where no router says so.

use std::time::Duration;

use stack::Config;
use stack::net::ConnId;
use stack::transport::OverEndpoint as _;

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version, ip, mac};
use crate::wire::{ACK, SYN, Seg, Side, data, icmpv4_error, icmpv6_error, seg};

/// Payload of the longest segments here.
const WHOLE: usize = 1_400;
/// Enough for a longer segment, and for those that follow it.
const MUCH: usize = 8_000;

fn header_bytes(version: Version) -> usize {
    match version {
        Version::V4 => 40,
        Version::V6 => 60,
    }
}

fn open(version: Version) -> (Script, ConnId) {
    open_with(version, seg(SYN, 0, 0))
}

fn open_with(version: Version, syn: Seg) -> (Script, ConnId) {
    let config = Config { tx_bytes: 1 << 16, ..config(1) };
    let mut s = Script::with_config(version, config);
    s.listen();
    let conn = open_by(&mut s, 40_000, syn);
    (s, conn)
}

fn open_from(s: &mut Script, port: u16) -> ConnId {
    open_by(s, port, seg(SYN, 0, 0))
}

fn open_by(s: &mut Script, port: u16, syn: Seg) -> ConnId {
    s.remote.at.set_port(port);
    s.open_with(syn.mss(WHOLE as u16).window(60_000))
}

/// A router's word that a segment of the stack's was longer than `mtu`.
fn too_big(s: &Script, version: Version, mtu: u32, seq: u32) -> Vec<u8> {
    let sent = data(seq.wrapping_add(s.stack_iss), 1u32.wrapping_add(s.remote_iss), &[7; WHOLE]);
    let quoted = &sent.frame(s.local, s.remote)[14..14 + 68];
    match version {
        Version::V4 => icmpv4_error(s.remote, s.local, 3, 4, mtu, quoted),
        Version::V6 => icmpv6_error(s.remote, s.local, 2, 0, mtu, quoted),
    }
}

/// What has been sent: numbers and lengths.
fn sent(s: &mut Script) -> Vec<(u32, usize)> {
    std::iter::from_fn(|| s.next()).map(|segment: Seg| (segment.seq, segment.payload.len())).collect()
}

fn total(segments: &[(u32, usize)]) -> u32 {
    segments.iter().map(|(_, len)| *len as u32).sum()
}

/// The remote takes all that comes, for a while; returns the next number and the lengths.
fn take_all(s: &mut Script, mut next: u32) -> (u32, Vec<usize>) {
    let mut lengths = Vec::new();
    for _ in 0..100 {
        s.advance(Duration::from_millis(20));
        for (seq, len) in sent(s) {
            lengths.push(len);
            if seq == next {
                next += len as u32;
            }
        }
        s.send(seg(ACK, 1, next).window(60_000));
    }
    (next, lengths)
}

/// A connection that has learned from a router that the path takes `mtu`, and all that it has sent has arrived.
fn narrowed(version: Version, mtu: u32) -> (Script, ConnId, u32) {
    narrowed_with(version, mtu, seg(SYN, 0, 0))
}

fn narrowed_with(version: Version, mtu: u32, syn: Seg) -> (Script, ConnId, u32) {
    let (mut s, conn) = open_with(version, syn);
    assert_eq!(s.write(conn, &[7; WHOLE]), Ok(()));
    s.expect(data(1, 1, &[7; WHOLE]));
    let message = too_big(&s, version, mtu, 1);
    s.inject(message);
    let (next, lengths) = take_all(&mut s, 1);
    assert_eq!(next, 1 + WHOLE as u32);
    assert_eq!(lengths.iter().max(), Some(&(mtu as usize - header_bytes(version))));
    (s, conn, next)
}

#[test]
fn rfc1191_and_rfc8201_a_new_connection_begins_with_what_its_path_takes() {
    for version in BOTH_VERSIONS {
        let (mut s, _, _) = narrowed(version, 1_300);
        let least = 1_300 - header_bytes(version);
        let conn = open_from(&mut s, 40_001);
        assert_eq!(s.write(conn, &[7; WHOLE]), Ok(()));
        assert_eq!(sent(&mut s), [(1, least), (1 + least as u32, WHOLE - least)]);
        // It says nothing of the paths to others.
        s.remote = Side { mac: mac(3), at: (ip(version, 3), 40_000).into() };
        let conn = open_from(&mut s, 40_000);
        assert_eq!(s.write(conn, &[7; WHOLE]), Ok(()));
        s.expect(data(1, 1, &[7; WHOLE]));
    }
}

#[test]
fn rfc4821_a_path_that_takes_more_again_gets_longer_segments_after_ten_minutes() {
    for version in BOTH_VERSIONS {
        let (mut s, conn, next) = narrowed(version, 1_300);
        let least = 1_300 - header_bytes(version);
        s.advance(Duration::from_secs(590));
        assert_eq!(s.write(conn, &[7; MUCH]), Ok(()));
        let (next, lengths) = take_all(&mut s, next);
        assert!(lengths.iter().all(|&len| len <= least), "not before: {lengths:?}");
        s.advance(Duration::from_secs(11));
        assert_eq!(s.write(conn, &[7; WHOLE]), Ok(()));
        let (next, lengths) = take_all(&mut s, next);
        assert!(
            lengths.iter().all(|&len| len <= least),
            "nothing would tell soon that it is lost: {lengths:?}"
        );
        assert_eq!(s.write(conn, &[7; MUCH]), Ok(()));
        let first: Vec<_> = sent(&mut s).into_iter().map(|(_, len)| len).collect();
        assert_eq!(first.iter().filter(|&&len| len > least).collect::<Vec<_>>(), [&WHOLE], "one tries");
        assert_eq!(first[0], WHOLE, "and others follow it: {first:?}");
        let sum: usize = first.iter().sum();
        s.send(seg(ACK, 1, next + sum as u32).window(60_000));
        let (next, _) = take_all(&mut s, next + sum as u32);
        assert_eq!(s.write(conn, &[7; MUCH]), Ok(()));
        assert_eq!(sent(&mut s)[0], (next, WHOLE), "then all are as long");
        assert_eq!(sent(&mut s).len(), 0);
    }
}

#[test]
fn rfc4821_what_a_probe_has_lost_comes_again_in_shorter_segments() {
    for version in BOTH_VERSIONS {
        let (mut s, conn, next) = narrowed(version, 1_300);
        let least = 1_300 - header_bytes(version);
        s.advance(Duration::from_secs(601));
        assert_eq!(s.write(conn, &[7; MUCH]), Ok(()));
        let first = sent(&mut s);
        assert_eq!(first[0], (next, WHOLE));
        // It was too long, and nobody says so: of what follows each is acknowledged as a duplicate.
        for _ in 1..first.len() {
            s.send(seg(ACK, 1, next).window(60_000));
        }
        let again = sent(&mut s);
        assert!(again.contains(&(next, least)), "{again:?}");
        assert!(again.iter().all(|&(_, len)| len <= least), "{again:?}");
        s.send(seg(ACK, 1, next + least as u32).window(60_000));
        let rest = sent(&mut s);
        assert!(rest.iter().any(|&(seq, _)| seq == next + least as u32), "{rest:?}");
        let end = first.iter().chain(&again).chain(&rest).map(|(seq, len)| seq + *len as u32).max();
        let end = end.unwrap_or(next);
        s.send(seg(ACK, 1, end).window(60_000));
        let (next, lengths) = take_all(&mut s, end);
        // Before long less is tried, but nothing as long as what was lost.
        let (mut next, mut lengths) = (next, lengths);
        for _ in 0..5 {
            assert_eq!(s.write(conn, &[7; MUCH]), Ok(()));
            let (end, more) = take_all(&mut s, next);
            next = end;
            lengths.extend(more);
        }
        assert!(lengths.iter().all(|&len| len < WHOLE), "{lengths:?}");
        assert!(lengths.iter().any(|&len| len > least), "half of the way: {lengths:?}");
    }
}

#[test]
fn rfc4821_a_lost_probe_is_no_sign_of_congestion() {
    for version in BOTH_VERSIONS {
        let (mut s, conn, next) = narrowed_with(version, 1_300, seg(SYN, 0, 0).sack_permitted(true));
        s.advance(Duration::from_secs(601));
        assert_eq!(s.write(conn, &[7; 50_000]), Ok(()));
        s.advance(Duration::from_millis(1));
        let first = sent(&mut s);
        assert_eq!(first[0], (next, WHOLE), "a probe, and others follow it");
        let end = next + total(&first);
        s.send(seg(ACK, 1, next).sack(&[(next + WHOLE as u32, end)]).window(60_000));
        s.advance(Duration::from_millis(100));
        let again = sent(&mut s);
        assert_eq!(again.iter().map(|(seq, _)| *seq).min(), Some(next), "{again:?}");
        let end = again.iter().map(|(seq, len)| seq + *len as u32).max().unwrap().max(end);
        s.send(seg(ACK, 1, end).window(60_000));
        s.advance(Duration::from_millis(1));
        let after = sent(&mut s);
        assert!(after.len() >= first.len(), "{after:?} after {first:?}");
    }
}

#[test]
fn rfc1191_6_3_what_was_found_out_is_not_believed_for_ever() {
    for version in BOTH_VERSIONS {
        let (mut s, _, _) = narrowed(version, 1_300);
        // Nobody sends enough to try the path.
        s.advance(Duration::from_secs(1_201));
        let conn = open_from(&mut s, 40_001);
        assert_eq!(s.write(conn, &[7; WHOLE]), Ok(()));
        s.expect(data(1, 1, &[7; WHOLE]));
    }
}

#[test]
fn what_one_connection_has_found_out_of_a_path_that_takes_more_again_serves_all() {
    for version in BOTH_VERSIONS {
        let (mut s, first, next) = narrowed(version, 1_300);
        let first_iss = s.stack_iss;
        let second = open_from(&mut s, 40_001);
        let second_iss = s.stack_iss;
        assert_eq!(s.write(second, &[7; WHOLE]), Ok(()));
        let (second_next, lengths) = take_all(&mut s, 1);
        assert_eq!(lengths.len(), 2, "it begins with what is known");
        s.remote.at.set_port(40_000);
        s.stack_iss = first_iss;
        s.advance(Duration::from_secs(601));
        assert_eq!(s.write(first, &[7; MUCH]), Ok(()));
        let (next, _) = take_all(&mut s, next);
        assert_eq!(s.write(first, &[7; WHOLE]), Ok(()));
        s.expect(data(next, 1, &[7; WHOLE]));
        s.remote.at.set_port(40_001);
        s.stack_iss = second_iss;
        assert_eq!(s.write(second, &[7; WHOLE]), Ok(()));
        s.expect(data(second_next, 1, &[7; WHOLE]));
        // And one that comes later is not told otherwise.
        let third = open_from(&mut s, 40_002);
        assert_eq!(s.write(third, &[7; WHOLE]), Ok(()));
        s.expect(data(1, 1, &[7; WHOLE]));
    }
}

#[test]
fn rfc4821_segments_that_vanish_without_a_word_become_shorter() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = open(version);
        assert_eq!(s.write(conn, &[7; MUCH]), Ok(()));
        // Nothing as long as the peer takes gets through.
        let (mut next, mut passed) = (1, 0);
        for _ in 0..400 {
            s.advance(Duration::from_millis(20));
            for (seq, len) in sent(&mut s) {
                if len <= 1_280 - header_bytes(version) && seq <= next {
                    (next, passed) = (next.max(seq + len as u32), passed.max(len));
                    s.send(seg(ACK, 1, next).window(60_000));
                }
            }
        }
        assert_eq!(next, 1 + MUCH as u32, "all has arrived");
        assert_eq!(passed, 1_280 - header_bytes(version));
        assert!(s.stack.endpoint().counters().black_holes > 0);
    }
}

#[test]
fn a_path_that_was_broken_altogether_gets_whole_segments_once_it_is_mended() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = open(version);
        assert_eq!(s.write(conn, &[7; WHOLE]), Ok(()));
        s.advance(Duration::from_secs(20));
        sent(&mut s);
        s.wait_for_segment(Duration::from_secs(60));
        let (next, _) = take_all(&mut s, 1);
        assert_eq!(next, 1 + WHOLE as u32, "all has arrived");
        let (mut next, mut longest) = (next, 0);
        // The congestion window has to grow again first.
        for _ in 0..20 {
            assert_eq!(s.write(conn, &[7; MUCH]), Ok(()));
            let (end, lengths) = take_all(&mut s, next);
            (next, longest) = (end, lengths.iter().filter(|&&len| len == WHOLE).count());
        }
        assert!(longest > 4, "only {longest} segments are whole");
    }
}

/// RFC 791: a router may divide what its link does not take, where the sender lets it.
#[test]
fn rfc791_packets_may_be_divided_on_a_path_that_takes_next_to_nothing() {
    let (mut s, conn) = open(Version::V4);
    assert_eq!(s.write(conn, &[7; WHOLE]), Ok(()));
    s.expect(data(1, 1, &[7; WHOLE]));
    assert!(s.divisible.is_empty(), "what is whole must not be divided");
    let message = too_big(&s, Version::V4, 296, 1);
    s.inject(message);
    let (next, lengths) = take_all(&mut s, 1);
    assert_eq!((next, lengths.iter().max()), (1 + WHOLE as u32, Some(&512)));
    assert!(s.divisible.len() >= lengths.len());
    let mut idents = s.divisible.clone();
    idents.sort_unstable();
    idents.dedup();
    assert_eq!(idents.len(), s.divisible.len(), "each packet has an identification of its own");
    // So may those of connections that come later.
    let later = open_from(&mut s, 40_001);
    s.divisible.clear();
    assert_eq!(s.write(later, &[7; 100]), Ok(()));
    s.expect(data(1, 1, &[7; 100]));
    assert_eq!(s.divisible.len(), 1);
    s.send(seg(ACK, 1, 101).window(60_000));
    // Until that is no longer believed.
    s.advance(Duration::from_secs(1_201));
    s.divisible.clear();
    assert_eq!(s.write(later, &[7; WHOLE]), Ok(()));
    s.expect(data(101, 1, &[7; WHOLE]));
    assert!(s.divisible.is_empty(), "what is whole must not be divided");
}
