//! The stack's applications over Linux' own TCP: a real kernel, real sockets on loopback.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant as Clock};

use pmem::{Extent, Options, Region, Shard};
use stack::net::{CloseReason, ConnId, Event, Net, SendError, Transport};
use stack::time::Instant;
use stack::transport::kernel::{KernelConfig, KernelError, KernelTransport};

/// A shard in memory with at least `buffers` buffers.
fn shard(buffers: u64) -> Shard {
    let size = Some((buffers * 2176 + (4 << 20)).next_multiple_of(4096));
    let options = Options { size, log_entries: Some(1024), ..Options::default() };
    Region::open("memory:", &options).unwrap().into_shard().unwrap()
}

fn transport(config: KernelConfig, shard: &Shard) -> (KernelTransport, SocketAddr) {
    let mut transport = KernelTransport::new(config, shard.arena().clone()).unwrap();
    let address = transport.listen("127.0.0.1:0".parse().unwrap(), 128).unwrap();
    (transport, address)
}

/// Runs the transport until `done` says so of an event, or fails after a while.
fn run(transport: &mut KernelTransport, mut done: impl FnMut(&mut KernelTransport, Option<Event>) -> bool) {
    let begun = Clock::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(60), "the transport stands still: {transport:?}");
        transport.receive(Instant::ZERO).unwrap();
        while let Some(event) = transport.next_event() {
            if done(transport, Some(event)) {
                transport.transmit(Instant::ZERO).unwrap();
                return;
            }
        }
        if done(transport, None) {
            return;
        }
        if transport.transmit(Instant::ZERO).unwrap() == 0 {
            thread::yield_now();
        }
    }
}

/// Sends back what comes, until so many clients are gone; `kept` keeps the buffers of all of it from being used again.
fn echo(
    transport: &mut KernelTransport,
    shard: &Shard,
    clients: usize,
    mut kept: Option<&mut Vec<Extent>>,
) -> Vec<CloseReason> {
    let mut closed = Vec::new();
    let mut finished: Vec<ConnId> = Vec::new();
    let range = shard.arena().base() as usize..shard.arena().base() as usize + shard.arena().len_bytes();
    run(transport, |transport, event| {
        let conn = match event {
            Some(Event::Readable { conn } | Event::Writable { conn }) => conn,
            Some(Event::PeerFinished { conn }) => {
                finished.push(conn);
                conn
            }
            Some(Event::Closed { reason, .. }) => {
                closed.push(reason);
                return closed.len() == clients;
            }
            _ => return false,
        };
        while transport.send_space(conn).extents > 0
            && let Some(slot) = transport.recv(conn)
        {
            assert!(range.contains(&(slot.bytes().as_ptr() as usize)), "payload lies in a named buffer");
            let extent = slot.keep();
            if let Some(kept) = &mut kept {
                kept.push(extent.clone());
            }
            transport.send_extent(conn, extent).unwrap();
        }
        if transport.send_space(conn).extents == 0 {
            // Asks for the event that tells of room.
            let waiting = shard.arena().take().unwrap().into_extent(0, 1).unwrap();
            assert_eq!(transport.send_extent(conn, waiting), Err(SendError::Full));
        } else if finished.contains(&conn) {
            transport.finish(conn);
        }
        false
    });
    closed
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed).collect()
}

/// Everything but the ring's own buffers is free again.
fn assert_no_leak(transport: KernelTransport, shard: &Shard, before: usize) {
    assert_eq!(shard.arena().free_buffers(), before);
    drop(transport);
}

/// Has four clients send so much each, and get it back from a transport of this configuration; and how many buffers were
/// free before.
fn send_and_get_back(
    config: KernelConfig,
    shard: &Shard,
    len: usize,
    kept: Option<&mut Vec<Extent>>,
) -> (KernelTransport, usize) {
    let (mut transport, address) = transport(config, shard);
    let before = shard.arena().free_buffers();
    let clients: Vec<_> = (0..4u8)
        .map(|seed| {
            thread::spawn(move || {
                let sent = pattern(len, seed);
                let stream = TcpStream::connect(address).unwrap();
                let mut reader = stream.try_clone().unwrap();
                let reading = thread::spawn(move || {
                    let mut got = Vec::new();
                    reader.read_to_end(&mut got).unwrap();
                    got
                });
                (&stream).write_all(&sent).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                assert!(reading.join().unwrap() == sent, "client {seed} got other bytes than it sent");
            })
        })
        .collect();
    let closed = echo(&mut transport, shard, clients.len(), kept);
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(closed, [CloseReason::Finished; 4]);
    let counters = transport.counters();
    assert_eq!(counters.received_bytes, 4 * len as u64);
    assert_eq!(counters.zero_copy_bytes + counters.sent_copied_bytes, counters.received_bytes);
    (transport, before)
}

#[test]
fn bytes_come_back_as_they_were_sent_both_ways_at_once() {
    let shard = shard(4096);
    let config = KernelConfig { rx_buffers: 64, ..KernelConfig::default() };
    let (mut transport, before) = send_and_get_back(config, &shard, 8 << 20, None);
    assert_eq!(transport.counters().zero_copy_bytes, 0, "buffers that are used again are copied");
    run(&mut transport, |_, _| shard.arena().free_buffers() + 64 >= before);
    transport.receive(Instant::ZERO).unwrap();
    assert_no_leak(transport, &shard, before);
}

/// What is copied is written over by the next send: it is never among what the kernel reads later.
#[test]
fn text_between_long_sends_stays_as_it_was() {
    const ROUNDS: usize = 60;
    const PIECES: usize = 40;
    let shard = shard(512);
    let config = KernelConfig { rx_buffers: 64, sends_in_place: true, ..KernelConfig::default() };
    let (mut transport, address) = transport(config, &shard);
    let bytes = pattern(1500, 1);
    let mut buffer = shard.arena().take().unwrap();
    assert!(buffer.arrive(0, &bytes));
    let piece = buffer.into_extent(0, 1500).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        // As much as the sockets take waits to be read.
        thread::sleep(Duration::from_millis(100));
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let text = |round: usize| format!("before round {round:>8}\n").into_bytes();
    let mut sent = 0;
    run(&mut transport, |transport, event| {
        let (Some(Event::Opened { conn, .. }) | Some(Event::Writable { conn })) = event else {
            return matches!(event, Some(Event::Closed { .. }));
        };
        while sent < ROUNDS * (PIECES + 1) {
            let outcome = match sent % (PIECES + 1) {
                0 => transport.send(conn, &text(sent / (PIECES + 1))),
                _ => transport.send_extent(conn, piece.clone()),
            };
            if outcome.is_err() {
                return false;
            }
            sent += 1;
        }
        transport.finish(conn);
        false
    });
    let got = client.join().unwrap();
    let round_bytes = text(0).len() + PIECES * bytes.len();
    assert_eq!(got.len(), ROUNDS * round_bytes);
    for (round, got) in got.chunks(round_bytes).enumerate() {
        let (text_got, pieces) = got.split_at(text(0).len());
        assert_eq!(String::from_utf8_lossy(text_got), String::from_utf8_lossy(&text(round)));
        assert!(pieces.chunks(1500).all(|piece| piece == bytes), "round {round}");
    }
    assert!(transport.counters().zero_copy_bytes > 0, "long runs are not copied: {:?}", transport.counters());
}

#[test]
fn long_sends_of_what_stays_where_it_is_are_not_copied() {
    let shard = shard(8192);
    let mut kept = Vec::new();
    let config = KernelConfig { rx_buffers: 64, sends_in_place: true, ..KernelConfig::default() };
    let (mut transport, before) = send_and_get_back(config, &shard, 1 << 20, Some(&mut kept));
    assert!(transport.counters().zero_copy_bytes > 0, "{:?}", transport.counters());
    kept.clear();
    // The kernel's last notices of what it no longer reads.
    run(&mut transport, |_, _| shard.arena().free_buffers() + 64 >= before);
    transport.receive(Instant::ZERO).unwrap();
    assert_no_leak(transport, &shard, before);
}

#[test]
fn an_application_that_takes_nothing_stalls_its_peer_and_loses_nothing() {
    let shard = shard(2048);
    let config = KernelConfig { rx_buffers: 64, connection_buffers: 16, ..KernelConfig::default() };
    let (mut transport, address) = transport(config, &shard);
    let sent = pattern(16 << 20, 7);
    let expected = sent.clone();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let stalled = stream.write_all(&sent).unwrap_err();
        assert!(matches!(stalled.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{stalled}");
        stream
    });
    let mut conn = None;
    run(&mut transport, |_, event| {
        if let Some(Event::Opened { conn: opened, .. }) = event {
            conn = Some(opened);
        }
        client.is_finished()
    });
    let conn = conn.unwrap();
    let stream = client.join().unwrap();
    let held = shard.arena().buffers() - shard.arena().free_buffers();
    assert!(held <= 2 * 64 + 64 + 16, "{held} buffers are held for a connection of 16");
    let mut got = Vec::new();
    drop(stream);
    run(&mut transport, |transport, event| {
        while let Some(slot) = transport.recv(conn) {
            got.extend_from_slice(slot.bytes());
        }
        matches!(event, Some(Event::PeerFinished { .. } | Event::Closed { .. }))
    });
    while let Some(slot) = transport.recv(conn) {
        got.extend_from_slice(slot.bytes());
    }
    assert!(!got.is_empty() && expected.starts_with(&got), "what arrives is what was sent, in order");
}

#[test]
fn a_full_arena_stalls_and_goes_on_when_buffers_come_back() {
    let shard = shard(256);
    let config = KernelConfig { rx_buffers: 32, ..KernelConfig::default() };
    let (mut transport, address) = transport(config, &shard);
    let hoard: Vec<_> = std::iter::from_fn(|| shard.arena().take()).collect();
    let sent = pattern(1 << 20, 3);
    let expected = sent.clone();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let mut kept = Vec::new();
    let mut conn = None;
    run(&mut transport, |transport, event| {
        if let Some(Event::Opened { conn: opened, .. }) = event {
            conn = Some(opened);
        }
        if let Some(conn) = conn {
            kept.extend(std::iter::from_fn(|| transport.recv(conn)));
        }
        transport.counters().no_buffer > 0
    });
    drop(hoard);
    let mut got = Vec::new();
    let mut take = |slots: &mut Vec<stack::net::Slot>| {
        slots.drain(..).for_each(|slot| got.extend_from_slice(slot.bytes()))
    };
    take(&mut kept);
    run(&mut transport, |transport, event| {
        kept.extend(std::iter::from_fn(|| transport.recv(conn.unwrap())));
        take(&mut kept);
        if let Some(Event::PeerFinished { conn }) = event {
            transport.finish(conn);
        }
        matches!(event, Some(Event::Closed { .. }))
    });
    client.join().unwrap();
    assert!(got == expected, "nothing is lost and nothing comes twice");
}

#[test]
fn tiny_pieces_do_not_hold_a_buffer_each() {
    let shard = shard(2048);
    let (mut transport, address) =
        transport(KernelConfig { rx_buffers: 64, ..KernelConfig::default() }, &shard);
    let before = shard.arena().free_buffers();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    for count in 1..=200 {
        stream.write_all(&[count as u8]).unwrap();
        run(&mut transport, |transport, _| transport.counters().received_bytes >= count);
    }
    transport.receive(Instant::ZERO).unwrap();
    assert!(before - shard.arena().free_buffers() <= 16, "{:?}", shard.arena());
}

#[test]
fn an_abort_resets_and_a_reset_is_told() {
    let shard = shard(1024);
    let (mut transport, address) =
        transport(KernelConfig { rx_buffers: 64, ..KernelConfig::default() }, &shard);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"hello").unwrap();
    run(&mut transport, |transport, event| {
        if let Some(Event::Readable { conn }) = event {
            transport.abort(conn);
            assert_eq!(transport.send(conn, b"x"), Err(SendError::Closed));
        }
        matches!(event, Some(Event::Closed { reason: CloseReason::Aborted, .. }))
    });
    assert_eq!(stream.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let stream = TcpStream::connect(address).unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    let mut stream = Some(stream);
    run(&mut transport, |_, event| {
        if let Some(Event::Opened { .. }) = event {
            stream = None;
        }
        matches!(event, Some(Event::Closed { reason: CloseReason::Reset, .. }))
    });
}

#[test]
fn places_are_used_again_and_a_full_table_refuses() {
    let shard = shard(1024);
    let config = KernelConfig { max_connections: 2, rx_buffers: 64, ..KernelConfig::default() };
    let (mut transport, address) = transport(config, &shard);
    let mut names = Vec::new();
    for _ in 0..5 {
        let stream = TcpStream::connect(address).unwrap();
        let mut stream = Some(stream);
        run(&mut transport, |transport, event| {
            match event {
                Some(Event::Opened { conn, .. }) => {
                    names.push(conn);
                    stream = None;
                }
                Some(Event::PeerFinished { conn }) => transport.finish(conn),
                _ => {}
            }
            matches!(event, Some(Event::Closed { .. }))
        });
    }
    names.dedup();
    assert_eq!(names.len(), 5, "each connection has a name of its own: {names:?}");

    let held = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
    let mut third = TcpStream::connect(address).unwrap();
    run(&mut transport, |transport, _| transport.counters().refused == 1);
    assert!(third.read(&mut [0; 1]).is_err(), "the connection beyond the table is reset");
    drop(held);
}

#[test]
fn what_cannot_be_is_said() {
    let shard = shard(1024);
    let make = |config| KernelTransport::new(config, shard.arena().clone()).map(drop);
    let odd = make(KernelConfig { rx_buffers: 100, ..KernelConfig::default() });
    assert!(matches!(odd, Err(KernelError::Config { name: "rx_buffers", value: 100, .. })));
    let large = make(KernelConfig { rx_buffers: 1 << 14, ..KernelConfig::default() });
    assert!(matches!(large, Err(KernelError::Arena { needed: 16384, .. })));
    let (_transport, address) = transport(KernelConfig { rx_buffers: 64, ..KernelConfig::default() }, &shard);
    let mut second = KernelTransport::new(
        KernelConfig { rx_buffers: 64, ..KernelConfig::default() },
        shard.arena().clone(),
    )
    .unwrap();
    assert!(matches!(second.listen(address, 1), Err(KernelError::Listen { .. })));
}
