//! What was written to a disk, in its order, and what of it may be there after a power cut.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;
/// Where the log says how many entries it has.
const COUNT_AT: u64 = 16;

/// The log that QEMU's driver blklogwrites keeps, with sectors of 512 bytes, in the format of Linux' dm-log-writes: a
/// sector that says what this is, and for each request one of what it was, with its data behind.
pub struct BlockLog(File);

/// A request to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Bytes were written.
    Write {
        /// Where, in bytes.
        at: usize,
        bytes: Vec<u8>,
        /// Whether they were there to stay when the write was done (FUA).
        is_kept: bool,
    },
    /// What was written before is there to stay.
    Flush,
}

impl BlockLog {
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self(File::open(path).with_context(|| format!("cannot open {}", path.display()))?))
    }

    /// How many requests the disk has done.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn len(&self) -> Result<u64> {
        let mut count = [0; 8];
        self.0.read_exact_at(&mut count, COUNT_AT).context("the disk's log has no beginning")?;
        Ok(u64::from_le_bytes(count))
    }

    /// All of them.
    ///
    /// # Errors
    /// It is not as expected.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        const MAGIC: u64 = 0x006a_7366_7773_6872;
        const KEPT: u64 = 2;
        const FLUSH: u64 = 1;
        const DISCARD: u64 = 4;
        let word = |at: u64| {
            let mut bytes = [0; 8];
            self.0.read_exact_at(&mut bytes, at).map(|()| u64::from_le_bytes(bytes))
        };
        let (magic, version) = (word(0)?, word(8)?);
        ensure!(magic == MAGIC && version == 1, "no log of a disk's writes: {magic:#x}, version {version}");
        let mut at = SECTOR_BYTES as u64;
        let mut entries = Vec::new();
        for _ in 0..self.len()? {
            let (sector, sectors, flags) = (word(at)?, word(at + 8)?, word(at + 16)?);
            ensure!(flags & DISCARD == 0, "the guest has discarded sectors of its disk");
            at += SECTOR_BYTES as u64;
            if sectors > 0 {
                let mut bytes = vec![0; usize::try_from(sectors)? * SECTOR_BYTES];
                self.0.read_exact_at(&mut bytes, at)?;
                at += bytes.len() as u64;
                let is_kept = flags & KEPT != 0;
                entries.push(Entry::Write { at: usize::try_from(sector)? * SECTOR_BYTES, bytes, is_kept });
            } else {
                ensure!(flags & FLUSH != 0, "an entry of nothing, with flags {flags:#x}");
                entries.push(Entry::Flush);
            }
        }
        Ok(entries)
    }
}

/// A disk that is written anew, from a log of what was written.
pub struct Replay<'a> {
    entries: &'a [Entry],
    done: usize,
    /// What is there to stay.
    image: Vec<u8>,
    /// Since the last flush.
    written: Vec<&'a Entry>,
}

/// What of the writes that no flush is behind is there after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Nothing,
    Everything,
    /// Of each write nothing, all, or some of its sectors.
    Anything,
}

impl<'a> Replay<'a> {
    /// A disk of so many bytes, all of them zeros.
    pub fn new(bytes: usize, entries: &'a [Entry]) -> Self {
        Self { entries, done: 0, image: vec![0; bytes], written: Vec::new() }
    }

    /// Goes on until so many requests are done.
    ///
    /// # Errors
    /// One is beyond the disk's end.
    pub fn advance(&mut self, to: usize) -> Result<()> {
        for entry in &self.entries[self.done..to] {
            match entry {
                Entry::Write { at, bytes, .. } => {
                    ensure!(at + bytes.len() <= self.image.len(), "a write beyond the end of the disk");
                    self.written.push(entry);
                }
                Entry::Flush => {
                    for write in self.written.drain(..) {
                        put(&mut self.image, write, |_| true);
                    }
                }
            }
        }
        self.done = to;
        Ok(())
    }

    /// Writes that no flush is behind.
    pub fn unflushed(&self) -> usize {
        self.written.len()
    }

    /// What is there after a power cut now.
    pub fn cut(&self, left: Left, mut chance: impl FnMut() -> u64) -> Vec<u8> {
        let mut image = self.image.clone();
        for write in &self.written {
            let kind = match (left, write) {
                (_, Entry::Write { is_kept: true, .. }) | (Left::Everything, _) => 1,
                (Left::Nothing, _) => 0,
                (Left::Anything, _) => chance() % 3,
            };
            put(&mut image, write, |_| kind == 1 || kind == 2 && chance().is_multiple_of(2));
        }
        image
    }
}

/// Puts those sectors of a write where they belong that are to be there.
fn put(image: &mut [u8], write: &Entry, mut is_there: impl FnMut(usize) -> bool) {
    let Entry::Write { at, bytes, .. } = write else { return };
    let places = image[*at..*at + bytes.len()].chunks_mut(SECTOR_BYTES).zip(bytes.chunks(SECTOR_BYTES));
    for (number, (place, sector)) in places.enumerate() {
        if is_there(number) {
            place.copy_from_slice(sector);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn write(sector: usize, bytes: &[u8]) -> Entry {
        let bytes = bytes.iter().flat_map(|byte| [*byte; SECTOR_BYTES]).collect();
        Entry::Write { at: sector * SECTOR_BYTES, bytes, is_kept: false }
    }

    /// The first byte of each sector after many power cuts.
    fn states(replay: &Replay<'_>) -> BTreeSet<Vec<u8>> {
        let mut seed = 0;
        let mut chance = || {
            seed += 1;
            u64::from_le_bytes(lab::noise(seed, 8).try_into().unwrap())
        };
        let mut state =
            || replay.cut(Left::Anything, &mut chance).chunks(SECTOR_BYTES).map(|sector| sector[0]).collect();
        (0..200).map(|_| state()).collect()
    }

    #[test]
    fn what_was_flushed_stays_and_of_the_rest_there_is_any_part_in_its_order() {
        let mut kept = write(3, &[9]);
        if let Entry::Write { is_kept, .. } = &mut kept {
            *is_kept = true;
        }
        let entries = [write(0, &[1, 1]), Entry::Flush, write(1, &[2, 2]), kept, write(1, &[3])];
        let mut replay = Replay::new(4 * SECTOR_BYTES, &entries);
        replay.advance(1).unwrap();
        assert_eq!(
            states(&replay),
            [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]].map(Vec::from).into()
        );
        replay.advance(2).unwrap();
        assert_eq!((states(&replay), replay.unflushed()), ([vec![1, 1, 0, 0]].into(), 0));
        replay.advance(5).unwrap();
        let all = [0, 2].map(|third| [1, 2, 3].map(|second| vec![1, second, third, 9]));
        assert_eq!(states(&replay), all.concat().into_iter().collect());
        let nobody = || panic!("nothing is left to chance");
        assert_eq!(replay.cut(Left::Nothing, nobody)[SECTOR_BYTES..][..1], [1]);
        assert_eq!(replay.cut(Left::Everything, nobody)[SECTOR_BYTES..][..1], [3]);
    }
}
