//! What this CPU can do beyond x86-64, asked once.

use std::sync::atomic::{AtomicU8, Ordering};

/// A set of instructions. The greater has all of the lesser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Level {
    /// What x86-64 CPUs have in common.
    Portable = 1,
    /// AVX2, CRC-32C as an instruction (SSE4.2), and carry-less products (PCLMULQDQ).
    Avx2 = 2,
    /// AVX-512 (F, BW, DQ, VL), and such products of whole registers (VPCLMULQDQ). CPUs that slow down for
    /// AVX-512 lack these.
    Avx512 = 3,
}

/// What was found; 0 before anyone has asked.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The level of this CPU.
#[inline]
pub(crate) fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => detect(),
    }
}

#[cold]
fn detect() -> Level {
    let has_avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("pclmulqdq");
    let level = if !has_avx2 {
        Level::Portable
    } else if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("vpclmulqdq")
    {
        Level::Avx512
    } else {
        Level::Avx2
    };
    LEVEL.store(level as u8, Ordering::Relaxed);
    level
}
