//! A DPDK device that was named on the command line.

use anyhow::{Result, ensure};
use dpdk::{Eal, PortId};
use smoltcp::wire::EthernetAddress;

/// A device that is not started yet.
#[derive(Clone, Copy, Debug)]
pub struct Nic {
    pub eal: Eal,
    pub id: PortId,
    /// Its own Ethernet address, or the one that it is given.
    pub mac: [u8; 6],
}

impl Nic {
    /// Starts the EAL with `arguments`, and finds a device.
    ///
    /// # Errors
    /// The EAL does not start, there is no such device, or it has no Ethernet address.
    pub fn find(device: &str, arguments: &[String], mac: Option<EthernetAddress>) -> Result<Self> {
        let mut arguments = arguments.to_vec();
        if device.starts_with("net_") && !arguments.iter().any(|argument| argument == "--no-pci") {
            arguments.push("--no-pci".to_owned());
        }
        let eal = Eal::init(arguments)?;
        let id = eal.attach(device)?;
        let mac = mac.map_or(id.info()?.host_mac(), |mac| mac.0);
        ensure!(mac != [0; 6], "{device} has no Ethernet address of its own; give it one with --mac");
        Ok(Self { eal, id, mac })
    }
}
