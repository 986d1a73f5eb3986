//! What some connections have for a while, of a number that bounds how many may have it at a time.

/// Boxes of `T`, which connections take and give back. Each is made when those before it are taken, so that memory is held
/// for as many as were ever needed at a time, and never for more than the most; a box moves as one pointer.
#[derive(Debug)]
pub(super) struct Spares<T> {
    unused: Vec<Box<T>>,
    unmade: usize,
    make: fn() -> T,
}

impl<T> Spares<T> {
    pub(super) fn new(most: usize, make: fn() -> T) -> Self {
        Self { unused: Vec::with_capacity(most), unmade: most, make }
    }

    /// How many may still be taken.
    pub(super) fn len(&self) -> usize {
        self.unused.len() + self.unmade
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn take(&mut self) -> Option<Box<T>> {
        self.unused.pop().or_else(|| {
            self.unmade = self.unmade.checked_sub(1)?;
            Some(Box::new((self.make)()))
        })
    }

    pub(super) fn give_back(&mut self, spare: Box<T>) {
        self.unused.push(spare);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_made_than_are_needed_at_a_time() {
        let mut spares = Spares::new(3, || [0u8; 8]);
        for _ in 0..10 {
            let taken: Vec<_> = (0..2).map_while(|_| spares.take()).collect();
            assert_eq!((taken.len(), spares.len()), (2, 1));
            taken.into_iter().for_each(|spare| spares.give_back(spare));
        }
        assert_eq!((spares.unused.len(), spares.unmade), (2, 1));
        let taken: Vec<_> = std::iter::from_fn(|| spares.take()).collect();
        assert_eq!(taken.len(), 3);
        assert!(spares.is_empty());
    }
}
