//! A record on its way out of the log: its reply's head, and then its bytes, from where they lie.

use std::collections::VecDeque;
use std::io::IoSlice;

use pmem::{CheckedPieces, Piece, Shard};
use pmlog::http::Refusal;

use super::reply;

/// What of a reply with a record is still to be sent.
pub(super) struct Sending {
    head: Vec<u8>,
    /// Of the first of `head` and `ready`, so many bytes are sent.
    sent: usize,
    /// Pieces that are checked.
    ready: VecDeque<Piece>,
    rest: CheckedPieces,
}

/// The record on the medium is not what it was: the rest of a reply cannot be sent.
#[derive(Debug)]
pub(super) struct Altered;

impl Sending {
    /// The reply with a record.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn of(shard: &Shard, seq: u64) -> Result<Self, Refusal> {
        let (head, next) = (shard.head_seq(), shard.next_seq());
        let record = shard.record(seq).ok_or(Refusal::NoRecord { seq, head, next })?;
        Ok(Self {
            head: reply::record(record.len()).into_bytes(),
            sent: 0,
            ready: VecDeque::new(),
            rest: record.into_checked_pieces(),
        })
    }

    /// What is to be sent next: nothing once all is sent. What of it was, [`sent`](Self::sent) is told.
    ///
    /// # Errors
    /// [`Altered`]; nothing more can be sent.
    pub(super) fn next<const N: usize>(&mut self) -> Result<Slices<'_, N>, Altered> {
        while self.ready.len() < N {
            match self.rest.next() {
                Some(Ok(piece)) => self.ready.push_back(piece),
                Some(Err(_)) => return Err(Altered),
                None => break,
            }
        }
        let head = Some(&self.head[..]).filter(|head| !head.is_empty());
        let pieces = head.into_iter().chain(self.ready.iter().map(Piece::bytes));
        let mut slices = Slices { slices: [IoSlice::new(&[]); N], count: 0 };
        for (place, piece) in slices.slices.iter_mut().zip(pieces) {
            *place = IoSlice::new(if slices.count == 0 { &piece[self.sent..] } else { piece });
            slices.count += 1;
        }
        Ok(slices)
    }

    /// So many bytes of what [`next`](Self::next) gave were sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.sent += count;
        if !self.head.is_empty() {
            if self.sent < self.head.len() {
                return;
            }
            self.sent -= self.head.len();
            self.head = Vec::new();
        }
        while let Some(first) = self.ready.front()
            && self.sent >= first.bytes().len()
        {
            self.sent -= first.bytes().len();
            self.ready.pop_front();
        }
    }
}

/// Up to `N` pieces of a reply, none of them empty.
pub(super) struct Slices<'a, const N: usize> {
    slices: [IoSlice<'a>; N],
    count: usize,
}

impl<'a, const N: usize> std::ops::Deref for Slices<'a, N> {
    type Target = [IoSlice<'a>];

    fn deref(&self) -> &[IoSlice<'a>] {
        &self.slices[..self.count]
    }
}

#[cfg(test)]
mod tests {
    use pmem::{MEMORY, Options, Region};

    use super::*;

    #[test]
    fn a_record_goes_out_whole_whatever_part_is_taken() {
        let options = Options { size: Some(4 << 20), ..Options::default() };
        let mut shard = Region::open(MEMORY, &options).expect("memory").into_shard().expect("new");
        for len in [0, 1, 40, 5_000, 100_000] {
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let pending = shard.append_copy(&bytes).expect("there is room");
            let seq = shard.commit().expect("memory does not fail").confirm(pending).expect("its own").seq;
            let expected = [reply::record(len as u64).as_bytes(), &bytes].concat();
            for most in [1, 7, 2_048, 10_000, usize::MAX] {
                let (mut sending, mut out) = (Sending::of(&shard, seq).expect("it is there"), Vec::new());
                loop {
                    let slices = sending.next::<4>().expect("unaltered");
                    let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                    let count = all.len().min(most);
                    if count == 0 {
                        break;
                    }
                    out.extend_from_slice(&all[..count]);
                    sending.sent(count);
                }
                assert!(out == expected, "{len} bytes, {most} at a time");
            }
        }
        assert_eq!(Sending::of(&shard, 1 << 40).err().map(|refusal| refusal.status().code), Some(404));
    }
}
