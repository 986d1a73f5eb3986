//! What opening a store reads, and what it leaves to be read later.

mod common;

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use common::{contents, open, payload, rot, store, tiny};
use pmem::{EntryFault, LineModel, Lookup, Options, Shard, Watch};

const REGION_BYTES: usize = 1 << 20;
const ENTRY_BYTES: usize = 64;

/// Numbers and bytes of records.
type Records = Vec<(u64, Vec<u8>)>;

/// A model with so many records of 600 bytes, whose process was killed, and where their bytes lie.
fn killed(records: u64, options: &Options) -> (Arc<LineModel>, Records, Vec<usize>) {
    let model = LineModel::new(REGION_BYTES);
    let mut shard = open(&model, options);
    let expected: Vec<_> = (0..records)
        .map(|number| {
            let bytes = payload(number, 600);
            (store(&mut shard, &bytes, 1448), bytes)
        })
        .collect();
    let base = model_base(&model);
    let place = |seq: &u64| match shard.record(*seq).unwrap().pieces().next().unwrap() {
        pmem::Piece::Extent(extent) => extent.bytes().as_ptr().addr() - base,
        pmem::Piece::Inline(..) => unreachable!("they are longer"),
    };
    let places = expected.iter().map(|(seq, _)| place(seq)).collect();
    drop(shard);
    (model, expected, places)
}

fn model_base(model: &LineModel) -> usize {
    pmem::Medium::base(model).as_ptr().addr()
}

/// Where the log of the only shard begins.
fn log_offset(model: &Arc<LineModel>) -> usize {
    let medium: Arc<dyn pmem::Medium> = model.clone();
    pmem::Region::over(medium, &Options::default()).unwrap().info().geometry.log_offset as usize
}

fn trusting() -> Options {
    Options { trust_durable: true, ..tiny() }
}

/// Scrubs all that there is, some bytes at a time; what was found.
fn scrub_all(shard: &mut Shard, step: u64) -> Vec<(u64, EntryFault)> {
    let mut found = Vec::new();
    while !shard.is_scrubbed() {
        let done = shard.scrub(step);
        assert!(done.bytes < step + 1448 + 64, "a step of {step} has read {}", done.bytes);
        found.extend(done.damage.map(|damage| (damage.seq, damage.fault)));
    }
    found
}

#[test]
fn what_is_known_to_be_durable_is_not_read_when_the_store_is_opened_but_by_the_scrub() {
    let (model, expected, places) = killed(40, &tiny());
    for damaged in [3, 17] {
        rot(&model, places[damaged] + 100, 1);
    }
    for step in [1, 1000, u64::MAX / 2] {
        let mut shard = open(&model, &trusting());
        assert_eq!(shard.recovery().records, 40, "nobody has looked");
        assert_eq!(shard.quarantine_counts(), (0, 0));
        let seq = |damaged: usize| expected[damaged].0;
        let found = scrub_all(&mut shard, step);
        assert_eq!(found, [(seq(3), EntryFault::Payload), (seq(17), EntryFault::Payload)]);
        assert!(matches!(shard.lookup(seq(3)), Lookup::Quarantined(_)));
        let mut sound = expected.clone();
        sound.remove(17);
        sound.remove(3);
        assert_eq!(contents(&shard), sound);
        assert_eq!(shard.counters().live_records, 38);
        assert_eq!(shard.scrub(1000), pmem::Scrubbed::default(), "it is done once");
    }
    let shard = open(&model, &tiny());
    assert_eq!(shard.quarantine_counts(), (2, 2), "read whole, it is found at once");
    assert!(shard.is_scrubbed());
}

#[test]
fn records_of_the_last_commit_are_read_when_the_store_is_opened_whoever_trusts_the_others() {
    let (model, expected, places) = killed(40, &tiny());
    // No entry behind it vouches for it, and it lies beyond what the header vouches for.
    rot(&model, places[39], 1);
    let shard = open(&model, &trusting());
    assert_eq!(contents(&shard), expected[..39], "an append that a power cut came into");
    assert_eq!(shard.recovery().torn.map(|torn| torn.fault), Some(EntryFault::Payload));
}

#[test]
fn damage_before_a_checkpoint_ends_no_log_though_only_entries_behind_it_are_looked_through() {
    for options in [tiny(), trusting()] {
        let (model, expected, _) = killed(50, &options);
        let log = log_offset(&model);
        for damaged in [10, 30, 45] {
            rot(&model, log + expected[damaged].0 as usize % 64 * ENTRY_BYTES + 30, 1);
        }
        let shard = open(&model, &options);
        let mut sound = expected.clone();
        [45, 30, 10].into_iter().for_each(|damaged| drop(sound.remove(damaged)));
        assert_eq!(contents(&shard), sound);
        assert_eq!(shard.quarantine_counts(), (3, 3));
    }
}

#[test]
fn scrubbing_goes_round_what_is_trimmed_meanwhile() {
    let (model, expected, places) = killed(40, &tiny());
    rot(&model, places[5], 1);
    rot(&model, places[30], 1);
    let mut shard = open(&model, &trusting());
    shard.scrub(700);
    shard.trim(expected[20].0).unwrap();
    store(&mut shard, b"new", 1448);
    assert_eq!(scrub_all(&mut shard, 700), [(expected[30].0, EntryFault::Payload)]);
}

#[test]
fn an_opening_that_trusts_reads_entries_and_no_payload() {
    let records = 40_000;
    let medium = LineModel::new(96 << 20);
    let options = Options { checkpoint_entries: 4096, buffer_bytes: Some(1024), ..Options::default() };
    let mut shard = open(&medium, &options);
    for _ in 0..records {
        let _ = shard.append_copy(&[7; 800]).unwrap();
        shard.commit().unwrap();
    }
    drop(shard);
    let read_by = |trust_durable| {
        let read = Arc::new(AtomicU64::new(0));
        let seen = read.clone();
        let watch = Watch::new(move |step| {
            seen.fetch_max(step.done_bytes, Ordering::Relaxed);
            ControlFlow::Continue(())
        });
        let shard = open(&medium, &Options { trust_durable, watch, ..options.clone() });
        assert_eq!(shard.recovery().records, records);
        read.load(Ordering::Relaxed)
    };
    // It is told in steps of a MiB.
    let entries = (records + 4096) * 64;
    let read = read_by(true);
    assert!(
        (entries - (1 << 20)..=entries + (1 << 20)).contains(&read),
        "{read} bytes for {entries} of entries"
    );
    assert!(read_by(false) > records * 800);
}
