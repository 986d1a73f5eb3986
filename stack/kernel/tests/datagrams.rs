//! Datagrams over Linux' own UDP: a real kernel, real sockets on loopback.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant as Clock};

use pmem::{Extent, Options, Region, Shard};
use stack::net::{DatagramError, Event, Net, Remote, Transport, UdpPort};
use stack::time::Instant;
use stack::transport::kernel::{KernelConfig, KernelTransport};

const RX_BUFFERS: u16 = 64;

/// A shard in memory with some 2,000 buffers.
fn shard() -> Shard {
    let options = Options { size: Some(8 << 20), log_entries: Some(1024), ..Options::default() };
    Region::open("memory:", &options).unwrap().into_shard().unwrap()
}

fn bound(shard: &Shard, address: &str) -> (KernelTransport, UdpPort, SocketAddr) {
    let config = KernelConfig { rx_buffers: RX_BUFFERS, ..KernelConfig::default() };
    let mut transport = KernelTransport::new(config, shard.arena().clone()).unwrap();
    let (port, address) = transport.bind_udp(address.parse().unwrap()).unwrap();
    (transport, port, address)
}

fn client(of: SocketAddr) -> UdpSocket {
    let any = if of.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let client = UdpSocket::bind(any).unwrap();
    client.connect(of).unwrap();
    client.set_nonblocking(true).unwrap();
    client
}

/// Runs the transport until `done` says so, or fails after a while.
fn run(transport: &mut KernelTransport, mut done: impl FnMut(&mut KernelTransport, Option<Event>) -> bool) {
    let begun = Clock::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(60), "the transport stands still: {transport:?}");
        transport.receive(Instant::from_micros(begun.elapsed().as_micros() as i64)).unwrap();
        while let Some(event) = transport.next_event() {
            if done(transport, Some(event)) {
                return;
            }
        }
        transport.transmit(Instant::ZERO).unwrap();
        if done(transport, None) {
            return;
        }
        std::thread::yield_now();
    }
}

/// Sends back what comes, from where it lies behind a word, until the client has an answer.
fn answer(transport: &mut KernelTransport, shard: &Shard, client: &UdpSocket) -> Vec<u8> {
    let range = shard.arena().base() as usize..shard.arena().base() as usize + shard.arena().len_bytes();
    let mut answer = vec![0; 70_000];
    let mut len = None;
    run(transport, |transport, event| {
        if let Some(Event::Datagrams { port }) = event {
            while let Some(datagram) = transport.recv_datagram(port) {
                let at = datagram.bytes().as_ptr() as usize;
                assert!(range.contains(&at), "payload lies in a named buffer");
                transport.send_datagram(port, datagram.from(), b"you said ", &[datagram.keep()]).unwrap();
            }
        }
        len = client.recv(&mut answer).ok();
        len.is_some()
    });
    answer.truncate(len.unwrap());
    answer
}

/// Whatever the port is bound to: the client is connected, so that it hears nobody but whom it has asked.
#[test]
fn each_is_answered_from_the_address_that_it_was_sent_to() {
    for (own, asked) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.77"),
        ("[::1]:0", "::1"),
        ("[::]:0", "::1"),
        ("[::]:0", "127.0.0.77"),
    ] {
        let shard = shard();
        let (mut transport, _, address) = bound(&shard, own);
        let free = shard.arena().free_buffers();
        let client = client(SocketAddr::new(asked.parse().unwrap(), address.port()));
        for text in [&b""[..], b"x", &[7; 1_000]] {
            client.send(text).unwrap();
            assert_eq!(
                answer(&mut transport, &shard, &client),
                [b"you said ", text].concat(),
                "{own} {asked}"
            );
        }
        assert_eq!(transport.counters().datagrams, 3);
        transport.receive(Instant::ZERO).unwrap();
        assert_eq!(shard.arena().free_buffers(), free, "buffers are lost");
    }
}

#[test]
fn what_no_buffer_holds_is_dropped_and_counted() {
    let shard = shard();
    let (mut transport, _, address) = bound(&shard, "127.0.0.1:0");
    let client = client(address);
    // 84 bytes are the kernel's.
    let longest = shard.arena().buffer_bytes() - 84;
    for len in [longest + 1, 60_000, longest] {
        client.send(&vec![7; len]).unwrap();
    }
    assert_eq!(answer(&mut transport, &shard, &client).len(), longest + 9);
    assert_eq!((transport.counters().datagrams, transport.counters().datagrams_too_long), (1, 2));
}

/// The kernel cuts into fragments what no frame holds.
#[test]
fn long_datagrams_are_sent() {
    let shard = shard();
    let (mut transport, port, address) = bound(&shard, "127.0.0.1:0");
    let client = client(address);
    let piece = |byte: u8| {
        let mut buffer = shard.arena().take().unwrap();
        assert!(buffer.arrive(0, &[byte; 2_000]));
        buffer.into_extent(0, 2_000).unwrap()
    };
    let pieces: Vec<Extent> = (1..=8).map(piece).collect();
    let to = Remote::from(client.local_addr().unwrap());
    transport.send_datagram(port, to, b"head", &pieces).unwrap();
    let expected =
        [b"head".to_vec(), pieces.iter().flat_map(|piece| piece.bytes().to_vec()).collect()].concat();
    let mut got = vec![0; 70_000];
    let mut len = None;
    run(&mut transport, |_, _| {
        len = client.recv(&mut got).ok();
        len.is_some()
    });
    assert!(got[..len.unwrap()] == expected, "other bytes came");
}

/// The application takes nothing: so many wait, and the others are dropped; then it goes on.
#[test]
fn a_port_that_nobody_reads_holds_so_many_datagrams_and_no_more() {
    let shard = shard();
    let (mut transport, port, address) = bound(&shard, "127.0.0.1:0");
    let free = shard.arena().free_buffers();
    let client = client(address);
    run(&mut transport, |transport, _| {
        let _ = client.send(b"flood");
        transport.counters().datagrams_dropped >= 100
    });
    assert_eq!(transport.counters().datagrams, u64::from(RX_BUFFERS));
    assert!(free - shard.arena().free_buffers() <= 2 * usize::from(RX_BUFFERS));
    assert_eq!(std::iter::from_fn(|| transport.recv_datagram(port)).count(), RX_BUFFERS.into());
    let mut is_served = false;
    run(&mut transport, |transport, _| {
        let _ = client.send(b"again");
        is_served |= transport.recv_datagram(port).is_some_and(|datagram| datagram.bytes() == b"again");
        is_served
    });
}

/// No buffer is free, and the ring has given its own away; when there are some again the port goes on.
#[test]
fn a_port_goes_on_when_there_are_buffers_again() {
    let shard = shard();
    let (mut transport, port, address) = bound(&shard, "127.0.0.1:0");
    let client = client(address);
    let taken: Vec<_> = std::iter::from_fn(|| shard.arena().take()).collect();
    let mut kept = Vec::new();
    run(&mut transport, |transport, _| {
        let _ = client.send(b"more");
        kept.extend(transport.recv_datagram(port).map(|datagram| datagram.keep()));
        transport.counters().no_buffer > 0
    });
    drop(taken);
    let so_far = transport.counters().datagrams;
    run(&mut transport, |transport, _| {
        let _ = client.send(b"more");
        transport.recv_datagram(port);
        transport.counters().datagrams > so_far + 100
    });
}

#[test]
fn what_cannot_be_sent_is_refused_with_the_reason() {
    let shard = shard();
    let (mut transport, port, address) = bound(&shard, "127.0.0.1:0");
    let client = client(address);
    let to = Remote::from(client.local_addr().unwrap());
    let extent = || shard.arena().take().unwrap().into_extent(0, 9).unwrap();
    let mut send = |to: Remote, text: &[u8], pieces: usize| {
        let pieces: Vec<_> = (0..pieces).map(|_| extent()).collect();
        transport.send_datagram(port, to, text, &pieces)
    };
    assert_eq!(send(to, &[0; 65_508], 0), Err(DatagramError::TooLong { bytes: 65_508, most: 65_507 }));
    assert_eq!(send(to, b"", 9), Err(DatagramError::TooManyPieces(9)));
    for bad in ["127.0.0.1:0", "[::1]:9", "0.0.0.0:9", "224.0.0.1:9"] {
        let bad: SocketAddr = bad.parse().unwrap();
        assert_eq!(send(bad.into(), b"", 0), Err(DatagramError::BadRemote(bad)));
    }
    for _ in 0..KernelConfig::default().tx_datagrams {
        assert_eq!(send(to, b"", 1), Ok(()));
    }
    assert_eq!(send(to, b"", 0), Err(DatagramError::Full));
    let other = UdpPort { index: 1 };
    assert_eq!(transport.send_datagram(other, to, b"", &[]), Err(DatagramError::NotBound(other)));
    assert!(transport.recv_datagram(other).is_none());
    let error = transport.bind_udp(address).unwrap_err().to_string();
    assert!(error.contains(&format!("cannot bind UDP {address}")), "{error}");
}

/// Several transports share an address, and the kernel gives each datagram to one of them.
#[test]
fn transports_share_an_address() {
    let (one, other) = (shard(), shard());
    let config = KernelConfig { rx_buffers: RX_BUFFERS, ..KernelConfig::default() };
    let mut transports =
        [&one, &other].map(|shard| KernelTransport::new(config, shard.arena().clone()).unwrap());
    let (_, address) = transports[0].bind_udp_shared("127.0.0.1:0".parse().unwrap()).unwrap();
    transports[1].bind_udp_shared(address).unwrap();
    let clients: Vec<_> = (0..64).map(|_| client(address)).collect();
    clients.iter().for_each(|client| assert_eq!(client.send(b"x").unwrap(), 1));
    let [first, second] = &mut transports;
    run(first, |first, _| {
        second.receive(Instant::ZERO).unwrap();
        first.counters().datagrams + second.counters().datagrams == 64
    });
    assert!(first.counters().datagrams > 0 && second.counters().datagrams > 0, "one has all of them");
}
