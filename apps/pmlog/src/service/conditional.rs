//! Appends that name the number which they are to get: done once, however often a client has to try.
//!
//! The number is durable with the record, so that it tells whether an append was done whose reply was lost. What it tells is
//! therefore said only once it is durable itself: a refusal waits for the commit of what it goes by, as a receipt does.

use pmem::{Durable, Pending, Receipt};

use super::{common::Counters, reply::Content};
use crate::http::Refusal;

/// What a conditional append has come to.
#[derive(Debug)]
pub(super) enum Conditional {
    /// It is appended, and the next record gets this number.
    Appended(Pending, u64),
    /// It is not, since the next record gets this number, which is not the one that was named.
    Refused(u64, Refusal),
}

impl Conditional {
    /// What is said once `durable` covers it; itself if that does not.
    pub(super) fn confirm(self, durable: &Durable, counters: &mut Counters) -> Result<Content, Self> {
        match self {
            Self::Appended(pending, next) => match durable.confirm(pending) {
                Ok(receipt) => {
                    counters.appended_records += 1;
                    counters.appended_bytes += receipt.len;
                    Ok(Content::AppendedAs(Box::new(Numbered { receipt, next })))
                }
                Err(pending) => Err(Self::Appended(pending, next)),
            },
            Self::Refused(next, refusal) if durable.reaches(next) => {
                counters.refused += 1;
                Ok(Content::Refused(refusal))
            }
            refused @ Self::Refused(..) => Err(refused),
        }
    }
}

/// A durable record that was appended under the number that its client named.
#[derive(Debug)]
pub(super) struct Numbered {
    pub(super) receipt: Receipt,
    /// The number that the next record gets.
    pub(super) next: u64,
}
