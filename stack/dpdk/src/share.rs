//! Putting several cores at one port: each prepares its part in its own thread, the last one starts the port, and
//! then each has its queues.

use std::num::NonZeroU16;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use dpdk::{
    Completions, Eal, ExternalPoolConfig, MbufBatch, Offloads, Pool, PoolConfig, Port, PortConfig, PortId,
    PortInfo, QueuePlan, ReceiveHash, RxQueue, Sleeper, TxQueue, UnaskedSpread, queues_for,
};
use pmem::Arena;
use stack_net::doze::Waker;
use stack_net::time::Instant;
use stack_tcp::config::{ETHERNET_HEADER_BYTES, VLAN_TAG_BYTES};
use stack_tcp::{Config, CoreShare, DeviceSpread, Endpoint, FlowDirectory, RxChecksum, Steering};

use super::exchange::{Exchange, NEWS, STRAYS};
use super::reach::Reach;
use super::receive::NamedBuffers;
use super::send::{BLANKS, Exit, MAX_SEGMENTS_TO_CUT, Sender, tag_of};
use super::{DpdkConfig, DpdkError, DpdkTransport};

/// Mbufs that a pool's caches may hold back for each core.
const POOL_CACHE: u32 = 128;

/// Most frames on their way to one core.
const MAX_CROSSING: u16 = 1024;

/// One core's share of a port, for the thread that will serve there.
///
/// A share that is dropped instead of [taken](Self::take) keeps the port from starting: the others are told.
#[derive(Debug)]
pub struct PortShare {
    core: u16,
    table: Arc<Table>,
    is_taken: bool,
}

/// What the cores at a port have in common.
#[derive(Debug)]
struct Table {
    eal: Eal,
    id: PortId,
    info: PortInfo,
    rings: DpdkConfig,
    cores: u16,
    plan: QueuePlan,
    exchange: Arc<Exchange>,
    /// Which flows the cores have; made by the first to come.
    flows: OnceLock<FlowDirectory>,
    assembly: Mutex<Assembly>,
    changed: Condvar,
}

/// How far the port's start has come.
#[derive(Debug)]
enum Assembly {
    /// Cores are preparing. Those with queues have brought their pools.
    Preparing { ready: u16, pools: Vec<Option<Pools>> },
    /// The port runs; its queues are handed out.
    Running { port: Arc<Port>, queues: Vec<Option<Queues>> },
    /// It will not run.
    Abandoned,
}

/// The pools of one receive queue.
#[derive(Debug)]
struct Pools {
    payload: Pool,
    headers: Option<Pool>,
}

/// A pair of queues.
type Queues = (RxQueue, TxQueue);

/// What one core holds at the port.
struct CoreQueues {
    port: Arc<Port>,
    queues: Option<Queues>,
}

impl PortShare {
    /// Shares of the port `id` for `cores` cores. They use as many of its queues as
    /// [`queues_for`] allows: one each if the device spreads frames over as many, and otherwise those with a queue
    /// deal frames out to all, by a hash of addresses and ports.
    ///
    /// # Errors
    /// [`DpdkError`]: the device is gone, or spreads frames over queues that nobody would look at.
    pub fn at(eal: Eal, id: PortId, cores: NonZeroU16, rings: DpdkConfig) -> Result<Vec<Self>, DpdkError> {
        let info = id.info()?;
        let plan = queues_for(&info.spread, cores, cores);
        let unseen =
            info.spread.unasked == Some(UnaskedSpread::AllQueues) && info.max_rx_queues > plan.queues.get();
        if unseen {
            let (device, queues) = (info.name, info.max_rx_queues);
            return Err(DpdkError::UnseenQueues { device, queues, seen: plan.queues.get() });
        }
        let crossing = rings.rx_descriptors.clamp(1, MAX_CROSSING);
        let queues = usize::from(plan.queues.get());
        let pools = (0..queues).map(|_| None).collect();
        let table = Arc::new(Table {
            eal,
            id,
            info,
            rings,
            cores: cores.get(),
            plan,
            exchange: Exchange::new(cores.get().into(), crossing.into()),
            flows: OnceLock::new(),
            assembly: Mutex::new(Assembly::Preparing { ready: 0, pools }),
            changed: Condvar::new(),
        });
        let share = |core| Self { core, table: table.clone(), is_taken: false };
        Ok((0..cores.get()).map(share).collect())
    }

    /// Which core's share it is, from 0.
    pub fn core(&self) -> u16 {
        self.core
    }

    /// How the port's queues are laid out.
    pub fn plan(&self) -> QueuePlan {
        self.table.plan
    }

    /// Checks what can be checked before there is an arena: that the share can be taken over one of so many buffers,
    /// all free, with this `config`.
    ///
    /// # Errors
    /// [`DpdkError::Config`] and [`DpdkError::Arena`], as [`take`](Self::take).
    pub fn check(&self, config: &Config, buffers: usize, buffer_bytes: usize) -> Result<(), DpdkError> {
        config.check(buffer_bytes)?;
        let needed = self.needed();
        if buffers <= needed {
            return Err(DpdkError::Arena { needed, free: buffers, buffers });
        }
        Ok(())
    }

    /// Prepares this core's part over the buffers of `arena`, of which the port has the `reach`. Then waits for the
    /// other cores, which all have the same `config` but for its
    /// [`core`](Config::core), which is set here, and for its limits.
    ///
    /// # Errors
    /// [`DpdkError`], and [`DpdkError::Abandoned`] to the others; nothing was sent. The arena's buffers that were
    /// meant for the port are lost to this process.
    pub fn take(
        mut self,
        mut config: Config,
        reach: Reach,
        arena: Arena,
        now: Instant,
    ) -> Result<DpdkTransport, DpdkError> {
        let (table, area) = (self.table.clone(), reach.area());
        config.core = CoreShare { index: self.core, count: table.cores };
        config.tx_checksum_offload = table.info.offloads.contains(Offloads::TX_TCP_CHECKSUM);
        config.tx_segmentation =
            cuts_frames(table.info.offloads, table.info.max_tx_segments, area.contiguous_pieces());
        let (mtu, secret, vlan) = (config.mtu, config.isn_secret, config.vlan);
        let flows = config.max_connections + config.syn_queue + config.max_time_wait;
        let mut endpoint = Endpoint::new(config, arena.clone(), now)?;
        if table.cores > 1 {
            let all = || FlowDirectory::new(&secret, flows * usize::from(table.cores));
            endpoint.share_flows(table.flows.get_or_init(all).clone());
        }

        let mut buffers = NamedBuffers::new(arena, reach);
        buffers.cold_spares = table.info.copies_by_cpu.then(|| Vec::with_capacity(MbufBatch::CAPACITY));
        if table.rings.partial_checksums && table.info.sees_partial_checksums {
            buffers.unverified = RxChecksum::UnknownOrPartial;
        }
        let has_queue = self.core < table.plan.queues.get();
        let pools = if has_queue { Some(self.receive_pools(&mut buffers)?) } else { None };
        let (heads, completions) = self.transmit_pools(mtu)?;
        let completions = completions.within(area);
        let sleeper = table.rings.rx_interrupts.then(Sleeper::new).transpose()?;

        self.is_taken = true;
        let CoreQueues { port, queues } = table.join(self.core, pools, mtu)?;
        let deals = table.plan.queues.get() < table.cores;
        if !deals && table.plan.hashes != 0 {
            match spread_of(&port, table.cores) {
                Some(spread) => endpoint.spread_by(spread),
                None => tracing::debug!(
                    port = table.info.name,
                    "the device does not say how it hashes: cores pass on what is of connections that they open"
                ),
            }
        }
        let (rx, exit) = match queues {
            Some((rx, tx)) => (Some(rx), Exit::Queue { tx, of_others: deals.then(Box::default) }),
            None => (None, Exit::Core(usize::from(self.core % table.plan.queues))),
        };
        if let Some(sleeper) = &sleeper {
            let bell = sleeper.bell();
            table.exchange.wake_by(self.core.into(), Waker::new(move || bell.ring()));
        }
        Ok(DpdkTransport {
            endpoint,
            core: self.core.into(),
            rx,
            received: MbufBatch::new(),
            own: MbufBatch::new(),
            steering: deals.then(|| Steering::new(&secret, table.cores)),
            buffers,
            sender: Sender {
                core: self.core.into(),
                exit,
                exchange: table.exchange.clone(),
                heads,
                blanks: Box::new(MbufBatch::new()),
                waiting: MbufBatch::new(),
                completions,
                area,
                tag: vlan.map(tag_of),
                max_frame_bytes: mtu + ETHERNET_HEADER_BYTES,
                too_long: 0,
                sent: 0,
                departed: 0,
                copied_bytes: 0,
            },
            sleeper,
            plan: table.plan,
            port,
        })
    }

    /// The name of one of this core's pools.
    fn name(&self, kind: &str) -> String {
        let port = &self.table.info.name;
        if self.core == 0 { format!("{kind}{port}") } else { format!("{kind}{port}.{}", self.core) }
    }

    /// Frames that may wait for other cores, of each that deals out.
    fn crossing(&self) -> usize {
        let Table { cores, plan, rings, .. } = &*self.table;
        let others = usize::from(cores - 1);
        if plan.queues.get() < *cores {
            others * usize::from(rings.rx_descriptors.clamp(1, MAX_CROSSING))
        } else {
            0
        }
    }

    /// Buffers that the receive queue and its pool take.
    fn needed(&self) -> usize {
        let Table { info, rings, cores, plan, .. } = &*self.table;
        // What the device holds, bursts in our hands, what the pool's caches keep back, and what others have.
        let posted = usize::from(rings.rx_descriptors) * info.buffers_per_descriptor;
        let holders = if plan.queues.get() < *cores { usize::from(*cores) } else { 1 };
        let in_hand = holders * (MbufBatch::CAPACITY + 2 * POOL_CACHE as usize);
        posted + in_hand + self.crossing()
    }

    /// Lends buffers of the arena to a pool for the receive queue.
    fn receive_pools(&self, buffers: &mut NamedBuffers) -> Result<Pools, DpdkError> {
        let Table { eal, info, rings, plan, .. } = &*self.table;
        let needed = self.needed();
        let config = ExternalPoolConfig { cache: POOL_CACHE, socket: info.socket };
        let payload = Pool::clone(buffers.lend(*eal, &self.name("rx"), needed, &config)?);
        // A device that splits posts a buffer for headers with each one for payload, from one pool for all queues.
        let headers = if rings.header_split && info.header_split.is_ok() && self.core == 0 {
            Some(self.dram("hd", needed as u32 * u32::from(plan.queues.get()), 0)?)
        } else {
            None
        };
        Ok(Pools { payload, headers })
    }

    /// Memory for headers, and places for payload, of frames on their way out.
    fn transmit_pools(&self, mtu: usize) -> Result<(Pool, Completions<pmem::Extent>), DpdkError> {
        let Table { eal, info, rings, cores, .. } = &*self.table;
        let in_flight = u32::from(rings.tx_descriptors) + MbufBatch::CAPACITY as u32;
        let others = u32::from(cores - 1);
        // Copies for others, and what the caches of those keep that send or free them.
        let lent = others * (2 * POOL_CACHE + (STRAYS + NEWS) as u32);
        // A frame may be copied as a whole; one of received frames fits a buffer of the arena.
        let longest = mtu + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES;
        let heads = self.dram("tx", 2 * in_flight + 2 * POOL_CACHE + BLANKS as u32 + lent, longest)?;
        let completions = Completions::new(*eal, &self.name("pm"), 4 * in_flight, info.socket)?;
        Ok((heads, completions))
    }

    /// Mbufs that hold frames of so many bytes, and of the usual length.
    fn dram(&self, kind: &str, mbufs: u32, frame_bytes: usize) -> Result<Pool, DpdkError> {
        let Table { eal, info, .. } = &*self.table;
        let usual = PoolConfig::default();
        let buffer_bytes =
            (Pool::HEADROOM + frame_bytes).clamp(usual.buffer_bytes.into(), u16::MAX.into()) as u16;
        let config = PoolConfig { mbufs, cache: POOL_CACHE, socket: info.socket, buffer_bytes };
        Ok(Pool::dram(*eal, &self.name(kind), &config)?)
    }
}

/// How a port's device gives frames to so many cores, if it says so and each gets some.
fn spread_of(port: &Port, cores: u16) -> Option<DeviceSpread> {
    let ReceiveHash { key, table, tcp_v4, tcp_v6 } = port.receive_hash()?;
    DeviceSpread::new(&key, &table, cores, [tcp_v4, tcp_v6]).ok()
}

/// Whether a port that takes so many segments in a frame can be given frames to cut, with payload where it lies in an area
/// of so many pieces.
fn cuts_frames(offloads: Offloads, max_segments: Option<u16>, pieces: usize) -> bool {
    let needed = Offloads::TX_TCP_SEGMENTATION
        | Offloads::TX_TCP_CHECKSUM
        | Offloads::TX_IPV4_CHECKSUM
        | Offloads::TX_SEGMENTS;
    let takes_pieces = max_segments.is_none_or(|max| usize::from(max) > MAX_SEGMENTS_TO_CUT);
    // What a device does not see in one piece is copied, and so long a frame has nothing to be copied into.
    offloads.contains(needed) && takes_pieces && pieces == 1
}

impl Drop for PortShare {
    fn drop(&mut self) {
        if !self.is_taken {
            self.table.abandon();
        }
    }
}

impl Table {
    /// Brings a core's pools, and waits until the port runs. The last core starts it.
    fn join(&self, core: u16, pools: Option<Pools>, mtu: usize) -> Result<CoreQueues, DpdkError> {
        let mut assembly = self.assembly.lock().unwrap_or_else(PoisonError::into_inner);
        if let Assembly::Preparing { ready, pools: all } = &mut *assembly {
            if let Some(place) = all.get_mut(usize::from(core)) {
                *place = pools;
            }
            *ready += 1;
            if *ready == self.cores {
                let pools = std::mem::take(all).into_iter().flatten().collect();
                let started = self.start(pools, mtu);
                *assembly = match started {
                    Ok((port, queues)) => Assembly::Running { port, queues },
                    Err(error) => {
                        *assembly = Assembly::Abandoned;
                        self.changed.notify_all();
                        return Err(error);
                    }
                };
                self.changed.notify_all();
            }
        }
        loop {
            match &mut *assembly {
                Assembly::Preparing { .. } => {
                    assembly = self.changed.wait(assembly).unwrap_or_else(PoisonError::into_inner);
                }
                Assembly::Running { port, queues } => {
                    let queues = queues.get_mut(usize::from(core)).and_then(Option::take);
                    return Ok(CoreQueues { port: port.clone(), queues });
                }
                Assembly::Abandoned => return Err(DpdkError::Abandoned),
            }
        }
    }

    fn start(&self, pools: Vec<Pools>, mtu: usize) -> Result<(Arc<Port>, Vec<Option<Queues>>), DpdkError> {
        let queues = self.plan.queues.get();
        let (payload, headers): (Vec<_>, Vec<_>) =
            pools.into_iter().map(|pools| (pools.payload, pools.headers)).unzip();
        let config = PortConfig {
            rx_queues: queues,
            tx_queues: queues,
            rx_descriptors: self.rings.rx_descriptors,
            tx_descriptors: self.rings.tx_descriptors,
            mtu: mtu as u16,
            headers: headers.into_iter().flatten().next(),
            rx_interrupts: self.rings.rx_interrupts,
            ..PortConfig::default()
        };
        let mut port = Port::start(self.id, &config, &payload)?;
        let mut queue = |index| Ok::<_, DpdkError>(Some((port.rx_queue(index)?, port.tx_queue(index)?)));
        let queues = (0..queues).map(&mut queue).collect::<Result<_, _>>()?;
        Ok((Arc::new(port), queues))
    }

    /// One core is not coming.
    fn abandon(&self) {
        let mut assembly = self.assembly.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*assembly, Assembly::Preparing { .. }) {
            *assembly = Assembly::Abandoned;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_cuts_frames_only_if_it_does_all_that_goes_with_it() {
        let all = Offloads::all();
        assert!(cuts_frames(all, None, 1) && cuts_frames(all, Some(17), 1));
        for needed in [
            Offloads::TX_TCP_SEGMENTATION,
            Offloads::TX_TCP_CHECKSUM,
            Offloads::TX_IPV4_CHECKSUM,
            Offloads::TX_SEGMENTS,
        ] {
            assert!(!cuts_frames(all - needed, None, 1), "{needed:?}");
        }
        assert!(!cuts_frames(all, Some(16), 1), "a header and sixteen pieces");
        assert!(!cuts_frames(all, None, 2), "pieces that a device does not see as one");
    }
}
