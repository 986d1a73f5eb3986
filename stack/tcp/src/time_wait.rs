//! Connections in TIME-WAIT: what is left of them is small, and never keeps a new one from its place.
//!
//! A RST does not end TIME-WAIT, although RFC 9293, section 3.10.7.4, says so: RFC 1337 shows how an old duplicate, the
//! ACK that it draws, and the RST that a closed peer answers with would end it just when it is needed (its fix F1). A
//! SYN may end it: one with a newer timestamp, or without timestamps with a higher number, cannot be an old duplicate
//! (RFC 6191). Any other is answered with an ACK. A peer that means it has no such connection and answers with RST,
//! whose number is then exactly the next (RFC 9293, section 3.10.7.3). That much Linux takes for the end; here the
//! connection stays, and notes the SYN: when that very one comes again, as it does within a second or so, a new
//! connection begins. So a RST alone ends nothing, nor does a single SYN; it takes a peer that insists on its SYN after
//! it has disowned the connection, and at least one round trip, in which old duplicates arrive as what they are.

use stack_net::time::Instant;

use crate::flow::FlowKey;
use crate::frame::{Flags, Segment};
use crate::limit::RateLimit;
use crate::tcp::connection::Clock;
use crate::tcp::seq::Seq;

/// What is remembered of a connection in TIME-WAIT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeWait {
    pub key: FlowKey,
    pub mac: [u8; 6],
    pub snd_nxt: Seq,
    pub rcv_nxt: Seq,
    pub clock: Option<Clock>,
    pub until: Instant,
    pub answers: RateLimit,
    /// The number of the SYN that was answered last and was not accepted.
    pub challenged: Option<Seq>,
    /// The number of the SYN whose sender has then said, by RST, that it has no such connection.
    pub disowned: Option<Seq>,
}

/// What a segment means for a connection in TIME-WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Nothing.
    Ignore,
    /// The peer has not heard the last ACK, or is confused: say it again.
    Acknowledge { restart: bool },
    /// A SYN that may be an old one: say it again, and hear what the peer has to say.
    Challenge,
    /// The peer has no such connection.
    Disowned,
    /// A new connection may begin here.
    Reuse,
}

impl TimeWait {
    /// RFC 9293, section 3.10.7.4; RFC 1337 on RST; RFC 6191 on SYN.
    pub(crate) fn judge(&self, segment: &Segment, now: Instant) -> Meaning {
        if segment.flags.contains(Flags::RST) {
            let answers_challenge = self.challenged.is_some() && segment.seq == self.rcv_nxt;
            return if answers_challenge { Meaning::Disowned } else { Meaning::Ignore };
        }
        let timestamp = segment.options.timestamp;
        if segment.flags.contains(Flags::SYN) && !segment.flags.contains(Flags::ACK) {
            let later = match (self.clock, timestamp) {
                (Some(clock), Some(timestamp)) if timestamp.value != clock.recent => {
                    !clock.is_old(timestamp.value, now)
                }
                _ => segment.seq.after(self.rcv_nxt),
            };
            let again = self.disowned == Some(segment.seq);
            return if later || again { Meaning::Reuse } else { Meaning::Challenge };
        }
        let old = match (self.clock, timestamp) {
            (Some(clock), Some(timestamp)) => clock.is_old(timestamp.value, now),
            (Some(_), None) => true,
            (None, _) => false,
        };
        let fin_again = segment.flags.contains(Flags::FIN) && !old;
        // A bare ACK of the expected number needs no answer; two such hosts would never stop.
        if segment.len() == 0 && segment.seq == self.rcv_nxt {
            return Meaning::Ignore;
        }
        Meaning::Acknowledge { restart: fin_again }
    }
}

/// All of them, in memory taken at the start. As all stay equally long, they lie in the order in which they
/// end, and the next place is that of the oldest.
#[derive(Debug)]
pub(crate) struct TimeWaits {
    entries: Box<[Option<TimeWait>]>,
    next: usize,
}

impl TimeWaits {
    pub(crate) fn new(entries: usize) -> Self {
        Self { entries: vec![None; entries].into_boxed_slice(), next: 0 }
    }

    /// Adds one; gives back its place and what had to leave it.
    pub(crate) fn insert(&mut self, entry: TimeWait) -> (u32, Option<TimeWait>) {
        let place = self.next;
        self.next = (place + 1) % self.entries.len();
        (place as u32, self.entries[place].replace(entry))
    }

    pub(crate) fn get(&mut self, place: u32) -> Option<&mut TimeWait> {
        self.entries[place as usize].as_mut()
    }

    pub(crate) fn remove(&mut self, place: u32) -> Option<TimeWait> {
        self.entries[place as usize].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::options::{Options, Timestamp};

    fn segment(flags: Flags, seq: u32, value: Option<u32>) -> Segment {
        let timestamp = value.map(|value| Timestamp { value, echo: 0 });
        Segment {
            key: FlowKey::new("10.0.0.2:80".parse().unwrap(), "10.0.0.9:5000".parse().unwrap()),
            source_mac: [2; 6],
            seq: Seq(seq),
            ack: Seq(0),
            flags,
            is_marked: false,
            window: 0,
            options: Options { timestamp, ..Options::default() },
            payload_at: 0,
            payload_len: 0,
            is_partial: false,
        }
    }

    fn entry(recent: Option<u32>) -> TimeWait {
        let clock = recent.map(|recent| Clock { offset: 0, recent, recent_at: Instant::ZERO });
        TimeWait {
            key: segment(Flags::ACK, 0, None).key,
            mac: [2; 6],
            snd_nxt: Seq(500),
            rcv_nxt: Seq(1000),
            clock,
            until: Instant::from_secs(60),
            answers: RateLimit::new(),
            challenged: None,
            disowned: None,
        }
    }

    #[test]
    fn a_syn_of_a_later_time_may_reuse_the_place() {
        let now = Instant::ZERO;
        let syn = |seq, value| segment(Flags::SYN, seq, value);
        let refused = Meaning::Challenge;
        assert_eq!(entry(None).judge(&syn(1001, None), now), Meaning::Reuse);
        assert_eq!(entry(None).judge(&syn(999, None), now), refused);
        assert_eq!(entry(Some(70)).judge(&syn(999, Some(71)), now), Meaning::Reuse);
        assert_eq!(entry(Some(70)).judge(&syn(1001, Some(69)), now), refused);
        assert_eq!(entry(Some(70)).judge(&syn(1001, Some(70)), now), Meaning::Reuse);
        assert_eq!(entry(Some(70)).judge(&syn(999, Some(70)), now), refused);
    }

    #[test]
    fn a_repeated_fin_is_answered_and_rst_is_not_believed() {
        let now = Instant::ZERO;
        let fin = segment(Flags::FIN | Flags::ACK, 999, Some(70));
        assert_eq!(entry(Some(70)).judge(&fin, now), Meaning::Acknowledge { restart: true });
        let rst = segment(Flags::RST, 1005, None);
        assert_eq!(entry(None).judge(&rst, now), Meaning::Ignore);
        let ack = segment(Flags::ACK, 1000, None);
        assert_eq!(entry(None).judge(&ack, now), Meaning::Ignore);
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut waits = TimeWaits::new(2);
        for seq in 1..=2 {
            assert!(waits.insert(TimeWait { snd_nxt: Seq(seq), ..entry(None) }).1.is_none());
        }
        let (place, evicted) = waits.insert(entry(None));
        assert_eq!((place, evicted.map(|entry| entry.snd_nxt)), (0, Some(Seq(1))));
    }
}
