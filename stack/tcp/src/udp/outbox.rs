//! Datagrams on their way out: those that the device has yet to take, and those whose next hop is being asked for.

use std::collections::VecDeque;
use std::net::IpAddr;

use arrayvec::ArrayVec;
use pmem::Extent;

use crate::flow::FlowKey;
use crate::net::MAX_DATAGRAM_PIECES;

/// Most datagrams that wait for neighbors to say where they are, and for one of them. Of more the oldest is dropped (RFC
/// 4861, section 7.2.2; RFC 1122, section 2.3.2.2).
const MAX_UNRESOLVED: usize = 64;
const MAX_UNRESOLVED_OF_ONE: usize = 8;

/// What waits to be sent, in memory taken at once.
#[derive(Debug)]
pub(crate) struct Outbox {
    places: Box<[Outgoing]>,
    free: Vec<u16>,
    /// In the order in which they leave.
    ready: VecDeque<u16>,
    unresolved: VecDeque<Unresolved>,
}

/// A datagram to send.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub key: FlowKey,
    pub mac: [u8; 6],
    pub text: Vec<u8>,
    pub pieces: ArrayVec<Extent, MAX_DATAGRAM_PIECES>,
}

#[derive(Clone, Copy, Debug)]
struct Unresolved {
    place: u16,
    next_hop: IpAddr,
}

impl Outbox {
    /// Room for so many datagrams, with so many copied bytes in each.
    pub(crate) fn new(places: usize, text_bytes: usize) -> Self {
        let place = || Outgoing {
            key: FlowKey::NONE,
            mac: [0; 6],
            text: Vec::with_capacity(text_bytes),
            pieces: ArrayVec::new(),
        };
        Self {
            places: (0..places).map(|_| place()).collect(),
            free: (0..places as u16).rev().collect(),
            ready: VecDeque::with_capacity(places),
            unresolved: VecDeque::with_capacity(MAX_UNRESOLVED),
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes a place for a datagram; none if all are taken. There are no more pieces than one has.
    pub(crate) fn put(&mut self, key: FlowKey, text: &[u8], pieces: &[Extent]) -> Option<u16> {
        let place = self.free.pop()?;
        let outgoing = &mut self.places[usize::from(place)];
        outgoing.key = key;
        outgoing.text.clear();
        outgoing.text.extend_from_slice(text);
        outgoing.pieces.extend(pieces.iter().filter(|piece| !piece.is_empty()).cloned());
        Some(place)
    }

    /// Has a datagram leave for that Ethernet address.
    pub(crate) fn send(&mut self, place: u16, mac: [u8; 6]) {
        self.places[usize::from(place)].mac = mac;
        self.ready.push_back(place);
    }

    /// Has a datagram wait until its next hop says where it is. False if another had to go for it.
    pub(crate) fn wait(&mut self, place: u16, next_hop: IpAddr) -> bool {
        let mut of_same = self.unresolved.iter().enumerate().filter(|(_, other)| other.next_hop == next_hop);
        let oldest = of_same.next().map(|(at, _)| at);
        let is_one_too_many = of_same.count() + 1 >= MAX_UNRESOLVED_OF_ONE;
        let evicted = match oldest {
            Some(oldest) if is_one_too_many => self.unresolved.remove(oldest),
            _ if self.unresolved.len() == MAX_UNRESOLVED => self.unresolved.pop_front(),
            _ => None,
        };
        if let Some(evicted) = evicted {
            self.vacate(evicted.place);
        }
        self.unresolved.push_back(Unresolved { place, next_hop });
        evicted.is_none()
    }

    /// A next hop has said where it is.
    pub(crate) fn resolve(&mut self, next_hop: IpAddr, mac: [u8; 6]) {
        for _ in 0..self.unresolved.len() {
            let Some(unresolved) = self.unresolved.pop_front() else { return };
            if unresolved.next_hop == next_hop {
                self.send(unresolved.place, mac);
            } else {
                self.unresolved.push_back(unresolved);
            }
        }
    }

    /// A next hop does not answer. Returns how many datagrams were dropped for it.
    pub(crate) fn give_up(&mut self, next_hop: IpAddr) -> usize {
        let before = self.unresolved.len();
        for _ in 0..before {
            let Some(unresolved) = self.unresolved.pop_front() else { break };
            if unresolved.next_hop == next_hop {
                self.vacate(unresolved.place);
            } else {
                self.unresolved.push_back(unresolved);
            }
        }
        before - self.unresolved.len()
    }

    /// Whether any can leave.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The datagram that leaves next.
    pub(crate) fn front(&self) -> Option<&Outgoing> {
        self.ready.front().map(|&place| &self.places[usize::from(place)])
    }

    /// Drops the datagram that [`front`](Self::front) gave: it is sent.
    pub(crate) fn pop(&mut self) {
        if let Some(place) = self.ready.pop_front() {
            self.vacate(place);
        }
    }

    fn vacate(&mut self, place: u16) {
        self.places[usize::from(place)].pieces.clear();
        self.free.push(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn put(outbox: &mut Outbox, text: &[u8]) -> u16 {
        outbox.put(FlowKey::NONE, text, &[]).unwrap()
    }

    fn texts(outbox: &mut Outbox) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| {
            let text = outbox.front()?.text.clone();
            outbox.pop();
            Some(text)
        })
        .collect()
    }

    #[test]
    fn a_silent_neighbor_keeps_a_few_places_and_the_oldest_makes_room() {
        let mut outbox = Outbox::new(256, 64);
        let kept: Vec<_> = (0..20_u8)
            .map(|n| {
                let place = put(&mut outbox, &[n]);
                outbox.wait(place, hop(1))
            })
            .collect();
        assert_eq!(kept.iter().filter(|kept| **kept).count(), MAX_UNRESOLVED_OF_ONE);
        for n in 0..200 {
            let place = put(&mut outbox, b"x");
            outbox.wait(place, hop(2 + n % 40));
        }
        assert_eq!(outbox.unresolved.len(), MAX_UNRESOLVED);
        assert_eq!(outbox.free.len(), 256 - MAX_UNRESOLVED);
    }

    #[test]
    fn what_waits_for_a_neighbor_leaves_in_order_and_what_waits_for_another_stays() {
        let mut outbox = Outbox::new(8, 64);
        for (n, last) in [(0, 1), (1, 2), (2, 1), (3, 2)] {
            let place = put(&mut outbox, &[n]);
            assert!(outbox.wait(place, hop(last)));
        }
        outbox.resolve(hop(1), [1; 6]);
        assert_eq!(texts(&mut outbox), [[0], [2]]);
        assert_eq!(outbox.give_up(hop(2)), 2);
        outbox.resolve(hop(2), [2; 6]);
        assert!(texts(&mut outbox).is_empty() && outbox.free.len() == 8);
    }
}
