//! A file or a block device as a disk: read into memory once, and written past the page cache from then on.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileExt, FileTypeExt},
    path::Path,
    slice,
    sync::Arc,
};

use memmap2::MmapRaw;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use super::{
    backing::{Backing, Kind},
    map::{Locked, mapped_len, mapping, populate, prefer_huge_pages, unsupported, volatile_filesystem},
    options::Options,
    room::{self, Unfinished},
};
use crate::{
    format::{found::Found, superblock::SUPERBLOCK_BYTES},
    medium::{BLOCK_BYTES, Disk, Handle, again},
    recovery::error::{OpenError, io_error, stopped},
    watch::{Watch, Work},
};

/// Bytes that are read or written at a time while the store is loaded.
const STEP_BYTES: usize = 4 << 20;

/// Loads what is in a locked file or block device.
pub(super) fn open(
    path: &Path,
    file: Locked,
    meta: &Metadata,
    options: &Options,
    unfinished: &mut Unfinished,
) -> Result<Backing, OpenError> {
    let is_device = meta.file_type().is_block_device();
    let (kind, size) = if is_device {
        (Kind::BlockDevice, device_bytes(path, &file, options)?)
    } else {
        if let Some(what) = volatile_filesystem(&file, path)? {
            return Err(OpenError::Volatile { path: path.into(), what });
        }
        (Kind::File, room::prepare(path, &file, options, 1, unfinished)?)
    };
    // Whole blocks: a store has no others.
    let len = mapped_len(size)? / BLOCK_BYTES * BLOCK_BYTES;
    if len == 0 {
        return Err(OpenError::Geometry(format!("{size} bytes are not a block of {BLOCK_BYTES}")));
    }
    let direct = again(&file, libc::O_DIRECT).map_err(|reason| match reason.raw_os_error() {
        Some(libc::EINVAL) => refuses_direct(path),
        _ => io_error("opening without the page cache", path)(reason),
    })?;
    let map = memory(path, len, options)?;
    load(path, &direct, &map, is_device, &options.watch)?;
    let mapping = mapping(path, map, Some(file));
    let disk = Disk::new(mapping, direct).map_err(|reason| match reason.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM) => unsupported(
            path,
            "to be written past the page cache, for which this process may not use io_uring",
            "allow it (sysctl kernel.io_uring_disabled=0, or the container's seccomp profile), or use the page cache \
             (domain msync)",
        ),
        Some(libc::EINVAL) => refuses_direct(path),
        _ => io_error("trying how the disk keeps a write best", path)(reason),
    })?;
    let medium = Arc::new(Handle::new(Arc::new(disk)));
    Ok(Backing { path: path.into(), kind, platform: None, medium, size: Some(len as u64) })
}

fn refuses_direct(path: &Path) -> OpenError {
    let remedy = "put the store on a file system that does (ext4, XFS, Btrfs) or on a block device with blocks of 4096 \
                  bytes or less, or use the page cache (domain msync)";
    unsupported(
        path,
        "on a file system that does not write past the page cache (O_DIRECT) in blocks of 4096 bytes",
        remedy,
    )
}

/// How much of a block device is a store, or becomes one.
fn device_bytes(path: &Path, file: &File, options: &Options) -> Result<u64, OpenError> {
    let there = seek(file, SeekFrom::End(0)).map_err(|errno| io_error("inspecting", path)(errno.into()))?;
    if let Err(reason) = file.read_exact_at(&mut [0; SUPERBLOCK_BYTES], 0)
        && reason.raw_os_error() != Some(libc::EIO)
    {
        return Err(io_error("reading", path)(reason));
    }
    match room::find(file, there, options.size) {
        Found::Store { superblock, .. } if !options.force => Ok(superblock.geometry.region_bytes.min(there)),
        _ => match options.size {
            Some(asked) if asked > there => Err(OpenError::Geometry(format!(
                "{} has {there} bytes, and {asked} are asked for",
                path.display()
            ))),
            asked => Ok(asked.unwrap_or(there)),
        },
    }
}

/// Memory for a store.
fn memory(path: &Path, len: usize, options: &Options) -> Result<MmapRaw, OpenError> {
    // Else the kernel would end this process, or another one, while the store is read.
    if let Some(available) = available_bytes().filter(|&available| available < len as u64) {
        return Err(OpenError::NoMemory { path: path.into(), bytes: len as u64, available });
    }
    let map = memmap2::MmapOptions::new().len(len).map_anon().map_err(io_error("mapping", path))?;
    let map = MmapRaw::from(map);
    prefer_huge_pages(&map);
    populate(path, &map, options)?;
    Ok(map)
}

fn available_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Reads what the file holds. Where it holds nothing, zeros are written: else the first write to each place would have the
/// file system write its own notes too, and wait for them.
fn load(path: &Path, direct: &File, map: &MmapRaw, is_device: bool, watch: &Watch) -> Result<(), OpenError> {
    // SAFETY: the mapping was made just now, and nobody else knows of it.
    let memory = unsafe { slice::from_raw_parts_mut(map.as_mut_ptr(), map.len()) };
    let (len, mut from, mut unreadable) = (memory.len(), 0, 0);
    while from < len {
        watch.tell(Work::Loading, from as u64, Some(len as u64)).map_err(stopped(path))?;
        let run = if is_device { Run { is_data: true, end: len } } else { Run::at(direct, from, len) };
        let end = run.end.min(from + STEP_BYTES);
        let part = &mut memory[from..end];
        if run.is_data {
            unreadable += read(direct, part, from).map_err(io_error("reading", path))?;
        } else {
            direct.write_all_at(part, from as u64).map_err(io_error("writing zeros", path))?;
        }
        from = end;
    }
    if unreadable > 0 {
        tracing::error!(
            path = %path.display(),
            blocks = unreadable,
            "blocks cannot be read, and are taken for zeros: records in them are lost; check the device"
        );
    }
    Ok(())
}

/// Bytes that are alike in that there are any in the file, or none.
struct Run {
    is_data: bool,
    end: usize,
}

impl Run {
    /// The blocks from `from` on. Where a file system does not say, all is data.
    fn at(file: &File, from: usize, len: usize) -> Self {
        let whole = Self { is_data: true, end: len };
        let block_of = |offset: u64| offset as usize / BLOCK_BYTES * BLOCK_BYTES;
        match seek(file, SeekFrom::Data(from as u64)) {
            Ok(data) if block_of(data) > from => Self { is_data: false, end: block_of(data).min(len) },
            Ok(_) => match seek(file, SeekFrom::Hole(from as u64)) {
                Ok(hole) if hole as usize > from => {
                    Self { is_data: true, end: (hole as usize).next_multiple_of(BLOCK_BYTES).min(len) }
                }
                _ => whole,
            },
            // Nothing is behind it.
            Err(Errno::NXIO) => Self { is_data: false, end: len },
            Err(_) => whole,
        }
    }
}

/// Fills `part` from `from`; returns the number of blocks that the device cannot read, which stay zeros.
fn read(file: &File, part: &mut [u8], from: usize) -> io::Result<u64> {
    match file.read_exact_at(part, from as u64) {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
        outcome => return outcome.map(|()| 0),
    }
    let mut unreadable = 0;
    for (number, block) in part.chunks_mut(BLOCK_BYTES).enumerate() {
        match file.read_exact_at(block, (from + number * BLOCK_BYTES) as u64) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                block.fill(0);
                unreadable += 1;
            }
            outcome => outcome?,
        }
    }
    Ok(unreadable)
}
