//! A server that sleeps until the NIC's interrupt comes to it by vfio.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::vm::client::{append_each, fetch_each, wait_for_server};
use crate::vm::fixture::{Fixture, START_LIMIT, end_sound, lengths, prepared};
use crate::vm::qemu::{Guest, NIC, Nic};

/// How long the guest is left alone, in its own seconds.
const SILENCE_S: u64 = 5;
/// Appends after so many silences, in which the core has fallen asleep.
const SHORT_SILENCES: u64 = 30;

/// On e1000e, where DPDK's driver needs to be told of a kind of interrupt that it can handle.
pub(super) fn on_e1000e(fixture: &Fixture<'_>) -> Result<String> {
    let (_, mut guest) = prepared(fixture, Nic::E1000e)?;
    let start = format!("pmlog serve --pm /dev/dax0.0 --dev {NIC} --ip 10.0.0.2/24 --idle interrupt");
    let refusal = guest.run(&start)?;
    ensure!(refusal.status == 1, "pmlog ended with {} and not with 1:\n{}", refusal.status, refusal.text);
    ensure!(
        refusal.text.contains("-- --vfio-intr=msi"),
        "the refusal does not say what to do:\n{}",
        refusal.text
    );
    let seen = sleep_and_answer(fixture, guest, "-- --vfio-intr=msi")?;
    Ok(format!("refused with MSI-X; with MSI {seen}"))
}

/// With these arguments for pmlog. Where there are more cores than queues, some sleep until another core wakes them.
pub(super) fn asleep(fixture: &Fixture<'_>, nic: Nic, arguments: &str) -> Result<String> {
    let (_, guest) = prepared(fixture, nic)?;
    sleep_and_answer(fixture, guest, arguments)
}

fn sleep_and_answer(fixture: &Fixture<'_>, mut guest: Guest, arguments: &str) -> Result<String> {
    (fixture.tell)("starting pmlog");
    guest.must(&format!("serve /dev/dax0.0 --idle interrupt {arguments}"))?;
    wait_for_server(&mut guest, START_LIMIT)?;
    (fixture.tell)("leaving it alone");
    // Hundredths of a second.
    let before = number(&mut guest, "cpu_ticks")?;
    guest.must(&format!("sleep {SILENCE_S}"))?;
    let taken = number(&mut guest, "cpu_ticks")? - before;
    ensure!(taken < 20 * SILENCE_S, "in {SILENCE_S} s of silence it took {taken}0 ms of CPU time");
    (fixture.tell)("appending");
    let before = number(&mut guest, "vfio_interrupts")?;
    let mut records = Vec::new();
    for silence in 0..SHORT_SILENCES {
        std::thread::sleep(Duration::from_millis(30));
        records.extend(append_each([1024], fixture.chance(silence))?);
    }
    let interrupts = number(&mut guest, "vfio_interrupts")? - before;
    // A guest that its host leaves alone may find no time to fall asleep.
    ensure!(2 * interrupts >= SHORT_SILENCES, "{SHORT_SILENCES} silences ended with {interrupts} interrupts");
    records.extend(append_each(lengths(), fixture.chance(SHORT_SILENCES))?);
    fetch_each(&records)?;
    guest.must("stop")?;
    end_sound(guest)?;
    Ok(format!(
        "{taken}0 ms of CPU time in {SILENCE_S} s of silence; {SHORT_SILENCES} silences ended with {interrupts} \
         interrupts, and {} appends were answered",
        records.len()
    ))
}

fn number(guest: &mut Guest, command: &str) -> Result<u64> {
    let text = guest.must(command)?;
    text.trim().parse().with_context(|| format!("{command} gives no number: {text}"))
}
