//! Replies: what is owed to a client, and how it is sent in pieces no larger than the network takes.

use pmem::{Durable, Extent, Pending, Receipt, Shard, Trimmed};
use stack::net::{ConnId, Net, SendError};

use super::{
    Common,
    render::{Health, Manner},
    stream::{Listing, Sending},
};
use crate::http::{Ask, Refusal};

/// One reply that is owed, in the order of the requests.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) content: Content,
    manner: Manner,
}

/// What a reply says.
#[derive(Debug)]
pub(super) enum Content {
    /// `100 Continue`: the body is wanted.
    Continue,
    /// An append that is not durable yet. It holds up what is behind it.
    Waiting(Pending),
    /// An append that is durable: only a [`Durable`] makes the receipt.
    Appended(Receipt),
    /// The one-line reason why not.
    Refused(Refusal),
    /// To be looked at once all earlier replies are out, so that it sees what they did.
    Asked(Ask),
    /// The store was trimmed.
    Trimmed(Trimmed),
    /// How the store is, at the time of sending.
    Health,
    /// A record on its way.
    Record(Sending),
    /// A listing on its way.
    Listing(Listing),
}

/// How far sending a reply came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The network has all of it.
    Whole,
    /// It waits: for durability, or for the connection to become writable.
    Blocked,
    /// It can no longer be sent to its end.
    Broken,
}

impl From<SendError> for Progress {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Full => Self::Blocked,
            SendError::Closed => Self::Broken,
        }
    }
}

impl Reply {
    pub(super) fn new(content: Content, manner: Manner) -> Self {
        Self { content, manner }
    }

    /// Whether later requests may be read and acted on before this reply is out. They may not when this one
    /// has yet to look at the store.
    pub(super) fn lets_pass(&self) -> bool {
        !matches!(
            self.content,
            Content::Asked(_) | Content::Health | Content::Record(_) | Content::Listing(_)
        )
    }

    /// Turns an append that `durable` covers into its receipt.
    pub(super) fn confirm(&mut self, durable: &Durable, common: &mut Common) {
        // The placeholder is replaced on the next line.
        self.content = match std::mem::replace(&mut self.content, Content::Continue) {
            Content::Waiting(pending) => match durable.confirm(pending) {
                Ok(receipt) => {
                    common.counters.appended_records += 1;
                    common.counters.appended_bytes += receipt.len;
                    Content::Appended(receipt)
                }
                Err(pending) => Content::Waiting(pending),
            },
            content => content,
        };
    }

    /// Gives the network what it takes of this reply; also says how many bytes that was.
    pub(super) fn send<N: Net>(
        &mut self,
        conn: ConnId,
        common: &mut Common,
        net: &mut N,
        shard: &mut Shard,
        durable: Option<&Durable>,
    ) -> (Progress, u64) {
        let mut out = Out { net, conn, sent_bytes: 0 };
        let progress = self.send_to(&mut out, common, shard, durable).err().unwrap_or(Progress::Whole);
        let sent_bytes = out.sent_bytes;
        common.counters.sent_bytes += sent_bytes;
        (progress, sent_bytes)
    }

    fn send_to<N: Net>(
        &mut self,
        out: &mut Out<'_, N>,
        common: &mut Common,
        shard: &mut Shard,
        durable: Option<&Durable>,
    ) -> Result<(), Progress> {
        if let Content::Asked(ask) = self.content {
            self.content = answer(ask, common, shard);
        }
        let rendered = &mut common.rendered;
        match &mut self.content {
            Content::Continue => out.text(b"HTTP/1.1 100 Continue\r\n\r\n"),
            Content::Waiting(_) => Err(Progress::Blocked),
            Content::Appended(receipt) => {
                let text = rendered.appended(receipt, self.manner);
                match durable {
                    Some(durable) => out.proven(durable, text),
                    None => out.text(text),
                }
            }
            Content::Refused(refusal) => out.text(rendered.refused(refusal, self.manner)),
            Content::Trimmed(trimmed) => out.text(rendered.trimmed(trimmed, self.manner)),
            Content::Health => {
                let health = Health::of(&common.domain, common.failed.as_deref(), shard);
                out.text(rendered.health(&health, self.manner))
            }
            Content::Record(sending) => sending.send(out, rendered, self.manner),
            Content::Listing(listing) => listing.send(out, rendered, shard, self.manner),
            // `answer` gives anything but this.
            Content::Asked(_) => Ok(()),
        }
    }
}

/// Looks at the store, or trims it, when all earlier replies are out.
fn answer(ask: Ask, common: &mut Common, shard: &mut Shard) -> Content {
    let refused = match ask {
        Ask::Health => return Content::Health,
        Ask::List { from, limit } => {
            return Content::Listing(Listing::new(from.unwrap_or_else(|| shard.head_seq()), limit));
        }
        Ask::Record(seq) => match shard.record(seq) {
            Some(record) => {
                common.counters.read_records += 1;
                return Content::Record(Sending::new(record));
            }
            None => Refusal::NoRecord { seq, head: shard.head_seq(), next: shard.next_seq() },
        },
        Ask::Trim { before } => match shard.trim(before) {
            Ok(trimmed) => return Content::Trimmed(trimmed),
            Err(error) => {
                common.fail(&error.to_string());
                Refusal::TrimFailed
            }
        },
    };
    common.counters.refused += 1;
    Content::Refused(refused)
}

/// One connection's way out.
pub(super) struct Out<'a, N> {
    net: &'a mut N,
    conn: ConnId,
    sent_bytes: u64,
}

impl<N: Net> Out<'_, N> {
    pub(super) fn text(&mut self, bytes: &[u8]) -> Result<(), Progress> {
        self.net.send(self.conn, bytes)?;
        self.sent_bytes += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn proven(&mut self, durable: &Durable, bytes: &[u8]) -> Result<(), Progress> {
        self.net.reply(self.conn, durable, bytes)?;
        self.sent_bytes += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn extent(&mut self, extent: &Extent) -> Result<(), Progress> {
        self.net.send_extent(self.conn, extent.clone())?;
        self.sent_bytes += extent.len() as u64;
        Ok(())
    }
}
