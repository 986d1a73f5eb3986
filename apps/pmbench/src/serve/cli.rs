//! The server's command line.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use program::parse_size;
use smoltcp::wire::{EthernetAddress, Ipv4Cidr};
use stack::CongestionControl;

use crate::protocol::Mode;

const EXAMPLES: &str = "\
Examples:
  The kernel's sockets, on core 0:
    pmbench serve --mode status-quo --core 0 --pm /dev/shm/bench.pm --pm-size 256MiB --listen 10.0.0.1:8080
  A DPDK port at the other end of a veth pair:
    pmbench serve --mode paste --core 0 --pm /dev/shm/bench.pm --pm-size 256MiB \\
        --dev net_af_packet0,iface=veth0 --ip 10.0.0.1/24
  Standard input then takes `mark NUMBER`, which is answered with a line of counters, and `stop`.";

/// Which server, where its store is, and how it is reached from the network.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// How it is done.
    #[arg(long, value_enum)]
    pub mode: Mode,
    /// The core to run on; any, if not given.
    #[arg(long, value_name = "N")]
    pub core: Option<usize>,
    /// The store: a file, a device-DAX device, or `memory:`. With status-quo-fsync, a file that is written to.
    #[arg(long, value_name = "PATH", default_value = pmem::MEMORY)]
    pub pm: PathBuf,
    /// How large to make a new store. Once half of it is used, the oldest records make room for new ones.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    pub pm_size: ByteSize,
    /// Wait this long, busily, for each persist: models slower media, as PASTE's evaluation does.
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub persist_delay_us: u64,
    /// Measure where the loop's time goes, stage by stage: each mark says it, and a table on standard error at the
    /// end. For the modes whose loop is in user space: dpdk-copy, kernel-paste, paste, paste-echo and limit.
    #[arg(long)]
    pub profile: bool,
    /// Where the modes on kernel sockets listen.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// The DPDK device of the modes that have one: a PCI address, or a virtual device such as
    /// net_af_packet0,iface=veth0.
    #[arg(long, value_name = "DEVICE", required_if_eq_any(dpdk_modes()))]
    pub dev: Option<String>,
    /// The IPv4 address on that device and the length of its network's prefix.
    #[arg(long, value_name = "ADDRESS/PREFIX", value_parser = parse_ipv4, default_value = "10.0.0.1/24")]
    pub ip: Ipv4Cidr,
    /// The Ethernet address, if not the device's own.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_mac)]
    pub mac: Option<EthernetAddress>,
    /// The TCP port on that device.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// What decides how much a connection of the modes paste and paste-echo has in flight: cubic,
    /// newreno, or bbr.
    #[arg(long, value_name = "NAME", default_value_t = CongestionControl::default())]
    pub congestion: CongestionControl,
    /// How many clients may be connected at a time.
    #[arg(long, value_name = "N", default_value = "1024")]
    pub max_connections: NonZeroU32,
    /// The longest record.
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = parse_record_size)]
    pub max_record: ByteSize,
    /// Arguments for DPDK's environment layer (EAL).
    #[arg(last = true, value_name = "EAL ARGS")]
    pub eal: Vec<String>,
}

impl ServeArgs {
    /// Why these arguments make no sense together, if they do not.
    pub fn contradiction(&self) -> Option<String> {
        (self.profile && !self.mode.has_stages()).then(|| {
            format!(
                "mode {} has no stages to measure: its time goes in the kernel; leave --profile away",
                self.mode
            )
        })
    }
}

/// The modes that need a DPDK device.
fn dpdk_modes() -> Vec<(&'static str, &'static str)> {
    ["dpdk-copy", "paste", "paste-echo", "limit"].map(|mode| ("mode", mode)).to_vec()
}

fn parse_record_size(text: &str) -> Result<ByteSize, String> {
    let size = parse_size(text)?;
    if (1..=16 << 20).contains(&size.as_u64()) {
        Ok(size)
    } else {
        Err("a record has 1 byte to 16 MiB here".to_owned())
    }
}

pub(crate) fn parse_ipv4(text: &str) -> Result<Ipv4Cidr, String> {
    text.parse().map_err(|()| "write an address and a prefix length, such as 10.0.0.1/24".to_owned())
}

pub(crate) fn parse_mac(text: &str) -> Result<EthernetAddress, String> {
    let address: EthernetAddress =
        text.parse().map_err(|()| "write six bytes in hexadecimal, such as 02:00:00:00:00:01".to_owned())?;
    if address.is_unicast() { Ok(address) } else { Err("an interface's address is not a group's".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::{Parser as _, ValueEnum as _};

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_device_is_asked_for_where_one_is_needed() {
        for mode in Mode::value_variants() {
            let command = ["pmbench", "serve", "--mode", &mode.to_string()];
            assert_eq!(Cli::try_parse_from(command).is_ok(), mode.is_kernel(), "{mode}");
            assert!(Cli::try_parse_from(command.iter().chain(&["--dev", "net_null0"])).is_ok(), "{mode}");
        }
    }
}
