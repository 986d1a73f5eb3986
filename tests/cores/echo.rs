//! A host of several cores that logs what it receives, and sends it back from where it lies.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use dpdk::{Eal, QueuePlan};
use lab::wire::{KERNEL_V4, SERVER_V4, SERVER_V6};
use lab::{Lab, noise};
use pmem::{CommitError, Durable, Extent, Options, Region, Shard, ShardSeed};
use stack::Config;
use stack::IpCidr;
use stack::doze::Waker;
use stack::net::{ConnId, Event, Net, Service, Transport as _};
use stack::server::{Rest, Server};
use stack::time::Clock;
use stack::transport::OverEndpoint as _;
use stack::transport::dpdk::{DpdkConfig, DpdkCounters, DpdkTransport, PortShare, Reach};

/// Where a server listens.
pub const PORT: u16 = 7;

/// Which side a host is on.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    Server,
    /// A server whose cores sleep whenever there is nothing to do, until they are woken.
    SleepingServer,
    /// Each core opens so many connections, and sends so many bytes on each.
    Client {
        connections: usize,
        bytes: usize,
    },
}

/// What one core did.
#[derive(Debug)]
pub struct Outcome {
    pub opened: u64,
    pub logged_bytes: u64,
    pub heard_bytes: u64,
    /// Copied since they came in short segments.
    pub packed_bytes: u64,
    pub port: DpdkCounters,
}

/// What one core works on.
pub struct Part {
    pub seed: ShardSeed,
    pub reach: Reach,
}

/// A running host.
pub struct Echo {
    stop: Arc<AtomicBool>,
    /// Cores that have stopped polling.
    at_rest: Arc<AtomicUsize>,
    /// Whether those may leave the port.
    leave: Arc<AtomicBool>,
    /// Cores of a client that have heard everything.
    done: Arc<AtomicUsize>,
    /// What wakes cores that sleep.
    wakers: Vec<Waker>,
    plan: QueuePlan,
    cores: Vec<JoinHandle<Result<Outcome>>>,
}

/// A new store with a shard for each core, and a share for each at the device.
pub fn prepare(
    eal: Eal,
    lab: &Lab,
    device: &str,
    cores: u16,
    role: Role,
) -> Result<(Vec<PortShare>, Vec<Part>, Config)> {
    let id = eal.attach(device)?;
    let name = device.split(',').next().unwrap_or(device);
    let size = Some(u64::from(cores) * (48 << 20));
    let options = Options { size, shards: Some(cores.into()), ..Options::default() };
    let region = Region::open(lab.path(name), &options)?;
    let info = region.info().clone();
    let part = |seed: ShardSeed| {
        let reach = Reach::new(eal, &info, &seed, &[id])?;
        Ok(Part { seed, reach })
    };
    let parts = region.into_seeds().into_iter().map(part).collect::<Result<_>>()?;
    let (last, addresses): (u8, Vec<String>) = match role {
        Role::Server | Role::SleepingServer => {
            (2, vec![format!("{SERVER_V4}/24"), format!("{SERVER_V6}/64")])
        }
        Role::Client { .. } => (1, vec![format!("{KERNEL_V4}/24")]),
    };
    let parse = |address: &String| address.parse().map_err(|()| anyhow!("{address}"));
    let addresses = addresses.iter().map(parse).collect::<Result<Vec<IpCidr>>>()?;
    // Where a packet socket is the device, frames go to the address of the interface.
    let mac = Some(id.info()?.host_mac()).filter(|mac| *mac != [0; 6]).unwrap_or([2, 0, 0, 0, 0, last]);
    let config = Config { max_connections: 64, ..Config::new(mac, addresses).context("no random numbers")? };
    let cores = NonZeroU16::new(cores).context("no cores")?;
    let rings = DpdkConfig { rx_interrupts: matches!(role, Role::SleepingServer), ..DpdkConfig::default() };
    Ok((PortShare::at(eal, id, cores, rings)?, parts, config))
}

impl Echo {
    /// Starts the cores, and returns once all are at the port.
    pub fn start(eal: Eal, lab: &Lab, device: &str, cores: u16, role: Role) -> Result<Self> {
        let (shares, parts, config) = prepare(eal, lab, device, cores, role)?;
        let plan = shares[0].plan();
        let (stop, leave) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (at_rest, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (ready, started): (Sender<Option<Waker>>, Receiver<_>) = channel();
        let clock = Clock::start();
        let core = |(share, part)| {
            let (config, ready) = (config.clone(), ready.clone());
            let (stop, leave) = (stop.clone(), leave.clone());
            let (at_rest, done) = (at_rest.clone(), done.clone());
            std::thread::spawn(move || {
                let core = Core { eal, role, clock, stop, at_rest, leave, done };
                core.run(share, part, config, &ready)
            })
        };
        let cores: Vec<_> = shares.into_iter().zip(parts).map(core).collect();
        drop(ready);
        let mut echo = Self { stop, at_rest, leave, done, wakers: Vec::new(), plan, cores };
        let begun = echo.cores.iter().map_while(|_| started.recv().ok()).collect::<Vec<_>>();
        let have_all = begun.len() == echo.cores.len();
        echo.wakers = begun.into_iter().flatten().collect();
        if have_all {
            return Ok(echo);
        }
        echo.stop()?;
        Err(anyhow!("a core ended before it had begun"))
    }

    pub fn plan(&self) -> QueuePlan {
        self.plan
    }

    pub fn is_running(&self) -> bool {
        self.cores.iter().all(|core| !core.is_finished())
    }

    /// Waits until all cores of a client have heard everything.
    pub fn wait_until_done(&self) -> Result<()> {
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while self.done.load(Ordering::Relaxed) < self.cores.len() {
            ensure!(self.is_running(), "a core has stopped");
            ensure!(std::time::Instant::now() < end, "not all was heard");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Has the cores stop polling, with the port still open: memif's driver unmaps the rings of a port whose peer
    /// leaves, even while they are polled.
    pub fn rest(&self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while self.at_rest.load(Ordering::Acquire) < self.cores.len() {
            ensure!(self.is_running(), "a core has ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Stops the cores, and says what each did.
    pub fn stop(self) -> Result<Vec<Outcome>> {
        self.stop.store(true, Ordering::Relaxed);
        self.leave.store(true, Ordering::Relaxed);
        self.wakers.iter().for_each(Waker::wake);
        self.cores.into_iter().map(|core| core.join().map_err(|_| anyhow!("a core panicked"))?).collect()
    }
}

struct Core {
    eal: Eal,
    role: Role,
    clock: Clock,
    stop: Arc<AtomicBool>,
    at_rest: Arc<AtomicUsize>,
    leave: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
}

impl Core {
    fn run(
        self,
        share: PortShare,
        part: Part,
        config: Config,
        ready: &Sender<Option<Waker>>,
    ) -> Result<Outcome> {
        let _registered = self.eal.register_thread()?;
        let core = share.core();
        let shard = part.seed.open()?;
        let arena = shard.arena().clone();
        let mut transport = share.take(config, part.reach, arena, self.clock.now())?;
        let mut service = EchoService::default();
        if let Role::Server | Role::SleepingServer = self.role {
            for address in [IpAddr::V4(SERVER_V4), IpAddr::V6(SERVER_V6)] {
                transport.endpoint_mut().listen(SocketAddr::new(address, PORT), 64)?;
            }
        } else {
            while !transport.port().link()?.up {
                ensure!(!self.stop.load(Ordering::Relaxed), "the link did not come up");
                std::thread::yield_now();
            }
        }
        transport.claim_addresses(|| self.clock.now())?;
        ready.send(transport.waker()?)?;
        if let Role::Client { connections, bytes } = self.role {
            for number in 0..connections {
                let remote = SocketAddr::new(SERVER_V4.into(), PORT);
                let conn = transport.endpoint_mut().connect(self.clock.now(), remote, None)?;
                let says = noise(u64::from(core) << 32 | number as u64, bytes);
                service.talks.insert(conn, Talk { says, ..Talk::default() });
            }
        }
        self.serve(Server::new(transport, service, shard))
    }

    fn serve(&self, mut server: Server<DpdkTransport, EchoService>) -> Result<Outcome> {
        let mut is_done = false;
        let rest = match self.role {
            Role::SleepingServer => Rest::Wait { after: Duration::ZERO, limit: LONG },
            _ => Rest::Spin,
        };
        server.run_with(&self.clock, &self.stop, rest, |server, _, turn| {
            if turn.is_idle && rest == Rest::Spin {
                std::thread::yield_now();
            }
            let talks = &server.service().talks;
            if !is_done && matches!(self.role, Role::Client { .. }) && talks.is_empty() {
                is_done = true;
                self.done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        })?;
        self.at_rest.fetch_add(1, Ordering::Release);
        while !self.leave.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (transport, service, _) = server.into_parts();
        let EchoService { opened, logged_bytes, heard_bytes, .. } = service;
        let packed_bytes = transport.endpoint().counters().copied_bytes;
        Ok(Outcome { opened, logged_bytes, heard_bytes, packed_bytes, port: transport.counters() })
    }
}

/// Longer than a test may take: who is not woken is found asleep.
const LONG: Duration = Duration::from_secs(600);

/// A connection.
#[derive(Default)]
struct Talk {
    /// What waits for the commit, and what waits for room.
    echoes: VecDeque<Extent>,
    peer_finished: bool,
    /// A client's part.
    says: Vec<u8>,
    said: usize,
    heard: usize,
}

#[derive(Default)]
struct EchoService {
    talks: HashMap<ConnId, Talk>,
    opened: u64,
    logged_bytes: u64,
    heard_bytes: u64,
    uncommitted: Vec<ConnId>,
}

impl EchoService {
    fn receive<N: Net>(&mut self, conn: ConnId, net: &mut N, shard: &mut Shard) {
        let Some(talk) = self.talks.get_mut(&conn) else { return };
        while let Some(slot) = net.recv(conn) {
            if !talk.says.is_empty() {
                let expected = &talk.says[talk.heard..];
                assert!(expected.starts_with(slot.bytes()), "wrong bytes at {}", talk.heard);
                talk.heard += slot.bytes().len();
                self.heard_bytes += slot.bytes().len() as u64;
                continue;
            }
            let extent = slot.keep();
            let mut draft = shard.draft();
            shard.push(&mut draft, extent.clone()).expect("the piece lies in the core's own arena");
            shard.append(draft).map(drop).expect("there is room in the log");
            self.logged_bytes += extent.len() as u64;
            talk.echoes.push_back(extent);
            self.uncommitted.push(conn);
        }
    }

    fn send<N: Net>(&mut self, conn: ConnId, net: &mut N) {
        let Some(talk) = self.talks.get_mut(&conn) else { return };
        if !talk.says.is_empty() {
            while talk.said < talk.says.len() {
                let len = net.send_space(conn).bytes.min(talk.says.len() - talk.said);
                if len == 0 || net.send(conn, &talk.says[talk.said..talk.said + len]).is_err() {
                    return;
                }
                talk.said += len;
            }
            return net.finish(conn);
        }
        while let Some(extent) = talk.echoes.front() {
            if net.send_extent(conn, extent.clone()).is_err() {
                return;
            }
            talk.echoes.pop_front();
        }
        if talk.peer_finished {
            net.finish(conn);
        }
    }
}

impl Service for EchoService {
    fn event<N: Net>(&mut self, event: Event, net: &mut N, shard: &mut Shard) {
        match event {
            Event::Opened { conn, .. } => {
                self.opened += 1;
                self.talks.entry(conn).or_default();
                self.send(conn, net);
            }
            Event::Readable { conn } => self.receive(conn, net, shard),
            Event::Writable { conn } => self.send(conn, net),
            Event::PeerFinished { conn } => {
                self.receive(conn, net, shard);
                if let Some(talk) = self.talks.get_mut(&conn) {
                    talk.peer_finished = true;
                }
                if !self.uncommitted.contains(&conn) {
                    self.send(conn, net);
                }
            }
            Event::Closed { conn, .. } => {
                if let Some(talk) = self.talks.remove(&conn) {
                    assert_eq!(talk.heard, talk.says.len(), "the connection ended early");
                }
            }
            Event::Datagrams { .. } => {}
        }
    }

    fn committed<N: Net>(&mut self, _: &Durable, net: &mut N, _: &mut Shard) {
        for conn in std::mem::take(&mut self.uncommitted) {
            self.send(conn, net);
        }
    }

    fn commit_failed<N: Net>(&mut self, error: &CommitError, _: &mut N, _: &mut Shard) {
        panic!("{error}");
    }
}
