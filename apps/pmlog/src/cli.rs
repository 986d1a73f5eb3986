//! The command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use pmem::DomainChoice;
use program::parse_size;
use program::store::Dropped;
use stack::{
    CongestionControl, EthernetAddress, IpCidr, Ipv4Cidr, Ipv6Cidr, Keepalive, Route, check_gateway,
    check_own, check_routes,
};

use crate::client::Url;
use crate::http::RecordName;
use crate::service::{Bound, MAX_SHARDS, Retain, SPARE_PLACES};

const SERVE_EXAMPLES: &str = "\
Examples:
  A store in a file, the network over a veth pair (as root, or in a network namespace):
    pmlog serve --pm /var/lib/pmlog.pm --pm-size 1GiB \\
        --dev net_af_packet0,iface=veth1 --ip 10.0.0.2/24
  Two cores, on CPUs 0 and 1, each with a queue of the device and a shard of the store:
    pmlog serve --pm /var/lib/pmlog.pm --pm-size 1GiB --cores 0,1 \\
        --dev net_af_packet0,iface=veth1,qpairs=2 --ip 10.0.0.2/24
  A network card bound to vfio-pci, and device-DAX memory:
    pmlog serve --pm /dev/dax0.0 --dev 0000:03:00.0 --ip 10.0.0.2/24 --gateway 10.0.0.1 -- -l 1
  Linux' own TCP, which copies what arrives into the store, on all addresses of this host:
    pmlog serve --pm /var/lib/pmlog.pm --pm-size 1GiB --transport kernel --listen '[::]:8080'
  Then, from another host:
    curl --data-binary @FILE http://10.0.0.2/append
    curl http://10.0.0.2/records/1 ; curl 'http://10.0.0.2/records?from=1&limit=10'
    curl -X DELETE 'http://10.0.0.2/records?before=5' ; curl http://10.0.0.2/health";

const INSPECT_EXAMPLES: &str = "\
Examples:
  pmlog dump --pm /var/lib/pmlog.pm                    a table of the records
  pmlog dump --pm /var/lib/pmlog.pm --json | jq .seq   one JSON object a line
  pmlog dump --pm /var/lib/pmlog.pm --record 7 > body  one record's bytes";

const EXPORT_EXAMPLES: &str = "\
Examples:
  pmlog export --url http://10.0.0.2 log.archive           all that a server has now
  pmlog export --url http://10.0.0.2 - | zstd > log.zst    the same, compressed on its way
  pmlog export --pm /var/lib/pmlog.pm log.archive          a store that nobody serves
  pmlog backup --url http://10.0.0.2 log.archive           what came since
  pmlog import log.archive                                 is it whole?
  pmlog import --url http://10.0.0.3 log.archive           into an empty store
  pmlog import --url http://10.0.0.3 --at next log.archive behind what is there";

/// An HTTP log server whose records are durable where the network card put them.
#[derive(Debug, Parser)]
#[command(name = "pmlog", version, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage. PMLOG_LOG=debug shows more of what happens."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a store over a network device.
    Serve(Box<ServeArgs>),
    /// Show the records of a store, without changing it.
    Dump(DumpArgs),
    /// Check every record of a store, without changing it; exit 1 if any is corrupt.
    Verify(VerifyArgs),
    /// Write the records of a server, or of a store that nobody serves, into an archive.
    Export(ExportArgs),
    /// Bring an archive up to what a server has.
    Backup(BackupArgs),
    /// Append the records of an archive to a server's log, each once however often it is interrupted; or check an archive.
    Import(ImportArgs),
    /// List the damaged records of a store, which are passed over, or give them up.
    Quarantine(QuarantineArgs),
}

/// The longest times that connections go by: a week.
const MAX_SECONDS: i64 = 7 * 24 * 3600;

/// Where the store is and how it is reached from the network.
#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES)]
pub struct ServeArgs {
    /// The store: a file, a device-DAX device, or `memory:` (gone at exit).
    #[arg(long, value_name = "PATH")]
    pub pm: PathBuf,
    /// How large to make a new store; an existing one must have this size.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub pm_size: Option<ByteSize>,
    /// The longest record.
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_record_size)]
    pub max_record: ByteSize,
    /// How many clients may be connected at a time. A few more connections are taken to answer GET /health, and to
    /// refuse everything else.
    #[arg(long, value_name = "N", default_value = "1024")]
    pub max_connections: NonZeroU32,
    /// How many of them may follow the log, or have records streamed to them (GET /records with follow=1 or content=1), at a
    /// time.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_followers: u32,
    /// After how many seconds of silence a client is asked whether it is still there. One that does not answer four times,
    /// over another minute at most, is disconnected; with --transport kernel one that does not answer once, and has been
    /// silent for as long as --user-timeout says. 0 asks nobody.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(..=MAX_SECONDS))]
    pub keep_alive: u32,
    /// After how many seconds a client is disconnected that acknowledges nothing of what was sent to it; with
    /// --transport kernel also one that acknowledges, and takes nothing.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=MAX_SECONDS))]
    pub user_timeout: u32,
    /// Trim the oldest records beyond this: 100GiB of records together, 7d of age, or 1e9 records. May be given once of
    /// each kind: a record stays that is within all of them. Without it, records stay until somebody deletes them, and
    /// appends are refused when the store is full.
    #[arg(long, value_name = "SIZE|AGE|COUNT", value_parser = clap::value_parser!(Bound))]
    pub retain: Vec<Bound>,
    /// Format PATH though it already holds a store or something else. What it held is lost.
    #[arg(long)]
    pub force: bool,
    /// Accept a store on memory that loses everything with the power (tmpfs, hugetlbfs).
    #[arg(long)]
    pub volatile: bool,
    /// How records reach PATH.
    #[arg(long, value_enum, default_value_t = DomainOption::Auto)]
    pub domain: DomainOption,
    /// The CPUs to serve with, one core each, as taskset writes them: 0,1 or 0-3. Each has a shard of the store and
    /// a connection table of its own. Without it, one core serves, on whichever CPU the system likes.
    #[arg(long, value_name = "CPUS", value_parser = parse_cpus)]
    pub cores: Option<CpuList>,
    /// Shards to make a new store with, if not one for each core; an existing one must have as many. A store can be
    /// served with as many cores as it has shards, or fewer.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_SHARDS as i64))]
    pub shards: Option<u32>,
    /// How many entries to make the log of each shard of a new store with, a power of two: a record takes one for each four
    /// pieces of network segments, and one at least. Without it, three to six for each buffer of 2176 bytes; an existing
    /// store must have as many.
    #[arg(long, value_name = "N")]
    pub log_entries: Option<u32>,
    /// How long to make the buffers of a new store, a multiple of 64. A frame has to fit one, and 146 bytes beside: take 9216
    /// for an MTU of 9000; over net_af_packet as much as a frame of its ring has (framesz=12288,blocksz=12288), and 128. Without it, 2176; an existing store must have such buffers.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1024..))]
    pub buffer_bytes: Option<u16>,
    /// Copy records shorter than this together, so that they share buffers. Longer ones stay where the network put them, and
    /// take whole buffers of 2176 bytes: 1 KiB takes 2.1 times its bytes. With 1025 that takes 1.1 times, and a copy of
    /// each. From half a buffer on, no two fit into one. At most the length of a buffer.
    #[arg(long, value_name = "BYTES", default_value_t = 512, value_parser = clap::value_parser!(u16).range(33..))]
    pub pack_below: u16,
    /// How many bytes each core reads in a second, while it serves, of what it had not read when the store was opened: so
    /// damage is found that nobody asks for. 0 leaves it to be found when it is read.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    pub scrub_rate: ByteSize,
    /// Report as JSON lines instead of text.
    #[arg(long)]
    pub json: bool,
    /// Measure how long each stage of a burst takes; a table of it comes at the end and at each SIGUSR1.
    #[arg(long)]
    pub profile: bool,
    /// How the server is reached.
    #[command(flatten)]
    pub network: Network,
}

impl ServeArgs {
    /// The CPU of each core; none for one that goes where the system likes.
    pub fn cpus(&self) -> Vec<Option<usize>> {
        self.cores.as_ref().map_or(vec![None], |CpuList(cpus)| cpus.iter().copied().map(Some).collect())
    }

    /// Connections that a core's network takes: those of clients, and some for looks at the server's health when all
    /// those are taken.
    pub fn places(&self) -> usize {
        self.max_connections.get() as usize + SPARE_PLACES as usize
    }

    /// What is kept of the records.
    pub fn retained(&self) -> Retain {
        Retain::of(&self.retain).unwrap_or_default()
    }

    /// How a connection is probed that has long been silent.
    pub fn keepalive(&self) -> Option<Keepalive> {
        let idle = Duration::from_secs(self.keep_alive.into());
        let interval = (idle / 8).clamp(Duration::from_secs(1), Duration::from_secs(15));
        (self.keep_alive > 0).then_some(Keepalive { idle, interval, count: 4 })
    }

    /// How long a client may acknowledge nothing.
    pub fn user_timeout(&self) -> Duration {
        Duration::from_secs(self.user_timeout.into())
    }

    /// What does not go together, in words.
    pub fn contradiction(&self) -> Option<String> {
        if let Err(bound) = Retain::of(&self.retain) {
            return Some(format!(
                "--retain {bound}: there is another bound of that kind, leave one of them out"
            ));
        }
        match &self.network {
            Network::Dpdk(dpdk) => dpdk.unreachable().or_else(|| self.missing_shards()),
            Network::Kernel(_) => self.missing_shards(),
        }
    }

    fn missing_shards(&self) -> Option<String> {
        let (cores, shards) = (self.cpus().len(), self.shards?);
        (cores > shards as usize).then(|| {
            format!("--shards {shards} is too few for {cores} cores, which need one each: raise it, or leave it out")
        })
    }
}

/// Numbers of CPUs, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

/// How a server is reached.
#[derive(Debug)]
pub enum Network {
    /// The stack on a DPDK port.
    Dpdk(DpdkArgs),
    /// Linux' sockets.
    Kernel(KernelArgs),
}

/// The options of all transports, as the command line defines them.
#[derive(Debug, Args)]
struct NetworkArgs {
    /// Whose TCP/IP serves.
    #[arg(long, value_name = "NAME", value_enum, default_value_t = TransportName::Dpdk)]
    transport: TransportName,
    #[command(flatten)]
    dpdk: Option<DpdkArgs>,
    #[command(flatten)]
    kernel: Option<KernelArgs>,
}

/// How records reach the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DomainOption {
    /// Persistent memory by cache lines, and a file by the page cache.
    Auto,
    /// A file, or a whole block device, is held in memory as large as it is, and commits are written to it past the page
    /// cache (O_DIRECT and io_uring). For disks.
    Disk,
}

impl From<DomainOption> for DomainChoice {
    fn from(option: DomainOption) -> Self {
        match option {
            DomainOption::Auto => Self::Found,
            DomainOption::Disk => Self::Disk,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TransportName {
    /// The stack on a DPDK device, which --dev and --ip name: nothing is copied.
    Dpdk,
    /// Linux' TCP through io_uring, on the addresses of --listen: the kernel copies each byte that arrives once,
    /// into the store.
    Kernel,
}

/// A DPDK device, and who the server is on its network.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of --transport dpdk")]
pub struct DpdkArgs {
    /// The DPDK device: a PCI address, or a virtual device such as net_tap0,iface=tap0.
    #[arg(long, value_name = "DEVICE", required = false)]
    pub dev: String,
    /// The server's IPv4 address and the length of its network's prefix.
    #[arg(long, value_name = "ADDRESS/PREFIX", value_parser = parse_ipv4, required = false)]
    pub ip: Ipv4Cidr,
    /// The server's IPv6 address and the length of its network's prefix.
    #[arg(long, value_name = "ADDRESS/PREFIX", value_parser = parse_ipv6)]
    pub ip6: Option<Ipv6Cidr>,
    /// The IPv4 router.
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Option<Ipv4Addr>,
    /// The IPv6 router. Without it, routers say of themselves where they are; what they say counts no more with it.
    #[arg(long, value_name = "ADDRESS")]
    pub gateway6: Option<Ipv6Addr>,
    /// Another router for a network: what this server sends of itself goes by the most specific route, which may also be
    /// an own network or the gateway. May be given several times. Who connects is answered where its packets come from.
    #[arg(long, value_name = "NETWORK/PREFIX=ROUTER", value_parser = clap::value_parser!(Route))]
    pub route: Vec<Route>,
    /// How routers are to serve what is sent: the differentiated services codepoint, such as 46 for expedited forwarding.
    #[arg(long, value_name = "CODEPOINT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=63))]
    pub dscp: u8,
    /// The Ethernet address, if not the device's own.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_mac)]
    pub mac: Option<EthernetAddress>,
    /// The largest IP packet in bytes, either way. Without it that of the device's interface, or 1500 where there is
    /// none, as far as a buffer of the store takes it.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(576..=9000))]
    pub mtu: Option<u16>,
    /// The VLAN (IEEE 802.1Q) that the server is in: it takes frames of that one, and puts its tag on what it sends. Without
    /// it, the server takes frames without a tag, or with a priority alone.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..=4094))]
    pub vlan: Option<u16>,
    /// How far the receive window of a connection may grow: to four times what comes in a round trip, and no further than
    /// free buffers allow. A path of 1 Gbit/s and 100 ms holds 12.5 MB.
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_window)]
    pub receive_limit: ByteSize,
    /// What to do with segments whose TCP checksum a kernel on this machine has left to its network device, as it does
    /// over veth: they hold the sum of the pseudo header only. What such a segment carries is not checked.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = PartialChecksums::Accept)]
    pub partial_checksums: PartialChecksums,
    /// What decides how much a connection has in flight: cubic, newreno, or bbr, which goes by the rate at which the path
    /// delivers and not by losses.
    #[arg(long, value_name = "NAME", default_value_t = CongestionControl::default())]
    pub congestion: CongestionControl,
    /// Whether routers may mark packets as a sign of congestion, instead of dropping them (RFC 3168). With bbr none may.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Ecn::Answer)]
    pub ecn: Ecn,
    /// The TCP port.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Have the device put headers into DRAM and payload alone into the store. With auto it does where it can, and
    /// the report at the start says whether; untried on hardware so far.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = HeaderSplit::Off)]
    pub header_split: HeaderSplit,
    /// What a core does when nothing arrives.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = IdleMode::Nap)]
    pub idle: IdleMode,
    /// How long a core polls in vain before it naps, or sleeps until an interrupt.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub idle_after_us: u32,
    /// How long a nap of --idle nap is: the longer, the less CPU time, and the more the receive queue must hold.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub idle_nap_us: u32,
    /// Do not give the store to the device by the IOMMU: for the test that shows what happens then.
    #[arg(long, hide = true)]
    pub no_dma_map: bool,
    /// Arguments for DPDK's environment layer (EAL).
    #[arg(last = true, value_name = "EAL ARGS")]
    pub eal: Vec<String>,
}

impl DpdkArgs {
    /// The server's addresses.
    pub fn addresses(&self) -> Vec<IpCidr> {
        std::iter::once(IpCidr::Ipv4(self.ip)).chain(self.ip6.map(IpCidr::Ipv6)).collect()
    }

    /// What is wrong with the routers, in words.
    fn unreachable(&self) -> Option<String> {
        let addresses = self.addresses();
        let gateways = [
            ("--gateway", "--ip", self.gateway.map(IpAddr::V4)),
            ("--gateway6", "--ip6", self.gateway6.map(IpAddr::V6)),
        ];
        let unreachable = gateways.into_iter().find_map(|(option, own, gateway)| {
            let gateway = gateway?;
            if gateway.is_ipv6() && self.ip6.is_none() {
                return Some(format!(
                    "{option} {gateway} is for a server with an IPv6 address: give it one with {own}"
                ));
            }
            let error = check_gateway(gateway, &addresses).err()?;
            Some(format!("{option} {gateway}: {error} ({own})"))
        });
        unreachable.or_else(|| {
            let error = check_routes(&self.route, &addresses).err()?;
            Some(format!("--route: {error} (--ip, --ip6)"))
        })
    }
}

/// Where Linux listens.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of --transport kernel")]
pub struct KernelArgs {
    /// An address of this host and a TCP port, such as `10.0.0.2:8080`, `0.0.0.0:8080` (all of IPv4), or `[::]:8080`
    /// (all of IPv6 and IPv4). May be given several times.
    #[arg(long, value_name = "ADDRESS:PORT", required = false)]
    pub listen: Vec<SocketAddr>,
}

impl FromArgMatches for Network {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        use ErrorKind::{ArgumentConflict, MissingRequiredArgument};
        let refuse = |kind, why| Err(clap::Error::raw(kind, why));
        let (for_dpdk, for_kernel) = (matches.contains_id("DpdkArgs"), matches.contains_id("KernelArgs"));
        match matches.get_one("transport").copied().unwrap_or(TransportName::Dpdk) {
            TransportName::Dpdk if for_kernel => refuse(
                ArgumentConflict,
                "--listen is for --transport kernel; with --transport dpdk, which is the default, --dev, --ip and \
                 --port say where the server is",
            ),
            TransportName::Dpdk if !matches.contains_id("dev") || !matches.contains_id("ip") => refuse(
                MissingRequiredArgument,
                "--transport dpdk, which is the default, needs --dev <DEVICE> and --ip <ADDRESS/PREFIX>; \
                 --transport kernel needs --listen <ADDRESS:PORT>",
            ),
            TransportName::Dpdk => DpdkArgs::from_arg_matches(matches).map(Self::Dpdk),
            TransportName::Kernel if for_dpdk => refuse(
                ArgumentConflict,
                "--dev, --ip, --port and the other options of --transport dpdk are not for --transport kernel, \
                 which serves on the addresses that Linux has: --listen <ADDRESS:PORT> says on which",
            ),
            TransportName::Kernel if !for_kernel => {
                refuse(MissingRequiredArgument, "--transport kernel needs --listen <ADDRESS:PORT>")
            }
            TransportName::Kernel => KernelArgs::from_arg_matches(matches).map(Self::Kernel),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Network {
    fn augment_args(command: clap::Command) -> clap::Command {
        NetworkArgs::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        NetworkArgs::augment_args_for_update(command)
    }
}

/// What a core does when nothing arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IdleMode {
    /// Sleeps for --idle-nap-us between looks at the port. For any device, and for servers that are seldom idle for
    /// long.
    Nap,
    /// Polls on: the shortest answer times, and all of a CPU. For CPUs that nothing else needs.
    Spin,
    /// Sleeps until the device's receive interrupt, and uses next to no CPU time meanwhile. For servers that are idle
    /// much of the time, on devices that have such interrupts: net_tap, and network cards bound to vfio-pci whose
    /// driver has them. Others are refused, among them net_af_packet and net_memif.
    Interrupt,
}

/// What to do with segments whose checksum is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PartialChecksums {
    /// Takes and counts them on net_af_packet, net_tap and net_pcap.
    Accept,
    /// Drops and counts them, as on any other device.
    Refuse,
}

/// Whether marks of congestion are heeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ecn {
    /// On connections whose client asks for it.
    Answer,
    /// On none.
    Off,
}

/// Whether headers and payload lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HeaderSplit {
    /// Where the device can.
    Auto,
    /// Whole frames lie in the store.
    Off,
}

/// Which records to show.
#[derive(Debug, Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub struct DumpArgs {
    /// The store; it must not be in use.
    #[arg(long, value_name = "PATH")]
    pub pm: PathBuf,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    pub json: bool,
    /// This record only: its bytes, or with --json what it is. In a store of several shards it is named S-N, its
    /// number behind that of its shard.
    #[arg(long, value_name = "N")]
    pub record: Option<RecordName>,
}

/// Which store to check.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The store; it must not be in use.
    #[arg(long, value_name = "PATH")]
    pub pm: PathBuf,
    /// The result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What to write into an archive.
#[derive(Debug, Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub struct ExportArgs {
    /// Whose records.
    #[command(flatten)]
    pub source: Source,
    /// Write over FILE.
    #[arg(long)]
    pub force: bool,
    /// What was done as one JSON object.
    #[arg(long)]
    pub json: bool,
    /// The archive, which has this name once it is whole; - for standard output.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Where records are.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// The server, as http://HOST:PORT. What it has when the export begins is what the archive has.
    #[arg(long, value_name = "URL")]
    pub url: Option<Url>,
    /// A store that is not in use.
    #[arg(long, value_name = "PATH")]
    pub pm: Option<PathBuf>,
}

/// Which archive to bring up to date.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The server, as http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    pub url: Url,
    /// What was done as one JSON object.
    #[arg(long)]
    pub json: bool,
    /// The archive. If it is there, what came since is added, and one that was interrupted goes on.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Which archive to import, and where to.
#[derive(Debug, Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub struct ImportArgs {
    /// The server, as http://HOST:PORT. Without it, the archive is only checked.
    #[arg(long, value_name = "URL")]
    pub url: Option<Url>,
    /// Which number the archive's first record has in the server's log, or is to have: a number that an earlier import has
    /// told, S-N in a store of several shards, or `next` to append all of them behind what is there. Without it, that of the
    /// oldest record. Records that are there are not appended again; if others are, nothing is.
    #[arg(long, value_name = "N|next", value_parser = parse_import_start, default_value = "oldest", hide_default_value = true)]
    pub at: ImportStart,
    /// What was done as one JSON object.
    #[arg(long)]
    pub json: bool,
    /// The archive; - for standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Where an import begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportStart {
    /// With the oldest record.
    Oldest,
    /// Behind all that is there.
    Next,
    /// At this number.
    At(RecordName),
}

fn parse_import_start(text: &str) -> Result<ImportStart, String> {
    match text {
        "oldest" => Ok(ImportStart::Oldest),
        "next" => Ok(ImportStart::Next),
        _ => text.parse().map(ImportStart::At).map_err(|error| format!("{error}; or write `next`")),
    }
}

/// Which damaged records to list or to give up.
#[derive(Debug, Args)]
pub struct QuarantineArgs {
    /// The store; it must not be in use.
    #[arg(long, value_name = "PATH")]
    pub pm: PathBuf,
    /// Give up this damaged record, S-N in a store of several shards, or all of them. Its buffers become free; its number
    /// stays taken, and GET says that it was dropped.
    #[arg(long, value_name = "N|all")]
    pub drop: Option<Dropped>,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
}

fn parse_record_size(text: &str) -> Result<ByteSize, String> {
    let size = parse_size(text)?;
    if (1..=u32::MAX.into()).contains(&size.as_u64()) {
        Ok(size)
    } else {
        Err("a record has at least 1 byte and less than 4 GiB".to_owned())
    }
}

fn parse_window(text: &str) -> Result<ByteSize, String> {
    let size = parse_size(text)?;
    // RFC 7323, section 2.3: scaled windows end below 2^30.
    if (64 << 10..1 << 30).contains(&size.as_u64()) {
        Ok(size)
    } else {
        Err("a window has at least 64 KiB and less than 1 GiB".to_owned())
    }
}

fn parse_cpus(text: &str) -> Result<CpuList, String> {
    let bad = || "write numbers and ranges of CPUs, such as 0,1 or 0-3, each CPU once".to_owned();
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+')).ok_or_else(bad);
        for cpu in number(first)?..=number(last)? {
            if cpus.len() == MAX_SHARDS {
                return Err(format!("at most {MAX_SHARDS} cores can serve"));
            }
            cpus.push(usize::from(cpu));
        }
    }
    let is_repeated = cpus.iter().enumerate().any(|(place, cpu)| cpus[..place].contains(cpu));
    if cpus.is_empty() || is_repeated { Err(bad()) } else { Ok(CpuList(cpus)) }
}

fn parse_ipv4(text: &str) -> Result<Ipv4Cidr, String> {
    let cidr: Ipv4Cidr =
        text.parse().map_err(|()| "write an address and a prefix length, such as 10.0.0.2/24".to_owned())?;
    check_own(&cidr.into()).map_err(|error| error.to_string())?;
    Ok(cidr)
}

fn parse_ipv6(text: &str) -> Result<Ipv6Cidr, String> {
    let cidr: Ipv6Cidr =
        text.parse().map_err(|()| "write an address and a prefix length, such as fd00::2/64".to_owned())?;
    check_own(&cidr.into()).map_err(|error| error.to_string())?;
    Ok(cidr)
}

fn parse_mac(text: &str) -> Result<EthernetAddress, String> {
    let address: EthernetAddress =
        text.parse().map_err(|()| "write six bytes in hexadecimal, such as 02:00:00:00:00:01".to_owned())?;
    if address.is_unicast() { Ok(address) } else { Err("an interface's address is not a group's".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    const DPDK: [&str; 4] = ["--dev", "net_null0", "--ip", "10.0.0.2/24"];
    const KERNEL: [&str; 4] = ["--transport", "kernel", "--listen", "10.0.0.2:80"];

    fn serve(arguments: &[&[&str]]) -> Result<ServeArgs, clap::Error> {
        let arguments = arguments.iter().copied().flatten();
        let cli = Cli::try_parse_from(["pmlog", "serve", "--pm", "p"].iter().chain(arguments))?;
        let Command::Serve(args) = cli.command else { unreachable!("serve was asked for") };
        Ok(*args)
    }

    fn serve_dpdk(more: &[&str]) -> Result<DpdkArgs, clap::Error> {
        match serve(&[&DPDK, more])?.network {
            Network::Dpdk(args) => Ok(args),
            Network::Kernel(_) => unreachable!("the default is another"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_addresses_and_eal_arguments_are_understood() {
        let args = serve(&[&DPDK, &["--pm-size", "1GiB"]]).expect("good arguments");
        assert_eq!(args.pm_size, Some(ByteSize::gib(1)));
        assert_eq!(args.max_record, ByteSize::mib(16));
        let more = "--ip6 fd00::2/64 --mac 02-00-00-00-00-01 --header-split auto -- -l 1 --no-huge";
        let args = serve_dpdk(&more.split(' ').collect::<Vec<_>>()).expect("good arguments");
        assert_eq!(args.ip6.map(|ip| ip.to_string()).as_deref(), Some("fd00::2/64"));
        assert_eq!(args.mac, Some(EthernetAddress([2, 0, 0, 0, 0, 1])));
        assert_eq!(args.header_split, HeaderSplit::Auto);
        assert_eq!(args.eal, ["-l", "1", "--no-huge"]);
        let args = serve_dpdk(&["--transport", "dpdk"]).expect("good arguments");
        assert_eq!((args.header_split, args.port), (HeaderSplit::Off, 80));
    }

    #[test]
    fn windows_grow_to_a_limit() {
        let limit = |more: &[&str]| serve_dpdk(more).map(|args| args.receive_limit.as_u64());
        assert_eq!(limit(&[]).expect("good arguments"), 16 << 20);
        assert_eq!(limit(&["--receive-limit", "64KiB"]).expect("good arguments"), 64 << 10);
    }

    #[test]
    fn idle_cores_nap_unless_they_are_told_otherwise() {
        let idle =
            |more: &[&str]| serve_dpdk(more).map(|args| (args.idle, args.idle_after_us, args.idle_nap_us));
        assert_eq!(idle(&[]).expect("good arguments"), (IdleMode::Nap, 1000, 100));
        assert_eq!(idle(&["--idle", "spin"]).expect("good arguments").0, IdleMode::Spin);
        let more = ["--idle", "nap", "--idle-after-us", "0", "--idle-nap-us", "50"];
        assert_eq!(idle(&more).expect("good arguments"), (IdleMode::Nap, 0, 50));
        for more in [["--idle", "never"], ["--idle-after-us", "1000001"], ["--idle-nap-us", "0"]] {
            assert_eq!(idle(&more).expect_err("bad arguments").exit_code(), 2, "{more:?}");
        }
    }

    #[test]
    fn silent_clients_are_asked_unless_that_is_switched_off() {
        let times = |more: &[&str]| serve(&[&DPDK, more]).map(|args| (args.keepalive(), args.user_timeout()));
        let keepalive = |idle, interval| {
            let [idle, interval] = [idle, interval].map(Duration::from_secs);
            Some(Keepalive { idle, interval, count: 4 })
        };
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert_eq!(times(&[]).expect("good arguments"), (keepalive(120, 15), minutes(2)));
        let more = ["--keep-alive", "1", "--user-timeout", "600"];
        assert_eq!(times(&more).expect("good arguments"), (keepalive(1, 1), minutes(10)));
        assert_eq!(times(&["--keep-alive", "0"]).expect("good arguments"), (None, minutes(2)));
        for more in [["--keep-alive", "604801"], ["--user-timeout", "604801"], ["--user-timeout", "0"]] {
            assert_eq!(times(&more).expect_err("bad arguments").exit_code(), 2, "{more:?}");
        }
    }

    #[test]
    fn cpus_are_named_as_taskset_names_them() {
        let cpus = |text| serve(&[&DPDK, &["--cores", text]]).map(|args| args.cpus());
        let some = |numbers: &[usize]| numbers.iter().copied().map(Some).collect::<Vec<_>>();
        for (text, numbers) in
            [("0", &[0][..]), ("1,0", &[1, 0]), ("0-3", &[0, 1, 2, 3]), ("8,2-3", &[8, 2, 3])]
        {
            assert_eq!(cpus(text).expect("a good list"), some(numbers), "{text}");
        }
        assert_eq!(serve(&[&DPDK]).expect("good arguments").cpus(), [None]);
        for text in ["", ",", "0,", "a", "3-1", "0,0", "0-2,1", "-1", "+1", "1-", "65536", "0-32"] {
            assert_eq!(cpus(text).expect_err("a bad list").exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn there_are_as_many_shards_as_cores_or_more() {
        let contradiction = |more: &[&str]| serve(&[&DPDK, more]).expect("good arguments").contradiction();
        assert_eq!(contradiction(&["--cores", "0,1", "--shards", "2"]), None);
        assert_eq!(contradiction(&["--cores", "0,1", "--shards", "5"]), None);
        assert_eq!(contradiction(&["--cores", "0-5"]), None);
        assert_eq!(contradiction(&["--shards", "1"]), None);
        let said = contradiction(&["--cores", "0-2", "--shards", "2"]).expect("too few shards");
        assert!(said.contains("--shards 2") && said.contains("3 cores"), "{said}");
        for shards in ["0", "33"] {
            assert_eq!(serve(&[&DPDK, &["--shards", shards]]).expect_err("out of range").exit_code(), 2);
        }
    }

    #[test]
    fn the_kernels_sockets_need_addresses_and_nothing_else() {
        let args = serve(&[&KERNEL, &["--listen", "[::]:8080"]]).expect("good arguments");
        let Network::Kernel(args) = args.network else { panic!("asked for the kernel, got {args:?}") };
        let expected: [SocketAddr; 2] = [([10, 0, 0, 2], 80).into(), (Ipv6Addr::UNSPECIFIED, 8080).into()];
        assert_eq!(args.listen, expected);
    }

    #[test]
    fn only_addresses_of_hosts_are_the_servers() {
        let with = |option: &str, address: &str| {
            let dpdk = ["--dev", "net_null0", "--ip", if option == "--ip" { address } else { "10.0.0.2/24" }];
            let more: &[&str] = if option == "--ip" { &[] } else { &[option, address] };
            serve(&[&dpdk, more])
        };
        for address in [
            "10.0.0.0/24",
            "10.0.0.255/24",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "0.0.0.0/24",
            "255.255.255.255/32",
        ] {
            let error = with("--ip", address).expect_err("no host's address");
            let said = error.to_string();
            let host = address.split('/').next().unwrap_or(address);
            assert!(error.exit_code() == 2 && said.contains(host) && said.contains("; give one"), "{said}");
        }
        for address in ["fd00::/64", "::/64", "::1/128", "ff02::1/64", "::ffff:10.0.0.2/96"] {
            assert_eq!(with("--ip6", address).expect_err("no host's address").exit_code(), 2, "{address}");
        }
        for address in ["10.0.0.0/31", "10.0.0.1/31", "10.0.0.0/32", "10.0.0.255/16"] {
            with("--ip", address).expect(address);
        }
        for address in ["fd00::/127", "fd00::/128", "fd00::1/64"] {
            with("--ip6", address).expect(address);
        }
    }

    #[test]
    fn routes_are_by_routers_in_the_servers_networks() {
        let contradiction =
            |options: &[&str]| serve(&[&DPDK, options]).expect("it is written well").contradiction();
        let good = ["--route", "192.168.0.0/16=10.0.0.1", "--route", "172.16.0.0/12=10.0.0.3"];
        assert_eq!(contradiction(&good), None);
        for bad in ["192.168.0.0/16=10.0.1.1", "192.168.0.0/16=fd00::1", "192.168.0.1/16=10.0.0.1"] {
            let said = contradiction(&["--route", bad]).expect("no route");
            assert!(said.contains("--route"), "{said}");
        }
        let unreadable = serve(&[&DPDK, &["--route", "10.0.0.1"]]).expect_err("it is no route");
        assert!(unreadable.to_string().contains("10.0.0.0/8=192.0.2.1"), "{unreadable}");
        assert!(serve(&[&DPDK, &["--dscp", "64"]]).is_err());
    }

    #[test]
    fn gateways_are_in_the_servers_networks() {
        let contradiction = |more: &[&str]| serve(&[&DPDK, more]).expect("good arguments").contradiction();
        let ip6 = ["--ip6", "fd00::2/64"];
        assert_eq!(contradiction(&["--gateway", "10.0.0.1"]), None);
        for gateway in ["fd00::1", "fe80::1"] {
            assert_eq!(contradiction(&[&ip6[..], &["--gateway6", gateway]].concat()), None);
        }
        for gateway in ["10.0.1.1", "10.0.0.2", "10.0.0.0", "10.0.0.255", "0.0.0.0", "127.0.0.1", "224.0.0.5"]
        {
            let said = contradiction(&["--gateway", gateway]).expect("no gateway");
            assert!(said.contains(gateway) && said.contains("--ip"), "{said}");
        }
        for gateway in ["fd01::1", "fd00::2", "::1", "ff02::2"] {
            let said = contradiction(&[&ip6[..], &["--gateway6", gateway]].concat()).expect("no gateway");
            assert!(said.contains(gateway) && said.contains("--ip6"), "{said}");
        }
        assert!(contradiction(&["--gateway6", "fe80::1"]).expect("no address").contains("--ip6"));
    }

    #[test]
    fn bad_arguments_are_usage_errors() {
        for more in [
            &["--pm-size", "much"][..],
            &["--ip6", "10.0.0.2/24"],
            &["--gateway", "router"],
            &["--mac", "01:00:00:00:00:01"],
            &["--port", "65536"],
            &["--max-connections", "0"],
            &["--max-record", "0"],
            &["--max-record", "4GiB"],
            &["--header-split", "on"],
            &["--receive-limit", "65535"],
            &["--receive-limit", "1GiB"],
            &["--mtu", "575"],
            &["--mtu", "9001"],
            &["--partial-checksums", "often"],
            &["-l", "1"],
        ] {
            let error = serve_dpdk(more).expect_err("bad arguments");
            assert_eq!(error.exit_code(), 2, "{more:?}");
        }
    }

    #[test]
    fn options_of_another_transport_are_usage_errors_that_say_what_to_do() {
        let mixed: [(&[&[&str]], &str); 14] = [
            (&[], "--dev"),
            (&[&["--transport", "dpdk"]], "--dev"),
            (&[&DPDK[..2]], "--ip"),
            (&[&DPDK[2..]], "--dev"),
            (&[&KERNEL[2..]], "--transport kernel"),
            (&[&DPDK, &KERNEL[2..]], "--transport kernel"),
            (&[&KERNEL[..2]], "--listen"),
            (&[&KERNEL[..2], &["--listen", "10.0.0.2"]], "10.0.0.2"),
            (&[&KERNEL, &DPDK], "--listen"),
            (&[&KERNEL, &["--port", "8080"]], "--dev"),
            (&[&KERNEL, &["--header-split", "auto"]], "--dev"),
            (&[&KERNEL, &["--idle", "spin"]], "--dev"),
            (&[&KERNEL, &["--", "-l", "1"]], "--dev"),
            (&[&["--transport", "carrier-pigeon"]], "kernel"),
        ];
        for (arguments, said) in mixed {
            let error = serve(arguments).expect_err("options that do not go together");
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
            assert!(error.to_string().contains(said), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn a_congestion_control_is_chosen_by_its_name() {
        let chosen = |arguments: &[&str]| serve_dpdk(arguments).map(|args| args.congestion);
        assert_eq!(chosen(&[]).expect("good arguments"), CongestionControl::Cubic);
        for control in CongestionControl::ALL {
            assert_eq!(chosen(&["--congestion", control.name()]).expect("good arguments"), control);
            let text = Cli::command().find_subcommand_mut("serve").expect("it is there").render_long_help();
            assert!(text.to_string().contains(control.name()), "the help names {control}");
        }
        let error = chosen(&["--congestion", "vegas"]).expect_err("there is no such one");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("cubic"), "{error}");
    }

    #[test]
    fn help_shows_each_option_and_an_example() {
        let mut command = Cli::command().term_width(100);
        command.build();
        for name in ["serve", "dump", "verify", "quarantine", "export", "backup", "import"] {
            let help = command.find_subcommand_mut(name).expect("the subcommand").render_long_help();
            insta::assert_snapshot!(name, help.to_string());
        }
    }
}
