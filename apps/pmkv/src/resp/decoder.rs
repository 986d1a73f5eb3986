//! Takes a connection's slots apart into requests.

use pmem::{Arena, Extent};

use super::number::parse_integer;
use super::request::{Argument, IN_PLACE_BYTES, Request};

/// Arguments of one request.
pub const MAX_ARGUMENTS: i64 = 1024 * 1024;
/// Bytes of a line: that of an inline command, or of a length.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
/// Bytes of all short arguments of one request.
const MAX_TEXT_BYTES: usize = 64 << 20;
/// What somebody who has not said who he is may send: arguments, and bytes of each.
const MAX_STRANGER_ARGUMENTS: i64 = 10;
const MAX_STRANGER_BYTES: i64 = 16 * 1024;
/// Pieces of long arguments that are shorter are copied together, so that they do not hold a buffer each.
const MIN_PIECE_BYTES: usize = 256;

/// What is no request. The connection cannot go on behind it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The number of arguments is none, or too large.
    #[error("Protocol error: invalid multibulk length")]
    ArgumentCount,
    /// Its line has no end.
    #[error("Protocol error: too big mbulk count string")]
    ArgumentCountLine,
    /// Who has not said who he is sends too many arguments.
    #[error("Protocol error: unauthenticated multibulk length")]
    StrangerCount,
    /// Who has not said who he is sends too long an argument.
    #[error("Protocol error: unauthenticated bulk length")]
    StrangerLength,
    /// Something else than a length.
    #[error("Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    NotALength(u8),
    /// The length is none, or too large.
    #[error("Protocol error: invalid bulk length")]
    Length,
    /// Its line has no end.
    #[error("Protocol error: too big bulk count string")]
    LengthLine,
    /// What follows an argument is no end of a line.
    #[error("Protocol error: expected CRLF behind a bulk string")]
    ArgumentEnd,
    /// A line is too long.
    #[error("Protocol error: too big inline request")]
    InlineLength,
    /// A quote has no end.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
    /// All short arguments together are too long.
    #[error("Protocol error: too many bytes in short arguments, take fewer at a time")]
    Text,
}

/// Where long arguments stay, and how much of them is taken.
pub struct Room<'a> {
    /// Whose buffers they lie in.
    pub arena: &'a Arena,
    /// Buffers that are left to others: while there are no more, arguments are dropped as they come.
    pub reserve: usize,
    /// The longest argument.
    pub max_bytes: u64,
    /// Whether whoever sends has said who he is, if he has to.
    pub is_known: bool,
}

/// The state of one connection's requests between two slots.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    /// The line that is being read. It takes no memory between requests that come whole.
    line: Vec<u8>,
    request: Option<Request>,
    /// The slot in which the request began, from there on, while no other one was needed.
    begun_in: Option<Extent>,
    /// Arguments that are still to come.
    left: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before a request.
    #[default]
    Start,
    /// In the number of arguments.
    Count,
    /// In a command as people type it.
    Inline,
    /// Before an argument's length.
    Length,
    /// In an argument of which so many bytes are to come.
    Text {
        left: usize,
    },
    Pieces {
        left: u64,
    },
    /// Behind one, with so many bytes of the line's end there.
    End {
        seen: u8,
    },
}

impl Decoder {
    /// Whether a request has begun that is not whole.
    pub fn is_mid_request(&self) -> bool {
        self.state != State::Start
    }

    /// Forgets the connection; the next one starts afresh.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Bytes of memory that a request which is not whole takes.
    pub fn held_bytes(&self) -> usize {
        self.line.capacity() + self.request.as_ref().map_or(0, |request| request.text_bytes())
    }

    /// Takes the next request out of `input`, which it leaves narrowed, or `None` when used up. Gives `None` when it needs
    /// another slot. A request's memory comes from `spare`, where it should be put again.
    ///
    /// # Errors
    /// A [`ProtocolError`] after which nothing more can be decoded on this connection.
    pub fn next(
        &mut self,
        input: &mut Option<Extent>,
        spare: &mut Vec<Request>,
        room: &Room<'_>,
    ) -> Result<Option<Request>, ProtocolError> {
        let next = self.step(input, spare, room);
        if !matches!(next, Ok(Some(_))) {
            self.begun_in = None;
        }
        next
    }

    fn step(
        &mut self,
        input: &mut Option<Extent>,
        spare: &mut Vec<Request>,
        room: &Room<'_>,
    ) -> Result<Option<Request>, ProtocolError> {
        loop {
            match self.state {
                State::Start => {
                    let Some(slot) = input.as_ref() else { return Ok(None) };
                    match slot.bytes().first() {
                        None => _ = input.take(),
                        Some(b'*') => {
                            self.begun_in = Some(slot.clone());
                            self.state = State::Count;
                        }
                        Some(_) => self.state = State::Inline,
                    }
                }
                State::Count => {
                    if !self.read_line(input, ProtocolError::ArgumentCountLine)? {
                        return Ok(None);
                    }
                    let count = parse_integer(&self.line[1..])
                        .filter(|count| *count <= MAX_ARGUMENTS)
                        .ok_or(ProtocolError::ArgumentCount)?;
                    if !room.is_known && count > MAX_STRANGER_ARGUMENTS {
                        return Err(ProtocolError::StrangerCount);
                    }
                    self.line.clear();
                    self.state = State::Start;
                    if count > 0 {
                        self.begin(spare);
                        self.left = count as u32;
                        self.state = State::Length;
                    }
                }
                State::Inline => {
                    if !self.read_line(input, ProtocolError::InlineLength)? {
                        return Ok(None);
                    }
                    self.begin(spare);
                    if let Some(request) = &mut self.request {
                        split_words(&self.line, request)?;
                    }
                    self.line.clear();
                    self.state = State::Start;
                    if self.request.as_ref().is_some_and(|request| !request.is_empty()) {
                        return Ok(self.request.take());
                    }
                    spare.extend(self.request.take());
                }
                State::Length => {
                    if !self.read_line(input, ProtocolError::LengthLine)? {
                        return Ok(None);
                    }
                    let length = self.length(room)?;
                    self.line.clear();
                    self.begin_argument(length, room)?;
                }
                State::Text { left } => {
                    let Some(slot) = input.as_ref() else { return Ok(None) };
                    let taken = left.min(slot.len());
                    if let Some(request) = &mut self.request {
                        request.text.extend_from_slice(&slot.bytes()[..taken]);
                    }
                    skip(input, taken);
                    self.state = match left - taken {
                        0 => State::End { seen: 0 },
                        left => State::Text { left },
                    };
                }
                State::Pieces { left } => {
                    let Some(slot) = input.as_ref() else { return Ok(None) };
                    let taken = left.min(slot.len() as u64) as usize;
                    if let Some(piece) = split(input, taken)
                        && let Some(request) = &mut self.request
                    {
                        request.add_piece(piece, room);
                    }
                    self.state = match left - taken as u64 {
                        0 => State::End { seen: 0 },
                        left => State::Pieces { left },
                    };
                }
                State::End { seen } => {
                    let Some(slot) = input.as_ref() else { return Ok(None) };
                    match slot.bytes().first() {
                        None => _ = input.take(),
                        Some(&byte) if byte == b"\r\n"[usize::from(seen)] => {
                            skip(input, 1);
                            if seen == 0 {
                                self.state = State::End { seen: 1 };
                                continue;
                            }
                            self.left -= 1;
                            if self.left == 0 {
                                self.state = State::Start;
                                self.note_whole(input);
                                return Ok(self.request.take());
                            }
                            self.state = State::Length;
                        }
                        Some(_) => return Err(ProtocolError::ArgumentEnd),
                    }
                }
            }
        }
    }

    /// The request ends where `rest` begins: notes all of it, if it began in the same slot.
    fn note_whole(&mut self, rest: &Option<Extent>) {
        let Some(request) = self.request.as_mut().filter(|request| !request.pieces.is_empty()) else {
            self.begun_in = None;
            return;
        };
        if let Some(slot) = self.begun_in.take() {
            let len = slot.len() - rest.as_ref().map_or(0, Extent::len);
            request.whole = slot.slice(0, len);
        }
    }

    fn begin(&mut self, spare: &mut Vec<Request>) {
        let mut request = spare.pop().unwrap_or_default();
        request.clear();
        self.request = Some(request);
    }

    /// What the line says of an argument's length.
    fn length(&self, room: &Room<'_>) -> Result<u64, ProtocolError> {
        let digits = match self.line.split_first() {
            Some((b'$', digits)) => digits,
            Some((&other, _)) => return Err(ProtocolError::NotALength(other)),
            None => return Err(ProtocolError::NotALength(b'\r')),
        };
        let length = parse_integer(digits).ok_or(ProtocolError::Length)?;
        let bytes = u64::try_from(length).ok().filter(|bytes| *bytes <= room.max_bytes);
        let bytes = bytes.ok_or(ProtocolError::Length)?;
        if !room.is_known && length > MAX_STRANGER_BYTES {
            Err(ProtocolError::StrangerLength)
        } else {
            Ok(bytes)
        }
    }

    fn begin_argument(&mut self, length: u64, room: &Room<'_>) -> Result<(), ProtocolError> {
        let Some(request) = &mut self.request else { return Ok(()) };
        request.bytes += length;
        if length >= IN_PLACE_BYTES {
            // What cannot be kept to its end is not kept at all.
            let buffers = length / room.arena.buffer_bytes() as u64;
            request.is_cut |= buffers + room.reserve as u64 > room.arena.free_buffers() as u64;
            let argument = Argument::Pieces { from: request.pieces.len(), count: 0, len: length };
            request.args.push(argument);
            self.state = State::Pieces { left: length };
            return Ok(());
        }
        let from = request.text.len();
        if from > MAX_TEXT_BYTES {
            return Err(ProtocolError::Text);
        }
        request.args.push(Argument::Text { from, len: length as usize });
        self.state = if length == 0 { State::End { seen: 0 } } else { State::Text { left: length as usize } };
        Ok(())
    }

    /// Adds what the slot has of a line; true once it is whole, without its end.
    fn read_line(
        &mut self,
        input: &mut Option<Extent>,
        too_long: ProtocolError,
    ) -> Result<bool, ProtocolError> {
        let Some(slot) = input.as_ref() else { return Ok(false) };
        let bytes = slot.bytes();
        let end = memchr::memchr(b'\n', bytes);
        let taken = end.map_or(bytes.len(), |end| end + 1);
        if self.line.len() + taken > MAX_LINE_BYTES {
            return Err(too_long);
        }
        self.line.extend_from_slice(&bytes[..taken]);
        skip(input, taken);
        if end.is_some() {
            self.line.pop();
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
        }
        Ok(end.is_some())
    }
}

impl Request {
    /// Adds to the last argument, where it lies unless it is short.
    fn add_piece(&mut self, piece: Extent, room: &Room<'_>) {
        if self.is_cut || room.arena.free_buffers() <= room.reserve {
            self.is_cut = true;
            self.pieces.clear();
            return;
        }
        let Some(Argument::Pieces { from, count, .. }) = self.args.last_mut() else { return };
        if piece.len() < MIN_PIECE_BYTES {
            let has_own = self.pieces.len() > *from;
            if has_own && self.pieces.last_mut().is_some_and(|last| last.extend_by_copy(piece.bytes())) {
                return;
            }
            if let Some(copy) = copied(&piece, room.arena) {
                self.pieces.push(copy);
                *count += 1;
                return;
            }
        }
        self.pieces.push(piece);
        *count += 1;
    }
}

/// A copy of a piece at the beginning of a buffer of its own, to be extended.
fn copied(piece: &Extent, arena: &Arena) -> Option<Extent> {
    let mut copy = arena.take()?.into_extent(0, 0)?;
    copy.extend_by_copy(piece.bytes()).then_some(copy)
}

/// Takes the first `length` bytes off the input; they are there.
fn split(input: &mut Option<Extent>, length: usize) -> Option<Extent> {
    let slot = input.take()?;
    if slot.len() == length {
        return Some(slot);
    }
    let (taken, rest) = slot.split_at(length);
    *input = Some(rest);
    Some(taken)
}

/// Drops the first `length` bytes of the input.
fn skip(input: &mut Option<Extent>, length: usize) {
    if let Some(slot) = input.take()
        && let Some(rest) = slot.len().checked_sub(length)
        && rest > 0
    {
        *input = slot.slice(length, rest);
    }
}

/// Takes a line apart into words, which may be quoted as in C or as in a shell.
fn split_words(line: &[u8], request: &mut Request) -> Result<(), ProtocolError> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        let Some(&first) = rest.first() else { return Ok(()) };
        let mut word = Vec::new();
        let mut quote = None;
        if matches!(first, b'"' | b'\'') {
            quote = Some(first);
            rest = &rest[1..];
        }
        loop {
            match (quote, rest) {
                (Some(_), []) => return Err(ProtocolError::Quotes),
                (Some(b'"'), [b'\\', b'x', high, low, tail @ ..])
                    if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
                {
                    word.push(16 * hex(*high) + hex(*low));
                    rest = tail;
                }
                (Some(b'"'), [b'\\', escaped, tail @ ..]) => {
                    word.push(match escaped {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'b' => 8,
                        b'a' => 7,
                        other => *other,
                    });
                    rest = tail;
                }
                (Some(b'\''), [b'\\', b'\'', tail @ ..]) => {
                    word.push(b'\'');
                    rest = tail;
                }
                (Some(end), [byte, tail @ ..]) if *byte == end => {
                    rest = tail;
                    if rest.first().is_some_and(|next| !next.is_ascii_whitespace()) {
                        return Err(ProtocolError::Quotes);
                    }
                    break;
                }
                (None, [] | [b' ' | b'\t' | b'\r' | b'\n' | 0, ..]) => break,
                (None, [b @ (b'"' | b'\''), tail @ ..]) => {
                    quote = Some(*b);
                    rest = tail;
                }
                (_, [byte, tail @ ..]) => {
                    word.push(*byte);
                    rest = tail;
                }
            }
        }
        if rest.first() == Some(&0) {
            rest = &rest[1..];
        }
        request.push_text(&word);
    }
}

fn hex(digit: u8) -> u8 {
    (digit as char).to_digit(16).map_or(0, |digit| digit as u8)
}

#[cfg(test)]
mod tests;
