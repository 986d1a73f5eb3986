//! The length of a connection's segments, and what its path takes (RFC 1191, RFC 8201, RFC 4821).

use stack_net::time::Instant;

use super::congestion::Controls;
use super::connection::{Connection, State, Traits};
use super::send_pool::SendPool;
use super::tx::Plan;
use crate::path_mtu::{LEAST_V4, LEAST_V6, Paths, shorter};

/// Segments that must follow a longer one, so that it is found out soon if that was lost.
const FOLLOWING_SEGMENTS: u32 = 3;

impl Connection {
    fn least_mtu(&self) -> u16 {
        if self.key.is_v4() { LEAST_V4 } else { LEAST_V6 }
    }

    fn header_bytes(&self) -> u16 {
        (if self.key.is_v4() { 40 } else { 60 }) + self.option_bytes() as u16
    }

    /// The length of its longest packets.
    fn mtu(&self) -> u16 {
        self.mss as u16 + self.header_bytes()
    }

    /// The length of packets that its peer and this link take.
    fn full_mtu(&self) -> u16 {
        self.full_mss + self.header_bytes()
    }

    /// Whether its path may take less than its peer, so that [`Paths`] is to be asked before it sends.
    #[inline]
    pub(crate) fn heeds_path(&self) -> bool {
        self.traits.intersects(Traits::NARROW | Traits::DIVISIBLE)
    }

    /// Whether routers may divide its packets.
    #[inline]
    pub(crate) fn is_divisible(&self) -> bool {
        self.traits.contains(Traits::DIVISIBLE)
    }

    /// Lowers the length of segments to what a path takes, and sends again what was longer; true if that changed anything.
    pub(crate) fn path_mtu(&mut self, mtu: u32) -> bool {
        let changed = self.narrow(mtu);
        if changed && self.is_synchronized() && self.state != State::SynReceived {
            // What was longer did not get through.
            self.lose_all();
        }
        changed
    }

    /// The link takes packets of IPv6 of this length, and no longer ones. What is under way may have passed before.
    pub(crate) fn link_mtu(&mut self, mtu: usize) {
        if !self.is_synchronized() || self.key.is_v4() {
            return;
        }
        let mss = mtu.saturating_sub(self.header_bytes().into()).min(self.full_mss.into());
        self.full_mss = mss as u16;
        self.mss = self.mss.min(mss as u32);
    }

    fn narrow(&mut self, mtu: u32) -> bool {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let divides = self.key.is_v4() && mtu < LEAST_V4 && !self.is_divisible();
        let mss = u32::from(mtu.max(self.least_mtu()) - self.header_bytes());
        if mss >= self.mss && !divides {
            return false;
        }
        self.mss = self.mss.min(mss);
        self.traits |= Traits::NARROW;
        self.traits.set(Traits::DIVISIBLE, divides || self.is_divisible());
        true
    }

    /// What its path may take, if segments as long as it sends seem to vanish on the way, as a timeout has just told.
    pub(crate) fn suspects_black_hole(&self) -> Option<u16> {
        let is_long = self.snd_max.since(self.snd_una) >= self.mss;
        if !is_long || !self.is_synchronized() || self.is_divisible() {
            return None;
        }
        shorter(self.mtu(), self.key.is_v4())
            .and_then(|(timeouts, mtu)| (self.retries >= timeouts).then_some(mtu))
    }

    /// Follows what is known of its path, and looks whether the path takes more: then this is a longer segment, to be sent
    /// first.
    #[cold]
    pub(crate) fn probe_path(
        &mut self,
        paths: &mut Paths,
        now: Instant,
        pool: &SendPool,
        controls: &mut Controls,
    ) -> Option<Plan> {
        if matches!(self.state, State::SynSent | State::SynReceived) {
            return None;
        }
        let destination = self.key.remote_ip();
        let Some(path) = paths.find(destination, now) else {
            // Where what was known had to make room, it is as it was found.
            self.traits.set(Traits::NARROW, self.mss < self.full_mss.into());
            if self.heeds_path() {
                paths.narrowed(destination, self.mtu(), now);
            }
            return None;
        };
        path.acknowledged(&self.key, self.snd_una, now);
        let (known, full) = (path.mtu(), self.full_mtu());
        if self.snd_max == self.snd_una {
            self.narrow(known.into());
        }
        if known.min(full) > self.mtu() && !(self.key.is_v4() && known < LEAST_V4) {
            self.mss = u32::from(known.min(full) - self.header_bytes());
            self.traits.set(Traits::NARROW, known < full);
            self.traits -= Traits::DIVISIBLE;
        }
        let mtu = path.next_to_try(full, now).filter(|&mtu| mtu > self.mtu())?;
        let plan = self.plan_longer(u32::from(mtu - self.header_bytes()), now, pool, controls)?;
        path.try_with(self.key, (plan.seq, plan.seq + plan.len), mtu, now);
        Some(plan)
    }

    /// A segment of this length, if it can be sent now and enough follows it.
    fn plan_longer(
        &mut self,
        len: u32,
        now: Instant,
        pool: &SendPool,
        controls: &mut Controls,
    ) -> Option<Plan> {
        let following = FOLLOWING_SEGMENTS * self.mss;
        let is_undisturbed = matches!(self.state, State::Established | State::CloseWait)
            && self.retries == 0
            && self.due.is_empty()
            && self.recovery.is_calm()
            && self.snd_nxt == self.snd_max;
        let fits = self.flight() + len + following <= self.most_in_flight();
        if !is_undisturbed || !fits || self.send.unsent() < len + following {
            return None;
        }
        if self.congestion.holds(now, controls) || self.send.measure(self.send.cursor(), len, pool) < len {
            return None;
        }
        Some(self.plan_data(len))
    }
}
