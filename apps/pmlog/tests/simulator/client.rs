//! A client: it appends, reads and trims over one connection after another, and tries again what was not answered.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use rand::{Rng as _, RngExt as _};
use rand_chacha::ChaCha8Rng;
use smoltcp::iface::SocketHandle;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use stack::sim::{Host, Link, Path, Peer};
use stack::time::Instant;

use crate::ledger::{Ledger, Name, body};

pub const SERVER: [u8; 4] = [10, 0, 0, 100];
/// What it waits for an answer, before it gives up the connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked of the server.
#[derive(Clone, Copy, Debug)]
enum Request {
    Append(u64),
    Read(Name, u64),
    Trim(Name),
    Health,
}

pub struct Client {
    peer: Peer,
    socket: SocketHandle,
    ledger: Rc<RefCell<Ledger>>,
    random: ChaCha8Rng,
    /// Bodies to be appended yet.
    left: VecDeque<u64>,
    asked: VecDeque<Request>,
    unsent: VecDeque<u8>,
    received: Vec<u8>,
    port: u16,
    /// When it goes on.
    wakes: Instant,
    /// Since when nothing has come.
    waits_since: Instant,
    /// The store is full: something has to go.
    is_full: bool,
    /// Whether this connection has ended for this client.
    is_over: bool,
    now: Instant,
}

impl Client {
    pub fn new(
        link: &Link,
        path: Path,
        number: u8,
        appends: u64,
        ledger: &Rc<RefCell<Ledger>>,
        random: ChaCha8Rng,
        now: Instant,
    ) -> Self {
        let address = IpCidr::new(IpAddress::v4(10, 0, 0, number), 24);
        let mut peer = Peer::new(link.port(path), EthernetAddress([2, 0, 0, 0, 0, number]), &[address], now);
        let socket = peer.add_socket(16 * 1024, 16 * 1024);
        let first = u64::from(number) << 32;
        Self {
            peer,
            socket,
            ledger: ledger.clone(),
            random,
            left: (first..first + appends).collect(),
            asked: VecDeque::new(),
            unsent: VecDeque::new(),
            received: Vec::new(),
            port: 5000,
            wakes: now,
            waits_since: now,
            is_full: false,
            is_over: true,
            now,
        }
    }

    pub fn is_done(&self) -> bool {
        self.left.is_empty() && self.asked.is_empty()
    }

    pub fn set_path(&self, path: Path) {
        self.peer.port().set_path(path);
    }

    /// Draws what to ask for next, and sends it in one go.
    fn ask(&mut self) {
        let count = self.random.random_range(1..=5);
        for _ in 0..count {
            let picked = self.ledger.borrow().pick(self.random.next_u64());
            let request = match (self.random.random_range(0..20), picked) {
                (_, Some((name, _))) if std::mem::take(&mut self.is_full) => Request::Trim(name),
                (0, Some((name, _))) => Request::Trim(name),
                (1, _) => Request::Health,
                (2..8, Some((name, number))) => Request::Read(name, number),
                _ => match self.left.pop_front() {
                    Some(number) => Request::Append(number),
                    None => continue,
                },
            };
            self.asked.push_back(request);
            self.write(request);
        }
    }

    fn write(&mut self, request: Request) {
        let mut ledger = self.ledger.borrow_mut();
        let line = |line: String| format!("{line} HTTP/1.1\r\nHost: log\r\n");
        match request {
            Request::Append(number) => {
                ledger.send(number);
                let body = body(number);
                let head = line("POST /append".into());
                if self.random.random_bool(0.2) {
                    self.unsent.extend(format!("{head}Transfer-Encoding: chunked\r\n\r\n").bytes());
                    for part in body.chunks(self.random.random_range(1..2000)) {
                        self.unsent.extend(format!("{:x}\r\n", part.len()).bytes());
                        self.unsent.extend(part.iter().copied().chain(*b"\r\n"));
                    }
                    self.unsent.extend(*b"0\r\n\r\n");
                } else {
                    self.unsent.extend(format!("{head}Content-Length: {}\r\n\r\n", body.len()).bytes());
                    self.unsent.extend(body);
                }
            }
            Request::Read((shard, seq), _) => {
                self.unsent.extend(format!("{}\r\n", line(format!("GET /records/{shard}-{seq}"))).bytes());
            }
            Request::Trim((shard, seq)) => {
                ledger.ask((shard, seq));
                let target = format!("DELETE /records?before={shard}-{seq}");
                self.unsent.extend(format!("{}\r\n", line(target)).bytes());
            }
            Request::Health => {
                self.unsent.extend(format!("{}\r\n", line("GET /health".into())).bytes());
            }
        }
    }

    /// Takes in one reply, if one is there.
    fn take_reply(&mut self) -> bool {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut head = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(length)) = head.parse(&self.received) else { return false };
        let status = head.code.expect("a status");
        let value = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
        let bytes: usize = value
            .and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok())
            .expect("a reply with a length");
        if self.received.len() < length + bytes {
            return false;
        }
        let text = self.received[length..length + bytes].to_vec();
        self.received.drain(..length + bytes);
        let request = self.asked.pop_front().expect("a reply to something");
        self.answered(request, status, &text);
        true
    }

    fn answered(&mut self, request: Request, status: u16, text: &[u8]) {
        let mut ledger = self.ledger.borrow_mut();
        let said = String::from_utf8_lossy(text);
        let json = || serde_json::from_slice::<serde_json::Value>(text).expect("JSON");
        let shard = |json: &serde_json::Value| json["shard"].as_u64().unwrap_or(0) as u32;
        match (request, status) {
            (Request::Append(number), 200) => {
                let json = json();
                let seq = json["seq"].as_u64().expect("a number");
                assert_eq!(json["length"], body(number).len());
                ledger.acknowledge((shard(&json), seq), number);
            }
            // Full, or failed, or it took too long to come: it is tried again.
            (Request::Append(number), 408 | 500 | 503 | 507) => {
                self.left.push_front(number);
                ledger.refused += 1;
                self.is_full |= status == 507;
                self.is_over |= status != 507;
            }
            (Request::Read(name, number), 200) => {
                ledger.reads += 1;
                let is_equal = *text == body(number);
                assert!(is_equal || ledger.is_rotten(name), "record {name:?} was given with other bytes");
            }
            (Request::Read(name, _), 404) => assert!(ledger.may_be_trimmed(name), "{name:?}: {said}"),
            (Request::Read(name, _), 410 | 500) => assert!(ledger.is_rotten(name), "{name:?}: {said}"),
            (Request::Trim((shard, _)), 200) => {
                ledger.trim((shard, json()["head"].as_u64().expect("a head")));
            }
            (Request::Trim(_), 500 | 503) => self.is_over = true,
            (Request::Health, 200 | 503) => {}
            (_, 408) => self.is_over = true,
            _ => panic!("{request:?} was answered with {status}: {said}"),
        }
    }

    /// Ends the connection; what was not answered is tried again.
    fn give_up(&mut self, now: Instant) {
        self.peer.socket(self.socket).abort();
        for request in self.asked.drain(..).rev() {
            if let Request::Append(number) = request {
                self.left.push_front(number);
            }
        }
        self.unsent.clear();
        self.received.clear();
        self.is_over = true;
        self.wakes = now + Duration::from_micros(self.random.random_range(100..100_000));
    }

    /// Goes on with what it does. True if it did something.
    fn go_on(&mut self, now: Instant) -> bool {
        if self.is_over {
            if now < self.wakes || self.left.is_empty() || self.peer.socket(self.socket).is_open() {
                return false;
            }
            self.port += 1;
            self.is_over = false;
            self.waits_since = now;
            self.peer.connect(self.socket, (SERVER, 80).into(), self.port).expect("the socket is closed");
            return true;
        }
        let socket = self.peer.socket(self.socket);
        if !socket.is_open() {
            self.give_up(now);
            return true;
        }
        let mut has_acted = false;
        if socket.can_send() && !self.unsent.is_empty() {
            let sent = socket.send_slice(self.unsent.make_contiguous()).expect("an open socket");
            self.unsent.drain(..sent);
            has_acted |= sent > 0;
        }
        if socket.can_recv() {
            let limit = self.random.random_range(1..8000);
            let read = socket.recv(|bytes| {
                let taken = bytes.len().min(limit);
                (taken, bytes[..taken].to_vec())
            });
            self.received.extend(read.expect("there is something to read"));
            self.waits_since = now;
            while self.take_reply() {}
            has_acted = true;
        }
        let socket = self.peer.socket(self.socket);
        let is_cut = !socket.may_recv() && socket.may_send() && !socket.can_recv();
        if self.is_over || is_cut && now > self.waits_since || now >= self.waits_since + PATIENCE {
            self.give_up(now);
            return true;
        }
        let socket = self.peer.socket(self.socket);
        if self.asked.is_empty() && socket.may_send() && now >= self.wakes {
            self.waits_since = now;
            self.wakes = now + Duration::from_micros(self.random.random_range(0..20_000));
            if self.left.is_empty() || self.random.random_bool(0.1) {
                self.peer.socket(self.socket).close();
                self.is_over = true;
                return true;
            }
            self.ask();
            has_acted = true;
        }
        has_acted
    }
}

impl Host for Client {
    fn poll(&mut self, now: Instant) -> bool {
        self.now = now;
        let has_acted = self.peer.poll(now);
        self.go_on(now) | has_acted
    }

    fn deadline(&mut self) -> Option<Instant> {
        let own = match self.is_over {
            true if self.left.is_empty() => None,
            true => Some(self.wakes),
            false if self.asked.is_empty() => Some(self.wakes),
            false => Some(self.waits_since + PATIENCE),
        };
        // What has passed waits for the socket.
        let own = own.map(|at| if at > self.now { at } else { self.now + Duration::from_millis(1) });
        own.into_iter().chain(self.peer.deadline()).min()
    }
}
