//! Which bytes of a buffer the log may name: no two records ever share any.
//!
//! That matters while pieces of a buffer are still on their way into the log, and few buffers are in that state at a time.
//! So the spans of those that were claimed last are kept, in a table of one size whatever the store's. Of a claimed
//! buffer that is not in it all bytes count as claimed: what is appended of it is copied.

use std::cell::Cell;

/// Buffers whose spans are kept.
const CLAIMS: u32 = 4096;

/// The span of a buffer that was claimed.
#[derive(Clone, Copy)]
struct Claim {
    buffer: u32,
    from: u16,
    to: u16,
}

const NOBODYS: Claim = Claim { buffer: u32::MAX, from: 0, to: 0 };

/// The spans of the buffers that were claimed last.
pub(super) struct Claims(Box<[Cell<Claim>; CLAIMS as usize]>);

impl Claims {
    pub(super) fn new() -> Self {
        let claims: Box<[_]> = vec![Cell::new(NOBODYS); CLAIMS as usize].into();
        Self(claims.try_into().unwrap_or_else(|_| unreachable!("it was made with this length")))
    }

    /// The first claim of a buffer.
    #[inline]
    pub(super) fn begin(&self, buffer: u32, from: u16, to: u16) {
        self.of(buffer).set(Claim { buffer, from, to });
    }

    /// Another claim of a buffer; false if it may meet what was claimed of it before.
    #[inline]
    pub(super) fn widen(&self, buffer: u32, from: u16, to: u16) -> bool {
        let claim = self.of(buffer);
        let before = claim.get();
        if before.buffer != buffer || from < before.to && before.from < to {
            return false;
        }
        claim.set(Claim { buffer, from: before.from.min(from), to: before.to.max(to) });
        true
    }

    /// All of a buffer is claimed.
    #[inline]
    pub(super) fn forget(&self, buffer: u32) {
        let claim = self.of(buffer);
        if claim.get().buffer == buffer {
            claim.set(NOBODYS);
        }
    }

    #[inline]
    fn of(&self, buffer: u32) -> &Cell<Claim> {
        &self.0[(buffer % CLAIMS) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_whose_span_was_displaced_or_forgotten_has_no_byte_that_is_not_claimed() {
        let claims = Claims::new();
        claims.begin(7, 100, 200);
        assert!(claims.widen(7, 200, 300) && claims.widen(7, 50, 100));
        assert!(!claims.widen(7, 299, 301) && !claims.widen(7, 0, 51) && !claims.widen(7, 120, 130));
        claims.begin(7 + CLAIMS, 0, 10);
        assert!(!claims.widen(7, 1000, 1100));
        assert!(claims.widen(7 + CLAIMS, 10, 20));
        claims.forget(7);
        assert!(claims.widen(7 + CLAIMS, 20, 30), "that was another's");
        claims.forget(7 + CLAIMS);
        assert!(!claims.widen(7 + CLAIMS, 1000, 1100));
        claims.begin(7, 0, 10);
        assert!(claims.widen(7, 10, 20));
    }
}
