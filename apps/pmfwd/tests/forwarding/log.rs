//! Mode `log`: what went on is in the store, whatever happens to the program.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lab::isolated;
use pmem::{Snapshot, SnapshotEvent};
use rustix::process::Signal;

use crate::peer::{Peer, connect, devices, frames};
use crate::program::Pmfwd;

/// All frames in a store, oldest first.
fn logged(store: &Path) -> Result<Vec<Vec<u8>>> {
    let snapshot = Snapshot::open(store)?;
    let mut records = Vec::new();
    let mut damage = Vec::new();
    snapshot.scan(0, |event| match event {
        SnapshotEvent::Record(record) => records.push(record),
        SnapshotEvent::Corrupt(corruption) => damage.push(corruption),
    })?;
    ensure!(damage.is_empty(), "the store is damaged: {damage:?}");
    let read = |record| {
        let mut bytes = Vec::new();
        snapshot.write_record(&record, &mut bytes)?;
        Ok(bytes)
    };
    records.into_iter().map(read).collect()
}

fn started(folder: &Path, store: &Path, more: &[&str]) -> Result<(Pmfwd, [Peer; 2])> {
    let [first, second] = devices(folder);
    let store = store.display().to_string();
    let words = ["-i", "--forward-mode", "log", "--dev", &first, "--dev", &second, "--pm", &store];
    let mut pmfwd = Pmfwd::start(&[&words, more].concat())?;
    pmfwd.wait_for("2 ports are ready")?;
    let peers = connect(folder)?;
    pmfwd.tell("start")?;
    pmfwd.wait_for("Packets lie in")?;
    Ok((pmfwd, peers))
}

#[test]
fn what_went_on_is_in_the_store_after_a_kill() {
    isolated(|lab| {
        let store = lab.path("store.pm");
        let (pmfwd, [mut near, mut far]) = started(lab.directory(), &store, &["--pm-size", "64MiB"])?;
        let sent = frames(8000);
        let mut arrived = Vec::new();
        for (number, burst) in sent.chunks(100).enumerate() {
            near.send(burst)?;
            // The last bursts are on their way when the program dies.
            if number < 70 {
                arrived.extend(far.receive(100)?);
            }
            if number == 75 {
                pmfwd.signal(Signal::KILL)?;
                break;
            }
        }
        pmfwd.end()?;
        let logged = logged(&store)?;
        ensure!(arrived.len() == 7000 && logged.len() >= arrived.len(), "{} records", logged.len());
        ensure!(arrived[..] == sent[..7000], "frames were changed on their way");
        ensure!(logged[..] == sent[..logged.len()], "records are not the frames in their order");
        Ok(())
    });
}

#[test]
fn a_signal_ends_a_session_and_leaves_the_store_in_order() {
    isolated(|lab| {
        let store = lab.path("store.pm");
        let (mut pmfwd, [mut near, mut far]) = started(lab.directory(), &store, &["--pm-size", "64MiB"])?;
        near.send(&frames(100))?;
        ensure!(far.receive(100)? == frames(100));
        pmfwd.signal(Signal::TERM)?;
        pmfwd.wait_for("Accumulated forward statistics for all ports")?;
        let (status, said) = pmfwd.end()?;
        ensure!(status.success(), "{status}: {}", said.join("\n"));
        let report = Snapshot::open(&store)?.scan(0, |_| {})?;
        ensure!(report.records == 100 && report.known_durable + 1 == report.next, "{report:?}");
        Ok(())
    });
}

#[test]
fn a_full_store_holds_back_what_it_does_not_take() {
    isolated(|lab| {
        let store = lab.path("store.pm");
        let more = ["--pm-size", "8MiB", "--rxd", "256", "--txd", "256", "--total-num-mbufs", "1023"];
        let (mut pmfwd, [mut near, mut far]) = started(lab.directory(), &store, &more)?;
        let sent = frames(5000);
        let mut arrived = Vec::new();
        for (number, burst) in sent.chunks(100).enumerate() {
            near.send(burst)?;
            pmfwd.wait_until_received(0, (number as u64 + 1) * 100)?;
            arrived.extend(far.arrived());
        }
        let [received, ..] = pmfwd.stop()?;
        let log = pmfwd.wait_for("Log:")?;
        loop {
            let more = far.arrived();
            if more.is_empty() {
                break;
            }
            arrived.extend(more);
        }
        ensure!(received == 5000 && arrived.len() < 5000, "{log}");
        pmfwd.tell("quit")?;
        ensure!(pmfwd.end()?.0.success());
        let logged = logged(&store)?;
        ensure!(logged.len() > 500 && logged.len() < 5000, "{} records", logged.len());
        let logged: HashSet<&[u8]> = logged.iter().map(Vec::as_slice).collect();
        ensure!(arrived.iter().all(|frame| logged.contains(&frame[..])), "something went on unlogged");
        ensure!(log.contains(&format!("{} held back", 5000 - logged.len())), "{log}");
        Ok(())
    });
}

#[test]
fn a_store_that_is_trimmed_takes_everything() {
    isolated(|lab| {
        let store = lab.path("store.pm");
        let more = [
            "--pm-size",
            "8MiB",
            "--log-full",
            "trim",
            "--rxd",
            "256",
            "--txd",
            "256",
            "--total-num-mbufs",
            "1023",
        ];
        let (mut pmfwd, [mut near, mut far]) = started(lab.directory(), &store, &more)?;
        let sent = frames(10_000);
        for burst in sent.chunks(100) {
            near.send(burst)?;
            ensure!(far.receive(100)? == burst, "frames were changed on their way");
        }
        ensure!(pmfwd.stop()? == [10_000, 10_000, 0]);
        pmfwd.tell("quit")?;
        ensure!(pmfwd.end()?.0.success());
        let logged = logged(&store)?;
        let first = sent.len().checked_sub(logged.len()).context("more records than frames")?;
        ensure!(first > 0 && logged[..] == sent[first..], "the store does not hold the last frames");
        Ok(())
    });
}
