//! What all connections of a core share.

use std::time::Duration;

use stack::net::ConnId;
use stack::time::Instant;

use super::{
    checked::Alarm, commits::CommitTimes, feed::Feeds, network::SharedNetworkState, peers::Peers,
    render::Rendered, replies::ReplyPool, retain::Retain,
};
use crate::http::HeadCache;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) max_record_bytes: u64,
    pub(super) keeps_records: bool,
    pub(super) patience: Patience,
    pub(super) store: String,
    pub(super) domain: String,
    pub(super) retain: Retain,
    pub(super) network: SharedNetworkState,
    pub(super) counters: Counters,
    /// What the medium said when it failed. Nothing is written from then on.
    pub(super) failed: Option<String>,
    /// Connections that this core may have at a time, beside those in spare places.
    pub(super) max_connections: u32,
    /// Connections in spare places.
    pub(super) spares: u32,
    pub(super) commits: CommitTimes,
    /// Of records that have changed under the server.
    pub(super) alarm: Alarm,
    /// Connections with appends in the current burst.
    pub(super) awaiting: Vec<ConnId>,
    /// What connections owe.
    pub(super) replies: ReplyPool,
    pub(super) rendered: Rendered,
    pub(super) heads: HeadCache,
    pub(super) now: Instant,
    pub(super) peers: Peers,
    /// Who follows a log.
    pub(super) feeds: Feeds,
    /// No further request is read, and nobody waits for what may come.
    pub(super) is_ending: bool,
}

impl Common {
    /// Whether there is a place that is not a spare one.
    pub(super) fn has_place(&self) -> bool {
        self.counters.connections - u64::from(self.spares) < self.max_connections.into()
    }

    /// Notes that the medium has failed; the first reason is the one that tells most.
    pub(super) fn fail(&mut self, why: &str) {
        if self.failed.is_none() {
            tracing::error!(why, "the store failed and takes no more writes; restart to recover it");
            self.failed = Some(why.to_owned());
        }
        self.peers.publish_failure(why);
    }
}

/// How patient the server is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) idle: Duration,
    pub(super) stalled: Duration,
}

/// What the service has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that are open now.
    pub connections: u64,
    /// Request heads understood.
    pub requests: u64,
    /// Records made durable and acknowledged; where none are kept, bodies acknowledged.
    pub appended_records: u64,
    /// Bytes in them.
    pub appended_bytes: u64,
    /// Records read.
    pub read_records: u64,
    /// Bytes given to the network for sending.
    pub sent_bytes: u64,
    /// Requests refused.
    pub refused: u64,
    /// Connections reset by this side.
    pub aborted: u64,
    /// Bytes of records that were copied from one core to another to be read.
    pub crossed_bytes: u64,
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.requests += other.requests;
        self.appended_records += other.appended_records;
        self.appended_bytes += other.appended_bytes;
        self.read_records += other.read_records;
        self.sent_bytes += other.sent_bytes;
        self.refused += other.refused;
        self.aborted += other.aborted;
        self.crossed_bytes += other.crossed_bytes;
    }
}
