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

/// What most devices can read at least, where they cannot read a block.
const SECTOR_BYTES: usize = 512;
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
            bytes = unreadable,
            "not all of the disk can be read, and zeros are taken for what cannot: records in it are lost; check the device"
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

/// Fills `part` from `from`; returns the number of bytes that the device cannot read, which are zeros then.
fn read(file: &impl FileExt, part: &mut [u8], from: usize) -> io::Result<u64> {
    read_in(&[BLOCK_BYTES, SECTOR_BYTES], file, part, from)
}

/// Reads all at once, and where the device cannot, in pieces of the first of `units`.
fn read_in(units: &[usize], file: &impl FileExt, part: &mut [u8], from: usize) -> io::Result<u64> {
    match file.read_exact_at(part, from as u64) {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
        // Its sectors are longer.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && part.len() < BLOCK_BYTES => {}
        outcome => return outcome.map(|()| 0),
    }
    let Some((&unit, smaller)) = units.split_first() else {
        part.fill(0);
        return Ok(part.len() as u64);
    };
    let pieces = part.chunks_mut(unit).enumerate();
    pieces.map(|(number, piece)| read_in(smaller, file, piece, from + number * unit)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device whose bytes are their sector's number, with bad sectors, and that reads whole sectors of some length only.
    struct Device {
        bad: &'static [usize],
        sector_bytes: usize,
    }

    impl FileExt for Device {
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
            let from = offset as usize;
            if !(from | bytes.len()).is_multiple_of(self.sector_bytes) {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            let mut sectors = (from..from + bytes.len()).step_by(self.sector_bytes);
            if sectors.any(|at| self.bad.contains(&(at / self.sector_bytes))) {
                // Some of it may have come.
                bytes.fill(0xee);
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            bytes.iter_mut().zip(from..).for_each(|(byte, at)| *byte = (at / self.sector_bytes) as u8);
            Ok(bytes.len())
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            unreachable!("it is read only")
        }
    }

    #[test]
    fn of_what_a_device_cannot_read_a_sector_is_lost_and_no_more() {
        for (sector_bytes, bad) in
            [(SECTOR_BYTES, &[21, 22, 40][..]), (BLOCK_BYTES, &[6][..]), (SECTOR_BYTES, &[])]
        {
            let device = Device { bad, sector_bytes };
            let (from, mut part) = (2 * BLOCK_BYTES, vec![1; 8 * BLOCK_BYTES]);
            let unreadable = read(&device, &mut part, from).unwrap();
            assert_eq!(unreadable, (bad.len() * sector_bytes) as u64);
            for (byte, at) in part.into_iter().zip(from..) {
                let sector = at / sector_bytes;
                let expected = if bad.contains(&sector) { 0 } else { sector as u8 };
                assert_eq!(byte, expected, "byte {at} with sectors of {sector_bytes} bytes");
            }
        }
    }
}
