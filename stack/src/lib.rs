//! Network stacks over named persistent packet buffers, under one name.
//!
//! An application is written against [`net::Net`] and [`net::Service`], and run by a [`server::Server`] on any of
//! the transports, which features choose:
//!
//! - `kernel` (default): Linux' own TCP, through io_uring (`transport::kernel`).
//! - `dpdk`: the TCP/IP core on a DPDK port (`transport::dpdk`).
//! - `sim`: the TCP/IP core on a simulated link in virtual time, for tests (`sim`).
//! - `tcp`: the TCP/IP core alone, for a transport of one's own.
//!
//! # A whole service
//! Each piece of payload that arrives is a record, and is answered with its number once it is durable. `examples/` has
//! one that takes lines, whatever pieces they come in.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//!
//! use pmem::{CommitError, Durable, Options, Pending, Region, Shard};
//! use stack::net::{ConnId, Event, Net, Service};
//! use stack::server::{Rest, Server};
//! use stack::time::Clock;
//! use stack::transport::kernel::{KernelConfig, KernelTransport};
//!
//! #[derive(Default)]
//! struct Poster(Vec<(ConnId, Pending)>);
//!
//! impl Service for Poster {
//!     fn event<N: Net>(&mut self, event: Event, net: &mut N, shard: &mut Shard) {
//!         match event {
//!             Event::Readable { conn } => {
//!                 while let Some(slot) = net.recv(conn) {
//!                     // Its cache lines are flushed, and it stays in the buffer where it arrived.
//!                     let mut record = shard.draft();
//!                     let kept = shard.push(&mut record, slot.keep()).and_then(|()| shard.append(record));
//!                     match kept {
//!                         Ok(pending) => self.0.push((conn, pending)),
//!                         Err(_) => return net.abort(conn),
//!                     }
//!                 }
//!             }
//!             Event::PeerFinished { conn } => net.abort(conn),
//!             _ => {}
//!         }
//!     }
//!
//!     fn committed<N: Net>(&mut self, durable: &Durable, net: &mut N, shard: &mut Shard) {
//!         for (conn, pending) in self.0.drain(..) {
//!             if let Ok(receipt) = durable.confirm(pending) {
//!                 let _ = net.send(conn, format!("{}\n", receipt.seq).as_bytes());
//!             }
//!         }
//!         // A log that is full forgets its oldest records.
//!         shard.keep_room().expect("the medium works");
//!     }
//!
//!     fn commit_failed<N: Net>(&mut self, error: &CommitError, _: &mut N, _: &mut Shard) {
//!         panic!("nothing is acknowledged: {error}");
//!     }
//! }
//!
//! let options = Options { size: Some(64 << 20), ..Options::default() };
//! let shard = Region::open("store.pm", &options)?.into_shard()?;
//! let mut transport = KernelTransport::new(KernelConfig::default(), shard.arena().clone())?;
//! transport.listen("127.0.0.1:7000".parse()?, 128)?;
//! let mut server = Server::new(transport, Poster::default(), shard);
//! server.run(&Clock::start(), &AtomicBool::new(false), Rest::UNTIL_WOKEN)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub use stack_net::{doze, net, profile, server, time};
#[cfg(feature = "sim")]
pub use stack_tcp::sim;
#[cfg(feature = "tcp")]
pub use stack_tcp::{
    AddressConflict, AddressError, BindError, Config, ConfigError, CongestionControl, ConnectError,
    ConnectionOptions, CoreShare, Counters, DeviceSpread, Drops, Ecn, Endpoint, EthernetAddress,
    FlowDirectory, FrameSink, IpCidr, Ipv4Cidr, Ipv6Cidr, Keepalive, ListenError, MAX_ROUTES, OptionError,
    Route, RouteError, RxBurst, RxChecksum, RxFrame, Share, SinkFull, SpreadError, TxChecksum, TxFrame,
    UnknownCongestionControl, check_gateway, check_own, check_routes, config, counters, endpoint, frame,
};

/// What carries frames to and from the stack, or payload to and from the kernel's.
pub mod transport {
    #[cfg(feature = "dpdk")]
    pub use stack_dpdk as dpdk;
    #[cfg(feature = "kernel")]
    pub use stack_kernel as kernel;
    pub use stack_net::net::OverEndpoint;
}
