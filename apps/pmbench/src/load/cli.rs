//! The command line of `pmbench load`.

use std::net::SocketAddrV4;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use clap::Args;
use smoltcp::wire::{EthernetAddress, Ipv4Cidr};

use crate::serve::cli::{parse_ipv4, parse_mac};

const EXAMPLES: &str = "\
Examples:
  Fifty connections with one request each on its way, over a veth pair:
    pmbench load --dev net_af_packet0,iface=veth1 --ip 10.0.0.2/24 --target 10.0.0.1:8080 \\
        --connections 50 --size 1024 --seconds 5
  100,000 requests a second, whatever the server does; latency counts from when each was due:
    pmbench load ... --rate 100000
  100,000 connections, nearly all of which are idle:
    pmbench load ... --addresses 7 --connections 100000 --rate 200
  Shared memory with a server on the same machine:
    pmbench load --dev net_memif0,role=client,socket=/run/m.sock,socket-abstract=no ...";

/// What to load, and how.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LoadArgs {
    /// The DPDK device: a PCI address, or a virtual device such as net_af_packet0,iface=veth1.
    #[arg(long, value_name = "DEVICE")]
    pub dev: String,
    /// The generator's IPv4 address and the length of its network's prefix.
    #[arg(long, value_name = "ADDRESS/PREFIX", value_parser = parse_ipv4)]
    pub ip: Ipv4Cidr,
    /// The generator's Ethernet address, if not the device's own.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_mac)]
    pub mac: Option<EthernetAddress>,
    /// The server.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub target: SocketAddrV4,
    /// Addresses that the connections come from: that of --ip, and those that follow it.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub addresses: u8,
    /// Connections, at most 15000 from each address; each has one request on its way at a time.
    #[arg(long, value_name = "N", default_value = "50", value_parser = parse_connections)]
    pub connections: NonZeroU32,
    /// Length of each request's body in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub size: u32,
    /// Send each body in chunks of so many bytes (Transfer-Encoding: chunked), without its length in front.
    ///
    /// Short chunks are much work for the server, and for the generator no more than as many bytes.
    #[arg(long, value_name = "BYTES")]
    pub chunk: Option<NonZeroU32>,
    /// Read records instead: so many are appended first, of --size bytes each, and then read by turns.
    #[arg(long, value_name = "RECORDS", conflicts_with_all = ["chunk", "frames"], value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub read: Option<u32>,
    /// How long to measure.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = parse_seconds)]
    pub seconds: f64,
    /// How long to load before that.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5, value_parser = parse_seconds)]
    pub warmup: f64,
    /// Requests a second, due at even intervals (open loop); without it, a connection sends the next request
    /// when it has the reply to the last (closed loop).
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<NonZeroU64>,
    /// Send raw frames of the requests' sizes, and take back what a server of mode `limit` returns.
    #[arg(long, conflicts_with_all = ["rate", "nap_us"])]
    pub frames: bool,
    /// The server's Ethernet address, for --frames.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_mac, default_value = "02:00:00:00:00:01")]
    pub target_mac: EthernetAddress,
    /// The CPU to run on.
    #[arg(long, value_name = "N")]
    pub core: Option<usize>,
    /// When there is nothing to do, sleep for so many microseconds before the next look, instead of polling.
    ///
    /// For a generator that shares a CPU with the server. Latencies grow by up to as much.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub nap_us: Option<u32>,
    /// Report as JSON lines instead of text.
    #[arg(long)]
    pub json: bool,
    /// After the report keep the device open, without polling it, until standard input ends.
    ///
    /// For servers on memif, which are to be stopped before their peer leaves: memif's driver unmaps its rings in a
    /// thread of its own when the other side is gone, even while they are polled.
    #[arg(long)]
    pub linger: bool,
    /// Arguments for DPDK's environment layer (EAL).
    #[arg(last = true, value_name = "EAL ARGS")]
    pub eal: Vec<String>,
}

impl LoadArgs {
    /// How long to measure.
    pub fn seconds(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// How long to sleep when there is nothing to do, if at all.
    pub fn nap(&self) -> Option<Duration> {
        self.nap_us.map(|nap_us| Duration::from_micros(nap_us.into()))
    }

    /// How long to load before that.
    pub fn warmup(&self) -> Duration {
        Duration::from_secs_f64(self.warmup)
    }
}

/// Connections from one address to a server: fewer than there are ports for them, so that a free one is soon found.
pub(crate) const OF_AN_ADDRESS: u32 = 15_000;
/// More connections than one core is asked to keep.
const MAX_CONNECTIONS: u32 = 8 * OF_AN_ADDRESS;

pub(crate) fn parse_connections(text: &str) -> Result<NonZeroU32, String> {
    text.parse()
        .ok()
        .filter(|count: &NonZeroU32| count.get() <= MAX_CONNECTIONS)
        .ok_or_else(|| format!("write a number of connections, 1 to {MAX_CONNECTIONS}"))
}

/// A time in seconds, at most a day.
pub(crate) fn parse_seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.0..=86_400.0).contains(seconds))
        .ok_or_else(|| "write a number of seconds, such as 2 or 0.5, at most 86400".to_owned())
}
