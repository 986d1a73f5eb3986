//! What a machine has and lacks for packets by DMA into persistent memory.

use std::fmt;

use bytesize::ByteSize;
use rustix::fs::{Access, access};
use serde::Serialize;

use crate::memory::{self, Domain};
use crate::nic::Device;
use crate::system::System;

/// How a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// Works, but not as well or not as safely as it could.
    Warn,
    /// A NIC cannot put packets into persistent memory before this is seen to.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a fixed word, and the device where there are several.
    pub check: String,
    /// How it stands.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it; never missing where the level is not `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Everything that was looked at, in the order in which a machine is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether anything is missing altogether.
    pub fn failed(&self) -> bool {
        self.count(Level::Fail) > 0
    }

    /// How many findings stand at `level`.
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// The report as one JSON object.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers are always JSON")
    }

    fn say(
        &mut self,
        check: impl Into<String>,
        level: Level,
        found: impl Into<String>,
        remedy: Option<String>,
    ) {
        self.findings.push(Finding { check: check.into(), level, found: found.into(), remedy });
    }

    fn ok(&mut self, check: impl Into<String>, found: impl Into<String>) {
        self.say(check, Level::Ok, found, None);
    }

    fn warn(&mut self, check: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) {
        self.say(check, Level::Warn, found, Some(remedy.into()));
    }

    fn fail(&mut self, check: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) {
        self.say(check, Level::Fail, found, Some(remedy.into()));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        for finding in &self.findings {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            writeln!(out, "{level:<5} {:<width$}  {}", finding.check, finding.found)?;
            if let Some(remedy) = &finding.remedy {
                writeln!(out, "{:5} {:width$}  -> {remedy}", "", "")?;
            }
        }
        let [ok, warn, fail] = [Level::Ok, Level::Warn, Level::Fail].map(|level| self.count(level));
        writeln!(out, "{ok} ok, {warn} to improve, {fail} missing")
    }
}

/// Looks at everything.
pub fn examine(system: &System) -> Report {
    let mut report = Report { findings: Vec::new() };
    processor(system, &mut report);
    iommu(system, &mut report);
    hugepages(system, &mut report);
    transparent_hugepages(system, &mut report);
    vfio(system, &mut report);
    locked_memory(system, &mut report);
    nics(system, &mut report);
    virtual_links(system, &mut report);
    persistent_memory(system, &mut report);
    numa(system, &mut report);
    report
}

fn processor(system: &System, report: &mut Report) {
    let info = system.text("proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    if !has("sse4_2") {
        let remedy =
            "use an x86-64 processor of 2009 or later; in a virtual machine choose a CPU model that has it";
        report.fail("processor", "no SSE4.2, without which DPDK does not start", remedy);
    } else if has("clwb") {
        report.ok("processor", "flushes cache lines with clwb, which keeps them cached");
    } else {
        let (name, cost) = if has("clflushopt") {
            ("clflushopt", "each flushed line is read again from memory")
        } else {
            ("clflush", "flushes wait for one another, and each line is read again from memory")
        };
        let remedy = format!("nothing to set: a processor with clwb is faster; with {name} {cost}");
        report.warn("processor", format!("no clwb; lines are flushed with {name}"), remedy);
    }
}

fn iommu(system: &System, report: &mut Report) {
    let arguments = system.text("proc/cmdline").unwrap_or_default();
    let chosen: Vec<_> = arguments.split_whitespace().filter(|word| word.contains("iommu")).collect();
    let units = system.names("sys/class/iommu");
    if units.is_empty() {
        let remedy = "switch VT-d or AMD-Vi on in the firmware and, with Intel, boot with intel_iommu=on; \
                      or let the NIC reach all of memory: pmtool bind --driver uio_pci_generic";
        let found = match chosen.is_empty() {
            true => "none in use, and no kernel argument asks for one".to_owned(),
            false => format!("none in use, though the kernel was started with {}", chosen.join(" ")),
        };
        report.fail("iommu", found, remedy);
        return;
    }
    let with = if chosen.is_empty() { String::new() } else { format!(", started with {}", chosen.join(" ")) };
    let width = units.iter().filter_map(|unit| address_bits(system, unit)).min();
    match width {
        Some(bits) if bits < 48 => report.warn(
            "iommu",
            format!("{} addresses only {bits} bits{with}", units.join(", ")),
            "mapping memory for the NIC may fail with EINVAL: add '-- --iova-mode=pa', or in QEMU -device intel-iommu,aw-bits=48",
        ),
        _ => report.ok("iommu", format!("{} in use{with}", units.join(", "))),
    }
}

/// Widest address that an Intel unit translates: MGAW, bits 21 to 16 of its capability register, plus one
/// (VT-d specification, 11.4.2).
fn address_bits(system: &System, unit: &str) -> Option<u64> {
    let text = system.text(format!("sys/class/iommu/{unit}/intel-iommu/cap"))?;
    Some((u64::from_str_radix(&text, 16).ok()? >> 16 & 0x3f) + 1)
}

fn hugepages(system: &System, report: &mut Report) {
    const FOLDER: &str = "sys/kernel/mm/hugepages";
    const REMEDY: &str = "echo 512 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages (now), \
                          or boot with hugepages=512";
    let mut sizes = Vec::new();
    let mut free_total = 0;
    for name in system.names(FOLDER) {
        let kib: Option<u64> =
            name.strip_prefix("hugepages-").and_then(|rest| rest.strip_suffix("kB")?.parse().ok());
        let count = |file| system.number(format!("{FOLDER}/{name}/{file}")).unwrap_or(0);
        let (all, free) = (count("nr_hugepages"), count("free_hugepages"));
        if let (Some(kib), 1..) = (kib, all) {
            sizes.push(format!("{all} of {}, {free} free", ByteSize::kib(kib).display().iec()));
            free_total += free;
        }
    }
    if sizes.is_empty() {
        report.fail("hugepages", "none reserved", REMEDY);
        return;
    }
    let mounts = system.text("proc/mounts").unwrap_or_default();
    let mounted = mounts.lines().any(|line| line.split(' ').nth(2) == Some("hugetlbfs"));
    if free_total == 0 {
        report.fail("hugepages", format!("{}: all taken", sizes.join("; ")), REMEDY);
    } else if !mounted {
        let remedy = "mkdir -p /dev/hugepages && mount -t hugetlbfs none /dev/hugepages, for programs that ask for files";
        report.warn("hugepages", format!("{}, but no hugetlbfs is mounted", sizes.join("; ")), remedy);
    } else {
        report.ok("hugepages", sizes.join("; "));
    }
}

/// What stores in memory and tables lie in; DPDK takes reserved ones only.
fn transparent_hugepages(system: &System, report: &mut Report) {
    const CHECK: &str = "transparent hugepages";
    let text = system.text("sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen);
    match chosen {
        Some(chosen @ ("always" | "madvise")) => report.ok(CHECK, chosen),
        Some(other) => {
            let remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
            report.warn(CHECK, format!("{other}: tables and stores in memory lie in small pages"), remedy);
        }
        None => report.warn(
            CHECK,
            "this kernel has none: tables and stores in memory lie in small pages",
            "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

fn vfio(system: &System, report: &mut Report) {
    let loaded = |module: &str| system.exists(format!("sys/module/{module}"));
    let missing: Vec<_> =
        ["vfio_pci", "vfio_iommu_type1"].into_iter().filter(|module| !loaded(module)).collect();
    match missing.as_slice() {
        [] => report.ok("vfio", "vfio_pci and vfio_iommu_type1 are loaded"),
        names => {
            let commands: Vec<_> = names.iter().map(|name| format!("modprobe {name}")).collect();
            report.fail("vfio", format!("not loaded: {}", names.join(", ")), commands.join(" && "));
        }
    }
    let groups = system.names("dev/vfio").into_iter().filter(|name| name != "vfio");
    for group in groups {
        let path = system.path(format!("dev/vfio/{group}"));
        let check = format!("vfio group {group}");
        match access(&path, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => report.ok(check, "this user may open it"),
            Err(_) => report.fail(
                check,
                format!("this user may not open /dev/vfio/{group}"),
                format!("chown \"$USER\" /dev/vfio/{group}, or a udev rule that gives it to a group"),
            ),
        }
    }
}

fn locked_memory(system: &System, report: &mut Report) {
    let status = system.text("proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    const CAP_IPC_LOCK: u64 = 1 << 14;
    if capabilities & CAP_IPC_LOCK != 0 {
        report.ok("locked memory", "no limit (CAP_IPC_LOCK)");
        return;
    }
    let limits = system.text("proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")).unwrap_or_default();
    match line.split_whitespace().next() {
        Some("unlimited") => report.ok("locked memory", "no limit"),
        Some(soft) => {
            let shown = soft
                .parse()
                .map_or_else(|_| soft.to_owned(), |bytes| ByteSize(bytes).display().iec().to_string());
            let remedy = "vfio locks all memory it maps, the persistent memory included: ulimit -l unlimited, \
                          or LimitMEMLOCK=infinity in the service's unit";
            report.fail("locked memory", format!("limited to {shown}"), remedy);
        }
        None => report.warn(
            "locked memory",
            "the limit cannot be read",
            "look at 'ulimit -l'; it should say unlimited",
        ),
    }
}

fn nics(system: &System, report: &mut Report) {
    let devices = Device::nics(system);
    if devices.is_empty() {
        report.fail(
            "nic",
            "no network controller on the PCI bus",
            "look at lspci; virtual devices (tap, af_packet) work without one",
        );
    }
    for device in &devices {
        let check = format!("nic {}", device.address);
        let mut found = format!("{} with {}", device.model, device.driver.as_deref().unwrap_or("no driver"));
        if !device.interfaces.is_empty() {
            found += &format!(" as {}", device.interfaces.join(", "));
        }
        if let Some(node) = device.numa_node {
            found += &format!(", NUMA node {node}");
        }
        match &device.iommu_group {
            Some(group) => found += &format!(", IOMMU group {group}"),
            None => found += ", no IOMMU group",
        }
        let neighbours = device.group_neighbours(system);
        if let Some(reason) = device.in_use(system) {
            report.warn(check, format!("{found}; {reason}"), "leave it to the kernel, and bind another NIC");
        } else if !neighbours.is_empty() {
            let remedy = "bind those too, or move the card to another slot: vfio hands out whole groups";
            report.warn(check, format!("{found}, shared with {}", neighbours.join(" and ")), remedy);
        } else if device.is_bound_for_dpdk() {
            report.ok(check, format!("{found}, ready for DPDK"));
        } else if device.iommu_group.is_none() {
            let remedy =
                format!("pmtool bind {} --driver uio_pci_generic, or see to the IOMMU first", device.address);
            report.warn(check, found, remedy);
        } else {
            report.warn(check, found, format!("pmtool bind {}", device.address));
        }
    }
}

/// Pairs of virtual interfaces, over which a kernel sends what it leaves to a card to finish.
fn virtual_links(system: &System, report: &mut Report) {
    let is_end_of_pair = |name: &String| {
        let number = |file| system.number(format!("sys/class/net/{name}/{file}"));
        let is_virtual = system.exists(format!("sys/devices/virtual/net/{name}"));
        is_virtual && number("iflink").is_some_and(|other| other != 0 && Some(other) != number("ifindex"))
    };
    let names: Vec<_> = system.names("sys/class/net").into_iter().filter(is_end_of_pair).collect();
    if !names.is_empty() {
        report.say(
            "virtual links",
            Level::Ok,
            format!("{}: long frames do not fit net_af_packet's ring unless they are cut", names.join(", ")),
            Some("on the peer's end of a pair that a server is on: ethtool -K INTERFACE tx off tso off gso off".into()),
        );
    }
}

fn persistent_memory(system: &System, report: &mut Report) {
    let (namespaces, devices) = (memory::namespaces(system), memory::dax_devices(system));
    for namespace in &namespaces {
        let check = format!("pm {}", namespace.name);
        let found = format!("{}, {}", namespace.mode, ByteSize(namespace.bytes).display().iec());
        if namespace.mode == "devdax" {
            report.ok(check, found);
        } else {
            let remedy = format!(
                "a NIC behind an IOMMU reaches device-DAX only: ndctl create-namespace -f -e {} --mode=devdax --map=mem \
                 (this erases what is in it)",
                namespace.name
            );
            report.warn(check, found, remedy);
        }
    }
    for device in &devices {
        let check = format!("pm {}", device.name);
        let (size, align) =
            (ByteSize(device.bytes).display().iec(), ByteSize(device.align_bytes).display().iec());
        match device.driver.as_deref() {
            Some("kmem") => report.warn(
                check,
                format!("{size}, given to the kernel as ordinary memory"),
                format!("daxctl reconfigure-device --force --mode=devdax {}", device.name),
            ),
            _ => report.ok(check, format!("/dev/{}, {size}, mapped in steps of {align}", device.name)),
        }
    }
    if namespaces.is_empty() && devices.is_empty() {
        let remedy = "an NVDIMM, or CXL memory as /dev/daxX.Y; a regular file works too, at the price of an msync for each commit";
        report.fail("pm", "no persistent memory", remedy);
    }
    for region in memory::regions(system) {
        let check = format!("pm {}", region.name);
        match region.domain {
            Domain::Caches => {
                report.ok(check, "a power cut spares the processor's caches (eADR): a fence makes durable")
            }
            Domain::MemoryController => {
                report.ok(
                    check,
                    "a power cut spares the memory controller: flushing lines and a fence make durable",
                );
            }
            Domain::Unsaid => {
                report.ok(
                    check,
                    "the platform does not say what a power cut spares: lines are flushed, then a fence",
                );
            }
            Domain::Host => report.warn(
                check,
                "virtio-pmem: only the host makes it durable, at an msync",
                "fit for tests; a real NVDIMM, or one passed through, needs no system call",
            ),
        }
    }
}

fn numa(system: &System, report: &mut Report) {
    let nodes = system.names("sys/devices/system/node").into_iter().filter(|name| {
        name.strip_prefix("node")
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()))
    });
    let count = nodes.count();
    if count < 2 {
        report.ok("numa", "one node: everything is near");
        return;
    }
    let mut far = Vec::new();
    let namespaces = memory::namespaces(system).into_iter().map(|one| (one.name, one.numa_node));
    let devices = memory::dax_devices(system).into_iter().map(|one| (one.name, one.numa_node));
    let memories: Vec<_> = namespaces.chain(devices).collect();
    for nic in Device::nics(system) {
        for (name, node) in &memories {
            if let (Some(near), Some(node)) = (nic.numa_node, node)
                && near != *node
            {
                far.push(format!("{} (node {near}) and {name} (node {node})", nic.address));
            }
        }
    }
    if far.is_empty() {
        report.ok(
            "numa",
            format!("{count} nodes; each NIC and each persistent memory is on the same one, or does not say"),
        );
    } else {
        let remedy =
            "use a NIC and memory of the same node, and run the server there: numactl --cpunodebind=N";
        report.warn("numa", format!("far from each other: {}", far.join("; ")), remedy);
    }
}
