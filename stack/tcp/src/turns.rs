//! Those who wait for their turn, by number.

/// A queue in which each number stands once at most, so that it never has more than there are numbers.
#[derive(Debug)]
pub(crate) struct Turns {
    /// As many as a power of two.
    places: Box<[u32]>,
    /// How many have had their turn, and how many were ever added, modulo 2^32.
    first: u32,
    end: u32,
}

impl Turns {
    /// Room for so many numbers.
    pub(crate) fn new(numbers: usize) -> Self {
        Self { places: vec![0; numbers.next_power_of_two()].into(), first: 0, end: 0 }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.end.wrapping_sub(self.first) as usize
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.first == self.end
    }

    #[inline]
    fn place(&self, at: u32) -> usize {
        at as usize & (self.places.len() - 1)
    }

    /// Whose turn it is.
    #[inline]
    pub(crate) fn front(&self) -> Option<u32> {
        if self.is_empty() {
            return None;
        }
        self.places.get(self.place(self.first)).copied()
    }

    /// The turn of the first is over.
    #[inline]
    pub(crate) fn pop_front(&mut self) {
        if !self.is_empty() {
            self.first = self.first.wrapping_add(1);
        }
    }

    /// Adds one that does not wait yet.
    #[inline]
    pub(crate) fn push_back(&mut self, number: u32) {
        debug_assert!(
            self.len() < self.places.len(),
            "{number} waits twice, or is none of those there is room for"
        );
        let at = self.place(self.end);
        if let Some(place) = self.places.get_mut(at) {
            *place = number;
            self.end = self.end.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_out_in_the_order_in_which_they_came() {
        let mut turns = Turns::new(5);
        (turns.first, turns.end) = (u32::MAX - 3, u32::MAX - 3);
        let mut waiting = std::collections::VecDeque::new();
        for step in 0..1_000u32 {
            if waiting.len() < 5 && step % 7 != 3 {
                turns.push_back(step);
                waiting.push_back(step);
            } else {
                turns.pop_front();
                waiting.pop_front();
            }
            assert_eq!((turns.front(), turns.len()), (waiting.front().copied(), waiting.len()));
            assert_eq!(turns.is_empty(), waiting.is_empty());
        }
    }

    #[test]
    fn nobody_has_a_turn_where_nobody_waits() {
        let mut turns = Turns::new(1);
        turns.pop_front();
        assert_eq!((turns.front(), turns.len()), (None, 0));
        turns.push_back(7);
        turns.pop_front();
        assert_eq!((turns.front(), turns.len()), (None, 0));
    }
}
