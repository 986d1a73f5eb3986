//! A socket out of which whole HTTP requests come: the kernel connection multiplexor (AF_KCM,
//! Documentation/networking/kcm.rst), told by a BPF program where requests end. For comparisons.

#![allow(unsafe_code)]

mod framer;

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, sockopt};

/// linux/socket.h
const AF_KCM: AddressFamily = AddressFamily::from_raw(41);
/// linux/kcm.h: `SIOCPROTOPRIVATE + 0`
const SIOCKCMATTACH: libc::c_ulong = 0x89e0;
/// linux/bpf.h: a command of bpf(2), and a kind of program.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// The program that finds the ends of requests, loaded into the kernel.
///
/// A request's head has 1024 bytes at most, and `Content-Length` once, or not at all if there is no body. A client
/// must not send a request before it has the reply to the one before. Whoever does otherwise loses the connection.
#[derive(Debug)]
pub struct RequestFramer {
    program: OwnedFd,
}

impl RequestFramer {
    /// Loads it, for requests with bodies of up to `max_body_bytes`.
    ///
    /// # Errors
    /// What bpf(2) says: [`Errno::PERM`] without CAP_BPF.
    pub fn load(max_body_bytes: u32) -> Result<Self> {
        #[repr(C)]
        struct Attributes {
            kind: u32,
            instructions: u32,
            code: u64,
            license: u64,
            log_level: u32,
            log_bytes: u32,
            log: u64,
            version: u32,
            flags: u32,
        }
        let code = framer::program(max_body_bytes);
        let attributes = Attributes {
            kind: BPF_PROG_TYPE_SOCKET_FILTER,
            instructions: code.len() as u32,
            code: code.as_ptr().expose_provenance() as u64,
            license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
            log_level: 0,
            log_bytes: 0,
            log: 0,
            version: 0,
            flags: 0,
        };
        // SAFETY: the attributes are those of this command, as far as their length says; what they point to lives
        // until after the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<Attributes>())
        };
        if result < 0 {
            return Err(last_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self { program: unsafe { OwnedFd::from_raw_fd(result as i32) } })
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
    /// [`Errno::AFNOSUPPORT`] if the kernel has none; what else it says.
    pub fn attach(connection: OwnedFd, framer: &RequestFramer) -> Result<Self> {
        #[repr(C)]
        struct Attach {
            connection: libc::c_int,
            program: libc::c_int,
        }
        let multiplexor = multiplexor()?;
        let attach = Attach { connection: connection.as_raw_fd(), program: framer.program.as_raw_fd() };
        // SAFETY: this request reads two descriptors, and takes references of its own to what they stand for.
        let result = unsafe { libc::ioctl(multiplexor.as_raw_fd(), SIOCKCMATTACH, &raw const attach) };
        if result < 0 { Err(last_error()) } else { Ok(Self { multiplexor, connection }) }
    }

    /// Receives one request as a whole; what does not fit is lost.
    ///
    /// # Errors
    /// [`Errno::AGAIN`] if there is none; what else recv(2) says.
    pub fn receive(&self, into: &mut [u8]) -> Result<usize> {
        recv(&self.multiplexor, into, RecvFlags::empty()).map(|(count, _)| count)
    }

    /// Sends a reply as a whole.
    ///
    /// # Errors
    /// [`Errno::AGAIN`] if there is no room for it; what else send(2) says.
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
    /// Why it is: [`Errno::PIPE`] if the peer is done, [`Errno::PROTO`], [`Errno::BADMSG`] or [`Errno::MSGSIZE`] if
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

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
