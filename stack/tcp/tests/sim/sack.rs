//! Selective acknowledgements (RFC 2018), and what they tell of duplicates (RFC 2883).

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stack::Config;
use stack::net::{ConnId, Event};
use stack::transport::OverEndpoint as _;

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Stream, Version, for_each_seed};
use crate::wire::{ACK, FIN, SYN, Seg, data, seg};

/// A script after a passive open with an MSS of 1,000 bytes and selective acknowledgements, without timestamps.
fn open(version: Version) -> (Script, ConnId) {
    let mut s = Script::listening(version);
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).sack_permitted(true));
    (s, conn)
}

/// The bytes `from..to` of a stream, whose first is number 1.
fn part(stream: &Stream, from: u64, to: u64) -> Seg {
    let mut bytes = vec![0; (to - from) as usize];
    stream.read(from, &mut bytes);
    data(1 + from as u32, 1, &bytes)
}

/// A thousand bytes from there on.
fn thousand(seq: u32) -> Seg {
    data(seq, 1, &[seq as u8; 1_000])
}

fn answers(s: &mut Script) -> Vec<Seg> {
    std::iter::from_fn(|| s.next()).collect()
}

/// RFC 2018, section 2: the option is answered where it is offered, whatever the other options, and offered by who opens.
#[test]
fn rfc2018_2_sack_permitted_is_offered_and_answered() {
    for version in BOTH_VERSIONS {
        for timestamps in [None, Some((500, 0))] {
            for scale in [None, Some(7)] {
                for offered in [true, false] {
                    let mut s = Script::listening(version);
                    let syn = Seg { timestamps, scale, ..seg(SYN, 0, 0).mss(1_000).sack_permitted(offered) };
                    s.send(syn.clone());
                    s.expect(seg(SYN | ACK, 0, 1).sack_permitted(offered));
                    // Half-open it remembers.
                    s.send(syn);
                    s.expect(seg(SYN | ACK, 0, 1).sack_permitted(offered));
                }
            }
        }
        let mut s = Script::new(version);
        s.connect();
        s.expect(seg(SYN, 0, 0).sack_permitted(true));
        // Both open at once.
        s.send(seg(SYN, 0, 0).mss(1_000));
        s.expect(seg(SYN | ACK, 0, 1).sack_permitted(false));
    }
}

/// RFC 2018, section 4: the first block is that of the segment which has just come; the others follow, those first that
/// were told of last, as many as have room.
#[test]
fn rfc2018_4_the_newest_block_is_first_and_the_others_are_repeated() {
    for timestamps in [None, Some(500)] {
        let mut s = Script::listening(Version::V4);
        let syn = seg(SYN, 0, 0).mss(1_400).sack_permitted(true);
        let conn = s.open_with(Seg { timestamps: timestamps.map(|value| (value, 0)), ..syn });
        let most = if timestamps.is_some() { 3 } else { 4 };
        let echo = timestamps.map(|value| (value, s.stack_timestamp()));
        let block = |from: u32| (from, from + 1_000);
        for (sent, blocks) in [
            (2_001, vec![block(2_001)]),
            (6_001, vec![block(6_001), block(2_001)]),
            (4_001, vec![block(4_001), block(6_001), block(2_001)]),
            (8_001, vec![block(8_001), block(4_001), block(6_001), block(2_001)]),
            (10_001, vec![block(10_001), block(8_001), block(4_001), block(6_001)]),
            // It closes a hole.
            (3_001, vec![(2_001, 5_001), block(10_001), block(8_001), block(6_001)]),
            (5_001, vec![(2_001, 7_001), block(10_001), block(8_001)]),
            (11_001, vec![(10_001, 12_001), (2_001, 7_001), block(8_001)]),
        ] {
            s.send(Seg { timestamps: echo, ..thousand(sent) });
            s.expect(seg(ACK, 1, 1).sack(&blocks[..blocks.len().min(most)]));
            s.expect_nothing();
        }
        s.send(Seg { timestamps: echo, ..thousand(1_001) });
        s.expect(seg(ACK, 1, 1).sack(&[(1_001, 7_001), (10_001, 12_001), block(8_001)]));
        s.send(Seg { timestamps: echo, ..thousand(1) });
        s.expect(seg(ACK, 1, 7_001).sack(&[(10_001, 12_001), block(8_001)]));
        s.send(Seg { timestamps: echo, ..thousand(7_001) });
        s.expect(seg(ACK, 1, 9_001).sack(&[(10_001, 12_001)]));
        s.send(Seg { timestamps: echo, ..thousand(9_001) });
        s.expect(seg(ACK, 1, 12_001).sack(&[]));
        assert_eq!(s.read(conn).len(), 12_000);
        s.assert_nothing_leaked();
    }
}

/// RFC 2018, section 4: each segment of a burst has an acknowledgement that begins with its own block.
#[test]
fn rfc2018_4_each_segment_of_a_burst_is_told_of_first_once() {
    let (mut s, _) = open(Version::V4);
    let frames: Vec<_> = (1..=6).map(|n| s.frame_from(s.remote, thousand(1 + 2_000 * n))).collect();
    s.exchange(frames, |_| {});
    let told = answers(&mut s);
    let first: Vec<u32> = told.iter().map(|ack| ack.sack.as_ref().expect("there are blocks")[0].0).collect();
    assert_eq!(first, [2_001, 4_001, 6_001, 8_001, 10_001, 12_001], "{told:?}");
    assert!(told.iter().all(|ack| ack.ack == 1));
}

/// RFC 2018, section 4: where the peer does not understand blocks it gets none.
#[test]
fn rfc2018_4_nothing_is_told_to_who_does_not_ask() {
    let (mut s, _) = Script::open(Version::V4);
    for sent in [2_001, 4_001, 2_001] {
        s.send(thousand(sent));
        s.expect(seg(ACK, 1, 1).sack(&[]));
    }
    s.send(thousand(1));
    s.expect(seg(ACK, 1, 1_001).sack(&[]));
    s.send(thousand(1));
    s.expect(seg(ACK, 1, 1_001).sack(&[]));
}

/// RFC 2018, section 4: payload that goes the other way takes the blocks along if it leaves room for them. No segment is
/// longer for them than the path takes.
#[test]
fn rfc2018_4_payload_takes_the_blocks_along_as_far_as_they_have_room() {
    let (mut s, conn) = open(Version::V4);
    s.send(thousand(2_001));
    s.expect(seg(ACK, 1, 1).sack(&[(2_001, 3_001)]));
    for (len, blocks) in [(100, 1), (988, 1), (989, 0), (1_000, 0)] {
        let seq = s.stack.endpoint().counters().payload_out_bytes as u32 + 1;
        assert_eq!(s.write(conn, &vec![7; len]), Ok(()));
        s.expect(data(seq, 1, &vec![7; len]).sack(&[(2_001, 3_001)][..blocks]));
        s.send(seg(ACK, 1, seq + len as u32));
    }
}

/// RFC 2883, section 4: what came again is told of once, in the first block; what is beyond holes follows.
#[test]
fn rfc2883_4_duplicates_are_told_of_once() {
    for version in BOTH_VERSIONS {
        let (mut s, _) = open(version);
        for sent in [1, 1_001] {
            s.send(thousand(sent));
        }
        s.advance(Duration::from_millis(50));
        answers(&mut s);
        // Section 4.1: delivered already, wholly or in part; without holes and with one.
        s.send(thousand(1));
        s.expect(seg(ACK, 1, 2_001).sack(&[(1, 1_001)]));
        s.send(thousand(1_501));
        s.expect(seg(ACK, 1, 2_501).sack(&[(1_501, 2_001)]));
        s.send(thousand(4_001));
        s.expect(seg(ACK, 1, 2_501).sack(&[(4_001, 5_001)]));
        s.send(thousand(1_001));
        s.expect(seg(ACK, 1, 2_501).sack(&[(1_001, 2_001), (4_001, 5_001)]));
        // Once.
        s.send(thousand(7_001));
        s.expect(seg(ACK, 1, 2_501).sack(&[(7_001, 8_001), (4_001, 5_001)]));
        // Section 4.2: beyond the hole, wholly and in part, with the block that it is part of.
        s.send(thousand(4_001));
        s.expect(seg(ACK, 1, 2_501).sack(&[(4_001, 5_001), (4_001, 5_001), (7_001, 8_001)]));
        s.send(thousand(4_501));
        s.expect(seg(ACK, 1, 2_501).sack(&[(4_501, 5_001), (4_001, 5_501), (7_001, 8_001)]));
        s.send(thousand(3_501));
        s.expect(seg(ACK, 1, 2_501).sack(&[(4_001, 4_501), (3_501, 5_501), (7_001, 8_001)]));
        // What fills the hole and more.
        s.send(data(2_501, 1, &[7; 1_400]));
        s.expect(seg(ACK, 1, 5_501).sack(&[(3_501, 3_901), (7_001, 8_001)]));
        s.send(thousand(5_501));
        s.advance(Duration::from_millis(50));
        s.expect(seg(ACK, 1, 6_501).sack(&[(7_001, 8_001)]));
    }
}

/// RFC 2883, section 4: several in one burst are told of each, those that follow each other as one.
#[test]
fn rfc2883_4_each_duplicate_of_a_burst_is_told_of() {
    let (mut s, conn) = open(Version::V4);
    for n in 0..8 {
        s.send(thousand(1 + 1_000 * n));
    }
    s.advance(Duration::from_millis(50));
    answers(&mut s);
    let again: Vec<_> =
        [1, 1_001, 5_001, 3_001].map(|sent| s.frame_from(s.remote, thousand(sent))).into_iter().collect();
    s.exchange(again, |_| {});
    for block in [(1, 2_001), (5_001, 6_001), (3_001, 4_001)] {
        s.expect(seg(ACK, 1, 8_001).sack(&[block]));
    }
    s.expect_nothing();
    // Payload of full length has no room, so that an acknowledgement of its own follows.
    let again = s.frame_from(s.remote, thousand(1));
    stack::net::Net::send(&mut s.stack, conn, &[7; 1_000]).expect("there is room");
    s.inject(again);
    s.expect(data(1, 8_001, &[7; 1_000]).sack(&[]));
    s.expect(seg(ACK, 1_001, 8_001).sack(&[(1, 1_001)]));
    s.expect_nothing();
}

/// RFC 2883, section 4: a copy with a timestamp from before is dropped as old, and told of all the same.
#[test]
fn rfc2883_4_a_copy_that_is_late_is_told_of() {
    let mut s = Script::listening(Version::V4);
    s.open_with(seg(SYN, 0, 0).mss(1_000).ts(500, 0).sack_permitted(true));
    let echo = s.stack_timestamp();
    s.send(data(1, 1, b"once").ts(500, echo));
    s.advance(Duration::from_millis(50));
    s.send(data(5, 1, b"more").ts(510, echo));
    s.advance(Duration::from_millis(50));
    answers(&mut s);
    s.send(data(1, 1, b"once").ts(500, echo));
    s.expect(seg(ACK, 1, 9).sack(&[(1, 5)]));
}

/// What a cookie has agreed on holds.
#[test]
fn rfc2018_2_a_connection_from_a_cookie_tells_of_blocks_if_asked() {
    for timestamps in [None, Some((500, 0))] {
        for offered in [true, false] {
            let mut s = Script::with_config(Version::V4, Config { syn_queue: 1, ..config(1) });
            s.listen();
            s.remote.at.set_port(1);
            s.send(seg(SYN, 0, 0).mss(1_000));
            s.expect(seg(SYN | ACK, 0, 1));
            s.remote.at.set_port(2);
            s.send(Seg { timestamps, ..seg(SYN, 0, 0).mss(1_000).sack_permitted(offered) });
            let answer = s.expect(seg(SYN | ACK, 0, 1).sack_permitted(offered));
            let echo = timestamps.zip(answer.timestamps).map(|((value, _), (clock, _))| (value, clock));
            s.send(Seg { timestamps: echo, ..seg(ACK, 1, 1) });
            assert!(matches!(s.event(), Some(Event::Opened { .. })));
            assert_eq!(s.stack.endpoint().counters().syn_cookies_accepted, 1);
            s.send(Seg { timestamps: echo, ..data(2_001, 1, &[7; 988]) });
            let blocks = if offered { vec![(2_001, 2_989)] } else { vec![] };
            s.expect(seg(ACK, 1, 1).sack(&blocks));
        }
    }
}

/// Which bytes of a stream are where, as the peer should see it.
struct Model {
    here: Vec<bool>,
    in_order: usize,
}

impl Model {
    fn new(bytes: u64) -> Self {
        Self { here: vec![false; bytes as usize], in_order: 0 }
    }

    fn arrive(&mut self, from: u64, to: u64) {
        self.here[from as usize..to as usize].fill(true);
        self.in_order += self.here[self.in_order..].iter().take_while(|&&is_here| is_here).count();
    }

    /// The whole run around a byte, as it stands in a block.
    fn run_around(&self, at: usize) -> (u32, u32) {
        let begin = self.here[..at].iter().rposition(|&is_here| !is_here).map_or(0, |hole| hole + 1);
        let len = self.here[begin..].iter().take_while(|&&is_here| is_here).count();
        (1 + begin as u32, 1 + (begin + len) as u32)
    }

    fn runs_beyond(&self) -> Vec<(u32, u32)> {
        let mut at = 1 + self.in_order as u32;
        let mut runs = vec![];
        for run in self.here[self.in_order..].chunk_by(|a, b| a == b) {
            let from = at;
            at += run.len() as u32;
            if run[0] {
                runs.push((from, at));
            }
        }
        runs
    }
}

/// Segments in any order that overlap in any way: what is told is what is here, from the newest on, and as many runs as
/// have room, each once.
#[test]
fn blocks_tell_the_truth_in_any_order_of_overlapping_segments() {
    for_each_seed(12, |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut s = Script::listening(Version::V4);
        let timestamps = rng.random::<bool>().then_some((500, 0));
        let syn = seg(SYN, 0, 0).mss(1_400).sack_permitted(true);
        let conn = s.open_with(Seg { timestamps, ..syn });
        let echo = timestamps.map(|_| (500, s.stack_timestamp()));
        let most = if timestamps.is_some() { 3 } else { 4 };
        let longest = [8, 70, 300, 1_380][seed as usize % 4];
        let stream = Stream { number: seed, bytes: 30 * longest };
        let mut model = Model::new(stream.bytes);
        let mut read = vec![];
        for n in 0..200 {
            let from = rng.random_range(0..stream.bytes);
            // From beyond the first hole, most of the time.
            let from = if n < 130 && rng.random_bool(0.9) { from.max(longest) } else { from };
            let to = (from + rng.random_range(1..=longest)).min(stream.bytes);
            let known = (from..to).map(|at| model.here[at as usize]).collect::<Vec<_>>();
            model.arrive(from, to);
            s.send(Seg { timestamps: echo, ..part(&stream, from, to) });
            s.advance(Duration::from_millis(50));
            let ack = answers(&mut s).into_iter().next().expect("each segment is acknowledged");
            let context = format!("segment {n}, {from}..{to}: {ack:?}");
            assert_eq!(ack.ack as usize, 1 + model.in_order, "{context}");
            let mut blocks = ack.sack.expect("a segment that came has blocks, be it none");
            let mut room = most;
            if let Some(begin) = known.iter().position(|&is_known| is_known) {
                let len = known[begin..].iter().take_while(|&&is_known| is_known).count();
                let begin = 1 + from as u32 + begin as u32;
                assert_eq!(blocks.remove(0), (begin, begin + len as u32), "{context}");
                room -= 1;
            }
            let runs = model.runs_beyond();
            if from as usize > model.in_order {
                assert_eq!(blocks.first(), Some(&model.run_around(from as usize)), "{context}");
            }
            assert!(blocks.iter().all(|block| runs.contains(block)), "{context}, not {runs:?}");
            assert_eq!(blocks.len(), runs.len().min(room), "{context}, of {runs:?}");
            blocks.sort_unstable();
            blocks.dedup();
            assert_eq!(blocks.len(), runs.len().min(room), "{context}: one is told of twice");
            if n % 7 == 0 {
                read.extend(s.read(conn));
                answers(&mut s);
            }
        }
        read.extend(s.read(conn));
        stream.check(0, &read);
        assert_eq!(read.len(), model.in_order);
        s.abort(conn);
        s.assert_nothing_leaked();
    });
}

/// RFC 2018, section 8: what was told of is kept until it is delivered, however short buffers are. The peers here send
/// nothing again that they were told has come.
#[test]
fn rfc2018_8_what_was_told_of_is_never_thrown_away() {
    for_each_seed(9, |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rx_buffers = [3, 8, 4_096][seed as usize % 3];
        let mut s = Script::with_buffers(Version::V4, Config { rx_buffers, ..config(1) }, 140);
        s.listen();
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).sack_permitted(true));
        let stream = Stream { number: seed, bytes: 100_000 };
        let (mut model, mut read) = (Model::new(stream.bytes), vec![]);
        // What others have of the buffers.
        let mut taken = vec![];
        let mut rounds = 0;
        while model.in_order < stream.bytes as usize {
            rounds += 1;
            assert!(rounds < 20_000, "it does not go on");
            if rng.random_bool(0.1) {
                taken.truncate(rng.random_range(0..=taken.len()));
                let most = rng.random_range(0..140);
                taken.extend(std::iter::from_fn(|| s.stack.arena().take()).take(most));
                s.settle();
            }
            // The hole at the front, or whatever else is not there.
            let ahead = if rng.random_bool(0.2) { 0 } else { rng.random_range(0..30_000) };
            let missing = model.here.iter().skip(model.in_order + ahead).position(|&is_here| !is_here);
            let Some(from) = missing.map(|step| model.in_order + ahead + step) else { continue };
            let longest = rng.random_range(1..=1_000);
            let to = from + model.here[from..].iter().take(longest).take_while(|&&is_here| !is_here).count();
            s.send(part(&stream, from as u64, to as u64));
            s.advance(Duration::from_millis(50));
            for ack in answers(&mut s) {
                let here = ack.sack.unwrap_or_default().into_iter().chain([(1, ack.ack)]);
                here.for_each(|(from, to)| model.arrive(u64::from(from) - 1, u64::from(to) - 1));
                assert_eq!(ack.ack as usize, 1 + model.in_order);
            }
            // A slow reader.
            if rng.random_bool(0.2) {
                read.extend(s.read(conn));
            }
        }
        read.extend(s.read(conn));
        assert_eq!(read.len() as u64, stream.bytes);
        stream.check(0, &read);
        drop(taken);
        assert!(s.stack.endpoint().counters().drops.no_buffer > 0, "buffers were never short");
        s.abort(conn);
        s.assert_nothing_leaked();
    });
}

/// What overlaps with other bytes: those that were told of stay.
#[test]
fn bytes_that_were_told_of_do_not_change() {
    let (mut s, conn) = open(Version::V4);
    s.send(data(5, 1, b"efgh"));
    s.send(data(3, 1, b"XXXXXXXXXX"));
    s.expect(seg(ACK, 1, 1).sack(&[(5, 9)]));
    s.expect(seg(ACK, 1, 1).sack(&[(5, 9), (3, 13)]));
    s.send(data(1, 1, b"ab"));
    s.expect(seg(ACK, 1, 13).sack(&[]));
    assert_eq!(s.read(conn), b"abXXefghXXXX");
    s.send(seg(FIN | ACK, 13, 1));
    s.expect(seg(ACK, 1, 14).sack(&[]));
    s.assert_nothing_leaked();
}

/// RFC 2018, section 3: up to four blocks, of anything, take nothing from what else a segment says.
#[test]
fn rfc2018_3_a_segment_with_blocks_acknowledges_as_any() {
    let mut s = Script::listening(Version::V4);
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).sack_permitted(true));
    for count in 0..=4 {
        let seq = 1 + 5 * count;
        assert_eq!(s.write(conn, b"hello"), Ok(()));
        s.expect(data(seq, 1, b"hello"));
        let blocks: Vec<_> = (0..count).map(|n| (n * 7_777, u32::MAX / (n + 1))).collect();
        s.send(seg(ACK, 1, seq + 5).sack(&blocks));
    }
    s.advance(Duration::from_secs(3));
    s.expect_nothing();
}
