//! What clients were told, and what the store may hold.

use std::collections::{BTreeMap, BTreeSet};

use pmem::{Lookup, Shard};

/// A record's shard and number.
pub type Name = (u32, u64);

/// Kept by the clients, and read by whoever checks the store.
#[derive(Default)]
pub struct Ledger {
    /// What was sent, by its number: who has sent a body knows it again.
    sent: BTreeSet<u64>,
    /// What was acknowledged and is not trimmed for sure.
    acknowledged: BTreeMap<Name, u64>,
    /// Of each shard: below that records may be gone, and are gone.
    asked: BTreeMap<u32, u64>,
    trimmed: BTreeMap<u32, u64>,
    /// Records that something was done to behind the store's back.
    rotten: BTreeSet<Name>,
    /// Of each shard, how far what is damaged has a name.
    vouched: BTreeMap<u32, u64>,
    pub refused: u64,
    pub reads: u64,
}

/// A body that says which one it is.
pub fn body(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 24
    };
    let len = match next() % 8 {
        0 => 8 + next() % 24,
        1 | 2 => 33 + next() % 400,
        3 => 1448 + next() % 6000,
        _ => 512 + next() % 900,
    };
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize_with(len as usize, || next() as u8);
    bytes
}

impl Ledger {
    /// Somebody is about to send a body.
    pub fn send(&mut self, number: u64) {
        self.sent.insert(number);
    }

    pub fn acknowledge(&mut self, name: Name, number: u64) {
        let before = self.acknowledged.insert(name, number);
        assert_eq!(before, None, "record {name:?} was acknowledged for another body before");
    }

    pub fn count(&self) -> usize {
        self.acknowledged.len()
    }

    /// One of the records that were acknowledged.
    pub fn pick(&self, chance: u64) -> Option<(Name, u64)> {
        let at = chance as usize % self.acknowledged.len().max(1);
        self.acknowledged.iter().nth(at).map(|(&name, &number)| (name, number))
    }

    /// Somebody asks for a shard's records below a number to be trimmed.
    pub fn ask(&mut self, (shard, before): Name) {
        let asked = self.asked.entry(shard).or_default();
        *asked = before.max(*asked);
    }

    /// That was done.
    pub fn trim(&mut self, (shard, head): Name) {
        let trimmed = self.trimmed.entry(shard).or_default();
        *trimmed = head.max(*trimmed);
        self.acknowledged.retain(|&(other, seq), _| other != shard || seq >= head);
    }

    pub fn may_be_trimmed(&self, (shard, seq): Name) -> bool {
        self.asked.get(&shard).is_some_and(|&asked| seq < asked)
    }

    pub fn rot(&mut self, name: Name) {
        self.rotten.insert(name);
    }

    pub fn is_rotten(&self, name: Name) -> bool {
        self.rotten.contains(&name)
    }

    pub fn vouch(&mut self, shard: u32, next: u64) {
        let vouched = self.vouched.entry(shard).or_default();
        *vouched = next.max(*vouched);
    }

    pub fn is_vouched(&self, shard: u32, end: u64) -> bool {
        self.vouched.get(&shard).is_some_and(|&vouched| end <= vouched)
    }

    /// Checks a shard as it is found when the server starts, or ends.
    pub fn check(&self, index: u32, shard: &Shard) {
        let (head, next) = (shard.head_seq(), shard.committed_seq());
        let of = |bounds: &BTreeMap<u32, u64>| bounds.get(&index).copied().unwrap_or(1).max(1);
        let (trimmed, asked) = (of(&self.trimmed), of(&self.asked));
        assert!(
            head >= trimmed && head <= asked.max(1),
            "shard {index} begins at {head}, not {trimmed}..={asked}"
        );
        for (&(_, seq), &number) in self.acknowledged.range((index, head)..(index + 1, 0)) {
            match shard.lookup(seq) {
                Lookup::Live(record) => {
                    let is_equal = record.to_vec() == body(number);
                    assert!(is_equal || self.is_rotten((index, seq)), "record {index}-{seq} has other bytes");
                }
                found => assert!(
                    self.is_rotten((index, seq)),
                    "record {index}-{seq}, which was acknowledged, is {found:?} of {head}..{next}"
                ),
            }
        }
        for info in shard.records(0).filter(|info| !self.is_rotten((index, info.seq))) {
            let bytes = shard.record(info.seq).expect("it is listed").to_vec();
            let number = bytes.first_chunk().map(|number| u64::from_le_bytes(*number));
            let is_sent = number.is_some_and(|number| self.sent.contains(&number) && bytes == body(number));
            assert!(is_sent, "record {index}-{} is nobody's", info.seq);
        }
        for run in shard.quarantines() {
            let is_rotten = (run.seq..run.seq + run.entries).any(|seq| self.is_rotten((index, seq)));
            assert!(is_rotten, "{run} and nobody has touched it");
        }
    }
}
