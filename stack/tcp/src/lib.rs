//! A userspace TCP/IP stack over named persistent packet buffers.
//!
//! The core is an [`Endpoint`]: frames and the time come in, frames and events go out. It reads no clock,
//! owns no device and starts no thread. Applications see it through [`Net`](net::Net).

#![forbid(unsafe_code)]

mod address;
mod checksum;
pub mod config;
pub mod counters;
mod directory;
mod emit;
pub mod endpoint;
mod extensions;
mod fast;
mod flow;
pub mod frame;
mod icmp;
mod iface;
mod limit;
mod listen;
mod neighbor;
mod path_mtu;
mod reassembly;
mod route;
#[cfg(feature = "sim")]
pub mod sim;
mod spread;
mod steer;
mod tcp;
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub mod testing;
mod time_wait;
mod timer;
mod turns;
mod udp;
mod window;

pub use address::{AddressError, check_gateway, check_own};
pub use config::{
    Config, ConfigError, CongestionControl, ConnectionOptions, CoreShare, Ecn, Keepalive, OptionError,
    UnknownCongestionControl,
};
pub use counters::{Counters, Drops};
pub use directory::FlowDirectory;
pub use endpoint::{AddressConflict, BindError, ConnectError, Endpoint, ListenError};
pub use frame::{FrameSink, RxBurst, RxChecksum, RxFrame, Share, SinkFull, TxChecksum, TxFrame};
pub use route::{MAX_ROUTES, Route, RouteError, check_routes};
pub use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr, Ipv6Cidr};
pub use spread::{DeviceSpread, SpreadError};
pub use steer::Steering;

use stack_net::net;
