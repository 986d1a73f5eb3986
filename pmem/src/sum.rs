//! Sums of 16-bit words, as the Internet checksum (RFC 1071) is made of, by the widest registers there are. They stand
//! here since vector instructions take `unsafe` code, of which the protocol core has none.

use std::arch::x86_64::*;

use crate::cpu::{Level, level};

/// Bytes below which setting up vectors takes longer than they save.
const MIN_VECTOR_BYTES: usize = 64;
/// Most bytes that the vectors' 32-bit sums hold, whatever the bytes are.
const MAX_VECTOR_BYTES: usize = 1 << 16;

/// The sum of the 16-bit words of `bytes` in this machine's byte order, a last odd byte as if a zero followed. Its
/// carries are not all added back yet: what is meant is its remainder by 0xffff, which is 0xffff and not 0 where any
/// byte is not 0. It is below 2^48 for any `bytes` that fit in memory.
#[inline]
pub fn sum_words(bytes: &[u8]) -> u64 {
    if bytes.len() < MIN_VECTOR_BYTES { portable(bytes) } else { wide(bytes) }
}

fn wide(bytes: &[u8]) -> u64 {
    if bytes.len() > MAX_VECTOR_BYTES {
        return bytes.chunks(MAX_VECTOR_BYTES).map(sum_words).sum();
    }
    match level() {
        Level::Portable => portable(bytes),
        // SAFETY: the CPU has AVX2.
        Level::Avx2 => unsafe { avx2(bytes) },
        // SAFETY: the CPU has AVX-512 F and BW.
        Level::Avx512 => unsafe { avx512(bytes) },
    }
}

/// Words of 64 bits with their carries added back (RFC 1071, section 2).
#[inline]
fn portable(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let (mut sum, mut carry) = (last_word(bytes, rest), false);
    for word in words {
        (sum, carry) = sum.carrying_add(u64::from_ne_bytes(*word), carry);
    }
    (sum >> 32) + (sum & u64::from(u32::MAX)) + u64::from(carry)
}

/// `rest`, the last 0 to 7 of `bytes`, as a word of 64 bits.
#[inline]
fn last_word(bytes: &[u8], rest: &[u8]) -> u64 {
    match bytes.last_chunk::<8>() {
        // What comes before the rest is shifted out; in two steps, since all of it may be.
        Some(last) => u64::from_le_bytes(*last) >> (63 - 8 * rest.len()) >> 1,
        None => rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

/// Products of signed words are what vectors can add in pairs, so each word goes in less 2^15; what that takes from
/// the sum is known. The sums stay within 32 bits for [`MAX_VECTOR_BYTES`].
const LESS: i16 = i16::MIN;

#[target_feature(enable = "avx2")]
fn avx2(bytes: &[u8]) -> u64 {
    let (less, ones) = (_mm256_set1_epi16(LESS), _mm256_set1_epi16(1));
    let add = |sum, bytes: &[u8; 32]| {
        // SAFETY: as many bytes are there, and they may lie anywhere.
        let words = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_xor_si256(words, less), ones))
    };
    let (vectors, rest) = bytes.as_chunks::<32>();
    let (fours, ones_left) = vectors.as_chunks::<4>();
    let [mut a, mut b, mut c, mut d] = [_mm256_setzero_si256(); 4];
    for [first, second, third, fourth] in fours {
        (a, b, c, d) = (add(a, first), add(b, second), add(c, third), add(d, fourth));
    }
    for vector in ones_left {
        a = add(a, vector);
    }
    let sum = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum));
    exact(_mm_cvtsi128_si32(sum), vectors.len() * 16) + portable(rest)
}

#[target_feature(enable = "avx512f,avx512bw")]
fn avx512(bytes: &[u8]) -> u64 {
    let (less, ones) = (_mm512_set1_epi16(LESS), _mm512_set1_epi16(1));
    let add = |sum, words| _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_xor_si512(words, less), ones));
    // SAFETY: as many bytes are there, and they may lie anywhere.
    let load = |bytes: &[u8; 64]| unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    let (vectors, rest) = bytes.as_chunks::<64>();
    let (pairs, one_left) = vectors.as_chunks::<2>();
    let [mut a, mut b] = [_mm512_setzero_si512(); 2];
    for [first, second] in pairs {
        (a, b) = (add(a, load(first)), add(b, load(second)));
    }
    for vector in one_left {
        a = add(a, load(vector));
    }
    // SAFETY: only the rest's bytes are read; there are fewer than 64.
    let last = unsafe { _mm512_maskz_loadu_epi8((1 << rest.len()) - 1, rest.as_ptr().cast()) };
    let sum = _mm512_reduce_add_epi32(add(_mm512_add_epi32(a, b), last));
    exact(sum, (vectors.len() + 1) * 32)
}

/// The sum of `words` words from that in which each was [less](LESS).
#[inline]
fn exact(sum: i32, words: usize) -> u64 {
    (i64::from(sum) + ((words as i64) << 15)) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The sums by everything that this CPU has.
    fn all(bytes: &[u8]) -> Vec<(Level, u64)> {
        let mut sums = vec![(Level::Portable, portable(bytes))];
        if bytes.len() <= MAX_VECTOR_BYTES && level() >= Level::Avx2 {
            // SAFETY: the CPU has AVX2.
            sums.push((Level::Avx2, unsafe { avx2(bytes) }));
        }
        if bytes.len() <= MAX_VECTOR_BYTES && level() >= Level::Avx512 {
            // SAFETY: the CPU has AVX-512 F and BW.
            sums.push((Level::Avx512, unsafe { avx512(bytes) }));
        }
        sums.push((level(), sum_words(bytes)));
        sums
    }

    /// One word after the other, as RFC 1071 has it.
    fn one_by_one(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|word| u16::from_ne_bytes([word[0], *word.get(1).unwrap_or(&0)]));
        words.fold(0, |sum: u16, word| {
            let (sum, carry) = sum.overflowing_add(word);
            sum + u16::from(carry)
        })
    }

    fn folded(mut sum: u64) -> u16 {
        while sum > u64::from(u16::MAX) {
            sum = (sum >> 16) + (sum & u64::from(u16::MAX));
        }
        sum as u16
    }

    fn check(bytes: &[u8]) {
        let expected = one_by_one(bytes);
        for (level, sum) in all(bytes) {
            assert_eq!(folded(sum), expected, "{level:?}, {} bytes", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn every_level_sums_as_one_by_one(bytes in prop::collection::vec(any::<u8>(), 0..3000), at in 0_usize..64) {
            check(bytes.get(at..).unwrap_or_default());
        }
    }

    #[test]
    fn every_level_sums_every_length_at_every_offset() {
        let bytes: Vec<u8> = (0..700_u32).map(|at| ((at * at) >> 3) as u8 | 1).collect();
        for at in 0..64 {
            (0..=600).for_each(|len| check(&bytes[at..at + len]));
        }
    }

    #[test]
    fn no_carry_is_lost_and_nothing_overflows() {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            for len in [63, 64, 65, 8191, 65_535, 65_536, 65_537, 200_001, 1 << 20] {
                check(&vec![byte; len]);
            }
        }
    }
}
