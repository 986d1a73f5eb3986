//! Memory of one's own that devices read and write.

use std::sync::{Mutex, PoisonError};

use dpdk_sys as sys;

use crate::eal::Eal;
use crate::port::{PortError, PortId};
use crate::{errno_text, last_errno};

/// The page size given to DPDK; it wants both ends aligned to it, and looks no further.
const PAGE_BYTES: usize = 4096;

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
    /// Physical addresses are needed, and files have none that stay.
    #[error(
        "external memory needs virtual I/O addresses; run EAL with --iova-mode=va (a NIC then needs an IOMMU)"
    )]
    PhysicalAddresses,
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
    /// # Errors
    /// [`AreaError`]: an unaligned or repeated area, or EAL runs with physical addresses.
    pub fn register(_eal: Eal, base: *const u8, len_bytes: usize) -> Result<Self, AreaError> {
        let area = Self { base: base as usize, len_bytes };
        let Self { base, .. } = area;
        if base == 0
            || len_bytes == 0
            || !base.is_multiple_of(PAGE_BYTES)
            || !len_bytes.is_multiple_of(PAGE_BYTES)
        {
            return Err(AreaError::Unaligned { base, len_bytes });
        }
        require_virtual_addresses()?;
        let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
        if registered.iter().any(|other| other.overlaps(area)) {
            return Err(AreaError::Repeated { base, len_bytes });
        }
        // SAFETY: DPDK records the range only; it is page-aligned.
        let result = unsafe {
            sys::rte_extmem_register(base as *mut _, len_bytes, std::ptr::null_mut(), 0, PAGE_BYTES)
        };
        if result != 0 {
            return Err(AreaError::Register { base, len_bytes, reason: errno_text(last_errno()) });
        }
        registered.push(area);
        Ok(area)
    }

    /// Lets the port's device reach the area by DMA. Needed before a real NIC's queues are set up; virtual
    /// devices take it and do nothing.
    ///
    /// # Errors
    /// [`AreaError::Dma`] with the kernel's reason.
    pub fn map_dma(&self, port: PortId) -> Result<(), AreaError> {
        let device = port.device()?;
        // SAFETY: the device belongs to a port that exists; the kernel checks the range.
        let result =
            unsafe { sys::rte_dev_dma_map(device, self.base as *mut _, self.base as u64, self.len_bytes) };
        if result == 0 { Ok(()) } else { Err(dma_error(port)) }
    }

    /// Takes the area away from the port's device again: what it still reads or writes there then fails.
    ///
    /// # Errors
    /// [`AreaError::Dma`] with the kernel's reason.
    pub fn unmap_dma(&self, port: PortId) -> Result<(), AreaError> {
        let device = port.device()?;
        // SAFETY: the device belongs to a port that exists; the kernel checks the range.
        let result =
            unsafe { sys::rte_dev_dma_unmap(device, self.base as *mut _, self.base as u64, self.len_bytes) };
        if result == 0 { Ok(()) } else { Err(dma_error(port)) }
    }

    /// Whether `len` bytes at `address` lie inside.
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
            buf_iova: self.base as u64,
            buf_len: self.len_bytes,
            elt_size: buffer_bytes,
        }
    }
}

/// Files have no lasting physical addresses, so the device must use this process's own.
pub(crate) fn require_virtual_addresses() -> Result<(), AreaError> {
    // SAFETY: reads EAL's configuration.
    if unsafe { sys::rte_eal_iova_mode() } == sys::rte_iova_mode_RTE_IOVA_VA {
        Ok(())
    } else {
        Err(AreaError::PhysicalAddresses)
    }
}

/// The kernel's reason is in errno: DPDK's own says only that it failed.
fn dma_error(port: PortId) -> AreaError {
    let reason = std::io::Error::last_os_error();
    let remedy = match reason.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            "The kernel does not let vfio pin pages of a file on a DAX file system: use a device-DAX namespace \
             (`ndctl create-namespace --mode=devdax`)"
        }
        Some(libc::ENOMEM) => {
            "Raise the limit of locked memory (`ulimit -l unlimited`) above the area's size"
        }
        Some(libc::EEXIST) => "It is mapped already: map an area once for each port",
        _ => "Check the kernel's log",
    };
    AreaError::Dma { device: port.name(), reason, remedy }
}
