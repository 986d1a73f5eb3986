//! A socket out of which whole HTTP requests come: the kernel connection multiplexor (AF_KCM,
//! Documentation/networking/kcm.rst), told by a BPF program where requests end. For comparisons.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, sockopt};

/// Longest head of a request. Much more would be too much for the kernel's verifier to walk through.
pub const MAX_HEAD_BYTES: usize = 1024;

/// linux/socket.h
const AF_KCM: AddressFamily = AddressFamily::from_raw(41);
/// linux/kcm.h: `SIOCPROTOPRIVATE + 0`
const SIOCKCMATTACH: libc::c_ulong = 0x89e0;
/// linux/bpf.h: a command of bpf(2), and a kind of program.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// The program that finds the ends of requests, loaded into the kernel.
///
/// It reads a request's head byte by byte up to the blank line, and takes the number behind `-Length:` for the
/// length of what follows. It begins at the first byte of a packet, since the kernel does not tell BPF where in a
/// packet a message begins: a client must not send a request before it has the reply to the one before.
#[derive(Debug)]
pub struct RequestFramer {
    program: OwnedFd,
}

impl RequestFramer {
    /// Loads it.
    ///
    /// # Errors
    /// What bpf(2) says: mostly that it takes CAP_BPF.
    pub fn load() -> Result<Self> {
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
        let code = program();
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

    /// Why the connection ended, as far as it has: [`Errno::PIPE`] if the peer is done.
    ///
    /// # Errors
    /// That.
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

/// The framer in the kernel's machine language (Documentation/bpf/standardization/instruction-set.rst). It returns
/// the length of the request at the start of the packets, or 0 if that is not there yet: loads beyond their end
/// return so by themselves.
fn program() -> Vec<u64> {
    /// Registers: the result, two for use in between, the packets, how many bytes are read, the last eight of them,
    /// and the length of the body.
    const RESULT: u8 = 0;
    const A: u8 = 1;
    const B: u8 = 2;
    const PACKETS: u8 = 6;
    const READ: u8 = 7;
    const LAST: u8 = 8;
    const BODY: u8 = 9;
    /// Operations.
    const MOVE: u8 = 0xbf;
    const MOVE_32: u8 = 0xbc;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const ADD_REGISTER: u8 = 0x0f;
    const SUBTRACT: u8 = 0x17;
    const MULTIPLY: u8 = 0x27;
    const SHIFT_LEFT: u8 = 0x67;
    const OR_REGISTER: u8 = 0x4f;
    const LOAD_BYTE: u8 = 0x50;
    const LOAD_WIDE: u8 = 0x18;
    const JUMP: u8 = 0x05;
    const IF_EQUAL: u8 = 0x15;
    const IF_EQUAL_REGISTER: u8 = 0x1d;
    const IF_GREATER: u8 = 0x25;
    const IF_NOT_LESS: u8 = 0x35;
    const IF_LESS: u8 = 0xa5;
    const EXIT: u8 = 0x95;
    /// Places that are jumped to.
    const NAMES: i16 = 4;
    const LOST: i16 = 18;
    const NUMBER: i16 = 20;
    const NEXT_DIGIT: i16 = 29;
    const REST: i16 = 31;
    const END: i16 = 39;

    const BLANK_LINE: i32 = i32::from_be_bytes(*b"\r\n\r\n");
    const MAX: i32 = MAX_HEAD_BYTES as i32;

    let mut code: Vec<u64> = Vec::new();
    {
        let encode = |op: u8, to: u8, from: u8, offset: i16, value: i32| {
            let value = u64::from(value.cast_unsigned());
            u64::from(op)
                | u64::from(to | from << 4) << 8
                | u64::from(offset.cast_unsigned()) << 16
                | value << 32
        };
        let wide = |to: u8, bytes: &[u8; 8]| {
            let value = u64::from_be_bytes(*bytes);
            [encode(LOAD_WIDE, to, 0, 0, value as u32 as i32), value >> 32 << 32]
        };
        let jump = |code: &mut Vec<u64>, op: u8, left: u8, right: u8, value: i32, target: i16| {
            let offset = target - code.len() as i16 - 1;
            code.push(encode(op, left, right, offset, value));
        };
        // The next byte is in RESULT, and at the end of LAST.
        let read = [
            encode(LOAD_BYTE, 0, READ, 0, 0),
            encode(ADD, READ, 0, 0, 1),
            encode(SHIFT_LEFT, LAST, 0, 0, 8),
            encode(OR_REGISTER, LAST, RESULT, 0, 0),
        ];

        code.push(encode(MOVE, PACKETS, A, 0, 0));
        code.extend([READ, LAST, BODY].map(|register| encode(SET, register, 0, 0, 0)));

        debug_assert_eq!(code.len(), NAMES as usize);
        code.extend(read);
        code.push(encode(MOVE_32, A, LAST, 0, 0));
        jump(&mut code, IF_EQUAL, A, 0, BLANK_LINE, END);
        // Letters in lower case, whatever they were.
        code.extend(wide(B, &[0x20; 8]));
        code.push(encode(MOVE, A, LAST, 0, 0));
        code.push(encode(OR_REGISTER, A, B, 0, 0));
        code.extend(wide(B, b"-length:"));
        jump(&mut code, IF_EQUAL_REGISTER, A, B, 0, NUMBER);
        jump(&mut code, IF_LESS, READ, 0, MAX, NAMES);

        debug_assert_eq!(code.len(), LOST as usize);
        code.push(encode(SET, RESULT, 0, 0, -libc::EMSGSIZE));
        code.push(encode(EXIT, 0, 0, 0, 0));

        debug_assert_eq!(code.len(), NUMBER as usize);
        code.extend(read);
        jump(&mut code, IF_EQUAL, RESULT, 0, i32::from(b' '), NEXT_DIGIT);
        code.push(encode(SUBTRACT, RESULT, 0, 0, i32::from(b'0')));
        jump(&mut code, IF_GREATER, RESULT, 0, 9, REST);
        code.push(encode(MULTIPLY, BODY, 0, 0, 10));
        code.push(encode(ADD_REGISTER, BODY, RESULT, 0, 0));
        debug_assert_eq!(code.len(), NEXT_DIGIT as usize);
        jump(&mut code, IF_LESS, READ, 0, MAX, NUMBER);
        jump(&mut code, JUMP, 0, 0, 0, LOST);

        debug_assert_eq!(code.len(), REST as usize);
        code.push(encode(MOVE_32, A, LAST, 0, 0));
        jump(&mut code, IF_EQUAL, A, 0, BLANK_LINE, END);
        jump(&mut code, IF_NOT_LESS, READ, 0, MAX, LOST);
        code.extend(read);
        jump(&mut code, JUMP, 0, 0, 0, REST);

        debug_assert_eq!(code.len(), END as usize);
        code.push(encode(MOVE, RESULT, READ, 0, 0));
        code.push(encode(ADD_REGISTER, RESULT, BODY, 0, 0));
        code.push(encode(EXIT, 0, 0, 0, 0));
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_where_jumps_lead() {
        // It checks itself as it is put together.
        assert_eq!(program().len(), 42);
    }
}
