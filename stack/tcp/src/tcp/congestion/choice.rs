//! The algorithms that there are, by name.

use std::fmt;
use std::str::FromStr;

/// What decides how much may be in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CongestionControl {
    /// CUBIC (RFC 9438) with HyStart++ (RFC 9406).
    #[default]
    Cubic,
    /// NewReno (RFC 5681, RFC 6582) with HyStart++.
    NewReno,
    /// BBR, version 1: it goes by the rate at which the path delivers, not by losses, and sends at a rate.
    Bbr,
}

impl CongestionControl {
    /// All of them, the usual one first.
    pub const ALL: [Self; 3] = [Self::Cubic, Self::NewReno, Self::Bbr];

    /// The name by which it is chosen.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::NewReno => "newreno",
            Self::Bbr => "bbr",
        }
    }

    /// Whether it makes a model of the path, of the rates at which it delivers.
    pub(crate) const fn models(self) -> bool {
        matches!(self, Self::Bbr)
    }
}

impl fmt::Display for CongestionControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No algorithm has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no congestion control; name one of cubic, newreno, bbr")]
pub struct UnknownCongestionControl(String);

impl FromStr for CongestionControl {
    type Err = UnknownCongestionControl;

    fn from_str(name: &str) -> Result<Self, UnknownCongestionControl> {
        let named = Self::ALL.into_iter().find(|algorithm| algorithm.name() == name);
        named.ok_or_else(|| UnknownCongestionControl(name.to_owned()))
    }
}
