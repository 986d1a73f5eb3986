//! Where the modes on kernel sockets put their records: each is durable before its reply.

use std::fs::File;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pmem::{RegionInfo, Shard};
use pmlog::http::Refusal;

use crate::protocol::Mark;
use crate::serve::ServeArgs;
use crate::serve::ledger::{self, Ledger, Meter};
use crate::serve::sending::Sending;

/// Where records go.
pub(super) trait Storage: Sized {
    /// What a reader of its figures should know.
    const NOTES: &'static [&'static str];
    /// Whether what came together is made durable together, and then answered; else each record is before the next request
    /// is looked at.
    const IN_BURSTS: bool = false;

    /// Opens it, or makes it.
    fn open(args: &ServeArgs) -> Result<Self>;

    /// What makes a record durable.
    fn domain(&self) -> String;

    /// Keeps a record; returns its number. It is durable, or will be with the next [`commit`](Self::commit) if records are
    /// in bursts.
    fn append(&mut self, body: &[u8]) -> Result<u64, Refusal>;

    /// Makes durable what was appended.
    fn commit(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    /// The reply with a record.
    ///
    /// # Errors
    /// There is none, or this storage gives none.
    fn read(&self, _seq: u64) -> Result<Sending, Refusal> {
        Err(Refusal::NoResource)
    }

    /// What was done so far.
    fn ledger(&mut self) -> &mut Ledger;

    /// The answer to the command for mark number `id`.
    fn mark(&self, id: u64, meter: &Meter) -> Mark;

    /// Leaves it in order.
    fn close(&mut self) -> Result<()>;
}

/// The log in persistent memory: copy, flush, entry, fence.
pub(super) struct Log {
    info: RegionInfo,
    shard: Shard,
    ledger: Ledger,
}

impl Storage for Log {
    const NOTES: &'static [&'static str] = &["one commit for each request"];

    fn open(args: &ServeArgs) -> Result<Self> {
        let (info, seed) = ledger::open(args)?;
        Ok(Self { info, shard: seed.open()?, ledger: Ledger::default() })
    }

    fn domain(&self) -> String {
        self.info.domain.to_string()
    }

    fn append(&mut self, body: &[u8]) -> Result<u64, Refusal> {
        let pending = self.shard.append_copy(body).map_err(Refusal::from)?;
        let durable = self.shard.commit().map_err(|_| Refusal::CommitFailed)?;
        self.ledger.make_room(&mut self.shard).map_err(|_| Refusal::TrimFailed)?;
        let receipt = durable.confirm(pending).map_err(|_| Refusal::CommitFailed)?;
        Ok(receipt.seq)
    }

    fn read(&self, seq: u64) -> Result<Sending, Refusal> {
        Sending::of(&self.shard, seq)
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    fn mark(&self, id: u64, meter: &Meter) -> Mark {
        self.ledger.mark(id, meter, Some(&self.shard))
    }

    fn close(&mut self) -> Result<()> {
        self.shard.checkpoint().context("the store's end could not be noted")
    }
}

/// Bytes before each record in a file: its number, its length and its checksum.
const HEADER_BYTES: usize = 16;

/// A file that goes round: writes, and then one fdatasync for all that came together.
pub(super) struct Records {
    file: File,
    len_bytes: u64,
    /// Where the next record goes.
    at: u64,
    next: u64,
    /// Whether something was written since the last fdatasync.
    is_dirty: bool,
    persist_delay: Duration,
    ledger: Ledger,
}

impl Records {
    fn write(&mut self, header: &[u8; HEADER_BYTES], body: &[u8]) -> std::io::Result<()> {
        let len = HEADER_BYTES + body.len();
        let written = rustix::io::pwritev(&self.file, &[IoSlice::new(header), IoSlice::new(body)], self.at)?;
        if written < len {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }
}

/// What the kernel says, and a client is not to know.
fn failed(error: &std::io::Error) -> Refusal {
    tracing::error!("records could not be written: {error}");
    Refusal::CommitFailed
}

impl Storage for Records {
    const NOTES: &'static [&'static str] =
        &["one fdatasync for all requests of an epoll call", "the file was written once before"];
    const IN_BURSTS: bool = true;

    /// Makes the file. It is written once as a whole, so that no later fdatasync has to write its extents, too.
    fn open(args: &ServeArgs) -> Result<Self> {
        let (path, len_bytes) = (&args.pm, args.pm_size.as_u64());
        let longest = HEADER_BYTES as u64 + args.max_record.as_u64();
        ensure!(len_bytes >= longest, "a file of {len_bytes} bytes is shorter than a record; see --pm-size");
        let failed = || format!("cannot make the file {}; see --pm and --pm-size", path.display());
        let mut file =
            File::options().read(true).write(true).create_new(true).open(path).with_context(failed)?;
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), len_bytes), &mut file)
            .with_context(failed)?;
        file.sync_all().with_context(failed)?;
        Ok(Self {
            file,
            len_bytes,
            at: 0,
            next: 1,
            is_dirty: false,
            persist_delay: Duration::from_micros(args.persist_delay_us),
            ledger: Ledger::default(),
        })
    }

    fn domain(&self) -> String {
        "fdatasync".to_owned()
    }

    fn append(&mut self, body: &[u8]) -> Result<u64, Refusal> {
        let len = (HEADER_BYTES + body.len()) as u64;
        if self.at + len > self.len_bytes {
            self.at = 0;
        }
        let seq = self.next;
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&seq.to_le_bytes());
        header[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
        header[12..].copy_from_slice(&pmem::crc32c(body).to_le_bytes());
        self.write(&header, body).map_err(|error| failed(&error))?;
        self.is_dirty = true;
        self.next += 1;
        self.at += len;
        self.ledger.pm_bytes += len;
        Ok(seq)
    }

    fn commit(&mut self) -> Result<(), Refusal> {
        if !self.is_dirty {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| failed(&error))?;
        let persisted = Instant::now();
        while !self.persist_delay.is_zero() && persisted.elapsed() < self.persist_delay {
            std::hint::spin_loop();
        }
        self.is_dirty = false;
        self.ledger.fences += 1;
        Ok(())
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    fn mark(&self, id: u64, meter: &Meter) -> Mark {
        self.ledger.mark(id, meter, None)
    }

    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}
