//! The likeness of a machine: a folder with the sys, proc and dev of one, and a kernel that moves drivers as the real one does.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use pmtool::system::{Kernel, System};
use tempfile::TempDir;

pub struct Machine {
    folder: TempDir,
    /// Drivers the kernel would choose by itself, by the device's address.
    natural: RefCell<Vec<(String, String)>>,
    /// Drivers that refuse every device.
    pub broken_driver: Option<&'static str>,
}

impl Machine {
    pub fn new() -> Self {
        let machine =
            Self { folder: tempfile::tempdir().unwrap(), natural: RefCell::default(), broken_driver: None };
        machine.file("sys/bus/pci/drivers_probe", "");
        machine.folder("sys/bus/pci/devices");
        machine
    }

    pub fn system(&self) -> System {
        System::new(self.folder.path())
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub fn folder(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    pub fn file(&self, path: &str, text: &str) -> &Self {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
        self
    }

    pub fn link(&self, path: &str, target: &str) -> &Self {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        symlink(target, self.path(path)).unwrap();
        self
    }

    /// A device with its natural driver, and in an IOMMU group of its own unless another is said.
    pub fn device(&self, address: &str, class: &str, driver: &str, group: Option<&str>) -> &Self {
        let folder = format!("sys/bus/pci/devices/{address}");
        self.file(&format!("{folder}/class"), &format!("{class}\n"));
        self.file(&format!("{folder}/vendor"), "0x8086\n");
        self.file(&format!("{folder}/device"), "0x10d3\n");
        self.file(&format!("{folder}/numa_node"), "-1\n");
        self.file(&format!("{folder}/driver_override"), "(null)\n");
        if let Some(group) = group {
            self.link(&format!("{folder}/iommu_group"), &format!("../../../kernel/iommu_groups/{group}"));
            self.folder(&format!("sys/kernel/iommu_groups/{group}/devices/{address}"));
        }
        self.natural.borrow_mut().push((address.to_owned(), driver.to_owned()));
        self.attach(address, driver);
        self
    }

    pub fn nic(&self, address: &str, interface: &str, group: Option<&str>) -> &Self {
        self.device(address, "0x020000", "e1000e", group);
        self.folder(&format!("sys/bus/pci/devices/{address}/net/{interface}"));
        self.folder(&format!("sys/class/net/{interface}"));
        self
    }

    pub fn driver(&self, address: &str) -> Option<String> {
        self.system().link_name(format!("sys/bus/pci/devices/{address}/driver"))
    }

    /// Text of every file of the machine, to show that nothing was touched.
    pub fn everything(&self) -> Vec<(PathBuf, String)> {
        let mut waiting = vec![self.folder.path().to_owned()];
        let mut found = Vec::new();
        while let Some(path) = waiting.pop() {
            let about = path.symlink_metadata().unwrap();
            if about.is_symlink() {
                found.push((path.clone(), fs::read_link(&path).unwrap().display().to_string()));
            } else if about.is_dir() {
                waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
        found.sort();
        found
    }

    fn attach(&self, address: &str, driver: &str) {
        self.folder(&format!("sys/bus/pci/drivers/{driver}"));
        self.file(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
        self.link(&format!("sys/bus/pci/devices/{address}/driver"), &format!("../../drivers/{driver}"));
    }
}

impl Kernel for Machine {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        // The real one resolves the link of devices/ADDRESS/driver; here it need only be there.
        let path = path.strip_prefix(self.folder.path()).unwrap().to_string_lossy().into_owned();
        let text = text.trim();
        if path == "sys/bus/pci/drivers_probe" {
            assert!(self.driver(text).is_none(), "probed while a driver still has it");
            let rule = self.system().text(format!("sys/bus/pci/devices/{text}/driver_override")).unwrap();
            let natural = self
                .natural
                .borrow()
                .iter()
                .find(|(address, _)| address == text)
                .map(|(_, driver)| driver.clone());
            let chosen = if matches!(rule.as_str(), "" | "(null)") { natural } else { Some(rule) };
            if let Some(driver) = chosen.filter(|driver| self.broken_driver != Some(driver.as_str())) {
                if !self.system().exists(format!("sys/bus/pci/drivers/{driver}")) {
                    return Err(io::Error::from(io::ErrorKind::NotFound));
                }
                self.attach(text, &driver);
            }
        } else if path.ends_with("/driver/unbind") {
            fs::remove_file(self.path(&format!("sys/bus/pci/devices/{text}/driver"))).unwrap();
            // A kernel takes the interfaces away with their driver.
            let _ = fs::remove_dir_all(self.path(&format!("sys/bus/pci/devices/{text}/net")));
        } else if path.ends_with("/driver_override") {
            fs::write(self.path(&path), text).unwrap();
        } else {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        Ok(())
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        if !matches!(name, "vfio-pci" | "uio_pci_generic") {
            return Err(io::Error::other(format!("FATAL: Module {name} not found")));
        }
        self.folder(&format!("sys/bus/pci/drivers/{name}"));
        Ok(())
    }
}
