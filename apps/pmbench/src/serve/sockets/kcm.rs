//! A socket out of which whole HTTP requests come: the kernel connection multiplexor (AF_KCM,
//! Documentation/networking/kcm.rst), told by a BPF program where requests end.

mod framer;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Result;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, sockopt};
use stack_kernel::kcm::{self, SocketFilter};

/// linux/socket.h
const AF_KCM: AddressFamily = AddressFamily::from_raw(41);

/// The program that finds the ends of requests, loaded into the kernel.
///
/// A request's head has 1024 bytes at most, and `Content-Length` once, or not at all if there is no body. A client
/// must not send a request before it has the reply to the one before. Whoever does otherwise loses the connection.
#[derive(Debug)]
pub struct RequestFramer(SocketFilter);

impl RequestFramer {
    /// Loads it, for requests with bodies of up to `max_body_bytes`.
    ///
    /// # Errors
    /// What bpf(2) says: [`Errno::PERM`](rustix::io::Errno::PERM) without CAP_BPF.
    pub fn load(max_body_bytes: u32) -> Result<Self> {
        SocketFilter::load(&framer::program(max_body_bytes)).map(Self)
    }
}

/// A connected TCP socket behind a multiplexor of its own.
#[derive(Debug)]
pub struct KcmSocket {
    // Closed first, which takes the multiplexor off the connection.
    multiplexor: OwnedFd,
    connection: OwnedFd,
}

impl KcmSocket {
    /// Whether this kernel has multiplexors.
    pub fn is_supported() -> bool {
        multiplexor().is_ok()
    }

    /// Puts a multiplexor before a connection.
    ///
    /// # Errors
    /// [`Errno::AFNOSUPPORT`](rustix::io::Errno::AFNOSUPPORT) if the kernel has none; what else it says.
    pub fn attach(connection: OwnedFd, framer: &RequestFramer) -> Result<Self> {
        let multiplexor = multiplexor()?;
        kcm::attach(multiplexor.as_fd(), connection.as_fd(), &framer.0)?;
        Ok(Self { multiplexor, connection })
    }

    /// Receives one request as a whole; what does not fit is lost.
    ///
    /// # Errors
    /// [`Errno::AGAIN`](rustix::io::Errno::AGAIN) if there is none; what else recv(2) says.
    pub fn receive(&self, into: &mut [u8]) -> Result<usize> {
        recv(&self.multiplexor, into, RecvFlags::empty()).map(|(count, _)| count)
    }

    /// Sends a reply as a whole.
    ///
    /// # Errors
    /// [`Errno::AGAIN`](rustix::io::Errno::AGAIN) if there is no room for it; what else send(2) says.
    pub fn send(&self, bytes: &[u8]) -> Result<usize> {
        send(&self.multiplexor, bytes, SendFlags::NOSIGNAL)
    }

    /// The connection: epoll sees an error on it when the peer has ended it, and none on the multiplexor.
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// Looks whether the connection is at its end.
    ///
    /// # Errors
    /// Why it is: `PIPE` if the peer is done, `PROTO`, `BADMSG` or `MSGSIZE` if
    /// it has sent what the framer does not take.
    pub fn check(&self) -> Result<()> {
        sockopt::socket_error(&self.connection)?
    }
}

impl AsFd for KcmSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.multiplexor.as_fd()
    }
}

fn multiplexor() -> Result<OwnedFd> {
    net::socket_with(AF_KCM, SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}
