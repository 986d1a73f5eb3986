//! How long packets may be on the paths that take less than this link (RFC 1191, RFC 8201), for each destination, so that
//! connections begin with what an earlier one has found out.
//!
//! What is known comes from ICMP errors that have been [believed](crate::icmp), and from segments that get no answer
//! however often they are sent (RFC 4821, section 7.7). Both may be wrong, or no longer right. So some time later a
//! connection that has enough to send makes one segment longer: if it is acknowledged without having been sent again,
//! all segments may be so long. Lengths between what passes and what does not are halved. Where nobody has enough to
//! send, what was found out is no longer believed after as long again.

use std::hash::Hasher as _;
use std::net::IpAddr;
use std::time::Duration;

use siphasher::sip::SipHasher13;
use stack_net::time::Instant;

use crate::flow::FlowKey;
use crate::tcp::seq::Seq;

/// Destinations that are remembered: sets, and places in each.
const SETS: usize = 64;
const WAYS: usize = 4;

/// How long what was found out is believed (RFC 1191, section 6.3; RFC 8201, section 4).
const BELIEVED: Duration = Duration::from_secs(600);

/// The time between probes that are lost.
const PAUSE: Duration = Duration::from_secs(1);

/// When a probe whose connection has ended is forgotten.
const PROBE_ENDS: Duration = Duration::from_secs(60);

/// Bytes that are not worth a probe.
const CLOSE_ENOUGH: u16 = 16;

/// The least that a path of IPv6 takes (RFC 8200, section 5), and what is believed of one of IPv4. Where the latter takes
/// less, its routers may divide the packets: to send smaller ones would let who can forge an ICMP error have a host send
/// next to nothing in each.
pub(crate) const LEAST_V6: u16 = 1280;
pub(crate) const LEAST_V4: u16 = 552;

/// What is known of the paths to destinations.
#[derive(Debug)]
pub(crate) struct Paths {
    places: Box<[[Option<Path>; WAYS]; SETS]>,
    hasher: SipHasher13,
}

/// A path that takes less than the link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    destination: IpAddr,
    /// What passes.
    mtu: u16,
    /// What does not, as far as has been found out in this round.
    too_long: u16,
    /// What a router has said that passes.
    told: u16,
    /// When more may be tried.
    try_at: Instant,
    probe: Option<Probe>,
    used: Instant,
}

/// A segment that was made longer, to see whether it passes.
#[derive(Clone, Copy, Debug)]
struct Probe {
    key: FlowKey,
    begin: Seq,
    end: Seq,
    mtu: u16,
    until: Instant,
    is_sent: bool,
}

impl Paths {
    /// By a key of its own, so that nobody can choose hosts that share a place.
    pub(crate) fn new(key: &[u8; 16]) -> Self {
        Self { places: Box::new([[None; WAYS]; SETS]), hasher: SipHasher13::new_with_key(key) }
    }

    fn set_of(&mut self, destination: IpAddr) -> &mut [Option<Path>; WAYS] {
        let mut hasher = self.hasher;
        match destination {
            IpAddr::V4(v4) => hasher.write(&v4.octets()),
            IpAddr::V6(v6) => hasher.write(&v6.octets()),
        }
        &mut self.places[hasher.finish() as usize % SETS]
    }

    /// What is known of the path to a destination.
    pub(crate) fn find(&mut self, destination: IpAddr, now: Instant) -> Option<&mut Path> {
        let path =
            self.set_of(destination).iter_mut().flatten().find(|path| path.destination == destination)?;
        path.used = now;
        if path.probe.is_none() && path.try_at + BELIEVED <= now {
            // It stays, so that connections that are narrow learn of it.
            (path.mtu, path.too_long, path.told) = (u16::MAX, u16::MAX, 0);
        }
        Some(path)
    }

    /// A router has said that the path takes no more than `mtu`.
    pub(crate) fn narrowed(&mut self, destination: IpAddr, mtu: u16, now: Instant) {
        self.note(destination, mtu, now, now + BELIEVED);
    }

    /// What is longer than `mtu` seems to be lost: that is tried again as soon as what is shorter gets through, since the
    /// whole path may have been broken.
    pub(crate) fn suspected(&mut self, destination: IpAddr, mtu: u16, now: Instant) {
        self.note(destination, mtu, now, now);
    }

    fn note(&mut self, destination: IpAddr, mtu: u16, now: Instant, try_at: Instant) {
        // What is less than an address can have is not believed: one below is that packets are divided.
        let least = if destination.is_ipv4() { LEAST_V4 - 1 } else { LEAST_V6 };
        let mtu = mtu.max(least);
        let new = Path { destination, mtu, too_long: u16::MAX, told: 0, try_at, probe: None, used: now };
        let set = self.set_of(destination);
        let same = set.iter().position(|path| path.is_some_and(|path| path.destination == destination));
        let oldest = || set.iter().enumerate().min_by_key(|(_, path)| path.map(|path| path.used));
        if let Some(place) = same.or_else(|| oldest().map(|(place, _)| place)) {
            set[place] = Some(new);
        }
    }
}

impl Path {
    /// What passes.
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu
    }

    /// A router has complained of the flow's probe, and said what would pass: it is tried next.
    pub(crate) fn told(&mut self, key: &FlowKey, mtu: u16) {
        let probed = self.probe_of(key).map(|probe| probe.mtu);
        if probed.is_some_and(|probed| (self.mtu + 1..probed).contains(&mtu)) {
            (self.told, self.too_long) = (mtu, mtu + 1);
        }
    }

    fn probe_of(&mut self, key: &FlowKey) -> Option<&mut Probe> {
        self.probe.as_mut().filter(|probe| probe.key == *key)
    }

    /// Notes how far the flow's peer has acknowledged what was sent to it.
    pub(crate) fn acknowledged(&mut self, key: &FlowKey, una: Seq, now: Instant) {
        let Some(probe) = self.probe else { return };
        let is_own = probe.key == *key;
        if is_own && probe.is_sent && una.at_or_after(probe.end) {
            (self.mtu, self.probe, self.try_at) = (probe.mtu, None, now);
        } else if is_own && !probe.is_sent || !is_own && probe.until <= now {
            self.probe = None;
        }
    }

    /// The length to try now, if it is time, where the connection's own limit is `most`.
    pub(crate) fn next_to_try(&mut self, most: u16, now: Instant) -> Option<u16> {
        if self.probe.is_some() || self.try_at > now || self.mtu >= most {
            return None;
        }
        if self.told > self.mtu {
            return Some(self.told.min(most));
        }
        if self.too_long > most {
            return Some(most);
        }
        if self.too_long - self.mtu > CLOSE_ENOUGH {
            return Some(self.mtu.midpoint(self.too_long));
        }
        // Another round begins later.
        (self.too_long, self.try_at) = (u16::MAX, now + BELIEVED);
        None
    }

    /// A segment is about to be sent as a probe.
    pub(crate) fn try_with(&mut self, key: FlowKey, (begin, end): (Seq, Seq), mtu: u16, now: Instant) {
        let until = now + PROBE_ENDS;
        self.probe = Some(Probe { key, begin, end, mtu, until, is_sent: false });
    }

    /// The flow has sent payload. If it is that of a probe once more, the probe was lost, and this is how many bytes it
    /// had.
    pub(crate) fn sent(&mut self, key: &FlowKey, (begin, end): (Seq, Seq), now: Instant) -> Option<u32> {
        let probe = self.probe_of(key)?;
        if !probe.is_sent && begin == probe.begin {
            probe.is_sent = true;
            return None;
        }
        if begin.at_or_after(probe.end) || end.at_or_before(probe.begin) {
            return None;
        }
        let (lost, bytes) = (probe.mtu, probe.end.since(probe.begin));
        self.too_long = self.too_long.min(lost);
        // Less than a router says may pass, but no more.
        if self.told >= lost {
            self.told = 0;
        }
        self.try_at = now + PAUSE;
        self.probe = None;
        Some(bytes)
    }
}

/// Timeouts in a row after which packets of `mtu` bytes are taken for too long (RFC 4821, section 7.7), and the next
/// shorter length that may pass. What IPv6's least does not pass is rather broken than narrow, so that more timeouts come
/// before less; and the last that can be done is to let routers divide packets of IPv4.
pub(crate) fn shorter(mtu: u16, is_v4: bool) -> Option<(u8, u16)> {
    match mtu {
        _ if mtu > LEAST_V6 => Some((3, LEAST_V6)),
        _ if mtu > LEAST_V4 => is_v4.then_some((6, LEAST_V4)),
        LEAST_V4 if is_v4 => Some((9, LEAST_V4 - 1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    fn key() -> FlowKey {
        FlowKey::new("10.0.0.1:80".parse().unwrap(), "10.0.0.2:4000".parse().unwrap())
    }

    #[test]
    fn however_many_destinations_are_told_of_only_so_many_are_remembered() {
        let mut paths = Paths::new(&[7; 16]);
        for n in 0..10_000 {
            paths.narrowed(ip(n), 1_280, Instant::from_secs(n.into()));
        }
        let known = (0..10_000).filter(|&n| paths.find(ip(n), Instant::ZERO).is_some()).count();
        assert!(known <= SETS * WAYS, "{known}");
        assert!(paths.find(ip(9_999), Instant::ZERO).is_some(), "the newest is remembered");
    }

    /// Tries until the round is over, on a path that takes `takes`.
    fn search(path: &mut Path, takes: u16, now: &mut Instant) -> usize {
        let mut probes = 0;
        loop {
            let Some(mtu) = path.next_to_try(1_500, *now) else {
                return probes;
            };
            probes += 1;
            path.try_with(key(), (Seq(0), Seq(100)), mtu, *now);
            path.sent(&key(), (Seq(0), Seq(100)), *now);
            if mtu > takes {
                path.sent(&key(), (Seq(0), Seq(90)), *now);
            }
            path.acknowledged(&key(), Seq(100), *now);
            *now += PAUSE;
        }
    }

    #[test]
    fn a_search_comes_near_to_what_passes_with_few_probes() {
        for takes in 1_280..=1_500 {
            let mut paths = Paths::new(&[7; 16]);
            let mut now = Instant::ZERO;
            paths.suspected(ip(1), 1_280, now);
            let path = paths.find(ip(1), now).unwrap();
            let probes = search(path, takes, &mut now);
            assert!(path.mtu() <= takes && takes - path.mtu() <= CLOSE_ENOUGH, "{} of {takes}", path.mtu());
            assert!(probes <= 6, "{probes} probes for {takes}");
            assert_eq!(path.next_to_try(1_500, now), None, "until ten minutes are over");
        }
    }

    #[test]
    fn what_nobody_had_enough_to_send_to_try_is_not_believed_for_ever() {
        let mut paths = Paths::new(&[7; 16]);
        paths.narrowed(ip(1), 1_280, Instant::ZERO);
        let at = |paths: &mut Paths, s| paths.find(ip(1), Instant::from_secs(s)).map(|path| path.mtu());
        assert_eq!(at(&mut paths, 1_199), Some(1_280));
        assert_eq!(at(&mut paths, 1_200), Some(u16::MAX));
    }

    #[test]
    fn what_a_router_says_of_a_probe_is_tried_next() {
        let mut paths = Paths::new(&[7; 16]);
        let now = Instant::ZERO;
        paths.suspected(ip(1), 1_280, now);
        let path = paths.find(ip(1), now).unwrap();
        assert_eq!(path.next_to_try(1_500, now), Some(1_500));
        path.try_with(key(), (Seq(0), Seq(100)), 1_500, now);
        path.sent(&key(), (Seq(0), Seq(100)), now);
        path.told(&key(), 1_400);
        path.sent(&key(), (Seq(0), Seq(90)), now);
        assert_eq!(path.next_to_try(1_500, now + PAUSE), Some(1_400));
    }
}
