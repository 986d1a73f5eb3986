//! Requests to the key-value store: any bytes, in segments of any length, from a client that reads in parts. What was done is
//! in the log, too.

use std::collections::VecDeque;

use pmem::{Extent, MEMORY, Options, Region, Shard};
use pmkv::server::Config;
use pmkv::service::KvService;
use stack::net::{CloseReason, ConnId, Event, Net, SendError, SendSpace, Service as _, Slot};
use stack::time::Instant;

/// Where a segment's payload begins in its buffer.
const PAYLOAD_OFFSET: usize = 200;
const CLIENT: ConnId = ConnId { index: 0, generation: 0 };
/// What the client takes at a time.
const ROOM_BYTES: usize = 3000;

/// One client's side of the network.
#[derive(Default)]
struct Wire {
    arrived: VecDeque<Slot>,
    sent: Vec<u8>,
    room: usize,
    has_ended: bool,
}

impl Wire {
    fn take(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        if self.has_ended {
            return Err(SendError::Closed);
        }
        self.room = self.room.checked_sub(bytes.len()).ok_or(SendError::Full)?;
        self.sent.extend_from_slice(bytes);
        Ok(())
    }
}

impl Net for Wire {
    fn recv(&mut self, _: ConnId) -> Option<Slot> {
        self.arrived.pop_front()
    }

    fn send_space(&self, _: ConnId) -> SendSpace {
        SendSpace { bytes: self.room, extents: 1 }
    }

    fn send(&mut self, _: ConnId, bytes: &[u8]) -> Result<(), SendError> {
        self.take(bytes)
    }

    fn send_extent(&mut self, _: ConnId, extent: Extent) -> Result<(), SendError> {
        self.take(extent.bytes())
    }

    fn finish(&mut self, _: ConnId) {
        self.has_ended = true;
    }

    fn abort(&mut self, _: ConnId) {
        self.has_ended = true;
        self.arrived.clear();
    }
}

fn service(shard: &Shard) -> KvService {
    let config = Config { max_clients: 2, ..Config::default() };
    KvService::open(config, shard, false, || 1_800_000_000_000).expect("what it has written can be read")
}

/// Sends what follows the first byte, which tells how long segments are.
pub(crate) fn run(bytes: &[u8]) {
    let Some((len, text)) = bytes.split_first() else { return };
    let options = Options { size: Some(2 << 20), max_record_bytes: u32::MAX, ..Options::default() };
    let mut shard = Region::open(MEMORY, &options).expect("memory").into_shard().expect("a new store opens");
    let free = shard.arena().free_buffers();
    let mut service = service(&shard);
    let mut wire = Wire::default();
    let peer = ([10, 0, 0, 1], 4000).into();
    service.event(Event::Opened { conn: CLIENT, peer }, &mut wire, &mut shard);
    // As many lengths as there are, and more for long texts.
    let segment_bytes = 1 + usize::from(*len) + text.len() / 64;
    for segment in text.chunks(segment_bytes.min(1448)) {
        let mut buffer = shard.arena().take().expect("a buffer for the network");
        assert!(buffer.arrive(PAYLOAD_OFFSET, segment));
        let extent = buffer.into_extent(PAYLOAD_OFFSET as u16, segment.len() as u16).expect("in bounds");
        if !wire.has_ended {
            wire.arrived.push_back(Slot::new(extent));
        }
        turn(&mut service, &mut wire, &mut shard, Event::Readable { conn: CLIENT });
    }
    turn(&mut service, &mut wire, &mut shard, Event::PeerFinished { conn: CLIENT });
    // It reads all that is left.
    let mut sent = usize::MAX;
    while std::mem::replace(&mut sent, wire.sent.len()) != wire.sent.len() {
        turn(&mut service, &mut wire, &mut shard, Event::Writable { conn: CLIENT });
    }
    assert!(wire.has_ended, "the connection does not end");
    check_replies(&wire.sent);
    wire.arrived.clear();
    service.event(Event::Closed { conn: CLIENT, reason: CloseReason::Finished }, &mut wire, &mut shard);
    check_log(service, shard, free);
}

/// An event, and the burst's end.
fn turn(service: &mut KvService, wire: &mut Wire, shard: &mut Shard, event: Event) {
    wire.room = ROOM_BYTES;
    service.event(event, wire, shard);
    loop {
        while shard.uncommitted() {
            let durable = shard.commit().expect("memory does not fail");
            service.committed(&durable, wire, shard);
        }
        service.between_bursts(Instant::ZERO, wire, shard);
        if !shard.uncommitted() {
            break;
        }
    }
    assert_eq!(service.failure(), None);
}

/// The log tells what the index holds, and no buffer is held that neither has.
fn check_log(before: KvService, shard: Shard, free: usize) {
    let (keys, expiring) = (before.store().len(), before.store().expiring());
    let all = |service: &KvService| {
        let mut all: Vec<_> = service
            .store()
            .iter()
            .map(|(key, entry)| (key.to_vec(), entry.object.kind(), entry.expires_ms))
            .collect();
        all.sort();
        all
    };
    let expected = all(&before);
    drop(before);
    let again = service(&shard);
    assert_eq!(all(&again), expected, "the log tells of other keys");
    assert_eq!((again.store().len(), again.store().expiring()), (keys, expiring));
    let logged = shard.counters().pm_bytes as usize / shard.arena().buffer_bytes() + 1;
    assert!(shard.arena().free_buffers() + logged + 8 >= free, "buffers are lost");
}

/// What came back is replies, from first to last byte.
fn check_replies(mut rest: &[u8]) {
    let mut owed = 0u64;
    while !rest.is_empty() || owed > 0 {
        owed = owed.saturating_sub(1);
        let end = rest.windows(2).position(|pair| pair == b"\r\n").expect("a line has an end");
        let (line, behind) = (&rest[..end], &rest[end + 2..]);
        rest = behind;
        let number = || {
            std::str::from_utf8(&line[1..]).ok().and_then(|text| text.parse::<i64>().ok()).expect("a number")
        };
        match line.first() {
            Some(b'+' | b'-' | b'_') => {}
            Some(b':') => _ = number(),
            Some(b'$' | b'=') if number() < 0 => {}
            Some(b'$' | b'=') => {
                let len = number() as usize;
                assert_eq!(&rest[len..len + 2], b"\r\n");
                rest = &rest[len + 2..];
            }
            Some(b'*' | b'~' | b'>') => owed += number().max(0) as u64,
            Some(b'%') => owed += 2 * number() as u64,
            _ => panic!("no reply: {:?}", line.escape_ascii().to_string()),
        }
    }
}
