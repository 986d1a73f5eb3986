//! How many records lie before a place in the log, without a look at the log: what a trim counts by.

/// Entries between two marks, as a power of two.
const STEP_BITS: u32 = 10;

/// Records and their payload bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub records: u64,
    pub payload_bytes: u64,
}

impl Count {
    pub(crate) fn of(payload_bytes: u64) -> Self {
        Self { records: 1, payload_bytes }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        let Self { records, payload_bytes } = self;
        Self {
            records: records + other.records,
            payload_bytes: payload_bytes.wrapping_add(other.payload_bytes),
        }
    }

    pub(crate) fn less(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_sub(other.records),
            payload_bytes: self.payload_bytes.saturating_sub(other.payload_bytes),
        }
    }
}

/// All records that were appended or recovered since the shard was opened, and marks in it.
#[derive(Debug)]
pub(crate) struct Tally {
    /// By every so many entries, what lies before: that of entry `n * step` is at `n mod marks`.
    marks: Box<[Count]>,
    step_bits: u32,
    /// The entry behind the last that was counted.
    end: u64,
    total: Count,
}

impl Tally {
    /// For a log of so many slots, a power of two, that begins at `head`.
    pub(crate) fn new(slots: u64, head: u64) -> Self {
        let step_bits = STEP_BITS.min(slots.trailing_zeros());
        // One more than there are in the log: its ends may lie in the same step of two laps.
        let marks = vec![Count::default(); (slots >> step_bits) as usize + 1].into();
        Self { marks, step_bits, end: head, total: Count::default() }
    }

    /// Counts the record that takes these entries. Between the last one and it there is none.
    #[inline]
    pub(crate) fn add(&mut self, seq: u64, entries: u64, count: Count) {
        if seq != self.end {
            self.go_on(seq);
        }
        self.total = self.total.plus(count);
        self.go_on(seq + entries);
    }

    /// There is no record from the last one up to this entry.
    #[inline]
    pub(crate) fn go_on(&mut self, to: u64) {
        if (self.end ^ to) >> self.step_bits != 0 {
            self.mark(to);
        }
        self.end = to;
    }

    /// Sets the marks behind the last entry that was counted, up to this one.
    #[cold]
    fn mark(&mut self, to: u64) {
        for mark in (self.end >> self.step_bits) + 1..=to >> self.step_bits {
            let place = self.place(mark);
            self.marks[place] = self.total;
        }
    }

    /// The mark at or before an entry: where it stands, and what lies before that.
    pub(crate) fn before(&self, seq: u64) -> (u64, Count) {
        let mark = seq >> self.step_bits;
        (mark << self.step_bits, self.marks[self.place(mark)])
    }

    /// Counts the record at `seq` no longer.
    pub(crate) fn take_out(&mut self, seq: u64, count: Count) {
        self.total = self.total.less(count);
        for mark in (seq >> self.step_bits) + 1..=self.end >> self.step_bits {
            let place = self.place(mark);
            self.marks[place] = self.marks[place].less(count);
        }
    }

    fn place(&self, mark: u64) -> usize {
        (mark % self.marks.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The count before each entry, over several laps, by the nearest mark and by all records.
    #[test]
    fn each_mark_is_the_sum_of_the_records_before_it() {
        let step = 1 << STEP_BITS;
        let slots = 4 * step;
        let mut tally = Tally::new(slots, 1);
        let mut records = Vec::new();
        let (mut seq, mut state) = (1, 7u64);
        while seq < 3 * slots {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let entries = [1, 1, 2, 700, 3000][(state >> 60) as usize % 5];
            let count = if state >> 40 & 7 == 0 { Count::default() } else { Count::of(entries * 10) };
            tally.add(seq, entries, count);
            records.push((seq, count));
            if state >> 50 & 15 == 0 && count != Count::default() {
                tally.take_out(seq, count);
                records.last_mut().unwrap().1 = Count::default();
            }
            seq += entries;
            for at in [seq, seq - 1, seq.saturating_sub(slots / 2).max(1)] {
                let (mark, found) = tally.before(at);
                let before = records.iter().filter(|(first, _)| *first < mark);
                assert_eq!(found, before.fold(Count::default(), |sum, (_, count)| sum.plus(*count)), "{at}");
                assert!(mark <= at && at < mark + step);
            }
        }
    }
}
