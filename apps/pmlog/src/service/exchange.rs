//! What the cores of one server have between them: questions about each other's shards and the answers, and how each
//! shard is.
//!
//! A shard belongs to one core, which alone reads and writes it. All queues are bounded. A core has at most
//! [`MAX_ASKED`] questions open, so that there is always room for the answers to them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;
use pmem::{RecordInfo, Shard, Trimmed};
use serde::Serialize;
use stack::doze::Doze;
pub use stack::doze::Waker;
use stack::net::ConnId;

use super::checked::About;
use super::commits::CommitTimes;
use crate::http::{ByteRange, Refusal};

/// Questions of one core that may be open at a time.
pub(super) const MAX_ASKED: usize = 256;
/// Bytes of a record that go from core to core at a time.
pub(super) const CHUNK_BYTES: usize = 16 * 1024;
/// Records that one answer lists: as many as a piece of a listing has. It is sent whole or not at all, so it stays well
/// below a send queue: no entry takes more than 160 bytes.
pub(super) const PAGE_RECORDS: usize = 6;

/// The inboxes of all cores, and the states of all shards.
pub struct Exchange {
    inboxes: Box<[Inbox]>,
    states: Box<[SharedShardState]>,
    /// When the oldest record of each shard was appended, as its core last said; no later than that is so.
    oldest: Box<[AtomicU64]>,
    /// A bit for each core with somebody who waits for a log to go on.
    following: AtomicU64,
}

/// What the records of all shards come to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// What others leave for one core, and what it says of itself.
struct Inbox {
    questions: ArrayQueue<Question>,
    answers: ArrayQueue<Answer>,
    connections: AtomicU64,
    followers: AtomicU64,
    altered: AtomicU64,
    /// Those of a moment ago; nobody waits for them.
    commits: Mutex<CommitTimes>,
    has_left: AtomicBool,
    /// What the medium said when it failed.
    failure: OnceLock<String>,
    doze: Doze,
}

/// A question about a shard.
pub(super) struct Question {
    /// The core that asks.
    pub(super) core: usize,
    /// The connection that waits for the answer.
    pub(super) conn: ConnId,
    pub(super) query: Query,
}

/// What is asked.
pub(super) enum Query {
    /// The beginning of a record, or of a part of it.
    Open { shard: u32, seq: u64, range: Option<ByteRange>, chunk: Chunk },
    /// What follows in a record.
    More { lease: LeaseId, chunk: Chunk },
    /// Nothing more of a record; there is no answer.
    Close { lease: LeaseId },
    /// What the records of a shard are.
    List(PageQuery),
    /// To forget the records below a number.
    Trim { shard: u32, before: u64 },
}

/// Records of one shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageQuery {
    pub(super) shard: u32,
    /// Of this epoch; of any, if none is given.
    pub(super) epoch: Option<u32>,
    pub(super) from: u64,
    pub(super) limit: usize,
}

/// The answer to a question.
pub(super) struct Answer {
    /// The core that answers.
    pub(super) core: usize,
    pub(super) conn: ConnId,
    pub(super) outcome: Outcome,
}

/// What is answered.
pub(super) enum Outcome {
    /// What a record is, and the first of it; a lease if there is more.
    Opened {
        about: About,
        chunk: Chunk,
        lease: Option<LeaseId>,
    },
    /// More of a record; a lease if that is not all.
    More {
        chunk: Chunk,
        lease: Option<LeaseId>,
    },
    /// No such record, or nothing more of it.
    Unreadable {
        chunk: Chunk,
        refusal: Refusal,
    },
    Listed(Box<Page>),
    Trimmed(Trimmed),
    TrimFailed,
}

/// Records of one shard, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) records: ArrayVec<RecordInfo, PAGE_RECORDS>,
    /// The shard's oldest record.
    pub(super) head: u64,
    /// If one epoch was asked for, and its records are at an end: the next epoch that the shard has records of.
    pub(super) next_epoch: Option<u32>,
}

/// Part of a record, on its way between cores.
pub(super) struct Chunk {
    pub(super) bytes: Box<[u8]>,
    pub(super) len: usize,
}

/// Names a record that its core holds ready for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl Exchange {
    /// An exchange for `cores` cores with `shards` shards: shard number s belongs to core s modulo `cores`.
    pub fn new(shards: u32, cores: u32) -> Arc<Self> {
        let inbox = || Inbox {
            questions: ArrayQueue::new(MAX_ASKED * cores as usize),
            answers: ArrayQueue::new(MAX_ASKED),
            connections: AtomicU64::new(0),
            followers: AtomicU64::new(0),
            altered: AtomicU64::new(0),
            commits: Mutex::default(),
            has_left: AtomicBool::new(false),
            failure: OnceLock::new(),
            doze: Doze::default(),
        };
        Arc::new(Self {
            inboxes: (0..cores).map(|_| inbox()).collect(),
            states: (0..shards).map(|_| SharedShardState::default()).collect(),
            oldest: (0..shards).map(|_| AtomicU64::new(0)).collect(),
            following: AtomicU64::new(0),
        })
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        self.inboxes.len()
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        self.states.len() as u32
    }

    /// How a shard is named to clients: not at all where it is the only one.
    pub(super) fn name_of(&self, shard: u32) -> Option<u32> {
        (self.shards() > 1).then_some(shard)
    }

    /// The core that a shard belongs to.
    pub fn core_of(&self, shard: u32) -> usize {
        shard as usize % self.inboxes.len()
    }

    /// Connections that are open, of all cores; core number `core` has `own`.
    pub fn connections(&self, core: usize, own: u64) -> u64 {
        self.others(core).map(|inbox| inbox.connections.load(Ordering::Relaxed)).sum::<u64>() + own
    }

    /// The inboxes of all cores but one.
    fn others(&self, core: usize) -> impl Iterator<Item = &Inbox> {
        self.inboxes.iter().enumerate().filter_map(move |(other, inbox)| (other != core).then_some(inbox))
    }

    /// Notes that a core has said goodbye to all its connections.
    pub fn leave(&self, core: usize) {
        self.inboxes[core].has_left.store(true, Ordering::Release);
    }

    /// Whether all cores have.
    pub fn is_left(&self) -> bool {
        self.inboxes.iter().all(|inbox| inbox.has_left.load(Ordering::Acquire))
    }

    /// Says how a core that sleeps is woken. Without that it looks at its inbox often enough.
    pub fn wake_by(&self, core: usize, waker: Waker) {
        self.inboxes[core].doze.wake_by(waker);
    }

    /// Notes that a core goes to sleep; false if it must not, since there is something in its inbox, or news for those who
    /// follow a log by it.
    pub(super) fn may_sleep(&self, core: usize, has_news: impl FnOnce() -> bool) -> bool {
        let Inbox { questions, answers, doze, .. } = &self.inboxes[core];
        doze.may_sleep(|| questions.is_empty() && answers.is_empty() && !has_news())
    }

    /// Notes whether somebody waits by a core for any log to go on.
    pub(super) fn follow(&self, core: u32, is_following: bool) {
        let bit = 1 << core;
        if is_following {
            self.following.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.following.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Wakes the cores by which somebody waits for the log that has just gone on, and was said to have.
    pub(super) fn tell_followers(&self, core: usize) {
        // Who begins to wait says so, and then looks how far the log is: one of the two sees what the other did.
        fence(Ordering::SeqCst);
        let mut cores = self.following.load(Ordering::Relaxed) & !(1 << core);
        while cores != 0 {
            self.inboxes[cores.trailing_zeros() as usize].doze.wake();
            cores &= cores - 1;
        }
    }

    /// How a shard was when its core last said so.
    pub(super) fn state(&self, shard: u32) -> ShardState {
        self.states[shard as usize].load()
    }

    /// The sum of the numbers of all shards' next records: it rises when one of them goes on.
    pub(super) fn ends_sum(&self) -> u64 {
        self.states.iter().map(|state| state.load().next).fold(0, u64::wrapping_add)
    }

    /// Notes that a core is awake.
    pub fn is_awake(&self, core: usize) {
        self.inboxes[core].doze.is_awake();
    }

    /// Asks a core; gives the question back if its inbox is full.
    pub(super) fn ask(&self, core: usize, question: Question) -> Result<(), Question> {
        self.inboxes[core].questions.push(question)?;
        self.inboxes[core].doze.wake();
        Ok(())
    }

    /// Answers a core.
    pub(super) fn answer(&self, core: usize, answer: Answer) {
        let is_room = self.inboxes[core].answers.push(answer).is_ok();
        debug_assert!(is_room, "there is room for an answer to each question");
        self.inboxes[core].doze.wake();
    }

    pub(super) fn next_question(&self, core: usize) -> Option<Question> {
        self.inboxes[core].questions.pop()
    }

    pub(super) fn next_answer(&self, core: usize) -> Option<Answer> {
        self.inboxes[core].answers.pop()
    }

    /// Says how many connections a core has.
    pub(super) fn publish_connections(&self, core: usize, connections: u64) {
        self.inboxes[core].connections.store(connections, Ordering::Relaxed);
    }

    /// Says how many clients follow a log by a core.
    pub(super) fn publish_followers(&self, core: usize, followers: u64) {
        self.inboxes[core].followers.store(followers, Ordering::Relaxed);
    }

    /// Clients that follow a log, of all cores; core number `core` has `own`.
    pub(super) fn followers(&self, core: usize, own: u64) -> u64 {
        self.others(core).map(|inbox| inbox.followers.load(Ordering::Relaxed)).sum::<u64>() + own
    }

    /// Says how many records a core has found to have changed.
    pub(super) fn publish_altered(&self, core: usize, altered: u64) {
        self.inboxes[core].altered.store(altered, Ordering::Relaxed);
    }

    /// How often records were found to have changed, by all cores; by core number `core` `own` times.
    pub(super) fn altered(&self, core: usize, own: u64) -> u64 {
        self.others(core).map(|inbox| inbox.altered.load(Ordering::Relaxed)).sum::<u64>() + own
    }

    /// Says how long a core's commits have taken; not now if somebody is reading that.
    pub(super) fn publish_commits(&self, core: usize, times: &CommitTimes) {
        if let Ok(mut commits) = self.inboxes[core].commits.try_lock() {
            commits.clone_from(times);
        }
    }

    /// How long the commits of all cores have taken; of those but this one, as of a second ago.
    pub(super) fn commits(&self, core: usize, own: &CommitTimes) -> CommitTimes {
        let mut sum = own.clone();
        for inbox in self.others(core) {
            sum += &*inbox.commits.lock().unwrap_or_else(PoisonError::into_inner);
        }
        sum
    }

    /// Says how shards are. It is said of each shard before any core serves, so that the first to be asked knows of all.
    pub fn publish<'a>(&self, shards: impl Iterator<Item = (u32, &'a Shard)>) {
        for (index, shard) in shards {
            self.states[index as usize].store(&ShardState::of(shard));
        }
    }

    /// Says when a shard's oldest record was appended, behind how the shard is: who knows the one knows the other.
    pub(super) fn publish_oldest(&self, shard: u32, time_s: u64) {
        self.oldest[shard as usize].store(time_s, Ordering::Release);
    }

    /// When the oldest record of any shard but this one was appended, and the first shard that has such a one.
    pub(super) fn oldest_but(&self, shard: u32) -> (u64, u32) {
        let others = (0..).zip(&self.oldest).filter(|(other, _)| *other != shard);
        let times = others.map(|(other, time_s)| (time_s.load(Ordering::Acquire), other));
        times.min().unwrap_or((u64::MAX, u32::MAX))
    }

    /// What all shards hold, as their cores last said.
    pub(super) fn held(&self) -> Held {
        self.states().fold(Held::default(), |held, state| Held {
            records: held.records + state.records,
            bytes: held.bytes + state.live_bytes,
        })
    }

    /// Says that a core's medium has failed. The first reason stays.
    pub(super) fn publish_failure(&self, core: usize, why: &str) {
        self.inboxes[core].failure.get_or_init(|| why.to_owned());
    }

    /// Why a medium has failed, of whichever core that was.
    pub(super) fn failure(&self) -> Option<&str> {
        self.inboxes.iter().find_map(|inbox| inbox.failure.get()).map(String::as_str)
    }

    /// How each shard was when its core last said so: before any reply that depends on it.
    pub(super) fn states(&self) -> impl Iterator<Item = ShardState> {
        self.states.iter().map(SharedShardState::load)
    }
}

impl Chunk {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; CHUNK_BYTES].into(), len: 0 }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("cores", &self.cores()).field("shards", &self.shards()).finish()
    }
}

/// How a shard is.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct ShardState {
    pub(super) head: u64,
    pub(super) next: u64,
    pub(super) records: u64,
    /// Bytes in them, and bytes of the medium that they keep from others: whole buffers, and log entries.
    pub(super) live_bytes: u64,
    pub(super) held_bytes: u64,
    pub(super) free_buffers: u64,
    pub(super) free_log_entries: u64,
    /// Records, or runs of log entries, that are damaged.
    pub(super) damaged: u64,
    #[serde(skip)]
    pub(super) buffers: u64,
    #[serde(skip)]
    pub(super) log_entries: u64,
    #[serde(skip)]
    pub(super) trimmed_records: u64,
    #[serde(skip)]
    pub(super) appended_records: u64,
    #[serde(skip)]
    pub(super) payload_bytes: u64,
    #[serde(skip)]
    pub(super) copied_bytes: u64,
    #[serde(skip)]
    pub(super) flushed_lines: u64,
    #[serde(skip)]
    pub(super) fences: u64,
    #[serde(skip)]
    pub(super) written_bytes: u64,
    #[serde(skip)]
    pub(super) write_requests: u64,
}

/// A shard's state in lines of its own, for all cores to read.
#[derive(Default)]
#[repr(align(128))]
struct SharedShardState([AtomicU64; FIELDS]);

const FIELDS: usize = 18;

impl ShardState {
    pub(super) fn of(shard: &Shard) -> Self {
        let counters = shard.counters();
        Self {
            head: shard.head_seq(),
            next: shard.committed_seq(),
            records: counters.live_records,
            live_bytes: counters.live_payload_bytes,
            held_bytes: counters.pm_bytes,
            trimmed_records: counters.trimmed_records,
            free_buffers: shard.arena().free_buffers() as u64,
            free_log_entries: shard.free_log_entries(),
            damaged: shard.quarantine_counts().0,
            buffers: shard.arena().buffers() as u64,
            log_entries: shard.log_entries(),
            appended_records: counters.appended_records,
            payload_bytes: counters.payload_bytes,
            copied_bytes: counters.copied_bytes,
            flushed_lines: counters.flushed_lines,
            fences: counters.fences,
            written_bytes: counters.written_bytes,
            write_requests: counters.write_requests,
        }
    }

    fn fields(&mut self) -> [&mut u64; FIELDS] {
        [
            &mut self.head,
            &mut self.next,
            &mut self.records,
            &mut self.live_bytes,
            &mut self.held_bytes,
            &mut self.trimmed_records,
            &mut self.free_buffers,
            &mut self.free_log_entries,
            &mut self.damaged,
            &mut self.buffers,
            &mut self.log_entries,
            &mut self.appended_records,
            &mut self.payload_bytes,
            &mut self.copied_bytes,
            &mut self.flushed_lines,
            &mut self.fences,
            &mut self.written_bytes,
            &mut self.write_requests,
        ]
    }

    /// Adds another shard's; numbers of records stay those of the first.
    pub(super) fn add(&mut self, mut other: Self) {
        let (head, next) = (self.head, self.next);
        for (own, others) in self.fields().into_iter().zip(other.fields()) {
            *own += *others;
        }
        (self.head, self.next) = (head, next);
    }
}

impl SharedShardState {
    fn store(&self, state: &ShardState) {
        let mut state = *state;
        for (cell, value) in self.0.iter().zip(state.fields()) {
            cell.store(*value, Ordering::Relaxed);
        }
    }

    fn load(&self) -> ShardState {
        let mut state = ShardState::default();
        for (cell, value) in self.0.iter().zip(state.fields()) {
            *value = cell.load(Ordering::Relaxed);
        }
        state
    }
}
