//! Replies that are longer than a send queue: they go out in pieces, and go on where they stopped.

use std::fmt;

use pmem::Piece;
use stack::net::{LEAST_SEND_BYTES, Net};

use super::{
    checked::Checked,
    out::{Out, Progress},
    render::{Rendered, ReplyFormat},
};

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
        format: ReplyFormat,
    ) -> Result<(), Progress> {
        if !self.has_head {
            out.text(rendered.record_head(&self.record.about(), format))?;
            self.has_head = true;
        }
        if format.is_head() {
            return Ok(());
        }
        give(out, self.shard, &mut self.record)
    }
}

/// Sends what is left of a record, as far as the network takes it.
pub(super) fn give<N: Net>(out: &mut Out<'_, N>, shard: u32, record: &mut Checked) -> Result<(), Progress> {
    while let Some(piece) = record.piece().map_err(|damage| out.break_off(shard, damage))? {
        match piece {
            Piece::Extent(extent) => out.extent(extent)?,
            Piece::Inline(..) => out.text(piece.bytes())?,
        }
        record.go_on();
    }
    Ok(())
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("has_head", &self.has_head).finish_non_exhaustive()
    }
}

/// A text that is known as a whole, and goes out in pieces that each connection takes sooner or later.
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
        while let Some(piece) = self.text[self.sent..].chunks(LEAST_SEND_BYTES).next() {
            out.text(piece)?;
            self.sent += piece.len();
        }
        Ok(())
    }
}
