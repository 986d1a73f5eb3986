//! The command line.

use std::{net::Ipv4Addr, net::Ipv6Addr, num::NonZeroU32, path::PathBuf};

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use smoltcp::wire::{EthernetAddress, Ipv4Cidr, Ipv6Cidr};

const SERVE_EXAMPLES: &str = "\
Examples:
  A store in a file, the network over a veth pair (as root, or in a network namespace):
    pmlog serve --pm /var/lib/pmlog.pm --pm-size 1GiB \\
        --dev net_af_packet0,iface=veth1 --ip 10.0.0.2/24
  A network card bound to vfio-pci, and device-DAX memory:
    pmlog serve --pm /dev/dax0.0 --dev 0000:03:00.0 --ip 10.0.0.2/24 --gateway 10.0.0.1 -- -l 1
  Then, from another host:
    curl --data-binary @FILE http://10.0.0.2/append
    curl http://10.0.0.2/records/1 ; curl 'http://10.0.0.2/records?from=1&limit=10'
    curl -X DELETE 'http://10.0.0.2/records?before=5' ; curl http://10.0.0.2/health";

const INSPECT_EXAMPLES: &str = "\
Examples:
  pmlog dump --pm /var/lib/pmlog.pm                    a table of the records
  pmlog dump --pm /var/lib/pmlog.pm --json | jq .seq   one JSON object a line
  pmlog dump --pm /var/lib/pmlog.pm --record 7 > body  one record's bytes";

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
    Serve(ServeArgs),
    /// Show the records of a store, without changing it.
    Dump(DumpArgs),
    /// Check every record of a store, without changing it; exit 1 if any is corrupt.
    Verify(VerifyArgs),
}

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
    /// The DPDK device: a PCI address, or a virtual device such as net_tap0,iface=tap0.
    #[arg(long, value_name = "DEVICE")]
    pub dev: String,
    /// The server's IPv4 address and the length of its network's prefix.
    #[arg(long, value_name = "ADDRESS/PREFIX", value_parser = parse_ipv4)]
    pub ip: Ipv4Cidr,
    /// The server's IPv6 address and the length of its network's prefix.
    #[arg(long, value_name = "ADDRESS/PREFIX", value_parser = parse_ipv6)]
    pub ip6: Option<Ipv6Cidr>,
    /// The IPv4 router.
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Option<Ipv4Addr>,
    /// The IPv6 router.
    #[arg(long, value_name = "ADDRESS")]
    pub gateway6: Option<Ipv6Addr>,
    /// The Ethernet address, if not the device's own.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_mac)]
    pub mac: Option<EthernetAddress>,
    /// The TCP port.
    #[arg(long, default_value_t = 80)]
    pub port: u16,
    /// The longest record.
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_record_size)]
    pub max_record: ByteSize,
    /// How many clients may be connected at a time.
    #[arg(long, value_name = "N", default_value = "1024")]
    pub max_connections: NonZeroU32,
    /// Have the device put headers into DRAM and payload alone into the store. With auto it does where it can, and
    /// the report at the start says whether; untried on hardware so far.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = HeaderSplit::Off)]
    pub header_split: HeaderSplit,
    /// Format PATH though it already holds a store or something else. What it held is lost.
    #[arg(long)]
    pub force: bool,
    /// Accept a store on memory that loses everything with the power (tmpfs, hugetlbfs).
    #[arg(long)]
    pub volatile: bool,
    /// Report as JSON lines instead of text.
    #[arg(long)]
    pub json: bool,
    /// Do not give the store to the device by the IOMMU: for the test that shows what happens then.
    #[arg(long, hide = true)]
    pub no_dma_map: bool,
    /// Arguments for DPDK's environment layer (EAL).
    #[arg(last = true, value_name = "EAL ARGS")]
    pub eal: Vec<String>,
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
    /// This record only: its bytes, or with --json what it is.
    #[arg(long, value_name = "N")]
    pub record: Option<u64>,
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

fn parse_size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "write a number of bytes with or without a unit, such as 64MiB".to_owned())
}

fn parse_record_size(text: &str) -> Result<ByteSize, String> {
    let size = parse_size(text)?;
    if (1..=u32::MAX.into()).contains(&size.as_u64()) {
        Ok(size)
    } else {
        Err("a record has at least 1 byte and less than 4 GiB".to_owned())
    }
}

fn parse_ipv4(text: &str) -> Result<Ipv4Cidr, String> {
    text.parse().map_err(|()| "write an address and a prefix length, such as 10.0.0.2/24".to_owned())
}

fn parse_ipv6(text: &str) -> Result<Ipv6Cidr, String> {
    text.parse().map_err(|()| "write an address and a prefix length, such as fd00::2/64".to_owned())
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

    const SERVE: [&str; 8] = ["pmlog", "serve", "--pm", "p", "--dev", "net_null0", "--ip", "10.0.0.2/24"];

    fn serve(more: &[&str]) -> Result<ServeArgs, clap::Error> {
        let cli = Cli::try_parse_from(SERVE.iter().chain(more))?;
        let Command::Serve(args) = cli.command else { unreachable!("serve was asked for") };
        Ok(args)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_addresses_and_eal_arguments_are_understood() {
        let args = serve(&[
            "--pm-size",
            "1GiB",
            "--ip6",
            "fd00::2/64",
            "--mac",
            "02-00-00-00-00-01",
            "--header-split",
            "auto",
            "--",
            "-l",
            "1",
            "--no-huge",
        ])
        .expect("good arguments");
        assert_eq!(args.pm_size, Some(ByteSize::gib(1)));
        assert_eq!(args.max_record, ByteSize::mib(16));
        assert_eq!(args.ip6.map(|ip| ip.to_string()).as_deref(), Some("fd00::2/64"));
        assert_eq!(args.mac, Some(EthernetAddress([2, 0, 0, 0, 0, 1])));
        assert_eq!(args.header_split, HeaderSplit::Auto);
        assert_eq!(args.eal, ["-l", "1", "--no-huge"]);
        assert_eq!(serve(&[]).expect("good arguments").header_split, HeaderSplit::Off);
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
            &["-l", "1"],
        ] {
            let error = serve(more).expect_err("bad arguments");
            assert_eq!(error.exit_code(), 2, "{more:?}");
        }
    }

    #[test]
    fn help_shows_each_option_and_an_example() {
        let mut command = Cli::command().term_width(100);
        command.build();
        for name in ["serve", "dump", "verify"] {
            let help = command.find_subcommand_mut(name).expect("the subcommand").render_long_help();
            insta::assert_snapshot!(name, help.to_string());
        }
    }
}
