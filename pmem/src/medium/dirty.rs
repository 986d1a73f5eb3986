//! What was flushed since the last fence, where a fence is some writes and not an instruction.

use std::ops::Range;

/// Ranges that there is room for from the start: what a burst flushes are two or three of them.
const RANGES: usize = 4096;

/// Ranges of whole blocks that the next fence must cover.
#[derive(Debug)]
pub(super) struct Dirty {
    ranges: Vec<Range<usize>>,
    /// So many are looked through for what can be one. There are never more than twice as many as there are blocks.
    limit: usize,
    /// A power of two.
    block_bytes: usize,
}

impl Dirty {
    /// Nothing, in blocks of so many bytes.
    pub(super) fn new(block_bytes: usize) -> Self {
        assert!(block_bytes.is_power_of_two());
        Self { ranges: Vec::with_capacity(RANGES), limit: RANGES, block_bytes }
    }

    /// Adds the blocks that hold a byte of `from..to`.
    pub(super) fn add(&mut self, from: usize, to: usize) {
        if from >= to {
            return;
        }
        let within = self.block_bytes - 1;
        let (from, to) = (from & !within, (to + within) & !within);
        // Payload and log entries come in turn, and each goes on where it was.
        let touched = self.ranges.iter_mut().rev().take(2).find(|kept| from <= kept.end && to >= kept.start);
        if let Some(kept) = touched {
            *kept = kept.start.min(from)..kept.end.max(to);
            return;
        }
        if self.ranges.len() >= self.limit {
            self.merge(0);
            self.limit = RANGES.max(2 * self.ranges.len());
        }
        self.ranges.push(from..to);
    }

    /// What was added, in order of address and without overlap; what lies no further apart than `gap_bytes` is one range.
    /// And how many bytes of them were added.
    pub(super) fn merged(&mut self, gap_bytes: usize) -> (&[Range<usize>], usize) {
        self.merge(0);
        let added_bytes = self.ranges.iter().map(Range::len).sum();
        if gap_bytes > 0 {
            self.merge(gap_bytes);
        }
        (&self.ranges, added_bytes)
    }

    /// Forgets what was added.
    pub(super) fn clear(&mut self) {
        self.ranges.clear();
        self.limit = RANGES;
    }

    fn merge(&mut self, gap_bytes: usize) {
        self.ranges.sort_unstable_by_key(|range| range.start);
        self.ranges.dedup_by(|next, kept| {
            let is_near = next.start <= kept.end + gap_bytes;
            if is_near {
                kept.end = kept.end.max(next.end);
            }
            is_near
        });
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    #[test]
    fn a_burst_of_payload_and_entries_is_two_ranges() {
        let mut dirty = Dirty::new(4096);
        for record in 0..50 {
            dirty.add((1 << 20) + record * 2176 + 100, (1 << 20) + record * 2176 + 1200);
            dirty.add(8192 + record * 64, 8192 + (record + 1) * 64);
        }
        let (payload, entries) = (1 << 20..(1 << 20) + 27 * 4096, 8192..12288);
        assert_eq!(dirty.merged(0), (&[entries.clone(), payload.clone()][..], 28 * 4096));
        let (ranges, added_bytes) = dirty.merged(2 << 20);
        assert_eq!((ranges.len(), added_bytes), (1, 28 * 4096), "what lies between is clean");
    }

    #[test]
    fn what_is_taken_covers_what_was_added_and_stays_bounded() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        for blocks in [100_u64, 100_000, 100_000_000] {
            let mut dirty = Dirty::new(512);
            let mut added = Vec::new();
            for _ in 0..20_000 {
                let from = rng.random_range(0..blocks * 512) as usize;
                let to = from + rng.random_range(0..3000);
                dirty.add(from, to);
                added.push(from..to);
                assert!(dirty.ranges.len() as u64 <= (2 * blocks).max(RANGES as u64));
            }
            let (taken, _) = dirty.merged(0);
            for range in added.iter().filter(|range| !range.is_empty()) {
                let at = taken.partition_point(|kept| kept.end <= range.start);
                let kept = &taken[at];
                assert!(kept.start <= range.start && range.end <= kept.end, "{range:?} in {kept:?}");
            }
            assert!(taken.windows(2).all(|pair| pair[0].end < pair[1].start));
            assert!(taken.iter().all(|range| range.start % 512 == 0 && range.end % 512 == 0));
        }
    }
}
