//! Sequence numbers: 32 bits that wrap (RFC 9293, section 3.4).

use std::ops::{Add, AddAssign};

/// A place in one direction's stream of bytes, modulo 2^32.
///
/// Unlike `smoltcp::wire::TcpSeqNumber` no operation panics: differences come from hostile peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Seq(pub u32);

impl Seq {
    /// Bytes from `earlier` up to here; meaningful only if `earlier` is not after this.
    pub(crate) fn since(self, earlier: Seq) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    pub(crate) fn before(self, other: Seq) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    pub(crate) fn after(self, other: Seq) -> bool {
        other.before(self)
    }

    pub(crate) fn at_or_before(self, other: Seq) -> bool {
        !self.after(other)
    }

    pub(crate) fn at_or_after(self, other: Seq) -> bool {
        !self.before(other)
    }

    pub(crate) fn max(self, other: Seq) -> Seq {
        if self.after(other) { self } else { other }
    }

    pub(crate) fn min(self, other: Seq) -> Seq {
        if self.before(other) { self } else { other }
    }

    /// The number `bytes` further back.
    pub(crate) fn back(self, bytes: u32) -> Seq {
        Seq(self.0.wrapping_sub(bytes))
    }
}

impl Add<u32> for Seq {
    type Output = Seq;

    fn add(self, bytes: u32) -> Seq {
        Seq(self.0.wrapping_add(bytes))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, bytes: u32) {
        *self = *self + bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let low = Seq(u32::MAX - 4);
        let high = low + 10;
        assert_eq!(high.0, 5);
        assert!(low.before(high) && high.after(low));
        assert!(low.at_or_before(low) && low.at_or_after(low));
        assert_eq!(high.since(low), 10);
        assert_eq!((low.max(high), low.min(high)), (high, low));
        assert_eq!(high.back(10), low);
    }
}
