//! What the doctor finds, on the likeness of machines well and badly set up.

use crate::machine::Machine;
use pmtool::doctor::{Finding, Level, Report, examine};

const NIC: &str = "0000:00:02.0";

/// A server on which nothing is left to do.
fn healthy() -> Machine {
    let machine = Machine::new();
    machine.nic(NIC, "eth0", Some("1"));
    std::fs::remove_dir_all(machine.path(&format!("sys/bus/pci/devices/{NIC}/net"))).unwrap();
    std::fs::remove_file(machine.path(&format!("sys/bus/pci/devices/{NIC}/driver"))).unwrap();
    machine
        .link(&format!("sys/bus/pci/devices/{NIC}/driver"), "../../drivers/vfio-pci")
        .file("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu sse4_2 clflush clflushopt clwb\n")
        .file("proc/cmdline", "root=/dev/vda quiet intel_iommu=on iommu=pt\n")
        .file("sys/class/iommu/dmar0/intel-iommu/cap", "d2008c222f0686\n")
        .file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "192\n")
        .file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "190\n")
        .file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
        .file("proc/mounts", "none /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\n")
        .file("proc/self/status", "Name:\tpmtool\nCapEff:\t0000000000000000\n")
        .file(
            "proc/self/limits",
            "Max locked memory         unlimited            unlimited            bytes\n",
        )
        .file("dev/vfio/1", "")
        .file("dev/vfio/vfio", "")
        .file("sys/devices/system/node/node0/cpulist", "0-3\n")
        .file("sys/devices/ndbus0/region0/persistence_domain", "memory_controller\n")
        .link("sys/bus/nd/devices/region0", "../../../devices/ndbus0/region0")
        .file("sys/bus/nd/devices/namespace0.0/size", "536870912\n")
        .file("sys/bus/nd/devices/namespace0.0/mode", "dax\n")
        .file("sys/bus/nd/devices/namespace0.0/numa_node", "0\n")
        .file("sys/bus/dax/devices/dax0.0/size", "534773760\n")
        .file("sys/bus/dax/devices/dax0.0/align", "2097152\n");
    machine.folder("sys/module/vfio_pci");
    machine.folder("sys/module/vfio_iommu_type1");
    machine
}

fn finding(report: &Report, check: &str) -> Finding {
    let found = report.findings.iter().find(|finding| finding.check == check);
    found.unwrap_or_else(|| panic!("nothing about '{check}' in\n{report}")).clone()
}

/// What the doctor says of `check`, and that a remedy with `remedy` in it comes along.
fn advised(machine: &Machine, check: &str, level: Level, remedy: &str) -> String {
    let finding = finding(&examine(&machine.system()), check);
    assert_eq!(finding.level, level, "{finding:?}");
    assert!(finding.remedy.as_deref().unwrap_or_default().contains(remedy), "{finding:?}");
    finding.found
}

#[test]
fn the_remedy_for_uncut_frames_comes_with_virtual_links() {
    let machine = healthy();
    let interface = |name: &str, index: &str, other: &str| {
        machine.folder(&format!("sys/devices/virtual/net/{name}"));
        machine.file(&format!("sys/class/net/{name}/ifindex"), index);
        machine.file(&format!("sys/class/net/{name}/iflink"), other);
    };
    interface("lo", "1", "1");
    assert!(examine(&machine.system()).findings.iter().all(|finding| finding.check != "virtual links"));
    interface("veth0", "3", "2");
    interface("veth1", "2", "3");
    let found = advised(&machine, "virtual links", Level::Ok, "ethtool -K INTERFACE tx off tso off gso off");
    assert!(found.starts_with("veth0, veth1:"), "{found}");
}

#[test]
fn a_machine_that_lacks_nothing_passes() {
    let report = examine(&healthy().system());
    assert_eq!(report.count(Level::Ok), report.findings.len(), "{report}");
    assert!(!report.failed());
    assert!(finding(&report, &format!("nic {NIC}")).found.contains("8086:10d3 with vfio-pci, IOMMU group 1"));
    assert!(finding(&report, "pm namespace0.0").found.contains("devdax, 512"));
}

#[test]
fn an_empty_machine_fails_without_a_panic_and_each_finding_has_a_remedy() {
    let empty = tempfile::tempdir().unwrap();
    let report = examine(&pmtool::system::System::new(empty.path()));
    assert!(report.failed());
    for finding in report.findings.iter().filter(|finding| finding.level != Level::Ok) {
        assert!(finding.remedy.is_some(), "{finding:?}");
    }
    for check in ["processor", "iommu", "hugepages", "vfio", "nic", "pm"] {
        assert_eq!(finding(&report, check).level, Level::Fail, "{check}");
    }
}

#[test]
fn an_iommu_that_is_off_is_told_from_one_that_was_asked_for_in_vain() {
    let machine = healthy();
    std::fs::remove_dir_all(machine.path("sys/class/iommu")).unwrap();
    assert!(advised(&machine, "iommu", Level::Fail, "intel_iommu=on").contains("intel_iommu=on iommu=pt"));
    machine.file("proc/cmdline", "quiet\n");
    assert!(advised(&machine, "iommu", Level::Fail, "firmware").contains("no kernel argument"));
}

#[test]
fn a_narrow_iommu_is_warned_of() {
    let machine = healthy();
    // The same register with 39 address bits in place of 48.
    machine.file("sys/class/iommu/dmar0/intel-iommu/cap", "d2008c22260686\n");
    assert!(advised(&machine, "iommu", Level::Warn, "aw-bits=48").contains("39 bits"));
}

#[test]
fn hugepages_are_counted() {
    let machine = healthy();
    assert!(finding(&examine(&machine.system()), "hugepages").found.contains("192 of 2.0 MiB, 190 free"));
    machine.file("proc/mounts", "");
    advised(&machine, "hugepages", Level::Warn, "mount -t hugetlbfs");
    machine.file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n");
    advised(&machine, "hugepages", Level::Fail, "nr_hugepages");
    machine.file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n");
    assert_eq!(advised(&machine, "hugepages", Level::Fail, "nr_hugepages"), "none reserved");
}

#[test]
fn small_pages_for_tables_are_warned_of() {
    const ENABLED: &str = "sys/kernel/mm/transparent_hugepage/enabled";
    let machine = healthy();
    let check = "transparent hugepages";
    assert_eq!(finding(&examine(&machine.system()), check).found, "madvise");
    machine.file(ENABLED, "always madvise [never]\n");
    assert!(advised(&machine, check, Level::Warn, "echo madvise > /sys/").starts_with("never: "));
    std::fs::remove_file(machine.path(ENABLED)).unwrap();
    advised(&machine, check, Level::Warn, "CONFIG_TRANSPARENT_HUGEPAGE");
}

#[test]
fn missing_modules_are_named() {
    let machine = healthy();
    std::fs::remove_dir(machine.path("sys/module/vfio_pci")).unwrap();
    assert_eq!(advised(&machine, "vfio", Level::Fail, "modprobe vfio_pci"), "not loaded: vfio_pci");
}

#[test]
fn a_small_memlock_limit_counts_unless_a_capability_lifts_it() {
    let machine = healthy();
    machine.file(
        "proc/self/limits",
        "Max locked memory         8388608              8388608              bytes\n",
    );
    assert_eq!(advised(&machine, "locked memory", Level::Fail, "LimitMEMLOCK"), "limited to 8.0 MiB");
    machine.file("proc/self/status", "CapEff:\t0000000000004000\n");
    assert_eq!(finding(&examine(&machine.system()), "locked memory").level, Level::Ok);
}

#[test]
fn a_nic_with_the_kernel_is_to_be_bound_unless_somebody_needs_it() {
    let machine = healthy();
    machine.nic("0000:00:03.0", "eth1", Some("2"));
    machine.nic("0000:00:04.0", "eth2", Some("3"));
    machine.file("proc/net/route", "Iface\neth2\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n");
    let found = advised(&machine, "nic 0000:00:03.0", Level::Warn, "pmtool bind 0000:00:03.0");
    assert!(found.contains("e1000e as eth1"), "{found}");
    let found = advised(&machine, "nic 0000:00:04.0", Level::Warn, "another NIC");
    assert!(found.contains("default IPv4 route"), "{found}");
}

#[test]
fn a_nic_without_a_group_is_for_uio() {
    let machine = healthy();
    machine.nic("0000:00:03.0", "eth1", None);
    advised(&machine, "nic 0000:00:03.0", Level::Warn, "--driver uio_pci_generic");
}

#[test]
fn memory_in_another_mode_is_shown_how_to_change() {
    let machine = healthy();
    machine.file("sys/bus/nd/devices/namespace0.0/mode", "memory\n");
    assert!(advised(&machine, "pm namespace0.0", Level::Warn, "--mode=devdax").starts_with("fsdax"));
    machine.link("sys/bus/dax/devices/dax0.0/driver", "../../drivers/kmem");
    advised(&machine, "pm dax0.0", Level::Warn, "reconfigure-device");
}

#[test]
fn each_persistence_domain_is_told_apart() {
    let machine = healthy();
    let said = |machine: &Machine| finding(&examine(&machine.system()), "pm region0");
    assert!(said(&machine).found.contains("flushing lines"));
    machine.file("sys/devices/ndbus0/region0/persistence_domain", "cpu_cache\n");
    assert!(said(&machine).found.contains("eADR"));
    std::fs::remove_file(machine.path("sys/devices/ndbus0/region0/persistence_domain")).unwrap();
    assert!(said(&machine).found.contains("does not say"));
    std::fs::remove_file(machine.path("sys/bus/nd/devices/region0")).unwrap();
    machine.folder("sys/devices/pci0000:00/virtio1/ndbus0/region0");
    machine.link("sys/bus/nd/devices/region0", "../../../devices/pci0000:00/virtio1/ndbus0/region0");
    assert_eq!(said(&machine).level, Level::Warn);
}

#[test]
fn a_nic_far_from_the_memory_is_warned_of() {
    let machine = healthy();
    machine.file("sys/devices/system/node/node1/cpulist", "4-7\n");
    machine.file(&format!("sys/bus/pci/devices/{NIC}/numa_node"), "1\n");
    let found = advised(&machine, "numa", Level::Warn, "numactl");
    assert!(found.contains(&format!("{NIC} (node 1) and namespace0.0 (node 0)")), "{found}");
    machine.file(&format!("sys/bus/pci/devices/{NIC}/numa_node"), "0\n");
    assert_eq!(finding(&examine(&machine.system()), "numa").level, Level::Ok);
}

#[test]
fn both_forms_say_the_same() {
    let report = examine(&Machine::new().system());
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    let findings = json["findings"].as_array().unwrap();
    assert_eq!(findings.len(), report.findings.len());
    let text = report.to_string();
    for finding in findings {
        assert!(text.contains(finding["found"].as_str().unwrap()));
        assert!(["ok", "warn", "fail"].contains(&finding["level"].as_str().unwrap()));
    }
}
