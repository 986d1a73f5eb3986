//! What is still to be written to a region when it is open: a new store, or a copy of the superblock.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::room::Unfinished;
use crate::{
    format::{
        entry::crc_seed,
        header::{HEADERS_BYTES, Header},
        superblock::{SUPERBLOCK_BYTES, SUPERBLOCKS_BYTES, Superblock},
    },
    medium::{Medium, flush_found},
    recovery::error::OpenError,
};

/// Done once, by whoever opens the first shard. Dropped before, it leaves everything as it was.
pub(crate) struct Deferred {
    path: PathBuf,
    state: Mutex<State>,
}

enum State {
    Todo(Job),
    Done,
    /// What the system said.
    Failed(io::ErrorKind, String),
}

struct Job {
    task: Task,
    // Undone while the medium still holds the file's lock.
    unfinished: Unfinished,
    medium: Arc<dyn Medium>,
}

/// What is to be written.
pub(super) enum Task {
    /// The store is there.
    Keep,
    /// A copy of the superblock is damaged.
    Repair { superblock: Superblock, copy: usize },
    /// There is no store yet, or one that is to go.
    Format(Superblock),
}

impl Deferred {
    pub(super) fn new(task: Task, path: PathBuf, medium: Arc<dyn Medium>, unfinished: Unfinished) -> Self {
        Self { path, state: Mutex::new(State::Todo(Job { task, unfinished, medium })) }
    }

    /// Writes what is to be written, unless that is done.
    pub(crate) fn finish(&self) -> Result<(), OpenError> {
        let failed =
            |reason| OpenError::Io { what: "writing the superblock", path: self.path.clone(), reason };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Done) {
            State::Done => Ok(()),
            State::Todo(job) => {
                let Job { task, unfinished, medium } = job;
                if let Err(reason) = task.write(&*medium, &self.path) {
                    *state = State::Failed(reason.kind(), reason.to_string());
                    return Err(failed(reason));
                }
                unfinished.keep()
            }
            State::Failed(kind, why) => {
                let reason = io::Error::new(kind, why.clone());
                *state = State::Failed(kind, why);
                Err(failed(reason))
            }
        }
    }
}

impl Task {
    fn write(&self, medium: &dyn Medium, path: &Path) -> io::Result<()> {
        match self {
            Self::Keep => {
                // Whoever made the store may have been told that it is not on the medium, and has left it in memory.
                // SAFETY: a region is longer than its superblocks, and its shards are not open yet.
                unsafe { flush_found(medium, 0, SUPERBLOCKS_BYTES) };
                medium.fence()
            }
            Self::Repair { superblock, copy } => {
                tracing::warn!(path = %path.display(), copy, "repairing a copy of the superblock");
                // SAFETY: as above.
                unsafe { flush_found(medium, 0, SUPERBLOCKS_BYTES) };
                write_superblock(medium, superblock, *copy);
                medium.fence()
            }
            Self::Format(superblock) => format(medium, superblock),
        }
    }
}

/// Makes a new, empty store. The superblock comes last: before it is durable there is no store.
fn format(medium: &dyn Medium, superblock: &Superblock) -> io::Result<()> {
    let geometry = &superblock.geometry;
    // What an older store left must not outlive the first of these writes.
    // SAFETY: as for every store in this file: inside the medium, and its shards are not open yet.
    unsafe { medium.store(0, &[0; SUPERBLOCKS_BYTES]) };
    medium.flush(0, SUPERBLOCKS_BYTES);
    medium.fence()?;
    for shard in 0..geometry.shards {
        let header = Header::NEW.encode(crc_seed(superblock.uuid, shard));
        let offset = geometry.header_of(shard);
        // SAFETY: the geometry lies inside the medium, and its shards are not open yet.
        unsafe { medium.store(offset, &[header, header].concat()) };
        medium.flush(offset, HEADERS_BYTES);
    }
    medium.fence()?;
    (0..2).for_each(|copy| write_superblock(medium, superblock, copy));
    medium.fence()
}

fn write_superblock(medium: &dyn Medium, superblock: &Superblock, copy: usize) {
    let offset = copy * SUPERBLOCK_BYTES;
    // SAFETY: a region is longer than its superblocks, and its shards are not open yet.
    unsafe { medium.store(offset, &superblock.encode()) };
    medium.flush(offset, SUPERBLOCK_BYTES);
}
