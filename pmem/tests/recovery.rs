//! Logs that were cut off or changed: recovery gives all records that are whole, says which are not, and never panics.

mod common;

use std::{io::Write, path::Path, sync::Arc};

use common::{append, contents, open, payload, rng, store, tiny};
use pmem::{
    Corruption, EntryFault, Geometry, LineModel, Lookup, MAX_NAMED, OpenError, Options, Region, Shard,
    Snapshot, SnapshotEvent,
};
use proptest::prelude::*;
use rand::Rng;

/// What a list of records is.
type Records = Vec<(u64, Vec<u8>)>;

/// A store of records of many kinds. The last one was appended and flushed, but its commit is not known to
/// anything behind it.
fn sample() -> (Vec<u8>, Geometry, Records) {
    let model = LineModel::new(96 << 10);
    let geometry = Region::over(model.clone(), &tiny()).unwrap().info().geometry;
    let mut shard = open(&model, &tiny());
    for (seed, len) in [5, 900, 0, 300, 3000, 40, 6000].into_iter().enumerate() {
        store(&mut shard, &payload(seed as u64, len), 700);
    }
    shard.trim(3).unwrap();
    drop(shard);
    let mut shard = open(&model, &tiny());
    for (seed, len) in [100, 2000, 32, 4000].into_iter().enumerate() {
        store(&mut shard, &payload(100 + seed as u64, len), 700);
    }
    let records = contents(&shard);
    (model.crash(|| 2), geometry, records)
}

fn boot(image: Vec<u8>) -> Result<Shard, OpenError> {
    Region::over(LineModel::from_image(image), &tiny())?.into_shard()
}

/// What became of a store's records.
#[derive(Default, Debug)]
struct Fate {
    /// Numbers of records that were passed over as damaged, and cut off as an append without its end.
    quarantined: Vec<u64>,
    cut: Vec<u64>,
    /// Whether opening the store said that it had no proper end.
    is_torn: bool,
}

/// Opens `image`, and checks that each record is served with its bytes, or known to be damaged, or cut off behind the last
/// one; and that the store then goes on, gives none of these numbers again, and loses no buffer for good.
fn fate(image: Vec<u8>, records: &Records, what: &str) -> Fate {
    let model = LineModel::from_image(image);
    let shard = open(&model, &tiny());
    let found = contents(&shard);
    assert!(found.iter().all(|record| records.contains(record)), "{what}: {found:?}");
    let mut fate = Fate::default();
    for (seq, _) in records.iter().filter(|record| !found.contains(record)) {
        match shard.lookup(*seq) {
            Lookup::Quarantined(_) => fate.quarantined.push(*seq),
            Lookup::NotYet if *seq >= shard.next_seq() => fate.cut.push(*seq),
            other => panic!("{what}: record {seq} is neither served nor damaged: {other:?}"),
        }
    }
    let (runs, entries) = shard.quarantine_counts();
    assert_eq!(runs == 0, fate.quarantined.is_empty(), "{what}");
    assert!(runs <= entries && shard.recovery().quarantined == runs, "{what}");
    assert_eq!(shard.recovery().records, found.len() as u64, "{what}");
    fate.is_torn = shard.recovery().torn.is_some();
    goes_on(&model, shard, found, what);
    fate
}

fn goes_on(model: &Arc<LineModel>, mut shard: Shard, found: Records, what: &str) {
    let quarantines = shard.quarantines().to_vec();
    let next = store(&mut shard, &payload(999, 900), 700);
    let expected = [found, vec![(next, payload(999, 900))]].concat();
    assert_eq!(contents(&shard), expected, "{what}");
    drop(shard);
    let mut shard = open(model, &tiny());
    assert_eq!(contents(&shard), expected, "{what}: opened again");
    assert_eq!(shard.quarantines(), quarantines, "{what}: opened again");
    shard.trim(u64::MAX).unwrap();
    assert_eq!((contents(&shard), shard.quarantine_counts()), (vec![], (0, 0)), "{what}");
    drop(shard);
    let shard = open(model, &tiny());
    assert_eq!(shard.arena().free_buffers(), shard.arena().buffers(), "{what}: a buffer is lost");
    assert_eq!(shard.recovery().header_damage, None, "{what}: the header was repaired");
}

/// Which record a log entry of the sample belongs to.
fn owner(records: &Records, next: u64, entry: u64) -> Option<u64> {
    let seq = records.iter().map(|(seq, _)| *seq).rfind(|seq| *seq <= entry)?;
    (entry < next).then_some(seq)
}

#[test]
fn every_byte_flipped_in_the_log_costs_the_record_that_it_is_of_at_most() {
    let (image, geometry, records) = sample();
    let next = boot(image.clone()).unwrap().next_seq();
    let last = records.last().unwrap().0;
    let slots = geometry.log_offset as usize..geometry.log_offset as usize + 24 * 64;
    let (mut cut, mut quarantined, mut unharmed) = (0, 0, 0);
    for at in slots {
        let entry = (at as u64 - geometry.log_offset) / 64;
        for bits in [0x01, 0x80] {
            let mut image = image.clone();
            image[at] ^= bits;
            let what = format!("byte {at}, of entry {entry}, with {bits:#x}");
            let fate = fate(image, &records, &what);
            let owner = owner(&records, next, entry);
            if !fate.cut.is_empty() {
                // Only the last commit has nothing behind it that says it was durable.
                assert_eq!((&fate.cut[..], Some(last)), (&[last][..], owner), "{what}");
                assert!(fate.is_torn, "{what}: nobody was told");
                cut += 1;
            } else if !fate.quarantined.is_empty() {
                assert_eq!(fate.quarantined, [owner.unwrap()], "{what}");
                quarantined += 1;
            } else {
                assert_eq!(owner, None, "{what}: a flipped bit was not noticed");
                unharmed += 1;
            }
        }
    }
    println!("{cut} cut, {quarantined} quarantined, {unharmed} unharmed");
    assert!(cut > 0 && quarantined > 0 && unharmed > 0);
}

#[test]
fn every_byte_flipped_in_either_copy_of_the_header_costs_nothing_and_is_said() {
    let (image, geometry, records) = sample();
    for (copy, at) in header_bytes(&geometry) {
        let mut image = image.clone();
        image[at] ^= 1 << (at % 8);
        let shard = boot(image.clone()).unwrap();
        let damage = shard.recovery().header_damage.unwrap();
        assert_eq!((usize::from(damage.copy), damage.may_be_newer), (copy, false));
        drop(shard);
        let fate = fate(image, &records, &format!("byte {at}"));
        assert!(fate.cut.is_empty() && fate.quarantined.is_empty(), "byte {at}: {fate:?}");
    }
}

/// Where the bytes of both copies of the header are, with the copy's number.
fn header_bytes(geometry: &Geometry) -> impl Iterator<Item = (usize, usize)> + use<> {
    let copies = geometry.headers_of(0).into_iter().enumerate();
    copies.flat_map(|(copy, from)| (from..from + 256).map(move |at| (copy, at)))
}

/// No block of a disk, and nothing smaller, holds both copies of anything: each is lost in turn, whatever it reads as then.
#[test]
fn a_block_of_superblock_or_header_that_is_lost_costs_nothing() {
    let (image, geometry, records) = sample();
    let blocks: Vec<_> =
        [geometry.superblocks(), geometry.headers_of(0)].concat().iter().map(|at| at / 4096 * 4096).collect();
    for (place, &block) in blocks.iter().enumerate() {
        assert!(blocks.iter().filter(|&&other| other == block).count() == 1, "{blocks:?}");
        for byte in [0x00, 0xff] {
            let mut image = image.clone();
            image[block..block + 4096].fill(byte);
            let what = format!("block at {block} with {byte:#x}");
            if place == 0 && byte != 0 {
                // It may be somebody's: it can be read, and is not written over.
                let dir = tempfile::tempdir().unwrap();
                assert_eq!(look(dir.path(), &image).unwrap().0.len(), records.len());
                assert!(matches!(boot(image.clone()), Err(OpenError::NotAStore { .. })), "{what}");
                continue;
            }
            let fate = fate(image, &records, &what);
            assert!(fate.cut.is_empty() && fate.quarantined.is_empty(), "{what}: {fate:?}");
        }
    }
    assert!(blocks[1] - blocks[0] > image.len() / 2 && blocks[3] - blocks[2] > image.len() / 2, "{blocks:?}");
}

/// The bytes of both copies are flipped one by one after each kind of write to them.
#[test]
fn what_was_acknowledged_depends_on_no_single_copy_of_the_header() {
    type Work = fn(&mut Shard);
    let works: [(&str, Work); 5] = [
        ("nothing", |_| {}),
        ("an append", |shard| _ = store(shard, &payload(50, 900), 700)),
        ("a trim", |shard| _ = shard.trim(4).unwrap()),
        ("a trim of all", |shard| _ = shard.trim(u64::MAX).unwrap()),
        ("a checkpoint", |shard| {
            store(shard, b"noted", 700);
            shard.checkpoint().unwrap();
        }),
    ];
    let (image, geometry, _) = sample();
    for (what, work) in works {
        for again in [false, true] {
            let model = LineModel::from_image(image.clone());
            let mut shard = open(&model, &tiny());
            work(&mut shard);
            let mut acknowledged = (shard.head_seq(), shard.next_seq(), contents(&shard));
            drop(shard);
            if again {
                let shard = open(&model, &tiny());
                acknowledged = (shard.head_seq(), shard.next_seq(), contents(&shard));
            }
            // Nothing but what was fenced.
            let image = model.crash(|| 0);
            for (_, at) in header_bytes(&geometry) {
                let mut image = image.clone();
                image[at] ^= 0x04;
                let shard = boot(image).unwrap();
                let found = (shard.head_seq(), shard.next_seq(), contents(&shard));
                assert!(
                    found == acknowledged,
                    "byte {at} after {what}: {found:?} instead of {acknowledged:?}"
                );
                assert!(shard.recovery().header_damage.is_some_and(|damage| !damage.may_be_newer));
            }
        }
    }
}

/// Stores of programs that wrote one copy at a time: the other is a generation older.
#[test]
fn a_store_with_copies_of_two_generations_is_opened_by_the_newer_and_says_what_a_lost_one_may_mean() {
    let model = LineModel::new(96 << 10);
    let geometry = Region::over(model.clone(), &tiny()).unwrap().info().geometry;
    let headers = geometry.headers_of(0);
    let mut shard = open(&model, &tiny());
    (0..8).for_each(|number| _ = store(&mut shard, format!("record {number}").as_bytes(), 700));
    let before = model.crash(|| 0);
    shard.trim(5).unwrap();
    let mut image = model.crash(|| 0);
    let seed = crc32c::crc32c_append(crc32c::crc32c(&image[16..32]), &0u32.to_le_bytes());
    let generation = |image: &[u8], copy: usize| image[headers[copy] + 8];
    let newer = usize::from(generation(&image, 0) % 2 == 1);
    image[headers[1 - newer]..][..256].copy_from_slice(&before[headers[1 - newer]..][..256]);
    // Neither says that there are always two.
    for copy in 0..2 {
        let header = &mut image[headers[copy]..][..256];
        header[40..44].fill(0);
        let crc = crc32c::crc32c_append(seed, &header[4..]);
        header[..4].copy_from_slice(&crc.to_le_bytes());
    }
    let shard = boot(image.clone()).unwrap();
    assert_eq!((shard.head_seq(), shard.recovery().header_damage), (5, None));
    drop(shard);
    for (copy, head) in [(newer, 1), (1 - newer, 5)] {
        let mut image = image.clone();
        image[headers[copy] + 24] ^= 1;
        let shard = boot(image).unwrap();
        assert_eq!(shard.head_seq(), head);
        let damage = shard.recovery().header_damage.unwrap();
        assert!(damage.may_be_newer && damage.to_string().contains("may be back"), "{damage}");
    }
}

#[test]
fn every_byte_of_payload_flipped_costs_one_record() {
    let (image, geometry, records) = sample();
    let arena = geometry.arena_offset as usize..image.len();
    let mut damaged = 0;
    for at in arena.step_by(13) {
        let mut image = image.clone();
        image[at] ^= 0x10;
        let fate = fate(image, &records, &format!("byte {at}"));
        assert!(fate.quarantined.len() + fate.cut.len() <= 1, "byte {at}: {fate:?}");
        damaged += fate.quarantined.len() + fate.cut.len();
    }
    assert!(damaged > 100, "{damaged}");
}

#[test]
fn the_log_cut_at_every_byte() {
    let (image, geometry, records) = sample();
    let log = geometry.log_offset as usize;
    let end = log + 64 * geometry.log_entries as usize;
    let mut all = Vec::new();
    for cut in log..log + 24 * 64 {
        let mut image = image.clone();
        image[cut..end].fill(0);
        let fate = fate(image, &records, &format!("cut at {cut}"));
        let whole = records.len() - fate.quarantined.len() - fate.cut.len();
        all.push((whole, fate.quarantined.len(), fate.cut.len()));
    }
    // Nothing that lies before the cut is lost, and the last is whole in the end.
    all.dedup();
    assert!(all.is_sorted_by_key(|(whole, ..)| *whole), "{all:?}");
    assert!(all.contains(&(records.len() - 1, 0, 1)) && all.contains(&(0, 5, 4)), "{all:?}");
    assert_eq!(all.last(), Some(&(records.len(), 0, 0)));
}

#[test]
fn a_checkpoint_makes_a_lost_tail_damage() {
    let model = LineModel::new(96 << 10);
    let geometry = Region::over(model.clone(), &tiny()).unwrap().info().geometry;
    let mut shard = open(&model, &tiny());
    let seq = store(&mut shard, &payload(1, 900), 700);
    let lost = |model: &LineModel| {
        let mut image = model.crash(|| 2);
        image[geometry.log_offset as usize + 64 * seq as usize..][..64].fill(0);
        boot(image).unwrap()
    };
    assert!(matches!(lost(&model).lookup(seq), Lookup::NotYet));
    shard.checkpoint().unwrap();
    let shard = lost(&model);
    let Lookup::Quarantined(damage) = shard.lookup(seq) else { panic!("{:?}", shard.lookup(seq)) };
    assert_eq!((damage.seq, damage.entries, damage.fault), (seq, 1, EntryFault::Unwritten));
    assert_eq!(shard.next_seq(), seq + 1, "its number is not given again");
}

#[test]
fn the_message_names_the_record_and_what_is_wrong() {
    let (mut image, geometry, records) = sample();
    let (seq, _) = records[1];
    image[geometry.log_offset as usize + 64 * seq as usize + 40] ^= 1;
    let text = boot(image).unwrap().quarantines()[0].to_string();
    assert!(text.contains(&format!("record {seq} is damaged")), "{text}");
    assert!(text.contains("checksum"), "{text}");
}

#[test]
fn a_store_full_of_damage_opens_and_can_be_emptied() {
    let options = Options { log_entries: Some(8192), ..tiny() };
    let model = LineModel::new(2 << 20);
    let mut shard = open(&model, &options);
    for number in 0..4000 {
        let _pending = append(&mut shard, &payload(number, 100), 700).unwrap();
    }
    shard.commit().unwrap();
    shard.checkpoint().unwrap();
    drop(shard);
    let geometry = Region::over(model.clone(), &options).unwrap().info().geometry;
    let mut image = model.crash(|| 2);
    // Every second record's payload, then every entry.
    let mut half = image.clone();
    for number in (0..4000).step_by(2) {
        let at = geometry.log_offset as usize + 64 * (number + 1) + 32;
        let name = u32::from_le_bytes(half[at..at + 4].try_into().unwrap()) as usize;
        let offset = u16::from_le_bytes(half[at + 4..at + 6].try_into().unwrap()) as usize;
        half[geometry.arena_offset as usize + 1024 * name + offset] ^= 1;
    }
    let mut shard = Region::over(LineModel::from_image(half), &options).unwrap().into_shard().unwrap();
    assert_eq!((shard.quarantine_counts(), shard.quarantines().len()), ((2000, 2000), MAX_NAMED));
    assert_eq!(shard.records(0).count(), 2000);
    assert!(shard.records(0).all(|info| info.seq % 2 == 0));
    assert!(matches!(shard.lookup(3999), Lookup::Quarantined(run) if run.fault == EntryFault::Unlisted));
    shard.trim(u64::MAX).unwrap();
    assert_eq!((shard.quarantine_counts(), shard.records(0).count()), ((0, 0), 0));
    assert_eq!(store(&mut shard, b"next", 700), 4001);

    image[geometry.log_offset as usize..][..64 * 8192].fill(0xa5);
    let mut shard = Region::over(LineModel::from_image(image), &options).unwrap().into_shard().unwrap();
    assert_eq!((shard.quarantine_counts(), shard.records(0).next()), ((1, 4000), None));
    assert_eq!(store(&mut shard, b"next", 700), 4001);
    assert_eq!(contents(&shard), [(4001, b"next".to_vec())]);
}

#[test]
fn a_damaged_record_that_is_dropped_leaves_its_number_taken_and_its_buffers_free() {
    let (image, geometry, records) = sample();
    for (seq, bytes) in &records {
        let model = LineModel::from_image(image.clone());
        drop(open(&model, &tiny()));
        let mut damaged = model.crash(|| 0);
        // The last byte of what the log entry holds or names.
        let entry = geometry.log_offset as usize + 64 * *seq as usize;
        if bytes.len() <= 32 {
            damaged[entry + 63] ^= 1;
        } else {
            let name = u32::from_le_bytes(damaged[entry + 32..entry + 36].try_into().unwrap()) as usize;
            let offset = u16::from_le_bytes(damaged[entry + 36..entry + 38].try_into().unwrap()) as usize;
            damaged[geometry.arena_offset as usize + 1024 * name + offset] ^= 1;
        }
        let model = LineModel::from_image(damaged);
        let mut shard = open(&model, &tiny());
        let expected: Records = records.iter().filter(|(other, _)| other != seq).cloned().collect();
        assert_eq!(contents(&shard), expected);
        let held = shard.arena().free_buffers();
        assert!(!shard.drop_quarantined(seq + 1000, 1).unwrap());
        let entries = shard.quarantines()[0].entries;
        for other in [0, entries + 1, u64::MAX] {
            assert!(!shard.drop_quarantined(*seq, other).unwrap());
        }
        assert!(shard.drop_quarantined(*seq, entries).unwrap());
        assert!(!shard.drop_quarantined(*seq, entries).unwrap());
        if bytes.len() > 512 {
            assert!(shard.arena().free_buffers() > held, "record {seq} still holds its buffers");
        }
        drop(shard);
        let model = LineModel::from_image(model.crash(|| 0));
        let mut shard = open(&model, &tiny());
        assert_eq!((contents(&shard), shard.quarantine_counts()), (expected.clone(), (0, 0)));
        assert!(matches!(shard.lookup(*seq), Lookup::Quarantined(run) if run.fault == EntryFault::Dropped));
        for epoch in 0..4 {
            let first =
                expected.iter().map(|(seq, _)| *seq).find(|&seq| shard.record(seq).unwrap().epoch() >= epoch);
            let found = shard.records(shard.first_of_epoch(epoch)).next().map(|info| info.seq);
            assert_eq!(found, first, "record {seq} dropped, epoch {epoch}");
        }
        let next = shard.next_seq();
        assert_eq!(store(&mut shard, b"new", 700), next);
        shard.trim(u64::MAX).unwrap();
        assert_eq!(shard.counters().live_records, 0);
        drop(shard);
        let shard = open(&model, &tiny());
        assert_eq!(shard.arena().free_buffers(), shard.arena().buffers());
    }
}

#[test]
fn an_append_that_was_cut_short_is_dropped_whole_and_said_to_be_torn() {
    let model = LineModel::new(96 << 10);
    let geometry = Region::over(model.clone(), &tiny()).unwrap().info().geometry;
    let mut shard = open(&model, &tiny());
    store(&mut shard, b"first", 700);
    let _pending = append(&mut shard, &payload(1, 6000), 700).unwrap();
    let entries = shard.next_seq() - 2;
    assert_eq!(entries, 3);
    let mut image = model.crash(|| 2);
    image[geometry.log_offset as usize + 64 * 4 + 63] ^= 1;
    let shard = boot(image).unwrap();
    assert_eq!(contents(&shard), [(1, b"first".to_vec())]);
    assert_eq!(shard.next_seq(), 2);
    let torn = shard.recovery().torn.unwrap();
    assert_eq!((torn.seq, torn.entry, torn.fault, torn.behind), (2, 4, EntryFault::Checksum, None));
    let text = torn.to_string();
    assert!(text.contains("entry 4 of record 2 is incomplete") && text.contains("power cut"), "{text}");
    assert_eq!(shard.arena().free_buffers(), shard.arena().buffers());
}

#[test]
fn entries_beyond_a_gap_never_come_back() {
    let model = LineModel::new(96 << 10);
    let geometry = Region::over(model.clone(), &tiny()).unwrap().info().geometry;
    let mut shard = open(&model, &tiny());
    for seq in 1..=3 {
        let _pending = append(&mut shard, format!("old {seq}").as_bytes(), 700).unwrap();
    }
    // Power is lost: 2 never reached the medium, 1 and 3 did.
    let mut image = model.crash(|| 2);
    image[geometry.log_offset as usize + 64 * 2..][..64].fill(0);
    let model = LineModel::from_image(image);
    let mut shard = open(&model, &tiny());
    assert_eq!(contents(&shard), [(1, b"old 1".to_vec())]);
    let torn = shard.recovery().torn.unwrap();
    assert_eq!((torn.seq, torn.fault, torn.behind), (2, EntryFault::Unwritten, Some(3)), "the loss is said");
    store(&mut shard, b"new 2", 700);
    drop(shard);
    let shard = open(&model, &tiny());
    assert_eq!(contents(&shard), [(1, b"old 1".to_vec()), (2, b"new 2".to_vec())]);
    assert_eq!(shard.next_seq(), 3, "old 3 is complete and right behind, but of a dead epoch");
}

#[test]
fn a_shard_without_its_header_is_refused_by_name() {
    let (mut image, geometry, _) = sample();
    geometry.headers_of(0).into_iter().for_each(|at| image[at..at + 256].fill(7));
    let error = boot(image).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { corruption: Corruption::Header, .. }));
    assert!(error.to_string().contains("both copies"), "{error}");
}

/// Both copies are older than the log: no single damage does that, but a restored page may.
#[test]
fn a_header_from_before_the_last_opening_is_refused() {
    let (image, geometry, _) = sample();
    let model = LineModel::from_image(image);
    drop(open(&model, &tiny()));
    let old = model.crash(|| 0);
    let mut shard = open(&model, &tiny());
    store(&mut shard, b"later", 700);
    let mut image = model.crash(|| 0);
    for at in geometry.headers_of(0) {
        image[at..at + 256].copy_from_slice(&old[at..at + 256]);
    }
    let error = boot(image).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Corrupt { corruption: Corruption::StaleHeader { header: 3, entry: 4, .. }, .. }
        ),
        "{error}"
    );
}

/// Writes an image to a file, and reads all that can be read there.
fn look(dir: &Path, image: &[u8]) -> Result<(Vec<u64>, u64, u64), OpenError> {
    let path = dir.join("store");
    std::fs::File::create(&path).unwrap().write_all(image).unwrap();
    let snapshot = Snapshot::open(&path)?;
    let mut seqs = Vec::new();
    let mut events = 0;
    let report = snapshot.scan(0, |event| match event {
        SnapshotEvent::Record(record) => {
            let mut bytes = Vec::new();
            snapshot.write_record(&record, &mut bytes).unwrap();
            assert_eq!((bytes.len() as u64, crc32c::crc32c(&bytes)), (record.info.len, record.info.crc32c));
            seqs.push(record.info.seq);
        }
        SnapshotEvent::Corrupt(_) => events += 1,
    })?;
    assert_eq!((report.records, report.corruptions), (seqs.len() as u64, events));
    Ok((seqs, events, snapshot.missing_bytes()))
}

#[test]
fn a_snapshot_reads_what_is_left_of_a_store_cut_off_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let (image, geometry, records) = sample();
    let all: Vec<u64> = records.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(look(dir.path(), &image).unwrap(), (all.clone(), 0, 0));
    let arena = geometry.arena_offset as usize;
    let cuts = (0..600).chain((600..arena).step_by(31)).chain((arena..image.len()).step_by(777));
    let mut read = std::collections::BTreeSet::new();
    for cut in cuts {
        match look(dir.path(), &image[..cut]) {
            Ok((seqs, _, missing)) => {
                assert!(seqs.iter().all(|seq| all.contains(seq)), "cut at {cut}: {seqs:?}");
                assert_eq!(missing, geometry.region_bytes - cut as u64);
                read.insert(seqs.len());
            }
            Err(OpenError::NotAStore { .. } | OpenError::Damaged { .. }) => {
                assert!(cut < 256, "cut at {cut}")
            }
            Err(other) => panic!("cut at {cut}: {other}"),
        }
    }
    assert!(read.len() > 3, "{read:?}");
}

#[test]
fn a_snapshot_goes_on_behind_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (mut image, geometry, records) = sample();
    let (damaged, _) = records[2];
    image[geometry.log_offset as usize + 64 * damaged as usize] ^= 1;
    let (seqs, corruptions, _) = look(dir.path(), &image).unwrap();
    let expected: Vec<u64> = records.iter().map(|(seq, _)| *seq).filter(|seq| *seq != damaged).collect();
    assert_eq!((seqs, corruptions), (expected, 1));
}

/// Puts entries into a log as an attacker would who knows the store's identifier.
fn forge(image: &mut [u8], geometry: &Geometry, seq: u64, change: impl FnOnce(&mut [u8])) {
    let at = geometry.log_offset as usize + 64 * (seq as usize % geometry.log_entries as usize);
    let seed = crc32c::crc32c_append(crc32c::crc32c(&image[16..32]), &0u32.to_le_bytes());
    let entry = &mut image[at..at + 64];
    change(entry);
    let crc = crc32c::crc32c_append(seed, &entry[4..]);
    entry[..4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn of_records_that_share_bytes_the_oldest_stays() {
    let model = LineModel::new(96 << 10);
    let geometry = Region::over(model.clone(), &tiny()).unwrap().info().geometry;
    let mut shard = open(&model, &tiny());
    store(&mut shard, &payload(1, 700), 700);
    store(&mut shard, &payload(1, 700), 700);
    let mut image = model.crash(|| 2);
    let log = geometry.log_offset as usize;
    let first = image[log + 64 + 32..log + 64 + 40].to_vec();
    forge(&mut image, &geometry, 2, |entry| entry[32..40].copy_from_slice(&first));
    let shard = boot(image).unwrap();
    let [damage] = shard.quarantines() else { panic!("{:?}", shard.quarantines()) };
    assert!(matches!(damage.fault, EntryFault::Shared { other: 1, .. }) && damage.seq == 2, "{damage}");
    assert_eq!(contents(&shard), [(1, payload(1, 700))], "the older one stays");
}

#[test]
fn a_record_that_names_what_is_outside_of_the_arena_is_passed_over() {
    let (image, geometry, records) = sample();
    let (seq, _) = records.iter().find(|(_, bytes)| bytes.len() == 3000).unwrap();
    for (at, bytes) in [(32, [0xff; 4]), (36, [0, 4, 1, 0]), (36, [0xff; 4])] {
        let mut image = image.clone();
        forge(&mut image, &geometry, *seq, |entry| entry[at..at + 4].copy_from_slice(&bytes));
        let shard = boot(image).unwrap();
        let [damage] = shard.quarantines() else { panic!("{:?}", shard.quarantines()) };
        assert!(matches!(damage.fault, EntryFault::Bounds { .. }) && damage.seq == *seq, "{damage}");
        let expected: Records = records.iter().filter(|(other, _)| other != seq).cloned().collect();
        assert_eq!(contents(&shard), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Entries with good checksums and any contents at all.
    #[test]
    fn forged_entries_never_panic(
        forgeries in prop::collection::vec((0u64..64, prop::collection::vec((4usize..64, any::<u8>()), 1..8)), 1..12),
    ) {
        let (mut image, geometry, _) = sample();
        for (slot, changes) in forgeries {
            forge(&mut image, &geometry, slot, |entry| changes.into_iter().for_each(|(at, byte)| entry[at] = byte));
        }
        if let Ok(mut shard) = boot(image) {
            contents(&shard);
            let first = shard.quarantines().first().map(|run| (run.seq, run.entries));
            first.map(|(seq, entries)| shard.drop_quarantined(seq, entries).unwrap());
            shard.trim(u64::MAX).unwrap();
        }
    }

    /// Any bytes over any part of the store.
    #[test]
    fn overwritten_stores_never_panic(
        at in 0usize..96 << 10, len in 1usize..2000, seed in any::<u64>(), early in any::<bool>(),
    ) {
        let (mut image, _, records) = sample();
        let at = if early { at % 8192 } else { at };
        let end = (at + len).min(image.len());
        rng(seed).fill_bytes(&mut image[at..end]);
        let dir = tempfile::tempdir().unwrap();
        let _ = look(dir.path(), &image);
        if let Ok(shard) = boot(image) {
            prop_assert!(contents(&shard).iter().all(|record| records.contains(record)));
        }
    }

    /// Superblocks with good checksums and any geometry at all: bytes 32 to 104 are all that one says.
    #[test]
    fn forged_superblocks_never_panic(changes in prop::collection::vec((32usize..104, any::<u8>()), 1..6)) {
        let (mut image, geometry, _) = sample();
        for (at, byte) in changes {
            image[at] = byte;
        }
        image[12..16].fill(0);
        let crc = crc32c::crc32c(&image[..256]);
        image[12..16].copy_from_slice(&crc.to_le_bytes());
        let first = image[..256].to_vec();
        for at in [256, geometry.superblocks()[1]] {
            image[at..at + 256].copy_from_slice(&first);
        }
        let dir = tempfile::tempdir().unwrap();
        let _ = look(dir.path(), &image);
        if let Ok(region) = Region::over(LineModel::from_image(image), &Options::default()) {
            let _ = region.into_shard().map(|shard| contents(&shard));
        }
    }
}
