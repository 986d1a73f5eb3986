//! Makes the golden image of the format that this code writes: `cargo run -p pmem --example golden -- DIRECTORY`.
//!
//! It leaves there `store`, the image, and `records`, a line for each log entry of the live part: shard, number, what is
//! there, and of what length. `tests/golden/README.md` says what becomes of them.

#[path = "../tests/golden/content.rs"]
mod content;

use std::{
    error::Error,
    fmt::Write as _,
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use content::{Entry, content, state, time_s};
use pmem::{Contents, Options, Region, Shard};

const SHARDS: usize = 3;
/// Where what arrives begins in a buffer.
const OFFSET: usize = 194;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).ok_or("name a directory")?;
    let path = Path::new(&directory).join("store");
    make(&path)?;
    let mut lines = String::new();
    for (index, shard) in open(&path)?.iter().enumerate() {
        for seq in shard.head_seq()..shard.next_seq() {
            let Entry { state, len } = state(shard, seq);
            writeln!(lines, "{index} {seq} {state} {len}")?;
        }
    }
    fs::write(Path::new(&directory).join("records"), lines)?;
    // Again without what the opening mended.
    fs::remove_file(&path)?;
    make(&path)
}

fn options() -> Options {
    Options {
        size: Some(192 << 10),
        shards: Some(SHARDS as u32),
        buffer_bytes: Some(1024),
        log_entries: Some(64),
        reserve: Some(2),
        contents: Contents::Bodies,
        ..Options::default()
    }
}

fn open(path: &Path) -> Result<Vec<Shard>, Box<dyn Error>> {
    let seeds = Region::open(path, &options())?.into_seeds();
    Ok(seeds.into_iter().map(|seed| seed.open()).collect::<Result<_, _>>()?)
}

fn make(path: &Path) -> Result<(), Box<dyn Error>> {
    let mut shards = open(path)?;
    // Records of all kinds, the first of which are trimmed.
    for len in [5, 600, 0, 1, 32, 33, 100, 300, 511, 512, 513, 700, 1500, 3000, 5000, 64, 700, 700, 900, 40] {
        append(&mut shards[0], 0, len, 700)?;
    }
    let third = shards[0].records(0).nth(2).ok_or("three records")?.seq;
    shards[0].trim(third)?;
    append(&mut shards[1], 1, 700, 700)?;
    append(&mut shards[1], 1, 20, 700)?;
    // Some laps of the log, and the live part lies across its end.
    for number in 0..150 {
        append(&mut shards[2], 2, [10, 200, 600][number % 3], 700)?;
        if number % 10 == 9 {
            let before = shards[2].next_seq().saturating_sub(12);
            shards[2].trim(before)?;
        }
    }
    shards.iter_mut().try_for_each(Shard::checkpoint)?;
    // A record that is given up, and one that stays damaged; an earlier one with several entries.
    let damaged =
        |shard: &Shard, len| shard.records(0).filter(|info| info.len == len).last().map(|info| info.seq);
    let (long, given_up) =
        (damaged(&shards[0], 5000).ok_or("it is there")?, damaged(&shards[0], 700).ok_or("it is there")?);
    drop(shards);
    flip(path, &content(0, long, 5000)[2100..2140])?;
    flip(path, &content(0, given_up, 700)[..40])?;
    let mut shards = open(path)?;
    let entries =
        shards[0].quarantines().iter().find(|damage| damage.seq == given_up).ok_or("it is damaged")?.entries;
    shards[0].drop_quarantined(given_up, entries)?;
    // Of another opening, after the epoch has risen.
    for (index, shard) in shards.iter_mut().enumerate() {
        append(shard, index, 800, 700)?;
        shard.checkpoint()?;
    }
    // The end that a power cut leaves of an append.
    let torn = shards[1].next_seq();
    append(&mut shards[1], 1, 650, 700)?;
    let epoch = shards[2].epoch();
    drop(shards);
    flip(path, &content(1, torn, 650)[..40])?;
    lose_header(path, epoch)
}

/// Appends a record of the content that its number and length say, and commits.
fn append(shard: &mut Shard, index: usize, len: usize, segment: usize) -> Result<(), Box<dyn Error>> {
    let seq = shard.next_seq();
    let bytes = content(index, seq, len);
    shard.set_time(time_s(2, seq));
    let mut draft = shard.draft();
    for piece in bytes.chunks(segment) {
        let mut buffer = shard.arena().take().ok_or("no buffer is free")?;
        assert!(buffer.arrive(OFFSET, piece));
        shard.push(&mut draft, buffer.into_extent(OFFSET as u16, piece.len() as u16).ok_or("it fits")?)?;
    }
    let pending = shard.append(draft)?;
    shard.commit()?.confirm(pending).map_err(|_| "it was committed")?;
    Ok(())
}

/// Flips a bit of the bytes, which are in the file once.
fn flip(path: &Path, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let image = fs::read(path)?;
    let mut found = image.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes);
    let (at, _) = found.next().ok_or("the bytes are there")?;
    assert!(found.next().is_none(), "the bytes are there once");
    flip_at(path, &image, at)
}

fn flip_at(path: &Path, image: &[u8], at: usize) -> Result<(), Box<dyn Error>> {
    OpenOptions::new().write(true).open(path)?.write_all_at(&[image[at] ^ 4], at as u64)?;
    Ok(())
}

/// Damages a copy of a header of the last shard, of this epoch: the last block of all that begins like one.
fn lose_header(path: &Path, epoch: u32) -> Result<(), Box<dyn Error>> {
    let image = fs::read(path)?;
    let layout = Region::open(path, &options())?.info().geometry;
    let logs = layout.log_offset as usize..layout.arena_offset as usize;
    let mut epochs = (4096..image.len())
        .step_by(256)
        .filter(|at| !logs.contains(at) && image[at + 4..][..4] == epoch.to_le_bytes());
    flip_at(path, &image, epochs.rfind(|at| image[at + 48..][..208] == [0; 208]).ok_or("a header")? + 24)
}
