//! What was sent and is not acknowledged (RFC 6675, section 3; RFC 8985, section 5.2): which of it has arrived, which is
//! lost, which was sent again, and when.
//!
//! It is kept by runs: bytes side by side that were sent at about the same time and have fared alike. One that nothing was
//! said of lies in the connection, and most connections never have another. Where there are more they lie in a list that
//! connections share memory for, of a size set at the start. A list has at most [`MOST_RUNS`] runs, so that whatever a peer says
//! takes no more than a look through as many; where there is no room, runs that were to be told apart are one.

use std::collections::VecDeque;

use super::recovery::Notes;
use super::seq::Seq;
use super::spares::Spares;

/// Connections that may have more than one run at a time, and of them those with more than a few.
const MAX_LISTS: usize = 8192;
const MAX_LONG_LISTS: usize = 256;

/// Runs of a list: of the usual one, and of one that has needed more.
const FEW_RUNS: usize = 32;
pub(super) const MOST_RUNS: usize = 1024;

/// Places of a list that what a peer says does not fill, so that there is one for what is sent next.
const KEPT_RUNS: usize = 2;

bitflags::bitflags! {
    /// What has become of a run.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct State: u8 {
        /// The peer has it, and says so beyond a hole.
        const SACKED = 1;
        /// It is to be sent again.
        const LOST = 2;
        /// It was sent more than once.
        const AGAIN = 4;
        /// When it was sent there was nothing more to send.
        const LIMITED = 8;
    }
}

/// Bytes side by side that were sent together and have fared alike; and if it is a run of a list, what had been delivered
/// then.
#[derive(Clone, Copy, Debug, Default)]
struct Run<S> {
    /// One beyond the last; the first is where the run before ends.
    end: Seq,
    /// The low bits of when the first of it was last sent.
    sent_us: u32,
    /// The node of the send queue that the first byte lies in, if that is known.
    node: Option<std::num::NonZeroU32>,
    state: State,
    delivered: S,
}

/// What has been delivered on a connection at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Bytes, modulo 2^32.
    bytes: u32,
    /// When the last of them were, and when those were sent.
    at_us: u32,
    sent_us: u32,
}

/// How far a connection is of which the rate of delivery is asked for.
#[derive(Clone, Debug, Default)]
struct Rates {
    delivered: Progress,
    /// Up to which of the bytes delivered the application gave too little to fill the path.
    limited_until: Option<std::num::NonZeroU32>,
    /// What had been delivered when the only run was sent.
    before_only: Progress,
}

impl Run<()> {
    fn after(self, delivered: Progress) -> Run<Progress> {
        let Self { end, sent_us, node, state, .. } = self;
        Run { end, sent_us, node, state, delivered }
    }
}

impl<S> Run<S> {
    fn is_in_flight(&self) -> bool {
        !self.state.intersects(State::SACKED | State::LOST)
    }

    /// Whether it was sent once, and nothing was said of it.
    fn is_usual(&self) -> bool {
        (self.state - State::LIMITED).is_empty()
    }

    /// Whether what is sent behind it may be of this run.
    fn takes(&self, sending: &Sending) -> bool {
        !sending.again && self.is_usual() && sending.now_us.wrapping_sub(self.sent_us) <= sending.within_us
    }
}

/// Whether what was sent at the first time and ends there was sent after the other.
pub(super) fn is_sent_after((us, end): (u32, Seq), (other_us, other_end): (u32, Seq)) -> bool {
    us == other_us && end.after(other_end) || Seq(us).after(Seq(other_us))
}

/// How something is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    pub now_us: u32,
    /// What is sent within this time makes one run.
    pub within_us: u32,
    /// The node of the send queue that it begins in.
    pub node: u32,
    /// Whether some of it may have been sent before.
    pub again: bool,
}

/// What an acknowledgement tells of that nothing before has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivered {
    pub bytes: u32,
    /// Since the first of what was sent only once, and whether there is something else.
    since_first_us: Option<u32>,
    has_again: bool,
    /// What was sent last.
    pub newest: Option<Newest>,
    /// The end of the last of it.
    pub highest: Option<Seq>,
    /// Some of it was sent only once, and ends there at the most.
    pub original: Option<Seq>,
    /// Some of it was sent only once and before what had been delivered already.
    pub is_reordered: bool,
    /// Some of what is acknowledged was sent again, and the first of that then.
    pub again_us: Option<u32>,
}

/// The one of several segments that was sent last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newest {
    pub sent_us: u32,
    pub end: Seq,
    pub is_again: bool,
    delivered: Progress,
    is_limited: bool,
}

/// How fast data was delivered (draft-ietf-ccwg-bbr, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateSample {
    pub bytes: u32,
    pub interval_us: u32,
    /// What had been delivered when the segment was sent that the sample is of, modulo 2^32.
    pub delivered_before: u32,
    /// Whether the application gave too little to fill the path.
    pub is_limited: bool,
}

impl Delivered {
    /// The round trip that it measures: none with something that was sent again, for which the rest may have waited.
    pub(super) fn rtt_us(&self) -> Option<u32> {
        self.since_first_us.filter(|_| !self.has_again)
    }

    /// That much of a run, which ends there, is acknowledged.
    #[inline]
    fn note_acknowledged(&mut self, run: &Run<Progress>, end: Seq, len: u32, now_us: u32) {
        if run.state.contains(State::AGAIN) {
            let is_first = self.again_us.is_none_or(|known| Seq(run.sent_us).before(Seq(known)));
            self.again_us = if is_first { Some(run.sent_us) } else { self.again_us };
        }
        self.note(run, end, len, now_us);
    }

    #[inline]
    fn note(&mut self, run: &Run<Progress>, end: Seq, len: u32, now_us: u32) {
        self.bytes += len;
        self.highest = Some(self.highest.map_or(end, |known| known.max(end)));
        let is_again = run.state.contains(State::AGAIN);
        self.has_again |= is_again;
        if !is_again {
            self.since_first_us = self.since_first_us.max(Some(now_us.wrapping_sub(run.sent_us)));
            self.original = Some(self.original.map_or(end, |known| known.max(end)));
        }
        let sent = (run.sent_us, end);
        if self.newest.is_none_or(|known| is_sent_after(sent, (known.sent_us, known.end))) {
            self.newest = Some(Newest {
                sent_us: run.sent_us,
                end,
                is_again,
                delivered: run.delivered,
                is_limited: run.state.contains(State::LIMITED),
            });
        }
    }
}

/// A part of what is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub from: Seq,
    pub end: Seq,
    /// A node of the send queue that begins at or before it; none is the first.
    pub near: Option<u32>,
}

/// What is under way on one connection. It is cleared before it is dropped.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    /// What is acknowledged ends here, and what was sent there.
    from: Seq,
    end: Seq,
    in_flight: u32,
    lost: u32,
    /// The only run, if there is no list.
    only: Run<()>,
    list: Option<Box<List>>,
    /// If anybody asks [how fast](Self::rate) data is delivered.
    rates: Option<Box<Rates>>,
}

/// Runs, and what else is known where something may have been lost.
#[derive(Debug)]
pub(super) struct List {
    runs: VecDeque<Run<Progress>>,
    room: usize,
    /// Whether all was acknowledged once before.
    has_rested: bool,
    /// Whether something was sent again since the last run began. What is sent then begins another: of two things that were
    /// sent, it is to be known which was the first (RFC 8985, section 6.1).
    sent_again: bool,
    /// Nothing before it is lost.
    lost_from: Seq,
    /// The end of what is known to have been delivered.
    delivered_to: Seq,
    pub notes: Notes,
}

/// Memory for the lists of all connections.
#[derive(Debug)]
pub(crate) struct RunPool {
    lists: usize,
    unused: Spares<List>,
    long: Vec<VecDeque<Run<Progress>>>,
}

impl RunPool {
    /// Lists for so many connections.
    pub(super) fn new(connections: usize) -> Self {
        let lists = connections.min(MAX_LISTS);
        let list = || List {
            runs: VecDeque::with_capacity(FEW_RUNS),
            room: FEW_RUNS,
            has_rested: false,
            sent_again: false,
            lost_from: Seq(0),
            delivered_to: Seq(0),
            notes: Notes::default(),
        };
        Self {
            lists,
            unused: Spares::new(lists, list),
            long: (0..lists.min(MAX_LONG_LISTS)).map(|_| VecDeque::with_capacity(MOST_RUNS)).collect(),
        }
    }

    fn give_back(&mut self, mut list: Box<List>) {
        list.runs.clear();
        (list.notes, list.has_rested, list.sent_again) = (Notes::default(), false, false);
        if list.room > FEW_RUNS {
            // Long memory is shared; the list has its own again, which lies in the pool meanwhile.
            if let Some(place) = self.long.iter_mut().find(|runs| runs.capacity() < MOST_RUNS) {
                std::mem::swap(place, &mut list.runs);
                list.room = FEW_RUNS;
            }
        }
        self.unused.give_back(list);
    }

    /// Gives a list that is full more room, if there is any.
    fn lengthen(&mut self, list: &mut List) {
        if list.room > FEW_RUNS {
            return;
        }
        if let Some(long) = self.long.iter_mut().find(|runs| runs.capacity() >= MOST_RUNS) {
            long.extend(list.runs.drain(..));
            std::mem::swap(long, &mut list.runs);
            list.room = MOST_RUNS;
        }
    }
}

impl List {
    fn start(&self, index: usize, from: Seq) -> Seq {
        index.checked_sub(1).and_then(|before| self.runs.get(before)).map_or(from, |run| run.end)
    }

    /// The run that a byte belongs to.
    fn index_of(&self, seq: Seq) -> usize {
        self.runs.partition_point(|run| run.end.at_or_before(seq))
    }

    /// Makes a run begin at `seq`; false if there is no room for it.
    fn split(&mut self, index: usize, from: Seq, seq: Seq, pool: &mut RunPool) -> bool {
        if self.start(index, from) == seq {
            return true;
        }
        if self.runs.len() + KEPT_RUNS >= self.room {
            pool.lengthen(self);
        }
        if self.runs.len() + KEPT_RUNS >= self.room {
            return false;
        }
        let Some(run) = self.runs.get_mut(index) else { return false };
        let behind = Run { node: None, ..*run };
        run.end = seq;
        self.runs.insert(index + 1, behind);
        true
    }

    /// Makes one of those between two places, all of which have arrived, and of their neighbours if they have, too.
    fn merge_sacked(&mut self, mut first: usize, mut end: usize) {
        let is_sacked = |at: usize| self.runs.get(at).is_some_and(|run| run.state.contains(State::SACKED));
        if first.checked_sub(1).is_some_and(is_sacked) {
            first -= 1;
        }
        if is_sacked(end) {
            end += 1;
        }
        if end > first + 1 {
            self.runs.drain(first..end - 1);
            self.runs[first].node = None;
        }
    }
}

impl Scoreboard {
    /// Of a connection that sends `from` there on, with the rates at which that is delivered if it `is_timed`.
    pub(super) fn new(from: Seq, is_timed: bool) -> Self {
        Self {
            from,
            end: from,
            in_flight: 0,
            lost: 0,
            only: Run::default(),
            list: None,
            rates: is_timed.then(Box::default),
        }
    }

    /// Begins anew.
    pub(super) fn clear(&mut self, from: Seq, pool: &mut RunPool) {
        if let Some(list) = self.list.take() {
            pool.give_back(list);
        }
        let mut rates = self.rates.take();
        if let Some(rates) = &mut rates {
            **rates = Rates::default();
        }
        *self = Self { rates, ..Self::new(from, false) };
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.from == self.end
    }

    /// Bytes that are believed to be under way: `pipe` in RFC 6675.
    #[inline]
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Bytes that are to be sent again.
    #[inline]
    pub(super) fn lost(&self) -> u32 {
        self.lost
    }

    /// Bytes that the peer has beyond a hole.
    #[inline]
    pub(super) fn sacked(&self) -> u32 {
        self.end.since(self.from) - self.in_flight - self.lost
    }

    pub(super) fn notes(&self) -> Option<&Notes> {
        self.list.as_ref().map(|list| &list.notes)
    }

    pub(super) fn notes_mut(&mut self) -> Option<&mut Notes> {
        self.list.as_mut().map(|list| &mut list.notes)
    }

    /// Takes memory to tell runs apart; false if there is none.
    pub(super) fn take_list(&mut self, pool: &mut RunPool) -> bool {
        if self.list.is_none() {
            let Some(mut list) = pool.unused.take() else { return false };
            (list.lost_from, list.delivered_to) = (self.from, self.from);
            if !self.is_empty() {
                list.runs.push_back(self.only.after(self.delivered_before_only()));
            }
            self.list = Some(list);
        }
        true
    }

    /// Gives that memory back if nothing is under way.
    #[inline]
    pub(super) fn rest(&mut self, pool: &mut RunPool) {
        if self.is_empty() && self.list.is_some() {
            self.give_list_back(pool);
        }
    }

    fn give_list_back(&mut self, pool: &mut RunPool) {
        let is_plenty = pool.unused.len() > pool.lists / 2;
        if let Some(list) = &mut self.list
            && list.notes.waits_for_duplicates()
            && !std::mem::replace(&mut list.has_rested, true)
            && is_plenty
        {
            // That something came twice is told when all is acknowledged.
            return;
        }
        if let Some(list) = self.list.take() {
            pool.give_back(list);
        }
    }

    /// New data was sent, up to `end`.
    #[inline(always)]
    pub(super) fn sent(&mut self, end: Seq, sending: &Sending, pool: &mut RunPool) {
        self.begin_flight(sending.now_us);
        if self.list.is_none() && self.is_empty() {
            self.set_only(self.run(end, sending));
        } else if self.list.is_none() && self.only.takes(sending) {
            self.only.end = end;
        } else {
            self.append(end, sending, pool);
        }
        self.in_flight += end.since(self.end);
        self.end = end;
    }

    /// Where nothing was under way the time of rates begins.
    #[inline]
    fn begin_flight(&mut self, now_us: u32) {
        if let Some(rates) = &mut self.rates
            && self.in_flight == 0
        {
            (rates.delivered.sent_us, rates.delivered.at_us) = (now_us, now_us);
        }
    }

    fn delivered(&self) -> Progress {
        self.rates.as_ref().map(|rates| rates.delivered).unwrap_or_default()
    }

    fn delivered_before_only(&self) -> Progress {
        self.rates.as_ref().map(|rates| rates.before_only).unwrap_or_default()
    }

    #[inline]
    fn set_only(&mut self, run: Run<()>) {
        self.only = run;
        if let Some(rates) = &mut self.rates {
            rates.before_only = rates.delivered;
        }
    }

    #[inline]
    fn run(&self, end: Seq, sending: &Sending) -> Run<()> {
        let mut state = State::empty();
        state.set(State::AGAIN, sending.again);
        state.set(State::LIMITED, self.rates.as_ref().is_some_and(|rates| rates.limited_until.is_some()));
        Run {
            end,
            sent_us: sending.now_us,
            // The first has no number, so that none takes no room.
            node: std::num::NonZeroU32::new(sending.node.wrapping_add(1)),
            state,
            delivered: (),
        }
    }

    fn append(&mut self, end: Seq, sending: &Sending, pool: &mut RunPool) {
        let run = self.run(end, sending).after(self.delivered());
        let _ = self.take_list(pool);
        let Self { from, in_flight, lost, .. } = self;
        let Some(list) = &mut self.list else {
            Self::join(&mut self.only, end, sending.now_us, *from, in_flight, lost);
            return;
        };
        let begins = std::mem::take(&mut list.sent_again);
        if let Some(last) = list.runs.back_mut().filter(|last| !begins && last.takes(sending)) {
            last.end = end;
            return;
        }
        if list.runs.len() == list.room {
            pool.lengthen(list);
        }
        let is_full = list.runs.len() == list.room;
        let start = list.start(list.runs.len().saturating_sub(1), *from);
        match list.runs.back_mut() {
            Some(last) if is_full => {
                Self::join(last, end, sending.now_us, start, in_flight, lost);
            }
            _ => list.runs.push_back(run),
        }
    }

    /// Makes one run of the last, which begins at `start`, and what is sent now: all of it is under way.
    fn join<S>(last: &mut Run<S>, end: Seq, now_us: u32, start: Seq, in_flight: &mut u32, lost: &mut u32) {
        let len = last.end.since(start);
        if last.state.contains(State::LOST) {
            *lost -= len;
        }
        if !last.is_in_flight() {
            *in_flight += len;
        }
        last.state -= State::LOST | State::SACKED;
        (last.end, last.sent_us) = (end, now_us);
    }

    /// All before `ack` has been delivered, and nothing of it was in doubt. As [`acknowledge`](Self::acknowledge) and
    /// [`count`](Self::count), but for what is told of several runs, and of rates: the bytes, and the time since the first were sent.
    #[inline(always)]
    pub(super) fn acknowledge_one(&mut self, ack: Seq, now_us: u32) -> Option<(u32, u32)> {
        let is_one = self.list.is_none() && !self.is_empty() && self.only.is_usual();
        if self.rates.is_some() || !is_one || ack.after(self.end) {
            return None;
        }
        let bytes = ack.since(self.from);
        self.in_flight -= bytes;
        self.from = ack;
        Some((bytes, now_us.wrapping_sub(self.only.sent_us)))
    }

    /// All before `ack` has been delivered.
    pub(super) fn acknowledge(&mut self, ack: Seq, now_us: u32, news: &mut Delivered) {
        if self.list.is_some() {
            self.acknowledge_list(ack, now_us, news);
        } else if !self.is_empty() {
            let end = ack.min(self.end);
            let len = end.since(self.from);
            news.note_acknowledged(&self.only.after(self.delivered_before_only()), end, len, now_us);
            *if self.only.state.contains(State::LOST) { &mut self.lost } else { &mut self.in_flight } -= len;
        }
        self.from = ack;
        self.end = self.end.max(ack);
    }

    fn acknowledge_list(&mut self, ack: Seq, now_us: u32, news: &mut Delivered) {
        let Some(list) = &mut self.list else { return };
        let mut start = self.from;
        while let Some(run) = list.runs.front().filter(|_| start.before(ack)) {
            let end = ack.min(run.end);
            let len = end.since(start);
            if !run.state.contains(State::SACKED) {
                news.note_acknowledged(run, end, len, now_us);
                news.is_reordered |= !run.state.contains(State::AGAIN) && end.before(list.delivered_to);
                *if run.is_in_flight() { &mut self.in_flight } else { &mut self.lost } -= len;
            }
            if run.end.after(ack) {
                break;
            }
            start = run.end;
            list.runs.pop_front();
        }
        list.lost_from = list.lost_from.max(ack);
    }

    /// Counts what an acknowledgement has told of, once all of it is taken in.
    pub(super) fn count(&mut self, news: &Delivered, now_us: u32) {
        if let (Some(list), Some(highest)) = (&mut self.list, news.highest) {
            list.delivered_to = list.delivered_to.max(highest);
        }
        let (Some(rates), Some(newest)) = (&mut self.rates, &news.newest) else { return };
        let bytes = rates.delivered.bytes.wrapping_add(news.bytes);
        rates.delivered = Progress { bytes, at_us: now_us, sent_us: newest.sent_us };
        if rates.limited_until.is_some_and(|until| Seq(bytes).after(Seq(until.get()))) {
            rates.limited_until = None;
        }
    }

    /// The application has nothing more to send, though there is room under way.
    #[inline]
    pub(super) fn limited(&mut self) {
        if let Some(rates) = &mut self.rates {
            // A number that is 0 is one later.
            let until = rates.delivered.bytes.wrapping_add(self.in_flight).max(1);
            rates.limited_until = std::num::NonZeroU32::new(until);
        }
    }

    /// How fast what an acknowledgement has told of was delivered.
    pub(super) fn rate(&self, news: &Delivered, now_us: u32) -> Option<RateSample> {
        let (newest, rates) = (news.newest.as_ref()?, self.rates.as_ref()?);
        let sent_us = newest.sent_us.wrapping_sub(newest.delivered.sent_us);
        let acked_us = now_us.wrapping_sub(newest.delivered.at_us);
        let interval_us = sent_us.max(acked_us);
        (interval_us > 0 && interval_us < i32::MAX as u32).then(|| RateSample {
            bytes: rates.delivered.bytes.wrapping_sub(newest.delivered.bytes),
            interval_us,
            delivered_before: newest.delivered.bytes,
            is_limited: newest.is_limited,
        })
    }

    /// The peer has what is between `from` and `to`, which are neither before what is acknowledged nor beyond what was sent.
    /// What there is no memory for is forgotten.
    pub(super) fn sack(&mut self, from: Seq, to: Seq, now_us: u32, news: &mut Delivered, pool: &mut RunPool) {
        if !self.take_list(pool) {
            return;
        }
        let Some(list) = &mut self.list else { return };
        let mut index = list.index_of(from);
        if list.start(index, self.from).before(from) {
            if list.runs.get(index).is_some_and(|run| !run.state.contains(State::SACKED)) {
                list.split(index, self.from, from, pool);
            }
            index += 1;
        }
        let first = index;
        while list.start(index, self.from).before(to) {
            let start = list.start(index, self.from);
            let Some(run) = list.runs.get(index) else { break };
            if run.state.contains(State::SACKED) {
                index += 1;
                continue;
            }
            if run.end.after(to) && !list.split(index, self.from, to, pool) {
                break;
            }
            let Some(run) = list.runs.get_mut(index) else { break };
            let len = run.end.since(start);
            news.note(run, run.end, len, now_us);
            news.is_reordered |= !run.state.contains(State::AGAIN) && run.end.before(list.delivered_to);
            *if run.is_in_flight() { &mut self.in_flight } else { &mut self.lost } -= len;
            run.state = (run.state - State::LOST) | State::SACKED;
            index += 1;
        }
        list.merge_sacked(first, index);
    }

    /// What is to be sent again first.
    pub(super) fn next_lost(&self) -> Option<Part> {
        if self.lost == 0 {
            return None;
        }
        let Some(list) = &self.list else {
            return Some(Part { from: self.from, end: self.end, near: None });
        };
        let first = list.index_of(list.lost_from.max(self.from));
        let index = (first..list.runs.len()).find(|&at| list.runs[at].state.contains(State::LOST))?;
        Some(self.part(list, index))
    }

    /// The last of what was sent, if it has not arrived.
    pub(super) fn last(&self) -> Option<Part> {
        let Some(list) = &self.list else {
            return (!self.is_empty()).then_some(Part { from: self.from, end: self.end, near: None });
        };
        let index = list.runs.len().checked_sub(1)?;
        list.runs[index].is_in_flight().then(|| self.part(list, index))
    }

    fn part(&self, list: &List, index: usize) -> Part {
        let known = (1..=index).rev().find_map(|at| list.runs[at].node);
        Part {
            from: list.start(index, self.from),
            end: list.runs[index].end,
            near: known.map(|node| node.get().wrapping_sub(1)),
        }
    }

    /// A part of one run is sent again.
    pub(super) fn sent_again(&mut self, from: Seq, end: Seq, sending: &Sending, pool: &mut RunPool) {
        self.begin_flight(sending.now_us);
        let again = self.run(end, &Sending { again: true, ..*sending });
        let _ = self.take_list(pool);
        let delivered = self.delivered();
        let Some(list) = &mut self.list else {
            // All of it counts as sent again.
            self.in_flight += self.lost;
            self.lost = 0;
            self.set_only(Run { end: self.end, ..again });
            return;
        };
        list.sent_again = true;
        let index = list.index_of(from);
        let index = if list.split(index, self.from, from, pool) { list.index_of(from) } else { index };
        if list.runs.get(index).is_some_and(|run| run.end.after(end)) {
            // Without room all of the run counts as sent again.
            list.split(index, self.from, end, pool);
        }
        let start = list.start(index, self.from);
        let Some(run) = list.runs.get_mut(index) else { return };
        let again = Run { end: run.end, node: again.node.filter(|_| start == from), ..again };
        let whole = again.after(delivered);
        if run.state.contains(State::LOST) {
            let len = run.end.since(start);
            self.lost -= len;
            self.in_flight += len;
            list.lost_from = whole.end;
        }
        *run = whole;
        // What is sent again at the same time is one run.
        if let Some(before) = index.checked_sub(1).and_then(|before| list.runs.get_mut(before))
            && before.state == whole.state
            && before.sent_us == whole.sent_us
        {
            before.end = whole.end;
            list.runs.remove(index);
        }
    }

    /// Nothing that has not arrived is under way any more.
    pub(super) fn lose_all(&mut self) {
        let sacked = self.sacked();
        (self.lost, self.in_flight) = (self.end.since(self.from) - sacked, 0);
        match &mut self.list {
            None => self.only.state |= State::LOST,
            Some(list) => {
                list.lost_from = self.from;
                list.runs
                    .iter_mut()
                    .filter(|run| run.is_in_flight())
                    .for_each(|run| run.state |= State::LOST);
            }
        }
    }

    /// The first `bytes` are lost; false if they were sent again only just now, or are known to be lost.
    pub(super) fn lose_first(&mut self, bytes: u32, pool: &mut RunPool) -> bool {
        let to = self.from + bytes.min(self.end.since(self.from));
        if self.is_empty() {
            return false;
        }
        let _ = self.take_list(pool);
        let Some(list) = &mut self.list else {
            let was_in_flight = self.only.is_in_flight();
            self.only.state |= State::LOST;
            (self.lost, self.in_flight) = (self.end.since(self.from), 0);
            return was_in_flight;
        };
        list.lost_from = self.from;
        if list.runs.front().is_some_and(|run| run.end.after(to)) {
            list.split(0, self.from, to, pool);
        }
        let Some(run) = list.runs.front_mut().filter(|run| run.is_in_flight()) else { return false };
        let len = run.end.since(self.from);
        run.state |= State::LOST;
        self.lost += len;
        self.in_flight -= len;
        true
    }

    /// What was thought lost is under way after all, and was not sent again.
    pub(super) fn find_lost(&mut self) {
        self.in_flight += self.lost;
        self.lost = 0;
        match &mut self.list {
            None => self.only.state -= State::LOST,
            Some(list) => list.runs.iter_mut().for_each(|run| run.state -= State::LOST),
        }
    }

    /// Whether the peer has said that it has what it now asks for: it has thrown it away (RFC 2018, section 8).
    pub(super) fn is_reneged(&self) -> bool {
        let first = self.list.as_ref().and_then(|list| list.runs.front());
        first.is_some_and(|run| run.state.contains(State::SACKED))
    }

    /// Forgets what the peer has said of what is beyond holes.
    pub(super) fn forget_sacked(&mut self) {
        self.in_flight += self.sacked();
        let Some(list) = &mut self.list else { return };
        // It may have been sent more than once.
        for run in list.runs.iter_mut().filter(|run| run.state.contains(State::SACKED)) {
            run.state = (run.state - State::SACKED) | State::AGAIN;
        }
        list.delivered_to = self.from;
    }

    /// What was sent before `newest` and more than `patience_us` ago is lost (RFC 8985, section 6.2, step 5). Returns how
    /// much of it there is, and in how many microseconds all else is that was sent before.
    pub(super) fn lose_overdue(
        &mut self,
        newest: (u32, Seq),
        patience_us: u32,
        now_us: u32,
    ) -> (u32, Option<u32>) {
        let Some(list) = &mut self.list else { return (0, None) };
        let (mut lost, mut wait_us) = (0, None);
        let mut start = self.from;
        for run in &mut list.runs {
            let (from, end) = (std::mem::replace(&mut start, run.end), run.end);
            let sent = (run.sent_us, end);
            if !is_sent_after(newest, sent) {
                if !run.state.intersects(State::AGAIN | State::SACKED | State::LOST) {
                    // All behind was sent later, or again later.
                    break;
                }
                continue;
            }
            if !run.is_in_flight() {
                continue;
            }
            let age_us = now_us.wrapping_sub(run.sent_us);
            match patience_us.checked_sub(age_us).filter(|left| *left > 0) {
                Some(left_us) => wait_us = wait_us.max(Some(left_us)),
                None => {
                    run.state |= State::LOST;
                    lost += end.since(from);
                    list.lost_from = list.lost_from.min(from);
                }
            }
        }
        self.lost += lost;
        self.in_flight -= lost;
        (lost, wait_us)
    }

    /// Whether the sums are those of the runs, which lie side by side.
    pub(super) fn is_consistent(&self) -> bool {
        let Some(list) = &self.list else {
            let all = self.end.since(self.from);
            return match (self.is_empty(), self.only.state.contains(State::LOST)) {
                (true, _) => self.in_flight == 0 && self.lost == 0,
                (_, true) => self.lost == all && self.in_flight == 0,
                (_, false) => self.in_flight == all && self.lost == 0,
            };
        };
        let (mut at, mut in_flight, mut lost, mut ordered) = (self.from, 0, 0, true);
        for run in &list.runs {
            let len = run.end.since(at);
            ordered &= run.end.after(at);
            in_flight += if run.is_in_flight() { len } else { 0 };
            if run.state.contains(State::LOST) {
                lost += len;
                ordered &= at.at_or_after(list.lost_from) && !run.state.contains(State::SACKED);
            }
            at = run.end;
        }
        ordered
            && at == self.end
            && (in_flight, lost) == (self.in_flight, self.lost)
            && list.runs.len() <= list.room
    }
}

#[cfg(test)]
mod tests;
