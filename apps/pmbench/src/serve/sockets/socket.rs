//! How bytes get from and to a kernel socket.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::Context as _;
use rustix::io::Result;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg, sockopt};

use super::kcm::{KcmSocket, RequestFramer};
use super::zerocopy::ZeroCopySocket;
use crate::serve::cli::ServeArgs;
use crate::serve::control::Skipped;

/// A connection.
pub(super) trait Socket: Sized {
    /// What a reader of its figures should know.
    const NOTES: &'static [&'static str] = &[];

    /// Descriptors of one.
    const DESCRIPTORS: u64 = 1;

    /// What all connections need.
    type Shared;

    /// Gets ready for connections.
    ///
    /// # Errors
    /// [`Skipped`] if this machine cannot do it; what is missing.
    fn prepare(args: &ServeArgs) -> anyhow::Result<Self::Shared>;

    /// Sets an accepted socket up.
    fn new(socket: OwnedFd, shared: &Self::Shared) -> Result<Self>;

    /// What epoll watches.
    fn watched(&self) -> BorrowedFd<'_>;

    /// Receives; 0 at the end.
    fn receive(&mut self, into: &mut [u8]) -> Result<usize>;

    /// Sends a part of `bytes`, which may change when this returns.
    fn send(&mut self, bytes: &[u8]) -> Result<usize>;

    /// Sends a part of what lies in several places, of which there is one at least.
    fn send_gathered(&mut self, slices: &[IoSlice<'_>]) -> Result<usize> {
        self.send(&slices[0])
    }

    /// What epoll watches for the connection's end alone.
    fn connection(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Epoll saw an error. [`Errno::PIPE`](rustix::io::Errno::PIPE) says that the peer is done.
    fn error(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A TCP socket: the kernel copies whatever is sent.
pub(super) struct Plain(OwnedFd);

impl Socket for Plain {
    type Shared = ();

    fn prepare(_: &ServeArgs) -> anyhow::Result<()> {
        Ok(())
    }

    fn new(socket: OwnedFd, (): &()) -> Result<Self> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        Ok(Self(socket))
    }

    fn watched(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<usize> {
        recv(&self.0, into, RecvFlags::empty()).map(|(count, _)| count)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        send(&self.0, bytes, SendFlags::NOSIGNAL)
    }

    fn send_gathered(&mut self, slices: &[IoSlice<'_>]) -> Result<usize> {
        sendmsg(&self.0, slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
    }
}

/// A TCP socket from whose memory the device reads what is sent.
pub(super) struct ZeroCopy(ZeroCopySocket);

impl Socket for ZeroCopy {
    const NOTES: &'static [&'static str] = &[
        "a completion is read off the error queue for each reply, or for several",
        "to a packet socket on the same machine the kernel copies after all",
    ];

    type Shared = ();

    fn prepare(_: &ServeArgs) -> anyhow::Result<()> {
        Ok(())
    }

    fn new(socket: OwnedFd, (): &()) -> Result<Self> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        ZeroCopySocket::new(socket).map(Self)
    }

    fn watched(&self) -> BorrowedFd<'_> {
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

/// A TCP socket behind a multiplexor, out of which whole requests come.
pub(super) struct Multiplexed(KcmSocket);

impl Socket for Multiplexed {
    const NOTES: &'static [&'static str] = &[
        "a multiplexor for each connection",
        "no pipelining: a request that comes before the last reply ends the connection",
    ];

    const DESCRIPTORS: u64 = 2;

    type Shared = RequestFramer;

    fn prepare(args: &ServeArgs) -> anyhow::Result<RequestFramer> {
        if !KcmSocket::is_supported() {
            return Err(Skipped("this kernel has no AF_KCM (CONFIG_AF_KCM)".to_owned()).into());
        }
        RequestFramer::load(args.max_record.as_u64() as u32).context(
            "cannot load the BPF program that finds the ends of requests; run as root, or with CAP_BPF and CAP_NET_ADMIN",
        )
    }

    fn new(socket: OwnedFd, framer: &RequestFramer) -> Result<Self> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        KcmSocket::attach(socket, framer).map(Self)
    }

    fn watched(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<usize> {
        self.0.receive(into)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.send(bytes)
    }

    fn connection(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.connection())
    }

    fn error(&mut self) -> Result<()> {
        self.0.check()
    }
}
