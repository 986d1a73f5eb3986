//! Moving a NIC between its kernel driver and one that DPDK can use, through sysfs's `driver_override`.

use std::io;
use std::path::PathBuf;

use crate::nic::{AddressError, Device, PciAddress};
use crate::system::{Kernel, System};

/// Whether to go on where somebody may be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// Refuse.
    No,
    /// Go on.
    Yes,
}

/// Why a NIC was not moved.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be read.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nothing is there.
    #[error("there is no PCI device at {0}; 'pmtool doctor' lists the NICs")]
    NoDevice(PciAddress),
    /// A disk controller, say.
    #[error("{address} is not a NIC (its class is {class:06x}); --force binds it all the same")]
    NotANic {
        /// The device.
        address: PciAddress,
        /// Its class code.
        class: u32,
    },
    /// Somebody would be cut off.
    #[error("{address} stays where it is: {reason}; --force takes it all the same")]
    InUse {
        /// The device.
        address: PciAddress,
        /// What goes through it.
        reason: String,
    },
    /// vfio-pci without an IOMMU.
    #[error(
        "{0} has no IOMMU group, and vfio-pci needs one: switch VT-d or AMD-Vi on in the firmware and boot with \
         intel_iommu=on, or do without protection: --driver uio_pci_generic"
    )]
    NoIommu(PciAddress),
    /// vfio hands out whole groups.
    #[error(
        "{address} shares its IOMMU group with {}, which a kernel driver has; vfio hands out whole groups: bind those \
         too, or move the card to another slot", neighbours.join(" and ")
    )]
    GroupShared {
        /// The device.
        address: PciAddress,
        /// The others.
        neighbours: Vec<String>,
    },
    /// The driver's module did not load.
    #[error("driver {driver} is not there: {reason}")]
    NoDriver {
        /// The driver.
        driver: String,
        /// What modprobe said.
        reason: String,
    },
    /// The kernel refused a write to sysfs.
    #[error("cannot write '{text}' to {}: {reason}{}", path.display(), privilege_hint(reason))]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        text: String,
        /// The reason.
        reason: io::Error,
    },
    /// The driver did not take the device, which went back to where it was.
    #[error("{driver} did not take {address}; it is with {} again. 'dmesg' may know why", now.as_deref().unwrap_or("no driver"))]
    NotTaken {
        /// The device.
        address: PciAddress,
        /// The driver that was to have it.
        driver: String,
        /// The driver that has it now.
        now: Option<String>,
    },
}

fn privilege_hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { "; run this as root" } else { "" }
}

/// Gives the NIC at `address` to `driver`; says what was done.
///
/// # Errors
/// [`BindError`]; the device is then where it was before.
pub fn bind(
    system: &System,
    kernel: &dyn Kernel,
    address: &str,
    driver: &str,
    force: Force,
) -> Result<String, BindError> {
    let address: PciAddress = address.parse()?;
    let device = Device::read(system, address).ok_or(BindError::NoDevice(address))?;
    if device.driver.as_deref() == Some(driver) {
        return Ok(format!("{address} is with {driver} already"));
    }
    if force == Force::No {
        if !device.is_nic() {
            return Err(BindError::NotANic { address, class: device.class });
        }
        if let Some(reason) = device.in_use(system) {
            return Err(BindError::InUse { address, reason });
        }
    }
    if driver == "vfio-pci" {
        if device.iommu_group.is_none() {
            return Err(BindError::NoIommu(address));
        }
        let neighbours = device.group_neighbours(system);
        if !neighbours.is_empty() {
            return Err(BindError::GroupShared { address, neighbours });
        }
    }
    let driver_folder = format!("sys/bus/pci/drivers/{driver}");
    let no_driver = |reason: String| BindError::NoDriver { driver: driver.to_owned(), reason };
    // The name becomes part of a path and of a command line.
    if driver.is_empty()
        || !driver.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-')
        || driver.starts_with('-')
    {
        return Err(no_driver("that is not a driver's name".to_owned()));
    }
    if !system.exists(&driver_folder) {
        kernel.load_module(driver).map_err(|error| no_driver(error.to_string()))?;
    }

    let mover = Mover { system, kernel, address };
    mover.offer(&device, driver)?;
    if mover.driver().as_deref() == Some(driver) {
        let from = device.driver.as_deref().unwrap_or("no driver");
        return Ok(format!("{address} ({}) went from {from} to {driver}", device.model));
    }
    // An empty line takes the override back.
    mover.offer(&device, "\n")?;
    Err(BindError::NotTaken { address, driver: driver.to_owned(), now: mover.driver() })
}

/// Gives the NIC at `address` back to the driver the kernel chooses for it; says what was done.
///
/// # Errors
/// [`BindError`].
pub fn unbind(system: &System, kernel: &dyn Kernel, address: &str) -> Result<String, BindError> {
    let address: PciAddress = address.parse()?;
    let device = Device::read(system, address).ok_or(BindError::NoDevice(address))?;
    if !device.is_bound_for_dpdk() {
        let with = device.driver.as_deref().unwrap_or("no driver");
        return Ok(format!("{address} is not with a driver of DPDK's but with {with}; nothing to do"));
    }
    let mover = Mover { system, kernel, address };
    mover.offer(&device, "\n")?;
    let from = device.driver.as_deref().unwrap_or("no driver");
    Ok(match mover.driver() {
        Some(driver) => format!("{address} ({}) went from {from} back to {driver}", device.model),
        None => format!("{address} ({}) left {from}; no driver of the kernel's wants it", device.model),
    })
}

struct Mover<'a> {
    system: &'a System,
    kernel: &'a dyn Kernel,
    address: PciAddress,
}

impl Mover<'_> {
    /// Takes the device from whatever driver has it, and has the kernel look for one under the new rule.
    fn offer(&self, device: &Device, rule: &str) -> Result<(), BindError> {
        let folder = Device::folder(device.address);
        self.write(folder.join("driver_override"), rule)?;
        if self.driver().is_some() {
            self.write(folder.join("driver/unbind"), &self.address.to_string())?;
        }
        self.write("sys/bus/pci/drivers_probe".into(), &self.address.to_string())
    }

    fn driver(&self) -> Option<String> {
        self.system.link_name(Device::folder(self.address).join("driver"))
    }

    fn write(&self, path: PathBuf, text: &str) -> Result<(), BindError> {
        let path = self.system.path(path);
        let failed = |reason| BindError::Write { path: path.clone(), text: text.trim().to_owned(), reason };
        self.kernel.write(&path, text).map_err(failed)
    }
}
