//! Room for a store in a file: its length and its blocks, which are had before anything of the file is changed.
//!
//! A hole would have to be filled in the midst of a commit, where there may be no room left, and the process would end
//! with SIGBUS. So a file has all its blocks whenever it is opened for writing, also one that came back from a backup or
//! was copied with holes.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FallocateFlags, SeekFrom, fallocate, fstatvfs, seek},
    io::Errno,
    process::{Resource, getrlimit},
};

use super::options::{Options, check, plan};
use crate::{
    format::{
        found::{Found, Unknown},
        superblock::SUPERBLOCK_BYTES,
    },
    recovery::error::{OpenError, io_error, stopped},
    watch::{Watch, Work},
};

/// What was done to a file, and is undone unless the store in it is begun.
pub(super) struct Unfinished {
    undo: Undo,
    /// Of a file that is to be shorter: its new length.
    shorten: Option<(File, u64)>,
}

enum Undo {
    Nothing,
    /// The file was not there.
    Remove(PathBuf),
    /// The file was shorter.
    Shorten(File, u64),
}

impl Unfinished {
    /// Nothing that could be undone.
    pub(super) fn nothing() -> Self {
        Self { undo: Undo::Nothing, shorten: None }
    }

    /// A file that was just made.
    pub(super) fn new_file(path: &Path) -> Self {
        Self { undo: Undo::Remove(path.into()), shorten: None }
    }

    /// Leaves the file to somebody else.
    pub(super) fn abandon(mut self) {
        self.undo = Undo::Nothing;
    }

    /// Keeps the file as it now is, and makes its name durable.
    pub(super) fn keep(mut self) -> Result<(), OpenError> {
        if let Undo::Remove(path) = &self.undo {
            let parent =
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent)
                .and_then(|dir| dir.sync_all())
                .map_err(io_error("syncing the directory", path))?;
        }
        self.undo = Undo::Nothing;
        if let Some((file, len)) = self.shorten.take()
            && let Err(error) = file.set_len(len)
        {
            // The store does without it.
            tracing::warn!(%error, len, "a file stays longer than the store that was made in it");
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let undone = match &self.undo {
            Undo::Nothing => Ok(()),
            Undo::Remove(path) => std::fs::remove_file(path),
            Undo::Shorten(file, len) => file.set_len(*len),
        };
        if let Err(error) = undone {
            tracing::warn!(%error, "a half-made store is left behind");
        }
    }
}

/// Gives a file the length and the blocks of its store; returns the length to map. What it holds stays as it is.
pub(super) fn prepare(
    path: &Path,
    file: &File,
    options: &Options,
    page_bytes: u64,
    unfinished: &mut Unfinished,
) -> Result<u64, OpenError> {
    let len = file.metadata().map_err(io_error("inspecting", path))?.len();
    let found =
        if len < 2 * SUPERBLOCK_BYTES as u64 { Found::Foreign } else { find(file, len, options.size) };
    let bytes = match found {
        _ if len == 0 || options.force => {
            let given = options.size.or(Some(len).filter(|&len| len > 0));
            given.ok_or_else(|| OpenError::NoSize { path: path.into() })?
        }
        Found::Empty => {
            if let Some(asked) = options.size.filter(|&asked| asked != len) {
                let what = "a size in bytes of";
                return Err(OpenError::Mismatch { path: path.into(), what, found: len, asked });
            }
            len
        }
        Found::Store { superblock, .. } => {
            check(path, len, &superblock.geometry, options)?;
            reserve(path, file, len, superblock.geometry.region_bytes, &options.watch)?;
            return Ok(len);
        }
        // These are refused.
        Found::Version(_) | Found::Damaged | Found::Foreign => return Ok(len),
    };
    if bytes % page_bytes != 0 {
        return Err(OpenError::Geometry(format!(
            "{bytes} bytes are no multiple of the huge page size {page_bytes}"
        )));
    }
    plan(bytes, options)?;
    if len > 0 && !options.force && !is_zero(path, file, len, &options.watch)? {
        return Err(OpenError::NotAStore { path: path.into() });
    }
    let again = || file.try_clone().map_err(io_error("inspecting", path));
    if bytes > len && matches!(unfinished.undo, Undo::Nothing) {
        unfinished.undo = Undo::Shorten(again()?, len);
    }
    if bytes < len {
        unfinished.shorten = Some((again()?, bytes));
    }
    reserve(path, file, len, bytes, &options.watch)?;
    Ok(bytes)
}

/// What store is in a file or device of so many bytes.
pub(super) fn find(file: &File, bytes: u64, asked: Option<u64>) -> Found {
    let read = |offset: u64, bytes: &mut [u8]| {
        if file.read_exact_at(bytes, offset).is_err() {
            bytes.fill(0);
        }
    };
    Unknown { bytes, asked, is_read_only: false, read: &read }.find()
}

fn is_zero(path: &Path, file: &File, len: u64, watch: &Watch) -> Result<bool, OpenError> {
    let mut file = file.try_clone().map_err(io_error("reading", path))?;
    io::Seek::rewind(&mut file).map_err(io_error("reading", path))?;
    let mut block = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        watch.tell(Work::ReadingZeros, done, Some(len)).map_err(stopped(path))?;
        match file.read(&mut block) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("reading", path)(error)),
            Ok(0) => return Ok(true),
            Ok(read) if block[..read].iter().any(|&byte| byte != 0) => return Ok(false),
            Ok(read) => done += read as u64,
        }
    }
}

/// Blocks are had in steps of this many bytes: a signal is obeyed between two of them.
const STEP_BYTES: u64 = 64 << 20;

/// Gives a file of `len` bytes all the blocks of its first `bytes`, and that length if it is shorter.
fn reserve(path: &Path, file: &File, len: u64, bytes: u64, watch: &Watch) -> Result<(), OpenError> {
    let limit = getrlimit(Resource::Fsize).current;
    if let Some(limit) = limit.filter(|&limit| bytes > len && bytes > limit) {
        return Err(OpenError::FileLimit { path: path.into(), bytes, limit });
    }
    let meta = file.metadata().map_err(io_error("inspecting", path))?;
    let missing = bytes.saturating_sub(meta.blocks() * 512);
    let free = free_bytes(file);
    let no_room = |reason| OpenError::NoSpace { path: path.into(), bytes, missing, free, reason };
    // Else the file system would be filled to the brim first, to the harm of others.
    if free.is_some_and(|free| missing > free) {
        return Err(no_room(Errno::NOSPC.into()));
    }
    let mut from = 0;
    while from < bytes {
        watch.tell(Work::Reserving, from, Some(bytes)).map_err(stopped(path))?;
        let step = (bytes - from).min(STEP_BYTES);
        let done = match fallocate(file, FallocateFlags::empty(), from, step) {
            Err(Errno::OPNOTSUPP) => fill(file, from, from + step),
            done => done.map_err(io::Error::from),
        };
        match done {
            Ok(()) => from += step,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(match Errno::from_io_error(&error) {
                    Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => no_room(error),
                    _ => io_error("reserving blocks", path)(error),
                });
            }
        }
    }
    file.sync_all().map_err(io_error("reserving blocks", path))
}

/// What is free on the file's file system, where that has a bound.
fn free_bytes(file: &File) -> Option<u64> {
    let system = fstatvfs(file).ok().filter(|system| system.f_blocks > 0)?;
    Some(system.f_bfree * system.f_frsize)
}

/// Writes zeros into the holes of a range, and behind the file's end, on file systems that cannot allocate.
fn fill(file: &File, mut from: u64, to: u64) -> io::Result<()> {
    let zeros = [0; 64 << 10];
    while from < to {
        let hole = match seek(file, SeekFrom::Hole(from)) {
            Ok(hole) if hole < file.metadata()?.len() => hole,
            // What is no hole is data; behind the end comes what is still to be had.
            Ok(_) | Err(Errno::NXIO | Errno::INVAL) => from.max(file.metadata()?.len()),
            Err(errno) => return Err(errno.into()),
        };
        from = hole;
        let end = match seek(file, SeekFrom::Data(from)) {
            Ok(data) => data.min(to),
            Err(Errno::NXIO | Errno::INVAL) => to,
            Err(errno) => return Err(errno.into()),
        };
        while from < end {
            let len = (end - from).min(zeros.len() as u64);
            file.write_all_at(&zeros[..len as usize], from)?;
            from += len;
        }
    }
    Ok(())
}
