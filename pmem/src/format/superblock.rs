//! The superblock: what a store is and how its region is cut up, in two copies.
//!
//! It is written when the store is made, and again if it is taken over from an older format: whatever changes lies in the
//! shards' headers.

use std::fmt;

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64},
};

use super::{crc, geometry::Geometry};
use crate::safeguard::{Safeguard, omits};

/// Length of one copy.
pub(crate) const SUPERBLOCK_BYTES: usize = 256;
/// The format that this code writes. It reads the first one, too.
pub(crate) const VERSION: u32 = 2;
pub(crate) const FIRST_VERSION: u32 = 1;

pub(super) const MAGIC: [u8; 8] = *b"PASTE-PM";

/// What a store's records are, by the program that made it: its own, which others should leave alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Contents {
    /// Nobody has said: stores of older programs, and of tests.
    #[default]
    Unknown,
    /// Bodies of requests, as a log server appends them.
    Bodies,
    /// Frames of a network.
    Frames,
    /// Changes to keys and values.
    Changes,
    /// Something that this code does not know.
    Other(u32),
}

impl Contents {
    /// Whether somebody has said what it is.
    pub(super) fn is_known(self) -> bool {
        self != Self::Unknown
    }

    fn number(self) -> u32 {
        match self {
            Self::Unknown => 0,
            Self::Bodies => 1,
            Self::Frames => 2,
            Self::Changes => 3,
            Self::Other(number) => number,
        }
    }

    fn of(number: u32) -> Self {
        match number {
            0 => Self::Unknown,
            1 => Self::Bodies,
            2 => Self::Frames,
            3 => Self::Changes,
            _ => Self::Other(number),
        }
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("records of unknown kind"),
            Self::Bodies => f.write_str("request bodies (pmlog)"),
            Self::Frames => f.write_str("network frames (pmfwd)"),
            Self::Changes => f.write_str("changes to keys (pmkv)"),
            Self::Other(number) => write!(f, "records of kind {number}"),
        }
    }
}

/// What the superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub version: u32,
    pub uuid: Uuid,
    pub geometry: Geometry,
    pub contents: Contents,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    uuid: [u8; 16],
    region_bytes: U64,
    shards: U32,
    buffers: U32,
    log_entries: U32,
    buffer_bytes: U16,
    reserved: [u8; 2],
    headers_offset: U64,
    log_offset: U64,
    log_stride: U64,
    arena_offset: U64,
    arena_stride: U64,
    contents: U32,
    apart: U32,
    rest: [u8; 152],
}

const _: () = assert!(size_of::<Raw>() == SUPERBLOCK_BYTES);

impl Superblock {
    pub(crate) fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let geometry = &self.geometry;
        let mut raw = Raw {
            magic: MAGIC,
            version: self.version.into(),
            crc: 0.into(),
            uuid: *self.uuid.as_bytes(),
            region_bytes: geometry.region_bytes.into(),
            shards: geometry.shards.into(),
            buffers: geometry.buffers.into(),
            log_entries: geometry.log_entries.into(),
            buffer_bytes: geometry.buffer_bytes.into(),
            reserved: [0; 2],
            headers_offset: geometry.headers_offset.into(),
            log_offset: geometry.log_offset.into(),
            log_stride: geometry.log_stride.into(),
            arena_offset: geometry.arena_offset.into(),
            arena_stride: geometry.arena_stride.into(),
            contents: self.contents.number().into(),
            apart: u32::from(geometry.copies_apart).into(),
            rest: [0; 152],
        };
        raw.crc = crc::crc32c(raw.as_bytes()).into();
        zerocopy::transmute!(raw)
    }

    /// Reads what [`encode`](Self::encode) wrote, and trusts none of it.
    pub(super) fn decode(bytes: &[u8; SUPERBLOCK_BYTES]) -> Option<Self> {
        let version = Self::version(bytes)?;
        let raw = Raw::ref_from_bytes(bytes).ok()?;
        let geometry = Geometry {
            region_bytes: raw.region_bytes.get(),
            shards: raw.shards.get(),
            buffer_bytes: raw.buffer_bytes.get(),
            buffers: raw.buffers.get(),
            log_entries: raw.log_entries.get(),
            headers_offset: raw.headers_offset.get(),
            log_offset: raw.log_offset.get(),
            log_stride: raw.log_stride.get(),
            arena_offset: raw.arena_offset.get(),
            arena_stride: raw.arena_stride.get(),
            copies_apart: version > FIRST_VERSION && raw.apart.get() == 1,
        };
        let sound =
            (version == FIRST_VERSION || version == VERSION && raw.apart.get() <= 1) && geometry.is_sound();
        let (uuid, contents) = (Uuid::from_bytes(raw.uuid), Contents::of(raw.contents.get()));
        sound.then_some(Self { version, uuid, geometry, contents })
    }

    /// Whether this is an undamaged copy, of whatever version.
    pub(crate) fn is_one(bytes: &[u8; SUPERBLOCK_BYTES]) -> bool {
        Self::version(bytes).is_some()
    }

    /// The version of an undamaged copy. In every version the magic, the version and the checksum of all 256
    /// bytes lie where they lie now.
    pub(super) fn version(bytes: &[u8; SUPERBLOCK_BYTES]) -> Option<u32> {
        let raw = Raw::ref_from_bytes(bytes).ok()?;
        let mut plain = *bytes;
        plain[12..16].fill(0);
        let is_whole = raw.crc.get() == crc::crc32c(&plain) || omits(Safeguard::SuperblockChecksum);
        (raw.magic == MAGIC && is_whole).then_some(raw.version.get())
    }
}
