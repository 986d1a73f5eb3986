//! What acknowledgements mean where something may have been lost: selective acknowledgements (RFC 6675) read by the order
//! of sending (RFC 8985), duplicates for peers that have none (RFC 5681, RFC 6582), and timeouts that were none (RFC 3522,
//! RFC 5682).

use stack_net::time::Instant;

use super::ack::Acknowledged;
use super::congestion::{Controls, Loss};
use super::connection::{Connection, Context, Due, Timer};
use super::options::{Block, SackBlocks};
use super::prr::Prr;
use super::rack::{Probe, Rack};
use super::rx::Heard;
use super::scoreboard::Delivered;
use super::seq::Seq;

/// Duplicates that stand for a loss (RFC 5681, section 3.2).
const DUPLICATES: u16 = 3;

bitflags::bitflags! {
    /// Why the next acknowledgement has to be looked at more closely.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Doubt: u8 {
        /// A loss was found: what is under way comes down.
        const RECOVERY = 1;
        /// The retransmission timer fired.
        const TIMEOUT = 2;
        /// Something is lost, or has arrived beyond a hole.
        const HOLES = 4;
        /// Acknowledgements of nothing new came.
        const DUPLICATES = 8;
        /// A probe for losses at the tail is not answered yet.
        const PROBED = 16;
    }
}

/// What is known of losses on one connection, beside what its [scoreboard](super::scoreboard) has.
#[derive(Clone, Debug)]
pub(crate) struct Recovery {
    doubt: Doubt,
    /// From a peer without selective acknowledgements: segments that have arrived beyond a hole.
    duplicates: u16,
    /// The highest number sent when the last loss was found.
    point: Seq,
}

/// What a list of the scoreboard keeps of the losses that it is for.
#[derive(Debug, Default)]
pub(super) struct Notes {
    rack: Rack,
    prr: Option<Prr>,
    undo: Option<Undo>,
    probe: Option<Probe>,
}

impl Notes {
    /// Whether the peer may still tell that what was sent again was not lost.
    pub(super) fn waits_for_duplicates(&self) -> bool {
        self.undo.is_some_and(|undo| undo.segments > 0) || self.probe.is_some()
    }
}

/// What tells that nothing was lost: the answer was only late.
#[derive(Clone, Copy, Debug)]
struct Undo {
    /// What was acknowledged when the loss was found.
    from: Seq,
    /// When that was.
    began_us: u32,
    /// The timestamp of the first segment that was sent again since (RFC 3522), until what was is acknowledged.
    first_again: Option<u32>,
    /// Segments sent again, and how many of them came twice (RFC 2883).
    segments: u16,
    came_twice: u16,
}

impl Undo {
    fn new(from: Seq, began_us: u32) -> Self {
        Self { from, began_us, first_again: None, segments: 0, came_twice: 0 }
    }
}

/// What came with an acknowledgement, beside what it has delivered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ack {
    /// It acknowledges more.
    pub advances: bool,
    /// It is a duplicate as RFC 5681, section 2, has it.
    pub is_duplicate: bool,
    /// What it says was received twice.
    pub twice: Option<Block>,
    /// Whether it has blocks.
    pub has_blocks: bool,
    /// What was acknowledged before it.
    pub before: Seq,
    /// The round trip that it measures.
    pub rtt_us: Option<u32>,
}

impl Recovery {
    pub(crate) fn new(initial: Seq) -> Self {
        Self { doubt: Doubt::empty(), duplicates: 0, point: initial }
    }

    /// Whether all that is under way is believed to arrive in its order.
    #[inline]
    pub(crate) fn is_calm(&self) -> bool {
        self.doubt.is_empty()
    }

    /// More was acknowledged while all was calm. The point trails behind, so that no comparison meets a wrapped number.
    #[inline]
    pub(super) fn progressed(&mut self, acked: Seq) {
        self.point = self.point.max(acked.back(1));
    }

    pub(super) fn is_open(&self) -> bool {
        !self.doubt.intersects(Doubt::RECOVERY | Doubt::TIMEOUT)
    }
}

impl Connection {
    /// Bytes that are believed to be under way.
    pub(super) fn in_flight(&self) -> u32 {
        let arrived = u32::from(self.recovery.duplicates).saturating_mul(self.mss);
        self.board.in_flight().saturating_sub(arrived)
    }

    /// Bytes that may be under way.
    pub(super) fn flight_limit(&self) -> u32 {
        match self.board.notes().and_then(|notes| notes.prr.as_ref()) {
            Some(prr) if self.recovery.doubt.contains(Doubt::RECOVERY) => prr.window(),
            _ => self.congestion.window(),
        }
    }

    /// Whether losses show by the number of duplicates alone: the peer tells no more, or there is no memory for more.
    fn goes_by_duplicates(&self) -> bool {
        !self.sacks || self.board.notes().is_none()
    }

    /// Takes in what the peer has beyond holes; returns what it says it has received twice (RFC 2883, section 4).
    pub(super) fn take_blocks(
        &mut self,
        sack: &SackBlocks,
        now_us: u32,
        news: &mut Delivered,
        cx: &mut Context,
    ) -> Option<Block> {
        let blocks = sack.as_slice();
        let is_twice = |first: &Block| {
            let is_within =
                |other: &Block| first.from.at_or_after(other.from) && first.to.at_or_before(other.to);
            first.to.at_or_before(self.snd_una) || blocks.get(1).is_some_and(is_within)
        };
        let twice = blocks.first().filter(|first| first.from.before(first.to) && is_twice(first)).copied();
        for block in &blocks[usize::from(twice.is_some())..] {
            let is_under_way = block.from.at_or_after(self.snd_una) && block.to.at_or_before(self.snd_nxt);
            if is_under_way && block.from.before(block.to) {
                self.board.sack(block.from, block.to, now_us, news, &mut cx.sending.under_way);
            }
        }
        twice
    }

    /// Draws the consequences of an acknowledgement that is out of the ordinary, or comes while something is.
    pub(super) fn in_doubt(
        &mut self,
        now: Instant,
        heard: &Heard,
        ack: &Ack,
        news: &Delivered,
        cx: &mut Context,
    ) {
        let now_us = now.as_micros() as u32;
        if self.recovery.is_calm() {
            self.undisturbed = self.snd_nxt;
        }
        let mut delivered = news.bytes;
        match self.goes_by_duplicates() {
            true => delivered += self.count_duplicates(ack, news),
            false => self.recovery.duplicates = 0,
        }
        self.answer_probe(ack, heard.ack, cx);
        self.note_order(ack, news, now_us);
        let was_open = self.recovery.is_open();
        if self.is_undone(heard, ack, news) {
            self.undo(cx);
        } else if !was_open && heard.ack.at_or_after(self.recovery.point) {
            self.recovered(cx);
        }
        let (lost, wait_us) = self.find_losses(ack, now_us, cx);
        if lost > 0 && self.recovery.is_open() {
            self.recover(delivered, now_us, cx);
        }
        self.pace(now, ack, delivered, news, lost > 0, cx);
        self.note_doubts();
        if let Some(wait_us) = wait_us {
            self.timer = Timer::Reorder(Instant::from_micros(now.as_micros() + i64::from(wait_us)));
        } else if ack.advances || matches!(self.timer, Timer::Reorder(_) | Timer::Tail(_)) {
            self.restart_timer(now);
        }
        debug_assert!(self.board.is_consistent(), "{:?}", self.board);
    }

    /// Counts what duplicates tell of: a segment each that has arrived (RFC 6937, section 3). Returns how many bytes more
    /// than were counted already.
    fn count_duplicates(&mut self, ack: &Ack, news: &Delivered) -> u32 {
        if ack.advances {
            // What arrived beyond the hole is acknowledged now, but for what fills it.
            let segments = news.bytes.div_ceil(self.mss).saturating_sub(1);
            self.recovery.duplicates = match self.recovery.is_open() {
                true => 0,
                false => self.recovery.duplicates.saturating_sub(segments.min(u16::MAX.into()) as u16),
            };
            return 0;
        }
        if !ack.is_duplicate {
            return 0;
        }
        // No more have arrived than were under way, and the first has not (RFC 5681, section 3.2).
        let under_way = self.undisturbed.max(self.snd_una).since(self.snd_una).div_ceil(self.mss);
        if u32::from(self.recovery.duplicates) + 1 >= under_way {
            return 0;
        }
        self.recovery.duplicates = self.recovery.duplicates.saturating_add(1);
        self.mss
    }

    /// RFC 8985, section 7.4.2: what the answer to a probe says.
    fn answer_probe(&mut self, ack: &Ack, acked: Seq, cx: &mut Context) {
        let Some(probe) = self.board.notes().and_then(|notes| notes.probe) else { return };
        if acked.before(probe.end) {
            return;
        }
        let came_twice = ack.twice.is_some_and(|block| block.to == probe.end);
        let is_repaired = probe.is_again && !came_twice && acked.after(probe.end);
        let is_over = !probe.is_again || came_twice || is_repaired || !ack.has_blocks && !ack.advances;
        if is_over && let Some(notes) = self.board.notes_mut() {
            notes.probe = None;
        }
        if is_repaired && self.recovery.is_open() {
            // The last segment was lost, and the probe has made up for it.
            self.congestion.on_recovery(&self.loss(self.snd_nxt.since(ack.before)), &mut cx.controls);
            self.congestion.on_recovered(self.limit_after_recovery(), self.mss, &mut cx.controls);
        }
    }

    /// Steps 2 to 4 of RFC 8985, section 6.2: in which order segments have arrived.
    fn note_order(&mut self, ack: &Ack, news: &Delivered, now_us: u32) {
        self.reordering.seen |= news.is_reordered;
        let (una, sent_to, min_rtt_us) = (self.snd_una, self.snd_nxt, self.rtt.shortest_us());
        let Some(notes) = self.board.notes_mut() else { return };
        if let Some(newest) = &news.newest {
            notes.rack.update(newest, min_rtt_us, now_us);
        }
        if let Some(block) = ack.twice {
            notes.rack.came_twice(una, sent_to, &mut self.reordering);
            if let Some(undo) = &mut notes.undo
                && block.from.at_or_after(undo.from)
            {
                undo.came_twice = undo.came_twice.saturating_add(1);
            }
        }
    }

    /// Whether it turns out that nothing was lost: the answer is to what was sent first (RFC 3522, section 3.2), all that was
    /// sent again has come twice (RFC 3708), or after a timeout something arrives that was not sent again (RFC 5682).
    fn is_undone(&mut self, heard: &Heard, ack: &Ack, news: &Delivered) -> bool {
        let is_open = self.recovery.is_open();
        let timed_out = self.recovery.doubt.contains(Doubt::TIMEOUT);
        let Some(notes) = self.board.notes_mut() else { return false };
        let Some(undo) = &mut notes.undo else { return false };
        // What was sent again before the loss was found says nothing of it.
        let answers = news.again_us.is_some_and(|sent_us| !Seq(sent_us).before(Seq(undo.began_us)));
        if answers
            && !is_open
            && let (Some(first), Some(timestamp)) = (undo.first_again, heard.timestamp)
        {
            if Seq(timestamp.echo).before(Seq(first)) {
                return true;
            }
            undo.first_again = None;
        }
        let all_came_twice = ack.twice.is_some() && undo.segments > 0 && undo.came_twice >= undo.segments;
        let came_late = timed_out
            && self.sacks
            && self.clock.is_none()
            && news.original.is_some_and(|end| end.at_or_before(self.recovery.point));
        all_came_twice || came_late
    }

    /// Nothing was lost: all is as it was before.
    fn undo(&mut self, cx: &mut Context) {
        cx.counters.undone += 1;
        self.board.find_lost();
        if let Some(notes) = self.board.notes_mut() {
            notes.undo = None;
        }
        self.congestion.on_undo(&mut cx.controls);
        self.end_recovery();
        self.rtt.backoff = 0;
    }

    /// A segment of so many bytes was longer than the path takes, and is being sent again in shorter ones. If nothing else is
    /// lost, that says nothing of congestion (RFC 4821, section 7.2). Where losses show by duplicates, the recovery has to
    /// find the rest of it.
    #[cold]
    pub(crate) fn path_probe_was_lost(&mut self, bytes: u32, controls: &mut Controls) {
        let is_all = self.recovery.doubt.contains(Doubt::RECOVERY) && self.board.lost() < bytes;
        if !is_all || self.goes_by_duplicates() {
            return;
        }
        if let Some(notes) = self.board.notes_mut() {
            notes.undo = None;
        }
        self.congestion.on_undo(controls);
        self.end_recovery();
    }

    /// All that was under way when the loss was found is acknowledged.
    fn recovered(&mut self, cx: &mut Context) {
        if self.recovery.doubt.contains(Doubt::RECOVERY) {
            self.congestion.on_recovered(self.limit_after_recovery(), self.mss, &mut cx.controls);
            self.reordering.recovered();
        }
        self.end_recovery();
    }

    /// What is in flight counts at the end of a recovery by duplicates, since more than it would go out in one burst. One
    /// in proportion ends at the threshold (RFC 6937, section 3), or would if there had been more to send: the window says
    /// what the network takes, whether or not an application has just come to its end.
    fn limit_after_recovery(&self) -> u32 {
        if self.goes_by_duplicates() { self.in_flight() } else { u32::MAX }
    }

    fn end_recovery(&mut self) {
        self.recovery.doubt -= Doubt::RECOVERY | Doubt::TIMEOUT;
        self.recovery.duplicates = 0;
        if let Some(notes) = self.board.notes_mut() {
            notes.prr = None;
        }
    }

    /// Looks for what is lost. Returns how much more of it there is, and in how many microseconds to look again.
    fn find_losses(&mut self, ack: &Ack, now_us: u32, cx: &mut Context) -> (u32, Option<u32>) {
        if self.goes_by_duplicates() {
            return (self.lost_by_duplicates(ack, cx), None);
        }
        self.lost_by_time(now_us)
    }

    /// The third duplicate, or an acknowledgement of only a part of what was under way (RFC 6582, section 3.2).
    fn lost_by_duplicates(&mut self, ack: &Ack, cx: &mut Context) -> u32 {
        let is_lost = if self.recovery.is_open() {
            // Duplicates of what was sent before the last loss mean nothing (step 1).
            self.recovery.duplicates == DUPLICATES
                && ack.is_duplicate
                && self.snd_una.after(self.recovery.point)
        } else {
            ack.advances
        };
        let before = self.board.lost();
        if !is_lost || !self.board.lose_first(self.mss, &mut cx.sending.under_way) {
            return 0;
        }
        self.board.lost() - before
    }

    /// RFC 8985, section 6.2, step 5.
    fn lost_by_time(&mut self, now_us: u32) -> (u32, Option<u32>) {
        let is_certain = !self.recovery.is_open() || self.board.sacked() > 2 * self.mss;
        let (shortest_us, srtt_us) = (self.rtt.shortest_us(), self.rtt.srtt_us());
        let window_us = self.reordering.window_us(is_certain, shortest_us, srtt_us);
        let Some((newest, rtt_us)) = self.board.notes().and_then(|notes| notes.rack.newest()) else {
            return (0, None);
        };
        self.board.lose_overdue(newest, rtt_us.saturating_add(window_us), now_us)
    }

    /// A loss of some of so many bytes under way, as congestion control sees it.
    fn loss(&self, flight: u32) -> Loss {
        let was_full = self.congestion.is_full(self.snd_una);
        Loss { mss: self.mss, flight, sent_to: self.snd_max, was_full, is_mark: false }
    }

    /// A mark of what is under way, as congestion control sees it.
    pub(super) fn mark(&self) -> Loss {
        Loss { is_mark: true, ..self.loss(self.flight()) }
    }

    /// A loss was found, by an acknowledgement that has told of so many bytes: recovery begins.
    fn recover(&mut self, delivered: u32, now_us: u32, cx: &mut Context) {
        cx.counters.recoveries += 1;
        // What was sent only to find out does not count (RFC 3042, section 4).
        let flight = self.undisturbed.max(self.snd_una).since(self.snd_una);
        self.congestion.on_recovery(&self.loss(flight), &mut cx.controls);
        self.note_reduction();
        self.recovery.doubt |= Doubt::RECOVERY;
        self.recovery.point = self.snd_nxt;
        let models = self.congestion.models(&cx.controls);
        let threshold = self.congestion.threshold();
        let flight = self.in_flight() + self.board.lost() + delivered;
        if self.board.take_list(&mut cx.sending.under_way)
            && let Some(notes) = self.board.notes_mut()
        {
            notes.prr = (!models).then(|| Prr::new(threshold, flight));
            notes.undo = Some(Undo::new(self.snd_una, now_us));
            notes.probe = None;
        }
    }

    /// How much may be under way from now on.
    fn pace(
        &mut self,
        now: Instant,
        ack: &Ack,
        delivered: u32,
        news: &Delivered,
        has_lost: bool,
        cx: &mut Context,
    ) {
        let (in_flight, mss) = (self.in_flight(), self.mss);
        let acked =
            Acknowledged { before: ack.before, bytes: delivered, rtt_us: ack.rtt_us, loses: has_lost };
        if self.congestion.models(&cx.controls) {
            if delivered > 0 || has_lost {
                self.congestion_acked(now, &acked, news, cx);
            }
        } else if self.recovery.doubt.contains(Doubt::RECOVERY) {
            if let Some(prr) = self.board.notes_mut().and_then(|notes| notes.prr.as_mut()) {
                prr.acked(delivered, in_flight, ack.advances && !has_lost, mss);
            }
        } else if ack.advances {
            self.congestion_acked(now, &acked, news, cx);
        }
    }

    /// Notes why the next acknowledgement has to be looked at, too.
    fn note_doubts(&mut self) {
        let has_holes = self.board.lost() + self.board.sacked() > 0;
        let is_probed = self.board.notes().is_some_and(|notes| notes.probe.is_some());
        let doubt = &mut self.recovery.doubt;
        doubt.set(Doubt::HOLES, has_holes);
        doubt.set(Doubt::DUPLICATES, self.recovery.duplicates > 0);
        doubt.set(Doubt::PROBED, is_probed);
    }

    /// The retransmission timer fired: all that has not arrived is lost (RFC 6298, rule 5.4; RFC 8985, section 6.3).
    pub(super) fn lose_all_by_timeout(&mut self, now: Instant, cx: &mut Context) {
        if self.board.is_reneged() {
            self.board.forget_sacked();
        }
        let is_first = self.retries == 1;
        self.congestion.on_timeout(&self.loss(self.flight()), is_first, &mut cx.controls);
        self.note_reduction();
        self.recovery.duplicates = 0;
        self.recovery.doubt = (self.recovery.doubt - Doubt::RECOVERY) | Doubt::TIMEOUT;
        self.recovery.point = self.snd_nxt;
        if self.board.take_list(&mut cx.sending.under_way)
            && let Some(notes) = self.board.notes_mut()
        {
            (notes.prr, notes.probe) = (None, None);
            if is_first {
                notes.undo = Some(Undo::new(self.snd_una, now.as_micros() as u32));
            }
        }
        self.lose_all();
    }

    /// All that has not arrived is to be sent again, whatever the reason.
    pub(super) fn lose_all(&mut self) {
        if self.recovery.is_calm() {
            self.undisturbed = self.snd_nxt;
        }
        self.board.lose_all();
        self.note_doubts();
        debug_assert!(self.board.is_consistent(), "{:?}", self.board);
    }

    /// The time has passed that segments may come late.
    pub(super) fn reordering_is_over(&mut self, now: Instant, cx: &mut Context) {
        let now_us = now.as_micros() as u32;
        self.timer = Timer::Off;
        let (lost, wait_us) = self.lost_by_time(now_us);
        if lost > 0 && self.recovery.is_open() {
            self.recover(0, now_us, cx);
        }
        let (in_flight, mss) = (self.in_flight(), self.mss);
        if lost > 0
            && let Some(prr) = self.board.notes_mut().and_then(|notes| notes.prr.as_mut())
        {
            prr.acked(0, in_flight, false, mss);
        }
        self.note_doubts();
        match wait_us {
            Some(us) => self.timer = Timer::Reorder(Instant::from_micros(now.as_micros() + i64::from(us))),
            None => self.restart_timer(now),
        }
    }

    /// No acknowledgement has come for some time (RFC 8985, section 7.3): the last segment is sent again, or a new one, so
    /// that the peer tells what is missing.
    pub(super) fn tail_is_due(&mut self, now: Instant, cx: &mut Context) {
        self.timer = Timer::Retransmit(self.rtt.deadline(now));
        if self.board.take_list(&mut cx.sending.under_way) && self.board.last().is_some() {
            self.due |= Due::TAIL;
        }
    }

    /// A probe has gone out.
    pub(super) fn probed(&mut self, is_again: bool, now: Instant, cx: &mut Context) {
        cx.counters.tail_probes += 1;
        self.due -= Due::TAIL;
        let end = self.snd_nxt;
        if let Some(notes) = self.board.notes_mut() {
            notes.probe = Some(Probe { end, is_again });
        }
        self.note_doubts();
        self.timer = Timer::Retransmit(self.rtt.deadline(now));
    }

    /// So many bytes have gone out in recovery, for the first time or again.
    pub(super) fn note_sent(&mut self, bytes: u32, is_again: bool, timestamp: Option<u32>) {
        let Some(notes) = self.board.notes_mut() else { return };
        if let Some(prr) = &mut notes.prr {
            prr.sent(bytes);
        }
        if is_again && let Some(undo) = &mut notes.undo {
            if undo.segments == 0 {
                undo.first_again = timestamp;
            }
            undo.segments = undo.segments.saturating_add(1);
        }
    }
}
