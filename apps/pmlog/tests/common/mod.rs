//! A network for one service under test: what the clients send goes in by hand, in slots of any size, and
//! what the service sends is kept.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use pmem::{Buffer, Extent, Options, Region, Shard};
use pmlog::service::{LogService, ServiceConfig};
use stack::net::{CloseReason, ConnId, Event, Net, SendError, SendSpace, Service as _, Slot};
use stack::time::Instant;

/// Payload of one TCP segment on Ethernet, with timestamps.
pub const SEGMENT_BYTES: usize = 1448;
/// Where a segment's payload begins in its buffer: headroom, Ethernet, IPv4 and TCP with timestamps.
const PAYLOAD_OFFSET: usize = 128 + 14 + 20 + 32;

/// One client's connection as the test sees it.
#[derive(Debug, Default)]
pub struct Client {
    arrived: VecDeque<Slot>,
    /// All that was sent to this client.
    pub sent: Vec<u8>,
    /// How many bytes of it were sent from where they lie.
    pub sent_in_place: usize,
    /// How many more bytes and extents the client's side takes.
    pub room_bytes: usize,
    pub room_extents: usize,
    wants_room: bool,
    /// FIN was sent.
    pub finished: bool,
    /// RST was sent.
    pub aborted: bool,
}

/// The network side of the service under test.
#[derive(Debug, Default)]
pub struct Wire {
    pub clients: Vec<Client>,
}

impl Wire {
    fn sending(&mut self, conn: ConnId) -> Result<&mut Client, SendError> {
        let client = &mut self.clients[conn.index as usize];
        if client.finished || client.aborted { Err(SendError::Closed) } else { Ok(client) }
    }
}

impl Net for Wire {
    fn recv(&mut self, conn: ConnId) -> Option<Slot> {
        self.clients[conn.index as usize].arrived.pop_front()
    }

    fn send_space(&self, conn: ConnId) -> SendSpace {
        let client = &self.clients[conn.index as usize];
        SendSpace { bytes: client.room_bytes, extents: client.room_extents }
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), SendError> {
        let client = self.sending(conn)?;
        client.wants_room |= client.room_bytes < bytes.len();
        client.room_bytes = client.room_bytes.checked_sub(bytes.len()).ok_or(SendError::Full)?;
        client.sent.extend_from_slice(bytes);
        Ok(())
    }

    fn send_extent(&mut self, conn: ConnId, extent: Extent) -> Result<(), SendError> {
        let client = self.sending(conn)?;
        client.wants_room |= client.room_extents == 0;
        client.room_extents = client.room_extents.checked_sub(1).ok_or(SendError::Full)?;
        client.sent.extend_from_slice(extent.bytes());
        client.sent_in_place += extent.len();
        Ok(())
    }

    fn finish(&mut self, conn: ConnId) {
        self.clients[conn.index as usize].finished = true;
    }

    fn abort(&mut self, conn: ConnId) {
        let client = &mut self.clients[conn.index as usize];
        client.aborted = true;
        client.arrived.clear();
    }
}

/// A service with its store and its clients.
pub struct Lab {
    pub wire: Wire,
    pub service: LogService,
    pub shard: Shard,
    pub now: Instant,
}

impl Lab {
    /// A service over a fresh volatile store of `store_bytes`.
    pub fn new(store_bytes: u64, config: ServiceConfig) -> Self {
        Self::over(volatile_shard(store_bytes), config)
    }

    /// A service over a shard.
    pub fn over(shard: Shard, config: ServiceConfig) -> Self {
        let now = Instant::from_secs(1000);
        Self { wire: Wire::default(), service: LogService::new(config, now), shard, now }
    }

    /// With defaults, over a new store in a file, through which its bytes can be changed.
    pub fn in_file(path: &Path, store_bytes: u64) -> Self {
        let options = Options { size: Some(store_bytes), ..Options::default() };
        let region = Region::open(path, &options).expect("a store in a file");
        Self::over(region.into_shard().expect("a fresh store has one shard"), ServiceConfig::default())
    }

    /// With defaults and room for a few of the longest records.
    pub fn roomy() -> Self {
        Self::new(40 << 20, ServiceConfig::default())
    }

    pub fn free_buffers(&self) -> usize {
        self.shard.arena().free_buffers()
    }

    /// A new client, whose side takes all that is sent.
    pub fn connect(&mut self) -> ConnId {
        let conn = ConnId { index: self.wire.clients.len() as u32, generation: 7 };
        let client = Client { room_bytes: usize::MAX, room_extents: usize::MAX, ..Client::default() };
        self.wire.clients.push(client);
        let peer = ([10, 0, 0, 1], 4000).into();
        self.event(Event::Opened { conn, peer });
        conn
    }

    pub fn client(&mut self, conn: ConnId) -> &mut Client {
        &mut self.wire.clients[conn.index as usize]
    }

    pub fn event(&mut self, event: Event) {
        self.service.event(event, &mut self.wire, &mut self.shard);
    }

    /// Puts `bytes` into one buffer, as one segment.
    pub fn arrive(&mut self, conn: ConnId, bytes: &[u8]) {
        let mut buffer: Buffer = self.shard.arena().take().expect("a free buffer for the network");
        assert!(buffer.arrive(PAYLOAD_OFFSET, bytes), "the segment fits its buffer");
        let extent = buffer.into_extent(PAYLOAD_OFFSET as u16, bytes.len() as u16).expect("in bounds");
        self.client(conn).arrived.push_back(Slot::new(extent));
    }

    /// The client sends `bytes` in segments of at most `segment_bytes`; the service sees them as one burst.
    pub fn send_in(&mut self, conn: ConnId, bytes: &[u8], segment_bytes: usize) {
        for segment in bytes.chunks(segment_bytes) {
            self.arrive(conn, segment);
        }
        self.event(Event::Readable { conn });
    }

    /// The client sends `bytes` in ordinary segments, and the burst ends.
    pub fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        // A receive window's worth at a time, as the network would.
        for window in bytes.chunks(64 * SEGMENT_BYTES) {
            self.send_in(conn, window, SEGMENT_BYTES);
        }
        self.commit();
    }

    /// Ends bursts until nothing is left to be made durable.
    pub fn commit(&mut self) {
        while self.shard.uncommitted() {
            let durable = self.shard.commit().expect("volatile memory does not fail");
            self.service.committed(&durable, &mut self.wire, &mut self.shard);
        }
    }

    /// The client's side takes more, and the service hears of it if it had asked for room.
    pub fn make_room(&mut self, conn: ConnId, bytes: usize, extents: usize) -> bool {
        let client = self.client(conn);
        (client.room_bytes, client.room_extents) = (bytes, extents);
        let wanted = std::mem::take(&mut client.wants_room);
        if wanted {
            self.event(Event::Writable { conn });
            self.commit();
        }
        wanted
    }

    pub fn advance(&mut self, time: Duration) {
        self.now += time;
        self.service.tick(self.now, &mut self.wire, &mut self.shard);
        self.commit();
    }

    pub fn close(&mut self, conn: ConnId, reason: CloseReason) {
        self.event(Event::Closed { conn, reason });
        self.client(conn).arrived.clear();
    }

    /// Takes what was sent to the client, as replies.
    pub fn replies(&mut self, conn: ConnId) -> Vec<Response> {
        let sent = std::mem::take(&mut self.client(conn).sent);
        responses(&sent)
    }

    /// Takes the one reply to a request with a method: to HEAD it has no body, whatever its fields say.
    pub fn replies_to(&mut self, conn: ConnId, method: &str) -> Response {
        let sent = std::mem::take(&mut self.client(conn).sent);
        if method != "HEAD" {
            return responses(&sent).remove(0);
        }
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut head = httparse::Response::new(&mut fields);
        assert_eq!(head.parse(&sent), Ok(httparse::Status::Complete(sent.len())), "no body");
        Response::of(&head)
    }

    /// Sends one request and takes the one reply to it.
    pub fn ask(&mut self, conn: ConnId, request: &[u8]) -> Response {
        self.send(conn, request);
        let mut replies = self.replies(conn);
        assert_eq!(
            replies.len(),
            1,
            "one reply to {:?}",
            String::from_utf8_lossy(&request[..request.len().min(80)])
        );
        replies.remove(0)
    }

    /// Appends `body` over `conn`; gives the record's number.
    pub fn append(&mut self, conn: ConnId, body: &[u8]) -> u64 {
        let reply = self.ask(conn, &post(body));
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["seq"].as_u64().expect("a sequence number")
    }
}

/// A fresh store that no test shares.
fn volatile_shard(bytes: u64) -> Shard {
    let options = Options { size: Some(bytes), ..Options::default() };
    let region = Region::open("memory:", &options).expect("memory for a volatile store");
    region.into_shard().expect("a fresh store has one shard")
}

/// Changes a byte of a store behind its back: the one at `at` of `bytes`, wherever they lie in the file. Short records
/// lie there as they came, too.
pub fn alter(path: &Path, bytes: &[u8], at: usize) {
    let file = File::options().read(true).write(true).open(path).expect("the store's file");
    let image = std::fs::read(path).expect("the store's bytes");
    let places: Vec<_> = memchr::memmem::find_iter(&image, bytes).collect();
    assert!(!places.is_empty(), "the bytes are not in the file");
    for place in places {
        file.write_all_at(&[bytes[at] ^ 0x40], (place + at) as u64).expect("a byte is written");
    }
}

/// An append request.
pub fn post(body: &[u8]) -> Vec<u8> {
    let head = format!("POST /append HTTP/1.1\r\nHost: log\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A request without a body.
pub fn request(method: &str, target: &str) -> Vec<u8> {
    format!("{method} {target} HTTP/1.1\r\nHost: log\r\n\r\n").into_bytes()
}

/// Bytes that differ from place to place and from seed to seed.
pub fn body(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

/// One reply as a client reads it.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    fn of(head: &httparse::Response<'_, '_>) -> Self {
        let value = |field: &httparse::Header<'_>| String::from_utf8_lossy(field.value).into_owned();
        let fields = head.headers.iter().map(|field| (field.name.to_owned(), value(field))).collect();
        Self { status: head.code.expect("a status"), fields, body: Vec::new() }
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// The one-line reason of a refusal.
    pub fn reason(&self) -> String {
        let reason = self.json()["error"].as_str().expect("a reason").to_owned();
        assert!(!reason.is_empty() && !reason.contains('\n'), "{reason:?}");
        reason
    }
}

/// Reads replies to anything but HEAD requests, from first to last byte.
pub fn responses(mut bytes: &[u8]) -> Vec<Response> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut head = httparse::Response::new(&mut fields);
        let length = head.parse(bytes).expect("a reply's head").unwrap();
        let mut response = Response::of(&head);
        bytes = &bytes[length..];
        if let Some(length) = response.field("content-length") {
            let length: usize = length.parse().expect("a length");
            response.body = bytes[..length].to_vec();
            bytes = &bytes[length..];
        } else if response.field("transfer-encoding") == Some("chunked") {
            (response.body, bytes) = dechunk(bytes);
        } else if response.status != 100 {
            // The end of the connection ends the body.
            response.body = bytes.to_vec();
            bytes = &[];
        }
        all.push(response);
    }
    all
}

fn dechunk(mut bytes: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut body = Vec::new();
    loop {
        let line = bytes.windows(2).position(|pair| pair == b"\r\n").expect("a size line");
        let size = std::str::from_utf8(&bytes[..line]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("a size");
        body.extend_from_slice(&bytes[line + 2..line + 2 + size]);
        assert_eq!(&bytes[line + 2 + size..line + 4 + size], b"\r\n");
        bytes = &bytes[line + 4 + size..];
        if size == 0 {
            return (body, bytes);
        }
    }
}
