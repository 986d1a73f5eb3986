//! What can be wrong with a port.

use super::id::PortId;
use crate::errno_text;
use crate::refusal::WouldCorrupt;

/// Why a port does not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// A device that would lose or corrupt frames in external memory.
    #[error(transparent)]
    WouldCorrupt(#[from] WouldCorrupt),
    /// A second [`Port`](crate::Port) for one device.
    #[error("the port {0} is in use in this process; use its Port, or drop it and all its queues first")]
    InUse(String),
    /// More queues than there are.
    #[error("{port} has {max} {direction} queues, not {wanted}; ask for 1 to {max}")]
    Queues {
        /// The port's name.
        port: String,
        /// Receive or transmit.
        direction: &'static str,
        /// How many were asked for.
        wanted: u16,
        /// How many there are.
        max: u16,
    },
    /// Each receive queue needs a pool.
    #[error("{queues} receive queues need 1 or {queues} pools, not {pools}")]
    Pools {
        /// Number of receive queues.
        queues: u16,
        /// Number of pools.
        pools: usize,
    },
    /// The MTU is not to be had.
    #[error("{port} takes an MTU of {min} to {max}, not {wanted}")]
    Mtu {
        /// The port's name.
        port: String,
        /// What was asked for.
        wanted: u16,
        /// The device's smallest.
        min: u16,
        /// The device's largest.
        max: u16,
    },
    /// Received frames would not fit.
    #[error(
        "buffers of {buffer_bytes} bytes do not hold a frame with an MTU of {mtu}; they need {needed_bytes}"
    )]
    BufferTooSmall {
        /// Length of the pool's buffers in bytes.
        buffer_bytes: usize,
        /// Largest IP packet in bytes.
        mtu: u16,
        /// Length that would do.
        needed_bytes: usize,
    },
    /// No such queue, or it was handed out before.
    #[error("{port} has no {direction} queue {index} to give; each exists once")]
    NoQueue {
        /// The port's name.
        port: String,
        /// Receive or transmit.
        direction: &'static str,
        /// Which was asked for.
        index: u16,
    },
    /// Nothing would wake a thread that sleeps.
    #[error(
        "{port} has no receive interrupts under DPDK's driver {driver}: nothing would wake a core that sleeps; look \
         at its queues again and again, with naps in between if need be"
    )]
    NoRxInterrupts {
        /// The port's name.
        port: String,
        /// Its driver's name.
        driver: String,
    },
    /// The driver asks for receive interrupts in a way in which they never come.
    #[error(
        "DPDK's driver {driver} gets no receive interrupts of {port} by MSI-X, nor without vfio; bind the card to \
         vfio-pci, and give the EAL the argument --vfio-intr=msi"
    )]
    UnroutedRxInterrupts {
        /// The port's name.
        port: String,
        /// Its driver's name.
        driver: String,
    },
    /// The set of counters changed while it was read.
    #[error("the counters of {0} changed while they were read; read them again")]
    Changed(String),
    /// DPDK or the driver refused.
    #[error("{port} cannot {action} ({code}): {reason}")]
    Call {
        /// The port's name.
        port: String,
        /// What was tried.
        action: &'static str,
        /// DPDK's error code as text.
        code: String,
        /// What DPDK logged.
        reason: String,
    },
}

impl PortError {
    /// Turns DPDK's negative error codes into errors.
    pub(crate) fn check(id: PortId, action: &'static str, result: i32) -> Result<u32, Self> {
        Self::check_with(id, action, (result, "the driver does not say why".to_owned()))
    }

    pub(crate) fn check_with(
        id: PortId,
        action: &'static str,
        (result, reason): (i32, String),
    ) -> Result<u32, Self> {
        u32::try_from(result).map_err(|_| Self::Call {
            port: id.name(),
            action,
            code: errno_text(result),
            reason,
        })
    }
}
