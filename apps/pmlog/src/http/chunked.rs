//! The chunked coding (RFC 9112, section 7.1), read strictly and over any number of slots.

use super::Refusal;

/// Bytes of a chunk's size line, and of all trailer lines together, that are read over.
const MAX_LINE_BYTES: usize = 256;
const MAX_TRAILER_BYTES: usize = 8 * 1024;

/// Where in a chunked body the next byte lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunked {
    state: State,
    /// Bytes that the body may have behind the current chunk.
    room: u64,
    /// The longest body, in bytes.
    max: u64,
    /// Size announced by the current line, or bytes of the chunk still to come.
    remaining: u64,
    /// Bytes of the current line; of all lines, in the trailer.
    line_bytes: usize,
}

/// What the bytes at hand are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// So many bytes of framing, to be skipped.
    Framing(usize),
    /// So many bytes of payload.
    Data(usize),
    /// So many bytes of framing, and the body ends behind them.
    End(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    SizeStart,
    /// Between digits.
    Size,
    /// In blanks before a chunk extension.
    Blank,
    /// In a chunk extension, which is skipped.
    Extension,
    /// Before the LF of a size line.
    SizeLf,
    /// In the payload.
    Data,
    /// Before the CR, then the LF, behind the payload.
    DataCr,
    DataLf,
    /// At the start of a trailer line, or of the empty line that ends the body.
    TrailerStart,
    /// In a trailer line, which is skipped.
    Trailer,
    /// Before the LF of a trailer line.
    TrailerLf,
    /// Before the last LF.
    EndLf,
}

impl Chunked {
    /// Before the first chunk of a body of at most `max` bytes.
    pub(super) const fn new(max: u64) -> Self {
        Self { state: State::SizeStart, room: max, max, remaining: 0, line_bytes: 0 }
    }

    /// Takes a look at `bytes`, which is not empty, and says what its first bytes are.
    pub(super) fn step(&mut self, bytes: &[u8]) -> Result<Step, Refusal> {
        for (at, byte) in bytes.iter().enumerate() {
            if self.state == State::Data {
                if at > 0 {
                    return Ok(Step::Framing(at));
                }
                let taken = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(bytes.len());
                self.remaining -= taken as u64;
                if self.remaining == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Step::Data(taken));
            }
            if self.framing_byte(*byte)? {
                return Ok(Step::End(at + 1));
            }
        }
        Ok(Step::Framing(bytes.len()))
    }

    /// Takes one byte of framing; true at the end of the body.
    fn framing_byte(&mut self, byte: u8) -> Result<bool, Refusal> {
        self.state = match (self.state, byte) {
            (State::SizeStart | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                // Nobody waits for what is too long: any further digit makes it longer still.
                if self.remaining >> 60 != 0 || self.remaining << 4 | digit > self.room {
                    return Err(Refusal::TooLarge { max: self.max });
                }
                self.remaining = self.remaining << 4 | digit;
                self.count(1, MAX_LINE_BYTES)?;
                State::Size
            }
            (State::Size, b'\r') => State::SizeLf,
            (State::Size | State::Blank, b';') => State::Extension,
            (State::Size | State::Blank, b' ' | b'\t') => {
                self.count(1, MAX_LINE_BYTES)?;
                State::Blank
            }
            (State::SizeStart | State::Size | State::Blank, _) => {
                return Err(Refusal::MalformedChunk("a chunk size is not hexadecimal"));
            }
            (State::Extension, b'\r') => State::SizeLf,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::Extension | State::Trailer | State::TrailerStart, b'\n' | b'\0') => {
                return Err(Refusal::MalformedChunk("a line does not end in CR LF"));
            }
            (State::Extension, _) => {
                self.count(1, MAX_LINE_BYTES)?;
                State::Extension
            }
            (State::SizeLf, b'\n') => {
                self.line_bytes = 0;
                self.room -= self.remaining;
                if self.remaining == 0 { State::TrailerStart } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataCr, _) => {
                return Err(Refusal::MalformedChunk("a chunk is longer than its size"));
            }
            (State::DataLf, b'\n') => State::SizeStart,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::Trailer | State::TrailerStart, _) => {
                self.count(1, MAX_TRAILER_BYTES)?;
                State::Trailer
            }
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => return Ok(true),
            (State::SizeLf | State::DataLf | State::TrailerLf | State::EndLf, _) => {
                return Err(Refusal::MalformedChunk("a line does not end in CR LF"));
            }
            // `step` takes payload before it comes here.
            (State::Data, _) => State::Data,
        };
        Ok(false)
    }

    fn count(&mut self, bytes: usize, max: usize) -> Result<(), Refusal> {
        self.line_bytes += bytes;
        if self.line_bytes > max {
            return Err(Refusal::MalformedChunk("a chunk extension or the trailer is too long"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 1000;

    /// Decodes `text` given in pieces of `piece_bytes`: the payload and what lies behind the body.
    fn decode(text: &[u8], piece_bytes: usize) -> Result<Option<(Vec<u8>, usize)>, Refusal> {
        let (mut chunked, mut payload, mut read) = (Chunked::new(MAX), Vec::new(), 0);
        for piece in text.chunks(piece_bytes) {
            let mut rest = piece;
            while !rest.is_empty() {
                match chunked.step(rest)? {
                    Step::Framing(length) => (rest, read) = (&rest[length..], read + length),
                    Step::Data(length) => {
                        payload.extend_from_slice(&rest[..length]);
                        (rest, read) = (&rest[length..], read + length);
                    }
                    Step::End(length) => return Ok(Some((payload, read + length))),
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn payload_comes_out_whatever_the_pieces() {
        let text =
            b"4;name=\"v\"\r\nwiki\r\n00E ;x\r\nabcdefghijklmn\r\n0;last\r\nTrailer: x\r\nB: y\r\n\r\nGET";
        for piece_bytes in 1..=text.len() {
            let (payload, read) = decode(text, piece_bytes).expect("well formed").expect("whole");
            assert_eq!(payload, b"wikiabcdefghijklmn");
            assert_eq!(&text[read..], b"GET");
        }
    }

    #[test]
    fn an_empty_body_is_one_last_chunk() {
        assert_eq!(decode(b"0\r\n\r\n", 2), Ok(Some((Vec::new(), 5))));
        assert_eq!(decode(b"000\r\n\r", 2), Ok(None));
    }

    #[test]
    fn loose_framing_is_refused() {
        for text in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\n",
            "1 \r\n",
            "1 5\r\n",
            "1\n",
            "1;\n",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1\r\na\r0",
            "0\r\n\n",
            "0\r\nA: b\n",
            "0\r\n\rx",
            "1;a\rb",
        ] {
            assert!(matches!(decode(text.as_bytes(), 3), Err(Refusal::MalformedChunk(_))), "{text:?}");
        }
    }

    #[test]
    fn a_body_that_is_too_long_is_refused_by_its_size() {
        let chunk = |size: &str, bytes: usize| format!("{size}\r\n{}\r\n", "x".repeat(bytes));
        for text in [chunk("3e8", 1000), chunk("00000003E8", 1000), chunk("1f4", 500).repeat(2)] {
            assert!(matches!(decode(format!("{text}0\r\n\r\n").as_bytes(), 7), Ok(Some(_))), "{text:?}");
        }
        for text in [
            "3e9".to_owned(),
            "0000000000003e9".to_owned(),
            "3e9;x=y".to_owned(),
            "ffffffffffffffff".to_owned(),
            "10000000000000000".to_owned(),
            "ffffffffffffffffffffffffffffffff".to_owned(),
            format!("{}3e9", chunk("0001", 1)),
            format!("{}1", chunk("3e8", 1000)),
            format!("{}ffffffffffffffff", chunk("1", 1)),
            format!("{}3e8", chunk("1;a=b", 1)),
        ] {
            for piece_bytes in [1, 5, text.len()] {
                let outcome = decode(text.as_bytes(), piece_bytes);
                assert_eq!(outcome, Err(Refusal::TooLarge { max: MAX }), "{text:?}");
            }
        }
    }

    #[test]
    fn lines_that_carry_nothing_are_bounded() {
        for text in [
            format!("1;{}", "x".repeat(MAX_LINE_BYTES + 1)),
            "0".repeat(MAX_LINE_BYTES + 1),
            format!("0\r\n{}", "A: b\r\n".repeat(MAX_TRAILER_BYTES / 4 + 1)),
        ] {
            assert!(matches!(decode(text.as_bytes(), 64), Err(Refusal::MalformedChunk(_))));
        }
    }
}
