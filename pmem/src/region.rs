//! Regions: where the persistent memory comes from, what it turns out to be, and whether a store is there.

mod backing;
mod deferred;
mod disk;
mod map;
mod options;
mod room;
mod seed;
mod sysfs;

use std::{
    fmt,
    path::{Path, PathBuf},
    slice,
    sync::Arc,
};

use uuid::Uuid;

pub use backing::Kind;
pub(crate) use map::ReadOnly;
pub use options::{DomainChoice, MEMORY, Options};
pub use seed::ShardSeed;

use self::{
    backing::Backing,
    deferred::{Deferred, Task},
    options::{check, check_contents, plan},
    room::Unfinished,
};
use crate::{
    format::{
        entry::{INLINE_BYTES, crc_seed},
        found::{Found, Unknown},
        geometry::Geometry,
        header::Header,
        superblock::{Contents, SUPERBLOCK_BYTES, Superblock, VERSION},
    },
    log::{
        header::HeaderCell,
        shard::{Limits, Shard},
    },
    medium::{Domain, Layer as _, Medium, MediumLock, Slowed, Timed},
    recovery::{
        UnopenedShard,
        error::{OpenError, stopped},
    },
    watch::{Watch, Work},
};

/// What was found when a region was opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegionInfo {
    /// The path or name.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// What flush and fence do there.
    pub domain: Domain,
    /// What the kernel says of the platform's `persistence_domain`, where it says anything.
    pub platform: Option<String>,
    /// The store's own identifier.
    pub uuid: Uuid,
    /// How the region is cut up.
    pub geometry: Geometry,
    /// What its records are.
    pub contents: Contents,
    /// Whether the store was made just now.
    pub is_new: bool,
    /// The version of its format, as it was found. An older one becomes this program's when the first shard is opened.
    pub version: u32,
    /// Whether one copy of the superblock was damaged and was written again.
    pub repaired: bool,
}

impl fmt::Display for RegionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let geometry = &self.geometry;
        let state = if self.is_new { "new" } else { "existing" };
        write!(f, "{}: {}, domain {}", self.path.display(), self.kind, self.domain)?;
        if let Some(platform) = &self.platform {
            write!(f, " (platform: {platform})")?;
        }
        write!(
            f,
            "; {state} store {}, {} MiB, {} shard(s) of {} buffers of {} bytes and {} log entries",
            self.uuid,
            geometry.region_bytes >> 20,
            geometry.shards,
            geometry.buffers,
            geometry.buffer_bytes,
            geometry.log_entries,
        )?;
        write!(f, "; {}", self.contents)?;
        if self.version < VERSION {
            write!(
                f,
                "; of format {} so far, and of format {VERSION} once it is written to: older programs will refuse it",
                self.version
            )?;
        }
        if self.repaired { f.write_str("; repaired a copy of the superblock") } else { Ok(()) }
    }
}

/// An open region, locked against other processes until its last shard is gone.
pub struct Region {
    // The lock ends before the medium does, as the next one may be mapped there.
    deferred: Arc<Deferred>,
    lock: Arc<MediumLock>,
    medium: Arc<dyn Medium>,
    info: RegionInfo,
    limits: Limits,
    trusts_durable: bool,
    watch: Watch,
}

impl Region {
    /// Opens the store at a path, or creates one there: on a device-DAX device, in a file, or in memory if the
    /// path is [`MEMORY`].
    ///
    /// A new store is only made where nothing is yet, or zeros, unless `options.force` says otherwise.
    ///
    /// What is there stays byte for byte as it is until the first shard is opened: a new store is made only then, so
    /// that a program can find out first whether all else that it needs is to be had. A region that is dropped before
    /// leaves no new file, and no longer one.
    ///
    /// # Errors
    /// [`OpenError`]; what was there is untouched, and a file that was just created is gone again.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self, OpenError> {
        let (backing, unfinished) = map::open(path.as_ref(), options)?;
        Self::inspect(backing, unfinished, options)
    }

    /// Opens the store on a medium, or creates one there.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`OpenError::Locked`] while an earlier opening of the same medium is in use.
    pub fn over(medium: Arc<dyn Medium>, options: &Options) -> Result<Self, OpenError> {
        let path = PathBuf::from("(medium)");
        let backing = Backing { path, kind: Kind::Medium, platform: None, medium, size: options.size };
        Self::inspect(backing, Unfinished::nothing(), options)
    }

    /// What was found.
    pub fn info(&self) -> &RegionInfo {
        &self.info
    }

    /// Writes what opening left to be written: a new store, or a copy of the superblock. Opening a shard does that
    /// first, if nobody has done it before.
    ///
    /// # Errors
    /// [`OpenError::Io`] if the medium fails.
    pub fn begin(&self) -> Result<(), OpenError> {
        self.deferred.finish()
    }

    /// The shards, to be opened each in its own thread. All that are opened get the same epoch.
    pub fn into_seeds(self) -> Vec<ShardSeed> {
        let epochs = (0..self.info.geometry.shards).filter_map(|shard| self.header(shard)).map(|h| h.epoch);
        // What lies where a new store will be is no header of it.
        let latest_epoch = epochs.max().filter(|_| !self.info.is_new).unwrap_or(0);
        let seed = |index| ShardSeed {
            deferred: self.deferred.clone(),
            shard: UnopenedShard {
                lock: self.lock.clone(),
                medium: self.medium.clone().fork(),
                geometry: self.info.geometry,
                uuid: self.info.uuid,
                index,
                limits: self.limits,
                latest_epoch,
                path: self.info.path.clone(),
                watch: self.watch.clone(),
                is_new: self.info.is_new,
                trusts_durable: self.trusts_durable,
            },
        };
        (0..self.info.geometry.shards).map(seed).collect()
    }

    /// Opens the first shard: all of a region that was not cut up for several cores.
    ///
    /// # Errors
    /// As [`ShardSeed::open`].
    pub fn into_shard(self) -> Result<Shard, OpenError> {
        self.into_seeds().swap_remove(0).open()
    }

    /// A shard's header, if it is sound.
    fn header(&self, shard: u32) -> Option<Header> {
        let copies = HeaderCell::read(&*self.medium, self.info.geometry.headers_of(shard));
        Header::find(&copies, crc_seed(self.info.uuid, shard)).map(|found| found.header)
    }

    fn inspect(backing: Backing, unfinished: Unfinished, options: &Options) -> Result<Self, OpenError> {
        let lock = MediumLock::new(&*backing.medium)
            .ok_or_else(|| OpenError::Locked { path: backing.path.clone() })?;
        let (store, task, repaired) = match look(&*backing.medium, options.size) {
            Found::Store { superblock, damaged_copy } if !options.force => {
                check(&backing.path, backing.medium.len() as u64, &superblock.geometry, options)?;
                check_contents(&backing.path, superblock.contents, options.contents)?;
                let task = match damaged_copy {
                    _ if superblock.version < VERSION => {
                        Task::TakeOver(Superblock { version: VERSION, ..superblock })
                    }
                    None => Task::Keep(superblock),
                    Some(copy) => Task::Repair { superblock, copy },
                };
                (superblock, task, damaged_copy.is_some())
            }
            found => {
                may_format(&backing, found, options)?;
                let geometry =
                    plan(backing.size.unwrap_or(u64::MAX).min(backing.medium.len() as u64), options)?;
                let (uuid, contents) = (Uuid::new_v4(), options.contents);
                let superblock = Superblock { version: VERSION, uuid, geometry, contents };
                (superblock, Task::Format(superblock), false)
            }
        };
        let is_new = matches!(task, Task::Format(_));
        let deferred = Deferred::new(task, backing.path.clone(), backing.medium.clone(), unfinished);
        let Backing { path, kind, platform, medium, .. } = backing;
        let (domain, geometry) = (medium.domain(), store.geometry);
        let pack_below = usize::from(options.pack_below);
        if !(INLINE_BYTES + 1..=geometry.buffer_bytes.into()).contains(&pack_below) {
            let (asked, most) = (options.pack_below, geometry.buffer_bytes);
            return Err(OpenError::PackBelow { asked, most });
        }
        let reserve = options.reserve.unwrap_or((geometry.buffers / 8).max(64)).min(geometry.buffers / 2);
        let limits = Limits {
            max_record_bytes: options.max_record_bytes.into(),
            reserve: reserve as usize,
            ahead: options.checkpoint_entries.max(1),
            pack_below,
        };
        let Superblock { version, uuid, contents, .. } = store;
        let info =
            RegionInfo { path, kind, domain, platform, uuid, geometry, contents, is_new, version, repaired };
        let delay = options.persist_delay;
        let medium = if delay.is_zero() { medium } else { Slowed(delay).over(medium) };
        let medium = if options.timed { Timed::new().over(medium) } else { medium };
        let watch = options.watch.clone();
        let (deferred, lock) = (Arc::new(deferred), Arc::new(lock));
        let trusts_durable = options.trust_durable;
        Ok(Self { deferred, medium, lock, info, limits, trusts_durable, watch })
    }
}

/// What store lies in a medium.
fn look(medium: &dyn Medium, asked: Option<u64>) -> Found {
    if medium.len() < 2 * SUPERBLOCK_BYTES {
        return Found::Foreign;
    }
    // SAFETY: the medium is mapped, and nothing writes to it before its shards are open.
    let all = unsafe { slice::from_raw_parts(medium.base().as_ptr(), medium.len()) };
    let read = |offset: u64, bytes: &mut [u8]| match all.get(offset as usize..) {
        Some(rest) if rest.len() >= bytes.len() => bytes.copy_from_slice(&rest[..bytes.len()]),
        _ => bytes.fill(0),
    };
    Unknown { bytes: medium.len() as u64, asked, is_read_only: false, read: &read }.find()
}

/// Checks that making a store destroys nothing that nobody asked to destroy.
fn may_format(backing: &Backing, found: Found, options: &Options) -> Result<(), OpenError> {
    let path = backing.path.clone();
    match found {
        _ if options.force => Ok(()),
        // A file was read when it was opened, or is new: reading it again, through the mapping, takes seconds.
        Found::Empty
            if matches!(backing.kind, Kind::File | Kind::FsDax | Kind::VolatileFile | Kind::Memory) =>
        {
            Ok(())
        }
        Found::Empty if is_zero(backing, &options.watch)? => Ok(()),
        Found::Empty | Found::Foreign => Err(OpenError::NotAStore { path }),
        Found::Version(found) => Err(OpenError::Version { path, found, supported: VERSION }),
        Found::Store { .. } | Found::Damaged => Err(OpenError::Damaged { path }),
    }
}

fn is_zero(backing: &Backing, watch: &Watch) -> Result<bool, OpenError> {
    let len = backing.medium.len();
    // SAFETY: the medium is mapped, and nothing writes to it before its shards are open.
    let bytes = unsafe { slice::from_raw_parts(backing.medium.base().as_ptr(), len) };
    for (number, block) in bytes.chunks(ZEROS_BYTES).enumerate() {
        watch
            .tell(Work::ReadingZeros, (number * ZEROS_BYTES) as u64, Some(len as u64))
            .map_err(stopped(&backing.path))?;
        if block.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Between two looks at whether to go on.
const ZEROS_BYTES: usize = 1 << 20;
