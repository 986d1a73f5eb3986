//! Mappings: a path becomes a locked, mapped medium.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Deref,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    ptr::{self, NonNull},
    sync::Arc,
};

use memmap2::MmapRaw;
use rustix::{
    fs::{FlockOperation, SeekFrom, flock, fstatfs, seek},
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};

use super::{
    backing::{Backing, Kind},
    disk,
    options::{DomainChoice, MEMORY, Options},
    room::{self, Unfinished},
    sysfs::{Device, Keeping, Sysfs},
};
use crate::{
    medium::{Domain, Handle, Mapped, Mapping, Named, Paged, best_flush_instruction},
    recovery::error::{OpenError, io_error, stopped},
    watch::Work,
};

/// Opens, locks and maps what is at `path`, and creates it if it is a file that is not there.
pub(super) fn open(path: &Path, options: &Options) -> Result<(Backing, Unfinished), OpenError> {
    if path == Path::new(MEMORY) {
        return Ok((memory(options)?, Unfinished::nothing()));
    }
    let mut open = OpenOptions::new();
    // Of a block device: nobody else has it, and no file system is on it that is mounted.
    if fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device()) {
        open.custom_flags(libc::O_EXCL);
    }
    let existing = open.read(true).write(true).open(path);
    let (file, mut unfinished) = match existing {
        Ok(file) => (file, Unfinished::nothing()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, options)?,
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            return Err(unsupported(path, "a directory", "name a file in it"));
        }
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            return Err(OpenError::Locked { path: path.into() });
        }
        Err(source) => return Err(io_error("opening", path)(source)),
    };
    let file = match Locked::new(file, FlockOperation::NonBlockingLockExclusive, path) {
        Ok(file) => file,
        Err(error) => {
            // Whoever has it locked is making a store of it.
            unfinished.abandon();
            return Err(error);
        }
    };
    let meta = file.metadata().map_err(io_error("inspecting", path))?;
    let kind = meta.file_type();
    let backing = if options.domain == DomainChoice::Disk && !kind.is_char_device() {
        disk::open(path, file, &meta, options, &mut unfinished)?
    } else if options.domain == DomainChoice::Disk {
        let remedy = "its lines are flushed, which needs no disk: leave the domain out";
        return Err(unsupported(path, "a character device, and no disk", remedy));
    } else if kind.is_char_device() {
        device_dax(path, file, &meta, options, &Sysfs::new("/sys"))?
    } else if kind.is_file() {
        regular(path, file, &meta, options, &Sysfs::new("/sys"), &mut unfinished)?
    } else if kind.is_block_device() {
        let remedy = "serve it as a disk (domain disk), which takes all of it; or, if it is persistent memory, make a file on a \
                      DAX file system on it, or turn the namespace into device-DAX (ndctl create-namespace --mode=devdax)";
        return Err(unsupported(path, "a block device", remedy));
    } else {
        return Err(unsupported(path, "no file and no device", "name a file or a device-DAX device"));
    };
    Ok((backing, unfinished))
}

/// A store that is only read, wherever it ends.
pub(crate) enum ReadOnly {
    /// A file or a block device, read with system calls: a mapping would fault where the file is cut off.
    File(Locked),
    /// A device that can only be mapped.
    Device { _named: Named, map: MmapRaw, _lock: Locked },
}

impl ReadOnly {
    /// Opens a store for reading, unless it is open for writing somewhere.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let file = File::open(path).map_err(io_error("opening", path))?;
        let file = Locked::new(file, FlockOperation::NonBlockingLockShared, path)?;
        let meta = file.metadata().map_err(io_error("inspecting", path))?;
        if meta.file_type().is_char_device() {
            let device = char_device(&meta);
            let sysfs = Sysfs::new("/sys");
            let len = sysfs.dax_size(device).filter(|_| sysfs.is_dax(device));
            let len = len.ok_or_else(|| not_dax(path))? as usize;
            let map = memmap2::MmapOptions::new().len(len).map_raw_read_only(&*file);
            let map = map.map_err(io_error("mapping", path))?;
            let base = NonNull::new(map.as_mut_ptr()).expect("a mapping does not lie at address 0");
            let named = Named::new(base, len, path, file.as_fd());
            return Ok(Self::Device { _named: named, map, _lock: file });
        }
        if !meta.is_file() && !meta.file_type().is_block_device() {
            return Err(unsupported(
                path,
                "no file and no device",
                "name a file, a disk or a device-DAX device",
            ));
        }
        Ok(Self::File(file))
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            // What the metadata of a block device say is 0.
            Self::File(file) => seek(&**file, SeekFrom::End(0)).unwrap_or(0),
            Self::Device { map, .. } => map.len() as u64,
        }
    }

    /// Fills `bytes` from `offset`; none if that is not all there.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Option<()> {
        match self {
            Self::File(file) => file.read_exact_at(bytes, offset).ok(),
            Self::Device { map, .. } => {
                let from = usize::try_from(offset).ok()?;
                from.checked_add(bytes.len()).filter(|&end| end <= map.len())?;
                // SAFETY: the range was checked; the lock keeps writers out.
                unsafe { ptr::copy_nonoverlapping(map.as_ptr().add(from), bytes.as_mut_ptr(), bytes.len()) };
                Some(())
            }
        }
    }
}

fn memory(options: &Options) -> Result<Backing, OpenError> {
    let path = PathBuf::from(MEMORY);
    let bytes = options.size.ok_or(OpenError::NoSize { path: path.clone() })?;
    let len = mapped_len(bytes)?;
    let map = memmap2::MmapOptions::new().len(len.max(1)).map_anon().map_err(io_error("mapping", &path))?;
    let map = MmapRaw::from(map);
    prefer_huge_pages(&map);
    populate(&path, &map, options)?;
    let medium = mapped(&path, map, None, Domain::Volatile(best_flush_instruction()));
    Ok(Backing { path, kind: Kind::Memory, platform: None, medium, size: options.size })
}

/// Makes a new file. It has no blocks yet.
fn create(path: &Path, options: &Options) -> Result<(File, Unfinished), OpenError> {
    if options.size.is_none() {
        return Err(OpenError::NoSize { path: path.into() });
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = file.map_err(io_error("creating", path))?;
    Ok((file, Unfinished::new_file(path)))
}

/// A file whose lock ends with this handle, whoever else has its descriptor: a process that is being started has a
/// copy of it until it becomes another program.
pub(crate) struct Locked(File);

impl Locked {
    fn new(file: File, operation: FlockOperation, path: &Path) -> Result<Self, OpenError> {
        match flock(&file, operation) {
            Ok(()) => Ok(Self(file)),
            Err(Errno::WOULDBLOCK) => Err(OpenError::Locked { path: path.into() }),
            Err(errno) => Err(io_error("locking", path)(errno.into())),
        }
    }
}

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing the last copy of the descriptor ends the lock too, only later.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn regular(
    path: &Path,
    file: Locked,
    meta: &fs::Metadata,
    options: &Options,
    sysfs: &Sysfs,
    unfinished: &mut Unfinished,
) -> Result<Backing, OpenError> {
    let volatile = volatile_filesystem(&file, path)?;
    if let Some(filesystem) = volatile.filter(|_| !options.volatile) {
        return Err(OpenError::Volatile { path: path.into(), what: filesystem });
    }
    let page_bytes = huge_page_bytes(&file).unwrap_or(1);
    let len = room::prepare(path, &file, options, page_bytes, unfinished)?;
    let (path, size) = (path.to_path_buf(), Some(len));
    let len = mapped_len(len)?;
    if volatile.is_some() {
        let map = memmap2::MmapOptions::new().len(len).map_raw(&*file).map_err(io_error("mapping", &path))?;
        prefer_huge_pages(&map);
        populate(&path, &map, options)?;
        let medium = mapped(&path, map, Some(file), Domain::Volatile(best_flush_instruction()));
        return Ok(Backing { path, kind: Kind::VolatileFile, platform: None, medium, size });
    }
    match Span::map_sync(&file, len, HUGE_PAGE_BYTES) {
        Ok(span) => {
            let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
            let platform = sysfs.persistence_domain(Device::Block { major, minor });
            let medium = span.into_medium(&path, file, dax_domain(platform.as_deref()));
            Ok(Backing { path, kind: Kind::FsDax, platform, medium, size })
        }
        // What file systems without DAX say to MAP_SYNC, mmap(2).
        Err(Errno::OPNOTSUPP | Errno::INVAL) => {
            let map =
                memmap2::MmapOptions::new().len(len).map_raw(&*file).map_err(io_error("mapping", &path))?;
            // Pages that are read ahead come as folios of up to 2 MiB, of which one byte stored makes all dirty, and each
            // commit write all of it.
            if let Err(error) = map.advise(memmap2::Advice::Random) {
                tracing::debug!("more may be written than was stored: {error}");
            }
            let synced = file.try_clone().map_err(io_error("opening", &path))?;
            let paged = Paged::new(mapping(&path, map, Some(file)), synced);
            let medium = Arc::new(Handle::new(Arc::new(paged)));
            Ok(Backing { path, kind: Kind::File, platform: None, medium, size })
        }
        Err(errno) => Err(io_error("mapping", &path)(errno.into())),
    }
}

pub(super) fn volatile_filesystem(file: &File, path: &Path) -> Result<Option<&'static str>, OpenError> {
    let stat = fstatfs(file).map_err(|errno| io_error("inspecting", path)(errno.into()))?;
    // statfs(2) lists the magic numbers.
    Ok(match stat.f_type as u64 & 0xffff_ffff {
        0x0102_1994 => Some("tmpfs"),
        0x8584_58f6 => Some("ramfs"),
        0x9584_58f6 => Some("hugetlbfs"),
        _ => None,
    })
}

/// Files on hugetlbfs consist of whole huge pages, which is what it calls its blocks.
fn huge_page_bytes(file: &File) -> Option<u64> {
    let stat = fstatfs(file).ok()?;
    (stat.f_type as u64 & 0xffff_ffff == 0x9584_58f6).then_some(stat.f_bsize as u64)
}

fn device_dax(
    path: &Path,
    file: Locked,
    meta: &fs::Metadata,
    options: &Options,
    sysfs: &Sysfs,
) -> Result<Backing, OpenError> {
    let device = char_device(meta);
    let size = sysfs.dax_size(device).filter(|_| sysfs.is_dax(device)).ok_or_else(|| not_dax(path))?;
    let keeping = sysfs.dax_keeping(device);
    check_keeping(path, keeping, options)?;
    let align = sysfs.dax_align(device).unwrap_or(0).max(HUGE_PAGE_BYTES as u64) as usize;
    let len = mapped_len(size)?;
    let span = Span::map_sync(&file, len, align).map_err(|errno| io_error("mapping", path)(errno.into()))?;
    let platform = sysfs.persistence_domain(device);
    let domain = match keeping {
        Keeping::Nvdimm => dax_domain(platform.as_deref()),
        Keeping::HostFile | Keeping::Memory => Domain::Volatile(best_flush_instruction()),
    };
    let medium = span.into_medium(path, file, domain);
    Ok(Backing { path: path.into(), kind: Kind::DeviceDax, platform, medium, size: options.size })
}

/// Refuses memory on the dax bus that does not survive, unless that is meant.
fn check_keeping(path: &Path, keeping: Keeping, options: &Options) -> Result<(), OpenError> {
    let what = match keeping {
        _ if options.volatile => return Ok(()),
        Keeping::Nvdimm => return Ok(()),
        Keeping::HostFile => {
            "virtio-pmem as device-DAX, where a flushed line is not in the host's file yet (as a file on a file system on \
             it, which msync reaches, it is persistent)"
        }
        Keeping::Memory => {
            "memory on the dax bus and of no NVDIMM region (a CXL expander, HBM, or set aside)"
        }
    };
    Err(OpenError::Volatile { path: path.into(), what })
}

/// What device-DAX needs at least, and what lets the kernel map a DAX file with huge pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// What flush and fence are on DAX memory. Only a platform that says so itself is believed to save its caches.
fn dax_domain(platform: Option<&str>) -> Domain {
    match platform {
        Some("cpu_cache") => Domain::FenceOnly,
        _ => Domain::CacheLines(best_flush_instruction()),
    }
}

fn char_device(meta: &fs::Metadata) -> Device {
    Device::Char { major: libc::major(meta.rdev()), minor: libc::minor(meta.rdev()) }
}

/// A range of addresses that was mapped by hand, because of its alignment or its flags.
struct Span {
    /// What is unmapped in the end, including what was reserved for alignment.
    reserved: NonNull<u8>,
    reserved_len: usize,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a range of addresses has no thread affinity.
unsafe impl Send for Span {}
// SAFETY: as above; nothing is accessed through it.
unsafe impl Sync for Span {}

impl Span {
    /// Maps a file so that a store's metadata is durable before the store returns. `MAP_SYNC` is refused where
    /// that is not possible, but only together with `MAP_SHARED_VALIDATE`: else it is ignored (mmap(2)).
    fn map_sync(file: &File, len: usize, align: usize) -> Result<Self, Errno> {
        let reserved_len = len.checked_add(align).ok_or(Errno::NOMEM)?;
        let flags = MapFlags::SHARED_VALIDATE | MapFlags::SYNC;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // Asked for in a place of its own first: a file system may refuse only when the kernel has already taken away
        // what lay at a fixed address, and another thread may have something there by the time it is unmapped.
        let probe_len = len.min(align);
        // SAFETY: no address is asked for, and what is mapped there is unmapped at once, by its own name.
        unsafe {
            let probe = mmap(ptr::null_mut(), probe_len, access, flags, file.as_fd(), 0)?;
            munmap(probe, probe_len)?;
        }
        // SAFETY: no address is asked for, so that nothing mapped is touched.
        let reserved =
            unsafe { mmap_anonymous(ptr::null_mut(), reserved_len, ProtFlags::empty(), MapFlags::PRIVATE) }?;
        let reserved = NonNull::new(reserved.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let base = reserved.as_ptr().map_addr(|address| address.next_multiple_of(align));
        let base = NonNull::new(base).ok_or(Errno::NOMEM)?;
        // Should this fail all the same, the reserved addresses stay reserved: whose they are by then is not known.
        // SAFETY: the range lies inside what was just reserved and is used by nobody.
        unsafe { mmap(base.as_ptr().cast(), len, access, flags | MapFlags::FIXED, file.as_fd(), 0) }?;
        Ok(Self { reserved, reserved_len, base, len })
    }

    fn into_medium(self, path: &Path, file: Locked, domain: Domain) -> Arc<Mapped> {
        let (base, len) = (self.base, self.len);
        let named = Named::new(base, len, path, file.as_fd());
        // SAFETY: the range stays mapped until the span is dropped.
        let mapping = unsafe { Mapping::new(base, len, Box::new((named, self, file))) };
        Arc::new(Mapped::new(Arc::new(mapping), domain))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // SAFETY: this range was reserved by this span; the medium over it is gone when its backing is dropped.
        if let Err(error) = unsafe { munmap(self.reserved.as_ptr().cast(), self.reserved_len) } {
            tracing::warn!(%error, "unmapping a region failed");
        }
    }
}

/// A length that can be mapped.
pub(super) fn mapped_len(bytes: u64) -> Result<usize, OpenError> {
    usize::try_from(bytes).map_err(|_| OpenError::Geometry(format!("{bytes} bytes are too many")))
}

/// Asks for huge pages where the memory is DRAM. The kernel may have none: transparent ones are off there, or, on tmpfs,
/// off as it was mounted.
pub(super) fn prefer_huge_pages(map: &MmapRaw) {
    if let Err(error) = map.advise(memmap2::Advice::HugePage) {
        tracing::debug!("a region in memory stays in small pages: {error}");
    }
}

/// Faults all pages in, if that is wanted. A kernel that cannot (before Linux 5.14) faults them in one by one later.
pub(super) fn populate(path: &Path, map: &MmapRaw, options: &Options) -> Result<(), OpenError> {
    let total = map.len();
    let mut from = 0;
    while options.populate && from < total {
        options.watch.tell(Work::FaultingIn, from as u64, Some(total as u64)).map_err(stopped(path))?;
        let step = (total - from).min(POPULATE_BYTES);
        match map.advise_range(memmap2::Advice::PopulateWrite, from, step) {
            Ok(()) => from += step,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::debug!("pages are faulted in as they are used: {error}");
                break;
            }
            // Later it would be SIGBUS, or the end by the kernel's hand for want of memory.
            Err(error) => return Err(io_error("bringing pages into memory", path)(error)),
        }
    }
    Ok(())
}

/// Pages are faulted in in steps of this many bytes, which all kinds of page divide but the largest.
const POPULATE_BYTES: usize = 64 << 20;

fn mapped(path: &Path, map: MmapRaw, file: Option<Locked>, domain: Domain) -> Arc<Mapped> {
    Arc::new(Mapped::new(Arc::new(mapping(path, map, file)), domain))
}

pub(super) fn mapping(path: &Path, map: MmapRaw, file: Option<Locked>) -> Mapping {
    let base = NonNull::new(map.as_mut_ptr()).expect("a mapping does not lie at address 0");
    let len = map.len();
    let named = file.as_ref().map(|file| Named::new(base, len, path, file.as_fd()));
    // SAFETY: the range stays mapped until the map is dropped.
    unsafe { Mapping::new(base, len, Box::new((named, map, file))) }
}

fn not_dax(path: &Path) -> OpenError {
    unsupported(path, "a character device, but not device-DAX", "name a device like /dev/dax0.0")
}

pub(super) fn unsupported(path: &Path, what: &'static str, remedy: &'static str) -> OpenError {
    OpenError::Unsupported { path: path.into(), what, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_platform_that_says_so_is_believed_to_save_its_caches() {
        let flushed = Domain::CacheLines(best_flush_instruction());
        assert_eq!(dax_domain(Some("cpu_cache")), Domain::FenceOnly);
        for platform in [Some("memory_controller"), Some("unknown"), None] {
            assert_eq!(dax_domain(platform), flushed, "{platform:?}");
        }
    }

    #[test]
    fn dax_memory_that_does_not_survive_is_refused_unless_it_is_meant() {
        let path = Path::new("/dev/dax0.0");
        let meant = Options { volatile: true, ..Options::default() };
        for (keeping, refused) in [
            (Keeping::Nvdimm, None),
            (Keeping::HostFile, Some("virtio-pmem")),
            (Keeping::Memory, Some("no NVDIMM region")),
        ] {
            let said = check_keeping(path, keeping, &Options::default()).map_err(|error| error.to_string());
            match refused {
                None => assert_eq!(said, Ok(())),
                Some(why) => assert!(said.as_ref().is_err_and(|said| said.contains(why)), "{said:?}"),
            }
            assert!(check_keeping(path, keeping, &meant).is_ok());
        }
    }

    #[test]
    fn a_store_in_memory_asks_for_huge_pages() {
        let options = Options { size: Some(16 << 20), ..Options::default() };
        let backing = memory(&options).unwrap();
        let (is_built_in, is_asked) = crate::medium::asked_for(backing.medium.base().addr().get());
        assert_eq!(is_asked, is_built_in);
    }

    #[test]
    fn a_file_system_without_dax_refuses_map_sync() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = File::create_new(dir.path().join("file")).unwrap();
        file.set_len(1 << 20).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(dir.path().join("file")).unwrap();
        match Span::map_sync(&file, 1 << 20, HUGE_PAGE_BYTES) {
            Ok(span) => assert_eq!(span.base.as_ptr() as usize % HUGE_PAGE_BYTES, 0),
            Err(errno) => assert!(matches!(errno, Errno::OPNOTSUPP | Errno::INVAL), "{errno}"),
        }
    }
}
