//! The log as its users see it: appends, commits, reading, trimming, limits, and what copies and what does not.

mod common;

use common::{PAYLOAD_OFFSET, append, contents, memory, open, payload, rot, store, tiny};
use pmem::{
    AppendError, CommitError, EntryFault, Full, INLINE_BYTES, LineModel, Lookup, MEMORY, OpenError, Options,
    Piece, Region, Shard,
};
use proptest::prelude::*;

fn shard(bytes: u64) -> Shard {
    let options = Options { size: Some(bytes), ..tiny() };
    Region::open("memory:", &options).unwrap().into_shard().unwrap()
}

#[test]
fn records_of_every_length_come_back() {
    let mut shard = shard(4 << 20);
    let lengths = [0, 1, 31, 32, 33, 511, 512, 513, 800, 801, 4 * 800, 4 * 800 + 1, 100_000];
    let mut seqs = Vec::new();
    for len in lengths {
        seqs.push((store(&mut shard, &payload(len as u64, len), 800), payload(len as u64, len)));
    }
    assert_eq!(contents(&shard), seqs);
    assert!(seqs.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!(seqs[0].0, 1);
    assert!(shard.record(seqs[12].0 + 1).is_none(), "an entry inside a record is no record");
    assert!(shard.record(shard.next_seq()).is_none());
    assert!(shard.record(0).is_none());
}

#[test]
fn records_that_lie_in_dram_are_copied_once() {
    let model = LineModel::new(4 << 20);
    let mut shard = open(&model, &tiny());
    let lengths = [0, 1, 32, 33, 511, 512, 1024, 1025, 100_000];
    let mut expected = Vec::new();
    for len in lengths {
        let (bytes, before) = (payload(len as u64, len), shard.counters());
        let pending = shard.append_copy(&bytes).unwrap();
        let receipt = shard.commit().unwrap().confirm(pending).unwrap();
        let after = shard.counters();
        assert_eq!(after.copied_bytes - before.copied_bytes, len as u64);
        assert_eq!((receipt.len, receipt.crc32c), (len as u64, crc32c::crc32c(&bytes)));
        expected.push((receipt.seq, bytes));
    }
    assert_eq!(contents(&shard), expected);
    let lost = shard.append_copy(b"not committed").unwrap();
    // Whatever was not flushed and fenced is lost.
    let after_crash = open(&LineModel::from_image(model.crash(|| 0)), &tiny());
    assert_eq!(contents(&after_crash), expected);
    drop(lost);

    let too_long = vec![0; tiny().max_record_bytes as usize + 1];
    assert!(matches!(shard.append_copy(&too_long), Err(AppendError::TooLong { .. })));
    let full = (0..).find_map(|_| shard.append_copy(&payload(1, 5000)).err()).unwrap();
    assert!(matches!(full, AppendError::Full(_)), "{full}");
    let free = shard.arena().free_buffers();
    assert!(shard.append_copy(&payload(1, 5000)).is_err());
    assert_eq!(shard.arena().free_buffers(), free, "what is refused takes nothing");
}

#[test]
fn a_persist_takes_as_long_as_it_is_told_to() {
    let delay = std::time::Duration::from_millis(20);
    let options = Options { size: Some(1 << 20), persist_delay: delay, ..tiny() };
    let mut shard = Region::open("memory:", &options).unwrap().into_shard().unwrap();
    let pending = append(&mut shard, b"slowly", 800).unwrap();
    let begun = std::time::Instant::now();
    let durable = shard.commit().unwrap();
    assert!(begun.elapsed() >= delay);
    assert!(durable.confirm(pending).is_ok());
}

#[test]
fn nothing_is_readable_or_confirmed_before_it_is_durable() {
    let mut shard = shard(1 << 20);
    let early = shard.commit().unwrap();
    let pending = append(&mut shard, b"not durable yet", 800).unwrap();
    assert!(shard.uncommitted());
    assert!(shard.record(1).is_none());
    assert_eq!(shard.records(0).count(), 0);
    let pending = early.confirm(pending).expect_err("this proof is older than the append");
    let durable = shard.commit().unwrap();
    assert!(!shard.uncommitted());
    let receipt = durable.confirm(pending).unwrap();
    assert_eq!((receipt.seq, receipt.len, receipt.crc32c), (1, 15, crc32c::crc32c(b"not durable yet")));
    assert_eq!(shard.record(1).unwrap().to_vec(), b"not durable yet");
}

#[test]
fn the_proof_of_one_shard_says_nothing_of_another() {
    let (mut one, mut other) = (shard(1 << 20), shard(1 << 20));
    let pending = append(&mut one, b"mine", 800).unwrap();
    let _ = append(&mut other, b"other", 800).unwrap();
    assert!(other.commit().unwrap().confirm(pending).is_err());
    let draft = one.draft();
    assert_eq!(other.append(draft).unwrap_err(), AppendError::Foreign);
    let foreign = one.arena().take().unwrap().into_extent(0, 10).unwrap();
    let mut draft = other.draft();
    assert_eq!(other.push(&mut draft, foreign).unwrap_err(), AppendError::Foreign);
}

#[test]
fn one_fence_serves_a_burst() {
    let mut shard = shard(1 << 20);
    let pending: Vec<_> = (0..20).map(|i| append(&mut shard, &payload(i, 900), 800).unwrap()).collect();
    let before = shard.counters().fences;
    let durable = shard.commit().unwrap();
    assert_eq!(shard.counters().fences, before + 1);
    assert!(pending.into_iter().all(|pending| durable.confirm(pending).is_ok()));
    shard.commit().unwrap();
    assert_eq!(shard.counters().fences, before + 1, "nothing to do, nothing done");
}

#[test]
fn records_of_a_kibibyte_and_more_are_not_copied() {
    let options = Options { size: Some(64 << 20), ..Options::default() };
    let mut shard = Region::open("memory:", &options).unwrap().into_shard().unwrap();
    for (len, segment) in
        [(1024, 1448), (1448, 1448), (4096, 1448), (100_000, 1448), (100_000, 536), (16 << 20, 1448)]
    {
        store(&mut shard, &payload(1, len), segment);
    }
    let counters = shard.counters();
    assert_eq!(counters.copied_bytes, 0);
    assert_eq!(counters.payload_bytes, 1024 + 1448 + 4096 + 200_000 + (16 << 20));
    let record = shard.record(1).unwrap();
    let piece = record.pieces().next().unwrap();
    let Piece::Extent(extent) = piece else { panic!("a record of a kibibyte lies in its buffer") };
    assert_eq!((extent.offset(), extent.len()), (PAYLOAD_OFFSET, 1024), "just where it arrived");
}

#[test]
fn short_records_share_buffers() {
    let options = Options { size: Some(1 << 20), log_entries: Some(1024), ..tiny() };
    let mut shard = Region::open("memory:", &options).unwrap().into_shard().unwrap();
    let all = shard.arena().free_buffers();
    let records: Vec<_> = (0..100).map(|i| payload(i, 100)).collect();
    for bytes in &records {
        store(&mut shard, bytes, 800);
    }
    assert_eq!(all - shard.arena().free_buffers(), 10, "100 records of 100 bytes in buffers of 1024");
    assert_eq!(shard.counters().copied_bytes, 100 * 100);
    assert!(contents(&shard).into_iter().map(|(_, bytes)| bytes).eq(records));
    let last = shard.trim(shard.next_seq()).unwrap();
    assert_eq!((last.records, last.payload_bytes), (100, 10_000));
    // The buffer that is being filled stays.
    assert_eq!(shard.arena().free_buffers(), all - 1);
}

#[test]
fn a_peer_of_tiny_segments_does_not_pin_a_buffer_each() {
    for (len, segment) in [(500, 1), (5_000, 1), (20_000, 7), (20_000, 100)] {
        let mut shard = shard(1 << 20);
        let all = shard.arena().free_buffers();
        let bytes = payload(len as u64, len);
        let seq = store(&mut shard, &bytes, segment);
        let pinned = (all - shard.arena().free_buffers()) * shard.arena().buffer_bytes();
        assert!(pinned <= 4 * len + 10 * 1024, "{pinned} bytes pinned by {len} in segments of {segment}");
        assert_eq!(shard.record(seq).unwrap().to_vec(), bytes);
    }
}

#[test]
fn tiny_pieces_fill_neither_the_log_nor_the_way_to_the_medium() {
    let model = LineModel::new(1 << 20);
    let mut shard = open(&model, &tiny());
    let mut draft = shard.draft();
    let before = shard.counters();
    let mut expected = Vec::new();
    for seed in 0..20 {
        let bytes = payload(seed, 800);
        let mut buffer = shard.arena().take().unwrap();
        assert!(buffer.arrive(0, &bytes));
        for at in (0..800).step_by(5) {
            shard.push(&mut draft, buffer.extent(at, 1).unwrap()).unwrap();
            expected.push(bytes[usize::from(at)]);
        }
    }
    let pending = shard.append(draft).unwrap();
    let seq = shard.commit().unwrap().confirm(pending).unwrap().seq;
    let record = shard.record(seq).unwrap();
    assert_eq!(record.to_vec(), expected);
    assert!(record.info().entries < 20, "{} entries for {} bytes", record.info().entries, expected.len());
    let lines = shard.counters().flushed_lines - before.flushed_lines;
    assert!(lines < expected.len() as u64 / 16, "{lines} lines flushed for {} bytes", expected.len());
    let after_crash = open(&LineModel::from_image(model.crash(|| 0)), &tiny());
    assert!(contents(&after_crash) == [(seq, expected)], "what was acknowledged is lost or altered");
}

#[test]
fn pieces_that_follow_one_another_are_one() {
    let mut shard = shard(1 << 20);
    let bytes = payload(1, 800);
    let mut buffer = shard.arena().take().unwrap();
    assert!(buffer.arrive(100, &bytes));
    let mut draft = shard.draft();
    for at in (0..800).step_by(200) {
        shard.push(&mut draft, buffer.extent(100 + at, 200).unwrap()).unwrap();
    }
    let pending = shard.append(draft).unwrap();
    let seq = shard.commit().unwrap().confirm(pending).unwrap().seq;
    assert_eq!(shard.record(seq).unwrap().info().extents, 1);
    assert_eq!(shard.record(seq).unwrap().to_vec(), bytes);
    assert_eq!(shard.counters().copied_bytes, 0);
}

#[test]
fn bytes_appended_twice_are_copied_and_not_shared() {
    let model = LineModel::new(256 << 10);
    let mut shard = open(&model, &tiny());
    let bytes = payload(1, 800);
    let mut buffer = shard.arena().take().unwrap();
    assert!(buffer.arrive(0, &bytes));
    let mut drafts = [shard.draft(), shard.draft()];
    for draft in &mut drafts {
        shard.push(draft, buffer.extent(0, 800).unwrap()).unwrap();
    }
    let mut draft = shard.draft();
    shard.push(&mut draft, buffer.extent(10, 700).unwrap()).unwrap();
    for draft in drafts.into_iter().chain([draft]) {
        let _ = shard.append(draft).unwrap();
    }
    shard.commit().unwrap();
    assert_eq!(shard.counters().copied_bytes, 1500);
    let before = contents(&shard);
    assert_eq!(before.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [800, 800, 700]);
    drop((shard, buffer));
    assert_eq!(contents(&open(&model, &tiny())), before);
}

#[test]
fn a_draft_that_is_dropped_gives_everything_back() {
    let mut shard = shard(1 << 20);
    let all = shard.arena().free_buffers();
    for segment in [1, 100, 800] {
        let mut draft = shard.draft();
        for piece in payload(1, 5000).chunks(segment) {
            let mut buffer = shard.arena().take().unwrap();
            assert!(buffer.arrive(0, piece));
            shard.push(&mut draft, buffer.into_extent(0, piece.len() as u16).unwrap()).unwrap();
        }
        assert!(shard.arena().free_buffers() < all);
        drop(draft);
        assert_eq!(shard.arena().free_buffers(), all);
    }
}

#[test]
fn too_long_is_said_at_the_byte_too_many() {
    let options = Options { size: Some(1 << 20), max_record_bytes: 2000, ..tiny() };
    let mut shard = Region::open("memory:", &options).unwrap().into_shard().unwrap();
    let all = shard.arena().free_buffers();
    let error = append(&mut shard, &payload(1, 2001), 800).unwrap_err();
    assert_eq!(error, AppendError::TooLong { len: 2001, max: 2000 });
    assert_eq!(shard.arena().free_buffers(), all);
    store(&mut shard, &payload(1, 2000), 800);
}

#[test]
fn a_full_store_refuses_keeps_its_reserve_and_goes_on_after_a_trim() {
    let mut shard = shard(128 << 10);
    let mut expected = Vec::new();
    let mut next = 0;
    let mut fills = 0;
    for _ in 0..40 {
        loop {
            let bytes = payload(next, 700 + next as usize % 200);
            match append(&mut shard, &bytes, 800) {
                Ok(pending) => {
                    let receipt = shard.commit().unwrap().confirm(pending).unwrap();
                    expected.push((receipt.seq, bytes));
                    next += 1;
                }
                Err(AppendError::Full(_)) => break,
                Err(other) => panic!("{other}"),
            }
        }
        fills += 1;
        assert!(shard.arena().free_buffers() + 2 >= shard.reserve(), "the network has buffers left");
        assert_eq!(contents(&shard), expected);
        let half = expected.len() / 2;
        let trimmed = shard.trim(expected[half].0).unwrap();
        assert_eq!(trimmed.records, half as u64);
        expected.drain(..half);
        assert_eq!(contents(&shard), expected);
    }
    assert_eq!(fills, 40);
    assert!(shard.next_seq() > 8 * shard.log_entries(), "many laps of the log");
    assert!(next > 8 * shard.arena().buffers() as u64, "many laps of the arena");
}

#[test]
fn short_records_leave_the_reserve_to_the_network() {
    let options = Options { size: Some(256 << 10), log_entries: Some(1024), reserve: Some(40), ..tiny() };
    let mut shard = Region::open("memory:", &options).unwrap().into_shard().unwrap();
    let error = loop {
        let mut buffer = shard.arena().take().unwrap();
        assert!(buffer.arrive(0, &payload(1, 300)));
        let mut draft = shard.draft();
        shard.push(&mut draft, buffer.into_extent(0, 300).unwrap()).unwrap();
        match shard.append(draft) {
            Ok(_) => assert!(shard.arena().free_buffers() >= 40 - 1),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AppendError::Full(Full::Buffers { reserve: 40, .. })), "{error}");
}

#[test]
fn a_full_log_is_told_from_a_full_arena() {
    let mut shard = shard(256 << 10);
    let slots = shard.log_entries();
    for seq in 1..=slots {
        assert_eq!(store(&mut shard, b"inline", 800), seq);
    }
    let error = append(&mut shard, b"inline", 800).unwrap_err();
    assert_eq!(error, AppendError::Full(Full::LogEntries { needed: 1, free: 0 }));
    shard.trim(3).unwrap();
    store(&mut shard, b"inline", 800);
    let error = append(&mut shard, &payload(1, 4000), 800).unwrap_err();
    assert_eq!(error, AppendError::Full(Full::LogEntries { needed: 2, free: 1 }));
}

#[test]
fn a_trimmed_record_that_is_being_read_keeps_its_buffers() {
    let mut shard = shard(1 << 20);
    let all = shard.arena().free_buffers();
    let bytes = payload(7, 3000);
    let seq = store(&mut shard, &bytes, 800);
    let record = shard.record(seq).unwrap();
    let last = record.pieces().last().unwrap();
    shard.trim(seq + 1).unwrap();
    assert!(shard.record(seq).is_none());
    assert_eq!(record.to_vec(), bytes);
    assert_eq!(shard.arena().free_buffers(), all - 4);
    drop(record);
    assert_eq!(shard.arena().free_buffers(), all - 1);
    assert_eq!(last.bytes(), &bytes[2400..]);
    drop(last);
    assert_eq!(shard.arena().free_buffers(), all);
    let counters = shard.counters();
    assert_eq!((counters.pm_bytes, counters.live_records, counters.live_payload_bytes), (0, 0, 0));
}

#[test]
fn a_trim_ends_at_a_record_and_before_what_is_not_durable() {
    let mut shard = shard(1 << 20);
    let long = store(&mut shard, &payload(1, 8000), 800);
    let second = store(&mut shard, &payload(2, 800), 800);
    let _pending = append(&mut shard, &payload(3, 800), 800).unwrap();
    assert!(second > long + 1);
    let trimmed = shard.trim(long + 1).unwrap();
    assert_eq!((trimmed.head, trimmed.records), (second, 1), "a record goes as a whole");
    assert_eq!(shard.trim(long).unwrap().records, 0);
    assert_eq!(shard.trim(u64::MAX).unwrap().head, second + 1);
    assert!(shard.uncommitted());
    shard.commit().unwrap();
    assert_eq!(contents(&shard), [(second + 1, payload(3, 800))]);
}

#[test]
fn after_a_failed_fence_a_shard_takes_nothing_more() {
    let medium = LineModel::new(256 << 10);
    let mut shard = open(&medium, &tiny());
    let seq = store(&mut shard, b"before", 800);
    let all = shard.arena().free_buffers();
    let _pending = append(&mut shard, &payload(1, 800), 800).unwrap();
    medium.fail_fences(Some("the disk is gone"));
    let error = shard.commit().unwrap_err();
    assert!(matches!(&error, CommitError::Fence { why } if why.contains("the disk is gone")), "{error}");
    medium.fail_fences(None);
    assert!(matches!(shard.commit(), Err(CommitError::Poisoned { .. })), "a later fence proves nothing");
    let error = append(&mut shard, b"after", 800).unwrap_err();
    assert!(matches!(&error, AppendError::Poisoned { why } if why.contains("the disk is gone")), "{error}");
    assert!(matches!(shard.trim(seq + 1), Err(CommitError::Poisoned { .. })));
    assert!(matches!(shard.checkpoint(), Err(CommitError::Poisoned { .. })));
    assert_eq!(shard.record(seq).unwrap().to_vec(), b"before", "what was durable can still be read");
    assert_eq!(shard.arena().free_buffers(), all - 1, "what may be in the log is not reused");
}

#[test]
fn a_failed_trim_releases_nothing() {
    let medium = LineModel::new(256 << 10);
    let mut shard = open(&medium, &tiny());
    let seq = store(&mut shard, &payload(1, 4000), 800);
    let free = shard.arena().free_buffers();
    medium.fail_fences(Some("the disk is gone"));
    assert!(shard.trim(seq + 1).is_err());
    assert_eq!(shard.arena().free_buffers(), free);
    assert!(shard.record(seq).is_some());
}

#[test]
fn a_number_says_what_there_is_and_what_there_was() {
    let mut shard = shard(1 << 20);
    let long = store(&mut shard, &payload(1, 8000), 800);
    let short = store(&mut shard, b"short", 800);
    let _pending = append(&mut shard, b"not durable", 800).unwrap();
    let is = |shard: &Shard, seq| match shard.lookup(seq) {
        Lookup::Live(record) => format!("{} bytes", record.len()),
        other => format!("{other:?}"),
    };
    let all = [0, long, long + 1, short, short + 1, u64::MAX].map(|seq| is(&shard, seq));
    assert_eq!(all, ["NoRecord", "8000 bytes", "NoRecord", "5 bytes", "NotYet", "NotYet"]);
    shard.trim(short).unwrap();
    let all = [0, long, long + 1, short].map(|seq| is(&shard, seq));
    assert_eq!(all, ["NoRecord", "Trimmed", "Trimmed", "5 bytes"]);
}

#[test]
fn bytes_that_change_under_an_open_store_are_noticed_before_they_are_given() {
    for (len, segment) in [(20, 800), (300, 800), (700, 800), (9000, 800)] {
        let model = LineModel::new(256 << 10);
        let mut shard = open(&model, &tiny());
        let bytes = payload(7, len);
        let seq = store(&mut shard, &bytes, segment);
        let behind = store(&mut shard, b"behind", segment);
        let read = |shard: &Shard| {
            let mut good = Vec::new();
            for piece in shard.record(seq).unwrap().into_checked_pieces() {
                match piece {
                    Ok(piece) => good.extend_from_slice(piece.bytes()),
                    Err(damage) => return (good, Some(damage)),
                }
            }
            (good, None)
        };
        assert_eq!(read(&shard), (bytes.clone(), None), "{len} bytes");
        // The last byte, wherever it lies: short records have been copied.
        let image = model.crash(|| 2);
        let tail = &bytes[len - 16..];
        let places = image.windows(16).enumerate().filter(|(_, window)| *window == tail);
        places.for_each(|(at, _)| rot(&model, at + 15, 0x40));
        if len <= INLINE_BYTES {
            assert!(
                matches!(shard.lookup(seq), Lookup::Quarantined(damage) if damage.fault == EntryFault::Checksum)
            );
        } else {
            let (good, damage) = read(&shard);
            let damage = damage.expect("the last byte is wrong");
            assert!(good.len() < len && bytes.starts_with(&good), "{} of {len} bytes", good.len());
            assert_eq!((damage.seq, damage.fault), (seq, EntryFault::Payload));
            assert!(shard.quarantine(damage) && !shard.quarantine(damage), "once");
            assert!(matches!(shard.lookup(seq), Lookup::Quarantined(found) if found == damage));
            assert_eq!((shard.quarantine_counts().0, shard.quarantines()), (1, &[damage][..]));
        }
        assert_eq!(contents(&shard), [(behind, b"behind".to_vec())]);
        // A trim passes it, and nothing of it is held any longer than that.
        let trimmed = shard.trim(behind).unwrap();
        assert_eq!((trimmed.head, shard.quarantine_counts()), (behind, (0, 0)));
        assert_eq!(shard.counters().live_records, 1, "{len} bytes");
        shard.trim(u64::MAX).unwrap();
        assert_eq!(shard.counters().live_records, 0);
        drop(shard);
        let shard = open(&model, &tiny());
        assert_eq!(shard.arena().free_buffers(), shard.arena().buffers());
    }
}

#[test]
fn buffers_move_between_owner_device_and_free_list() {
    let shard = shard(256 << 10);
    let arena = shard.arena();
    let all = arena.free_buffers();
    assert_eq!(all, arena.buffers());
    let buffer = arena.take().unwrap();
    let (id, address) = (buffer.id(), arena.address(buffer.id()));
    assert_eq!(arena.id_at(address), Some(id));
    assert_eq!(arena.id_at(address.wrapping_add(arena.buffer_bytes() - 1)), Some(id));
    assert_eq!(arena.id_at(arena.base().wrapping_sub(1)), None);
    assert_eq!(arena.id_at(arena.base().wrapping_add(arena.buffers() * arena.buffer_bytes())), None);
    let second = buffer.clone();
    let buffer = buffer.lend().expect_err("there is another reference");
    drop(second);
    let lent = buffer.lend().unwrap();
    assert_eq!((lent.as_mut_ptr(), lent.len()), (address, arena.buffer_bytes()));
    lent[7..10].copy_from_slice(b"dma");
    assert_eq!(arena.free_buffers(), all - 1, "the device has it");
    let part = &mut lent[..100];
    assert!(arena.take_back(part).is_err(), "a part is not the buffer");
    let foreign = Box::leak(vec![0; arena.buffer_bytes()].into_boxed_slice());
    assert!(arena.take_back(foreign).is_err());
    assert_eq!(arena.free_buffers(), all - 1);

    let lent = arena.take().unwrap().lend().unwrap();
    lent[7..10].copy_from_slice(b"dma");
    let buffer = arena.take_back(lent).unwrap();
    assert_eq!(buffer.extent(7, 3).unwrap().bytes(), b"dma");
    drop(buffer);
    assert_eq!(arena.free_buffers(), all - 1);
}

#[test]
fn every_byte_of_an_arena_has_its_buffer_however_long_those_are() {
    for buffer_bytes in (1024..=u16::MAX).step_by(64 * 13) {
        let options = Options { buffer_bytes: Some(buffer_bytes), ..tiny() };
        let model = LineModel::new(40 * usize::from(buffer_bytes) + (64 << 10));
        let shard = open(&model, &options);
        let arena = shard.arena();
        let buffers: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        assert!(buffers.len() > 30 && arena.free_buffers() == 0);
        for buffer in buffers {
            let address = arena.address(buffer.id());
            for at in [0, 1, arena.buffer_bytes() - 1] {
                assert_eq!(arena.id_at(address.wrapping_add(at)), Some(buffer.id()), "{buffer_bytes}");
            }
        }
        let end = arena.buffers() * arena.buffer_bytes();
        for outside in [end, arena.len_bytes(), arena.len_bytes() + end, usize::MAX / 2] {
            assert_eq!(arena.id_at(arena.base().wrapping_add(outside)), None, "{buffer_bytes}: {outside}");
        }
    }
}

#[test]
fn a_medium_is_open_once() {
    let model = LineModel::new(256 << 10);
    let shard = open(&model, &tiny());
    let extent = shard.arena().take().unwrap().into_extent(0, 10).unwrap();
    drop(shard);
    let again = || Region::over(model.clone(), &tiny()).map(|_| ());
    assert!(matches!(again(), Err(OpenError::Locked { .. })), "a piece of it is still in use");
    drop(extent);
    again().unwrap();
}

#[test]
fn bytes_do_not_change_under_a_reference() {
    let shard = shard(256 << 10);
    let mut buffer = shard.arena().take().unwrap();
    assert!(!buffer.arrive(1020, b"beyond"), "a buffer has 1024 bytes");
    assert!(!buffer.arrive(usize::MAX, b"beyond"));
    assert!(buffer.arrive(1018, b"inside"));
    let mut extent = buffer.extent(1018, 3).unwrap();
    assert!(!buffer.arrive(1018, b"change"));
    assert!(!extent.extend_by_copy(b"x"));
    assert_eq!(extent.bytes(), b"ins");
    drop(buffer);
    assert!(!extent.extend_by_copy(b"1234"), "no room");
    assert!(extent.extend_by_copy(b"123"));
    assert_eq!(extent.bytes(), b"ins123");
    assert!(extent.clone().slice(2, 5).is_none());
    assert_eq!(extent.clone().slice(2, 4).unwrap().bytes(), b"s123");
    assert_eq!(extent.slice(6, 0).unwrap().bytes(), b"");
    assert_eq!(shard.counters().copied_bytes, 3);
    assert!(shard.arena().take().unwrap().into_extent(1000, 25).is_none());
}

/// Checks that the handles passed per packet stay small.
#[test]
fn references_are_sixteen_bytes() {
    assert_eq!((size_of::<pmem::Buffer>(), size_of::<pmem::Extent>()), (16, 16));
    assert_eq!(size_of::<Option<pmem::Extent>>(), 16);
}

#[derive(Debug, Clone)]
enum Op {
    Append { len: usize, segment: usize },
    Commit,
    Trim { permille: u64 },
    Checkpoint,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![0..40usize, 0..600usize, 0..6000usize];
    prop_oneof![
        6 => (len, 1..830usize).prop_map(|(len, segment)| Op::Append { len, segment }),
        3 => Just(Op::Commit),
        2 => (0..1200u64).prop_map(|permille| Op::Trim { permille }),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Step by step the same stores, flushes and fences, and so the same bytes on the medium and behind a power cut.
    #[test]
    fn a_record_of_one_piece_is_appended_as_a_draft_of_it_would_be(
        records in prop::collection::vec((0..1000usize, 0..5u8), 1..100),
        seed in any::<u64>(),
    ) {
        let image = {
            let model = LineModel::new(96 << 10);
            drop(open(&model, &tiny()));
            model.crash(|| 0)
        };
        let models = [LineModel::from_image(image.clone()), LineModel::from_image(image)];
        // As long as the log: where a header comes in between, its fence may find the payload flushed or not yet.
        let options = Options { max_record_bytes: 900, checkpoint_entries: 64, ..tiny() };
        let mut shards = models.each_ref().map(|model| open(model, &options));
        let mut kept = [const { Vec::new() }; 2];
        for (index, (len, then)) in records.into_iter().enumerate() {
            let bytes = payload(seed.wrapping_add(index as u64), len);
            let mut results = Vec::new();
            for (way, (shard, kept)) in shards.iter_mut().zip(&mut kept).enumerate() {
                let Some(mut buffer) = shard.arena().take() else { continue };
                assert!(buffer.arrive(20, &bytes));
                let extent = buffer.into_extent(20, len as u16).unwrap();
                // Others may hold the buffer too, and may append the same bytes again.
                let again = (then == 0 && kept.len() < 8).then(|| extent.clone());
                let mut append = |extent| {
                    if way == 0 {
                        shard.append_extent(extent)
                    } else {
                        let mut draft = shard.draft();
                        shard.push(&mut draft, extent)?;
                        shard.append(draft)
                    }
                };
                let mut pending = vec![append(extent)];
                if let Some(extent) = again {
                    pending.push(append(extent.clone()));
                    kept.push(extent);
                }
                if then == 1 {
                    kept.clear();
                }
                if then <= 2 {
                    let durable = shard.commit().unwrap();
                    let receipts: Vec<_> =
                        pending.into_iter().map(|pending| pending.map(|p| durable.confirm(p).unwrap())).collect();
                    results.push(format!("{receipts:?}"));
                }
                if then == 2 {
                    shard.trim(shard.next_seq().saturating_sub(3)).unwrap();
                }
            }
            prop_assert!(results.len() < 2 || results[0] == results[1], "{results:?}");
            let [one, other] = models.each_ref().map(|model| (memory(model), model.operations()));
            prop_assert_eq!(one.1, other.1, "operations on the medium");
            prop_assert!(one.0 == other.0, "record {} of {} bytes: other bytes", index, len);
            prop_assert_eq!(shards[0].counters(), shards[1].counters());
            prop_assert_eq!(shards[0].arena().free_buffers(), shards[1].arena().free_buffers());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// A shard is a list of byte strings: appended at one end, trimmed at the other, read in between.
    #[test]
    fn a_shard_is_a_list(ops in prop::collection::vec(op(), 1..120), seed in any::<u64>()) {
        let model = LineModel::new(128 << 10);
        let mut shard = open(&model, &tiny());
        let mut expected: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut pending = Vec::new();
        for (index, op) in ops.into_iter().enumerate() {
            match op {
                Op::Append { len, segment } => {
                    let bytes = payload(seed.wrapping_add(index as u64), len);
                    match append(&mut shard, &bytes, segment) {
                        Ok(receipt) => pending.push((receipt, bytes)),
                        Err(AppendError::Full(_)) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
                Op::Commit => {
                    let durable = shard.commit().unwrap();
                    for (pending, bytes) in pending.drain(..) {
                        expected.push((durable.confirm(pending).unwrap().seq, bytes));
                    }
                }
                Op::Trim { permille } => {
                    let before = shard.next_seq() * permille / 1000;
                    shard.trim(before).unwrap();
                    expected.retain(|(seq, _)| *seq >= before);
                }
                Op::Checkpoint => shard.checkpoint().unwrap(),
                Op::Reopen => {
                    let durable = shard.commit().unwrap();
                    for (pending, bytes) in pending.drain(..) {
                        expected.push((durable.confirm(pending).unwrap().seq, bytes));
                    }
                    let used = shard.counters().pm_bytes;
                    drop(shard);
                    shard = open(&model, &tiny());
                    prop_assert_eq!(shard.counters().pm_bytes, used);
                }
            }
            prop_assert_eq!(contents(&shard), expected.as_slice());
        }
        drop(pending);
        shard.commit().unwrap();
        shard.trim(u64::MAX).unwrap();
        drop(shard);
        let shard = open(&model, &tiny());
        prop_assert_eq!(shard.arena().free_buffers(), shard.arena().buffers(), "nothing leaks");
    }
}

#[test]
fn a_trim_of_many_records_frees_some_at_once_and_the_others_as_they_are_wanted() {
    let options = Options { size: Some(96 << 20), log_entries: Some(32_768), ..Options::default() };
    let mut shard = Region::open(MEMORY, &options).unwrap().into_shard().unwrap();
    let free_at_start = shard.arena().free_buffers();
    let append = |shard: &mut Shard| {
        let mut buffer = shard.arena().take().unwrap();
        assert!(buffer.arrive(0, &[7; 1500]));
        shard.append_extent(buffer.into_extent(0, 1500).unwrap()).map(|_| ())
    };
    for _ in 0..32_768 {
        append(&mut shard).unwrap();
    }
    shard.commit().unwrap();
    assert!(matches!(append(&mut shard), Err(AppendError::Full(_))));

    let (head, next) = (shard.head_seq(), shard.next_seq());
    let trimmed = shard.trim(next - 100).unwrap();
    assert_eq!((trimmed.head, trimmed.records), (next - 100, next - 100 - head));
    assert_eq!(trimmed.payload_bytes, 1500 * trimmed.records);
    assert_eq!((shard.counters().live_records, shard.counters().live_payload_bytes), (100, 150_000));
    assert!(shard.record(next - 101).is_none() && shard.record(next - 100).is_some());
    let freed = shard.arena().free_buffers() + 32_768 - free_at_start;
    assert!((1..10_000).contains(&freed), "{freed} buffers were freed at once");

    // What is trimmed makes room for as many records as the log holds, without anybody's tending it.
    for _ in 0..32_668 {
        append(&mut shard).unwrap();
    }
    assert!(matches!(append(&mut shard), Err(AppendError::Full(_))));
    shard.commit().unwrap();
    let next = shard.next_seq();
    assert_eq!(shard.trim(next).unwrap().records, 32_768);
    let mut turns = 0;
    while shard.tend() {
        turns += 1;
    }
    assert!(turns > 3, "{turns}");
    assert_eq!(shard.arena().free_buffers(), free_at_start);
    assert_eq!(shard.free_log_entries(), 32_768);
}

/// Whole buffers that the log holds, beside the bytes in them.
fn amplification(len: usize, pack_below: u16) -> f64 {
    let options = Options { size: Some(4 << 20), pack_below, ..Options::default() };
    let mut shard = Region::open(MEMORY, &options).unwrap().into_shard().unwrap();
    let records = 500;
    for seed in 0..records {
        // From a network, in one piece and in two, and from memory.
        let bytes = payload(seed, len);
        let segment = if seed % 2 == 0 { 1448 } else { len.div_ceil(2) };
        let seq = match seed % 5 {
            0 => {
                let pending = shard.append_copy(&bytes).unwrap();
                shard.commit().unwrap().confirm(pending).unwrap().seq
            }
            _ => store(&mut shard, &bytes, segment),
        };
        assert_eq!(shard.record(seq).unwrap().to_vec(), bytes);
    }
    let arena = shard.arena();
    let held = (arena.buffers() - arena.free_buffers()) * arena.buffer_bytes();
    held as f64 / (records * len as u64) as f64
}

#[test]
fn packed_records_take_little_more_than_their_bytes() {
    // As it is by default: what is short is packed, and what is not lies where it arrived.
    assert!(amplification(64, 512) < 1.2);
    assert!(amplification(500, 512) < 1.2);
    assert!(amplification(1024, 512) > 2.0);
    for (len, pack_below) in [(1024, 1025), (1024, 2176), (700, 1088), (64, 33)] {
        let is_packed = len < usize::from(pack_below);
        let amplification = amplification(len, pack_below);
        assert_eq!(amplification < 1.3, is_packed, "{len} bytes with {pack_below}: {amplification}");
    }
    for pack_below in [0, 32, 2177] {
        let options = Options { size: Some(4 << 20), pack_below, ..Options::default() };
        let error = Region::open(MEMORY, &options).map(drop).unwrap_err();
        assert!(error.to_string().contains("33 to 2176"), "{error}");
    }
}
