//! What lies behind a region.

use std::{fmt, path::PathBuf, sync::Arc};

use crate::medium::Medium;

/// What a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A device-DAX character device.
    DeviceDax,
    /// A file on a DAX file system, mapped with `MAP_SYNC`.
    FsDax,
    /// A regular file in the page cache.
    File,
    /// A block device.
    BlockDevice,
    /// A file on tmpfs or hugetlbfs.
    VolatileFile,
    /// Plain memory.
    Memory,
    /// A medium that the caller made.
    Medium,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeviceDax => "device-DAX",
            Self::FsDax => "file on a DAX file system",
            Self::File => "regular file",
            Self::BlockDevice => "block device",
            Self::VolatileFile => "volatile file",
            Self::Memory => "plain memory",
            Self::Medium => "given medium",
        })
    }
}

/// A medium, and what is known about it before anyone looked inside.
pub(super) struct Backing {
    pub path: PathBuf,
    pub kind: Kind,
    pub platform: Option<String>,
    pub medium: Arc<dyn Medium>,
    /// Bytes that a new store takes; the whole medium if not given.
    pub size: Option<u64>,
}
