//! `pmlog serve`: a store, a DPDK port, and the loop between them.

mod report;

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use dpdk::{Eal, ExternalArea, PortId};
use pmem::{Kind, OpenError, Options, Region, RegionInfo, Shard, ShardSeed};
use signal_hook::consts::{SIGINT, SIGTERM};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr};
use stack::net::Transport as _;
use stack::server::Server;
use stack::transport::OverEndpoint as _;
use stack::transport::dpdk::{DpdkConfig, DpdkTransport};
use stack::{AddressConflict, Config};

use crate::cli::{HeaderSplit, ServeArgs};
use crate::service::{LogService, ServiceConfig};
use report::{Report, Started};

type LogServer = Server<DpdkTransport, LogService>;

/// Half-open connections of a listener, and finished ones that wait for the service.
const BACKLOG: usize = 1024;
/// How long the loop spins without work before it lets the CPU go between looks at the port.
const SPIN: Duration = Duration::from_millis(1);
/// How long it then sleeps: short enough for a receive ring not to run over at two million frames a second.
const NAP: Duration = Duration::from_micros(100);
/// How long clients are given at the end to take what is owed to them.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long other hosts have to say that an address is theirs: three probes, and a moment for the answer.
const PROBING: Duration = Duration::from_millis(300);
/// Between two lines of rates.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Idle time after which the log's end is noted in the store, so that later losses show as what they are.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);

/// Serves until SIGINT or SIGTERM, and reports on `out`.
///
/// # Errors
/// The store or the device cannot be had, or the store failed on the way. Everything that was acknowledged is
/// in the store.
pub fn serve(args: &ServeArgs, out: &mut impl Write) -> Result<()> {
    let stop = stop_signal().context("signals cannot be handled")?;
    let clock = Clock::start();
    // The device comes first: a mistake in its name should not leave a new store behind.
    let device = Device::find(args)?;
    let existed = args.pm.exists();
    let (info, seed) = open_store(args)?;
    let (shard, transport) = start(args, &device, &info, seed, &clock).inspect_err(|_| {
        // Nobody has put anything into a file that this call has made.
        let is_file = info.kind != Kind::Memory;
        if info.is_new && is_file && !existed && fs::remove_file(&args.pm).is_err() {
            tracing::warn!(path = %args.pm.display(), "an empty store is left behind");
        }
    })?;
    let config = ServiceConfig {
        max_record_bytes: args.max_record.as_u64(),
        max_connections: args.max_connections.get(),
        domain: info.domain.to_string(),
        ..ServiceConfig::default()
    };
    let service = LogService::new(config, clock.now());
    let mut report = Report::new(args.json, out);
    report.started(&Started { args, info: &info, shard: &shard, port: transport.port() })?;
    let mut server = Server::new(transport, service, shard);
    let served = run(&mut server, &clock, &stop, &mut report);
    end(&mut server, &clock)?;
    served?;
    report.ended(&server)
}

/// Recovers the store and starts the port.
fn start(
    args: &ServeArgs,
    device: &Device,
    info: &RegionInfo,
    seed: ShardSeed,
    clock: &Clock,
) -> Result<(Shard, DpdkTransport)> {
    // Before recovery writes to the store: one that the device cannot reach stays as it is.
    let area = device.reach(args, info, &seed)?;
    let shard = seed.open()?;
    let mut transport = open_port(args, device, area, &shard, clock.now())?;
    claim_addresses(&mut transport, clock)?;
    Ok((shard, transport))
}

/// The loop: bursts while there is work, short naps while there is none.
fn run<W: Write>(
    server: &mut LogServer,
    clock: &Clock,
    stop: &AtomicBool,
    report: &mut Report<'_, W>,
) -> Result<()> {
    let mut idle_since = clock.now();
    let mut reported = clock.now();
    let mut is_noted = true;
    while !stop.load(Ordering::Relaxed) {
        let now = clock.now();
        let step = server.step(now)?;
        let (transport, service, shard) = server.parts();
        service.tick(now, transport, shard);
        if now - reported >= REPORT_EVERY {
            report.rates(server, now - reported)?;
            reported = now;
        }
        if !step.is_idle() {
            is_noted &= !step.committed;
            idle_since = now;
            continue;
        }
        let idle = now - idle_since;
        if !is_noted && idle >= CHECKPOINT_AFTER && server.service().failure().is_none() {
            let (_, _, shard) = server.parts();
            shard.checkpoint()?;
            is_noted = true;
        }
        if idle >= SPIN {
            let due = server.transport().next_deadline().map_or(NAP, |due| due.max(now) - now);
            std::thread::sleep(due.min(NAP).into());
        }
    }
    Ok(())
}

/// Answers what was asked, says goodbye, and leaves the store in order.
fn end(server: &mut LogServer, clock: &Clock) -> Result<()> {
    let (transport, service, shard) = server.parts();
    service.close(transport, shard);
    let end = clock.now() + FAREWELL;
    while server.service().counters().connections > 0 && clock.now() < end {
        server.step(clock.now())?;
    }
    let (transport, service, _) = server.parts();
    service.abort(transport);
    server.step(clock.now())?;
    if let Some(why) = server.service().failure() {
        anyhow::bail!(
            "the store failed while serving ({why}); acknowledged records are safe, check the medium"
        );
    }
    let (_, _, shard) = server.parts();
    shard.checkpoint().context("the store's end could not be noted; acknowledged records are safe")
}

fn open_store(args: &ServeArgs) -> Result<(RegionInfo, ShardSeed)> {
    let options = Options {
        size: args.pm_size.map(|size| size.as_u64()),
        shards: Some(1),
        max_record_bytes: u32::try_from(args.max_record.as_u64()).unwrap_or(u32::MAX),
        volatile: args.volatile,
        force: args.force,
        ..Options::default()
    };
    let region = Region::open(&args.pm, &options).map_err(|error| match option_for(&error) {
        Some(option) => anyhow!("{error} (here: {option})"),
        None => error.into(),
    })?;
    let info = region.info().clone();
    Ok((info, region.into_seeds().swap_remove(0)))
}

/// The option that grants what the store's error asks for.
fn option_for(error: &OpenError) -> Option<&'static str> {
    match error {
        OpenError::NoSize { .. } => Some("--pm-size 1GiB"),
        OpenError::Volatile { .. } => Some("--volatile"),
        OpenError::NotAStore { .. } | OpenError::Version { .. } | OpenError::Damaged { .. } => {
            Some("--force")
        }
        OpenError::Mismatch { .. } => Some("--pm-size, --force"),
        _ => None,
    }
}

/// The device that was asked for, not started yet.
struct Device {
    eal: Eal,
    id: PortId,
    mac: [u8; 6],
}

impl Device {
    fn find(args: &ServeArgs) -> Result<Self> {
        let eal = Eal::init(eal_arguments(&args.dev, &args.eal))?;
        let id = eal.attach(&args.dev)?;
        let mac = args.mac.map_or(id.info()?.mac, |mac| mac.0);
        ensure!(mac != [0; 6], "{} has no Ethernet address of its own; give it one with --mac", args.dev);
        Ok(Self { eal, id, mac })
    }

    /// Lets the device reach the store's buffers by DMA. Nothing is written to the store.
    fn reach(&self, args: &ServeArgs, info: &RegionInfo, seed: &ShardSeed) -> Result<ExternalArea> {
        if self.eal.uses_physical_addresses() {
            check_physical(info)?;
        }
        let (base, len_bytes) = seed.arena_memory();
        let area = ExternalArea::register(self.eal, base, len_bytes)?;
        if !args.no_dma_map {
            area.map_dma(self.id)?;
        }
        Ok(area)
    }
}

/// Refuses a store whose pages may get other physical addresses, and says what those of the others ask for.
fn check_physical(info: &RegionInfo) -> Result<()> {
    let path = info.path.display();
    match info.kind {
        Kind::DeviceDax => {
            tracing::warn!("the NIC uses physical addresses: nothing keeps it from any other memory");
        }
        Kind::FsDax => tracing::warn!(
            "the NIC uses physical addresses, and the file system does not know: while this server runs, do not \
             truncate, delete, move, defragment or reflink {path}, or the NIC will write into other files' blocks"
        ),
        kind => bail!(
            "{path} is a {kind}, whose pages the kernel may move at any time; with --iova-mode=pa use device-DAX or \
             a file on a DAX file system"
        ),
    }
    Ok(())
}

fn open_port(
    args: &ServeArgs,
    device: &Device,
    area: ExternalArea,
    shard: &Shard,
    now: Instant,
) -> Result<DpdkTransport> {
    let mut addresses = vec![IpCidr::Ipv4(args.ip)];
    addresses.extend(args.ip6.map(IpCidr::Ipv6));
    let config = Config {
        gateway_v4: args.gateway,
        gateway_v6: args.gateway6,
        max_connections: args.max_connections.get() as usize,
        ..Config::new(device.mac, addresses.clone()).context("no random numbers for the stack's secrets")?
    };
    // A small store must not end up in the receive ring as a whole.
    let descriptors = descriptors_for(shard.arena().buffers());
    let header_split = args.header_split == HeaderSplit::Auto;
    let rings = DpdkConfig { rx_descriptors: descriptors, header_split, ..DpdkConfig::default() };
    let arena = shard.arena().clone();
    let mut transport = DpdkTransport::new(device.eal, device.id, config, rings, area, arena, now)?;
    for address in addresses {
        transport
            .endpoint_mut()
            .listen(SocketAddr::new(IpAddr::from(address.address()), args.port), BACKLOG)?;
    }
    Ok(transport)
}

/// Asks the network whether somebody else has one of the server's addresses.
fn claim_addresses(transport: &mut DpdkTransport, clock: &Clock) -> Result<()> {
    transport.endpoint_mut().probe_addresses(clock.now());
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

/// EAL's arguments: the user's, and unless those speak of devices, one that keeps EAL away from all PCI devices
/// but the one that is wanted. It would otherwise try every NIC that it has a driver for.
fn eal_arguments(device: &str, user: &[String]) -> Vec<String> {
    let about_devices = ["-a", "--allow", "-b", "--block", "--no-pci"];
    let mut arguments = user.to_vec();
    if user.iter().any(|argument| about_devices.iter().any(|option| argument.starts_with(option))) {
        return arguments;
    }
    let name = device.strip_prefix("pci:").unwrap_or(device);
    let is_pci_address =
        |name: &str| name.contains(':') && name.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b));
    if name.split(',').next().is_some_and(is_pci_address) {
        arguments.extend(["-a".to_owned(), name.to_owned()]);
    } else if device.trim_start_matches("vdev:").starts_with("net_") {
        arguments.push("--no-pci".to_owned());
    }
    arguments
}

/// Receive descriptors for a store: an eighth of its buffers, within what rings usually have.
fn descriptors_for(buffers: usize) -> u16 {
    let share = (buffers / 8).clamp(64, 1024) as u16;
    // The power of two at or below it.
    1 << share.ilog2()
}

/// Set by SIGINT and SIGTERM; a second signal ends the process at once.
fn stop_signal() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// The time since the start: never set back, as the wall clock may be.
struct Clock(std::time::Instant);

impl Clock {
    fn start() -> Self {
        Self(std::time::Instant::now())
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.0.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::{descriptors_for, eal_arguments};

    #[test]
    fn eal_is_kept_away_from_other_devices() {
        let with = |device: &str, user: &[&str]| {
            let user: Vec<String> = user.iter().map(|argument| (*argument).to_owned()).collect();
            eal_arguments(device, &user).join(" ")
        };
        assert_eq!(with("net_tap0,iface=tap0", &["-l", "1"]), "-l 1 --no-pci");
        assert_eq!(with("vdev:net_memif0", &[]), "--no-pci");
        assert_eq!(with("0000:03:00.0", &["-l", "1"]), "-l 1 -a 0000:03:00.0");
        assert_eq!(with("pci:03:00.0,q=1", &[]), "-a 03:00.0,q=1");
        assert_eq!(with("03:00.0", &["-a", "04:00.0"]), "-a 04:00.0");
        assert_eq!(
            with("net_bonding0,slave=0000:03:00.0", &["--allow=0000:03:00.0"]),
            "--allow=0000:03:00.0"
        );
        assert_eq!(with("mlx5_core.sf.4", &[]), "");
    }

    #[test]
    fn a_receive_ring_leaves_a_small_store_its_buffers() {
        for (buffers, descriptors) in
            [(0, 64), (900, 64), (3500, 256), (8191, 512), (8192, 1024), (1 << 20, 1024)]
        {
            assert_eq!(descriptors_for(buffers), descriptors, "{buffers} buffers");
        }
    }
}
