//! `pmlog dump` and `pmlog verify` on stores that were left in all kinds of states.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Lab, isolated, noise, pmlog_binary, wire};
use serde_json::Value;

use crate::{Over, connect, options};

/// Runs `pmlog` on a store and returns its exit code and output. A crash is an error.
pub(crate) fn pmlog(subcommand: &str, store: &Path, more: &[&str]) -> Result<(i32, Output)> {
    let mut command = Command::new(pmlog_binary()?);
    command.arg(subcommand).arg("--pm").arg(store).args(more);
    let output = lab::output_within(&mut command, Duration::from_secs(30))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code().with_context(|| format!("died: {}\n{stderr}", output.status))?;
    ensure!((code == 0 || code == 1) && !stderr.contains("panicked"), "code {code}\n{stderr}");
    Ok((code, output))
}

/// The records that a dump shows.
pub(crate) fn dumped(store: &Path) -> Result<(i32, Vec<Value>)> {
    let (code, output) = pmlog("dump", store, &["--json"])?;
    let lines = String::from_utf8(output.stdout)?;
    let records = lines.lines().map(|line| serde_json::from_str(line).context("not JSON"));
    Ok((code, records.collect::<Result<_>>()?))
}

/// A stopped store with some records, and what they hold.
pub(crate) fn stopped_store(lab: &Lab, cleanly: bool) -> Result<Vec<(u64, Vec<u8>)>> {
    wire::veth()?;
    let server = options(lab, Over::Dpdk, "4MiB")?.start()?;
    let mut connection = connect()?;
    let mut records = Vec::new();
    for (seed, len) in [0, 1, 32, 33, 400, 1024, 5000, 20_000, 1024, 64].into_iter().enumerate() {
        let body = noise(seed as u64, len);
        records.push((connection.append(&body)?.seq()?, body));
    }
    if cleanly {
        ensure!(server.interrupt()?.success(), "no clean end");
    } else {
        server.kill()?;
    }
    Ok(records)
}

#[test]
fn dump_shows_each_record_and_its_bytes() {
    isolated(|lab| {
        let records = stopped_store(lab, false)?;
        let store = lab.path("store.pm");
        let image = fs::read(&store)?;
        let (code, shown) = dumped(&store)?;
        ensure!(code == 0, "dump ended with {code}");
        let numbers = |key: &str| shown.iter().filter_map(|record| record[key].as_u64()).collect::<Vec<_>>();
        ensure!(numbers("seq") == records.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), "{shown:?}");
        let lengths: Vec<u64> = records.iter().map(|(_, body)| body.len() as u64).collect();
        ensure!(numbers("length") == lengths, "{shown:?}");
        for (seq, body) in &records {
            let (code, output) = pmlog("dump", &store, &["--record", &seq.to_string()])?;
            ensure!(code == 0 && output.stdout == *body, "record {seq} differs");
        }
        let (code, _) = pmlog("dump", &store, &["--record", "999999"])?;
        ensure!(code == 1, "a record that is not there was dumped");
        let (code, output) = pmlog("verify", &store, &[])?;
        ensure!(code == 0, "{}", String::from_utf8_lossy(&output.stdout));
        ensure!(fs::read(&store)? == image, "looking at a store changed it");
        Ok(())
    });
}

#[test]
fn a_store_cut_off_anywhere_is_read_as_far_as_it_goes() {
    isolated(|lab| {
        let records = stopped_store(lab, true)?;
        let image = fs::read(lab.path("store.pm"))?;
        let cut = lab.path("cut.pm");
        // Every length near the start, where the superblocks are, then wider and wider apart.
        let mut length = 0;
        while length < image.len() {
            fs::write(&cut, &image[..length])?;
            let (code, shown) = dumped(&cut)?;
            for record in &shown {
                let known = records.iter().any(|(seq, body)| {
                    record["seq"].as_u64() == Some(*seq)
                        && record["length"].as_u64() == Some(body.len() as u64)
                });
                ensure!(known, "cut at {length}: a record that never was: {record}");
            }
            let (verified, output) = pmlog("verify", &cut, &[])?;
            let said = [output.stdout, output.stderr].concat();
            ensure!(verified == 1 && !said.is_empty(), "cut at {length}: verify finds nothing wrong");
            ensure!(code == 1 || !shown.is_empty(), "cut at {length}: dump shows nothing and calls it good");
            length += if length < 1100 { 97 } else { length / 5 };
        }
        Ok(())
    });
}

#[test]
fn a_flipped_byte_of_a_record_is_found() {
    isolated(|lab| {
        let records = stopped_store(lab, true)?;
        let store = lab.path("store.pm");
        let image = fs::read(&store)?;
        for (seq, body) in records.iter().filter(|(_, body)| body.len() >= 32) {
            // Where the network put it, there it is.
            let piece = &body[..32];
            let at = image.windows(32).position(|window| window == piece);
            let at = at.with_context(|| format!("record {seq} is not in the store"))?;
            let mut flipped = image.clone();
            flipped[at + 7] ^= 0x10;
            fs::write(&store, &flipped)?;
            let (code, output) = pmlog("verify", &store, &[])?;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            ensure!(code == 1, "record {seq}: a flipped byte is called good: {said}");
            ensure!(said.contains(&seq.to_string()), "record {seq} is not named: {said}");
            let (_, shown) = dumped(&store)?;
            ensure!(shown.len() + 1 == records.len(), "record {seq}: {} others are shown", shown.len());
        }
        Ok(())
    });
}

#[test]
fn flipped_bytes_anywhere_never_make_a_tool_crash() {
    isolated(|lab| {
        let records = stopped_store(lab, false)?;
        let store = lab.path("store.pm");
        let image = fs::read(&store)?;
        let mut at = 0;
        while at < image.len() {
            let mut flipped = image.clone();
            flipped[at] ^= 0x81;
            fs::write(&store, &flipped)?;
            for (seq, body) in &records {
                // Right bytes, or none.
                if at % 5 == 0 {
                    let (code, output) = pmlog("dump", &store, &["--record", &seq.to_string()])?;
                    ensure!(code == 1 || output.stdout == *body, "byte {at}: wrong bytes of record {seq}");
                }
            }
            pmlog("verify", &store, &[])?;
            at += if at < 600 { 11 } else { image.len() / 97 };
        }
        Ok(())
    });
}

#[test]
fn a_store_in_use_is_left_alone() {
    isolated(|lab| {
        let _server = crate::serve(lab, Over::Dpdk, "16MiB")?;
        for subcommand in ["dump", "verify"] {
            let (code, output) = pmlog(subcommand, &lab.path("store.pm"), &[])?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(code == 1 && said.contains("in use"), "{subcommand}: {code} {said}");
        }
        Ok(())
    });
}
