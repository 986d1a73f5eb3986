//! The files that archives are written into: one that is new and whole, or none; and one that is added to.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use uuid::Uuid;

use super::cannot_write;
use crate::archive::{ArchiveError, FRAME_BYTES, Frame, HEAD_BYTES, Reader};

/// A file that has its name once it is whole, and is gone if it never is.
pub(super) struct New {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    is_kept: bool,
}

impl New {
    pub(super) fn create(path: &Path, force: bool) -> Result<Self> {
        ensure!(
            force || !path.exists(),
            "{} is there already; --force writes over it, and `pmlog backup` adds to it",
            path.display()
        );
        let mut name = path.file_name().context("the archive needs a name")?.to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&partial);
        let file = file.with_context(|| cannot_write(&partial))?;
        lock(&file, &partial)?;
        file.set_len(0).with_context(|| cannot_write(&partial))?;
        Ok(Self { path: path.to_owned(), partial, file, is_kept: false })
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// All is written: it stays, also over a loss of power.
    pub(super) fn keep(mut self) -> Result<()> {
        self.file.sync_all().with_context(|| cannot_write(&self.partial))?;
        fs::rename(&self.partial, &self.path).with_context(|| cannot_write(&self.path))?;
        self.is_kept = true;
        sync_folder(&self.path).with_context(|| cannot_write(&self.path))
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if !self.is_kept {
            // What was left behind would be written over the next time.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// An archive that is added to. What was cut off in it, by a kill or a full disk, is gone.
pub(super) struct Kept {
    pub(super) file: File,
    path: PathBuf,
    pub(super) is_new: bool,
    /// Whether its last records have no end behind them.
    pub(super) is_open_ended: bool,
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// The number behind the last record of each shard that it has records of.
    pub(super) ends: Vec<Option<u64>>,
}

/// How far an archive was read.
#[derive(Clone, Default)]
struct Place {
    at: u64,
    records: u64,
    bytes: u64,
    ends: Vec<Option<u64>>,
}

impl Kept {
    pub(super) fn open(path: &Path, store: Uuid) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.with_context(|| cannot_write(path))?;
        lock(&file, path)?;
        let len = file.metadata().with_context(|| cannot_write(path))?.len();
        let mut kept = Self {
            file,
            path: path.to_owned(),
            is_new: false,
            is_open_ended: true,
            records: 0,
            bytes: 0,
            ends: Vec::new(),
        };
        let (place, is_ended) = match kept.find_end(len, store) {
            Ok(found) => found,
            // Killed before its head was whole.
            Err(error) if len < HEAD_BYTES as u64 && is_cut_off(&error) => (Place::default(), false),
            Err(error) => {
                return Err(error.context(format!(
                    "{} cannot be added to; keep it for what it has, and begin another",
                    path.display()
                )));
            }
        };
        kept.is_new = place.at == 0;
        kept.is_open_ended = !is_ended;
        (kept.records, kept.bytes, kept.ends) = (place.records, place.bytes, place.ends);
        kept.file.set_len(place.at).with_context(|| cannot_write(path))?;
        kept.file.seek(SeekFrom::Start(place.at)).with_context(|| cannot_write(path))?;
        Ok(kept)
    }

    /// Where the last whole record or end ends, and whether that is an end. What stands before an end was synced, and only
    /// the heads of its records are read; what is behind the last one is read.
    fn find_end(&self, len: u64, store: Uuid) -> Result<(Place, bool)> {
        if len == 0 {
            return Ok((Place::default(), false));
        }
        let mut reader = Reader::begin(BufReader::new(&self.file))?;
        ensure!(reader.store() == store, "it is of store {}, and the server's is {store}", reader.store());
        let mut ended = Place { at: HEAD_BYTES as u64, ..Place::default() };
        let mut place = ended.clone();
        let mut is_ended = false;
        while let Some(frame) = whole(reader.frame())? {
            match frame {
                Frame::Record(entry) => {
                    place.at = (place.at + FRAME_BYTES as u64).saturating_add(entry.len_bytes);
                    if place.at > len {
                        break;
                    }
                    reader.leap(&entry)?;
                    place.note(entry.shard, entry.next());
                    is_ended = false;
                }
                Frame::End { .. } => {
                    place.at += FRAME_BYTES as u64;
                    (place.records, place.bytes) = reader.read();
                    (ended, is_ended) = (place.clone(), true);
                }
            }
        }
        if is_ended && ended.at == len {
            return Ok((ended, true));
        }
        let mut input = BufReader::new(&self.file);
        input.seek(SeekFrom::Start(ended.at))?;
        let mut reader = Reader::go_on(input, store, ended.at, ended.records, ended.bytes);
        let has_end = ended.at > HEAD_BYTES as u64;
        let mut place = ended;
        let mut is_ended = has_end;
        while let Some(Frame::Record(entry)) = whole(reader.frame())? {
            if whole(reader.skip(&entry).map(Some))?.is_none() {
                break;
            }
            place.note(entry.shard, entry.next());
            place.at = reader.at();
            (place.records, place.bytes) = reader.read();
            is_ended = false;
        }
        Ok((place, is_ended))
    }

    /// What was added stays, also over a loss of power.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        if self.is_new { sync_folder(&self.path) } else { Ok(()) }
    }
}

impl Place {
    fn note(&mut self, shard: u32, next: u64) {
        let shard = shard as usize;
        if self.ends.len() <= shard {
            self.ends.resize(shard + 1, None);
        }
        self.ends[shard] = Some(next);
    }
}

/// What was read; nothing where the file is cut off, which is where it is gone on with.
fn whole<T>(read: Result<Option<T>, ArchiveError>) -> Result<Option<T>, ArchiveError> {
    match read {
        Err(ArchiveError::CutOff { .. }) => Ok(None),
        read => read,
    }
}

fn is_cut_off(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ArchiveError::CutOff { .. }))
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => bail!("{} is being written by another process", path.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| cannot_write(path)),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
