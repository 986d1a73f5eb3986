//! Replies: text, and between it values that are sent from where they lie.

use pmem::Extent;

/// What is owed to one client, in the protocol version that it has asked for.
#[derive(Debug, Default)]
pub struct Reply {
    text: Vec<u8>,
    /// Extents, each with the place in the text that it stands before.
    extents: Vec<(usize, Extent)>,
    is_resp3: bool,
}

/// What is sent next.
#[derive(Debug)]
pub enum Part<'a> {
    /// Text, to be copied.
    Text(&'a [u8]),
    /// A piece of a value.
    Extent(&'a Extent),
}

impl Reply {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.extents.is_empty()
    }

    /// Bytes of memory, persistent memory not counted.
    pub fn held_bytes(&self) -> usize {
        self.text.capacity() + self.extents.capacity() * size_of::<(usize, Extent)>()
    }

    /// In which version it goes on.
    pub fn set_resp3(&mut self, is_resp3: bool) {
        self.is_resp3 = is_resp3;
    }

    /// Whether it is in version 3.
    pub fn is_resp3(&self) -> bool {
        self.is_resp3
    }

    /// Where it ends now, to be [cut](Self::cut) there.
    pub fn end(&self) -> (usize, usize) {
        (self.text.len(), self.extents.len())
    }

    /// Takes back what came behind an end.
    pub fn cut(&mut self, (text, extents): (usize, usize)) {
        self.text.truncate(text);
        self.extents.truncate(extents);
    }

    /// The part of it that begins with byte `text` and extent `extents`; none at the end.
    pub fn part(&self, text: usize, extents: usize) -> Option<Part<'_>> {
        match self.extents.get(extents) {
            Some((at, extent)) if *at <= text => Some(Part::Extent(extent)),
            next => {
                let end = next.map_or(self.text.len(), |(at, _)| *at);
                (text < end).then(|| Part::Text(&self.text[text..end]))
            }
        }
    }

    /// Empties it. Memory for long ones is given back.
    pub fn clear(&mut self) {
        self.text.clear();
        self.extents.clear();
        self.text.shrink_to(KEPT_BYTES);
        self.extents.shrink_to(KEPT_BYTES / size_of::<(usize, Extent)>());
    }

    /// Adds text that is a whole reply already.
    pub fn raw(&mut self, text: &[u8]) {
        self.text.extend_from_slice(text);
    }

    /// Adds all of another reply.
    pub fn append(&mut self, other: &Self) {
        let from = self.text.len();
        self.text.extend_from_slice(&other.text);
        self.extents.extend(other.extents.iter().map(|(at, extent)| (from + at, extent.clone())));
    }

    /// `+OK` and the like.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.text.extend_from_slice(b"+OK\r\n");
    }

    /// An error, which begins with its kind.
    pub fn error(&mut self, text: &str) {
        self.text.push(b'-');
        // An error is one line, whatever of a request it quotes.
        self.text.extend(text.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
        self.text.extend_from_slice(b"\r\n");
    }

    /// An integer.
    pub fn integer(&mut self, value: i64) {
        self.number(b':', value);
    }

    /// A string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.number(b'$', bytes.len() as i64);
        self.text.extend_from_slice(bytes);
        self.text.extend_from_slice(b"\r\n");
    }

    /// A string that lies in named buffers.
    pub fn extents(&mut self, pieces: impl Iterator<Item = Extent> + Clone) {
        self.number(b'$', pieces.clone().map(|piece| piece.len() as i64).sum());
        let at = self.text.len();
        self.extents.extend(pieces.map(|piece| (at, piece)));
        self.text.extend_from_slice(b"\r\n");
    }

    /// A number as text.
    pub fn bulk_integer(&mut self, value: i64) {
        self.bulk(itoa::Buffer::new().format(value).as_bytes());
    }

    /// No string.
    pub fn null(&mut self) {
        self.text.extend_from_slice(if self.is_resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// No list.
    pub fn null_array(&mut self) {
        self.text.extend_from_slice(if self.is_resp3 { b"_\r\n" } else { b"*-1\r\n" });
    }

    /// So many replies follow.
    pub fn array(&mut self, len: usize) {
        self.number(b'*', len as i64);
    }

    /// So many pairs of replies follow.
    pub fn map(&mut self, len: usize) {
        if self.is_resp3 { self.number(b'%', len as i64) } else { self.array(2 * len) }
    }

    /// So many replies follow, in no order.
    pub fn set(&mut self, len: usize) {
        self.number(if self.is_resp3 { b'~' } else { b'*' }, len as i64);
    }

    /// So many replies follow that nobody has asked for.
    pub fn push(&mut self, len: usize) {
        self.number(if self.is_resp3 { b'>' } else { b'*' }, len as i64);
    }

    /// Text for people.
    pub fn verbatim(&mut self, text: &str) {
        if !self.is_resp3 {
            return self.bulk(text.as_bytes());
        }
        self.number(b'=', text.len() as i64 + 4);
        self.text.extend_from_slice(b"txt:");
        self.text.extend_from_slice(text.as_bytes());
        self.text.extend_from_slice(b"\r\n");
    }

    fn number(&mut self, kind: u8, value: i64) {
        self.line(kind, itoa::Buffer::new().format(value).as_bytes());
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        self.text.push(kind);
        self.text.extend_from_slice(text);
        self.text.extend_from_slice(b"\r\n");
    }
}

/// Memory that an empty reply keeps for the next one.
const KEPT_BYTES: usize = 16 * 1024;
