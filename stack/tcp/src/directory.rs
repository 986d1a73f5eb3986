//! Which flows the cores of a host have, for each of them to see: a segment that no core can have a connection for is
//! refused where it comes in, and goes to no other core.

use std::hash::Hasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use siphasher::sip::SipHasher13;

use crate::flow::FlowKey;

/// Places for each flow: so many segments at most, one in as many, are looked up in vain when all cores are full.
const PLACES_PER_FLOW: usize = 8;

/// How many flows of all cores have each value of a keyed hash.
///
/// A place counts what hashes to it. One that was ever full stays so: it is then looked up in vain.
#[derive(Clone, Debug)]
pub struct FlowDirectory {
    places: Arc<[AtomicU8]>,
    hasher: SipHasher13,
}

impl FlowDirectory {
    /// For the cores of a host with that secret, and so many flows of all of them: connections, half-open ones, and those
    /// in TIME-WAIT.
    pub fn new(secret: &[u8; 16], flows: usize) -> Self {
        let places = (flows.max(1) * PLACES_PER_FLOW).next_power_of_two();
        // Another key than those of the flow tables and of steering.
        let key = secret.map(|byte| byte ^ 0xa5);
        let places = (0..places).map(|_| AtomicU8::new(0)).collect();
        Self { places, hasher: SipHasher13::new_with_key(&key) }
    }

    pub(crate) fn add(&self, key: &FlowKey) {
        let more = |count: u8| count.checked_add(1);
        let _ = self.place(key).fetch_update(Ordering::AcqRel, Ordering::Relaxed, more);
    }

    pub(crate) fn remove(&self, key: &FlowKey) {
        let fewer = |count| (1..u8::MAX).contains(&count).then(|| count - 1);
        let _ = self.place(key).fetch_update(Ordering::AcqRel, Ordering::Relaxed, fewer);
    }

    /// Whether any core may have the flow; certainly none if not.
    pub(crate) fn may_have(&self, key: &FlowKey) -> bool {
        self.place(key).load(Ordering::Acquire) > 0
    }

    fn place(&self, key: &FlowKey) -> &AtomicU8 {
        let mut hasher = self.hasher;
        hasher.write(&key.to_bytes());
        &self.places[hasher.finish() as usize & (self.places.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey::new("10.0.0.2:80".parse().unwrap(), (std::net::Ipv4Addr::LOCALHOST, port).into())
    }

    #[test]
    fn no_flow_is_missed_and_few_are_looked_for_in_vain() {
        let directory = FlowDirectory::new(&[7; 16], 1_000);
        (1..=1_000).for_each(|port| directory.add(&key(port)));
        assert!((1..=1_000).all(|port| directory.may_have(&key(port))));
        let in_vain = (1_001..=11_000).filter(|&port| directory.may_have(&key(port))).count();
        assert!(in_vain < 10_000 / 6, "{in_vain} of 10,000");
        (1..=500).for_each(|port| directory.remove(&key(port)));
        assert!((501..=1_000).all(|port| directory.may_have(&key(port))));
        (501..=1_000).for_each(|port| directory.remove(&key(port)));
        assert!(!(1..=11_000).any(|port| directory.may_have(&key(port))));
    }

    #[test]
    fn a_full_place_stays_full() {
        let directory = FlowDirectory::new(&[7; 16], 1);
        (0..300).for_each(|_| directory.add(&key(1)));
        (0..300).for_each(|_| directory.remove(&key(1)));
        assert!(directory.may_have(&key(1)));
    }
}
