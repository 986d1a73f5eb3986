//! How bytes get from and to a kernel socket.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Result;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};
use stack::transport::kernel::zerocopy::ZeroCopySocket;

/// A connection.
pub(super) trait Link: Sized {
    /// What a reader of its figures should know.
    const NOTES: &'static [&'static str] = &[];

    /// Sets an accepted socket up.
    fn new(socket: OwnedFd) -> Result<Self>;

    /// What epoll watches.
    fn socket(&self) -> BorrowedFd<'_>;

    /// Receives; 0 at the end.
    fn receive(&mut self, into: &mut [u8]) -> Result<usize>;

    /// Sends a part of `bytes`, which may change when this returns.
    fn send(&mut self, bytes: &[u8]) -> Result<usize>;

    /// Epoll saw an error on the socket.
    fn error(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A TCP socket: the kernel copies whatever is sent.
pub(super) struct Plain(OwnedFd);

impl Link for Plain {
    fn new(socket: OwnedFd) -> Result<Self> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        Ok(Self(socket))
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<usize> {
        recv(&self.0, into, RecvFlags::empty()).map(|(count, _)| count)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        send(&self.0, bytes, SendFlags::NOSIGNAL)
    }
}

/// A TCP socket from whose memory the device reads what is sent.
pub(super) struct ZeroCopy(ZeroCopySocket);

impl Link for ZeroCopy {
    const NOTES: &'static [&'static str] = &[
        "a completion is read off the error queue for each reply, or for several",
        "to a packet socket on the same machine the kernel copies after all",
    ];

    fn new(socket: OwnedFd) -> Result<Self> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        ZeroCopySocket::new(socket).map(Self)
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<usize> {
        recv(&self.0, into, RecvFlags::empty()).map(|(count, _)| count)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.send(bytes)
    }

    fn error(&mut self) -> Result<()> {
        self.0.complete()
    }
}
