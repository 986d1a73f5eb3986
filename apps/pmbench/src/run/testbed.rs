//! The testbed of a comparison: its own network, its own memory file system, its own view of both.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, run};

/// The network of client and servers.
pub const PREFIX: u8 = 24;
/// The server's address.
pub const SERVER: &str = "10.0.0.1";
/// The client's address.
pub const CLIENT: &str = "10.0.0.2";
/// The port of all servers.
pub const PORT: u16 = 8080;
/// The server's Ethernet address on every link.
pub const SERVER_MAC: &str = "02:00:00:00:00:01";

/// A pair of virtual interfaces: both ends of one wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The server's end.
    pub server: &'static str,
    /// The client's end.
    pub client: &'static str,
}

/// The wire whose server's end is the kernel's.
pub const KERNEL_PAIR: Pair = Pair { server: "kern0", client: "kern1" };
/// The wire whose server's end is a DPDK port's.
pub const DPDK_PAIR: Pair = Pair { server: "dpdk0", client: "dpdk1" };

/// Own namespaces, with what a comparison needs in them.
pub struct Testbed {
    directory: PathBuf,
    cores: Cores,
}

/// Who runs where.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    pub server: usize,
    pub client: usize,
    /// Whether each side's CPU does the kernel's work on what that side receives.
    pub steered: bool,
}

impl Testbed {
    /// Fits out the namespaces in which this process already runs: mounts, wires, steering.
    pub fn enter(directory: &Path, cores: Cores) -> Result<Self> {
        let lab = Lab::enter(directory)?;
        let testbed = Self { directory: lab.directory().to_owned(), cores };
        for (name, kind) in [("sys", "sysfs"), ("pm", "tmpfs")] {
            let place = testbed.directory.join(name);
            fs::create_dir(&place).with_context(|| format!("cannot make {}", place.display()))?;
            let place = place.to_str().context("the folder's name is not UTF-8")?;
            run("mount", ["-t", kind, kind, place])?;
        }
        testbed.wire(KERNEL_PAIR)?;
        testbed.wire(DPDK_PAIR)?;
        testbed.give_to_kernel(KERNEL_PAIR.server, &format!("{SERVER}/{PREFIX}"))?;
        Ok(testbed)
    }

    /// Who runs where.
    pub fn cores(&self) -> Cores {
        self.cores
    }

    /// A folder on a disk.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A store in memory, the same place for all.
    pub fn store(&self) -> PathBuf {
        self.directory.join("pm/store")
    }

    /// A file on a disk.
    pub fn disk_file(&self) -> PathBuf {
        self.directory.join("file")
    }

    /// The socket over which two memif ports find each other.
    pub fn memif_socket(&self) -> PathBuf {
        self.directory.join("pm/memif")
    }

    /// Makes a wire whose ends nobody uses yet, each end's packets steered to the processor of its side.
    pub fn wire(&self, pair: Pair) -> Result<()> {
        let Pair { server, client } = pair;
        run("ip", ["link", "add", server, "address", SERVER_MAC, "type", "veth", "peer", "name", client])?;
        for end in [server, client] {
            silence(end)?;
            // A packet socket sees frames before a card would have cut and summed them: with the offloads on, they
            // are longer than the MTU and their checksums are partial.
            run("ethtool", ["-K", end, "tx", "off", "tso", "off", "gso", "off", "gro", "off"])?;
            run("ip", ["link", "set", end, "up"])?;
        }
        if self.cores.steered {
            self.steer(server, self.cores.server)?;
            self.steer(client, self.cores.client)?;
        }
        Ok(())
    }

    /// Gives an interface to the kernel, with an address.
    pub fn give_to_kernel(&self, interface: &str, address: &str) -> Result<()> {
        run("ip", ["link", "set", interface, "arp", "on"])?;
        run("ip", ["address", "add", address, "dev", interface])?;
        Ok(())
    }

    /// Has one processor do the kernel's work on what an interface receives (receive packet steering): otherwise the
    /// sender's does it.
    fn steer(&self, interface: &str, core: usize) -> Result<()> {
        let file = self.directory.join(format!("sys/class/net/{interface}/queues/rx-0/rps_cpus"));
        let wanted = mask(core);
        fs::write(&file, &wanted).with_context(|| {
            format!("{} cannot be written; the kernel needs CONFIG_RPS for a fair comparison", file.display())
        })?;
        let has = fs::read_to_string(&file)?;
        ensure!(
            has.trim().trim_start_matches(['0', ',']) == wanted.trim_start_matches(['0', ',']),
            "{interface} is steered to the processors {} instead of {wanted}",
            has.trim()
        );
        Ok(())
    }
}

/// A set of one processor as the kernel writes it: hexadecimal, in groups of 32 bits.
fn mask(core: usize) -> String {
    let highest = format!("{:x}", 1u32 << (core % 32));
    std::iter::once(highest)
        .chain((0..core / 32).map(|_| "00000000".to_owned()))
        .collect::<Vec<_>>()
        .join(",")
}

/// Keeps the kernel's protocols off an interface.
fn silence(interface: &str) -> Result<()> {
    // A kernel without IPv6 has nothing to silence.
    let disable = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    if Path::new(&disable).exists() {
        fs::write(disable, "1")?;
    }
    run("ip", ["link", "set", interface, "arp", "off"])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn a_processor_is_one_bit() {
        assert_eq!(mask(0), "1");
        assert_eq!(mask(5), "20");
        assert_eq!(mask(33), "2,00000000");
    }
}
