//! Which of several cores a connection belongs to, or a datagram, where nobody else has decided it.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use crate::flow::FlowKey;
use crate::frame::flow_of;

/// Deals connections out to cores by a keyed hash, so that peers cannot choose ports that all come to one core.
#[derive(Clone, Debug)]
pub struct Steering {
    key: [u8; 16],
    cores: u16,
}

impl Steering {
    /// For so many cores, by a key that follows from the host's secret.
    pub fn new(secret: &[u8; 16], cores: u16) -> Self {
        // Another key than the flow table's: its hashes would otherwise be alike within a core.
        Self { key: secret.map(|byte| byte ^ 0x5a), cores }
    }

    /// The core of a flow.
    pub(crate) fn core_of(&self, flow: &FlowKey) -> u16 {
        if self.cores == 1 {
            return 0;
        }
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write(&flow.to_bytes());
        // The share of the hash's range in which it lies: less than the number of cores.
        ((u128::from(hasher.finish()) * u128::from(self.cores)) >> 64) as u16
    }

    /// The core to which a frame goes, of which `apart` bytes follow in another place; none if it carries no whole
    /// header of TCP or UDP, so that any core may see to it.
    pub fn core_of_frame(&self, frame: &[u8], apart: usize) -> Option<u16> {
        flow_of(frame, apart).map(|flow| self.core_of(&flow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> FlowKey {
        let remote = std::net::SocketAddr::new([10, 0, 0, 1].into(), port);
        FlowKey::new("10.0.0.2:80".parse().unwrap(), remote)
    }

    #[test]
    fn each_core_gets_its_share_and_always_the_same() {
        for cores in [1, 2, 3, 16] {
            let steering = Steering::new(&[3; 16], cores);
            let mut shares = vec![0_u32; cores.into()];
            for port in 1..=16_000 {
                let core = steering.core_of(&flow(port));
                assert_eq!(core, steering.core_of(&flow(port)));
                shares[usize::from(core)] += 1;
            }
            let fair = 16_000 / u32::from(cores);
            assert!(shares.iter().all(|share| share.abs_diff(fair) <= fair / 5), "{shares:?}");
        }
    }

    #[test]
    fn without_the_key_nobody_knows_the_core() {
        let (one, other) = (Steering::new(&[1; 16], 2), Steering::new(&[2; 16], 2));
        let differ =
            (1..1_000).filter(|&port| one.core_of(&flow(port)) != other.core_of(&flow(port))).count();
        assert!((300..700).contains(&differ), "{differ} of 999");
    }
}
