//! Warnings about the network, from the totals that the reports show: few, however much goes wrong.

use std::time::{Duration, Instant};

use super::access::Traffic;
use crate::service::{Drops, in_words};

/// How far back is looked: clients that get no answer come again after 1, 3 and 7 seconds.
const WINDOW: Duration = Duration::from_secs(8);
/// Fewer than this are no reason to worry.
const LEAST: u64 = 4;
/// The same for frames to all or to a group, which any network has: fewer than this in a window are no storm.
const LEAST_TO_GROUPS: u64 = 8_000;
/// Between two warnings of one kind.
const REST: Duration = Duration::from_secs(60);

/// The part of what came in that drops of a kind must be. With retransmissions and acknowledgements between them, a quarter
/// is already a server which does not get on; and of frames that came uncut, each of which was many segments, a sixteenth.
fn share(kind: &str) -> u64 {
    if kind == "truncated" { 16 } else { 4 }
}

/// What was seen when the window began, and what was said lately.
#[derive(Debug)]
pub(super) struct Watch {
    began: Instant,
    received: u64,
    drops: Drops,
    said: Vec<(&'static str, Instant)>,
    link_up: Option<bool>,
    narrowed: Option<u32>,
}

impl Watch {
    pub(super) fn start(now: Instant) -> Self {
        Self {
            began: now,
            received: 0,
            drops: Drops::default(),
            said: Vec::new(),
            link_up: None,
            narrowed: None,
        }
    }

    /// Looks at what there is by now, and says what has changed for the worse, or back.
    pub(super) fn look(&mut self, traffic: &impl Traffic, now: Instant) {
        if let Some(up) = traffic.link_up() {
            match (self.link_up.replace(up), up) {
                (Some(true) | None, false) => {
                    tracing::warn!("the link is down: nobody reaches the server until it is up again");
                }
                (Some(false), true) => tracing::warn!("the link is up again"),
                _ => {}
            }
        }
        let narrowed = traffic.narrowed();
        if let Some(mtu) = narrowed.filter(|_| self.narrowed != narrowed) {
            tracing::warn!(
                "the link takes {mtu} bytes by now, less than the server's MTU: longer packets are lost; raise it \
                 again, or restart the server"
            );
        }
        self.narrowed = narrowed;
        for warning in self.dominant(traffic, now) {
            tracing::warn!("{warning}");
        }
    }

    /// Warnings about kinds of drops that a good [part](share) of what came in fell to.
    fn dominant(&mut self, traffic: &impl Traffic, now: Instant) -> Vec<String> {
        let received = traffic.received() - self.received;
        let mut warnings = Vec::new();
        for (kind, count) in traffic.drops().kinds() {
            let new = count.unwrap_or(0).saturating_sub(self.drops.count(kind));
            let has_rested = |said: &[(&str, Instant)]| {
                !said.iter().any(|(other, at)| *other == kind && now.duration_since(*at) < REST)
            };
            let least = if kind == "group" { LEAST_TO_GROUPS } else { LEAST };
            if new >= least && new >= received.div_ceil(share(kind)) && has_rested(&self.said) {
                self.said.retain(|(other, _)| *other != kind);
                self.said.push((kind, now));
                let cause = likely_cause(kind).map_or(String::new(), |cause| format!(": {cause}"));
                warnings.push(format!(
                    "dropped {new} for \"{}\" in {:.0} s, of {received} frames received{cause}",
                    in_words(kind),
                    now.duration_since(self.began).as_secs_f64().max(1.0),
                ));
            }
        }
        if now.duration_since(self.began) >= WINDOW {
            *self = Self {
                began: now,
                received: traffic.received(),
                drops: traffic.drops().clone(),
                said: std::mem::take(&mut self.said),
                link_up: self.link_up,
                narrowed: self.narrowed,
            };
        }
        warnings
    }
}

/// What is likely behind a kind that dominates, and what to do about it.
fn likely_cause(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "checksum" => {
            "the peers' kernel leaves checksums to a card that this link does not have, or the cable is bad; on the \
             peers' side: ethtool -K INTERFACE tx off"
        }
        "truncated" => {
            "frames longer than the device hands over: a kernel on this machine leaves their cutting to a card that is \
             not there; on the peers' interface: ethtool -K INTERFACE tso off gso off tx off, and on this one: gro off \
             lro off"
        }
        "vlan" => {
            "the server is in no VLAN: have the switch, or an interface on top of the VLAN, take the tags off"
        }
        "malformed" => "somebody sends rubbish, or the cable is bad",
        "address" => {
            "frames for other hosts arrive here: look for a wrong entry in the peers' neighbor tables, or a second \
             host with this address"
        }
        "group" => "a storm of frames to all hosts: look for a loop between switches, or for who sends them",
        "fragment" | "reassembly" => {
            "the peers' path splits packets, and loses some: lower the MTU on their side"
        }
        "protocol" => "somebody speaks to the server by protocols, or to ports, that it does not serve",
        "no_buffer" => {
            "the store has no free buffers for what arrives: trim the log (DELETE), or make a larger store"
        }
        "backlog" | "not_accepted" | "refused" => {
            "there is no place for more clients: raise --max-connections"
        }
        "limited" | "other" => "somebody floods the server with what it answers at a bounded rate only",
        "window" | "unexpected" | "timestamp" => {
            "segments of connections that are not, or no longer, known here: a scan, a flood, or clients of a server \
             that was here before"
        }
        "between_cores" => {
            "a core does not keep up with what others deal out to it: serve with fewer or more cores"
        }
        "device_missed" => {
            "the cores do not keep up with the device: serve with more cores, or --idle spin and CPUs of their own"
        }
        "device_no_mbuf" => "the receive pool is empty: trim the log (DELETE), or make a larger store",
        "device_errors" => "the device receives damaged frames: look at the cable and its other end",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Seen {
        received: u64,
        drops: Drops,
    }

    impl Traffic for Seen {
        fn received(&self) -> u64 {
            self.received
        }

        fn drops(&self) -> &Drops {
            &self.drops
        }
    }

    fn seen(received: u64, checksum: u64) -> Seen {
        Seen { received, drops: Drops::of([("checksum", Some(checksum)), ("vlan", Some(0))]) }
    }

    #[test]
    fn what_dominates_is_told_once_with_its_cause_and_again_only_later() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut watch = Watch::start(start);
        assert!(watch.dominant(&seen(100, 3), at(1)).is_empty());
        assert!(watch.dominant(&seen(100, 24), at(2)).is_empty());
        let said = watch.dominant(&seen(100, 60), at(3));
        assert!(said.len() == 1 && said[0].contains("60 for \"checksum\"") && said[0].contains("ethtool -K"));
        for s in 4..60 {
            assert!(watch.dominant(&seen(100 * s, 100 * s), at(s)).is_empty(), "{s}");
        }
        assert_eq!(watch.dominant(&seen(7000, 7000), at(64)).len(), 1);
        assert!(watch.dominant(&seen(9000, 7000), at(200)).is_empty());
    }

    #[test]
    fn a_client_that_only_tries_to_connect_is_enough() {
        let start = Instant::now();
        let mut watch = Watch::start(start);
        let said: Vec<_> = [(1, 1), (1, 2), (3, 3), (7, 4)]
            .into_iter()
            .flat_map(|(s, count)| watch.dominant(&seen(count + 2, count), start + Duration::from_secs(s)))
            .collect();
        assert_eq!(said.len(), 1, "{said:?}");
    }

    /// Other hosts' queries and announcements are no reason to warn; a storm of them is.
    #[test]
    fn what_any_network_has_is_not_told() {
        let start = Instant::now();
        let to_groups = |count| Seen { received: count, drops: Drops::of([("group", Some(count))]) };
        let mut watch = Watch::start(start);
        for s in 1..100 {
            assert_eq!(watch.dominant(&to_groups(50 * s), start + Duration::from_secs(s)), [""; 0], "{s}");
        }
        let said = watch.dominant(&to_groups(50_000), start + Duration::from_secs(101));
        assert!(said.len() == 1 && said[0].contains("a storm"), "{said:?}");
    }
}
