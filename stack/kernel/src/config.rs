//! What the transport over kernel sockets is told, why it is not to be had, and what it counts.

use std::io;
use std::net::SocketAddr;

/// Limits of a [`KernelTransport`](super::KernelTransport).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    /// Connections at a time; further ones are refused.
    pub max_connections: usize,
    /// Buffers that wait for payload; a power of two.
    pub rx_buffers: u16,
    /// Most buffers that a connection may hold with payload the application has not taken.
    pub connection_buffers: usize,
    /// Copied bytes that a connection's send queue holds.
    pub tx_bytes: usize,
    /// Extents that a connection's send queue holds.
    pub tx_extents: usize,
    /// Datagrams of all UDP ports that may wait to be sent.
    pub tx_datagrams: usize,
    /// Whether long sends of named buffers go out from where they lie, if the kernel can do that, instead of being copied:
    /// for applications whose buffers keep their bytes, as a log's do. Linux 6.18 was seen to hand peers on the same host
    /// other bytes, of buffers that were used again after its last notice of the send.
    pub sends_in_place: bool,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            rx_buffers: 1024,
            connection_buffers: 256,
            tx_bytes: 4096,
            tx_extents: 128,
            tx_datagrams: 256,
            sends_in_place: false,
        }
    }
}

impl KernelConfig {
    /// Checks that a transport can be made over an arena with so many free buffers.
    ///
    /// # Errors
    /// [`KernelError::Config`] and [`KernelError::Arena`].
    pub fn check(&self, free_buffers: usize) -> Result<(), KernelError> {
        let refuse = |name, value, expected| Err(KernelError::Config { name, value, expected });
        if !self.rx_buffers.is_power_of_two() || self.rx_buffers > 1 << 15 {
            return refuse("rx_buffers", self.rx_buffers.into(), "a power of two up to 32768 is possible");
        }
        if !(1..1 << 24).contains(&self.max_connections) {
            return refuse("max_connections", self.max_connections, "1 to 16777215 are possible");
        }
        let needed = usize::from(self.rx_buffers);
        if free_buffers <= needed {
            return Err(KernelError::Arena { needed, free: free_buffers });
        }
        Ok(())
    }
}

/// Why the kernel does not carry the transport.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel is too old.
    #[error("this kernel has no {feature}; use Linux {release} or later, or the DPDK transport")]
    Unsupported {
        /// What is missing.
        feature: &'static str,
        /// The release that brought it.
        release: &'static str,
    },
    /// No ring.
    #[error(
        "io_uring is not to be had: {0}; it may be switched off (sysctl kernel.io_uring_disabled=0 allows it), \
         forbidden by a container's seccomp profile, or short of locked memory (ulimit -l); the DPDK transport \
         does without it"
    )]
    Ring(io::Error),
    /// A listening socket.
    #[error("cannot listen on {address}: {reason}; choose another address or end who uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's reason.
        reason: io::Error,
    },
    /// A UDP socket.
    #[error("cannot bind UDP {address}: {reason}; choose another address or end who uses it")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The kernel's reason.
        reason: io::Error,
    },
    /// The settings.
    #[error("{name} is {value}; {expected}")]
    Config {
        /// The setting.
        name: &'static str,
        /// What was asked for.
        value: usize,
        /// What is possible.
        expected: &'static str,
    },
    /// Too little is free to receive anything.
    #[error(
        "the ring needs {needed} buffers, and only {free} of the arena are free; trim the log, or make a larger store"
    )]
    Arena {
        /// Buffers of the ring.
        needed: usize,
        /// Buffers that are free.
        free: usize,
    },
    /// The ring failed while it ran.
    #[error("io_uring failed: {0}; restart the server, acknowledged records are safe")]
    Enter(io::Error),
    /// The kernel has no page for an address in the store.
    #[error(
        "the kernel cannot reach the store's memory: its file was cut off under this process, its file system is full, \
         or its device fails. Look for which, verify the store, and start again"
    )]
    Memory,
}

impl KernelError {
    /// Why the ring failed while it ran.
    pub(crate) fn of_ring(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EFAULT) => Self::Memory,
            _ => Self::Enter(error),
        }
    }
}

/// What went through the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounters {
    /// Pieces of payload received.
    pub received: u64,
    /// Payload bytes received; the kernel has copied each once.
    pub received_bytes: u64,
    /// Payload bytes copied together since their peer sends small pieces.
    pub packed_bytes: u64,
    /// Times when a connection had to wait for a free buffer.
    pub no_buffer: u64,
    /// Connections refused since the table is full.
    pub refused: u64,
    /// Times when a connection could not be accepted, for want of descriptors or memory.
    pub not_accepted: u64,
    /// Datagrams received.
    pub datagrams: u64,
    /// Datagrams dropped since a buffer does not hold them; a store with longer buffers has room for them.
    pub datagrams_too_long: u64,
    /// Datagrams dropped since too many waited for the application.
    pub datagrams_dropped: u64,
    /// Datagrams that the kernel did not send: it has no route, or no memory for them.
    pub datagrams_not_sent: u64,
    /// Bytes of named buffers sent from where they lie.
    pub zero_copy_bytes: u64,
    /// Bytes of named buffers that the kernel copied in order to send them, since they are few.
    pub sent_copied_bytes: u64,
    /// Calls into the kernel.
    pub calls: u64,
}
