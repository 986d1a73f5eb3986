//! The state of one connection.

use std::hint::black_box;
use std::time::Duration;

use stack_net::time::Instant;

use super::congestion::{Congestion, Controls};
use super::early::EarlyPool;
use super::pieces::PiecePool;
use super::rack::Reordering;
use super::recovery::Recovery;
use super::recv_queue::RecvQueue;
use super::round::Round;
use super::rtt::Rtt;
use super::scoreboard::Scoreboard;
use super::send_pool::SendPool;
use super::send_queue::SendQueue;
use super::seq::Seq;
use crate::config::{Config, ConnectionOptions, Keepalive};
use crate::counters::Counters;
use crate::flow::FlowKey;
use crate::limit::ShortLimit;
use crate::net::CloseReason;
use crate::window::{Offer, WindowPool};

/// The states of RFC 9293, section 3.3.2, that a connection in the table can be in. LISTEN, SYN-RECEIVED of a
/// passive open, and TIME-WAIT take less memory elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not in use, or over and only its last events are still to be told.
    Closed,
    SynSent,
    /// Of a simultaneous open.
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    /// Over for the peer; received payload still waits for the application.
    Drained,
}

/// One connection, in the order in which segments touch it, which the representation keeps: with many connections the
/// lines of cache that a segment needs are most of its cost. Behind the first sixteen bytes of its entry in the table the
/// fields lie so; [the entry](crate::endpoint) holds them to it.
///
/// | line | what lies there |
/// |---|---|
/// | 0, 1, 2 | whose a segment is and whether it is acceptable: the key, the windows, the clock; and its payload |
/// | 3 | what is owed for it, and the timer |
/// | 4 | what is sent, and how much may be |
/// | 5 | what an acknowledgement measures, and what is rarely looked at |
/// | 6 | what is under way |
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Connection {
    pub(crate) state: State,
    pub(super) due: Due,
    pub(crate) events: Happened,
    pub(super) snd_scale: u8,
    pub(super) rcv_scale: u8,
    /// Whether this side has finished: FIN follows the queue.
    pub(super) finished: bool,
    pub(super) keepalive_probes: u8,
    /// Retransmissions, or window probes without an answer; once this side has finished, those with one, too.
    pub(super) retries: u8,
    pub(crate) key: FlowKey,
    // The variables of RFC 9293, section 3.3.1. Before the peer has answered the SYN, `snd_una` is its number.
    pub(super) snd_una: Seq,

    // Line 1.
    /// One beyond the highest number ever sent; probes of a closed window do not move `snd_nxt`.
    pub(super) snd_max: Seq,
    pub(super) snd_wnd: u32,
    pub(super) snd_wl1: Seq,
    pub(super) snd_wl2: Seq,
    pub(super) max_snd_wnd: u32,
    pub(super) rcv_nxt: Seq,
    /// The right edge of the window that was offered.
    pub(super) rcv_adv: Seq,
    pub(super) last_ack_sent: Seq,
    /// The peer's largest segment so far, in bytes.
    pub(super) rcv_mss: u32,
    /// Where the peer's frames come from, or the next hop; unknown until neighbor discovery has answered.
    pub(crate) mac: Option<[u8; 6]>,
    /// Whether the application has taken payload since an acknowledgement last went out, so that the window may have
    /// opened.
    pub(crate) has_taken: bool,
    /// Whether both sides understand selective acknowledgements (RFC 2018).
    pub(super) sacks: bool,
    pub(super) traits: Traits,
    /// Where its options stand.
    pub(super) profile: Profile,
    pub(crate) recv: RecvQueue,

    // Line 2, behind the rest of the receive queue.
    pub(super) clock: Option<Clock>,
    pub(super) last_heard: Instant,
    /// Most payload bytes of a segment.
    pub(super) mss: u32,
    /// Whether the application waits for room in the send queue.
    pub(crate) wants_room: std::cell::Cell<bool>,
    pub(crate) reason: CloseReason,
    /// The MSS that this side names: most payload of a segment that comes in.
    pub(super) own_mss: u16,

    // Line 3.
    pub(super) ack: AckState,
    /// Where the peer's stream ends, once a FIN has said so.
    pub(super) rcv_fin: Option<Seq>,
    pub(super) offer: Offer,
    pub(super) timer: Timer,
    pub(super) recovery: Recovery,

    // Line 4.
    pub(crate) send: SendQueue,
    pub(super) snd_nxt: Seq,
    pub(super) congestion: Congestion,
    /// The highest number sent when something began to look like a loss: what was sent since is only for finding out (RFC
    /// 3042).
    pub(super) undisturbed: Seq,

    // Line 5.
    pub(super) rtt: Rtt,
    pub(super) challenges: ShortLimit,
    /// When something was last sent: the SYN, or data.
    pub(super) last_sent: Instant,
    /// Bytes in order that are not acknowledged yet, since they are not durable.
    pub(super) held: u32,
    /// What was sent when the window was last lowered, where marks of congestion are heeded.
    pub(super) reduced_to: Seq,
    /// Since when the peer has acknowledged nothing, once something was sent again: the low bits of the millisecond.
    pub(super) stalled_ms: u32,
    pub(super) reordering: Reordering,
    /// Whether what answers the SYN is a measurement of the round trip, as that was sent once.
    pub(super) times_syn: bool,

    // Line 6.
    pub(super) board: Scoreboard,
    /// Most payload bytes of a segment if its path takes them.
    pub(super) full_mss: u16,
}

/// Where the lines of a connection begin, behind `before` bytes of its entry.
pub(crate) const fn lies_in_its_lines(before: usize) -> bool {
    use std::mem::{offset_of, size_of};
    before + offset_of!(Connection, snd_max) == 64
        && before + offset_of!(Connection, recv) + RecvQueue::HOT_BYTES <= 2 * 64
        && before + offset_of!(Connection, clock) >= 2 * 64
        && before + offset_of!(Connection, ack) == 3 * 64
        && before + offset_of!(Connection, send) == 4 * 64
        && before + offset_of!(Connection, rtt) == 5 * 64
        && before + offset_of!(Connection, board) == 6 * 64
        && before + size_of::<Connection>() <= 7 * 64
}

bitflags::bitflags! {
    /// Events that the application has not been told.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Happened: u8 {
        const OPENED = 1;
        const READABLE = 2;
        const WRITABLE = 4;
        const PEER_FINISHED = 8;
        const CLOSED = 16;
    }

    /// Segments that are to be sent whatever the windows say.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Due: u8 {
        /// SYN, or SYN and ACK.
        const SYN = 1;
        /// A probe for losses at the tail.
        const TAIL = 2;
        const PROBE = 4;
        const KEEPALIVE = 8;
    }
}

bitflags::bitflags! {
    /// Those of a connection's options that are asked for each segment.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Traits: u8 {
        const NAGLE = 1;
        /// Its path may take less than its peer and this link.
        const NARROW = 4;
        /// Its packets may be divided on the way: the path takes next to nothing.
        const DIVISIBLE = 8;
        const DURABLE_ACK = 2;
        /// The SYN has asked for marks of congestion to be heeded (RFC 3168).
        const ECN_ASKED = 16;
        /// Both sides heed them.
        const ECN = 32;
        /// One has come, and the peer has not said that it sends less.
        const ECN_ECHOES = 64;
        /// The window was lowered, and the peer is yet to be told.
        const ECN_REDUCED = 128;
    }
}

/// Where the options of a connection stand in [the list](Context::options) that they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Profile(pub(crate) u8);

impl Profile {
    /// That of whoever names no options.
    pub(crate) const DEFAULT: Self = Self(0);
}

impl Happened {
    /// The one to tell first; none of none.
    pub(crate) fn first(self) -> Self {
        Self::from_bits_retain(self.bits() & self.bits().wrapping_neg())
    }
}

/// What is owed to the peer in acknowledgements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AckState {
    /// Since when, if one is owed.
    since: Instant,
    pub round: Round,
    /// Whether one may yet wait for a second segment.
    is_owed: bool,
    /// At the next chance.
    pub now: bool,
    /// Duplicates, one for each segment beyond a hole: the peer counts them.
    pub duplicates: u8,
    /// So many do not wait for a second segment, and pass over none: a peer that begins to send, or begins again, sends more
    /// with each.
    pub quick: u8,
}

/// Acknowledgements of a peer that begins to send, or has lost something. With one for every second segment they see it through its initial
/// window and the next.
const QUICK_ACKS: u8 = 16;

/// Added to their number where a single segment has brought all that the next one is of: it passes over what it may.
const OF_ONE: u8 = 0x80;

impl AckState {
    /// Of a connection whose payload begins at `first`.
    fn new(first: Seq, now: Instant) -> Self {
        let round = Round::new(first, now);
        Self { since: now, round, is_owed: false, now: false, duplicates: 0, quick: QUICK_ACKS }
    }

    /// Owes nothing any more.
    fn clear(&mut self) {
        (self.is_owed, self.now, self.duplicates) = (false, false, 0);
    }

    /// The peer begins to send, or sends far more than before: so many segments that are acknowledged by pairs.
    pub(super) fn quicken(&mut self, segments: u32) {
        self.quick = segments.div_ceil(2).clamp(QUICK_ACKS.into(), (OF_ONE - 1).into()) as u8;
    }

    /// The peer has sent next to nothing for long, and sends again, from `first` on.
    #[cold]
    pub(super) fn begin_again(&mut self, first: Seq, now: Instant) {
        (self.round, self.quick, self.now) = (Round::new(first, now), QUICK_ACKS, true);
    }

    /// The peer has lost something, and may have so little under way that it waits for each.
    pub(super) fn recovers(&mut self) {
        self.quick = self.quick.max(QUICK_ACKS);
    }

    /// What is acknowledged next has come with a single segment, which filled a hole.
    pub(super) fn jumps(&mut self) {
        self.quick |= OF_ONE;
    }

    /// Whether what a burst has brought is acknowledged by pairs of segments.
    pub(super) fn goes_by_pairs(&self) -> bool {
        (1..OF_ONE).contains(&self.quick)
    }

    /// One went out that takes no payload along.
    #[inline]
    pub(super) fn went_alone(&mut self) {
        self.quick = (self.quick & !OF_ONE).saturating_sub(1);
    }

    /// One is owed before long.
    #[inline]
    pub(super) fn owe(&mut self, now: Instant) {
        if !self.is_owed {
            (self.is_owed, self.since) = (true, now);
        }
    }

    /// One goes out.
    #[inline]
    pub(super) fn settle(&mut self) {
        (self.is_owed, self.now) = (false, false);
    }

    /// Notes that one is owed now if it has waited for `delay`.
    pub(super) fn expire(&mut self, now: Instant, delay: Duration) {
        if self.deadline(delay).is_some_and(|deadline| deadline <= now) {
            (self.is_owed, self.now) = (false, true);
        }
    }

    /// When one that may wait for `delay` is owed.
    #[inline]
    pub(super) fn deadline(&self, delay: Duration) -> Option<Instant> {
        self.is_owed.then(|| self.since + delay)
    }
}

/// The timestamps of a connection that uses them (RFC 7323).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Added to the millisecond clock.
    pub offset: u32,
    /// TS.Recent.
    pub recent: u32,
    pub recent_at: Instant,
}

/// After this long TS.Recent says nothing (RFC 7323, section 5.5).
const CLOCK_VALID: Duration = Duration::from_secs(24 * 24 * 3600);

impl Clock {
    pub(crate) fn now(&self, now: Instant) -> u32 {
        clock_now(self.offset, now)
    }

    /// PAWS: whether a segment with this timestamp is from an earlier time.
    pub(crate) fn is_old(&self, value: u32, now: Instant) -> bool {
        Seq(value).before(Seq(self.recent)) && now - self.recent_at < CLOCK_VALID
    }
}

/// The timestamp of a flow with this offset.
pub(crate) fn clock_now(offset: u32, now: Instant) -> u32 {
    (now.as_millis() as u32).wrapping_add(offset)
}

/// The timer of the send side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    Off,
    Retransmit(Instant),
    /// A probe for losses at the tail (RFC 8985, section 7).
    Tail(Instant),
    /// Segments that were sent before others that have arrived are lost if they have not arrived by then.
    Reorder(Instant),
    /// The peer's window is closed (RFC 9293, section 3.8.6.1).
    Persist(Instant),
    /// Payload that the application has not taken is given up.
    Linger(Instant),
}

/// What a segment, a timer or a call did to the connection as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Goes,
    /// Both sides have finished and this one was first: TIME-WAIT.
    TimeWait,
    Closed(CloseReason),
    /// An unacceptable ACK during the handshake: RST with this number.
    Reset(Seq),
}

/// What connections share.
#[derive(Debug)]
pub(crate) struct Context {
    pub config: Config,
    /// What connections may do otherwise than others, by their profiles.
    pub options: Vec<ConnectionOptions>,
    pub counters: Counters,
    pub pool: WindowPool,
    /// Payload that waits for the application.
    pub pieces: PiecePool,
    /// What waits to be sent or acknowledged.
    pub sending: SendPool,
    /// What the congestion control remembers.
    pub controls: Controls,
}

/// What a handshake has agreed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handshake {
    pub key: FlowKey,
    pub mac: [u8; 6],
    pub iss: Seq,
    pub irs: Seq,
    /// The peer's MSS option, or the default.
    pub mss: u16,
    /// The peer's shift, if both sides scale their windows.
    pub window_scale: Option<u8>,
    /// Whether the peer understands selective acknowledgements.
    pub sacks: bool,
    /// Whether both sides heed marks of congestion (RFC 3168).
    pub heeds_marks: bool,
    pub clock: Option<Clock>,
    /// The window that was offered with SYN and ACK.
    pub offered: u32,
    /// When SYN and ACK went out, if that is known and was once: what answers them is then a measurement of the
    /// round trip (RFC 6298, section 3).
    pub sent_at: Option<Instant>,
    /// Times that they were sent again for want of an answer.
    pub retries: u8,
}

/// Least payload of a segment, whatever the peer's MSS option or a router says.
const LEAST_MSS: u32 = 64;

impl Connection {
    pub(crate) fn new(config: &Config, early: &EarlyPool, now: Instant) -> Self {
        let nowhere = std::net::Ipv6Addr::UNSPECIFIED;
        Self {
            state: State::Closed,
            key: FlowKey { local: nowhere, remote: nowhere, local_port: 0, remote_port: 0 },
            mac: None,
            has_taken: false,
            sacks: false,
            traits: Traits::empty(),
            profile: Profile::DEFAULT,
            own_mss: own_mss(config, false),
            full_mss: 0,
            snd_una: Seq(0),
            snd_nxt: Seq(0),
            snd_max: Seq(0),
            snd_wnd: 0,
            snd_wl1: Seq(0),
            snd_wl2: Seq(0),
            max_snd_wnd: 0,
            mss: LEAST_MSS,
            snd_scale: 0,
            rcv_scale: 0,
            rcv_nxt: Seq(0),
            rcv_adv: Seq(0),
            last_ack_sent: Seq(0),
            rcv_mss: 0,
            ack: AckState::new(Seq(0), now),
            clock: None,
            rcv_fin: None,
            offer: Offer::default(),
            timer: Timer::Off,
            due: Due::empty(),
            finished: false,
            retries: 0,
            rtt: Rtt::new(config.min_rto, config.max_rto),
            times_syn: false,
            board: Scoreboard::new(Seq(0), config.congestion.models()),
            reordering: Reordering::new(),
            undisturbed: Seq(0),
            reduced_to: Seq(0),
            congestion: Congestion::new(),
            stalled_ms: 0,
            held: 0,
            recovery: Recovery::new(Seq(0)),
            last_sent: now,
            last_heard: now,
            keepalive_probes: 0,
            challenges: ShortLimit::new(now),
            events: Happened::empty(),
            reason: CloseReason::Finished,
            wants_room: std::cell::Cell::new(false),
            send: SendQueue::new(),
            recv: RecvQueue::new(config.rx_buffers, early),
        }
    }

    /// Reads a word of each line that a segment needs, so that they all come into the cache at once.
    #[inline]
    pub(crate) fn touch(&self) {
        let lines = [
            self.snd_una.0,
            self.rcv_nxt.0,
            self.mss,
            self.ack.duplicates.into(),
            self.send.len(),
            self.rtt.backoff.into(),
            self.board.in_flight(),
        ];
        black_box(lines.into_iter().fold(0, |all, word| all ^ word));
    }

    /// Puts everything but the queues' memory back to the start.
    fn reset(&mut self, key: FlowKey, iss: Seq, cx: &mut Context, now: Instant) {
        let config = &cx.config;
        self.send.clear(&mut cx.sending);
        self.recv.clear(&mut cx.pieces);
        cx.controls.forget(&mut self.congestion);
        self.recv.open(config.rx_window_bytes);
        self.key = key;
        (self.mac, self.has_taken, self.sacks) = (None, false, false);
        self.own_mss = own_mss(config, key.is_v4());
        (self.snd_una, self.snd_nxt, self.snd_max) = (iss, iss, iss);
        (self.snd_wnd, self.max_snd_wnd) = (0, 0);
        (self.snd_scale, self.rcv_scale) = (0, 0);
        self.rcv_mss = DEFAULT_MSS_V4.into();
        self.ack = AckState::new(Seq(0), now);
        (self.clock, self.rcv_fin, self.times_syn) = (None, None, false);
        self.held = 0;
        self.timer = Timer::Off;
        self.due = Due::empty();
        (self.finished, self.retries, self.keepalive_probes) = (false, 0, 0);
        self.rtt = Rtt::new(config.min_rto, config.max_rto);
        self.recovery = Recovery::new(iss);
        self.board.clear(iss, &mut cx.sending.under_way);
        (self.reordering, self.undisturbed) = (Reordering::new(), iss);
        (self.last_sent, self.last_heard) = (now, now);
        self.challenges = ShortLimit::new(now);
        self.traits -= Traits::ECN_ASKED | Traits::ECN | Traits::ECN_ECHOES | Traits::ECN_REDUCED;
        self.reduced_to = iss;
        self.events = Happened::empty();
        self.wants_room.set(false);
    }

    /// Has a connection that begins go by the options of `profile`.
    pub(crate) fn go_by(&mut self, profile: Profile, options: &ConnectionOptions) {
        self.profile = profile;
        self.traits.set(Traits::NAGLE, options.nagle);
        self.traits.set(Traits::DURABLE_ACK, options.durable_ack);
        // Nobody has asked yet what is known of its path.
        self.traits |= Traits::NARROW;
        self.traits -= Traits::DIVISIBLE;
    }

    /// Begins an active open.
    pub(crate) fn open(&mut self, key: FlowKey, iss: Seq, clock: Clock, cx: &mut Context, now: Instant) {
        self.reset(key, iss, cx, now);
        self.state = State::SynSent;
        self.clock = Some(clock);
        self.due = Due::SYN;
        self.traits.set(Traits::ECN_ASKED, cx.config.asks_for_marks());
        cx.pool.connection_opened();
    }

    /// Takes over a passive open whose last acknowledgement has just come; `last` is its segment's number.
    pub(crate) fn accept(&mut self, handshake: &Handshake, cx: &mut Context, now: Instant) {
        self.reset(handshake.key, handshake.iss, cx, now);
        self.state = State::SynReceived;
        self.mac = Some(handshake.mac);
        (self.snd_nxt, self.snd_max) = (handshake.iss + 1, handshake.iss + 1);
        self.times_syn = handshake.sent_at.is_some();
        self.last_sent = handshake.sent_at.unwrap_or(now);
        self.retries = handshake.retries;
        self.clock = handshake.clock;
        self.sacks = handshake.sacks;
        self.traits.set(Traits::ECN, handshake.heeds_marks);
        self.agree(handshake.irs, handshake.mss, handshake.window_scale, &cx.config, now);
        self.rcv_adv = self.rcv_nxt + handshake.offered;
        cx.pool.connection_opened();
        self.note_offer(cx);
    }

    /// Notes what the peer's SYN says.
    pub(super) fn agree(
        &mut self,
        irs: Seq,
        mss: u16,
        window_scale: Option<u8>,
        config: &Config,
        now: Instant,
    ) {
        self.rcv_nxt = irs + 1;
        (self.rcv_adv, self.last_ack_sent) = (self.rcv_nxt, self.rcv_nxt);
        self.ack.round = Round::new(self.rcv_nxt, now);
        self.snd_wl1 = irs;
        self.snd_wl2 = self.snd_una;
        if let Some(shift) = window_scale {
            self.snd_scale = shift;
            self.rcv_scale = own_window_scale(config);
        }
        self.rcv_mss = u32::from(mss).clamp(LEAST_MSS, DEFAULT_MSS_V4.into());
        self.set_mss(mss, config);
        self.congestion.begin(self.mss, self.snd_nxt);
    }

    /// Sets the most payload of a segment from the peer's MSS option (RFC 9293, section 3.7.1).
    fn set_mss(&mut self, peer: u16, config: &Config) {
        let options = self.option_bytes();
        let mss = u32::from(peer).min(own_mss(config, self.key.is_v4()).into());
        self.mss = mss.saturating_sub(options).max(LEAST_MSS);
        self.full_mss = self.mss as u16;
    }

    /// Whether a number belongs to data in flight: what ICMP messages must quote (RFC 5927, section 4.1).
    pub(crate) fn is_in_flight(&self, seq: Seq) -> bool {
        seq.at_or_after(self.snd_una) && seq.before(self.snd_max)
    }

    pub(super) fn option_bytes(&self) -> u32 {
        if self.clock.is_some() { super::options::TIMESTAMP_BYTES as u32 } else { 0 }
    }

    /// Bytes that were sent and are not acknowledged.
    #[inline]
    pub(super) fn flight(&self) -> u32 {
        self.snd_nxt.since(self.snd_una)
    }

    /// Bytes that both windows, the peer's and that of congestion, let be in flight.
    #[inline]
    pub(crate) fn most_in_flight(&self) -> u32 {
        self.snd_wnd.min(self.congestion.window())
    }

    /// The number that FIN has or would have.
    pub(super) fn fin_seq(&self) -> Seq {
        let syn = u32::from(matches!(self.state, State::SynSent | State::SynReceived));
        self.snd_una + syn + self.send.len()
    }

    /// Whether the application can queue more.
    pub(crate) fn sends(&self) -> bool {
        let open =
            matches!(self.state, State::SynSent | State::SynReceived | State::Established | State::CloseWait);
        open && !self.finished
    }

    /// The application has no more to send (RFC 9293, section 3.10.4).
    pub(crate) fn finish(&mut self) {
        if !self.sends() {
            return;
        }
        self.finished = true;
        match self.state {
            State::Established => self.state = State::FinWait1,
            State::CloseWait => self.state = State::LastAck,
            // From SYN-RECEIVED it moves on when the handshake is complete.
            _ => {}
        }
    }

    /// When the earliest of the connection's timers is due.
    #[inline(always)]
    pub(crate) fn next_deadline(&self, cx: &Context) -> Option<Instant> {
        let is_usual = self.retries == 0 && !self.ack.is_owed && self.send.unsent() | self.board.lost() == 0;
        match self.timer {
            Timer::Retransmit(at) | Timer::Tail(at) if is_usual => Some(at),
            _ => self.first_deadline(cx),
        }
    }

    fn first_deadline(&self, cx: &Context) -> Option<Instant> {
        let timer = match self.timer {
            Timer::Off => self.keepalive_deadline(cx),
            Timer::Linger(at) => Some(at),
            Timer::Retransmit(at) | Timer::Tail(at) | Timer::Reorder(at) | Timer::Persist(at) => {
                Some(if self.retries > 0 { self.before_patience_ends(at, cx) } else { at })
            }
        };
        let first = match (timer, self.ack.deadline(cx.config.delayed_ack)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let held = if self.send.unsent() > 0 || self.board.lost() > 0 {
            self.congestion.held_until(&cx.controls)
        } else {
            None
        };
        match held {
            Some(held) => Some(first.map_or(held, |first| first.min(held))),
            None => first,
        }
    }

    fn options<'a>(&self, cx: &'a Context) -> &'a ConnectionOptions {
        &cx.options[usize::from(self.profile.0)]
    }

    /// How the peer is probed when it has been silent for long.
    pub(super) fn keepalive(&self, cx: &Context) -> Option<Keepalive> {
        self.options(cx).keepalive.or(self.finished.then_some(HALF_CLOSED_KEEPALIVE))
    }

    pub(super) fn keepalive_deadline(&self, cx: &Context) -> Option<Instant> {
        let Keepalive { idle, interval, .. } = self.keepalive(cx)?;
        match self.state {
            State::Established | State::CloseWait | State::FinWait2 => {
                Some(self.last_heard + idle + interval * u32::from(self.keepalive_probes))
            }
            _ => None,
        }
    }

    /// How long the peer may acknowledge nothing.
    fn patience_ms(&self, cx: &Context) -> u32 {
        let patience = match self.state {
            State::SynSent | State::SynReceived => cx.config.syn_timeout,
            _ => self.options(cx).user_timeout,
        };
        u32::try_from(patience.as_millis()).unwrap_or(u32::MAX)
    }

    /// For how long the peer has acknowledged nothing at a time after something was sent again.
    fn stalled_for_ms(&self, at: Instant) -> u32 {
        (at.as_millis() as u32).wrapping_sub(self.stalled_ms)
    }

    /// A time, or when patience with the peer ends, if that is earlier.
    fn before_patience_ends(&self, at: Instant, cx: &Context) -> Instant {
        let beyond_ms = self.stalled_for_ms(at).saturating_sub(self.patience_ms(cx));
        Instant::from_micros(at.as_micros() - i64::from(beyond_ms) * 1000)
    }

    /// Whether the peer has acknowledged nothing for so long that the connection is given up.
    pub(super) fn is_given_up(&self, now: Instant, cx: &Context) -> bool {
        let waits = !matches!(self.timer, Timer::Off | Timer::Linger(_));
        waits && self.retries > 0 && self.stalled_for_ms(now) >= self.patience_ms(cx)
    }

    /// What was sent is without an answer for one timeout more.
    pub(super) fn count_retry(&mut self, now: Instant) {
        if self.retries == 0 {
            self.stalled_ms = (now.as_millis() as u32).wrapping_sub((self.rtt.timeout_us() / 1000) as u32);
        }
        self.retries = self.retries.saturating_add(1);
        self.rtt.backoff = self.rtt.backoff.saturating_add(1);
    }

    /// Most payload of a segment that the peer is likely to send: as much as it takes itself, or has sent already. Each
    /// takes a buffer.
    #[inline]
    pub(super) fn peer_segment_bytes(&self) -> u32 {
        self.mss.max(self.rcv_mss).min(self.own_mss.into())
    }

    /// Notes how many buffers the open window takes.
    #[inline]
    pub(crate) fn note_offer(&mut self, cx: &mut Context) {
        let open = self.rcv_adv.since(self.rcv_nxt);
        let buffers = open.div_ceil(self.peer_segment_bytes());
        cx.pool.set(&mut self.offer, buffers as usize);
    }

    /// Notes how many buffers hold payload ahead of a hole.
    pub(super) fn note_early(&mut self, cx: &mut Context) {
        cx.pool.set_early(&mut self.offer, self.recv.early.buffers());
    }

    /// Gives up everything the connection holds, except what the application has still to be told.
    pub(crate) fn release(&mut self, reason: CloseReason, cx: &mut Context) {
        self.leave(cx);
        self.recv.clear(&mut cx.pieces);
        self.state = State::Closed;
        self.timer = Timer::Off;
        self.reason = reason;
        self.events |= Happened::CLOSED;
        self.events -= Happened::WRITABLE | Happened::READABLE;
    }

    /// Ends the connection for the peer, and keeps what the application has not taken for some time.
    pub(crate) fn drain(&mut self, cx: &mut Context, now: Instant) {
        self.leave(cx);
        self.state = State::Drained;
        self.timer = Timer::Linger(now + cx.config.time_wait);
        self.reason = CloseReason::Finished;
    }

    fn leave(&mut self, cx: &mut Context) {
        if !matches!(self.state, State::Closed | State::Drained) {
            self.recv.early.clear();
            cx.pool.connection_closed(&mut self.offer);
            cx.counters.closed += 1;
        }
        self.send.clear(&mut cx.sending);
        self.board.clear(self.snd_nxt, &mut cx.sending.under_way);
        cx.controls.forget(&mut self.congestion);
        self.ack.clear();
        self.due = Due::empty();
        self.held = 0;
    }

    /// What TIME-WAIT has to remember: the next numbers of both directions, and the clock.
    pub(crate) fn last_numbers(&self) -> (Seq, Seq, Option<Clock>) {
        (self.snd_max, self.rcv_nxt, self.clock)
    }

    /// The number up to which the peer hears that its stream has arrived: all of it, or what of it is durable.
    #[inline]
    pub(crate) fn acknowledges(&self) -> Seq {
        self.rcv_nxt.back(self.held)
    }

    /// Whether an acknowledgement is owed.
    pub(crate) fn owes_ack(&self) -> bool {
        self.ack.now
    }

    /// When the peer was last heard.
    pub(crate) fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// How often in a row the peer has not answered: to what was sent again, or to probes.
    pub(crate) fn unanswered(&self) -> u8 {
        self.retries.max(self.keepalive_probes)
    }

    /// What was sent without an answer went to where the peer no longer is: it is sent again at once.
    pub(crate) fn moved(&mut self) {
        match self.timer {
            _ if self.retries == 0 => {}
            Timer::Persist(_) => self.due |= Due::PROBE,
            _ if matches!(self.state, State::SynSent | State::SynReceived) => self.due |= Due::SYN,
            _ if self.snd_max != self.snd_una => self.lose_all(),
            _ => {}
        }
        if self.keepalive_probes > 0 {
            self.due |= Due::KEEPALIVE;
        }
        // Not the path was too slow: the timeout need not be longer than it was.
        self.rtt.backoff = 0;
        if !matches!(self.timer, Timer::Off | Timer::Linger(_)) && self.retries > 0 {
            self.timer = Timer::Off;
        }
    }

    /// Whether the peer has answered the SYN.
    pub(crate) fn is_synchronized(&self) -> bool {
        !matches!(self.state, State::Closed | State::SynSent | State::Drained)
    }
}

/// The MSS of a peer that names none (RFC 9293, section 3.7.1).
pub(crate) const DEFAULT_MSS_V4: u16 = 536;
/// As [`DEFAULT_MSS_V4`], for IPv6.
pub(crate) const DEFAULT_MSS_V6: u16 = 1220;

/// How a peer that never finishes is found out after this side has, where no keep-alive is configured.
const HALF_CLOSED_KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(10), count: 6 };

/// The MSS that this side names.
pub(crate) fn own_mss(config: &Config, v4: bool) -> u16 {
    (config.mtu_of(v4) - if v4 { 40 } else { 60 }) as u16
}

/// The shift of the windows that this side offers.
pub(crate) fn own_window_scale(config: &Config) -> u8 {
    (0..14).find(|shift| config.rx_window_bytes >> shift <= 0xffff).unwrap_or(14)
}
