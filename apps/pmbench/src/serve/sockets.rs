//! The modes on kernel sockets: one thread, epoll, and a record made durable before the next request is looked at, or
//! with all others of one call of epoll.
//!
//! Interest is level-triggered, with one read for each event: an edge-triggered loop has to read once more to find
//! that there is nothing, which costs a system call a request. SO_BUSY_POLL is not used: it would poll the device
//! from the server's system call, in time that is measured, and veth has nothing to poll.

mod kcm;
mod socket;
mod storage;
mod zerocopy;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, anyhow};
use pmlog::http::{HeadCache, Refusal};
use program::allow_descriptors;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, SocketFlags};

use super::control::{Control, tell, tell_ready};
use super::ledger::Meter;
use super::requests::{Request, Stream};
use super::sending::{Altered, Sending};
use super::{ServeArgs, reply};
use crate::protocol::{Mode, ServerCommand, ServerEvent};
use socket::{Multiplexed, Plain, Socket, ZeroCopy};
use storage::{Log, Records, Storage};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Descriptors of this process that are no client's.
const OWN_DESCRIPTORS: u64 = 64;
/// Events taken by one system call.
const EVENTS: usize = 512;
/// Pieces of a record sent by one system call: as much as the kernel's send buffer holds at first.
const SLICES: usize = 128;
/// How long a signal may go unseen.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Tokens that are no connection's.
const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

/// Serves until told to stop.
pub(super) fn serve(args: &ServeArgs, control: &Control) -> Result<()> {
    match args.mode {
        Mode::StatusQuoFsync => serve_with::<Plain, Records>(args, control),
        Mode::MsgZerocopy => serve_with::<ZeroCopy, Log>(args, control),
        Mode::Kcm => serve_with::<Multiplexed, Log>(args, control),
        _ => serve_with::<Plain, Log>(args, control),
    }
}

fn serve_with<L: Socket, K: Storage>(args: &ServeArgs, control: &Control) -> Result<()> {
    // First, so that a mode that cannot run leaves no store behind.
    let shared = L::prepare(args)?;
    let storage = K::open(args)?;
    let mut notes = vec!["epoll, level-triggered, 512 events a call", "TCP_NODELAY", "no SO_BUSY_POLL"];
    notes.extend_from_slice(K::NOTES);
    notes.extend_from_slice(L::NOTES);
    let mut server = Server::<L, K>::listen(args, control, shared, storage)?;
    tell_ready(args, Some(server.storage.domain()), &notes)?;
    server.run(control)?;
    server.storage.close()
}

struct Server<L: Socket, K> {
    shared: L::Shared,
    epoll: OwnedFd,
    listener: TcpListener,
    connections: Vec<Connection<L>>,
    vacant: Vec<u32>,
    /// Connections of this burst whose requests are kept and not answered.
    kept: Vec<(u64, Peer)>,
    storage: K,
    heads: HeadCache,
    meter: Meter,
}

/// An entry of the connection table; vacant without a socket.
struct Connection<L> {
    socket: Option<L>,
    /// How often the entry was used before: an event may speak of an earlier user.
    generation: u32,
    stream: Stream,
    /// Replies that are not sent.
    out: Vec<u8>,
    /// And behind those, one with a record; no request behind it is looked at before it is sent.
    sending: Option<Sending>,
    /// Whether the loop waits for room to send, and reads nothing meanwhile.
    is_blocked: bool,
    /// Whether the connection ends once all is sent.
    is_ending: bool,
}

impl<L: Socket, K: Storage> Server<L, K> {
    fn listen(args: &ServeArgs, control: &Control, shared: L::Shared, storage: K) -> Result<Self> {
        let connections = args.max_connections.get();
        allow_descriptors(u64::from(connections), L::DESCRIPTORS, OWN_DESCRIPTORS)?;
        let listener = listener(args.listen)
            .with_context(|| format!("cannot listen on {}; choose another with --listen", args.listen))?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        epoll::add(&epoll, control.wake(), EventData::new_u64(WAKE), EventFlags::IN)?;
        let vacant = |_| Connection {
            socket: None,
            generation: 0,
            stream: Stream::new(args.max_record.as_u64()),
            out: Vec::with_capacity(4096),
            sending: None,
            is_blocked: false,
            is_ending: false,
        };
        Ok(Self {
            shared,
            epoll,
            listener,
            connections: (0..connections).map(vacant).collect(),
            vacant: (0..connections).rev().collect(),
            kept: Vec::with_capacity(EVENTS),
            storage,
            heads: HeadCache::default(),
            meter: Meter::sleeping(),
        })
    }

    fn run(&mut self, control: &Control) -> Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&LOOK)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll failed"),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    WAKE => control.woken(),
                    token => self.happened(token, event.flags)?,
                }
            }
            self.answer_kept()?;
            while let Some(command) = control.next() {
                match command {
                    ServerCommand::Mark(id) => tell(&ServerEvent::Mark(self.storage.mark(id, &self.meter)))?,
                    ServerCommand::Stop => return Ok(()),
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let socket = match net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
            {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                // Others are the peer's or pass: accept(2).
                Err(error) => {
                    tracing::warn!("a connection could not be accepted: {error}");
                    return Ok(());
                }
            };
            let Some(index) = self.vacant.pop() else {
                self.storage.ledger().errors += 1;
                continue;
            };
            let connection = &mut self.connections[index as usize];
            match L::new(socket, &self.shared) {
                Ok(socket) => {
                    let token = token(index, connection.generation);
                    epoll::add(&self.epoll, socket.watched(), token, EventFlags::IN)?;
                    if let Some(stream) = socket.connection() {
                        epoll::add(&self.epoll, stream, token, EventFlags::RDHUP)?;
                    }
                    connection.socket = Some(socket);
                }
                Err(error) => {
                    tracing::warn!("a connection could not be set up: {error}");
                    self.storage.ledger().errors += 1;
                    self.vacant.push(index);
                }
            }
        }
    }

    /// Something happened on a connection: what has come is kept, and answered unless that waits for the rest of the burst.
    fn happened(&mut self, token: u64, flags: EventFlags) -> Result<()> {
        let Some((index, connection)) = known(&mut self.connections, token) else { return Ok(()) };
        let kept = connection.keep(flags, &mut self.storage, &mut self.heads);
        match kept {
            Ok(peer) if K::IN_BURSTS => {
                self.kept.push((token, peer));
                Ok(())
            }
            Ok(peer) => {
                let answered = connection.give(peer, &mut self.storage, &mut self.heads);
                self.go_on(index, answered)
            }
            Err(error) => self.go_on(index, Err(error)),
        }
    }

    /// Makes a burst durable, and answers all of it.
    fn answer_kept(&mut self) -> Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        self.storage.commit().map_err(|_| anyhow!("a burst of records could not be made durable"))?;
        let mut kept = std::mem::take(&mut self.kept);
        for (token, peer) in kept.drain(..) {
            let Some((index, connection)) = known(&mut self.connections, token) else { continue };
            let answered = connection.give(peer, &mut self.storage, &mut self.heads);
            self.go_on(index, answered)?;
        }
        self.kept = kept;
        Ok(())
    }

    /// Waits for what a connection waits for, or ends it.
    fn go_on(&mut self, index: u32, served: rustix::io::Result<Waits>) -> Result<()> {
        let connection = &mut self.connections[index as usize];
        match served {
            Ok(Waits::ForRequests) => connection.wait_for(false, index, &self.epoll),
            Ok(Waits::ForRoom) => connection.wait_for(true, index, &self.epoll),
            ended => {
                // A peer that is between two requests may leave.
                let broke = ended.is_err() || connection.stream.is_mid_request();
                self.storage.ledger().errors += u64::from(broke && !connection.is_ending);
                connection.vacate();
                self.vacant.push(index);
                Ok(())
            }
        }
    }
}

/// The connection that an event is of, unless it is over.
fn known<L>(connections: &mut [Connection<L>], token: u64) -> Option<(u32, &mut Connection<L>)> {
    let (index, generation) = (token as u32, (token >> 32) as u32);
    let connection = connections.get_mut(index as usize)?;
    let is_known = connection.generation == generation && connection.socket.is_some();
    is_known.then_some((index, connection))
}

/// How a connection's other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Talks,
    /// It sends nothing more.
    IsDone,
    IsGone,
}

/// What a connection waits for.
enum Waits {
    ForRequests,
    ForRoom,
    /// Nothing: it is over.
    Ended,
}

impl<L: Socket> Connection<L> {
    /// Reads once, and keeps what is whole.
    fn keep(
        &mut self,
        flags: EventFlags,
        storage: &mut impl Storage,
        heads: &mut HeadCache,
    ) -> rustix::io::Result<Peer> {
        let Some(socket) = &mut self.socket else { return Ok(Peer::IsGone) };
        let mut peer_is_done = flags.contains(EventFlags::RDHUP);
        if flags.contains(EventFlags::ERR) {
            match socket.error() {
                Err(Errno::PIPE) => peer_is_done = true,
                outcome => outcome?,
            }
        }
        let may_read = peer_is_done || flags.intersects(EventFlags::IN | EventFlags::HUP);
        if may_read && !self.is_blocked && !self.is_ending {
            match socket.receive(self.stream.room()) {
                Ok(0) => return Ok(Peer::IsGone),
                Ok(count) => self.stream.received(count),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
            self.answer(storage, heads);
        }
        Ok(if peer_is_done { Peer::IsDone } else { Peer::Talks })
    }

    /// Answers what was kept, and is durable.
    fn give(
        &mut self,
        peer: Peer,
        storage: &mut impl Storage,
        heads: &mut HeadCache,
    ) -> rustix::io::Result<Waits> {
        if peer == Peer::IsGone {
            return Ok(Waits::Ended);
        }
        let mut waits = self.flush(storage)?;
        // Behind a record there may be requests that came with its own.
        while matches!(waits, Waits::ForRequests) && self.answer(storage, heads) {
            storage.commit().map_err(|_| Errno::IO)?;
            waits = self.flush(storage)?;
        }
        Ok(if peer == Peer::IsDone { Waits::Ended } else { waits })
    }

    /// Keeps what is whole of the requests, up to one for a record; whether there is anything to send now.
    fn answer(&mut self, storage: &mut impl Storage, heads: &mut HeadCache) -> bool {
        let Self { stream, out, sending, is_ending, .. } = self;
        if let Err(refusal) = answer(stream, storage, heads, out, sending) {
            storage.ledger().errors += 1;
            out.extend_from_slice(reply::refused(refusal).as_bytes());
            *is_ending = true;
        }
        !out.is_empty() || sending.is_some()
    }

    /// Sends what is owed, as far as the kernel takes it.
    fn flush(&mut self, storage: &mut impl Storage) -> rustix::io::Result<Waits> {
        let Some(socket) = &mut self.socket else { return Ok(Waits::Ended) };
        let mut sent = 0;
        let blocked = loop {
            if sent == self.out.len() {
                break false;
            }
            match socket.send(&self.out[sent..]) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => break true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        };
        self.out.drain(..sent);
        let mut blocked = blocked;
        while !blocked && let Some(sending) = &mut self.sending {
            // What was altered on the medium ends the connection: the rest of it cannot be sent.
            let slices = sending.next::<SLICES>().map_err(|Altered| Errno::IO)?;
            if slices.is_empty() {
                self.sending = None;
                storage.ledger().requests += 1;
                break;
            }
            match socket.send_gathered(&slices) {
                Ok(count) => sending.sent(count),
                Err(Errno::AGAIN) => blocked = true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        match (blocked, self.is_ending) {
            (true, _) => Ok(Waits::ForRoom),
            (false, false) => Ok(Waits::ForRequests),
            (false, true) => Ok(Waits::Ended),
        }
    }

    fn wait_for(&mut self, room: bool, index: u32, epoll: &OwnedFd) -> Result<()> {
        if let Some(socket) = &self.socket
            && room != self.is_blocked
        {
            let interest = if room { EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(epoll, socket.watched(), token(index, self.generation), interest)?;
            self.is_blocked = room;
        }
        Ok(())
    }

    fn vacate(&mut self) {
        // Closing the socket ends epoll's interest in it.
        self.socket = None;
        self.generation = self.generation.wrapping_add(1);
        self.stream.clear();
        self.out.clear();
        self.sending = None;
        (self.is_blocked, self.is_ending) = (false, false);
    }
}

/// Keeps each whole request in `stream`, and puts its reply into `out`, up to the first that asks for a record, whose
/// reply goes into `sending`.
fn answer(
    stream: &mut Stream,
    storage: &mut impl Storage,
    heads: &mut HeadCache,
    out: &mut Vec<u8>,
    sending: &mut Option<Sending>,
) -> Result<(), Refusal> {
    while sending.is_none()
        && let Some(request) = stream.next(heads)?
    {
        match request {
            Request::Append(body) => {
                let seq = storage.append(body)?;
                storage.ledger().done(body.len() as u64);
                out.extend_from_slice(&reply::appended(seq));
            }
            Request::Read { seq } => *sending = Some(storage.read(seq)?),
        }
    }
    Ok(())
}

fn token(index: u32, generation: u32) -> EventData {
    EventData::new_u64(u64::from(generation) << 32 | u64::from(index))
}

fn listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    net::listen(&listener, BACKLOG)?;
    Ok(listener)
}
