//! A store whose bytes someone has changed: it is refused or opened, what it gives is what its checksums say, and what is
//! appended then is there when it is opened again.

use std::sync::{Arc, OnceLock};

use arbitrary::{Arbitrary, Unstructured};
use pmem::{LineModel, Medium, Options, Region, Shard};

/// The records of the store that is changed: of every form.
const LENGTHS: [usize; 6] = [0, 20, 31, 400, 900, 3000];
const STORE_BYTES: usize = 96 << 10;

/// Bytes that are changed, at a place counted from the beginning of one of the store's parts.
#[derive(Debug, Arbitrary)]
struct Change {
    part: u8,
    at: u16,
    bytes: [u8; 8],
    len: u8,
}

fn options() -> Options {
    let log_entries = Some(64);
    Options {
        size: Some(STORE_BYTES as u64),
        buffer_bytes: Some(1024),
        log_entries,
        reserve: Some(4),
        ..Options::default()
    }
}

/// A sound store with some records in it, of which the oldest are trimmed.
fn sound() -> &'static (Vec<u8>, [usize; 6]) {
    static SOUND: OnceLock<(Vec<u8>, [usize; 6])> = OnceLock::new();
    SOUND.get_or_init(|| {
        let model = LineModel::new(STORE_BYTES);
        let region = Region::over(model.clone(), &options()).expect("a new store");
        let geometry = region.info().geometry;
        let mut shard = region.into_shard().expect("a new store opens");
        for (len, byte) in LENGTHS.into_iter().cycle().zip(1..14u8) {
            append(&mut shard, &vec![byte; len]).expect("there is room");
        }
        shard.commit().expect("the model takes it");
        let third = shard.records(0).nth(2).expect("there are more").seq;
        shard.trim(third).expect("the model takes it");
        let ([superblock, its_copy], [header, copy]) = (geometry.superblocks(), geometry.headers_of(0));
        let (log, arena) = (geometry.log_offset as usize, geometry.arena_offset as usize);
        (model.crash(|| 0), [superblock, header, log, arena, its_copy, copy])
    })
}

fn append(shard: &mut Shard, bytes: &[u8]) -> Option<u64> {
    let seq = shard.next_seq();
    let mut draft = shard.draft();
    for piece in bytes.chunks(700) {
        let mut buffer = shard.arena().take()?;
        assert!(buffer.arrive(100, piece));
        shard.push(&mut draft, buffer.into_extent(100, piece.len() as u16)?).ok()?;
    }
    let _durable_with_the_next_commit = shard.append(draft).ok()?;
    Some(seq)
}

/// Changes a sound store as the bytes say, and opens it.
pub(crate) fn run(bytes: &[u8]) {
    let (image, parts) = sound();
    let mut image = image.clone();
    let mut bytes = Unstructured::new(bytes);
    while !bytes.is_empty() {
        let Ok(change) = Change::arbitrary(&mut bytes) else { break };
        let at = parts[usize::from(change.part % 6)] + usize::from(change.at);
        let len = usize::from(change.len % 8) + 1;
        if let Some(place) = image.get_mut(at..at + len) {
            place.copy_from_slice(&change.bytes[..len]);
        }
    }
    let model = LineModel::from_image(image);
    let reopen = |model: &Arc<LineModel>| {
        let medium: Arc<dyn Medium> = model.clone();
        Region::over(medium, &Options { size: None, ..options() }).ok()?.into_shard().ok()
    };
    let Some(mut shard) = reopen(&model) else { return };
    read_all(&shard);
    let appended = append(&mut shard, b"new").filter(|_| shard.commit().is_ok());
    let before = shard.records(0).nth(1).map(|record| record.seq);
    if let Some(before) = before {
        shard.trim(before).expect("the model takes it");
    }
    drop(shard);

    let image = model.crash(|| 0);
    let shard = reopen(&LineModel::from_image(image)).expect("a store that was open opens again");
    read_all(&shard);
    if let Some(seq) = appended.filter(|seq| before.is_none_or(|before| before <= *seq)) {
        let record = shard.record(seq).expect("what was durable is there");
        assert_eq!(record.to_vec(), b"new");
    }
}

/// Every record that is listed is what its checksum says.
fn read_all(shard: &Shard) {
    for info in shard.records(0) {
        let record = shard.record(info.seq).expect("a record that is listed");
        let bytes = record.to_vec();
        assert_eq!(
            (bytes.len() as u64, crc32c::crc32c(&bytes)),
            (info.len, info.crc32c),
            "record {}",
            info.seq
        );
    }
}
