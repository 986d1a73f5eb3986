//! What is kept of a store's records: the oldest beyond it are trimmed, and never one within it.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Lab, body, request};
use pmem::{Options, Region};
use pmlog::service::{Exchange, LogService, Retain, ServiceConfig, WallClock};
use stack::net::Service as _;
use stack::time::Instant;

const START_S: u32 = 1_700_000_000;

/// A clock that the test sets.
#[derive(Clone)]
struct Clock(Arc<AtomicU32>);

impl Clock {
    fn new() -> Self {
        Self(Arc::new(START_S.into()))
    }

    fn advance(&self, seconds: u32) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }

    fn config(&self, bounds: &[&str]) -> ServiceConfig {
        let bounds: Vec<_> = bounds.iter().map(|bound| bound.parse().expect("a bound")).collect();
        let clock = self.clone();
        ServiceConfig {
            retain: Retain::of(&bounds).expect("one of each kind"),
            wall: WallClock::of(move || clock.0.load(Ordering::Relaxed)),
            ..ServiceConfig::default()
        }
    }
}

/// A second passes, and the server's loop turns until there is nothing more to be trimmed.
fn turn(lab: &mut Lab) {
    lab.advance(Duration::from_secs(1));
    while lab.service.between_bursts(lab.now, &mut lab.wire, &mut lab.shard) {}
}

fn kept(lab: &Lab) -> Vec<u64> {
    lab.shard.records(0).map(|info| info.seq).collect()
}

#[test]
fn so_many_of_the_newest_records_stay() {
    let clock = Clock::new();
    let mut lab = Lab::new(16 << 20, clock.config(&["10"]));
    let conn = lab.connect();
    let mut seqs: Vec<u64> = Vec::new();
    for round in 0..4 {
        for number in 0..7 {
            seqs.push(lab.append(conn, &body(number, [5, 700, 9000][number as usize % 3])));
        }
        turn(&mut lab);
        assert_eq!(kept(&lab), seqs[seqs.len().saturating_sub(10)..], "round {round}");
    }
    let health = lab.ask(conn, &request("GET", "/health")).json();
    assert_eq!((&health["retain"], &health["records"]), (&"10 records".into(), &10.into()));
    assert_eq!(health["trimmed_records"], 18);
    assert!(health["held_bytes"].as_u64() > health["live_bytes"].as_u64(), "{health}");
    let bytes: u64 = lab.shard.records(0).map(|info| info.len).sum();
    assert_eq!(health["live_bytes"], bytes);
}

#[test]
fn so_many_bytes_of_the_newest_records_stay() {
    let clock = Clock::new();
    let mut lab = Lab::new(16 << 20, clock.config(&["50kB"]));
    let conn = lab.connect();
    let mut all = Vec::new();
    for number in 0..60_u64 {
        let len = [3000, 20, 900, 7000][number as usize % 4];
        all.push((lab.append(conn, &body(number, len)), len));
        if number % 5 == 0 {
            turn(&mut lab);
            let mut left = 50_000;
            let within: Vec<u64> = all
                .iter()
                .rev()
                .take_while(|(_, len)| {
                    let fits = *len <= left;
                    left -= (*len).min(left);
                    fits
                })
                .map(|(seq, _)| *seq)
                .collect();
            let kept = kept(&lab);
            assert!(within.iter().all(|seq| kept.contains(seq)), "a record within the bound is gone");
            assert!(kept.len() <= within.len() + 1, "{} records are kept of {}", kept.len(), within.len());
        }
    }
    assert!(lab.shard.head_seq() > 1);
}

#[test]
fn records_stay_until_they_are_of_an_age() {
    let clock = Clock::new();
    let mut lab = Lab::new(16 << 20, clock.config(&["1h", "1000000"]));
    let conn = lab.connect();
    // Of a time that nobody knew: they are as old as the next one at least.
    let unknown = [lab.append(conn, b"unknown"), lab.append(conn, b"unknown")];
    turn(&mut lab);
    let mut seqs = Vec::new();
    for minute in 0..10 {
        seqs.push(lab.append(conn, &body(minute, 40)));
        clock.advance(600);
        turn(&mut lab);
        let now = 600 * (minute as usize + 1);
        let first =
            seqs.iter().enumerate().find(|(place, _)| now - 600 * place <= 3600).expect("the last one").0;
        let mut expected = seqs[first..].to_vec();
        if first == 0 {
            expected.splice(..0, unknown);
        }
        assert_eq!(kept(&lab), expected, "after {now} seconds");
    }
    assert!(kept(&lab).len() < 8);
    // A clock that is set back takes nothing away.
    clock.0.store(START_S - 1_000_000, Ordering::Relaxed);
    let before = kept(&lab);
    turn(&mut lab);
    assert_eq!(kept(&lab), before);
    clock.0.store(START_S + 1_000_000, Ordering::Relaxed);
    turn(&mut lab);
    assert!(kept(&lab).is_empty());
}

#[test]
fn no_turn_takes_long_and_all_together_are_enough() {
    let clock = Clock::new();
    let mut lab = Lab::new(32 << 20, clock.config(&["100"]));
    for number in 0..5000_u32 {
        let _pending = lab.shard.append_copy(&number.to_le_bytes()).expect("there is room");
    }
    lab.commit();
    let mut turns = 0;
    let mut before = lab.shard.head_seq();
    while lab.service.between_bursts(lab.now, &mut lab.wire, &mut lab.shard) {
        assert!(lab.shard.head_seq() - before <= 1024, "{before} to {}", lab.shard.head_seq());
        before = lab.shard.head_seq();
        turns += 1;
    }
    assert_eq!((kept(&lab).len(), turns >= 5), (100, true), "{turns} turns");
}

/// The bound is the store's: the oldest go, whichever shard they are in, and none of a shard because others have many.
#[test]
fn of_several_shards_the_oldest_records_go() {
    let clock = Clock::new();
    let options = Options { shards_if_new: Some(3), ..Options::default() };
    let region = Region::over(pmem::LineModel::new(8 << 20), &options).expect("a store");
    // The first core has two of the shards.
    let exchange = Exchange::new(3, 2);
    let mut shards: Vec<_> =
        region.into_seeds().into_iter().map(|seed| seed.open().expect("it opens")).collect();
    exchange.publish((0..).zip(&shards));
    let third = shards.pop().expect("three");
    let now = Instant::from_secs(1000);
    let mut labs: Vec<Lab> = Vec::new();
    for (core, (shard, archive)) in shards.into_iter().zip([vec![(2, third)], vec![]]).enumerate() {
        let mut lab = Lab::over(shard, ServiceConfig::default());
        lab.service = LogService::among(clock.config(&["20"]), exchange.clone(), core, archive, now);
        lab.now = now;
        labs.push(lab);
    }
    let conns = [labs[0].connect(), labs[1].connect()];
    let mut all = Vec::new();
    // Most at the second core, by and by.
    for number in 0..100_usize {
        let core = usize::from(number % 10 != 3);
        clock.advance(60);
        labs.iter_mut().for_each(turn);
        all.push((core, labs[core].append(conns[core], &body(number as u64, 50))));
        labs.iter_mut().rev().for_each(turn);
        labs.iter_mut().for_each(turn);
        let kept = [kept(&labs[0]), kept(&labs[1])];
        let expected = [0, 1].map(|core| {
            let newest = &all[all.len().saturating_sub(20)..];
            newest.iter().filter(|(of, _)| *of == core).map(|(_, seq)| *seq).collect::<Vec<_>>()
        });
        assert_eq!(kept, expected, "after {number}");
    }
}
