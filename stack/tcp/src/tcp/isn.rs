//! Numbers that only the holder of the secret can guess: initial sequence numbers (RFC 6528), offsets of
//! the timestamp clock (RFC 7323, section 7.1), and SYN cookies.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;
use stack_net::time::Instant;

use super::options::Options;
use super::seq::Seq;
use crate::flow::FlowKey;

/// Segment sizes that a cookie can express; the largest that is not above the peer's is taken.
const COOKIE_MSS: [u16; 8] = [536, 1024, 1220, 1400, 1440, 1452, 1460, 8940];

/// How long a cookie's period lasts, in microseconds; a cookie is accepted in its period and the next.
const COOKIE_PERIOD_US: i64 = 60_000_000;

/// The window shift of a peer that scales no windows, in a cookie's timestamp.
const NO_SCALE: u32 = 15;

/// The generator of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Secret {
    hasher: SipHasher24,
}

/// What each keyed hash is for, so that none tells anything about another.
#[derive(Clone, Copy)]
enum Purpose {
    Sequence = 1,
    Clock = 2,
    Cookie = 3,
    Port = 4,
}

/// What a valid cookie says of the peer's SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cookie {
    pub mss: u16,
    /// The peer's window shift; `None` if it scales none, or sent no timestamps that could say so.
    pub window_scale: Option<u8>,
    /// Whether the peer understands selective acknowledgements.
    pub sacks: bool,
    /// Whether marks of congestion are heeded: only with timestamps that can say so.
    pub heeds_marks: bool,
}

impl Secret {
    pub(crate) fn new(key: &[u8; 16]) -> Self {
        Self { hasher: SipHasher24::new_with_key(key) }
    }

    /// RFC 6528, section 3: a clock of 4 us plus a keyed hash of the two ends.
    pub(crate) fn isn(&self, key: &FlowKey, now: Instant) -> Seq {
        let clock = (now.as_micros() / 4) as u32;
        Seq(clock.wrapping_add(self.hash(Purpose::Sequence, &key.to_bytes(), 0) as u32))
    }

    /// What is added to the millisecond clock in the timestamps that a flow carries.
    pub(crate) fn clock_offset(&self, key: &FlowKey) -> u32 {
        self.hash(Purpose::Clock, &key.to_bytes(), 0) as u32
    }

    /// Where the search for a local port towards `key`'s remote end begins, and which counter it goes by (RFC 6056,
    /// section 3.3.4).
    pub(crate) fn port_offset(&self, key: &FlowKey) -> (u32, u32) {
        let hash = self.hash(Purpose::Port, &key.to_bytes(), 0);
        (hash as u32, (hash >> 32) as u32)
    }

    /// An initial sequence number that holds what must be remembered of a SYN: 4 bits of the period, one of whether
    /// selective acknowledgements are understood, 3 of the segment size, 24 of a keyed hash over all that and the flow.
    pub(crate) fn cookie(&self, key: &FlowKey, irs: Seq, mss: u16, sacks: bool, now: Instant) -> Seq {
        let period = now.as_micros() / COOKIE_PERIOD_US;
        let size = COOKIE_MSS.iter().rposition(|&size| size <= mss).unwrap_or(0) as u32;
        let said = u32::from(sacks) << 3 | size;
        Seq((period as u32 & 15) << 28 | said << 24 | self.cookie_hash(key, irs, period, said))
    }

    /// The low bits of the timestamp that goes out with a cookie hold the peer's window shift, and whether marks of
    /// congestion are heeded. It is at most 31 ms behind the clock and never ahead of it: the connection's first segments carry the clock itself, and would be
    /// dropped as old ones (RFC 7323, section 5.3).
    pub(crate) fn cookie_clock(clock: u32, options: &Options, heeds_marks: bool) -> u32 {
        let said = u32::from(heeds_marks) << 4 | options.window_scale.map_or(NO_SCALE, u32::from);
        let back = if said > clock & 31 { 32 } else { 0 };
        ((clock & !31) | said).wrapping_sub(back)
    }

    /// Verifies the cookie that an ACK acknowledges; `echo` is the timestamp echoed with it.
    pub(crate) fn open_cookie(
        &self,
        key: &FlowKey,
        irs: Seq,
        cookie: Seq,
        echo: Option<u32>,
        now: Instant,
    ) -> Option<Cookie> {
        let this_period = now.as_micros() / COOKIE_PERIOD_US;
        let period = [this_period, this_period - 1].into_iter().find(|p| *p as u32 & 15 == cookie.0 >> 28)?;
        let said = cookie.0 >> 24 & 15;
        if cookie.0 & 0xff_ffff != self.cookie_hash(key, irs, period, said) {
            return None;
        }
        let scale = echo.map_or(NO_SCALE, |echo| echo & 15);
        let window_scale = u8::try_from(scale).ok().filter(|&shift| u32::from(shift) != NO_SCALE);
        let heeds_marks = echo.is_some_and(|echo| echo & 16 != 0);
        Some(Cookie { mss: COOKIE_MSS[said as usize & 7], window_scale, sacks: said & 8 != 0, heeds_marks })
    }

    fn cookie_hash(&self, key: &FlowKey, irs: Seq, period: i64, said: u32) -> u32 {
        let extra = u64::from(irs.0) | u64::from(said) << 32 | (period as u64) << 36;
        self.hash(Purpose::Cookie, &key.to_bytes(), extra) as u32 & 0xff_ffff
    }

    fn hash(&self, purpose: Purpose, bytes: &[u8], extra: u64) -> u64 {
        let mut hasher = self.hasher;
        hasher.write_u8(purpose as u8);
        hasher.write_u64(extra);
        hasher.write(bytes);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey::new("10.0.0.2:80".parse().unwrap(), (std::net::Ipv4Addr::LOCALHOST, port).into())
    }

    #[test]
    fn numbers_of_one_flow_rise_with_the_clock_and_flows_differ() {
        let secret = Secret::new(&[3; 16]);
        let early = secret.isn(&key(1), Instant::from_millis(10));
        let late = secret.isn(&key(1), Instant::from_millis(14));
        assert_eq!(late.since(early), 1000);
        assert_ne!(secret.isn(&key(2), Instant::from_millis(10)), early);
        assert_ne!(Secret::new(&[4; 16]).isn(&key(1), Instant::from_millis(10)), early);
    }

    #[test]
    fn a_cookie_s_timestamp_is_never_ahead_of_the_clock() {
        for clock in (0..64).chain(u32::MAX - 64..=u32::MAX) {
            for said in 0..=31u8 {
                let options = Options { window_scale: Some(said & 15), ..Options::default() };
                let value = Secret::cookie_clock(clock, &options, said & 16 != 0);
                assert_eq!(value & 31, said.into());
                assert!(clock.wrapping_sub(value) < 32, "{value} for {clock}");
            }
        }
    }

    #[test]
    fn a_cookie_opens_for_its_flow_and_time_only() {
        let secret = Secret::new(&[3; 16]);
        let (now, irs) = (Instant::from_secs(1000), Seq(99));
        let cookie = secret.cookie(&key(1), irs, 1459, true, now);
        let scaled = Options { window_scale: Some(9), ..Options::default() };
        let echo = Some(Secret::cookie_clock(123_456, &scaled, true));
        let soon = Instant::from_secs(1050);
        let open = |key, irs, cookie, at| secret.open_cookie(&key, irs, cookie, echo, at);
        let expected = Cookie { mss: 1452, window_scale: Some(9), sacks: true, heeds_marks: true };
        assert_eq!(open(key(1), irs, cookie, soon), Some(expected));
        assert_eq!(open(key(2), irs, cookie, soon), None);
        assert_eq!(open(key(1), irs + 1, cookie, soon), None);
        assert_eq!(open(key(1), irs, cookie + 1, soon), None);
        assert_eq!(open(key(1), irs, cookie, Instant::from_secs(1200)), None);
        let plain = secret.cookie(&key(1), irs, 1459, false, now);
        assert_eq!(open(key(1), irs, plain, soon), Some(Cookie { sacks: false, ..expected }));
        assert_eq!(open(key(1), irs, Seq(plain.0 ^ 1 << 27), soon), None, "what it says is part of the hash");
        let unscaled = secret.open_cookie(&key(1), irs, cookie, None, soon).unwrap();
        assert_eq!((unscaled.window_scale, unscaled.heeds_marks), (None, false));
    }
}
