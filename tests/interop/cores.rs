//! Several cores behind one address, as clients see them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lab::wire::SERVER_V4;
use lab::{Connection, Lab, Pmlog, PmlogOptions, isolated, noise, run, wire};
use serde_json::Value;

use crate::arguments::ensure_refused;
use crate::{Over, cable, connect, health_of, options, over_each_transport, serve, two_cpus, wait_until};

over_each_transport! {
    what_one_core_stores_both_give,
    a_store_of_two_shards_is_served_by_one_core_or_two,
}

fn of_two_cores(lab: &Lab, over: Over) -> Result<PmlogOptions> {
    Ok(options(lab, over, "128MiB")?.option("--cores", &two_cpus()?))
}

/// Connections until each shard has stored a record: which core serves a connection is the network's choice.
pub(crate) fn one_for_each_shard() -> Result<[Connection; 2]> {
    let mut of_shards = [None, None];
    for _ in 0..200 {
        let mut connection = connect()?;
        let shard = connection.append(b"whose?")?.json()?["shard"].as_u64().context("no shard")?;
        of_shards[shard as usize].get_or_insert(connection);
        if let [Some(first), Some(second)] = of_shards {
            return Ok([first, second]);
        }
    }
    anyhow::bail!("200 connections came to one core")
}

fn list(connection: &mut Connection, target: &str) -> Result<Vec<(u64, u64, u64)>> {
    let list = connection.get(target)?.json()?;
    let place =
        |entry: &Value| Some((entry["epoch"].as_u64()?, entry["shard"].as_u64()?, entry["seq"].as_u64()?));
    list.as_array().context("no list")?.iter().map(|entry| place(entry).context("no place")).collect()
}

/// What the server said last, with `--json`.
fn last_report(server: &Pmlog) -> Option<Value> {
    server.output().lines().last().and_then(|line| serde_json::from_str(line).ok())
}

fn what_one_core_stores_both_give(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    let server = of_two_cores(lab, over)?.flag("--json").start()?;
    let mut connections = one_for_each_shard()?;
    let mut stored = Vec::new();
    for (seed, len) in [20, 1000, 50_000, 3_000_000].into_iter().enumerate() {
        for connection in &mut connections {
            let bytes = noise(seed as u64, len);
            stored.push((connection.append(&bytes)?.record()?, bytes));
        }
    }
    let names: BTreeSet<&String> = stored.iter().map(|(name, _)| name).collect();
    ensure!(names.len() == stored.len(), "names are given twice: {stored:?}");
    for connection in &mut connections {
        for (name, bytes) in &stored {
            let reply = connection.get(&format!("/records/{name}"))?;
            ensure!(reply.status == 200 && reply.body == *bytes, "{name}: status {}", reply.status);
        }
    }
    // Half of what was read came from the other core.
    let crossed: u64 = stored.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    wait_until("the reads are reported", || {
        Ok(last_report(&server).is_some_and(|report| report["crossed_read_bytes"].as_u64() == Some(crossed)))
    })?;

    let [first, second] = &mut connections;
    let all = list(first, "/records?limit=1000")?;
    ensure!(all.is_sorted() && all.len() as u64 == health_of(&server, "records")?, "{all:?}");
    ensure!(list(second, "/records?limit=1000")? == all, "two cores list differently");
    let of_second: Vec<_> = all.iter().filter(|(_, shard, _)| *shard == 1).copied().collect();
    ensure!(
        list(first, "/records?shard=1&limit=1000")? == of_second,
        "another core's shard is listed wrongly"
    );

    let (_, shard, seq) = of_second[of_second.len() - 1];
    first.send(format!("DELETE /records?before={shard}-{seq} HTTP/1.1\r\nHost: log\r\n\r\n").as_bytes())?;
    let trimmed = first.reply()?.json()?;
    ensure!(trimmed["trimmed"].as_u64() == Some(of_second.len() as u64 - 1), "{trimmed}");
    let left = list(second, "/records?limit=1000")?;
    ensure!(left.len() == all.len() - of_second.len() + 1, "{left:?}");
    ensure!(server.interrupt()?.success(), "no clean end");
    Ok(())
}

fn a_store_of_two_shards_is_served_by_one_core_or_two(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    let server = of_two_cores(lab, over)?.start()?;
    let mut stored = Vec::new();
    for (seed, mut connection) in one_for_each_shard()?.into_iter().enumerate() {
        let bytes = noise(seed as u64, 100_000);
        stored.push((connection.append(&bytes)?.record()?, bytes));
    }
    server.interrupt()?;
    for options in [options(lab, over, "128MiB")?, of_two_cores(lab, over)?.option("--shards", "2")] {
        let server = options.start()?;
        let mut connection = connect()?;
        for (name, bytes) in &stored {
            let reply = connection.get(&format!("/records/{name}"))?;
            ensure!(reply.status == 200 && reply.body == *bytes, "{name}: status {}", reply.status);
        }
        let bytes = noise(9, 5000);
        stored.push((connection.append(&bytes)?.record()?, bytes));
        ensure!(server.interrupt()?.success(), "no clean end");
    }
    Ok(())
}

#[test]
fn two_queues_of_the_kernels_fanout() {
    isolated(|lab| {
        wire::veth()?;
        let options = of_two_cores(lab, Over::Dpdk)?.device("net_af_packet0,iface=veth1,qpairs=2");
        let server = options.flag("--json").start()?;
        let start: Value = serde_json::from_str(server.output().lines().next().context("no report")?)?;
        ensure!(start["queues"] == 2 && start["shards"] == 2, "{start}");
        ensure!(start["cores"].as_array().map(Vec::len) == Some(2), "{start}");
        let [mut first, mut second] = one_for_each_shard()?;
        let bytes = noise(1, 500_000);
        let name = first.append(&bytes)?.record()?;
        ensure!(second.get(&format!("/records/{name}"))?.body == bytes, "{name} differs");
        for _ in 0..10 {
            run("ping", ["-c", "1", "-w", "5", &SERVER_V4.to_string()])?;
        }
        ensure!(server.interrupt()?.success(), "no clean end");
        Ok(())
    });
}

#[test]
fn a_store_with_too_few_shards_is_refused_and_left_alone() {
    isolated(|lab| {
        serve(lab, Over::Dpdk, "128MiB")?.interrupt()?;
        let image = std::fs::read(lab.path("store.pm"))?;
        let refused = of_two_cores(lab, Over::Dpdk)?.refusal()?;
        ensure_refused(&refused, &["1 shard(s)", "2 cores", "fewer --cores", "--force"])?;
        ensure!(std::fs::read(lab.path("store.pm"))? == image, "a store that is not served was changed");
        Ok(())
    });
}

#[test]
fn cpus_that_are_not_there_are_refused() {
    isolated(|lab| {
        wire::veth()?;
        let options = options(lab, Over::Dpdk, "128MiB")?.option("--cores", "0,1023");
        ensure_refused(&options.refusal()?, &["cpu 1023", "lscpu"])?;
        ensure!(!lab.path("store.pm").exists(), "a store that cannot be served was left behind");
        Ok(())
    });
}

#[test]
fn a_device_with_more_queues_than_cores_is_refused() {
    isolated(|lab| {
        wire::veth()?;
        let options = options(lab, Over::Dpdk, "128MiB")?.device("net_af_packet0,iface=veth1,qpairs=2");
        ensure_refused(&options.refusal()?, &["2 queues", "qpairs=1"])?;
        ensure!(!lab.path("store.pm").exists(), "a store that cannot be served was left behind");
        Ok(())
    });
}
