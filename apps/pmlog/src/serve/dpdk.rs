//! The stack on a DPDK port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use dpdk::{Eal, PortError, PortId, QueuePlan, RegisteredThread};
use pmem::{RegionInfo, Shard, ShardSeed};
use serde::Serialize;
use stack::net::Transport as _;
use stack::time::Instant;
use stack::transport::OverEndpoint as _;
use stack::transport::dpdk::{DpdkConfig, DpdkError, DpdkSeat, DpdkTransport, Reach};
use stack::{AddressConflict, Config};
use stack::{EthernetAddress, IpCidr};

use super::clock::Clock;
use super::{Access, BACKLOG, SLEEP, Served, receive_buffers_for};
use crate::cli::{DpdkArgs, HeaderSplit, IdleMode, ServeArgs};
use crate::service::Waker;

/// How long other hosts have to say that an address is theirs: three probes, and a moment for the answer.
const PROBING: Duration = Duration::from_millis(300);

/// How the loop rests when the port is idle: after a while without work, for a while. None if it never does.
pub(super) type Rests = Option<Rest>;

/// A rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    after: Duration,
    /// At most; a frame ends it sooner, where the port has been told to interrupt.
    limit: Duration,
}

/// The device that was asked for, not started yet.
pub(super) struct Device<'a> {
    options: &'a DpdkArgs,
    eal: Eal,
    id: PortId,
    mac: [u8; 6],
}

impl<'a> Device<'a> {
    pub(super) fn find(options: &'a DpdkArgs) -> Result<Self> {
        let eal = Eal::init(dpdk::arguments_for(&[&options.dev], &options.eal))?;
        let id = eal.attach(&options.dev)?;
        let mac = options.mac.map_or(id.info()?.host_mac(), |mac| mac.0);
        ensure!(mac != [0; 6], "{} has no Ethernet address of its own; give it one with --mac", options.dev);
        Ok(Self { options, eal, id, mac })
    }

    /// Lets the device reach a shard's buffers.
    fn reach(&self, info: &RegionInfo, seed: &ShardSeed) -> Result<Reach> {
        let reach = if self.options.no_dma_map { Reach::without_dma_map } else { Reach::new };
        Ok(reach(self.eal, info, seed, &[self.id])?)
    }
}

/// One core's place at the port, and where its payload goes.
pub(super) struct Seat {
    seat: DpdkSeat,
    reach: Reach,
    config: Config,
}

impl Access for Device<'_> {
    type Transport = DpdkTransport;
    type Seat = Seat;
    type Presence = RegisteredThread;
    type Found = Found;

    fn seats(
        &mut self,
        args: &ServeArgs,
        info: &RegionInfo,
        seeds: &[ShardSeed],
        cores: NonZeroU16,
    ) -> Result<Vec<Seat>> {
        // Before recovery writes to the store: one that the device cannot reach stays as it is.
        let seeds = seeds.iter().take(cores.get().into());
        let reaches = seeds.map(|seed| self.reach(info, seed)).collect::<Result<Vec<_>>>()?;
        let options = self.options;
        let config = Config {
            gateway_v4: options.gateway,
            gateway_v6: options.gateway6,
            max_connections: args.places(),
            ..Config::new(self.mac, options.addresses())
                .context("no random numbers for the stack's secrets")?
        };
        let rings = DpdkConfig {
            rx_descriptors: receive_buffers_for(info.geometry.buffers as usize),
            header_split: options.header_split == HeaderSplit::Auto,
            rx_interrupts: options.idle == IdleMode::Interrupt,
            ..DpdkConfig::default()
        };
        let seats = DpdkSeat::at(self.eal, self.id, cores, rings)?;
        for seat in &seats {
            seat.check(&config, info.geometry.buffers as usize, info.geometry.buffer_bytes.into())?;
        }
        let seat = |(seat, reach)| Seat { seat, reach, config: config.clone() };
        Ok(seats.into_iter().zip(reaches).map(seat).collect())
    }

    fn enter(&self) -> Result<RegisteredThread> {
        Ok(self.eal.register_thread()?)
    }

    fn start(&self, seat: Seat, _: &ServeArgs, shard: &Shard, clock: &Clock) -> Result<DpdkTransport> {
        let Seat { seat, reach, config } = seat;
        let is_first = seat.core() == 0;
        let taken = seat.take(config, reach, shard.arena().clone(), clock.now());
        let mut transport = taken.map_err(|error| match error {
            DpdkError::Port(PortError::NoRxInterrupts { .. }) => {
                anyhow!("{error} (here: --idle nap in place of --idle interrupt)")
            }
            DpdkError::Port(PortError::UnroutedRxInterrupts { .. }) => {
                anyhow!("{error} (here: behind all other options, -- --vfio-intr=msi)")
            }
            error => error.into(),
        })?;
        for address in self.options.addresses() {
            let address = SocketAddr::new(IpAddr::from(address.address()), self.options.port);
            transport.endpoint_mut().listen(address, BACKLOG.into())?;
        }
        claim_addresses(&mut transport, is_first, clock)?;
        Ok(transport)
    }

    fn rests(&self) -> Rests {
        let DpdkArgs { idle, idle_after_us, idle_nap_us, .. } = self.options;
        let duration = |us: &u32| Duration::from_micros((*us).into());
        let limit = match idle {
            IdleMode::Spin => return None,
            IdleMode::Nap => duration(idle_nap_us),
            IdleMode::Interrupt => SLEEP,
        };
        Some(Rest { after: duration(idle_after_us), limit })
    }

    fn found(&self, transport: &DpdkTransport) -> Found {
        Found::new(self.options, transport)
    }
}

impl Served for DpdkTransport {
    type Totals = Totals;
    type Rest = Rests;

    fn totals(&self) -> Totals {
        let port = self.counters();
        Totals {
            frames_received: port.received,
            frames_sent: port.sent,
            frames_without_buffer: port.no_spare,
            frames_copied: port.copied_frames,
            frames_crossed: port.crossed,
            crossed_bytes: port.crossed_bytes,
            frames_lost_between_cores: port.crossing_lost,
            retransmits: self.endpoint().counters().retransmits,
        }
    }

    /// Naps, or sleeps until there is something to do, after a while without work.
    fn rest(&mut self, wanted: &Rests, now: Instant, idle: Duration) -> Result<()> {
        if let Some(Rest { after, limit }) = *wanted
            && idle >= after
        {
            let due = self.next_deadline().map_or(limit, |due| due.max(now) - now);
            if due > Duration::ZERO {
                self.sleep(due.min(limit))?;
            }
        }
        Ok(())
    }

    fn tell(&mut self) {
        if let Some(AddressConflict { ip, mac }) = self.endpoint_mut().take_conflict() {
            tracing::warn!(
                "the host {} says that it has this server's address {ip}; clients may reach either of the two: give \
                 one of them another address",
                EthernetAddress(mac)
            );
        }
    }

    fn waker(&mut self) -> Result<Option<Waker>> {
        Ok(DpdkTransport::waker(self))
    }
}

/// What went through the port since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Totals {
    frames_received: u64,
    frames_sent: u64,
    frames_without_buffer: u64,
    frames_copied: u64,
    /// Frames that came to another core than their connection's, and payload copied into its arena for that.
    frames_crossed: u64,
    crossed_bytes: u64,
    frames_lost_between_cores: u64,
    retransmits: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.frames_received += other.frames_received;
        self.frames_sent += other.frames_sent;
        self.frames_without_buffer += other.frames_without_buffer;
        self.frames_copied += other.frames_copied;
        self.frames_crossed += other.frames_crossed;
        self.crossed_bytes += other.crossed_bytes;
        self.frames_lost_between_cores += other.frames_lost_between_cores;
        self.retransmits += other.retransmits;
    }
}

/// What the port turned out to be.
#[derive(Serialize)]
pub(super) struct Found {
    transport: &'static str,
    device: String,
    driver: String,
    link_up: Option<bool>,
    link_mbps: Option<u32>,
    /// Only if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    header_split: Option<bool>,
    /// Pairs of queues, where there are several cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    queues: Option<u16>,
    addresses: Vec<String>,
    port: u16,
    #[serde(skip)]
    link: String,
    #[serde(skip)]
    spread: Option<String>,
    #[serde(skip)]
    headers: Option<String>,
}

impl Found {
    fn new(options: &DpdkArgs, transport: &DpdkTransport) -> Self {
        let port = transport.port();
        let (info, link) = (port.info(), port.link());
        let split = (options.header_split == HeaderSplit::Auto).then_some(&info.header_split);
        Self {
            transport: "dpdk",
            device: info.name.clone(),
            driver: info.driver.clone(),
            link_up: link.as_ref().ok().map(|link| link.up),
            link_mbps: link.as_ref().ok().and_then(|link| link.speed_mbps),
            header_split: split.map(Result::is_ok),
            queues: (transport.cores() > 1).then_some(transport.plan().queues.get()),
            spread: (transport.cores() > 1).then(|| spread(&transport.plan(), transport.cores())),
            addresses: options.addresses().iter().map(IpCidr::to_string).collect(),
            port: options.port,
            link: match link {
                Ok(link) if link.up => match link.speed_mbps {
                    Some(speed) => format!("link up at {speed} Mbit/s"),
                    None => "link up".to_owned(),
                },
                Ok(_) => "link down".to_owned(),
                Err(error) => format!("link unknown: {error}"),
            },
            headers: split.map(|split| match split {
                Ok(point) => format!("apart from the payload: frames are split {point}"),
                Err(reason) => format!("together with the payload: {reason}"),
            }),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "device    {} (driver {}), {}", self.device, self.driver, self.link)?;
        if let Some(headers) = &self.headers {
            writeln!(out, "headers   {headers}")?;
        }
        if let Some(spread) = &self.spread {
            writeln!(out, "queues    {spread}")?;
        }
        write!(out, "serving   {} port {}", self.addresses.join(" and "), self.port)
    }
}

/// How frames come to the cores.
fn spread(plan: &QueuePlan, cores: usize) -> String {
    let queues = plan.queues.get();
    if usize::from(queues) < cores {
        return format!("{queues} ({}), dealt out to {cores} cores by a hash in software", plan.limit);
    }
    match plan.unasked {
        Some(unasked) => format!("{queues}, one for each core, by {unasked}"),
        None => format!("{queues}, one for each core, by the device's hash"),
    }
}

/// Asks the network whether somebody else has one of the server's addresses. One core asks, and all hear the answer.
fn claim_addresses(transport: &mut DpdkTransport, is_first: bool, clock: &Clock) -> Result<()> {
    if is_first {
        transport.endpoint_mut().claim_addresses(clock.now());
    }
    let end = clock.now() + PROBING;
    while clock.now() < end {
        transport.receive(clock.now())?;
        transport.transmit(clock.now())?;
        if let Some(AddressConflict { ip, mac }) = transport.endpoint().address_conflict() {
            let mac = EthernetAddress(mac);
            bail!(
                "the address {ip} is in use by the host {mac}; give the server another one with --ip or --ip6"
            );
        }
    }
    Ok(())
}
