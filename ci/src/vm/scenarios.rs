//! The scenarios: what must hold on hardware, one function each.

mod disk;
mod idle;
mod kernel;
mod power;
mod queues;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Connection;

use super::client::{append_each, fetch_each, server, wait_for_server};
use super::evidence::find_all;
use super::fixture::{
    Fixture, START_LIMIT, dma_faults, end_sound, lengths, prepared, recognisable, set_up, wait_for_line,
};
use super::qemu::{Guest, Machine, Medium, Nic};

/// One thing to be shown.
pub struct Scenario {
    /// What it is called on the command line and in the report.
    pub name: &'static str,
    /// What it shows, in a line.
    pub what: &'static str,
    /// Whether CI runs it, or only `--all`.
    pub in_ci: bool,
    /// Shows it, and says in a line what was seen.
    pub run: fn(&Fixture<'_>) -> Result<String>,
}

const KCM: &str = "kcm";
const PAGE_CACHE: &str = "page-cache";

/// What scenarios take beside pmlog and pmtool; building it takes as long again.
pub const MORE_PROGRAMS: &[(&str, &[&str])] = &[(KCM, &["pmbench"]), (PAGE_CACHE, &["pmbench", "pmfwd"])];

/// All of them, in the order in which they run.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "e1000e",
        what: "pmlog on e1000e behind the IOMMU, by DMA into device-DAX; every payload byte is found in its file",
        in_ci: true,
        run: |fixture| dma_into_dax(fixture, Nic::E1000e),
    },
    Scenario {
        name: "virtio-net",
        what: "the same on virtio-net-pci",
        in_ci: false,
        run: |fixture| dma_into_dax(fixture, Nic::Virtio),
    },
    Scenario {
        name: "vmxnet3",
        what: "the same on vmxnet3",
        in_ci: false,
        run: |fixture| dma_into_dax(fixture, Nic::Vmxnet3),
    },
    Scenario {
        name: "two-queues",
        what: "two cores on the two queues of a virtio-net that hashes (RSS), each with a shard and DMA into it",
        in_ci: false,
        run: queues::two,
    },
    Scenario {
        name: "idle",
        what: "pmlog asleep until e1000e interrupts by vfio: next to no CPU time in silence, and answers after it",
        in_ci: true,
        run: idle::on_e1000e,
    },
    Scenario {
        name: "idle-dealt-out",
        what: "the same with two cores at e1000e's one queue, which wake each other, and the interrupt pin",
        in_ci: false,
        run: |fixture| idle::asleep(fixture, Nic::E1000e, "--cores 0,1 -- --vfio-intr=legacy"),
    },
    Scenario {
        name: "idle-virtio-net",
        what: "the same with one core at virtio-net-pci",
        in_ci: false,
        run: |fixture| idle::asleep(fixture, Nic::Virtio, ""),
    },
    Scenario {
        name: "idle-two-queues",
        what: "the same with two cores at a virtio-net of two queues",
        in_ci: false,
        run: |fixture| idle::asleep(fixture, Nic::VirtioTwoQueues, "--cores 0,1"),
    },
    Scenario {
        name: "idle-vmxnet3",
        what: "the same with one core at vmxnet3",
        in_ci: false,
        run: |fixture| idle::asleep(fixture, Nic::Vmxnet3, ""),
    },
    Scenario {
        name: "power-cut",
        what: "the plug pulled in mid-load, again and again; acknowledged ⊆ recovered ⊆ submitted",
        in_ci: true,
        run: power::cut,
    },
    Scenario {
        name: "disk-power-cut",
        what: "what a power cut may leave of a disk's writes, at any moment of a load: each state opens, with all that was acknowledged",
        in_ci: true,
        run: disk::power_cuts,
    },
    Scenario {
        name: "disk-errors",
        what: "a sector that cannot be read costs one record; after a write or a flush that fails nothing is acknowledged",
        in_ci: false,
        run: disk::errors,
    },
    Scenario {
        name: "kernel-transport",
        what: "pmlog on the kernel's TCP and NIC driver, received into device-DAX by io_uring; the plug is pulled",
        in_ci: false,
        run: kernel::transport,
    },
    Scenario {
        name: KCM,
        what: "pmbench on the kernel connection multiplexor, which cuts requests out of TCP's streams",
        in_ci: false,
        run: kernel::multiplexor,
    },
    Scenario {
        name: "fsdax-vfio",
        what: "a file on fsdax behind the IOMMU is refused with a remedy, and left alone",
        in_ci: true,
        run: fsdax_refused,
    },
    Scenario {
        name: "fsdax-uio",
        what: "the same file works with physical addresses, and with a warning",
        in_ci: true,
        run: fsdax_by_physical_address,
    },
    Scenario {
        name: PAGE_CACHE,
        what: "a file in the page cache is refused to pmbench and pmfwd, behind the IOMMU and by physical addresses",
        in_ci: false,
        run: page_cache_refused,
    },
    Scenario {
        name: "virtio-pmem",
        what: "found to need msync; works, and survives a restart of the guest",
        in_ci: false,
        run: virtio_pmem,
    },
    Scenario {
        name: "eadr",
        what: "with caches that a power cut spares, no line is flushed, and each commit has its fence",
        in_ci: false,
        run: caches_persist,
    },
    Scenario {
        name: "no-dma-map",
        what: "without the DMA map the payload check fails: the check is alive",
        in_ci: false,
        run: without_dma_map,
    },
    Scenario {
        name: "doctor",
        what: "pmtool finds what is missing, and nothing once its remedies were followed",
        in_ci: false,
        run: doctor,
    },
];

fn dma_into_dax(fixture: &Fixture<'_>, nic: Nic) -> Result<String> {
    let (machine, mut guest) = prepared(fixture, nic)?;
    (fixture.tell)("starting pmlog");
    guest.must("serve /dev/dax0.0")?;
    wait_for_server(&mut guest, START_LIMIT)?;
    (fixture.tell)("appending");
    let records = append_each(lengths(), fixture.chance(0))?;
    // Before records are fetched: requests without a body are packed as well, where many come at once.
    let health = Connection::open(server())?.get("/health")?.json()?;
    let copied = health["copied_bytes"].as_u64().context("/health tells no copied_bytes")?;
    // Bodies of a few bytes are packed, and so is a long body's last packet where it holds only a few.
    let sent: usize = records.iter().map(|record| record.tag.len).sum();
    ensure!(copied * 1000 < sent as u64, "{copied} of {sent} payload bytes were copied by the processor");
    fetch_each(&records)?;
    guest.must("stop")?;
    end_sound(guest)?;
    (fixture.tell)("searching the medium");
    let bytes = find_all(&machine.file, &recognisable(&records))?;
    Ok(format!(
        "{} appends by DMA into /dev/dax0.0, {bytes} payload bytes found in its file, 0 IOMMU faults",
        records.len()
    ))
}

/// A store at /mnt, written once over a device that is no NIC, and its sum.
fn new_store(guest: &mut Guest) -> Result<String> {
    guest.must("hugepages")?;
    guest.must("NIC=net_null0 serve /mnt/store --pm-size 128MiB --mac 02:00:00:00:00:02")?;
    wait_for_line(guest, "serving ")?;
    guest.must("stop")?;
    guest.must("sha256sum /mnt/store")
}

fn fsdax_refused(fixture: &Fixture<'_>) -> Result<String> {
    let machine = fixture.machine(Nic::E1000e)?;
    let mut guest = fixture.boot(&machine)?;
    guest.must("fsdax")?;
    let before = new_store(&mut guest)?;
    guest.must("pmtool bind $NIC")?;
    let refusal =
        guest.run(&format!("pmlog serve --pm /mnt/store --dev {} --ip 10.0.0.2/24", super::qemu::NIC))?;
    ensure!(refusal.status == 1, "pmlog ended with {} and not with 1:\n{}", refusal.status, refusal.text);
    for words in ["ndctl create-namespace", "--mode=devdax"] {
        ensure!(refusal.text.contains(words), "the refusal does not say '{words}':\n{}", refusal.text);
    }
    let after = guest.must("sha256sum /mnt/store")?;
    ensure!(before == after, "the refused file was changed");
    guest.must("pmlog verify --pm /mnt/store")?;
    guest.power_off()?;
    Ok("refused with exit code 1 and the way to device-DAX, the file unchanged".to_owned())
}

fn fsdax_by_physical_address(fixture: &Fixture<'_>) -> Result<String> {
    let machine = Machine { iommu: false, ..fixture.machine(Nic::E1000e)? };
    let mut guest = fixture.boot(&machine)?;
    guest.must("fsdax")?;
    guest.must("hugepages")?;
    guest.must("pmtool bind $NIC --driver uio_pci_generic")?;
    guest.must("serve /mnt/store --pm-size 128MiB -- --iova-mode=pa")?;
    wait_for_server(&mut guest, START_LIMIT)?;
    (fixture.tell)("appending");
    let records = append_each(lengths(), fixture.chance(0))?;
    fetch_each(&records)?;
    guest.must("stop")?;
    let said = guest.must("cat /tmp/server.out")?;
    for words in ["truncate", "move"] {
        ensure!(said.contains(words), "no warning about '{words}':\n{said}");
    }
    guest.must("pmlog verify --pm /mnt/store")?;
    guest.power_off()?;
    let bytes = find_all(&machine.file, &recognisable(&records))?;
    Ok(format!(
        "{} appends by physical address into a file on ext4, {bytes} payload bytes found, with a warning",
        records.len()
    ))
}

/// Each other program that gives a store to a device refuses one whose pages the kernel writes back or moves by itself.
fn page_cache_refused(fixture: &Fixture<'_>) -> Result<String> {
    let machine = fixture.machine(Nic::E1000e)?;
    let mut guest = fixture.boot(&machine)?;
    guest.must("cached_fs")?;
    new_store(&mut guest)?;
    // Frames are no records: pmfwd takes no store of pmlog's.
    let log = "--forward-mode log --pool pm --pm /mnt/frames --pm-size 128MiB";
    guest.must(&format!("pmfwd --dev net_null0,no-rx=1 {log} --duration 1"))?;
    let sums = "sha256sum /mnt/store /mnt/frames";
    let before = guest.must(sums)?;
    guest.must("pmtool bind $NIC")?;
    let records = "--mode paste --pm /mnt/store --pm-size 128MiB --ip 10.0.0.2/24";
    let mut refusals = 0;
    for program in [format!("pmbench serve {records}"), format!("pmfwd {log}")] {
        for (more, words) in [
            ("", "the kernel does not see that a page"),
            ("-- --iova-mode=pa", "the kernel may move at any time"),
        ] {
            // One that goes to work is ended, so that it does not look like a refusal.
            let command = format!("timeout -s INT 20 {program} --dev $NIC {more}");
            let refusal = guest.run(&command)?;
            ensure!(refusal.status == 1, "'{command}' ended with {}:\n{}", refusal.status, refusal.text);
            for words in [words, "is a regular file", "device-DAX"] {
                ensure!(
                    refusal.text.contains(words),
                    "'{command}' does not say '{words}':\n{}",
                    refusal.text
                );
            }
            refusals += 1;
        }
    }
    let after = guest.must(sums)?;
    ensure!(before == after, "a refused file was changed");
    guest.must("pmlog verify --pm /mnt/store")?;
    guest.power_off()?;
    Ok(format!("{refusals} times refused with exit code 1 and the way to device-DAX, the files unchanged"))
}

fn virtio_pmem(fixture: &Fixture<'_>) -> Result<String> {
    let machine = Machine { medium: Medium::VirtioPmem, ..fixture.machine(Nic::Virtio)? };
    let mut guest = fixture.boot(&machine)?;
    // A card that writes behind the processor's back leaves pages clean which msync then passes over: here the
    // kernel's driver receives, and DPDK reads its packets from a socket.
    let serve = "hugepages; serve_socket /mnt/store --pm-size 128MiB";
    guest.must("virtio_fs")?;
    guest.must(serve)?;
    let health = wait_for_server(&mut guest, START_LIMIT)?;
    let domain = health["domain"].as_str().unwrap_or_default();
    ensure!(domain.contains("msync"), "the persistence domain was found to be '{domain}'");
    let records = append_each(lengths(), fixture.chance(0))?;
    fetch_each(&records)?;
    guest.must("stop")?;
    guest.power_off()?;

    let mut guest = fixture.boot(&machine)?;
    guest.must("virtio_fs")?;
    guest.must("pmlog verify --pm /mnt/store")?;
    guest.must(serve)?;
    wait_for_server(&mut guest, START_LIMIT)?;
    fetch_each(&records)?;
    guest.must("stop")?;
    guest.power_off()?;
    Ok(format!("domain msync; {} records there after a restart of the guest", records.len()))
}

fn caches_persist(fixture: &Fixture<'_>) -> Result<String> {
    let machine =
        Machine { medium: Medium::Nvdimm { caches_persist: true }, ..fixture.machine(Nic::E1000e)? };
    let mut guest = fixture.boot(&machine)?;
    set_up(&mut guest)?;
    guest.must("serve /dev/dax0.0")?;
    let health = wait_for_server(&mut guest, START_LIMIT)?;
    let domain = health["domain"].as_str().unwrap_or_default().to_owned();
    ensure!(domain.contains("fence only"), "the persistence domain was found to be '{domain}'");
    let records = append_each(lengths(), fixture.chance(0))?;
    fetch_each(&records)?;
    let health = Connection::open(server())?.get("/health")?.json()?;
    let count = |name: &str| health[name].as_u64().with_context(|| format!("/health tells no {name}"));
    let (flushed, fences) = (count("flushed_lines")?, count("fences")?);
    ensure!(flushed == 0, "{flushed} lines were flushed for nothing");
    ensure!(
        fences >= records.len() as u64,
        "{fences} fences for {} appends, one after the other",
        records.len()
    );
    guest.must("stop")?;
    guest.power_off()?;
    Ok(format!("domain {domain}; {} appends with {fences} fences and no flushed line", records.len()))
}

fn without_dma_map(fixture: &Fixture<'_>) -> Result<String> {
    let (machine, mut guest) = prepared(fixture, Nic::E1000e)?;
    guest.must("serve /dev/dax0.0 --no-dma-map")?;
    wait_for_line(&mut guest, "serving ")?;
    // Either nothing arrives, or what arrives is not what was sent: both must be noticed.
    let outcome = wait_for_server(&mut guest, Duration::from_secs(15)).and_then(|_| {
        let records = append_each(lengths(), fixture.chance(0))?;
        fetch_each(&records)?;
        find_all(&machine.file, &recognisable(&records))
    });
    let running = guest.run("cat /tmp/server.status")?;
    ensure!(!running.succeeded(), "pmlog ended by itself:\n{}", guest.run("cat /tmp/server.out")?.text);
    let faults = dma_faults(&mut guest)?;
    guest.power_off()?;
    ensure!(outcome.is_err(), "without a DMA map every payload byte arrived: the check shows nothing");
    ensure!(faults > 0, "the IOMMU has refused nothing, so the failure has another cause: {outcome:?}");
    Ok(format!("no payload arrives, and the IOMMU reports {faults} refused accesses"))
}

fn doctor(fixture: &Fixture<'_>) -> Result<String> {
    let machine = fixture.machine(Nic::E1000e)?;
    let mut guest = fixture.boot(&machine)?;
    let nic = format!("nic {}", super::qemu::NIC);

    let examine = |guest: &mut Guest| -> Result<(i32, serde_json::Value)> {
        let outcome = guest.run("pmtool doctor --json")?;
        let report = serde_json::from_str(&outcome.text).context("pmtool doctor --json printed no JSON")?;
        Ok((outcome.status, report))
    };
    let finding = |report: &serde_json::Value, check: &str| -> Result<(String, String)> {
        let all = report["findings"].as_array().context("the report has no findings")?;
        let one = all
            .iter()
            .find(|one| one["check"] == check)
            .with_context(|| format!("nothing about '{check}'"))?;
        let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
        Ok((text("level"), text("remedy")))
    };

    guest.must("ndctl create-namespace -f -e namespace0.0 --mode=fsdax --map=mem")?;
    let (status, report) = examine(&mut guest)?;
    ensure!(status == 1, "the doctor ends with {status} where hugepages are missing");
    for (check, level, remedy) in [
        ("hugepages", "fail", "nr_hugepages"),
        (nic.as_str(), "warn", "pmtool bind 0000:00:02.0"),
        ("pm namespace0.0", "warn", "--mode=devdax"),
        ("iommu", "ok", ""),
        ("vfio", "ok", ""),
    ] {
        let found = finding(&report, check)?;
        ensure!(found.0 == level && found.1.contains(remedy), "before: '{check}' is {found:?}");
    }

    // What it advised.
    guest.must("ndctl create-namespace -f -e namespace0.0 --mode=devdax --map=mem")?;
    set_up(&mut guest)?;
    let (status, report) = examine(&mut guest)?;
    ensure!(status == 0, "the doctor ends with {status} though its remedies were followed: {report}");
    for check in ["hugepages", nic.as_str(), "pm namespace0.0", "pm dax0.0"] {
        let found = finding(&report, check)?;
        ensure!(found.0 == "ok", "after: '{check}' is {found:?}");
    }

    guest.must("pmtool unbind $NIC")?;
    let (_, report) = examine(&mut guest)?;
    ensure!(
        finding(&report, &nic)?.0 == "warn",
        "the NIC is with the kernel again, and the doctor does not say so"
    );

    // A person logged in over the NIC.
    guest.must(
        "ip address add 10.0.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.0.1",
    )?;
    let refused = guest.run("pmtool bind $NIC")?;
    ensure!(refused.status == 1 && refused.text.contains("default IPv4 route"), "not refused: {refused:?}");
    guest.must("pmtool bind --force $NIC")?;
    guest.power_off()?;
    Ok("3 remedies named, and nothing to improve once they were followed; the default route's NIC refused"
        .to_owned())
}
