//! Stores that were damaged while nobody looked: one bad record is one bad record, and what was acknowledged depends on
//! no single copy of anything.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::{Lab, isolated, noise};

use crate::tools::{dumped, pmlog, stopped_store};
use crate::{Over, cable, connect, health_of, options, over_each_transport, two_cpus, wait_until};

over_each_transport! {
    a_trim_survives_damage_to_either_copy_of_the_header,
    a_lost_end_of_the_log_is_noticed_once_the_server_was_idle_or_only_read,
}

/// What each copy of superblock and header has for itself.
const BLOCK_BYTES: usize = 4096;

/// Where both copies of a shard's header lie in a store: behind the first superblock, and before the second.
fn headers(image: &[u8], shards: usize, shard: usize) -> [usize; 2] {
    [BLOCK_BYTES, image.len() - BLOCK_BYTES * (1 + shards)].map(|from| from + shard * BLOCK_BYTES)
}

fn number(image: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(image[at..at + 8].try_into()?))
}

/// Changes one bit of a file.
fn flip(store: &Path, at: usize) -> Result<()> {
    let mut image = fs::read(store)?;
    image[at] ^= 0x10;
    Ok(fs::write(store, image)?)
}

/// Where a store has these bytes.
fn place(image: &[u8], bytes: &[u8]) -> Result<usize> {
    let at = image.windows(bytes.len()).position(|window| window == bytes);
    at.context("the bytes are not in the store")
}

#[test]
fn a_damaged_record_is_passed_over_named_and_dropped_and_the_others_are_served() {
    isolated(|lab| {
        let records = stopped_store(lab, true)?;
        let store = lab.path("store.pm");
        let image = fs::read(&store)?;
        // In the log entry, in a shared buffer, in one of its own, in many.
        for place_of in [2, 4, 5, 7] {
            let (seq, body) = &records[place_of];
            fs::write(&store, &image)?;
            flip(&store, place(&image, &body[..32])? + 9)?;
            let server = options(lab, Over::Dpdk, "4MiB")?.start()?;
            let mut connection = connect()?;
            for (other, body) in records.iter().filter(|(other, _)| other != seq) {
                let reply = connection.get(&format!("/records/{other}"))?;
                ensure!(reply.status == 200 && reply.body == *body, "record {other} beside {seq}");
            }
            let refused = connect()?.get(&format!("/records/{seq}"))?;
            let said = String::from_utf8_lossy(&refused.body).into_owned();
            ensure!(refused.status == 410, "damaged record {seq}: status {}", refused.status);
            ensure!(said.contains(&seq.to_string()), "record {seq}: {said}");
            ensure!(health_of(&server, "records")? == records.len() as u64 - 1, "{}", server.health()?);
            let reported = server.output();
            ensure!(reported.contains(&format!("record {seq} is damaged")), "{reported}");
            let new = connect()?.append(b"goes on")?.seq()?;
            ensure!(records.iter().all(|(old, _)| *old < new), "number {new} is given again");
            ensure!(server.interrupt()?.success(), "no clean end");

            let (code, output) = pmlog("verify", &store, &[])?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(code == 1 && said.contains(&format!("record {seq} is damaged")), "{code}: {said}");
            let (_, shown) = dumped(&store)?;
            ensure!(shown.len() == records.len(), "dump shows {} records", shown.len());

            let (code, output) = pmlog("quarantine", &store, &["--json"])?;
            let listed: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            ensure!(code == 0 && listed["seq"] == *seq, "{listed}");
            let (code, _) = pmlog("quarantine", &store, &["--drop", &(seq + 1000).to_string()])?;
            ensure!(code == 1, "a record that is not damaged was dropped");
            let what = if place_of == 5 { "all" } else { &seq.to_string() };
            let (code, output) = pmlog("quarantine", &store, &["--drop", what])?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(code == 0 && said.contains(&format!("dropped: record {seq}")), "{said}");
            let (code, output) = pmlog("verify", &store, &[])?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(code == 0, "after the drop: {said}");
            ensure!(said.contains(&format!("sound: {} records", records.len())), "{said}");

            let server = options(lab, Over::Dpdk, "4MiB")?.start()?;
            let refused = connect()?.get(&format!("/records/{seq}"))?;
            ensure!(refused.status == 410, "dropped record {seq}: status {}", refused.status);
            let mut connection = connect()?;
            let trim = format!("DELETE /records?before={} HTTP/1.1\r\nHost: lab\r\n\r\n", new + 1);
            connection.send(trim.as_bytes())?;
            ensure!(connection.reply()?.status == 200, "a trim does not pass the dropped record");
            ensure!(health_of(&server, "records")? == 0, "{}", server.health()?);
        }
        Ok(())
    });
}

#[test]
fn a_trim_passes_a_damaged_record() {
    isolated(|lab| {
        let records = stopped_store(lab, true)?;
        let store = lab.path("store.pm");
        let (seq, body) = &records[6];
        flip(&store, place(&fs::read(&store)?, &body[..32])?)?;
        let server = options(lab, Over::Dpdk, "4MiB")?.start()?;
        let mut connection = connect()?;
        connection
            .send(format!("DELETE /records?before={} HTTP/1.1\r\nHost: lab\r\n\r\n", seq + 1).as_bytes())?;
        ensure!(connection.reply()?.status == 200, "the trim is refused");
        ensure!(health_of(&server, "records")? == 3, "{}", server.health()?);
        ensure!(server.interrupt()?.success(), "no clean end");
        let (code, output) = pmlog("verify", &store, &[])?;
        ensure!(code == 0, "{}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    });
}

fn a_trim_survives_damage_to_either_copy_of_the_header(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    let store = lab.path("store.pm");
    let server = options(lab, over, "4MiB")?.start()?;
    let mut connection = connect()?;
    let bodies: Vec<_> = (0..30).map(|seed| noise(seed, 700)).collect();
    let seqs = bodies.iter().map(|body| connection.append(body)?.seq()).collect::<Result<Vec<_>>>()?;
    connection
        .send(format!("DELETE /records?before={} HTTP/1.1\r\nHost: lab\r\n\r\n", seqs[19]).as_bytes())?;
    ensure!(connection.reply()?.status == 200, "the trim is refused");
    server.kill()?;
    let image = fs::read(&store)?;
    for copy in 0..2 {
        // Generation, first number, head, known to be durable.
        for field in [4, 8, 16, 24, 32] {
            fs::write(&store, &image)?;
            flip(&store, headers(&image, 1, 0)[copy] + field)?;
            let (_, output) = pmlog("verify", &store, &[])?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(said.contains(&format!("copy {copy} of the shard's header is damaged")), "{said}");
            let server = options(lab, over, "4MiB")?.start()?;
            let mut connection = connect()?;
            for (place, (seq, body)) in seqs.iter().zip(&bodies).enumerate() {
                let reply = connection.get(&format!("/records/{seq}"))?;
                let is_there = reply.status == 200 && reply.body == *body;
                ensure!(
                    is_there == (place >= 19),
                    "copy {copy}, field {field}: {seq}: status {}",
                    reply.status
                );
            }
            let said = server.output();
            ensure!(said.contains(&format!("copy {copy} of the shard's header is damaged")), "{said}");
            server.kill()?;
            let (code, output) = pmlog("verify", &store, &[])?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(code == 0 && !said.contains("header is damaged"), "it is not repaired: {said}");
        }
    }
    for copy in headers(&image, 1, 0) {
        let head = number(&image, copy + 24)?;
        ensure!(head == seqs[19], "head {head}");
    }
    Ok(())
}

/// Zeros look like the end of a log. That they are not is known from what vouches for the records before.
fn a_lost_end_of_the_log_is_noticed_once_the_server_was_idle_or_only_read(
    lab: &Lab,
    over: Over,
) -> Result<()> {
    cable(lab, over)?;
    let store = lab.path("store.pm");
    // One core has both shards' records vouched for in the end, of two each its own.
    for cores in [None, Some(two_cpus()?)] {
        let mut options = options(lab, over, "16MiB")?.option("--shards", "2").flag("--force");
        if let Some(cores) = &cores {
            options = options.option("--cores", cores);
        }
        let server = options.start()?;
        let mut names = Vec::new();
        let mut connections = (0..8).map(|_| connect()).collect::<Result<Vec<_>>>()?;
        for number in 0..40 {
            names.push(connections[number % 8].append(&noise(number as u64, 20))?.record()?);
        }
        let last_of = |shard: usize| {
            let of_shard = names.iter().filter_map(|name| {
                name.to_string().split_once('-').map(|(s, n)| (s.to_owned(), n.to_owned()))
            });
            of_shard
                .filter(|(s, _)| *s == shard.to_string())
                .filter_map(|(_, seq)| seq.parse::<u64>().ok())
                .max()
        };
        // Each shard's header, in either copy, says how far its log is durable; clients go on reading all the while.
        wait_until("the end of each log is noted", || {
            for connection in &mut connections {
                ensure!(connection.get(&format!("/records/{}", names[0]))?.status == 200, "no record");
            }
            let image = fs::read(&store)?;
            Ok((0..2).all(|shard| {
                headers(&image, 2, shard).iter().all(|copy| {
                    let noted = number(&image, copy + 32).unwrap_or(0);
                    noted >= last_of(shard).unwrap_or(0)
                })
            }))
        })?;
        server.kill()?;
        let mut image = fs::read(&store)?;
        let field = |at: usize| number(&image, at).map(|number| number as usize);
        let (log_offset, log_stride) = (field(64)?, field(72)?);
        let written = (0..2).filter(|&shard| last_of(shard).is_some()).count() as u64;
        for shard in 0..2 {
            image[log_offset + shard * log_stride..][..4096].fill(0);
        }
        fs::write(&store, image)?;

        let mut options = self::options(lab, over, "16MiB")?;
        if let Some(cores) = &cores {
            options = options.option("--cores", cores);
        }
        let server = options.start()?;
        ensure!(health_of(&server, "records")? == 0, "{}", server.health()?);
        let said = server.output();
        ensure!(said.contains(&format!("damaged   {written} in the log")), "nobody was told: {said}");
        let next = connect()?.append(b"behind what was lost")?.record()?;
        ensure!(!names.contains(&next), "the number {next} is given again");
        server.kill()?;
        let (code, _) = pmlog("verify", &store, &[])?;
        ensure!(code == 1, "verify finds nothing wrong");
    }
    Ok(())
}
