//! Numbers in text.

/// Digits that any number of that length fits into 64 bits.
const SAFE_DIGITS: usize = 19;

/// A number in decimal digits and nothing else: `str::parse` would also take a sign.
#[inline]
pub(super) fn decimal(text: impl AsRef<[u8]>) -> Option<u64> {
    let digits = text.as_ref();
    let (safe, rest) = digits.split_at(digits.len().min(SAFE_DIGITS));
    let mut number = 0;
    for byte in safe {
        number = number * 10 + digit(*byte)?;
    }
    for byte in rest {
        number = number.checked_mul(10)?.checked_add(digit(*byte)?)?;
    }
    (!digits.is_empty()).then_some(number)
}

/// The number that text begins with, and what is behind its digits. None without a digit, or with as many as a number
/// that may not fit has.
#[inline(always)]
pub(super) fn leading_decimal(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (at, byte) in text.iter().enumerate().take(SAFE_DIGITS + 1) {
        match digit(*byte) {
            Some(digit) if at < SAFE_DIGITS => number = number * 10 + digit,
            Some(_) => return None,
            None => return (at > 0).then_some((number, &text[at..])),
        }
    }
    // More digits may follow.
    None
}

#[inline]
fn digit(byte: u8) -> Option<u64> {
    byte.is_ascii_digit().then(|| u64::from(byte - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_read_as_the_standard_library_reads_them(text in "[0-9]{0,22}|[-+ 0-9a]{0,4}", near in any::<u64>()) {
            let expected = text.parse().ok().filter(|_: &u64| !text.starts_with('+'));
            prop_assert_eq!(decimal(&text), expected);
            prop_assert_eq!(decimal(near.to_string()), Some(near));
        }
    }
}
