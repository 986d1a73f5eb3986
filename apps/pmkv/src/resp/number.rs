//! Numbers as Redis reads and writes them.

/// An integer of 64 bits, written as it would be written: without a plus, blanks or leading zeros.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !is_negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut value = 0u64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(digit.into())?;
    }
    if is_negative { 0i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

/// A number with 17 digits behind the point: as many as Redis writes, so that sums of what people write are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decimal(i128);

/// Digits of a number that is read, as in Redis.
const MAX_DIGITS: usize = 5 * 1024;
/// Digits behind the point.
const PLACES: i32 = 17;
const ONE: i128 = 10i128.pow(PLACES as u32);

impl Decimal {
    /// Reads a number; none if it is none, or not a finite one below 10^21.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (is_negative, rest) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        let (mantissa, exponent) = match rest.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(at) => (&rest[..at], exponent(&rest[at + 1..])?),
            None => (rest, 0),
        };
        let point = mantissa.iter().position(|byte| *byte == b'.');
        let (whole, fraction) = match point {
            Some(at) => (&mantissa[..at], &mantissa[at + 1..]),
            None => (mantissa, &[][..]),
        };
        if whole.is_empty() && fraction.is_empty() || mantissa.len() > MAX_DIGITS {
            return None;
        }
        // The first digit stands for this power of ten.
        let mut place = PLACES + exponent + whole.len() as i32 - 1;
        let mut value = 0i128;
        for digit in whole.iter().chain(fraction) {
            if !digit.is_ascii_digit() {
                return None;
            }
            let digit = i128::from(digit - b'0');
            if digit != 0 && place >= 0 {
                let power = 10i128.checked_pow(u32::try_from(place).ok()?)?;
                value = value.checked_add(digit.checked_mul(power)?)?;
            } else if place == -1 && digit >= 5 {
                value += 1;
            }
            place -= 1;
        }
        Some(Self(if is_negative { -value } else { value }))
    }

    /// The sum, if it is not too large.
    pub fn plus(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }
}

fn exponent(text: &[u8]) -> Option<i32> {
    let digits = text.strip_prefix(b"+").unwrap_or(text);
    let (is_negative, digits) = digits.strip_prefix(b"-").map_or((false, digits), |digits| (true, digits));
    if digits.is_empty() || digits.len() > 4 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0, |value, digit| 10 * value + i32::from(digit - b'0'));
    Some(if is_negative { -value } else { value })
}

impl std::fmt::Display for Decimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, fraction) = (self.0 / ONE, (self.0 % ONE).unsigned_abs());
        let sign = if self.0 < 0 && whole == 0 { "-" } else { "" };
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let digits = format!("{fraction:0width$}", width = PLACES as usize);
        write!(f, "{sign}{whole}.{}", digits.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_they_are_written() {
        for value in [0, 1, -1, 42, i64::MAX, i64::MIN] {
            assert_eq!(parse_integer(value.to_string().as_bytes()), Some(value));
        }
        for text in ["", "-", "-0", "00", "01", "+1", " 1", "1 ", "9223372036854775808", "1e3", "0x1", "1.0"]
        {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn sums_of_what_people_write_are_exact() {
        let sum = |a: &str, b: &str| {
            let sum = Decimal::parse(a.as_bytes())?.plus(Decimal::parse(b.as_bytes())?)?;
            Some(sum.to_string())
        };
        assert_eq!(sum("0.1", "0.2").as_deref(), Some("0.3"));
        assert_eq!(sum("10.50", "0.1").as_deref(), Some("10.6"));
        assert_eq!(sum("5.0e3", "2.0e2").as_deref(), Some("5200"));
        assert_eq!(sum("0", "-0.25").as_deref(), Some("-0.25"));
        assert_eq!(sum("-1.5", ".5").as_deref(), Some("-1"));
        for text in ["", ".", "e5", "1e", "abc", "1.2.3", "inf", "nan", "1e99", " 1"] {
            assert_eq!(Decimal::parse(text.as_bytes()), None, "{text}");
        }
    }
}
