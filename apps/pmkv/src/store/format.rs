//! What the records of the log say: changes, one behind the other, all of which happen or none.
//!
//! A change is a byte that says which, a key, and what that change needs. Numbers are LEB128, 7 bits a byte, the lowest first;
//! bytes are their length and they themselves. A value stands last, so that it may stay where it arrived, with what comes
//! before it in a piece of its own.
//!
//! | code | change | behind the key |
//! |---:|---|---|
//! | 1 | the key is a string | when it expires (ms since 1970, 0 for never), the value |
//! | 2 | the key is gone | |
//! | 3 | the key expires | when (0 for never) |
//! | 4 | a field of the hash has a value | the field, the value |
//! | 5 | a field of the hash is gone | the field |
//! | 6 | a position of the list has a value | the position plus 2^63, the value |
//! | 7 | a position of the list is gone | the position plus 2^63 |
//! | 8 | the set has a member | the member |
//! | 9 | the set has lost a member | the member |
//! | 10 | the stream has an entry | milliseconds, count, the fields and values (each as bytes) as one value |
//! | 11 | an entry of the stream is gone | milliseconds, count |
//! | 12 | there is the stream, and its highest number | milliseconds, count |
//! | 13 | all keys are gone; its own key is empty | |
//!
//! A record that begins with `*` is one change, in the words of the request that asked for it, as it came: `SET`, a key, and a
//! value of 512 bytes or more.

use pmem::{Extent, Piece, Record};

use super::object::{Data, StreamId};
use crate::resp::{IN_PLACE_BYTES, parse_integer};

/// One change, as a record tells it.
#[derive(Debug)]
pub(super) enum Change {
    String { expires_ms: u64, value: Data },
    Gone,
    Expires { at_ms: u64 },
    Field { field: Vec<u8>, value: Data },
    FieldGone { field: Vec<u8> },
    Position { at: i64, value: Data },
    PositionGone { at: i64 },
    Member { member: Vec<u8> },
    MemberGone { member: Vec<u8> },
    Entry { id: StreamId, value: Data },
    EntryGone { id: StreamId },
    Last { id: StreamId },
    AllGone,
}

/// Codes of changes.
pub(super) mod code {
    pub const STRING: u8 = 1;
    pub const GONE: u8 = 2;
    pub const EXPIRES: u8 = 3;
    pub const FIELD: u8 = 4;
    pub const FIELD_GONE: u8 = 5;
    pub const POSITION: u8 = 6;
    pub const POSITION_GONE: u8 = 7;
    pub const MEMBER: u8 = 8;
    pub const MEMBER_GONE: u8 = 9;
    pub const ENTRY: u8 = 10;
    pub const ENTRY_GONE: u8 = 11;
    pub const LAST: u8 = 12;
    pub const ALL_GONE: u8 = 13;
    /// A request as it came.
    pub const REQUEST: u8 = b'*';
}

/// A list's position as it is written.
pub(super) fn position(at: i64) -> u64 {
    (at as u64) ^ (1 << 63)
}

fn position_of(number: u64) -> i64 {
    (number ^ (1 << 63)) as i64
}

/// Writes a number.
pub fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number > 127 {
        out.push(number as u8 | 128);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Writes bytes behind their length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Bytes in pieces, read from the front.
#[derive(Debug)]
pub struct Reader {
    pieces: Vec<Piece>,
    /// The piece, and the place in it, where it goes on.
    piece: usize,
    at: usize,
    /// How much was read.
    position: usize,
}

/// A record is not what this program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no change that this program knows, {at} bytes into the record")]
pub struct Unreadable {
    at: usize,
}

impl Reader {
    /// A record's bytes.
    pub(super) fn of_record(record: Record) -> Self {
        Self::new(record.into_pieces().collect())
    }

    /// The bytes of pieces.
    pub fn of_extents(extents: &[Extent]) -> Self {
        Self::new(extents.iter().cloned().map(Piece::Extent).collect())
    }

    pub(super) fn new(pieces: Vec<Piece>) -> Self {
        Self { pieces, piece: 0, at: 0, position: 0 }
    }

    /// Hands on the next `len` bytes, piece by piece; false if there are not as many.
    fn each(&mut self, len: usize, mut visit: impl FnMut(&Piece, usize, usize)) -> bool {
        let mut left = len;
        while left > 0 {
            let Some(piece) = self.pieces.get(self.piece) else { return false };
            let taken = left.min(piece.bytes().len() - self.at);
            if taken > 0 {
                visit(piece, self.at, taken);
            }
            (left, self.at, self.position) = (left - taken, self.at + taken, self.position + taken);
            if self.at == piece.bytes().len() {
                (self.piece, self.at) = (self.piece + 1, 0);
            }
        }
        true
    }

    fn unreadable(&self) -> Unreadable {
        Unreadable { at: self.position }
    }

    /// Whether all is read.
    pub fn is_at_end(&self) -> bool {
        self.pieces[self.piece.min(self.pieces.len())..].iter().all(|piece| piece.bytes().len() == self.at)
    }

    fn byte(&mut self) -> Result<u8, Unreadable> {
        let mut byte = 0;
        let is_there = self.each(1, |piece, at, _| byte = piece.bytes()[at]);
        if is_there { Ok(byte) } else { Err(self.unreadable()) }
    }

    /// A number.
    ///
    /// # Errors
    /// [`Unreadable`]: there is none.
    pub fn number(&mut self) -> Result<u64, Unreadable> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err(self.unreadable())
    }

    /// So many bytes.
    ///
    /// # Errors
    /// [`Unreadable`]: there are not as many.
    pub fn take(&mut self, len: usize) -> Result<Vec<u8>, Unreadable> {
        let mut bytes = Vec::with_capacity(len.min(4096));
        let is_there =
            self.each(len, |piece, at, taken| bytes.extend_from_slice(&piece.bytes()[at..at + taken]));
        if is_there { Ok(bytes) } else { Err(self.unreadable()) }
    }

    /// So many bytes, where they lie. Bytes that lie in a log entry have no place of their own.
    ///
    /// # Errors
    /// [`Unreadable`]: there are not as many.
    pub fn extents(&mut self, len: usize) -> Result<Vec<Extent>, Unreadable> {
        let mut extents = Vec::new();
        let is_there = self.each(len, |piece, at, taken| match piece {
            Piece::Extent(extent) => extents.extend(extent.clone().slice(at, taken)),
            Piece::Inline(..) => {}
        });
        if is_there { Ok(extents) } else { Err(self.unreadable()) }
    }

    /// Passes over so many bytes.
    ///
    /// # Errors
    /// [`Unreadable`]: there are not as many.
    pub fn skip(&mut self, len: usize) -> Result<(), Unreadable> {
        if self.each(len, |_, _, _| {}) { Ok(()) } else { Err(self.unreadable()) }
    }

    /// Bytes behind their length.
    ///
    /// # Errors
    /// [`Unreadable`]: there are none.
    pub fn bytes(&mut self) -> Result<Vec<u8>, Unreadable> {
        let len = self.number()? as usize;
        self.take(len)
    }

    fn value(&mut self) -> Result<Data, Unreadable> {
        let len = self.number()?;
        let offset = self.position;
        if len < IN_PLACE_BYTES {
            return Ok(Data::Short(self.take(len as usize)?.into()));
        }
        let (Ok(len), Ok(offset)) = (u32::try_from(len), u32::try_from(offset)) else {
            return Err(self.unreadable());
        };
        self.skip(len as usize)?;
        Ok(Data::Long { offset, len })
    }

    fn stream_id(&mut self) -> Result<StreamId, Unreadable> {
        Ok(StreamId { ms: self.number()?, seq: self.number()? })
    }

    /// A line up to its end, without it: a number.
    fn line(&mut self) -> Result<usize, Unreadable> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                _ if line.len() > 20 => return Err(self.unreadable()),
                byte => line.push(byte),
            }
        }
        let digits = line.strip_suffix(b"\r").unwrap_or(&line);
        let digits = digits.strip_prefix(b"$").unwrap_or(digits);
        parse_integer(digits).and_then(|len| len.try_into().ok()).ok_or(self.unreadable())
    }

    /// What a request as it came says, behind its first byte.
    fn request(&mut self) -> Result<(Vec<u8>, Change), Unreadable> {
        let count = self.line()?;
        let len = self.line()?;
        let name = self.take(len)?;
        self.skip(2)?;
        if count != 3 || !name.eq_ignore_ascii_case(b"SET") {
            return Err(self.unreadable());
        }
        let len = self.line()?;
        let key = self.take(len)?;
        self.skip(2)?;
        let len = self.line()?;
        let (Ok(offset), Ok(value_len)) = (u32::try_from(self.position), u32::try_from(len)) else {
            return Err(self.unreadable());
        };
        self.skip(len)?;
        self.skip(2)?;
        Ok((key, Change::String { expires_ms: 0, value: Data::Long { offset, len: value_len } }))
    }

    /// The next change, and its key; none at the end.
    pub(super) fn change(&mut self) -> Result<Option<(Vec<u8>, Change)>, Unreadable> {
        if self.is_at_end() {
            return Ok(None);
        }
        let code = self.byte()?;
        if code == code::REQUEST {
            return self.request().map(Some);
        }
        let key = self.bytes()?;
        let change = match code {
            code::STRING => Change::String { expires_ms: self.number()?, value: self.value()? },
            code::GONE => Change::Gone,
            code::EXPIRES => Change::Expires { at_ms: self.number()? },
            code::FIELD => Change::Field { field: self.bytes()?, value: self.value()? },
            code::FIELD_GONE => Change::FieldGone { field: self.bytes()? },
            code::POSITION => Change::Position { at: position_of(self.number()?), value: self.value()? },
            code::POSITION_GONE => Change::PositionGone { at: position_of(self.number()?) },
            code::MEMBER => Change::Member { member: self.bytes()? },
            code::MEMBER_GONE => Change::MemberGone { member: self.bytes()? },
            code::ENTRY => Change::Entry { id: self.stream_id()?, value: self.value()? },
            code::ENTRY_GONE => Change::EntryGone { id: self.stream_id()? },
            code::LAST => Change::Last { id: self.stream_id()? },
            code::ALL_GONE => Change::AllGone,
            _ => return Err(self.unreadable()),
        };
        Ok(Some((key, change)))
    }
}
