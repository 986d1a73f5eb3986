//! Sockets that listen, before there is anything to receive into.

use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use super::KernelError;

/// A listening socket. The kernel completes handshakes from now on, and keeps the connections until a
/// [`KernelTransport`](super::KernelTransport) accepts them.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: SocketAddr,
}

/// Which protocols a listener on `[::]` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stacks {
    /// IPv6 and IPv4.
    Dual,
    /// IPv6 alone; another listener may take IPv4.
    V6Only,
}

impl Listener {
    /// Listens on `address`, where `backlog` connections may wait to be accepted. `stacks` matters for `[::]` only:
    /// every other address is of one protocol.
    ///
    /// # Errors
    /// [`KernelError::Listen`].
    pub fn bind(address: SocketAddr, stacks: Stacks, backlog: u16) -> Result<Self, KernelError> {
        Self::bind_as(address, stacks, backlog, false)
    }

    /// As [`bind`](Self::bind), but other listeners of this user's may share the address: the kernel gives each
    /// connection to one of them, by a hash of addresses and ports (socket(7), `SO_REUSEPORT`).
    ///
    /// # Errors
    /// [`KernelError::Listen`].
    pub fn bind_shared(address: SocketAddr, stacks: Stacks, backlog: u16) -> Result<Self, KernelError> {
        Self::bind_as(address, stacks, backlog, true)
    }

    fn bind_as(
        address: SocketAddr,
        stacks: Stacks,
        backlog: u16,
        is_shared: bool,
    ) -> Result<Self, KernelError> {
        let v6_only = stacks == Stacks::V6Only || address.ip() != Ipv6Addr::UNSPECIFIED;
        let bind = || {
            let socket = listening_socket(address, v6_only, backlog, is_shared)?;
            let address = net::getsockname(&socket).and_then(SocketAddr::try_from)?;
            Ok(Self { socket, address })
        };
        bind().map_err(|reason: rustix::io::Errno| KernelError::Listen { address, reason: reason.into() })
    }

    /// Has the kernel probe each connection that has been silent for `idle`, every `interval` from then on, and end it after
    /// `count` probes without an answer (tcp(7), `TCP_KEEPIDLE` and those behind it). Where there is a
    /// [user timeout](Self::user_timeout), that decides in the place of `count`.
    ///
    /// # Errors
    /// [`KernelError::Listen`]: a time is none that the kernel takes.
    pub fn keep_alive(&self, idle: Duration, interval: Duration, count: u8) -> Result<(), KernelError> {
        let set = || {
            sockopt::set_tcp_keepidle(&self.socket, idle)?;
            sockopt::set_tcp_keepintvl(&self.socket, interval)?;
            sockopt::set_tcp_keepcnt(&self.socket, count.into())?;
            sockopt::set_socket_keepalive(&self.socket, true)
        };
        set().map_err(|reason| self.refused(reason))
    }

    /// Has the kernel end each connection whose peer takes nothing of what was sent to it for so long (tcp(7),
    /// `TCP_USER_TIMEOUT`).
    ///
    /// # Errors
    /// [`KernelError::Listen`]: the time is none that the kernel takes.
    pub fn user_timeout(&self, timeout: Duration) -> Result<(), KernelError> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(&self.socket, timeout_ms).map_err(|reason| self.refused(reason))
    }

    fn refused(&self, reason: rustix::io::Errno) -> KernelError {
        KernelError::Listen { address: self.address, reason: reason.into() }
    }

    /// The address, with the port that it has.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn listening_socket(
    address: SocketAddr,
    v6_only: bool,
    backlog: u16,
    is_shared: bool,
) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if is_shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, v6_only)?;
    }
    net::bind(&socket, &address)?;
    net::listen(&socket, backlog.into())?;
    Ok(socket)
}
