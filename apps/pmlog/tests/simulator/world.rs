//! The server, and everything that happens to it.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pmem::{Geometry, LineModel, Medium as _, ModelKind, Options, Region, Shard};
use pmlog::service::{Exchange, LogService, ServiceConfig};
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use smoltcp::wire::{IpAddress, IpCidr};
use stack::Config;
use stack::net::{Service as _, Transport as _};
use stack::server::Server;
use stack::sim::{Clock, Host, Link, Path, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;

use crate::client::{Client, SERVER};
use crate::ledger::{Ledger, Name};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 100];
/// Things that happen, before all is left alone.
const EVENTS: u32 = 30;
/// When all that clients want has to be done.
const LIMIT: Duration = Duration::from_secs(900);
/// When no connection is left that a client has forgotten.
const FORGOTTEN_AFTER_S: u32 = 400;
/// As pmlog does.
const CHECKPOINT_AFTER: Duration = Duration::from_millis(500);
/// How long a server whose medium has failed goes on saying so.
const FAREWELL: Duration = Duration::from_millis(30);
/// Between two bursts where commits take long: more than one is held back at most, so that nothing depends on real time.
const PACE: Duration = Duration::from_millis(1);
const RX_RING: usize = 32;

/// What simulations have seen.
#[derive(Default)]
pub struct Seen {
    acknowledged: u64,
    reads: u64,
    refused: u64,
    power_cuts: u64,
    kills: u64,
    failures: u64,
    rotten: u64,
    breaks: u64,
}

impl Seen {
    pub fn add(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.refused += other.refused;
        self.power_cuts += other.power_cuts;
        self.kills += other.kills;
        self.failures += other.failures;
        self.rotten += other.rotten;
        self.breaks += other.breaks;
    }

    fn all(&self) -> [u64; 8] {
        let Self { acknowledged, reads, refused, power_cuts, kills, failures, rotten, breaks } = *self;
        [acknowledged, reads, refused, power_cuts, kills, failures, rotten, breaks]
    }

    pub fn has_seen_all(&self) -> bool {
        self.all().iter().all(|&seen| seen > 0)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.all().map(|seen| seen.to_string());
        f.write_str(&words.join(" "))
    }
}

/// One core of the server.
struct Core {
    server: Server<SimTransport, LogService>,
    index: u32,
    ledger: Rc<RefCell<Ledger>>,
    model: Arc<LineModel>,
    /// Since when the last commit is not noted.
    unnoted_since: Option<Instant>,
    now: Instant,
    /// When it looks again, and whether it is waited for.
    next: Instant,
    is_waited_for: bool,
}

impl Core {
    fn shard(&mut self) -> &mut Shard {
        self.server.parts().2
    }

    /// As pmlog does when nothing was appended for a while.
    fn checkpoint(&mut self, now: Instant) {
        let is_due = self.unnoted_since.is_some_and(|since| now >= since + CHECKPOINT_AFTER);
        if !is_due || self.server.service().failure().is_some() {
            return;
        }
        self.unnoted_since = None;
        let shard = self.server.parts().2;
        let next = shard.committed_seq();
        if shard.checkpoint().is_ok() && !self.model.has_crashed() {
            self.ledger.borrow_mut().vouch(self.index, next);
        }
    }
}

impl Host for Core {
    fn poll(&mut self, now: Instant) -> bool {
        self.now = now;
        if self.model.has_crashed() {
            return false;
        }
        if now < self.next {
            self.is_waited_for = true;
            return false;
        }
        self.is_waited_for = false;
        if self.model.kind() == ModelKind::Pages || self.model.kind() == ModelKind::Disk {
            self.next = now + PACE;
        }
        let Ok(step) = self.server.step(now);
        let (transport, service, shard) = self.server.parts();
        let mut has_worked = service.between_bursts(now, transport, shard);
        has_worked |= shard.tend();
        if step.committed {
            self.unnoted_since = Some(now);
        }
        self.checkpoint(now);
        !step.is_idle() || has_worked
    }

    fn deadline(&mut self) -> Option<Instant> {
        if self.model.has_crashed() {
            return None;
        }
        let due = self.unnoted_since.map(|since| since + CHECKPOINT_AFTER);
        let is_busy = self.is_waited_for || self.server.shard().uncommitted();
        let again = is_busy.then_some(self.next.max(self.now + Duration::from_micros(50)));
        let at = self.server.transport().next_deadline().into_iter().chain(due).chain(again).min();
        at.map(|at| at.max(self.next))
    }
}

struct World {
    random: ChaCha8Rng,
    link: Link,
    clock: Clock,
    model: Arc<LineModel>,
    options: Options,
    geometry: Geometry,
    cores: Vec<Core>,
    clients: Vec<Client>,
    ledger: Rc<RefCell<Ledger>>,
    path: Path,
    /// When a server that has failed is started anew.
    ends: Option<Instant>,
    /// Records that the next power cut damages.
    rots: u32,
    seen: Seen,
}

/// Runs the simulation of a seed.
pub fn run(seed: u64) -> Seen {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let kinds = [ModelKind::Lines, ModelKind::Pages, ModelKind::Disk, ModelKind::CacheLines];
    let kind = kinds[(seed % 4) as usize];
    let shards = random.random_range(1..=3);
    let bytes = shards as usize * random.random_range(400..900) * 1024;
    let model = LineModel::of(kind, vec![0; bytes], random.next_u64());
    let options = Options {
        shards: Some(shards),
        log_entries: Some(256),
        reserve: Some(48),
        checkpoint_entries: [16, 1 << 16][random.random_range(0..2)],
        trust_durable: random.random_bool(0.5),
        ..Options::default()
    };
    let share = |random: &mut ChaCha8Rng, most: f64| {
        if random.random_bool(0.5) { random.random_range(0.0..most) } else { 0.0 }
    };
    let path = Path {
        loss: share(&mut random, 0.05),
        duplication: share(&mut random, 0.05),
        reordering: share(&mut random, 0.1),
        corruption: share(&mut random, 0.02),
        latency: Duration::from_micros(random.random_range(10..3000)),
        ..Path::default()
    };
    let now = Instant::from_secs(1000);
    let link = Link::new(random.next_u64());
    let clock = Clock::new(&link, now);
    let ledger = Rc::new(RefCell::new(Ledger::default()));
    let appends = random.random_range(50..400);
    let clients = (1..=random.random_range(2..=4)).map(|number| {
        let random = ChaCha8Rng::seed_from_u64(random.next_u64());
        Client::new(&link, path, number, appends, &ledger, random, now)
    });
    let clients = clients.collect();
    let region = Region::over(model.clone(), &options).expect("a new store");
    let geometry = region.info().geometry;
    region.begin().expect("a new store");
    drop(region);
    let mut world = World {
        random,
        link,
        clock,
        model,
        options,
        geometry,
        cores: Vec::new(),
        clients,
        ledger,
        path,
        ends: None,
        rots: 0,
        seen: Seen::default(),
    };
    world.start();
    world.live();
    world.end()
}

impl World {
    /// Starts the server on what the medium holds.
    fn start(&mut self) {
        self.cores.clear();
        self.ends = None;
        let region = Region::over(self.model.clone(), &self.options).expect("a store opens");
        let shards = region.into_seeds().into_iter().map(|seed| seed.open().expect("a shard opens"));
        let shards: Vec<_> = shards.collect();
        for (index, shard) in (0..).zip(&shards) {
            self.ledger.borrow().check(index, shard);
            self.ledger.borrow_mut().vouch(index, shard.next_seq());
        }
        let now = self.clock.now();
        let exchange = Exchange::new(shards.len() as u32, shards.len() as u32);
        exchange.publish((0..).zip(&shards));
        let address = IpCidr::new(IpAddress::Ipv4(SERVER.into()), 24);
        let mut secret = [0; 16];
        self.random.fill_bytes(&mut secret);
        let config = Config::with_secret(MAC, vec![address], secret);
        let rings = SimConfig { rx_ring: RX_RING, ..SimConfig::default() };
        let port = self.link.port(self.path);
        // Whoever has heard of the server where it was hears of it here.
        port.send(now, [&[0xff; 6][..], &MAC, &[0x88, 0xb5], &[0; 46]].concat());
        let model = self.model.clone();
        port.set_filter(move |_| !model.has_crashed());
        let arenas = shards.iter().map(|shard| shard.arena().clone()).collect();
        let count = shards.len();
        let core_of = move |frame: &[u8]| {
            frame.get(34..38).map_or(0, |ports| ports.iter().map(|&byte| usize::from(byte)).sum::<usize>())
                % count
        };
        let transports = SimTransport::cores(port, &config, rings, arenas, core_of, now).expect("a host");
        for (index, (mut transport, shard)) in (0..).zip(transports.into_iter().zip(shards)) {
            transport.endpoint_mut().listen((SERVER, 80).into(), 16).expect("a free port");
            let service = LogService::among(
                ServiceConfig::default(),
                exchange.clone(),
                index as usize,
                Vec::new(),
                now,
            );
            self.cores.push(Core {
                server: Server::new(transport, service, shard),
                index,
                ledger: self.ledger.clone(),
                model: self.model.clone(),
                unnoted_since: None,
                now,
                next: now,
                is_waited_for: false,
            });
        }
    }

    /// Lets time go on until then, or until all is done, and starts the server again when it has died.
    fn run_until(&mut self, limit: Instant) {
        while self.clock.now() < limit && !self.clients.iter().all(Client::is_done) {
            let mut hosts: Vec<&mut dyn Host> =
                self.cores.iter_mut().map(|core| core as &mut dyn Host).collect();
            hosts.extend(self.clients.iter_mut().map(|client| client as &mut dyn Host));
            self.clock.step(&mut hosts, limit.min(self.ends.unwrap_or(limit)));
            self.look();
        }
    }

    /// Whether the server is still there, and what there is to be done if not.
    fn look(&mut self) {
        if let Some(mut image) = self.model.crashed() {
            self.seen.power_cuts += 1;
            for _ in 0..std::mem::take(&mut self.rots) {
                self.rot(&mut image);
            }
            self.model = LineModel::of(self.model.kind(), image, self.random.next_u64());
            self.start();
        } else if let Some(killed) = self.model.killed() {
            self.seen.kills += 1;
            self.model = killed;
            self.start();
        }
        let now = self.clock.now();
        if self.ends.is_none() && self.cores.iter().any(|core| core.server.service().failure().is_some()) {
            self.seen.failures += 1;
            self.ends = Some(now + FAREWELL);
        }
        if self.ends.is_some_and(|ends| now >= ends) {
            self.model = self.model.kill();
            self.start();
        }
    }

    fn live(&mut self) {
        for _ in 0..EVENTS {
            let rests = Duration::from_micros(self.random.random_range(1000..60_000));
            self.run_until(self.clock.now() + rests);
            let operations = self.model.operations() + self.random.random_range(0..300);
            match self.random.random_range(0..12) {
                0..3 => {
                    let mut random = ChaCha8Rng::seed_from_u64(self.random.next_u64());
                    self.model.crash_at(operations, move || random.next_u64());
                }
                3 => self.model.kill_at(operations),
                4 if self.model.kind() != ModelKind::CacheLines => {
                    self.model.fail_fence_once(self.random.random_range(0..10), "no space");
                }
                5..8 => self.rots += self.random.random_range(1..4),
                8 => {
                    self.seen.breaks += 1;
                    let broken = Path { loss: 1.0, ..self.path };
                    self.set_path(broken);
                    let lasts = Duration::from_millis(self.random.random_range(1..3000));
                    self.run_until(self.clock.now() + lasts);
                    self.set_path(self.path);
                }
                // A while in which the log's end is noted.
                9 => self.run_until(self.clock.now() + CHECKPOINT_AFTER + Duration::from_millis(1)),
                _ => {}
            }
        }
    }

    fn set_path(&self, path: Path) {
        self.clients.iter().for_each(|client| client.set_path(path));
        self.cores.iter().for_each(|core| core.server.transport().port().set_path(path));
    }

    /// Changes a bit of a record that was acknowledged, of those to which that must not happen unnoticed.
    fn rot(&mut self, image: &mut [u8]) {
        let Some((name, _)) = self.ledger.borrow().pick(self.random.next_u64()) else { return };
        let Some(place) = self.place_in(name) else { return };
        self.ledger.borrow_mut().rot(name);
        self.seen.rotten += 1;
        image[place] ^= 1 << self.random.random_range(0..8);
    }

    /// A place where something of a record lies.
    fn place_in(&mut self, name: Name) -> Option<usize> {
        let (index, seq) = name;
        let is_entry = self.random.random_bool(0.3);
        let chance = self.random.next_u64() as usize;
        let base = self.model.base().as_ptr() as usize;
        let shard = self.cores[index as usize].shard();
        let record = shard.record(seq)?;
        let info = record.info();
        if !self.ledger.borrow().is_vouched(index, seq + info.entries) || self.ledger.borrow().is_rotten(name)
        {
            return None;
        }
        if is_entry || info.extents == 0 {
            let Geometry { log_offset, log_stride, log_entries, .. } = self.geometry;
            let slot = (seq + chance as u64 % info.entries) % u64::from(log_entries);
            return Some((log_offset + u64::from(index) * log_stride + slot * 64) as usize + chance % 64);
        }
        let pieces: Vec<_> = record.pieces().collect();
        let bytes = pieces[chance % pieces.len()].bytes();
        Some(bytes.as_ptr() as usize - base + chance / pieces.len() % bytes.len())
    }

    /// Leaves all alone until what clients want is done, and checks what is left.
    fn end(mut self) -> Seen {
        self.model.disarm();
        self.model.fail_fences(None);
        let clean = Path { latency: self.path.latency, ..Path::default() };
        self.path = clean;
        self.set_path(clean);
        self.run_until(self.clock.now() + LIMIT);
        let left: Vec<_> = self.clients.iter().filter(|client| !client.is_done()).collect();
        assert!(left.is_empty(), "{} clients are not done at {}", left.len(), self.clock.now());
        // Connections that nobody ends are timed out, which a core looks after once a second.
        for _ in 0..FORGOTTEN_AFTER_S {
            let mut hosts: Vec<&mut dyn Host> =
                self.cores.iter_mut().map(|core| core as &mut dyn Host).collect();
            hosts.extend(self.clients.iter_mut().map(|client| client as &mut dyn Host));
            self.clock.run_until(&mut hosts, self.clock.now() + Duration::from_secs(1));
        }
        for core in &mut self.cores {
            let index = core.index;
            let (_, service, shard) = core.server.parts();
            assert_eq!(service.counters().connections, 0, "core {index}");
            self.ledger.borrow().check(index, shard);
            let next = shard.next_seq();
            shard.trim(next).expect("a sound medium");
            while shard.tend() {}
            // The receive ring has its own, the log the buffer that short records share, and what is rotten names some.
            let (free, all) = (shard.arena().free_buffers(), shard.arena().buffers());
            let rotten = 8 * self.seen.rotten as usize;
            assert!(all - free <= RX_RING + 1 + rotten, "core {index} has {free} of {all} buffers free");
        }
        let ledger = self.ledger.borrow();
        let Seen { power_cuts, kills, failures, rotten, breaks, .. } = self.seen;
        Seen {
            acknowledged: ledger.count() as u64,
            reads: ledger.reads,
            refused: ledger.refused,
            power_cuts,
            kills,
            failures,
            rotten,
            breaks,
        }
    }
}
