//! A host's TCP/IP without I/O: frames and the time come in, frames and events go out.

mod input;
mod output;
mod passive;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use pmem::{Arena, Extent};
use smoltcp::time::Instant;

use crate::config::{Config, ConfigError};
use crate::counters::Counters;
use crate::emit::MAX_HEADER_BYTES;
use crate::flow::{FlowKey, FlowTable, Place};
use crate::frame::{Flags, Local};
use crate::iface::Iface;
use crate::limit::RateLimit;
use crate::listen::{Listeners, MAX_LISTENERS};
use crate::neighbor::{Lookup, MAX_NEIGHBORS, Neighbors};
use crate::net::{CloseReason, ConnId, Event, Net, SendError, SendSpace, Slot};
use crate::tcp::connection::{Clock, Connection, Context, Happened, Outcome, State};
use crate::tcp::isn::Secret;
use crate::tcp::options::Options;
use crate::tcp::send_queue::Pieces;
use crate::tcp::seq::Seq;
use crate::time_wait::{TimeWait, TimeWaits};
use crate::timer::TimerWheel;
use crate::window::WindowPool;

/// Segments without a connection that may wait for the device.
const MAX_REPLIES: usize = 512;

/// The first of the ports that connections get which do not name one (RFC 6335, section 6).
const FIRST_DYNAMIC_PORT: u16 = 49152;

/// The connections of one core.
///
/// What a frame, a timer or a call makes due is noted in lists, so that no call ever walks over connections
/// that have nothing to do.
#[derive(Debug)]
pub struct Endpoint {
    now: Instant,
    flows: FlowTable,
    places: Box<[ConnectionPlace]>,
    /// Connections that may have something to send.
    output: VecDeque<u32>,
    /// Connections with events that the application has not been told.
    telling: VecDeque<u32>,
    timers: TimerWheel,
    pool: WindowPool,
    counters: Counters,
    config: Config,
    local: Local,
    secret: Secret,
    /// Free places.
    free: Vec<u32>,
    /// Connections whose window waits for free buffers.
    starved: VecDeque<u32>,
    /// The pool's level when it last changed, and how many of the starved have not been looked at since.
    level: (usize, usize),
    starved_unseen: usize,
    replies: VecDeque<Reply>,
    listeners: Listeners,
    time_waits: TimeWaits,
    last_cookie: Option<Instant>,
    neighbors: Neighbors,
    /// Connections in SYN-SENT whose next hop is being asked for.
    unresolved: Vec<u32>,
    iface: Iface,
    resets: RateLimit,
    half_open_challenges: RateLimit,
    /// The frame under construction.
    head: Vec<u8>,
    pieces: Pieces,
}

/// A place in the connection table.
#[derive(Debug)]
struct ConnectionPlace {
    connection: Connection,
    generation: u32,
    used: bool,
    /// The listener whose backlog counts the connection until its opening is told.
    listener: Option<u16>,
    in_output: bool,
    in_telling: bool,
    in_starved: bool,
}

/// A segment that belongs to no connection in the table.
#[derive(Clone, Copy, Debug)]
struct Reply {
    key: FlowKey,
    mac: [u8; 6],
    seq: Seq,
    ack: Seq,
    flags: Flags,
    window: u16,
    options: Options,
}

/// What a timer stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimerOf {
    Connection(u32),
    HalfOpen(u32),
    TimeWait(u32),
    Neighbor(u32),
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
    /// The connection table, or the table of neighbors that are asked for, is full.
    #[error("all {0} places are in use; close connections or raise the limit")]
    TableFull(usize),
}

impl Endpoint {
    /// An endpoint whose received payload lies in `arena`.
    ///
    /// # Errors
    /// [`ConfigError`]: the settings contradict themselves or the arena.
    pub fn new(config: Config, arena: Arena, now: Instant) -> Result<Self, ConfigError> {
        config.check(arena.buffer_bytes())?;
        let places = (0..config.max_connections).map(|_| ConnectionPlace {
            connection: Connection::new(&config, now),
            generation: 0,
            used: false,
            listener: None,
            in_output: false,
            in_telling: false,
            in_starved: false,
        });
        let flows = config.max_connections + config.syn_queue + config.max_time_wait;
        let pool = WindowPool::new(arena);
        Ok(Self {
            now,
            flows: FlowTable::new(flows, &config.isn_secret),
            places: places.collect(),
            output: VecDeque::with_capacity(config.max_connections),
            telling: VecDeque::with_capacity(config.max_connections),
            timers: TimerWheel::new(flows + MAX_NEIGHBORS, now),
            level: pool.level(),
            starved_unseen: 0,
            pool,
            counters: Counters::default(),
            local: Local { mac: config.mac, addresses: config.addresses.clone() },
            secret: Secret::new(&config.isn_secret),
            free: (0..config.max_connections as u32).rev().collect(),
            starved: VecDeque::with_capacity(config.max_connections),
            replies: VecDeque::with_capacity(MAX_REPLIES),
            listeners: Listeners::new(config.syn_queue),
            time_waits: TimeWaits::new(config.max_time_wait),
            last_cookie: None,
            neighbors: Neighbors::new(),
            unresolved: Vec::with_capacity(config.max_connections),
            iface: Iface::new(&config, now),
            resets: RateLimit::new(),
            half_open_challenges: RateLimit::new(),
            head: Vec::with_capacity(MAX_HEADER_BYTES + config.mtu),
            pieces: Pieces::new(),
            config,
        })
    }

    /// Accepts connections to `address`. Its IP may be unspecified: `0.0.0.0` stands for all of this host's
    /// IPv4 addresses, `::` for all its addresses. At most `backlog` connections are half-open, and as many
    /// wait for their [`Event::Opened`] to be taken.
    ///
    /// # Errors
    /// [`ListenError`]: nothing changed.
    pub fn listen(&mut self, address: SocketAddr, backlog: usize) -> Result<(), ListenError> {
        if address.port() == 0 || backlog == 0 {
            return Err(ListenError::Zero { port: address.port(), backlog });
        }
        if !address.ip().is_unspecified() && !self.local.has(address.ip()) {
            return Err(ListenError::NotLocal(address.ip()));
        }
        if self.listeners.len() == MAX_LISTENERS {
            return Err(ListenError::TooMany(MAX_LISTENERS));
        }
        if !self.listeners.add(address, backlog) {
            return Err(ListenError::InUse(address));
        }
        Ok(())
    }

    /// Opens a connection from `local`, or from an address and port that fit. [`Event::Opened`] follows, or
    /// [`Event::Closed`].
    ///
    /// # Errors
    /// [`ConnectError`]: nothing was sent.
    pub fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Result<ConnId, ConnectError> {
        self.now = self.now.max(now);
        if remote.port() == 0 || !self.local.is_peer(remote.ip()) {
            return Err(ConnectError::BadRemote(remote));
        }
        let next_hop = self.next_hop(remote.ip()).ok_or(ConnectError::NoRoute(remote.ip()))?;
        let asked = local.map(|local| local.ip()).filter(|ip| !ip.is_unspecified());
        let source = asked.or_else(|| self.local.source_for(remote.ip()));
        let source = source.ok_or(ConnectError::NoRoute(remote.ip()))?;
        if !self.local.has(source) || source.is_ipv4() != remote.is_ipv4() {
            return Err(ConnectError::NotLocal(source));
        }
        let key = match local.map_or(0, |local| local.port()) {
            0 => self.free_port(source, remote),
            port => Some(FlowKey::new(SocketAddr::new(source, port), remote))
                .filter(|key| self.flows.find(key).is_none()),
        };
        let key = key.ok_or(ConnectError::InUse(remote))?;
        if self.free.is_empty() {
            return Err(ConnectError::TableFull(self.config.max_connections));
        }
        let neighbor = self.neighbors.find(next_hop, self.now);
        if neighbor == Lookup::Full {
            return Err(ConnectError::TableFull(MAX_NEIGHBORS));
        }
        let index = self.free.pop().ok_or(ConnectError::TableFull(self.config.max_connections))?;
        let iss = self.secret.isn(&key, self.now);
        let offset = self.secret.clock_offset(&key);
        let clock = Clock { offset, recent: 0, recent_at: self.now };
        let now = self.now;
        let place = self.occupy(index, key, None);
        let id = ConnId { index, generation: place.generation };
        self.with(index, |connection, cx| connection.open(key, iss, clock, cx, now));
        match neighbor {
            Lookup::Known(mac) => self.places[index as usize].connection.mac = Some(mac),
            Lookup::Ask { entry, until } => {
                self.iface.ask(source, self.config.mac, next_hop);
                self.set_timer(TimerOf::Neighbor(entry), until);
                self.unresolved.push(index);
            }
            _ => self.unresolved.push(index),
        }
        self.settle(index);
        Ok(id)
    }

    /// When [`transmit`](Self::transmit) next has something to do though nothing arrives.
    pub fn next_deadline(&self) -> Option<Instant> {
        let waiting = !self.output.is_empty() || !self.replies.is_empty() || self.iface.front().is_some();
        if waiting || self.starved_unseen > 0 {
            return Some(self.now);
        }
        self.timers.next_deadline()
    }

    /// The next event, oldest first.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let index = *self.telling.front()?;
            let place = &mut self.places[index as usize];
            let conn = ConnId { index, generation: place.generation };
            let Some(happened) = place.connection.events.iter().next() else {
                place.in_telling = false;
                self.telling.pop_front();
                continue;
            };
            place.connection.events -= happened;
            return Some(match happened {
                Happened::OPENED => {
                    if let Some(listener) = place.listener.take() {
                        self.listeners.listener(listener).untold -= 1;
                    }
                    Event::Opened { conn, peer: place.connection.key.peer() }
                }
                Happened::READABLE => Event::Readable { conn },
                Happened::WRITABLE => Event::Writable { conn },
                Happened::PEER_FINISHED => Event::PeerFinished { conn },
                _ => {
                    let reason = place.connection.reason;
                    self.vacate(index);
                    Event::Closed { conn, reason }
                }
            });
        }
    }

    /// Totals since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections in the table, opening and closing ones included.
    pub fn connections(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn next_hop(&self, remote: IpAddr) -> Option<IpAddr> {
        if self.local.on_link(remote) {
            return Some(remote);
        }
        match remote {
            IpAddr::V4(_) => self.config.gateway_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.config.gateway_v6.map(IpAddr::V6),
        }
    }

    /// A port towards `remote` that nothing uses, searched for from a place that others cannot guess.
    fn free_port(&self, source: IpAddr, remote: SocketAddr) -> Option<FlowKey> {
        let ports = u16::MAX - FIRST_DYNAMIC_PORT + 1;
        let first = self.secret.port_offset(&FlowKey::new(SocketAddr::new(source, 0), remote));
        let clock = self.counters.opened as u32;
        let keys = (0..ports).map(|step| {
            let port = first.wrapping_add(clock).wrapping_add(step.into()) % u32::from(ports);
            FlowKey::new(SocketAddr::new(source, FIRST_DYNAMIC_PORT + port as u16), remote)
        });
        keys.into_iter()
            .find(|key| self.flows.find(key).is_none() && !self.listeners.is_port_used(key.local_port))
    }

    /// Takes a free place for a flow.
    fn occupy(&mut self, index: u32, key: FlowKey, listener: Option<u16>) -> &mut ConnectionPlace {
        self.flows.insert(key, Place::Connection(index));
        let place = &mut self.places[index as usize];
        place.used = true;
        place.listener = listener;
        place
    }

    /// Frees a place whose last event is told.
    fn vacate(&mut self, index: u32) {
        let place = &mut self.places[index as usize];
        place.used = false;
        place.generation = place.generation.wrapping_add(1);
        self.timers.cancel(index);
        self.free.push(index);
    }

    /// Calls `work` with a connection and what connections share.
    fn with<R>(&mut self, index: u32, work: impl FnOnce(&mut Connection, &mut Context<'_>) -> R) -> R {
        let mut cx = Context { config: &self.config, counters: &mut self.counters, pool: &mut self.pool };
        work(&mut self.places[index as usize].connection, &mut cx)
    }

    /// Notes in the lists what a connection may have to do.
    fn settle(&mut self, index: u32) {
        let place = &mut self.places[index as usize];
        if !place.in_output {
            place.in_output = true;
            self.output.push_back(index);
        }
        if !place.in_telling && !place.connection.events.is_empty() {
            place.in_telling = true;
            self.telling.push_back(index);
        }
    }

    /// Draws the consequences of what a segment, a timer or a call did.
    fn conclude(&mut self, index: u32, outcome: Outcome) {
        match outcome {
            Outcome::Goes => {}
            Outcome::Reset(seq) => {
                let connection = &self.places[index as usize].connection;
                if let Some(mac) = connection.mac {
                    let (key, flags) = (connection.key, Flags::RST);
                    self.reply(Reply::bare(key, mac, seq, Seq(0), flags));
                }
            }
            Outcome::TimeWait => self.enter_time_wait(index),
            Outcome::Closed(reason) => {
                let connection = &self.places[index as usize].connection;
                // One that is only drained has given its place in the table up already.
                if connection.state != State::Drained {
                    self.flows.remove(&connection.key);
                }
                self.end(index, reason);
            }
        }
        self.settle(index);
    }

    /// Ends a connection that is no longer in the flow table.
    fn end(&mut self, index: u32, reason: CloseReason) {
        let now = self.now;
        self.with(index, |connection, cx| {
            let waiting = connection.recv.ready_bytes() > 0 && connection.state != State::Drained;
            if reason == CloseReason::Finished && waiting {
                connection.drain(cx, now);
            } else {
                connection.release(reason, cx);
            }
        });
    }

    fn enter_time_wait(&mut self, index: u32) {
        let connection = &self.places[index as usize].connection;
        let (snd_nxt, rcv_nxt, clock) = connection.last_numbers();
        let owes_ack = connection.owes_ack();
        let until = self.now + self.config.time_wait;
        let entry = TimeWait {
            key: connection.key,
            mac: connection.mac.unwrap_or_default(),
            snd_nxt,
            rcv_nxt,
            clock,
            until,
            answers: RateLimit::new(),
        };
        let (place, evicted) = self.time_waits.insert(entry);
        if let Some(evicted) = evicted {
            self.flows.remove(&evicted.key);
        }
        self.flows.insert(entry.key, Place::TimeWait(place));
        self.set_timer(TimerOf::TimeWait(place), until);
        if owes_ack {
            self.acknowledge_time_wait(place);
        }
        self.end(index, CloseReason::Finished);
    }

    /// Queues a segment that belongs to no connection; dropped if too many wait.
    fn reply(&mut self, reply: Reply) {
        if self.replies.len() == MAX_REPLIES {
            self.counters.drops.limited += 1;
            return;
        }
        if reply.flags.contains(Flags::RST) {
            self.counters.resets_out += 1;
        }
        self.replies.push_back(reply);
    }

    fn set_timer(&mut self, timer: TimerOf, at: Instant) {
        let index = self.timer_index(timer);
        self.timers.set(index, at);
    }

    fn timer_index(&self, timer: TimerOf) -> u32 {
        let half_open = self.config.max_connections as u32;
        let time_wait = half_open + self.config.syn_queue as u32;
        let neighbor = time_wait + self.config.max_time_wait as u32;
        match timer {
            TimerOf::Connection(index) => index,
            TimerOf::HalfOpen(place) => half_open + place,
            TimerOf::TimeWait(place) => time_wait + place,
            TimerOf::Neighbor(entry) => neighbor + entry,
        }
    }

    fn timer_of(&self, index: u32) -> TimerOf {
        let half_open = self.config.max_connections as u32;
        let time_wait = half_open + self.config.syn_queue as u32;
        let neighbor = time_wait + self.config.max_time_wait as u32;
        if index < half_open {
            TimerOf::Connection(index)
        } else if index < time_wait {
            TimerOf::HalfOpen(index - half_open)
        } else if index < neighbor {
            TimerOf::TimeWait(index - time_wait)
        } else {
            TimerOf::Neighbor(index - neighbor)
        }
    }

    /// The connection of that name, if it lives.
    fn live(&self, conn: ConnId) -> Option<&Connection> {
        let place = self.places.get(conn.index as usize)?;
        (place.used && place.generation == conn.generation).then_some(&place.connection)
    }

    fn live_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        let place = self.places.get_mut(conn.index as usize)?;
        (place.used && place.generation == conn.generation).then_some(&mut place.connection)
    }

    /// Queues something for sending with `push`, which says whether there was room.
    fn queue(&mut self, conn: ConnId, push: impl FnOnce(&mut Connection) -> bool) -> Result<(), SendError> {
        let connection = self.live_mut(conn).filter(|connection| connection.sends());
        let connection = connection.ok_or(SendError::Closed)?;
        if !push(connection) {
            connection.wants_room.set(true);
            return Err(SendError::Full);
        }
        self.settle(conn.index);
        Ok(())
    }
}

impl Net for Endpoint {
    fn recv(&mut self, conn: ConnId) -> Option<Slot> {
        let extent = self.live_mut(conn)?.recv.pop()?;
        let drained = self.with(conn.index, |connection, cx| {
            let drained = connection.state == State::Drained && connection.recv.ready_bytes() == 0;
            if drained {
                connection.release(CloseReason::Finished, cx);
            }
            drained || connection.window_opened(cx)
        });
        if drained {
            self.settle(conn.index);
        }
        Some(Slot::new(extent))
    }

    fn send_space(&self, conn: ConnId) -> SendSpace {
        let Some(connection) = self.live(conn).filter(|connection| connection.sends()) else {
            return SendSpace::default();
        };
        if !connection.send.is_unused() {
            connection.wants_room.set(true);
        }
        SendSpace { bytes: connection.send.free_bytes(), extents: connection.send.free_extents() }
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), SendError> {
        self.queue(conn, |connection| connection.send.push_bytes(bytes))
    }

    fn send_extent(&mut self, conn: ConnId, extent: Extent) -> Result<(), SendError> {
        self.queue(conn, |connection| connection.send.push_extent(extent))
    }

    fn finish(&mut self, conn: ConnId) {
        if let Some(connection) = self.live_mut(conn) {
            connection.finish();
            self.settle(conn.index);
        }
    }

    fn abort(&mut self, conn: ConnId) {
        let Some(connection) = self.live(conn).filter(|connection| connection.state != State::Closed) else {
            return;
        };
        let (key, seq, ack) = (connection.key, connection.bare_seq(), connection.expected());
        let reset = connection.mac.filter(|_| connection.is_synchronized());
        let over = connection.state == State::Drained;
        let unresolved = connection.state == State::SynSent && connection.mac.is_none();
        if let Some(mac) = reset {
            self.reply(Reply::bare(key, mac, seq, ack, Flags::RST | Flags::ACK));
        }
        if unresolved {
            self.unresolved.retain(|&index| index != conn.index);
        }
        if !over {
            self.flows.remove(&key);
        }
        self.end(conn.index, CloseReason::Aborted);
        self.settle(conn.index);
    }
}

impl Reply {
    /// A segment without window and options.
    fn bare(key: FlowKey, mac: [u8; 6], seq: Seq, ack: Seq, flags: Flags) -> Self {
        Self { key, mac, seq, ack, flags, window: 0, options: Options::default() }
    }
}
