//! Flows: which connection a segment belongs to, found in constant time whatever the peers choose.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use siphasher::sip::SipHasher13;

/// The two ends of a connection. IPv4 addresses stand as IPv4-mapped IPv6 addresses (RFC 4291, section
/// 2.5.5.2), which never come in as such: frames that carry them are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowKey {
    pub local: Ipv6Addr,
    pub remote: Ipv6Addr,
    pub local_port: u16,
    pub remote_port: u16,
}

impl FlowKey {
    pub(crate) fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            local: mapped(local.ip()),
            remote: mapped(remote.ip()),
            local_port: local.port(),
            remote_port: remote.port(),
        }
    }

    pub(crate) fn local_ip(&self) -> IpAddr {
        IpAddr::V6(self.local).to_canonical()
    }

    pub(crate) fn remote_ip(&self) -> IpAddr {
        IpAddr::V6(self.remote).to_canonical()
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        SocketAddr::new(self.remote_ip(), self.remote_port)
    }

    pub(crate) fn is_v4(&self) -> bool {
        // Asked several times a segment; the address in parts would be taken together each time.
        u128::from(self.local) >> 32 == 0xffff
    }

    /// The four parts in a fixed order, for keyed hashes.
    pub(crate) fn to_bytes(self) -> [u8; 36] {
        let mut bytes = [0; 36];
        bytes[..16].copy_from_slice(&self.local.octets());
        bytes[16..32].copy_from_slice(&self.remote.octets());
        bytes[32..34].copy_from_slice(&self.local_port.to_be_bytes());
        bytes[34..].copy_from_slice(&self.remote_port.to_be_bytes());
        bytes
    }
}

impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.to_bytes());
    }
}

/// An address as an IPv6 address.
pub(crate) fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Where a flow's state lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowState {
    /// In the connection table.
    Connection(u32),
    /// Among the half-open connections.
    HalfOpen(u32),
    /// Among those in TIME-WAIT.
    TimeWait(u32),
}

/// A hash builder with a secret key, so that peers cannot choose ports that collide.
#[derive(Clone, Debug)]
pub(crate) struct Keyed(SipHasher13);

impl Keyed {
    pub(crate) fn new(secret: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(secret))
    }
}

impl std::hash::BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        self.0
    }
}

/// All flows of an endpoint.
#[derive(Debug)]
pub(crate) struct FlowTable {
    places: HashMap<FlowKey, FlowState, Keyed>,
}

impl FlowTable {
    /// A table for at most `flows` flows.
    pub(crate) fn new(flows: usize, secret: &[u8; 16]) -> Self {
        // Twice the room: with at most half of it in use the table clears its tombstones in place and
        // never grows.
        Self { places: HashMap::with_capacity_and_hasher(2 * flows, Keyed::new(secret)) }
    }

    pub(crate) fn find(&self, key: &FlowKey) -> Option<FlowState> {
        self.places.get(key).copied()
    }

    pub(crate) fn insert(&mut self, key: FlowKey, place: FlowState) {
        self.places.insert(key, place);
    }

    pub(crate) fn remove(&mut self, key: &FlowKey) {
        self.places.remove(key);
    }

    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.places.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey::new("10.0.0.2:80".parse().unwrap(), SocketAddr::new("10.0.0.1".parse().unwrap(), port))
    }

    #[test]
    fn both_versions_come_back_as_they_went_in() {
        let v4 = key(7);
        assert!(v4.is_v4());
        assert_eq!(v4.peer(), "10.0.0.1:7".parse().unwrap());
        let v6 = FlowKey::new("[fd00::2]:80".parse().unwrap(), "[fd00::1]:9".parse().unwrap());
        assert!(!v6.is_v4());
        assert_eq!(v6.peer(), "[fd00::1]:9".parse().unwrap());
        assert_eq!(v6.local_ip(), "fd00::2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn churn_does_not_make_the_table_grow() {
        let mut table = FlowTable::new(64, &[1; 16]);
        let capacity = table.capacity();
        for port in 0..20_000u16 {
            table.insert(key(port), FlowState::Connection(port.into()));
            if port >= 64 {
                table.remove(&key(port - 64));
            }
        }
        assert_eq!(table.capacity(), capacity);
        assert_eq!(table.find(&key(19_999)), Some(FlowState::Connection(19_999)));
        assert_eq!(table.find(&key(19_000)), None);
    }
}
