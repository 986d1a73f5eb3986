//! A plain stack on a DPDK port: smoltcp's own sockets, each with a ring of its own that the stack copies received
//! bytes into, and another copy from there into persistent memory.
//!
//! It is as good as such a server gets: a connection is found by its addresses, so that no packet walks over all
//! sockets; what arrives in one burst is made durable by one fence; a request is parsed where it lies in the ring.

mod frames;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddrV4;
use std::ops::Range;

use anyhow::Result;
use pmem::{Pending, Shard};
use pmlog::http::{HeadCache, MAX_HEAD_BYTES, Refusal};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, IpCidr, IpProtocol, Ipv4Packet,
    TcpPacket,
};
use stack::profile::{Laps, Stage};
use stack::server::Step;

use super::bursts::{Staged, Watched, run};
use super::control::{Control, tell_ready};
use super::device::Device;
use super::ledger::{self, Ledger, Meter};
use super::requests::Stream;
use super::{ServeArgs, reply};
use frames::Frames;

/// Between two looks at the timers of all connections.
const TIMERS_EVERY: Duration = Duration::from_millis(10);
/// Bytes of replies that a socket holds.
const TX_BYTES: usize = 4096;

/// Serves until told to stop.
pub(super) fn serve(args: &ServeArgs, control: &Control, device: &Device) -> Result<()> {
    let (info, seed) = ledger::open(args)?;
    let shard = seed.open()?;
    let frames = Frames::start(device)?;
    let mut server = Watched::new(Server::new(args, device, frames, shard), args.profile);
    let notes =
        ["one commit for each burst", "stock smoltcp sockets, one set for each connection", "two copies"];
    tell_ready(args, Some(info.domain.to_string()), &notes)?;
    run(&mut server, control, Meter::polling())?;
    Ok(server.bursts.shard.checkpoint()?)
}

struct Server {
    frames: Frames,
    interface: Interface,
    port: u16,
    /// Takes what is for no connection: questions for the address, and segments that are refused.
    nobody: SocketSet<'static>,
    connections: Vec<Connection>,
    vacant: Vec<usize>,
    /// Which connection a peer has.
    peers: HashMap<SocketAddrV4, usize>,
    /// Places that had a segment in this burst.
    touched: Vec<usize>,
    /// Appends of this burst, with their connections and lengths.
    pending: Vec<(usize, Pending, u64)>,
    heads: HeadCache,
    shard: Shard,
    ledger: Ledger,
    /// When the timers of all connections were looked at.
    looked: Instant,
}

/// A connection, with a set of sockets all its own.
struct Connection {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    peer: Option<SocketAddrV4>,
    is_touched: bool,
    /// Where in the ring the current request's body will lie, once its head is parsed.
    body: Option<Range<usize>>,
    /// Takes requests that lie around the ring's end.
    stream: Stream,
    /// Numbers of records whose replies are not in the socket yet.
    owed: Vec<u64>,
    refusal: Option<Refusal>,
}

impl Staged for Server {
    fn burst<L: Laps>(&mut self, now: stack::time::Instant, laps: &mut L) -> Result<Step> {
        let now = Instant::from_micros(now.as_micros());
        let mut step = Step { received: self.receive(now, laps), ..Step::default() };
        if now - self.looked >= TIMERS_EVERY {
            self.looked = now;
            (0..self.connections.len()).for_each(|index| self.touch(index));
            step.events = self.touched.len();
        }
        if step.is_idle() {
            return Ok(step);
        }
        step.committed = self.serve()?;
        laps.lap(Stage::App);
        self.transmit(now);
        laps.lap(Stage::Emit);
        step.sent = self.frames.flush();
        laps.lap(Stage::Tx);
        Ok(step)
    }

    fn settle(&mut self, step: &Step) -> Result<()> {
        if step.committed { self.ledger.make_room(&mut self.shard) } else { Ok(()) }
    }

    fn ledger(&self) -> Ledger {
        self.ledger
    }

    fn shard(&self) -> Option<&Shard> {
        Some(&self.shard)
    }
}

impl Server {
    fn new(args: &ServeArgs, device: &Device, mut frames: Frames, shard: Shard) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(device.mac)));
        config.random_seed = RandomState::new().hash_one(0);
        let mut interface = Interface::new(config, &mut frames, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The only one, so that there is room for it.
            let _ = addresses.push(IpCidr::Ipv4(args.ip));
        });
        let connections = args.max_connections.get() as usize;
        Self {
            frames,
            interface,
            port: args.port,
            nobody: SocketSet::new(Vec::new()),
            connections: (0..connections).map(|_| Connection::new(args.max_record.as_u64())).collect(),
            vacant: (0..connections).rev().collect(),
            peers: HashMap::with_capacity(connections),
            touched: Vec::with_capacity(connections),
            pending: Vec::with_capacity(connections),
            heads: HeadCache::default(),
            shard,
            ledger: Ledger::default(),
            looked: Instant::ZERO,
        }
    }

    /// Gives each frame of a burst to its connection; returns how many there were.
    fn receive<L: Laps>(&mut self, now: Instant, laps: &mut L) -> usize {
        let count = self.frames.burst();
        laps.lap(Stage::Rx);
        while let Some(frame) = self.frames.next() {
            let connection = match segment_for(self.port, frame) {
                Some((peer, opens)) => self.connection_of(peer, opens),
                None => None,
            };
            let sockets = match connection {
                Some(index) => {
                    self.touch(index);
                    &mut self.connections[index].sockets
                }
                None => &mut self.nobody,
            };
            self.interface.poll_ingress_single(now, &mut self.frames, sockets);
        }
        // smoltcp reads headers and keeps connections in one go.
        laps.lap(Stage::Tcp);
        count
    }

    /// The connection of a peer; a vacant one, if it opens a connection.
    fn connection_of(&mut self, peer: SocketAddrV4, opens: bool) -> Option<usize> {
        if let Some(&index) = self.peers.get(&peer) {
            return Some(index);
        }
        let index = if opens { self.vacant.pop()? } else { return None };
        let connection = &mut self.connections[index];
        // A socket that is closed can listen, and the port is not zero: only then smoltcp refuses.
        if connection.socket().listen(self.port).is_err() {
            self.vacant.push(index);
            return None;
        }
        connection.peer = Some(peer);
        self.peers.insert(peer, index);
        Some(index)
    }

    fn touch(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if connection.peer.is_some() && !std::mem::replace(&mut connection.is_touched, true) {
            self.touched.push(index);
        }
    }

    /// Appends what is whole, makes it durable, and puts the replies into the sockets; whether there was any.
    fn serve(&mut self) -> Result<bool> {
        for &index in &self.touched {
            let connection = &mut self.connections[index];
            if connection.refusal.is_none()
                && let Err(refusal) = connection.read(
                    index,
                    &mut self.heads,
                    &mut self.shard,
                    &mut self.pending,
                    &mut self.ledger,
                )
            {
                self.ledger.errors += 1;
                connection.refusal = Some(refusal);
            }
        }
        let has_appended = self.shard.uncommitted();
        if has_appended {
            let durable = self.shard.commit()?;
            for (index, pending, len) in self.pending.drain(..) {
                let Ok(receipt) = durable.confirm(pending) else { continue };
                self.connections[index].owed.push(receipt.seq);
                self.ledger.done(len);
            }
        }
        for &index in &self.touched {
            self.connections[index].answer();
        }
        Ok(has_appended)
    }

    /// Makes frames of what the sockets have to send, and gives up connections that are over.
    fn transmit(&mut self, now: Instant) {
        for index in self.touched.drain(..) {
            let connection = &mut self.connections[index];
            connection.is_touched = false;
            self.interface.poll_egress(now, &mut self.frames, &mut connection.sockets);
            let state = connection.socket().state();
            if matches!(state, tcp::State::Closed | tcp::State::TimeWait | tcp::State::Listen) {
                self.ledger.errors += u64::from(connection.is_mid_request());
                if let Some(peer) = connection.vacate() {
                    self.peers.remove(&peer);
                    self.vacant.push(index);
                }
            }
        }
    }
}

impl Connection {
    fn new(max_record_bytes: u64) -> Self {
        let ring = |bytes: usize| tcp::SocketBuffer::new(vec![0; bytes]);
        let mut socket = tcp::Socket::new(ring(MAX_HEAD_BYTES + max_record_bytes as usize), ring(TX_BYTES));
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            sockets,
            handle,
            peer: None,
            is_touched: false,
            body: None,
            stream: Stream::new(max_record_bytes),
            owed: Vec::with_capacity(64),
            refusal: None,
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn is_mid_request(&mut self) -> bool {
        self.refusal.is_none() && (self.socket().recv_queue() > 0 || self.stream.is_mid_request())
    }

    fn vacate(&mut self) -> Option<SocketAddrV4> {
        self.socket().abort();
        self.body = None;
        self.stream.clear();
        self.owed.clear();
        self.refusal = None;
        self.peer.take()
    }

    /// Appends the requests that are whole. The log takes them straight from the ring, unless they lie around its
    /// end.
    fn read(
        &mut self,
        index: usize,
        heads: &mut HeadCache,
        shard: &mut Shard,
        pending: &mut Vec<(usize, Pending, u64)>,
        ledger: &mut Ledger,
    ) -> Result<(), Refusal> {
        let mut append = |body: &[u8], copies: u64| {
            let appended = shard.append_copy(body).map_err(Refusal::from)?;
            ledger.copied_bytes += copies * body.len() as u64;
            pending.push((index, appended, body.len() as u64));
            Ok(())
        };
        let Self { sockets, handle, body, stream, .. } = self;
        let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
        let mut is_around = stream.is_mid_request();
        loop {
            let waiting = socket.recv_queue();
            let wanted = if is_around { 1 } else { body.as_ref().map_or(1, |body| body.end) };
            if waiting < wanted {
                return Ok(());
            }
            if is_around {
                let count = socket.recv_slice(stream.room()).unwrap_or(0);
                stream.received(count);
                while let Some(body) = stream.next(heads)? {
                    append(body, 2)?;
                }
                is_around = stream.is_mid_request();
                if count == 0 {
                    return Ok(());
                }
                continue;
            }
            let found = socket.recv(|bytes| {
                let range = match body.take() {
                    Some(body) => Ok(Some(body)),
                    None => stream.locate(bytes, heads),
                };
                match range {
                    Ok(Some(whole)) if whole.end <= bytes.len() => {
                        // The stack's copy into the ring was the other one.
                        (whole.end, append(&bytes[whole], 1).map(|()| Found::Whole))
                    }
                    Ok(_) if bytes.len() < waiting => (0, Ok(Found::Around)),
                    Ok(range) => (0, Ok(Found::Part(range))),
                    Err(refusal) => (0, Err(refusal)),
                }
            });
            match found {
                Ok(Ok(Found::Whole)) => {}
                Ok(Ok(Found::Around)) => is_around = true,
                Ok(Ok(Found::Part(range))) => {
                    *body = range;
                    return Ok(());
                }
                Ok(Err(refusal)) => return Err(refusal),
                // The connection has just ended.
                Err(_) => return Ok(()),
            }
        }
    }

    /// Puts what is owed into the socket, as far as there is room; closes it after the last.
    fn answer(&mut self) {
        let Self { sockets, handle, owed, refusal, .. } = self;
        let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
        let room = (socket.send_capacity() - socket.send_queue()) / reply::REPLY_BYTES;
        let taken = room.min(owed.len());
        for seq in owed.drain(..taken) {
            // A peer that has gone misses nothing.
            let _ = socket.send_slice(&reply::appended(seq));
        }
        if !owed.is_empty() {
            return;
        }
        if let Some(refusal) = refusal
            && socket.may_send()
        {
            let _ = socket.send_slice(reply::refused(*refusal).as_bytes());
            socket.close();
        }
        if socket.state() == tcp::State::CloseWait {
            socket.close();
        }
    }
}

/// What lies at the beginning of a socket's ring.
enum Found {
    /// A request, which was appended.
    Whole,
    /// The part of one whose rest lies at the ring's start.
    Around,
    /// The part of one whose rest is to come, and where its body will lie.
    Part(Option<Range<usize>>),
}

/// Who sent a frame that is a segment to `port`, and whether it opens a connection.
fn segment_for(port: u16, frame: &[u8]) -> Option<(SocketAddrV4, bool)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if packet.next_header() != IpProtocol::Tcp || packet.frag_offset() != 0 || packet.more_frags() {
        return None;
    }
    let segment = TcpPacket::new_checked(packet.payload()).ok()?;
    let peer = SocketAddrV4::new(packet.src_addr(), segment.src_port());
    (segment.dst_port() == port).then_some((peer, segment.syn() && !segment.ack()))
}
