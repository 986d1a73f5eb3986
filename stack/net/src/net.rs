//! What an application sees of a network: connections, UDP ports, events, slots and replies.
//!
//! An application is written once against [`Net`] and [`Service`], and runs on every transport:
//! the userspace stack over a DPDK port, the simulated link of the tests, or kernel sockets.

use std::net::SocketAddr;
use std::time::Duration;

use pmem::{CommitError, Durable, Extent, Shard};

use crate::doze::Waker;
use crate::profile::{Laps, Stage};
use crate::time::Instant;

mod datagram;

pub use datagram::{Datagram, DatagramError, Heard, MAX_DATAGRAM_PIECES, Remote, UdpPort};

/// Names a connection for as long as it lives; a later connection in the same place has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// Place in the connection table.
    pub index: u32,
    /// How often that place had been used before.
    pub generation: u32,
}

/// Something that happened on a connection, in the order in which it happened there, or at a UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The handshake is complete; slots may follow.
    Opened {
        /// The new connection.
        conn: ConnId,
        /// The other side.
        peer: SocketAddr,
    },
    /// Slots wait in [`Net::recv`]. Said once for any number of slots, and again for later ones.
    Readable {
        /// The connection that has slots.
        conn: ConnId,
    },
    /// There is room again after a send was refused or cut short.
    Writable {
        /// The connection that has room.
        conn: ConnId,
    },
    /// The peer sent FIN: after the slots that wait now there will be no more. Sending still works.
    PeerFinished {
        /// The half-closed connection.
        conn: ConnId,
    },
    /// The connection is over and its name is dead. Always the last event of a connection.
    Closed {
        /// The dead connection.
        conn: ConnId,
        /// Why it ended.
        reason: CloseReason,
    },
    /// Datagrams wait in [`Net::recv_datagram`]. Said once for any number of them, and again for later ones.
    Datagrams {
        /// The port that has datagrams.
        port: UdpPort,
    },
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Both sides finished.
    Finished,
    /// The peer sent RST.
    Reset,
    /// This side called [`Net::abort`].
    Aborted,
    /// The peer refused the connection.
    Refused,
    /// Retransmissions, probes or keep-alives went unanswered.
    TimedOut,
    /// An ICMP message or the routing table says that the peer cannot be reached.
    Unreachable,
}

/// One piece of received payload, in order, in the buffer where it arrived.
///
/// A slot that is dropped gives its buffer back; one that is kept takes the buffer out of circulation.
#[derive(Debug)]
pub struct Slot {
    extent: Extent,
}

impl Slot {
    /// A slot over payload that lies in `extent`.
    pub fn new(extent: Extent) -> Self {
        Self { extent }
    }

    /// The payload.
    pub fn bytes(&self) -> &[u8] {
        self.extent.bytes()
    }

    /// The payload's place, without taking it out of circulation.
    pub fn extent(&self) -> &Extent {
        &self.extent
    }

    /// Keeps the payload where it lies: the buffer is the caller's until the extent is dropped.
    pub fn keep(self) -> Extent {
        self.extent
    }
}

/// Bytes that a connection takes which has none waiting to be acknowledged, whatever other connections hold of the memory
/// for sending: a longer text may have to be sent in such pieces.
pub const LEAST_SEND_BYTES: usize = 256;

/// How much more a connection takes for sending just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SendSpace {
    /// Bytes that [`Net::send`] would copy.
    pub bytes: usize,
    /// Extents that [`Net::send_extent`] would queue.
    pub extents: usize,
}

/// Why something could not be sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum SendError {
    /// No room just now; [`Event::Writable`] follows.
    #[error("the send queue is full; wait for the connection to become writable")]
    Full,
    /// The connection is closed, or this side has finished sending.
    #[error("the connection no longer sends")]
    Closed,
}

/// The connections and UDP ports of one core, as an application uses them.
pub trait Net {
    /// The next piece of in-order payload. Taking it opens the receive window again.
    fn recv(&mut self, conn: ConnId) -> Option<Slot>;

    /// Room in the send queue; zeros for a connection that no longer sends.
    fn send_space(&self, conn: ConnId) -> SendSpace;

    /// Queues all of `bytes`, copied, or nothing. For protocol text: heads, errors, short replies.
    ///
    /// # Errors
    /// [`SendError`]: nothing was queued.
    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), SendError>;

    /// Queues a piece of a named buffer without copying it. The extent is dropped once the peer has
    /// acknowledged it and the device no longer reads it.
    ///
    /// # Errors
    /// [`SendError`]: nothing was queued, and the caller's clone still holds the buffer.
    fn send_extent(&mut self, conn: ConnId, extent: Extent) -> Result<(), SendError>;

    /// Says that the next `bytes` of what came on a connection are durable, by a proof that is no older than their
    /// append, or that nothing of them has to be. On a connection whose acknowledgements wait for it, that is when the
    /// peer hears that they have arrived; every byte of every slot has to be named in the end. On others, which
    /// acknowledge what arrives, it does nothing.
    fn acknowledge(&mut self, conn: ConnId, bytes: usize, proof: &Durable) {
        let _ = (conn, bytes, proof);
    }

    /// Sends FIN after what is queued. Receiving goes on.
    fn finish(&mut self, conn: ConnId);

    /// Sends RST and forgets the connection; [`Event::Closed`] follows.
    fn abort(&mut self, conn: ConnId);

    /// The next datagram that has come to a port. Those that nobody takes are dropped beyond a limit.
    fn recv_datagram(&mut self, port: UdpPort) -> Option<Datagram> {
        let _ = port;
        None
    }

    /// Queues a datagram from a port: `text`, which is copied, and behind it pieces of named buffers, which are not and
    /// are dropped when nobody reads them any more. It is sent once, and may be lost on the way.
    ///
    /// # Errors
    /// [`DatagramError`]: nothing was queued.
    fn send_datagram(
        &mut self,
        port: UdpPort,
        to: Remote,
        text: &[u8],
        pieces: &[Extent],
    ) -> Result<(), DatagramError> {
        let _ = (to, text, pieces);
        Err(DatagramError::NotBound(port))
    }
}

/// A source of connections that runs in bursts: receive, let the application work, transmit.
pub trait Transport: Net {
    /// Why the transport stopped.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Takes in what has arrived; returns the number of frames or completions.
    ///
    /// # Errors
    /// The device or kernel failed for good.
    fn receive(&mut self, now: Instant) -> Result<usize, Self::Error>;

    /// As [`receive`](Self::receive), and says after each stage that it is over: after all of it, unless the transport
    /// knows better.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    fn receive_in_laps<L: Laps>(&mut self, now: Instant, laps: &mut L) -> Result<usize, Self::Error> {
        let received = self.receive(now);
        laps.lap(Stage::Rx);
        received
    }

    /// The next event, oldest first.
    fn next_event(&mut self) -> Option<Event>;

    /// Sends what is due; returns the number of frames or completions.
    ///
    /// # Errors
    /// The device or kernel failed for good.
    fn transmit(&mut self, now: Instant) -> Result<usize, Self::Error>;

    /// As [`transmit`](Self::transmit), and says after each stage that it is over.
    ///
    /// # Errors
    /// As [`transmit`](Self::transmit).
    fn transmit_in_laps<L: Laps>(&mut self, now: Instant, laps: &mut L) -> Result<usize, Self::Error> {
        let sent = self.transmit(now);
        laps.lap(Stage::Tx);
        sent
    }

    /// When [`transmit`](Self::transmit) next has something to do though nothing arrives; at once where an event waits.
    fn next_deadline(&self) -> Option<Instant>;

    /// Waits until there is something to [`receive`](Self::receive), but no longer than `limit`: not at all while
    /// there is work that waits for nobody, and only until the [waker](Self::waker) is called. A transport that nothing
    /// wakes waits as long as it was told, and is asked for short waits.
    ///
    /// # Errors
    /// The device or kernel failed for good.
    fn wait(&mut self, limit: Duration) -> Result<(), Self::Error>;

    /// What ends a [`wait`](Self::wait), from any thread; none if nothing does.
    ///
    /// # Errors
    /// The process has no descriptor left for it.
    fn waker(&mut self) -> Result<Option<Waker>, Self::Error>;
}

/// A transport whose connections are kept by an endpoint, and which is therefore a [`Net`].
pub trait OverEndpoint {
    /// What keeps the connections.
    type Endpoint: Net;

    /// What keeps the connections.
    fn endpoint(&self) -> &Self::Endpoint;

    /// What keeps the connections, to listen and to connect.
    fn endpoint_mut(&mut self) -> &mut Self::Endpoint;
}

impl<T: OverEndpoint> Net for T {
    fn recv(&mut self, conn: ConnId) -> Option<Slot> {
        self.endpoint_mut().recv(conn)
    }

    fn send_space(&self, conn: ConnId) -> SendSpace {
        self.endpoint().send_space(conn)
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), SendError> {
        self.endpoint_mut().send(conn, bytes)
    }

    fn send_extent(&mut self, conn: ConnId, extent: Extent) -> Result<(), SendError> {
        self.endpoint_mut().send_extent(conn, extent)
    }

    fn acknowledge(&mut self, conn: ConnId, bytes: usize, proof: &Durable) {
        self.endpoint_mut().acknowledge(conn, bytes, proof);
    }

    fn finish(&mut self, conn: ConnId) {
        self.endpoint_mut().finish(conn);
    }

    fn abort(&mut self, conn: ConnId) {
        self.endpoint_mut().abort(conn);
    }

    fn recv_datagram(&mut self, port: UdpPort) -> Option<Datagram> {
        self.endpoint_mut().recv_datagram(port)
    }

    fn send_datagram(
        &mut self,
        port: UdpPort,
        to: Remote,
        text: &[u8],
        pieces: &[Extent],
    ) -> Result<(), DatagramError> {
        self.endpoint_mut().send_datagram(port, to, text, pieces)
    }
}

/// An application: it turns events into appends and replies.
pub trait Service {
    /// One event happened. Appends made here become durable together, after the burst's last event.
    fn event<N: Net>(&mut self, event: Event, net: &mut N, shard: &mut Shard);

    /// Whether [`committed`](Self::committed) may come when some of the appends are durable, and others are not yet: then
    /// the core need not wait for a slow medium, and goes on receiving. It comes again for the others.
    const TAKES_COMMITS_IN_PART: bool = false;

    /// The appends so far are durable, or [those of them](Self::TAKES_COMMITS_IN_PART) that the proof confirms: confirm the
    /// pending ones, and reply with the [receipts](pmem::Receipt), which
    /// nothing else makes.
    fn committed<N: Net>(&mut self, durable: &Durable, net: &mut N, shard: &mut Shard);

    /// The burst's commit failed: nothing of it may be acknowledged, and the shard takes nothing more.
    fn commit_failed<N: Net>(&mut self, error: &CommitError, net: &mut N, shard: &mut Shard);

    /// Between two bursts: what goes on by time, or comes from other threads. Says whether there was any such work. Appends
    /// made here become durable with the next burst, before which the core does not rest.
    fn between_bursts<N: Net>(&mut self, now: Instant, net: &mut N, shard: &mut Shard) -> bool {
        let _ = (now, net, shard);
        false
    }

    /// Asked before each rest: false if other threads have left something that has to be seen to first. They are to
    /// wake the core from now on, until it is [awake](Self::awake).
    fn may_rest(&self) -> bool {
        true
    }

    /// The core is awake after a rest.
    fn awake(&self) {}

    /// Requests since the start, for figures per request; 0 from an application that does not count them.
    fn requests(&self) -> u64 {
        0
    }
}
