//! What connections have to send lies in memory that they share: whoever does not acknowledge leaves the others enough.

use stack::Config;
use stack::net::{ConnId, Event, SendError};

use crate::ours::config;
use crate::script::Script;
use crate::talk::Version;
use crate::wire::{ACK, SYN, seg};

/// Connections, and what one may have to send.
const PLACES: usize = 40;
const QUEUE_BYTES: usize = 4_096;
const QUEUE_EXTENTS: usize = 8;

/// Blocks of 256 bytes that the queues share at the least: twice what one can hold.
const SHARED_BLOCKS: usize = 2 * (QUEUE_BYTES / 256 + QUEUE_EXTENTS + 1);

/// What a path may take more than that: nothing, and far more than all connections together can have.
const WINDOWS: [usize; 2] = [0, 16 << 20];

/// As little is shared as can be, and a path may take so much more.
fn tight(tx_window_bytes: usize) -> Script {
    let config = Config {
        max_connections: PLACES,
        tx_bytes: QUEUE_BYTES,
        tx_extents: QUEUE_EXTENTS,
        tx_window_bytes,
        tx_shared_bytes: 0,
        tx_shared_extents: 0,
        ..config(1)
    };
    let mut s = Script::with_config(Version::V4, config);
    s.listen();
    s
}

/// A connection from a port of its own, and the stack's first number on it.
fn open(s: &mut Script, port: u16) -> (ConnId, u32) {
    while s.next().is_some() {}
    s.remote.at.set_port(port);
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    (conn, s.stack_iss)
}

/// Has the application send pieces of `len` bytes until it is refused; returns how many bytes were taken.
fn fill(s: &mut Script, conn: ConnId, len: usize) -> usize {
    let mut taken = 0;
    while s.write(conn, &vec![7; len]).is_ok() {
        taken += len;
        assert!(taken <= QUEUE_BYTES, "one connection took {taken} bytes");
    }
    taken
}

/// Peers that never acknowledge hold what the limits say and no more, and whoever comes after them is answered, time
/// after time.
#[test]
fn who_never_acknowledges_leaves_the_others_room_for_a_reply() {
    let lens = [1, 100, 256, 1_000, 3_000];
    for (len, window) in lens.into_iter().flat_map(|len| WINDOWS.map(|window| (len, window))) {
        let mut s = tight(window);
        let mut held = 0;
        for port in 1_000..1_030 {
            let (conn, _) = open(&mut s, port);
            held += fill(&mut s, conn, len);
        }
        assert!(held <= (PLACES + SHARED_BLOCKS) * 256, "{held} bytes are held in pieces of {len}");
        let (conn, iss) = open(&mut s, 2_000);
        for round in 0..20 {
            while s.next().is_some() {}
            assert_eq!(s.write(conn, &[round; 256]), Ok(()), "pieces of {len}");
            let reply = s.next().expect("the reply goes out at once");
            assert_eq!(reply.payload, [round; 256]);
            s.stack_iss = iss;
            s.send(seg(ACK, 1, 1 + 256 * (u32::from(round) + 1)));
        }
    }
}

/// Extents, too: one that is acknowledged makes room for the next, whatever the others hold.
#[test]
fn who_never_acknowledges_leaves_the_others_room_for_an_extent() {
    use stack::net::Net as _;
    for window in WINDOWS {
        let mut s = tight(window);
        let extent = s.named(b"record");
        for port in 1_000..1_030 {
            let (conn, _) = open(&mut s, port);
            let taken = (0..=QUEUE_EXTENTS).take_while(|_| s.stack.send_extent(conn, extent.clone()).is_ok());
            assert!((1..=QUEUE_EXTENTS).contains(&taken.count()));
            s.settle();
        }
        let (conn, iss) = open(&mut s, 2_000);
        for round in 1..20 {
            while s.next().is_some() {}
            assert_eq!(s.stack.send_extent(conn, extent.clone()), Ok(()));
            s.settle();
            assert_eq!(s.next().expect("it goes out at once").payload, b"record");
            s.stack_iss = iss;
            s.send(seg(ACK, 1, 1 + 6 * round));
        }
    }
}

/// Whoever has much to send and was refused for what others hold is told when they have let go of it.
#[test]
fn who_was_refused_for_the_others_sake_is_told_of_room() {
    let mut s = tight(0);
    let mut hoards = Vec::new();
    let waiting = loop {
        let port = 1_000 + hoards.len() as u16;
        let (conn, iss) = open(&mut s, port);
        match s.write(conn, &[7; 3_000]) {
            Ok(()) => hoards.push((conn, iss, port)),
            Err(error) => {
                assert_eq!(error, SendError::Full);
                break conn;
            }
        }
    };
    assert!(hoards.len() >= 2, "{} hold everything", hoards.len());
    assert_eq!(s.event(), None);
    // Those who acknowledge are told nothing: they were not refused.
    for (_, iss, port) in hoards {
        s.remote.at.set_port(port);
        s.stack_iss = iss;
        s.send(seg(ACK, 1, 3_001));
    }
    s.expect_event(Event::Writable { conn: waiting });
    assert_eq!(s.event(), None);
    assert_eq!(s.write(waiting, &[7; 3_000]), Ok(()));
}

/// However many were refused: all are told, though nothing else happens any more.
#[test]
fn all_who_were_refused_are_told_though_nothing_else_happens() {
    let mut s = tight(0);
    let (mut hoards, mut waiting) = (Vec::new(), Vec::new());
    for port in 1_000..1_000 + PLACES as u16 {
        let (conn, iss) = open(&mut s, port);
        match s.write(conn, &[7; 3_000]) {
            Ok(()) => hoards.push((iss, port)),
            Err(_) => waiting.push(conn),
        }
    }
    assert!(waiting.len() > 32, "{} were refused, which one turn may tell", waiting.len());
    let mut told = Vec::new();
    for (iss, port) in hoards {
        s.remote.at.set_port(port);
        s.stack_iss = iss;
        s.send(seg(ACK, 1, 3_001));
        told.extend(s.event());
        if !told.is_empty() {
            break;
        }
    }
    for _ in 0..3 {
        told.extend(std::iter::from_fn(|| s.event()));
        s.settle();
    }
    let expected: Vec<_> = waiting.into_iter().map(|conn| Event::Writable { conn }).collect();
    assert_eq!(told, expected);
}
