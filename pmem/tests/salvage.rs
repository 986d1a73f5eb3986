//! Reading what is left of a store, and going on in another one as it did.

mod common;

use std::{fs, io::Read, path::Path};

use common::{contents, payload};
use flate2::read::GzDecoder;
use pmem::{Corruption, EntryFault, Lookup, Options, Region, Shape, Shard, Snapshot, SnapshotEvent};

const SHARDS: u32 = 2;

fn options() -> Options {
    Options { volatile: true, reserve: Some(0), ..Options::default() }
}

fn shard(path: &Path, index: u32, options: &Options) -> Shard {
    Region::open(path, options).unwrap().into_seeds().swap_remove(index as usize).open().unwrap()
}

/// A record as it is compared: number, epoch and bytes.
type Kept = (u64, u32, Vec<u8>);

/// A store of two shards with records of all lengths from three openings, over more than a lap, the oldest trimmed; what its
/// shards hold.
fn filled(path: &Path) -> Vec<Vec<Kept>> {
    let new = Options { size: Some(1 << 20), shards: Some(SHARDS), log_entries: Some(128), ..options() };
    drop(Region::open(path, &new).unwrap().begin());
    (0..SHARDS)
        .map(|index| {
            for epoch in 0..3 {
                let mut shard = shard(path, index, &options());
                for number in 0..70 {
                    let len = [0, 20, 100, 600, 3000, 30_000][number as usize % 6];
                    let bytes = payload(number + 1000 * epoch, len);
                    while shard.append_copy(&bytes).is_err() {
                        shard.commit().unwrap();
                        shard.trim(shard.head_seq() + 7).unwrap();
                    }
                    shard.commit().unwrap();
                }
                shard.checkpoint().unwrap();
            }
            let shard = shard(path, index, &options());
            assert!(shard.head_seq() > 128, "it has gone round");
            let epoch_of = |seq| shard.records(seq).next().unwrap().epoch;
            contents(&shard).into_iter().map(|(seq, bytes)| (seq, epoch_of(seq), bytes)).collect()
        })
        .collect()
}

/// Where the copies of a shard's header lie.
fn header_places(path: &Path, shard: u32) -> [usize; 2] {
    Snapshot::open(path).unwrap().geometry().headers_of(shard)
}

/// What is read of a shard in a way, and the damage.
fn read<R>(
    snapshot: &Snapshot,
    read: impl FnOnce(&mut dyn FnMut(SnapshotEvent)) -> R,
) -> (Vec<Kept>, Vec<Corruption>, R) {
    let (mut kept, mut damage) = (Vec::new(), Vec::new());
    let report = read(&mut |event| match event {
        SnapshotEvent::Record(record) => {
            let mut bytes = Vec::new();
            snapshot.write_record(&record, &mut bytes).unwrap();
            kept.push((record.info.seq, record.info.epoch, bytes));
        }
        SnapshotEvent::Corrupt(corruption) => damage.push(corruption),
    });
    (kept, damage, report)
}

#[test]
fn of_a_shard_that_lost_its_header_all_records_are_read_by_its_entries() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.pm");
    let stored = filled(&path);
    let mut image = fs::read(&path).unwrap();
    header_places(&path, 1).into_iter().for_each(|place| image[place + 20] ^= 1);
    fs::write(&path, &image).unwrap();
    let snapshot = Snapshot::open(&path).unwrap();
    let (kept, damage, report) = read(&snapshot, |visit| snapshot.scan(1, visit).unwrap());
    assert_eq!((kept.len(), damage, report.lost_header), (0, vec![Corruption::Header], None));

    let (kept, _, report) = read(&snapshot, |visit| snapshot.salvage(1, visit).unwrap());
    assert_eq!((report.lost_header, report.epoch), (Some(Corruption::Header), None));
    // What was trimmed last, and is not overwritten yet, is back.
    let first = stored[1][0].0;
    let back = kept.iter().take_while(|(seq, ..)| *seq < first).count();
    assert!(kept[back..] == stored[1][..]);
    assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));

    // The other shard is as it was, by its header.
    let (kept, damage, report) = read(&snapshot, |visit| snapshot.salvage(0, visit).unwrap());
    assert!(kept == stored[0] && damage.is_empty() && report.lost_header.is_none());
    assert!(snapshot.salvage(2, |_| ()).is_err());
}

#[test]
fn any_entry_of_a_shard_without_a_header_costs_its_record_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.pm");
    let stored = filled(&path);
    let mut image = fs::read(&path).unwrap();
    header_places(&path, 0).into_iter().for_each(|place| image[place] ^= 1);
    let log = Snapshot::open(&path).unwrap().geometry().log_offset as usize;
    for (damaged, (seq, ..)) in stored[0].iter().enumerate().step_by(3) {
        let entry = log + *seq as usize % 128 * 64;
        image[entry + 9] ^= 4;
        fs::write(&path, &image).unwrap();
        image[entry + 9] ^= 4;
        let snapshot = Snapshot::open(&path).unwrap();
        let (kept, ..) = read(&snapshot, |visit| snapshot.salvage(0, visit).unwrap());
        for (number, record) in stored[0].iter().enumerate() {
            assert_eq!(kept.contains(record), number != damaged, "record {} and {seq}", record.0);
        }
    }
}

#[test]
fn a_survey_finds_what_a_scan_does_but_damage_to_payload() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.pm");
    let stored = filled(&path);
    let snapshot = Snapshot::open(&path).unwrap();
    let scanned = read(&snapshot, |visit| snapshot.scan(0, visit).unwrap());
    let surveyed = read(&snapshot, |visit| snapshot.survey(0, visit).unwrap());
    assert!(scanned == surveyed && scanned.0 == stored[0]);
}

#[test]
fn a_record_is_found_by_its_number_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.pm");
    let stored = filled(&path);
    let snapshot = Snapshot::open(&path).unwrap();
    for (shard, stored) in stored.iter().enumerate() {
        let last = stored.last().unwrap().0;
        for seq in 0..last + 200 {
            let found = snapshot.record(shard as u32, seq).unwrap();
            let expected = stored.iter().find(|(number, ..)| *number == seq);
            assert_eq!(found.is_some(), expected.is_some(), "{shard}-{seq}");
            if let (Some(found), Some((_, epoch, bytes))) = (found, expected) {
                let mut read = Vec::new();
                snapshot.write_record(&found, &mut read).unwrap();
                assert!(&read == bytes && found.info.epoch == *epoch);
            }
        }
    }
    assert!(snapshot.record(2, 1).is_err());
}

#[test]
fn records_beyond_what_is_known_to_be_durable_are_found_up_to_the_first_that_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.pm");
    let mut shard = shard(&path, 0, &Options { size: Some(1 << 20), ..options() });
    // One commit: no entry vouches for another.
    (0..9).for_each(|number| drop(shard.append_copy(&payload(number, 600)).unwrap()));
    shard.commit().unwrap();
    drop(shard);
    let log = Snapshot::open(&path).unwrap().geometry().log_offset as usize;
    let mut image = fs::read(&path).unwrap();
    image[log + 6 * 64 + 12] ^= 1;
    fs::write(&path, image).unwrap();
    let snapshot = Snapshot::open(&path).unwrap();
    let found: Vec<_> = (0..12).filter(|&seq| snapshot.record(0, seq).unwrap().is_some()).collect();
    assert_eq!(found, [1, 2, 3, 4, 5], "as if the others had never been appended");
    let (kept, damage, report) = read(&snapshot, |visit| snapshot.salvage(0, visit).unwrap());
    let kept: Vec<_> = kept.iter().map(|(seq, ..)| *seq).collect();
    assert_eq!((kept, report.records, report.next), (vec![1, 2, 3, 4, 5, 7, 8, 9], 8, 10));
    assert!(matches!(damage[..], [Corruption::Record { seq: 6, entries: 1, .. }]), "{damage:?}");
}

/// Copies a shard's records into a new store as they are numbered.
fn copied(stored: &[Kept], path: &Path) {
    let mut copy = shard(path, 0, &Options { size: Some(2 << 20), log_entries: Some(512), ..options() });
    for (seq, epoch, bytes) in stored {
        assert!(copy.continue_at(*epoch, *seq).unwrap());
        let pending = copy.append_copy(bytes).unwrap();
        assert_eq!(copy.commit().unwrap().confirm(pending).unwrap().seq, *seq);
    }
    assert!(!copy.continue_at(u32::MAX, 1).unwrap() && !copy.continue_at(0, u64::MAX >> 3).unwrap());
}

#[test]
fn records_of_a_copy_have_the_numbers_and_epochs_that_they_had() {
    let folder = tempfile::tempdir().unwrap();
    let stored = filled(&folder.path().join("store.pm")).swap_remove(0);
    // As if some had been lost.
    let stored: Vec<_> =
        stored.into_iter().enumerate().filter(|(n, _)| n % 5 != 3).map(|(_, kept)| kept).collect();
    let path = folder.path().join("copy.pm");
    copied(&stored, &path);
    for _ in 0..2 {
        let snapshot = Snapshot::open(&path).unwrap();
        let (kept, damage, report) = read(&snapshot, |visit| snapshot.scan(0, visit).unwrap());
        assert!(kept == stored && damage.is_empty() && report.head == stored[0].0);
        drop(snapshot);
        let mut copy = shard(&path, 0, &options());
        assert_eq!(copy.quarantine_counts(), (0, 0));
        assert!(copy.epoch() > stored.last().unwrap().1, "records of this opening come behind all others");
        assert_eq!(copy.counters().live_records, stored.len() as u64);
        let left_out =
            stored.windows(2).find(|pair| pair[0].2.len() < 600 && pair[1].0 > pair[0].0 + 1).unwrap()[0].0
                + 1;
        assert!(
            matches!(copy.lookup(left_out), Lookup::Quarantined(run) if run.fault == EntryFault::Dropped),
            "{left_out} is not given to another"
        );
        copy.commit().unwrap();
    }
    let mut copy = shard(&path, 0, &options());
    let trimmed = copy.trim(u64::MAX).unwrap();
    assert_eq!(trimmed.records, stored.len() as u64);
    while copy.tend() {}
    assert_eq!(copy.arena().free_buffers(), copy.arena().buffers());
}

#[test]
fn an_empty_log_goes_on_at_any_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.pm");
    let far = (1 << 61) + 5;
    let mut copy = shard(&path, 0, &Options { size: Some(1 << 20), ..options() });
    assert!(copy.continue_at(7, far).unwrap());
    let pending = copy.append_copy(b"there").unwrap();
    assert_eq!(copy.commit().unwrap().confirm(pending).unwrap().seq, far);
    // As much room as a log of that length has.
    assert!(copy.continue_at(7, far + copy.log_entries()).unwrap());
    assert!(copy.continue_at(7, far + copy.log_entries() + 1).is_err());
    drop(copy);
    let copy = shard(&path, 0, &options());
    assert_eq!((contents(&copy), copy.epoch()), (vec![(far, b"there".to_vec())], 8));
}

#[test]
fn stores_of_each_version_that_lost_both_superblocks_are_found_by_their_logs() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for version in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.pm");
        let mut image = Vec::new();
        let packed = fs::File::open(images.join(format!("version-{version}.store.gz"))).unwrap();
        GzDecoder::new(packed).read_to_end(&mut image).unwrap();
        fs::write(&path, &image).unwrap();
        let snapshot = Snapshot::open(&path).unwrap();
        let geometry = *snapshot.geometry();
        let shards = 0..geometry.shards;
        let of_all = |snapshot: &Snapshot| -> Vec<_> {
            shards.clone().map(|shard| read(snapshot, |visit| snapshot.scan(shard, visit).unwrap())).collect()
        };
        let expected = of_all(&snapshot);
        geometry.superblocks().into_iter().for_each(|place| image[place..place + 256].fill(0x5a));
        fs::write(&path, &image).unwrap();
        assert!(Snapshot::open(&path).is_err());
        let shape = Shape {
            buffer_bytes: Some(geometry.buffer_bytes),
            log_entries: Some(geometry.log_entries),
            ..Shape::default()
        };
        let found = Snapshot::open_by_logs(&path, &shape).unwrap();
        assert_eq!((*found.geometry(), found.version()), (geometry, version));
        assert!(of_all(&found) == expected, "version {version}");
    }
}
