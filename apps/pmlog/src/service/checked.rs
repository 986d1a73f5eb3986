//! Records as they are given: no byte leaves that is not the one which was stored, as far as checksums tell.
//!
//! Each log entry has the checksum of its record's bytes up to the entry's end. A piece is checked with its entry's
//! others before it is sent, and the first of a record before its status line: a short record is refused as a whole,
//! and a long one breaks off before the first piece that has changed.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use pmem::{CheckedPieces, Lookup, Piece, Quarantine, Record, Shard};
use stack::time::Instant;

use crate::http::{ByteRange, Part, Refusal};

/// Bytes of a record that are checked before anything of the reply goes out.
const AHEAD_BYTES: usize = 64 * 1024;
/// Between two messages about records that have changed; all are counted.
const QUIET: Duration = Duration::from_secs(1);

/// A record's bytes, checked before they are given.
pub(super) struct Checked {
    about: About,
    /// Those that are checked, and wanted.
    ahead: VecDeque<Piece>,
    rest: CheckedPieces,
    /// Bytes at the front of `rest` that are not wanted.
    skip_bytes: u64,
    /// Bytes behind them that are.
    left_bytes: u64,
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checked").field("about", &self.about).finish_non_exhaustive()
    }
}

/// What the reply's head says of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    /// The whole record's length.
    pub(super) len_bytes: u64,
    /// The checksum of all its bytes.
    pub(super) crc32c: u32,
    /// What of it is given, if not all.
    pub(super) part: Option<Part>,
}

impl About {
    /// Bytes that are given.
    pub(super) fn given_bytes(&self) -> u64 {
        self.part.map_or(self.len_bytes, |part| part.bytes)
    }
}

/// Why a record cannot be read, and what was found to have changed just now, if that is why.
pub(super) struct Unreadable {
    pub(super) refusal: Refusal,
    pub(super) found: Option<Quarantine>,
}

impl Checked {
    /// Looks a record up, and checks the first of what is wanted of it. What has changed under the server is taken out of
    /// what is listed and given.
    pub(super) fn look(shard: &mut Shard, seq: u64, range: Option<ByteRange>) -> Result<Self, Unreadable> {
        let damage = match shard.lookup(seq) {
            Lookup::Live(record) => {
                let len_bytes = record.len();
                let part = range.map(|range| range.of(len_bytes).ok_or(Refusal::Range { len_bytes }));
                let part = part.transpose().map_err(|refusal| Unreadable { refusal, found: None })?;
                match Self::begin(record, part) {
                    Ok(checked) => return Ok(checked),
                    Err(damage) => damage,
                }
            }
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

    fn begin(record: Record, part: Option<Part>) -> Result<Self, Quarantine> {
        let about = About { len_bytes: record.len(), crc32c: record.crc32c(), part };
        let mut rest = record.into_checked_pieces();
        let skip_bytes = part.map_or(0, |part| part.first - rest.skip_entries(part.first));
        let mut checked =
            Self { about, ahead: VecDeque::new(), rest, skip_bytes, left_bytes: about.given_bytes() };
        let mut ahead_bytes = 0;
        while ahead_bytes < AHEAD_BYTES
            && let Some(piece) = checked.next_wanted()?
        {
            ahead_bytes += piece.bytes().len();
            checked.ahead.push_back(piece);
        }
        Ok(checked)
    }

    /// What is said of the record before its bytes.
    pub(super) fn about(&self) -> About {
        self.about
    }

    /// The next checked piece, or what of it is wanted; none at the end of that.
    fn next_wanted(&mut self) -> Result<Option<Piece>, Quarantine> {
        while self.left_bytes > 0
            && let Some(piece) = self.rest.next().transpose()?
        {
            let len = piece.bytes().len() as u64;
            if self.skip_bytes >= len {
                self.skip_bytes -= len;
                continue;
            }
            let from = std::mem::take(&mut self.skip_bytes);
            let wanted = (len - from).min(self.left_bytes);
            self.left_bytes -= wanted;
            // Both lie within a piece, which is short.
            return Ok(piece.slice(from as usize, wanted as usize));
        }
        Ok(None)
    }

    /// The piece that comes next, which is checked; none at the end.
    pub(super) fn piece(&mut self) -> Result<Option<&Piece>, Quarantine> {
        if self.ahead.is_empty() {
            let next = self.next_wanted()?;
            self.ahead.extend(next);
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
