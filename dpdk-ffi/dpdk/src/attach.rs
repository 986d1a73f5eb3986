//! Finding and probing devices, and saying what is wrong when that fails.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use dpdk_sys as sys;

use crate::device::PortId;
use crate::refusal::{self, WouldCorrupt};
use crate::{errno_text, log};

const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

/// Why a device gives no port.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Not a name that DPDK could look up.
    #[error(
        "{0:?} is no device name; give a PCI address (0000:02:00.0) or a virtual device (net_tap0,iface=tap0)"
    )]
    Name(String),
    /// A device that would lose or corrupt frames in external memory.
    #[error(transparent)]
    WouldCorrupt(#[from] WouldCorrupt),
    /// DPDK could not probe it.
    #[error("the device {device} cannot be used ({code}): {reason}. {remedy}")]
    Probe {
        /// The device as asked for.
        device: String,
        /// DPDK's error code as text.
        code: String,
        /// What DPDK logged.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// A device that is no Ethernet port.
    #[error("the device {0} was probed but has no Ethernet port; name a network device")]
    NoPort(String),
    /// No device at all.
    #[error(
        "there is no Ethernet device: bind a NIC with `dpdk-devbind.py --bind=vfio-pci ADDRESS` \
         (after `modprobe vfio-pci`), or name a virtual one, such as net_tap0,iface=tap0"
    )]
    NoPorts,
}

pub(crate) fn attach(device: &str) -> Result<PortId, AttachError> {
    let device = device.trim();
    let unprefixed = device.strip_prefix("vdev:").or_else(|| device.strip_prefix("pci:")).unwrap_or(device);
    let (name, arguments) = unprefixed.split_once(',').unwrap_or((unprefixed, ""));
    let c_device = CString::new(device).map_err(|_| AttachError::Name(device.to_owned()))?;
    if name.is_empty()
        || name.len() >= sys::RTE_ETH_NAME_MAX_LEN as usize
        || name.contains(char::is_whitespace)
    {
        return Err(AttachError::Name(device.to_owned()));
    }
    refusal::check(name, arguments)?;
    let name = full_name(name);
    if let Some(port) = port_by_name(&name) {
        return Ok(port);
    }
    // SAFETY: the EAL runs, as its proof was needed to come here, and the string is NUL-terminated.
    let (result, reason) = log::listening(|| unsafe { sys::rte_dev_probe(c_device.as_ptr()) });
    if result < 0 {
        let remedy = remedy(&name);
        return Err(AttachError::Probe {
            device: device.to_owned(),
            code: errno_text(result),
            reason,
            remedy,
        });
    }
    port_by_name(&name).ok_or_else(|| AttachError::NoPort(device.to_owned()))
}

pub(crate) fn ports() -> Vec<PortId> {
    let mut found = Vec::new();
    let mut next = 0;
    while let Some(id) = find_from(next) {
        found.push(PortId(id));
        next = id + 1;
    }
    found
}

fn find_from(id: u16) -> Option<u16> {
    // SAFETY: reads DPDK's port table; any number is allowed.
    let found = u32::from(unsafe { sys::rte_eth_find_next(id) });
    (found < sys::RTE_MAX_ETHPORTS).then_some(found as u16)
}

/// PCI addresses may come without their domain.
fn full_name(name: &str) -> String {
    let with_domain = format!("0000:{name}");
    if is_pci_address(&with_domain) { with_domain } else { name.to_owned() }
}

/// `dddd:bb:dd.f`, all hexadecimal.
fn is_pci_address(name: &str) -> bool {
    let shape = b"hhhh:hh:hh.h";
    name.len() == shape.len()
        && name.bytes().zip(shape).all(|(byte, expected)| match expected {
            b'h' => byte.is_ascii_hexdigit(),
            separator => byte == *separator,
        })
}

fn port_by_name(name: &str) -> Option<PortId> {
    let name = CString::new(name).ok()?;
    let mut id = 0;
    // SAFETY: the name is NUL-terminated and `id` writable.
    (unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &mut id) } == 0).then_some(PortId(id))
}

fn remedy(name: &str) -> String {
    if is_pci_address(name) {
        return pci_remedy(name);
    }
    let driver = name.trim_end_matches(|last: char| last.is_ascii_digit());
    let needed: &[(u32, &str)] = match driver {
        "net_tap" => &[(CAP_NET_ADMIN, "CAP_NET_ADMIN")],
        "net_af_packet" => &[(CAP_NET_RAW, "CAP_NET_RAW"), (CAP_NET_ADMIN, "CAP_NET_ADMIN")],
        "net_pcap" => &[(CAP_NET_RAW, "CAP_NET_RAW")],
        "net_memif" => {
            return "Check that the socket's folder exists and is writable, and remove a stale socket"
                .to_owned();
        }
        "net_null" | "net_ring" | "net_vhost" => &[],
        _ => {
            return "Check the spelling (net_tap0, net_af_packet0, net_memif0, or a PCI address from \
                    `dpdk-devbind.py --status`), and that the driver's plugin is installed (apt-get install dpdk)"
                .to_owned();
        }
    };
    let effective = effective_capabilities();
    let missing: Vec<&str> =
        needed.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        "Check the device's arguments: that the interface exists and is not in use".to_owned()
    } else {
        format!(
            "This process lacks {}: run it as root, or in a namespace of its own (`unshare -Urn`)",
            missing.join(" and ")
        )
    }
}

fn pci_remedy(address: &str) -> String {
    let folder = Path::new("/sys/bus/pci/devices").join(address);
    if !folder.exists() {
        return "No PCI device has this address; `dpdk-devbind.py --status` lists those that there are"
            .to_owned();
    }
    let driver = fs::read_link(folder.join("driver")).ok();
    match driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()) {
        Some("vfio-pci") => match fs::read_link(folder.join("iommu_group")) {
            Ok(group) => {
                let group = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
                format!("Check that /dev/vfio/{group} is readable and writable for this user")
            }
            Err(_) => "vfio needs an IOMMU: switch it on (intel_iommu=on), or load vfio with \
                       enable_unsafe_noiommu_mode=1"
                .to_owned(),
        },
        Some(driver) => format!(
            "It is bound to the kernel's {driver}: `modprobe vfio-pci && dpdk-devbind.py --bind=vfio-pci {address}`"
        ),
        None => format!("It has no driver: `modprobe vfio-pci && dpdk-devbind.py --bind=vfio-pci {address}`"),
    }
}

/// This thread's effective capabilities, as capabilities(7) numbers them; none if they cannot be read.
fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses() {
        assert_eq!(full_name("02:00.1"), "0000:02:00.1");
        assert_eq!(full_name("0001:02:00.1"), "0001:02:00.1");
        assert_eq!(full_name("net_tap0"), "net_tap0");
        assert!(!is_pci_address("0000:02:00-1"));
    }

    #[test]
    fn an_absent_pci_device_is_said_to_be_absent() {
        assert!(remedy("ffff:ff:1f.7").starts_with("No PCI device"));
    }
}
