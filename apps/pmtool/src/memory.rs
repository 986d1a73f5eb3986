//! Persistent memory, as the kernel's nd and dax buses show it.

use crate::system::System;

/// A namespace: a piece of an NVDIMM, or of a device that behaves like one, in one of its modes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// As in namespace0.0.
    pub name: String,
    /// The region it is a piece of, as in region0.
    pub region: String,
    /// raw, sector, fsdax or devdax, in ndctl's words.
    pub mode: String,
    /// Length in bytes.
    pub bytes: u64,
    /// The memory node it belongs to.
    pub numa_node: Option<u32>,
}

/// A region: what the firmware describes as one, with one persistence domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// As in region0.
    pub name: String,
    /// What a power cut spares.
    pub domain: Domain,
}

/// What a power cut spares, and what therefore makes data durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// The processor's caches are saved (eADR): a fence is enough.
    Caches,
    /// The memory controller's queues are saved: cache lines are flushed, then a fence.
    MemoryController,
    /// The platform does not say: to be treated as the memory controller.
    Unsaid,
    /// A paravirtual device: only the host can make it durable, on msync.
    Host,
}

/// A /dev/daxX.Y.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaxDevice {
    /// As in dax0.0.
    pub name: String,
    /// The driver that has it: device_dax offers it to programs, kmem has made system memory of it.
    pub driver: Option<String>,
    /// Length in bytes.
    pub bytes: u64,
    /// Alignment that mappings need, in bytes.
    pub align_bytes: u64,
    /// The memory node it is.
    pub numa_node: Option<u32>,
}

const BUS: &str = "sys/bus/nd/devices";

/// Every namespace that has a size; the kernel keeps an empty one in each region for what may come.
pub fn namespaces(system: &System) -> Vec<Namespace> {
    let read = |name: String| {
        let folder = format!("{BUS}/{name}");
        let bytes =
            u64::try_from(system.number(format!("{folder}/size"))?).ok().filter(|bytes| *bytes > 0)?;
        let id = name.strip_prefix("namespace")?;
        let region = format!("region{}", id.split('.').next()?);
        // The namespace itself says memory or raw; who holds it says the rest.
        let mode =
            match (system.text(format!("{folder}/mode")), system.text(format!("{folder}/holder_class"))) {
                (_, Some(class)) if class == "dax" => "devdax".to_owned(),
                (_, Some(class)) if class == "pfn" => "fsdax".to_owned(),
                (_, Some(class)) if class == "btt" => "sector".to_owned(),
                (Some(mode), _) => match mode.as_str() {
                    "dax" => "devdax".to_owned(),
                    "memory" => "fsdax".to_owned(),
                    "safe" => "sector".to_owned(),
                    _ => mode,
                },
                _ => "raw".to_owned(),
            };
        let numa_node =
            system.number(format!("{folder}/numa_node")).and_then(|node| u32::try_from(node).ok());
        Some(Namespace { name, region, mode, bytes, numa_node })
    };
    system.names(BUS).into_iter().filter(|name| name.starts_with("namespace")).filter_map(read).collect()
}

/// Every region.
pub fn regions(system: &System) -> Vec<Region> {
    let names = system.names(BUS).into_iter().filter(|name| name.starts_with("region"));
    names.map(|name| Region { domain: domain(system, &name), name }).collect()
}

fn domain(system: &System, region: &str) -> Domain {
    let folder = format!("{BUS}/{region}");
    // The device that the region hangs on is part of the path its link leads to.
    let place = std::fs::read_link(system.path(&folder)).unwrap_or_default();
    if place.components().any(|part| part.as_os_str().to_string_lossy().starts_with("virtio")) {
        return Domain::Host;
    }
    match system.text(format!("{folder}/persistence_domain")).as_deref() {
        Some("cpu_cache") => Domain::Caches,
        Some("memory_controller") => Domain::MemoryController,
        _ => Domain::Unsaid,
    }
}

/// Every device-DAX instance.
pub fn dax_devices(system: &System) -> Vec<DaxDevice> {
    const BUS: &str = "sys/bus/dax/devices";
    let read = |name: String| {
        let number =
            |file| system.number(format!("{BUS}/{name}/{file}")).and_then(|value| u64::try_from(value).ok());
        let bytes = number("size")?;
        let align_bytes = number("align").unwrap_or(2 << 20);
        let numa_node = number("numa_node").and_then(|node| u32::try_from(node).ok());
        let driver = system.link_name(format!("{BUS}/{name}/driver"));
        Some(DaxDevice { name, driver, bytes, align_bytes, numa_node })
    };
    system.names(BUS).into_iter().filter_map(read).collect()
}
