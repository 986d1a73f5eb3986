//! What is still to be written to a region when it is open: a new store, or a copy of the superblock.

use std::{
    io,
    path::{Path, PathBuf},
    slice,
    sync::{Arc, Mutex, PoisonError},
};

use super::room::Unfinished;
use crate::{
    format::{
        entry::crc_seed,
        geometry::last_block,
        header::{HEADER_BYTES, Header},
        superblock::{SUPERBLOCK_BYTES, Superblock},
    },
    medium::{Medium, flush_found},
    recovery::error::OpenError,
    safeguard::{Safeguard, omits},
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
    Keep(Superblock),
    /// It is of an older version, and this is what it becomes.
    TakeOver(Superblock),
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
            Self::Keep(superblock) => {
                // Whoever made the store may have been told that it is not on the medium, and has left it in memory.
                flush_superblocks(medium, superblock, Safeguard::FoundSuperblockFlush);
                if omits(Safeguard::FoundSuperblockFence) { Ok(()) } else { medium.fence() }
            }
            Self::TakeOver(superblock) => {
                tracing::info!(
                    path = %path.display(),
                    "a store of an older format is taken over; older programs will refuse it"
                );
                // Until the first of these is durable nothing of the new format may be in the store.
                for copy in 0..2 {
                    write_superblock(medium, superblock, copy);
                    if !omits(Safeguard::TakeOverFence) {
                        medium.fence()?;
                    }
                }
                Ok(())
            }
            Self::Repair { superblock, copy } => {
                tracing::warn!(path = %path.display(), copy, "repairing a copy of the superblock");
                flush_superblocks(medium, superblock, Safeguard::SoundSuperblockFlush);
                write_superblock(medium, superblock, *copy);
                if omits(Safeguard::RepairedSuperblockFence) { Ok(()) } else { medium.fence() }
            }
            Self::Format(superblock) => format(medium, superblock),
        }
    }
}

/// Makes a new, empty store. The superblock comes last: before it is durable there is no store.
fn format(medium: &dyn Medium, superblock: &Superblock) -> io::Result<()> {
    let geometry = &superblock.geometry;
    // What an older store left must not outlive the first of these writes: where a first copy lies, and a second.
    let last = last_block(medium.len() as u64) as usize;
    let [first, second] = geometry.superblocks();
    let old = Some(last).filter(|&last| is_superblock(medium, last));
    for place in [first, SUPERBLOCK_BYTES, second].into_iter().chain(old) {
        // SAFETY: as for every store in this file: inside the medium, and its shards are not open yet.
        unsafe { medium.store(place, &[0; SUPERBLOCK_BYTES]) };
        if !omits(Safeguard::ErasedFlush) {
            medium.flush(place, SUPERBLOCK_BYTES);
        }
    }
    if !omits(Safeguard::ErasedFence) {
        medium.fence()?;
    }
    for shard in 0..geometry.shards {
        let header = Header::NEW.encode(crc_seed(superblock.uuid, shard));
        for place in geometry.headers_of(shard) {
            // SAFETY: the geometry lies inside the medium, and its shards are not open yet.
            unsafe { medium.store(place, &header) };
            if !omits(Safeguard::NewHeadersFlush) {
                medium.flush(place, HEADER_BYTES);
            }
        }
    }
    if !omits(Safeguard::NewHeadersFence) {
        medium.fence()?;
    }
    (0..2).for_each(|copy| write_superblock(medium, superblock, copy));
    if omits(Safeguard::NewSuperblockFence) { Ok(()) } else { medium.fence() }
}

fn write_superblock(medium: &dyn Medium, superblock: &Superblock, copy: usize) {
    let place = superblock.geometry.superblocks()[copy];
    // SAFETY: a region is longer than its superblocks, and its shards are not open yet.
    unsafe { medium.store(place, &superblock.encode()) };
    if !omits(Safeguard::SuperblockFlush) {
        medium.flush(place, SUPERBLOCK_BYTES);
    }
}

/// Flushes both copies as they were found.
fn flush_superblocks(medium: &dyn Medium, superblock: &Superblock, safeguard: Safeguard) {
    for place in superblock.geometry.superblocks() {
        if omits(safeguard) {
            continue;
        }
        // SAFETY: the geometry lies inside the medium, and its shards are not open yet.
        unsafe { flush_found(medium, place, SUPERBLOCK_BYTES) };
    }
}

/// Whether there is a copy of a superblock.
fn is_superblock(medium: &dyn Medium, place: usize) -> bool {
    // SAFETY: the last block of a region lies in it, and nothing writes to it before its shards are open.
    let bytes = unsafe { slice::from_raw_parts(medium.base().as_ptr().add(place), SUPERBLOCK_BYTES) };
    bytes.try_into().is_ok_and(Superblock::is_one)
}
