//! A record under construction: the changes of one command, or of a whole transaction.

use std::mem;

use pmem::{AppendError, Extent, Full, Pending, Shard, Shelf};

use super::format::{put_bytes, put_number};
use super::object::Data;
use crate::resp::IN_PLACE_BYTES;

/// Where a value comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// DRAM: it is copied.
    Bytes(&'a [u8]),
    /// Named buffers, where it stays.
    Extents(&'a [Extent]),
}

impl Source<'_> {
    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Extents(extents) => extents.iter().map(Extent::len).sum(),
        }
    }
}

/// Changes that are to be one record.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// All bytes but those of long values.
    text: Vec<u8>,
    /// Pieces of long values, each with the place in the text that it stands before.
    pieces: Vec<(usize, Extent)>,
    piece_bytes: usize,
    /// The only change, as it came.
    whole: Option<Extent>,
    /// Where text between long values is put.
    shelf: Option<Shelf>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.whole.is_none()
    }

    /// The only change of the record: a request that makes a key a string, as it came.
    pub(super) fn set_whole(&mut self, request: Extent) {
        self.whole = Some(request);
    }

    /// Begins a change.
    pub(super) fn begin(&mut self, code: u8, key: &[u8]) {
        self.text.push(code);
        put_bytes(&mut self.text, key);
    }

    pub(super) fn number(&mut self, number: u64) {
        put_number(&mut self.text, number);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        put_bytes(&mut self.text, bytes);
    }

    /// Ends a change with its value. Of a long one, also says which pieces hold it.
    pub(super) fn value(
        &mut self,
        source: Source<'_>,
        shard: &Shard,
    ) -> Result<(Data, Vec<Extent>), AppendError> {
        let len = source.len_bytes();
        if (len as u64) < IN_PLACE_BYTES {
            let bytes: Box<[u8]> = match source {
                Source::Bytes(bytes) => bytes.into(),
                Source::Extents(extents) => {
                    extents.iter().flat_map(|extent| extent.bytes()).copied().collect()
                }
            };
            put_bytes(&mut self.text, &bytes);
            return Ok((Data::Short(bytes), Vec::new()));
        }
        let extents = match source {
            Source::Bytes(bytes) => stored(bytes, shard)?,
            Source::Extents(extents) => extents.to_vec(),
        };
        let total = (self.len() + len) as u64;
        if total > MAX_RECORD_BYTES {
            return Err(AppendError::TooLong { len: total, max: MAX_RECORD_BYTES });
        }
        put_number(&mut self.text, len as u64);
        let (offset, at) = ((self.text.len() + self.piece_bytes) as u32, self.text.len());
        self.pieces.extend(extents.iter().map(|extent| (at, extent.clone())));
        self.piece_bytes += len;
        Ok((Data::Long { offset, len: len as u32 }, extents))
    }

    /// Where it ends now, to be [cut](Self::cut) there.
    pub(super) fn end(&self) -> (usize, usize, usize) {
        (self.text.len(), self.pieces.len(), self.piece_bytes)
    }

    /// Takes back what came behind an end.
    pub(super) fn cut(&mut self, (text, pieces, piece_bytes): (usize, usize, usize)) {
        self.text.truncate(text);
        self.pieces.truncate(pieces);
        self.piece_bytes = piece_bytes;
    }

    /// Length of the record.
    pub(super) fn len(&self) -> usize {
        self.text.len() + self.piece_bytes
    }

    /// Appends the record, and begins another.
    pub(super) fn append(&mut self, shard: &mut Shard) -> Result<Pending, AppendError> {
        if let Some(request) = self.whole.take() {
            debug_assert!(self.text.is_empty());
            return shard.append_extent(request);
        }
        let appended =
            if self.pieces.is_empty() { shard.append_copy(&self.text) } else { self.append_pieces(shard) };
        self.text.clear();
        self.text.shrink_to(KEPT_BYTES);
        self.pieces.clear();
        self.pieces.shrink_to(KEPT_BYTES / size_of::<(usize, Extent)>());
        self.piece_bytes = 0;
        appended
    }

    fn append_pieces(&mut self, shard: &mut Shard) -> Result<Pending, AppendError> {
        let mut draft = shard.draft();
        let text = mem::take(&mut self.text);
        let mut from = 0;
        for (at, piece) in self.pieces.drain(..) {
            for part in on_shelf(&mut self.shelf, &text[from..at], shard)? {
                shard.push(&mut draft, part)?;
            }
            from = at;
            shard.push(&mut draft, piece)?;
        }
        for part in on_shelf(&mut self.shelf, &text[from..], shard)? {
            shard.push(&mut draft, part)?;
        }
        self.text = text;
        shard.append(draft)
    }

    /// Puts text into named buffers, for a value that is made of text and of pieces.
    pub(super) fn shelved(&mut self, text: &[u8], shard: &Shard) -> Result<Vec<Extent>, AppendError> {
        on_shelf(&mut self.shelf, text, shard)
    }
}

/// The longest record: places in it are told in 32 bits, and what is not a value has room behind it.
pub const MAX_RECORD_BYTES: u64 = 2 << 30;

/// Memory that is kept for the next record.
const KEPT_BYTES: usize = 64 * 1024;

/// Puts text into named buffers, behind other texts.
fn on_shelf(shelf: &mut Option<Shelf>, text: &[u8], shard: &Shard) -> Result<Vec<Extent>, AppendError> {
    let mut parts = Vec::new();
    for part in text.chunks(shard.arena().buffer_bytes()) {
        if let Some(extent) = shelf.as_mut().and_then(|shelf| shelf.put(part)) {
            parts.push(extent);
            continue;
        }
        let mut fresh = shard.arena().take().and_then(Shelf::new).ok_or_else(|| full(shard))?;
        parts.extend(fresh.put(part));
        *shelf = Some(fresh);
    }
    Ok(parts)
}

/// Puts bytes into buffers of their own.
fn stored(bytes: &[u8], shard: &Shard) -> Result<Vec<Extent>, AppendError> {
    let arena = shard.arena();
    let store = |part: &[u8]| {
        let mut extent = arena.take()?.into_extent(0, 0)?;
        extent.extend_by_copy(part).then_some(extent)
    };
    bytes.chunks(arena.buffer_bytes()).map(|part| store(part).ok_or_else(|| full(shard))).collect()
}

fn full(shard: &Shard) -> AppendError {
    AppendError::Full(Full::Buffers { free: shard.arena().free_buffers(), reserve: shard.reserve() })
}
