//! A store whose superblock is lost in both copies: how it was cut up is found by its logs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{Log, Snapshot};
use crate::{
    format::{
        crc,
        entry::{ENTRY_BYTES, Entry},
        geometry::{Geometry, GeometryOptions},
        superblock::{Contents, FIRST_VERSION, Superblock, VERSION},
    },
    recovery::{error::OpenError, scan::Source as _},
    region::ReadOnly,
};

/// How a store was made, as far as somebody knows: what is left out is what a new store has, or tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// Its length, where it is not all of a device.
    pub bytes: Option<u64>,
    /// Its shards.
    pub shards: Option<u32>,
    /// Length of its buffers.
    pub buffer_bytes: Option<u16>,
    /// Log entries of each shard.
    pub log_entries: Option<u32>,
}

/// Numbers of shards that are tried.
const MAX_SHARDS: u32 = 64;
/// Entries at the beginning of a log that are looked at, places all over it, and entries at each of these.
const FIRST_SLOTS: u64 = 256;
const PLACES: u64 = 32;
const PLACE_SLOTS: u64 = 8;
/// Records whose payload is checked.
const MAX_RECORDS: usize = 16;

impl Snapshot {
    /// Opens a store for reading whose superblock is lost, which is cut up as its logs say. The store's own identifier and what
    /// its records are is not known then.
    ///
    /// # Errors
    /// [`OpenError`]: a process has it open for writing, or there are no logs of such a store.
    pub fn open_by_logs(path: impl AsRef<Path>, shape: &Shape) -> Result<Self, OpenError> {
        let path = path.as_ref().to_path_buf();
        let source = ReadOnly::open(&path)?;
        let bytes = shape.bytes.unwrap_or_else(|| source.len());
        let shards = shape.shards.map_or(1..=MAX_SHARDS, |shards| shards..=shards);
        let mut best: Option<Guess> = None;
        for shards in shards {
            let options = GeometryOptions {
                shards: Some(shards),
                buffer_bytes: shape.buffer_bytes,
                log_entries: shape.log_entries,
            };
            let Ok(geometry) = Geometry::plan(bytes, options) else { continue };
            for geometry in [geometry, geometry.of_version_1()] {
                let guess = Guess::new(&source, geometry);
                // Of those that explain as much, the one with the fewest shards.
                if guess.entries > best.as_ref().map_or(0, |best| best.entries) {
                    best = Some(guess);
                }
            }
        }
        let Some(Guess { geometry, seeds, .. }) = best else { return Err(no_logs(path)) };
        let version = if geometry.copies_apart { VERSION } else { FIRST_VERSION };
        let superblock = Superblock { version, uuid: Uuid::nil(), geometry, contents: Contents::Unknown };
        Ok(Self { source, path, superblock, damaged_copy: true, seeds: Some(seeds) })
    }
}

fn no_logs(path: PathBuf) -> OpenError {
    OpenError::Geometry(format!(
        "{} has no log where a store of this shape has one; say how it was made (size, shards, length of its buffers, log \
         entries)",
        path.display()
    ))
}

/// A way in which a store may be cut up.
struct Guess {
    geometry: Geometry,
    /// Entries that are where they belong then, of those that were looked at.
    entries: u64,
    /// What the checksums of each shard's log begin with.
    seeds: Vec<u32>,
}

impl Guess {
    fn new(source: &ReadOnly, geometry: Geometry) -> Self {
        let mut guess = Self { geometry, entries: 0, seeds: Vec::new() };
        for shard in 0..geometry.shards {
            let log = Log::new(source, &geometry, shard, PLACE_SLOTS);
            let Some((seed, entries)) = guess.log(&log) else { return Self { entries: 0, ..guess } };
            guess.seeds.push(seed);
            guess.entries += entries;
        }
        guess
    }

    /// What the checksums of a log begin with, and how many of its entries agree with that; none if what they name is somewhere
    /// else.
    fn log(&self, log: &Log<'_>) -> Option<(u32, u64)> {
        let slots = log.slots();
        let places =
            (0..PLACES).flat_map(|place| place * (slots / PLACES)..place * (slots / PLACES) + PLACE_SLOTS);
        let looked_at = (0..FIRST_SLOTS).chain(places).filter(|&index| index < slots);
        let mut seeds = BTreeMap::<u32, Vec<Entry>>::new();
        for index in looked_at {
            let Some(bytes) = log.slot(index).filter(|bytes| *bytes != [0; ENTRY_BYTES]) else { continue };
            // It says itself where it belongs.
            if u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes")) % slots != index {
                continue;
            }
            let (sum, rest) = bytes.split_first_chunk().expect("an entry is longer");
            let seed = crc::crc32c_before(u32::from_le_bytes(*sum), rest);
            let entry = Entry::decode(&bytes, seed).ok();
            seeds.entry(seed).or_default().extend(entry);
        }
        let most = seeds.into_iter().max_by_key(|(_, entries)| entries.len());
        let Some((seed, entries)) = most.filter(|(_, entries)| !entries.is_empty()) else {
            return Some((0, 0));
        };
        let named = entries.iter().filter(|entry| entry.is_first && !entry.extents().is_empty());
        let is_there = |entry: &Entry| {
            let sum = entry.extents().iter().try_fold(0, |sum, &name| {
                let is_in = name.buffer.0 < self.geometry.buffers
                    && name.end() <= u32::from(self.geometry.buffer_bytes);
                is_in.then(|| log.checksum(sum, name)).flatten()
            });
            sum == Some(entry.payload_crc)
        };
        let (there, gone): (Vec<&Entry>, Vec<&Entry>) =
            named.rev().take(MAX_RECORDS).partition(|entry| is_there(entry));
        // Records that were trimmed may be gone.
        let is_elsewhere = there.is_empty() && !gone.is_empty();
        (!is_elsewhere).then_some((seed, entries.len() as u64))
    }
}
