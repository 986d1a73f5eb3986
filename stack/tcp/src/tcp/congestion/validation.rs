//! A window that is not used says less of the network with time (RFC 7661).

use std::time::Duration;

use stack_net::time::Instant;

/// For so long a window counts of which not even half is used: the non-validated period of RFC 7661, section 4.4.
const COUNTS: Duration = Duration::from_secs(300);

/// When a window was last used by half at least, as far as that is known.
#[derive(Clone, Debug)]
pub(super) struct Validation(Option<Instant>);

impl Validation {
    pub(super) fn new() -> Self {
        Self(None)
    }

    /// More is sent, with `flight` bytes in flight: whether half of the window is to be given up, since it has not been used
    /// for so long.
    pub(super) fn is_over(&mut self, now: Instant, flight: u32, cwnd: u32) -> bool {
        let used = *self.0.get_or_insert(now);
        let is_used = flight >= cwnd / 2;
        let is_over = !is_used && now - used > COUNTS;
        if is_used || is_over {
            self.0 = Some(now);
        }
        is_over
    }
}
