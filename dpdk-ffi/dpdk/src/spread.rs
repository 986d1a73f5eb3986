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
    /// How it spreads frames though nobody has asked it to, if it does.
    pub unasked: Option<UnaskedSpread>,
}

/// How devices spread frames that offer no hashes, or that do not use those they offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaskedSpread {
    /// The kernel hashes addresses and ports over all queues that the device has, whether they are polled or not
    /// (packet(7), `PACKET_FANOUT_HASH`, which af_packet's `qpairs` asks for). A queue that runs over hands frames
    /// on to another.
    AllQueues,
    /// The other side hashes over the queues in use, and sends a flow to the queue from which it was last answered:
    /// Linux' multi-queue TAP, and virtio-net (VIRTIO 1.2, section 5.1.6.5.6).
    QueuesInUse,
    /// Whoever sends picks the queue (memif, vhost).
    Sender,
}

/// How a server's queues are laid out. Queue number n is served by core number n alone, receives into a pool over
/// the arena of shard number n, and sends through the transmit queue of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePlan {
    /// Pairs of a receive and a transmit queue. Cores beyond this number have none of their own.
    pub queues: NonZeroU16,
    /// The kinds of packets to hash, as DPDK's bits; what is of none of them comes to queue 0. Zero for one queue,
    /// and for a device that spreads unasked.
    pub hashes: u64,
    /// How frames come to the queues if no hash was asked for.
    pub unasked: Option<UnaskedSpread>,
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
    /// The device does not spread frames by what TCP's connections differ in.
    NoHash,
}

impl fmt::Display for UnaskedSpread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllQueues => "the kernel's hash over all queues",
            Self::QueuesInUse => "the other side's hash over the queues in use",
            Self::Sender => "the sender's choice",
        })
    }
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
    let unasked = capabilities.unasked;
    let mut plan = QueuePlan { queues: cores, hashes, unasked, limit: QueueLimit::Cores };
    let at_least_one = |queues: u16| NonZeroU16::new(queues).unwrap_or(NonZeroU16::MIN);
    let limits = [
        (shards, QueueLimit::Shards),
        (at_least_one(capabilities.max_rx_queues), QueueLimit::RxQueues),
        (at_least_one(capabilities.max_tx_queues), QueueLimit::TxQueues),
        (
            if hashes == 0 && unasked.is_none() { NonZeroU16::MIN } else { NonZeroU16::MAX },
            QueueLimit::NoHash,
        ),
    ];
    for (queues, limit) in limits {
        if queues < plan.queues {
            plan = QueuePlan { queues, limit, ..plan };
        }
    }
    if plan.queues == NonZeroU16::MIN {
        plan.unasked = None;
    }
    // A device that would be told to hash is not known to go on spreading as it does by itself.
    if plan.queues == NonZeroU16::MIN || unasked.is_some() {
        plan.hashes = 0;
    }
    plan
}

/// How a driver's device spreads frames unasked. `hashes` is what it can be told to hash.
///
/// TAP offers hashes, but for its flow rules only; the queues themselves are spread over by the kernel.
pub(crate) fn unasked(driver: &str, max_rx_queues: u16, hashes: u64) -> Option<UnaskedSpread> {
    match driver {
        _ if max_rx_queues < 2 => None,
        "net_af_packet" => Some(UnaskedSpread::AllQueues),
        "net_tap" => Some(UnaskedSpread::QueuesInUse),
        "net_virtio" if hash_functions(hashes) == 0 => Some(UnaskedSpread::QueuesInUse),
        "net_memif" | "net_vhost" => Some(UnaskedSpread::Sender),
        _ => None,
    }
}

/// Of the kinds of packets that a device can hash, those to spread TCP's connections by, and with them UDP's datagrams.
/// Each is a function of addresses and ports, so that all segments of a connection come to one queue.
pub(crate) fn hash_functions(offered: u64) -> u64 {
    match (u64::from(sys::RTE_ETH_RSS_IP) | u64::from(sys::RTE_ETH_RSS_TCP)) & offered {
        0 => 0,
        hashes => hashes | u64::from(sys::RTE_ETH_RSS_UDP) & offered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP_V4: u64 = sys::RTE_ETH_RSS_NONFRAG_IPV4_TCP as u64;

    fn plan(rx: u16, tx: u16, hashes: u64, cores: u16, shards: u16) -> (u16, u64, QueueLimit) {
        let capabilities = SpreadCapabilities { max_rx_queues: rx, max_tx_queues: tx, hashes, unasked: None };
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
        assert_eq!(plan(16, 16, udp | TCP_V4, 4, 4), (4, udp | TCP_V4, QueueLimit::Cores));
        assert_eq!(plan(16, 16, 0, 4, 4), (1, 0, QueueLimit::NoHash));
        assert_eq!(plan(16, 16, TCP_V4, 1, 4), (1, 0, QueueLimit::Cores));
        assert_eq!(plan(16, 16, TCP_V4, 4, 1), (1, 0, QueueLimit::Shards));
    }

    #[test]
    fn a_device_that_names_no_queues_is_taken_to_have_one() {
        assert_eq!(plan(0, 0, TCP_V4, 4, 4), (1, 0, QueueLimit::RxQueues));
    }

    #[test]
    fn a_device_that_spreads_unasked_needs_no_hash_and_is_told_none() {
        let two = NonZeroU16::new(2).unwrap();
        for (driver, hashes, spread) in [
            ("net_af_packet", 0, UnaskedSpread::AllQueues),
            ("net_tap", TCP_V4, UnaskedSpread::QueuesInUse),
            ("net_virtio", 0, UnaskedSpread::QueuesInUse),
            ("net_memif", 0, UnaskedSpread::Sender),
            ("net_vhost", 0, UnaskedSpread::Sender),
        ] {
            let unasked = unasked(driver, 2, hashes);
            assert_eq!(unasked, Some(spread), "{driver}");
            let capabilities = SpreadCapabilities { max_rx_queues: 2, max_tx_queues: 2, hashes, unasked };
            let plan = queues_for(&capabilities, two, two);
            let expected = QueuePlan { queues: two, hashes: 0, unasked, limit: QueueLimit::Cores };
            assert_eq!(plan, expected, "{driver}");
            let alone = queues_for(&capabilities, NonZeroU16::MIN, two);
            assert_eq!((alone.queues, alone.unasked), (NonZeroU16::MIN, None), "{driver}");
        }
    }

    #[test]
    fn a_device_with_one_queue_or_hashes_of_its_own_does_not_spread_unasked() {
        assert_eq!(unasked("net_af_packet", 1, 0), None);
        assert_eq!(unasked("net_virtio", 8, TCP_V4), None);
        assert_eq!(unasked("net_ring", 16, 0), None);
        assert_eq!(unasked("net_ice", 16, TCP_V4), None);
    }

    #[test]
    fn only_hashes_of_addresses_and_tcp_ports_are_used_and_only_those_that_there_are() {
        let addresses = u64::from(sys::RTE_ETH_RSS_IPV4);
        let other = sys::RTE_ETH_RSS_IPV4_CHKSUM;
        assert_eq!(hash_functions(TCP_V4 | addresses | other), TCP_V4 | addresses);
        assert_eq!(hash_functions(other), 0);
    }
}
