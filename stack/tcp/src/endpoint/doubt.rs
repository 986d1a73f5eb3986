//! Peers and gateways that may have moved: a connection keeps the Ethernet address that its last segment came from, and
//! where it gets no answers any more, the link is asked whether that still is the right one (RFC 9293, section 3.8.3;
//! RFC 1122, section 2.3.2.1; RFC 4861, section 7.3).

use super::{Endpoint, TimerOf};
use crate::neighbor::{Expired, Lookup};

/// Timeouts in a row before the link is asked; what a neighbor has said of itself meanwhile counts from the first on.
const PATIENCE: u8 = 2;

impl Endpoint {
    /// A connection has had no answers, so many times in a row. What a neighbor says counts only while that is so,
    /// and until the peer is heard again: a forged announcement diverts no connection that goes.
    pub(super) fn doubt(&mut self, index: u32, unanswered: u8) {
        let connection = &self.places[index as usize].connection;
        let (key, last_heard) = (connection.key, connection.last_heard());
        let (Some(mac), Some(next_hop)) = (connection.mac, self.next_hop(key.remote_ip())) else { return };
        if unanswered == 0 {
            return;
        }
        if let Some(news) = self.hearsay.since(next_hop, last_heard)
            && news != mac
        {
            self.follow(index, news);
            return;
        }
        if unanswered < PATIENCE {
            return;
        }
        match self.doubts.find(next_hop, self.now) {
            Lookup::Known(found) if found != mac => return self.follow(index, found),
            // It is where it was, or there are too many to ask for: the next timeout asks again.
            Lookup::Known(_) | Lookup::Full => return,
            Lookup::Waiting => {}
            Lookup::Ask { entry, until } => {
                self.iface.ask(key.local_ip(), next_hop, Some(mac));
                self.set_timer(TimerOf::Doubt(entry), until);
            }
        }
        let place = &mut self.places[index as usize];
        if !place.in_doubted {
            place.in_doubted = true;
            self.doubted.push(index);
        }
    }

    /// A segment that was not taken has come from elsewhere than the connection's last ones.
    pub(super) fn doubt_now(&mut self, index: u32) {
        self.doubt(index, PATIENCE);
    }

    /// Sends what a connection has in flight again, to where its peer is now.
    fn follow(&mut self, index: u32, mac: [u8; 6]) {
        let connection = &mut self.places[index as usize].connection;
        connection.mac = Some(mac);
        connection.moved();
        self.cx.counters.moved += 1;
        self.settle(index);
    }

    /// A neighbor that was asked for has answered; or, without an address, has not.
    pub(super) fn end_doubt(&mut self, ip: std::net::IpAddr, mac: Option<[u8; 6]>) {
        let mut doubted = std::mem::take(&mut self.doubted);
        doubted.retain(|&index| {
            let place = &self.places[index as usize];
            let connection = &place.connection;
            if place.used && self.next_hop(connection.key.remote_ip()) != Some(ip) {
                return true;
            }
            let elsewhere = mac.filter(|mac| place.used && connection.mac.is_some_and(|old| old != *mac));
            if let Some(mac) = elsewhere {
                self.follow(index, mac);
            }
            self.places[index as usize].in_doubted = false;
            false
        });
        self.doubted = doubted;
    }

    pub(super) fn expire_doubt(&mut self, entry: u32) {
        match self.doubts.expire(entry, self.now) {
            Expired::Nothing => {}
            Expired::AskAgain { ip, until } => {
                if let Some(source) = self.local.source_for(ip) {
                    self.iface.ask(source, ip, None);
                }
                self.set_timer(TimerOf::Doubt(entry), until);
            }
            Expired::Unreachable(ip) => {
                self.end_doubt(ip, None);
                // Connections behind a router that is gone ask for the next one at their next timeout.
                if self.iface.routers().lost(ip) {
                    self.iface.routers().try_again();
                }
            }
        }
    }
}
