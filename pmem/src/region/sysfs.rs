//! What the kernel says about DAX devices and persistence domains.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A device by its kind and numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
}

/// What keeps the bytes of device-DAX memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// A region of an NVDIMM bus.
    Nvdimm,
    /// A file of the host's (virtio-pmem): it is there only after a request to the host, which a flushed line is not.
    HostFile,
    /// Nothing: a CXL expander, memory of high bandwidth, or memory that was set aside.
    Memory,
}

/// The kernel's tree of devices.
#[derive(Clone, Debug)]
pub(crate) struct Sysfs(PathBuf);

impl Sysfs {
    /// The tree below `root`, which is `/sys` outside of tests.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// What the region behind a device says of its persistence domain: the nearest `persistence_domain` of the
    /// device or of what it hangs on. None if there is no such region, as behind device mapper.
    pub(crate) fn persistence_domain(&self, device: Device) -> Option<String> {
        let device = fs::canonicalize(self.link(device)).ok()?;
        let root = fs::canonicalize(&self.0).ok()?;
        device
            .ancestors()
            .take_while(|dir| dir.starts_with(&root))
            .find_map(|dir| read(&dir.join("persistence_domain")))
    }

    /// What keeps the bytes of a device-DAX device, by what it hangs on: an NVDIMM bus (libnvdimm, under which persistent
    /// CXL memory comes too) is what tells persistent memory from the rest of the dax bus.
    pub(crate) fn dax_keeping(&self, device: Device) -> Keeping {
        let Ok(device) = fs::canonicalize(self.link(device)) else { return Keeping::Memory };
        let hangs_on = |bus: &str| {
            let is_one = |name: &str| {
                let number = name.strip_prefix(bus);
                number.is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()))
            };
            device.ancestors().any(|dir| dir.file_name().and_then(|name| name.to_str()).is_some_and(is_one))
        };
        match () {
            () if !hangs_on("ndbus") => Keeping::Memory,
            () if hangs_on("virtio") => Keeping::HostFile,
            () => Keeping::Nvdimm,
        }
    }

    /// Whether a character device is device-DAX.
    pub(crate) fn is_dax(&self, device: Device) -> bool {
        fs::canonicalize(self.link(device).join("subsystem"))
            .is_ok_and(|bus| bus.file_name() == Some("dax".as_ref()))
    }

    /// Length of a device-DAX device in bytes.
    pub(crate) fn dax_size(&self, device: Device) -> Option<u64> {
        read(&self.link(device).join("size"))?.parse().ok()
    }

    /// The alignment in bytes that a mapping of a device-DAX device needs.
    pub(crate) fn dax_align(&self, device: Device) -> Option<u64> {
        read(&self.link(device).join("align"))?.parse().ok()
    }

    fn link(&self, device: Device) -> PathBuf {
        match device {
            Device::Char { major, minor } => self.0.join(format!("dev/char/{major}:{minor}")),
            Device::Block { major, minor } => self.0.join(format!("dev/block/{major}:{minor}")),
        }
    }
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const DAX: Device = Device::Char { major: 252, minor: 3 };
    const PMEM_PARTITION: Device = Device::Block { major: 259, minor: 1 };

    /// A region with a device-DAX namespace and one with a partitioned block device, and a disk without region.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in [
            "dev/char",
            "dev/block",
            "bus/dax",
            "devices/ndbus0/region0/dax0.0",
            "devices/pci/sda",
            "devices/ndbus0/region1/namespace1.0/block/pmem1/pmem1p1",
        ] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::write(at("devices/ndbus0/region0/persistence_domain"), "cpu_cache\n").unwrap();
        fs::write(at("devices/ndbus0/region1/persistence_domain"), "memory_controller\n").unwrap();
        fs::write(at("devices/ndbus0/region0/dax0.0/size"), "528482304\n").unwrap();
        fs::write(at("devices/ndbus0/region0/dax0.0/align"), "2097152\n").unwrap();
        symlink(at("bus/dax"), at("devices/ndbus0/region0/dax0.0/subsystem")).unwrap();
        symlink(at("devices/ndbus0/region0/dax0.0"), at("dev/char/252:3")).unwrap();
        symlink(at("devices/ndbus0/region1/namespace1.0/block/pmem1/pmem1p1"), at("dev/block/259:1"))
            .unwrap();
        symlink(at("devices/pci/sda"), at("dev/block/8:0")).unwrap();
        dir
    }

    #[test]
    fn the_nearest_region_says_what_its_domain_is() {
        let tree = tree();
        let sysfs = Sysfs::new(tree.path());
        assert_eq!(sysfs.persistence_domain(DAX).as_deref(), Some("cpu_cache"));
        assert_eq!(sysfs.persistence_domain(PMEM_PARTITION).as_deref(), Some("memory_controller"));
        assert_eq!(sysfs.persistence_domain(Device::Block { major: 8, minor: 0 }), None);
        assert_eq!(sysfs.persistence_domain(Device::Block { major: 9, minor: 9 }), None);
    }

    /// As Linux names them: Documentation/driver-api/nvdimm, drivers/dax/{cxl,hmem}, drivers/nvdimm/virtio_pmem.c.
    #[test]
    fn only_what_hangs_on_an_nvdimm_bus_is_persistent() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("dev/char")).unwrap();
        let devices = [
            ("LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus0/region0/dax0.0/dax0.0", Keeping::Nvdimm),
            ("platform/ACPI0017:00/root0/nvdimm-bridge0/ndbus2/region11/dax11.0/dax11.0", Keeping::Nvdimm),
            ("platform/e820_pmem/ndbus0/region0/dax0.1/dax0.1", Keeping::Nvdimm),
            ("pci0000:00/0000:00:05.0/virtio3/ndbus0/region0/dax0.0/dax0.2", Keeping::HostFile),
            ("platform/ACPI0017:00/root0/decoder0.0/region0/dax_region0/dax0.3", Keeping::Memory),
            ("platform/hmem.0/dax0.4", Keeping::Memory),
            ("platform/ndbus/dax0.5", Keeping::Memory),
        ];
        for (minor, (path, keeping)) in (0..).zip(devices) {
            let at = dir.path().join("devices").join(path);
            fs::create_dir_all(&at).unwrap();
            symlink(&at, dir.path().join(format!("dev/char/252:{minor}"))).unwrap();
            let device = Device::Char { major: 252, minor };
            assert_eq!(Sysfs::new(dir.path()).dax_keeping(device), keeping, "{path}");
        }
        let gone = Device::Char { major: 1, minor: 1 };
        assert_eq!(Sysfs::new(dir.path()).dax_keeping(gone), Keeping::Memory);
    }

    #[test]
    fn device_dax_is_told_from_other_devices() {
        let tree = tree();
        let sysfs = Sysfs::new(tree.path());
        assert!(sysfs.is_dax(DAX));
        assert!(!sysfs.is_dax(PMEM_PARTITION));
        assert_eq!(sysfs.dax_size(DAX), Some(528_482_304));
        assert_eq!(sysfs.dax_align(DAX), Some(2 << 20));
        assert_eq!(sysfs.dax_size(PMEM_PARTITION), None);
    }
}
