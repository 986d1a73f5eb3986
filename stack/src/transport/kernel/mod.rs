//! The same slots and replies over Linux' own TCP: the kernel receives into named buffers through io_uring.
//!
//! This is PASTE's shape on a stock kernel. A ring of provided buffers, each a named buffer of the arena, takes
//! what arrives; a completion says which one, and so the payload's name; a spare takes its place in the ring.
//! Calls into the kernel are one per burst. What it cannot do is receive without a copy: the network card's
//! buffers are the kernel's, and the kernel copies each payload byte once, from there into the named buffer.

mod connection;
mod ring;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use pmem::{Arena, Extent};
use rustix::net::{self, AddressFamily, Shutdown, SocketFlags, SocketType, ipproto, sockopt};
use smoltcp::time::Instant;

use crate::net::{CloseReason, ConnId, Event, Net, SendError, SendSpace, Slot, Transport};
use connection::Connection;
use ring::{Completion, Ring};

/// Limits of a [`KernelTransport`].
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
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            rx_buffers: 1024,
            connection_buffers: 256,
            tx_bytes: 4096,
            tx_extents: 128,
        }
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
        "io_uring is not to be had: {0}; it may be switched off (sysctl kernel.io_uring_disabled=0), forbidden by \
         a container's seccomp profile, or short of locked memory (ulimit -l)"
    )]
    Ring(#[source] io::Error),
    /// A listening socket.
    #[error("cannot listen on {address}: {reason}; choose another address or end who uses it")]
    Listen {
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
    Enter(#[source] io::Error),
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
    /// Bytes of named buffers sent from where they lie.
    pub zero_copy_bytes: u64,
    /// Bytes of named buffers that the kernel copied in order to send them, since they are few.
    pub sent_copied_bytes: u64,
    /// Calls into the kernel.
    pub calls: u64,
}

/// The connections of one core over kernel sockets.
pub struct KernelTransport {
    ring: Ring,
    arena: Arena,
    config: KernelConfig,
    listeners: Vec<OwnedFd>,
    connections: Vec<Connection>,
    vacant: Vec<u32>,
    events: VecDeque<Event>,
    /// Connections with something to send or to end.
    active: VecDeque<u32>,
    /// Connections whose receiving stopped for want of buffers.
    starved: VecDeque<u32>,
    counters: KernelCounters,
}

impl KernelTransport {
    /// A transport that receives into buffers of `arena`.
    ///
    /// # Errors
    /// [`KernelError`]: the kernel lacks something, or the arena is too full.
    pub fn new(config: KernelConfig, arena: Arena) -> Result<Self, KernelError> {
        let refuse = |name, value, expected| Err(KernelError::Config { name, value, expected });
        if !config.rx_buffers.is_power_of_two() || config.rx_buffers > 1 << 15 {
            return refuse("rx_buffers", config.rx_buffers.into(), "a power of two up to 32768 is possible");
        }
        if !(1..1 << 24).contains(&config.max_connections) {
            return refuse("max_connections", config.max_connections, "1 to 16777215 are possible");
        }
        let needed = usize::from(config.rx_buffers);
        let free = arena.free_buffers();
        if free <= needed {
            return Err(KernelError::Arena { needed, free });
        }
        let mut transport = Self {
            // A send holds its place until the kernel no longer reads it, which may be after the next one began.
            ring: Ring::new(config.rx_buffers, 2 * config.max_connections)?,
            arena,
            config,
            listeners: Vec::new(),
            connections: (0..config.max_connections).map(|_| Connection::vacant(&config)).collect(),
            vacant: (0..config.max_connections as u32).rev().collect(),
            events: VecDeque::with_capacity(4 * config.max_connections),
            active: VecDeque::with_capacity(config.max_connections),
            starved: VecDeque::with_capacity(config.max_connections),
            counters: KernelCounters::default(),
        };
        transport.refill();
        Ok(transport)
    }

    /// Accepts connections to `address`, of which `backlog` may wait in the kernel; returns the address with the
    /// port that it has.
    ///
    /// # Errors
    /// [`KernelError::Listen`].
    pub fn listen(&mut self, address: SocketAddr, backlog: u16) -> Result<SocketAddr, KernelError> {
        let failed = |reason: rustix::io::Errno| KernelError::Listen { address, reason: reason.into() };
        let listener = listening_socket(address, backlog).map_err(failed)?;
        let bound = net::getsockname(&listener).and_then(SocketAddr::try_from).map_err(failed)?;
        self.ring.accept(&listener, self.listeners.len() as u32).map_err(KernelError::Enter)?;
        self.listeners.push(listener);
        Ok(bound)
    }

    /// What went through the ring.
    pub fn counters(&self) -> KernelCounters {
        KernelCounters {
            zero_copy_bytes: self.ring.counters.zero_copy_bytes,
            sent_copied_bytes: self.ring.counters.copied_bytes,
            calls: self.ring.counters.calls,
            ..self.counters
        }
    }

    /// Puts spare buffers into the ring, and lets connections that waited for them receive again.
    fn refill(&mut self) {
        let missing = self.ring.missing_buffers();
        for _ in 0..missing {
            let Some(spare) = self.arena.take().and_then(|spare| spare.lend().ok()) else { break };
            if let Err(spare) = self.ring.provide(spare) {
                // There was a place for it a moment ago; it goes back to the free list.
                drop(self.arena.take_back(spare));
                break;
            }
        }
        if missing > 0 {
            self.ring.publish();
        }
    }

    fn accepted(&mut self, token: u32, result: io::Result<OwnedFd>, more: bool) -> io::Result<()> {
        match result {
            Ok(socket) => self.open(socket)?,
            Err(error) => tracing::warn!("a connection could not be accepted: {error}"),
        }
        match self.listeners.get(token as usize) {
            Some(listener) if !more => self.ring.accept(listener, token),
            _ => Ok(()),
        }
    }

    fn open(&mut self, socket: OwnedFd) -> io::Result<()> {
        let peer = net::getpeername(&socket).ok().flatten().and_then(|peer| SocketAddr::try_from(peer).ok());
        // A peer that is gone already has no address, and nothing to say.
        let Some(peer) = peer else { return Ok(()) };
        let Some(index) = self.vacant.pop() else {
            self.counters.refused += 1;
            let _ = sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO));
            return Ok(());
        };
        // Replies are written as a whole; waiting for more to send would only delay them.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        self.ring.receive(&socket, index)?;
        let connection = &mut self.connections[index as usize];
        connection.open(socket);
        self.events.push_back(Event::Opened { conn: connection.id(index), peer });
        Ok(())
    }

    fn received(
        &mut self,
        index: u32,
        result: io::Result<Option<(&'static mut [u8], usize)>>,
        more: bool,
    ) -> io::Result<()> {
        let extent = |(bytes, len)| self.arena.take_back(bytes).ok()?.into_extent(0, len as u16);
        let payload = result.map(|received| received.and_then(extent));
        let connection = &mut self.connections[index as usize];
        connection.is_receiving = more;
        let conn = connection.id(index);
        match payload {
            Ok(Some(extent)) => {
                self.counters.received += 1;
                self.counters.received_bytes += extent.len() as u64;
                if !connection.is_dying() {
                    self.counters.packed_bytes += connection.arrived(extent);
                    if connection.is_news() {
                        self.events.push_back(Event::Readable { conn });
                    }
                    if connection.holds_too_much(&self.config) && more && !connection.is_paused {
                        connection.is_paused = true;
                        self.ring.cancel_receive(index)?;
                    }
                }
            }
            Ok(None) => {
                if !connection.is_dying() && !connection.peer_finished {
                    connection.peer_finished = true;
                    self.events.push_back(Event::PeerFinished { conn });
                }
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOBUFS) if !connection.is_dying() => {
                    self.counters.no_buffer += 1;
                    self.starve(index);
                }
                Some(libc::ECANCELED) => {}
                _ => connection.die(close_reason(&error)),
            },
        }
        let connection = &mut self.connections[index as usize];
        if !connection.is_receiving && !connection.is_dying() && !connection.peer_finished {
            self.resume(index)?;
        }
        self.activate(index);
        Ok(())
    }

    /// Receives again on a connection that had stopped, unless it still has reason to.
    fn resume(&mut self, index: u32) -> io::Result<()> {
        let connection = &mut self.connections[index as usize];
        let waits = connection.is_paused && connection.holds_too_much(&self.config);
        let ended = connection.is_dying() || connection.peer_finished || connection.is_receiving;
        if waits || ended || connection.is_starved {
            return Ok(());
        }
        connection.is_paused = false;
        if let Some(socket) = connection.socket() {
            self.ring.receive(socket, index)?;
            connection.is_receiving = true;
        }
        Ok(())
    }

    /// Lets a connection receive again once there are buffers.
    fn starve(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if !connection.is_starved {
            connection.is_starved = true;
            self.starved.push_back(index);
        }
    }

    fn activate(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if !connection.is_active {
            connection.is_active = true;
            self.active.push_back(index);
        }
    }

    /// Begins the next send of a connection, ends its sending, or ends it altogether.
    fn advance(&mut self, index: u32) -> io::Result<bool> {
        let connection = &mut self.connections[index as usize];
        let conn = connection.id(index);
        if connection.is_dying() {
            if connection.is_receiving || connection.is_sending {
                if let Some(socket) = connection.socket()
                    && !connection.is_cancelled
                {
                    self.ring.cancel(socket)?;
                    connection.is_cancelled = true;
                }
                return Ok(false);
            }
            if let Some(reason) = connection.close() {
                self.vacant.push(index);
                self.events.push_back(Event::Closed { conn, reason });
            }
            return Ok(false);
        }
        if connection.is_sending {
            return Ok(false);
        }
        if connection.has_to_send() {
            if !self.ring.has_room_to_send() {
                self.activate(index);
                return Ok(false);
            }
            connection.send(index, &mut self.ring)?;
            return Ok(true);
        }
        if connection.finishing && !connection.finished {
            connection.finished = true;
            if let Some(socket) = connection.socket() {
                let _ = net::shutdown(socket, Shutdown::Write);
            }
        }
        if connection.finished && connection.peer_finished {
            connection.die(CloseReason::Finished);
            self.activate(index);
        }
        Ok(false)
    }

    fn sent(&mut self, index: u32, result: io::Result<()>) {
        let connection = &mut self.connections[index as usize];
        connection.is_sending = false;
        match result {
            Ok(()) => {
                if connection.wants_room && connection.is_roomy(&self.config) && !connection.is_dying() {
                    connection.wants_room = false;
                    self.events.push_back(Event::Writable { conn: connection.id(index) });
                }
            }
            Err(error) => connection.die(close_reason(&error)),
        }
        self.activate(index);
    }

    fn live(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(conn.index as usize).filter(|connection| connection.is(conn))
    }
}

impl Transport for KernelTransport {
    type Error = KernelError;

    fn receive(&mut self, _now: Instant) -> Result<usize, KernelError> {
        self.refill();
        let provided = self.ring.provided_buffers();
        for _ in 0..self.starved.len().min(provided) {
            if let Some(index) = self.starved.pop_front() {
                self.connections[index as usize].is_starved = false;
                self.resume(index).map_err(KernelError::Enter)?;
            }
        }
        self.ring.enter().map_err(KernelError::Enter)?;
        let mut count = 0;
        while let Some(completion) = self.ring.next().map_err(KernelError::Enter)? {
            count += 1;
            match completion {
                Completion::Accepted { token, result, more } => self.accepted(token, result, more),
                Completion::Received { token, result, more } => self.received(token, result, more),
                Completion::Sent { token, result } => {
                    self.sent(token, result);
                    Ok(())
                }
            }
            .map_err(KernelError::Enter)?;
        }
        Ok(count)
    }

    fn next_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Readable { conn } = event
            && let Some(connection) = self.live(conn)
        {
            connection.is_told = false;
        }
        Some(event)
    }

    fn transmit(&mut self, _now: Instant) -> Result<usize, KernelError> {
        let mut count = 0;
        for _ in 0..self.active.len() {
            let Some(index) = self.active.pop_front() else { break };
            self.connections[index as usize].is_active = false;
            count += usize::from(self.advance(index).map_err(KernelError::Enter)?);
        }
        if count > 0 {
            self.ring.enter().map_err(KernelError::Enter)?;
        }
        Ok(count)
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }
}

impl Net for KernelTransport {
    fn recv(&mut self, conn: ConnId) -> Option<Slot> {
        let config = self.config;
        let connection = self.live(conn)?;
        let slot = connection.take()?;
        if connection.is_paused && !connection.is_receiving && !connection.holds_too_much(&config) {
            // Receiving goes on when buffers are handed out next.
            self.starve(conn.index);
        }
        Some(slot)
    }

    fn send_space(&self, conn: ConnId) -> SendSpace {
        match self.connections.get(conn.index as usize) {
            Some(connection) if connection.is(conn) => connection.space(&self.config),
            _ => SendSpace::default(),
        }
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), SendError> {
        let config = self.config;
        self.live(conn).ok_or(SendError::Closed)?.queue_bytes(bytes, &config)?;
        self.activate(conn.index);
        Ok(())
    }

    fn send_extent(&mut self, conn: ConnId, extent: Extent) -> Result<(), SendError> {
        let config = self.config;
        self.live(conn).ok_or(SendError::Closed)?.queue_extent(extent, &config)?;
        self.activate(conn.index);
        Ok(())
    }

    fn finish(&mut self, conn: ConnId) {
        if let Some(connection) = self.live(conn) {
            connection.finishing = true;
            self.activate(conn.index);
        }
    }

    fn abort(&mut self, conn: ConnId) {
        if let Some(connection) = self.live(conn) {
            if let Some(socket) = connection.socket() {
                // Closing then sends RST.
                let _ = sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
            }
            connection.die(CloseReason::Aborted);
            self.activate(conn.index);
        }
    }
}

impl std::fmt::Debug for KernelTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.connections.len() - self.vacant.len();
        f.debug_struct("KernelTransport").field("connections", &open).finish_non_exhaustive()
    }
}

fn listening_socket(address: SocketAddr, backlog: u16) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // IPv4 has a listener of its own.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    net::bind(&socket, &address)?;
    net::listen(&socket, backlog.into())?;
    Ok(socket)
}

fn close_reason(error: &io::Error) -> CloseReason {
    match error.raw_os_error() {
        Some(libc::ETIMEDOUT) => CloseReason::TimedOut,
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => CloseReason::Unreachable,
        _ => CloseReason::Reset,
    }
}
