//! A host's TCP/IP without I/O: frames and the time come in, frames and events go out.

use std::net::{IpAddr, SocketAddr};

use pmem::{Arena, Extent};
use smoltcp::time::Instant;

use crate::config::{Config, ConfigError};
use crate::counters::Counters;
use crate::frame::{FrameSink, RxFrame};
use crate::net::{ConnId, Event, Net, SendError, SendSpace, Slot};

/// The connections of one core.
#[derive(Debug)]
pub struct Endpoint {
    counters: Counters,
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum ListenError {
    /// The address is not this host's.
    #[error("{0} is not an address of this host; listen on one of its own, or on the unspecified address")]
    NotLocal(IpAddr),
    /// Another listener has it.
    #[error("{0} is already listened on; choose another port")]
    InUse(SocketAddr),
    /// The list of listeners is full.
    #[error("{0} listeners exist, and no more are possible")]
    TooMany(usize),
    /// A port or a backlog of zero.
    #[error("port {port} with a backlog of {backlog}: neither can be zero")]
    Zero {
        /// The port.
        port: u16,
        /// The backlog.
        backlog: usize,
    },
}

/// Why a connection cannot be opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum ConnectError {
    /// No peer can have this address.
    #[error("{0} cannot be connected to; give the address and port of another host")]
    BadRemote(SocketAddr),
    /// The local address is not this host's, or of another IP version.
    #[error("{0} is not an address of this host from which the peer can be reached")]
    NotLocal(IpAddr),
    /// Neither on this link nor behind a gateway.
    #[error("no route to {0}; configure a gateway or an address of its subnet")]
    NoRoute(IpAddr),
    /// The same two ends are connected already, or all ports towards this peer are taken.
    #[error("all ports towards {0} are in use; close connections or choose another local address")]
    InUse(SocketAddr),
    /// The connection table is full.
    #[error("all {0} connections are in use; close some or raise the limit")]
    TableFull(usize),
}

impl Endpoint {
    /// An endpoint whose received payload lies in `arena`.
    ///
    /// # Errors
    /// [`ConfigError`]: the settings contradict themselves or the arena.
    pub fn new(config: Config, arena: Arena, _now: Instant) -> Result<Self, ConfigError> {
        config.check(arena.buffer_bytes())?;
        Ok(Self { counters: Counters::default() })
    }

    /// Accepts connections to `address`; its IP may be unspecified for all of this host's. At most
    /// `backlog` connections are half-open, and as many wait for their [`Event::Opened`] to be taken.
    ///
    /// # Errors
    /// [`ListenError`]: nothing changed.
    pub fn listen(&mut self, _address: SocketAddr, _backlog: usize) -> Result<(), ListenError> {
        Ok(())
    }

    /// Opens a connection. [`Event::Opened`] follows, or [`Event::Closed`].
    ///
    /// # Errors
    /// [`ConnectError`]: nothing was sent.
    pub fn connect(
        &mut self,
        _now: Instant,
        remote: SocketAddr,
        _local: Option<SocketAddr>,
    ) -> Result<ConnId, ConnectError> {
        Err(ConnectError::BadRemote(remote))
    }

    /// Takes a frame in.
    pub fn receive<F: RxFrame>(&mut self, _now: Instant, _frame: &mut F) {
        self.counters.frames_in += 1;
    }

    /// Sends what is due, until the sink is full; returns the number of frames.
    pub fn transmit<S: FrameSink>(&mut self, _now: Instant, _sink: &mut S) -> usize {
        0
    }

    /// When [`transmit`](Self::transmit) next has something to do though nothing arrives.
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// The next event, oldest first.
    pub fn next_event(&mut self) -> Option<Event> {
        None
    }

    /// Totals since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Net for Endpoint {
    fn recv(&mut self, _conn: ConnId) -> Option<Slot> {
        None
    }

    fn send_space(&self, _conn: ConnId) -> SendSpace {
        SendSpace::default()
    }

    fn send(&mut self, _conn: ConnId, _bytes: &[u8]) -> Result<(), SendError> {
        Err(SendError::Closed)
    }

    fn send_extent(&mut self, _conn: ConnId, _extent: Extent) -> Result<(), SendError> {
        Err(SendError::Closed)
    }

    fn finish(&mut self, _conn: ConnId) {}

    fn abort(&mut self, _conn: ConnId) {}
}
