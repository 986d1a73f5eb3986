//! The Linux client on the host: requests whose bodies can be told apart for ever, and load from several connections.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::Connection;

use super::qemu::Guest;

/// A body's name, from which its bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// Seed of its bytes, different for each body of a run.
    pub seed: u64,
    /// Length in bytes.
    pub len: usize,
}

impl Tag {
    /// The bytes: noise that begins with the name, where there is room for it.
    pub fn body(self) -> Vec<u8> {
        let mut bytes = lab::noise(self.seed, self.len);
        if self.len >= 16 {
            bytes[..8].copy_from_slice(&self.seed.to_le_bytes());
            bytes[8..16].copy_from_slice(&(self.len as u64).to_le_bytes());
        }
        bytes
    }

    /// The name that a body of 16 bytes or more begins with.
    pub fn of(body: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
        Some(Self { seed: word(0)?, len: usize::try_from(word(8)?).ok()? })
    }
}

/// A record that the server has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Its sequence number.
    pub seq: u64,
    /// Its shard, where there are several.
    pub shard: Option<u64>,
    /// What it holds.
    pub tag: Tag,
}

impl Acknowledged {
    /// Appends the body and waits until it is acknowledged.
    fn append(connection: &mut Connection, tag: Tag) -> Result<Self> {
        connection.send_append(&tag.body())?;
        Self::await_append(connection, tag)
    }

    /// Waits until an append that was sent is acknowledged.
    ///
    /// # Errors
    /// It is not.
    pub fn await_append(connection: &mut Connection, tag: Tag) -> Result<Self> {
        let reply = connection.reply()?;
        let seq = reply.seq().with_context(|| format!("an append of {} bytes", tag.len))?;
        Ok(Self { seq, shard: reply.json()?["shard"].as_u64(), tag })
    }

    /// What the server calls it.
    fn name(&self) -> String {
        self.shard.map_or(String::new(), |shard| format!("{shard}-")) + &self.seq.to_string()
    }
}

/// Where the guest's server listens.
pub fn server() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(lab::wire::SERVER_V4), 80)
}

/// Waits until pmlog in the guest answers, and returns what it says of itself.
///
/// # Errors
/// It ended instead, or had not answered after `limit`; the message has its output.
pub fn wait_for_server(guest: &mut Guest, limit: Duration) -> Result<serde_json::Value> {
    let end = Instant::now() + limit;
    loop {
        let answer = Connection::open(server()).and_then(|mut connection| connection.get("/health"));
        match answer {
            Ok(reply) if reply.status == 200 => return reply.json(),
            Ok(reply) => bail!("/health answers with status {}", reply.status),
            Err(_) => {}
        }
        let state = guest.run("cat /tmp/server.status 2>/dev/null || echo running")?;
        if state.text.trim() != "running" || Instant::now() > end {
            let said = guest.run("cat /tmp/server.out")?.text;
            bail!("pmlog does not answer (exit code: {}); it said:\n{said}", state.text.trim());
        }
    }
}

/// Posts a body of each length, and returns what was acknowledged.
///
/// # Errors
/// One was not.
pub fn append_each(lengths: impl IntoIterator<Item = usize>, seed: u64) -> Result<Vec<Acknowledged>> {
    let mut connection = Connection::open(server())?;
    let mut acknowledged = Vec::new();
    for (at, len) in lengths.into_iter().enumerate() {
        let tag = Tag { seed: seed.wrapping_add(at as u64), len };
        acknowledged.push(Acknowledged::append(&mut connection, tag)?);
    }
    Ok(acknowledged)
}

/// Fetches each record and compares every byte.
///
/// # Errors
/// The first record that is not what was sent.
pub fn fetch_each(records: &[Acknowledged]) -> Result<()> {
    /// Requests on their way at a time: one by one, most of the time would go by waiting.
    const PIPELINED: usize = 16;
    let mut connection = Connection::open(server())?;
    for records in records.chunks(PIPELINED) {
        for record in records {
            connection.send_get(&format!("/records/{}", record.name()))?;
        }
        for record in records {
            let (name, reply) = (record.name(), connection.reply()?);
            ensure!(reply.status == 200, "record {name} is gone: status {}", reply.status);
            let expected = record.tag.body();
            ensure!(
                reply.body == expected,
                "record {name}: {} bytes came back that are not the {} sent",
                reply.body.len(),
                expected.len()
            );
        }
    }
    Ok(())
}

/// Connections that append without pause.
pub struct Load {
    workers: Vec<JoinHandle<Vec<Acknowledged>>>,
    acknowledged: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Starts `connections` of them with bodies of a KiB or a few; `seed` is the first body's.
    pub fn start(connections: u64, seed: u64) -> Self {
        let (acknowledged, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let workers = (0..connections).map(|number| {
            let (count, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
            // A worker's bodies have seeds of their own, far from the next one's.
            let first = seed.wrapping_add(number << 32);
            std::thread::spawn(move || work(first, &count, &stop))
        });
        Self { workers: workers.collect(), acknowledged, stop }
    }

    /// How many appends have been acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the load and returns every acknowledged record.
    ///
    /// # Errors
    /// A worker panicked.
    pub fn finish(self) -> Result<Vec<Acknowledged>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for worker in self.workers {
            all.extend(worker.join().map_err(|_| anyhow::anyhow!("a client of the load panicked"))?);
        }
        Ok(all)
    }
}

/// Appends until told to stop or until the server is gone; what it was told is durable counts, nothing else.
fn work(seed: u64, count: &AtomicUsize, stop: &AtomicBool) -> Vec<Acknowledged> {
    const LENGTHS: [usize; 4] = [1024, 64, 1024, 5000];
    let mut acknowledged = Vec::new();
    let Ok(mut connection) = Connection::open(server()) else { return acknowledged };
    // When the power is cut nobody says so: a short wait for replies keeps the end of the load short.
    let _ = connection.stream().set_read_timeout(Some(Duration::from_secs(3)));
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let tag = Tag { seed: seed.wrapping_add(number), len: LENGTHS[number as usize % LENGTHS.len()] };
        let Ok(record) = Acknowledged::append(&mut connection, tag) else { break };
        acknowledged.push(record);
        count.fetch_add(1, Ordering::Relaxed);
        number += 1;
    }
    acknowledged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_tells_its_name() {
        let tag = Tag { seed: 0x1234_5678_9abc, len: 1024 };
        assert_eq!(Tag::of(&tag.body()), Some(tag));
        assert_eq!(tag.body().len(), 1024);
        assert_ne!(tag.body()[16..], Tag { seed: 1, ..tag }.body()[16..]);
        assert_eq!(Tag::of(&[0; 15]), None);
    }
}
