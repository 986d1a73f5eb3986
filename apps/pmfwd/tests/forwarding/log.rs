//! Mode `log`: what went on is in the store, whatever happens to the program.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lab::isolated;
use pmem::{Contents, Options, Region, Snapshot, SnapshotEvent};
use rustix::process::Signal;

use crate::peer::{Peer, connect, devices, frames};
use crate::program::{Pmfwd, command};

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

#[test]
fn what_is_refused_leaves_the_store_as_it_was() {
    isolated(|lab| {
        let (store, fresh) = (lab.path("store.pm"), lab.path("fresh.pm"));
        let base = |path: &Path| -> Result<Vec<String>> {
            let path = path.to_str().context("a plain path")?;
            let words = "--dev net_null0 --dev net_null1 --forward-mode log --pool pm --volatile --pm";
            Ok(words.split(' ').chain([path]).map(str::to_owned).collect())
        };
        let run = |path: &Path, words: &[&str]| -> Result<std::process::Output> {
            let all = base(path)?;
            let all: Vec<&str> = all.iter().map(String::as_str).chain(words.iter().copied()).collect();
            lab::output_within(&mut command(&all), crate::program::PATIENCE)
        };
        let made = run(&store, &["--pm-size", "64MiB", "--duration", "1"])?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let before = std::fs::read(&store)?;
        for words in [
            &["--pm-size", "4KiB"][..],
            // Enough for a store, but not for the queues.
            &["--pm-size", "1MiB"],
            &["--pm-size", "64PiB"],
            &["--rxq", "2000", "--txq", "2000"],
            &["--nb-cores", "1000"],
            &["--total-num-mbufs", "100000000"],
            &["--pcap-out", "/nowhere/frames.pcap"],
            &["--dev", "net_nothing0"],
        ] {
            for force in [&[][..], &["--force"]] {
                for path in [&store, &fresh] {
                    let size: &[&str] =
                        if path == &fresh && words[0] != "--pm-size" { &["--pm-size", "64MiB"] } else { &[] };
                    let words = [words, force, size, &["--duration", "1"]].concat();
                    let output = run(path, &words)?;
                    let said = String::from_utf8_lossy(&output.stderr);
                    ensure!(
                        matches!(output.status.code(), Some(1 | 2)),
                        "{words:?}: {} {said}",
                        output.status
                    );
                    ensure!(std::fs::read(&store)? == before, "{words:?}: the store was changed: {said}");
                    ensure!(!fresh.exists(), "{words:?}: a new store was left behind: {said}");
                }
            }
        }
        Ok(())
    });
}

/// Frames among request bodies would be served as records.
#[test]
fn a_store_of_request_bodies_is_refused_and_left_as_it_was() {
    isolated(|lab| {
        let store = lab.path("store.pm");
        for contents in [Contents::Bodies, Contents::Unknown] {
            let options =
                Options { size: Some(64 << 20), volatile: true, force: true, contents, ..Options::default() };
            let mut shard = Region::open(&store, &options)?.into_shard()?;
            let draft = shard.draft();
            let _ = shard.append(draft)?;
            shard.commit()?;
            drop(shard);
            let before = std::fs::read(&store)?;
            let path = store.to_str().context("a plain path")?;
            let words =
                "--dev net_null0 --dev net_null1 --forward-mode log --pool pm --volatile --duration 1 --pm";
            let words: Vec<&str> = words.split(' ').chain([path]).collect();
            let output = lab::output_within(&mut command(&words), crate::program::PATIENCE)?;
            let said = String::from_utf8_lossy(&output.stderr);
            if contents == Contents::Unknown {
                ensure!(output.status.success(), "a store of unknown kind: {} {said}", output.status);
                continue;
            }
            ensure!(output.status.code() == Some(1), "{} {said}", output.status);
            ensure!(said.contains("request bodies (pmlog)"), "{said}");
            ensure!(std::fs::read(&store)? == before, "the store was changed");
        }
        Ok(())
    });
}
