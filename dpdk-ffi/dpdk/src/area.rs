//! Memory of one's own that devices read and write.

use std::sync::{Mutex, PoisonError};

use dpdk_sys as sys;

use crate::addresses::{self, Addresses, PAGE_BYTES, PhysicalError, Run};
use crate::device::{PortError, PortId};
use crate::eal::Eal;
use crate::{errno_text, last_errno};

/// What is registered: DPDK itself notices only an area that equals another.
static REGISTERED: Mutex<Vec<ExternalArea>> = Mutex::new(Vec::new());

/// A range of this process's memory that DPDK knows as memory for packets.
///
/// With a real NIC the order is: map the memory, [`register`](Self::register), [`map_dma`](Self::map_dma)
/// for each port, pools, queues.
#[derive(Clone, Copy, Debug)]
pub struct ExternalArea {
    base: usize,
    len_bytes: usize,
    addresses: Addresses,
}

/// Why memory cannot be used for packets.
#[derive(Debug, thiserror::Error)]
pub enum AreaError {
    /// A page that lies in the area only in part.
    #[error(
        "the area {base:#x}+{len_bytes:#x} does not begin and end on a page of {PAGE_BYTES} bytes; align it"
    )]
    Unaligned {
        /// Where it begins.
        base: usize,
        /// How long it is, in bytes.
        len_bytes: usize,
    },
    /// Part of it is known to DPDK already.
    #[error("the area {base:#x}+{len_bytes:#x} overlaps one that is registered; register an area once")]
    Repeated {
        /// Where it begins.
        base: usize,
        /// How long it is, in bytes.
        len_bytes: usize,
    },
    /// DPDK refused for another reason.
    #[error("DPDK does not take the area {base:#x}+{len_bytes:#x}: {reason}; give EAL more memory (-m)")]
    Register {
        /// Where it begins.
        base: usize,
        /// How long it is, in bytes.
        len_bytes: usize,
        /// DPDK's error code as text.
        reason: String,
    },
    /// EAL runs with physical addresses, and those of the area cannot be had.
    #[error("the area {base:#x}+{len_bytes:#x} has no physical addresses for devices: {reason}")]
    Physical {
        /// Where it begins.
        base: usize,
        /// How long it is, in bytes.
        len_bytes: usize,
        /// Why not.
        reason: PhysicalError,
    },
    /// The device's bus did not map the memory.
    #[error("{device} cannot reach the area by DMA: {reason}. {remedy}")]
    Dma {
        /// The device's name.
        device: String,
        /// The kernel's reason.
        reason: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The port could not be asked for its device.
    #[error(transparent)]
    Port(#[from] PortError),
}

impl ExternalArea {
    /// Makes `len_bytes` of memory at `base` known to DPDK until the process ends. Nothing is read or written.
    ///
    /// Where EAL runs with physical addresses ([`Eal::uses_physical_addresses`]) they are looked up once and taken
    /// to stay as they are until the process ends. The kernel keeps that for device-DAX and hugepages. A file on
    /// a DAX file system keeps them as long as nobody truncates, moves or deletes it; a file in the page cache
    /// does not keep them at all.
    ///
    /// # Errors
    /// [`AreaError`]: an unaligned or repeated area, or one without physical addresses where they are needed.
    pub fn register(_eal: Eal, base: *const u8, len_bytes: usize) -> Result<Self, AreaError> {
        let base = base as usize;
        if base == 0
            || len_bytes == 0
            || !base.is_multiple_of(PAGE_BYTES)
            || !len_bytes.is_multiple_of(PAGE_BYTES)
        {
            return Err(AreaError::Unaligned { base, len_bytes });
        }
        let are_physical = addresses::are_physical();
        let addresses = if are_physical {
            Addresses::physical_ones(base, len_bytes).map_err(|reason| AreaError::Physical {
                base,
                len_bytes,
                reason,
            })?
        } else {
            Addresses::virtual_ones(base, len_bytes)
        };
        let area = Self { base, len_bytes, addresses };
        let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
        if registered.iter().any(|other| other.overlaps(area)) {
            return Err(AreaError::Repeated { base, len_bytes });
        }
        // Without a list DPDK takes the area's own addresses for those of devices.
        let mut pages = if are_physical { addresses.pages() } else { Vec::new() };
        let list = if are_physical { pages.as_mut_ptr() } else { std::ptr::null_mut() };
        // SAFETY: DPDK records the range only, which is page-aligned, and copies the list, which has an entry for
        // each page.
        let result = unsafe {
            sys::rte_extmem_register(base as *mut _, len_bytes, list, pages.len() as u32, PAGE_BYTES)
        };
        if result != 0 {
            return Err(AreaError::Register { base, len_bytes, reason: errno_text(last_errno()) });
        }
        registered.push(area);
        Ok(area)
    }

    /// Lets the port's device reach the area by DMA. Needed before a real NIC's queues are set up; virtual
    /// devices, and NICs that nothing keeps from memory (uio), take it and do nothing.
    ///
    /// # Errors
    /// [`AreaError::Dma`] with the kernel's reason.
    pub fn map_dma(&self, port: PortId) -> Result<(), AreaError> {
        // SAFETY: the device belongs to a port that exists; the kernel checks the range.
        self.for_each_run(port, |device, run| unsafe {
            sys::rte_dev_dma_map(device, run.start as *mut _, run.iova, run.len_bytes)
        })
    }

    /// Takes the area away from the port's device again: what it still reads or writes there then fails.
    ///
    /// # Errors
    /// [`AreaError::Dma`] with the kernel's reason.
    pub fn unmap_dma(&self, port: PortId) -> Result<(), AreaError> {
        // SAFETY: the device belongs to a port that exists; the kernel checks the range.
        self.for_each_run(port, |device, run| unsafe {
            sys::rte_dev_dma_unmap(device, run.start as *mut _, run.iova, run.len_bytes)
        })
    }

    fn for_each_run(
        &self,
        port: PortId,
        call: impl Fn(*mut sys::rte_device, &Run) -> i32,
    ) -> Result<(), AreaError> {
        let device = port.device()?;
        for run in self.addresses.runs() {
            clear_errno();
            if call(device, run) == 0 {
                continue;
            }
            let reason = std::io::Error::last_os_error();
            // A bus without an IOMMU behind it says so without having asked the kernel.
            let nobody_refused = reason.raw_os_error() == Some(0) && last_errno() == libc::ENOTSUP;
            if !(nobody_refused && addresses::are_physical()) {
                return Err(dma_error(port, reason));
            }
        }
        Ok(())
    }

    /// How many pieces the area has whose addresses follow one another for devices: 1 with virtual addresses.
    pub fn contiguous_pieces(&self) -> usize {
        self.addresses.runs().len()
    }

    /// Whether the area is one such piece.
    #[inline]
    pub fn is_one_piece(&self) -> bool {
        self.addresses.runs().len() == 1
    }

    /// Whether devices see `bytes` in one piece. Only such buffers can be given to a pool or swapped into a packet;
    /// with virtual addresses that is every buffer in the area.
    #[inline]
    pub fn is_contiguous(&self, bytes: &[u8]) -> bool {
        self.iova(bytes.as_ptr() as usize, bytes.len()).is_some()
    }

    /// The I/O address of `len` bytes at `address`; none if they lie outside or not in one piece.
    #[inline]
    pub(crate) fn iova(&self, address: usize, len: usize) -> Option<u64> {
        self.addresses.of(address, len)
    }

    /// Whether `len` bytes at `address` lie inside.
    #[inline]
    pub(crate) fn contains(&self, address: usize, len: usize) -> bool {
        address
            .checked_sub(self.base)
            .and_then(|offset| offset.checked_add(len))
            .is_some_and(|end| end <= self.len_bytes)
    }

    fn overlaps(self, other: Self) -> bool {
        self.base < other.base.saturating_add(other.len_bytes)
            && other.base < self.base.saturating_add(self.len_bytes)
    }

    /// The area as DPDK's pool constructor wants it, for buffers of `buffer_bytes`.
    pub(crate) fn descriptor(&self, buffer_bytes: u16) -> sys::rte_pktmbuf_extmem {
        sys::rte_pktmbuf_extmem {
            buf_ptr: self.base as *mut _,
            buf_iova: self.addresses.runs()[0].iova,
            buf_len: self.len_bytes,
            elt_size: buffer_bytes,
        }
    }
}

fn clear_errno() {
    // SAFETY: errno is this thread's own.
    unsafe { *libc::__errno_location() = 0 }
}

/// The kernel's reason is in errno: DPDK's own says only that it failed.
fn dma_error(port: PortId, reason: std::io::Error) -> AreaError {
    let remedy = match reason.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            "The kernel does not let vfio pin pages of a file on a DAX file system: use a device-DAX namespace \
             (`ndctl create-namespace --mode=devdax`)"
        }
        Some(libc::ENOMEM) => {
            "Raise the limit of locked memory (`ulimit -l unlimited`) above the area's size"
        }
        Some(libc::EINVAL) => {
            "The IOMMU may translate fewer bits than these addresses have: run EAL with --iova-mode=pa (in QEMU: \
             -device intel-iommu,aw-bits=48)"
        }
        Some(libc::EEXIST) => "It is mapped already: map an area once for each port",
        _ => "Check the kernel's log",
    };
    AreaError::Dma { device: port.name(), reason, remedy }
}
