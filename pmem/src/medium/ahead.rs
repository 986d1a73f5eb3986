//! Reading ahead of what is needed, where the kernel is told to bring pages in one by one.

use std::{cell::Cell, ops::Range, sync::Arc};

use super::{Domain, Medium};

/// What is asked for at a time, where what follows will be needed too.
const WINDOW_BYTES: usize = 1 << 20;
/// Ranges with less than this between them are asked for as one.
const GAP_BYTES: usize = 4096;

/// Has a medium bring in what is about to be read.
pub(crate) struct Ahead {
    medium: Arc<dyn Medium>,
    /// Whether that is of use: elsewhere all is in memory.
    is_wanted: bool,
    /// The window that was asked for last, by its number.
    last: Cell<usize>,
}

impl Ahead {
    pub(crate) fn new(medium: Arc<dyn Medium>) -> Self {
        let is_wanted = matches!(medium.domain(), Domain::Msync);
        Self { medium, is_wanted, last: Cell::new(usize::MAX) }
    }

    /// Something at `offset` is about to be read, and then what lies around it.
    #[inline]
    pub(crate) fn expect(&self, offset: usize) {
        let window = offset / WINDOW_BYTES;
        if self.is_wanted && self.last.replace(window) != window {
            self.medium.will_read(window * WINDOW_BYTES, WINDOW_BYTES);
        }
    }

    /// Ranges are about to be read, and nothing else.
    pub(crate) fn expect_only(&self, ranges: impl Iterator<Item = Range<usize>>) {
        if !self.is_wanted {
            return;
        }
        let mut asked = 0..0;
        for range in ranges {
            if range.start >= asked.start && range.start <= asked.end + GAP_BYTES {
                asked.end = asked.end.max(range.end);
                continue;
            }
            self.ask(&asked);
            asked = range;
        }
        self.ask(&asked);
    }

    fn ask(&self, range: &Range<usize>) {
        // A page is brought in as soon by reading it.
        if range.len() > GAP_BYTES {
            self.medium.will_read(range.start, range.len());
        }
    }
}
