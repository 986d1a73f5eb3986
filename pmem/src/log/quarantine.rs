//! Log entries that hold no readable record: counted, passed over, and never served.
//!
//! One bit for each slot of the log says whether its entry is one of them, so that a store full of damage takes no more
//! memory than a sound one and a 512th of its log. What is wrong is kept in words for the first [`MAX_NAMED`] runs.

use std::fmt;

use crate::format::entry::EntryFault;

/// Runs of damaged entries whose fault is kept. Those beyond are quarantined all the same, and counted;
/// [`Snapshot::scan`](crate::Snapshot::scan) names them all.
pub const MAX_NAMED: usize = 1024;

/// A record that is in the log and cannot be read, or a run of entries that belong to no readable record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quarantine {
    /// The record's number, or the first of the entries.
    pub seq: u64,
    /// Entries that it takes.
    pub entries: u64,
    /// The entry that is wrong.
    pub entry: u64,
    /// What is wrong with it.
    pub fault: EntryFault,
}

impl Quarantine {
    pub(crate) fn new(seq: u64, entries: u64, entry: u64, fault: EntryFault) -> Self {
        Self { seq, entries, entry, fault }
    }

    fn end(&self) -> u64 {
        self.seq + self.entries
    }
}

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entries {
            1 => write!(f, "record {} is damaged", self.seq)?,
            entries => write!(f, "record {} is damaged ({entries} log entries)", self.seq)?,
        }
        write!(f, ": log entry {}: {}", self.entry, self.fault)
    }
}

/// All quarantined entries of a shard.
#[derive(Debug, Default)]
pub(crate) struct Quarantined {
    slots: u64,
    /// A bit for each slot; empty while nothing is quarantined.
    bits: Vec<u64>,
    /// How many are set.
    entries: u64,
    /// In the order of their numbers, without overlaps.
    runs: Vec<Quarantine>,
    /// Runs that are not in `runs`.
    unnamed: u64,
}

impl Quarantined {
    /// For a log of so many slots, a power of two and at least 64.
    pub(crate) fn new(slots: u64) -> Self {
        Self { slots, ..Self::default() }
    }

    /// Runs of damaged entries, and the entries in them.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.runs.len() as u64 + self.unnamed, self.entries)
    }

    /// The runs whose fault is kept.
    pub(crate) fn runs(&self) -> &[Quarantine] {
        &self.runs
    }

    /// Adds a run, of which no entry is in quarantine yet.
    pub(crate) fn add(&mut self, run: Quarantine) {
        if self.bits.is_empty() {
            self.bits = vec![0; (self.slots / 64) as usize];
        }
        for seq in run.seq..run.end() {
            let (word, bit) = self.bit_of(seq);
            self.entries += u64::from(self.bits[word] & bit == 0);
            self.bits[word] |= bit;
        }
        if self.runs.len() < MAX_NAMED {
            let place = self.runs.partition_point(|other| other.seq < run.seq);
            self.runs.insert(place, run);
        } else {
            self.unnamed += 1;
        }
    }

    /// Whether an entry, which must be live, is in quarantine.
    #[inline]
    pub(crate) fn holds(&self, seq: u64) -> bool {
        if self.entries == 0 {
            return false;
        }
        let (word, bit) = self.bit_of(seq);
        self.bits[word] & bit != 0
    }

    /// Why an entry, which must be live, is in quarantine, if it is.
    pub(crate) fn get(&self, seq: u64) -> Option<Quarantine> {
        if !self.holds(seq) {
            return None;
        }
        let place = self.runs.partition_point(|run| run.end() <= seq);
        let named = self.runs.get(place).filter(|run| run.seq <= seq).copied();
        Some(named.unwrap_or(Quarantine::new(seq, 1, seq, EntryFault::Unlisted)))
    }

    /// Whether so many live entries may be one run: the one that is named there, or entries of which none is named.
    pub(crate) fn is_run(&self, seq: u64, entries: u64) -> bool {
        let Some(end) = seq.checked_add(entries).filter(|_| entries > 0) else { return false };
        let place = self.runs.partition_point(|run| run.end() <= seq);
        match self.runs.get(place).filter(|run| run.seq < end) {
            Some(run) => (run.seq, run.entries) == (seq, entries),
            None => (seq..end).all(|seq| self.holds(seq)),
        }
    }

    /// The first entry from `from` on that is not in quarantine; `to` if all before it are.
    pub(crate) fn skip(&self, from: u64, to: u64) -> u64 {
        let mut seq = from;
        while seq < to && self.holds(seq) {
            let (word, _) = self.bit_of(seq);
            // Whole words at a time: runs may be as long as the log.
            seq += if seq.is_multiple_of(64) && self.bits[word] == u64::MAX { 64 } else { 1 };
        }
        seq.min(to)
    }

    /// Takes entries out of quarantine: they are trimmed, or dropped.
    pub(crate) fn forget(&mut self, from: u64, to: u64) {
        if self.entries == 0 {
            return;
        }
        // Whole words at a time: a trim may be as long as the log.
        let mut seq = from;
        while seq < to {
            let (word, _) = self.bit_of(seq);
            let begin = seq % 64;
            let count = (64 - begin).min(to - seq);
            let mask = u64::MAX >> (64 - count) << begin;
            self.entries -= u64::from((self.bits[word] & mask).count_ones());
            self.bits[word] &= !mask;
            seq += count;
        }
        let first = self.runs.partition_point(|run| run.end() <= from);
        let last = self.runs.partition_point(|run| run.end() <= to);
        self.runs.drain(first..last);
        if let Some(run) = self.runs.get_mut(first).filter(|run| run.seq < to) {
            run.entries = run.end() - to;
            run.seq = to;
        }
        if self.entries == 0 {
            self.unnamed = 0;
        }
    }

    fn bit_of(&self, seq: u64) -> (usize, u64) {
        let slot = seq % self.slots;
        ((slot / 64) as usize, 1 << (slot % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seq: u64, entries: u64) -> Quarantine {
        Quarantine::new(seq, entries, seq, EntryFault::Checksum)
    }

    #[test]
    fn entries_are_held_from_their_quarantine_to_their_trim() {
        let mut all = Quarantined::new(128);
        assert!(!all.holds(7) && all.bits.is_empty());
        all.add(run(300, 2));
        all.add(run(260, 30));
        assert_eq!(all.counts(), (2, 32));
        assert_eq!((all.skip(260, 400), all.skip(259, 400), all.skip(262, 270)), (290, 259, 270));
        assert_eq!(all.get(301), Some(run(300, 2)));
        assert_eq!(all.get(290), None);
        all.forget(250, 270);
        assert_eq!(
            (all.get(275).map(|run| (run.seq, run.entries)), all.counts()),
            (Some((270, 20)), (2, 22))
        );
        all.forget(270, 302);
        assert_eq!((all.counts(), all.runs().len()), ((0, 0), 0));
    }

    #[test]
    fn what_is_forgotten_is_just_the_range_wherever_it_begins_and_ends() {
        let slots = 256;
        for (from, to) in
            [(0, 1), (63, 64), (63, 65), (1, 64), (64, 128), (64, 192), (70, 75), (200, 300), (256, 512)]
        {
            let mut all = Quarantined::new(slots);
            (256..512).for_each(|seq| all.add(run(seq, 1)));
            all.forget(from + 256, to + 256);
            let is_forgotten = |seq: u64| (from..to).any(|gone| gone % slots == seq % slots);
            for seq in 256..512 {
                assert_eq!(all.holds(seq), !is_forgotten(seq), "{seq} of {from}..{to}");
            }
            assert_eq!(all.counts().1, slots - (to - from).min(slots), "{from}..{to}");
        }
    }

    #[test]
    fn more_runs_than_are_named_are_held_and_counted() {
        let slots = 4 * MAX_NAMED as u64;
        let mut all = Quarantined::new(slots);
        for seq in 0..slots / 2 {
            all.add(run(2 * seq, 1));
        }
        assert_eq!(all.runs().len(), MAX_NAMED);
        assert_eq!(all.counts(), (slots / 2, slots / 2));
        for seq in 0..slots {
            assert_eq!(all.holds(seq), seq % 2 == 0);
        }
        assert_eq!(all.get(slots - 2).map(|run| run.fault), Some(EntryFault::Unlisted));
        all.forget(0, slots);
        assert_eq!(all.counts(), (0, 0));
    }
}
