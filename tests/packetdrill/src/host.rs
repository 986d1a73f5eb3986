//! A host with sockets over the stack, in virtual time.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::IntoRawFd as _;
use std::time::Duration;

use libc::{
    EADDRINUSE, EAGAIN, EBADF, ECONNREFUSED, ECONNRESET, EINPROGRESS, EINVAL, EMFILE, ENETUNREACH, ENOTCONN,
    EPIPE, ETIMEDOUT, c_int,
};
use pmem::{Arena, Buffer, Options, Region, Shard};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpCidr,
    Ipv4Cidr,
};
use stack::net::{CloseReason, ConnId, Event, Net};
use stack::time::Instant;
use stack::{Config, Endpoint, FrameSink, RxChecksum, RxFrame, SinkFull, TxFrame};

/// The stack's address, for packetdrill's `--local_ip`, and a router that all others are behind.
const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 254);
const LOCAL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ROUTER_MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 2]);

/// How long packetdrill waits in vain for a packet.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a look at the clock takes: packetdrill spins on it.
const LOOK: Duration = Duration::from_micros(1);

/// Calls fail with a number of errno.
pub type Outcome<T> = Result<T, c_int>;

enum Socket {
    New(Option<SocketAddrV4>),
    Listening,
    Connected(ConnId),
}

#[derive(Default)]
struct Stream {
    peer: Option<SocketAddrV4>,
    opened: bool,
    /// Whether reads find the end, once all is read.
    finished: bool,
    closed: Option<CloseReason>,
    /// Whether this side has finished.
    ended: bool,
    resets_on_close: bool,
    received: VecDeque<u8>,
}

pub struct Host {
    endpoint: Endpoint,
    now: Instant,
    sockets: HashMap<c_int, Socket>,
    streams: HashMap<ConnId, Stream>,
    to_accept: VecDeque<ConnId>,
    sent: Sent,
    shard: Shard,
}

impl Host {
    pub fn new() -> Self {
        let options = Options { size: Some(64 << 20), ..Options::default() };
        let shard = Region::open("memory:", &options)
            .and_then(Region::into_shard)
            .unwrap_or_else(|error| panic!("64 MiB of memory are needed: {error}"));
        let now = Instant::from_secs(10);
        let config = Config {
            gateway_v4: Some(ROUTER),
            max_connections: 64,
            max_time_wait: 64,
            syn_queue: 64,
            tx_bytes: 1 << 20,
            // The shift of its windows stands in the scripts.
            rx_window_bytes: 256 * 1024,
            ..Config::with_secret(LOCAL_MAC, vec![IpCidr::Ipv4(Ipv4Cidr::new(LOCAL, 24))], [7; 16])
        };
        let endpoint = Endpoint::new(config, shard.arena().clone(), now)
            .unwrap_or_else(|error| panic!("the settings are wrong: {error}"));
        Self {
            endpoint,
            now,
            sockets: HashMap::new(),
            streams: HashMap::new(),
            to_accept: VecDeque::new(),
            sent: Sent::default(),
            shard,
        }
    }

    pub fn now(&self) -> Instant {
        self.now
    }

    /// The time, a little later than last time.
    pub fn look_at_clock(&mut self) -> Instant {
        self.sleep(LOOK);
        self.now
    }

    /// Lets time pass.
    pub fn sleep(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(next) = self.endpoint.next_deadline().filter(|&next| next <= until) {
            // What is due and cannot be done yet is tried again a little later.
            self.now = if next > self.now { next } else { (self.now + LOOK).min(until) };
            self.act();
            if self.now >= until {
                break;
            }
        }
        self.now = until;
    }

    /// Sends what is due, and hears what has happened.
    fn act(&mut self) {
        loop {
            while let Some(event) = self.endpoint.next_event() {
                self.hear(event);
            }
            if self.endpoint.transmit(self.now, &mut self.sent) == 0 {
                break;
            }
        }
        for question in std::mem::take(&mut self.sent.questions) {
            self.endpoint.receive(self.now, &mut Arrived(question, self.shard.arena().clone()));
        }
        self.endpoint.transmit(self.now, &mut self.sent);
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Opened { conn, peer } => {
                let stream = self.streams.entry(conn).or_default();
                stream.opened = true;
                if let std::net::SocketAddr::V4(peer) = peer
                    && stream.peer.replace(peer).is_none()
                {
                    self.to_accept.push_back(conn);
                }
            }
            Event::PeerFinished { conn } => self.streams.entry(conn).or_default().finished = true,
            Event::Closed { conn, reason } => self.streams.entry(conn).or_default().closed = Some(reason),
            Event::Readable { .. } | Event::Writable { .. } | Event::Datagrams { .. } => {}
        }
    }

    /// A packet arrives.
    pub fn packet(&mut self, packet: &[u8]) {
        let ethertype = if packet.first().is_some_and(|first| first >> 4 == 6) {
            EthernetProtocol::Ipv6
        } else {
            EthernetProtocol::Ipv4
        };
        let frame = ethernet(ROUTER_MAC, EthernetAddress(LOCAL_MAC), ethertype, packet);
        self.endpoint.receive(self.now, &mut Arrived(frame, self.shard.arena().clone()));
        self.act();
    }

    /// The next packet that the stack sends, and when; none if none comes for long.
    pub fn next_packet(&mut self) -> Option<(Instant, Vec<u8>)> {
        self.act();
        let limit = self.now + PATIENCE;
        while self.sent.packets.is_empty() && self.now < limit {
            let next = self.endpoint.next_deadline()?.max(self.now + LOOK);
            self.sleep(next.min(limit) - self.now);
            self.act();
        }
        self.sent.packets.pop_front().map(|packet| (self.now, packet))
    }

    /// A new socket. Its descriptor is one of the process, which packetdrill closes at the end if no call has.
    fn open(&mut self, socket: Socket) -> Outcome<c_int> {
        let fd = std::fs::File::open("/dev/null").map_err(|_| EMFILE)?.into_raw_fd();
        self.sockets.insert(fd, socket);
        Ok(fd)
    }

    pub fn socket(&mut self) -> Outcome<c_int> {
        self.open(Socket::New(None))
    }

    pub fn bind(&mut self, fd: c_int, at: SocketAddrV4) -> Outcome<()> {
        let Some(Socket::New(bound)) = self.sockets.get_mut(&fd) else { return Err(EINVAL) };
        *bound = Some(at);
        Ok(())
    }

    pub fn listen(&mut self, fd: c_int, backlog: c_int) -> Outcome<()> {
        let Some(Socket::New(Some(at))) = self.sockets.get(&fd) else { return Err(EINVAL) };
        let at = SocketAddrV4::new(LOCAL, at.port());
        self.endpoint.listen(at.into(), backlog.max(1) as usize).map_err(|_| EADDRINUSE)?;
        self.sockets.insert(fd, Socket::Listening);
        Ok(())
    }

    pub fn accept(&mut self, fd: c_int) -> Outcome<(c_int, SocketAddrV4)> {
        self.act();
        let Some(Socket::Listening) = self.sockets.get(&fd) else { return Err(EINVAL) };
        let conn = self.to_accept.pop_front().ok_or(EAGAIN)?;
        let peer = self.streams.get(&conn).and_then(|stream| stream.peer).ok_or(ENOTCONN)?;
        Ok((self.open(Socket::Connected(conn))?, peer))
    }

    pub fn connect(&mut self, fd: c_int, to: SocketAddrV4) -> Outcome<()> {
        let Some(Socket::New(bound)) = self.sockets.get(&fd) else { return Err(EINVAL) };
        let from = bound.filter(|at| at.port() != 0).map(|at| SocketAddrV4::new(LOCAL, at.port()).into());
        let conn = self.endpoint.connect(self.now, to.into(), from).map_err(|_| ENETUNREACH)?;
        self.streams.entry(conn).or_default().peer = Some(to);
        self.sockets.insert(fd, Socket::Connected(conn));
        self.act();
        Err(EINPROGRESS)
    }

    fn connected(&self, fd: c_int) -> Outcome<ConnId> {
        match self.sockets.get(&fd) {
            Some(Socket::Connected(conn)) => Ok(*conn),
            Some(_) => Err(ENOTCONN),
            None => Err(EBADF),
        }
    }

    pub fn read(&mut self, fd: c_int, into: &mut [u8]) -> Outcome<usize> {
        self.act();
        let conn = self.connected(fd)?;
        let stream = self.streams.entry(conn).or_default();
        while stream.received.len() < into.len()
            && let Some(slot) = self.endpoint.recv(conn)
        {
            stream.received.extend(slot.bytes());
        }
        let len = into.len().min(stream.received.len());
        for (place, byte) in into.iter_mut().zip(stream.received.drain(..len)) {
            *place = byte;
        }
        let (finished, closed) = (stream.finished, stream.closed);
        self.act();
        match closed {
            _ if len > 0 => Ok(len),
            Some(CloseReason::Reset) => Err(ECONNRESET),
            Some(CloseReason::Refused) => Err(ECONNREFUSED),
            Some(CloseReason::TimedOut) => Err(ETIMEDOUT),
            None if !finished => Err(EAGAIN),
            _ => Ok(0),
        }
    }

    pub fn write(&mut self, fd: c_int, bytes: &[u8]) -> Outcome<usize> {
        let conn = self.connected(fd)?;
        let stream = self.streams.entry(conn).or_default();
        if !stream.opened {
            return Err(EAGAIN);
        }
        if let Some(reason) = stream.closed {
            return Err(if reason == CloseReason::Reset { ECONNRESET } else { EPIPE });
        }
        if stream.ended {
            return Err(EPIPE);
        }
        let len = bytes.len().min(self.endpoint.send_space(conn).bytes);
        if len == 0 && !bytes.is_empty() {
            return Err(EAGAIN);
        }
        self.endpoint.send(conn, &bytes[..len]).map_err(|_| EPIPE)?;
        self.act();
        Ok(len)
    }

    pub fn shutdown(&mut self, fd: c_int, reading: bool, writing: bool) -> Outcome<()> {
        let conn = self.connected(fd)?;
        let stream = self.streams.entry(conn).or_default();
        stream.finished |= reading;
        if writing {
            stream.ended = true;
            self.endpoint.finish(conn);
            self.act();
        }
        Ok(())
    }

    pub fn close(&mut self, fd: c_int) -> Outcome<()> {
        let Socket::Connected(conn) = self.sockets.remove(&fd).ok_or(EBADF)? else { return Ok(()) };
        if self.streams.entry(conn).or_default().resets_on_close {
            self.endpoint.abort(conn);
        } else {
            self.endpoint.finish(conn);
        }
        self.act();
        Ok(())
    }

    /// The connection is aborted when it is closed.
    pub fn reset_on_close(&mut self, fd: c_int, resets: bool) -> Outcome<()> {
        let conn = self.connected(fd)?;
        self.streams.entry(conn).or_default().resets_on_close = resets;
        Ok(())
    }

    pub fn has(&self, fd: c_int) -> bool {
        self.sockets.contains_key(&fd)
    }
}

fn ethernet(
    from: EthernetAddress,
    to: EthernetAddress,
    ethertype: EthernetProtocol,
    packet: &[u8],
) -> Vec<u8> {
    let header = EthernetFrame::<&[u8]>::header_len();
    let mut frame = vec![0; header + packet.len()];
    EthernetRepr { src_addr: from, dst_addr: to, ethertype }
        .emit(&mut EthernetFrame::new_unchecked(&mut frame));
    frame[header..].copy_from_slice(packet);
    frame
}

/// What the stack has sent: packets, and the router's answers to its questions.
#[derive(Default)]
struct Sent {
    packets: VecDeque<Vec<u8>>,
    questions: Vec<Vec<u8>>,
}

impl FrameSink for Sent {
    fn send(&mut self, frame: TxFrame<'_>) -> Result<(), SinkFull> {
        let mut bytes = frame.head.to_vec();
        bytes.extend(frame.payload.iter().flat_map(|extent| extent.bytes()));
        let frame = EthernetFrame::new_unchecked(&bytes[..]);
        match frame.ethertype() {
            EthernetProtocol::Arp => self.questions.extend(router_answer(frame.payload())),
            _ => self.packets.push_back(frame.payload().to_vec()),
        }
        Ok(())
    }
}

fn router_answer(question: &[u8]) -> Option<Vec<u8>> {
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr: ROUTER,
        ..
    } = ArpRepr::parse(&ArpPacket::new_checked(question).ok()?).ok()?
    else {
        return None;
    };
    let answer = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: ROUTER_MAC,
        source_protocol_addr: ROUTER,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut packet = vec![0; answer.buffer_len()];
    answer.emit(&mut ArpPacket::new_unchecked(&mut packet));
    Some(ethernet(ROUTER_MAC, source_hardware_addr, EthernetProtocol::Arp, &packet))
}

/// A frame that has arrived, and where there are buffers for it.
struct Arrived(Vec<u8>, Arena);

impl RxFrame for Arrived {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn checksum(&self) -> RxChecksum {
        RxChecksum::Unknown
    }

    fn claim(&mut self, at: usize) -> Option<(Buffer, usize)> {
        let mut buffer = self.1.take()?;
        buffer.arrive(0, &self.0).then_some((buffer, at))
    }
}
