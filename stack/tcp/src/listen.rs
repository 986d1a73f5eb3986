//! Listeners, and the connections that are half-open on them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use stack_net::time::Instant;

use crate::flow::FlowKey;
use crate::tcp::connection::{Handshake, Profile};

/// Most listeners of an endpoint.
pub(crate) const MAX_LISTENERS: usize = 64;

/// Times that SYN and ACK are sent again, the first time after [`SYN_ACK_INTERVAL`], then after twice that.
const SYN_ACK_RETRIES: u8 = 5;
const SYN_ACK_INTERVAL: Duration = Duration::from_secs(1);

/// An address that connections are accepted on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listener {
    pub address: SocketAddr,
    pub backlog: usize,
    /// What its connections go by.
    pub profile: Profile,
    /// Half-open connections.
    pub half_open: usize,
    /// Connections whose opening the application has not been told.
    pub untold: usize,
}

/// Whether who has `own`, of which the IP may be unspecified, has what comes to `ip` and `port`.
pub(crate) fn accepts(own: SocketAddr, ip: IpAddr, port: u16) -> bool {
    let own_ip = own.ip();
    let any = own_ip.is_unspecified() && (own_ip.is_ipv4() == ip.is_ipv4() || own_ip.is_ipv6());
    own.port() == port && (any || own_ip == ip)
}

/// Whether something could come to both addresses.
pub(crate) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    accepts(one, other.ip(), other.port()) || accepts(other, one.ip(), one.port())
}

/// The connections for which SYN and ACK were sent, in memory taken at the start.
#[derive(Debug)]
pub(crate) struct Listeners {
    list: Vec<Listener>,
    half_open: Box<[Option<HalfOpen>]>,
    free: Vec<u32>,
    /// How many have not answered in time, and where the last of them that had to leave was.
    overdue: usize,
    hand: usize,
}

/// A connection in SYN-RECEIVED.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HalfOpen {
    pub handshake: Handshake,
    pub listener: u16,
    pub until: Instant,
}

impl Listeners {
    pub(crate) fn new(half_open: usize) -> Self {
        Self {
            list: Vec::with_capacity(MAX_LISTENERS),
            half_open: vec![None; half_open].into_boxed_slice(),
            free: (0..half_open as u32).rev().collect(),
            overdue: 0,
            hand: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Adds a listener; false if its address is taken.
    pub(crate) fn add(&mut self, address: SocketAddr, backlog: usize, profile: Profile) -> bool {
        if self.list.iter().any(|listener| overlap(listener.address, address)) {
            return false;
        }
        self.list.push(Listener { address, backlog, profile, half_open: 0, untold: 0 });
        true
    }

    /// The listener that takes connections to the local end of `key`.
    pub(crate) fn find(&self, key: &FlowKey) -> Option<u16> {
        let ip = key.local_ip();
        self.list
            .iter()
            .position(|listener| accepts(listener.address, ip, key.local_port))
            .map(|place| place as u16)
    }

    pub(crate) fn listener(&mut self, listener: u16) -> &mut Listener {
        &mut self.list[listener as usize]
    }

    /// Whether a listener on that port exists at all.
    pub(crate) fn is_port_used(&self, port: u16) -> bool {
        self.list.iter().any(|listener| listener.address.port() == port)
    }

    /// Remembers a half-open connection; none if the listener's or the endpoint's limit is reached.
    pub(crate) fn insert(
        &mut self,
        handshake: Handshake,
        listener: u16,
        now: Instant,
    ) -> Option<(u32, Instant)> {
        let owner = &mut self.list[listener as usize];
        if owner.half_open >= owner.backlog {
            return None;
        }
        let place = self.free.pop()?;
        owner.half_open += 1;
        let until = now + SYN_ACK_INTERVAL;
        self.half_open[place as usize] = Some(HalfOpen { handshake, listener, until });
        Some((place, until))
    }

    /// How many connections are half-open.
    pub(crate) fn half_open(&self) -> usize {
        self.half_open.len() - self.free.len()
    }

    /// Whether there is a half-open connection whose peer has not answered in time.
    pub(crate) fn has_overdue(&self) -> bool {
        self.overdue > 0
    }

    /// The next half-open connection whose peer has not answered in time.
    pub(crate) fn next_overdue(&mut self) -> Option<u32> {
        if self.overdue == 0 {
            return None;
        }
        let places = self.half_open.len();
        let is_overdue = |place: &usize| {
            self.half_open[*place].as_ref().is_some_and(|half_open| half_open.handshake.retries > 0)
        };
        let place = (1..=places).map(|step| (self.hand + step) % places).find(is_overdue)?;
        self.hand = place;
        Some(place as u32)
    }

    pub(crate) fn get(&self, place: u32) -> Option<&HalfOpen> {
        self.half_open[place as usize].as_ref()
    }

    pub(crate) fn remove(&mut self, place: u32) {
        if let Some(half_open) = self.half_open[place as usize].take() {
            self.list[half_open.listener as usize].half_open -= 1;
            self.overdue -= usize::from(half_open.handshake.retries > 0);
            self.free.push(place);
        }
    }

    /// A half-open connection's timer has fired: when it does so next, or none if the peer is given up.
    pub(crate) fn expire(&mut self, place: u32, now: Instant) -> Option<Instant> {
        let half_open = self.half_open[place as usize].as_mut()?;
        let handshake = &mut half_open.handshake;
        if handshake.retries >= SYN_ACK_RETRIES {
            return None;
        }
        self.overdue += usize::from(handshake.retries == 0);
        handshake.retries += 1;
        handshake.sent_at = None;
        half_open.until = now + SYN_ACK_INTERVAL * (1 << handshake.retries);
        Some(half_open.until)
    }

    /// SYN and ACK go out again, since the peer's SYN came again, from `mac`: which of them it will answer cannot be
    /// told.
    pub(crate) fn answered_again(&mut self, place: u32, mac: [u8; 6], heeds_marks: bool) {
        if let Some(half_open) = &mut self.half_open[place as usize] {
            half_open.handshake.sent_at = None;
            half_open.handshake.mac = mac;
            half_open.handshake.heeds_marks = heeds_marks;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(local: &str) -> FlowKey {
        FlowKey::new(local.parse().unwrap(), "10.0.0.9:5000".parse().unwrap())
    }

    #[test]
    fn addresses_do_not_overlap() {
        let mut listeners = Listeners::new(4);
        assert!(listeners.add("10.0.0.2:80".parse().unwrap(), 8, Profile::DEFAULT));
        assert!(!listeners.add("0.0.0.0:80".parse().unwrap(), 8, Profile::DEFAULT));
        assert!(listeners.add("0.0.0.0:81".parse().unwrap(), 8, Profile::DEFAULT));
        assert!(!listeners.add("10.0.0.2:81".parse().unwrap(), 8, Profile::DEFAULT));
        assert_eq!(listeners.find(&key("10.0.0.2:80")), Some(0));
        assert_eq!(listeners.find(&key("10.0.0.3:80")), None);
        assert_eq!(listeners.find(&key("10.0.0.3:81")), Some(1));
        assert_eq!(listeners.find(&key("[fd00::2]:81")), None);
    }

    #[test]
    fn the_backlog_and_the_queue_are_limits() {
        let mut listeners = Listeners::new(3);
        listeners.add("10.0.0.2:80".parse().unwrap(), 2, Profile::DEFAULT);
        listeners.add("10.0.0.2:81".parse().unwrap(), 9, Profile::DEFAULT);
        let handshake = Handshake {
            key: key("10.0.0.2:80"),
            mac: [2; 6],
            iss: crate::tcp::seq::Seq(1),
            irs: crate::tcp::seq::Seq(2),
            mss: 1460,
            window_scale: None,
            sacks: false,
            heeds_marks: false,
            clock: None,
            offered: 0,
            sent_at: None,
            retries: 0,
        };
        let now = Instant::ZERO;
        let (first, until) = listeners.insert(handshake, 0, now).unwrap();
        assert!(listeners.insert(handshake, 0, now).is_some());
        assert!(listeners.insert(handshake, 0, now).is_none());
        assert!(listeners.insert(handshake, 1, now).is_some());
        assert!(listeners.insert(handshake, 1, now).is_none());
        assert_eq!(listeners.expire(first, until), Some(Instant::from_secs(3)));
        for _ in 1..SYN_ACK_RETRIES {
            assert!(listeners.expire(first, until).is_some());
        }
        assert_eq!(listeners.expire(first, until), None);
        listeners.remove(first);
        assert!(listeners.insert(handshake, 0, now).is_some());
    }
}
