//! Stores on disks, as their clients see them: what is written there, and what a disk that fails does to them.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Result, bail, ensure};
use lab::{Lab, Pmlog, noise};

use crate::{Over, cable, connect, health_of, options, over_each_transport, two_cpus};

over_each_transport! {
    after_a_write_that_failed_no_core_acknowledges_anything,
    health_tells_what_the_disk_was_asked_to_write,
}

/// What the server may write no further than, of any file.
fn limit_files(server: &Pmlog, bytes: &str) -> Result<()> {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &server.pid().to_string(), &format!("--fsize={bytes}:")]);
    ensure!(prlimit.status()?.success(), "{prlimit:?}");
    Ok(())
}

fn after_a_write_that_failed_no_core_acknowledges_anything(lab: &Lab, over: Over) -> Result<()> {
    const MOST_CONNECTIONS: u64 = 64;
    cable(lab, over)?;
    let options = options(lab, over, "32MiB")?.option("--domain", "disk").option("--cores", &two_cpus()?);
    // The signal that comes with the error would end it.
    let server = options.clone().under(&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"]).start()?;
    let mut acknowledged = BTreeMap::new();
    let mut of_shards = [None, None];
    for number in 0..MOST_CONNECTIONS {
        let mut connection = connect()?;
        let body = noise(number, 1000);
        let reply = connection.append(&body)?;
        let Some(shard) = reply.json()?["shard"].as_u64() else { bail!("no shard in the reply") };
        ensure!(acknowledged.insert(reply.record()?, body).is_none(), "a number twice");
        of_shards[shard as usize] = Some(connection);
        if of_shards.iter().all(Option::is_some) {
            break;
        }
    }
    let [Some(mut one), Some(mut other)] = of_shards else { bail!("one core has served all connections") };

    limit_files(&server, "4096")?;
    let status = one.append(b"to a disk that takes nothing")?.status;
    ensure!(status == 500, "a write that failed was answered with {status}");
    limit_files(&server, "unlimited")?;
    // The other core has had no failure of its own, and the disk takes everything again.
    for connection in [&mut other, &mut connect()?, &mut connect()?] {
        let reply = connection.append(b"afterwards")?;
        // 500 to what is in a commit when its core learns of it, 503 to what comes later.
        ensure!(reply.status >= 500, "{}: {}", reply.status, String::from_utf8_lossy(&reply.body));
    }
    let health = connect()?.get("/health")?.json()?;
    let reason = health["reason"].as_str().unwrap_or_default();
    ensure!(health["status"] == "failed" && reason.contains("File too large"), "{health}");
    server.interrupt()?;

    let server = options.start()?;
    let mut connection = connect()?;
    for (name, body) in &acknowledged {
        let reply = connection.get(&format!("/records/{name}"))?;
        ensure!(reply.status == 200 && reply.body == *body, "record {name}: {}", reply.status);
    }
    ensure!(connection.append(b"goes on")?.status == 200, "it does not go on");
    ensure!(server.interrupt()?.success(), "no clean end");
    Ok(())
}

fn health_tells_what_the_disk_was_asked_to_write(lab: &Lab, over: Over) -> Result<()> {
    const RECORDS: u64 = 50;
    const BLOCK_BYTES: u64 = 4096;
    cable(lab, over)?;
    let server = options(lab, over, "16MiB")?.option("--domain", "disk").start()?;
    let mut connection = connect()?;
    let before = (health_of(&server, "written_bytes")?, health_of(&server, "write_requests")?);
    for number in 0..RECORDS {
        ensure!(connection.append(&noise(number, 1000))?.status == 200, "record {number} was refused");
    }
    let written = health_of(&server, "written_bytes")? - before.0;
    let requests = health_of(&server, "write_requests")? - before.1;
    // One commit each: a block of the log, and one or two of the payload, by two writes and perhaps a sync. More than
    // that is a header, at times.
    ensure!(written.is_multiple_of(BLOCK_BYTES), "{written} bytes are no blocks");
    let blocks = written / BLOCK_BYTES;
    ensure!((2 * RECORDS..=4 * RECORDS).contains(&blocks), "{blocks} blocks for {RECORDS} records");
    ensure!((2 * RECORDS..=4 * RECORDS).contains(&requests), "{requests} requests for {RECORDS} records");
    ensure!(server.interrupt()?.success(), "no clean end");
    let said = server_said(lab)?;
    ensure!(said.contains("written   ") && said.contains("writes and syncs"), "{said}");
    Ok(())
}

fn server_said(lab: &Lab) -> Result<String> {
    Ok(std::fs::read_to_string(lab.path("store.log"))?)
}
