//! What is counted is what was done.

use anyhow::{Result, ensure};
use lab::{Lab, isolated, noise, wire};
use pmbench::protocol::{Mark, Mode};

use crate::bench::Bench;

const REQUESTS: u64 = 100;
const RECORD_BYTES: u64 = 1024;

/// What so many requests of one connection, one after the other, cost.
fn cost(lab: &Lab, mode: Mode) -> Result<Mark> {
    wire::veth()?;
    let (mut bench, _) = Bench::start(lab, mode, &[])?;
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
