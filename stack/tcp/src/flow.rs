//! Flows: which connection a segment belongs to, found in constant time whatever the peers choose.

use std::hash::Hasher;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use siphasher::sip::SipHasher13;

use crate::directory::FlowDirectory;
use crate::fast::Ends;

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
    /// No flow's.
    pub(crate) const NONE: Self =
        Self { local: Ipv6Addr::UNSPECIFIED, remote: Ipv6Addr::UNSPECIFIED, local_port: 0, remote_port: 0 };

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

    /// Both ports as they stand in a segment from the other side.
    fn port_word(&self) -> u32 {
        let ([a, b], [c, d]) = (self.remote_port.to_be_bytes(), self.local_port.to_be_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }

    pub(crate) fn is_v4(&self) -> bool {
        // Asked several times a segment; the address in parts would be taken together each time.
        u128::from(self.local) >> 32 == 0xffff
    }

    /// Whether a segment over IPv4 between these ends is of this flow.
    #[inline]
    pub(crate) fn has_ends(&self, ends: &Ends) -> bool {
        let is = |own: Ipv6Addr, address: u32| {
            let mut mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
            mapped[12..].copy_from_slice(&address.to_ne_bytes());
            own.octets() == mapped
        };
        is(self.local, ends.local) & is(self.remote, ends.remote) & (self.port_word() == ends.ports)
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

/// The 32-bit words of a key: four of each address, and one of both ports.
const WORDS: usize = 9;

/// A hash of flows under a secret key, so that peers cannot choose ports that collide: each word times a factor of its
/// own, summed up (universal: M. Thorup, "High speed hashing for integers and strings", section 3.2), and stirred by two
/// more multiplications, since neighbours would otherwise stand in rows, which linear probing does not take well.
#[derive(Clone, Debug)]
struct FlowHash {
    factors: [u64; WORDS],
    /// What the sum begins with, and what that is once the constant words of two IPv4-mapped addresses are in it.
    start: u64,
    start_v4: u64,
    stirrers: [u64; 2],
}

impl FlowHash {
    /// One of the many that follow from a secret.
    fn new(secret: &[u8; 16], number: u32) -> Self {
        let word = |at: u32| {
            let mut hasher = SipHasher13::new_with_key(secret);
            hasher.write_u64(u64::from(number) << 32 | u64::from(at));
            hasher.finish()
        };
        let factors: [u64; WORDS] = std::array::from_fn(|at| word(at as u32));
        let start = word(WORDS as u32);
        let stirrers = [1, 2].map(|at| word(WORDS as u32 + at) | 1);
        let mapped = u64::from(u32::from_ne_bytes([0, 0, 0xff, 0xff]));
        let prefixes = factors[2].wrapping_add(factors[6]).wrapping_mul(mapped);
        Self { factors, start, start_v4: start.wrapping_add(prefixes), stirrers }
    }

    fn of(&self, key: &FlowKey) -> u32 {
        let (local, remote) = (key.local.octets(), key.remote.octets());
        let words = local.as_chunks::<4>().0.iter().chain(remote.as_chunks::<4>().0);
        let words = words.map(|word| u32::from_ne_bytes(*word)).chain([key.port_word()]);
        let terms = self.factors.iter().zip(words).map(|(factor, word)| factor.wrapping_mul(word.into()));
        self.stir(terms.fold(self.start, u64::wrapping_add))
    }

    /// That of a flow over IPv4, by what stands in a frame.
    #[inline]
    fn of_v4(&self, &Ends { local, remote, ports }: &Ends) -> u32 {
        let term = |at: usize, word: u32| self.factors[at].wrapping_mul(word.into());
        let sum = self.start_v4.wrapping_add(term(3, local));
        self.stir(sum.wrapping_add(term(7, remote)).wrapping_add(term(8, ports)))
    }

    #[inline]
    fn stir(&self, sum: u64) -> u32 {
        let product = u128::from(sum) * u128::from(self.stirrers[0]);
        let folded = product as u64 ^ (product >> 64) as u64;
        (folded.wrapping_mul(self.stirrers[1]) >> 32) as u32
    }
}

/// Places in a row that an insertion finds taken before the table looks for another hash: chance brings so many
/// about in none of as many tables as there will ever be.
const MAX_PROBES: usize = 256;

/// All flows of an endpoint: a table with linear probing, at most half full.
#[derive(Debug)]
pub(crate) struct FlowTable {
    hash: FlowHash,
    /// What a search reads, apart from the keys that only a hit needs.
    entries: Box<[Entry]>,
    keys: Box<[FlowKey]>,
    secret: [u8; 16],
    /// Which of the hashes that follow from the secret is in use.
    number: u32,
    /// What the other cores see of it.
    directory: Option<FlowDirectory>,
}

/// A place in the table; free without a state.
#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u32,
    state: Option<FlowState>,
}

const FREE: Entry = Entry { hash: 0, state: None };

impl FlowTable {
    /// A table for at most `flows` flows.
    pub(crate) fn new(flows: usize, secret: &[u8; 16]) -> Self {
        let len = (2 * flows.max(1)).next_power_of_two();
        Self {
            hash: FlowHash::new(secret, 0),
            entries: vec![FREE; len].into(),
            keys: vec![FlowKey::NONE; len].into(),
            secret: *secret,
            number: 0,
            directory: None,
        }
    }

    /// From here on, what comes and goes is noted there.
    pub(crate) fn share(&mut self, directory: FlowDirectory) {
        self.directory = Some(directory);
    }

    /// Whether another core may have a flow that is not here.
    pub(crate) fn may_be_elsewhere(&self, key: &FlowKey) -> bool {
        self.directory.as_ref().is_none_or(|directory| directory.may_have(key))
    }

    pub(crate) fn find(&self, key: &FlowKey) -> Option<FlowState> {
        self.entries[self.position(key)?].state
    }

    /// What is probably the connection of a flow over IPv4, by its hash alone: the caller compares the key.
    #[inline]
    pub(crate) fn guess_v4(&self, ends: &Ends) -> Option<u32> {
        let hash = self.hash.of_v4(ends);
        let mut at = hash as usize & (self.entries.len() - 1);
        loop {
            match self.entries[at] {
                Entry { state: None, .. } => return None,
                Entry { hash: found, state } if found == hash => {
                    return if let Some(FlowState::Connection(index)) = state { Some(index) } else { None };
                }
                _ => at = self.after(at),
            }
        }
    }

    /// Adds a flow, or moves one that is there.
    pub(crate) fn insert(&mut self, key: FlowKey, state: FlowState) {
        if let Some(at) = self.position(&key) {
            self.entries[at].state = Some(state);
            return;
        }
        if let Some(directory) = &self.directory {
            directory.add(&key);
        }
        if !self.place(key, state, MAX_PROBES) {
            self.rehash();
            self.place(key, state, usize::MAX);
        }
    }

    pub(crate) fn remove(&mut self, key: &FlowKey) {
        let Some(mut hole) = self.position(key) else { return };
        if let Some(directory) = &self.directory {
            directory.remove(key);
        }
        // What stands behind and belongs at the hole or before it moves up, so that every search ends at a free place.
        let mask = self.entries.len() - 1;
        let mut at = self.after(hole);
        while self.entries[at].state.is_some() {
            let wanted = self.entries[at].hash as usize & mask;
            if (at.wrapping_sub(wanted) & mask) >= (at.wrapping_sub(hole) & mask) {
                (self.entries[hole], self.keys[hole]) = (self.entries[at], self.keys[at]);
                hole = at;
            }
            at = self.after(at);
        }
        self.entries[hole] = FREE;
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.entries.len() - 1)
    }

    fn position(&self, key: &FlowKey) -> Option<usize> {
        let hash = self.hash.of(key);
        let mut at = hash as usize & (self.entries.len() - 1);
        while self.entries[at].state.is_some() {
            if self.entries[at].hash == hash && self.keys[at] == *key {
                return Some(at);
            }
            at = self.after(at);
        }
        None
    }

    /// Puts a flow at the first free place; false if so many before it are taken.
    fn place(&mut self, key: FlowKey, state: FlowState, most: usize) -> bool {
        let hash = self.hash.of(&key);
        let mut at = hash as usize & (self.entries.len() - 1);
        let mut probes = 0;
        while self.entries[at].state.is_some() {
            at = self.after(at);
            probes += 1;
            if probes == most {
                return false;
            }
        }
        self.entries[at] = Entry { hash, state: Some(state) };
        self.keys[at] = key;
        true
    }

    /// Distributes all flows anew, under another key: whoever has found flows that collide has to begin again.
    #[cold]
    fn rehash(&mut self) {
        let len = self.entries.len();
        let entries = std::mem::replace(&mut self.entries, vec![FREE; len].into());
        let keys = std::mem::replace(&mut self.keys, vec![FlowKey::NONE; len].into());
        self.number = self.number.wrapping_add(1);
        self.hash = FlowHash::new(&self.secret, self.number);
        for (entry, key) in entries.iter().zip(keys) {
            if let Some(state) = entry.state {
                self.place(key, state, usize::MAX);
            }
        }
    }

    /// Gives all flows the same hash, before there are any.
    #[cfg(test)]
    pub(crate) fn have_all_collide(&mut self) {
        self.hash.factors = [0; WORDS];
        self.hash.start_v4 = self.hash.start;
    }

    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.entries.len()
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

    /// The same as a standard map does, whatever collides.
    #[test]
    fn flows_come_and_go_as_in_any_map() {
        use rand::{RngExt as _, SeedableRng as _};
        for seed in 0..20 {
            let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let mut table = FlowTable::new(64, &[seed as u8; 16]);
            if seed % 2 == 0 {
                // All begin to search at one of a few places.
                let FlowHash { factors, start, start_v4, .. } = &mut table.hash;
                (*factors, *start) = (std::array::from_fn(|at| (at as u64 / 8) << 62), 1 << 60);
                *start_v4 = *start;
            }
            let mut model = std::collections::HashMap::new();
            for step in 0..4_000u32 {
                let port = random.random_range(1..200u16);
                let v6 = FlowKey::new(
                    "[fd00::2]:80".parse().unwrap(),
                    SocketAddr::new("fd00::1".parse().unwrap(), port),
                );
                let flow = if random.random() { key(port) } else { v6 };
                if model.len() < 64 && random.random() {
                    model.insert(flow.to_bytes(), FlowState::Connection(step));
                    table.insert(flow, FlowState::Connection(step));
                } else {
                    model.remove(&flow.to_bytes());
                    table.remove(&flow);
                }
                assert_eq!(
                    table.find(&flow),
                    model.get(&flow.to_bytes()).copied(),
                    "seed {seed}, step {step}"
                );
            }
            for port in 1..200 {
                assert_eq!(
                    table.find(&key(port)),
                    model.get(&key(port).to_bytes()).copied(),
                    "seed {seed}, {port}"
                );
            }
        }
    }

    #[test]
    fn a_flow_over_ipv4_is_guessed_from_a_frames_words() {
        let mut table = FlowTable::new(8, &[1; 16]);
        table.insert(key(7), FlowState::Connection(3));
        table.insert(key(8), FlowState::HalfOpen(4));
        let guess = |port: u16| {
            let [a, b] = port.to_be_bytes();
            let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
            let (local, remote) = (word([10, 0, 0, 2]), word([10, 0, 0, 1]));
            table.guess_v4(&Ends { local, remote, ports: word([a, b, 0, 80]) })
        };
        assert_eq!((guess(7), guess(8), guess(9)), (Some(3), None, None));
    }

    #[test]
    fn flows_that_collide_are_distributed_anew() {
        let mut table = FlowTable::new(1024, &[1; 16]);
        table.hash.factors = [0; WORDS];
        for port in 1..=1024 {
            table.insert(key(port), FlowState::Connection(port.into()));
        }
        assert_eq!(table.number, 1);
        for port in 1..=1024 {
            assert_eq!(table.find(&key(port)), Some(FlowState::Connection(port.into())));
        }
        let mask = table.capacity() - 1;
        let far = |at: usize, entry: &Entry| at.wrapping_sub(entry.hash as usize) & mask;
        let used = table.entries.iter().enumerate().filter(|(_, entry)| entry.state.is_some());
        let probes: Vec<_> = used.map(|(at, entry)| far(at, entry)).collect();
        assert!(probes.iter().sum::<usize>() < 2 * probes.len(), "{probes:?}");
    }

    /// Ports in a row, addresses in a row, of either version: as near to their places as by chance.
    #[test]
    fn flows_in_a_row_do_not_collide() {
        for secret in 0..50 {
            let mut table = FlowTable::new(4096, &[secret; 16]);
            for at in 0..4096u16 {
                let [host, port] = at.to_be_bytes();
                let remote = if secret % 2 == 0 {
                    SocketAddr::new([10, 0, 1, host].into(), 1024 + u16::from(port))
                } else {
                    SocketAddr::new([0xfd00, 0, 0, 0, 0, 0, 1, host.into()].into(), 1024 + u16::from(port))
                };
                table.insert(
                    FlowKey::new("10.0.0.2:80".parse().unwrap(), remote),
                    FlowState::Connection(at.into()),
                );
            }
            assert_eq!(table.number, 0);
            let mask = table.capacity() - 1;
            let used = table.entries.iter().enumerate().filter(|(_, entry)| entry.state.is_some());
            let probes: usize = used.map(|(at, entry)| at.wrapping_sub(entry.hash as usize) & mask).sum();
            assert!(probes < 3000, "{probes} with secret {secret}");
        }
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
