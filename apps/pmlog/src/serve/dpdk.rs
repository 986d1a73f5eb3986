//! The stack on a DPDK port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use dpdk::{Eal, InterfaceState, Pool, PortError, PortId, QueuePlan, RegisteredThread, Statistics};
use pmem::{RegionInfo, Shard, ShardSeed};
use serde::Serialize;
use stack::config::{ETHERNET_HEADER_BYTES, MIN_MTU_V4, MIN_MTU_V6, VLAN_TAG_BYTES};
use stack::server::Rest;
use stack::time::Clock;
use stack::transport::OverEndpoint as _;
use stack::transport::dpdk::{DpdkConfig, DpdkError, DpdkTransport, PortShare, Reach};
use stack::{AddressConflict, Config, ConnectionOptions};
use stack::{EthernetAddress, IpCidr};

use super::access::{Access, BACKLOG, SLEEP, Served, Traffic, receive_buffers_for};
use crate::cli::{DpdkArgs, Ecn, HeaderSplit, IdleMode, PartialChecksums, ServeArgs};
use crate::service::Drops;

/// Where nothing says otherwise (RFC 894).
const USUAL_MTU: usize = 1500;
/// What a card may put behind a frame: Ethernet's check sequence.
const CHECK_BYTES: usize = 4;
/// What stands before an IP packet in a frame of a packet socket's ring: the kernel's header and the frame's own.
const RING_HEADER_BYTES: usize = 66 + ETHERNET_HEADER_BYTES;
/// Bytes of each frame of that ring, if the device's arguments do not say otherwise.
const RING_FRAME_BYTES: usize = 2048;

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

    /// The largest IP packet that the link, a buffer and the driver take, and that the user wants.
    fn mtu(&self, info: &RegionInfo) -> Result<u16> {
        let port = self.id.info()?;
        let buffer_bytes = usize::from(info.geometry.buffer_bytes);
        let tag_bytes = self.options.vlan.map_or(0, |_| VLAN_TAG_BYTES);
        let around = Pool::HEADROOM + ETHERNET_HEADER_BYTES + tag_bytes + CHECK_BYTES;
        let in_buffer = buffer_bytes.saturating_sub(around);
        let is_packet_socket = port.driver == "net_af_packet";
        let (most, why) = match ring_frame_bytes(&self.options.dev).saturating_sub(RING_HEADER_BYTES) {
            in_ring if is_packet_socket && in_ring < in_buffer => {
                (in_ring, "a frame of net_af_packet's ring")
            }
            _ => (in_buffer, "a buffer of the store (--buffer-bytes)"),
        };
        let interface = match port.interface.filter(|_| is_packet_socket) {
            Some(interface) => {
                let state = interface.state().context("the kernel does not tell the interface's MTU")?;
                Some(state.with_context(|| format!("the interface of {} is gone", self.options.dev))?)
            }
            None => None,
        };
        let of_link = interface.as_ref().map_or(USUAL_MTU, |interface| interface.mtu as usize);
        let mtu = match (self.options.mtu.map(usize::from), &interface) {
            (Some(mtu), _) if mtu > most => {
                bail!("--mtu {mtu} is more than {why} takes; at most {most} bytes are possible")
            }
            (Some(mtu), Some(InterfaceState { name, .. })) if mtu > of_link => bail!(
                "--mtu {mtu} is more than the {of_link} bytes of the interface {name}; raise that first: \
                 ip link set {name} mtu {mtu}"
            ),
            (Some(mtu), _) => mtu,
            (None, _) => of_link.min(most),
        };
        let (least, who, remedy) = match self.options.ip6 {
            Some(_) => (MIN_MTU_V6, "IPv6 needs (RFC 8200, section 5)", "raise it, or leave --ip6 out"),
            None => (MIN_MTU_V4, "every IPv4 host takes (RFC 791, section 3.1)", "raise it"),
        };
        ensure!(mtu >= least, "the MTU of {mtu} bytes is less than the {least} that {who}; {remedy}");
        Ok(mtu as u16)
    }

    /// Lets the device reach a shard's buffers.
    fn reach(&self, info: &RegionInfo, seed: &ShardSeed) -> Result<Reach> {
        let reach = if self.options.no_dma_map { Reach::without_dma_map } else { Reach::new };
        Ok(reach(self.eal, info, seed, &[self.id])?)
    }
}

/// One core's part of the port, and where its payload goes.
pub(super) struct CorePort {
    port: PortShare,
    reach: Reach,
    config: Config,
}

impl Access for Device<'_> {
    type Transport = DpdkTransport;
    type CorePort = CorePort;
    type Presence = RegisteredThread;
    type Found = Found;

    fn ports(
        &mut self,
        args: &ServeArgs,
        info: &RegionInfo,
        seeds: &[ShardSeed],
        cores: NonZeroU16,
    ) -> Result<Vec<CorePort>> {
        // Before recovery writes to the store: one that the device cannot reach stays as it is.
        let seeds = seeds.iter().take(cores.get().into());
        let reaches = seeds.map(|seed| self.reach(info, seed)).collect::<Result<Vec<_>>>()?;
        let options = self.options;
        let mtu = self.mtu(info)?;
        let config = Config {
            mtu: mtu.into(),
            vlan: options.vlan,
            gateway_v4: options.gateway,
            gateway_v6: options.gateway6,
            routes: options.route.clone(),
            dscp: options.dscp,
            max_connections: args.places(),
            congestion: options.congestion,
            ecn: match options.ecn {
                Ecn::Answer => stack::Ecn::Answer,
                Ecn::Off => stack::Ecn::Off,
            },
            connection: ConnectionOptions {
                keepalive: args.keepalive(),
                user_timeout: args.user_timeout(),
                ..ConnectionOptions::default()
            },
            rx_window_bytes: options.receive_limit.as_u64() as usize,
            ..Config::new(self.mac, options.addresses())
                .context("no random numbers for the stack's secrets")?
        };
        let rings = DpdkConfig {
            rx_descriptors: receive_buffers_for(info.geometry.buffers as usize),
            header_split: options.header_split == HeaderSplit::Auto,
            rx_interrupts: options.idle == IdleMode::Interrupt,
            partial_checksums: options.partial_checksums == PartialChecksums::Accept,
            ..DpdkConfig::default()
        };
        let ports = PortShare::at(self.eal, self.id, cores, rings)?;
        for port in &ports {
            port.check(&config, info.geometry.buffers as usize, info.geometry.buffer_bytes.into())?;
        }
        let port = |(port, reach)| CorePort { port, reach, config: config.clone() };
        Ok(ports.into_iter().zip(reaches).map(port).collect())
    }

    fn enter(&self) -> Result<RegisteredThread> {
        Ok(self.eal.register_thread()?)
    }

    fn start(&self, port: CorePort, _: &ServeArgs, shard: &Shard, clock: &Clock) -> Result<DpdkTransport> {
        let CorePort { port, reach, config } = port;
        let taken = port.take(config, reach, shard.arena().clone(), clock.now());
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
        transport.claim_addresses(|| clock.now()).map_err(|error| anyhow!("{error} (--ip or --ip6)"))?;
        Ok(transport)
    }

    fn rest(&self) -> Rest {
        let DpdkArgs { idle, idle_after_us, idle_nap_us, .. } = self.options;
        let duration = |us: &u32| Duration::from_micros((*us).into());
        let limit = match idle {
            IdleMode::Spin => return Rest::Spin,
            IdleMode::Nap => duration(idle_nap_us),
            IdleMode::Interrupt => SLEEP,
        };
        Rest::Wait { after: duration(idle_after_us), limit }
    }

    fn found(&self, transport: &DpdkTransport) -> Found {
        Found::new(self.options, transport)
    }
}

impl Served for DpdkTransport {
    type Totals = Totals;

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
            address_conflicts: self.endpoint().counters().address_conflicts,
            drops: drops(self),
            partial_checksums: self.endpoint().counters().partial_checksums,
            narrowed: narrowed(self),
            link_up: (self.core() == 0).then(|| self.port().link().ok()).flatten().map(|link| link.up),
        }
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

    fn check(&self) -> Result<()> {
        ensure!(
            self.core() != 0 || !self.port().is_removed(),
            "the device {} is gone: it was unplugged, or its interface was deleted or moved to another network \
             namespace; bring it back and start again",
            self.port().info().name
        );
        Ok(())
    }
}

/// The MTU of the kernel's interface behind the port, if it has become less than the server's.
fn narrowed(transport: &DpdkTransport) -> Option<u32> {
    let interface = transport.port().info().interface.filter(|_| transport.core() == 0)?;
    let mtu = interface.state().ok()??.mtu;
    ((mtu as usize) < transport.mtu()).then_some(mtu)
}

/// What was dropped: by the stack, on the way between stack and port, and by the device, which the first core tells of
/// for all.
fn drops(transport: &DpdkTransport) -> Drops {
    let port = transport.counters();
    let device = (transport.core() == 0).then(|| transport.port().statistics().ok()).flatten();
    let of_device = |count: fn(&Statistics) -> u64| device.as_ref().map(count);
    let missed = device.as_ref().and_then(|device| device.rx_missed);
    let stack = transport.endpoint().counters().drops;
    Drops::of(stack.kinds().map(|(kind, count)| (kind, Some(count))).chain([
        ("misplaced", Some(port.misplaced)),
        ("too_long_to_send", Some(port.too_long)),
        ("between_cores", Some(port.crossing_lost)),
        ("device_missed", missed),
        ("device_errors", of_device(|device| device.rx_errors)),
        ("device_no_mbuf", of_device(|device| device.rx_no_mbuf)),
        ("device_not_sent", of_device(|device| device.tx_errors)),
    ]))
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
    /// Segments that were taken though their checksum was left to a device.
    partial_checksums: u64,
    /// Frames by which another host said that it has one of the server's addresses.
    address_conflicts: u64,
    drops: Drops,
    /// Whether frames can pass; the first core tells for all.
    link_up: Option<bool>,
    #[serde(skip)]
    narrowed: Option<u32>,
}

impl Traffic for Totals {
    fn received(&self) -> u64 {
        self.frames_received
    }

    fn drops(&self) -> &Drops {
        &self.drops
    }

    fn link_up(&self) -> Option<bool> {
        self.link_up
    }

    fn narrowed(&self) -> Option<u32> {
        self.narrowed
    }

    fn address_conflicts(&self) -> Option<u64> {
        Some(self.address_conflicts)
    }
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
        self.partial_checksums += other.partial_checksums;
        self.address_conflicts += other.address_conflicts;
        self.drops += other.drops;
        self.link_up = self.link_up.or(other.link_up);
        self.narrowed = self.narrowed.or(other.narrowed);
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
    mtu: usize,
    congestion: &'static str,
    addresses: Vec<String>,
    port: u16,
    #[serde(skip)]
    link: String,
    #[serde(skip)]
    spread: Option<String>,
    /// Whether checksums that a kernel has left to a card are taken, where frames may come straight from one.
    #[serde(skip)]
    takes_partial: Option<bool>,
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
            mtu: transport.mtu(),
            takes_partial: info
                .sees_partial_checksums
                .then_some(options.partial_checksums == PartialChecksums::Accept),
            congestion: options.congestion.name(),
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
        let Self { device, driver, link, mtu, congestion, .. } = self;
        writeln!(out, "device    {device} (driver {driver}), {link}, MTU {mtu}, {congestion}")?;
        if let Some(taken) = self.takes_partial {
            let taken = if taken { "taken" } else { "dropped" };
            writeln!(
                out,
                "peers     on this machine: checksums that their kernel leaves to a card are {taken}, frames that it \
                 leaves uncut are dropped; on their interface: ethtool -K INTERFACE tx off tso off gso off"
            )?;
        }
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

/// Bytes of a frame of net_af_packet's ring, by the device's arguments.
fn ring_frame_bytes(device: &str) -> usize {
    let value = device.split(',').find_map(|argument| argument.strip_prefix("framesz="));
    value.and_then(|value| value.parse().ok()).unwrap_or(RING_FRAME_BYTES)
}
