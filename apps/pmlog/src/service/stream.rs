//! Replies that are longer than a send queue: they go out in pieces, and go on where they stopped.

use std::{fmt, iter::Peekable};

use pmem::{Piece, Record, Shard};
use stack::net::Net;

use super::{
    render::{Manner, Rendered},
    reply::{Out, Progress, ends},
};

/// A record, piece by piece from where it lies. Each piece is let go once the network has it.
pub(super) struct Sending {
    /// The record's length, until the status line and fields are out.
    head: Option<u64>,
    pieces: Peekable<Box<dyn Iterator<Item = Piece>>>,
}

impl Sending {
    pub(super) fn new(record: Record) -> Self {
        let len_bytes = record.len();
        let pieces: Box<dyn Iterator<Item = Piece>> = Box::new(record.into_pieces());
        Self { head: Some(len_bytes), pieces: pieces.peekable() }
    }

    pub(super) fn send<N: Net>(
        &mut self,
        out: &mut Out<'_, N>,
        rendered: &mut Rendered,
        manner: Manner,
    ) -> Result<(), Progress> {
        if let Some(len_bytes) = self.head {
            out.text(rendered.record_head(len_bytes, manner))?;
            self.head = None;
        }
        if manner.is_head() {
            return Ok(());
        }
        while let Some(piece) = self.pieces.peek() {
            match piece {
                Piece::Extent(extent) => out.extent(extent)?,
                Piece::Inline(..) => out.text(piece.bytes())?,
            }
            self.pieces.next();
        }
        Ok(())
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("head", &self.head).finish_non_exhaustive()
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
