//! One request: a command's name and its arguments.

use std::borrow::Cow;

use pmem::{Extent, PACK_BYTES};

/// Arguments of this length and more stay in the buffers where they arrived. Shorter ones are copied, as the log would copy
/// them.
pub const IN_PLACE_BYTES: u64 = PACK_BYTES as u64;

/// A command's name and its arguments. Its memory is used again for others.
#[derive(Debug, Default)]
pub struct Request {
    /// Short arguments, one behind the other.
    pub(super) text: Vec<u8>,
    pub(super) args: Vec<Argument>,
    /// Pieces of long arguments, in their order.
    pub(super) pieces: Vec<Extent>,
    /// Bytes of all arguments.
    pub(super) bytes: u64,
    /// All of it as it came, if it came in one piece and has a long argument.
    pub(super) whole: Option<Extent>,
    /// Whether there was no room for some argument. Its bytes are gone, and the request cannot be served.
    pub(super) is_cut: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Argument {
    /// So many bytes of the text.
    Text { from: usize, len: usize },
    /// So many pieces, and the bytes in all of them.
    Pieces { from: usize, count: usize, len: u64 },
}

impl Request {
    /// How many there are, the command's name included.
    pub fn len(&self) -> usize {
        self.args.len()
    }

    /// Whether there is not even a name.
    pub fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    /// Bytes of all arguments.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether an argument was dropped, as there was no room for it.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Bytes of memory, persistent memory not counted.
    pub fn text_bytes(&self) -> usize {
        self.text.capacity() + self.args.capacity() * size_of::<Argument>()
    }

    /// Argument number `index`; 0 is the command's name. An argument that is not there has no bytes.
    pub fn arg(&self, index: usize) -> Cow<'_, [u8]> {
        match self.args.get(index) {
            None => Cow::Borrowed(&[]),
            Some(&Argument::Text { from, len }) => Cow::Borrowed(&self.text[from..from + len]),
            Some(&Argument::Pieces { from, count, .. }) => match self.pieces(from, count) {
                [only] => Cow::Borrowed(only.bytes()),
                many => Cow::Owned(many.iter().flat_map(|piece| piece.bytes()).copied().collect()),
            },
        }
    }

    /// Length of an argument in bytes.
    pub fn arg_len(&self, index: usize) -> u64 {
        match self.args.get(index) {
            None => 0,
            Some(&Argument::Text { len, .. }) => len as u64,
            Some(&Argument::Pieces { len, .. }) => len,
        }
    }

    /// A long argument where it lies; none if it is short.
    pub fn in_place(&self, index: usize) -> Option<&[Extent]> {
        match *self.args.get(index)? {
            Argument::Text { .. } => None,
            Argument::Pieces { from, count, .. } => Some(self.pieces(from, count)),
        }
    }

    /// Some pieces; none of them if they were dropped.
    fn pieces(&self, from: usize, count: usize) -> &[Extent] {
        self.pieces.get(from..from + count).unwrap_or_default()
    }

    /// All of it as it came, ends of lines and lengths included, if it came in one piece and has a long argument.
    pub fn whole(&self) -> Option<&Extent> {
        self.whole.as_ref()
    }

    /// Whether an argument is a word, in capitals or not. `word` is in capitals.
    pub fn is(&self, index: usize, word: &str) -> bool {
        index < self.len() && self.arg(index).eq_ignore_ascii_case(word.as_bytes())
    }

    /// Empties it for another one.
    pub fn clear(&mut self) {
        self.text.clear();
        self.args.clear();
        self.pieces.clear();
        self.whole = None;
        (self.bytes, self.is_cut) = (0, false);
    }

    pub(super) fn push_text(&mut self, bytes: &[u8]) {
        let from = self.text.len();
        self.text.extend_from_slice(bytes);
        self.args.push(Argument::Text { from, len: bytes.len() });
        self.bytes += bytes.len() as u64;
    }
}
