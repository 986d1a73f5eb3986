//! TCP options: maximum segment size (RFC 9293, section 3.2), window scale and timestamps (RFC 7323).

use smoltcp::wire::TcpOption;

/// Bytes that the timestamps option takes in each segment, with its padding.
pub(crate) const TIMESTAMP_BYTES: usize = 12;

/// Most bytes of options that this side sends.
pub(crate) const MAX_OPTION_BYTES: usize = 20;

/// The options of one segment that this side understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub timestamp: Option<Timestamp>,
}

/// A timestamps option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timestamp {
    /// The sender's clock.
    pub value: u32,
    /// The other side's clock as last seen.
    pub echo: u32,
}

impl Options {
    /// Reads options up to the first that is malformed; what follows it cannot be told apart.
    pub(crate) fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        while let Ok((rest, option)) = TcpOption::parse(bytes) {
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => options.mss = Some(mss),
                // RFC 7323, section 2.3: a shift above 14 counts as 14.
                TcpOption::WindowScale(shift) => options.window_scale = Some(shift.min(14)),
                TcpOption::TimeStamp { tsval, tsecr } => {
                    options.timestamp = Some(Timestamp { value: tsval, echo: tsecr });
                }
                _ => {}
            }
            bytes = rest;
        }
        options
    }

    /// Writes the options, padded to whole words; returns their length in bytes.
    pub(crate) fn emit(&self, buffer: &mut [u8; MAX_OPTION_BYTES]) -> usize {
        let mut rest = &mut buffer[..];
        if let Some(mss) = self.mss {
            rest = TcpOption::MaxSegmentSize(mss).emit(rest);
        }
        if let Some(shift) = self.window_scale {
            rest = TcpOption::NoOperation.emit(rest);
            rest = TcpOption::WindowScale(shift).emit(rest);
        }
        if let Some(Timestamp { value, echo }) = self.timestamp {
            rest = TcpOption::NoOperation.emit(rest);
            rest = TcpOption::NoOperation.emit(rest);
            rest = TcpOption::TimeStamp { tsval: value, tsecr: echo }.emit(rest);
        }
        let left = rest.len();
        MAX_OPTION_BYTES - left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_is_parsed() {
        let all = Options {
            mss: Some(1460),
            window_scale: Some(7),
            timestamp: Some(Timestamp { value: 1, echo: u32::MAX }),
        };
        let few = Options { timestamp: all.timestamp, ..Options::default() };
        for (options, length) in [(all, 20), (few, TIMESTAMP_BYTES), (Options::default(), 0)] {
            let mut buffer = [0; MAX_OPTION_BYTES];
            let written = options.emit(&mut buffer);
            assert_eq!(written, length);
            assert_eq!(Options::parse(&buffer[..written]), options);
        }
    }

    #[test]
    fn malformed_options_end_the_list() {
        let mss = [2, 4, 5, 0xb4];
        for tail in [&[8, 0][..], &[8, 1], &[8, 40, 1], &[3], &[2, 3, 1], &[5, 9, 0, 0, 0, 0, 0, 0, 0]] {
            let options = Options::parse(&[&mss, tail].concat());
            assert_eq!(options, Options { mss: Some(1460), ..Options::default() });
        }
    }

    #[test]
    fn a_shift_is_at_most_fourteen() {
        assert_eq!(Options::parse(&[3, 3, 200]).window_scale, Some(14));
    }
}
