//! Frames that were lost before a driver could take them, for drivers that do not look.

use std::ffi::{c_int, c_void};
use std::fs;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::PortInfo;
use crate::interface::Interface;

/// Where it is counted what a port missed.
#[derive(Debug)]
pub(crate) enum Missed {
    /// The driver counts.
    ByDriver,
    /// The kernel counts for each packet socket of the driver's what found no room in the socket's ring. Reading sets its
    /// counters to zero, so they are added up here.
    ByPacketSockets { sockets: Vec<OwnedFd>, sum: AtomicU64 },
    /// Nobody counts.
    Uncounted,
}

impl Missed {
    pub(crate) fn of(info: &PortInfo) -> Self {
        match (info.driver.as_str(), info.interface) {
            ("net_af_packet", Some(interface)) => {
                let sockets = packet_sockets(interface);
                // All of the port's or none: a part would look like the whole.
                if sockets.len() == usize::from(info.max_rx_queues) {
                    Self::ByPacketSockets { sockets, sum: AtomicU64::new(0) }
                } else {
                    Self::Uncounted
                }
            }
            (
                "net_af_packet" | "net_tap" | "net_memif" | "net_null" | "net_ring" | "net_vhost"
                | "net_virtio" | "net_virtio_user",
                _,
            ) => Self::Uncounted,
            _ => Self::ByDriver,
        }
    }

    /// How many so far, where the driver says `by_driver`.
    pub(crate) fn count(&self, by_driver: u64) -> Option<u64> {
        match self {
            Self::ByDriver => Some(by_driver),
            Self::ByPacketSockets { sockets, sum } => {
                let new: u64 = sockets.iter().map(|socket| take_drops(socket).unwrap_or(0)).sum();
                Some(sum.fetch_add(new, Ordering::Relaxed) + new)
            }
            Self::Uncounted => None,
        }
    }

    /// Counts from zero.
    pub(crate) fn reset(&self) {
        if let Self::ByPacketSockets { sum, .. } = self {
            self.count(0);
            sum.store(0, Ordering::Relaxed);
        }
    }
}

/// This process' packet sockets on an interface. The driver keeps their numbers to itself.
fn packet_sockets(interface: Interface) -> Vec<OwnedFd> {
    let Ok(open) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let numbers = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    // SAFETY: a descriptor that is closed meanwhile, such as that of the folder, is only an error to the calls.
    numbers
        .filter(|&number| is_bound_to(number, interface))
        // SAFETY: the number was open just now, and the driver closes its sockets with the port only.
        .filter_map(|number| unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned().ok())
        .collect()
}

fn is_bound_to(number: RawFd, interface: Interface) -> bool {
    // SAFETY: all bytes zero are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: address and length are writable; a number that is no socket's is refused.
    let named = unsafe { libc::getsockname(number, (&raw mut address).cast(), &mut len) };
    named == 0
        && c_int::from(address.sll_family) == libc::AF_PACKET
        && address.sll_ifindex == interface.index()
}

/// The frames that a packet socket's ring had no room for since this was asked last.
fn take_drops(socket: &OwnedFd) -> Option<u64> {
    const SOL_PACKET: c_int = 263;
    const PACKET_STATISTICS: c_int = 6;
    // struct tpacket_stats: frames, those that were dropped among them, and drops.
    let mut statistics = [0_u32; 2];
    let mut len = size_of_val(&statistics) as libc::socklen_t;
    let target: *mut c_void = statistics.as_mut_ptr().cast();
    // SAFETY: the array and its length are writable.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), SOL_PACKET, PACKET_STATISTICS, target, &mut len) };
    (result == 0).then_some(statistics[1].into())
}
