//! What the cores need of a network, and what they give it in turn.

use std::fmt;
use std::num::NonZeroU16;
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::Result;
use pmem::{RegionInfo, Shard, ShardSeed};
use serde::Serialize;
use stack::net::Transport;
use stack::server::Rest;
use stack::time::Clock;

use crate::cli::ServeArgs;
use crate::service::Drops;

/// Half-open connections of a listener, and finished ones that wait for the service.
pub(super) const BACKLOG: u16 = 1024;

/// The longest sleep: a signal is noticed after it at the latest, and what goes on by time in the service goes on.
pub(super) const SLEEP: Duration = Duration::from_millis(100);

/// A way into the network that is known to exist, and over which nothing is served yet.
pub(super) trait Access: Sync {
    /// What serves over it.
    type Transport: Served;
    /// What a core's thread is given to start with.
    type CorePort: Send;
    /// What a core's thread holds for as long as it runs.
    type Presence;
    /// What there turned out to be: fields of a JSON object, or lines of text.
    type Found: Serialize + fmt::Display + Send;

    /// A port for each of so many cores. The first of `seeds` are the shards that they receive into. Called once;
    /// nothing is written to the store.
    fn ports(
        &mut self,
        args: &ServeArgs,
        info: &RegionInfo,
        seeds: &[ShardSeed],
        cores: NonZeroU16,
    ) -> Result<Vec<Self::CorePort>>;

    /// Makes the thread of a core known.
    fn enter(&self) -> Result<Self::Presence>;

    /// Starts to serve over a shard's buffers, in the core's own thread.
    fn start(
        &self,
        port: Self::CorePort,
        args: &ServeArgs,
        shard: &Shard,
        clock: &Clock,
    ) -> Result<Self::Transport>;

    /// What a core does while there is nothing to do.
    fn rest(&self) -> Rest;

    /// What there turned out to be.
    fn found(&self, transport: &Self::Transport) -> Self::Found;
}

/// What the loop and the reports need of a transport, beyond serving.
pub(super) trait Served: Transport {
    /// What went through it since the start.
    type Totals: Traffic + Serialize + Clone + Default + AddAssign + Send;

    /// What went through it since the start.
    fn totals(&self) -> Self::Totals;

    /// Logs what the network has told of this host. Called now and then.
    fn tell(&mut self) {}

    /// Looks whether it still can serve. Called now and then.
    ///
    /// # Errors
    /// It never will again.
    fn check(&self) -> Result<()>;
}

/// What went through a transport, as the warnings and `GET /health` need it.
pub(super) trait Traffic {
    /// What came in: frames, or pieces where there are none.
    fn received(&self) -> u64;

    /// What was dropped.
    fn drops(&self) -> &Drops;

    /// Whether frames can pass; none if that cannot be known.
    fn link_up(&self) -> Option<bool> {
        None
    }

    /// The link's MTU, if it has become less than the server's.
    fn narrowed(&self) -> Option<u32> {
        None
    }

    /// Frames by which another host said that it has one of the server's addresses; none if nobody counts them.
    fn address_conflicts(&self) -> Option<u64> {
        None
    }
}

/// Buffers to receive into, for a store with so many: an eighth, within what rings usually have. A small store must
/// not end up in the receive ring as a whole.
pub(super) fn receive_buffers_for(buffers: usize) -> u16 {
    let share = (buffers / 8).clamp(64, 1024) as u16;
    // The power of two at or below it.
    1 << share.ilog2()
}

#[cfg(test)]
mod tests {
    use super::receive_buffers_for;

    #[test]
    fn a_receive_ring_leaves_a_small_store_its_buffers() {
        for (buffers, descriptors) in
            [(0, 64), (900, 64), (3500, 256), (8191, 512), (8192, 1024), (1 << 20, 1024)]
        {
            assert_eq!(receive_buffers_for(buffers), descriptors, "{buffers} buffers");
        }
    }
}
