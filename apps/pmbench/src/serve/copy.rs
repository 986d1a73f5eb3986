//! A plain stack on a DPDK port: smoltcp's own sockets, each with a ring of its own that the stack copies received
//! bytes into, and another copy from there into persistent memory.
//!
//! It is as good as such a server gets: a connection is found by its addresses, so that no packet walks over all
//! sockets; what arrives in one burst is made durable by one fence; a request is parsed where it lies in the ring; a
//! long record goes into the store as it comes, so that no ring need hold all of it.

mod filling;
mod frames;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddrV4;
use std::ops::Range;

use anyhow::Result;
use pmem::{Pending, Shard};
use pmlog::http::{HeadCache, MAX_HEAD_BYTES, Refusal};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
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
use super::requests::{Located, Request, Stream};
use super::sending::{Altered, Sending};
use super::{ServeArgs, reply};
use filling::Filling;
use frames::Frames;

/// Between two looks at the timers of all connections.
const TIMERS_EVERY: Duration = Duration::from_millis(10);
/// Bytes of replies that a socket holds.
const TX_BYTES: usize = 4096;
/// Bytes of a segment, about: more than this takes several.
const SEGMENT_BYTES: usize = 1400;
/// Longer bodies go into the store as they come.
const LONG_BYTES: u64 = 64 << 10;
/// What a socket's rings hold each where records are that long: as much as `paste` offers as a window.
const LONG_RING_BYTES: usize = 256 << 10;

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
    /// What this burst has asked for, with the connections.
    asked: Vec<(usize, Asked)>,
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
    /// The long record that is coming in.
    filling: Option<Filling>,
    /// Takes requests that lie around the ring's end.
    stream: Stream,
    /// Replies that are not in the socket yet.
    owed: VecDeque<Owed>,
    refusal: Option<Refusal>,
}

/// A request that is whole.
enum Asked {
    /// An append, not durable yet, of so many bytes.
    Append(Pending, u64),
    Read(u64),
}

/// A reply.
enum Owed {
    /// To an append, with the record's number.
    Appended(u64),
    /// To a read.
    Record(Box<Sending>),
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
        if step.is_idle() && self.touched.is_empty() {
            step.sent = self.frames.flush();
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
            asked: Vec::with_capacity(connections),
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
                    &mut self.asked,
                    &mut self.ledger,
                )
            {
                self.ledger.errors += 1;
                connection.refusal = Some(refusal);
            }
        }
        let has_appended = self.shard.uncommitted();
        let durable = if has_appended { Some(self.shard.commit()?) } else { None };
        for (index, asked) in self.asked.drain(..) {
            let connection = &mut self.connections[index];
            match asked {
                Asked::Append(pending, len) => {
                    let confirmed = durable.as_ref().and_then(|durable| durable.confirm(pending).ok());
                    let Some(receipt) = confirmed else { continue };
                    connection.owed.push_back(Owed::Appended(receipt.seq));
                    self.ledger.done(len);
                }
                Asked::Read(seq) if connection.refusal.is_none() => match Sending::of(&self.shard, seq) {
                    Ok(sending) => connection.owed.push_back(Owed::Record(Box::new(sending))),
                    Err(refusal) => {
                        self.ledger.errors += 1;
                        connection.refusal = Some(refusal);
                    }
                },
                Asked::Read(_) => {}
            }
        }
        for &index in &self.touched {
            self.connections[index].answer(&mut self.ledger);
        }
        Ok(has_appended)
    }

    /// Makes frames of what the sockets have to send, and gives up connections that are over.
    fn transmit(&mut self, now: Instant) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|&index| {
            let connection = &mut self.connections[index];
            // It makes one frame at a time. Short replies go out in one.
            while self.interface.poll_egress(now, &mut self.frames, &mut connection.sockets)
                == PollResult::SocketStateChanged
                && connection.socket().send_queue() > SEGMENT_BYTES
            {}
            // What the device had no room for is made another time.
            connection.is_touched = !self.frames.has_room();
            let state = connection.socket().state();
            if matches!(state, tcp::State::Closed | tcp::State::TimeWait | tcp::State::Listen) {
                self.ledger.errors += u64::from(connection.is_mid_request());
                if let Some(peer) = connection.vacate() {
                    self.peers.remove(&peer);
                    self.vacant.push(index);
                }
                connection.is_touched = false;
            }
            connection.is_touched
        });
        self.touched = touched;
    }
}

impl Connection {
    fn new(max_record_bytes: u64) -> Self {
        let ring = |bytes: usize| tcp::SocketBuffer::new(vec![0; bytes]);
        let (rx_bytes, tx_bytes) = match max_record_bytes {
            0..=LONG_BYTES => (MAX_HEAD_BYTES + max_record_bytes as usize, TX_BYTES),
            _ => (LONG_RING_BYTES, LONG_RING_BYTES),
        };
        let mut socket = tcp::Socket::new(ring(rx_bytes), ring(tx_bytes));
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            sockets,
            handle,
            peer: None,
            is_touched: false,
            body: None,
            filling: None,
            stream: Stream::new(max_record_bytes),
            owed: VecDeque::with_capacity(64),
            refusal: None,
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn is_mid_request(&mut self) -> bool {
        let has_begun = self.filling.is_some() || self.stream.is_mid_request();
        self.refusal.is_none() && (has_begun || self.socket().recv_queue() > 0)
    }

    fn vacate(&mut self) -> Option<SocketAddrV4> {
        self.socket().abort();
        self.body = None;
        self.filling = None;
        self.stream.clear();
        self.owed.clear();
        self.refusal = None;
        self.peer.take()
    }

    /// Takes the requests that are whole. The log takes records straight from the ring, unless short ones lie around
    /// its end.
    fn read(
        &mut self,
        index: usize,
        heads: &mut HeadCache,
        shard: &mut Shard,
        asked: &mut Vec<(usize, Asked)>,
        ledger: &mut Ledger,
    ) -> Result<(), Refusal> {
        let append = |shard: &mut Shard, ledger: &mut Ledger, body: &[u8], copies: u64| {
            let appended = shard.append_copy(body).map_err(Refusal::from)?;
            ledger.copied_bytes += copies * body.len() as u64;
            Ok(Asked::Append(appended, body.len() as u64))
        };
        let Self { sockets, handle, body, filling, stream, .. } = self;
        let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
        let mut is_around = stream.is_mid_request();
        loop {
            let waiting = socket.recv_queue();
            let wanted = if is_around { 1 } else { body.as_ref().map_or(1, |body| body.end) };
            if waiting < wanted {
                return Ok(());
            }
            if let Some(record) = filling {
                let taken = socket.recv(|bytes| match record.take(shard, bytes) {
                    Ok(count) => (count, Ok(())),
                    Err(refusal) => (0, Err(refusal)),
                });
                // The connection may just have ended.
                let Ok(taken) = taken else { return Ok(()) };
                taken?;
                if let Some(record) = filling.take_if(|record| record.is_whole()) {
                    let (pending, len) = record.append(shard)?;
                    // Into the ring, and out of it.
                    ledger.copied_bytes += 2 * len;
                    asked.push((index, Asked::Append(pending, len)));
                }
                continue;
            }
            if is_around {
                let count = socket.recv_slice(stream.room()).unwrap_or(0);
                stream.received(count);
                while let Some(request) = stream.next(heads)? {
                    let request = match request {
                        Request::Append(body) => append(shard, ledger, body, 2)?,
                        Request::Read { seq } => Asked::Read(seq),
                    };
                    asked.push((index, request));
                }
                is_around = stream.is_mid_request();
                if count == 0 {
                    return Ok(());
                }
                continue;
            }
            let found = socket.recv(|bytes| {
                let located = match body.take() {
                    Some(body) => Ok(Some(Located::Append(body))),
                    None => stream.locate(bytes, heads),
                };
                match located {
                    Ok(Some(Located::Append(whole))) if whole.end <= bytes.len() => {
                        // The stack's copy into the ring was the other one.
                        (whole.end, append(shard, ledger, &bytes[whole], 1).map(Found::Whole))
                    }
                    Ok(Some(Located::Append(body))) if body.len() as u64 > LONG_BYTES => {
                        (body.start, Ok(Found::Long(body.len() as u64)))
                    }
                    Ok(Some(Located::Read { seq, len })) => (len, Ok(Found::Whole(Asked::Read(seq)))),
                    Ok(_) if bytes.len() < waiting => (0, Ok(Found::Around)),
                    Ok(Some(Located::Append(body))) => (0, Ok(Found::Part(Some(body)))),
                    Ok(None) => (0, Ok(Found::Part(None))),
                    Err(refusal) => (0, Err(refusal)),
                }
            });
            match found {
                Ok(Ok(Found::Whole(request))) => asked.push((index, request)),
                Ok(Ok(Found::Long(len))) => *filling = Some(Filling::new(shard, len)),
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
    fn answer(&mut self, ledger: &mut Ledger) {
        let Self { sockets, handle, owed, refusal, .. } = self;
        let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
        while let Some(next) = owed.front_mut() {
            match next {
                Owed::Appended(seq) => {
                    if socket.send_capacity() - socket.send_queue() < reply::REPLY_BYTES {
                        return;
                    }
                    // A peer that has gone misses nothing.
                    let _ = socket.send_slice(&reply::appended(*seq));
                }
                Owed::Record(sending) => match put(sending, socket, ledger) {
                    Ok(false) => return,
                    Ok(true) => ledger.requests += 1,
                    Err(Altered) => {
                        ledger.errors += 1;
                        socket.abort();
                    }
                },
            }
            owed.pop_front();
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

/// Puts of a reply into the socket what there is room for; whether that is all.
///
/// # Errors
/// [`Altered`]; the rest cannot be sent.
fn put(sending: &mut Sending, socket: &mut tcp::Socket<'_>, ledger: &mut Ledger) -> Result<bool, Altered> {
    loop {
        let slices = sending.next::<1>()?;
        let Some(slice) = slices.first() else { return Ok(true) };
        // A peer that has gone takes nothing more.
        let count = socket.send_slice(slice).unwrap_or(0);
        if count == 0 {
            return Ok(false);
        }
        ledger.copied_bytes += count as u64;
        sending.sent(count);
    }
}

/// What lies at the beginning of a socket's ring.
enum Found {
    /// A request, which was taken.
    Whole(Asked),
    /// An append of so many bytes, whose head was taken.
    Long(u64),
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
