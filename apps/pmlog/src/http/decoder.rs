//! Takes a connection's slots apart into requests.

use pmem::Extent;

use super::{
    Framing, Head, HeadCache, MAX_HEAD_BYTES, Refusal, chunked::Chunked, chunked::Step, head::too_large,
};

/// Empty lines that may stand before a request (RFC 9112, section 2.2), in bytes.
const MAX_BLANK_BYTES: usize = 4;

/// The next part of a request.
#[derive(Debug)]
pub enum Item {
    /// A request begins.
    Head(Head),
    /// A piece of its body, where the network put it.
    Data(Extent),
    /// The request is whole.
    End,
}

/// The state of one connection's requests between two slots.
///
/// A head that lies in one slot is parsed there; one that spans slots is gathered in at most
/// [`MAX_HEAD_BYTES`]. Bodies are never gathered.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// The longest chunked body, in bytes.
    max_body_bytes: u64,
    /// The start of a head that spans slots; it takes no memory without one.
    gathered: Vec<u8>,
    blank_bytes: u8,
    /// Where the cache had the last head.
    cached: u8,
}

// The kind has a byte of its own: it is looked at for each part of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum State {
    #[default]
    Head,
    Body {
        remaining: u64,
    },
    Chunks(Chunked),
}

impl Decoder {
    /// Before the first request. A chunked body that says that it is longer than `max_body_bytes` is refused; of one
    /// with a length, the head tells.
    pub fn new(max_body_bytes: u64) -> Self {
        Self { state: State::default(), max_body_bytes, gathered: Vec::new(), blank_bytes: 0, cached: 0 }
    }

    /// Takes the next part out of `input`, which it leaves narrowed, or `None` when used up. Gives `None`
    /// when it needs another slot; call it until then. `cache` knows heads of any connections.
    ///
    /// # Errors
    /// A [`Refusal`] after which nothing more can be decoded on this connection.
    #[inline(always)]
    pub fn next(
        &mut self,
        input: &mut Option<Extent>,
        cache: &mut HeadCache,
    ) -> Result<Option<Item>, Refusal> {
        match &mut self.state {
            State::Body { remaining: 0 } => Ok(Some(self.end())),
            _ if input.is_none() => Ok(None),
            State::Head => self.head(input, cache),
            State::Body { remaining } => Ok(body(remaining, input).map(Item::Data)),
            State::Chunks(_) => self.chunks(input),
        }
    }

    /// Whether a body is whole, and [`Item::End`] comes next.
    #[inline]
    pub fn is_at_end(&self) -> bool {
        matches!(self.state, State::Body { remaining: 0 })
    }

    /// Takes note that the next so many bytes are of the current body, if all of them are, and lie apart.
    #[inline]
    pub fn is_of_body(&mut self, bytes: usize) -> bool {
        let State::Body { remaining } = &mut self.state else { return false };
        let rest = remaining.checked_sub(bytes as u64);
        *remaining = rest.unwrap_or(*remaining);
        rest.is_some()
    }

    /// The whole body of the request whose head came last, if all of it lies in `input`. The request is whole then,
    /// and no [`Item::End`] follows.
    #[inline]
    pub fn whole_body(&mut self, input: &mut Option<Extent>) -> Option<Extent> {
        let State::Body { remaining } = self.state else { return None };
        let wanted = usize::try_from(remaining).ok().filter(|wanted| *wanted > 0)?;
        if input.as_ref()?.len() < wanted {
            return None;
        }
        self.state = State::Head;
        split(input, wanted)
    }

    /// Whether a request has begun that is not whole.
    #[inline]
    pub fn is_mid_request(&self) -> bool {
        self.state != State::Head || !self.gathered.is_empty()
    }

    /// Bytes of the current body that are still to come, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Head => Some(0),
            State::Body { remaining } => Some(remaining),
            State::Chunks(_) => None,
        }
    }

    /// Forgets the connection; the next one starts afresh.
    pub fn reset(&mut self) {
        self.state = State::Head;
        self.gathered = Vec::new();
        self.blank_bytes = 0;
        self.cached = 0;
    }

    fn end(&mut self) -> Item {
        self.state = State::Head;
        Item::End
    }

    fn chunks(&mut self, input: &mut Option<Extent>) -> Result<Option<Item>, Refusal> {
        let State::Chunks(chunked) = &mut self.state else { return Ok(None) };
        while let Some(extent) = input.as_ref() {
            match chunked.step(extent.bytes())? {
                Step::Framing(length) => skip(input, length),
                Step::Data(length) => return Ok(split(input, length).map(Item::Data)),
                Step::End(length) => {
                    skip(input, length);
                    return Ok(Some(self.end()));
                }
            }
        }
        Ok(None)
    }

    #[inline]
    fn head(&mut self, input: &mut Option<Extent>, cache: &mut HeadCache) -> Result<Option<Item>, Refusal> {
        if !self.gathered.is_empty() {
            return self.gather(input);
        }
        let Some(extent) = input.as_ref() else { return Ok(None) };
        let bytes = extent.bytes();
        if let [b'\r' | b'\n', ..] = bytes {
            return self.head_behind_blank_lines(input, cache);
        }
        match cache.parse(bytes, &mut self.cached)? {
            Some((_, length)) if length > MAX_HEAD_BYTES => Err(too_large()),
            Some((head, length)) => {
                skip(input, length);
                self.end_head(&head);
                Ok(Some(Item::Head(head)))
            }
            None => self.gather(input),
        }
    }

    #[inline]
    fn end_head(&mut self, head: &Head) {
        self.blank_bytes = 0;
        self.state = match head.framing {
            Framing::Absent => State::Body { remaining: 0 },
            Framing::Length(remaining) => State::Body { remaining },
            Framing::Chunked => State::Chunks(Chunked::new(self.max_body_bytes)),
        };
    }

    /// Adds the slot to what was gathered. Once the head is whole, gives it, and leaves what is behind it; until
    /// then the slot is used up. Only new bytes are searched for the end, and the head is parsed once.
    #[cold]
    fn gather(&mut self, input: &mut Option<Extent>) -> Result<Option<Item>, Refusal> {
        let Some(extent) = input.take() else { return Ok(None) };
        let before = self.gathered.len();
        let room = MAX_HEAD_BYTES - before;
        self.gathered.extend(extent.bytes().iter().take(room));
        let Some(end) = end_of_head(&self.gathered, before) else {
            return if extent.len() >= room { Err(too_large()) } else { Ok(None) };
        };
        match Head::parse(&self.gathered[..end])? {
            Some((head, _)) => {
                *input = Some(extent);
                skip(input, end - before);
                self.gathered = Vec::new();
                self.end_head(&head);
                Ok(Some(Item::Head(head)))
            }
            None => Err(Refusal::Malformed("an empty line stands inside the request line")),
        }
    }

    #[cold]
    fn head_behind_blank_lines(
        &mut self,
        input: &mut Option<Extent>,
        cache: &mut HeadCache,
    ) -> Result<Option<Item>, Refusal> {
        self.skip_blank_lines(input)?;
        self.head(input, cache)
    }

    fn skip_blank_lines(&mut self, input: &mut Option<Extent>) -> Result<(), Refusal> {
        while let Some(extent) = input.as_ref() {
            let is_blank = |byte: &&u8| matches!(byte, b'\r' | b'\n');
            let blank = extent.bytes().iter().take_while(is_blank).count();
            if blank == 0 {
                return Ok(());
            }
            let so_far = blank + usize::from(self.blank_bytes);
            if so_far > MAX_BLANK_BYTES {
                return Err(Refusal::Malformed("empty lines stand where a request should"));
            }
            self.blank_bytes = so_far as u8;
            skip(input, blank);
        }
        Ok(())
    }
}

/// Where the empty line that ends a head ends, if it ends at or behind `from`.
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    (from..bytes.len()).find_map(|at| {
        let is_end = bytes[at] == b'\n' && (bytes[..at].ends_with(b"\n\r") || bytes[..at].ends_with(b"\n"));
        is_end.then_some(at + 1)
    })
}

/// Takes what the input has of a body of which `remaining` bytes are to come.
#[inline]
fn body(remaining: &mut u64, input: &mut Option<Extent>) -> Option<Extent> {
    let available = input.as_ref()?.len();
    let wanted = usize::try_from(*remaining).unwrap_or(usize::MAX).min(available);
    *remaining -= wanted as u64;
    split(input, wanted)
}

/// Takes the first `length` bytes off the input; they are there.
#[inline]
fn split(input: &mut Option<Extent>, length: usize) -> Option<Extent> {
    let rest = input.as_ref()?.len().saturating_sub(length);
    if rest == 0 {
        return input.take();
    }
    let extent = input.take()?;
    *input = extent.clone().slice(length, rest);
    extent.slice(0, length)
}

/// Drops the first `length` bytes of the input.
#[inline]
fn skip(input: &mut Option<Extent>, length: usize) {
    if let Some(extent) = input.take()
        && let Some(rest) = extent.len().checked_sub(length)
        && rest > 0
    {
        *input = extent.slice(length, rest);
    }
}
