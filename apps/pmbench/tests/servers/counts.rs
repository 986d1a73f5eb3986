//! What is counted is what was done.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, isolated, noise, wire};
use pmbench::protocol::{Mark, Mode};
use stack::profile::Stage;

use crate::bench::Bench;

const REQUESTS: u64 = 100;
const RECORD_BYTES: u64 = 1024;

/// What so many requests of one connection, one after the other, cost.
fn cost(lab: &Lab, mode: Mode) -> Result<Mark> {
    cost_with(lab, mode, &[])
}

fn cost_with(lab: &Lab, mode: Mode, options: &[&str]) -> Result<Mark> {
    wire::veth()?;
    let (mut bench, _) = Bench::start(lab, mode, options)?;
    let mut connection = bench.connect()?;
    let before = bench.mark()?;
    for number in 0..REQUESTS {
        connection.append(&noise(number, RECORD_BYTES as usize))?.seq()?;
    }
    let window = bench.mark()?.since(&before);
    ensure!(window.requests == REQUESTS, "{window:?}");
    ensure!(window.payload_bytes == REQUESTS * RECORD_BYTES, "{window:?}");
    Ok(window)
}

/// 16 or 17 lines of payload and one of the entry.
fn lines_are_those_of_a_record(window: &Mark) -> bool {
    (17 * REQUESTS..=18 * REQUESTS).contains(&window.flushed_lines)
}

#[test]
fn status_quo_copies_once_and_has_a_fence_for_each_request() {
    isolated(|lab| copies_once_and_has_a_fence_for_each_request(lab, Mode::StatusQuo));
}

#[test]
fn msg_zerocopy_does_so_too() {
    isolated(|lab| copies_once_and_has_a_fence_for_each_request(lab, Mode::MsgZerocopy));
}

fn copies_once_and_has_a_fence_for_each_request(lab: &Lab, mode: Mode) -> Result<()> {
    let window = cost(lab, mode)?;
    ensure!(window.copied_bytes == window.payload_bytes, "{window:?}");
    ensure!(window.fences == REQUESTS && lines_are_those_of_a_record(&window), "{window:?}");
    ensure!(window.busy_ns.is_none(), "{window:?}");
    Ok(())
}

#[test]
fn dpdk_copy_copies_twice() {
    isolated(|lab| {
        let window = cost(lab, Mode::DpdkCopy)?;
        // A request that lies around the end of the socket's ring is copied once more: here, two at most.
        let once_more = window.copied_bytes - 2 * window.payload_bytes;
        ensure!(once_more <= 2 * RECORD_BYTES, "{window:?}");
        ensure!(window.fences == REQUESTS && lines_are_those_of_a_record(&window), "{window:?}");
        Ok(())
    });
}

#[test]
fn kernel_paste_copies_nothing_itself() {
    isolated(|lab| {
        let window = cost(lab, Mode::KernelPaste)?;
        ensure!(window.copied_bytes == 0, "{window:?}");
        ensure!(window.fences == REQUESTS && lines_are_those_of_a_record(&window), "{window:?}");
        ensure!(window.busy_ns.is_none(), "{window:?}");
        Ok(())
    });
}

#[test]
fn paste_copies_nothing() {
    isolated(|lab| {
        let window = cost(lab, Mode::Paste)?;
        ensure!(window.copied_bytes == 0, "{window:?}");
        // One request at a time is one burst for each.
        ensure!(window.fences == REQUESTS && lines_are_those_of_a_record(&window), "{window:?}");
        ensure!(window.busy_ns.is_some_and(|busy| busy > 0 && busy < window.time_ns), "{window:?}");
        Ok(())
    });
}

#[test]
fn a_persist_delay_is_part_of_each_request() {
    isolated(|lab| {
        wire::veth()?;
        for mode in [Mode::StatusQuo, Mode::StatusQuoFsync, Mode::KernelPaste, Mode::Paste] {
            let (mut bench, _) = Bench::start(lab, mode, &["--persist-delay-us", "2000"])?;
            let mut connection = bench.connect()?;
            let before = bench.mark()?;
            for _ in 0..20 {
                connection.append(b"slowly")?.seq()?;
            }
            let window = bench.mark()?.since(&before);
            ensure!(window.time_ns >= 20 * 2_000_000, "{window:?}");
        }
        Ok(())
    });
}

/// Where the time of a mode's loop went, in the order of the stages.
fn stages(lab: &Lab, mode: Mode) -> Result<[u64; Stage::ALL.len()]> {
    let window = cost_with(lab, mode, &["--profile"])?;
    let stages = window.stages.with_context(|| format!("no stages in {window:?}"))?;
    let (all, busy) = (stages.ns.iter().sum::<u64>(), window.busy_ns.context("a loop that polls")?);
    // What lies between bursts belongs to none of them: trimming, and what the kernel interrupts for.
    ensure!(all + stages.recording_ns <= busy, "{window:?}");
    ensure!(stages.readings_ns > 0, "{window:?}");
    for stage in [Stage::Rx, Stage::Tcp, Stage::App, Stage::Emit, Stage::Tx] {
        ensure!(stages.ns[stage as usize] > 0, "nothing in {stage:?} of {window:?}");
    }
    Ok(stages.ns)
}

#[test]
fn stages_make_up_the_time_of_paste() {
    isolated(|lab| {
        let ns = stages(lab, Mode::Paste)?;
        ensure!(ns.iter().all(|ns| *ns > 0), "{ns:?}");
        Ok(())
    });
}

#[test]
fn stages_make_up_the_time_of_dpdk_copy() {
    isolated(|lab| {
        let ns = stages(lab, Mode::DpdkCopy)?;
        ensure!(ns[Stage::Flush as usize] > 0 && ns[Stage::Fence as usize] > 0, "{ns:?}");
        Ok(())
    });
}

#[test]
fn an_echo_has_no_time_in_flushes_and_fences() {
    isolated(|lab| {
        let ns = stages(lab, Mode::PasteEcho)?;
        ensure!(ns[Stage::Flush as usize] == 0 && ns[Stage::Fence as usize] == 0, "{ns:?}");
        Ok(())
    });
}

#[test]
fn without_being_asked_nobody_measures_stages() {
    isolated(|lab| {
        let window = cost(lab, Mode::Paste)?;
        ensure!(window.stages.is_none(), "{window:?}");
        Ok(())
    });
}

#[test]
fn a_mode_without_stages_is_not_profiled() -> Result<()> {
    let words = ["serve", "--mode", "status-quo", "--profile"];
    let output = Command::new(env!("CARGO_BIN_EXE_pmbench")).args(words).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && said.contains("leave --profile away"), "{said}");
    Ok(())
}
