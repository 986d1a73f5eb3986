//! What the transport over a DPDK port is told, why it does not run, and what it counts.

use dpdk::{CompletionsError, PoolError, PortError, SleepError};
use stack_tcp::ConfigError;

/// The rings of the port, and what goes into them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DpdkConfig {
    /// Length of the receive queue, in packets.
    pub rx_descriptors: u16,
    /// Length of the transmit queue, in packets.
    pub tx_descriptors: u16,
    /// Have headers put into DRAM, where the device can tell them from payload, which alone then goes into named
    /// buffers. [`PortInfo::header_split`](dpdk::PortInfo::header_split) tells whether it can.
    pub header_split: bool,
    /// Have frames wake cores that [wait](stack_net::net::Transport::wait). Takes a device with receive interrupts.
    pub rx_interrupts: bool,
    /// Take segments whose checksum a kernel has left to a device, where the device is an
    /// [interface of such a kernel](dpdk::PortInfo::sees_partial_checksums).
    pub partial_checksums: bool,
}

impl Default for DpdkConfig {
    fn default() -> Self {
        Self {
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            header_split: false,
            rx_interrupts: false,
            partial_checksums: true,
        }
    }
}

/// Why the stack does not run on a port.
#[derive(Debug, thiserror::Error)]
pub enum DpdkError {
    /// The stack's settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The port does not do as it was told.
    #[error(transparent)]
    Port(#[from] PortError),
    /// No pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// No places for payload that is being sent.
    #[error(transparent)]
    Completions(#[from] CompletionsError),
    /// No sleep.
    #[error(transparent)]
    Sleep(#[from] SleepError),
    /// Too little is free to receive anything.
    #[error(
        "the receive queue needs {needed} buffers, and of the arena's {buffers} only {free} are free; \
         trim the log, or make a larger store"
    )]
    Arena {
        /// Buffers that the queue and its pool take.
        needed: usize,
        /// Buffers that are free.
        free: usize,
        /// Buffers that there are.
        buffers: usize,
    },
    /// Frames would come to queues that no core looks at.
    #[error(
        "{device} spreads frames over {queues} queues, and {seen} would be looked at; serve with {queues} cores, or \
         give the device fewer queues (qpairs={seen})"
    )]
    UnseenQueues {
        /// The device.
        device: String,
        /// Its queues.
        queues: u16,
        /// Those that cores look at.
        seen: u16,
    },
    /// Another core did not come to where the port could be started.
    #[error("the port was not started, since another core failed; its error says why")]
    Abandoned,
}

/// What went through the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DpdkCounters {
    /// Frames received.
    pub received: u64,
    /// Buffers swapped: the stack kept one, and a spare took its place.
    pub swapped: u64,
    /// Payload lost since no buffer was free.
    pub no_spare: u64,
    /// Frames lost since they were longer than a buffer.
    pub misplaced: u64,
    /// Frames whose payload was copied into a named buffer: the device had put it elsewhere, or had split the frame
    /// at another place than behind TCP's header, or without a look at the checksum.
    pub copied_frames: u64,
    /// Segments that came from other cores.
    pub crossed: u64,
    /// Payload bytes copied into this core's arena since another core received them.
    pub crossed_bytes: u64,
    /// Frames meant for other cores that were lost since those had too many.
    pub crossing_lost: u64,
    /// Frames not sent since they were longer than the MTU allows.
    pub too_long: u64,
    /// Frames handed to the device, also those of cores without a queue.
    pub sent: u64,
    /// Payload bytes copied since a frame had too many pieces, or one that the device does not see as one.
    pub copied_bytes: u64,
}
