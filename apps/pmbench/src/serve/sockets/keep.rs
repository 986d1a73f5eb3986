//! Where the modes on kernel sockets put their records: a request at a time, durable before its reply.

use anyhow::{Context as _, Result};
use pmem::{RegionInfo, Shard};
use pmlog::http::Refusal;

use crate::protocol::Mark;
use crate::serve::ServeArgs;
use crate::serve::ledger::{self, Ledger, Meter};
use crate::serve::requests::refusal;

/// A place for records.
pub(super) trait Keep {
    /// Makes a record durable; returns its number.
    fn keep(&mut self, body: &[u8]) -> Result<u64, Refusal>;

    /// What was done so far.
    fn ledger(&mut self) -> &mut Ledger;

    /// The answer to the wish for mark number `id`.
    fn mark(&self, id: u64, meter: &Meter) -> Mark;

    /// Leaves the place in order.
    fn close(&mut self) -> Result<()>;
}

/// The log in persistent memory: copy, flush, entry, fence.
pub(super) struct Log {
    shard: Shard,
    ledger: Ledger,
}

impl Log {
    pub(super) fn open(args: &ServeArgs) -> Result<(RegionInfo, Self)> {
        let (info, seed) = ledger::open(args)?;
        Ok((info, Self { shard: seed.open()?, ledger: Ledger::default() }))
    }
}

impl Keep for Log {
    fn keep(&mut self, body: &[u8]) -> Result<u64, Refusal> {
        let pending = self.shard.append_copy(body).map_err(|error| refusal(&error))?;
        let durable = self.shard.commit().map_err(|_| Refusal::CommitFailed)?;
        self.ledger.make_room(&mut self.shard).map_err(|_| Refusal::TrimFailed)?;
        let receipt = durable.confirm(pending).map_err(|_| Refusal::CommitFailed)?;
        Ok(receipt.seq)
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
