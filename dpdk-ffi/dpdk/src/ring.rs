//! Ports that another thread of this process stands behind: frames pass by pointer, and are copied by nobody.

use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;

use dpdk_sys as sys;

use crate::batch::Batch;
use crate::device::PortId;
use crate::eal::Eal;
use crate::{errno_text, last_errno, log};

/// Longest name of a ring port, in bytes: DPDK puts `net_ring_` before it, and this module a letter behind it.
const MAX_NAME_BYTES: usize = 15;
/// Longest queue of a ring port.
const MAX_FRAMES: u32 = 1 << 16;

/// The other side of a port of driver net_ring: what is delivered here is received there, and what is sent there is
/// collected here. To the port's thread it is what a NIC's hardware is to a driver's.
///
/// The frames that are collected are those that were sent, payload attached to them included. Whoever frees them
/// hands that payload back, in whichever thread ([`Completions::drain`](crate::Completions::drain)). Frames that are
/// delivered should be of the pool that the port was started with, as a device's are: see
/// [`Port::pool`](crate::Port::pool). An mbuf that is freed in this thread goes to the cache of this thread's lcore,
/// if it has [one](Eal::register_thread), and to what all threads share otherwise.
#[derive(Debug)]
pub struct RingEnd {
    /// What the port receives.
    delivered: NonNull<sys::rte_ring>,
    /// What the port has sent.
    sent: NonNull<sys::rte_ring>,
}

// SAFETY: rings are shared memory, never freed, with one producer and one consumer each. On this side that is the only
// handle there is, which belongs to one thread at a time; on the other the port's only queue.
unsafe impl Send for RingEnd {}

/// Why there is no ring port.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Not a name that DPDK takes.
    #[error("{0:?} is no name for a ring port; use 1 to {MAX_NAME_BYTES} letters and digits")]
    Name(String),
    /// Not a length of a ring.
    #[error("a ring port cannot have queues of {0} frames; give a power of two, 2 to {MAX_FRAMES}")]
    Length(u32),
    /// DPDK refused.
    #[error(
        "the ring port {name} was not made ({code}): {reason}. Give each a name of its own, and EAL more memory (-m)"
    )]
    Create {
        /// Its name.
        name: String,
        /// DPDK's error code as text.
        code: String,
        /// What DPDK logged.
        reason: String,
    },
}

impl RingEnd {
    /// Makes a port of one queue each way, each of `frames` less one, and the other side of it. The rings stay until
    /// the process ends.
    ///
    /// # Errors
    /// [`RingError`]: the name is bad or taken, the length is none, or memory is short.
    pub fn new(_eal: Eal, name: &str, frames: u32) -> Result<(PortId, Self), RingError> {
        let fits = (1..=MAX_NAME_BYTES).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let (true, Ok(c_name)) = (fits, CString::new(name)) else {
            return Err(RingError::Name(name.to_owned()));
        };
        if !frames.is_power_of_two() || !(2..=MAX_FRAMES).contains(&frames) {
            return Err(RingError::Length(frames));
        }
        let refused = |code: i32, reason: String| RingError::Create {
            name: name.to_owned(),
            code: errno_text(code),
            reason,
        };
        let ring = |direction: &str| {
            // The name has no NUL, as it was found.
            let name = CString::new(format!("{name}-{direction}")).unwrap_or_default();
            let (ring, reason) = log::listening(|| create(&name, frames));
            ring.ok_or_else(|| refused(last_errno(), reason))
        };
        let delivered = ring("rx")?;
        let sent = ring("tx").inspect_err(|_| {
            // SAFETY: nobody has seen the ring.
            unsafe { sys::rte_ring_free(delivered.as_ptr()) }
        })?;
        let (id, reason) = log::listening(|| {
            let (rx, tx) = ([delivered.as_ptr()], [sent.as_ptr()]);
            // SAFETY: the EAL runs, the name is NUL-terminated, and both lists have one ring, which lives for good.
            unsafe {
                let socket = sys::rte_socket_id();
                sys::rte_eth_from_rings(c_name.as_ptr(), rx.as_ptr(), 1, tx.as_ptr(), 1, socket)
            }
        });
        match u16::try_from(id) {
            Ok(id) => Ok((PortId(id), Self { delivered, sent })),
            Err(_) => {
                let code = last_errno();
                // SAFETY: there is no port that knows the rings.
                unsafe {
                    sys::rte_ring_free(delivered.as_ptr());
                    sys::rte_ring_free(sent.as_ptr());
                }
                Err(refused(code, reason))
            }
        }
    }

    /// Hands frames to the port, oldest first, and returns how many its queue took; the rest stays in the batch.
    #[inline]
    pub fn deliver<const N: usize>(&mut self, batch: &mut Batch<N>) -> usize {
        let count = batch.len() as u32;
        // SAFETY: the batch holds as many pointers to owned mbufs, and this is the ring's only producer.
        let taken = unsafe {
            let frames = batch.pointers().cast::<*mut c_void>();
            sys::rte_ring_enqueue_burst(self.delivered.as_ptr(), frames, count, std::ptr::null_mut())
        } as usize;
        // SAFETY: the first `taken` mbufs are the port's now.
        unsafe { batch.forget_front(taken) }
        taken
    }

    /// Adds as many frames that the port has sent to the batch as there are and as fit; returns how many.
    #[inline]
    pub fn collect<const N: usize>(&mut self, batch: &mut Batch<N>) -> usize {
        let (before, room) = (batch.len(), batch.room() as u32);
        // SAFETY: there is room for as many pointers, and this is the ring's only consumer.
        let count = unsafe {
            let frames = batch.spare_pointers().cast::<*mut c_void>();
            sys::rte_ring_dequeue_burst(self.sent.as_ptr(), frames, room, std::ptr::null_mut())
        } as usize;
        // SAFETY: the ring holds nothing but owned mbufs, of which DPDK wrote `count` behind those that there were.
        unsafe { batch.set_len(before + count) }
        count
    }

    /// Frames that were delivered and that the port has not received yet.
    pub fn undelivered(&self) -> usize {
        // SAFETY: the ring is valid for good.
        unsafe { sys::rte_ring_count(self.delivered.as_ptr()) as usize }
    }
}

/// A ring for one producer and one consumer.
fn create(name: &CStr, frames: u32) -> Option<NonNull<sys::rte_ring>> {
    let flags = sys::RING_F_SP_ENQ | sys::RING_F_SC_DEQ;
    // SAFETY: the EAL runs, and the name is NUL-terminated; DPDK copies it.
    NonNull::new(unsafe { sys::rte_ring_create(name.as_ptr(), frames, sys::SOCKET_ID_ANY, flags) })
}
