//! Logs that were cut off or changed: recovery gives a correct prefix or says what is corrupt, and never panics.

mod common;

use std::{io::Write, path::Path};

use common::{append, contents, open, payload, rng, store, tiny};
use pmem::{
    Corruption, EntryFault, Geometry, LineModel, OpenError, Options, Region, Shard, Snapshot, SnapshotEvent,
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

/// Checks that opening `image` gives some of the first of `records`, or a reported corruption; returns how many.
fn prefix_or_corruption(image: Vec<u8>, records: &Records, what: &str) -> Option<usize> {
    match boot(image) {
        Ok(shard) => {
            let found = contents(&shard);
            assert!(records.starts_with(&found), "{what}: {found:?}");
            Some(found.len())
        }
        Err(OpenError::Corrupt { .. }) => None,
        Err(other) => panic!("{what}: {other}"),
    }
}

#[test]
fn every_byte_flipped_in_the_log_and_the_headers() {
    let (image, geometry, records) = sample();
    let slots = geometry.log_offset as usize..geometry.log_offset as usize + 24 * 64;
    let headers = geometry.headers_offset as usize..geometry.headers_offset as usize + 512;
    let (mut prefixes, mut corruptions, mut unharmed) = (0, 0, 0);
    for at in slots.chain(headers) {
        for bits in [0x01, 0x80, 0xff] {
            let mut image = image.clone();
            image[at] ^= bits;
            match prefix_or_corruption(image, &records, &format!("byte {at} with {bits:#x}")) {
                Some(found) if found == records.len() => unharmed += 1,
                Some(found) => {
                    prefixes += 1;
                    // Only the last commit has nothing behind it that says it was durable.
                    assert_eq!(found, records.len() - 1, "byte {at}");
                }
                None => corruptions += 1,
            }
        }
    }
    println!("{prefixes} prefixes, {corruptions} corruptions, {unharmed} unharmed");
    assert!(prefixes > 0 && corruptions > 0 && unharmed > 0);
}

#[test]
fn every_byte_of_payload_flipped() {
    let (image, geometry, records) = sample();
    let arena = geometry.arena_offset as usize..image.len();
    let mut damaged = 0;
    for at in arena.step_by(13) {
        let mut image = image.clone();
        image[at] ^= 0x10;
        let found = prefix_or_corruption(image, &records, &format!("byte {at}"));
        damaged += u32::from(found != Some(records.len()));
    }
    assert!(damaged > 100, "{damaged}");
}

#[test]
fn the_log_cut_at_every_byte() {
    let (image, geometry, records) = sample();
    let log = geometry.log_offset as usize;
    let mut seen = Vec::new();
    for cut in log..log + 24 * 64 {
        let mut image = image.clone();
        image[cut..log + 64 * 64].fill(0);
        seen.push(prefix_or_corruption(image, &records, &format!("cut at {cut}")));
    }
    // Cut in the last record, the rest is a correct log; cut before, it is known that something is missing.
    assert!(seen.contains(&Some(records.len() - 1)));
    assert!(seen.contains(&None));
    assert_eq!(seen.last(), Some(&Some(records.len())));
}

#[test]
fn a_checkpoint_makes_a_lost_tail_corruption() {
    let model = LineModel::new(96 << 10);
    let geometry = Region::over(model.clone(), &tiny()).unwrap().info().geometry;
    let mut shard = open(&model, &tiny());
    let seq = store(&mut shard, &payload(1, 900), 700);
    let lost = |model: &LineModel| {
        let mut image = model.crash(|| 2);
        image[geometry.log_offset as usize + 64 * seq as usize..][..64].fill(0);
        boot(image)
    };
    assert_eq!(contents(&lost(&model).unwrap()), []);
    shard.checkpoint().unwrap();
    match lost(&model) {
        Err(OpenError::Corrupt {
            corruption: Corruption::Record { seq: at, fault, known_durable, .. },
            ..
        }) => {
            assert_eq!((at, fault, known_durable), (seq, EntryFault::Unwritten, seq));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_message_names_the_record_and_what_is_wrong() {
    let (mut image, geometry, records) = sample();
    let (seq, _) = records[1];
    image[geometry.log_offset as usize + 64 * seq as usize + 40] ^= 1;
    let error = boot(image).unwrap_err().to_string();
    assert!(error.contains(&format!("record {seq} is damaged")), "{error}");
    assert!(error.contains("checksum"), "{error}");
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
    assert_eq!(shard.recovery().torn, Some(EntryFault::Checksum));
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
    store(&mut shard, b"new 2", 700);
    drop(shard);
    let shard = open(&model, &tiny());
    assert_eq!(contents(&shard), [(1, b"old 1".to_vec()), (2, b"new 2".to_vec())]);
    assert_eq!(shard.next_seq(), 3, "old 3 is complete and right behind, but of a dead epoch");
}

#[test]
fn a_lost_header_is_noticed_by_the_entries_it_does_not_know() {
    let (image, geometry, _) = sample();
    let headers = geometry.headers_offset as usize;
    let mut outcomes = Vec::new();
    for copy in 0..2 {
        let mut image = image.clone();
        image[headers + 256 * copy + 8] ^= 1;
        outcomes.push(boot(image).map(|shard| contents(&shard).len()));
    }
    assert!(outcomes.iter().any(|outcome| outcome.is_ok()), "the older copy was not needed");
    let stale = |error: &OpenError| {
        matches!(
            error,
            OpenError::Corrupt { corruption: Corruption::StaleHeader { header: 1, entry: 2, .. }, .. }
        )
    };
    assert!(outcomes.iter().any(|outcome| outcome.as_ref().is_err_and(stale)), "{outcomes:?}");
    let mut image = image;
    image[headers..headers + 512].fill(7);
    assert!(matches!(boot(image), Err(OpenError::Corrupt { corruption: Corruption::Header, .. })));
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
fn records_that_share_bytes_are_corruption() {
    let model = LineModel::new(96 << 10);
    let geometry = Region::over(model.clone(), &tiny()).unwrap().info().geometry;
    let mut shard = open(&model, &tiny());
    store(&mut shard, &payload(1, 700), 700);
    store(&mut shard, &payload(1, 700), 700);
    let mut image = model.crash(|| 2);
    let log = geometry.log_offset as usize;
    let first = image[log + 64 + 32..log + 64 + 40].to_vec();
    forge(&mut image, &geometry, 2, |entry| entry[32..40].copy_from_slice(&first));
    match boot(image) {
        Err(OpenError::Corrupt { corruption: Corruption::Record { seq: 2, fault, .. }, .. }) => {
            assert!(matches!(fault, EntryFault::Shared { other: 1, .. }), "{fault}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_outside_of_the_arena_are_refused() {
    let (image, geometry, records) = sample();
    let (seq, _) = records.iter().find(|(_, bytes)| bytes.len() == 3000).unwrap();
    for (at, bytes) in [(32, [0xff; 4]), (36, [0, 4, 1, 0]), (36, [0xff; 4])] {
        let mut image = image.clone();
        forge(&mut image, &geometry, *seq, |entry| entry[at..at + 4].copy_from_slice(&bytes));
        match boot(image) {
            Err(OpenError::Corrupt {
                corruption: Corruption::Record { fault: EntryFault::Bounds { .. }, .. },
                ..
            }) => {}
            other => panic!("{other:?}"),
        }
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
        if let Ok(shard) = boot(image) {
            contents(&shard);
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
            prop_assert!(records.starts_with(&contents(&shard)));
        }
    }

    /// Superblocks with good checksums and any geometry at all: bytes 32 to 96 are all that one says.
    #[test]
    fn forged_superblocks_never_panic(changes in prop::collection::vec((32usize..96, any::<u8>()), 1..6)) {
        let (mut image, _, _) = sample();
        for (at, byte) in changes {
            image[at] = byte;
        }
        image[12..16].fill(0);
        let crc = crc32c::crc32c(&image[..256]);
        image[12..16].copy_from_slice(&crc.to_le_bytes());
        let (first, second) = image.split_at_mut(256);
        second[..256].copy_from_slice(first);
        let dir = tempfile::tempdir().unwrap();
        let _ = look(dir.path(), &image);
        if let Ok(region) = Region::over(LineModel::from_image(image), &Options::default()) {
            let _ = region.into_shard().map(|shard| contents(&shard));
        }
    }
}
