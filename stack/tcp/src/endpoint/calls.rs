//! What an application calls: listen, connect, events, and [`Net`].

use std::net::{IpAddr, SocketAddr};

use pmem::{Durable, Extent};
use stack_net::time::Instant;

use super::{
    ConnectError, Endpoint, FIRST_DYNAMIC_PORT, ListenError, MAX_PROFILES, PORT_COUNTERS, Reply, TimerOf,
};
use crate::config::ConnectionOptions;
use crate::flow::FlowKey;
use crate::frame::Flags;
use crate::listen::MAX_LISTENERS;
use crate::neighbor::{Lookup, MAX_NEIGHBORS};
use crate::net::{
    CloseReason, ConnId, Datagram, DatagramError, Event, Net, Remote, SendError, SendSpace, Slot, UdpPort,
};
use crate::tcp::connection::{Clock, Connection, Happened, State};
use crate::tcp::send_pool::SendPool;
use crate::tcp::send_queue::SendQueue;

impl Endpoint {
    /// Accepts connections to `address`. Its IP may be unspecified: `0.0.0.0` stands for all of this host's
    /// IPv4 addresses, `::` for all its addresses. At most `backlog` connections are half-open, and as many
    /// wait for their [`Event::Opened`] to be taken.
    ///
    /// # Errors
    /// [`ListenError`]: nothing changed.
    pub fn listen(&mut self, address: SocketAddr, backlog: usize) -> Result<(), ListenError> {
        let options = self.cx.config.connection;
        self.listen_with(address, backlog, &options)
    }

    /// As [`listen`](Self::listen), for connections that go by `options`.
    ///
    /// # Errors
    /// [`ListenError`]: nothing changed.
    pub fn listen_with(
        &mut self,
        address: SocketAddr,
        backlog: usize,
        options: &ConnectionOptions,
    ) -> Result<(), ListenError> {
        options.check()?;
        if address.port() == 0 || backlog == 0 {
            return Err(ListenError::Zero { port: address.port(), backlog });
        }
        if !address.ip().is_unspecified() && !self.local.has(address.ip()) {
            return Err(ListenError::NotLocal(address.ip()));
        }
        if self.listeners.len() == MAX_LISTENERS {
            return Err(ListenError::TooMany(MAX_LISTENERS));
        }
        let profile = self.profile(options).ok_or(ListenError::TooManyOptions(MAX_PROFILES))?;
        if !self.listeners.add(address, backlog, profile) {
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
        let options = self.cx.config.connection;
        self.connect_with(now, remote, local, &options)
    }

    /// As [`connect`](Self::connect), for a connection that goes by `options`.
    ///
    /// # Errors
    /// [`ConnectError`]: nothing was sent.
    pub fn connect_with(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        local: Option<SocketAddr>,
        options: &ConnectionOptions,
    ) -> Result<ConnId, ConnectError> {
        options.check()?;
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
        if !self.take_promise_back() {
            return Err(ConnectError::TableFull(self.cx.config.max_connections));
        }
        let neighbor = self.neighbors.find(next_hop, self.now);
        if neighbor == Lookup::Full {
            return Err(ConnectError::TableFull(MAX_NEIGHBORS));
        }
        let profile = self.profile(options).ok_or(ConnectError::TooManyOptions(MAX_PROFILES))?;
        let index = self.free.pop().ok_or(ConnectError::TableFull(self.cx.config.max_connections))?;
        let iss = self.secret.isn(&key, self.now);
        let offset = self.secret.clock_offset(&key);
        let clock = Clock { offset, recent: 0, recent_at: self.now };
        let now = self.now;
        let place = self.occupy(index, key, None, profile);
        let id = ConnId { index, generation: place.generation };
        self.with(index, |connection, cx| connection.open(key, iss, clock, cx, now));
        match neighbor {
            Lookup::Known(mac) => self.places[index as usize].connection.mac = Some(mac),
            Lookup::Ask { entry, until } => {
                self.iface.ask(source, next_hop, None);
                self.set_timer(TimerOf::Neighbor(entry), until);
                self.unresolved.push(index);
            }
            _ => self.unresolved.push(index),
        }
        self.settle(index);
        Ok(id)
    }

    /// The next event, oldest first.
    #[inline]
    pub fn next_event(&mut self) -> Option<Event> {
        let index = self.telling.front()?;
        // Nearly every event.
        if let Some(place) = self.places.get_mut(index as usize)
            && place.connection.events == Happened::READABLE
        {
            place.connection.events = Happened::empty();
            place.in_telling = false;
            self.telling.pop_front();
            return Some(Event::Readable { conn: ConnId { index, generation: place.generation } });
        }
        self.tell()
    }

    fn tell(&mut self) -> Option<Event> {
        loop {
            let index = self.telling.front()?;
            let Some(place) = self.places.get_mut(index as usize) else {
                self.telling.pop_front();
                return Some(self.tell_datagrams(index));
            };
            let conn = ConnId { index, generation: place.generation };
            let happened = place.connection.events.first();
            place.connection.events -= happened;
            if place.connection.events.is_empty() {
                place.in_telling = false;
                self.telling.pop_front();
            }
            if happened == Happened::READABLE {
                return Some(Event::Readable { conn });
            }
            if happened.is_empty() {
                // Nothing is left of what was noted.
                continue;
            }
            return Some(match happened {
                Happened::OPENED => {
                    if let Some(listener) = place.listener.take() {
                        self.listeners.listener(listener).untold -= 1;
                    }
                    Event::Opened { conn, peer: place.connection.key.peer() }
                }
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

    pub(super) fn next_hop(&self, remote: IpAddr) -> Option<IpAddr> {
        // What was given counts more than what was heard.
        self.routes.next_hop(&self.local, remote).or_else(|| self.iface.next_hop(remote, self.now))
    }

    /// A port towards `remote` that nothing uses, searched for from a place that others cannot guess.
    /// Whether it becomes a connection or not, the next search goes on behind it (RFC 6056, section 3.3.4).
    fn free_port(&mut self, source: IpAddr, remote: SocketAddr) -> Option<FlowKey> {
        let ports = u16::MAX - FIRST_DYNAMIC_PORT + 1;
        let (first, counter) = self.secret.port_offset(&FlowKey::new(SocketAddr::new(source, 0), remote));
        let counter = counter as usize % PORT_COUNTERS;
        for _ in 0..ports {
            let port = first.wrapping_add(self.ports_tried[counter]) % u32::from(ports);
            self.ports_tried[counter] = self.ports_tried[counter].wrapping_add(1);
            let key = FlowKey::new(SocketAddr::new(source, FIRST_DYNAMIC_PORT + port as u16), remote);
            let is_free = self.flows.find(&key).is_none() && !self.listeners.is_port_used(key.local_port);
            if is_free && self.core_of(&key) == self.cx.config.core.index {
                return Some(key);
            }
        }
        None
    }

    /// The core to which a flow's segments come, as far as that can be known.
    fn core_of(&self, key: &FlowKey) -> u16 {
        let spread = self.spread.as_ref().and_then(|spread| spread.core_of(key));
        spread.unwrap_or_else(|| self.steering.core_of(key))
    }

    /// The connection of that name, if it lives.
    fn live(&self, conn: ConnId) -> Option<&Connection> {
        let place = self.places.get(conn.index as usize).filter(|place| place.is_of(conn))?;
        Some(&place.connection)
    }

    fn live_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        let place = self.places.get_mut(conn.index as usize).filter(|place| place.is_of(conn))?;
        Some(&mut place.connection)
    }

    /// The application has taken the last of what an ended connection had for it.
    #[cold]
    fn is_drained(&mut self, index: u32) {
        self.with(index, |connection, cx| connection.release(CloseReason::Finished, cx));
        self.settle(index);
    }

    /// Queues something for sending with `push`, which says whether there was room.
    #[inline(always)]
    fn queue(
        &mut self,
        conn: ConnId,
        push: impl FnOnce(&mut SendQueue, u32, &mut SendPool) -> bool,
    ) -> Result<(), SendError> {
        let place = self.places.get_mut(conn.index as usize).ok_or(SendError::Closed)?;
        if !place.is_of(conn) || !place.connection.sends() {
            return Err(SendError::Closed);
        }
        let connection = &mut place.connection;
        let flight = connection.most_in_flight();
        if !push(&mut connection.send, flight, &mut self.cx.sending) {
            connection.wants_room.set(true);
            // No acknowledgement will make room where nothing was sent: others have to.
            if connection.send.is_unused() && !std::mem::replace(&mut place.in_refused, true) {
                self.refused.push_back(conn.index);
            }
            return Err(SendError::Full);
        }
        place.settle(conn.index, &mut self.output, &mut self.telling);
        Ok(())
    }
}

impl Net for Endpoint {
    #[inline]
    fn recv(&mut self, conn: ConnId) -> Option<Slot> {
        let place = self.places.get_mut(conn.index as usize).filter(|place| place.is_of(conn))?;
        let connection = &mut place.connection;
        let extent = connection.recv.pop(&mut self.cx.pieces)?;
        // How far that has opened the window is looked at once, when the connection has its turn to send.
        connection.has_taken = true;
        if connection.state == State::Drained && connection.recv.ready_bytes() == 0 {
            self.is_drained(conn.index);
        } else {
            place.settle(conn.index, &mut self.output, &mut self.telling);
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
        let flight = connection.most_in_flight();
        SendSpace {
            bytes: connection.send.free_bytes(flight, &self.cx.sending),
            extents: connection.send.free_extents(flight, &self.cx.sending),
        }
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), SendError> {
        self.queue(conn, |queue, flight, pool| queue.push_bytes(bytes, flight, pool))
    }

    fn send_extent(&mut self, conn: ConnId, extent: Extent) -> Result<(), SendError> {
        self.queue(conn, |queue, flight, pool| queue.push_extent(extent, flight, pool))
    }

    fn acknowledge(&mut self, conn: ConnId, bytes: usize, _: &Durable) {
        if self.live(conn).is_some() {
            let outcome = self.with(conn.index, |connection, cx| connection.made_durable(bytes, cx));
            self.conclude(conn.index, outcome);
        }
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
        let (key, seq, ack) = (connection.key, connection.bare_seq(), connection.acknowledges());
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

    fn recv_datagram(&mut self, port: UdpPort) -> Option<Datagram> {
        self.udp.take(port)
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
