//! Why a store was not opened.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::scan::Corruption;
use crate::{format::superblock::Contents, watch::Stopped};

/// Why a region was not opened. What was there is untouched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The system refused.
    #[error("{what} failed for {}: {reason}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// A new store was asked for without its size.
    #[error("{} does not exist or is empty; to create a store there, give its size", path.display())]
    NoSize {
        /// The path.
        path: PathBuf,
    },
    /// There is something that is not a store.
    #[error("{} holds something that is not a store; it was left alone. Choose another path, or force formatting to destroy it", path.display())]
    NotAStore {
        /// The path.
        path: PathBuf,
    },
    /// A store of another version.
    #[error("{} is a store of version {found}, and this program reads version {supported}; open it with the program that made it, or force formatting to destroy it", path.display())]
    Version {
        /// The path.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The version that this code knows.
        supported: u32,
    },
    /// Both copies of the superblock are damaged, or contradict each other.
    #[error("both copies of the superblock of {} are damaged; restore it from a copy, or force formatting to destroy it", path.display())]
    Damaged {
        /// The path.
        path: PathBuf,
    },
    /// The file or device is shorter than the store that it holds.
    #[error("{} is cut off: it has {actual} bytes of a store of {expected}; it can still be dumped and verified", path.display())]
    Truncated {
        /// The path.
        path: PathBuf,
        /// Bytes that the store has.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// The store was made with another size, number of shards or buffer size.
    #[error("{} has {what} {found}, not {asked}; leave the option out, or force formatting to destroy the store", path.display())]
    Mismatch {
        /// The path.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the store or file has.
        found: u64,
        /// What was asked for.
        asked: u64,
    },
    /// The store belongs to another program.
    #[error("{} is a store of {found}, not of {asked}; it was left alone. Choose another path, or force formatting to destroy it", path.display())]
    Contents {
        /// The path.
        path: PathBuf,
        /// What its records are.
        found: Contents,
        /// What they were to be.
        asked: Contents,
    },
    /// The region cannot be cut up as asked.
    #[error("cannot make a store: {0}")]
    Geometry(String),
    /// Records that are packed have to fit into a buffer.
    #[error("records below {asked} bytes cannot be packed into buffers of {most}: take 33 to {most} bytes")]
    PackBelow {
        /// What was asked for.
        asked: u16,
        /// Length of a buffer.
        most: u16,
    },
    /// Another process, or another part of this one, has the store open.
    #[error("{} is in use, most likely by another process; stop that one first", path.display())]
    Locked {
        /// The path.
        path: PathBuf,
    },
    /// The file system is full; no half-made file is left.
    #[error(
        "no room for the {bytes} bytes of {}: {missing} of them have no blocks yet{}: {reason}; make room there, or \
         make a smaller store",
        path.display(),
        free.map_or_else(String::new, |free| format!(", and the file system has {free} free"))
    )]
    NoSpace {
        /// The path.
        path: PathBuf,
        /// Bytes that the store has.
        bytes: u64,
        /// Bytes of it that are still to be reserved.
        missing: u64,
        /// What is free on the file system, where that has a bound.
        free: Option<u64>,
        /// What the system said.
        reason: io::Error,
    },
    /// The process may not have such a file.
    #[error(
        "{} would have {bytes} bytes, and this process may write files of {limit}; raise that limit (ulimit -f), or ask \
         for a smaller store",
        path.display()
    )]
    FileLimit {
        /// The path.
        path: PathBuf,
        /// Bytes asked for.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A store on a disk is held in memory, and there is not as much.
    #[error(
        "{} takes {bytes} bytes of memory while it is served as a disk, and {available} are free; make a smaller store, or \
         use the page cache (domain msync)",
        path.display()
    )]
    NoMemory {
        /// The path.
        path: PathBuf,
        /// Bytes that the store has.
        bytes: u64,
        /// Bytes of memory that are free, or can be made so.
        available: u64,
    },
    /// The watch ended it.
    #[error("opening {} was ended before it was done; what is there is as it was", path.display())]
    Interrupted {
        /// The path.
        path: PathBuf,
    },
    /// The path is on memory that does not survive.
    #[error("{} is on {what}, which does not survive a reboot; allow volatile memory if that is meant", path.display())]
    Volatile {
        /// The path.
        path: PathBuf,
        /// The file system, or the kind of memory.
        what: &'static str,
    },
    /// The path is something that cannot hold a store.
    #[error("{} is {what}; {remedy}", path.display())]
    Unsupported {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The store is damaged where it was durable.
    #[error(
        "shard {shard} is corrupt: {corruption}; verify lists all damage, and salvage copies what can be read to a new store"
    )]
    Corrupt {
        /// The shard.
        shard: u32,
        /// The first damage found.
        corruption: Corruption,
    },
}

/// The error of a system call.
pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |reason| OpenError::Io { what, path, reason }
}

/// The error of what was told to end.
pub(crate) fn stopped(path: &Path) -> impl FnOnce(Stopped) -> OpenError {
    let path = path.to_path_buf();
    move |Stopped| OpenError::Interrupted { path }
}
