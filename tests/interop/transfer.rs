//! Bytes there and back, by curl and ping.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::wire::{SERVER_V4, SERVER_V6, TAP_DEVICE};
use lab::{Lab, isolated, noise, run, wire};

use crate::{Over, cable, compare, connect, health_of, options, over_each_transport, post, serve};

over_each_transport! {
    a_record_of_100_mb_over_ipv4,
    a_hundred_mb_in_records_over_ipv6,
    odd_lengths_are_kept,
    payload_is_not_copied_on_its_way_to_the_store,
    a_payload_that_is_altered_in_the_file_is_not_served,
}

const V4: IpAddr = IpAddr::V4(SERVER_V4);
const V6: IpAddr = IpAddr::V6(SERVER_V6);

/// All of them, or an error.
fn ping(address: IpAddr, payload_bytes: &str) -> Result<()> {
    let address = address.to_string();
    run("ping", ["-c", "5", "-i", "0.2", "-w", "20", "-s", payload_bytes, &address]).map(drop)
}

fn a_record_of_100_mb_over_ipv4(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    let _server = options(lab, over, "512MiB")?.option("--max-record", "128MiB").start()?;
    let body = noise(4, 100_000_000);
    let seq = post(V4, lab, "body", &body)?;
    compare(V4, seq, &body)
}

fn a_hundred_mb_in_records_over_ipv6(lab: &Lab, over: Over) -> Result<()> {
    let _server = serve(lab, over, "512MiB")?;
    let bytes = noise(6, 100_000_000);
    let records: Vec<&[u8]> = bytes.chunks(16 << 20).collect();
    let mut numbers = Vec::new();
    for body in &records {
        numbers.push(post(V6, lab, "body", body)?);
    }
    for (seq, body) in numbers.into_iter().zip(records) {
        compare(V6, seq, body)?;
    }
    Ok(())
}

fn odd_lengths_are_kept(lab: &Lab, over: Over) -> Result<()> {
    let _server = serve(lab, over, "64MiB")?;
    let mut posted = Vec::new();
    for len in [0, 1, 31, 32, 33, 511, 512, 1023, 1024, 1447, 1448, 1449, 2896, 65_535, 65_536, 1 << 20] {
        let body = noise(len as u64, len);
        posted.push((post(V4, lab, "body", &body)?, body));
    }
    for (seq, body) in posted {
        compare(V4, seq, &body)?;
        compare(V6, seq, &body)?;
    }
    Ok(())
}

fn payload_is_not_copied_on_its_way_to_the_store(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "64MiB")?;
    ensure!(health_of(&server, "copied_bytes")? == 0, "copied before anything was sent");
    let mut sum = 0;
    for len in [1 << 10, 10 << 10, 1 << 20] {
        let body = noise(len as u64, len);
        let seq = post(V4, lab, "body", &body)?;
        sum += body.len() as u64;
        compare(V4, seq, &body)?;
        ensure!(health_of(&server, "payload_bytes")? == sum, "payload not counted: {}", server.health()?);
        ensure!(health_of(&server, "copied_bytes")? == 0, "copied: {}", server.health()?);
    }
    // The counter counts: a small record is packed together with others.
    post(V4, lab, "body", &noise(9, 200))?;
    ensure!(health_of(&server, "copied_bytes")? == 200, "{}", server.health()?);
    Ok(())
}

#[test]
fn ping_is_answered() {
    isolated(|lab| {
        let _server = serve(lab, Over::Dpdk, "64MiB")?;
        for payload_bytes in ["0", "56", "1400"] {
            ping(V4, payload_bytes)?;
            ping(V6, payload_bytes)?;
        }
        Ok(())
    });
}

#[test]
fn a_tap_interface_does_as_well() {
    isolated(|lab| {
        let mut server = options(lab, Over::Dpdk, "64MiB")?.device(TAP_DEVICE).spawn()?;
        wire::tap()?;
        server.wait_for_answer()?;
        ping(V4, "56")?;
        ping(V6, "56")?;
        for address in [V4, V6] {
            let body = noise(7, 10 << 20);
            let seq = post(address, lab, "body", &body)?;
            compare(address, seq, &body)?;
        }
        Ok(())
    });
}

/// Changes a byte of a store in its file, where that has the bytes from `at` on.
fn alter(store: &Path, bytes: &[u8], at: usize) -> Result<()> {
    let image = std::fs::read(store)?;
    // They may be cut there, where one buffer ends and another begins.
    let mut parts = (at..bytes.len()).step_by(16).map(|from| &bytes[from..from + 16]);
    let place = parts.find_map(|part| image.windows(16).position(|window| window == part));
    let place = place.context("the bytes are not in the file")?;
    let file = File::options().write(true).open(store)?;
    Ok(file.write_all_at(&[image[place] ^ 1], place as u64)?)
}

fn a_payload_that_is_altered_in_the_file_is_not_served(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "16MiB")?;
    let bodies = [noise(1, 2000), noise(2, 2_000_000), noise(3, 2000)];
    let mut numbers = Vec::new();
    for body in &bodies {
        numbers.push(post(V4, lab, "body", body)?);
    }
    let short = connect()?.get(&format!("/records/{}", numbers[0]))?;
    ensure!(short.status == 200 && short.body == bodies[0], "status {}", short.status);
    let digest = short.header("content-digest").context("no Content-Digest")?;
    ensure!(digest.starts_with("crc32c=:") && digest.ends_with("==:"), "{digest}");

    alter(&lab.path("store.pm"), &bodies[0], 1000)?;
    alter(&lab.path("store.pm"), &bodies[1], 1_000_000)?;
    let refused = connect()?.get(&format!("/records/{}", numbers[0]))?;
    ensure!(refused.status == 500, "status {}", refused.status);
    let long = connect()?.get(&format!("/records/{}", numbers[1]));
    ensure!(long.is_err(), "an altered record came as if it were whole");
    for seq in &numbers[..2] {
        let status = connect()?.get(&format!("/records/{seq}"))?.status;
        ensure!(status == 410, "record {seq}: status {status}");
    }
    compare(V4, numbers[2], &bodies[2])?;
    ensure!(health_of(&server, "altered")? == 2, "{}", server.health()?);
    ensure!(server.output().contains("something else wrote into the store"), "{}", server.output());
    Ok(())
}
