//! Stores on a disk whose cache a power cut empties, and on one that fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::Connection;
use pmem::{DomainChoice, LineModel, Options, Region, Shard};

use crate::vm::blocklog::{BlockLog, Entry, Left, Replay};
use crate::vm::client::{Acknowledged, Tag, append_each, fetch_each, server, wait_for_server};
use crate::vm::fixture::{Fixture, START_LIMIT};
use crate::vm::qemu::{Disk, DiskKind, Guest, Machine, Nic};

/// Enough for the NIC's ring and for what is not trimmed.
const DISK_BYTES: u64 = 24 << 20;
const CLIENTS: u64 = 6;
/// How long they append at least, and how many records.
const LOAD: Duration = Duration::from_secs(3);
const LEAST_RECORDS: usize = 200;
/// Moments of a power cut that are looked at, for each cut that the run has.
const MOMENTS: usize = 40;
/// One state of so many is written to a file and opened as a disk; the others are opened in memory.
const FILES: usize = 20;
/// What the store is written in.
const BLOCK_BYTES: u64 = 4096;
/// What is left when records are trimmed, in log entries.
const LEFT: u64 = 60;

fn machine(fixture: &Fixture<'_>, kind: DiskKind) -> Result<Machine> {
    let file = fixture.folder.join("disk.img");
    if !file.exists() {
        fs::File::create(&file)?.set_len(DISK_BYTES)?;
    }
    Ok(Machine { disk: Some(Disk { file, kind }), ..fixture.machine(Nic::E1000e)? })
}

/// pmlog on the disk, with packets by DMA into the memory that is written to it.
fn serve(guest: &mut Guest) -> Result<serde_json::Value> {
    guest.must("hugepages")?;
    guest.must("pmtool bind $NIC")?;
    guest.must("serve /dev/vda --domain disk")?;
    let health = wait_for_server(guest, START_LIMIT)?;
    let domain = health["domain"].as_str().unwrap_or_default();
    ensure!(domain.starts_with("disk"), "the persistence domain was found to be '{domain}'");
    Ok(health)
}

/// A record that was acknowledged before the disk had done more requests than that.
struct Told {
    record: Acknowledged,
    requests: u64,
}

/// A trim, and how many requests the disk had done before it was asked for, and when it was acknowledged.
struct Trim {
    before: u64,
    asked: u64,
    done: u64,
}

/// Cuts the power at many moments of one load, by writing the disk anew up to each of them.
pub(super) fn power_cuts(fixture: &Fixture<'_>) -> Result<String> {
    let path = fixture.folder.join("disk.log");
    fs::File::create(&path)?;
    let machine = machine(fixture, DiskKind::Logged(path.clone()))?;
    let mut guest = fixture.boot(&machine)?;
    serve(&mut guest)?;
    (fixture.tell)("appending");
    let log = BlockLog::open(&path)?;
    let (told, trims) = load(fixture, &log, guest.deadline())?;
    guest.cut_power()?;

    let entries = log.entries()?;
    let flushes = entries.iter().filter(|entry| **entry == Entry::Flush).count();
    let first = told.iter().map(|told| told.requests).min().context("there are some")? as usize;
    let mut chance = Chance { seed: fixture.chance(1), draws: 0 };
    let moments = fixture.cuts as usize * MOMENTS;
    let mut at: Vec<_> = (0..moments).map(|_| first + chance.below(entries.len() - first)).collect();
    at.sort_unstable();
    let mut replay = Replay::new(DISK_BYTES as usize, &entries);
    let (mut compared, mut unflushed) = (0, 0);
    for (number, &moment) in at.iter().enumerate() {
        (fixture.tell)(&format!("power cut {} of {moments}", number + 1));
        replay.advance(moment)?;
        unflushed += usize::from(replay.unflushed() > 0);
        let left =
            [Left::Anything, Left::Anything, Left::Anything, Left::Nothing, Left::Everything][number % 5];
        let image = replay.cut(left, || chance.next());
        compared += opened(fixture, image, number % FILES == 0)
            .and_then(|shard| compare(&shard, moment as u64, &told, &trims))
            .with_context(|| {
                let kept = fixture.folder.join("state.img");
                format!(
                    "a power cut after {moment} of {} requests to the disk, with {left:?} left of what no flush is behind \
                     (seed {}; that state is in {})",
                    entries.len(),
                    fixture.seed,
                    kept.display()
                )
            })?;
    }
    fs::remove_file(&path)?;
    let _ = fs::remove_file(fixture.folder.join("disk.img"));
    let _ = fs::remove_file(fixture.folder.join("state.img"));
    ensure!(unflushed * 4 >= moments, "writes were under way at {unflushed} of {moments} moments only");
    Ok(format!(
        "{} records acknowledged and {} trims; power cut at {moments} of {} requests to the disk, {flushes} of them \
         flushes, {unflushed} times amid writes: {compared} records recovered and compared, 0 lost",
        told.len(),
        trims.len(),
        entries.len(),
    ))
}

/// Has clients append, and one of them trim, for a while.
fn load(fixture: &Fixture<'_>, log: &BlockLog, deadline: Instant) -> Result<(Vec<Told>, Vec<Trim>)> {
    let (seed, stop, count) = (fixture.chance(0), AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (stop, count) = (&stop, &count);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || client(seed.wrapping_add(number << 32), log, stop, count)))
            .collect();
        let trimmer = scope.spawn(|| trimmer(log, stop));
        let end = Instant::now() + LOAD;
        let has_enough = || Instant::now() > end && count.load(Ordering::Relaxed) >= LEAST_RECORDS;
        while !has_enough() && Instant::now() < deadline && !clients.iter().any(|client| client.is_finished())
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        let mut told = Vec::new();
        for client in clients {
            told.extend(client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        let trims = trimmer.join().map_err(|_| anyhow::anyhow!("the client that trims panicked"))??;
        Ok((told, trims))
    })
}

fn client(seed: u64, log: &BlockLog, stop: &AtomicBool, count: &AtomicUsize) -> Result<Vec<Told>> {
    const LENGTHS: [usize; 7] = [1024, 20, 300, 1024, 5000, 1400, 100];
    let mut connection = Connection::open(server())?;
    let mut told = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = told.len();
        let tag = Tag { seed: seed.wrapping_add(number as u64), len: LENGTHS[number % LENGTHS.len()] };
        connection.send_append(&tag.body())?;
        let record = Acknowledged::await_append(&mut connection, tag)?;
        told.push(Told { record, requests: log.len()? });
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(told)
}

/// Trims again and again: headers are written while others append.
fn trimmer(log: &BlockLog, stop: &AtomicBool) -> Result<Vec<Trim>> {
    let mut connection = Connection::open(server())?;
    let mut trims = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        let health = connection.get("/health")?.json()?;
        let before = health["next"].as_u64().context("/health tells no next")?.saturating_sub(LEFT);
        let asked = log.len()?;
        let request = format!("DELETE /records?before={before} HTTP/1.1\r\nHost: lab\r\n\r\n");
        connection.send(request.as_bytes())?;
        let status = connection.reply()?.status;
        ensure!(status == 200, "a trim was answered with {status}");
        trims.push(Trim { before, asked, done: log.len()? });
    }
    Ok(trims)
}

/// Opens what a power cut has left.
fn opened(fixture: &Fixture<'_>, image: Vec<u8>, as_disk: bool) -> Result<Shard> {
    let path = fixture.folder.join("state.img");
    if !as_disk {
        let shard = Region::over(LineModel::from_image(image.clone()), &Options::default())?.into_shard();
        // To be looked at.
        return shard.or_else(|error| {
            fs::write(&path, &image)?;
            bail!(error)
        });
    }
    fs::write(&path, image)?;
    let options = Options { domain: DomainChoice::Disk, ..Options::default() };
    Ok(Region::open(path, &options)?.into_shard()?)
}

/// Checks that what was acknowledged is there, and nothing that nobody sent; returns how many records are there.
fn compare(shard: &Shard, moment: u64, told: &[Told], trims: &[Trim]) -> Result<usize> {
    ensure!(shard.recovery().quarantined == 0, "damaged: {:?}", shard.quarantines().iter().next());
    let mut found = BTreeMap::new();
    for info in shard.records(0) {
        let record = shard.record(info.seq).with_context(|| format!("record {} cannot be read", info.seq))?;
        found.insert(info.seq, record.to_vec());
    }
    let trimmed = |time: fn(&Trim) -> u64| {
        trims.iter().filter(|trim| time(trim) <= moment).map(|trim| trim.before).max().unwrap_or(0)
    };
    let (may_be_gone, is_gone) = (trimmed(|trim| trim.asked), trimmed(|trim| trim.done));
    ensure!(
        shard.head_seq() >= is_gone,
        "the log begins with {}, though {is_gone} was trimmed",
        shard.head_seq()
    );
    for Told { record, .. } in
        told.iter().filter(|told| told.requests <= moment && told.record.seq >= may_be_gone)
    {
        let bytes = found.get(&record.seq).with_context(|| format!("record {} is lost", record.seq))?;
        ensure!(*bytes == record.tag.body(), "record {} has changed", record.seq);
    }
    let known: BTreeMap<_, _> = told.iter().map(|told| (told.record.seq, told.record.tag)).collect();
    for (seq, bytes) in &found {
        // What was sent and not acknowledged may be there.
        let tag = known.get(seq).copied().or_else(|| Tag::of(bytes));
        let is_sent = tag.is_some_and(|tag| tag.len == bytes.len() && tag.body() == *bytes);
        ensure!(is_sent, "record {seq} holds {} bytes that nobody sent", bytes.len());
    }
    Ok(found.len())
}

struct Chance {
    seed: u64,
    draws: u64,
}

impl Chance {
    fn next(&mut self) -> u64 {
        self.draws += 1;
        let bytes = lab::noise(self.seed.wrapping_add(self.draws), 8);
        bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// A bad sector, a write that fails and a flush that fails, each on the same store.
pub(super) fn errors(fixture: &Fixture<'_>) -> Result<String> {
    let plain = machine(fixture, DiskKind::Plain)?;
    let path = fixture.folder.join("disk.img");
    let mut guest = fixture.boot(&plain)?;
    serve(&mut guest)?;
    let lengths = [20, 1024, 300, 1400, 5000, 1024, 100_000, 1024];
    let mut records = append_each(lengths, fixture.chance(0))?;
    guest.must("stop")?;
    guest.power_off()?;

    (fixture.tell)("a sector that cannot be read");
    let bad = records[5];
    let at = place_of(&path, &bad.tag.body()[..64])?;
    let failing = |requests, at| machine(fixture, DiskKind::Failing { requests, at });
    let mut guest = fixture.boot(&failing("read", Some(at))?)?;
    let health = serve(&mut guest)?;
    ensure!(health["damaged"] == 1, "{health}");
    let reply = Connection::open(server())?.get(&format!("/records/{}", bad.seq))?;
    let said = String::from_utf8_lossy(&reply.body).into_owned();
    ensure!(reply.status == 410 && said.contains(&bad.seq.to_string()), "{}: {said}", reply.status);
    let sound: Vec<_> = records.iter().filter(|record| record.seq != bad.seq).copied().collect();
    fetch_each(&sound)?;
    let said = guest.must("cat /tmp/server.out")?;
    for words in ["not all of the disk can be read", &format!("record {} is damaged", bad.seq)] {
        ensure!(said.contains(words), "pmlog does not say '{words}':\n{said}");
    }
    records = sound;
    records.extend(append_each([1024, 300], fixture.chance(1))?);
    fetch_each(&records)?;
    guest.must("stop")?;
    // What was read as zeros is written by nobody: the sector holds what it did.
    guest.power_off()?;

    (fixture.tell)("a write that fails");
    // The block of the log behind the one with this record, which lies in its entry.
    let at = place_of(&path, &records[0].tag.body())? / BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES;
    let mut guest = fixture.boot(&failing("write", Some(at))?)?;
    serve(&mut guest)?;
    let more = BLOCK_BYTES as usize / 64 + 10;
    let mut connection = Connection::open(server())?;
    let before = records.len();
    let failed = (0..2 * more).find_map(|number| {
        let tag = Tag { seed: fixture.chance(2).wrapping_add(number as u64), len: 20 };
        let told = connection
            .send_append(&tag.body())
            .and_then(|()| Acknowledged::await_append(&mut connection, tag));
        told.map(|record| records.push(record)).err()
    });
    let acknowledged = records.len() - before;
    ensure!(failed.is_some() && acknowledged > 0, "{acknowledged} appends were acknowledged: {failed:?}");
    let again = Connection::open(server())?.append(b"once more")?.status;
    ensure!(again >= 500, "an append after the failure was answered with {again}");
    let health = Connection::open(server())?.get("/health")?.json()?;
    let reason = health["reason"].as_str().unwrap_or_default();
    ensure!(health["status"] == "failed" && reason.contains("os error 5"), "{health}");
    guest.cut_power()?;

    (fixture.tell)("a flush that fails");
    let mut guest = fixture.boot(&failing("flush", None)?)?;
    let refusal =
        guest.run("pmlog serve --transport kernel --listen 127.0.0.1:80 --pm /dev/vda --domain disk")?;
    ensure!(
        refusal.status == 1 && refusal.text.contains("os error 5"),
        "on a disk that does not flush, pmlog ends with {}:\n{}",
        refusal.status,
        refusal.text
    );
    guest.cut_power()?;

    (fixture.tell)("a sound disk");
    let mut guest = fixture.boot(&plain)?;
    serve(&mut guest)?;
    fetch_each(&records)?;
    guest.must("stop")?;
    guest.power_off()?;
    let _ = fs::remove_file(&path);
    Ok(format!(
        "a bad sector cost record {} and no other; {acknowledged} appends acknowledged before a write failed, none after it",
        bad.seq
    ))
}

/// Where a file holds these bytes.
fn place_of(path: &PathBuf, bytes: &[u8]) -> Result<u64> {
    let image = fs::read(path)?;
    let at = image.windows(bytes.len()).position(|window| window == bytes);
    Ok(at.context("the bytes are not on the disk")? as u64)
}
