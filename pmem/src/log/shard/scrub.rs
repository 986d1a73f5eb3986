//! Scrubbing: payload that nobody read when the shard was opened is read piece by piece, while the shard is used.

use std::{fmt, ops::Range};

use super::Shard;
use crate::{
    format::entry::ENTRY_BYTES,
    log::{
        quarantine::Quarantine,
        record::{CheckedPieces, Lookup},
    },
};

/// What a step of scrubbing has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scrubbed {
    /// Payload bytes that were read.
    pub bytes: u64,
    /// A record that was found damaged, and is in quarantine now. The step ended with it.
    pub damage: Option<Quarantine>,
}

/// Records whose payload is still to be read.
pub(super) struct Unread {
    entries: Range<u64>,
    /// The one that is being read.
    record: Option<Box<CheckedPieces>>,
}

impl Unread {
    pub(super) fn new(entries: Range<u64>) -> Self {
        Self { entries, record: None }
    }
}

impl Shard {
    /// Whether there is payload that nobody has read since the shard was opened: see
    /// [`Options::trust_durable`](crate::Options::trust_durable).
    #[inline]
    pub fn is_scrubbed(&self) -> bool {
        self.unread.entries.is_empty() && self.unread.record.is_none()
    }

    /// Whether nobody has read a record's payload since the shard was opened, as far as scrubbing goes: damage in it may be
    /// older than this opening.
    pub fn is_unread(&self, seq: u64) -> bool {
        self.unread.entries.contains(&seq)
    }

    /// Reads payload that nobody has read since the shard was opened, and checks it: so many bytes, up to the end of a log
    /// entry's. What is damaged is taken into quarantine.
    pub fn scrub(&mut self, max_bytes: u64) -> Scrubbed {
        let mut done = Scrubbed::default();
        while done.bytes < max_bytes && !self.is_scrubbed() {
            let damage = match self.unread.record.as_mut().map(|record| record.next()) {
                Some(Some(Ok(piece))) => {
                    done.bytes += piece.bytes().len() as u64;
                    continue;
                }
                Some(ended) => {
                    self.unread.record = None;
                    ended.and_then(Result::err)
                }
                None => {
                    // An entry without payload is work, too.
                    done.bytes += ENTRY_BYTES as u64;
                    self.begin_unread()
                }
            };
            if let Some(damage) = damage.filter(|&damage| self.quarantine(damage)) {
                done.damage = Some(damage);
                return done;
            }
        }
        done
    }

    /// Begins with the next record that is unread. What cannot be read any more comes back.
    fn begin_unread(&mut self) -> Option<Quarantine> {
        let Range { start, end } = self.unread.entries;
        let seq = self.quarantined.skip(start.max(self.head), end.max(self.head)).min(end);
        self.unread.entries.start = seq + 1;
        if seq >= end {
            return None;
        }
        match self.lookup(seq) {
            Lookup::Live(record) => {
                self.unread.entries.start = seq + record.info().entries;
                record.places().for_each(|place| self.ahead.expect(place.start));
                self.unread.record = Some(Box::new(record.into_checked_pieces()));
                None
            }
            Lookup::Quarantined(damage) => {
                self.unread.entries.start = seq + damage.entries.max(1);
                Some(damage)
            }
            Lookup::Trimmed | Lookup::NotYet | Lookup::NoRecord => None,
        }
    }
}

impl fmt::Debug for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unread").field("entries", &self.entries).finish_non_exhaustive()
    }
}
