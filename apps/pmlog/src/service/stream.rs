//! Replies that are longer than a send queue: they go out in pieces, and go on where they stopped.

use std::fmt;

use pmem::{Piece, Shard};
use stack::net::Net;

use super::{
    checked::Checked,
    render::{Manner, Rendered},
    reply::{Out, Progress, ends},
};

/// Bytes of a text given to the network at a time: well below a send queue.
const PIECE_BYTES: usize = 1024;

/// A record, piece by piece from where it lies. Each piece is let go once the network has it.
pub(super) struct Sending {
    /// The record's shard.
    shard: u32,
    /// Whether the status line and fields are out.
    has_head: bool,
    record: Checked,
}

impl Sending {
    pub(super) fn new(shard: u32, record: Checked) -> Self {
        Self { shard, has_head: false, record }
    }

    pub(super) fn send<N: Net>(
        &mut self,
        out: &mut Out<'_, N>,
        rendered: &mut Rendered,
        manner: Manner,
    ) -> Result<(), Progress> {
        if !self.has_head {
            out.text(rendered.record_head(self.record.len_bytes(), self.record.crc32c(), manner))?;
            self.has_head = true;
        }
        if manner.is_head() {
            return Ok(());
        }
        while let Some(piece) = self.record.piece().map_err(|damage| out.break_off(self.shard, damage))? {
            match piece {
                Piece::Extent(extent) => out.extent(extent)?,
                Piece::Inline(..) => out.text(piece.bytes())?,
            }
            self.record.go_on();
        }
        Ok(())
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("has_head", &self.has_head).finish_non_exhaustive()
    }
}

/// A text that is known as a whole, and goes out in pieces.
#[derive(Debug)]
pub(super) struct Prepared {
    text: Vec<u8>,
    sent: usize,
}

impl Prepared {
    pub(super) fn new(text: Vec<u8>) -> Self {
        Self { text, sent: 0 }
    }

    pub(super) fn send<N: Net>(&mut self, out: &mut Out<'_, N>) -> Result<(), Progress> {
        while let Some(piece) = self.text[self.sent..].chunks(PIECE_BYTES).next() {
            out.text(piece)?;
            self.sent += piece.len();
        }
        Ok(())
    }
}

/// A listing, some records at a time. The store may change between two pieces: where records are trimmed before their
/// turn, the list ends, so that nobody who goes on behind its last entry misses them unknowingly.
#[derive(Debug)]
pub(super) struct Listing {
    /// The number to go on from; at first 0 for the oldest record there is.
    from: u64,
    left: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The status line and fields come next.
    Head,
    /// The first entries come next.
    First,
    /// Further entries come next.
    Further,
}

impl Listing {
    pub(super) fn new(from: u64, limit: u64) -> Self {
        Self { from, left: limit, stage: Stage::Head }
    }

    pub(super) fn send<N: Net>(
        &mut self,
        out: &mut Out<'_, N>,
        rendered: &mut Rendered,
        shard: &Shard,
        manner: Manner,
    ) -> Result<(), Progress> {
        if self.stage == Stage::Head {
            out.text(rendered.list_head(&ends(None, None, shard), manner))?;
            self.stage = Stage::First;
        }
        if manner.is_head() {
            return Ok(());
        }
        loop {
            if self.from != 0 && self.from < shard.head_seq() {
                return out.text(rendered.list_end(self.stage == Stage::First, manner));
            }
            let mut records = shard.records(self.from).take(usize::try_from(self.left).unwrap_or(usize::MAX));
            let piece = rendered.list_piece(self.from, &mut records, self.stage == Stage::First, manner);
            out.text(piece.text)?;
            if piece.is_end {
                return Ok(());
            }
            self.from = piece.next;
            self.left = self.left.saturating_sub(piece.records);
            self.stage = Stage::Further;
        }
    }
}
