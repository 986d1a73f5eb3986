//! The log server as an application of the stack: requests become appends, and replies follow the commit.
//!
//! A request body is kept where the network put it and becomes a record; the reply to it waits for the
//! commit that ends the burst. Replies leave in the order of the requests. Requests that look at the store
//! (or trim it) wait until all earlier replies of their connection are out, so that they see what those did.

mod checked;
mod commits;
mod common;
mod conditional;
mod connection;
mod exchange;
mod feed;
mod foreign;
mod network;
mod out;
mod peers;
mod render;
mod replies;
mod reply;
mod retain;
mod scrub;
mod stream;
mod text;
mod wall;

use std::sync::Arc;
use std::time::Duration;

use pmem::{CommitError, Durable, Shard};
use stack::net::{ConnId, Event, Net, Service};
use stack::time::Instant;

use checked::Alarm;
use common::{Common, Patience};
use connection::Connection;
use feed::Feeds;
use peers::Peers;
use render::Rendered;
use replies::ReplyPool;
use retain::Keeper;
use scrub::Scrubber;

use crate::http::HeadCache;

pub use commits::{CommitSummary, CommitTimes};
pub use common::Counters;
pub use exchange::{Exchange, Waker};
pub use network::{Drops, NetworkState, SharedNetworkState, in_words};
pub use render::MAX_SHARDS;
pub use retain::{Bound, Retain};
pub use wall::WallClock;

/// How often all connections are looked over for clients that do not come on. Timeouts are this coarse, so
/// that no timer is touched per request.
const TICK: Duration = Duration::from_secs(1);

/// Places for looks at the health of a server whose other places are all taken.
pub const SPARE_PLACES: u32 = 8;

/// What bounds the service, and what it tells about itself.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Bytes of the longest record.
    pub max_record_bytes: u64,
    /// Connections at a time.
    pub max_connections: u32,
    /// Further places for connections that come when that many are open. There `GET /health` is answered, and everything
    /// else refused; each connection ends with its reply, or soon without. The network's table has the places of both.
    pub spare_places: u32,
    /// Clients that may follow a log, or have records streamed to them, at a time.
    pub max_followers: u32,
    /// How long a connection may be open without a request.
    pub idle_timeout: Duration,
    /// How long a request or the reading of a reply may stand still.
    pub stall_timeout: Duration,
    /// Whether appends become records. Without, bodies are received and given up, and acknowledged by their number: what
    /// is left of the server without its log, to be measured beside it.
    pub keeps_records: bool,
    /// Bytes that are read in a second of what nobody had read when the store was opened; 0 for none.
    pub scrub_bytes_per_s: u64,
    /// What is kept of the store's records: the oldest beyond that are trimmed.
    pub retain: Retain,
    /// What records are stamped with. By default nobody knows the time.
    pub wall: WallClock,
    /// The store's own identifier, as `GET /health` gives it.
    pub store: String,
    /// The persistence domain, as `GET /health` gives it.
    pub domain: String,
    /// Where `GET /health` reads how the network is.
    pub network: SharedNetworkState,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            max_record_bytes: 16 * 1024 * 1024,
            max_connections: 1024,
            spare_places: 0,
            max_followers: 256,
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(30),
            keeps_records: true,
            scrub_bytes_per_s: 256 << 20,
            retain: Retain::default(),
            wall: WallClock::default(),
            store: String::new(),
            domain: String::new(),
            network: SharedNetworkState::default(),
        }
    }
}

impl ServiceConfig {
    /// Places in the connection table.
    fn places(&self) -> usize {
        self.max_connections as usize + self.spare_places as usize
    }
}

/// The log server.
#[derive(Debug)]
pub struct LogService {
    /// One place for each place of the network's connection table.
    places: Vec<Connection>,
    common: Common,
    /// Room for the connections that a commit wakes.
    woken: Vec<ConnId>,
    ticked: Instant,
    wall: WallClock,
    keeper: Keeper,
    scrubber: Scrubber,
}

impl LogService {
    /// The service of a store's only shard, without connections at time `now`.
    pub fn new(config: ServiceConfig, now: Instant) -> Self {
        Self::among(config, Exchange::new(1, 1), 0, Vec::new(), now)
    }

    /// The service of one of the cores that serve a store. It is given shard number `core`, which takes its appends;
    /// `archive` are the core's other shards, with their numbers.
    pub fn among(
        config: ServiceConfig,
        exchange: Arc<Exchange>,
        core: usize,
        archive: Vec<(u32, Shard)>,
        now: Instant,
    ) -> Self {
        let (connections, shards) = (config.places(), 1 + archive.len());
        Self {
            places: (0..connections).map(|_| Connection::vacant(config.max_record_bytes)).collect(),
            common: Common {
                max_record_bytes: config.max_record_bytes,
                keeps_records: config.keeps_records,
                patience: Patience { idle: config.idle_timeout, stalled: config.stall_timeout },
                store: config.store,
                domain: config.domain,
                retain: config.retain,
                network: config.network,
                counters: Counters::default(),
                failed: None,
                max_connections: config.max_connections,
                spares: 0,
                commits: CommitTimes::default(),
                alarm: Alarm::default(),
                awaiting: Vec::with_capacity(connections),
                replies: ReplyPool::new(connections),
                rendered: Rendered::default(),
                heads: HeadCache::default(),
                now,
                peers: Peers::new(exchange, core, archive, connections),
                feeds: Feeds::new(connections, config.max_followers),
                is_ending: false,
            },
            woken: Vec::with_capacity(connections),
            ticked: now,
            wall: config.wall,
            keeper: Keeper::new(config.retain, shards, now),
            scrubber: Scrubber::new(config.scrub_bytes_per_s, now),
        }
    }

    /// What the service has done.
    pub fn counters(&self) -> Counters {
        self.common.counters
    }

    /// How long commits have taken.
    pub fn commit_times(&self) -> &CommitTimes {
        &self.common.commits
    }

    /// Records that were found to have changed under the server.
    pub fn altered_records(&self) -> u64 {
        self.common.alarm.raised()
    }

    /// What the medium said when it failed, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.common.failed.as_deref()
    }

    /// The core's further shards.
    pub fn archive(&self) -> &[(u32, Shard)] {
        self.common.peers.archive()
    }

    /// Does what other cores ask for, goes on with what they have answered, and gives those who follow a log their turns;
    /// between bursts. True if there was anything.
    pub fn attend<N: Net>(&mut self, net: &mut N, shard: &mut Shard) -> bool {
        let has_worked = self.attend_others(net, shard);
        let turns = self.common.feeds.turns();
        for _ in 0..turns {
            let place = self.common.feeds.next().and_then(|index| self.places.get_mut(index));
            if let Some(place) = place.filter(|place| place.is_open()) {
                place.run(&mut self.common, net, shard);
            }
        }
        has_worked || turns > 0
    }

    fn attend_others<N: Net>(&mut self, net: &mut N, shard: &mut Shard) -> bool {
        let Common { peers, alarm, now, counters, feeds, .. } = &mut self.common;
        let is_tending = peers.tend();
        if !peers.has_others() {
            return is_tending;
        }
        peers.publish(shard);
        peers.publish_connections(counters.connections);
        peers.publish_followers(feeds.count().0.into());
        feeds.look_around(peers);
        let mut failure = None;
        let mut has_worked = peers.answer_others(shard, alarm, *now, |why| failure = Some(why.to_owned()));
        has_worked |= is_tending;
        peers.publish_altered(alarm.raised());
        peers.close_leases();
        peers.take_stalled(&mut self.woken);
        if let Some(why) = failure {
            self.common.fail(&why);
        }
        while let Some((conn, reading)) = self.common.peers.next_answer() {
            has_worked = true;
            if let Some(place) = place_of(&mut self.places, conn) {
                place.answered(reading, &mut self.common, net, shard);
            }
        }
        for conn in self.woken.drain(..) {
            has_worked = true;
            if let Some(place) = place_of(&mut self.places, conn) {
                place.run(&mut self.common, net, shard);
            }
        }
        has_worked
    }

    /// Reads some of what nobody has read since the store was opened, if there is any; whether it did.
    #[inline]
    fn scrub(&mut self, now: Instant, shard: &mut Shard) -> bool {
        if self.scrubber.is_done() {
            return false;
        }
        let peers = &mut self.common.peers;
        let main = peers.own_index();
        let archive = peers.archive_mut().iter_mut().map(|(index, shard)| (*index, shard));
        self.scrubber.turn(now, std::iter::once((main, shard)).chain(archive))
    }

    /// Trims what lies beyond what is kept, if it is time; whether there was anything.
    #[inline]
    fn retain(&mut self, now: Instant, shard: &mut Shard) -> bool {
        self.keeper.is_due(now) && self.common.failed.is_none() && self.trim_oldest(now, shard)
    }

    #[cold]
    fn trim_oldest(&mut self, now: Instant, shard: &mut Shard) -> bool {
        let peers = &mut self.common.peers;
        let (main, exchange) = (peers.own_index(), peers.exchange.clone());
        let archive = peers.archive_mut().iter_mut().map(|(index, shard)| (*index, shard));
        let shards = std::iter::once((main, shard)).chain(archive);
        self.keeper.turn(now, self.wall.now_s(), &exchange, shards).unwrap_or_else(|error| {
            self.common.fail(&error.to_string());
            false
        })
    }

    /// Says what time it is. Once a second, the shard is told it, and clients that stand still lose their connection.
    #[inline]
    pub fn tick<N: Net>(&mut self, now: Instant, net: &mut N, shard: &mut Shard) {
        self.common.now = now;
        if now >= self.ticked + TICK {
            self.tick_all(now, net, shard);
        }
    }

    fn tick_all<N: Net>(&mut self, now: Instant, net: &mut N, shard: &mut Shard) {
        self.ticked = now;
        shard.set_time(self.wall.now_s());
        self.common.peers.publish_commits(&self.common.commits);
        for place in self.places.iter_mut().filter(|place| place.is_open()) {
            place.tick(&mut self.common, net, shard);
        }
    }

    /// Ends without waiting for anybody: each connection is reset.
    pub fn abort<N: Net>(&mut self, net: &mut N) {
        for place in self.places.iter_mut().filter(|place| place.is_open()) {
            place.abort(&mut self.common, net);
        }
    }

    /// Ends in order: no further request is read, and each connection ends once its replies are out.
    pub fn close<N: Net>(&mut self, net: &mut N, shard: &mut Shard) {
        self.common.is_ending = true;
        for place in self.places.iter_mut().filter(|place| place.is_open()) {
            place.close(&mut self.common, net, shard);
        }
    }
}

impl Service for LogService {
    const TAKES_COMMITS_IN_PART: bool = true;

    fn requests(&self) -> u64 {
        self.common.counters.requests
    }

    fn event<N: Net>(&mut self, event: Event, net: &mut N, shard: &mut Shard) {
        let conn = match event {
            Event::Opened { conn, .. } => {
                match self.places.get_mut(conn.index as usize) {
                    Some(place) => {
                        let is_spare = !self.common.has_place();
                        place.open(conn, is_spare, &mut self.common);
                        self.common.counters.connections += 1;
                        self.common.spares += u32::from(is_spare);
                    }
                    // The network's table is larger than this one.
                    None => net.abort(conn),
                }
                return;
            }
            Event::Closed { conn, .. } => {
                if let Some(place) = place_of(&mut self.places, conn) {
                    self.common.spares -= u32::from(place.is_spare());
                    place.vacate(&mut self.common);
                    self.common.counters.connections -= 1;
                }
                return;
            }
            Event::Readable { conn } | Event::Writable { conn } => conn,
            Event::PeerFinished { conn } => {
                if let Some(place) = place_of(&mut self.places, conn) {
                    place.finished_by_peer();
                }
                conn
            }
            // None is bound.
            Event::Datagrams { .. } => return,
        };
        if let Some(place) = place_of(&mut self.places, conn) {
            place.run(&mut self.common, net, shard);
        }
    }

    fn committed<N: Net>(&mut self, durable: &Durable, net: &mut N, shard: &mut Shard) {
        self.common.commits.record(durable.took());
        // Who is told of a record finds it counted, whichever core he asks.
        self.common.peers.publish(shard);
        self.common.peers.tell_followers();
        self.common.feeds.wake();
        // What a woken connection appends now awaits the next commit.
        std::mem::swap(&mut self.woken, &mut self.common.awaiting);
        for conn in self.woken.drain(..) {
            if let Some(place) = place_of(&mut self.places, conn) {
                place.committed(durable, &mut self.common, net, shard);
            }
        }
    }

    fn between_bursts<N: Net>(&mut self, now: Instant, net: &mut N, shard: &mut Shard) -> bool {
        self.tick(now, net, shard);
        let has_trimmed = self.retain(now, shard);
        let has_scrubbed = self.scrub(now, shard);
        self.attend(net, shard) || has_scrubbed || has_trimmed
    }

    fn may_rest(&self) -> bool {
        let Common { peers, feeds, .. } = &self.common;
        peers.may_rest(|| feeds.has_news(peers))
    }

    fn awake(&self) {
        self.common.peers.awake();
    }

    fn commit_failed<N: Net>(&mut self, error: &CommitError, net: &mut N, shard: &mut Shard) {
        self.common.fail(&error.to_string());
        self.common.feeds.wake();
        std::mem::swap(&mut self.woken, &mut self.common.awaiting);
        for conn in self.woken.drain(..) {
            if let Some(place) = place_of(&mut self.places, conn) {
                place.commit_failed(&mut self.common, net, shard);
            }
        }
    }
}

/// The place of a connection that is alive.
#[inline]
fn place_of(places: &mut [Connection], conn: ConnId) -> Option<&mut Connection> {
    places.get_mut(conn.index as usize).filter(|place| place.is(conn))
}
