//! The command line.

use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use program::parse_size;
use serde::Serialize;
use smoltcp::wire::EthernetAddress;

use crate::burst::MAX_BURST;
use crate::packet::{HEADERS_BYTES, MAX_SEGMENT_BYTES, MAX_SEGMENTS, SegmentLengths};

const EXAMPLES: &str = "\
Examples:
  As fast as it goes, between two devices that make and swallow frames:
    pmfwd --dev net_null0,size=64 --dev net_null1,size=64 --stats-period 1
  A wire between two interfaces whose frames lie in a mapped file (as root, or in a network namespace):
    pmfwd --dev net_af_packet0,iface=veth1 --dev net_af_packet1,iface=veth3 \\
        --pool pm --pm /var/lib/pmfwd.pm --pm-size 1GiB
  A switch that has each frame durable before it goes on; then look at what went through:
    pmfwd --forward-mode log --dev 0000:03:00.0 --dev 0000:03:00.1 --pm /dev/dax0.0 -- -l 1,2
    pmlog dump --pm /dev/dax0.0
  Typed commands (help lists them), and EAL's own way to name devices:
    pmfwd -i -- -l 0,1 --vdev net_ring0

Ports are numbered in the order of --dev. They are paired as testpmd pairs them: 0 with 1, 2 with 3, and a last
odd one with itself. Exit codes: 0 done, 1 failed, 2 wrong usage. PMFWD_LOG=debug shows more of what happens.";

/// Forwards packets between DPDK ports, over DRAM or persistent memory, in testpmd's words.
#[derive(Debug, Clone, Parser)]
#[command(name = "pmfwd", version, after_help = EXAMPLES)]
pub struct Cli {
    /// A DPDK device: a PCI address, or a virtual device such as net_tap0,iface=tap0. May be repeated; without it,
    /// all devices that EAL finds are used.
    #[arg(long, value_name = "DEVICE")]
    pub dev: Vec<String>,
    /// What is done with received frames.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Mode::Io)]
    pub forward_mode: Mode,
    /// Take commands; forwarding begins with `start`.
    #[arg(short, long, conflicts_with_all = ["stats_period", "tx_first", "duration", "json"])]
    pub interactive: bool,
    /// How many CPUs forward: EAL's lcores but the first, or any permitted ones if -l is not given.
    #[arg(long, value_name = "N", default_value = "1")]
    pub nb_cores: NonZeroU16,
    /// Receive queues of each port.
    #[arg(long, value_name = "N", default_value = "1")]
    pub rxq: NonZeroU16,
    /// Transmit queues of each port.
    #[arg(long, value_name = "N", default_value = "1")]
    pub txq: NonZeroU16,
    /// Length of a receive queue, in packets.
    #[arg(long, value_name = "N", default_value = "1024")]
    pub rxd: NonZeroU16,
    /// Length of a transmit queue, in packets.
    #[arg(long, value_name = "N", default_value = "1024")]
    pub txd: NonZeroU16,
    /// Packets in a burst at most, 1 to 512.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = parse_burst)]
    pub burst: usize,
    /// Lengths of the segments of frames that are made here, in bytes.
    #[arg(long, value_name = "LENGTH[,LENGTH...]", default_value = "64", value_parser = parse_segments)]
    pub txpkts: SegmentLengths,
    /// Flows that flowgen goes through.
    #[arg(long, value_name = "N", default_value = "1024")]
    pub flowgen_flows: NonZeroU32,
    /// Which port sends what another has received.
    #[arg(long, value_name = "TOPOLOGY", value_enum, default_value_t = Topology::Paired)]
    pub port_topology: Topology,
    /// The Ethernet address of what is connected to a port. May be repeated; by default 02:00:00:00:00:PORT.
    #[arg(long, value_name = "PORT,ADDRESS", value_parser = parse_peer)]
    pub eth_peer: Vec<(usize, EthernetAddress)>,
    /// Mbufs in all; by default what queues and caches can hold.
    #[arg(long, value_name = "N")]
    pub total_num_mbufs: Option<NonZeroU32>,
    /// Mbufs that a core keeps at hand, at most 512.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=512))]
    pub mbcache: u32,
    /// Do not wait for links to come up.
    #[arg(long)]
    pub disable_link_check: bool,
    /// Send a burst from each port first.
    #[arg(long)]
    pub tx_first: bool,
    /// Print statistics every so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub stats_period: Option<NonZeroU64>,
    /// Forward for so many seconds; by default until Ctrl-C.
    #[arg(long, value_name = "SECONDS")]
    pub duration: Option<NonZeroU64>,
    /// Where packets lie; pm if --pm is given, else dram.
    #[arg(long, value_name = "POOL", value_enum)]
    pub pool: Option<PoolKind>,
    /// The store with the packets' buffers: a file, a device-DAX device, or `memory:` (gone at exit).
    #[arg(long, value_name = "PATH")]
    pub pm: Option<PathBuf>,
    /// How large to make a new store; an existing one must have this size.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "pm")]
    pub pm_size: Option<ByteSize>,
    /// Format PATH though it already holds a store or something else. What it held is lost.
    #[arg(long, requires = "pm")]
    pub force: bool,
    /// Accept a store on memory that loses everything with the power (tmpfs, hugetlbfs).
    #[arg(long, requires = "pm")]
    pub volatile: bool,
    /// What mode log does when the store is full.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = WhenFull::Drop)]
    pub log_full: WhenFull,
    /// Write the frames that pass to a pcap file.
    #[arg(long, value_name = "FILE")]
    pub pcap_out: Option<PathBuf>,
    /// Report as JSON lines instead of text.
    #[arg(long)]
    pub json: bool,
    /// Arguments for DPDK's environment layer (EAL).
    #[arg(last = true, value_name = "EAL ARGS")]
    pub eal: Vec<String>,
}

/// What is done with received frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Send them as they are.
    Io,
    /// Send them with the sending port's address as source, and its peer's as destination.
    Mac,
    /// Send them with source and destination exchanged.
    Macswap,
    /// Count them.
    Rxonly,
    /// Do not receive; send UDP datagrams.
    Txonly,
    /// Count them; send UDP datagrams of many flows.
    Flowgen,
    /// Answer ARP requests and ICMP echo requests, whatever address they ask for.
    Icmpecho,
    /// Send them as they are, once they are durable records of the store (--pm).
    Log,
}

/// Where packets lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// In the store's named buffers.
    Pm,
    /// In EAL's memory.
    Dram,
}

/// Which port sends what another has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Topology {
    /// 0 and 1, 2 and 3; a last odd one itself.
    Paired,
    /// The next one; the last one's is the first.
    Chained,
    /// Itself.
    Loop,
}

/// What mode log does when the store is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhenFull {
    /// Drop what arrives: nothing goes on that is not in the store.
    Drop,
    /// Forget the oldest eighth of the records.
    Trim,
}

impl Cli {
    /// Where packets are to lie, all options considered.
    ///
    /// # Errors
    /// The options contradict each other; the text says what to change.
    pub fn pool_kind(&self) -> Result<PoolKind, &'static str> {
        match (self.pool, &self.pm, self.forward_mode) {
            (Some(PoolKind::Pm), None, _) => Err("--pool pm needs a store: name one with --pm PATH"),
            (Some(PoolKind::Dram), Some(_), _) => {
                Err("--pool dram leaves the store of --pm unused: give one of them")
            }
            (_, None, Mode::Log) => Err("mode log needs a store: name one with --pm PATH"),
            (_, Some(_), _) => Ok(PoolKind::Pm),
            (_, None, _) => Ok(PoolKind::Dram),
        }
    }
}

/// Reads a burst's length in packets.
pub(crate) fn parse_burst(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(burst @ 1..=MAX_BURST) => Ok(burst),
        _ => Err(format!("write a number of packets, 1 to {MAX_BURST}")),
    }
}

/// Reads the lengths of a frame's segments.
pub(crate) fn parse_segments(text: &str) -> Result<SegmentLengths, String> {
    let lengths: Result<Vec<usize>, _> = text.split(',').map(|word| word.trim().parse()).collect();
    let lengths = lengths.map_err(|_| "write lengths in bytes, such as 64 or 64,128".to_owned())?;
    if lengths.len() > MAX_SEGMENTS {
        return Err(format!("a frame has at most {MAX_SEGMENTS} segments here"));
    }
    if lengths[0] < HEADERS_BYTES {
        return Err(format!("the first segment holds the headers, {HEADERS_BYTES} bytes"));
    }
    if let Some(long) = lengths.iter().find(|len| !(1..=MAX_SEGMENT_BYTES).contains(*len)) {
        return Err(format!("a segment has 1 to {MAX_SEGMENT_BYTES} bytes, not {long}"));
    }
    Ok(SegmentLengths(lengths))
}

fn parse_peer(text: &str) -> Result<(usize, EthernetAddress), String> {
    let parse = || {
        let (port, address) = text.split_once(',')?;
        Some((port.parse().ok()?, address.parse().ok()?))
    };
    parse().ok_or_else(|| "write a port's number and an address, such as 0,02:00:00:00:00:01".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["pmfwd"].iter().chain(words))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn testpmds_options_are_understood() {
        let cli = parse(&[
            "--dev",
            "net_null0,size=64",
            "--dev",
            "net_null1",
            "--forward-mode=macswap",
            "--nb-cores=2",
            "--rxq=2",
            "--txq=2",
            "--burst=64",
            "--txpkts=64,128,1",
            "--eth-peer=1,02:00:00:00:00:09",
            "--",
            "-l",
            "0,1",
        ])
        .unwrap();
        assert_eq!(cli.dev, ["net_null0,size=64", "net_null1"]);
        assert_eq!((cli.forward_mode, cli.nb_cores.get(), cli.burst), (Mode::Macswap, 2, 64));
        assert_eq!(cli.txpkts, SegmentLengths(vec![64, 128, 1]));
        assert_eq!(cli.eth_peer, [(1, EthernetAddress([2, 0, 0, 0, 0, 9]))]);
        assert_eq!(cli.eal, ["-l", "0,1"]);
        assert_eq!(cli.pool_kind(), Ok(PoolKind::Dram));
    }

    #[test]
    fn wrong_options_are_usage_errors() {
        for words in [
            &["--burst", "0"][..],
            &["--burst", "513"],
            &["--txpkts", "41"],
            &["--txpkts", "64,0"],
            &["--txpkts", "64,2049"],
            &["--txpkts", "64,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"],
            &["--nb-cores", "0"],
            &["--forward-mode", "csum"],
            &["--eth-peer", "02:00:00:00:00:09"],
            &["--pm-size", "1GiB"],
            &["-i", "--json"],
            &["-l", "0"],
        ] {
            assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words:?}");
        }
    }

    #[test]
    fn the_pool_follows_the_store() {
        let kind = |words: &[&str]| parse(words).unwrap().pool_kind();
        assert_eq!(kind(&["--pm", "p"]), Ok(PoolKind::Pm));
        assert_eq!(kind(&["--pm", "p", "--pool", "pm"]), Ok(PoolKind::Pm));
        assert!(kind(&["--pool", "pm"]).unwrap_err().contains("--pm"));
        assert!(kind(&["--pool", "dram", "--pm", "p"]).unwrap_err().contains("dram"));
        assert!(kind(&["--forward-mode", "log"]).unwrap_err().contains("--pm"));
    }

    #[test]
    fn help_shows_each_option_and_examples() {
        insta::assert_snapshot!("help", Cli::command().term_width(100).render_long_help().to_string());
    }
}
