//! Text put together from parts.
//!
//! What each reply consists of, words and numbers, is appended as such: `write!` would go through a formatter's
//! options and a dynamic call for each part, which costs several times what the digits cost.

/// Memory that text is appended to.
pub(super) trait Text {
    /// Appends words.
    fn text(&mut self, words: &str) -> &mut Self;

    /// Appends a number in decimal digits.
    fn decimal(&mut self, number: u64) -> &mut Self;

    /// Appends a number in eight hexadecimal digits.
    fn hex(&mut self, number: u32) -> &mut Self;
}

impl Text for Vec<u8> {
    #[inline]
    fn text(&mut self, words: &str) -> &mut Self {
        self.extend_from_slice(words.as_bytes());
        self
    }

    #[inline]
    fn decimal(&mut self, number: u64) -> &mut Self {
        self.text(itoa::Buffer::new().format(number))
    }

    #[inline]
    fn hex(&mut self, number: u32) -> &mut Self {
        let nibbles = [28, 24, 20, 16, 12, 8, 4, 0].map(|shift| number >> shift & 0xf);
        self.extend_from_slice(&nibbles.map(|nibble| b"0123456789abcdef"[nibble as usize]));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_read_as_the_standard_library_writes_them(
            short in 0..100_u64,
            long in any::<u64>(),
            cut in 0..64_u32,
            checksum in any::<u32>(),
        ) {
            let mut text = Vec::new();
            let middle = long >> cut;
            text.decimal(short).text(" ").decimal(middle).text(" ").decimal(long).text(" ").hex(checksum);
            prop_assert_eq!(String::from_utf8_lossy(&text), format!("{short} {middle} {long} {checksum:08x}"));
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_written_whole() {
        let mut text = Vec::new();
        text.decimal(0).text(" ").decimal(u64::MAX).text(" ").hex(0).text(" ").hex(u32::MAX);
        assert_eq!(text, b"0 18446744073709551615 00000000 ffffffff");
    }
}
