//! The loop between connections and keys.
//!
//! Requests are done in the order in which they come, and their replies collected. What a burst has changed is durable with
//! its commit; until then no reply leaves, whoever it is for: another client may have seen what is not durable yet.

mod connection;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pmem::{CommitError, Durable, Pending, Shard};
use stack::net::{ConnId, Event, Net, Service};
use stack::time::Instant;

use crate::clients::{Client, Clients, Place};
use crate::commands;
use crate::resp::Request;
use crate::server::{Config, Server, Stats};
use crate::store::{LoadError, Store};

use connection::Connection;

/// Places for connections that are only told that there are too many.
pub const SPARE_PLACES: u32 = 8;
/// How often all connections are looked over.
const TICK: Duration = Duration::from_secs(1);
/// Keys that expire, and are removed in one turn.
const EXPIRED_AT_ONCE: usize = 256;
/// What the record of their removal takes, unless they are very long.
const EXPIRED_BYTES: u64 = 64 * 1024;
/// Empty requests whose memory is kept.
const SPARE_REQUESTS: usize = 64;

/// The server of one core's keys.
pub struct KvService {
    /// One place for each place of the network's connection table.
    places: Vec<Connection>,
    shared: Shared,
    /// Room for the connections that go on.
    going: Vec<u32>,
}

/// What connections share.
struct Shared {
    store: Store,
    clients: Clients,
    server: Server,
    spare: Vec<Request>,
    /// Stands in the place of a client that is not among the others.
    nobody: Option<Place>,
    /// The last append, while it is not known to be durable.
    pending: Option<Pending>,
    /// Connections whose replies wait for it.
    awaiting: Vec<u32>,
    /// Connections that are only told that there are too many.
    told_off: u32,
    /// The time of the burst, and when connections were last looked over for those that do not end.
    now: Instant,
    ticked: Instant,
    /// Memory that connections take for what is not whole, and for what is not sent.
    pending_bytes: usize,
    /// Why nothing is served any more.
    failed: Option<String>,
    /// Tells the time, in ms since 1970.
    wall: fn() -> u64,
}

impl fmt::Debug for KvService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvService").field("store", &self.shared.store).finish_non_exhaustive()
    }
}

/// The time, in ms since 1970.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}

impl KvService {
    /// The service of a shard's keys, which are read from its log. `wall` tells the time, in ms since 1970.
    ///
    /// # Errors
    /// The log is damaged, or another program's.
    pub fn open(
        config: Config,
        shard: &Shard,
        accepts_damage: bool,
        wall: fn() -> u64,
    ) -> Result<Self, LoadError> {
        let mut store = Store::default();
        let damaged_records = store.load(shard, accepts_damage)?;
        let now_ms = wall();
        store.set_time(now_ms);
        let places = config.max_clients as usize + SPARE_PLACES as usize;
        let stats = Stats { damaged_records, ..Stats::default() };
        Ok(Self {
            places: (0..places).map(|_| Connection::default()).collect(),
            shared: Shared {
                store,
                clients: Clients::new(places),
                server: Server { config, stats, started_ms: now_ms },
                spare: Vec::with_capacity(SPARE_REQUESTS),
                nobody: None,
                pending: None,
                awaiting: Vec::with_capacity(places),
                told_off: 0,
                now: Instant::ZERO,
                ticked: Instant::ZERO,
                pending_bytes: 0,
                failed: None,
                wall,
            },
            going: Vec::new(),
        })
    }

    /// The keys.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// What was done.
    pub fn stats(&self) -> Stats {
        self.shared.server.stats
    }

    /// How many clients are connected.
    pub fn connected(&self) -> u32 {
        self.shared.clients.connected
    }

    /// Why nothing is served any more, if that is so.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failed.as_deref()
    }

    /// Ends in order: no further request is read, and each connection ends once its replies are out.
    pub fn close<N: Net>(&mut self, net: &mut N, shard: &mut Shard) {
        for index in 0..self.places.len() {
            self.shared.clients.places[index].is_leaving = true;
            self.places[index].go_on(index as u32, &mut self.shared, net, shard);
        }
    }

    /// Ends without waiting for anybody.
    pub fn abort<N: Net>(&mut self, net: &mut N) {
        for (index, place) in self.places.iter_mut().enumerate() {
            place.abort(index as u32, &mut self.shared, net);
        }
    }

    fn open_connection<N: Net>(
        &mut self,
        conn: ConnId,
        addr: std::net::SocketAddr,
        net: &mut N,
        shard: &mut Shard,
    ) {
        let shared = &mut self.shared;
        let Some(place) = self.places.get_mut(conn.index as usize) else {
            // The network's table is larger than this one.
            return net.abort(conn);
        };
        shared.server.stats.connections += 1;
        let Clients { places, connected, next_id, .. } = &mut shared.clients;
        let now_ms = shared.store.now_ms();
        let user = shared.server.config.unnamed_user();
        let id = *next_id;
        *next_id += 1;
        let client = Client {
            index: conn.index,
            id,
            addr: Some(addr),
            user,
            opened_ms: now_ms,
            last_ms: now_ms,
            ..Client::default()
        };
        *places[conn.index as usize] = client;
        place.open(conn);
        *connected += 1;
        if *connected - shared.told_off > shared.server.config.max_clients {
            shared.server.stats.rejected += 1;
            shared.told_off += 1;
            place.is_told_off();
            let client = &mut places[conn.index as usize];
            client.out.error("ERR max number of clients reached");
            client.is_leaving = true;
            place.go_on(conn.index, shared, net, shard);
        }
    }

    /// Goes on with the connections that others have woken, until there are none.
    fn serve_woken<N: Net>(&mut self, net: &mut N, shard: &mut Shard) {
        while !self.shared.clients.woken.is_empty() {
            std::mem::swap(&mut self.going, &mut self.shared.clients.woken);
            self.going.sort_unstable();
            self.going.dedup();
            for index in self.going.drain(..) {
                self.shared.with_client(index, |client, shared| {
                    commands::serve_waiting(client, &mut shared.clients, &shared.store, shard);
                });
                self.places[index as usize].go_on(index, &mut self.shared, net, shard);
            }
        }
    }

    fn go_on<N: Net>(&mut self, conn: ConnId, net: &mut N, shard: &mut Shard) {
        if let Some(place) = self.places.get_mut(conn.index as usize).filter(|place| place.is(conn)) {
            place.readable(conn.index, &mut self.shared, net, shard);
            self.serve_woken(net, shard);
        }
    }

    /// Goes on with the connections whose replies have waited for the commit.
    fn release<N: Net>(&mut self, net: &mut N, shard: &mut Shard) {
        // What one of them appends now awaits the next commit.
        let mut awaiting = std::mem::take(&mut self.shared.awaiting);
        for index in awaiting.drain(..) {
            self.places[index as usize].committed(index, &mut self.shared, net, shard);
        }
        if self.shared.awaiting.is_empty() {
            self.shared.awaiting = awaiting;
        }
        self.serve_woken(net, shard);
    }
}

impl Shared {
    /// Works with a client that is not among the others meanwhile.
    fn with_client<T>(&mut self, index: u32, work: impl FnOnce(&mut Client, &mut Self) -> T) -> T {
        let nobody = self.nobody.take().unwrap_or_default();
        let mut client = std::mem::replace(&mut self.clients.places[index as usize], nobody);
        let result = work(&mut client, self);
        self.nobody = Some(std::mem::replace(&mut self.clients.places[index as usize], client));
        result
    }

    /// Ends the record of one command: it is appended, and whoever wants to know hears of it.
    fn finish_record(&mut self, shard: &mut Shard) {
        match self.store.finish(shard) {
            Ok(Some(pending)) => self.pending = Some(pending),
            Ok(None) => {}
            Err(error) => self.fail(&error),
        }
    }

    fn tell_changes(&mut self) {
        for key in self.store.take_changed() {
            self.clients.changed(&key);
        }
        self.store.tells_changes = self.clients.wants_changes();
    }

    /// The keys are ahead of the log, or the medium has failed. What was not answered is never answered.
    #[cold]
    fn fail(&mut self, error: &dyn fmt::Display) {
        if self.failed.is_none() {
            tracing::error!(%error, "the store failed and takes no more writes; restart to recover it");
            self.failed = Some(error.to_string());
        }
    }
}

impl Service for KvService {
    fn requests(&self) -> u64 {
        self.shared.server.stats.commands
    }

    fn event<N: Net>(&mut self, event: Event, net: &mut N, shard: &mut Shard) {
        self.shared.store.set_time((self.shared.wall)());
        match event {
            Event::Opened { conn, peer } => self.open_connection(conn, peer, net, shard),
            Event::Readable { conn } | Event::Writable { conn } => self.go_on(conn, net, shard),
            Event::PeerFinished { conn } => {
                if let Some(place) = self.places.get_mut(conn.index as usize).filter(|place| place.is(conn)) {
                    place.peer_finished();
                }
                self.go_on(conn, net, shard);
            }
            // None is bound.
            Event::Datagrams { .. } => {}
            Event::Closed { conn, .. } => {
                if let Some(place) = self.places.get_mut(conn.index as usize).filter(|place| place.is(conn)) {
                    place.vacate(conn.index, &mut self.shared);
                }
            }
        }
    }

    fn committed<N: Net>(&mut self, durable: &Durable, net: &mut N, shard: &mut Shard) {
        if let Some(pending) = self.shared.pending.take()
            && let Err(pending) = durable.confirm(pending)
        {
            // It came after this commit.
            self.shared.pending = Some(pending);
            return;
        }
        if !shard.uncommitted() {
            self.shared.store.committed();
        }
        self.release(net, shard);
    }

    fn commit_failed<N: Net>(&mut self, error: &CommitError, net: &mut N, _: &mut Shard) {
        self.shared.fail(error);
        self.abort(net);
    }

    fn between_bursts<N: Net>(&mut self, now: Instant, net: &mut N, shard: &mut Shard) -> bool {
        let shared = &mut self.shared;
        shared.now = now;
        if now >= shared.ticked + TICK {
            shared.ticked = now;
            for (index, place) in self.places.iter_mut().enumerate() {
                place.tick(index as u32, shared, net);
            }
        }
        if shared.failed.is_some() {
            self.abort(net);
            return false;
        }
        let now_ms = (shared.wall)();
        shared.store.set_time(now_ms);
        shard.set_time(u32::try_from(now_ms / 1000).unwrap_or(u32::MAX));
        shared.store.begin(shard);
        let mut has_worked =
            shared.store.has_least_room(EXPIRED_BYTES, shard) && shared.store.remove_expired(EXPIRED_AT_ONCE);
        shared.finish_record(shard);
        shared.tell_changes();
        match shared.store.clean(shard) {
            Ok(cleaned) => has_worked |= cleaned,
            Err(error) => shared.fail(&error),
        }
        while let Some(index) = shared.clients.next_overdue(now_ms) {
            has_worked = true;
            shared.with_client(index, |client, shared| {
                commands::serve_waiting(client, &mut shared.clients, &shared.store, shard);
            });
            self.places[index as usize].go_on(index, shared, net, shard);
        }
        self.serve_woken(net, shard);
        has_worked
    }
}
