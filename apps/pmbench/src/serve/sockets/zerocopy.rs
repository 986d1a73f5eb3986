//! A socket whose sends the kernel does not copy: MSG_ZEROCOPY, with completions on the error queue
//! (Documentation/networking/msg_zerocopy.rst). Each send is pinned, and each completion is read by a system call of its
//! own or shares one.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::libc::{self, sock_extended_err, sockaddr_in6};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt};
use nix::{setsockopt_impl, sockopt_impl};
use rustix::io::{Errno, Result};
use rustix::net::{SendFlags, send};

/// Sends that may be on their way at a time.
const SLOTS: usize = 64;
/// Bytes of each at most.
const SLOT_BYTES: usize = 1024;

/// A connected TCP socket, and the memory that its sends are made from.
#[derive(Debug)]
pub struct ZeroCopySocket {
    socket: OwnedFd,
    slots: Box<[[u8; SLOT_BYTES]]>,
    /// Which slots the kernel may still read.
    busy: u64,
    /// The number that the kernel gives to the next send.
    next: u32,
    /// Room for a control message of the error queue.
    control: Vec<u8>,
}

sockopt_impl!(
    /// Whether sends may be made without a copy.
    ZeroCopyAllowed,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_ZEROCOPY,
    bool
);

impl ZeroCopySocket {
    /// Takes over a socket.
    ///
    /// # Errors
    /// The kernel cannot do it (Linux 4.14 can).
    pub fn new(socket: OwnedFd) -> Result<Self> {
        setsockopt(&socket, ZeroCopyAllowed, &true).map_err(errno)?;
        let control = nix::cmsg_space!(sock_extended_err, sockaddr_in6);
        let slots = vec![[0; SLOT_BYTES]; SLOTS].into();
        Ok(Self { socket, slots, busy: 0, next: 0, control })
    }

    /// Sends as much of `bytes` as fits one slot: they are put there, and read from there by the device. Returns
    /// how many the kernel took.
    ///
    /// # Errors
    /// [`Errno::AGAIN`] while the next slot is on its way, or the kernel has no room; what else send(2) says.
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        let place = self.next as usize % SLOTS;
        if self.busy & 1 << place != 0 {
            self.complete()?;
            if self.busy & 1 << place != 0 {
                return Err(Errno::AGAIN);
            }
        }
        let slot = &mut self.slots[place][..bytes.len().min(SLOT_BYTES)];
        slot.copy_from_slice(&bytes[..slot.len()]);
        let flags = SendFlags::NOSIGNAL | SendFlags::from_bits_retain(libc::MSG_ZEROCOPY as u32);
        let sent = send(&self.socket, slot, flags).map_err(|error| match error {
            // Too many completions are not read yet, or the limit of locked memory is reached.
            Errno::NOBUFS => Errno::AGAIN,
            error => error,
        })?;
        self.busy |= 1 << place;
        self.next = self.next.wrapping_add(1);
        Ok(sent)
    }

    /// Reads all completions that wait, and so makes their slots free.
    ///
    /// # Errors
    /// What recvmsg(2) says.
    pub fn complete(&mut self) -> Result<()> {
        loop {
            let notice = match read_notice(self.socket.as_fd(), &mut self.control) {
                Ok(notice) => notice,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            };
            let Some(Notice { first, last }) = notice else { continue };
            let count = last.wrapping_sub(first).saturating_add(1).min(SLOTS as u32);
            for number in 0..count {
                self.busy &= !(1 << (first.wrapping_add(number) as usize % SLOTS));
            }
        }
    }
}

impl AsFd for ZeroCopySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A range of sends that are complete.
struct Notice {
    first: u32,
    last: u32,
}

/// The next message of the error queue; none if it is about something else.
fn read_notice(socket: BorrowedFd<'_>, control: &mut [u8]) -> Result<Option<Notice>> {
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut [], Some(control), flags).map_err(errno)?;
    let Some(ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _)) =
        message.cmsgs().map_err(errno)?.next()
    else {
        return Ok(None);
    };
    let is_completion = error.ee_errno == 0 && error.ee_origin == SO_EE_ORIGIN_ZEROCOPY;
    Ok(is_completion.then_some(Notice { first: error.ee_info, last: error.ee_data }))
}

/// linux/errqueue.h
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(error as i32)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn every_send_completes_and_arrives() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (socket, _) = listener.accept().expect("a connection");
        let mut socket = ZeroCopySocket::new(socket.into()).expect("the kernel can");
        let rounds = 3 * SLOTS;
        for number in 0..rounds {
            let bytes = [number as u8; 100];
            // A local peer has what was sent when it reads it, and then the kernel has released it.
            assert_eq!(socket.send(&bytes), Ok(100), "send {number}");
            let mut got = [0; 100];
            peer.read_exact(&mut got).expect("sent");
            assert_eq!(got, bytes);
            rustix::event::poll(
                &mut [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::ERR)],
                None,
            )
            .expect("a completion");
            socket.complete().expect("an error queue");
            assert_eq!(socket.busy, 0, "send {number} is complete");
        }
    }

    #[test]
    fn slots_that_are_on_their_way_are_not_reused() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let _peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (socket, _) = listener.accept().expect("a connection");
        let mut socket = ZeroCopySocket::new(socket.into()).expect("the kernel can");
        socket.busy = u64::MAX;
        assert_eq!(socket.send(b"now"), Err(Errno::AGAIN));
        socket.busy = 0;
        assert_eq!(socket.send(&[1; SLOT_BYTES + 1]), Ok(SLOT_BYTES));
    }
}
