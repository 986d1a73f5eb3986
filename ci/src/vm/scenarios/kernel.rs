//! Servers on the guest's own TCP, with the guest's own driver of the NIC: what the stack here is compared with.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::Connection;

use super::power::cut_under_load;
use crate::vm::client::{Acknowledged, Load, Tag, append_each, fetch_each, server, wait_for_server};
use crate::vm::evidence::find_all;
use crate::vm::fixture::{Fixture, START_LIMIT, end_sound, ended, lengths, recognisable, wait_for_line};
use crate::vm::qemu::{Guest, Nic};

/// How often this scenario cuts the power.
const CUTS: u32 = 1;
/// Appends of several connections at a time.
const LOADED_APPENDS: usize = 300;

/// pmlog with `--transport kernel`: io_uring receives into buffers that are device-DAX memory, and long replies are
/// sent out of it.
pub(super) fn transport(fixture: &Fixture<'_>) -> Result<String> {
    // A card that gathers a frame from several places: for one that does not, the kernel copies without a word.
    let machine = fixture.machine(Nic::E1000e)?;
    let mut guest = fixture.boot(&machine)?;
    serve(&mut guest)?;
    let health = wait_for_server(&mut guest, START_LIMIT)?;
    (fixture.tell)("appending");
    let records = append_each(lengths(), fixture.chance(0))?;
    fetch_each(&records)?;
    let after = Connection::open(server())?.get("/health")?.json()?;
    let count = |name: &str| {
        let number = |health: &serde_json::Value| health[name].as_u64();
        let (before, after) =
            number(&health).zip(number(&after)).with_context(|| format!("/health tells no {name}"))?;
        anyhow::Ok(after - before)
    };
    ensure!(
        count("flushed_lines")? > 0 && count("fences")? > 0,
        "nothing was flushed to device-DAX: {after}"
    );
    guest.must("stop")?;
    let ended = ended(&mut guest)?;
    let total =
        |name: &str| ended[name].as_u64().with_context(|| format!("pmlog's end tells no {name}: {ended}"));
    let longest = records.iter().map(|record| record.tag.len).max().unwrap_or_default() as u64;
    let in_place = total("sent_in_place_bytes")?;
    ensure!(in_place >= longest / 2, "only {in_place} bytes were sent from where they lie: {ended}");
    end_sound(guest)?;
    (fixture.tell)("searching the medium");
    let bytes = find_all(&machine.file, &recognisable(&records))?;

    let cut = cut_under_load(fixture, Nic::Virtio, CUTS, serve)?;
    Ok(format!(
        "{} appends by io_uring into /dev/dax0.0, {bytes} payload bytes found in its file, {in_place} sent in place; {cut}",
        records.len()
    ))
}

fn serve(guest: &mut Guest) -> Result<String> {
    guest.must("devdax")?;
    guest.must("serve_kernel /dev/dax0.0 --json")
}

/// pmbench with `--mode kcm`: the kernel cuts requests out of the streams, as a BPF program tells it where they end.
pub(super) fn multiplexor(fixture: &Fixture<'_>) -> Result<String> {
    let machine = fixture.machine(Nic::E1000e)?;
    let mut guest = fixture.boot(&machine)?;
    guest.must("devdax")?;
    // A whole system's kernel loads it when it is first asked for.
    guest.must("modprobe kcm")?;
    guest.must("serve_bench kcm /dev/dax0.0")?;
    wait_for_line(&mut guest, r#""event":"ready""#)?;

    (fixture.tell)("appending");
    let mut records = append_each(bench_lengths(), fixture.chance(0))?;
    let load = Load::start(8, fixture.chance(1));
    while load.acknowledged() < LOADED_APPENDS {
        ensure!(Instant::now() < guest.deadline(), "only {} appends were acknowledged", load.acknowledged());
        std::thread::sleep(Duration::from_millis(10));
    }
    records.extend(load.finish()?);
    records.extend(cut_anywhere(fixture.chance(2))?);
    let numbers: BTreeSet<_> = records.iter().map(|record| record.seq).collect();
    ensure!(numbers.len() == records.len(), "two of {} records have one number", records.len());

    guest.must("echo mark 1 >/tmp/server.in")?;
    let mark: serde_json::Value = serde_json::from_str(&wait_for_line(&mut guest, r#""event":"mark""#)?)?;
    let total = |name: &str| mark[name].as_u64().with_context(|| format!("the mark tells no {name}: {mark}"));
    let sent: usize = records.iter().map(|record| record.tag.len).sum();
    ensure!(total("requests")? == records.len() as u64, "{} requests were sent: {mark}", records.len());
    ensure!(total("payload_bytes")? == sent as u64, "{sent} bytes were sent: {mark}");
    ensure!(total("errors")? == 0 && total("flushed_lines")? > 0, "a bad account: {mark}");
    let messages = messages_cut(&mut guest)?;
    ensure!(messages == records.len() as u64, "the kernel cut {messages} requests out, of {}", records.len());

    (fixture.tell)("sending what cannot be cut out");
    let refused = refused_by_framer()?;
    records.extend(served_after_visitors(fixture.chance(3))?);
    guest.must("echo mark 2 >/tmp/server.in")?;
    let mark: serde_json::Value =
        serde_json::from_str(&wait_for_line(&mut guest, r#""event":"mark","id":2"#)?)?;
    ensure!(mark["requests"].as_u64() == Some(records.len() as u64), "of {} requests: {mark}", records.len());
    ensure!(mark["errors"].as_u64() == Some(refused), "of {refused} bad requests: {mark}");
    guest.must("stop")?;
    guest.must("pmlog verify --pm /dev/dax0.0")?;
    guest.power_off()?;
    (fixture.tell)("searching the medium");
    let bytes = find_all(&machine.file, &recognisable(&records))?;
    Ok(format!(
        "{} requests cut out by the kernel and kept, {bytes} payload bytes found in /dev/dax0.0; {refused} connections \
         ended that sent others",
        records.len()
    ))
}

/// How many messages the kernel's multiplexors have handed out.
fn messages_cut(guest: &mut Guest) -> Result<u64> {
    let table = guest.must("cat /proc/net/kcm_stats")?;
    // "MUX RX-Msgs ...", and below it the numbers, which have no name before them.
    let mut lines = table.lines();
    let is_as_known = lines.next().is_some_and(|line| line.split_whitespace().take(2).eq(["MUX", "RX-Msgs"]));
    let count = lines.next().and_then(|line| line.split_whitespace().next()?.parse().ok());
    count.filter(|_| is_as_known).with_context(|| format!("the multiplexor's table is another one:\n{table}"))
}

/// Lengths up to what pmbench takes.
fn bench_lengths() -> impl Iterator<Item = usize> {
    [1, 100].into_iter().chain(std::iter::repeat_n(1024, 100)).chain([5000, 20_000, 60_000])
}

/// Requests whose heads and bodies are cut into many segments, one after the other over one connection.
fn cut_anywhere(seed: u64) -> Result<Vec<Acknowledged>> {
    const PIECE_BYTES: usize = 33;
    let mut connection = Connection::open(server())?;
    let append = |at: u64| {
        let tag = Tag { seed: seed.wrapping_add(at), len: 64 + 97 * at as usize };
        // The first field is about something else.
        let fields = format!("X-Content-Length: 1\r\ncontent-length: {}\r\nHost: lab\r\n", tag.len);
        let head = format!("POST /append HTTP/1.1\r\n{fields}\r\n");
        for piece in [head.into_bytes(), tag.body()].concat().chunks(PIECE_BYTES) {
            connection.send(piece)?;
        }
        Acknowledged::await_append(&mut connection, tag)
    };
    (0..20).map(append).collect()
}

/// Sends what the kernel cannot cut out, each over a connection of its own, and waits for its end. Returns how many.
fn refused_by_framer() -> Result<u64> {
    let request = |fields: &str| format!("POST /append HTTP/1.1\r\nHost: lab\r\n{fields}\r\n");
    let whole = request("Content-Length: 3\r\n") + "abc";
    let refused = [
        // A next request before the reply.
        whole.repeat(2),
        request("Content-Length: 3\r\nContent-Length: 3\r\n") + "abc",
        request("Content-Length: three\r\n") + "abc",
        request("Content-Length: 70000\r\n"),
        request(&format!("A: {}\r\n", "b".repeat(1100))),
    ];
    for text in &refused {
        let mut connection = Connection::open(server())?;
        connection.send(text.as_bytes())?;
        let beginning = || text.chars().take(100).collect::<String>();
        match connection.stream().read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Ok(_) => bail!("an answer to {:?}", beginning()),
            Err(error) => return Err(error).with_context(|| format!("no end after {:?}", beginning())),
        }
    }
    Ok(refused.len() as u64)
}

/// Leaves again at once, more often than the server has places; then appends.
fn served_after_visitors(seed: u64) -> Result<Vec<Acknowledged>> {
    const VISITORS: u32 = 1100;
    for number in 0..VISITORS {
        let visitor = Connection::open(server()).with_context(|| format!("visitor {number}"))?;
        drop(visitor);
    }
    append_each([1024], seed)
}
