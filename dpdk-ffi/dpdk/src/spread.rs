//! How many queues a server runs: one for each core, and with each queue a shard of its own.

use std::fmt;
use std::num::NonZeroU16;

use dpdk_sys as sys;

/// What a device has for spreading received frames over queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpreadCapabilities {
    /// Most receive queues.
    pub max_rx_queues: u16,
    /// Most transmit queues.
    pub max_tx_queues: u16,
    /// The kinds of packets it can hash, as DPDK's bits.
    pub hashes: u64,
}

/// How a server's queues are laid out. Queue number n is served by one core alone, receives into a pool over the
/// arena of shard number n, and sends through the transmit queue of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePlan {
    /// Pairs of a receive and a transmit queue, and so cores, pools and shards in use.
    pub queues: NonZeroU16,
    /// The kinds of packets to hash, as DPDK's bits; what is of none of them comes to queue 0. Zero for one queue.
    pub hashes: u64,
    /// Why there are no more queues.
    pub limit: QueueLimit,
}

/// What keeps the number of queues down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueLimit {
    /// No more cores were wanted.
    Cores,
    /// Each queue has a shard of its own.
    Shards,
    /// The device's receive queues.
    RxQueues,
    /// The device's transmit queues.
    TxQueues,
    /// The device does not hash what TCP's connections differ in.
    NoHash,
}

impl fmt::Display for QueueLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cores => "as many as cores were asked for",
            Self::Shards => "as many as the store has shards",
            Self::RxQueues => "as many as the device has receive queues",
            Self::TxQueues => "as many as the device has transmit queues",
            Self::NoHash => "one, since the device does not hash TCP's or IP's addresses",
        })
    }
}

/// How many queues to run for `cores` wanted cores over a store of `shards` shards. Never more than either, as both
/// a queue and a shard belong to one core. A device without any queue is refused when its port is started.
pub fn queues_for(capabilities: &SpreadCapabilities, cores: NonZeroU16, shards: NonZeroU16) -> QueuePlan {
    let hashes = hash_functions(capabilities.hashes);
    let mut plan = QueuePlan { queues: cores, hashes, limit: QueueLimit::Cores };
    let at_least_one = |queues: u16| NonZeroU16::new(queues).unwrap_or(NonZeroU16::MIN);
    let limits = [
        (shards, QueueLimit::Shards),
        (at_least_one(capabilities.max_rx_queues), QueueLimit::RxQueues),
        (at_least_one(capabilities.max_tx_queues), QueueLimit::TxQueues),
        (if hashes == 0 { NonZeroU16::MIN } else { NonZeroU16::MAX }, QueueLimit::NoHash),
    ];
    for (queues, limit) in limits {
        if queues < plan.queues {
            plan = QueuePlan { queues, limit, ..plan };
        }
    }
    if plan.queues == NonZeroU16::MIN {
        plan.hashes = 0;
    }
    plan
}

/// Of the kinds of packets that a device can hash, those to spread TCP's connections by. Each is a function of
/// addresses and ports, so that all segments of a connection come to one queue.
pub(crate) fn hash_functions(offered: u64) -> u64 {
    (u64::from(sys::RTE_ETH_RSS_IP) | u64::from(sys::RTE_ETH_RSS_TCP)) & offered
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP_V4: u64 = sys::RTE_ETH_RSS_NONFRAG_IPV4_TCP as u64;

    fn plan(rx: u16, tx: u16, hashes: u64, cores: u16, shards: u16) -> (u16, u64, QueueLimit) {
        let capabilities = SpreadCapabilities { max_rx_queues: rx, max_tx_queues: tx, hashes };
        let some = |count| NonZeroU16::new(count).unwrap();
        let plan = queues_for(&capabilities, some(cores), some(shards));
        (plan.queues.get(), plan.hashes, plan.limit)
    }

    #[test]
    fn the_scarcest_thing_decides() {
        assert_eq!(plan(16, 16, TCP_V4, 4, 8), (4, TCP_V4, QueueLimit::Cores));
        assert_eq!(plan(16, 16, TCP_V4, 4, 4), (4, TCP_V4, QueueLimit::Cores));
        assert_eq!(plan(16, 16, TCP_V4, 8, 4), (4, TCP_V4, QueueLimit::Shards));
        assert_eq!(plan(3, 16, TCP_V4, 8, 4), (3, TCP_V4, QueueLimit::RxQueues));
        assert_eq!(plan(3, 2, TCP_V4, 8, 4), (2, TCP_V4, QueueLimit::TxQueues));
    }

    #[test]
    fn without_a_hash_there_is_one_queue_and_one_queue_needs_no_hash() {
        let udp = u64::from(sys::RTE_ETH_RSS_NONFRAG_IPV4_UDP);
        assert_eq!(plan(16, 16, udp & !u64::from(sys::RTE_ETH_RSS_IP), 4, 4), (1, 0, QueueLimit::NoHash));
        assert_eq!(plan(16, 16, 0, 4, 4), (1, 0, QueueLimit::NoHash));
        assert_eq!(plan(16, 16, TCP_V4, 1, 4), (1, 0, QueueLimit::Cores));
        assert_eq!(plan(16, 16, TCP_V4, 4, 1), (1, 0, QueueLimit::Shards));
    }

    #[test]
    fn a_device_that_names_no_queues_is_taken_to_have_one() {
        assert_eq!(plan(0, 0, TCP_V4, 4, 4), (1, 0, QueueLimit::RxQueues));
    }

    #[test]
    fn only_hashes_of_addresses_and_tcp_ports_are_used_and_only_those_that_there_are() {
        let addresses = u64::from(sys::RTE_ETH_RSS_IPV4);
        let other = sys::RTE_ETH_RSS_IPV4_CHKSUM;
        assert_eq!(hash_functions(TCP_V4 | addresses | other), TCP_V4 | addresses);
        assert_eq!(hash_functions(other), 0);
    }
}
