//! The ports, the cores, and which core forwards what.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use dpdk::{Eal, Offloads, Pool, Port, PortConfig, PortId, PortInfo, RxQueue, TxQueue};
use pmem::{Contents, Kind, Options, Region, RegionInfo, ShardSeed};
use stack::transport::dpdk::Reach;

use crate::burst::MAX_BURST;
use crate::capture::CaptureFile;
use crate::cli::{Cli, Mode, PoolKind, Topology};
use crate::packet::{SegmentLengths, Template};
use crate::stream::{Counters, Route, Stream};
use crate::worker::{Run, Worker, WorkerConfig, ensure_room};

/// How long links are given to come up, and how often they are looked at.
const LINK_WAIT: Duration = Duration::from_secs(3);
const LINK_POLL: Duration = Duration::from_millis(5);

/// Ports and cores that are ready to forward.
pub struct Forwarder {
    ports: Vec<FwdPort>,
    workers: Vec<Worker>,
    /// What is not in a stream just now, by port and queue.
    rx_queues: HashMap<(usize, u16), RxQueue>,
    tx_queues: HashMap<(usize, u16), TxQueue>,
    /// Each core's receive queues, by port and queue.
    shares: Vec<Vec<(usize, u16)>>,
    counters: HashMap<(usize, u16), Arc<Counters>>,
    settings: Settings,
    topology: Topology,
    running: Option<Running>,
    store: Option<RegionInfo>,
    capture: Option<CaptureFile>,
}

/// What can be changed between two runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is done with received frames.
    pub mode: Mode,
    /// Packets in a burst at most.
    pub burst: usize,
    /// Segments of frames that are made here.
    pub segments: SegmentLengths,
    /// Flows that flowgen goes through.
    pub flows: u32,
}

/// A port, and the address of what is connected to it.
pub struct FwdPort {
    /// The port.
    pub port: Port,
    /// The address of what is connected to it.
    pub peer: [u8; 6],
}

struct Running {
    stop: Arc<AtomicBool>,
    /// The streams of each core that has any, in the order of the cores.
    routes: Vec<Vec<Route>>,
}

impl Forwarder {
    /// Starts EAL, ports and cores as told, unless `stop` is set while the store is opened. `failed` is told when a core stops by
    /// itself.
    ///
    /// # Errors
    /// The first thing that is not to be had, and what to do about it.
    pub fn new(
        cli: &Cli,
        stop: &Arc<AtomicBool>,
        failed: impl Fn() + Clone + Send + 'static,
    ) -> Result<Self> {
        let existed = cli.pm.as_ref().is_none_or(|path| path.exists());
        let mut made = None;
        let begun = Self::begin(cli, stop, failed, &mut made);
        // Nobody has put anything into a file that this call has made. It is gone already if no shard of it was opened.
        if begun.is_err()
            && !existed
            && let Some(info) = made.filter(|info| info.is_new && info.kind != Kind::Memory)
            && fs::remove_file(&info.path).is_err_and(|error| error.kind() != io::ErrorKind::NotFound)
        {
            tracing::warn!(path = %info.path.display(), "an empty store is left behind");
        }
        begun
    }

    /// As [`new`](Self::new); notes which store was opened on the way.
    fn begin(
        cli: &Cli,
        stop: &Arc<AtomicBool>,
        failed: impl Fn() + Clone + Send + 'static,
        made: &mut Option<RegionInfo>,
    ) -> Result<Self> {
        let kind = cli.pool_kind().map_err(anyhow::Error::msg)?;
        let eal = Eal::init(dpdk::arguments_for(&cli.dev, &cli.eal))?;
        let ids = find_ports(eal, &cli.dev)?;
        let infos = ids.iter().map(|id| id.info()).collect::<Result<Vec<_>, _>>()?;
        let (rxq, txq) = (cli.rxq.get(), cli.txq.get());
        let pairs: Vec<(usize, u16)> =
            (0..rxq.min(txq)).flat_map(|queue| (0..ids.len()).map(move |port| (port, queue))).collect();
        let cores = usize::from(cli.nb_cores.get()).min(pairs.len());
        let cpus = forwarding_cpus(eal, usize::from(cli.nb_cores.get()))?;
        let shares = shared_out(&pairs, cores);
        // All that can be refused comes before the store's first shard is opened: until then it is as it was.
        for info in &infos {
            info.check(&port_config(cli, info))?;
        }
        let (store, seeds) = open_store(cli, kind, cores, stop)?;
        *made = store.clone();
        if let Some(info) = &store {
            let buffers = info.geometry.buffers as usize;
            for share in &shares {
                ensure_room(mbufs_for(cli, share, &infos, cores), buffers, buffers)?;
            }
        }
        let capture = cli.pcap_out.as_deref().map(CaptureFile::create).transpose()?;
        let mut workers = Vec::with_capacity(cores);
        let reachable = |(info, seed)| {
            let reach = Reach::new(eal, info, &seed, &ids)?;
            Ok((seed, reach))
        };
        let stores = store.iter().cycle().zip(seeds).map(reachable).collect::<Result<Vec<_>>>()?;
        let mut stores = stores.into_iter();
        for (index, share) in shares.iter().enumerate() {
            let store = stores.next();
            let config = WorkerConfig {
                index,
                cpu: cpus[index],
                mbufs: mbufs_for(cli, share, &infos, cores),
                cache: cli.mbcache,
                in_flight: (u32::from(cli.txd.get()) + MAX_BURST as u32) * share.len() as u32,
                store,
                ports: ids.clone(),
                when_full: cli.log_full,
                capture: capture.as_ref().map(CaptureFile::tap),
            };
            workers.push(Worker::start(eal, config, failed.clone())?);
        }
        let mut forwarder = Self {
            ports: Vec::new(),
            rx_queues: HashMap::new(),
            tx_queues: HashMap::new(),
            counters: pairs.iter().map(|pair| (*pair, Arc::default())).collect(),
            settings: Settings {
                mode: cli.forward_mode,
                burst: cli.burst,
                segments: cli.txpkts.clone(),
                flows: cli.flowgen_flows.get(),
            },
            topology: cli.port_topology,
            running: None,
            workers,
            shares,
            store,
            capture,
        };
        for (number, (id, info)) in ids.into_iter().zip(&infos).enumerate() {
            forwarder.start_port(cli, number, id, info)?;
        }
        if !cli.disable_link_check {
            forwarder.wait_for_links()?;
        }
        Ok(forwarder)
    }

    /// Gives the links time to come up: what is sent before that is lost.
    fn wait_for_links(&self) -> Result<()> {
        let end = Instant::now() + LINK_WAIT;
        for port in &self.ports {
            while !port.port.link()?.up {
                if Instant::now() >= end {
                    tracing::warn!(port = port.port.info().name, "the link is down");
                    break;
                }
                std::thread::sleep(LINK_POLL);
            }
        }
        Ok(())
    }

    fn start_port(&mut self, cli: &Cli, number: usize, id: PortId, info: &PortInfo) -> Result<()> {
        let (rx_queues, tx_queues) = (cli.rxq.get(), cli.txq.get());
        let pool_of = |queue| {
            let core = self.shares.iter().position(|share| share.contains(&(number, queue)));
            // A queue that nobody polls takes its few mbufs from any pool.
            self.workers[core.unwrap_or(0)].pool().clone()
        };
        let pools: Vec<Pool> = (0..rx_queues).map(pool_of).collect();
        let mut port = Port::start(id, &port_config(cli, info), &pools)?;
        for queue in 0..rx_queues {
            self.rx_queues.insert((number, queue), port.rx_queue(queue)?);
        }
        for queue in 0..tx_queues {
            self.tx_queues.insert((number, queue), port.tx_queue(queue)?);
        }
        let given = cli.eth_peer.iter().find(|(port, _)| *port == number).map(|(_, address)| address.0);
        self.ports.push(FwdPort { port, peer: given.unwrap_or([2, 0, 0, 0, 0, number as u8]) });
        Ok(())
    }

    /// The ports, in the order of their numbers.
    pub fn ports(&self) -> &[FwdPort] {
        &self.ports
    }

    /// What can be changed while nothing runs.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes how the next run goes.
    ///
    /// # Errors
    /// It runs, or the mode needs a store and there is none.
    pub fn change(&mut self, change: impl FnOnce(&mut Settings)) -> Result<()> {
        ensure!(self.running.is_none(), "packets are being forwarded: stop first");
        let mut settings = self.settings.clone();
        change(&mut settings);
        ensure!(
            settings.mode != Mode::Log || self.store.is_some(),
            "mode log needs a store: start with --pm PATH"
        );
        self.settings = settings;
        Ok(())
    }

    /// The store that packets lie in, if they do.
    pub fn store(&self) -> Option<&RegionInfo> {
        self.store.as_ref()
    }

    /// Whether packets are being forwarded.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// What is being forwarded, by core.
    pub fn routes(&self) -> &[Vec<Route>] {
        self.running.as_ref().map_or(&[], |running| &running.routes)
    }

    /// What has passed since the last start, by receiving port and queue.
    pub fn counters(&self) -> impl Iterator<Item = ((usize, u16), &Counters)> {
        self.counters.iter().map(|(pair, counters)| (*pair, &**counters))
    }

    /// Which port sends what a port has received.
    pub fn sends_for(&self, port: usize) -> usize {
        // Answers go back to who asked.
        let topology = if self.settings.mode == Mode::Icmpecho { Topology::Loop } else { self.topology };
        peer_of(topology, port, self.ports.len())
    }

    /// Begins to forward, with as many bursts from each port first.
    ///
    /// # Errors
    /// It runs already, or a core is gone.
    pub fn start(&mut self, tx_first: u32) -> Result<()> {
        ensure!(self.running.is_none(), "packets are being forwarded already");
        let stop = Arc::new(AtomicBool::new(false));
        let template =
            |port: &FwdPort| Template::new(&self.settings.segments, port.port.info().mac, port.peer);
        let templates: Arc<[Template]> = self.ports.iter().map(template).collect();
        self.counters.values().for_each(|counters| counters.reset());
        let mut routes = Vec::new();
        for (core, share) in self.shares.clone().into_iter().enumerate() {
            let mut streams = Vec::with_capacity(share.len());
            for pair in share {
                streams.push(self.take_stream(pair).context("a queue was lost with a core; start again")?);
            }
            routes.push(streams.iter().map(|stream| stream.route).collect());
            let Settings { mode, burst, flows, .. } = self.settings;
            let (templates, stop) = (Arc::clone(&templates), Arc::clone(&stop));
            self.workers[core].run(Run { mode, burst, tx_first, templates, flows, streams, stop })?;
        }
        self.running = Some(Running { stop, routes });
        Ok(())
    }

    fn take_stream(&mut self, pair: (usize, u16)) -> Option<Stream> {
        let (rx_port, queue) = pair;
        let tx_port = self.sends_for(rx_port);
        let rx = self.rx_queues.remove(&pair)?;
        let tx = self.tx_queues.remove(&(tx_port, queue))?;
        let sender = &self.ports[tx_port];
        let route = Route { rx_port, tx_port, queue, mac: sender.port.info().mac, peer: sender.peer };
        Some(Stream { rx, tx, route, counters: Arc::clone(&self.counters[&pair]) })
    }

    /// Ends forwarding and waits until all cores have stopped.
    ///
    /// # Errors
    /// It did not run, or a core had stopped by itself: the reason.
    pub fn stop(&mut self) -> Result<()> {
        let Some(running) = self.running.take() else { bail!("no packets are being forwarded: start first") };
        running.stop.store(true, Ordering::Relaxed);
        let mut outcome = Ok(());
        for worker in self.workers.iter().take(running.routes.len()) {
            let stopped = worker.wait()?;
            for Stream { rx, tx, route, .. } in stopped.streams {
                self.rx_queues.insert((route.rx_port, route.queue), rx);
                self.tx_queues.insert((route.tx_port, route.queue), tx);
            }
            outcome = outcome.and(stopped.outcome);
        }
        outcome
    }

    /// Closes everything. Returns how many frames are in the capture file, and how many are missing there.
    ///
    /// # Errors
    /// The store's or the file's end could not be written.
    pub fn end(mut self) -> Result<Option<(u64, u64)>> {
        let mut outcome = if self.is_running() { self.stop() } else { Ok(()) };
        for worker in self.workers {
            outcome = outcome.and(worker.end());
        }
        let captured = self.capture.map(CaptureFile::close).transpose()?;
        outcome.map(|()| captured)
    }
}

/// The ports of the devices named, or all that there are.
fn find_ports(eal: Eal, devices: &[String]) -> Result<Vec<PortId>> {
    if devices.is_empty() {
        eal.first_port()?;
        return Ok(eal.ports());
    }
    let mut ports = Vec::with_capacity(devices.len());
    for device in devices {
        let id = eal.attach(device)?;
        ensure!(!ports.contains(&id), "{device} is named twice; each port once");
        ports.push(id);
    }
    Ok(ports)
}

/// Which port sends what `port` of `count` has received.
fn peer_of(topology: Topology, port: usize, count: usize) -> usize {
    match topology {
        Topology::Paired if port ^ 1 < count => port ^ 1,
        Topology::Paired | Topology::Loop => port,
        Topology::Chained => (port + 1) % count,
    }
}

/// Cuts the queues into as many shares as there are cores, the last ones being longer by one if they must.
fn shared_out<T: Clone>(all: &[T], cores: usize) -> Vec<Vec<T>> {
    let (each, longer) = (all.len() / cores, all.len() % cores);
    let mut rest = all;
    let share = |core| {
        let (share, behind) = rest.split_at(each + usize::from(core >= cores - longer));
        rest = behind;
        share.to_vec()
    };
    (0..cores).map(share).collect()
}

/// The CPUs of EAL's worker lcores; without any, those that this process may use, but the first if that is not
/// needed.
fn forwarding_cpus(eal: Eal, cores: usize) -> Result<Vec<usize>> {
    let workers = eal.worker_cpus();
    if !workers.is_empty() {
        ensure!(
            cores <= workers.len(),
            "EAL has {} lcores besides the first, and --nb-cores asks for {cores}; name more CPUs with -l",
            workers.len()
        );
        return Ok(workers);
    }
    let mut cpus = program::permitted_cpus()?;
    ensure!(
        cores <= cpus.len(),
        "this process may use {} CPUs, and --nb-cores asks for {cores}; ask for fewer",
        cpus.len()
    );
    cpus.rotate_left(1);
    Ok(cpus)
}

/// What a core's queues and caches can hold, or its part of what was asked for.
fn mbufs_for(cli: &Cli, share: &[(usize, u16)], infos: &[PortInfo], cores: usize) -> u32 {
    if let Some(total) = cli.total_num_mbufs {
        return (total.get() / cores as u32).max(1);
    }
    let held = share.iter().map(|(port, _)| {
        let posted = u32::from(cli.rxd.get()) * infos[*port].buffers_per_descriptor as u32;
        posted + u32::from(cli.txd.get())
    });
    // A power of two less one uses DPDK's memory best.
    (held.sum::<u32>() + MAX_BURST as u32 + 2 * cli.mbcache).next_power_of_two() - 1
}

/// How a port is to be run.
fn port_config(cli: &Cli, info: &PortInfo) -> PortConfig {
    let (min_mtu, max_mtu) = info.mtu_range;
    let default = PortConfig::default();
    PortConfig {
        rx_queues: cli.rxq.get(),
        tx_queues: cli.txq.get(),
        rx_descriptors: cli.rxd.get(),
        tx_descriptors: cli.txd.get(),
        mtu: default.mtu.clamp(min_mtu, max_mtu.max(min_mtu)),
        promiscuous: true,
        // Nothing here asks a device for checksums.
        offloads: Offloads::TX_SEGMENTS,
        ..default
    }
}

/// Opens the store with a shard for each core.
fn open_store(
    cli: &Cli,
    kind: PoolKind,
    cores: usize,
    stop: &Arc<AtomicBool>,
) -> Result<(Option<RegionInfo>, Vec<ShardSeed>)> {
    let (PoolKind::Pm, Some(path)) = (kind, &cli.pm) else { return Ok((None, Vec::new())) };
    let options = Options {
        size: cli.pm_size.map(|size| size.as_u64()),
        shards: Some(cores as u32),
        populate: true,
        volatile: cli.volatile,
        force: cli.force,
        watch: program::watch_opening("pmfwd", cli.json, stop),
        contents: Contents::Frames,
        ..Options::default()
    };
    let region = Region::open(path, &options).context(
        "the store of --pm cannot be opened (--pm-size SIZE makes one, with a shard for each core; --force formats \
         what is there; --volatile takes memory that does not survive)",
    )?;
    let info = region.info().clone();
    Ok((Some(info), region.into_seeds()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_paired_as_testpmd_pairs_them() {
        let peers = |topology, count| -> Vec<usize> {
            (0..count).map(|port| peer_of(topology, port, count)).collect()
        };
        assert_eq!(peers(Topology::Paired, 4), [1, 0, 3, 2]);
        assert_eq!(peers(Topology::Paired, 3), [1, 0, 2]);
        assert_eq!(peers(Topology::Paired, 1), [0]);
        assert_eq!(peers(Topology::Chained, 3), [1, 2, 0]);
        assert_eq!(peers(Topology::Loop, 2), [0, 1]);
    }

    #[test]
    fn queues_are_shared_out_evenly_and_in_order() {
        assert_eq!(shared_out(&[1, 2, 3, 4, 5], 2), [vec![1, 2], vec![3, 4, 5]]);
        assert_eq!(shared_out(&[1, 2], 2), [[1], [2]]);
        assert_eq!(shared_out(&[1, 2, 3], 1), [[1, 2, 3]]);
    }
}
