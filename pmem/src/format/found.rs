//! What store a region holds, by the two copies of its superblock.

use super::{
    geometry::{PAGE_BYTES, last_block},
    superblock::{FIRST_VERSION, MAGIC, SUPERBLOCK_BYTES, Superblock, VERSION},
};

/// What lies in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A store; `damaged_copy` is the copy that does not match the other one.
    Store { superblock: Superblock, damaged_copy: Option<usize> },
    /// A store of a version that this code does not know.
    Version(u32),
    /// A store whose superblock is damaged in both copies.
    Damaged,
    /// Zeros, where it begins.
    Empty,
    /// Something else.
    Foreign,
}

/// A region of which nothing is known yet.
pub(crate) struct Unknown<'a> {
    /// Its length, and the length that a store in it is said to have.
    pub bytes: u64,
    pub asked: Option<u64>,
    /// Whether nothing will be written: then a store may be taken for one by the copy at its end alone, whatever has come
    /// over its beginning.
    pub is_read_only: bool,
    /// Fills a buffer from an offset on; zeros where nothing can be read.
    pub read: &'a dyn Fn(u64, &mut [u8]),
}

type Copy = [u8; SUPERBLOCK_BYTES];

impl Unknown<'_> {
    /// Looks where copies of a superblock lie.
    pub(crate) fn find(&self) -> Found {
        let first = self.copy(0);
        if let Some(superblock) = Superblock::decode(&first) {
            let [_, place] = superblock.geometry.superblocks();
            return pair(superblock, &self.copy(place as u64));
        }
        // The second copy lies beside the first, or in the region's last block.
        let asked = self.asked.filter(|&asked| asked <= self.bytes).unwrap_or(self.bytes);
        let places = [SUPERBLOCK_BYTES as u64, last_block(self.bytes), last_block(asked)];
        let seconds = places.map(|place| (place, self.copy(place)));
        let newer =
            [&first].into_iter().chain(seconds.iter().map(|(_, copy)| copy)).find_map(Superblock::newer);
        let second = seconds.iter().find_map(|(place, copy)| {
            let superblock = Superblock::decode(copy)?;
            let is_there = superblock.geometry.superblocks()[1] as u64 == *place;
            let is_beside = *place == SUPERBLOCK_BYTES as u64;
            (is_there && (is_beside || self.is_read_only || self.begins_like(copy))).then_some(superblock)
        });
        match (newer, second) {
            (Some(found), _) => Found::Version(found),
            (None, Some(superblock)) => Found::Store { superblock, damaged_copy: Some(0) },
            _ if [&first, &seconds[0].1].iter().all(|copy| copy.iter().all(|&byte| byte == 0)) => {
                Found::Empty
            }
            _ if [&first, &seconds[0].1].iter().any(|copy| copy.starts_with(&MAGIC)) => Found::Damaged,
            _ => Found::Foreign,
        }
    }

    fn copy(&self, offset: u64) -> Copy {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        (self.read)(offset, &mut bytes);
        bytes
    }

    /// Whether the region begins with what may have been such a copy, or with a block that was lost. Something else may
    /// have been put there since, which is not to be written over.
    fn begins_like(&self, copy: &Copy) -> bool {
        let mut block = [0; PAGE_BYTES as usize];
        (self.read)(0, &mut block);
        let words = |bytes: &[u8]| -> Vec<[u8; 8]> { bytes.as_chunks().0.to_vec() };
        let (there, expected) = (words(&block[..SUPERBLOCK_BYTES]), words(copy));
        let written = expected.iter().filter(|word| **word != [0; 8]).count();
        let alike = there
            .iter()
            .zip(&expected)
            .filter(|(word, expected)| word == expected && **word != [0; 8])
            .count();
        there[0] == MAGIC || 2 * alike >= written || block.iter().all(|&byte| byte == 0)
    }
}

/// What a sound first copy and the place of the second one are.
fn pair(first: Superblock, second: &Copy) -> Found {
    let store = |superblock, damaged_copy| Found::Store { superblock, damaged_copy };
    let Some(other) = Superblock::decode(second) else {
        // A newer program was ended while it wrote its copies: only it knows what it was about to do.
        return Superblock::newer(second).map_or(store(first, Some(1)), Found::Version);
    };
    // A program was ended while it took a store of version 1 over; or an older one has repaired a copy, and left out what it
    // did not know.
    let known = |one: Superblock| one.contents.is_known();
    let alike = Superblock { version: other.version, contents: other.contents, ..first } == other;
    match () {
        () if first == other => store(first, None),
        () if !alike || known(first) && known(other) && first.contents != other.contents => Found::Damaged,
        () if (first.version, known(first)) >= (other.version, known(other)) => store(first, Some(1)),
        () => store(other, Some(0)),
    }
}

impl Superblock {
    /// The version of an undamaged copy, if this code does not know it.
    fn newer(bytes: &Copy) -> Option<u32> {
        Self::version(bytes).filter(|version| !(FIRST_VERSION..=VERSION).contains(version))
    }
}
