//! A store that fills up, and goes on after a trim; and a table of connections that is full.

use std::collections::VecDeque;

use anyhow::{Result, ensure};
use lab::{Connection, Lab, noise};

use crate::{Over, cable, connect, health_of, options, over_each_transport, serve, wait_until};

over_each_transport! {
    a_full_store_says_so_and_goes_on_after_a_trim,
    what_survives_a_full_store_survives_a_restart,
    uploads_into_a_full_store_stall_nobody,
    a_full_table_still_tells_how_the_server_is,
}

const RECORD_BYTES: usize = 64 << 10;

/// Live records: their numbers, and the seeds of their bytes.
type Live = VecDeque<(u64, u64)>;

/// Appends until the store is full.
fn fill(connection: &mut Connection, seed: &mut u64, live: &mut Live) -> Result<()> {
    loop {
        let reply = connection.append(&noise(*seed, RECORD_BYTES))?;
        if reply.status == 507 {
            return Ok(());
        }
        live.push_back((reply.seq()?, *seed));
        *seed += 1;
    }
}

fn trim(connection: &mut Connection, before: u64) -> Result<()> {
    connection.send(format!("DELETE /records?before={before} HTTP/1.1\r\nHost: lab\r\n\r\n").as_bytes())?;
    let reply = connection.reply()?;
    ensure!(reply.status == 200, "trim: status {}", reply.status);
    Ok(())
}

fn a_full_store_says_so_and_goes_on_after_a_trim(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "16MiB")?;
    let mut writer = connect()?;
    let mut other = connect()?;
    let (mut seed, mut live) = (0, Live::new());
    let mut total_bytes = 0;
    // Many laps of the log and of the arena.
    for lap in 0.. {
        let before = live.len();
        // A 507 may end its connection; the others do not notice.
        writer = connect()?;
        fill(&mut writer, &mut seed, &mut live)?;
        ensure!(live.len() > before, "lap {lap}: a trim gave no room");
        total_bytes += (live.len() - before) * RECORD_BYTES;
        ensure!(other.get("/health")?.status == 200, "lap {lap}: another connection is stalled");
        for (seq, seed) in &live {
            let body = other.get(&format!("/records/{seq}"))?.body;
            ensure!(body == noise(*seed, RECORD_BYTES), "lap {lap}: record {seq} differs");
        }
        if total_bytes > 8 * (16 << 20) {
            break;
        }
        // Now and then everything, else most of it.
        let keep = if lap % 4 == 3 { 0 } else { live.len() / 3 };
        live.drain(..live.len() - keep);
        let head = live.front().map_or(health_of(&server, "next")?, |(seq, _)| *seq);
        trim(&mut other, head)?;
        ensure!(health_of(&server, "records")? == live.len() as u64, "lap {lap}: not trimmed");
    }
    drop(writer);
    Ok(())
}

fn what_survives_a_full_store_survives_a_restart(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "16MiB")?;
    let (mut seed, mut live) = (0, Live::new());
    fill(&mut connect()?, &mut seed, &mut live)?;
    live.drain(..live.len() / 2);
    trim(&mut connect()?, live[0].0)?;
    fill(&mut connect()?, &mut seed, &mut live)?;
    server.kill()?;

    let server = options(lab, over, "16MiB")?.start()?;
    ensure!(health_of(&server, "records")? == live.len() as u64, "not all records: {}", server.health()?);
    let mut connection = connect()?;
    for (seq, seed) in &live {
        let body = connection.get(&format!("/records/{seq}"))?.body;
        ensure!(body == noise(*seed, RECORD_BYTES), "record {seq} differs");
    }
    // How many buffers a record takes depends on how its bytes arrive.
    let before = live.len();
    fill(&mut connection, &mut seed, &mut live)?;
    ensure!(live.len() <= before + 2, "a full store has room for {} records", live.len() - before);
    Ok(())
}

fn uploads_into_a_full_store_stall_nobody(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "16MiB")?;
    // More than the store holds, from several clients at once.
    let uploads: Vec<_> = (0..4)
        .map(|n| {
            std::thread::spawn(move || -> Result<u16> { Ok(connect()?.append(&noise(n, 12 << 20))?.status) })
        })
        .collect();
    let mut other = connect()?;
    while !uploads.iter().all(std::thread::JoinHandle::is_finished) {
        ensure!(other.get("/health")?.status == 200, "another connection is stalled");
    }
    for upload in uploads {
        // A refusal may come while the client still sends, and reach it as a reset.
        if let Ok(status) = upload.join().expect("no client panics") {
            ensure!(matches!(status, 200 | 507), "status {status}");
        }
    }
    trim(&mut other, health_of(&server, "next")?)?;
    other.append(&noise(1, RECORD_BYTES))?.seq()?;
    Ok(())
}

fn a_full_table_still_tells_how_the_server_is(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    let server = options(lab, over, "16MiB")?.option("--max-connections", "4").start()?;
    let mut idle = Vec::new();
    wait_until("four clients have a place", || {
        // The one that found the server ready may still have one.
        let mut connection = connect()?;
        let reply = connection.append(b"held")?;
        if reply.status == 200 {
            idle.push(connection);
        }
        Ok(idle.len() == 4)
    })?;

    let mut probe = connect()?;
    let health = probe.get("/health")?;
    ensure!((health.status, health.header("connection")) == (200, Some("close")), "{health:?}");
    let json: serde_json::Value = serde_json::from_slice(&health.body)?;
    ensure!(json["max_connections"] == 4 && json["connections"].as_u64() >= Some(5), "{json}");
    probe.expect_end()?;
    let mut fifth = connect()?;
    let refused = fifth.append(b"one too many")?;
    ensure!((refused.status, refused.header("connection")) == (503, Some("close")), "{refused:?}");
    ensure!(refused.header("retry-after").is_some(), "{refused:?}");
    fifth.expect_end()?;
    drop((probe, fifth));

    // Whoever takes all the spare places as well is shown out soon, and looks at the server's health go on.
    let crowd: Vec<_> = (0..20)
        .map(|_| std::thread::spawn(|| connect().map(|connection| _ = connection.stream().peek(&mut [0]))))
        .collect();
    wait_until("health is told to one who comes behind a crowd", || {
        Ok(connect()
            .and_then(|mut connection| connection.get("/health"))
            .is_ok_and(|reply| reply.status == 200))
    })?;
    for client in crowd {
        // One may have been refused, by a reset or by silence.
        let _ = client.join().expect("no client panics");
    }
    for connection in &mut idle {
        ensure!(connection.append(b"still here")?.status == 200, "a client lost its place");
    }
    idle.pop();
    wait_until("a place that is left is taken again", || {
        Ok(connect()
            .and_then(|mut connection| connection.append(b"next"))
            .is_ok_and(|reply| reply.status == 200))
    })?;
    drop(server);
    Ok(())
}
