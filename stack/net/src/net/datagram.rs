//! Datagrams (UDP, RFC 768): each is a slot of its own, in the buffer where it arrived, and nothing is remembered of who
//! sent it.

use std::net::{IpAddr, SocketAddr};

use pmem::Extent;

use super::Slot;

/// Most pieces of named buffers in a datagram that is sent.
pub const MAX_DATAGRAM_PIECES: usize = 8;

/// Names a UDP port that a transport has bound, for as long as the transport lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UdpPort {
    /// Which of the transport's ports it is, in the order in which they were bound.
    pub index: u16,
}

/// Who a datagram is from or goes to.
///
/// What came from somewhere is answered there: by the way that it came, from the address that it was sent to. Whoever is
/// named by an address alone is looked for first, and is sent to from an address that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The address and port. Who expects no answers may have sent from port 0.
    pub address: SocketAddr,
    /// How it was heard from, if it was.
    pub heard: Option<Heard>,
}

/// How a host was heard from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The own address that it sent to.
    pub at: IpAddr,
    /// The Ethernet address that its frame came from, where a transport knows of frames.
    pub mac: Option<[u8; 6]>,
}

impl From<SocketAddr> for Remote {
    fn from(address: SocketAddr) -> Self {
        Self { address, heard: None }
    }
}

/// One received datagram: its payload is whole, and may be empty.
///
/// Dropped, it gives its buffer back; kept, it takes the buffer out of circulation, as any [`Slot`].
#[derive(Debug)]
pub struct Datagram {
    from: Remote,
    slot: Slot,
}

impl Datagram {
    /// A datagram whose payload lies in `extent`.
    pub fn new(from: Remote, extent: Extent) -> Self {
        Self { from, slot: Slot::new(extent) }
    }

    /// Who sent it, to be answered. Anyone can write any address there.
    pub fn from(&self) -> Remote {
        self.from
    }

    /// The payload.
    pub fn bytes(&self) -> &[u8] {
        self.slot.bytes()
    }

    /// The payload's place, without taking it out of circulation.
    pub fn extent(&self) -> &Extent {
        self.slot.extent()
    }

    /// Keeps the payload where it lies: the buffer is the caller's until the extent is dropped.
    pub fn keep(self) -> Extent {
        self.slot.keep()
    }
}

/// Why a datagram is not sent. Nothing was queued.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum DatagramError {
    /// The transport has no such port.
    #[error("UDP port number {} was not bound on this transport; bind it first", .0.index)]
    NotBound(UdpPort),
    /// Too many wait to be sent, or for a neighbor that has yet to say where it is.
    #[error("too many datagrams wait to be sent; send this one after the next burst, or not at all")]
    Full,
    /// Longer than what is sent in one packet.
    #[error("the datagram has {bytes} bytes, and one there has at most {most}; send it in parts")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// What is possible.
        most: usize,
    },
    /// In more pieces than a packet is sent in.
    #[error(
        "the datagram is of {0} pieces of named buffers, and at most {MAX_DATAGRAM_PIECES} are possible; copy some"
    )]
    TooManyPieces(usize),
    /// No host can have this address, or none that the port can send to.
    #[error("{0} cannot be sent to; give the address and port of another host, in the port's version of IP")]
    BadRemote(SocketAddr),
    /// Neither on this link nor behind a gateway.
    #[error("no route to {0}; configure a route, a gateway or an address of its subnet")]
    NoRoute(IpAddr),
}
