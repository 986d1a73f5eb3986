//! UDP sockets: datagrams that wait for the application.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use pmem::Extent;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use stack_net::net::{Datagram, DatagramError, Event, Heard, MAX_DATAGRAM_PIECES, Remote, UdpPort};

use super::ring::{OutgoingDatagram, PAYLOAD_AT, ReceivedDatagram, ask_for_destinations};
use super::{KernelError, KernelTransport, LISTENER_REST};

/// Most UDP ports of a transport.
const MAX_UDP_PORTS: usize = 64;

/// Bytes of the longest datagrams (RFC 768 in RFC 791's and RFC 8200's packets); the kernel sends them in fragments.
const LONGEST_V4: usize = 65_507;
const LONGEST_V6: usize = 65_527;

/// A bound socket.
pub(super) struct UdpSocket {
    socket: OwnedFd,
    address: SocketAddr,
    waiting: VecDeque<Datagram>,
    is_told: bool,
    is_receiving: bool,
}

impl KernelTransport {
    /// Takes datagrams to `address`; returns the port, and the address with the number that it has. `[::]` is IPv4's as
    /// well.
    ///
    /// # Errors
    /// [`KernelError::Bind`].
    pub fn bind_udp(&mut self, address: SocketAddr) -> Result<(UdpPort, SocketAddr), KernelError> {
        self.bind_udp_as(address, false)
    }

    /// As [`bind_udp`](Self::bind_udp), but others of this user's may share the address: the kernel gives each datagram
    /// to one of them, by a hash of addresses and ports (socket(7), `SO_REUSEPORT`).
    ///
    /// # Errors
    /// [`KernelError::Bind`].
    pub fn bind_udp_shared(&mut self, address: SocketAddr) -> Result<(UdpPort, SocketAddr), KernelError> {
        self.bind_udp_as(address, true)
    }

    fn bind_udp_as(
        &mut self,
        address: SocketAddr,
        is_shared: bool,
    ) -> Result<(UdpPort, SocketAddr), KernelError> {
        let refuse = |reason| KernelError::Bind { address, reason };
        if self.udp.len() == MAX_UDP_PORTS {
            return Err(refuse(io::Error::other("64 UDP ports are bound, and no more are possible")));
        }
        let socket = bound_socket(address, is_shared).map_err(refuse)?;
        let bound = net::getsockname(&socket).and_then(SocketAddr::try_from).map_err(io::Error::from);
        let bound = bound.map_err(refuse)?;
        self.ring.make_places_for_datagrams(self.config.tx_datagrams);
        let port = UdpPort { index: self.udp.len() as u16 };
        let waiting = VecDeque::with_capacity(self.config.rx_buffers.into());
        self.udp.push(UdpSocket { socket, address: bound, waiting, is_told: false, is_receiving: false });
        self.receive_datagrams().map_err(KernelError::of_ring)?;
        Ok((port, bound))
    }

    /// Has sockets receive that do not.
    pub(super) fn receive_datagrams(&mut self) -> io::Result<()> {
        if self.ring.provided_buffers() == 0 {
            return Ok(());
        }
        for (index, udp) in self.udp.iter_mut().enumerate().filter(|(_, udp)| !udp.is_receiving) {
            self.ring.receive_datagrams(&udp.socket, index as u32)?;
            udp.is_receiving = true;
        }
        Ok(())
    }

    /// Whether a socket waits for buffers to receive into.
    pub(super) fn wants_datagrams(&self) -> bool {
        self.udp.iter().any(|udp| !udp.is_receiving)
    }

    pub(super) fn datagram(
        &mut self,
        token: u32,
        result: io::Result<Option<ReceivedDatagram>>,
        more: bool,
    ) -> io::Result<()> {
        let udp = &mut self.udp[token as usize];
        udp.is_receiving = more;
        let received = match result {
            Ok(received) => received,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOBUFS) => {
                    self.counters.no_buffer += 1;
                    return Ok(());
                }
                Some(libc::EFAULT) => return Err(error),
                // The kernel has told what became of a datagram that was sent, or has no memory: it is asked again.
                _ => {
                    self.rested = self.rested.or(Some(self.now + LISTENER_REST));
                    return Ok(());
                }
            },
        };
        let Some(ReceivedDatagram { buffer, len, from, at }) = received else {
            self.counters.datagrams_too_long += 1;
            return Ok(());
        };
        let extent = self.arena.take_back(buffer).ok();
        let extent = extent.and_then(|buffer| buffer.into_extent(PAYLOAD_AT as u16, len as u16));
        let free = self.arena.free_buffers();
        let has_room = udp.waiting.len() < self.config.rx_buffers.into() && self.datagrams_waiting <= free;
        let Some(extent) = extent.filter(|_| has_room) else {
            self.counters.datagrams_dropped += 1;
            return Ok(());
        };
        self.counters.datagrams += 1;
        self.datagrams_waiting += 1;
        let from = Remote { address: from, heard: Some(Heard { at, mac: None }) };
        udp.waiting.push_back(Datagram::new(from, extent));
        if !std::mem::replace(&mut udp.is_told, true) {
            self.events.push_back(Event::Datagrams { port: UdpPort { index: token as u16 } });
        }
        Ok(())
    }

    /// The application is told of what waits at a port.
    pub(super) fn told_of_datagrams(&mut self, port: UdpPort) {
        if let Some(udp) = self.udp.get_mut(usize::from(port.index)) {
            udp.is_told = false;
        }
    }

    pub(super) fn take_datagram(&mut self, port: UdpPort) -> Option<Datagram> {
        let datagram = self.udp.get_mut(usize::from(port.index))?.waiting.pop_front()?;
        self.datagrams_waiting -= 1;
        Some(datagram)
    }

    pub(super) fn queue_datagram(
        &mut self,
        port: UdpPort,
        to: Remote,
        text: &[u8],
        pieces: &[Extent],
    ) -> Result<(), DatagramError> {
        let udp = self.udp.get(usize::from(port.index)).ok_or(DatagramError::NotBound(port))?;
        let address = to.address;
        if pieces.len() > MAX_DATAGRAM_PIECES {
            return Err(DatagramError::TooManyPieces(pieces.len()));
        }
        let is_v4 = udp.address.is_ipv4();
        let can_send = match (udp.address.ip(), address.ip()) {
            (IpAddr::V4(_), IpAddr::V4(_)) => true,
            (IpAddr::V6(own), IpAddr::V4(_)) => own == Ipv6Addr::UNSPECIFIED,
            (own, IpAddr::V6(_)) => own.is_ipv6(),
        };
        if !can_send || address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
            return Err(DatagramError::BadRemote(address));
        }
        let bytes = text.len() + pieces.iter().map(Extent::len).sum::<usize>();
        let most = if address.is_ipv4() { LONGEST_V4 } else { LONGEST_V6 };
        if bytes > most {
            return Err(DatagramError::TooLong { bytes, most });
        }
        let from = to.heard.map(|heard| heard.at).filter(|at| at.is_ipv4() == address.is_ipv4());
        let outgoing = OutgoingDatagram { is_v4, to: address, from, text, pieces };
        match self.ring.send_datagram(&udp.socket, &outgoing) {
            Ok(true) => Ok(()),
            // A ring that fails says so when it is next asked for completions.
            Ok(false) | Err(_) => Err(DatagramError::Full),
        }
    }
}

fn bound_socket(address: SocketAddr, is_shared: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ipproto::UDP))?;
    if is_shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    ask_for_destinations(&socket, address.is_ipv4())?;
    net::bind(&socket, &address)?;
    Ok(socket)
}
