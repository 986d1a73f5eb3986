//! Limits on how often something is done.

use std::hash::Hasher as _;
use std::net::IpAddr;
use std::time::Duration;

use siphasher::sip::SipHasher13;
use stack_net::time::Instant;

/// Allows one action per interval on average, and a burst at first (the virtual scheduling of GCRA).
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateLimit {
    /// When the bucket would be full again.
    full_at: Instant,
}

/// How much a [`RateLimit`] allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub interval: Duration,
    pub burst: u32,
}

impl Rate {
    pub(crate) const fn per_second(count: u64, burst: u32) -> Self {
        Self { interval: Duration::from_micros(1_000_000 / count), burst }
    }
}

impl RateLimit {
    pub(crate) fn new() -> Self {
        Self { full_at: Instant::from_micros(i64::MIN / 2) }
    }

    /// Whether the action may be done now; if so it counts.
    pub(crate) fn allow(&mut self, rate: Rate, now: Instant) -> bool {
        self.allow_weighed(rate.interval, rate, now)
    }

    /// As [`allow`](Self::allow), for an action that counts as so much time.
    fn allow_weighed(&mut self, weight: Duration, rate: Rate, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + weight;
        if full_at > now + rate.interval * rate.burst {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

/// As [`RateLimit`], in four bytes, of rates that are counted in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShortLimit {
    /// When the bucket would be full again: the low bits of the millisecond.
    full_at_ms: u32,
}

impl ShortLimit {
    pub(crate) fn new(now: Instant) -> Self {
        Self { full_at_ms: now.as_millis() as u32 }
    }

    /// Whether the action may be done now; if so it counts.
    pub(crate) fn allow(&mut self, rate: Rate, now: Instant) -> bool {
        let now_ms = now.as_millis() as u32;
        let interval_ms = rate.interval.as_millis() as u32;
        let most_ms = interval_ms * rate.burst;
        // It is never more than that ahead: it was full long ago.
        let ahead_ms = Some(self.full_at_ms.wrapping_sub(now_ms)).filter(|ahead_ms| *ahead_ms <= most_ms);
        let ahead_ms = ahead_ms.unwrap_or(0) + interval_ms;
        let is_allowed = ahead_ms <= most_ms;
        if is_allowed {
            self.full_at_ms = now_ms.wrapping_add(ahead_ms);
        }
        is_allowed
    }
}

/// A limit on answers, which tells no host what another one has been answered: who counts the answers that he gets
/// could else find out that somebody elsewhere has a connection, and its numbers (Y. Cao et al., "Off-Path TCP Exploits:
/// Global Rate Limit Considered Dangerous").
///
/// Each host has a limit of its own, but for the chance that it shares a place of the table. What all have together is
/// bounded as well, with answers that count for one on average, and for how much nobody can foretell.
#[derive(Debug)]
pub(crate) struct HostLimits {
    hosts: Box<[RateLimit]>,
    all: RateLimit,
    hasher: SipHasher13,
    drawn: u64,
}

/// How much [`HostLimits`] allow: each host, and all together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostRates {
    pub host: Rate,
    pub all: Rate,
}

/// Places of hosts.
const HOSTS: usize = 1024;

impl HostLimits {
    /// By a key of its own; no two uses have the same.
    pub(crate) fn new(key: &[u8; 16]) -> Self {
        Self {
            hosts: vec![RateLimit::new(); HOSTS].into(),
            all: RateLimit::new(),
            hasher: SipHasher13::new_with_key(key),
            drawn: 0,
        }
    }

    /// Whether the action may be done now for that host; if so it counts.
    pub(crate) fn allow(&mut self, host: IpAddr, rates: HostRates, now: Instant) -> bool {
        let place = self.place_of(host);
        if !self.hosts[place].allow(rates.host, now) {
            return false;
        }
        self.drawn += 1;
        let chance = self.hash(&self.drawn.to_be_bytes()) as u32 % 2048;
        self.all.allow_weighed(rates.all.interval * chance / 1024, rates.all, now)
    }

    /// Who has an IPv6 address can have all those of its network.
    fn place_of(&self, host: IpAddr) -> usize {
        let hash = match host {
            IpAddr::V4(v4) => self.hash(&v4.octets()),
            IpAddr::V6(v6) => self.hash(&v6.octets()[..8]),
        };
        hash as usize % HOSTS
    }

    fn hash(&self, bytes: &[u8]) -> u64 {
        let mut hasher = self.hasher;
        hasher.write_u8(bytes.len() as u8);
        hasher.write(bytes);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn no_host_takes_from_another_and_all_together_have_a_limit() {
        let rates = HostRates { host: Rate::per_second(10, 10), all: Rate::per_second(1_000, 200) };
        let now = Instant::from_secs(1);
        let count = |limits: &mut HostLimits, host: [u8; 4], tries: usize| {
            (0..tries).filter(|_| limits.allow(host.into(), rates, now)).count()
        };
        let mut limits = HostLimits::new(&[7; 16]);
        assert_eq!(count(&mut limits, [10, 0, 0, 1], 1_000), 10);
        assert_eq!(count(&mut limits, [10, 0, 0, 2], 5), 5);
        let all = |key: u8| {
            let mut limits = HostLimits::new(&[key; 16]);
            (0..=255).map(|last| count(&mut limits, [10, 0, 1, last], 10)).sum::<usize>()
        };
        let allowed: Vec<_> = (0..20).map(all).collect();
        assert!(allowed.iter().all(|count| (100..400).contains(count)), "{allowed:?}");
        // How many they are cannot be foretold, so that nobody can tell by his own how many others had.
        assert!(allowed.iter().any(|count| *count != allowed[0]), "{allowed:?}");
    }

    #[test]
    fn one_network_of_ipv6_is_one_host() {
        let limits = HostLimits::new(&[7; 16]);
        let place = |text: &str| limits.place_of(text.parse().unwrap());
        assert_eq!(place("2001:db8::1"), place("2001:db8::ffff:1"));
        assert_ne!(place("2001:db8::1"), place("2001:db8:0:1::1"));
    }

    #[test]
    fn a_burst_then_the_rate() {
        let rate = Rate::per_second(10, 3);
        let mut limit = RateLimit::new();
        let allowed = |limit: &mut RateLimit, ms| {
            (0..10).filter(|_| limit.allow(rate, Instant::from_millis(ms))).count()
        };
        assert_eq!(allowed(&mut limit, 1000), 3);
        assert_eq!(allowed(&mut limit, 1050), 0);
        assert_eq!(allowed(&mut limit, 1100), 1);
        assert_eq!(allowed(&mut limit, 5000), 3);
    }

    /// Whatever happens at which times, and however much time passes in between: the same is allowed as by the limit that
    /// remembers all of the time.
    #[test]
    fn a_short_limit_allows_what_a_long_one_does() {
        let rate = Rate::per_second(10, 10);
        for seed in 0..4 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut now_ms = random.random_range(0..1 << 40);
            let now = Instant::from_millis(now_ms);
            let (mut short, mut long) = (ShortLimit::new(now), RateLimit::new());
            for step in 0..20_000 {
                now_ms += match random.random_range(0..1000) {
                    // Not such that the low bits do not tell from the last second.
                    0 => random.random_range(1..1 << 31),
                    1..100 => random.random_range(0..2_000),
                    _ => random.random_range(0..100),
                };
                let now = Instant::from_millis(now_ms);
                assert_eq!(short.allow(rate, now), long.allow(rate, now), "seed {seed}, step {step}");
            }
        }
    }
}
