//! packetdrill's `struct packetdrill_interface`: pointers to functions that take the host as their first argument.

use std::ffi::{c_char, c_void};
use std::net::SocketAddrV4;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use libc::{
    AF_INET, EAFNOSUPPORT, EBADF, EFAULT, EINVAL, ENOPROTOOPT, ENOSYS, EPROTONOSUPPORT, F_GETFL, F_SETFL,
    IPPROTO_TCP, O_RDWR, SHUT_RD, SHUT_WR, SO_LINGER, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY,
    c_int, linger, size_t, sockaddr, sockaddr_in, socklen_t, ssize_t, timeval, useconds_t,
};

use crate::host::{Host, Outcome};

/// What packetdrill passes back with each call: the host, behind a lock since blocking calls have a thread of their own.
type Shared = Mutex<Host>;

/// A call that nothing here does.
type Unsupported = extern "C" fn() -> ssize_t;

/// The table of packetdrill.h, in its order.
#[repr(C)]
pub struct Interface {
    userdata: *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    socket: unsafe extern "C" fn(*const Shared, c_int, c_int, c_int) -> c_int,
    bind: unsafe extern "C" fn(*const Shared, c_int, *const sockaddr, socklen_t) -> c_int,
    listen: unsafe extern "C" fn(*const Shared, c_int, c_int) -> c_int,
    accept: unsafe extern "C" fn(*const Shared, c_int, *mut sockaddr, *mut socklen_t) -> c_int,
    connect: unsafe extern "C" fn(*const Shared, c_int, *const sockaddr, socklen_t) -> c_int,
    read: unsafe extern "C" fn(*const Shared, c_int, *mut c_void, size_t) -> ssize_t,
    readv: Unsupported,
    recv: unsafe extern "C" fn(*const Shared, c_int, *mut c_void, size_t, c_int) -> ssize_t,
    recvfrom: Unsupported,
    recvmsg: Unsupported,
    write: unsafe extern "C" fn(*const Shared, c_int, *const c_void, size_t) -> ssize_t,
    writev: Unsupported,
    send: unsafe extern "C" fn(*const Shared, c_int, *const c_void, size_t, c_int) -> ssize_t,
    sendto: Unsupported,
    sendmsg: Unsupported,
    fcntl: unsafe extern "C" fn(*const Shared, c_int, c_int) -> c_int,
    ioctl: Unsupported,
    close: unsafe extern "C" fn(*const Shared, c_int) -> c_int,
    shutdown: unsafe extern "C" fn(*const Shared, c_int, c_int) -> c_int,
    getsockopt: Unsupported,
    setsockopt: unsafe extern "C" fn(*const Shared, c_int, c_int, c_int, *const c_void, socklen_t) -> c_int,
    poll: Unsupported,
    netdev_send: unsafe extern "C" fn(*const Shared, *const c_void, size_t) -> c_int,
    netdev_receive: unsafe extern "C" fn(*const Shared, *mut c_void, *mut size_t, *mut i64) -> c_int,
    usleep: unsafe extern "C" fn(*const Shared, useconds_t) -> c_int,
    gettimeofday: unsafe extern "C" fn(*const Shared, *mut timeval, *mut c_void) -> c_int,
    epoll_create: Unsupported,
    epoll_ctl: Unsupported,
    epoll_wait: Unsupported,
    pipe: Unsupported,
    splice: Unsupported,
}

/// Fills in packetdrill's table. There are no flags.
///
/// # Safety
/// `interface` points to a table that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn packetdrill_interface_init(_flags: *const c_char, interface: *mut Interface) {
    let table = Interface {
        userdata: Box::into_raw(Box::new(Mutex::new(Host::new()))).cast(),
        free,
        socket,
        bind,
        listen,
        accept,
        connect,
        read,
        readv: unsupported,
        recv,
        recvfrom: unsupported,
        recvmsg: unsupported,
        write,
        writev: unsupported,
        send,
        sendto: unsupported,
        sendmsg: unsupported,
        fcntl,
        ioctl: unsupported,
        close,
        shutdown,
        getsockopt: unsupported,
        setsockopt,
        poll: unsupported,
        netdev_send,
        netdev_receive,
        usleep,
        gettimeofday,
        epoll_create: unsupported,
        epoll_ctl: unsupported,
        epoll_wait: unsupported,
        pipe: unsupported,
        splice: unsupported,
    };
    // SAFETY: the caller's promise. The table has no destructor that writing over it would skip.
    unsafe { interface.write(table) };
}

/// # Safety
/// `userdata` is that of the table, and not used again.
unsafe extern "C" fn free(userdata: *mut c_void) {
    // SAFETY: the pointer came from `Box::into_raw` in `packetdrill_interface_init`.
    drop(unsafe { Box::from_raw(userdata.cast::<Shared>()) });
}

/// Works on the host, and says what C expects: the result, or -1 and errno.
///
/// # Safety
/// `host` is the table's `userdata`.
unsafe fn with<T: TryInto<ssize_t>>(
    host: *const Shared,
    work: impl FnOnce(&mut Host) -> Outcome<T>,
) -> ssize_t {
    // SAFETY: packetdrill passes what the table holds, which lives until `free`.
    let host = unsafe { &*host };
    // The host is not `Send`: it counts references without atomics. All of them are inside, and the lock orders what
    // threads do to them.
    match work(&mut host.lock().unwrap_or_else(PoisonError::into_inner)) {
        Ok(value) => value.try_into().unwrap_or(ssize_t::MAX),
        Err(error) => fail(error),
    }
}

fn fail(error: c_int) -> ssize_t {
    // SAFETY: errno is this thread's own.
    unsafe { *libc::__errno_location() = error };
    -1
}

extern "C" fn unsupported() -> ssize_t {
    fail(ENOSYS)
}

unsafe extern "C" fn socket(host: *const Shared, domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    let open = |host: &mut Host| match (domain, kind, protocol) {
        (AF_INET, SOCK_STREAM, 0 | IPPROTO_TCP) => host.socket(),
        (AF_INET, ..) => Err(EPROTONOSUPPORT),
        _ => Err(EAFNOSUPPORT),
    };
    // SAFETY: the host is the table's.
    unsafe { with(host, open) as c_int }
}

/// The IPv4 address at `at`.
///
/// # Safety
/// `at` points to `len` bytes.
unsafe fn address(at: *const sockaddr, len: socklen_t) -> Outcome<SocketAddrV4> {
    if at.is_null() || (len as usize) < size_of::<sockaddr_in>() {
        return Err(EINVAL);
    }
    // SAFETY: there are enough bytes, and any bytes are a `sockaddr_in`.
    let address = unsafe { at.cast::<sockaddr_in>().read_unaligned() };
    if c_int::from(address.sin_family) != AF_INET {
        return Err(EAFNOSUPPORT);
    }
    Ok(SocketAddrV4::new(u32::from_be(address.sin_addr.s_addr).into(), u16::from_be(address.sin_port)))
}

unsafe extern "C" fn bind(host: *const Shared, fd: c_int, at: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the host is the table's, and the address the caller's.
    unsafe { with(host, |host| address(at, len).and_then(|at| host.bind(fd, at)).map(|()| 0)) as c_int }
}

unsafe extern "C" fn listen(host: *const Shared, fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: the host is the table's.
    unsafe { with(host, |host| host.listen(fd, backlog).map(|()| 0)) as c_int }
}

unsafe extern "C" fn accept(host: *const Shared, fd: c_int, at: *mut sockaddr, len: *mut socklen_t) -> c_int {
    let accept = |host: &mut Host| {
        let (fd, peer) = host.accept(fd)?;
        // SAFETY: all zeros is an address.
        let mut address: sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = AF_INET as u16;
        address.sin_port = peer.port().to_be();
        address.sin_addr.s_addr = u32::from(*peer.ip()).to_be();
        if !at.is_null() && !len.is_null() {
            // SAFETY: the caller says how many bytes there are, and no more are written.
            unsafe {
                let room = (*len as usize).min(size_of::<sockaddr_in>());
                at.cast::<u8>().copy_from_nonoverlapping((&raw const address).cast(), room);
                *len = size_of::<sockaddr_in>() as socklen_t;
            }
        }
        Ok(fd)
    };
    // SAFETY: the host is the table's.
    unsafe { with(host, accept) as c_int }
}

unsafe extern "C" fn connect(host: *const Shared, fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the host is the table's, and the address the caller's.
    unsafe { with(host, |host| address(to, len).and_then(|to| host.connect(fd, to)).map(|()| 0)) as c_int }
}

unsafe extern "C" fn read(host: *const Shared, fd: c_int, into: *mut c_void, len: size_t) -> ssize_t {
    if into.is_null() {
        return fail(EFAULT);
    }
    // SAFETY: the host is the table's. The caller's memory is written through a slice of zeros that it is made first.
    unsafe {
        into.cast::<u8>().write_bytes(0, len);
        with(host, |host| host.read(fd, std::slice::from_raw_parts_mut(into.cast(), len)))
    }
}

unsafe extern "C" fn recv(
    host: *const Shared,
    fd: c_int,
    into: *mut c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    if flags & !libc::MSG_DONTWAIT != 0 {
        return fail(EINVAL);
    }
    // SAFETY: as the caller's.
    unsafe { read(host, fd, into, len) }
}

unsafe extern "C" fn write(host: *const Shared, fd: c_int, from: *const c_void, len: size_t) -> ssize_t {
    if from.is_null() {
        return fail(EFAULT);
    }
    // SAFETY: the host is the table's, and the caller's memory holds so many bytes.
    unsafe { with(host, |host| host.write(fd, std::slice::from_raw_parts(from.cast(), len))) }
}

unsafe extern "C" fn send(
    host: *const Shared,
    fd: c_int,
    from: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    if flags & !(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) != 0 {
        return fail(EINVAL);
    }
    // SAFETY: as the caller's.
    unsafe { write(host, fd, from, len) }
}

/// Nothing blocks here, whatever the flags say.
unsafe extern "C" fn fcntl(host: *const Shared, fd: c_int, command: c_int) -> c_int {
    let answer = |host: &mut Host| match command {
        _ if !host.has(fd) => Err(EBADF),
        F_GETFL => Ok(O_RDWR),
        F_SETFL => Ok(0),
        _ => Err(EINVAL),
    };
    // SAFETY: the host is the table's.
    unsafe { with(host, answer) as c_int }
}

unsafe extern "C" fn close(host: *const Shared, fd: c_int) -> c_int {
    // SAFETY: the host is the table's. The descriptor is the socket's, and nothing else here closes it.
    unsafe { with(host, |host| host.close(fd).map(|()| libc::close(fd) as ssize_t)) as c_int }
}

unsafe extern "C" fn shutdown(host: *const Shared, fd: c_int, how: c_int) -> c_int {
    let shut = |host: &mut Host| host.shutdown(fd, how != SHUT_WR, how != SHUT_RD).map(|()| 0);
    // SAFETY: the host is the table's.
    unsafe { with(host, shut) as c_int }
}

unsafe extern "C" fn setsockopt(
    host: *const Shared,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    let set = |host: &mut Host| match (level, name) {
        _ if !host.has(fd) => Err(EBADF),
        // So it is already.
        (SOL_SOCKET, SO_REUSEADDR) | (IPPROTO_TCP, TCP_NODELAY) => Ok(0),
        (SOL_SOCKET, SO_LINGER) if len as usize == size_of::<linger>() => {
            // SAFETY: there are enough bytes, and any bytes are a `linger`.
            let linger = unsafe { value.cast::<linger>().read_unaligned() };
            host.reset_on_close(fd, linger.l_onoff != 0 && linger.l_linger == 0).map(|()| 0)
        }
        _ => Err(ENOPROTOOPT),
    };
    // SAFETY: the host is the table's.
    unsafe { with(host, set) as c_int }
}

unsafe extern "C" fn netdev_send(host: *const Shared, packet: *const c_void, len: size_t) -> c_int {
    let send = |host: &mut Host| {
        // SAFETY: the caller's memory holds so many bytes.
        host.packet(unsafe { std::slice::from_raw_parts(packet.cast(), len) });
        Ok(0)
    };
    // SAFETY: the host is the table's.
    unsafe { with(host, send) as c_int }
}

/// A length of 0 is what packetdrill takes for an error, which ends the script.
unsafe extern "C" fn netdev_receive(
    host: *const Shared,
    into: *mut c_void,
    len: *mut size_t,
    at: *mut i64,
) -> c_int {
    let receive = |host: &mut Host| {
        let (now, packet) = host.next_packet().unwrap_or((host.now(), vec![]));
        // SAFETY: the caller says how many bytes there are, and no more are written.
        unsafe {
            *len = packet.len().min(*len);
            into.cast::<u8>().copy_from_nonoverlapping(packet.as_ptr(), *len);
            *at = now.as_micros();
        }
        Ok(0)
    };
    // SAFETY: the host is the table's.
    unsafe { with(host, receive) as c_int }
}

unsafe extern "C" fn usleep(host: *const Shared, time_us: useconds_t) -> c_int {
    let sleep = |host: &mut Host| {
        host.sleep(Duration::from_micros(time_us.into()));
        Ok(0)
    };
    // SAFETY: the host is the table's.
    unsafe { with(host, sleep) as c_int }
}

unsafe extern "C" fn gettimeofday(host: *const Shared, at: *mut timeval, _zone: *mut c_void) -> c_int {
    let look = |host: &mut Host| {
        let now = host.look_at_clock().as_micros();
        // SAFETY: the caller's memory is a `timeval`.
        unsafe { at.write(timeval { tv_sec: now / 1_000_000, tv_usec: now % 1_000_000 }) };
        Ok(0)
    };
    // SAFETY: the host is the table's.
    unsafe { with(host, look) as c_int }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;
    use std::ptr;

    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        IpAddress, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr,
        TcpSeqNumber,
    };

    use super::*;

    const LOCAL: Ipv4Address = Ipv4Address::new(192, 168, 0, 1);
    const REMOTE: Ipv4Address = Ipv4Address::new(192, 0, 2, 1);

    /// A segment from the remote as an IPv4 packet.
    fn packet(control: TcpControl, seq: i32, ack: Option<TcpSeqNumber>, payload: &[u8]) -> Vec<u8> {
        let tcp = TcpRepr {
            src_port: 40_000,
            dst_port: 8_080,
            control,
            seq_number: TcpSeqNumber(seq),
            ack_number: ack,
            window_len: 10_000,
            window_scale: None,
            max_seg_size: (control == TcpControl::Syn).then_some(1_000),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        let (next_header, payload_len) = (IpProtocol::Tcp, tcp.buffer_len());
        let ip = Ipv4Repr { src_addr: REMOTE, dst_addr: LOCAL, next_header, payload_len, hop_limit: 64 };
        let mut bytes = vec![0; ip.buffer_len() + payload_len];
        let checksums = ChecksumCapabilities::default();
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &checksums);
        let (from, to) = (IpAddress::from(REMOTE), IpAddress::from(LOCAL));
        tcp.emit(&mut TcpPacket::new_unchecked(&mut bytes[ip.buffer_len()..]), &from, &to, &checksums);
        bytes
    }

    /// As packetdrill does: through the table and nothing else.
    #[test]
    fn a_connection_is_accepted_read_written_and_closed_through_the_table() {
        let mut table = MaybeUninit::uninit();
        // SAFETY: the table is written, and its functions get its own `userdata` and memory of this test.
        unsafe {
            packetdrill_interface_init(ptr::null(), table.as_mut_ptr());
            let table = table.assume_init();
            let host = table.userdata.cast::<Shared>().cast_const();
            let inject = |packet: Vec<u8>| {
                assert_eq!((table.netdev_send)(host, packet.as_ptr().cast(), packet.len()), 0)
            };
            let sniff = || {
                let (mut bytes, mut at) = (vec![0; 2_048], 0);
                let mut len = bytes.len();
                assert_eq!(
                    (table.netdev_receive)(host, bytes.as_mut_ptr().cast(), &raw mut len, &raw mut at),
                    0
                );
                bytes.truncate(len);
                let ip = Ipv4Packet::new_checked(&bytes[..]).expect("the packet is whole");
                let tcp = TcpPacket::new_checked(ip.payload()).expect("the segment is whole");
                (tcp.syn(), tcp.fin(), tcp.seq_number(), tcp.ack_number(), tcp.payload().to_vec(), at)
            };

            let listener = (table.socket)(host, AF_INET, SOCK_STREAM, IPPROTO_TCP);
            let mut at: sockaddr_in = std::mem::zeroed();
            (at.sin_family, at.sin_port) = (AF_INET as u16, 8_080_u16.to_be());
            at.sin_addr.s_addr = u32::from(LOCAL).to_be();
            assert_eq!(
                (table.bind)(host, listener, (&raw const at).cast(), size_of::<sockaddr_in>() as u32),
                0
            );
            assert_eq!((table.listen)(host, listener, 1), 0);
            assert_eq!((table.accept)(host, listener, ptr::null_mut(), ptr::null_mut()), -1);

            inject(packet(TcpControl::Syn, 0, None, b""));
            let (syn, _, iss, ack, ..) = sniff();
            assert_eq!((syn, ack), (true, TcpSeqNumber(1)));
            inject(packet(TcpControl::Psh, 1, Some(iss + 1), b"question"));
            let conn = (table.accept)(host, listener, ptr::null_mut(), ptr::null_mut());
            assert!(conn >= 0 && conn != listener, "{conn}");

            let mut bytes = [0; 100];
            assert_eq!((table.read)(host, conn, bytes.as_mut_ptr().cast(), 100), 8);
            assert_eq!(&bytes[..8], b"question");
            assert_eq!((table.read)(host, conn, bytes.as_mut_ptr().cast(), 100), -1);
            assert_eq!(*libc::__errno_location(), libc::EAGAIN);
            // The first of a connection's segments are acknowledged at once.
            let (_, _, seq, ack, payload, _) = sniff();
            assert_eq!((seq, ack, payload.len()), (iss + 1, TcpSeqNumber(9), 0));
            assert_eq!((table.write)(host, conn, b"answer".as_ptr().cast(), 6), 6);
            let (_, _, seq, ack, payload, sent_us) = sniff();
            assert_eq!((seq, ack, &payload[..]), (iss + 1, TcpSeqNumber(9), &b"answer"[..]));
            // Nobody acknowledges it, and it comes again, after a time that has not passed.
            let (_, _, seq, _, payload, again_us) = sniff();
            assert_eq!((seq, &payload[..]), (iss + 1, &b"answer"[..]));
            assert!((200_000..=3_100_000).contains(&(again_us - sent_us)), "after {} us", again_us - sent_us);

            inject(packet(TcpControl::None, 9, Some(iss + 7), b""));
            assert_eq!((table.close)(host, conn), 0);
            assert!(sniff().1, "FIN is sent");
            assert_eq!((table.close)(host, conn), -1);
            assert_eq!((table.close)(host, listener), 0);
            assert_eq!((table.poll)(), -1);
            assert_eq!(*libc::__errno_location(), ENOSYS);
            (table.free)(table.userdata);
        }
    }
}
