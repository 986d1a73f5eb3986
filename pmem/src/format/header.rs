//! A shard's header: what its log needs besides the entries, in two copies that are alike between any two writes.
//!
//! The head lies here and not in the superblock, so that cores trim without sharing a line. What was acknowledged depends
//! on no single copy: a new header is durable in one copy before the other is touched, and in both before anybody
//! relies on it.

use std::fmt;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U32, U64},
};

use super::crc;
use crate::safeguard::{Safeguard, omits};

/// Length of one copy.
pub(crate) const HEADER_BYTES: usize = 256;
/// Both copies, as they lie in a medium.
pub(crate) type Copies = [[u8; HEADER_BYTES]; 2];

/// What a shard's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Rises with every write; the copy with the higher one counts.
    pub generation: u64,
    /// Whether it was written by a program that keeps both copies alike: then one copy has all that was acknowledged.
    pub is_mirrored: bool,
    /// Rises with every opening for writing.
    pub epoch: u32,
    /// The first sequence number of this epoch. All below were durable before the header was.
    pub first_seq: u64,
    /// The first live entry.
    pub head: u64,
    /// An entry up to which everything was durable when the header was written.
    pub durable_seq: u64,
    /// No entry is written that is further than this beyond `durable_seq`, before another header is durable. 0 where nobody
    /// keeps to such a bound, as with older programs.
    pub ahead: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    crc: U32,
    epoch: U32,
    generation: U64,
    first_seq: U64,
    head: U64,
    durable_seq: U64,
    mirrored: U32,
    ahead: U32,
    reserved: [u8; 208],
}

/// What both copies of a shard's header are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// The newer sound copy.
    pub header: Header,
    /// Which copy that is; none if both are alike.
    pub at: Option<usize>,
    /// The copy that is not sound, if one is not.
    pub damage: Option<HeaderDamage>,
}

/// A copy of a shard's header that cannot be read, beside one that can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeaderDamage {
    /// Which of the two copies: 0 or 1.
    pub copy: u8,
    /// Whether it may have been the newer one, with a trim that was acknowledged and is now undone. Programs that wrote
    /// one copy at a time left such stores.
    pub may_be_newer: bool,
}

impl fmt::Display for HeaderDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { copy, may_be_newer } = self;
        write!(f, "copy {copy} of the shard's header is damaged or was half written")?;
        if *may_be_newer {
            f.write_str(
                ", and an older program wrote it last: it may have been the newer one, and records that were trimmed last may \
                 be back",
            )?;
        }
        Ok(())
    }
}

const _: () = assert!(size_of::<Raw>() == HEADER_BYTES);

/// Sequence numbers stay far from where sums of them could overflow.
pub(crate) const MAX_SEQ: u64 = 1 << 62;

impl Header {
    /// The header of a shard that was never opened.
    pub(crate) const NEW: Self =
        Self { generation: 0, is_mirrored: true, epoch: 0, first_seq: 1, head: 1, durable_seq: 0, ahead: 0 };

    pub(crate) fn encode(&self, seed: u32) -> [u8; HEADER_BYTES] {
        let mut raw = Raw {
            crc: 0.into(),
            epoch: self.epoch.into(),
            generation: self.generation.into(),
            first_seq: self.first_seq.into(),
            head: self.head.into(),
            durable_seq: self.durable_seq.into(),
            mirrored: u32::from(self.is_mirrored).into(),
            ahead: self.ahead.into(),
            reserved: [0; 208],
        };
        raw.crc = crc::crc32c_append(seed, &raw.as_bytes()[4..]).into();
        zerocopy::transmute!(raw)
    }

    /// None if the checksum does not match or the numbers contradict each other.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES], seed: u32) -> Option<Self> {
        let raw = Raw::ref_from_bytes(bytes).ok()?;
        let header = Self {
            generation: raw.generation.get(),
            is_mirrored: raw.mirrored.get() != 0,
            epoch: raw.epoch.get(),
            first_seq: raw.first_seq.get(),
            head: raw.head.get(),
            durable_seq: raw.durable_seq.get(),
            ahead: raw.ahead.get(),
        };
        let next = header.durable_seq.checked_add(1)?;
        let is_whole = raw.crc.get() == crc::crc32c_append(seed, &bytes[4..]);
        let sound = (is_whole || omits(Safeguard::HeaderChecksum))
            && (1..=next).contains(&header.head)
            && (1..=next).contains(&header.first_seq)
            && next < MAX_SEQ
            && header.generation < MAX_SEQ;
        sound.then_some(header)
    }

    /// What two copies are; none if neither is sound, or they contradict each other.
    pub(crate) fn find(copies: &Copies, seed: u32) -> Option<Found> {
        match copies.each_ref().map(|copy| Self::decode(copy, seed)) {
            [None, None] => None,
            [Some(first), Some(second)] if first.generation == second.generation => {
                (first == second).then_some(Found { header: first, at: None, damage: None })
            }
            // A crash came between two writes, or an older program wrote last.
            [Some(first), Some(second)] => {
                let at = usize::from(second.generation > first.generation);
                Some(Found { header: [first, second][at], at: Some(at), damage: None })
            }
            [Some(header), None] => Some(Found::beside(header, 0, &copies[1])),
            [None, Some(header)] => Some(Found::beside(header, 1, &copies[0])),
        }
    }
}

impl Found {
    /// A sound copy beside one that is not.
    fn beside(header: Header, at: usize, other: &[u8; HEADER_BYTES]) -> Self {
        // Older programs left the second copy of a new store empty.
        let is_new = header.generation == 0 && other.iter().all(|&byte| byte == 0);
        let may_be_newer = !header.is_mirrored
            || Raw::ref_from_bytes(other).is_ok_and(|raw| {
                // Not to be trusted, but all that there is.
                raw.mirrored.get() == 0 && (header.generation + 1..MAX_SEQ).contains(&raw.generation.get())
            });
        let damage = HeaderDamage { copy: 1 - at as u8, may_be_newer };
        Self { header, at: Some(at), damage: (!is_new).then_some(damage) }
    }
}
