//! One connection: from slots to appends, and from answers to sends.

use std::num::NonZeroU64;
use std::time::Duration;

use pmem::{AppendError, Draft, Durable, Extent, Pending, Shard};
use stack::net::{ConnId, Net, SendError};
use stack::time::Instant;

use super::{
    common::Common,
    conditional::Conditional,
    out::Progress,
    peers::Reading,
    render::ReplyFormat,
    replies::Replies,
    reply::{Content, Reply},
};
use crate::http::{Ask, Decoder, Framing, Head, Item, Refusal, Route};

/// A refused request's body up to this length is read over, so that the connection can stay.
const MAX_SKIPPED_BYTES: u64 = 256 * 1024;
/// What a client may still send after the last reply. A connection closed with unread bytes would be reset,
/// and the reset could overtake the reply (RFC 9112, section 9.6).
const MAX_LINGER_BYTES: u32 = 64 * 1024 * 1024;
/// A request, or a client reading a reply, must come on by this much within each timeout.
const MIN_PROGRESS_BYTES: u32 = 4 * 1024;

/// How long a connection in a spare place may be open, and how long without a request: they are few, and nobody may sit
/// on them.
const SPARE_LIFETIME: Duration = Duration::from_secs(5);
const SPARE_IDLE: Duration = Duration::from_secs(2);

/// The state of one place in the connection table. There are as many as may be open, whether they are or not: it is
/// small, and holds no memory elsewhere between requests.
#[derive(Debug)]
pub(super) struct Connection {
    /// Owner place it is.
    id: Option<ConnId>,
    decoder: Decoder,
    /// What of the last slot is not decoded yet.
    input: Option<Extent>,
    body: Body,
    replies: Replies,
    ending: Ending,
    /// Whether all that had arrived is read. The network says when there is more.
    is_drained: bool,
    peer_finished: bool,
    /// Whether an append waits for the next commit.
    awaits_commit: bool,
    /// Since when it is in a spare place, if it is.
    spare_since: Option<Instant>,
    pace: Pace,
}

/// What happens to the current request's body.
#[derive(Debug)]
enum Body {
    /// It is read over; its request is answered, or has no use for it.
    Skipped,
    /// It becomes a record; without a draft, one that is only counted.
    Stored { draft: Option<Draft>, bytes: u64, format: ReplyFormat, condition: Condition },
}

/// The number that a record has to get, or it is not appended.
type Condition = Option<NonZeroU64>;

/// How far a connection is on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Not at all: requests are served.
    Open,
    /// The last reply is queued. What comes in is dropped.
    Replying,
    /// All is sent, and FIN behind it. What comes in is dropped.
    Finished { dropped_bytes: u32 },
}

/// What a connection is doing, for the purpose of losing patience with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Receiving,
    Committing,
    Sending,
    /// It has all that there is, and waits for more.
    Following,
    Lingering,
}

/// How much a connection came on since when.
#[derive(Clone, Copy, Debug)]
struct Pace {
    since: Instant,
    bytes: u32,
    phase: Phase,
}

impl Connection {
    /// A place without a connection.
    pub(super) fn vacant(max_record_bytes: u64) -> Self {
        Self {
            id: None,
            decoder: Decoder::new(max_record_bytes),
            input: None,
            body: Body::Skipped,
            replies: Replies::new(),
            ending: Ending::Open,
            is_drained: false,
            peer_finished: false,
            awaits_commit: false,
            spare_since: None,
            pace: Pace { phase: Phase::Idle, since: Instant::ZERO, bytes: 0 },
        }
    }

    /// Takes the place for `conn`.
    pub(super) fn open(&mut self, conn: ConnId, is_spare: bool, common: &mut Common) {
        self.vacate(common);
        self.id = Some(conn);
        self.spare_since = is_spare.then_some(common.now);
        self.pace = Pace { phase: Phase::Idle, since: common.now, bytes: 0 };
    }

    /// Gives up all that the connection held, and the place itself.
    pub(super) fn vacate(&mut self, common: &mut Common) {
        self.id = None;
        self.input = None;
        self.stop_reading();
        self.replies.clear(&mut common.replies);
        self.ending = Ending::Open;
        self.peer_finished = false;
        self.awaits_commit = false;
        self.spare_since = None;
    }

    pub(super) fn is_spare(&self) -> bool {
        self.spare_since.is_some()
    }

    /// Moves from a spare place to another one if there is one by now; true if it stays.
    fn stays_spare(&mut self, common: &mut Common) -> bool {
        if self.is_spare() && common.has_place() {
            common.spares -= 1;
            self.spare_since = None;
        }
        self.is_spare()
    }

    pub(super) fn is_open(&self) -> bool {
        self.id.is_some()
    }

    pub(super) fn is(&self, conn: ConnId) -> bool {
        self.id == Some(conn)
    }

    pub(super) fn finished_by_peer(&mut self) {
        self.peer_finished = true;
    }

    /// Something has happened: reads, acts and replies until there is nothing to read, or until it has to wait.
    pub(super) fn run<N: Net>(&mut self, common: &mut Common, net: &mut N, shard: &mut Shard) {
        self.is_drained = false;
        self.go_on(common, net, shard);
    }

    /// What waited for the commit is acknowledged, and the connection goes on.
    pub(super) fn committed<N: Net>(
        &mut self,
        durable: &Durable,
        common: &mut Common,
        net: &mut N,
        shard: &mut Shard,
    ) {
        let Common { replies, counters, awaiting, .. } = common;
        let mut awaits_commit = false;
        self.replies.for_each(replies, |reply| awaits_commit |= !reply.confirm(durable, counters));
        // What came after the commit was started is for the next one.
        self.awaits_commit = awaits_commit;
        if awaits_commit && let Some(conn) = self.id {
            awaiting.push(conn);
        }
        self.go_on(common, net, shard);
    }

    fn go_on<N: Net>(&mut self, common: &mut Common, net: &mut N, shard: &mut Shard) {
        let Some(conn) = self.id else { return };
        loop {
            self.read(conn, common, net, shard);
            let has_sent = self.send(conn, common, net, shard);
            // Where reading stopped before the end of what is there, it waits for replies to go out.
            if self.is_drained || !has_sent {
                break;
            }
        }
        if self.ending != Ending::Open {
            self.drop_input(conn, common, net);
        }
        self.keep_pace(common);
    }

    /// The commit failed: what waited for it is not acknowledged.
    pub(super) fn commit_failed<N: Net>(&mut self, common: &mut Common, net: &mut N, shard: &mut Shard) {
        self.awaits_commit = false;
        let Common { replies, counters, .. } = common;
        self.replies.for_each(replies, |reply| {
            if reply.awaits_commit() {
                reply.content = Content::Refused(Refusal::CommitFailed);
                counters.refused += 1;
            }
        });
        self.run(common, net, shard);
    }

    /// Another core has answered: the reply that waits for it goes on.
    pub(super) fn answered<N: Net>(
        &mut self,
        reading: Reading,
        common: &mut Common,
        net: &mut N,
        shard: &mut Shard,
    ) {
        if let Some(mut reply) = self.replies.lift(&mut common.replies) {
            reply.take(reading, common);
            self.replies.put_back(reply, &mut common.replies);
        }
        self.run(common, net, shard);
    }

    /// Loses patience with a client that does not come on.
    pub(super) fn tick<N: Net>(&mut self, common: &mut Common, net: &mut N, shard: &mut Shard) {
        if self.id.is_none() {
            return;
        }
        let Pace { phase, since, bytes } = self.pace;
        if phase == Phase::Following {
            return self.run(common, net, shard);
        }
        if self.stays_spare(common)
            && let Some(opened) = self.spare_since
        {
            if common.now - opened >= SPARE_LIFETIME {
                self.abort(common, net);
            } else if phase == Phase::Idle && common.now - opened >= SPARE_IDLE {
                self.ending = Ending::Replying;
                self.run(common, net, shard);
            }
            return;
        }
        let limit = if phase == Phase::Idle { common.patience.idle } else { common.patience.stalled };
        if common.now - since < limit {
            return;
        }
        match phase {
            Phase::Receiving | Phase::Sending if bytes >= MIN_PROGRESS_BYTES => {}
            Phase::Committing | Phase::Following => {}
            Phase::Idle => self.ending = Ending::Replying,
            Phase::Receiving => self.refuse(Refusal::Timeout, ReplyFormat::CLOSING, common),
            Phase::Sending | Phase::Lingering => {
                self.abort(common, net);
                return;
            }
        }
        self.pace = Pace { since: common.now, bytes: 0, ..self.pace };
        self.run(common, net, shard);
    }

    /// The server ends: no further request is read.
    pub(super) fn close<N: Net>(&mut self, common: &mut Common, net: &mut N, shard: &mut Shard) {
        if self.ending == Ending::Open {
            self.stop_reading();
        }
        self.run(common, net, shard);
    }

    /// Decodes what has arrived and acts on it, as far as replies that are owed allow.
    #[inline]
    fn read<N: Net>(&mut self, conn: ConnId, common: &mut Common, net: &mut N, shard: &mut Shard) {
        while !self.is_drained && self.may_read(common) {
            if self.input.is_none() && !self.decoder.is_at_end() && !self.receive(conn, common, net, shard) {
                return;
            }
            match self.decoder.next(&mut self.input, &mut common.heads) {
                Ok(Some(item)) => self.act(item, common, shard),
                Ok(None) => {}
                Err(refusal) => self.refuse(refusal, ReplyFormat::CLOSING, common),
            }
        }
    }

    /// Takes slots: those that are all of a body's at once, and then one to be decoded. False if there are no more.
    #[inline]
    fn receive<N: Net>(&mut self, conn: ConnId, common: &mut Common, net: &mut N, shard: &mut Shard) -> bool {
        while let Some(slot) = net.recv(conn) {
            let extent = slot.keep();
            self.pace.bytes = self.pace.bytes.saturating_add(extent.len() as u32);
            if !self.decoder.is_of_body(extent.len()) {
                self.input = Some(extent);
                return true;
            }
            if !self.store(extent, common, shard) || self.decoder.is_at_end() {
                return true;
            }
        }
        self.is_drained = true;
        if self.peer_finished {
            self.end_of_input(common);
        }
        false
    }

    #[inline]
    fn may_read(&self, common: &Common) -> bool {
        let replies = &self.replies;
        self.ending == Ending::Open
            && (replies.is_empty()
                || replies.have_room(&common.replies)
                    && replies.back(&common.replies).is_none_or(Reply::lets_pass))
    }

    // In line with the decoder, so that items need not be carried from one to the other.
    #[inline(always)]
    fn act(&mut self, item: Item, common: &mut Common, shard: &mut Shard) {
        match item {
            Item::Head(head) => {
                common.counters.requests += 1;
                self.begin(&head, common, shard);
            }
            Item::Data(extent) => _ = self.store(extent, common, shard),
            Item::End => self.end_of_request(common, shard),
        }
    }

    #[inline]
    fn begin(&mut self, head: &Head, common: &mut Common, shard: &mut Shard) {
        self.pace = Pace { phase: Phase::Receiving, since: common.now, bytes: 0 };
        let fits = match head.framing {
            Framing::Length(length) => length <= common.max_record_bytes,
            Framing::Chunked => true,
            Framing::Absent => false,
        };
        // Nearly every request.
        if matches!(head.route, Ok(Route::Append)) && fits && common.failed.is_none() && !self.is_spare() {
            self.begin_append(head, common, shard);
        } else {
            self.begin_another(head, common, shard);
        }
    }

    /// The current request's body is to become a record.
    #[inline]
    fn begin_append(&mut self, head: &Head, common: &mut Common, shard: &mut Shard) {
        let format = ReplyFormat::of_append(head);
        // Nearly every body is short and lies whole behind its head: its record is made here and now.
        if let Some(extent) = self.decoder.whole_body(&mut self.input) {
            if common.keeps_records {
                self.answer_append(shard.append_extent(extent), format, common);
            } else {
                self.answer_unkept(extent.len() as u64, format, common);
            }
            return;
        }
        let draft = common.keeps_records.then(|| shard.draft());
        self.body = Body::Stored { draft, bytes: 0, format, condition: None };
        let has_body = head.framing != Framing::Length(0);
        if head.expects_continue && has_body && self.input.is_none() {
            self.replies.push(Reply::new(Content::Continue, format), &mut common.replies);
        }
    }

    /// The current request's body is to become record `seq`, or none.
    fn begin_conditional(&mut self, head: &Head, seq: u64, common: &mut Common, shard: &mut Shard) {
        let format = ReplyFormat::of_append(head);
        // No record has number 0.
        let Some(condition) = NonZeroU64::new(seq) else {
            let closes = !head.keep_alive || head.may_withhold_body || !self.can_skip_body();
            let format = if closes { format.closing() } else { format };
            return self.refuse(Refusal::Malformed("If-Next: 0, and no record has number 0"), format, common);
        };
        let draft = common.keeps_records.then(|| shard.draft());
        self.body = Body::Stored { draft, bytes: 0, format, condition: Some(condition) };
        if head.expects_continue && head.framing != Framing::Length(0) && self.input.is_none() {
            self.replies.push(Reply::new(Content::Continue, format), &mut common.replies);
        }
    }

    #[inline(never)]
    fn begin_another(&mut self, head: &Head, common: &mut Common, shard: &mut Shard) {
        let max = common.max_record_bytes;
        let accepted = match (head.route, head.framing) {
            (Ok(Route::Append | Route::AppendIf(_)), _) if common.failed.is_some() => {
                Err(Refusal::StoreFailed)
            }
            (Ok(Route::Append | Route::AppendIf(_)), Framing::Absent) => Err(Refusal::LengthRequired),
            (Ok(Route::Append | Route::AppendIf(_)), Framing::Length(length)) if length > max => {
                Err(Refusal::TooLarge { max })
            }
            (Ok(Route::AppendIf(name)), _) => common.peers.find_own(name).map(|()| Route::AppendIf(name)),
            (route, _) => route,
        };
        let is_spare = self.is_spare() && self.stays_spare(common);
        let accepted = match accepted {
            Ok(Route::Ask(Ask::Health)) => accepted,
            _ if is_spare => Err(Refusal::Busy { max: common.max_connections }),
            _ => accepted,
        };
        match accepted {
            Ok(Route::Append) => return self.begin_append(head, common, shard),
            Ok(Route::AppendIf(name)) => return self.begin_conditional(head, name.seq, common, shard),
            Ok(Route::Ask(_)) | Err(_) => {}
        }
        // The body is of no use. A client that expects something first may or may not send it now, so only a new
        // connection tells body and next request apart.
        let has_body = !matches!(head.framing, Framing::Absent | Framing::Length(0));
        let waits = head.may_withhold_body && has_body;
        let closes = !head.keep_alive || waits || is_spare || !self.can_skip_body();
        let format = ReplyFormat::of(head, closes);
        match accepted {
            Ok(Route::Append | Route::AppendIf(_)) => {}
            Ok(Route::Ask(ask)) => self.push(Content::Asked(ask), format, common),
            Err(refusal) => self.refuse(refusal, format, common),
        }
    }

    /// Adds to the current body; false if that is given up.
    #[inline(always)]
    fn store(&mut self, extent: Extent, common: &mut Common, shard: &mut Shard) -> bool {
        let Body::Stored { draft, bytes, format, .. } = &mut self.body else { return false };
        *bytes += extent.len() as u64;
        let Some(draft) = draft else { return true };
        let Err(error) = shard.push(draft, extent) else { return true };
        let format = *format;
        let format = if self.can_skip_body() { format } else { format.closing() };
        self.refuse(error.into(), format, common);
        false
    }

    #[inline]
    fn end_of_request(&mut self, common: &mut Common, shard: &mut Shard) {
        let Body::Stored { draft, bytes, format, condition } =
            std::mem::replace(&mut self.body, Body::Skipped)
        else {
            return;
        };
        match draft {
            Some(draft) if let Some(number) = condition => {
                self.append_as(number.get(), draft, format, common, shard);
            }
            Some(draft) => self.answer_append(shard.append(draft), format, common),
            None => self.answer_unkept(bytes, format, common),
        }
    }

    /// Appends a record if it gets this number, and owes the reply.
    #[cold]
    fn append_as(
        &mut self,
        number: u64,
        draft: Draft,
        format: ReplyFormat,
        common: &mut Common,
        shard: &mut Shard,
    ) {
        let next = shard.next_seq();
        let outcome = if next == number {
            match shard.append(draft) {
                Ok(pending) => Conditional::Appended(pending, shard.next_seq()),
                Err(error) => return self.refuse(error.into(), format, common),
            }
        } else {
            let refusal = Refusal::NotNext { shard: common.peers.own_name(), next };
            if !shard.uncommitted() {
                return self.refuse(refusal, format, common);
            }
            // Others' records, by which this is refused, are still to be made durable.
            Conditional::Refused(next, refusal)
        };
        self.push(Content::Conditional(Box::new(outcome)), format, common);
        self.await_commit(common);
    }

    /// Owes the reply to a body that was given up, as the configuration says.
    fn answer_unkept(&mut self, len_bytes: u64, format: ReplyFormat, common: &mut Common) {
        common.counters.appended_records += 1;
        common.counters.appended_bytes += len_bytes;
        self.push(Content::Counted { number: common.counters.appended_records, len_bytes }, format, common);
    }

    /// Owes the reply to an append. It waits for the commit, unless it says why there was none.
    #[inline(always)]
    fn answer_append(
        &mut self,
        appended: Result<Pending, AppendError>,
        format: ReplyFormat,
        common: &mut Common,
    ) {
        match appended {
            Ok(pending) => {
                self.push(Content::Waiting(pending), format, common);
                self.await_commit(common);
            }
            Err(error) => self.refuse(error.into(), format, common),
        }
    }

    /// Has the next commit go on with this connection.
    #[inline(always)]
    fn await_commit(&mut self, common: &mut Common) {
        if !std::mem::replace(&mut self.awaits_commit, true)
            && let Some(conn) = self.id
        {
            common.awaiting.push(conn);
        }
    }

    #[cold]
    fn end_of_input(&mut self, common: &mut Common) {
        if self.decoder.is_mid_request() {
            let reason = "the connection ended inside it";
            self.refuse(Refusal::Malformed(reason), ReplyFormat::CLOSING, common);
        } else {
            self.stop_reading();
        }
    }

    /// Whether the rest of the current body is short enough to be read over.
    fn can_skip_body(&self) -> bool {
        self.decoder.remaining().is_some_and(|remaining| remaining <= MAX_SKIPPED_BYTES)
    }

    /// Refuses the current request; what it had stored is given up.
    #[cold]
    fn refuse(&mut self, refusal: Refusal, format: ReplyFormat, common: &mut Common) {
        common.counters.refused += 1;
        self.body = Body::Skipped;
        self.push(Content::Refused(refusal), format, common);
    }

    #[inline]
    fn push(&mut self, content: Content, format: ReplyFormat, common: &mut Common) {
        self.replies.push(Reply::new(content, format), &mut common.replies);
        if format.closes() {
            self.stop_reading();
        }
    }

    fn stop_reading(&mut self) {
        self.ending = Ending::Replying;
        self.body = Body::Skipped;
        self.decoder.reset();
    }

    /// Sends what is owed, in order, as far as the network takes it. True if a reply went out whole.
    fn send<N: Net>(&mut self, conn: ConnId, common: &mut Common, net: &mut N, shard: &mut Shard) -> bool {
        let mut has_sent = false;
        while let Some(front) = self.replies.front(&common.replies) {
            if front.awaits_commit() {
                return has_sent;
            }
            // Nearly every reply is short, and sent as it lies.
            if let Some((receipt, format)) = front.receipt() {
                let text = common.rendered.appended(&receipt, common.peers.own_name(), format);
                match net.send(conn, text) {
                    Ok(()) => {}
                    Err(SendError::Full) => return has_sent,
                    Err(SendError::Closed) => {
                        self.abort(common, net);
                        return has_sent;
                    }
                }
                common.counters.sent_bytes += text.len() as u64;
                self.pace.bytes = self.pace.bytes.saturating_add(text.len() as u32);
                self.replies.pop(&mut common.replies);
                has_sent = true;
                continue;
            }
            let Some(mut reply) = self.replies.lift(&mut common.replies) else { return has_sent };
            if self.peer_finished {
                reply.finished_by_peer();
            }
            let (progress, bytes) = reply.send(conn, common, net, shard);
            self.pace.bytes = self.pace.bytes.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
            match progress {
                Progress::Whole => {}
                Progress::Blocked => {
                    self.replies.put_back(reply, &mut common.replies);
                    return has_sent;
                }
                Progress::Broken => {
                    self.abort(common, net);
                    return has_sent;
                }
            }
            self.replies.pop(&mut common.replies);
            has_sent = true;
        }
        if self.ending == Ending::Replying && self.replies.front(&common.replies).is_none() {
            net.finish(conn);
            self.ending = Ending::Finished { dropped_bytes: 0 };
        }
        has_sent
    }

    /// Resets the connection, and gives up what it held.
    pub(super) fn abort<N: Net>(&mut self, common: &mut Common, net: &mut N) {
        let Some(conn) = self.id else { return };
        common.counters.aborted += 1;
        net.abort(conn);
        self.input = None;
        self.stop_reading();
        self.replies.clear(&mut common.replies);
        self.ending = Ending::Finished { dropped_bytes: 0 };
    }

    #[cold]
    fn drop_input<N: Net>(&mut self, conn: ConnId, common: &mut Common, net: &mut N) {
        self.input = None;
        let mut bytes = 0;
        while let Some(slot) = net.recv(conn) {
            bytes += slot.bytes().len();
        }
        if let Ending::Finished { dropped_bytes } = &mut self.ending {
            *dropped_bytes = dropped_bytes.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
            if *dropped_bytes > MAX_LINGER_BYTES {
                self.abort(common, net);
            }
        }
    }

    #[inline]
    fn keep_pace(&mut self, common: &Common) {
        let phase = match (self.ending, self.replies.front(&common.replies)) {
            (Ending::Finished { .. }, _) => Phase::Lingering,
            (_, Some(reply)) if reply.awaits_commit() => Phase::Committing,
            (_, Some(reply)) if reply.follows() => Phase::Following,
            (_, Some(_)) => Phase::Sending,
            (_, None) if self.decoder.is_mid_request() => Phase::Receiving,
            (_, None) => Phase::Idle,
        };
        if phase != self.pace.phase {
            self.pace = Pace { phase, since: common.now, bytes: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Connection>() <= 224, "{}", size_of::<Connection>());
    }
}
