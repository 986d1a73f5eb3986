//! TCP options: maximum segment size (RFC 9293, section 3.2), window scale and timestamps (RFC 7323), selective
//! acknowledgements (RFC 2018).

use smoltcp::wire::TcpOption;

use super::seq::Seq;

/// Bytes that the timestamps option takes in each segment, with its padding.
pub(crate) const TIMESTAMP_BYTES: usize = 12;

/// Most bytes of options that a header has room for (RFC 9293, section 3.1).
pub(crate) const MAX_OPTION_BYTES: usize = 40;

/// Most blocks that a selective acknowledgement has room for (RFC 2018, section 3).
pub(crate) const MAX_SACK_BLOCKS: usize = 4;

/// The kind and the length of the option that says that selective acknowledgements are understood (RFC 2018, section
/// 2), and the kind of that which carries them.
const SACK_PERMITTED: [u8; 2] = [4, 2];
const SACK: u8 = 5;
const NO_OPERATION: u8 = 1;

/// Bytes of a block, and of what stands before the first.
const BLOCK_BYTES: usize = 8;
const SACK_HEAD_BYTES: usize = 2;

/// The options of one segment that this side understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    /// Whether the sender of a SYN understands selective acknowledgements.
    pub sack_permitted: bool,
    pub timestamp: Option<Timestamp>,
    pub sack: Option<SackBlocks>,
}

/// A timestamps option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timestamp {
    /// The sender's clock.
    pub value: u32,
    /// The other side's clock as last seen.
    pub echo: u32,
}

/// Bytes that have arrived, from a number on and up to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    pub from: Seq,
    pub to: Seq,
}

/// The blocks of a selective acknowledgement, in their order. Those of a peer may be anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SackBlocks {
    blocks: [Block; MAX_SACK_BLOCKS],
    len: u8,
}

impl SackBlocks {
    /// Adds a block behind the others; false if there is no room for it.
    pub(crate) fn push(&mut self, block: Block) -> bool {
        let Some(place) = self.blocks.get_mut(usize::from(self.len)) else { return false };
        *place = block;
        self.len += 1;
        true
    }

    pub(crate) fn as_slice(&self) -> &[Block] {
        &self.blocks[..usize::from(self.len)]
    }

    /// How many blocks have room in so many bytes of options.
    pub(crate) fn fitting(bytes: usize) -> usize {
        // Two bytes of padding stand before the option.
        (bytes.saturating_sub(2 + SACK_HEAD_BYTES) / BLOCK_BYTES).min(MAX_SACK_BLOCKS)
    }

    /// Reads the blocks behind an option's kind and length; none if that is not their length.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (blocks, []) = bytes.as_chunks::<BLOCK_BYTES>() else { return None };
        if !(1..=MAX_SACK_BLOCKS).contains(&blocks.len()) {
            return None;
        }
        let mut sack = Self::default();
        for &[a, b, c, d, e, f, g, h] in blocks {
            let [from, to] = [[a, b, c, d], [e, f, g, h]].map(|edge| Seq(u32::from_be_bytes(edge)));
            sack.push(Block { from, to });
        }
        Some(sack)
    }
}

impl Options {
    /// Reads options up to the first that is malformed; what follows it cannot be told apart.
    pub(crate) fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        loop {
            if let [SACK, len, ..] = *bytes {
                let Some((option, rest)) = bytes.split_at_checked(len.into()) else { break };
                let blocks = option.get(SACK_HEAD_BYTES..).and_then(SackBlocks::parse);
                let Some(blocks) = blocks else { break };
                options.sack = Some(blocks);
                bytes = rest;
                continue;
            }
            let Ok((rest, option)) = TcpOption::parse(bytes) else { break };
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => options.mss = Some(mss),
                // RFC 7323, section 2.3: a shift above 14 counts as 14.
                TcpOption::WindowScale(shift) => options.window_scale = Some(shift.min(14)),
                TcpOption::SackPermitted => options.sack_permitted = true,
                TcpOption::TimeStamp { tsval, tsecr } => {
                    options.timestamp = Some(Timestamp { value: tsval, echo: tsecr });
                }
                _ => {}
            }
            bytes = rest;
        }
        options
    }

    /// Writes the options, padded to whole words; returns their length in bytes. All that belong into a SYN have room,
    /// and of blocks as many as are [fitting](SackBlocks::fitting).
    pub(crate) fn emit(&self, buffer: &mut [u8; MAX_OPTION_BYTES]) -> usize {
        let mut rest = &mut buffer[..];
        if let Some(mss) = self.mss {
            rest = TcpOption::MaxSegmentSize(mss).emit(rest);
        }
        if let Some(shift) = self.window_scale {
            rest = TcpOption::NoOperation.emit(rest);
            rest = TcpOption::WindowScale(shift).emit(rest);
        }
        // It fills the words up that the timestamps begin in the midst of, and stands alone otherwise.
        if self.sack_permitted || self.timestamp.is_some() {
            let padding = if self.sack_permitted { SACK_PERMITTED } else { [NO_OPERATION; 2] };
            rest = put(rest, &padding);
            match self.timestamp {
                Some(Timestamp { value, echo }) => {
                    rest = TcpOption::TimeStamp { tsval: value, tsecr: echo }.emit(rest);
                }
                None => rest = put(rest, &[NO_OPERATION; 2]),
            }
        }
        if let Some(sack) = &self.sack {
            let blocks = &sack.as_slice()[..sack.as_slice().len().min(SackBlocks::fitting(rest.len()))];
            let len = (SACK_HEAD_BYTES + BLOCK_BYTES * blocks.len()) as u8;
            rest = put(rest, &[NO_OPERATION, NO_OPERATION, SACK, len]);
            for block in blocks {
                rest = put(rest, &block.from.0.to_be_bytes());
                rest = put(rest, &block.to.0.to_be_bytes());
            }
        }
        let left = rest.len();
        MAX_OPTION_BYTES - left
    }
}

/// Writes `bytes` and returns what is left of the room, of which there has to be enough.
fn put<'a>(room: &'a mut [u8], bytes: &[u8]) -> &'a mut [u8] {
    let (place, rest) = room.split_at_mut(bytes.len());
    place.copy_from_slice(bytes);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_is_parsed() {
        let none = Options::default();
        let syn = Options {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamp: Some(Timestamp { value: 1, echo: u32::MAX }),
            sack: None,
        };
        let usual = Options { timestamp: syn.timestamp, ..none };
        let sack = |blocks| Some(blocks_of(blocks));
        for (options, length) in [
            (syn, 20),
            (Options { sack_permitted: false, ..syn }, 20),
            (Options { timestamp: None, ..syn }, 12),
            (Options { timestamp: None, sack_permitted: false, ..syn }, 8),
            (usual, TIMESTAMP_BYTES),
            (none, 0),
            (Options { sack: sack(1), ..usual }, 24),
            (Options { sack: sack(3), ..usual }, 40),
            (Options { sack: sack(4), ..none }, 36),
        ] {
            let mut buffer = [0; MAX_OPTION_BYTES];
            let written = options.emit(&mut buffer);
            assert_eq!(written, length);
            assert_eq!(Options::parse(&buffer[..written]), options);
        }
    }

    fn blocks_of(count: u32) -> SackBlocks {
        let mut blocks = SackBlocks::default();
        for n in 0..count {
            assert!(blocks.push(Block { from: Seq(u32::MAX - 20 * n), to: Seq(20 * n) }));
        }
        blocks
    }

    /// RFC 2018, section 3: four blocks have room, and three beside timestamps.
    #[test]
    fn a_block_without_room_is_left_out() {
        let mut four = blocks_of(4);
        assert!(!four.push(Block::default()));
        let timestamp = Some(Timestamp::default());
        let mut buffer = [0; MAX_OPTION_BYTES];
        let written = Options { timestamp, sack: Some(four), ..Options::default() }.emit(&mut buffer);
        assert_eq!(written, MAX_OPTION_BYTES);
        assert_eq!(Options::parse(&buffer).sack, Some(blocks_of(3)));
    }

    #[test]
    fn malformed_options_end_the_list() {
        let mss = [2, 4, 5, 0xb4];
        for tail in [&[8, 0][..], &[8, 1], &[8, 40, 1], &[3], &[2, 3, 1], &[4, 3, 0], &[5]] {
            let options = Options::parse(&[&mss, tail].concat());
            assert_eq!(options, Options { mss: Some(1460), ..Options::default() });
        }
        // Blocks are whole, one to four, and all there.
        for len in (0..=255).filter(|len| ![10, 18, 26, 34].contains(len)) {
            let tail = [&[5, len][..], &[0; 38]].concat();
            let options = Options::parse(&[&mss, &tail[..], &SACK_PERMITTED].concat());
            assert_eq!(options, Options { mss: Some(1460), ..Options::default() }, "length {len}");
        }
        for len in [10, 18, 26, 34] {
            let cut = [&mss[..], &[5, len], &vec![0; usize::from(len) - 3]].concat();
            assert_eq!(Options::parse(&cut).sack, None);
        }
    }

    #[test]
    fn a_shift_is_at_most_fourteen() {
        assert_eq!(Options::parse(&[3, 3, 200]).window_scale, Some(14));
    }
}
