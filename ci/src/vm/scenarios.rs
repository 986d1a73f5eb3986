//! The scenarios: what must hold on hardware, one function each.

mod idle;
mod kernel;
mod queues;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Connection;

use super::client::{Acknowledged, Load, Tag, append_each, fetch_each, server, wait_for_server};
use super::evidence::find_all;
use super::image::Image;
use super::qemu::{Guest, MEDIUM_BYTES, Machine, Medium, Nic};

/// One thing to be shown.
pub struct Scenario {
    /// What it is called on the command line and in the report.
    pub name: &'static str,
    /// What it shows, in a line.
    pub what: &'static str,
    /// Whether CI runs it, or only `--all`.
    pub in_ci: bool,
    /// Shows it, and says in a line what was seen.
    pub run: fn(&Stage<'_>) -> Result<String>,
}

/// The one scenario that takes pmbench.
pub const KCM: &str = "kcm";

/// All of them, in the order in which they run.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "e1000e",
        what: "pmlog on e1000e behind the IOMMU, by DMA into device-DAX; every payload byte is found in its file",
        in_ci: true,
        run: |stage| dma_into_dax(stage, Nic::E1000e),
    },
    Scenario {
        name: "virtio-net",
        what: "the same on virtio-net-pci",
        in_ci: false,
        run: |stage| dma_into_dax(stage, Nic::Virtio),
    },
    Scenario {
        name: "vmxnet3",
        what: "the same on vmxnet3",
        in_ci: false,
        run: |stage| dma_into_dax(stage, Nic::Vmxnet3),
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
        run: |stage| idle::asleep(stage, Nic::E1000e, "--cores 0,1 -- --vfio-intr=legacy"),
    },
    Scenario {
        name: "idle-virtio-net",
        what: "the same with one core at virtio-net-pci",
        in_ci: false,
        run: |stage| idle::asleep(stage, Nic::Virtio, ""),
    },
    Scenario {
        name: "idle-two-queues",
        what: "the same with two cores at a virtio-net of two queues",
        in_ci: false,
        run: |stage| idle::asleep(stage, Nic::VirtioTwoQueues, "--cores 0,1"),
    },
    Scenario {
        name: "idle-vmxnet3",
        what: "the same with one core at vmxnet3",
        in_ci: false,
        run: |stage| idle::asleep(stage, Nic::Vmxnet3, ""),
    },
    Scenario {
        name: "power-cut",
        what: "the plug pulled in mid-load, again and again; acknowledged ⊆ recovered ⊆ submitted",
        in_ci: true,
        run: power_cut,
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

/// Longest time for one boot with all that is done in it, emulated on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(150);
/// Longest time from pmlog's start to its first answer.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What a scenario plays on: a folder of its own, the guest, and chance.
pub struct Stage<'a> {
    folder: PathBuf,
    image: &'a Image,
    cuts: u32,
    seed: u64,
    tell: &'a dyn Fn(&str),
}

impl<'a> Stage<'a> {
    /// Makes the scenario's folder, without what an earlier run has left in it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new(
        name: &str,
        folder: &Path,
        image: &'a Image,
        cuts: u32,
        seed: u64,
        tell: &'a dyn Fn(&str),
    ) -> Result<Self> {
        let folder = folder.join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self { folder, image, cuts, seed, tell })
    }

    /// Removes the file behind the persistent memory; what was said stays.
    pub fn clear(&self) {
        let _ = fs::remove_file(self.folder.join("pm.img"));
    }

    /// An empty file to stand behind the persistent memory.
    ///
    /// # Errors
    /// What the file system says.
    pub fn medium(&self) -> Result<PathBuf> {
        let path = self.folder.join("pm.img");
        let file = fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.set_len(MEDIUM_BYTES)?;
        Ok(path)
    }

    fn boot(&self, machine: &Machine) -> Result<Guest> {
        (self.tell)("booting");
        machine.boot(self.image, &self.folder.join("console.log"), Instant::now() + BOOT_LIMIT)
    }

    /// A machine with a NIC behind the IOMMU and an NVDIMM.
    fn machine(&self, nic: Nic) -> Result<Machine> {
        let medium = Medium::Nvdimm { caches_persist: false };
        Ok(Machine { nic, medium, iommu: true, file: self.medium()? })
    }

    /// A number that follows from the seed and is different for each `number`.
    fn chance(&self, number: u64) -> u64 {
        let bytes = lab::noise(self.seed.wrapping_add(number), 8);
        bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

/// Device-DAX, hugepages, and the NIC with vfio-pci: what docs/hardware.md has a person do.
fn set_up(guest: &mut Guest) -> Result<()> {
    guest.must("devdax")?;
    guest.must("hugepages")?;
    guest.must("pmtool bind $NIC")?;
    Ok(())
}

/// A machine with this NIC, booted and set up.
fn prepared(stage: &Stage<'_>, nic: Nic) -> Result<(Machine, Guest)> {
    let machine = stage.machine(nic)?;
    let mut guest = stage.boot(&machine)?;
    set_up(&mut guest)?;
    Ok((machine, guest))
}

/// The end of a guest whose server has stopped: its store is sound, and the IOMMU has refused nothing.
fn end_sound(mut guest: Guest) -> Result<()> {
    guest.must("pmlog verify --pm /dev/dax0.0")?;
    let faults = dma_faults(&mut guest)?;
    guest.power_off()?;
    ensure!(faults == 0, "the IOMMU has refused {faults} accesses; see dmesg in console.log");
    Ok(())
}

fn dma_faults(guest: &mut Guest) -> Result<u64> {
    guest.run("dma_faults")?.text.trim().parse().context("the guest cannot count its DMA faults")
}

/// Waits until the server has written a line with these words, and returns it.
fn wait_for_line(guest: &mut Guest, words: &str) -> Result<String> {
    let end = Instant::now() + START_LIMIT;
    loop {
        let found = guest.run(&format!("grep -F '{words}' /tmp/server.out"))?;
        if found.succeeded() {
            return Ok(found.text);
        }
        let has_ended = guest.run("cat /tmp/server.status")?.succeeded();
        ensure!(
            !has_ended && Instant::now() < end,
            "the server did not say {words}, but:\n{}",
            guest.run("cat /tmp/server.out")?.text
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What pmlog, started with --json, said at its end: all that went through it.
fn ended(guest: &mut Guest) -> Result<serde_json::Value> {
    let line = guest.must("tail -n 1 /tmp/server.out")?;
    serde_json::from_str(&line).with_context(|| format!("pmlog's last line is no JSON: {line}"))
}

/// Lengths from nothing to more than a window holds; a KiB often, since that is what logs are made of.
fn lengths() -> impl Iterator<Item = usize> {
    [0, 1, 100].into_iter().chain(std::iter::repeat_n(1024, 200)).chain([5000, 100_000, 1 << 20])
}

/// Those of `records` that are long enough to be recognised wherever they lie.
fn recognisable(records: &[Acknowledged]) -> Vec<Vec<u8>> {
    records.iter().filter(|record| record.tag.len >= 64).map(|record| record.tag.body()).collect()
}

fn dma_into_dax(stage: &Stage<'_>, nic: Nic) -> Result<String> {
    let (machine, mut guest) = prepared(stage, nic)?;
    (stage.tell)("starting pmlog");
    guest.must("serve /dev/dax0.0")?;
    wait_for_server(&mut guest, START_LIMIT)?;
    (stage.tell)("appending");
    let records = append_each(lengths(), stage.chance(0))?;
    // Before records are fetched: requests without a body are packed as well, where many come at once.
    let health = Connection::open(server())?.get("/health")?.json()?;
    let copied = health["copied_bytes"].as_u64().context("/health tells no copied_bytes")?;
    // Bodies of a few bytes are packed, and so is a long body's last packet where it holds only a few.
    let sent: usize = records.iter().map(|record| record.tag.len).sum();
    ensure!(copied * 1000 < sent as u64, "{copied} of {sent} payload bytes were copied by the processor");
    fetch_each(&records)?;
    guest.must("stop")?;
    end_sound(guest)?;
    (stage.tell)("searching the medium");
    let bytes = find_all(&machine.file, &recognisable(&records))?;
    Ok(format!(
        "{} appends by DMA into /dev/dax0.0, {bytes} payload bytes found in its file, 0 IOMMU faults",
        records.len()
    ))
}

fn power_cut(stage: &Stage<'_>) -> Result<String> {
    let serve = |guest: &mut Guest| {
        set_up(guest)?;
        guest.must("serve /dev/dax0.0")
    };
    cut_under_load(stage, Nic::E1000e, stage.cuts, serve)
}

/// Cuts the power so many times while clients append to what `serve` starts, and after each cut compares what is
/// there with what was acknowledged.
fn cut_under_load(
    stage: &Stage<'_>,
    nic: Nic,
    cuts: u32,
    serve: impl Fn(&mut Guest) -> Result<String>,
) -> Result<String> {
    let machine = stage.machine(nic)?;
    // What must still be there, and all that may be.
    let mut kept: Vec<Acknowledged> = Vec::new();
    let (mut acknowledged_total, mut recovered_total) = (0, 0);
    for cut in 0..u64::from(cuts) {
        let mut guest = stage.boot(&machine)?;
        serve(&mut guest)?;
        let health = wait_for_server(&mut guest, START_LIMIT)?;
        let next = compare(&kept, cut.checked_sub(1).map(|before| stage.chance(before)), &health)
            .with_context(|| format!("after power cut {cut} (seed {})", stage.seed))?;
        recovered_total += next.recovered;
        // The medium is not to fill up over the cuts, and a trim may be cut off like anything else.
        if next.next > 200 {
            let path = format!("/records?before={}", next.next - 100);
            let request = format!("DELETE {path} HTTP/1.1\r\nHost: lab\r\n\r\n");
            let mut connection = Connection::open(server())?;
            connection.send(request.as_bytes())?;
            ensure!(connection.reply()?.status == 200, "DELETE {path} was refused");
            kept.retain(|record| record.seq >= next.next - 100);
        }

        let load = Load::start(8, stage.chance(cut));
        let moment = Duration::from_millis(300 + stage.chance(cut) % 3000);
        (stage.tell)(&format!("cut {} of {} after {} ms of load", cut + 1, cuts, moment.as_millis()));
        let started = Instant::now();
        while started.elapsed() < moment || load.acknowledged() == 0 {
            ensure!(Instant::now() < guest.deadline(), "the load had no acknowledgement");
            std::thread::sleep(Duration::from_millis(1));
        }
        guest.cut_power()?;
        let acknowledged = load.finish()?;
        acknowledged_total += acknowledged.len();
        kept.extend(acknowledged);
    }

    let mut guest = stage.boot(&machine)?;
    serve(&mut guest)?;
    let health = wait_for_server(&mut guest, START_LIMIT)?;
    let last = u64::from(cuts).checked_sub(1).map(|cut| stage.chance(cut));
    recovered_total += compare(&kept, last, &health)
        .with_context(|| format!("after the last power cut (seed {})", stage.seed))?
        .recovered;
    guest.must("stop")?;
    guest.must("pmlog verify --pm /dev/dax0.0")?;
    guest.power_off()?;
    Ok(format!(
        "power cut {cuts} times: {acknowledged_total} records acknowledged, {recovered_total} recovered and compared, 0 lost"
    ))
}

struct Recovered {
    next: u64,
    recovered: usize,
}

/// Checks that every record of `kept` is there with its bytes, and that whatever else is there was sent by the load
/// that began with `load_seed` or by one before it.
fn compare(kept: &[Acknowledged], load_seed: Option<u64>, health: &serde_json::Value) -> Result<Recovered> {
    let number = |name: &str| health[name].as_u64().with_context(|| format!("/health tells no {name}"));
    let (head, next) = (number("head")?, number("next")?);
    fetch_each(kept)?;
    let known: HashSet<u64> = kept.iter().map(|record| record.seq).collect();
    let mut connection = Connection::open(server())?;
    let mut recovered = 0;
    for seq in head..next {
        if known.contains(&seq) {
            recovered += 1;
            continue;
        }
        // Submitted and never acknowledged: it may be there, but then it is one that was really sent.
        let reply = connection.get(&format!("/records/{seq}"))?;
        ensure!(
            reply.status == 200,
            "record {seq} of {head}..{next} cannot be read: status {}",
            reply.status
        );
        let tag = Tag::of(&reply.body).filter(|tag| tag.len == reply.body.len() && tag.body() == reply.body);
        ensure!(
            tag.is_some() && load_seed.is_some(),
            "record {seq} holds {} bytes that nobody sent",
            reply.body.len()
        );
        recovered += 1;
    }
    Ok(Recovered { next, recovered })
}

/// A store on an ext4 file system of persistent memory, written once over a device that is no NIC.
fn file_on_fsdax(guest: &mut Guest) -> Result<String> {
    guest.must("fsdax")?;
    guest.must("hugepages")?;
    guest.must("NIC=net_null0 serve /mnt/store --pm-size 128MiB --mac 02:00:00:00:00:02")?;
    wait_for_line(guest, "serving ")?;
    guest.must("stop")?;
    guest.must("sha256sum /mnt/store")
}

fn fsdax_refused(stage: &Stage<'_>) -> Result<String> {
    let machine = stage.machine(Nic::E1000e)?;
    let mut guest = stage.boot(&machine)?;
    let before = file_on_fsdax(&mut guest)?;
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

fn fsdax_by_physical_address(stage: &Stage<'_>) -> Result<String> {
    let machine = Machine { iommu: false, ..stage.machine(Nic::E1000e)? };
    let mut guest = stage.boot(&machine)?;
    guest.must("fsdax")?;
    guest.must("hugepages")?;
    guest.must("pmtool bind $NIC --driver uio_pci_generic")?;
    guest.must("serve /mnt/store --pm-size 128MiB -- --iova-mode=pa")?;
    wait_for_server(&mut guest, START_LIMIT)?;
    (stage.tell)("appending");
    let records = append_each(lengths(), stage.chance(0))?;
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

fn virtio_pmem(stage: &Stage<'_>) -> Result<String> {
    let machine = Machine { medium: Medium::VirtioPmem, ..stage.machine(Nic::Virtio)? };
    let mut guest = stage.boot(&machine)?;
    // A card that writes behind the processor's back leaves pages clean which msync then passes over: here the
    // kernel's driver receives, and DPDK reads its packets from a socket.
    let serve = "hugepages; serve_socket /mnt/store --pm-size 128MiB";
    guest.must("virtio_fs")?;
    guest.must(serve)?;
    let health = wait_for_server(&mut guest, START_LIMIT)?;
    let domain = health["domain"].as_str().unwrap_or_default();
    ensure!(domain.contains("msync"), "the persistence domain was found to be '{domain}'");
    let records = append_each(lengths(), stage.chance(0))?;
    fetch_each(&records)?;
    guest.must("stop")?;
    guest.power_off()?;

    let mut guest = stage.boot(&machine)?;
    guest.must("virtio_fs")?;
    guest.must("pmlog verify --pm /mnt/store")?;
    guest.must(serve)?;
    wait_for_server(&mut guest, START_LIMIT)?;
    fetch_each(&records)?;
    guest.must("stop")?;
    guest.power_off()?;
    Ok(format!("domain msync; {} records there after a restart of the guest", records.len()))
}

fn caches_persist(stage: &Stage<'_>) -> Result<String> {
    let machine = Machine { medium: Medium::Nvdimm { caches_persist: true }, ..stage.machine(Nic::E1000e)? };
    let mut guest = stage.boot(&machine)?;
    set_up(&mut guest)?;
    guest.must("serve /dev/dax0.0")?;
    let health = wait_for_server(&mut guest, START_LIMIT)?;
    let domain = health["domain"].as_str().unwrap_or_default().to_owned();
    ensure!(domain.contains("fence only"), "the persistence domain was found to be '{domain}'");
    let records = append_each(lengths(), stage.chance(0))?;
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

fn without_dma_map(stage: &Stage<'_>) -> Result<String> {
    let (machine, mut guest) = prepared(stage, Nic::E1000e)?;
    guest.must("serve /dev/dax0.0 --no-dma-map")?;
    wait_for_line(&mut guest, "serving ")?;
    // Either nothing arrives, or what arrives is not what was sent: both must be noticed.
    let outcome = wait_for_server(&mut guest, Duration::from_secs(15)).and_then(|_| {
        let records = append_each(lengths(), stage.chance(0))?;
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

fn doctor(stage: &Stage<'_>) -> Result<String> {
    let machine = stage.machine(Nic::E1000e)?;
    let mut guest = stage.boot(&machine)?;
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
