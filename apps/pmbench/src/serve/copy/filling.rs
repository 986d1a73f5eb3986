//! A long record that is copied into named buffers as it comes.

use pmem::{AppendError, Buffer, Draft, Full, Pending, Shard};
use pmlog::http::Refusal;

/// A record of which a part is in the store.
pub(super) struct Filling {
    draft: Draft,
    /// The buffer that is being filled, and how much of it is.
    buffer: Option<(Buffer, usize)>,
    /// Bytes that are still to come.
    rest: u64,
}

impl Filling {
    /// A record of `len` bytes of which nothing has come.
    pub(super) fn new(shard: &Shard, len: u64) -> Self {
        Self { draft: shard.draft(), buffer: None, rest: len }
    }

    /// Whether all has come.
    pub(super) fn is_whole(&self) -> bool {
        self.rest == 0
    }

    /// Copies what of `bytes` belongs to the record, and returns how much that is.
    ///
    /// # Errors
    /// The store is full; the record cannot go on.
    pub(super) fn take(&mut self, shard: &mut Shard, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut taken = 0;
        while taken < bytes.len() && self.rest > 0 {
            let (mut buffer, filled) = match self.buffer.take() {
                Some(begun) => begun,
                None => (new_buffer(shard)?, 0),
            };
            let room = (shard.arena().buffer_bytes() - filled).min(self.rest as usize);
            let piece = &bytes[taken..][..room.min(bytes.len() - taken)];
            // It is within the buffer, to which nobody else refers.
            buffer.arrive(filled, piece);
            taken += piece.len();
            self.rest -= piece.len() as u64;
            if piece.len() < room {
                self.buffer = Some((buffer, filled + piece.len()));
            } else if let Some(extent) = buffer.into_extent(0, (filled + piece.len()) as u16) {
                shard.push(&mut self.draft, extent).map_err(Refusal::from)?;
            }
        }
        Ok(taken)
    }

    /// Writes the record's log entries.
    ///
    /// # Errors
    /// The log is full.
    pub(super) fn append(self, shard: &mut Shard) -> Result<(Pending, u64), Refusal> {
        let len = self.draft.len();
        Ok((shard.append(self.draft).map_err(Refusal::from)?, len))
    }
}

fn new_buffer(shard: &Shard) -> Result<Buffer, Refusal> {
    let full =
        || AppendError::Full(Full::Buffers { free: shard.arena().free_buffers(), reserve: shard.reserve() });
    shard.arena().take().ok_or_else(|| full().into())
}
