//! DPDK behind a safe interface: the EAL, ports and their queues, mbufs, and pools over DRAM or over
//! memory of one's own, such as a mapped file of persistent memory.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use dpdk::{Eal, MbufBatch, Pool, PoolConfig, Port, PortConfig};
//!
//! let eal = Eal::init(std::iter::empty::<String>())?;
//! let id = eal.attach("net_ring0")?;
//! let pool = Pool::dram(eal, "rx", &PoolConfig::default())?;
//! let mut port = Port::start(id, &PortConfig::default(), std::slice::from_ref(&pool))?;
//! let (mut rx, mut tx) = (port.rx_queue(0)?, port.tx_queue(0)?);
//! let mut batch = MbufBatch::new();
//! rx.burst(&mut batch);
//! tx.burst(&mut batch);
//! # Ok(())
//! # }
//! ```
//!
//! # Who owns a packet buffer
//! Buffers in memory of one's own go to a device as `&'static mut [u8]`: the type says that the memory
//! stays mapped and that nothing else reads or writes it until it comes back. An [`ExternalPool`] takes one
//! for each of its mbufs; [`ExternalPool::swap`] gives the one with a received frame in it back, for a spare.
//! Payload to be sent goes to [`Completions::attach`] as a value that owns or counts its buffer, and comes
//! back from [`Completions::drain`] once the device no longer reads it.
//!
//! # What lives how long
//! The EAL, pools, registered areas and completion slots live until the process ends: an [`Mbuf`] is valid
//! wherever and however late it is dropped. A port is stopped and closed when it and its queues are dropped.
//!
//! Nothing is allocated, locked or printed per packet.

#![allow(unsafe_code)]

mod addresses;
mod area;
mod arguments;
mod attach;
mod batch;
mod completions;
mod device;
mod eal;
mod hash;
mod interface;
mod interrupt;
mod log;
mod mbuf;
mod missed;
mod pool;
mod port;
mod prefetch;
mod queue;
mod refusal;
mod ring;
mod running;
mod split;
mod spread;
mod statistics;

pub use addresses::PhysicalError;
pub use area::{AreaError, ExternalArea};
pub use arguments::arguments_for;
pub use attach::AttachError;
pub use batch::{Batch, MbufBatch};
pub use completions::{Completions, CompletionsError, NotAttached, NotAttachedReason};
pub use device::{Offloads, PortError, PortId, PortInfo};
pub use eal::{Eal, EalError, RegisteredThread, ThreadError};
pub use hash::ReceiveHash;
pub use interface::{Interface, InterfaceState};
pub use interrupt::{Bell, SleepError, Sleeper};
pub use mbuf::{Checksum, ChecksumError, IpVersion, Mbuf, TxChecksums};
pub use pool::{ExternalPool, ExternalPoolConfig, NotSwapped, NotSwappedReason, Pool, PoolConfig, PoolError};
pub use port::{Link, Port, PortConfig};
pub use prefetch::WrittenSoon;
pub use queue::{RxQueue, TxQueue};
pub use refusal::WouldCorrupt;
pub use ring::{RingEnd, RingError};
pub use split::{NoSplit, SplitCapabilities, SplitPoint};
pub use spread::{QueueLimit, QueuePlan, SpreadCapabilities, UnaskedSpread, queues_for};
pub use statistics::{ExtendedStatistic, Statistics};

/// An errno-style code as text, from DPDK's table.
fn errno_text(code: i32) -> String {
    // Drivers return -1 for anything; taken for EPERM it would mislead.
    if code.abs() == 1 {
        return "error -1".to_owned();
    }
    // SAFETY: rte_strerror returns a NUL-terminated string in storage of this thread or of the library.
    let text = unsafe { std::ffi::CStr::from_ptr(dpdk_sys::rte_strerror(code.abs())) };
    text.to_string_lossy().into_owned()
}

/// DPDK's own errno of this thread.
fn last_errno() -> i32 {
    // SAFETY: reads a thread-local variable.
    unsafe { dpdk_sys::dpdk_errno() }
}
