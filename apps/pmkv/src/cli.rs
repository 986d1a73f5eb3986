//! The command line.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  A store in a file, on Linux' own TCP, on all addresses of this host:
    pmkv serve --pm /var/lib/pmkv.pm --pm-size 1GiB --listen '[::]:6379'
  A network card bound to vfio-pci, and device-DAX memory, with an address of the server's own:
    pmkv serve --pm /dev/dax0.0 --dev 0000:03:00.0 --listen 10.0.0.2:6379
  Then, from another host:
    redis-cli -h 10.0.0.2 SET greeting hello
    redis-cli -h 10.0.0.2 GET greeting";

/// A key-value store with the Redis protocol whose values are durable where the network card put them.
#[derive(Debug, Parser)]
#[command(name = "pmkv", version, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage. PMKV_LOG=debug shows more of what happens."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a store.
    Serve(Box<ServeArgs>),
}

/// Where the store is and how it is reached from the network.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// The store: a file, a device-DAX device, or `memory:` (gone at exit).
    #[arg(long, value_name = "PATH")]
    pub pm: PathBuf,
    /// How large to make a new store; an existing one must have this size.
    #[arg(long, value_name = "SIZE")]
    pub pm_size: Option<ByteSize>,
    /// An address and a TCP port: with Linux' own TCP one of this host's, such as `10.0.0.2:6379`, `0.0.0.0:6379` (all of
    /// IPv4), or `[::]:6379` (all of IPv6 and IPv4), and there may be several; with --dev the server's own.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6379")]
    pub listen: Vec<SocketAddr>,
    /// Serve on a DPDK device, with a TCP/IP of the server's own: a PCI address, or a virtual device such as
    /// net_tap0,iface=tap0. Nothing is copied there on its way into the store. The core polls.
    #[arg(long, value_name = "DEVICE")]
    pub dev: Option<String>,
    /// How many clients may be connected at a time.
    #[arg(long, value_name = "N", default_value = "1024")]
    pub max_connections: NonZeroU32,
    /// How much DRAM keys may take, values of 512 bytes and more not counted, which lie in the store: commands that would
    /// take more are refused with an OOM error. Without it, as much as there is.
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,
    /// The longest value.
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = parse_value_size)]
    pub max_value: ByteSize,
    /// A file whose first line is the password that clients have to give (AUTH). Without it, everybody is served. The
    /// variable PMKV_PASSWORD does the same.
    #[arg(long, value_name = "PATH")]
    pub password_file: Option<PathBuf>,
    /// Serve although records are damaged. What was in them is lost: values, or the news that older ones were removed.
    #[arg(long)]
    pub accept_damage: bool,
    /// Format PATH though it already holds a store or something else. What it held is lost.
    #[arg(long)]
    pub force: bool,
    /// Accept a store on memory that loses everything with the power (tmpfs, hugetlbfs).
    #[arg(long)]
    pub volatile: bool,
}

impl ServeArgs {
    /// What does not go together, in words.
    pub fn contradiction(&self) -> Option<&'static str> {
        (self.dev.is_some() && self.listen.len() > 1)
            .then_some("with --dev the server has one address: give --listen once")
    }
}

/// Redis' own limit.
const MAX_VALUE: ByteSize = ByteSize::mib(512);

fn parse_value_size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    match size {
        _ if size > MAX_VALUE => Err(format!("at most {MAX_VALUE}")),
        _ if size < ByteSize::kib(1) => Err("at least 1KiB".into()),
        _ => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_its_sizes_are_bounded() {
        Cli::command().debug_assert();
        assert_eq!(parse_value_size("512MiB"), Ok(MAX_VALUE));
        for size in ["513MiB", "1B", "much"] {
            assert!(parse_value_size(size).is_err(), "{size}");
        }
    }
}
