//! Moving NICs between drivers, on the likeness of a machine.

use std::io;
use std::path::Path;

use crate::machine::Machine;
use pmtool::bind::{BindError, Force, bind, unbind};
use pmtool::system::Kernel;

const NIC: &str = "0000:02:00.0";
const DEFAULT_ROUTE: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                             eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n";

fn machine() -> Machine {
    let machine = Machine::new();
    machine.nic(NIC, "eth0", Some("7"));
    machine
}

#[test]
fn a_nic_goes_to_vfio_and_back() {
    let machine = machine();
    let done = bind(&machine.system(), &machine, NIC, "vfio-pci", Force::No).unwrap();
    assert!(done.contains("from e1000e to vfio-pci"), "{done}");
    assert_eq!(machine.driver(NIC).as_deref(), Some("vfio-pci"));

    let again = bind(&machine.system(), &machine, "2:0.0", "vfio-pci", Force::No).unwrap();
    assert!(again.contains("already"), "{again}");

    let back = unbind(&machine.system(), &machine, NIC).unwrap();
    assert!(back.contains("from vfio-pci back to e1000e"), "{back}");
    assert_eq!(machine.driver(NIC).as_deref(), Some("e1000e"));
    let rule = machine.system().text(format!("sys/bus/pci/devices/{NIC}/driver_override"));
    assert_eq!(rule.as_deref(), Some(""), "at the next boot the kernel must choose for itself");
}

#[test]
fn unbinding_what_the_kernel_has_does_nothing() {
    let machine = machine();
    let before = machine.everything();
    assert!(unbind(&machine.system(), &machine, NIC).unwrap().contains("nothing to do"));
    assert_eq!(machine.everything(), before);
}

/// Asserts that `NIC` is refused with `words`, that nothing was touched, and that force alone changes that.
fn refused_unless_forced(machine: &Machine, words: &str) {
    let before = machine.everything();
    let error = bind(&machine.system(), machine, NIC, "vfio-pci", Force::No).unwrap_err().to_string();
    assert!(error.contains(words) && error.contains("--force"), "{error}");
    assert_eq!(machine.everything(), before);
    bind(&machine.system(), machine, NIC, "vfio-pci", Force::Yes).unwrap();
    assert_eq!(machine.driver(NIC).as_deref(), Some("vfio-pci"));
}

#[test]
fn the_nic_of_the_default_route_is_refused() {
    let machine = machine();
    machine.file("proc/net/route", DEFAULT_ROUTE);
    refused_unless_forced(&machine, "default IPv4 route");
}

#[test]
fn the_nic_below_the_bridge_of_the_default_route_is_refused() {
    let machine = machine();
    machine.file("proc/net/route", &DEFAULT_ROUTE.replace("eth0", "br0"));
    machine.folder("sys/class/net/bond0");
    machine.link("sys/class/net/eth0/upper_bond0", "../bond0");
    machine.link("sys/class/net/bond0/upper_br0", "../br0");
    refused_unless_forced(&machine, "br0");
}

#[test]
fn the_nic_of_a_login_is_refused() {
    let machine = machine();
    let subnet = "Iface Destination Gateway Flags RefCnt Use Metric Mask\neth0 0000000A 00000000 0001 0 0 0 000000FF\n";
    machine.file("proc/net/route", subnet);
    machine.file("proc/net/tcp", "sl local rem st\n 0: 0200000A:0016 0300000A:9C40 01 0:0\n");
    refused_unless_forced(&machine, "ssh connection with 10.0.0.3");
}

#[test]
fn virtios_interface_is_found_one_level_down() {
    let machine = Machine::new();
    machine.device(NIC, "0x020000", "virtio-pci", Some("7"));
    machine.folder(&format!("sys/bus/pci/devices/{NIC}/virtio0/net/eth0"));
    machine.file("proc/net/route", DEFAULT_ROUTE);
    refused_unless_forced(&machine, "default IPv4 route");
}

#[test]
fn a_disk_controller_is_refused() {
    let machine = Machine::new();
    machine.device(NIC, "0x010802", "nvme", Some("7"));
    refused_unless_forced(&machine, "not a NIC");
}

#[test]
fn vfio_without_an_iommu_is_refused_with_the_way_out() {
    let machine = Machine::new();
    machine.nic(NIC, "eth0", None);
    let before = machine.everything();
    let error = bind(&machine.system(), &machine, NIC, "vfio-pci", Force::Yes).unwrap_err().to_string();
    assert!(error.contains("intel_iommu=on") && error.contains("uio_pci_generic"), "{error}");
    assert_eq!(machine.everything(), before);
    bind(&machine.system(), &machine, NIC, "uio_pci_generic", Force::No).unwrap();
    assert_eq!(machine.driver(NIC).as_deref(), Some("uio_pci_generic"));
}

#[test]
fn a_shared_group_is_refused_until_the_others_are_free() {
    let machine = machine();
    machine.nic("0000:02:00.1", "eth1", Some("7"));
    machine.device("0000:00:1c.0", "0x060400", "pcieport", Some("7"));
    let error = bind(&machine.system(), &machine, NIC, "vfio-pci", Force::No).unwrap_err().to_string();
    assert!(error.contains("0000:02:00.1") && !error.contains("1c.0"), "{error}");
}

#[test]
fn a_driver_that_does_not_take_the_nic_leaves_it_where_it_was() {
    let mut machine = machine();
    machine.broken_driver = Some("vfio-pci");
    let error = bind(&machine.system(), &machine, NIC, "vfio-pci", Force::No).unwrap_err();
    assert!(matches!(&error, BindError::NotTaken { now: Some(now), .. } if now == "e1000e"), "{error}");
    assert_eq!(machine.driver(NIC).as_deref(), Some("e1000e"));
}

#[test]
fn what_is_not_there_is_said() {
    let machine = machine();
    let try_bind = |address: &str, driver: &str| {
        bind(&machine.system(), &machine, address, driver, Force::Yes).unwrap_err()
    };
    assert!(matches!(try_bind("0000:03:00.0", "vfio-pci"), BindError::NoDevice(_)));
    assert!(matches!(try_bind("eth0", "vfio-pci"), BindError::Address(_)));
    for driver in ["nosuch", "", "../e1000e", "-r", "a b"] {
        assert!(matches!(try_bind(NIC, driver), BindError::NoDriver { .. }), "{driver}");
    }
    assert_eq!(machine.driver(NIC).as_deref(), Some("e1000e"));
}

#[test]
fn without_the_right_to_write_the_remedy_is_named() {
    struct Locked;
    impl Kernel for Locked {
        fn write(&self, _: &Path, _: &str) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn load_module(&self, _: &str) -> io::Result<()> {
            Ok(())
        }
    }
    let machine = machine();
    let error = bind(&machine.system(), &Locked, NIC, "vfio-pci", Force::No).unwrap_err().to_string();
    assert!(error.contains("driver_override") && error.contains("as root"), "{error}");
}
