//! CRC-32C (Castagnoli; RFC 3720, appendix B.4), the checksum of everything on the medium.
//!
//! Records are small: what is summed are entries of 60 bytes, and pieces of up to a segment. Of such lengths preparations
//! are a good part, so this is done here for CPUs with AVX2, and left to crc-fast for others.

use std::arch::x86_64::*;
use std::iter::zip;

use crc_fast::{CrcAlgorithm, Digest};

use crate::cpu::{Level, level};

/// Up to so many bytes one instruction for each 8 of them is soonest done.
const MAX_SHORT_BYTES: usize = 256;

/// The checksum of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// The checksum of what `crc` is the checksum of, followed by `bytes`.
#[inline]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    match level() {
        Level::Portable => crc_fast(crc, bytes),
        // SAFETY: the CPU has SSE4.2.
        _ if bytes.len() <= MAX_SHORT_BYTES => !unsafe { short(!crc, bytes) },
        // SAFETY: the CPU has what this level has.
        Level::Avx2 => !unsafe { long(!crc, bytes) },
        // SAFETY: the CPU has what this level has.
        Level::Avx512 => !unsafe { long_by_registers_of_64_bytes(!crc, bytes) },
    }
}

/// What [`crc32c_append`] went on from, if `bytes` came to `crc`.
pub(crate) fn crc32c_before(crc: u32, bytes: &[u8]) -> u32 {
    let mut register = !crc;
    for byte in bytes.iter().rev() {
        for _ in 0..8 {
            // The bit that was shifted out is the one that decided.
            let was_set = register >> 31 == 1;
            register = (if was_set { register ^ POLYNOMIAL } else { register }) << 1 | u32::from(was_set);
        }
        register ^= u32::from(*byte);
    }
    !register
}

/// In reflected order.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// By whatever the CPU has.
fn crc_fast(crc: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, (!crc).into());
    digest.update(bytes);
    // A checksum of 32 bits fills the lower half.
    digest.finalize() as u32
}

/// The register of the CRC after `bytes`, by the instruction for it.
#[target_feature(enable = "sse4.2")]
fn short(register: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let wide =
        words.iter().fold(register.into(), |wide, word| _mm_crc32_u64(wide, u64::from_le_bytes(*word)));
    let (halves, rest) = rest.as_chunks::<4>();
    let register =
        halves.iter().fold(wide as u32, |register, half| _mm_crc32_u32(register, u32::from_le_bytes(*half)));
    rest.iter().fold(register, |register, byte| _mm_crc32_u8(register, *byte))
}

/// Bytes of a block, which goes two ways at once: 64 bytes by vectors, and behind those of all blocks 24 in each of three
/// lanes by the instruction for CRC-32C. The CPU does both in the same time, and next to nothing else meanwhile.
const BLOCK_BYTES: usize = VECTOR_BYTES + 3 * LANE_BYTES;
const VECTOR_BYTES: usize = 64;
const LANE_BYTES: usize = 24;
/// As many as in a piece of 2,040 bytes; more are done so many at a time.
const MAX_BLOCKS: usize = 15;

/// As [`short`], for what is longer (after <https://www.corsix.org/content/fast-crc32c-4k>, but that the distances over
/// which parts are moved are looked up).
#[target_feature(enable = "sse4.2,pclmulqdq")]
fn long(mut register: u32, mut bytes: &[u8]) -> u32 {
    while bytes.len() >= 2 * BLOCK_BYTES {
        let blocks = (bytes.len() / BLOCK_BYTES).min(MAX_BLOCKS);
        let (now, rest) = bytes.split_at(blocks * BLOCK_BYTES);
        (register, bytes) = (fused(register, now, blocks), rest);
    }
    short(register, bytes)
}

#[target_feature(enable = "sse4.2,pclmulqdq")]
fn fused(register: u32, bytes: &[u8], blocks: usize) -> u32 {
    let (vectors, lanes) = bytes.split_at(blocks * VECTOR_BYTES);
    let (first, lanes) = lanes.split_at(blocks * LANE_BYTES);
    let (second, third) = lanes.split_at(blocks * LANE_BYTES);

    let moved = |from, by, to| {
        let (low, high) = (_mm_clmulepi64_si128::<0x00>(from, by), _mm_clmulepi64_si128::<0x11>(from, by));
        _mm_xor_si128(_mm_xor_si128(low, to), high)
    };
    // SAFETY: as many bytes are there, and they may lie anywhere.
    let load = |bytes: &[u8; 16]| unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    let all = |by: Distance| _mm_set_epi64x(by.high, by.low);
    let by_64 = all(const { Distance::of(64) });
    let [mut a, mut b, mut c, mut d] = [_mm_setzero_si128(); 4];
    // What was before comes in with the first 16 bytes, where nothing is moved yet.
    let mut before = _mm_cvtsi32_si128(register as i32);
    let mut sums = [0; 3];
    let lanes = zip(first.as_chunks::<LANE_BYTES>().0, second.as_chunks::<LANE_BYTES>().0);
    let lanes = zip(lanes, third.as_chunks::<LANE_BYTES>().0);
    for (vector, ((first, second), third)) in zip(vectors.as_chunks::<VECTOR_BYTES>().0, lanes) {
        let [e, f, g, h] = vector.as_chunks::<16>().0 else { unreachable!("64 bytes are four times 16") };
        a = moved(a, by_64, _mm_xor_si128(load(e), before));
        (b, c, d) = (moved(b, by_64, load(f)), moved(c, by_64, load(g)), moved(d, by_64, load(h)));
        before = _mm_setzero_si128();
        for word in 0..LANE_BYTES / 8 {
            for (sum, lane) in zip(&mut sums, [first, second, third]) {
                *sum = _mm_crc32_u64(*sum, u64::from_le_bytes(lane.as_chunks::<8>().0[word]));
            }
        }
    }
    let by_16 = all(const { Distance::of(16) });
    let vector = moved(moved(a, by_16, b), all(const { Distance::of(32) }), moved(c, by_16, d));
    let vector = _mm_crc32_u64(
        _mm_crc32_u64(0, _mm_extract_epi64::<0>(vector) as u64),
        _mm_extract_epi64::<1>(vector) as u64,
    );
    let moved = |sum: u64, lanes: usize| {
        let by = _mm_cvtsi64_si128(LANE_POWERS[lanes]);
        _mm_clmulepi64_si128::<0>(_mm_cvtsi64_si128(sum as i64), by)
    };
    let [first, second, third] = sums;
    let ahead = _mm_xor_si128(
        moved(vector, 3 * blocks),
        _mm_xor_si128(moved(first, 2 * blocks), moved(second, blocks)),
    );
    (_mm_crc32_u64(0, _mm_cvtsi128_si64(ahead) as u64) ^ third) as u32
}

/// What moves a register over so many times the bytes of a lane of one block.
const LANE_POWERS: [i64; 3 * MAX_BLOCKS + 1] = {
    let (mut powers, mut lanes) = ([0; 3 * MAX_BLOCKS + 1], 1);
    while lanes < powers.len() {
        powers[lanes] = power(8 * LANE_BYTES * lanes - 33);
        lanes += 1;
    }
    powers
};

/// As [`short`], for at least [`MAX_SHORT_BYTES`]: 256 bytes at a time are multiplied to where the next 256 are, and
/// added to them, until what is left is short (Gopal et al., Fast CRC Computation for Generic Polynomials Using
/// PCLMULQDQ Instruction, Intel 2009).
#[target_feature(enable = "avx512f,avx512vl,pclmulqdq,vpclmulqdq,sse4.2")]
fn long_by_registers_of_64_bytes(register: u32, bytes: &[u8]) -> u32 {
    // SAFETY: as many bytes are there, and they may lie anywhere.
    let load = |bytes: &[u8; 64]| unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    let moved = |from, by, to| {
        let (low, high) =
            (_mm512_clmulepi64_epi128::<0x00>(from, by), _mm512_clmulepi64_epi128::<0x11>(from, by));
        _mm512_ternarylogic_epi64::<XOR3>(low, high, to)
    };
    let all = |by: Distance| _mm512_broadcast_i32x4(_mm_set_epi64x(by.high, by.low));
    let (vectors, rest) = bytes.as_chunks::<64>();
    let (fours, ones) = vectors.as_chunks::<4>();
    let Some(([first, second, third, fourth], fours)) = fours.split_first() else {
        return short(register, bytes);
    };
    let begin = _mm512_zextsi128_si512(_mm_cvtsi32_si128(register as i32));
    let mut a = _mm512_xor_si512(load(first), begin);
    let [mut b, mut c, mut d] = [load(second), load(third), load(fourth)];
    let by_256 = all(const { Distance::of(256) });
    for [first, second, third, fourth] in fours {
        (a, b) = (moved(a, by_256, load(first)), moved(b, by_256, load(second)));
        (c, d) = (moved(c, by_256, load(third)), moved(d, by_256, load(fourth)));
    }
    let by_64 = all(const { Distance::of(64) });
    let (b, d) = (moved(a, by_64, b), moved(c, by_64, d));
    let mut sum = moved(b, all(const { Distance::of(128) }), d);
    for vector in ones {
        sum = moved(sum, by_64, load(vector));
    }
    // The first three quarters of the register to where the last one is.
    let [by_48, by_32, by_16] = const { [Distance::of(48), Distance::of(32), Distance::of(16)] };
    let by = _mm512_set_epi64(0, 0, by_16.high, by_16.low, by_32.high, by_32.low, by_48.high, by_48.low);
    let quarters = moved(sum, by, _mm512_setzero_si512());
    let [first, second, third] = [
        _mm512_castsi512_si128(quarters),
        _mm512_extracti32x4_epi32::<1>(quarters),
        _mm512_extracti32x4_epi32::<2>(quarters),
    ];
    let last = _mm_xor_si128(
        _mm_ternarylogic_epi64::<XOR3>(first, second, third),
        _mm512_extracti32x4_epi32::<3>(sum),
    );
    let register = _mm_crc32_u64(0, _mm_extract_epi64::<0>(last) as u64);
    let register = _mm_crc32_u64(register, _mm_extract_epi64::<1>(last) as u64);
    short(register as u32, rest)
}

/// The exclusive or of three, as a table of truth.
const XOR3: i32 = 0x96;

/// What moves the halves of 16 bytes over a distance: powers of x, modulo the polynomial, in reflected order.
struct Distance {
    low: i64,
    high: i64,
}

impl Distance {
    /// A product of reflected numbers is one bit short, and the register of a CRC stands 32 bits ahead.
    const fn of(bytes: usize) -> Self {
        Self { low: power(8 * bytes + 64 - 33), high: power(8 * bytes - 33) }
    }
}

/// `x^exponent` modulo the polynomial of CRC-32C, in reflected order.
const fn power(exponent: usize) -> i64 {
    let (mut power, mut at) = (1 << 31, 0);
    while at < exponent {
        power = power >> 1 ^ if power & 1 == 1 { POLYNOMIAL } else { 0 };
        at += 1;
    }
    power as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_known_checksum_of_digits_comes_out() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    /// What a CPU of each level would say, as far as this one can.
    fn all(crc: u32, bytes: &[u8]) -> Vec<u32> {
        let mut crcs = vec![crc32c_append(crc, bytes), crc_fast(crc, bytes)];
        if level() >= Level::Avx2 {
            // SAFETY: the CPU has SSE4.2.
            crcs.push(!unsafe { short(!crc, bytes) });
            // SAFETY: the CPU has what this level has.
            crcs.push(!unsafe { long(!crc, bytes) });
        }
        if level() >= Level::Avx512 {
            // SAFETY: the CPU has what this level has.
            crcs.push(!unsafe { long_by_registers_of_64_bytes(!crc, bytes) });
        }
        crcs
    }

    proptest! {
        #[test]
        fn it_is_what_another_implementation_says(bytes in prop::collection::vec(any::<u8>(), 0..5000), at in 0_usize..5000) {
            let (head, tail) = bytes.split_at(at.min(bytes.len()));
            let expected = ::crc32c::crc32c(&bytes);
            prop_assert!(all(0, &bytes).iter().all(|crc| *crc == expected));
            prop_assert_eq!(crc32c(&bytes), expected);
            prop_assert_eq!(crc32c_append(crc32c(head), tail), crc32c(&bytes));
            prop_assert_eq!(crc32c_before(expected, tail), crc32c(head));
        }
    }

    #[test]
    fn every_level_sums_every_length_at_every_offset() {
        let bytes: Vec<u8> = (0..1500_u32).map(|at| ((at * at) >> 3) as u8).collect();
        for at in 0..16 {
            for piece in (0..=1400).map(|len| &bytes[at..at + len]) {
                let expected = ::crc32c::crc32c_append(0x1234_5678, piece);
                assert!(
                    all(0x1234_5678, piece).iter().all(|crc| *crc == expected),
                    "{} bytes at {at}",
                    piece.len()
                );
            }
        }
    }
}
