//! The ground floor: the bytes on the medium, their names, and what is parsed from them. `FORMAT.md` draws them.
//!
//! Nothing here knows where the bytes lie: they come as slices and arrays, from a medium, a file or an attacker.

pub(crate) mod crc;
pub(crate) mod entry;
pub(crate) mod found;
pub(crate) mod geometry;
pub(crate) mod header;
pub(crate) mod superblock;
