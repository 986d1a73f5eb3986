//! Servers on the guest's own TCP, with the guest's own driver of the NIC: what the stack here is compared with.

use anyhow::{Context, Result, ensure};
use lab::Connection;

use super::{START_LIMIT, Stage, cut_under_load, dma_faults, ended, lengths, recognisable};
use crate::vm::client::{append_each, fetch_each, server, wait_for_server};
use crate::vm::evidence::find_all;
use crate::vm::qemu::{Guest, Nic};

/// How often this scenario cuts the power.
const CUTS: u32 = 1;

/// pmlog with `--transport kernel`: io_uring receives into buffers that are device-DAX memory, and long replies are
/// sent out of it.
pub(super) fn transport(stage: &Stage<'_>) -> Result<String> {
    // A card that gathers a frame from several places: for one that does not, the kernel copies without a word.
    let machine = stage.machine(Nic::E1000e)?;
    let mut guest = stage.boot(&machine)?;
    serve(&mut guest)?;
    let health = wait_for_server(&mut guest, START_LIMIT)?;
    (stage.tell)("appending");
    let records = append_each(lengths(), stage.chance(0))?;
    fetch_each(&records)?;
    let after = Connection::open(server())?.get("/health")?.json()?;
    let count = |name: &str| {
        let number = |health: &serde_json::Value| health[name].as_u64();
        let (before, after) =
            number(&health).zip(number(&after)).with_context(|| format!("/health tells no {name}"))?;
        anyhow::Ok(after - before)
    };
    ensure!(
        count("flushed_lines")? > 0 && count("fences")? > 0,
        "nothing was flushed to device-DAX: {after}"
    );
    guest.must("stop")?;
    let ended = ended(&mut guest)?;
    let total =
        |name: &str| ended[name].as_u64().with_context(|| format!("pmlog's end tells no {name}: {ended}"));
    let longest = records.iter().map(|record| record.tag.len).max().unwrap_or_default() as u64;
    let in_place = total("sent_in_place_bytes")?;
    ensure!(in_place >= longest / 2, "only {in_place} bytes were sent from where they lie: {ended}");
    guest.must("pmlog verify --pm /dev/dax0.0")?;
    let faults = dma_faults(&mut guest)?;
    guest.power_off()?;
    (stage.tell)("searching the medium");
    let bytes = find_all(&machine.file, &recognisable(&records))?;
    ensure!(faults == 0, "the IOMMU has refused {faults} accesses; see dmesg in console.log");

    let cut = cut_under_load(stage, Nic::Virtio, CUTS, serve)?;
    Ok(format!(
        "{} appends by io_uring into /dev/dax0.0, {bytes} payload bytes found in its file, {in_place} sent in place; {cut}",
        records.len()
    ))
}

fn serve(guest: &mut Guest) -> Result<String> {
    guest.must("devdax")?;
    guest.must("serve_kernel /dev/dax0.0 --json")
}
