//! A server on the simulated link, and all its clients.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pmem::{Arena, CommitError, Durable, MEMORY, Options, Region, Shard};
use pmlog::service::{LogService, ServiceConfig};
use stack::net::{Event, Net, Service};
use stack::server::Server;
use stack::time::Instant;
use stack::transport::OverEndpoint as _;
use stack::{Config, Endpoint};

use super::wire::{Client, PORT, SERVER, SERVER_MAC, Wire};

/// Most requests of a burst; fewer where there are fewer connections, as each has one on its way.
const BURST: usize = 32;
/// Time between bursts: some three million requests a second.
const BURST_TIME: Duration = Duration::from_micros(10);
/// A record, and a reply as pmlog's.
const REQUEST_BYTES: usize = 1024;
const REPLY_BYTES: usize = 120;
/// Several buffers for each of a hundred thousand connections, so that no window is smaller than a request.
const STORE_BYTES: u64 = 1 << 30;

/// An application that takes each request and answers it, and does no more.
#[derive(Default)]
pub(super) struct Answer {
    answered: u64,
}

impl Service for Answer {
    fn event<N: Net>(&mut self, event: Event, net: &mut N, _: &mut Shard) {
        if let Event::Readable { conn } = event {
            while net.recv(conn).is_some() {
                self.answered += u64::from(net.send(conn, &[b'a'; REPLY_BYTES]).is_ok());
            }
        }
    }

    fn committed<N: Net>(&mut self, _: &Durable, _: &mut N, _: &mut Shard) {}

    fn commit_failed<N: Net>(&mut self, _: &CommitError, _: &mut N, _: &mut Shard) {}

    fn requests(&self) -> u64 {
        self.answered
    }
}

/// Memory in which received payload lies, and a log.
pub(super) struct Store {
    shard: Shard,
    arena: Arena,
}

impl Store {
    pub(super) fn new() -> Result<Self> {
        let options = Options { size: Some(STORE_BYTES), volatile: true, ..Options::default() };
        let shard = Region::open(MEMORY, &options)?.into_shard()?;
        Ok(Self { arena: shard.arena().clone(), shard })
    }
}

/// The server and its clients.
pub(super) struct Rig<S> {
    server: Server<Wire, S>,
    clients: Vec<Client>,
    /// The order in which clients have their turns: one that no cache foresees.
    turns: Vec<u32>,
    next: usize,
    now: Instant,
    request: Vec<u8>,
}

impl Rig<Answer> {
    pub(super) fn answering(connections: u32) -> Result<Self> {
        Self::new(connections, Store::new()?, Answer::default(), false, vec![7; REQUEST_BYTES])
    }
}

impl Rig<LogService> {
    /// pmlog with place for so many connections.
    pub(super) fn logging(connections: u32, store: Store) -> Result<Self> {
        let config = ServiceConfig { max_connections: connections, ..ServiceConfig::default() };
        // One that leaves nothing behind: records are the store's memory.
        let request = b"GET /records/1 HTTP/1.1\r\nHost: pmlog\r\n\r\n".to_vec();
        Self::new(connections, store, LogService::new(config, START), true, request)
    }
}

const START: Instant = Instant::from_secs(1);

impl<S: Service> Rig<S> {
    fn new(
        connections: u32,
        store: Store,
        service: S,
        stores_payload: bool,
        request: Vec<u8>,
    ) -> Result<Self> {
        let Store { shard, arena } = store;
        let address = "10.0.0.2/8".parse().map_err(|_| anyhow::anyhow!("a wrong address"))?;
        let config = Config {
            max_connections: connections as usize,
            // Left to the device, as the check of what arrives is.
            tx_checksum_offload: true,
            ..Config::with_secret(SERVER_MAC, vec![address], [7; 16])
        };
        let mut endpoint = Endpoint::new(config, arena.clone(), START)?;
        endpoint.listen(SocketAddr::from((SERVER, PORT)), BURST)?;
        let mut rig = Self {
            server: Server::new(Wire::new(endpoint, arena, stores_payload), service, shard),
            clients: vec![Client::default(); connections as usize],
            turns: turns(connections),
            next: 0,
            now: START,
            request,
        };
        for from in (0..connections).step_by(BURST) {
            rig.open(from..connections.min(from + BURST as u32));
        }
        let open = rig.server.transport().endpoint().connections();
        ensure!(open == connections as usize, "{open} of {connections} connections are open");
        Ok(rig)
    }

    fn open(&mut self, numbers: std::ops::Range<u32>) {
        for number in numbers.clone() {
            let (wire, _, _) = self.server.parts();
            wire.knock(number, &mut self.clients[number as usize], self.now);
        }
        self.step();
        self.all_send(numbers, &[]);
    }

    /// A request of each of the next clients arrives, and is served by `serve`.
    fn burst(&mut self, serve: impl FnOnce(&mut Server<Wire, S>, Instant)) -> usize {
        let count = BURST.min(self.clients.len());
        for _ in 0..count {
            let number = self.turns[self.next];
            self.next = (self.next + 1) % self.turns.len();
            let (wire, _, _) = self.server.parts();
            wire.send(number, &mut self.clients[number as usize], self.now, &self.request);
        }
        serve(&mut self.server, self.now);
        self.now += BURST_TIME;
        self.server.parts().0.deliver(&mut self.clients);
        count
    }

    fn step(&mut self) {
        serve(&mut self.server, self.now);
        self.now += BURST_TIME;
        self.server.parts().0.deliver(&mut self.clients);
    }

    /// Serves so many requests, and returns how long that took in nanoseconds each.
    pub(super) fn timed(&mut self, requests: u64) -> Result<f64> {
        let clock = quanta::Clock::new();
        let before = self.server.service().requests();
        let (mut done, mut raw) = (0, 0);
        while done < requests {
            done += self.burst(|server, now| {
                let start = clock.raw();
                serve(server, now);
                raw += clock.raw() - start;
            }) as u64;
        }
        self.check(before + done)?;
        Ok(clock.delta_as_nanos(0, raw) as f64 / done as f64)
    }

    /// Serves so many requests, for callgrind to count [`counted`]; returns how many they were. Each connection has had one
    /// before: what its first reply costs beyond others is not what a request costs.
    pub(super) fn counted(&mut self, requests: u64) -> Result<u64> {
        let before = self.server.service().requests();
        let first = self.serve_all(requests.min(self.clients.len() as u64), serve);
        self.next = 0;
        let done = self.serve_all(requests, counted);
        self.check(before + first + done)?;
        Ok(done)
    }

    /// Has at least so many requests served by `serve`; returns how many.
    fn serve_all(&mut self, requests: u64, serve: fn(&mut Server<Wire, S>, Instant)) -> u64 {
        let mut done = 0;
        while done < requests {
            done += self.burst(serve) as u64;
        }
        done
    }

    /// One request on each connection, and the acknowledgement of its reply in the next burst: what a connection has had
    /// that is then idle.
    pub(super) fn once_each(&mut self) -> Result<()> {
        let before = self.server.service().requests();
        let connections = self.clients.len() as u32;
        let request = self.request.clone();
        for from in (0..connections).step_by(BURST) {
            let numbers = from..connections.min(from + BURST as u32);
            self.all_send(numbers.clone(), &request);
            self.all_send(numbers, &[]);
        }
        self.check(before + u64::from(connections))
    }

    /// One burst, of segments of these clients.
    fn all_send(&mut self, numbers: std::ops::Range<u32>, payload: &[u8]) {
        for number in numbers {
            let (wire, _, _) = self.server.parts();
            wire.send(number, &mut self.clients[number as usize], self.now, payload);
        }
        self.step();
    }

    fn check(&self, requests: u64) -> Result<()> {
        let answered = self.server.service().requests();
        let counters = self.server.transport().endpoint().counters();
        ensure!(answered == requests, "{answered} requests were answered of {requests}: {counters:?}");
        let lost = counters.retransmits + counters.drops.no_buffer + counters.drops.window;
        ensure!(lost == 0, "segments were lost on a link that loses none: {counters:?}");
        Ok(())
    }
}

/// What is measured: a burst, from the driver's frames to the driver's.
fn serve<S: Service>(server: &mut Server<Wire, S>, now: Instant) {
    let Ok(_) = server.step(now);
}

/// As [`serve`], by a name that callgrind knows.
#[inline(never)]
fn counted<S: Service>(server: &mut Server<Wire, S>, now: Instant) {
    serve(server, now);
}

/// All numbers below `count`, in an order that looks random and is the same each time (Fisher and Yates, with the
/// constants of Knuth's MMIX).
fn turns(count: u32) -> Vec<u32> {
    let mut turns: Vec<u32> = (0..count).collect();
    let mut state = 1u64;
    for at in (1..turns.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        turns.swap(at, (state >> 33) as usize % (at + 1));
    }
    turns
}

/// What one more connection costs, as far as the kernel has given memory for it, and address space.
pub(super) struct Held {
    pub(super) resident_bytes: u64,
    pub(super) reserved_bytes: u64,
}

/// Memory of pmlog and its network with so many connections, each of which has had one request and is idle.
pub(super) fn held(connections: u32) -> Result<Held> {
    let store = Store::new()?;
    // What others have taken once is not the connections'.
    drop(Rig::logging(1, Store::new()?)?);
    let before = Memory::now()?;
    let mut rig = Rig::logging(connections, store)?;
    rig.once_each()?;
    let clients = (size_of::<Client>() + size_of::<u32>()) as u64 * u64::from(connections);
    let after = Memory::now()?;
    Ok(Held {
        resident_bytes: (after.resident_bytes - before.resident_bytes).saturating_sub(clients),
        reserved_bytes: (after.reserved_bytes - before.reserved_bytes).saturating_sub(clients),
    })
}

struct Memory {
    resident_bytes: u64,
    reserved_bytes: u64,
}

impl Memory {
    fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/status").context("the kernel tells no sizes")?;
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            kib.map(|kib| kib * 1024).with_context(|| format!("the kernel tells no {name}"))
        };
        Ok(Self { resident_bytes: bytes("VmRSS:")?, reserved_bytes: bytes("VmSize:")? })
    }
}
