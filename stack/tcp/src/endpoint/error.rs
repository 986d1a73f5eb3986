//! What keeps an endpoint from listening, binding and connecting.

use std::net::{IpAddr, SocketAddr};

use crate::config::OptionError;

/// Another host has one of this host's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressConflict {
    /// The address.
    pub ip: IpAddr,
    /// The Ethernet address of the other host.
    pub mac: [u8; 6],
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum ListenError {
    /// The address is not this host's.
    #[error("{0} is not an address of this host; listen on one of its own, or on the unspecified address")]
    NotLocal(IpAddr),
    /// Another listener has it.
    #[error("{0} is already listened on; choose another port")]
    InUse(SocketAddr),
    /// The list of listeners is full.
    #[error("{0} listeners exist, and no more are possible")]
    TooMany(usize),
    /// Connections that cannot be so.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// Too many listeners and connections with options of their own.
    #[error("connections go by {0} different options, and no more are possible; give more of them the same")]
    TooManyOptions(usize),
    /// A port or a backlog of zero.
    #[error("port {port} with a backlog of {backlog}: neither can be zero")]
    Zero {
        /// The port.
        port: u16,
        /// The backlog.
        backlog: usize,
    },
}

/// Why a UDP port cannot be bound.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum BindError {
    /// The address is not this host's.
    #[error("{0} is not an address of this host; bind one of its own, or the unspecified address")]
    NotLocal(IpAddr),
    /// Another port has it.
    #[error("{0} is already bound for UDP; choose another port")]
    InUse(SocketAddr),
    /// The list of ports is full.
    #[error("{0} UDP ports are bound, and no more are possible")]
    TooMany(usize),
    /// A port of zero.
    #[error("UDP port 0 cannot be bound; name the port")]
    ZeroPort,
}

/// Why a connection cannot be opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum ConnectError {
    /// No peer can have this address.
    #[error("{0} cannot be connected to; give the address and port of another host")]
    BadRemote(SocketAddr),
    /// The local address is not this host's, or of another IP version.
    #[error("{0} is not an address of this host from which the peer can be reached")]
    NotLocal(IpAddr),
    /// Neither on this link nor behind a gateway.
    #[error("no route to {0}; configure a route, a gateway or an address of its subnet")]
    NoRoute(IpAddr),
    /// The same two ends are connected already, or all ports towards this peer are taken.
    #[error("all ports towards {0} are in use; close connections or choose another local address")]
    InUse(SocketAddr),
    /// A connection that cannot be so.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// Too many listeners and connections with options of their own.
    #[error("connections go by {0} different options, and no more are possible; give more of them the same")]
    TooManyOptions(usize),
    /// The connection table, or the table of neighbors that are asked for, is full.
    #[error("all {0} places are in use; close connections or raise the limit")]
    TableFull(usize),
}
