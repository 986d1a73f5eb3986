//! One core's part in a server: what it asks of other cores, and what it does for them.

use std::cell::RefCell;
use std::fmt;
use std::iter;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;

use pmem::{Quarantine, Shard};
use stack::net::ConnId;
use stack::time::Instant;

use super::checked::{About, Alarm, Checked, Unreadable};
use super::commits::CommitTimes;
use super::exchange::{
    Answer, Chunk, Exchange, LeaseId, MAX_ASKED, Outcome, PAGE_RECORDS, Page, PageQuery, Query, Question,
    ShardState,
};
use super::render::{End, Ends, MAX_SHARDS, Now};
use crate::http::{ByteRange, RecordName, Refusal};

/// Parts of records that may be on their way to a core at a time.
const CHUNKS: usize = 64;
/// Questions answered between two bursts.
const QUESTIONS: usize = 64;

/// What a core has beside its first shard.
pub(super) struct Peers {
    pub(super) exchange: Arc<Exchange>,
    core: usize,
    /// What clients call the shard that appends go to.
    own_name: Option<u32>,
    has_others: bool,
    /// The core's further shards, which take no new records.
    archive: Vec<(u32, Shard)>,
    chunks: Rc<RefCell<Vec<Chunk>>>,
    /// Leases whose connections have ended.
    given_up: Rc<RefCell<Vec<(usize, LeaseId)>>>,
    open_questions: usize,
    leases: Leases,
    /// Connections that could not ask, and will try again.
    stalled: Vec<ConnId>,
}

/// The core that a shard belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    This,
    Core(usize),
}

impl Peers {
    /// Whether the core may sleep: no other one wants anything, and there is no news. They wake it from now on.
    pub(super) fn may_rest(&self, has_news: impl FnOnce() -> bool) -> bool {
        !self.has_others || self.exchange.may_sleep(self.core, has_news)
    }

    /// Notes that the core is awake.
    pub(super) fn awake(&self) {
        if self.has_others {
            self.exchange.is_awake(self.core);
        }
    }

    /// For core number `core`; `archive` are its shards but for the first. No core has more than `connections`
    /// connections.
    pub(super) fn new(
        exchange: Arc<Exchange>,
        core: usize,
        archive: Vec<(u32, Shard)>,
        connections: usize,
    ) -> Self {
        let leases = (exchange.cores() - 1) * connections;
        let has_others = exchange.cores() > 1;
        let chunks = if has_others { CHUNKS } else { 0 };
        let waiting = if has_others { connections } else { 0 };
        Self {
            chunks: Rc::new(RefCell::new((0..chunks).map(|_| Chunk::new()).collect())),
            given_up: Rc::new(RefCell::new(Vec::with_capacity(waiting))),
            open_questions: 0,
            leases: Leases { places: Vec::with_capacity(leases), free: Vec::with_capacity(leases) },
            stalled: Vec::with_capacity(waiting),
            own_name: exchange.name_of(core as u32),
            has_others,
            exchange,
            core,
            archive,
        }
    }

    /// Whether there is another core, which may ask and be asked, and to which this one says how it is.
    pub(super) fn has_others(&self) -> bool {
        self.has_others
    }

    /// What clients call the shard that appends go to.
    pub(super) fn own_name(&self) -> Option<u32> {
        self.own_name
    }

    pub(super) fn owner_of(&self, shard: u32) -> Owner {
        let core = self.exchange.core_of(shard);
        if core == self.core { Owner::This } else { Owner::Core(core) }
    }

    /// Checks that a name is one of the shard that appends go to.
    pub(super) fn find_own(&self, name: RecordName) -> Result<(), Refusal> {
        let (named, _) = self.find(name)?;
        let own = self.own_index();
        if named == own { Ok(()) } else { Err(Refusal::OtherShard { own, named }) }
    }

    /// The shard and the number that a name means.
    pub(super) fn find(&self, name: RecordName) -> Result<(u32, u64), Refusal> {
        let shards = self.exchange.shards();
        match name.shard {
            Some(shard) if shard < shards => Ok((shard, name.seq)),
            Some(shard) => Err(Refusal::NoShard { shard, shards }),
            None if shards == 1 => Ok((0, name.seq)),
            None => Err(Refusal::NoShardNamed { shards, seq: name.seq }),
        }
    }

    /// A shard of this core's.
    pub(super) fn shard<'a>(&'a mut self, shard: u32, main: &'a mut Shard) -> &'a mut Shard {
        match self.archive.iter_mut().find(|(index, _)| *index == shard) {
            Some((_, archived)) => archived,
            None => main,
        }
    }

    /// Frees buffers of what was trimmed of this core's shards but the first; whether there are more.
    #[inline]
    pub(super) fn tend(&mut self) -> bool {
        self.archive.iter_mut().fold(false, |more, (_, shard)| shard.tend() || more)
    }

    /// Says to other cores how this one's shards are.
    #[inline]
    pub(super) fn publish(&self, main: &Shard) {
        if self.has_others {
            self.store_states(main);
        }
    }

    /// Says that this core's log has gone on, which [`publish`](Self::publish) has said how far, to those who follow it by
    /// other cores.
    #[inline]
    pub(super) fn tell_followers(&self) {
        if self.has_others {
            self.exchange.tell_followers(self.core);
        }
    }

    fn store_states(&self, main: &Shard) {
        let archive = self.archive.iter().map(|(index, shard)| (*index, shard));
        self.exchange.publish(iter::once((self.core as u32, main)).chain(archive));
    }

    /// How each shard is, those of other cores as they last said.
    pub(super) fn states(&self, main: &Shard) -> impl Iterator<Item = ShardState> {
        self.store_states(main);
        self.exchange.states()
    }

    /// Where the logs of all shards begin and end, or that of one.
    pub(super) fn ends(&self, only: Option<u32>, main: &Shard) -> Ends {
        let wanted = |(shard, _): &(u32, ShardState)| only.is_none_or(|only| only == *shard);
        let end = |(shard, state): (u32, ShardState)| End {
            shard: self.exchange.name_of(shard),
            head: state.head,
            next: state.next,
        };
        (0..).zip(self.states(main)).filter(wanted).take(MAX_SHARDS).map(end).collect()
    }

    /// A shard's oldest record, and the next to come; of another core's shard as that last said.
    pub(super) fn span(&mut self, shard: u32, main: &mut Shard) -> (u64, u64) {
        match self.owner_of(shard) {
            Owner::This => {
                let shard = self.shard(shard, main);
                (shard.head_seq(), shard.committed_seq())
            }
            Owner::Core(_) => {
                let state = self.exchange.state(shard);
                (state.head, state.next)
            }
        }
    }

    pub(super) fn publish_followers(&self, followers: u64) {
        self.exchange.publish_followers(self.core, followers);
    }

    pub(super) fn publish_connections(&self, connections: u64) {
        self.exchange.publish_connections(self.core, connections);
    }

    pub(super) fn publish_altered(&self, altered: u64) {
        self.exchange.publish_altered(self.core, altered);
    }

    pub(super) fn publish_commits(&self, times: &CommitTimes) {
        if self.has_others {
            self.exchange.publish_commits(self.core, times);
        }
    }

    /// How all cores are, by what this one has and the others last said.
    pub(super) fn now(
        &self,
        (connections, max_connections): (u64, u64),
        (followers, max_followers): (u32, u32),
        altered: u64,
        own: &CommitTimes,
    ) -> Now {
        let cores = self.exchange.cores() as u64;
        Now {
            connections: self.exchange.connections(self.core, connections),
            max_connections: max_connections * cores,
            followers: self.exchange.followers(self.core, followers.into()),
            max_followers: u64::from(max_followers) * cores,
            altered: self.exchange.altered(self.core, altered),
            commits: self.exchange.commits(self.core, own).summary(),
        }
    }

    pub(super) fn publish_failure(&self, why: &str) {
        self.exchange.publish_failure(self.core, why);
    }

    /// Asks another core, for a connection that then waits. False if that is not possible just now: the connection
    /// will be run again.
    pub(super) fn ask(&mut self, core: usize, conn: ConnId, query: impl FnOnce(Chunk) -> Query) -> bool {
        let chunk = if self.open_questions < MAX_ASKED { self.chunks.borrow_mut().pop() } else { None };
        let Some(chunk) = chunk else {
            self.stalled.push(conn);
            return false;
        };
        self.send(core, conn, query(chunk))
    }

    /// As [`ask`](Self::ask), for what needs no room for bytes.
    pub(super) fn ask_briefly(&mut self, core: usize, conn: ConnId, query: Query) -> bool {
        if self.open_questions == MAX_ASKED {
            self.stalled.push(conn);
            return false;
        }
        self.send(core, conn, query)
    }

    fn send(&mut self, core: usize, conn: ConnId, query: Query) -> bool {
        match self.exchange.ask(core, Question { core: self.core, conn, query }) {
            Ok(()) => {
                self.open_questions += 1;
                true
            }
            Err(Question { query, .. }) => {
                if let Query::Open { chunk, .. } | Query::More { chunk, .. } = query {
                    self.chunks.borrow_mut().push(chunk);
                }
                self.stalled.push(conn);
                false
            }
        }
    }

    /// The connections that could not ask before.
    pub(super) fn take_stalled(&mut self, into: &mut Vec<ConnId>) {
        mem::swap(&mut self.stalled, into);
    }

    /// Gives leases back that nobody needs any more.
    pub(super) fn close_leases(&mut self) {
        let mut given_up = self.given_up.borrow_mut();
        while let Some((core, lease)) = given_up.pop() {
            // A lease has no connection any more; there is no answer to be told.
            let conn = ConnId { index: u32::MAX, generation: 0 };
            let question = Question { core: self.core, conn, query: Query::Close { lease } };
            if self.exchange.ask(core, question).is_err() {
                given_up.push((core, lease));
                return;
            }
        }
    }

    /// The next answer, its parts wrapped so that they find back if nobody takes them.
    pub(super) fn next_answer(&mut self) -> Option<(ConnId, Reading)> {
        let Answer { core, conn, outcome } = self.exchange.next_answer(self.core)?;
        self.open_questions -= 1;
        let part = |begins, chunk, lease: Option<LeaseId>| Reading::Part {
            begins,
            bytes: BorrowedChunk { chunk: Some(chunk), home: self.chunks.clone() },
            lease: lease.map(|lease| HeldLease {
                core,
                lease,
                is_here: true,
                given_up: self.given_up.clone(),
            }),
        };
        let reading = match outcome {
            Outcome::Opened { about, chunk, lease } => part(Some(about), chunk, lease),
            Outcome::More { chunk, lease } => part(None, chunk, lease),
            Outcome::Unreadable { chunk, refusal } => {
                self.chunks.borrow_mut().push(chunk);
                Reading::Unreadable(refusal)
            }
            Outcome::Listed(page) => Reading::Listed(page),
            Outcome::Trimmed(trimmed) => Reading::Trimmed(trimmed),
            Outcome::TrimFailed => Reading::TrimFailed,
        };
        Some((conn, reading))
    }

    /// Answers others; true if there was anything to do. `alarm` is raised for records that have changed, and `failed`
    /// is told what the medium says if it fails.
    pub(super) fn answer_others(
        &mut self,
        main: &mut Shard,
        alarm: &mut Alarm,
        now: Instant,
        mut failed: impl FnMut(&str),
    ) -> bool {
        let exchange = self.exchange.clone();
        let mut count = 0;
        while count < QUESTIONS
            && let Some(Question { core, conn, query }) = exchange.next_question(self.core)
        {
            count += 1;
            let outcome = match query {
                Query::Open { shard, seq, range, mut chunk } => {
                    match self.open(shard, seq, range, &mut chunk, main) {
                        Ok((about, lease)) => Outcome::Opened { about, chunk, lease },
                        Err(Unreadable { refusal, found }) => {
                            found.iter().for_each(|damage| alarm.raise(shard, damage, now));
                            Outcome::Unreadable { chunk, refusal }
                        }
                    }
                }
                Query::More { lease, mut chunk } => match self.leases.read(lease, &mut chunk) {
                    Ok(lease) => Outcome::More { chunk, lease },
                    Err((shard, damage)) => {
                        alarm.raise(shard, &damage, now);
                        self.shard(shard, main).quarantine(damage);
                        Outcome::Unreadable { chunk, refusal: Refusal::Altered { seq: damage.seq } }
                    }
                },
                Query::Close { lease } => {
                    self.leases.end(lease);
                    continue;
                }
                Query::List(query) => Outcome::Listed(Box::new(self.list(&query, main))),
                Query::Trim { shard, before } => match self.shard(shard, main).trim(before) {
                    Ok(trimmed) => {
                        self.publish(main);
                        Outcome::Trimmed(trimmed)
                    }
                    Err(error) => {
                        failed(&error.to_string());
                        Outcome::TrimFailed
                    }
                },
            };
            exchange.answer(core, Answer { core: self.core, conn, outcome });
        }
        count > 0
    }

    /// What a record is, and the first of what is wanted of it; a lease if there is more.
    fn open(
        &mut self,
        shard: u32,
        seq: u64,
        range: Option<ByteRange>,
        chunk: &mut Chunk,
        main: &mut Shard,
    ) -> Result<(About, Option<LeaseId>), Unreadable> {
        let record = Checked::look(self.shard(shard, main), seq, range)?;
        let about = record.about();
        // What fits into the first part has been checked.
        let lease = self
            .leases
            .begin(shard, record, chunk)
            .map_err(|damage| Unreadable { refusal: Refusal::Altered { seq }, found: Some(damage) })?;
        Ok((about, lease))
    }

    /// Records of one of this core's shards.
    pub(super) fn list(&mut self, query: &PageQuery, main: &mut Shard) -> Page {
        let PageQuery { shard, epoch, from, limit } = *query;
        let shard = &*self.shard(shard, main);
        let from = epoch.map_or(from, |epoch| from.max(shard.first_of_epoch(epoch)));
        let limit = limit.min(PAGE_RECORDS);
        let is_wanted = |found: u32| epoch.is_none_or(|epoch| found == epoch);
        let records = shard.records(from).take_while(|info| is_wanted(info.epoch)).take(limit).collect();
        let later = epoch.and_then(|epoch| epoch.checked_add(1));
        let next_epoch = later.and_then(|epoch| shard.records(shard.first_of_epoch(epoch)).next());
        Page { records, head: shard.head_seq(), next_epoch: next_epoch.map(|info| info.epoch) }
    }

    /// How this core's further shards are.
    pub(super) fn archive(&self) -> &[(u32, Shard)] {
        &self.archive
    }

    /// The core's further shards, to be changed.
    pub(super) fn archive_mut(&mut self) -> &mut [(u32, Shard)] {
        &mut self.archive
    }

    /// Which shard appends go to.
    pub(super) fn own_index(&self) -> u32 {
        self.core as u32
    }
}

/// An answer.
pub(super) enum Reading {
    /// Part of a record, at first with what that is; a lease if there is more.
    Part {
        begins: Option<About>,
        bytes: BorrowedChunk,
        lease: Option<HeldLease>,
    },
    Unreadable(Refusal),
    Listed(Box<Page>),
    Trimmed(pmem::Trimmed),
    TrimFailed,
}

/// Part of a record; its room goes back to where it is kept.
pub(super) struct BorrowedChunk {
    chunk: Option<Chunk>,
    home: Rc<RefCell<Vec<Chunk>>>,
}

impl BorrowedChunk {
    pub(super) fn bytes(&self) -> &[u8] {
        self.chunk.as_ref().map_or(&[], |chunk| &chunk.bytes[..chunk.len])
    }
}

impl Drop for BorrowedChunk {
    fn drop(&mut self) {
        self.home.borrow_mut().extend(self.chunk.take());
    }
}

/// A lease of another core's; it is given back when this is dropped.
pub(super) struct HeldLease {
    core: usize,
    lease: LeaseId,
    is_here: bool,
    given_up: Rc<RefCell<Vec<(usize, LeaseId)>>>,
}

impl HeldLease {
    /// The lease, to ask for more.
    pub(super) fn id(&self) -> LeaseId {
        self.lease
    }

    /// The lease is on its way in a question: the answer brings it again.
    pub(super) fn travels(mut self) {
        self.is_here = false;
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        if self.is_here {
            self.given_up.borrow_mut().push((self.core, self.lease));
        }
    }
}

/// Records that other cores are reading: at most one for each of their connections.
struct Leases {
    places: Vec<Lease>,
    free: Vec<u32>,
}

struct Lease {
    generation: u32,
    shard: u32,
    /// What is not copied yet.
    pieces: Option<Pieces>,
}

struct Pieces {
    record: Checked,
    /// How much of the piece that comes next is copied.
    at: usize,
}

impl Leases {
    /// Copies the first of a record; a lease if there is more.
    fn begin(
        &mut self,
        shard: u32,
        record: Checked,
        chunk: &mut Chunk,
    ) -> Result<Option<LeaseId>, Quarantine> {
        let mut pieces = Pieces { record, at: 0 };
        if !pieces.fill(chunk)? {
            return Ok(None);
        }
        let index = self.free.pop().unwrap_or(self.places.len() as u32);
        if index as usize == self.places.len() {
            self.places.push(Lease { generation: 0, shard, pieces: None });
        }
        let place = &mut self.places[index as usize];
        (place.shard, place.pieces) = (shard, Some(pieces));
        Ok(Some(LeaseId { index, generation: place.generation }))
    }

    /// Copies more of a record; the lease again if that is not all. Damage ends it, and is told with the shard.
    fn read(&mut self, lease: LeaseId, chunk: &mut Chunk) -> Result<Option<LeaseId>, (u32, Quarantine)> {
        chunk.len = 0;
        let Some(place) = self.places.get_mut(lease.index as usize) else { return Ok(None) };
        let is_current = place.generation == lease.generation;
        let Some(pieces) = place.pieces.as_mut().filter(|_| is_current) else { return Ok(None) };
        let filled = pieces.fill(chunk).map_err(|damage| (place.shard, damage));
        if !matches!(filled, Ok(true)) {
            self.end(lease);
        }
        filled.map(|is_more| is_more.then_some(lease))
    }

    fn end(&mut self, lease: LeaseId) {
        let Some(place) = self.places.get_mut(lease.index as usize) else { return };
        if place.generation == lease.generation && place.pieces.take().is_some() {
            place.generation = place.generation.wrapping_add(1);
            self.free.push(lease.index);
        }
    }
}

impl Pieces {
    /// Copies as much as fits; true if there is more.
    fn fill(&mut self, chunk: &mut Chunk) -> Result<bool, Quarantine> {
        chunk.len = 0;
        loop {
            let Some(piece) = self.record.piece()? else { return Ok(false) };
            let left = &piece.bytes()[self.at..];
            let room = &mut chunk.bytes[chunk.len..];
            if room.is_empty() {
                return Ok(true);
            }
            let count = left.len().min(room.len());
            room[..count].copy_from_slice(&left[..count]);
            chunk.len += count;
            self.at += count;
            if count == left.len() {
                self.record.go_on();
                self.at = 0;
            }
        }
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers")
            .field("core", &self.core)
            .field("open_questions", &self.open_questions)
            .finish_non_exhaustive()
    }
}
