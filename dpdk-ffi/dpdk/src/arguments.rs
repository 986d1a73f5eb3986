//! The arguments that EAL gets: ours for what the caller left open, then the caller's own.

use std::fs;

/// EAL takes ids below its build's RTE_MAX_LCORE only.
const MAX_CPU: usize = dpdk_sys::RTE_MAX_LCORE as usize;

/// Fewer free hugepages than this are taken for somebody else's.
const MIN_HUGEPAGES_MIB: u64 = 128;

/// What EAL may take without hugepages. It is touched, and so paid for, only where pools lie.
const PLAIN_MEMORY_MIB: u64 = 512;

/// What the defaults depend on.
pub(crate) struct Machine {
    pub(crate) free_hugepages_mib: u64,
    pub(crate) cpus: Vec<usize>,
}

impl Machine {
    /// This machine, as this process may use it now.
    pub(crate) fn detect() -> Self {
        Self { free_hugepages_mib: free_hugepages_mib(), cpus: allowed_cpus() }
    }
}

/// The whole argument vector, program name first.
///
/// The memory mode is chosen only when the caller says nothing about it: hugepages without files where
/// some are free, plain memory otherwise; neither leaves anything behind on disk or needs a runtime
/// directory. One lcore floats over all permitted CPUs, so EAL starts no workers and pins nobody.
pub(crate) fn complete(user: &[String], machine: &Machine) -> Vec<String> {
    let given =
        |names: &[&str]| user.iter().any(|argument| names.iter().any(|name| names_option(argument, name)));
    let mut arguments = vec!["paste-dpdk".to_owned()];
    if !given(&["--iova-mode"]) {
        arguments.push("--iova-mode=va".to_owned());
    }
    if !given(&["--no-telemetry", "--telemetry"]) {
        arguments.push("--no-telemetry".to_owned());
    }
    if !given(&["-c", "-l", "-s", "-S", "--lcores"]) && !machine.cpus.is_empty() {
        let cpus: Vec<String> = machine.cpus.iter().map(usize::to_string).collect();
        arguments.push(format!("--lcores=0@({})", cpus.join(",")));
    }
    let memory = [
        "--in-memory",
        "--no-huge",
        "--no-shconf",
        "--huge-dir",
        "--huge-unlink",
        "--legacy-mem",
        "--file-prefix",
        "--proc-type",
        "--single-file-segments",
    ];
    if !given(&memory) {
        if machine.free_hugepages_mib >= MIN_HUGEPAGES_MIB {
            arguments.push("--in-memory".to_owned());
        } else {
            arguments.extend(["--no-huge", "--no-shconf"].map(str::to_owned));
            if !given(&["-m"]) {
                arguments.extend(["-m".to_owned(), PLAIN_MEMORY_MIB.to_string()]);
            }
        }
    }
    arguments.extend_from_slice(user);
    arguments
}

/// EAL's arguments for a program that uses `devices`: the user's, and unless those speak of devices, ones that keep EAL
/// away from all PCI devices but these. It would otherwise try every NIC that it has a driver for. Without any device
/// they are the user's own.
pub fn arguments_for<S: AsRef<str>>(devices: &[S], user: &[String]) -> Vec<String> {
    let about_devices = ["-a", "--allow", "-b", "--block", "--no-pci"];
    let mut arguments = user.to_vec();
    if user.iter().any(|argument| about_devices.iter().any(|option| argument.starts_with(option))) {
        return arguments;
    }
    let is_pci_address =
        |name: &str| name.contains(':') && name.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b));
    let unprefixed = |device: &'_ S| device.as_ref().trim_start_matches("pci:").to_owned();
    let named: Vec<String> = devices.iter().map(unprefixed).collect();
    let nics = named.iter().filter(|name| name.split(',').next().is_some_and(is_pci_address));
    arguments.extend(nics.flat_map(|name| ["-a".to_owned(), name.clone()]));
    let are_virtual = named.iter().all(|name| name.trim_start_matches("vdev:").starts_with("net_"));
    if are_virtual && !named.is_empty() {
        arguments.push("--no-pci".to_owned());
    }
    arguments
}

/// Whether `argument` is the option `name`, with or without a value in the same word.
fn names_option(argument: &str, name: &str) -> bool {
    match argument.strip_prefix(name) {
        Some(rest) if name.starts_with("--") => rest.is_empty() || rest.starts_with('='),
        Some(_) => true,
        None => false,
    }
}

fn free_hugepages_mib() -> u64 {
    let Ok(sizes) = fs::read_dir("/sys/kernel/mm/hugepages") else { return 0 };
    let free_kib = sizes.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let size_kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let free: u64 = fs::read_to_string(entry.path().join("free_hugepages")).ok()?.trim().parse().ok()?;
        free.checked_mul(size_kib)
    });
    free_kib.sum::<u64>() / 1024
}

fn allowed_cpus() -> Vec<usize> {
    // SAFETY: an all-zero set is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is writable and of the size given; 0 means this thread.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Vec::new();
    }
    // SAFETY: MAX_CPU lies within the set.
    (0..MAX_CPU.min(libc::CPU_SETSIZE as usize))
        .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eal_is_kept_away_from_other_devices() {
        let with = |devices: &[&str], user: &[&str]| {
            let user: Vec<String> = user.iter().map(|argument| (*argument).to_owned()).collect();
            arguments_for(devices, &user).join(" ")
        };
        assert_eq!(with(&["net_tap0,iface=tap0"], &["-l", "1"]), "-l 1 --no-pci");
        assert_eq!(with(&["vdev:net_memif0", "net_null0"], &[]), "--no-pci");
        assert_eq!(
            with(&["0000:03:00.0", "pci:04:00.0,q=1"], &["-l", "1"]),
            "-l 1 -a 0000:03:00.0 -a 04:00.0,q=1"
        );
        assert_eq!(with(&["net_null0", "03:00.0"], &[]), "-a 03:00.0");
        assert_eq!(with(&["03:00.0"], &["-a", "04:00.0"]), "-a 04:00.0");
        assert_eq!(
            with(&["net_bonding0,slave=0000:03:00.0"], &["--allow=0000:03:00.0"]),
            "--allow=0000:03:00.0"
        );
        assert_eq!(with(&["mlx5_core.sf.4"], &[]), "");
        assert_eq!(with(&[], &["--vdev", "net_null0"]), "--vdev net_null0");
    }

    fn completed(user: &[&str], free_hugepages_mib: u64) -> String {
        let user: Vec<String> = user.iter().map(|word| (*word).to_owned()).collect();
        complete(&user, &Machine { free_hugepages_mib, cpus: vec![0, 3] }).join(" ")
    }

    #[test]
    fn plain_memory_without_free_hugepages() {
        let arguments = completed(&[], 127);
        assert_eq!(
            arguments,
            "paste-dpdk --iova-mode=va --no-telemetry --lcores=0@(0,3) --no-huge --no-shconf -m 512"
        );
    }

    #[test]
    fn hugepages_where_some_are_free() {
        let arguments = completed(&[], 128);
        assert!(arguments.contains("--in-memory") && !arguments.contains("--no-huge"), "{arguments}");
    }

    #[test]
    fn the_callers_choice_stands() {
        let arguments = completed(&["--iova-mode", "pa", "-l1", "--huge-dir=/huge", "--vdev=net_null0"], 0);
        assert_eq!(
            arguments,
            "paste-dpdk --no-telemetry --iova-mode pa -l1 --huge-dir=/huge --vdev=net_null0"
        );
        assert!(completed(&["-m", "64"], 0).ends_with("--no-huge --no-shconf -m 64"));
    }
}
