//! A core's packets.

use dpdk::Batch;

/// Longest burst in packets, as testpmd has it.
pub const MAX_BURST: usize = 512;

/// The packets that a core is forwarding.
pub type Burst = Batch<MAX_BURST>;
