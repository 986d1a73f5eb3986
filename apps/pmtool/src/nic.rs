//! The NICs on the PCI bus.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::routes;
use crate::system::System;

/// A device's place on the PCI bus: domain, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// What was given is no PCI address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a PCI address such as 0000:02:00.0; 'pmtool doctor' lists those of the NICs")]
pub struct AddressError(String);

impl FromStr for PciAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let parse = || {
            let hex = |part: &str, digits| {
                let valid =
                    !part.is_empty() && part.len() <= digits && part.bytes().all(|c| c.is_ascii_hexdigit());
                if valid { u32::from_str_radix(part, 16).ok() } else { None }
            };
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
            let address = Self {
                domain: hex(domain, 8)?,
                bus: hex(bus, 2)? as u8,
                device: hex(device, 2)? as u8,
                function: hex(function, 1)? as u8,
            };
            (address.device < 32 && address.function < 8).then_some(address)
        };
        parse().ok_or_else(|| AddressError(text.to_owned()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// A PCI device, as sysfs has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its place.
    pub address: PciAddress,
    /// Class code, 24 bits; 0x02.... is a network controller.
    pub class: u32,
    /// Vendor and device, as in 8086:10d3.
    pub model: String,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group; none where there is no IOMMU.
    pub iommu_group: Option<String>,
    /// The memory it is near; none where the machine has one node or does not say.
    pub numa_node: Option<u32>,
    /// The kernel's interfaces over it, and those built on them (VLAN, bridge, bond).
    pub interfaces: Vec<String>,
}

impl Device {
    /// Reads a device; none if there is no such one.
    pub fn read(system: &System, address: PciAddress) -> Option<Self> {
        let folder = Self::folder(address);
        if !system.exists(&folder) {
            return None;
        }
        let hex = |name: &str| {
            let text = system.text(folder.join(name)).unwrap_or_default();
            u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
        };
        Some(Self {
            address,
            class: hex("class"),
            model: format!("{:04x}:{:04x}", hex("vendor"), hex("device")),
            driver: system.link_name(folder.join("driver")),
            iommu_group: system.link_name(folder.join("iommu_group")),
            numa_node: system.number(folder.join("numa_node")).and_then(|node| u32::try_from(node).ok()),
            interfaces: interfaces(system, &folder),
        })
    }

    /// Every network controller on the bus.
    pub fn nics(system: &System) -> Vec<Self> {
        let addresses = system.names("sys/bus/pci/devices");
        let devices = addresses.iter().filter_map(|name| Self::read(system, name.parse().ok()?));
        devices.filter(Self::is_nic).collect()
    }

    /// Where sysfs keeps a device.
    pub fn folder(address: PciAddress) -> PathBuf {
        PathBuf::from(format!("sys/bus/pci/devices/{address}"))
    }

    /// Whether its class is that of a network controller.
    pub fn is_nic(&self) -> bool {
        self.class >> 16 == 0x02
    }

    /// Whether a driver that DPDK uses has it.
    pub fn is_bound_for_dpdk(&self) -> bool {
        self.driver.as_deref().is_some_and(is_dpdk_driver)
    }

    /// Why taking it away would cut somebody off, in words; none if it would not.
    pub fn in_use(&self, system: &System) -> Option<String> {
        routes::use_of(system, &self.interfaces)
    }

    /// Other devices of its IOMMU group that a kernel driver still has: vfio hands out whole groups only.
    pub fn group_neighbours(&self, system: &System) -> Vec<String> {
        let Some(group) = &self.iommu_group else { return Vec::new() };
        let names = system.names(format!("sys/kernel/iommu_groups/{group}/devices"));
        let held = |name: &String| {
            let address: Option<PciAddress> = name.parse().ok();
            let driver = system.link_name(format!("sys/bus/pci/devices/{name}/driver"));
            // Bridges stay with pcieport, which vfio accepts.
            address != Some(self.address)
                && driver.is_some_and(|driver| !is_dpdk_driver(&driver) && driver != "pcieport")
        };
        names.into_iter().filter(held).collect()
    }
}

fn is_dpdk_driver(driver: &str) -> bool {
    matches!(driver, "vfio-pci" | "uio_pci_generic" | "igb_uio")
}

/// The interfaces directly on a device and, through the links the kernel keeps, all those stacked on them.
fn interfaces(system: &System, folder: &std::path::Path) -> Vec<String> {
    let mut waiting = system.names(folder.join("net"));
    // Virtio's interface belongs to the virtio device on the PCI device.
    for child in system.names(folder).into_iter().filter(|name| name.starts_with("virtio")) {
        waiting.extend(system.names(folder.join(child).join("net")));
    }
    let mut found = BTreeSet::new();
    while let Some(interface) = waiting.pop() {
        let entries = system.names(format!("sys/class/net/{interface}"));
        let upper = entries.iter().filter_map(|name| name.strip_prefix("upper_")).map(str::to_owned);
        if found.insert(interface) {
            waiting.extend(upper);
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_in_one_form() {
        for text in ["0000:02:00.0", "02:00.0", "0:2:0.0"] {
            assert_eq!(
                text.parse::<PciAddress>().map(|a| a.to_string()),
                Ok("0000:02:00.0".to_owned()),
                "{text}"
            );
        }
        assert_eq!(
            "10000:e1:1f.7".parse::<PciAddress>().map(|a| a.to_string()),
            Ok("10000:e1:1f.7".to_owned())
        );
    }

    #[test]
    fn anything_else_is_no_address() {
        for text in [
            "",
            "eth0",
            "02:00",
            "02:20.0",
            "02:00.8",
            "2.0",
            "../..:00.0",
            "0000:02:00.0/..",
            "+1:00.0",
            ":2:0.0",
        ] {
            assert_eq!(text.parse::<PciAddress>(), Err(AddressError(text.to_owned())));
        }
    }
}
