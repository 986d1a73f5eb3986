//! Text put together from parts.
//!
//! What each reply consists of, words and numbers, is appended as such: `write!` would go through a formatter's
//! options and a dynamic call for each part, which costs several times what the digits cost.

use arrayvec::ArrayVec;

/// Memory that text is appended to.
pub(super) trait Text {
    /// Appends bytes as they are.
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self;

    /// Appends words.
    #[inline]
    fn text(&mut self, words: &str) -> &mut Self {
        self.bytes(words.as_bytes())
    }

    /// Appends the first `count` bytes, by moving all.
    fn first(&mut self, count: usize, bytes: [u8; 8]) -> &mut Self;

    /// Appends a number in decimal digits.
    // In line but for long numbers, which are made elsewhere: text whose address is given away is slower to append to.
    #[inline(always)]
    fn decimal(&mut self, number: u64) -> &mut Self {
        if number >= EIGHT_DIGITS {
            return self.bytes(&long_decimal(number));
        }
        let digits = u64::from_le_bytes(decimal_digits(number));
        // Of a zero, one digit stays.
        let blank = ((digits ^ ZEROS) | 1 << 56).trailing_zeros() / 8;
        self.first(8 - blank as usize, (digits >> (8 * blank)).to_le_bytes())
    }

    /// Appends a number in eight hexadecimal digits.
    #[inline]
    fn hex(&mut self, number: u32) -> &mut Self {
        self.bytes(&hex_digits(number))
    }

    /// Appends a number's four bytes in base 64.
    fn base64(&mut self, number: u32) -> &mut Self {
        self.bytes(&base64(number))
    }
}

/// Four bytes in network order (RFC 4648, section 4).
fn base64(number: u32) -> [u8; 8] {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u64::from(number) << 4;
    let mut text = *b"000000==";
    for (place, digit) in text.iter_mut().take(6).enumerate() {
        *digit = DIGITS[(bits >> (30 - 6 * place) & 63) as usize];
    }
    text
}

/// The first number that does not fit into eight digits.
const EIGHT_DIGITS: u64 = 100_000_000;
/// Eight digits `0`.
const ZEROS: u64 = 0x3030_3030_3030_3030;

/// The digits of a number that has more than eight.
#[inline(never)]
fn long_decimal(number: u64) -> ArrayVec<u8, 24> {
    let mut text = ArrayVec::new();
    let high = number / EIGHT_DIGITS;
    if high >= EIGHT_DIGITS {
        text.decimal(high / EIGHT_DIGITS).bytes(&decimal_digits(high % EIGHT_DIGITS));
    } else {
        text.decimal(high);
    }
    text.bytes(&decimal_digits(number % EIGHT_DIGITS));
    text
}

/// The eight digits of a number that has no more: halves, then pairs, then digits, each in a part of one word.
#[inline]
fn decimal_digits(number: u64) -> [u8; 8] {
    debug_assert!(number < EIGHT_DIGITS);
    let halves = (number / 10_000) | ((number % 10_000) << 32);
    // n / 100 is n * 10486 >> 20 below 10,000, and n / 10 is n * 103 >> 10 below 100.
    let hundreds = ((halves * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let pairs = hundreds | ((halves - hundreds * 100) << 16);
    let tens = ((pairs * 103) >> 10) & 0x000f_000f_000f_000f;
    let digits = tens | ((pairs - tens * 10) << 8);
    (digits + ZEROS).to_le_bytes()
}

/// All eight digits at a time, each in a byte of one word.
#[inline]
fn hex_digits(number: u32) -> [u8; 8] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let mut nibbles = u64::from(number);
    nibbles = (nibbles | nibbles << 16) & 0x0000_ffff_0000_ffff;
    nibbles = (nibbles | nibbles << 8) & 0x00ff_00ff_00ff_00ff;
    nibbles = (nibbles | nibbles << 4) & (EACH * 0xf);
    // 1 for each of 10 to 15, which reach 16 with 6 more.
    let letters = (nibbles + EACH * 6) >> 4 & EACH;
    (nibbles + EACH * u64::from(b'0') + letters * u64::from(b'a' - b'9' - 1)).to_be_bytes()
}

/// Text of any length.
impl Text for Vec<u8> {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.extend_from_slice(bytes);
        self
    }

    #[inline]
    fn first(&mut self, count: usize, bytes: [u8; 8]) -> &mut Self {
        self.bytes(&bytes[..count])
    }
}

/// Text whose longest form is known, and eight bytes: nothing can grow, so that only what is written costs.
impl<const N: usize> Text for ArrayVec<u8, N> {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.try_extend_from_slice(bytes).expect("there is room for the longest form of the text");
        self
    }

    #[inline]
    fn first(&mut self, count: usize, bytes: [u8; 8]) -> &mut Self {
        let len = self.len() + count;
        self.bytes(&bytes).truncate(len);
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
            let mut bounded = ArrayVec::<u8, 80>::new();
            bounded.decimal(short).text(" ").decimal(middle).text(" ").decimal(long).text(" ").hex(checksum);
            prop_assert_eq!(&text[..], &bounded[..]);
        }
    }

    #[test]
    fn numbers_of_any_length_have_their_digits() {
        for number in
            (0..20).flat_map(|digits| [10_u64.pow(digits) - 1, 10_u64.pow(digits), 10_u64.pow(digits) + 1])
        {
            let mut text = ArrayVec::<u8, 40>::new();
            assert_eq!(&text.decimal(number)[..], number.to_string().as_bytes());
        }
        for number in 0..10_000 {
            assert_eq!(
                decimal_digits(number * 10_000 + 9_999 - number),
                *format!("{:08}", number * 10_000 + 9_999 - number).as_bytes()
            );
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_written_whole() {
        let mut text = Vec::new();
        text.decimal(0).text(" ").decimal(u64::MAX).text(" ").hex(0).text(" ").hex(u32::MAX);
        assert_eq!(text, b"0 18446744073709551615 00000000 ffffffff");
    }

    #[test]
    fn base_64_is_that_of_the_bytes_in_network_order() {
        for (number, expected) in [
            (0, "AAAAAA=="),
            (u32::MAX, "/////w=="),
            (0x0102_0304, "AQIDBA=="),
            (0x9a71_bb4c, "mnG7TA=="),
            (0x0000_0001, "AAAAAQ=="),
        ] {
            let mut text = Vec::new();
            text.base64(number);
            assert_eq!(String::from_utf8_lossy(&text), expected, "{number:08x}");
        }
    }
}
