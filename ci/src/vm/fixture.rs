//! What the scenarios have in common: a folder, a guest that is set up, and what is looked at again and again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::client::Acknowledged;
use super::image::Image;
use super::qemu::{Guest, MEDIUM_BYTES, Machine, Medium, Nic};

/// Longest time for one boot with all that is done in it, emulated on a busy machine.
pub const BOOT_LIMIT: Duration = Duration::from_secs(150);
/// Longest time from pmlog's start to its first answer.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// What a scenario has: a folder of its own, an image to boot, and chance.
pub struct Fixture<'a> {
    pub folder: PathBuf,
    pub image: &'a Image,
    pub cuts: u32,
    pub seed: u64,
    pub tell: &'a dyn Fn(&str),
}

impl<'a> Fixture<'a> {
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

    pub fn boot(&self, machine: &Machine) -> Result<Guest> {
        (self.tell)("booting");
        machine.boot(self.image, &self.folder.join("console.log"), Instant::now() + BOOT_LIMIT)
    }

    /// A machine with a NIC behind the IOMMU and an NVDIMM.
    pub fn machine(&self, nic: Nic) -> Result<Machine> {
        let medium = Medium::Nvdimm { caches_persist: false };
        Ok(Machine { nic, medium, iommu: true, file: self.medium()?, disk: None })
    }

    /// A number that follows from the seed and is different for each `number`.
    pub fn chance(&self, number: u64) -> u64 {
        let bytes = lab::noise(self.seed.wrapping_add(number), 8);
        bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

/// Device-DAX, hugepages, and the NIC with vfio-pci: what docs/hardware.md has a person do.
pub fn set_up(guest: &mut Guest) -> Result<()> {
    guest.must("devdax")?;
    guest.must("hugepages")?;
    guest.must("pmtool bind $NIC")?;
    Ok(())
}

/// A machine with this NIC, booted and set up.
pub fn prepared(fixture: &Fixture<'_>, nic: Nic) -> Result<(Machine, Guest)> {
    let machine = fixture.machine(nic)?;
    let mut guest = fixture.boot(&machine)?;
    set_up(&mut guest)?;
    Ok((machine, guest))
}

/// The end of a guest whose server has stopped: its store is sound, and the IOMMU has refused nothing.
pub fn end_sound(mut guest: Guest) -> Result<()> {
    guest.must("pmlog verify --pm /dev/dax0.0")?;
    let faults = dma_faults(&mut guest)?;
    guest.power_off()?;
    ensure!(faults == 0, "the IOMMU has refused {faults} accesses; see dmesg in console.log");
    Ok(())
}

pub fn dma_faults(guest: &mut Guest) -> Result<u64> {
    guest.run("dma_faults")?.text.trim().parse().context("the guest cannot count its DMA faults")
}

/// Waits until the server has written a line with these words, and returns it.
pub fn wait_for_line(guest: &mut Guest, words: &str) -> Result<String> {
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
pub fn ended(guest: &mut Guest) -> Result<serde_json::Value> {
    let line = guest.must("tail -n 1 /tmp/server.out")?;
    serde_json::from_str(&line).with_context(|| format!("pmlog's last line is no JSON: {line}"))
}

/// Lengths from nothing to more than a window holds; a KiB often, since that is what logs are made of.
pub fn lengths() -> impl Iterator<Item = usize> {
    [0, 1, 100].into_iter().chain(std::iter::repeat_n(1024, 200)).chain([5000, 100_000, 1 << 20])
}

/// Those of `records` that are long enough to be recognised wherever they lie.
pub fn recognisable(records: &[Acknowledged]) -> Vec<Vec<u8>> {
    records.iter().filter(|record| record.tag.len >= 64).map(|record| record.tag.body()).collect()
}
