//! What a copy of another shard needs: records that keep their numbers and epochs.

use super::Shard;
use crate::{
    format::{entry::Entry, header::Header},
    log::{error::AppendError, tally::Tally},
};

impl Shard {
    /// Goes on as another shard did: what is appended next has this number, and is of this epoch. A log that is empty begins
    /// there; in another the numbers between are taken for dropped ones. False, and nothing is changed, if number or epoch
    /// lie behind.
    ///
    /// What was appended before may be made durable by this.
    ///
    /// # Errors
    /// [`AppendError`]: the log has no room for the numbers between, or the medium failed.
    pub fn continue_at(&mut self, epoch: u32, seq: u64) -> Result<bool, AppendError> {
        let is_last_epoch = epoch == u32::MAX;
        if seq < self.next || epoch < self.epoch() || is_last_epoch {
            return Ok(false);
        }
        if self.head == self.next && self.held == self.head && seq > self.next {
            self.begin_at(epoch, seq)?;
        } else if epoch > self.epoch() {
            self.commit().map_err(poisoned)?;
            self.persist_as(Header { epoch, first_seq: self.next, ..self.header.current() })?;
        }
        while self.next < seq {
            self.has_entries(1)?;
            let taken = Entry {
                durable_seq: self.committed - 1,
                ..Entry::dropped(self.next, self.time_s, self.epoch())
            };
            self.ring.write(&taken);
            self.flush_entries(1);
            self.next += 1;
            self.tally.go_on(self.next);
        }
        Ok(true)
    }

    /// Has an empty log begin at a later number.
    fn begin_at(&mut self, epoch: u32, seq: u64) -> Result<(), AppendError> {
        self.persist_as(Header { epoch, first_seq: seq, head: seq, ..self.header.current() })?;
        self.tally = Tally::new(self.ring.slots(), seq);
        self.before_head = Default::default();
        (self.head, self.held, self.next, self.committed) = (seq, seq, seq, seq);
        self.set_write_end();
        Ok(())
    }

    /// Makes durable a header of an epoch that begins now.
    fn persist_as(&mut self, header: Header) -> Result<(), AppendError> {
        self.sound().map_err(poisoned)?;
        // All before its first entry is durable.
        let persisted = self.header.persist(Header { durable_seq: header.first_seq - 1, ..header });
        self.counters.fences += persisted.as_ref().copied().unwrap_or(1);
        self.fenced(persisted.map(|_| ())).map_err(poisoned)?;
        self.set_write_end();
        Ok(())
    }
}

fn poisoned(error: impl ToString) -> AppendError {
    AppendError::Poisoned { why: error.to_string().into() }
}
