//! The two system calls of the kernel connection multiplexor (AF_KCM, Documentation/networking/kcm.rst) that rustix has
//! no safe form of: for comparisons, which have the rest of it.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::{Errno, Result};

/// linux/kcm.h: `SIOCPROTOPRIVATE + 0`
const SIOCKCMATTACH: libc::c_ulong = 0x89e0;
/// linux/bpf.h: a command of bpf(2), and a kind of program.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// A BPF program over packets, loaded into the kernel.
#[derive(Debug)]
pub struct SocketFilter(OwnedFd);

impl SocketFilter {
    /// Loads a program, an instruction in each number. The kernel's verifier takes none that could do harm.
    ///
    /// # Errors
    /// What bpf(2) says: [`Errno::PERM`] without CAP_BPF.
    pub fn load(code: &[u64]) -> Result<Self> {
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
        Ok(Self(unsafe { OwnedFd::from_raw_fd(result as i32) }))
    }
}

/// Puts a multiplexor before a connection, whose messages end where the filter says.
///
/// # Errors
/// What the kernel says.
pub fn attach(multiplexor: BorrowedFd<'_>, connection: BorrowedFd<'_>, filter: &SocketFilter) -> Result<()> {
    #[repr(C)]
    struct Attach {
        connection: libc::c_int,
        program: libc::c_int,
    }
    let attach = Attach { connection: connection.as_raw_fd(), program: filter.0.as_raw_fd() };
    // SAFETY: this request reads two descriptors, and takes references of its own to what they stand for.
    let result = unsafe { libc::ioctl(multiplexor.as_raw_fd(), SIOCKCMATTACH, &raw const attach) };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
