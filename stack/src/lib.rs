//! A userspace TCP/IP stack over named persistent packet buffers.
//!
//! The core is an [`Endpoint`]: frames and the time come in, frames and events go out. It reads no clock,
//! owns no device and starts no thread. Applications see it through [`net::Net`].

mod checksum;
pub mod config;
pub mod counters;
pub mod doze;
mod emit;
pub mod endpoint;
mod flow;
pub mod frame;
mod icmp;
mod iface;
mod limit;
mod listen;
mod neighbor;
pub mod net;
pub mod profile;
pub mod server;
#[cfg(feature = "sim")]
pub mod sim;
mod steer;
mod tcp;
#[cfg(test)]
mod testing;
mod time_wait;
mod timer;
pub mod transport;
mod window;

pub use config::{Config, ConfigError, Keepalive};
pub use counters::{Counters, Drops};
pub use endpoint::{AddressConflict, ConnectError, Endpoint, ListenError, Share};
pub use frame::{FrameSink, RxChecksum, RxFrame, SinkFull, TxChecksum, TxFrame};
pub use steer::CoreShare;
