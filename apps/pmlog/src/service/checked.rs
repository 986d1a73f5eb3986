//! Records as they are given: no byte leaves that is not the one which was stored, as far as checksums tell.
//!
//! Each log entry has the checksum of its record's bytes up to the entry's end. A piece is checked with its entry's
//! others before it is sent, and the first of a record before its status line: a short record is refused as a whole,
//! and a long one breaks off before the first piece that has changed.

use std::collections::VecDeque;
use std::time::Duration;

use pmem::{CheckedPieces, Lookup, Piece, Quarantine, Record, Shard};
use stack::time::Instant;

use crate::http::Refusal;

/// Bytes of a record that are checked before anything of the reply goes out.
const AHEAD_BYTES: usize = 64 * 1024;
/// Between two messages about records that have changed; all are counted.
const QUIET: Duration = Duration::from_secs(1);

/// A record's bytes, checked before they are given.
pub(super) struct Checked {
    len_bytes: u64,
    crc32c: u32,
    /// Those that are checked.
    ahead: VecDeque<Piece>,
    rest: CheckedPieces,
}

/// Why a record cannot be read, and what was found to have changed just now, if that is why.
pub(super) struct Unreadable {
    pub(super) refusal: Refusal,
    pub(super) found: Option<Quarantine>,
}

impl Checked {
    /// Looks a record up, and checks the first of it. What has changed under the server is taken out of what is
    /// listed and given.
    pub(super) fn look(shard: &mut Shard, seq: u64) -> Result<Self, Unreadable> {
        let damage = match shard.lookup(seq) {
            Lookup::Live(record) => match Self::begin(record) {
                Ok(checked) => return Ok(checked),
                Err(damage) => damage,
            },
            Lookup::Quarantined(damage) => damage,
            Lookup::Trimmed | Lookup::NotYet | Lookup::NoRecord => {
                let (head, next) = (shard.head_seq(), shard.committed_seq());
                return Err(Unreadable { refusal: Refusal::NoRecord { seq, head, next }, found: None });
            }
        };
        // What nobody has read since the store was opened may have been so before.
        if shard.quarantine(damage) && !shard.is_unread(seq) {
            return Err(Unreadable { refusal: Refusal::Altered { seq }, found: Some(damage) });
        }
        let refusal = Refusal::Damaged { seq, entry: damage.entry, fault: damage.fault };
        Err(Unreadable { refusal, found: None })
    }

    fn begin(record: Record) -> Result<Self, Quarantine> {
        let (len_bytes, crc32c) = (record.len(), record.crc32c());
        let (mut ahead, mut rest) = (VecDeque::new(), record.into_checked_pieces());
        let mut ahead_bytes = 0;
        while ahead_bytes < AHEAD_BYTES
            && let Some(piece) = rest.next().transpose()?
        {
            ahead_bytes += piece.bytes().len();
            ahead.push_back(piece);
        }
        Ok(Self { len_bytes, crc32c, ahead, rest })
    }

    /// The record's length.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The checksum of all its bytes.
    pub(super) fn crc32c(&self) -> u32 {
        self.crc32c
    }

    /// The piece that comes next, which is checked; none at the end.
    pub(super) fn piece(&mut self) -> Result<Option<&Piece>, Quarantine> {
        if self.ahead.is_empty() {
            self.ahead.extend(self.rest.next().transpose()?);
        }
        Ok(self.ahead.front())
    }

    /// The piece is given.
    pub(super) fn go_on(&mut self) {
        self.ahead.pop_front();
    }
}

/// Tells the log of records that have changed under the server, and counts them.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    raised: u64,
    told: Option<Instant>,
}

impl Alarm {
    /// Something has changed.
    #[cold]
    pub(super) fn raise(&mut self, shard: u32, damage: &Quarantine, now: Instant) {
        self.raised += 1;
        if self.told.is_none_or(|told| now - told >= QUIET) {
            self.told = Some(now);
            tracing::error!(
                shard,
                found_so_far = self.raised,
                "{damage}: something else wrote into the store, or the medium fails; the record is no longer given"
            );
        }
    }

    /// How often.
    pub(super) fn raised(&self) -> u64 {
        self.raised
    }
}
