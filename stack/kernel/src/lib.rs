//! The same slots and replies over Linux' own TCP and UDP: the kernel receives into named buffers through io_uring.
//!
//! This is PASTE's shape on a stock kernel. A ring of provided buffers, each a named buffer of the arena, takes
//! what arrives; a completion says which one, and so the payload's name; a spare takes its place in the ring.
//! Calls into the kernel are one per burst, and [`wait`](KernelTransport::wait) sleeps while there is nothing to do.
//!
//! What it cannot do is receive without a copy: the network card's buffers are the kernel's, and the kernel copies
//! each payload byte once, from there into the named buffer. Nor does the receive window follow the arena: the
//! kernel's own buffers fill first, and then the peer is stalled. Sends of many named bytes are not copied, if the
//! kernel can (Linux 6.1), the pages may be pinned (`ulimit -l`), and the peer acknowledges in time; else they are,
//! and both are counted. One copy the kernel does not tell of: where the interface cannot gather a frame from several
//! places (`ethtool -k`: scatter-gather), or the peer is on the same machine. Linux 6.0 is the oldest that carries it.

mod config;
mod connection;
#[cfg(feature = "kcm")]
pub mod kcm;
mod listener;
mod ring;
mod udp;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use pmem::{Arena, Extent};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{self, Shutdown, sockopt};
use stack_net::doze::Waker;
use stack_net::net::{
    CloseReason, ConnId, Datagram, DatagramError, Event, Net, Remote, SendError, SendSpace, Slot, Transport,
    UdpPort,
};
use stack_net::time::Instant;

pub use config::{KernelConfig, KernelCounters, KernelError};
pub use listener::{Listener, Stacks};

use connection::Connection;
use ring::{Completion, Ring};
use udp::UdpSocket;

/// How long a listener is left alone after it could not accept: descriptors and memory come back when other
/// connections end, not at once.
const LISTENER_REST: Duration = Duration::from_millis(100);
/// Buffers that a connection may hold however little is free: it could not go on without.
const LEAST_BUFFERS: usize = 2;

/// The connections of one core over kernel sockets.
pub struct KernelTransport {
    ring: Ring,
    arena: Arena,
    config: KernelConfig,
    listeners: Vec<Listener>,
    /// Listeners that could not accept, and when they are asked again.
    resting: Vec<u32>,
    rested: Option<Instant>,
    now: Instant,
    connections: Vec<Connection>,
    vacant: Vec<u32>,
    events: VecDeque<Event>,
    /// Connections with something to send or to end.
    active: VecDeque<u32>,
    /// Connections whose receiving stopped for want of buffers.
    starved: VecDeque<u32>,
    udp: Vec<UdpSocket>,
    /// Datagrams that wait for the application at all of these.
    datagrams_waiting: usize,
    counters: KernelCounters,
}

impl KernelTransport {
    /// A transport that receives into buffers of `arena`.
    ///
    /// # Errors
    /// [`KernelError`]: the kernel lacks something, or the arena is too full.
    pub fn new(config: KernelConfig, arena: Arena) -> Result<Self, KernelError> {
        config.check(arena.free_buffers())?;
        let mut transport = Self {
            ring: Ring::new(config.rx_buffers, config.max_connections, config.sends_in_place)?,
            arena,
            config,
            listeners: Vec::new(),
            resting: Vec::new(),
            rested: None,
            now: Instant::ZERO,
            connections: (0..config.max_connections).map(|_| Connection::vacant(&config)).collect(),
            vacant: (0..config.max_connections as u32).rev().collect(),
            events: VecDeque::with_capacity(4 * config.max_connections),
            active: VecDeque::with_capacity(config.max_connections),
            starved: VecDeque::with_capacity(config.max_connections),
            udp: Vec::new(),
            datagrams_waiting: 0,
            counters: KernelCounters::default(),
        };
        transport.refill();
        Ok(transport)
    }

    /// Whether the kernel has what the transport needs. Nothing is left behind.
    ///
    /// # Errors
    /// [`KernelError`]: what it lacks.
    pub fn probe() -> Result<(), KernelError> {
        ring::probe()
    }

    /// Accepts connections to `address`, of which `backlog` may wait in the kernel; returns the address with the
    /// port that it has. `[::]` is IPv4's as well.
    ///
    /// # Errors
    /// [`KernelError::Listen`].
    pub fn listen(&mut self, address: SocketAddr, backlog: u16) -> Result<SocketAddr, KernelError> {
        let listener = Listener::bind(address, Stacks::Dual, backlog)?;
        let bound = listener.address();
        self.accept(listener)?;
        Ok(bound)
    }

    /// Accepts the connections of a listener.
    ///
    /// # Errors
    /// [`KernelError::Enter`].
    pub fn accept(&mut self, listener: Listener) -> Result<(), KernelError> {
        self.ring.accept(&listener, self.listeners.len() as u32).map_err(KernelError::of_ring)?;
        self.listeners.push(listener);
        Ok(())
    }

    /// The listeners, in the order in which they were given.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Whether long sends of named buffers are sent from where they lie, which takes [`KernelConfig::sends_in_place`] and
    /// Linux 6.1. Otherwise the kernel copies them.
    pub fn sends_without_copying(&self) -> bool {
        self.ring.sends_without_copying()
    }

    /// What went through the ring.
    pub fn counters(&self) -> KernelCounters {
        KernelCounters {
            zero_copy_bytes: self.ring.counters.zero_copy_bytes,
            sent_copied_bytes: self.ring.counters.copied_bytes,
            calls: self.ring.counters.calls,
            datagrams_not_sent: self.ring.counters.datagrams_not_sent,
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
            Ok(socket) => {
                self.open(socket)?;
                match self.listeners.get(token as usize) {
                    Some(listener) if !more => self.ring.accept(listener, token),
                    _ => Ok(()),
                }
            }
            Err(error) => {
                if self.resting.is_empty() {
                    tracing::warn!("connections cannot be accepted for now: {error}");
                }
                self.counters.not_accepted += 1;
                if !more {
                    self.resting.push(token);
                    self.rested = Some(self.now + LISTENER_REST);
                }
                Ok(())
            }
        }
    }

    /// Asks listeners again that could not accept a while ago.
    fn end_rest(&mut self) -> io::Result<()> {
        if self.rested.is_none_or(|end| self.now < end) {
            return Ok(());
        }
        self.rested = None;
        for token in self.resting.drain(..) {
            if let Some(listener) = self.listeners.get(token as usize) {
                self.ring.accept(listener, token)?;
            }
        }
        Ok(())
    }

    fn open(&mut self, socket: OwnedFd) -> io::Result<()> {
        let peer = net::getpeername(&socket).ok().flatten().and_then(|peer| SocketAddr::try_from(peer).ok());
        // A peer that is gone already has no address, and nothing to say.
        let Some(peer) = peer else { return Ok(()) };
        // IPv4's addresses are the same on every listener.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let Some(index) = self.vacant.pop() else {
            self.counters.refused += 1;
            let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
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
        let share = self.share();
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
                    if connection.holds(share) && more && !connection.is_paused {
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
                // No peer's doing, and the end of all connections.
                Some(libc::EFAULT) => return Err(error),
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
        let share = self.share();
        let connection = &mut self.connections[index as usize];
        let waits = connection.is_paused && connection.holds(share);
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

    /// Buffers that a connection may hold with payload that waits: half of what is free, so that whoever does not
    /// read on leaves others something.
    fn share(&self) -> usize {
        (self.arena.free_buffers() / 2).max(LEAST_BUFFERS).min(self.config.connection_buffers)
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

    fn sent(&mut self, index: u32, result: io::Result<()>) -> io::Result<()> {
        let connection = &mut self.connections[index as usize];
        connection.is_sending = false;
        match result {
            Ok(()) => {
                if connection.wants_room && connection.is_roomy(&self.config) && !connection.is_dying() {
                    connection.wants_room = false;
                    self.events.push_back(Event::Writable { conn: connection.id(index) });
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => return Err(error),
            Err(error) => connection.die(close_reason(&error)),
        }
        self.activate(index);
        Ok(())
    }

    fn live(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(conn.index as usize).filter(|connection| connection.is(conn))
    }
}

impl Transport for KernelTransport {
    type Error = KernelError;

    fn receive(&mut self, now: Instant) -> Result<usize, KernelError> {
        self.now = now;
        self.end_rest().map_err(KernelError::of_ring)?;
        self.refill();
        let provided = self.ring.provided_buffers();
        for _ in 0..self.starved.len().min(provided) {
            if let Some(index) = self.starved.pop_front() {
                self.connections[index as usize].is_starved = false;
                self.resume(index).map_err(KernelError::of_ring)?;
            }
        }
        if self.rested.is_none() {
            self.receive_datagrams().map_err(KernelError::of_ring)?;
        }
        self.ring.look().map_err(KernelError::of_ring)?;
        let mut count = 0;
        while let Some(completion) = self.ring.next().map_err(KernelError::of_ring)? {
            count += 1;
            match completion {
                Completion::Accepted { token, result, more } => self.accepted(token, result, more),
                Completion::Received { token, result, more } => self.received(token, result, more),
                Completion::Sent { token, result } => self.sent(token, result),
                Completion::Datagram { token, result, more } => self.datagram(token, result, more),
            }
            .map_err(KernelError::of_ring)?;
        }
        Ok(count)
    }

    fn next_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        match event {
            Event::Readable { conn } => {
                if let Some(connection) = self.live(conn) {
                    connection.is_told = false;
                }
            }
            Event::Datagrams { port } => self.told_of_datagrams(port),
            _ => {}
        }
        Some(event)
    }

    fn transmit(&mut self, _now: Instant) -> Result<usize, KernelError> {
        let mut count = 0;
        for _ in 0..self.active.len() {
            let Some(index) = self.active.pop_front() else { break };
            self.connections[index as usize].is_active = false;
            count += usize::from(self.advance(index).map_err(KernelError::of_ring)?);
        }
        self.ring.submit().map_err(KernelError::of_ring)?;
        Ok(count)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.rested
    }

    /// A signal ends it, too.
    fn wait(&mut self, limit: Duration) -> Result<(), KernelError> {
        let can_refill = self.ring.missing_buffers() > 0 && self.arena.free_buffers() > 0;
        let waits = !self.starved.is_empty() || self.wants_datagrams() && self.rested.is_none();
        let can_resume = waits && self.ring.provided_buffers() > 0;
        if !self.events.is_empty() || !self.active.is_empty() || can_refill || can_resume {
            return Ok(());
        }
        self.ring.wait(limit).map_err(KernelError::of_ring)
    }

    fn waker(&mut self) -> Result<Option<Waker>, KernelError> {
        let event = match self.ring.event() {
            Some(event) => event,
            None => {
                let event =
                    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from);
                let event = Arc::new(event.map_err(KernelError::of_ring)?);
                self.ring.wake_by(event.clone()).map_err(KernelError::of_ring)?;
                event
            }
        };
        // The count is never read: it is the writing that counts. A count at its end has been written to before.
        Ok(Some(Waker::of_event(event.clone(), move || {
            let _ = rustix::io::write(&event, &1_u64.to_ne_bytes());
        })))
    }
}

impl Net for KernelTransport {
    fn recv(&mut self, conn: ConnId) -> Option<Slot> {
        let share = self.share();
        let connection = self.live(conn)?;
        let slot = connection.take()?;
        if connection.is_paused && !connection.is_receiving && !connection.holds(share) {
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
                let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
            }
            connection.die(CloseReason::Aborted);
            self.activate(conn.index);
        }
    }

    fn recv_datagram(&mut self, port: UdpPort) -> Option<Datagram> {
        self.take_datagram(port)
    }

    fn send_datagram(
        &mut self,
        port: UdpPort,
        to: Remote,
        text: &[u8],
        pieces: &[Extent],
    ) -> Result<(), DatagramError> {
        self.queue_datagram(port, to, text, pieces)
    }
}

impl std::fmt::Debug for KernelTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.connections.len() - self.vacant.len();
        f.debug_struct("KernelTransport").field("connections", &open).finish_non_exhaustive()
    }
}

fn close_reason(error: &io::Error) -> CloseReason {
    match error.raw_os_error() {
        Some(libc::ETIMEDOUT) => CloseReason::TimedOut,
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => CloseReason::Unreachable,
        _ => CloseReason::Reset,
    }
}
