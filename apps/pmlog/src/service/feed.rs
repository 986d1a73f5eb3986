//! Records of one shard, line by line, for who wants more than a list: with their bytes, or as they become durable.
//!
//! A feed looks up a few records at a time, and the next ones when the network has taken those: a client that reads
//! slowly holds no memory but its connection's, and is told when what it wants next is trimmed. At the end of the log a
//! feed that follows waits for a commit. After each turn others come first.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use pmem::{RecordInfo, Shard};
use stack::net::{ConnId, Net};
use stack::time::Instant;

use super::checked::{About, Checked, Unreadable};
use super::common::Common;
use super::exchange::{PAGE_RECORDS, Page, PageQuery, Query};
use super::foreign::Fetch;
use super::out::{Out, Progress};
use super::peers::{Owner, Peers, Reading};
use super::render::{Rendered, ReplyFormat};
use super::stream::give;
use crate::http::{FeedStart, Refusal};

/// What one connection's feed sends before it is another's turn, in bytes and in looks at the log.
const TURN_BYTES: u64 = 32 * 1024;
const TURN_LOOKS: u32 = 32;
/// Feeds that have a turn between two bursts.
const TURNS: usize = 16;
/// After so long with nothing to say, a client that follows is told so: one that is gone answers by a reset, or not.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Records of one shard on their way to a client.
#[derive(Debug)]
pub(super) struct Feed {
    shard: u32,
    /// The number of the next record, or one before it; 0 for the oldest.
    next: u64,
    /// Where it ends, unless it follows the log.
    end: Option<u64>,
    /// Records that it may still have.
    left: u64,
    has_content: bool,
    has_head: bool,
    /// The client sends nothing more: who does not finish is there until he finds out that nobody is.
    is_left: bool,
    /// Records that were looked up, and how many of them are opened.
    page: Option<Box<Page>>,
    opened: usize,
    stage: Stage,
    /// When something was last said.
    said: Instant,
    _seat: Seat,
}

#[derive(Debug)]
enum Stage {
    /// The next record is to be taken from the page, or a page is to be looked up.
    Look,
    /// An answer is to come about the records from `next` on; there were some before this number, readable or not.
    Asked { before: u64 },
    /// A record of this core's, and whether its line is out.
    Own { info: RecordInfo, record: Checked, has_line: bool },
    /// A record of another core's.
    Foreign { info: RecordInfo, fetch: Fetch },
    /// The end of a record.
    Behind { next: u64 },
    /// There is nothing to send for now.
    Rest,
    /// The last line is to be sent.
    Last(Option<Refusal>),
}

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) from: FeedStart,
    pub(super) limit: u64,
    pub(super) follow: bool,
    pub(super) content: bool,
}

impl Feed {
    /// The records of a shard, which has those from `head` to before `next`.
    ///
    /// # Errors
    /// They do not begin where the client wants them to, or there are as many feeds as there may be.
    pub(super) fn new(
        shard: u32,
        name: Option<u32>,
        (head, next): (u64, u64),
        wanted: Wanted,
        common: &Common,
    ) -> Result<Self, Refusal> {
        let first = match wanted.from {
            FeedStart::Oldest | FeedStart::Seq(0) => 0,
            FeedStart::Next => next,
            FeedStart::Seq(from) if from < head => {
                return Err(Refusal::Trimmed { shard: name, from, head, next });
            }
            // Who was told of it was told by another store.
            FeedStart::Seq(seq) if seq > next => return Err(Refusal::NoRecord { seq, head, next }),
            FeedStart::Seq(seq) => seq,
        };
        Ok(Self {
            shard,
            next: first,
            end: (!wanted.follow).then_some(next),
            left: wanted.limit,
            has_content: wanted.content,
            has_head: false,
            is_left: false,
            page: None,
            opened: 0,
            stage: Stage::Look,
            said: common.now,
            _seat: common.feeds.seat()?,
        })
    }

    /// Whether it waits for the log to go on.
    pub(super) fn is_at_rest(&self) -> bool {
        matches!(self.stage, Stage::Rest)
    }

    /// The client has finished sending.
    pub(super) fn is_left(&mut self) {
        self.is_left = true;
    }

    /// Another core has answered.
    pub(super) fn take(&mut self, reading: Reading, common: &mut Common) {
        match (reading, &mut self.stage) {
            (Reading::Listed(page), Stage::Asked { before }) => {
                let before = *before;
                self.turn_to(page, before);
            }
            (Reading::Part { begins, bytes, lease }, Stage::Foreign { fetch, .. }) => {
                common.counters.read_records += u64::from(begins.is_some());
                fetch.take(begins, bytes, lease);
            }
            (Reading::Unreadable(refusal), Stage::Foreign { info, fetch }) => {
                let info = *info;
                if fetch.fail() {
                    self.pass_over(&info, &refusal);
                    self.stage = Stage::Look;
                }
            }
            _ => {}
        }
    }

    /// A record cannot be read. If it is damaged, it is left out, as it is of lists; if it was trimmed, that has to be told.
    fn pass_over(&mut self, info: &RecordInfo, refusal: &Refusal) {
        self.next = info.seq + info.entries;
        if let Refusal::NoRecord { .. } = refusal {
            (self.next, self.page) = (info.seq, None);
        }
    }

    /// Goes on with what was found. There are records before the number `before`, be it that they cannot be read.
    fn turn_to(&mut self, page: Box<Page>, before: u64) {
        let is_trimmed = self.next != 0 && self.next < page.head;
        if page.records.is_empty() && !is_trimmed {
            self.next = self.next.max(before);
        }
        // That it is trimmed is seen, and told, by the next look.
        (self.page, self.opened) = ((!page.records.is_empty() && !is_trimmed).then_some(page), 0);
        self.stage = Stage::Look;
    }

    /// The line of the next record of the page, or of all of them.
    fn turn<N: Net>(
        &mut self,
        out: &mut Out<'_, N>,
        common: &mut Common,
        main: &mut Shard,
        name: Option<u32>,
        format: ReplyFormat,
    ) -> Result<bool, Progress> {
        let Some(page) = &self.page else { return Ok(false) };
        if self.has_content {
            match page.records.get(self.opened).copied().filter(|_| self.left > 0) {
                Some(info) => {
                    self.opened += 1;
                    self.open(info, common, main);
                }
                None => self.page = None,
            }
            return Ok(true);
        }
        let count = page.records.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let records = &page.records[..count];
        if let Some(last) = records.last() {
            out.text(common.rendered.feed_lines(records, name, format))?;
            self.said = common.now;
            self.left -= count as u64;
            self.next = last.seq + last.entries;
        }
        self.page = None;
        Ok(true)
    }

    pub(super) fn send<N: Net>(
        &mut self,
        out: &mut Out<'_, N>,
        common: &mut Common,
        main: &mut Shard,
        format: ReplyFormat,
    ) -> Result<(), Progress> {
        let name = common.peers.exchange.name_of(self.shard);
        if !self.has_head {
            let ends = common.peers.ends(Some(self.shard), main);
            let own = common.peers.own_name();
            out.text(common.rendered.feed_head(&ends, own, self.has_content, format))?;
            self.has_head = true;
        }
        if format.is_head() {
            return Ok(());
        }
        let mut looks = 0;
        loop {
            match &mut self.stage {
                Stage::Look | Stage::Rest => {
                    if out.bytes() >= TURN_BYTES || looks == TURN_LOOKS {
                        common.feeds.later(out.conn());
                        return Err(Progress::Blocked);
                    }
                    if !self.turn(out, common, main, name, format)? {
                        looks += 1;
                        self.look(out, common, main, name, format)?;
                    }
                }
                Stage::Asked { .. } => return Err(Progress::Blocked),
                Stage::Own { info, record, has_line } => {
                    if !*has_line {
                        out.text(common.rendered.feed_record(info, name, format))?;
                        *has_line = true;
                    }
                    give(out, self.shard, record)?;
                    self.stage = Stage::Behind { next: info.seq + info.entries };
                }
                Stage::Foreign { info, fetch } => {
                    let Common { rendered, peers, .. } = &mut *common;
                    let line =
                        |out: &mut Out<'_, N>, _: &About| out.text(rendered.feed_record(info, name, format));
                    fetch.send(out, peers, false, line)?;
                    self.stage = Stage::Behind { next: info.seq + info.entries };
                }
                Stage::Behind { next } => {
                    out.text(Rendered::feed_record_end(format))?;
                    self.next = *next;
                    self.said = common.now;
                    self.left -= 1;
                    self.stage = Stage::Look;
                }
                Stage::Last(refusal) => {
                    let next = Some(self.next).filter(|_| !self.is_left);
                    return out.text(common.rendered.feed_end(refusal.as_ref(), next, name, format));
                }
            }
        }
    }

    /// Looks for what comes next.
    fn look<N: Net>(
        &mut self,
        out: &mut Out<'_, N>,
        common: &mut Common,
        main: &mut Shard,
        name: Option<u32>,
        format: ReplyFormat,
    ) -> Result<(), Progress> {
        let (head, next) = common.peers.span(self.shard, main);
        self.stage = Stage::Look;
        if self.next != 0 && self.next < head {
            let trimmed = Refusal::Trimmed { shard: name, from: self.next, head, next };
            self.stage = Stage::Last(Some(trimmed));
        } else if self.left == 0 || self.end.map_or(self.is_left, |end| self.next >= end) {
            self.stage = Stage::Last(None);
        } else if common.is_ending {
            self.stage = Stage::Last(Some(Refusal::Ending));
        } else if self.next < next {
            self.look_up(out, common, main, next)?;
        } else if common.failed.is_some() || common.peers.exchange.failure().is_some() {
            self.stage = Stage::Last(Some(Refusal::StoreFailed));
        } else {
            if common.now - self.said >= HEARTBEAT {
                out.text(common.rendered.feed_heartbeat(self.next, name, format))?;
                self.said = common.now;
            }
            self.stage = Stage::Rest;
            common.feeds.wait(out.conn(), &common.peers);
            return Err(Progress::Blocked);
        }
        Ok(())
    }

    /// Looks up the next records, of which there are some before the number `before`.
    fn look_up<N: Net>(
        &mut self,
        out: &Out<'_, N>,
        common: &mut Common,
        main: &mut Shard,
        before: u64,
    ) -> Result<(), Progress> {
        let query = PageQuery { shard: self.shard, epoch: None, from: self.next, limit: PAGE_RECORDS };
        match common.peers.owner_of(self.shard) {
            Owner::This => {
                let page = common.peers.list(&query, main);
                self.turn_to(Box::new(page), before);
                Ok(())
            }
            Owner::Core(core) => {
                if common.peers.ask_briefly(core, out.conn(), Query::List(query)) {
                    self.stage = Stage::Asked { before };
                }
                Err(Progress::Blocked)
            }
        }
    }

    /// Begins with a record's bytes. One that cannot be read any more is passed over.
    fn open(&mut self, info: RecordInfo, common: &mut Common, main: &mut Shard) {
        self.stage = Stage::Look;
        if self.end.is_some_and(|end| info.seq >= end) {
            (self.next, self.page) = (info.seq, None);
            return;
        }
        self.stage = match common.peers.owner_of(self.shard) {
            Owner::Core(core) => Stage::Foreign { info, fetch: Fetch::new(core, self.shard, info.seq, None) },
            Owner::This => match Checked::look(common.peers.shard(self.shard, main), info.seq, None) {
                Ok(record) => {
                    common.counters.read_records += 1;
                    Stage::Own { info, record, has_line: false }
                }
                Err(Unreadable { refusal, found }) => {
                    found.iter().for_each(|damage| common.alarm.raise(self.shard, damage, common.now));
                    self.pass_over(&info, &refusal);
                    Stage::Look
                }
            },
        };
    }
}

/// The feeds of one core: how many there are, and who has a turn next.
#[derive(Debug)]
pub(super) struct Feeds {
    open: Rc<Cell<u32>>,
    max: u32,
    /// Of each connection's place.
    marks: Vec<Mark>,
    /// Places of those that wait for a commit.
    waiting: Vec<u32>,
    /// Places of those that have something to do, or look whether they have.
    ready: VecDeque<u32>,
    /// The sum of the numbers at the ends of all cores' logs, when those that wait were last woken for that.
    seen: u64,
}

/// In which queue a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    None,
    Waiting,
    Ready,
}

/// One of the feeds that there may be.
#[derive(Debug)]
struct Seat(Rc<Cell<u32>>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Feeds {
    /// For so many places, and feeds at a time.
    pub(super) fn new(places: usize, max: u32) -> Self {
        Self {
            open: Rc::default(),
            max,
            marks: vec![Mark::None; places],
            waiting: Vec::new(),
            ready: VecDeque::new(),
            seen: 0,
        }
    }

    /// How many there are, and may be.
    pub(super) fn count(&self) -> (u32, u32) {
        (self.open.get(), self.max)
    }

    fn seat(&self) -> Result<Seat, Refusal> {
        if self.open.get() >= self.max {
            return Err(Refusal::Followers { max: self.max });
        }
        self.open.set(self.open.get() + 1);
        Ok(Seat(self.open.clone()))
    }

    /// A connection has more to send when it is its turn again.
    fn later(&mut self, conn: ConnId) {
        if let Some(mark) = self.marks.get_mut(conn.index as usize).filter(|mark| **mark != Mark::Ready) {
            *mark = Mark::Ready;
            self.ready.push_back(conn.index);
        }
    }

    /// A connection waits for a commit. `peers` will hear of those of other cores.
    fn wait(&mut self, conn: ConnId, peers: &Peers) {
        if self.waiting.len() >= self.marks.len() {
            // Some stand there twice.
            self.wake();
        }
        let Some(mark) = self.marks.get_mut(conn.index as usize) else { return };
        if *mark == Mark::None {
            *mark = Mark::Waiting;
            if self.waiting.is_empty() && peers.has_others() {
                peers.exchange.follow(peers.own_index(), true);
            }
            self.waiting.push(conn.index);
        }
    }

    /// There is something new for those who wait.
    #[inline]
    pub(super) fn wake(&mut self) {
        if !self.waiting.is_empty() {
            self.wake_all();
        }
    }

    #[cold]
    fn wake_all(&mut self) {
        for index in self.waiting.drain(..) {
            let mark = &mut self.marks[index as usize];
            if *mark == Mark::Waiting {
                *mark = Mark::Ready;
                self.ready.push_back(index);
            }
        }
    }

    /// Whether the log of any core has gone on since those who wait were last woken for that.
    pub(super) fn has_news(&self, peers: &Peers) -> bool {
        !self.waiting.is_empty() && peers.has_others() && peers.exchange.ends_sum() != self.seen
    }

    /// Wakes those who wait if the log of any core has gone on.
    pub(super) fn look_around(&mut self, peers: &Peers) {
        if self.has_news(peers) {
            // They look afterwards.
            self.seen = peers.exchange.ends_sum();
            self.wake_all();
            peers.exchange.follow(peers.own_index(), false);
        }
    }

    /// The places that have a turn now: so many at a time.
    pub(super) fn turns(&self) -> usize {
        self.ready.len().min(TURNS)
    }

    /// The next place that has a turn.
    pub(super) fn next(&mut self) -> Option<usize> {
        let index = self.ready.pop_front()? as usize;
        self.marks[index] = Mark::None;
        Some(index)
    }
}
