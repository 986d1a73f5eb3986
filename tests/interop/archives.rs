//! Archives: out of servers and stores, and into servers.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Connection, Lab, PmlogOptions, noise, pmlog_binary};
use serde_json::Value;

use crate::cores::one_for_each_shard;
use crate::{Over, cable, connect, health_of, options, over_each_transport, serve, two_cpus};

over_each_transport! {
    what_is_exported_is_imported_in_order_and_once,
    a_backup_goes_on_where_it_was_and_never_over_a_gap,
    an_import_into_a_server_that_is_killed_is_repeated_to_the_end,
    two_shards_are_exported_in_the_order_of_epochs_and_imported_into_one,
}

const URL: &str = "http://10.0.0.2";

/// Runs `pmlog` with some words.
fn pmlog(words: &[&str]) -> Result<Output> {
    let mut command = Command::new(pmlog_binary()?);
    lab::output_within(command.args(words), Duration::from_secs(120))
}

/// What it says that it has done.
fn done(words: &[&str]) -> Result<Value> {
    let output = pmlog(&[words, &["--json"]].concat())?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "pmlog {words:?}: {complaint}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("pmlog {words:?}: {complaint}"))
}

/// What it complains of.
fn complaint(words: &[&str], says: &str) -> Result<()> {
    let output = pmlog(words)?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "pmlog {words:?}: {:?}", output.status);
    ensure!(complaint.contains(says), "pmlog {words:?} does not say {says:?}: {complaint}");
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of words")
}

/// The bodies of all records, in the order of a list.
fn bodies(connection: &mut Connection) -> Result<Vec<Vec<u8>>> {
    let mut bodies = Vec::new();
    let list = connection.get("/records?limit=1000")?.json()?;
    for entry in list.as_array().context("no list")? {
        let shard = entry["shard"].as_u64().map_or_else(String::new, |shard| format!("{shard}-"));
        let reply = connection.get(&format!("/records/{shard}{}", entry["seq"]))?;
        ensure!(reply.status == 200, "{entry}: status {}", reply.status);
        bodies.push(reply.body);
    }
    Ok(bodies)
}

/// Of all kinds: in the log entry, packed, one segment, several, many.
fn body(seed: u64) -> Vec<u8> {
    const LENGTHS: [usize; 7] = [0, 20, 200, 1024, 1400, 5000, 100_000];
    noise(seed, LENGTHS[seed as usize % LENGTHS.len()])
}

/// Another server of the same kind, on a new store.
fn other(lab: &Lab, over: Over) -> Result<PmlogOptions> {
    let options = PmlogOptions::new(&lab.path("other.pm"))?.option("--pm-size", "64MiB");
    Ok(match over {
        Over::Dpdk => options,
        Over::Kernel => options.kernel(&lab.path("server.net")),
    })
}

fn what_is_exported_is_imported_in_order_and_once(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "64MiB")?;
    let mut connection = connect()?;
    for seed in 0..100 {
        connection.append(&body(seed))?.seq()?;
    }
    let expected = bodies(&mut connection)?;
    let [file, copy, again] = ["log.archive", "copy.archive", "again.archive"].map(|name| lab.path(name));
    let [file, copy, again] = [text(&file)?, text(&copy)?, text(&again)?];
    let said = done(&["export", "--url", URL, file])?;
    let bytes: usize = expected.iter().map(Vec::len).sum();
    ensure!(said == serde_json::json!({"records": 100, "bytes": bytes, "left_out": 0}), "{said}");
    complaint(&["export", "--url", URL, file], "--force")?;
    done(&["export", "--url", URL, "--force", file])?;
    ensure!(done(&["import", file])?["records"] == 100, "the archive is not whole");
    // Through a pipe, and from the store itself once nobody serves it.
    let piped = pmlog(&["export", "--url", URL, "-"])?;
    ensure!(piped.status.success() && piped.stdout == std::fs::read(file)?, "a pipe has something else");
    drop(connection);
    ensure!(server.interrupt()?.success(), "no clean end");
    let store = lab.path("store.pm");
    done(&["export", "--pm", text(&store)?, copy])?;
    ensure!(std::fs::read(copy)? == std::fs::read(file)?, "the store has something else");

    let server = other(lab, over)?.start()?;
    let said = done(&["import", "--url", URL, file])?;
    ensure!(said["records"] == 100 && said["found"] == 0, "{said}");
    ensure!(bodies(&mut connect()?)? == expected, "not what was exported");
    let said = done(&["import", "--url", URL, file])?;
    ensure!(said["records"] == 0 && said["found"] == 100, "{said}");
    done(&["export", "--url", URL, again])?;
    ensure!(health_of(&server, "records")? == 100, "some are there twice");
    // Behind what is there, and only where that is asked for.
    connect()?.append(b"another")?.seq()?;
    done(&["import", "--url", URL, file])?;
    complaint(&["import", "--url", URL, "--at", "2", file], "another record at 2")?;
    let mut import = Command::new(pmlog_binary()?)
        .args(["import", "--url", URL, "--at", "next", "--json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    import.stdin.take().context("no input")?.write_all(&std::fs::read(file)?)?;
    let said: Value = serde_json::from_slice(&import.wait_with_output()?.stdout)?;
    ensure!(said["records"] == 100 && health_of(&server, "records")? == 201, "{said}");
    let said = done(&["import", "--url", URL, "--at", said["at"].as_str().context("no number")?, file])?;
    ensure!(said["found"] == 100 && health_of(&server, "records")? == 201, "{said}");

    // What is cut off or altered is known as that, and what is whole before is there.
    let whole = std::fs::read(file)?;
    let broken = lab.write("broken.archive", &whole[..whole.len() / 2])?;
    complaint(&["import", text(&broken)?], "cut off")?;
    let before = health_of(&server, "records")?;
    complaint(&["import", "--url", URL, "--at", "next", text(&broken)?], "cut off")?;
    let added = health_of(&server, "records")? - before;
    ensure!((30..70).contains(&added), "{added} records of half an archive");
    let mut altered = whole.clone();
    altered[whole.len() / 2] ^= 1;
    std::fs::write(&broken, &altered)?;
    complaint(&["import", text(&broken)?], "altered at byte")?;
    std::fs::write(&broken, b"something else entirely, and long enough for a head")?;
    complaint(&["import", "--url", URL, text(&broken)?], "no archive")?;
    // A medium that is full leaves no archive, and says so.
    let folder = lab.path("full");
    std::fs::create_dir(&folder)?;
    lab::run("mount", ["-t", "tmpfs", "-o", "size=64k", "none", text(&folder)?])?;
    let full = lab.path("full/log.archive");
    complaint(&["export", "--url", URL, text(&full)?], "No space left")?;
    ensure!(std::fs::read_dir(lab.path("full"))?.count() == 0, "something is left of it");
    Ok(())
}

fn a_backup_goes_on_where_it_was_and_never_over_a_gap(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "64MiB")?;
    let mut connection = connect()?;
    let file = lab.path("log.archive");
    let file = text(&file)?;
    let mut expected = Vec::new();
    let mut add = |connection: &mut Connection, count: u64| -> Result<()> {
        for _ in 0..count {
            let bytes = body(expected.len() as u64);
            connection.append(&bytes)?.seq()?;
            expected.push(bytes);
        }
        Ok(())
    };
    for count in [20, 0, 15, 7] {
        add(&mut connection, count)?;
        let said = done(&["backup", "--url", URL, file])?;
        ensure!(said["records"] == count, "{said} of {count}");
    }
    // Cut off anywhere behind the last end, it goes on.
    let ended = std::fs::metadata(file)?.len();
    add(&mut connection, 30)?;
    done(&["backup", "--url", URL, file])?;
    let whole = std::fs::read(file)?;
    for end in [ended, ended + 1, ended + 47, ended + 48, ended + 5000, whole.len() as u64 - 1] {
        std::fs::OpenOptions::new().write(true).open(file)?.set_len(end)?;
        done(&["backup", "--url", URL, file])?;
        ensure!(std::fs::read(file)? == whole, "cut off at {end}, it became another");
    }
    // What is trimmed stays in the archive, and what was trimmed too early is missed aloud.
    let next = health_of(&server, "next")?;
    connection.send(format!("DELETE /records?before={next} HTTP/1.1\r\nHost: lab\r\n\r\n").as_bytes())?;
    ensure!(connection.reply()?.status == 200, "no trim");
    add(&mut connection, 10)?;
    done(&["backup", "--url", URL, file])?;
    ensure!(done(&["import", file])?["records"] == 82, "not all of them");
    add(&mut connection, 10)?;
    let next = health_of(&server, "next")?;
    connection.send(format!("DELETE /records?before={next} HTTP/1.1\r\nHost: lab\r\n\r\n").as_bytes())?;
    ensure!(connection.reply()?.status == 200, "no trim");
    let before = std::fs::read(file)?;
    complaint(&["backup", "--url", URL, file], "were trimmed before they were copied")?;
    ensure!(std::fs::read(file)? == before, "it was changed");
    drop(connection);
    ensure!(server.interrupt()?.success(), "no clean end");

    let server = other(lab, over)?.start()?;
    complaint(&["backup", "--url", URL, file], "and the server's is")?;
    done(&["import", "--url", URL, file])?;
    ensure!(bodies(&mut connect()?)? == expected[..82], "not what was backed up");
    drop(server);
    Ok(())
}

fn an_import_into_a_server_that_is_killed_is_repeated_to_the_end(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "64MiB")?;
    let mut connection = connect()?;
    for seed in 0..400 {
        connection.append(&body(seed))?.seq()?;
    }
    let expected = bodies(&mut connection)?;
    let file = lab.path("log.archive");
    let file = text(&file)?;
    done(&["export", "--url", URL, file])?;
    drop(connection);
    server.interrupt()?;
    let target = other(lab, over)?;
    for enough in [10, 150, 300] {
        let server = target.start()?;
        let mut import = Command::new(pmlog_binary()?)
            .args(["import", "--url", URL, file])
            .stderr(Stdio::piped())
            .spawn()?;
        let is_enough = || Ok(health_of(&server, "records")? >= enough);
        crate::wait_until("enough is imported", is_enough)?;
        // Either side of it, and both. It may have been done by then.
        if enough != 150 {
            server.kill()?;
            import.kill()?;
        } else {
            import.kill()?;
            server.interrupt()?;
        }
        import.wait()?;
    }
    let server = target.start()?;
    let said = done(&["import", "--url", URL, file])?;
    ensure!(
        said["records"].as_u64().zip(said["found"].as_u64()).is_some_and(|(new, old)| new + old == 400),
        "{said}"
    );
    ensure!(health_of(&server, "records")? == 400, "{said}");
    ensure!(bodies(&mut connect()?)? == expected, "not what was exported");
    Ok(())
}

fn two_shards_are_exported_in_the_order_of_epochs_and_imported_into_one(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    let options = options(lab, over, "128MiB")?.option("--cores", &two_cpus()?);
    // Two epochs, in each of which both shards have records.
    let mut seed = 0;
    let mut archive = Vec::new();
    let file = lab.path("log.archive");
    let file = text(&file)?;
    let mut expected = Vec::new();
    for epoch in 0..2 {
        let server = options.start()?;
        let mut connections = one_for_each_shard()?;
        for _ in 0..20 {
            for connection in &mut connections {
                connection.append(&body(seed))?;
                seed += 1;
            }
        }
        if epoch == 1 {
            expected = bodies(&mut connections[0])?;
            done(&["export", "--url", URL, file])?;
            archive = std::fs::read(file)?;
        }
        drop(connections);
        ensure!(server.interrupt()?.success(), "no clean end");
    }
    let store = lab.path("store.pm");
    done(&["export", "--force", "--pm", text(&store)?, file])?;
    ensure!(std::fs::read(file)? == archive, "the store has something else, or another order");

    let server = other(lab, over)?.option("--cores", &two_cpus()?).start()?;
    let said = done(&["import", "--url", URL, file])?;
    ensure!(said["records"].as_u64() == Some(expected.len() as u64), "{said}");
    let said = done(&["import", "--url", URL, file])?;
    ensure!(said["records"] == 0, "{said}");
    ensure!(bodies(&mut connect()?)? == expected, "not what was exported, or not in its order");
    drop(server);
    Ok(())
}
