//! UDP ports (RFC 768): datagrams that wait for the application, each in the buffer where it arrived.
//!
//! Nothing is remembered of who sent them. A port holds so many at most, all of them no more than half of the buffers that
//! are free or held so: what comes beyond is dropped, as the network may drop it. Memory for a port is taken when it is
//! bound.

mod outbox;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::listen::{accepts, overlap};
use crate::net::{Datagram, UdpPort};

pub(crate) use outbox::{Outbox, Outgoing};

/// Most UDP ports of an endpoint.
pub(crate) const MAX_UDP_PORTS: usize = 64;

/// All ports.
#[derive(Debug)]
pub(crate) struct UdpPorts {
    ports: Vec<Bound>,
    /// Most datagrams that wait at one port.
    limit: usize,
    /// Datagrams that wait at all ports.
    waiting: usize,
}

#[derive(Debug)]
struct Bound {
    address: SocketAddr,
    waiting: VecDeque<Datagram>,
    /// An event tells of what waits.
    is_told: bool,
}

impl UdpPorts {
    /// None yet, and at each that comes so many datagrams may wait.
    pub(crate) fn new(limit: usize) -> Self {
        Self { ports: Vec::new(), limit, waiting: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.ports.len()
    }

    /// Adds a port; none if its address is taken.
    pub(crate) fn add(&mut self, address: SocketAddr) -> Option<UdpPort> {
        if self.ports.iter().any(|bound| overlap(bound.address, address)) {
            return None;
        }
        let waiting = VecDeque::with_capacity(self.limit);
        self.ports.push(Bound { address, waiting, is_told: false });
        Some(UdpPort { index: (self.ports.len() - 1) as u16 })
    }

    /// What a port was bound to.
    pub(crate) fn address(&self, port: UdpPort) -> Option<SocketAddr> {
        self.ports.get(usize::from(port.index)).map(|bound| bound.address)
    }

    /// The port that has what comes to that address.
    pub(crate) fn find(&self, ip: IpAddr, port: u16) -> Option<UdpPort> {
        let index = self.ports.iter().position(|bound| accepts(bound.address, ip, port))?;
        Some(UdpPort { index: index as u16 })
    }

    /// Whether one more datagram may wait at a port, where so many buffers are free.
    pub(crate) fn has_room(&self, port: UdpPort, free_buffers: usize) -> bool {
        let bound = &self.ports[usize::from(port.index)];
        bound.waiting.len() < self.limit && self.waiting < free_buffers
    }

    /// Has a datagram wait for the application; true if that must be told.
    pub(crate) fn put(&mut self, port: UdpPort, datagram: Datagram) -> bool {
        let bound = &mut self.ports[usize::from(port.index)];
        bound.waiting.push_back(datagram);
        self.waiting += 1;
        !std::mem::replace(&mut bound.is_told, true)
    }

    /// The application is told of what waits at a port.
    pub(crate) fn told(&mut self, port: UdpPort) {
        self.ports[usize::from(port.index)].is_told = false;
    }

    /// The oldest datagram that waits at a port.
    pub(crate) fn take(&mut self, port: UdpPort) -> Option<Datagram> {
        let datagram = self.ports.get_mut(usize::from(port.index))?.waiting.pop_front()?;
        self.waiting -= 1;
        Some(datagram)
    }
}
