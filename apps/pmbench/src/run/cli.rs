//! The command line of `pmbench run`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, ValueEnum as _};

use crate::load::cli::parse_seconds;
use crate::protocol::Mode;
use crate::results::Link;

const EXAMPLES: &str = "\
Examples:
  Everything, five times:
    pmbench run --out compare
  Two modes, one load (20 seconds):
    pmbench run --modes status-quo,paste --sizes 1024 --connections 50 --rounds 3 --out compare
Needs two CPUs that nothing else uses. Runs in namespaces of its own, as root for the sake of fairness:
see --unsteered.";

/// What to compare.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// The modes; all, if not given.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "MODES", default_values_t = all_modes())]
    pub modes: Vec<Mode>,
    /// The links; the modes on kernel sockets have veth only.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LINKS",
        default_values_t = [Link::Veth, Link::Memif, Link::Ring])]
    pub links: Vec<Link>,
    /// Payload bytes of a request.
    #[arg(long, value_delimiter = ',', value_name = "BYTES", default_values_t = [64, 1024, 8192],
        value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub sizes: Vec<u32>,
    /// Connections, each with one request on its way.
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS", default_values_t = [1, 10, 50, 100],
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: Vec<u32>,
    /// Connections on the link ring, if not the same as on the others.
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub ring_connections: Option<Vec<u32>>,
    /// Of all cells, measure only those that some target speaks of, and all modes with 1024 bytes and 50 connections.
    #[arg(long)]
    pub only_targets: bool,
    /// What each persist takes longer than the memory does. Other values than 0 are measured with one size only,
    /// and not on the link ring.
    #[arg(long, value_delimiter = ',', value_name = "US", default_values_t = [0, 10])]
    pub persist_delay_us: Vec<u64>,
    /// The size that longer persists are measured with.
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub delay_size: u32,
    /// Bytes of a record in a stream: one connection appends such records, and one reads them.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(65_536..=4 << 20))]
    pub stream_size: u32,
    /// Leave the streams out.
    #[arg(long)]
    pub no_streams: bool,
    /// How long to measure each cell.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = parse_seconds)]
    pub seconds: f64,
    /// How long to load before that.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.2, value_parser = parse_seconds)]
    pub warmup: f64,
    /// How often to measure each cell; all modes have their turn in each round.
    #[arg(long, value_name = "N", default_value = "3")]
    pub rounds: NonZeroU32,
    /// Where to write results.json, report.md and the plots.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// The CPU for the server.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub server_core: usize,
    /// The CPU for the client.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub client_core: usize,
    /// How large to make each server's store.
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub pm_size: ByteSize,
    /// Leave the kernel's work on received packets to the CPU of the sender. Only root may steer it to the
    /// receiver's, where it belongs; without that, the figures of veth are not fair, and the report says so.
    #[arg(long)]
    pub unsteered: bool,
    /// Leave the second client (wrk) out.
    #[arg(long)]
    pub no_wrk: bool,
    /// What was built, for the report.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub commit: String,
    /// The folder to work in, which says that this process is in its own namespaces already.
    #[arg(long, hide = true)]
    pub inside: Option<PathBuf>,
}

fn all_modes() -> Vec<Mode> {
    Mode::value_variants().to_vec()
}
