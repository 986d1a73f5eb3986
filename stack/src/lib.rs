//! Network stacks over named persistent packet buffers, under one name.
//!
//! An application is written against [`net::Net`] and [`net::Service`], and run by a [`server::Server`] on any of
//! the transports, which features choose:
//!
//! - `kernel` (default): Linux' own TCP, through io_uring (`transport::kernel`).
//! - `dpdk`: the TCP/IP core on a DPDK port (`transport::dpdk`).
//! - `sim`: the TCP/IP core on a simulated link in virtual time, for tests (`sim`).
//! - `tcp`: the TCP/IP core alone, for a transport of one's own.

#![forbid(unsafe_code)]

pub use stack_net::{doze, net, profile, server, time};
#[cfg(feature = "sim")]
pub use stack_tcp::sim;
#[cfg(feature = "tcp")]
pub use stack_tcp::{
    AddressConflict, AddressError, Config, ConfigError, ConnectError, CoreShare, Counters, Drops, Endpoint,
    EthernetAddress, FrameSink, IpCidr, Ipv4Cidr, Ipv6Cidr, Keepalive, ListenError, RxChecksum, RxFrame,
    Share, SinkFull, TxChecksum, TxFrame, check_gateway, check_own, config, counters, endpoint, frame,
};

/// What carries frames to and from the stack, or payload to and from the kernel's.
pub mod transport {
    #[cfg(feature = "dpdk")]
    pub use stack_dpdk as dpdk;
    #[cfg(feature = "kernel")]
    pub use stack_kernel as kernel;
    pub use stack_net::net::OverEndpoint;
}
