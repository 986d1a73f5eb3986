//! How much receive window the arena's free buffers allow, and to whom.

use pmem::Arena;

/// Buffers a connection is offered though others could claim them, as it is half of its even share: without these, idle
/// connections whose windows once grew would keep others from going on. At worst a segment finds no buffer and is sent
/// again.
const LEAST_BUFFERS: usize = 2;

/// The buffers that all connections together have offered to their peers.
#[derive(Debug)]
pub(crate) struct WindowPool {
    arena: Arena,
    /// Buffers that are never offered; frames which are no payload need some.
    reserve: usize,
    offered: usize,
    /// Buffers that hold payload ahead of holes.
    early: usize,
    connections: usize,
}

/// One connection's part of the pool, in buffers.
#[derive(Debug, Default)]
pub(crate) struct Offer {
    open: u32,
    early: u32,
}

impl WindowPool {
    pub(crate) fn new(arena: Arena) -> Self {
        let reserve = (arena.buffers() / 16).min(32);
        Self { arena, reserve, offered: 0, early: 0, connections: 0 }
    }

    pub(crate) fn connection_opened(&mut self) {
        self.connections += 1;
    }

    pub(crate) fn connection_closed(&mut self, offer: &mut Offer) {
        self.set(offer, 0);
        self.set_early(offer, 0);
        self.connections -= 1;
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    #[inline]
    fn free_buffers(&self) -> usize {
        self.arena.free_buffers()
    }

    /// What decides about grants: free buffers, and those that are offered.
    pub(crate) fn level(&self) -> (usize, usize) {
        (self.free_buffers(), self.offered)
    }

    /// Buffers that a connection may offer just now: what nobody else has offered, as long as that is a fair
    /// share or at most half of it.
    pub(crate) fn grant(&self, own: &Offer) -> usize {
        let free = self.free_buffers().saturating_sub(self.reserve);
        let unclaimed = free.saturating_sub(self.offered - own.open as usize);
        let fair = free / self.connections.max(1);
        let least = fair.clamp(1, LEAST_BUFFERS).max(fair / 2);
        unclaimed.min(fair.max(unclaimed / 2)).max(least).min(free)
    }

    /// As [`grant`](Self::grant), but no more than `most`.
    #[inline]
    pub(crate) fn grant_up_to(&self, most: usize, own: &Offer) -> usize {
        let free = self.free_buffers().saturating_sub(self.reserve);
        let unclaimed = free.saturating_sub(self.offered - own.open as usize);
        // Half of that is granted whatever the share.
        if most <= unclaimed / 2 { most } else { most.min(self.grant(own)) }
    }

    /// Notes that a connection's open window takes `buffers` buffers.
    #[inline]
    pub(crate) fn set(&mut self, offer: &mut Offer, buffers: usize) {
        self.offered = self.offered - offer.open as usize + buffers;
        offer.open = buffers as u32;
    }

    /// Notes that a connection holds `buffers` buffers with payload ahead of a hole.
    pub(crate) fn set_early(&mut self, offer: &mut Offer, buffers: usize) {
        self.early = self.early - offer.early as usize + buffers;
        offer.early = buffers as u32;
    }

    /// Whether a connection that holds `held` buffers with payload ahead of a hole may take one more. Such payload is
    /// worth nothing before the hole is filled, which may be never. So all of it together takes at most half of the
    /// buffers that are free or taken by it, and once it takes a quarter, no connection more than its even share of
    /// that half. What is refused is sent again: it was not acknowledged.
    pub(crate) fn has_early_room(&self, held: usize) -> bool {
        let free = self.free_buffers().saturating_sub(self.reserve);
        let most = (free + self.early) / 2;
        let share = most / self.connections.max(1);
        self.early < most && (held < share || self.early < most / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::arena;

    #[test]
    fn what_one_has_offered_others_do_not() {
        let arena = arena(64);
        let mut pool = WindowPool::new(arena.clone());
        let usable = arena.free_buffers() - pool.reserve;
        let (mut first, mut second) = (Offer::default(), Offer::default());
        pool.connection_opened();
        assert_eq!(pool.grant(&first), usable);
        pool.connection_opened();
        assert_eq!(pool.grant(&first), usable / 2);
        pool.set(&mut first, usable / 2);
        assert_eq!(pool.grant(&second), usable / 2);
        pool.set(&mut second, usable / 2);
        // Buffers that the first one fills are no longer free, and no longer offered.
        let taken: Vec<_> = (0..usable / 2).map_while(|_| arena.take()).collect();
        pool.set(&mut first, 0);
        assert_eq!(pool.grant(&first), usable / 8, "half of an even share of what is left");
        drop(taken);
        assert_eq!(pool.grant(&first), usable / 2);
        pool.connection_closed(&mut second);
        pool.connection_closed(&mut first);
        assert_eq!((pool.offered, pool.connections), (0, 0));
    }

    /// Whatever is free, offered and asked for: the shorter way comes to the same.
    #[test]
    fn a_part_of_a_grant_is_granted_at_one_look() {
        let arena = arena(64);
        let mut pool = WindowPool::new(arena.clone());
        let mut offers: Vec<_> = (0..5).map(|_| Offer::default()).collect();
        let mut taken = Vec::new();
        for step in 0..2000_usize {
            match step % 7 {
                0 => taken.extend(arena.take()),
                1 if step % 3 == 0 => taken.clear(),
                2 if step % 5 == 0 => pool.connection_opened(),
                3 => pool.set(&mut offers[step % 5], step * 31 % 13),
                _ => {}
            }
            for offer in &offers {
                let most = step * 17 % 70;
                assert_eq!(pool.grant_up_to(most, offer), most.min(pool.grant(offer)), "step {step}");
            }
        }
    }

    #[test]
    fn more_connections_than_buffers_still_go_on() {
        let arena = arena(64);
        let mut pool = WindowPool::new(arena.clone());
        let mut offers: Vec<_> = (0..10 * arena.buffers()).map(|_| Offer::default()).collect();
        for offer in &mut offers {
            pool.connection_opened();
            pool.set(offer, pool.grant(offer));
        }
        assert_eq!(pool.grant(&Offer::default()), 1);
    }

    #[test]
    fn an_empty_arena_grants_nothing() {
        let arena = arena(64);
        let mut pool = WindowPool::new(arena.clone());
        pool.connection_opened();
        let _all: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!(pool.grant(&Offer::default()), 0);
    }
}
