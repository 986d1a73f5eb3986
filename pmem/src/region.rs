//! Regions: where the persistent memory comes from, what it turns out to be, and whether a store is there.

mod map;
mod pending;
mod room;
mod sysfs;

use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
    slice,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use uuid::Uuid;

pub(crate) use map::ReadOnly;
pub(crate) use pending::Pending;

use self::{
    pending::Task,
    room::{Unfinished, stopped},
};
use crate::{
    entry::crc_seed,
    header::{Header, HeaderCell},
    medium::{Around as _, Domain, Medium, Slowed, Timed},
    recovery::ShardSeed,
    scan::Corruption,
    shard::{Limits, Shard},
    superblock::{Contents, Found, Geometry, SUPERBLOCKS_BYTES, Superblock, VERSION, Wish},
    watch::{Watch, Work},
};

/// How to open a region; the defaults open an existing store as it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length in bytes. Needed to create a file; an existing store must have it.
    pub size: Option<u64>,
    /// Shards, one per core; 1 for a new store. An existing store must have as many.
    pub shards: Option<u32>,
    /// Shards of a new store, if an existing one may have any number.
    pub shards_if_new: Option<u32>,
    /// Length of a buffer in bytes, a multiple of 64; [`DEFAULT_BUFFER_BYTES`](crate::DEFAULT_BUFFER_BYTES) for a
    /// new store. An existing store must have such buffers.
    pub buffer_bytes: Option<u16>,
    /// Log entries of a shard, a power of two; for a new store three to six times the number of buffers. An existing
    /// store must have as many.
    pub log_entries: Option<u32>,
    /// What the records of a new store will be. An existing one must be of this kind, or of an unknown one; any will do if
    /// this is [`Contents::Unknown`].
    pub contents: Contents,
    /// Buffers of a shard that the log leaves to the network: by default an eighth, but at least 64, and in no
    /// case more than half.
    pub reserve: Option<u32>,
    /// The longest record in bytes.
    pub max_record_bytes: u32,
    /// A busy wait behind each fence; none by default. Models slower media, as PASTE's evaluation does.
    pub persist_delay: Duration,
    /// Times each flush and each fence, for [`Shard::spent`](crate::Shard::spent).
    pub timed: bool,
    /// Has all pages of memory that does not survive in place from the start, so that no page fault interrupts a
    /// burst; opening then takes a time that grows with the length. Pages of DAX are mapped in large pieces, and
    /// those of a regular file fault again after each commit anyway.
    pub populate: bool,
    /// Allows memory that does not survive: tmpfs and hugetlbfs files. The name [`MEMORY`] needs no permission.
    pub volatile: bool,
    /// Formats a new store over whatever is there.
    pub force: bool,
    /// Is told how far opening has come, and may end it.
    pub watch: Watch,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            size: None,
            shards: None,
            shards_if_new: None,
            buffer_bytes: None,
            log_entries: None,
            contents: Contents::Unknown,
            reserve: None,
            max_record_bytes: 16 << 20,
            persist_delay: Duration::ZERO,
            timed: false,
            populate: false,
            volatile: false,
            force: false,
            watch: Watch::default(),
        }
    }
}

/// The name of a region that is plain memory and gone with the process.
pub const MEMORY: &str = "memory:";

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
    /// The watch ended it.
    #[error("opening {} was ended before it was done; what is there is as it was", path.display())]
    Interrupted {
        /// The path.
        path: PathBuf,
    },
    /// The path is on memory that does not survive.
    #[error("{} is on {filesystem}, which does not survive a reboot; allow volatile memory if that is meant", path.display())]
    Volatile {
        /// The path.
        path: PathBuf,
        /// Which file system.
        filesystem: &'static str,
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
    #[error("shard {shard} is corrupt: {corruption}; verify lists all damage, and dump what can be read")]
    Corrupt {
        /// The shard.
        shard: u32,
        /// The first damage found.
        corruption: Corruption,
    },
}

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
            Self::VolatileFile => "volatile file",
            Self::Memory => "plain memory",
            Self::Medium => "given medium",
        })
    }
}

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
        if self.repaired { f.write_str("; repaired a copy of the superblock") } else { Ok(()) }
    }
}

/// An open region, locked against other processes until its last shard is gone.
pub struct Region {
    // The claim ends before the medium does, as the next one may be mapped there.
    pending: Arc<Pending>,
    claim: Arc<Claim>,
    medium: Arc<dyn Medium>,
    info: RegionInfo,
    limits: Limits,
    watch: Watch,
}

/// The right to a medium: within the process nobody else has its region open.
pub(crate) struct Claim(usize);

/// Where the media lie that are in use.
static CLAIMED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

impl Claim {
    fn new(medium: &dyn Medium) -> Option<Self> {
        let base = medium.base().as_ptr() as usize;
        let is_free = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).insert(base);
        // Not before it is certain: dropping a claim ends it.
        is_free.then(|| Self(base))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// A medium, and what is known about it before anyone looked inside.
struct Place {
    path: PathBuf,
    kind: Kind,
    platform: Option<String>,
    medium: Arc<dyn Medium>,
    /// Bytes that a new store takes; the whole medium if not given.
    size: Option<u64>,
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
        let (place, unfinished) = map::open(path.as_ref(), options)?;
        Self::inspect(place, unfinished, options)
    }

    /// Opens the store on a medium, or creates one there.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`OpenError::Locked`] while an earlier opening of the same medium is in use.
    pub fn over(medium: Arc<dyn Medium>, options: &Options) -> Result<Self, OpenError> {
        let path = PathBuf::from("(medium)");
        let place = Place { path, kind: Kind::Medium, platform: None, medium, size: options.size };
        Self::inspect(place, Unfinished::nothing(), options)
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
        self.pending.finish()
    }

    /// The shards, to be opened each in its own thread. All that are opened get the same epoch.
    pub fn into_seeds(self) -> Vec<ShardSeed> {
        let epochs = (0..self.info.geometry.shards).filter_map(|shard| self.header(shard)).map(|h| h.epoch);
        // What lies where a new store will be is no header of it.
        let latest_epoch = epochs.max().filter(|_| !self.info.is_new).unwrap_or(0);
        let seed = |index| ShardSeed {
            pending: self.pending.clone(),
            watch: self.watch.clone(),
            path: self.info.path.clone(),
            is_new: self.info.is_new,
            latest_epoch,
            medium: self.medium.clone().fork(),
            claim: self.claim.clone(),
            geometry: self.info.geometry,
            uuid: self.info.uuid,
            index,
            limits: self.limits,
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
        let copies = HeaderCell::read(&*self.medium, self.info.geometry.header_of(shard));
        Header::find(&copies, crc_seed(self.info.uuid, shard)).map(|found| found.header)
    }

    fn inspect(place: Place, unfinished: Unfinished, options: &Options) -> Result<Self, OpenError> {
        let claim =
            Claim::new(&*place.medium).ok_or_else(|| OpenError::Locked { path: place.path.clone() })?;
        let (store, task) = match look(&*place.medium) {
            Found::Store { superblock, damaged_copy } if !options.force => {
                check(&place.path, place.medium.len() as u64, &superblock.geometry, options)?;
                check_contents(&place.path, superblock.contents, options.contents)?;
                (superblock, damaged_copy.map_or(Task::Nothing, |copy| Task::Repair { superblock, copy }))
            }
            found => {
                may_format(&place, found, options)?;
                let geometry = plan(place.size.unwrap_or(u64::MAX).min(place.medium.len() as u64), options)?;
                let superblock = Superblock { uuid: Uuid::new_v4(), geometry, contents: options.contents };
                (superblock, Task::Format(superblock))
            }
        };
        let (is_new, repaired) = (matches!(task, Task::Format(_)), matches!(task, Task::Repair { .. }));
        let pending = Pending::new(task, place.path.clone(), place.medium.clone(), unfinished);
        let Place { path, kind, platform, medium, .. } = place;
        let (domain, geometry) = (medium.domain(), store.geometry);
        let reserve = options.reserve.unwrap_or((geometry.buffers / 8).max(64)).min(geometry.buffers / 2);
        let limits = Limits { max_record_bytes: options.max_record_bytes.into(), reserve: reserve as usize };
        let Superblock { uuid, contents, .. } = store;
        let info = RegionInfo { path, kind, domain, platform, uuid, geometry, contents, is_new, repaired };
        let delay = options.persist_delay;
        let medium = if delay.is_zero() { medium } else { Slowed(delay).over(medium) };
        let medium = if options.timed { Timed::new().over(medium) } else { medium };
        let watch = options.watch.clone();
        Ok(Self { pending: Arc::new(pending), medium, claim: Arc::new(claim), info, limits, watch })
    }
}

/// Checks that a store's records are what its user takes them for.
fn check_contents(path: &Path, found: Contents, asked: Contents) -> Result<(), OpenError> {
    if found == asked || found == Contents::Unknown || asked == Contents::Unknown {
        return Ok(());
    }
    Err(OpenError::Contents { path: path.to_path_buf(), found, asked })
}

/// What lies at the beginning of a medium.
fn look(medium: &dyn Medium) -> Found {
    if medium.len() < SUPERBLOCKS_BYTES {
        return Found::Foreign;
    }
    // SAFETY: the medium is at least this long, and nothing writes to it before its shards are open.
    let start = unsafe { slice::from_raw_parts(medium.base().as_ptr(), SUPERBLOCKS_BYTES) };
    Superblock::find(start.try_into().expect("the slice was made with this length"))
}

/// Checks that an existing store is what the options ask for.
fn check(path: &Path, actual: u64, geometry: &Geometry, options: &Options) -> Result<(), OpenError> {
    let path = || path.to_path_buf();
    let expected = geometry.region_bytes;
    if expected > actual {
        return Err(OpenError::Truncated { path: path(), expected, actual });
    }
    let pairs = [
        ("a size in bytes of", options.size.map(|size| size / PAGE_BYTES * PAGE_BYTES), expected),
        ("a number of shards of", options.shards.map(Into::into), geometry.shards.into()),
        ("a buffer length of", options.buffer_bytes.map(Into::into), geometry.buffer_bytes.into()),
        ("a number of log entries of", options.log_entries.map(Into::into), geometry.log_entries.into()),
    ];
    for (what, asked, found) in pairs {
        if let Some(asked) = asked.filter(|&asked| asked != found) {
            return Err(OpenError::Mismatch { path: path(), what, found, asked });
        }
    }
    Ok(())
}

const PAGE_BYTES: u64 = 4096;

/// Checks that making a store destroys nothing that nobody asked to destroy.
fn may_format(place: &Place, found: Found, options: &Options) -> Result<(), OpenError> {
    let path = place.path.clone();
    match found {
        _ if options.force => Ok(()),
        // A file was read when it was opened, or is new: reading it again, through the mapping, takes seconds.
        Found::Empty
            if matches!(place.kind, Kind::File | Kind::FsDax | Kind::VolatileFile | Kind::Memory) =>
        {
            Ok(())
        }
        Found::Empty if is_zero(place, &options.watch)? => Ok(()),
        Found::Empty | Found::Foreign => Err(OpenError::NotAStore { path }),
        Found::Version(found) => Err(OpenError::Version { path, found, supported: VERSION }),
        Found::Store { .. } | Found::Damaged => Err(OpenError::Damaged { path }),
    }
}

fn is_zero(place: &Place, watch: &Watch) -> Result<bool, OpenError> {
    let len = place.medium.len();
    // SAFETY: the medium is mapped, and nothing writes to it before its shards are open.
    let bytes = unsafe { slice::from_raw_parts(place.medium.base().as_ptr(), len) };
    for (number, block) in bytes.chunks(ZEROS_BYTES).enumerate() {
        watch
            .tell(Work::ReadingZeros, (number * ZEROS_BYTES) as u64, Some(len as u64))
            .map_err(stopped(&place.path))?;
        if block.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Between two looks at whether to go on.
const ZEROS_BYTES: usize = 1 << 20;

fn plan(bytes: u64, options: &Options) -> Result<Geometry, OpenError> {
    let wish = Wish {
        shards: options.shards.or(options.shards_if_new),
        buffer_bytes: options.buffer_bytes,
        log_entries: options.log_entries,
    };
    Geometry::plan(bytes, wish).map_err(|error| OpenError::Geometry(error.to_string()))
}
