//! A simulated link with any number of clients behind it: what arrives is written before the clock runs, and what leaves is
//! looked at after it has stopped.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;

use pmem::{Arena, Buffer};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket,
};
use stack::doze::Waker;
use stack::net::{Event, Transport};
use stack::profile::NoLaps;
use stack::time::Instant;
use stack::transport::OverEndpoint;
use stack::{Endpoint, FrameSink, RxChecksum, RxFrame, SinkFull, TxFrame};

pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub(super) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const PORT: u16 = 80;
/// The first client host, and how many connections each has.
const FIRST_CLIENT: u32 = u32::from_be_bytes([10, 1, 0, 0]);
const OF_A_HOST: u32 = 50_000;
const FIRST_PORT: u16 = 10_000;

const ETHERNET_BYTES: usize = 14;
const TCP_AT: usize = ETHERNET_BYTES + 20;
/// TCP's header with the one usual option: two NOP and timestamps (RFC 7323, appendix A).
const TCP_BYTES: usize = 32;
/// The SYN's: MSS, window scale, and timestamps between.
const SYN_OPTIONS: [u8; 20] = [2, 4, 5, 180, 1, 3, 3, 7, 1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0];
const PAYLOAD_AT: usize = TCP_AT + TCP_BYTES;

const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// The transport of the server.
pub(super) struct Wire {
    endpoint: Endpoint,
    arena: Arena,
    /// Whether payload is put into the buffers where it arrives. It is a device's work, and nobody's who is measured.
    stores_payload: bool,
    arriving: Vec<Arrived>,
    sent: Sent,
}

/// A client's connection.
#[derive(Clone, Copy, Default)]
pub(super) struct Client {
    seq: u32,
    ack: u32,
    timestamp: u32,
}

impl Wire {
    pub(super) fn new(endpoint: Endpoint, arena: Arena, stores_payload: bool) -> Self {
        Self { endpoint, arena, stores_payload, arriving: Vec::new(), sent: Sent::default() }
    }

    /// A client's SYN arrives with the next burst.
    pub(super) fn knock(&mut self, number: u32, client: &mut Client, now: Instant) {
        *client = Client { seq: 100, ..Client::default() };
        self.arrive(frame(number, client, SYN, now, &[]));
        client.seq = client.seq.wrapping_add(1);
    }

    /// A client's segment arrives with the next burst, and acknowledges all that was sent to it.
    pub(super) fn send(&mut self, number: u32, client: &mut Client, now: Instant, payload: &[u8]) {
        let flags = if payload.is_empty() { ACK } else { ACK | PSH };
        self.arrive(frame(number, client, flags, now, payload));
        client.seq = client.seq.wrapping_add(payload.len() as u32);
    }

    fn arrive(&mut self, bytes: Vec<u8>) {
        let Self { arena, stores_payload, .. } = self;
        self.arriving.push(Arrived { bytes, arena: arena.clone(), stores_payload: *stores_payload });
    }

    /// Tells clients what the server has sent; returns the number of frames.
    pub(super) fn deliver(&mut self, clients: &mut [Client]) -> usize {
        self.arriving.clear();
        let frames = std::mem::take(&mut self.sent.frames);
        for at in 0..frames {
            let (head, len) = &self.sent.heads[at];
            hear(head, *len, clients);
        }
        frames
    }
}

/// Notes what a frame of `len` bytes tells the client that it is for.
fn hear(head: &[u8], len: usize, clients: &mut [Client]) {
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if head.len() < PAYLOAD_AT || head[12..14] != [8, 0] {
        return;
    }
    let host = word(30).wrapping_sub(FIRST_CLIENT);
    let port = u16::from_be_bytes([head[TCP_AT + 2], head[TCP_AT + 3]]);
    let number = host * OF_A_HOST + u32::from(port.wrapping_sub(FIRST_PORT));
    let Some(client) = clients.get_mut(number as usize) else { return };
    let options_at = TCP_AT + 20;
    let header_bytes = usize::from(head[TCP_AT + 12] >> 4) * 4;
    let syn = head[TCP_AT + 13] & SYN != 0;
    // MSS stands before the timestamps of a SYN.
    let timestamps = head[options_at..TCP_AT + header_bytes].windows(2).position(|kind| kind == [8, 10]);
    if let Some(at) = timestamps {
        client.timestamp = word(options_at + at + 2);
    }
    let payload = len - TCP_AT - header_bytes;
    client.ack = word(TCP_AT + 4).wrapping_add(payload as u32).wrapping_add(u32::from(syn));
}

/// A client's frame. Its TCP checksum is left out: the device has looked at it.
fn frame(number: u32, client: &Client, flags: u8, now: Instant, payload: &[u8]) -> Vec<u8> {
    let options = if flags & SYN != 0 { SYN_OPTIONS.len() } else { TCP_BYTES - 20 };
    let tcp_bytes = 20 + options;
    let mut frame = vec![0; TCP_AT + tcp_bytes + payload.len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
    ethernet.set_src_addr(EthernetAddress(CLIENT_MAC));
    ethernet.set_dst_addr(EthernetAddress(SERVER_MAC));
    ethernet.set_ethertype(EthernetProtocol::Ipv4);
    let ip = Ipv4Repr {
        src_addr: Ipv4Addr::from(FIRST_CLIENT + number / OF_A_HOST),
        dst_addr: SERVER,
        next_header: IpProtocol::Tcp,
        payload_len: tcp_bytes + payload.len(),
        hop_limit: 64,
    };
    ip.emit(&mut Ipv4Packet::new_unchecked(ethernet.payload_mut()), &ChecksumCapabilities::default());
    let mut tcp = TcpPacket::new_unchecked(&mut frame[TCP_AT..]);
    tcp.set_src_port(FIRST_PORT + (number % OF_A_HOST) as u16);
    tcp.set_dst_port(PORT);
    tcp.set_header_len(tcp_bytes as u8);
    tcp.set_window_len(0xffff);
    let tcp = &mut frame[TCP_AT..];
    tcp[4..8].copy_from_slice(&client.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&client.ack.to_be_bytes());
    tcp[13] = flags;
    let value = (now.as_millis() as u32).to_be_bytes();
    if flags & SYN != 0 {
        tcp[20..40].copy_from_slice(&SYN_OPTIONS);
        tcp[32..36].copy_from_slice(&value);
    } else {
        tcp[20..24].copy_from_slice(&[1, 1, 8, 10]);
        tcp[24..28].copy_from_slice(&value);
        tcp[28..32].copy_from_slice(&client.timestamp.to_be_bytes());
    }
    tcp[tcp_bytes..].copy_from_slice(payload);
    frame
}

/// A frame that has arrived.
struct Arrived {
    bytes: Vec<u8>,
    arena: Arena,
    stores_payload: bool,
}

impl RxFrame for Arrived {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn checksum(&self) -> RxChecksum {
        RxChecksum::Good
    }

    fn claim(&mut self, at: usize) -> Option<(Buffer, usize)> {
        let mut buffer = self.arena.take()?;
        if self.stores_payload && !buffer.arrive(at, &self.bytes[at..]) {
            return None;
        }
        Some((buffer, at))
    }
}

/// What the server has sent since it was last looked at: the beginnings of frames, and their lengths.
#[derive(Default)]
struct Sent {
    heads: Vec<([u8; 128], usize)>,
    frames: usize,
}

impl FrameSink for Sent {
    fn send(&mut self, frame: TxFrame<'_>) -> Result<(), SinkFull> {
        if self.frames == self.heads.len() {
            self.heads.push(([0; 128], 0));
        }
        let (head, len) = &mut self.heads[self.frames];
        let begin = frame.head.len().min(head.len());
        head[..begin].copy_from_slice(&frame.head[..begin]);
        *len = frame.len();
        self.frames += 1;
        Ok(())
    }
}

impl OverEndpoint for Wire {
    type Endpoint = Endpoint;

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn endpoint_mut(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }
}

impl Transport for Wire {
    type Error = Infallible;

    fn receive(&mut self, now: Instant) -> Result<usize, Infallible> {
        self.endpoint.receive_burst(now, &mut self.arriving[..], &mut NoLaps);
        Ok(self.arriving.len())
    }

    fn next_event(&mut self) -> Option<Event> {
        self.endpoint.next_event()
    }

    fn transmit(&mut self, now: Instant) -> Result<usize, Infallible> {
        Ok(self.endpoint.transmit(now, &mut self.sent))
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.endpoint.next_deadline()
    }

    /// Not at all: time is virtual.
    fn wait(&mut self, _: Duration) -> Result<(), Infallible> {
        Ok(())
    }

    fn waker(&mut self) -> Result<Option<Waker>, Infallible> {
        Ok(None)
    }
}
