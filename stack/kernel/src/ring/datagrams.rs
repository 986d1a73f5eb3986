//! Datagrams in and out: what stands before a payload in the buffer where the kernel puts it, and what a datagram that is
//! being sent holds until the kernel has taken it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use io_uring::types::{Fd, RecvMsgOut};
use io_uring::{opcode, squeue};
use pmem::Extent;

/// Bytes of the longest name that a sender has, and of the control message that tells where a datagram was sent to.
const NAME_BYTES: usize = size_of::<libc::sockaddr_in6>();
const CONTROL_BYTES: usize = CONTROL_HEADER_BYTES + size_of::<libc::in6_pktinfo>().next_multiple_of(8);
const CONTROL_HEADER_BYTES: usize = size_of::<libc::cmsghdr>();

/// Bytes that stand before a payload: the kernel's own header, the name, the control message.
pub(crate) const PAYLOAD_AT: usize = 16 + NAME_BYTES + CONTROL_BYTES;

/// What the kernel is told of the form in which datagrams are received.
pub(super) struct Form(libc::msghdr);

/// A received datagram, in a buffer that is no longer the ring's.
#[derive(Debug)]
pub(crate) struct Received {
    pub buffer: &'static mut [u8],
    /// Bytes of payload, which begins at [`PAYLOAD_AT`].
    pub len: usize,
    pub from: SocketAddr,
    /// The own address that it was sent to.
    pub at: IpAddr,
}

impl Form {
    pub(super) fn new() -> Self {
        let mut header = empty_header();
        header.msg_namelen = NAME_BYTES as u32;
        header.msg_controllen = CONTROL_BYTES;
        Self(header)
    }

    pub(super) fn header(&self) -> *const libc::msghdr {
        &raw const self.0
    }

    /// Reads what the kernel has written into a buffer; gives the buffer back if the datagram did not fit it.
    pub(super) fn read(&self, buffer: &'static mut [u8], len: usize) -> Result<Received, &'static mut [u8]> {
        let read = || {
            let out = RecvMsgOut::parse(buffer.get(..len)?, &self.0).ok()?;
            if out.is_payload_truncated() {
                return None;
            }
            let at = destination(out.control_data())?;
            Some((out.payload_data().len(), address(out.name_data())?, at))
        };
        match read() {
            Some((len, from, at)) => Ok(Received { buffer, len, from, at }),
            None => Err(buffer),
        }
    }
}

/// Has the kernel tell of each datagram where it was sent to.
pub(crate) fn ask_for_destinations(socket: &impl AsFd, is_v4: bool) -> io::Result<()> {
    let (level, option) = match is_v4 {
        true => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        false => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    let on: libc::c_int = 1;
    // SAFETY: the value is an integer of the length that is given, and lives until after the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket address as the kernel writes it.
fn address(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*name.first_chunk()?);
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk()?);
    let ip: IpAddr = match i32::from(family) {
        libc::AF_INET => IpAddr::from(*name.get(4..)?.first_chunk::<4>()?),
        // IPv4's addresses are the same on every socket.
        libc::AF_INET6 => IpAddr::from(*name.get(8..)?.first_chunk::<16>()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The address in the control message that tells where a datagram was sent to.
fn destination(control: &[u8]) -> Option<IpAddr> {
    let number = |at: usize| Some(i32::from_ne_bytes(*control.get(at..)?.first_chunk()?));
    let data = control.get(CONTROL_HEADER_BYTES..)?;
    match (number(8)?, number(12)?) {
        // The number of the interface and the address of the route stand before it.
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => Some(IpAddr::from(*data.get(8..)?.first_chunk::<4>()?)),
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            Some(IpAddr::from(*data.first_chunk::<16>()?).to_canonical())
        }
        _ => None,
    }
}

/// A datagram on its way: all of it stays where it is until the kernel has taken it.
pub(super) struct Sending {
    name: Name,
    control: Control,
    text: Vec<u8>,
    extents: Vec<Extent>,
    pieces: Vec<libc::iovec>,
    header: libc::msghdr,
}

enum Name {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

/// A control message with the address that a datagram is sent from.
#[repr(C, align(8))]
struct Control {
    header: libc::cmsghdr,
    data: [u8; CONTROL_BYTES - CONTROL_HEADER_BYTES],
}

/// A datagram to send by a socket for IPv4 or for IPv6, which may be IPv4's as well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    pub is_v4: bool,
    pub to: SocketAddr,
    /// The own address to send from; the kernel's choice if none.
    pub from: Option<IpAddr>,
    pub text: &'a [u8],
    pub pieces: &'a [Extent],
}

impl Sending {
    /// Takes a datagram over; returns how many bytes of it are of extents.
    pub(super) fn fill(&mut self, outgoing: &Outgoing<'_>) -> usize {
        let Outgoing { is_v4, to, from, text, pieces } = *outgoing;
        self.clear();
        self.name = Name::of(to, is_v4);
        self.text.extend_from_slice(text);
        self.extents.extend_from_slice(pieces);
        self.pieces.push(libc::iovec { iov_base: self.text.as_mut_ptr().cast(), iov_len: text.len() });
        self.pieces.extend(self.extents.iter().map(|piece| libc::iovec {
            iov_base: piece.bytes().as_ptr().cast_mut().cast(),
            iov_len: piece.len(),
        }));
        self.header = empty_header();
        if let Some(from) = from {
            self.header.msg_controllen = self.control.fill(from, is_v4);
        }
        pieces.iter().map(Extent::len).sum()
    }

    /// The entry that sends it by that socket, whose completion brings `user_data`.
    pub(super) fn entry(&mut self, socket: &impl AsFd, user_data: u64) -> squeue::Entry {
        (self.header.msg_name, self.header.msg_namelen) = match &mut self.name {
            Name::V4(name) => ((&raw mut *name).cast(), size_of::<libc::sockaddr_in>() as u32),
            Name::V6(name) => ((&raw mut *name).cast(), size_of::<libc::sockaddr_in6>() as u32),
        };
        if self.header.msg_controllen > 0 {
            self.header.msg_control = (&raw mut self.control).cast();
        }
        (self.header.msg_iov, self.header.msg_iovlen) = (self.pieces.as_mut_ptr(), self.pieces.len());
        let flags = libc::MSG_NOSIGNAL as u32;
        let entry = opcode::SendMsg::new(Fd(socket.as_fd().as_raw_fd()), &raw const self.header);
        entry.flags(flags).build().user_data(user_data)
    }

    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.extents.clear();
        self.pieces.clear();
    }
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            name: Name::of((Ipv4Addr::UNSPECIFIED, 0).into(), true),
            control: Control {
                header: libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 },
                data: [0; CONTROL_BYTES - CONTROL_HEADER_BYTES],
            },
            text: Vec::new(),
            extents: Vec::new(),
            pieces: Vec::new(),
            header: empty_header(),
        }
    }
}

impl Name {
    fn of(address: SocketAddr, is_v4: bool) -> Self {
        match address.ip() {
            IpAddr::V4(ip) if is_v4 => Self::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
                sin_zero: [0; 8],
            }),
            ip => Self::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: mapped(ip).octets() },
                sin6_scope_id: match address {
                    SocketAddr::V6(v6) => v6.scope_id(),
                    SocketAddr::V4(_) => 0,
                },
            }),
        }
    }
}

impl Control {
    /// Writes the message for a socket of that version; returns how long all of it is.
    fn fill(&mut self, from: IpAddr, is_v4: bool) -> usize {
        self.data.fill(0);
        let (level, kind, len) = match from {
            IpAddr::V4(from) if is_v4 => {
                // Behind the number of the interface.
                self.data[4..8].copy_from_slice(&from.octets());
                (libc::IPPROTO_IP, libc::IP_PKTINFO, size_of::<libc::in_pktinfo>())
            }
            from => {
                self.data[..16].copy_from_slice(&mapped(from).octets());
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, size_of::<libc::in6_pktinfo>())
            }
        };
        let cmsg_len = CONTROL_HEADER_BYTES + len;
        self.header = libc::cmsghdr { cmsg_len, cmsg_level: level, cmsg_type: kind };
        cmsg_len.next_multiple_of(8)
    }
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: an all-zero msghdr is the empty one.
    unsafe { std::mem::zeroed() }
}
