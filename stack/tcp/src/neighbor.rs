//! The Ethernet addresses of hosts and gateways that were asked for: those that this side opens connections to, and
//! those that have fallen silent, which may have moved (RFC 4861, section 7.3; RFC 9293, section 3.8.3). Else hosts are
//! answered where their frames come from, so that nobody but ourselves can fill these tables.

use std::net::IpAddr;
use std::time::Duration;

use stack_net::time::Instant;

/// Most hosts and gateways at a time.
pub(crate) const MAX_NEIGHBORS: usize = 64;

/// Queries before a neighbor counts as unreachable, and the time between them (RFC 4861, section 10).
const QUERIES: u8 = 3;
const QUERY_INTERVAL: Duration = Duration::from_secs(1);

/// How long an answer is believed when a connection is opened, and when one gets no answers.
pub(crate) const VALID: Duration = Duration::from_secs(60);
pub(crate) const VALID_IN_DOUBT: Duration = Duration::from_secs(2);

/// The neighbors that were asked for.
#[derive(Debug)]
pub(crate) struct Neighbors {
    entries: Box<[Option<Neighbor>]>,
    valid: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Neighbor {
    ip: IpAddr,
    state: State,
    /// When the state ends: the next query, or the end of an answer's validity.
    until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asked { queries: u8 },
    Known([u8; 6]),
}

/// What is known of a neighbor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    Known([u8; 6]),
    /// A query is under way; an answer, or [`Expired`], follows.
    Waiting,
    /// A query is to be sent, and this entry's timer set.
    Ask {
        entry: u32,
        until: Instant,
    },
    /// All entries wait for answers.
    Full,
}

/// What is to be done about an entry whose time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    Nothing,
    AskAgain { ip: IpAddr, until: Instant },
    Unreachable(IpAddr),
}

impl Neighbors {
    pub(crate) fn new(valid: Duration) -> Self {
        Self { entries: vec![None; MAX_NEIGHBORS].into_boxed_slice(), valid }
    }

    pub(crate) fn find(&mut self, ip: IpAddr, now: Instant) -> Lookup {
        let known = self.entries.iter().flatten().find(|entry| entry.ip == ip);
        match known.map(|entry| (entry.state, entry.until)) {
            Some((State::Known(mac), until)) if until > now => return Lookup::Known(mac),
            Some((State::Asked { .. }, _)) => return Lookup::Waiting,
            _ => {}
        }
        let Some(place) = self.place_for(ip) else { return Lookup::Full };
        let until = now + QUERY_INTERVAL;
        self.entries[place] = Some(Neighbor { ip, state: State::Asked { queries: 1 }, until });
        Lookup::Ask { entry: place as u32, until }
    }

    /// The entry that already is for `ip`, else a free one, else the known one that ends first.
    fn place_for(&self, ip: IpAddr) -> Option<usize> {
        let same = self.entries.iter().position(|entry| entry.is_some_and(|entry| entry.ip == ip));
        let free = || self.entries.iter().position(Option::is_none);
        let oldest = || {
            let known = self.entries.iter().enumerate().filter_map(|(place, entry)| {
                entry.filter(|entry| matches!(entry.state, State::Known(_))).map(|entry| (entry.until, place))
            });
            known.min().map(|(_, place)| place)
        };
        same.or_else(free).or_else(oldest)
    }

    /// Notes what a frame says; true if someone may be waiting for it. What does not override counts only where
    /// nothing is known (RFC 4861, section 7.2.5).
    pub(crate) fn learned(&mut self, ip: IpAddr, mac: [u8; 6], overrides: bool, now: Instant) -> bool {
        let Some(entry) = self.entries.iter_mut().flatten().find(|entry| entry.ip == ip) else {
            return false;
        };
        let waited = matches!(entry.state, State::Asked { .. });
        if waited || overrides || entry.state == State::Known(mac) {
            (entry.state, entry.until) = (State::Known(mac), now + self.valid);
        }
        waited
    }

    /// An entry's timer has fired.
    pub(crate) fn expire(&mut self, entry: u32, now: Instant) -> Expired {
        let slot = &mut self.entries[entry as usize];
        let Some(neighbor) = slot.as_mut().filter(|neighbor| neighbor.until <= now) else {
            return Expired::Nothing;
        };
        let ip = neighbor.ip;
        match &mut neighbor.state {
            State::Known(_) => Expired::Nothing,
            State::Asked { queries } if *queries < QUERIES => {
                *queries += 1;
                neighbor.until = now + QUERY_INTERVAL;
                Expired::AskAgain { ip, until: neighbor.until }
            }
            State::Asked { .. } => {
                *slot = None;
                Expired::Unreachable(ip)
            }
        }
    }
}

/// Where neighbors have last said they are, unasked or not. A few, and anyone can overwrite them: a hint for connections
/// that get no answers.
#[derive(Debug)]
pub(crate) struct Hearsay {
    entries: Box<[(IpAddr, [u8; 6], Instant)]>,
    next: usize,
}

impl Hearsay {
    pub(crate) fn new() -> Self {
        let nobody = (IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), [0; 6], Instant::ZERO);
        Self { entries: vec![nobody; MAX_NEIGHBORS].into_boxed_slice(), next: 0 }
    }

    pub(crate) fn note(&mut self, ip: IpAddr, mac: [u8; 6], now: Instant) {
        let same = self.entries.iter().position(|(known, ..)| *known == ip);
        let place = same.unwrap_or_else(|| {
            self.next = (self.next + 1) % self.entries.len();
            self.next
        });
        self.entries[place] = (ip, mac, now);
    }

    /// Where `ip` has said it is later than `since`.
    pub(crate) fn since(&self, ip: IpAddr, since: Instant) -> Option<[u8; 6]> {
        let entry = self.entries.iter().find(|(known, ..)| *known == ip)?;
        (entry.2 > since).then_some(entry.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn an_answer_is_believed_for_a_while() {
        let mut neighbors = Neighbors::new(VALID);
        assert!(matches!(neighbors.find(ip(1), Instant::ZERO), Lookup::Ask { .. }));
        assert_eq!(neighbors.find(ip(1), Instant::ZERO), Lookup::Waiting);
        assert!(neighbors.learned(ip(1), [2; 6], true, Instant::ZERO));
        assert!(!neighbors.learned(ip(1), [3; 6], true, Instant::ZERO));
        assert_eq!(neighbors.find(ip(1), Instant::from_secs(59)), Lookup::Known([3; 6]));
        assert!(matches!(neighbors.find(ip(1), Instant::from_secs(60)), Lookup::Ask { .. }));
    }

    #[test]
    fn what_does_not_override_changes_nothing_that_is_known() {
        let mut neighbors = Neighbors::new(VALID);
        neighbors.find(ip(1), Instant::ZERO);
        assert!(neighbors.learned(ip(1), [2; 6], false, Instant::ZERO));
        neighbors.learned(ip(1), [3; 6], false, Instant::ZERO);
        assert_eq!(neighbors.find(ip(1), Instant::ZERO), Lookup::Known([2; 6]));
    }

    #[test]
    fn the_latest_news_counts_and_old_news_makes_room() {
        let mut hearsay = Hearsay::new();
        hearsay.note(ip(1), [2; 6], Instant::from_secs(1));
        hearsay.note(ip(1), [3; 6], Instant::from_secs(2));
        assert_eq!(hearsay.since(ip(1), Instant::from_secs(1)), Some([3; 6]));
        assert_eq!(hearsay.since(ip(1), Instant::from_secs(2)), None);
        (100..100 + MAX_NEIGHBORS as u8)
            .for_each(|last| hearsay.note(ip(last), [4; 6], Instant::from_secs(3)));
        assert_eq!(hearsay.since(ip(1), Instant::ZERO), None);
    }

    #[test]
    fn silence_is_unreachable_after_three_queries() {
        let mut neighbors = Neighbors::new(VALID);
        let Lookup::Ask { entry, .. } = neighbors.find(ip(1), Instant::ZERO) else { panic!() };
        assert_eq!(neighbors.expire(entry, Instant::from_millis(999)), Expired::Nothing);
        for second in 1..3 {
            let until = Instant::from_secs(second + 1);
            let again = Expired::AskAgain { ip: ip(1), until };
            assert_eq!(neighbors.expire(entry, Instant::from_secs(second)), again);
        }
        assert_eq!(neighbors.expire(entry, Instant::from_secs(3)), Expired::Unreachable(ip(1)));
    }

    #[test]
    fn nobody_else_fills_the_table_and_old_answers_make_room() {
        let mut neighbors = Neighbors::new(VALID);
        assert!(!neighbors.learned(ip(1), [2; 6], true, Instant::ZERO));
        for last in 0..MAX_NEIGHBORS as u8 {
            assert!(matches!(neighbors.find(ip(last), Instant::ZERO), Lookup::Ask { .. }));
        }
        assert_eq!(neighbors.find(ip(200), Instant::ZERO), Lookup::Full);
        neighbors.learned(ip(5), [2; 6], true, Instant::ZERO);
        assert!(matches!(neighbors.find(ip(200), Instant::ZERO), Lookup::Ask { entry: 5, .. }));
    }
}
