//! Datagrams: from frames to UDP ports, and from the application to neighbors.

use std::net::{IpAddr, SocketAddr};

use pmem::Extent;

use super::{BindError, Endpoint, TimerOf};
use crate::config::MIN_MTU_V6;
use crate::emit::{datagram, datagram_header_bytes};
use crate::flow::FlowKey;
use crate::frame::{FrameSink, RxFrame, SinkFull, TxChecksum, TxFrame, UdpDatagram};
use crate::neighbor::Lookup;
use crate::net::{Datagram, DatagramError, Event, Heard, MAX_DATAGRAM_PIECES, Remote, UdpPort};
use crate::udp::{MAX_UDP_PORTS, Outbox};

/// Datagrams that are sent before connections have their turn.
const QUANTUM: usize = 16;

impl Endpoint {
    /// Takes datagrams to `address`. Its IP may be unspecified: `0.0.0.0` stands for all of this host's IPv4 addresses,
    /// `::` for all its addresses. Of several cores each binds it, and gets the datagrams that come to it.
    ///
    /// # Errors
    /// [`BindError`]: nothing changed.
    pub fn bind_udp(&mut self, address: SocketAddr) -> Result<UdpPort, BindError> {
        if address.port() == 0 {
            return Err(BindError::ZeroPort);
        }
        if !address.ip().is_unspecified() && !self.local.has(address.ip()) {
            return Err(BindError::NotLocal(address.ip()));
        }
        if self.udp.len() == MAX_UDP_PORTS {
            return Err(BindError::TooMany(MAX_UDP_PORTS));
        }
        let port = self.udp.add(address).ok_or(BindError::InUse(address))?;
        let (places, text_bytes) = (self.cx.config.udp_tx_datagrams, self.cx.config.mtu);
        self.outbox.get_or_insert_with(|| Box::new(Outbox::new(places, text_bytes)));
        Ok(port)
    }

    /// Takes in a datagram to this host.
    pub(super) fn datagram<F: RxFrame>(&mut self, datagram: &UdpDatagram, frame: &mut F) {
        let key = &datagram.key;
        let Some(port) = self.udp.find(key.local_ip(), key.local_port) else {
            self.cx.counters.drops.protocol += 1;
            return self.iface.refuse_port(frame.bytes(), &self.local, self.now);
        };
        if !self.udp.has_room(port, self.arena.free_buffers()) {
            self.cx.counters.drops.datagram += 1;
            return;
        }
        let len = datagram.payload_len as u16;
        let claimed = frame.claim(datagram.payload_at);
        let Some(extent) = claimed.and_then(|(buffer, at)| buffer.into_extent(u16::try_from(at).ok()?, len))
        else {
            self.cx.counters.drops.no_buffer += 1;
            return;
        };
        self.cx.counters.datagrams_in += 1;
        self.cx.counters.partial_checksums += u64::from(datagram.is_partial);
        let heard = Heard { at: key.local_ip(), mac: Some(datagram.source_mac) };
        let from = Remote { address: key.peer(), heard: Some(heard) };
        if self.udp.put(port, Datagram::new(from, extent)) {
            self.telling.push_back(self.news_of(port));
        }
    }

    /// What stands for a port among the connections with events: a number behind all of theirs.
    fn news_of(&self, port: UdpPort) -> u32 {
        self.places.len() as u32 + u32::from(port.index)
    }

    /// Tells of the datagrams at the port that `news` stands for.
    pub(super) fn tell_datagrams(&mut self, news: u32) -> Event {
        let port = UdpPort { index: (news - self.places.len() as u32) as u16 };
        self.udp.told(port);
        Event::Datagrams { port }
    }

    pub(super) fn queue_datagram(
        &mut self,
        port: UdpPort,
        to: Remote,
        text: &[u8],
        pieces: &[Extent],
    ) -> Result<(), DatagramError> {
        let bound = self.udp.address(port).ok_or(DatagramError::NotBound(port))?;
        let address = to.address;
        if pieces.len() > MAX_DATAGRAM_PIECES {
            return Err(DatagramError::TooManyPieces(pieces.len()));
        }
        if address.port() == 0 || !self.local.is_peer(address.ip()) {
            return Err(DatagramError::BadRemote(address));
        }
        let is_of_version = |own: &IpAddr| own.is_ipv4() == address.is_ipv4();
        let own = match bound.ip() {
            any if any.is_unspecified() && (any.is_ipv6() || address.is_ipv4()) => {
                let asked = to.heard.map(|heard| heard.at).filter(|at| self.local.has(*at));
                asked.filter(is_of_version).or_else(|| self.local.source_for(address.ip()))
            }
            own => Some(own).filter(is_of_version),
        };
        let own = own.ok_or(DatagramError::BadRemote(address))?;
        let bytes = text.len() + pieces.iter().map(Extent::len).sum::<usize>();
        let most = self.most_datagram_bytes(address.ip());
        if bytes > most {
            return Err(DatagramError::TooLong { bytes, most });
        }
        let known = to.heard.and_then(|heard| heard.mac).map(Lookup::Known);
        let next_hop = match known {
            Some(_) => address.ip(),
            None => self.next_hop(address.ip()).ok_or(DatagramError::NoRoute(address.ip()))?,
        };
        let outbox = self.outbox.as_mut().filter(|outbox| outbox.has_room()).ok_or(DatagramError::Full)?;
        let lookup = known.unwrap_or_else(|| self.neighbors.find(next_hop, self.now));
        if lookup == Lookup::Full {
            return Err(DatagramError::Full);
        }
        let key = FlowKey::new(SocketAddr::new(own, bound.port()), address);
        let place = outbox.put(key, text, pieces).ok_or(DatagramError::Full)?;
        match lookup {
            Lookup::Known(mac) => outbox.send(place, mac),
            _ => self.cx.counters.drops.unresolved += u64::from(!outbox.wait(place, next_hop)),
        }
        if let Lookup::Ask { entry, until } = lookup {
            self.iface.ask(own, next_hop, None);
            self.set_timer(TimerOf::Neighbor(entry), until);
        }
        self.attend_outbox();
        Ok(())
    }

    /// Bytes of the longest datagram that is sent to a host. Routers do not cut IPv6's packets, and what they take is not
    /// known: through them go packets that any link takes.
    fn most_datagram_bytes(&self, remote: IpAddr) -> usize {
        let is_near = remote.is_ipv4() || self.local.on_link_prefix(remote).is_some();
        let mtu = self.cx.config.mtu_of(remote.is_ipv4());
        let mtu = if is_near { mtu } else { mtu.min(MIN_MTU_V6) };
        mtu - datagram_header_bytes(remote.is_ipv4())
    }

    /// Gives the outbox a turn among the connections with something to send, by a number behind all of theirs.
    fn attend_outbox(&mut self) {
        let is_ready = self.outbox.as_ref().is_some_and(|outbox| outbox.is_ready());
        if is_ready && !std::mem::replace(&mut self.outbox_in_output, true) {
            self.output.push_back(self.places.len() as u32);
        }
    }

    /// Sends datagrams; true if there are more than a turn allows.
    pub(super) fn send_datagrams<S: FrameSink>(&mut self, sink: &mut S) -> Result<bool, SinkFull> {
        let Some(outbox) = &mut self.outbox else { return Ok(false) };
        for _ in 0..QUANTUM {
            let Some(outgoing) = outbox.front() else { return Ok(false) };
            let ident = self.draft.next_ident();
            datagram(outgoing, self.cx.config.mac, self.cx.config.dscp << 2, ident, &mut self.draft.head);
            sink.send(TxFrame {
                head: &self.draft.head,
                payload: &outgoing.pieces,
                checksum: TxChecksum::Done,
                segment_bytes: None,
            })?;
            outbox.pop();
            self.cx.counters.frames_out += 1;
            self.cx.counters.datagrams_out += 1;
        }
        Ok(outbox.is_ready())
    }

    /// A neighbor has said where it is.
    pub(super) fn resolve_datagrams(&mut self, ip: IpAddr, mac: [u8; 6]) {
        if let Some(outbox) = &mut self.outbox {
            outbox.resolve(ip, mac);
            self.attend_outbox();
        }
    }

    /// A neighbor does not say where it is.
    pub(super) fn give_up_datagrams(&mut self, ip: IpAddr) {
        if let Some(outbox) = &mut self.outbox {
            self.cx.counters.drops.unresolved += outbox.give_up(ip) as u64;
        }
    }
}
